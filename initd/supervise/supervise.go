package supervise

import (
	"sort"
	"time"
)

// giveUp is how long a process that was sent KILL may take to go before skep
// ends without it: a task in uninterruptible sleep cannot be waited for, and a
// stop has to end within its timeout plus one second (law 8).
const giveUp = 900 * time.Millisecond

// settled is how long a worker that ends with 0 must have been ready for its
// end to be normal life (a server that counts requests) and not a loop.
const settled = time.Second

// Supervisor is the state of all seats. It is used by one goroutine.
type Supervisor struct {
	policy Policy
	phase  Phase
	seats  []*seat // in slot order; a replacement follows what it replaces
	nextID int
	wanted int
	serve  bool

	everReady bool
	code      int
	killed    bool // a worker had to be killed in the stop

	stopSignal int
	interrupts int
	stopBy     time.Time // zero: no deadline
	lingerBy   time.Time
	sweepBy    time.Time
	quitBy     time.Time

	replace []replacement
	turn    *replacement // the one under way
	again   bool         // a reload was asked for during a reload
	surge   bool         // of that reload

	out []Effect
}

type seat struct {
	Seat
	next     next
	cause    Cause // why skep is ending the process, empty when it is not
	ready    bool  // this process has been ready
	failures int   // deaths before ready in a row
	streak   int   // restarts with backoff in a row
	replaces int   // the seat this one takes over from, or -1
	deadline time.Time
}

// next says what follows the end of a seat's process.
type next int

const (
	nextByPolicy next = iota
	nextStart         // start again at once
	nextRetire        // the seat goes
)

type replacement struct {
	seat   int
	fresh  int // the seat that takes over, or the same one when it stops first
	cause  Cause
	surge  bool
	reload bool
}

// New returns the supervisor in its first state. Nothing happens before Begin.
func New(p Policy) *Supervisor {
	p.Workers = max(p.Workers, 1)
	p.StartParallel = max(p.StartParallel, 1)
	s := &Supervisor{policy: p, wanted: p.Workers, serve: p.Serve}
	s.fill()
	return s
}

// Step takes one event and returns what has to be done, in order. Time must not
// go backwards between calls. After a Quit nothing is ever returned again.
func (s *Supervisor) Step(now time.Time, ev Event) []Effect {
	if s.phase == Ended {
		return nil
	}
	s.out = nil
	switch ev := ev.(type) {
	case Begin:
		s.startMore(now)
	case Started:
		s.started(now, ev)
	case StartFailed:
		s.startFailed(now, ev)
	case Exited:
		s.exited(now, ev)
	case BecameReady:
		if st := s.byPID(ev.PID); st != nil && st.State == Starting {
			s.becameReady(now, st)
		}
	case Drained:
		if st := s.byID(ev.Seat); st != nil && st.State == Draining {
			s.stopSeat(now, st)
		}
	case Hung:
		s.hung(now, ev)
	case Recycle:
		s.recycle(now, ev)
	case Scale:
		s.scale(now, ev)
	case Reload:
		s.reload(now, ev)
	case Signal:
		s.signal(now, ev.Signal)
	case Childless:
		if s.phase == Sweeping {
			s.quit()
		}
	case Tick:
		s.tick(now)
	}
	return s.out
}

// Deadline is the earliest moment at which a Tick has something to do.
func (s *Supervisor) Deadline() (time.Time, bool) {
	var at time.Time
	earliest := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	switch s.phase {
	case Ended:
		return at, false
	case Lingering:
		earliest(s.lingerBy)
	case Halting:
		earliest(s.quitBy)
	case Sweeping:
		earliest(s.sweepBy)
		earliest(s.quitBy)
	case Running:
	}
	waiting := false
	for _, st := range s.seats {
		waiting = waiting || st.State == Down
	}
	for _, st := range s.seats {
		earliest(st.deadline)
		if st.State == Starting && s.phase == Running {
			earliest(s.readyAt(st))
			if waiting {
				earliest(st.Started.Add(s.policy.StartSpacing))
			}
		}
	}
	return at, !at.IsZero()
}

// Seats returns a copy of every seat, in slot order.
func (s *Supervisor) Seats() []Seat {
	seats := make([]Seat, 0, len(s.seats))
	for _, st := range s.seats {
		seats = append(seats, st.Seat)
	}
	return seats
}

// Phase tells how far skep is.
func (s *Supervisor) Phase() Phase { return s.phase }

// Serving tells whether the command is run as a service of several workers, as
// opposed to a lone command whose status is skep's.
func (s *Supervisor) Serving() bool { return s.serve }

// Wanted is the number of workers wanted now.
func (s *Supervisor) Wanted() int { return s.wanted }

