package initd

import (
	"time"

	"skep/initd/supervise"
	"skep/port"
	"skep/proc"
)

// Passed descriptors are listening already, so listen(2) says nothing. A worker
// is ready when it waits for connections on them: when one of its processes has
// the socket in an epoll set, waits in accept(2), or rests in poll(2) or
// select(2) without having used any CPU since the last two looks.
const (
	awaitEvery = 50 * time.Millisecond
	awaitStill = 3 // looks without CPU time used, in poll or select
)

// awaited is a worker that is looked at until it is ready.
type awaited struct {
	pid     int
	inodes  []uint64
	cpu     time.Duration
	still   int
	reading bool
}

// awaits tells whether ready workers have to be found out by looking at them.
func (l *loop) awaits() bool {
	return len(l.o.Listen) > 0 && l.o.Ready.seen() && l.sup.Phase() == supervise.Running
}

// awaitAt is when starting workers are to be looked at again.
func (l *loop) awaitAt() time.Time {
	if !l.awaits() {
		return time.Time{}
	}
	var at time.Time
	for _, st := range l.sup.Seats() {
		if st.State == supervise.Starting && st.PID != 0 {
			at = l.looked.Add(awaitEvery)
		}
	}
	return at
}

// await looks at every starting worker, off the loop.
func (l *loop) await(now time.Time) {
	if !l.awaits() || now.Before(l.looked.Add(awaitEvery)) {
		return
	}
	l.looked = now
	for _, st := range l.sup.Seats() {
		w := l.workers[st.ID]
		if st.State != supervise.Starting || w == nil || w.pid != st.PID {
			continue
		}
		if w.awaited == nil {
			w.awaited = &awaited{pid: w.pid}
			for _, h := range l.ports.Held(st.ID) {
				w.awaited.inodes = append(w.awaited.inodes, h.Inode())
			}
		}
		a := w.awaited
		if a.reading {
			continue
		}
		a.reading = true
		l.offload(func() func() {
			ready := a.look()
			return func() {
				a.reading = false
				if ready && l.workers[w.seat] == w {
					l.step(supervise.BecameReady{PID: w.pid})
				}
			}
		})
	}
}

// look tells whether the worker waits for connections. It reads files of other
// processes and may stall.
func (a *awaited) look() bool {
	tree, err := proc.Host.Tree(a.pid)
	if err != nil {
		return false
	}
	cpu, err := proc.Host.CPU(tree...)
	rests := err == nil && cpu == a.cpu
	a.cpu = cpu
	polls := false
	for _, pid := range tree {
		held := false
		for _, inode := range a.inodes {
			if proc.Host.EpollWatches(pid, inode) {
				return true
			}
			has, err := port.Holds(pid, inode)
			held = held || err == nil && has
		}
		if !held {
			continue
		}
		for _, name := range proc.Host.Waits(pid) {
			switch name {
			case "inet_csk_accept", "unix_accept", "__skb_wait_for_more_packets": // the last one under unix_accept
				return true
			case "poll_schedule_timeout", "do_sys_poll", "do_select":
				polls = true
			}
		}
	}
	if !rests || !polls {
		a.still = 0
		return false
	}
	a.still++
	return a.still >= awaitStill
}
