package initd

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/internal/sys"
	"skep/port"
	"skep/port/steer"
)

// steering tells the poller who is a member of which group, and acts on what it
// sees. Without a poller, because there is nothing to steer or the kernel has no
// descriptor left for it, everything else works without.
type steering struct {
	l       *loop
	poller  *steer.Poller
	told    string      // the membership last told, as text: nothing is told twice
	leaving map[int]int // seats whose sockets are to be closed, and how many groups still have them
	ids     map[port.Addr]int
}

func newSteering(l *loop) *steering {
	return &steering{l: l, leaving: make(map[int]int), ids: make(map[port.Addr]int)}
}

// start begins to steer, if it has not begun yet and several workers are wanted.
func (s *steering) start() {
	if s.poller != nil || s.l.o.Balance == BalanceSingle || len(s.l.ports.Groups()) == 0 {
		return
	}
	poller, err := steer.NewPoller(steer.Options{})
	if err != nil {
		s.l.log.Log(logger.Warn, "cannot steer connections; the kernel spreads them by its hash",
			logger.Field{Key: "error", Value: err.Error()})
		s.l.o.Balance = BalanceSingle // not asked again
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
	s.start()
	if s.poller == nil {
		return
	}
	states := make(map[int]supervise.Seat)
	for _, st := range s.l.sup.Seats() {
		states[st.ID] = st
	}
	m, text := s.membership(states)
	if text == s.told {
		return
	}
	s.told = text
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
// still the port set's own, and the same as text to compare.
func (s *steering) membership(states map[int]supervise.Seat) (m steer.Membership, text string) {
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
		fds := make(map[int]int)
		for _, h := range g.Held() {
			fds[h.Slot] = h.FD()
		}
		group := steer.Group{ID: id, Hash: s.l.o.Balance == BalanceHash}
		for _, seat := range g.Order() {
			st := states[seat]
			member := steer.Member{Seat: seat, Slot: st.Slot, FD: fds[seat], State: s.state(seat, st), PID: st.PID, UID: uid, GID: gid}
			if w := s.l.workers[seat]; w != nil && w.pid == st.PID {
				member.TID = w.thread
			}
			group.Members = append(group.Members, member)
			text += fmt.Sprint(id, seat, fds[seat], member.State, member.PID, member.TID, ";")
		}
		if len(group.Members) > 0 {
			m.Groups = append(m.Groups, group)
		}
	}
	return m, text
}

func (s *steering) state(seat int, st supervise.Seat) steer.State {
	if s.leaving[seat] > 0 {
		return steer.Leaving
	}
	switch st.State {
	case supervise.Starting:
		return steer.Starting
	case supervise.Ready:
		return steer.Ready
	case supervise.Standby:
		return steer.Standby
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

// leave closes the sockets of a seat in the order that never lets the kernel
// give a connection to the wrong worker.
func (s *steering) leave(seat int) {
	groups := 0
	if s.poller != nil && s.l.sup.Phase() == supervise.Running {
		for _, g := range s.l.ports.Groups() {
			if g.Addr.TCP() && slices.Contains(g.Order(), seat) {
				groups++
			}
		}
	}
	if groups == 0 { // nothing that the poller would ever tell of
		s.l.ports.Close(seat)
		return
	}
	s.leaving[seat] = groups
}

func (s *steering) event(ev steer.Event) {
	l := s.l
	slot := l.slotOf(ev.Seat)
	switch ev.Kind {
	case steer.Left:
		if s.leaving[ev.Seat]--; s.leaving[ev.Seat] == 0 {
			l.ports.Close(ev.Seat)
		}
		if s.leaving[ev.Seat] <= 0 {
			delete(s.leaving, ev.Seat)
		}
	case steer.Drained:
		if _, draining := l.draining[ev.Seat]; draining {
			delete(l.draining, ev.Seat)
			l.step(supervise.Drained{Seat: ev.Seat})
		}
	case steer.Stuck:
		l.log.Log(logger.Warn, "worker accepts nothing; new connections go to the others", slot,
			logger.Field{Key: "queue", Value: ev.Queue}, logger.Field{Key: "for", Value: ev.For})
		l.stalled(ev.Seat, ev.For)
	case steer.Unstuck:
		l.log.Log(logger.Info, "worker accepts again", slot)
		l.unstalled(ev.Seat)
	case steer.Failed:
		l.log.Log(logger.Warn, "cannot steer connections; the kernel spreads them by its hash",
			logger.Field{Key: "error", Value: ev.Err.Error()})
	case steer.Shut:
		// The port set hears of it too, and listens again.
	}
}

// drains tells whether the poller says when a draining seat is empty.
func (s *steering) drains() bool { return s.poller != nil && s.l.o.Balance == BalanceSteer }
