package prestart

import "time"

// What the times are when [Config] leaves them 0.
const (
	// DefaultGrace lies between the TERM of a step that timed out and its KILL:
	// what `docker stop` gives a container.
	DefaultGrace = 10 * time.Second

	// DefaultRetryDelay is the pause before the first repetition; each further
	// one is twice as long, up to DefaultRetryMaxDelay.
	DefaultRetryDelay    = 1 * time.Second
	DefaultRetryMaxDelay = 10 * time.Second
)

// DefaultStopTimeout is for the loop to put into [Config.StopTimeout] when the
// user gave none, also before a lone command: a step is skep's own business, so
// its stop has a deadline where tini's would have none. It leaves 5 s of the
// 30 s that Kubernetes allows.
const DefaultStopTimeout = 25 * time.Second

// afterKill is how long the end of a killed step is waited for once a stop
// began. A process in an uninterruptible system call may never end, and a stop
// ends within its timeout plus one second (law 8).
const afterKill = 500 * time.Millisecond

// stampGrace is how long a stop waits for a stamp that is being written: all
// steps have succeeded, and without it they would run again.
const stampGrace = 500 * time.Millisecond

// Exit codes of skep's own.
const (
	codeTimeout  = 124 // as timeout(1)
	codeSkep     = 125 // skep could not do its part, as docker-run(1)
	codeCannot   = 126 // the program cannot be executed
	codeNotFound = 127 // there is no such program
	codeSignal   = 128 // plus the number of the signal
)

// The signals the machine itself knows, by their numbers in signal(7) (all of
// Linux but mips and parisc, where CONT differs). The package imports no
// syscall.
const (
	sigINT  = 2
	sigKILL = 9
	sigTERM = 15
	sigCONT = 18
)

// Config is what a [Machine] works on.
type Config struct {
	// Steps in the order in which they run; [Plan] makes it. Waits come first.
	Steps []Step

	// Lock: the steps after the waits run while a lock is held. Waits do not
	// need it, every replica has to do them.
	Lock bool

	// Key: after the last step a stamp is written while the lock is held. Only
	// with Lock.
	Key bool

	// StopTimeout lies between the stop signal and the KILL; 0 is never, for
	// those who asked for that. See [DefaultStopTimeout].
	StopTimeout time.Duration

	// Grace lies between the TERM of a step that timed out and its KILL; 0 is
	// [DefaultGrace].
	Grace time.Duration

	// RetryDelay and RetryMaxDelay are the first and the longest pause between
	// attempts; 0 is [DefaultRetryDelay] and [DefaultRetryMaxDelay].
	RetryDelay, RetryMaxDelay time.Duration
}

// State is where a [Machine] stands. It is for status output and tests; what
// happens next is in the effects.
type State uint8

// The states.
const (
	Idle        State = iota + 1 // not begun
	Locking                      // the lock is being taken
	Starting                     // Run was asked for and not answered yet
	Running                      // a step runs
	Terminating                  // a step got TERM because it timed out
	Killing                      // a step got KILL
	Backoff                      // a failed step is tried again after a pause
	Stamping                     // the stamp is being written
	Ended                        // Finished was sent
)

var stateNames = [...]string{"", "idle", "locking", "starting", "running", "terminating", "killing", "backoff", "stamping", "ended"}

// String returns the state's name in lower case.
func (s State) String() string {
	if int(s) < len(stateNames) && s > 0 {
		return stateNames[s]
	}
	return "unknown"
}

// Machine runs the steps before the start. It belongs to one goroutine, the
// loop; no method blocks.
type Machine struct {
	cfg   Config
	state State

	index   int // of the step that runs or is next
	attempt int // of that step, from 1

	pid      int
	since    time.Time // the attempt began
	deadline time.Time // zero: none
	timedOut bool      // the attempt took too long

	holding bool // the lock was asked for and not let go of

	stopping bool
	stopSig  int       // the first stop signal
	stopEnd  time.Time // KILL at this time; zero: never
	passed   uint64    // stop signals seen, as bits, each passed on once
	ints     int       // how many of them were INT
	killing  bool      // nothing is waited for any more
}

