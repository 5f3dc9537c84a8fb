package supervise

import "time"

// reload asks for a new worker in every slot. A reload during a reload is
// remembered once: what changed in between is loaded by the second round.
func (s *Supervisor) reload(now time.Time, ev Reload) {
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
	if s.turn == nil {
		s.continueReplacing(now)
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
func (s *Supervisor) recycle(now time.Time, ev Recycle) {
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
		if s.turn == nil {
			s.continueReplacing(now)
		}
		return
	}
}

// continueReplacing ends the turn of the worker just replaced, if its old seat
// is gone or ready again, and begins the next one.
func (s *Supervisor) continueReplacing(now time.Time) {
	if s.turn != nil {
		if s.turn.surge && s.byID(s.turn.seat) != nil {
			return // the old worker still drains
		}
		if st := s.byID(s.turn.fresh); st != nil && !st.ready {
			return
		}
		s.turn = nil
	}
	for len(s.replace) > 0 && s.phase == Running {
		turn := s.replace[0]
		s.replace = s.replace[1:]
		if s.beginTurn(now, turn) {
			return
		}
	}
	if s.again && s.phase == Running {
		s.again = false
		s.reload(now, Reload{Surge: s.surge})
	}
}

// beginTurn starts to replace one worker; false means that there is nothing to
// wait for.
func (s *Supervisor) beginTurn(now time.Time, turn replacement) bool {
	st := s.byID(turn.seat)
	if st == nil || !st.lasting() {
		return false
	}
	switch st.State {
	case Down:
		return false
	case Backoff, Failed:
		// There is no old worker to keep: the new version may cure what failed.
		st.failures, st.streak = 0, 0
		s.move(now, st, Down)
		s.startMore(now)
		return false
	case Draining, Stopping, Killing:
		return false // it goes already
	case Starting, Ready, Standby:
	}
	s.turn = &turn
	if turn.surge {
		fresh := s.addSeat(st.Slot, st.ID)
		s.turn.fresh = fresh.ID
		s.startMore(now)
		return true
	}
	s.turn.fresh = st.ID
	s.drainSeat(now, st, turn.cause, nextStart)
	return true
}

// abortReplacing gives up a reload: what has not been replaced stays as it is.
func (s *Supervisor) abortReplacing(now time.Time) {
	kept := s.replace[:0]
	for _, r := range s.replace {
		if !r.reload {
			kept = append(kept, r)
		}
	}
	s.replace, s.turn, s.again = kept, nil, false
	s.continueReplacing(now)
}
