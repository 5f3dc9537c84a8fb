package initd

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/internal/sys"
	"skep/launch"
	"skep/port"
	"skep/port/steer"
	"skep/proc"
)

// steering tells the poller who is a member of which group, and acts on what it
// sees. Without a poller, because there is nothing to steer or the kernel has no
// descriptor left for it, everything else works without.
type steering struct {
	l       *loop
	poller  *steer.Poller
	told    generations
	changes uint64              // of leaving, and of the threads that listen
	leaving map[*port.Held]bool // sockets to be closed when the poller has let go of them
	ids     map[port.Addr]int
}

// generations are the generations of all that a membership is made of: nothing is
// told twice, and nothing is put together to find that out.
type generations struct{ ports, seats, own uint64 }

func newSteering(l *loop) *steering {
	return &steering{l: l, leaving: make(map[*port.Held]bool), ids: make(map[port.Addr]int)}
}

// start begins to steer, if it has not begun yet and several workers are wanted.
func (s *steering) start() {
	if s.poller != nil || s.l.o.Balance == BalanceSingle || len(s.l.ports.Groups()) == 0 {
		return
	}
	poller, err := steer.NewPoller(steer.Options{Hang: s.l.o.HangTimeout})
	if err != nil {
		s.l.log.Log(logger.Warn, "cannot steer connections; the kernel spreads them by its hash",
			logger.Field{Key: "error", Value: err.Error()})
		s.l.o.Balance = BalanceSingle // not asked again
		s.l.noProbes("connections are not steered")
		return
	}
	s.poller = poller
	s.l.background(func() {
		for ev := range poller.Events() {
			select {
			case s.l.reports <- func() { s.event(ev) }:
			case <-s.l.ctx.Done():
				return
			}
		}
	})
}

// update tells the poller what has changed in groups and states.
func (s *steering) update() {
	if !s.l.sup.Serving() || s.l.o.Boring {
		return
	}
	if s.poller != nil && s.l.sup.Phase() != supervise.Running {
		s.poller.Ending() // beside the workers' end
	}
	now := generations{s.l.ports.Generation(), s.l.sup.Generation(), s.changes}
	if now == s.told {
		return
	}
	s.start()
	if s.poller == nil {
		return
	}
	s.told = now
	m := s.membership()
	for _, g := range m.Groups {
		for i := range g.Members {
			fd, err := sys.Duplicate(g.Members[i].FD)
			if err != nil {
				fd = -1 // the poller leaves out what it cannot look at
			}
			g.Members[i].FD = fd
		}
	}
	s.poller.Update(m)
}

// membership lists the members of every TCP group, with the held descriptors
// still the port set's own.
func (s *steering) membership() (m steer.Membership) {
	states := make(map[int]supervise.Seat)
	for _, st := range s.l.sup.Seats() {
		states[st.ID] = st
	}
	var uid, gid uint32 = uint32(unix.Geteuid()), uint32(unix.Getegid())
	if u := s.l.user; u != nil {
		uid, gid = u.UID, u.GID
	}
	for _, g := range s.l.ports.Groups() {
		if !g.Addr.TCP() {
			continue
		}
		id, known := s.ids[g.Addr]
		if !known {
			id = len(s.ids)
			s.ids[g.Addr] = id
		}
		group := steer.Group{ID: id, Hash: s.l.o.Balance == BalanceHash, Probes: s.l.o.Ready == ReadyHTTP}
		for _, h := range g.Listening() {
			st := states[h.Slot]
			member := steer.Member{Seat: h.Slot, Slot: st.Slot, FD: h.FD(), State: s.state(h, st), PID: st.PID, UID: uid, GID: gid}
			if w := s.l.workers[h.Slot]; w != nil && w.pid == st.PID {
				member.TID = w.thread
			}
			group.Members = append(group.Members, member)
		}
		if len(group.Members) > 0 {
			m.Groups = append(m.Groups, group)
		}
	}
	return m
}

func (s *steering) state(h *port.Held, st supervise.Seat) steer.State {
	if s.leaving[h] {
		return steer.Leaving
	}
	switch st.State {
	case supervise.Starting:
		return steer.Starting
	case supervise.Ready, supervise.Standby:
		switch {
		case !h.Used():
			return steer.Down // this worker does not accept from it
		case st.State == supervise.Standby:
			return steer.Standby
		}
		return steer.Ready
	case supervise.Draining:
		return steer.Draining
	case supervise.Stopping, supervise.Killing:
		// A stop keeps serving what is queued as long as the worker accepts; nothing
		// new may wait for one that ends.
		return steer.Down
	case supervise.Down, supervise.Backoff, supervise.Failed:
	}
	return steer.Down
}

// leave closes sockets of a seat in the order that never lets the kernel give a
// connection to the wrong worker: those in the choice when the poller has let go
// of them, the others at once.
func (s *steering) leave(seat int, sockets ...*port.Held) {
	for _, h := range sockets {
		if s.poller != nil && s.l.sup.Phase() == supervise.Running && h.Slot == seat && h.Addr.TCP() && h.Listening() {
			s.leaving[h] = true
			s.changes++
		} else { // nothing that the poller would ever tell of
			s.l.ports.Drop(seat, h)
		}
	}
}