// New returns a machine that has not begun. It keeps cfg.Steps and never
// changes it.
func New(cfg Config) *Machine {
	if cfg.Grace <= 0 {
		cfg.Grace = DefaultGrace
	}
	if cfg.RetryDelay <= 0 {
		cfg.RetryDelay = DefaultRetryDelay
	}
	if cfg.RetryMaxDelay <= 0 {
		cfg.RetryMaxDelay = DefaultRetryMaxDelay
	}
	return &Machine{cfg: cfg, state: Idle, attempt: 1}
}

// State returns where the machine stands.
func (m *Machine) State() State { return m.state }

// Deadline returns the one time at which the machine wants a [Tick], and false
// when nothing but an event moves it.
func (m *Machine) Deadline() (time.Time, bool) {
	return m.deadline, !m.deadline.IsZero()
}

// Step tells the machine that ev happened at now and returns what to do about
// it, in order. An event that does not belong to the state changes nothing.
// now never goes backwards between calls.
func (m *Machine) Step(now time.Time, ev Event) []Effect {
	if m.state == Ended {
		return nil
	}
	switch ev := ev.(type) {
	case Begin:
		if m.state == Idle {
			return m.next(now)
		}
	case LockTaken:
		if m.state == Locking {
			return m.lockTaken(now, ev)
		}
	case LockFailed:
		if m.state == Locking {
			return m.finish(codeSkep, m.note(NoLock, func(n *Note) { n.Err, n.Code = ev.Err, codeSkep }))
		}
	case Started:
		if m.state == Starting {
			return m.started(now, ev)
		}
	case StartFailed:
		if m.state == Starting {
			return m.startFailed(now, ev)
		}
	case Exited:
		if m.alive() || m.state == Starting {
			return m.exited(now, ev)
		}
	case Stamped:
		if m.state == Stamping {
			return m.finishDone()
		}
	case StampFailed:
		if m.state == Stamping {
			return m.finish(codeSkep, m.note(NoStamp, func(n *Note) { n.Err, n.Code = ev.Err, codeSkep }))
		}
	case Stop:
		return m.stop(now, ev.Signal)
	case KillNow:
		return m.killNow(now)
	case Tick:
		if !m.deadline.IsZero() && !now.Before(m.deadline) {
			return m.tick(now)
		}
	}
	return nil
}

// alive: a process of a step exists.
func (m *Machine) alive() bool {
	return m.state == Running || m.state == Terminating || m.state == Killing
}

// next runs the step at index, or ends when there is none.
func (m *Machine) next(now time.Time) []Effect {
	if m.index == len(m.cfg.Steps) {
		if m.holding && m.cfg.Key {
			m.state, m.deadline = Stamping, time.Time{}
			return []Effect{WriteStamp{}}
		}
		return m.finishDone()
	}
	if m.cfg.Lock && !m.holding && m.cfg.Steps[m.index].Kind != Wait {
		m.state, m.deadline, m.holding = Locking, time.Time{}, true
		return []Effect{TakeLock{}}
	}
	return m.run(now)
}

func (m *Machine) run(now time.Time) []Effect {
	m.state, m.since, m.deadline = Starting, now, time.Time{}
	m.pid, m.timedOut = 0, false
	return []Effect{Run{Step: m.cfg.Steps[m.index]}}
}

func (m *Machine) lockTaken(now time.Time, ev LockTaken) []Effect {
	if ev.Done {
		note := m.note(Skipped, nil)
		m.index = len(m.cfg.Steps)
		return append([]Effect{note}, m.finishDone()...)
	}
	return append([]Effect{m.note(Locked, nil)}, m.run(now)...)
}

