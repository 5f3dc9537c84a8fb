package supervise

import "time"

// Signal numbers that the decisions name. They are the same on every
// architecture that Go runs on under Linux but MIPS (signal(7)).
const (
	sigint  = 2
	sigkill = 9
	sigterm = 15
	sigtstp = 20
	sigttin = 21
	sigttou = 22
)

// signal decides what a signal to skep means: a stop, a reload, or one to pass
// on.
func (s *Supervisor) signal(now time.Time, sig int) {
	send, mapped := s.policy.SignalMap[sig]
	if mapped && send == 0 {
		s.note(Debug, "signal dropped as --signal-map says", Attr{"signal", sig})
		return
	}
	if !mapped {
		send = sig
	}
	if s.stops(sig) {
		s.stopAsked(now, sig, send)
		return
	}
	if s.serve && !mapped {
		switch sig {
		case s.policy.ReloadSignal:
			s.reload(Reload{Surge: true})
			return
		case sigtstp, sigttin, sigttou:
			// Job control is between a shell and the command on its terminal; several
			// workers have neither.
			s.note(Debug, "job control signal ignored", Attr{"signal", sig})
			return
		}
	}
	s.forward(send)
}

func (s *Supervisor) stops(sig int) bool {
	for _, stop := range s.policy.StopOn {
		if stop == sig {
			return true
		}
	}
	return false
}

func (s *Supervisor) forward(sig int) {
	for _, st := range s.seats {
		if st.PID != 0 && st.State != Killing {
			s.emit(Kill{Seat: st.ID, PID: st.PID, Signal: sig})
		}
	}
}

func (s *Supervisor) stopAsked(now time.Time, sig, send int) {
	if sig == sigint {
		s.interrupts++
	}
	if s.phase != Running {
		switch {
		case !s.serve:
			s.forward(send)
		case sig == sigint && s.interrupts > 1:
			s.note(Warn, "interrupted again", Attr{"next", "killing the workers"})
			s.killAll(now)
		}
		return
	}
	if s.policy.StopSignal != 0 {
		send = s.policy.StopSignal
	}
	var by time.Time
	timeout := s.stopTimeout()
	if timeout > 0 {
		by = now.Add(timeout)
	}
	if s.serve || timeout > 0 {
		s.note(Info, "stopping", Attr{"on", sig}, Attr{"timeout", timeout})
	}
	if !s.serve && len(s.seats) > 0 && s.seats[0].PID == 0 {
		s.code = 128 + send // nothing runs that could say it
	}
	if s.serve && s.policy.DrainDelay > 0 {
		s.phase, s.stopSignal, s.stopBy = Lingering, send, by
		s.lingerBy = now.Add(s.policy.DrainDelay)
		s.dropIdle()
		s.halted(now)
		return
	}
	s.begin(now, send, by)
}

// begin tells every worker to stop; nothing is started from here on (law 7).
func (s *Supervisor) begin(now time.Time, send int, by time.Time) {
	s.phase, s.stopSignal, s.stopBy = Halting, send, by
	if !by.IsZero() {
		s.quitBy = by.Add(giveUp)
	}
	s.replace, s.turn, s.again = nil, nil, false
	s.dropIdle()
	for _, st := range s.seats {
		switch {
		case st.State == Killing:
			continue
		case st.State == Stopping && s.serve:
			// It has been told. Servers take a second signal for impatience and drop
			// what they are doing.
			st.deadline = sooner(st.deadline, by)
			continue
		}
		by := by
		if st.State == Stopping {
			by = sooner(st.deadline, by)
		}
		s.move(now, st, Stopping)
		st.deadline = by
		if st.cause == "" {
			st.cause = CauseStop
		}
		s.emit(Kill{Seat: st.ID, PID: st.PID, Signal: send})
	}
	s.halted(now)
}

// dropIdle removes the seats that have no process.
func (s *Supervisor) dropIdle() {
	for i := len(s.seats) - 1; i >= 0; i-- {
		if st := s.seats[i]; st.PID == 0 {
			s.retire(st)
		}
	}
}

