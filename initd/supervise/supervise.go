package supervise

import (
	"math"
	"slices"
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

// leastDelay bounds every backoff from below: without one, a start that fails
// at once would be tried again in a loop that never lets anything else happen.
const leastDelay = time.Millisecond

// timedOut is the exit code for a first start that took too long, as for a step
// before the start and as of timeout(1).
const timedOut = 124

// Supervisor is the state of all seats. It is used by one goroutine.
type Supervisor struct {
	policy Policy
	phase  Phase
	seats  []*seat // in slot order; a replacement follows what it replaces
	nextID int
	wanted int
	serve  bool

	begun      bool // Begin has been seen
	everReady  bool
	code       int
	exact      bool // the code is no command's: --remap-exit is not asked
	goneCode   int  // the first one but 0 of the workers that were not restarted
	failedCode int  // of the worker that was the last to reach its start limit
	killed     bool // a worker had to be killed in the stop

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

	out        []Effect
	generation uint64
}

type seat struct {
	Seat
	next     next
	cause    Cause // why skep is ending the process, empty when it is not
	ready    bool  // this process has been ready
	leaving  bool  // it has said that it ends by itself
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
	failed bool // the new process died: nothing more is expected of this turn
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
		s.begun = true
	case Abandon:
		if s.phase == Running && !s.begun {
			s.code, s.exact, s.stopBy = ev.Code, true, ev.By
			if !ev.By.IsZero() {
				s.quitBy = ev.By.Add(giveUp)
			}
			s.dropIdle()
			s.sweep(now)
		}
	case Started:
		s.started(now, ev)
	case StartFailed:
		s.startFailed(now, ev)
	case Exited:
		s.exited(now, ev)
	case Proven:
		s.policy.FirstAlone = false
	case BecameReady:
		if st := s.byPID(ev.PID); st != nil && st.State == Starting {
			s.becameReady(now, st)
		}
	case Leaving:
		s.leaving(now, ev)
	case Dying:
		s.dying(now, ev)
	case Drained:
		if st := s.byID(ev.Seat); st != nil && st.State == Draining && !st.leaving {
			s.stopSeat(now, st)
		}
	case Hung:
		s.hung(now, ev)
	case Recycle:
		s.recycle(ev)
	case Scale:
		s.scale(ev)
	case Reload:
		s.reload(ev)
	case Signal:
		s.signal(now, ev.Signal)
	case Childless:
		if s.phase == Sweeping {
			s.quit()
		}
	case Tick:
		s.tick(now)
	}
	s.settle(now)
	return s.out
}

// settle does what follows from the state alone, whatever event led to it:
// surplus workers go, the next one is replaced, spares serve, seats that wait
// start, and skep ends when there is nothing left to do. It comes last in every step, so that a decision to end is made before anything
// could be started (law 7), and nothing that waits is ever forgotten.
func (s *Supervisor) settle(now time.Time) {
	if s.phase != Running {
		return
	}
	s.trim(now)
	s.continueReplacing(now)
	s.promote(now)
	if s.exhausted() {
		s.exhaust(now)
		return
	}
	if s.begun {
		s.startMore(now)
	}
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
	for _, st := range s.seats {
		earliest(st.deadline)
		if st.State == Starting && s.phase == Running {
			earliest(s.readyAt(st))
		}
	}
	earliest(s.nextTurn())
	return at, !at.IsZero()
}

// nextTurn is when a seat that waits may start, if the ones before it stay as
// they are; zero when none waits.
func (s *Supervisor) nextTurn() time.Time {
	var started []time.Time
	waiting := false
	for _, st := range s.seats {
		switch st.State {
		case Starting:
			started = append(started, st.Started)
		case Down:
			waiting = true
		case Ready, Draining, Stopping, Killing, Backoff, Standby, Failed:
		}
	}
	if !waiting || s.phase != Running || len(started) < s.policy.StartParallel {
		return time.Time{}
	}
	sort.Slice(started, func(i, j int) bool { return started[i].Before(started[j]) })
	return started[len(started)-s.policy.StartParallel].Add(s.policy.StartSpacing)
}

// Seats returns a copy of every seat, in slot order.
func (s *Supervisor) Seats() []Seat {
	seats := make([]Seat, 0, len(s.seats))
	for _, st := range s.seats {
		seats = append(seats, st.Seat)
	}
	return seats
}

// Generation is another number after every Step that has changed which seats
// there are, or the state or the process of one. It is for those who would else
// compare all of Seats each time.
func (s *Supervisor) Generation() uint64 { return s.generation }

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
	s.generation++
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
	s.generation++
	s.seats = append(s.seats, st)
	sort.SliceStable(s.seats, func(i, j int) bool { return s.seats[i].Slot < s.seats[j].Slot })
	return st
}