func (s *Supervisor) emit(e Effect) { s.out = append(s.out, e) }

func (s *Supervisor) note(level Level, text string, attrs ...Attr) {
	s.emit(Note{Level: level, Text: text, Attrs: attrs})
}

func (s *Supervisor) byID(id int) *seat {
	for _, st := range s.seats {
		if st.ID == id {
			return st
		}
	}
	return nil
}

func (s *Supervisor) byPID(pid int) *seat {
	for _, st := range s.seats {
		if st.PID == pid && pid != 0 {
			return st
		}
	}
	return nil
}

// move puts a seat into a state; a deadline never outlives the state that set it.
func (s *Supervisor) move(now time.Time, st *seat, to State) {
	st.State, st.Since, st.deadline = to, now, time.Time{}
}

// lasting tells whether the seat is one of those that Scale counts.
func (st *seat) lasting() bool { return st.next != nextRetire && st.replaces < 0 }

// fill adds seats until there are as many slots as are wanted.
func (s *Supervisor) fill() {
	used := make(map[int]bool)
	have := 0
	for _, st := range s.seats {
		used[st.Slot] = true
		if st.lasting() {
			have++
		}
	}
	for slot := 0; have < s.wanted+s.policy.Standby; slot++ {
		if used[slot] {
			continue
		}
		s.addSeat(slot, -1)
		have++
	}
}

func (s *Supervisor) addSeat(slot, replaces int) *seat {
	st := &seat{Seat: Seat{ID: s.nextID, Slot: slot}, replaces: replaces}
	s.nextID++
	s.seats = append(s.seats, st)
	sort.SliceStable(s.seats, func(i, j int) bool { return s.seats[i].Slot < s.seats[j].Slot })
	return st
}

// startMore starts a seat that waits for its turn: a start that is neither
// ready nor StartSpacing old holds up the next ones. One Start is under way at a
// time; its answer starts the next, so that no Start can be outrun by a stop.
func (s *Supervisor) startMore(now time.Time) {
	if s.phase != Running {
		return
	}
	starting := 0
	for _, st := range s.seats {
		if st.State == Starting && st.PID == 0 {
			return
		}
		if st.State == Starting && now.Before(st.Started.Add(s.policy.StartSpacing)) {
			starting++
		}
	}
	for _, st := range s.seats {
		if st.State != Down {
			continue
		}
		if starting >= s.policy.StartParallel {
			return
		}
		s.move(now, st, Starting)
		st.Started, st.ready, st.cause, st.next = now, false, "", nextByPolicy
		s.emit(Start{Seat: st.ID, Slot: st.Slot})
		return
	}
}

func (s *Supervisor) started(now time.Time, ev Started) {
	st := s.byID(ev.Seat)
	if st == nil || st.State != Starting || st.PID != 0 {
		return
	}
	st.PID, st.Started = ev.PID, now
	if s.policy.StartTimeout > 0 && s.serve {
		st.deadline = now.Add(s.policy.StartTimeout)
	}
	s.note(Info, "worker started", slotAttr(st), Attr{"pid", st.PID})
	s.startMore(now)
}

func (s *Supervisor) startFailed(now time.Time, ev StartFailed) {
	st := s.byID(ev.Seat)
	if st == nil || st.State != Starting || st.PID != 0 {
		return
	}
	st.Last = &End{Cause: CauseStartFailed, Status: Status{Code: ev.Code}, At: now}
	attrs := []Attr{slotAttr(st), {"error", ev.Err}}
	s.ended(now, st, attrs, "cannot start worker", ev.Transient)
}

func (s *Supervisor) exited(now time.Time, ev Exited) {
	st := s.byPID(ev.PID)
	if st == nil {
		return
	}
	cause := st.cause
	switch {
	case cause != "":
	case ev.OOM:
		cause = CauseOOM
	case ev.Status.Signal != 0:
		cause = CauseSignal
	default:
		cause = CauseExit
	}
	st.Last = &End{Cause: cause, Status: ev.Status, At: now}
	st.PID = 0
	attrs := []Attr{slotAttr(st), {"pid", ev.PID}, {"cause", string(cause)}}
	if ev.Status.Signal != 0 {
		attrs = append(attrs, Attr{"signal", ev.Status.Signal})
	} else {
		attrs = append(attrs, Attr{"code", ev.Status.Code})
	}
	attrs = append(attrs, Attr{"uptime", now.Sub(st.Started)})
	s.ended(now, st, attrs, "worker ended", false)
}