// killAll ends the stop at once: nothing has any time left, whether it is a
// worker or something that workers leave.
func (s *Supervisor) killAll(now time.Time) {
	s.stopBy = sooner(s.stopBy, now)
	s.quitBy = sooner(s.quitBy, now.Add(giveUp))
	if s.phase == Sweeping {
		s.emit(Sweep{Signal: sigkill})
		s.sweepBy = time.Time{}
		return
	}
	s.phase = Halting
	for _, st := range s.seats {
		if st.State != Killing {
			s.killed = true
			s.killSeat(now, st)
		}
	}
}

// sooner is the earlier of two deadlines, of which zero is none.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// halted goes on to the sweep when no worker is left.
func (s *Supervisor) halted(now time.Time) {
	if (s.phase == Halting || s.phase == Lingering) && len(s.seats) == 0 {
		s.sweep(now)
	}
}

func (s *Supervisor) sweep(now time.Time) {
	s.phase = Sweeping
	if s.serve && s.code == 0 && s.killed {
		s.code = 128 + sigkill
	}
	s.sweepBy = s.stopBy
	if s.sweepBy.IsZero() {
		s.sweepBy = now.Add(s.grace())
	}
	s.emit(Sweep{Signal: sigterm})
	// A deadline for killed workers set before goes on as the one for the sweep.
	if !now.Before(s.sweepBy) {
		s.killAll(now)
	}
}

func (s *Supervisor) quit() {
	s.phase = Ended
	s.emit(Quit{Code: s.exitCode(s.code)})
}

// exitCode applies --remap-exit. It is about the command: a step before the start
// that failed must not look done.
func (s *Supervisor) exitCode(code int) int {
	if s.policy.RemapExit[code] && !s.exact {
		return 0
	}
	return code
}

// readyAt is when a starting worker counts as ready by its age; zero is never.
func (s *Supervisor) readyAt(st *seat) time.Time {
	if s.policy.ReadyAfter == 0 || st.PID == 0 {
		return time.Time{}
	}
	return st.Started.Add(s.policy.ReadyAfter)
}

func (s *Supervisor) tick(now time.Time) {
	due := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	for _, st := range append([]*seat(nil), s.seats...) {
		if st.State == Starting && s.phase == Running && due(s.readyAt(st)) {
			s.becameReady(now, st)
			continue
		}
		if !due(st.deadline) {
			continue
		}
		s.expired(now, st)
	}
	switch s.phase {
	case Running:
	case Lingering:
		if due(s.lingerBy) {
			s.begin(now, s.stopSignal, s.stopBy)
		}
	case Halting:
		if due(s.quitBy) {
			s.note(Error, "workers do not end although they were killed", Attr{"next", "ending without them"})
			if s.code == 0 {
				s.code = 128 + sigkill
			}
			s.sweep(now)
			s.quit()
		}
	case Sweeping:
		switch {
		case due(s.sweepBy):
			s.note(Warn, "processes are left that did not end when told", Attr{"next", "killing them"})
			s.killAll(now)
		case due(s.quitBy):
			s.note(Error, "processes do not end although they were killed", Attr{"next", "ending without them"})
			s.quit()
		}
	case Ended:
	}
}

// expired acts on a seat whose deadline has passed.
func (s *Supervisor) expired(now time.Time, st *seat) {
	switch st.State {
	case Backoff:
		s.move(now, st, Down)
	case Starting:
		s.note(Error, "worker not ready in time", slotAttr(st), Attr{"pid", st.PID},
			Attr{"timeout", s.policy.StartTimeout}, Attr{"next", "ending it"})
		st.cause = CauseStartTimeout
		s.stopSeat(now, st)
	case Draining:
		s.note(Warn, "worker takes too long to drain", slotAttr(st), Attr{"pid", st.PID}, Attr{"next", "stopping it all the same"})
		s.stopSeat(now, st)
	case Stopping:
		s.note(Warn, "worker did not end in time", slotAttr(st), Attr{"pid", st.PID}, Attr{"next", "killing it"})
		if s.phase != Running {
			s.killed = true
		}
		s.killSeat(now, st)
	case Down, Ready, Killing, Standby, Failed:
	}
}