func (m *Machine) started(now time.Time, ev Started) []Effect {
	step := m.cfg.Steps[m.index]
	m.state, m.since, m.pid = Running, now, ev.PID
	effects := []Effect{m.note(StepStarted, nil)}
	if m.stopping { // the stop came while the step was being started
		m.deadline = m.stopEnd
		if m.killing {
			return append(effects, m.kill(now)...)
		}
		return append(effects, m.passStop()...)
	}
	if step.Timeout > 0 {
		m.deadline = now.Add(step.Timeout)
	}
	return effects
}

func (m *Machine) startFailed(now time.Time, ev StartFailed) []Effect {
	code := ev.Code
	if code <= 0 {
		code = codeSkep
	}
	// A program that is missing or not executable stays so.
	final := code == codeCannot || code == codeNotFound
	return m.failed(now, code, 0, ev.Err, final)
}

func (m *Machine) exited(now time.Time, ev Exited) []Effect {
	code, text := ev.Code, ""
	if ev.Signal != 0 {
		code = codeSignal + ev.Signal
	}
	if code == 0 && ev.Err != "" {
		code, text = codeSkep, ev.Err
	}
	if m.timedOut {
		code = codeTimeout
	}
	if code != 0 {
		return m.failed(now, code, ev.Signal, text, false)
	}
	if m.stopping {
		// It may have ended well only because it was told to: nothing says
		// that its work is done, so neither stamp nor code 0 may.
		return m.finishStopped(codeSignal+m.stopSig, m.note(StepEnded, func(n *Note) { n.took(now, m.since) }))
	}
	note := m.note(StepEnded, func(n *Note) { n.took(now, m.since) })
	m.index++
	m.attempt = 1
	return append([]Effect{note}, m.next(now)...)
}

// failed decides what follows a failed attempt: another, or the end.
func (m *Machine) failed(now time.Time, code, signal int, text string, final bool) []Effect {
	step := m.cfg.Steps[m.index]
	fill := func(n *Note) {
		n.took(now, m.since)
		n.Code, n.Signal, n.Err, n.TimedOut = code, signal, text, m.timedOut
	}
	if m.stopping {
		return m.finishStopped(code, m.note(StepFailed, fill))
	}
	var effects []Effect
	if m.pid != 0 {
		// What the attempt left behind must not run beside the next one, nor
		// outlive the lock.
		effects = append(effects, KillTree{})
	}
	if final || m.attempt > step.Retries {
		return append(effects, m.finish(code, m.note(StepFailed, fill))...)
	}
	delay := m.retryDelay()
	note := m.note(StepRetrying, func(n *Note) { fill(n); n.Delay = delay })
	m.attempt++
	m.state, m.deadline = Backoff, now.Add(delay)
	return append(effects, note)
}

// retryDelay is the pause after the attempt that has just failed.
func (m *Machine) retryDelay() time.Duration {
	delay := m.cfg.RetryDelay
	for i := 1; i < m.attempt; i++ {
		if delay > m.cfg.RetryMaxDelay/2 {
			return m.cfg.RetryMaxDelay
		}
		delay *= 2
	}
	return min(delay, m.cfg.RetryMaxDelay)
}

func (m *Machine) tick(now time.Time) []Effect {
	switch m.state {
	case Running:
		if m.stopping {
			return m.kill(now)
		}
		m.timedOut = true
		m.state = Terminating
		m.deadline = now.Add(m.cfg.Grace)
		note := m.note(TimedOut, func(n *Note) {
			n.took(now, m.since)
			n.Delay = m.cfg.Grace
		})
		// CONT: a stopped process sees TERM only after it.
		return []Effect{note, Signal{sigTERM}, Signal{sigCONT}}
	case Terminating:
		return m.kill(now)
	case Killing, Stamping: // only with a stop
		return m.finishStopped(m.stopCode())
	case Backoff:
		return m.run(now)
	}
	return nil
}

// kill sends KILL to the step that is alive.
func (m *Machine) kill(now time.Time) []Effect {
	m.state, m.deadline = Killing, time.Time{}
	if m.stopping {
		m.deadline = now.Add(afterKill)
	}
	return []Effect{m.note(Killed, func(n *Note) { n.took(now, m.since) }), KillTree{}}
}