// ended decides what follows when a seat has no process any more.
func (s *Supervisor) ended(now time.Time, st *seat, attrs []Attr, text string, transient bool) {
	status := st.Last.Status
	if s.phase != Running {
		if !s.serve && s.code == 0 {
			s.code = status.ExitCode()
		}
		s.note(Info, text, attrs...)
		s.retire(st)
		s.halted(now)
		return
	}
	say := func(level Level, consequence string, more ...Attr) {
		s.note(level, text, append(append(attrs, Attr{"next", consequence}), more...)...)
	}
	if st.replaces >= 0 {
		say(Error, "reload aborted, the old workers stay")
		s.retire(st)
		s.abortReplacing(now)
		return
	}
	switch st.next {
	case nextRetire:
		say(Info, "slot closed")
		s.retire(st)
		s.continueReplacing(now)
		return
	case nextStart:
		say(Info, "starting again")
		st.Restarts++
		s.move(now, st, Down)
		s.promote(now)
		s.startMore(now)
		return
	case nextByPolicy:
	}
	if s.turn != nil && s.turn.fresh == st.ID && !s.turn.surge {
		s.abortReplacing(now)
	}
	if !transient && !s.restarts(status) {
		switch {
		case s.policy.Restart == RestartAuto:
			// What skep reports is what the command itself said; the others are told to
			// stop because a service that cannot start has to be seen to fail.
			s.code = status.ExitCode()
			say(endLevel(status), "ending", Attr{"exit", s.exitCode(s.code)})
			s.retire(st)
			s.begin(now, int(sigterm), now.Add(s.grace()))
		default:
			say(endLevel(status), "not restarted")
			if s.code == 0 {
				s.code = status.ExitCode()
			}
			s.retire(st)
			if len(s.seats) == 0 {
				s.sweep(now)
			} else {
				s.promote(now)
			}
		}
		return
	}
	s.restart(now, st, status, say)
}

// restarts tells whether the policy wants a start after this end.
func (s *Supervisor) restarts(status Status) bool {
	success := status == Status{}
	switch s.policy.Restart {
	case RestartAlways:
		return true
	case RestartOnFailure:
		return !success
	case RestartNever:
		return false
	case RestartAuto:
	}
	if !s.everReady {
		return false
	}
	return !success || s.serve && s.wanted > 1
}

func (s *Supervisor) restart(now time.Time, st *seat, status Status, say func(Level, string, ...Attr)) {
	st.Restarts++
	up := now.Sub(st.Started)
	if st.ready {
		st.failures = 0
	} else {
		st.failures++
	}
	if up >= s.policy.ResetAfter {
		st.streak = 0
	}
	switch {
	case s.policy.StartLimit > 0 && st.failures >= s.policy.StartLimit:
		s.move(now, st, Failed)
		if s.allFailed() {
			say(Error, "start-limit-hit, ending", Attr{"exit", s.exitCode(status.ExitCode())})
			s.code = status.ExitCode()
			s.begin(now, int(sigterm), now.Add(s.grace()))
			return
		}
		say(Error, "start-limit-hit, the slot stays empty while others serve", Attr{"deaths", st.failures})
	case st.ready && status == Status{} && up >= settled:
		say(Info, "replacing at once")
		s.move(now, st, Down)
	default:
		delay := backoff(s.policy.Delay, s.policy.MaxDelay, st.streak, s.jitter())
		st.streak++
		s.move(now, st, Backoff)
		st.deadline = now.Add(delay)
		say(Warn, "restarting", Attr{"delay", delay}, Attr{"restarts", st.Restarts})
	}
	s.promote(now)
	s.startMore(now)
}

func (s *Supervisor) jitter() float64 {
	if s.policy.Jitter == nil {
		return 0
	}
	return s.policy.Jitter()
}

// backoff is the delay before the start that follows n others in a row: it
// doubles up to the limit, and r in [0, 1) adds up to 10 %.
func backoff(first, limit time.Duration, n int, r float64) time.Duration {
	d := first
	for ; n > 0 && d < limit; n-- {
		d *= 2
	}
	if limit > 0 && d > limit {
		d = limit
	}
	return d + time.Duration(r*0.1*float64(d))
}

func (s *Supervisor) allFailed() bool {
	for _, st := range s.seats {
		if st.State != Failed {
			return false
		}
	}
	return true
}

func (s *Supervisor) becameReady(now time.Time, st *seat) {
	st.ready, st.failures = true, 0
	s.everReady = true
	s.note(Info, "worker ready", slotAttr(st), Attr{"pid", st.PID}, Attr{"after", now.Sub(st.Started)})
	s.move(now, st, Standby)
	if st.replaces >= 0 {
		old := s.byID(st.replaces)
		st.replaces = -1
		if old != nil {
			s.move(now, st, Ready)
			s.drainSeat(now, old, s.turn.cause, nextRetire)
		}
	}
	s.promote(now)
	if s.turn != nil && s.turn.fresh == st.ID && s.byID(s.turn.seat) == st {
		s.continueReplacing(now)
	}
	s.startMore(now)
}

