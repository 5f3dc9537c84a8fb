package steer

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"skep/proc"
)

// A worker that is blocked need not have a connection in its queue: steering goes around it. With Options.Hang the Poller tells of workers whose accepting
// thread sleeps where no connection wakes it. It tells of a suspicion. Whether the thread slept there all along is for the owner to find out, from what the
// kernel counts (the thread's context switches): between two looks of the Poller it may have done anything.

// blockedLeast is how long a thread must have been seen blocked without a break, while the Poller is awake, before that is told. Shorter ones are ordinary work.
const blockedLeast = 100 * time.Millisecond

// watch tells of blocked members, each at most four times in Options.Hang. It returns when to look again although there is no traffic, 0 for never: a request can
// come on a connection that is open already, and a new one that is accepted at once need not wake the Poller (epoll looks again before it reports).
func (p *Poller) watch(now time.Duration, quiet bool) time.Duration {
	if p.opts.Hang == 0 {
		return 0
	}
	slept := now-p.watched > 4*p.opts.Idle // what a thread did meanwhile was not seen
	p.watched = now
	var next time.Duration
	for _, g := range p.groups {
		for _, m := range g.members {
			w := m.w
			if w == nil || m.State != Ready || w.gone || w.crowded || w.wchan < 0 {
				continue
			}
			next = p.opts.Hang / 4
			switch {
			case !w.asleep && !w.mute:
				w.blocked, w.seen = 0, 0
				continue
			case w.seen == 0:
				w.blocked, w.seen = now, now
			case slept:
				w.blocked = now
			}
			if now-w.blocked < blockedLeast && !quiet || w.told != 0 && now-w.told < p.opts.Hang/4 || !p.accepts(w) {
				continue
			}
			w.seenIdle = true // as good as that: it is the only one that can accept
			if p.send(Event{Kind: Blocked, Group: g.ID, Seat: m.Seat, For: now - w.blocked, TID: w.tid}) {
				w.told = now
			}
		}
	}
	return next
}

// accepts tells whether the watched thread of a worker is the only one that can accept its connections and holds some. When another thread waits for events
// beside it, or another process has the socket, it is not, for good. It reads more files than a tick may, so it is asked only before something is told.
func (p *Poller) accepts(w *worker) bool {
	alone, holds := false, w.conns > 0
	p.locked(func() {
		p.as(w.id, func() {
			alone = w.alone(&p.read)
			if !alone {
				return
			}
			listeners := p.listeners(w)
			if !holds { // the kernel does not tell how many descriptors there are
				n, _ := w.sockets(listeners)
				holds = n > 0
			}
			tree, err := proc.Host.Tree(w.pid)
			alone = err == nil
			for _, pid := range tree[1:] {
				sockets, err := proc.Host.Sockets(pid)
				alone = alone && err == nil && !slices.ContainsFunc(sockets, func(inode uint64) bool { return slices.Contains(listeners, inode) })
			}
		})
	})
	w.crowded = !alone
	return alone && holds
}

// listeners is the inode numbers of the sockets that the worker accepts from.
func (p *Poller) listeners(w *worker) (inodes []uint64) {
	for _, g := range p.groups {
		for _, m := range g.members {
			var st unix.Stat_t
			if m.w == w && m.FD >= 0 && unix.Fstat(m.FD, &st) == nil {
				inodes = append(inodes, st.Ino)
			}
		}
	}
	return inodes
}

// alone tells whether no other thread of the process waits for events. The thread's file-system identity must be the worker's.
func (w *worker) alone(r *readings) bool {
	waiting, ok := w.waiting(r)
	return ok && !slices.ContainsFunc(waiting, func(tid int) bool { return tid != w.tid })
}