func (m *Machine) stop(now time.Time, sig int) []Effect {
	if sig <= 0 || sig > 64 {
		sig = sigTERM
	}
	bit := uint64(1) << (sig - 1)
	again := m.passed&bit != 0
	m.passed |= bit
	if sig == sigINT {
		m.ints++
	}
	switch {
	case sig == sigINT && m.ints > 1:
		return m.killNow(now)
	case sig == sigKILL:
		return m.killNow(now)
	case again:
		return nil
	}
	first := !m.stopping
	if first {
		m.stopping, m.stopSig = true, sig
		if m.cfg.StopTimeout > 0 {
			m.stopEnd = now.Add(m.cfg.StopTimeout)
		}
	}
	switch m.state {
	case Idle, Locking, Backoff:
		return m.finishStopped(codeSignal+sig, m.stopNote())
	case Starting:
		return nil // started passes it on
	case Running:
		m.deadline = m.stopEnd
		if first {
			return append([]Effect{m.stopNote()}, m.passStop()...)
		}
		return []Effect{Signal{sig}}
	case Terminating:
		if !m.stopEnd.IsZero() && m.stopEnd.Before(m.deadline) {
			m.deadline = m.stopEnd
		}
		if first {
			return append([]Effect{m.stopNote()}, m.passStop()...)
		}
		return []Effect{Signal{sig}}
	case Killing:
		if first {
			m.deadline = now.Add(afterKill)
			return []Effect{m.stopNote()}
		}
	case Stamping:
		if first {
			m.deadline = now.Add(stampGrace)
			return []Effect{m.stopNote()}
		}
	}
	return nil
}

// passStop passes the first stop signal on, and every other one that came in
// the meantime.
func (m *Machine) passStop() []Effect {
	effects := []Effect{Signal{m.stopSig}}
	for sig := 1; sig <= 64; sig++ {
		if sig != m.stopSig && m.passed&(1<<(sig-1)) != 0 {
			effects = append(effects, Signal{sig})
		}
	}
	return append(effects, Signal{sigCONT})
}

func (m *Machine) killNow(now time.Time) []Effect {
	m.killing, m.stopEnd = true, now
	if !m.stopping {
		m.stopping, m.stopSig = true, sigKILL
	}
	switch m.state {
	case Idle, Locking, Backoff:
		return m.finishStopped(codeSignal + sigKILL)
	case Starting:
		return nil // started kills
	case Running, Terminating:
		return m.kill(now)
	case Killing:
		if m.deadline.IsZero() {
			m.deadline = now.Add(afterKill)
		}
	case Stamping:
		return m.finishStopped(codeSignal + sigKILL)
	}
	return nil
}

// stopCode is the code of a stop that ends without the step's own.
func (m *Machine) stopCode() int {
	switch {
	case m.state != Killing:
		return codeSignal + m.stopSig
	case m.timedOut:
		return codeTimeout
	}
	return codeSignal + sigKILL
}

func (m *Machine) finishDone() []Effect {
	if m.stopping {
		return m.finishStopped(m.stopCode())
	}
	return m.end(Finished{}, true)
}

func (m *Machine) finish(code int, notes ...Effect) []Effect {
	if m.stopping {
		return m.finishStopped(code, notes...)
	}
	return append(notes, m.end(Finished{Code: code}, false)...)
}

func (m *Machine) finishStopped(code int, notes ...Effect) []Effect {
	// All steps succeeded when the stamp was the last thing to do.
	return append(notes, m.end(Finished{Code: code, Stopped: true, By: m.stopEnd}, m.state == Stamping)...)
}

func (m *Machine) end(f Finished, done bool) []Effect {
	var effects []Effect
	if m.holding {
		m.holding = false
		effects = append(effects, ReleaseLock{Done: done})
	}
	m.state, m.deadline = Ended, time.Time{}
	return append(effects, f)
}