// startMore starts a seat that waits for its turn: a start that is neither
// ready nor StartSpacing old holds up the next ones. One Start is under way at a
// time; its answer starts the next, so that no Start can be outrun by a stop.
func (s *Supervisor) startMore(now time.Time) {
	starting := 0
	for _, st := range s.seats {
		if st.State == Starting && st.PID == 0 || s.policy.FirstAlone && st.PID != 0 {
			return
		}
		if st.State == Starting && now.Before(st.Started.Add(s.policy.StartSpacing)) {
			starting++
		}
	}
	if starting >= s.policy.StartParallel {
		return
	}
	st := s.nextToStart()
	if st == nil {
		return
	}
	s.move(now, st, Starting)
	st.Started, st.ready, st.leaving, st.cause, st.next = now, false, false, "", nextByPolicy
	s.emit(Start{Seat: st.ID, Slot: st.Slot})
}

// nextToStart is the seat whose turn it is, or nil: a worker that is missing
// comes before one that replaces another.
func (s *Supervisor) nextToStart() *seat {
	var replacing *seat
	for _, st := range s.seats {
		switch {
		case st.State != Down:
		case st.replaces < 0:
			return st
		case replacing == nil:
			replacing = st
		}
	}
	return replacing
}

func (s *Supervisor) started(now time.Time, ev Started) {
	st := s.byID(ev.Seat)
	if st == nil || st.State != Starting || st.PID != 0 {
		return
	}
	st.PID, st.Started = ev.PID, now
	s.generation++
	if s.policy.StartTimeout > 0 && s.serve {
		st.deadline = now.Add(s.policy.StartTimeout)
	}
	s.note(Info, "worker started", slotAttr(st), Attr{"pid", st.PID})
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
	st.PID = 0 // what follows moves or retires the seat
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
	switch {
	case st.next == nextRetire:
		say(Info, "slot closed")
		s.retire(st)
		return
	case st.replaces >= 0:
		say(Error, "the replacement is given up, the old worker stays")
		s.abortReplacing(st)
		s.turn = nil
		s.retire(st)
		return
	case st.next == nextStart:
		say(Info, "starting again")
		st.Restarts++
		s.move(now, st, Down)
		return
	}
	if s.turn != nil && s.turn.fresh == st.ID {
		s.abortReplacing(st)
	}
	switch {
	case transient || s.restarts(st.Last):
		s.restart(now, st, transient, say)
	case s.policy.Restart == RestartAuto:
		// What skep reports is what the command itself said; the others are told to
		// stop because a service that cannot start has to be seen to fail.
		s.code = st.Last.code()
		say(s.endLevel(status), "ending", Attr{"exit", s.exitCode(s.code)})
		s.retire(st)
		s.begin(now, int(sigterm), now.Add(s.grace()))
		return
	default:
		say(s.endLevel(status), "not restarted")
		if s.goneCode == 0 {
			s.goneCode = st.Last.code()
		}
		s.retire(st)
	}
}

// code is what skep ends with when it ends for this one. A start that took too
// long is a failure even if the worker answers the stop signal with 0.
func (e *End) code() int {
	if e.Status == (Status{}) && e.Cause == CauseStartTimeout {
		return timedOut
	}
	return e.Status.ExitCode()
}