// promote lets ready spares serve until as many workers serve as are wanted.
func (s *Supervisor) promote(now time.Time) {
	if s.phase != Running {
		return
	}
	serving := 0
	for _, st := range s.seats {
		if st.State == Ready {
			serving++
		}
	}
	for _, st := range s.seats {
		if serving >= s.wanted {
			return
		}
		if st.State == Standby && st.replaces < 0 {
			s.move(now, st, Ready)
			serving++
		}
	}
}

// drainSeat takes a seat out of service: no new connections, then the stop
// signal when its queues are empty.
func (s *Supervisor) drainSeat(now time.Time, st *seat, cause Cause, then next) {
	st.cause, st.next = cause, then
	switch st.State {
	case Ready, Standby:
		s.move(now, st, Draining)
		if s.policy.DrainTimeout > 0 {
			st.deadline = now.Add(s.policy.DrainTimeout)
		}
		s.emit(Drain{Seat: st.ID})
	case Starting:
		s.stopSeat(now, st)
	case Down, Backoff, Failed:
		if then == nextRetire {
			s.retire(st)
			s.continueReplacing(now)
		} else {
			s.move(now, st, Down)
			s.startMore(now)
		}
	case Draining, Stopping, Killing:
	}
}

// stopSeat sends the stop signal to one worker that is scaled or reloaded away.
func (s *Supervisor) stopSeat(now time.Time, st *seat) {
	if st.PID == 0 {
		return
	}
	sig := s.policy.StopSignal
	if sig == 0 {
		sig = int(sigterm)
	}
	s.move(now, st, Stopping)
	st.deadline = now.Add(s.grace())
	s.emit(Kill{Seat: st.ID, PID: st.PID, Signal: sig})
}

// grace is the time from a stop signal that nobody asked skep for to KILL.
func (s *Supervisor) grace() time.Duration {
	if s.policy.StopTimeout > 0 {
		return s.policy.StopTimeout
	}
	return s.policy.SweepTimeout
}

func (s *Supervisor) killSeat(now time.Time, st *seat) {
	s.move(now, st, Killing)
	s.emit(Kill{Seat: st.ID, PID: st.PID, Signal: int(sigkill), Tree: true})
}

func (s *Supervisor) retire(st *seat) {
	for i, other := range s.seats {
		if other == st {
			s.seats = append(s.seats[:i:i], s.seats[i+1:]...)
			break
		}
	}
	s.emit(Retire{Seat: st.ID})
}

func (s *Supervisor) hung(now time.Time, ev Hung) {
	st := s.byID(ev.Seat)
	if st == nil || st.State != Ready || s.phase != Running {
		return
	}
	s.note(Error, "worker hangs: it accepts nothing while its queue holds connections", slotAttr(st),
		Attr{"pid", st.PID}, Attr{"next", "ending it"}, Attr{"signal", s.policy.HangSignal})
	s.move(now, st, Stopping)
	st.cause, st.next = CauseHang, nextStart
	st.deadline = now.Add(s.policy.HangGrace)
	s.emit(Kill{Seat: st.ID, PID: st.PID, Signal: s.policy.HangSignal})
	s.promote(now)
}

func (s *Supervisor) scale(now time.Time, ev Scale) {
	if s.phase != Running || ev.Workers < 1 {
		return
	}
	s.serve = s.serve || ev.Serve
	if ev.Workers == s.wanted {
		return
	}
	s.note(Info, "number of workers changes", Attr{"from", s.wanted}, Attr{"to", ev.Workers}, Attr{"why", ev.Why})
	s.wanted = ev.Workers
	s.fill()
	for surplus := s.surplus(); len(surplus) > 0; surplus = s.surplus() {
		s.drainSeat(now, surplus[len(surplus)-1], CauseScale, nextRetire)
	}
	s.promote(now)
	s.startMore(now)
}

// surplus lists the lasting seats over the wanted number, lowest slot first.
func (s *Supervisor) surplus() []*seat {
	var lasting []*seat
	for _, st := range s.seats {
		if st.lasting() {
			lasting = append(lasting, st)
		}
	}
	if n := s.wanted + s.policy.Standby; len(lasting) > n {
		return lasting[n:]
	}
	return nil
}

func slotAttr(st *seat) Attr { return Attr{"slot", st.Slot} }

func endLevel(status Status) Level {
	if status == (Status{}) {
		return Info
	}
	return Error
}
