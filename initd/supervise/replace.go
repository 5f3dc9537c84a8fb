package supervise

import "time"

// reload asks for a new worker in every slot. A reload during a reload is
// remembered once: what changed in between is loaded by the second round.
func (s *Supervisor) reload(ev Reload) {
	if s.phase != Running || !s.serve {
		return
	}
	if s.reloading() {
		s.again, s.surge = true, ev.Surge
		s.note(Info, "reload asked for during a reload", Attr{"next", "another one follows"})
		return
	}
	s.note(Info, "reload begins", Attr{"workers", s.wanted})
	for _, st := range s.seats {
		if st.lasting() {
			s.replace = append(s.replace, replacement{seat: st.ID, cause: CauseReload, surge: ev.Surge, reload: true})
		}
	}
}

func (s *Supervisor) reloading() bool {
	if s.turn != nil && s.turn.reload {
		return true
	}
	for _, r := range s.replace {
		if r.reload {
			return true
		}
	}
	return false
}

// recycle asks for a new worker in one slot, in turn with a reload.
func (s *Supervisor) recycle(ev Recycle) {
	if s.phase != Running {
		return
	}
	for _, st := range s.seats {
		if st.Slot != ev.Slot || !st.lasting() || st.State != Ready && st.State != Standby {
			continue
		}
		if s.turn != nil && s.turn.seat == st.ID {
			return
		}
		for _, r := range s.replace {
			if r.seat == st.ID {
				return
			}
		}
		s.replace = append(s.replace, replacement{seat: st.ID, cause: ev.Cause, surge: ev.Surge})
		return
	}
}

// continueReplacing ends the turn of the worker just replaced, when its old
// process is gone and the new one is ready, and begins the next one. It is asked
// after every event.
func (s *Supervisor) continueReplacing(now time.Time) {
	if s.turn != nil && s.turnOver() {
		s.turn = nil
	}
	for s.turn == nil {
		if len(s.replace) == 0 {
			if !s.again {
				return
			}
			s.again = false
			s.reload(Reload{Surge: s.surge})
			continue
		}
		next := s.replace[0]
		s.replace = s.replace[1:]
		s.beginTurn(now, next)
	}
}

func (s *Supervisor) turnOver() bool {
	if s.turn.surge && s.byID(s.turn.seat) != nil {
		return false // there are two processes in the slot
	}
	fresh := s.byID(s.turn.fresh)
	return s.turn.failed || fresh == nil || fresh.State == Ready || fresh.State == Standby
}

// beginTurn starts to replace one worker. When there is nothing to wait for no
// turn is under way afterwards.
func (s *Supervisor) beginTurn(now time.Time, turn replacement) {
	st := s.byID(turn.seat)
	if st == nil || !st.lasting() {
		return
	}
	switch st.State {
	case Backoff, Failed:
		if !turn.reload {
			return // what was to be recycled is gone
		}
		// There is no old worker to keep: the new version may cure what failed.
		st.failures, st.streak = 0, 0
		s.move(now, st, Down)
		return
	case Down, Draining, Stopping, Killing:
		return // the next process is a new one anyway
	case Starting, Ready, Standby:
	}
	s.turn = &turn
	if turn.surge {
		s.turn.fresh = s.addSeat(st.Slot, st.ID).ID
		return
	}
	s.turn.fresh = st.ID
	s.drainSeat(now, st, turn.cause, nextStart)
}

// abortReplacing ends a reload whose new worker died: what has not been
// replaced stays as it is. A recycled worker that dies says nothing about the
// others.
func (s *Supervisor) abortReplacing(st *seat) {
	if s.turn.reload {
		s.note(Error, "reload aborted: the new worker died", slotAttr(st), Attr{"next", "workers not yet replaced stay"})
		queue := s.replace // slices.DeleteFunc of this type is 2 kB of the program
		s.replace = nil
		for _, r := range queue {
			if !r.reload {
				s.replace = append(s.replace, r)
			}
		}
		s.again = false
	}
	s.turn.reload, s.turn.failed = false, true
}

// trim takes away the workers over the number wanted, the highest slots first.
func (s *Supervisor) trim(now time.Time) {
	for surplus := s.surplus(); surplus != nil; surplus = s.surplus() {
		if t := s.turn; t != nil && t.seat == surplus.ID && t.surge {
			// Nobody needs the successor that is on its way.
			fresh := s.byID(t.fresh)
			fresh.replaces, s.turn = -1, nil
			s.drainSeat(now, fresh, CauseScale, nextRetire)
		}
		s.drainSeat(now, surplus, CauseScale, nextRetire)
	}
}

// surplus is the lasting seat in the highest slot if there are more than are
// wanted, or nil.
func (s *Supervisor) surplus() *seat {
	var highest *seat
	lasting := 0
	for _, st := range s.seats {
		if st.lasting() {
			highest = st
			lasting++
		}
	}
	if lasting > s.wanted+s.policy.Standby {
		return highest
	}
	return nil
}