// restarts tells whether the policy wants a start after this end.
func (s *Supervisor) restarts(end *End) bool {
	success := end.code() == 0
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

// restart starts a seat again, now, later, or never when it is over its start
// limit. Once any worker has been ready, a start that only lacked a resource is
// no death: it is tried again for as long as the resource lacks.
func (s *Supervisor) restart(now time.Time, st *seat, transient bool, say func(Level, string, ...Attr)) {
	status := st.Last.Status
	st.Restarts++
	up := now.Sub(st.Started)
	switch {
	case s.starved(st, up):
		st.failures++
	case st.ready:
		st.failures = 0
	case !transient || !s.everReady:
		st.failures++
	}
	if s.policy.ResetAfter > 0 && up >= s.policy.ResetAfter {
		st.streak = 0
	}
	switch {
	case s.policy.StartLimit > 0 && (!transient || !s.everReady) && st.failures >= s.policy.StartLimit:
		s.move(now, st, Failed)
		s.failedCode = st.Last.code()
		say(Error, "start-limit-hit, the slot stays empty", Attr{"deaths", st.failures})
	case st.ready && status == Status{} && up >= settled:
		say(Info, "replacing at once")
		s.move(now, st, Down)
	default:
		delay := max(backoff(s.policy.Delay, s.policy.MaxDelay, st.streak, s.jitter()), leastDelay)
		st.streak++
		s.move(now, st, Backoff)
		st.deadline = now.Add(delay)
		say(Warn, "restarting", Attr{"delay", delay}, Attr{"restarts", st.Restarts})
	}
}

// starved tells whether the only worker was killed for want of memory soon after
// its start: there is nothing left that could make room for the next one.
func (s *Supervisor) starved(st *seat, up time.Duration) bool {
	return s.wanted == 1 && st.Last.Cause == CauseOOM && up < s.policy.ResetAfter
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
	for ; n > 0 && d > 0 && d < limit; n-- {
		if d > limit/2 {
			d = limit
			break
		}
		d *= 2
	}
	if limit > 0 && d > limit {
		d = limit
	}
	more := time.Duration(r * 0.1 * float64(d))
	return d + min(more, math.MaxInt64-d)
}

// exhausted tells whether nothing is left that runs or could start again.
func (s *Supervisor) exhausted() bool {
	for _, st := range s.seats {
		if st.State != Failed {
			return false
		}
	}
	return true
}

// exhaust ends skep when it is exhausted: with the status of the worker that
// failed last, or else with the first one that was not 0.
func (s *Supervisor) exhaust(now time.Time) {
	s.code = s.goneCode
	if len(s.seats) > 0 {
		s.code = s.failedCode
		s.note(Error, "start-limit-hit in every slot", Attr{"next", "ending"}, Attr{"exit", s.exitCode(s.code)})
	}
	s.begin(now, int(sigterm), now.Add(s.grace()))
}

func (s *Supervisor) becameReady(now time.Time, st *seat) {
	st.ready = true
	if st.Last == nil || st.Last.Cause != CauseOOM {
		st.failures = 0
	}
	s.everReady = true
	s.note(Info, "worker ready", slotAttr(st), Attr{"pid", st.PID}, Attr{"after", now.Sub(st.Started)})
	if s.phase != Running {
		s.move(now, st, Ready) // it serves with the others until the drain delay is over
		return
	}
	s.move(now, st, Standby)
	if st.replaces >= 0 {
		old := s.byID(st.replaces)
		st.replaces = -1
		if old != nil {
			if old.State == Ready {
				s.move(now, st, Ready)
			}
			s.drainSeat(now, old, s.turn.cause, nextRetire)
		}
	}
}

// promote lets ready spares serve until as many workers serve as are wanted;
// those over that number become spares.
func (s *Supervisor) promote(now time.Time) {
	missing := s.wanted
	for _, st := range s.seats {
		if st.State == Ready {
			missing--
		}
	}
	for _, st := range s.seats {
		if missing > 0 && st.State == Standby {
			s.move(now, st, Ready)
			missing--
		}
	}
	for _, st := range slices.Backward(s.seats) {
		if missing < 0 && st.State == Ready {
			s.move(now, st, Standby)
			missing++
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
		} else {
			s.move(now, st, Down)
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
	if t := s.stopTimeout(); t > 0 {
		return t
	}
	return s.policy.SweepTimeout
}

// stopTimeout is the time from a stop that was asked for to KILL, 0 for never.
func (s *Supervisor) stopTimeout() time.Duration {
	if s.policy.StopTimeout == 0 && s.serve {
		return s.policy.ServeStopTimeout
	}
	return s.policy.StopTimeout
}

func (s *Supervisor) killSeat(now time.Time, st *seat) {
	s.move(now, st, Killing)
	s.emit(Kill{Seat: st.ID, PID: st.PID, Signal: int(sigkill), Tree: true})
}

func (s *Supervisor) retire(st *seat) {
	for i, other := range s.seats {
		if other == st {
			s.seats = append(s.seats[:i:i], s.seats[i+1:]...)
			s.generation++
			break
		}
	}
	s.emit(Retire{Seat: st.ID})
}

// leaving takes a worker that ends by itself out of service. It gets no signal
// before it has had as long as for a stop; what is left in its queue is its
// successor's.
func (s *Supervisor) leaving(now time.Time, ev Leaving) {
	st := s.inService(ev.PID)
	if st == nil {
		return
	}
	s.note(Info, "worker says that it stops", slotAttr(st), Attr{"pid", st.PID})
	st.leaving = true
	s.move(now, st, Draining)
	if t := s.stopTimeout(); t > 0 {
		st.deadline = now.Add(t)
	}
}

// dying takes a worker out of service that is as good as gone: a spare need not wait
// for its exit. Nothing is sent to it and it has no deadline, because writing a core
// file may take as long as it likes; its exit tells why it ended.
func (s *Supervisor) dying(now time.Time, ev Dying) {
	if st := s.inService(ev.PID); st != nil {
		s.move(now, st, Stopping)
	}
}

// inService is the seat of a process that serves or is a spare, nil for any other and
// once a stop has begun.
func (s *Supervisor) inService(pid int) *seat {
	st := s.byPID(pid)
	if st == nil || st.State != Ready && st.State != Standby || s.phase != Running {
		return nil
	}
	return st
}

func (s *Supervisor) hung(now time.Time, ev Hung) {
	st := s.byID(ev.Seat)
	if st == nil || st.State != Ready || s.phase != Running {
		return
	}
	s.note(Error, "worker hangs", slotAttr(st), Attr{"pid", st.PID}, Attr{"why", ev.Why},
		Attr{"next", "ending it"}, Attr{"signal", s.policy.HangSignal})
	s.move(now, st, Stopping)
	st.cause, st.next = CauseHang, nextStart
	st.deadline = now.Add(s.policy.HangGrace)
	s.emit(Kill{Seat: st.ID, PID: st.PID, Signal: s.policy.HangSignal})
}

func (s *Supervisor) scale(ev Scale) {
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
}

func slotAttr(st *seat) Attr { return Attr{"slot", st.Slot} }

// endLevel is the weight of an end that nothing follows. How a lone command ends
// is its own business, and its status is skep's.
func (s *Supervisor) endLevel(status Status) Level {
	if status == (Status{}) || !s.serve {
		return Info
	}
	return Error
}