// left closes the socket that the poller has let go of, unless a worker has bound
// it again meanwhile.
func (s *steering) left(group, seat int) {
	for h := range s.leaving {
		if h.Slot != seat || s.ids[h.Addr] != group {
			continue
		}
		delete(s.leaving, h)
		s.changes++
		if s.l.workers[seat] == nil || !h.Used() {
			s.l.ports.Drop(seat, h)
		}
	}
}

// sweepAfter is how long a worker must have been ready before ports are given up
// that its predecessor had bound and it has not: a program may bind some late.
const sweepAfter = 10 * time.Second

// sweepAt is when a port that no worker binds any more is to be given up.
func (s *steering) sweepAt() time.Time {
	var at time.Time
	s.eachStale(func(_ *port.Held, due time.Time) {
		if at.IsZero() || due.Before(at) {
			at = due
		}
	})
	return at
}

// sweep gives those ports up. A program that picks its port anew at each start
// would else leave one more behind each time, on which clients wait for nobody.
func (s *steering) sweep(now time.Time) {
	s.eachStale(func(h *port.Held, due time.Time) {
		if now.Before(due) {
			return
		}
		if h.Listening() {
			s.l.log.Log(logger.Info, "the worker does not listen where the one before it did; closing the socket", s.l.slotOf(h.Slot),
				logger.Field{Key: "address", Value: h.Addr.String()})
		}
		s.leave(h.Slot, h)
	})
}

// eachStale calls visit for every socket that was left behind in a seat whose
// worker is ready, with the time from which on it may go.
func (s *steering) eachStale(visit func(h *port.Held, due time.Time)) {
	stale := s.l.ports.Stale()
	if len(stale) == 0 {
		return
	}
	for _, st := range s.l.sup.Seats() {
		if st.State != supervise.Ready && st.State != supervise.Standby {
			continue
		}
		for _, h := range stale {
			if h.Slot == st.ID && !s.leaving[h] {
				visit(h, st.Since.Add(sweepAfter))
			}
		}
	}
}

func (s *steering) event(ev steer.Event) {
	l := s.l
	slot := l.slotOf(ev.Seat)
	switch ev.Kind {
	case steer.Left:
		s.left(ev.Group, ev.Seat)
	case steer.Drained:
		if _, draining := l.draining[ev.Seat]; draining {
			delete(l.draining, ev.Seat)
			l.step(supervise.Drained{Seat: ev.Seat})
		}
	case steer.Stuck:
		l.log.Log(logger.Warn, "worker accepts nothing; new connections go to the others", slot,
			logger.Field{Key: "queue", Value: ev.Queue}, logger.Field{Key: "for", Value: ev.For})
		l.suspected(suspect{ev.Seat, queued}, ev.For, 0)
		s.whether(ev.Group, ev.Seat)
	case steer.Unstuck:
		l.log.Log(logger.Info, "worker accepts again", slot)
		delete(l.stalls, suspect{ev.Seat, queued})
	case steer.Ignored:
		s.whether(ev.Group, ev.Seat)
	case steer.Blocked:
		l.blockedEvent(ev)
	case steer.Failed:
		l.log.Log(logger.Warn, "cannot steer connections; the kernel spreads them by its hash",
			logger.Field{Key: "error", Value: ev.Err.Error()})
		l.noProbes("connections are not steered")
	case steer.Timed:
		l.log.Log(logger.Info, "the kernel does not tell of connections that are taken at once; workers are looked at every few milliseconds instead",
			logger.Field{Key: "error", Value: ev.Err.Error()})
	case steer.Dying:
		l.step(supervise.Dying{PID: ev.PID})
	case steer.Reachable:
		l.reachable(ev.Seat, ev.PID)
	case steer.Shut:
		// The port set hears of it too, and listens again.
	}
}

// whether finds out, off the loop, if a worker has closed its copy of a socket and
// lives on, as some do that end when their last connection has. Nothing new may
// wait for it then.
func (s *steering) whether(group, seat int) {
	l := s.l
	w := l.workers[seat]
	var held *port.Held
	for _, h := range l.ports.Held(seat) {
		if s.ids[h.Addr] == group && h.Slot == seat && h.Used() {
			held = h
		}
	}
	if w == nil || held == nil {
		return
	}
	pid, inode, user := w.pid, held.Inode(), l.user
	l.offload(func() func() {
		if holds(pid, inode, user) {
			return nil
		}
		return func() {
			if l.workers[seat] != w || held.FD() < 0 || !held.Used() {
				return
			}
			l.ports.Abandon(held)
			l.log.Log(logger.Warn, "the worker has closed its listener and lives on; new connections go to the others, queued ones wait for its successor",
				l.slotOf(seat), logger.Field{Key: "address", Value: held.Addr.String()})
		}
	})
}

// holds tells whether the process or a descendant has a descriptor of the socket,
// or may have one: what cannot be looked at counts as yes.
func holds(pid int, inode uint64, user *launch.User) bool {
	tree, err := proc.Host.Tree(pid)
	if err != nil || len(tree) == 0 {
		return true
	}
	for _, each := range tree {
		has := false
		look := func() (err error) {
			has, err = port.Holds(each, inode)
			return err
		}
		err := look()
		if user != nil && errors.Is(err, unix.EACCES) {
			err = sys.AsFileUser(int(user.UID), int(user.GID), look)
		}
		if has || err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESRCH) {
			return true
		}
	}
	return false
}

// drains tells whether the poller says when a draining seat is empty.
func (s *steering) drains() bool { return s.poller != nil && s.l.o.Balance == BalanceSteer }
