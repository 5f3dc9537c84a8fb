package supervise

import "time"

// State is what a seat is doing.
type State int

// The states of a seat.
const (
	Down     State = iota // no process; waits for its turn to start
	Starting              // has a process that is not ready yet
	Ready                 // serves
	Draining              // gets no new connections; its queue runs empty
	Stopping              // has been sent the stop signal, or is dying
	Killing               // has been sent KILL
	Backoff               // no process; starts again when the delay is over
	Standby               // ready, but kept out of the choice of connections
	Failed                // over its start limit; not started again
)

var stateNames = [...]string{"down", "starting", "ready", "draining", "stopping", "killing", "backoff", "standby", "failed"}

// States lists every state, for tables.
func States() []State {
	return []State{Down, Starting, Ready, Draining, Stopping, Killing, Backoff, Standby, Failed}
}

// String gives the state's name as logs and status show it.
func (s State) String() string { return stateNames[s] }

// live tells whether a seat in this state has a process.
func (s State) live() bool {
	switch s {
	case Starting, Ready, Draining, Stopping, Killing, Standby:
		return true
	case Down, Backoff, Failed:
	}
	return false
}

// Restart says which ends of a worker are followed by a new start.
type Restart int

// The restart policies of --restart.
const (
	// RestartAuto ends skep with the worker's code while no worker has ever been
	// ready. Afterwards one worker that exits with 0 ends skep, several replace it
	// at once, and a crash is restarted with backoff.
	RestartAuto Restart = iota
	RestartAlways
	RestartOnFailure
	RestartNever
)

// Cause says why a worker's process ended, or why it is being ended.
type Cause string

// The causes that logs and status name.
const (
	CauseExit         Cause = "exit"
	CauseSignal       Cause = "signal"
	CauseOOM          Cause = "oom"
	CauseHang         Cause = "hang"
	CauseMemory       Cause = "memory"
	CauseAge          Cause = "age"
	CauseReload       Cause = "reload"
	CauseScale        Cause = "scale"
	CauseStop         Cause = "stop"
	CauseStartTimeout Cause = "start-timeout"
	CauseStartFailed  Cause = "start-failed"
)

// Status is how a process ended: a code, or a signal (0 for none).
type Status struct {
	Code   int
	Signal int
}

// ExitCode is the code a shell reports for the status: 128 plus the signal, or
// the code.
func (s Status) ExitCode() int {
	if s.Signal != 0 {
		return 128 + s.Signal
	}
	return s.Code
}

// Policy is what the flags say about supervision. Durations of 0 mean none.
type Policy struct {
	// Workers is the number of workers wanted at the start, at least 1.
	Workers int
	// Standby is the number of ready workers kept beside them.
	Standby int
	// Serve is true when several workers are wanted, even if one is what fits: a
	// stop that was asked for then ends with 0. Otherwise the command is a lone
	// one and its status is skep's.
	Serve bool

	Restart    Restart
	Delay      time.Duration // before the second start in a row
	MaxDelay   time.Duration // the delay doubles up to this one; it stays as it is without
	ResetAfter time.Duration // a worker up for so long starts from Delay again
	// StartLimit is the deaths before ready in a row after which a slot stays empty;
	// 0 is no limit. Kills of the only worker for want of memory count too, when they
	// come within ResetAfter.
	StartLimit int

	StartTimeout  time.Duration // to become ready
	ReadyAfter    time.Duration // a worker this old counts as ready; 0 is never
	StartParallel int           // how many may be starting at a time, at least 1
	StartSpacing  time.Duration // a start this old no longer holds up the next
	FirstAlone    bool          // one worker starts, the others wait for Proven

	StopOn      []int         // signals that begin a stop
	StopSignal  int           // what workers get; 0 is the signal received
	StopTimeout time.Duration // from the stop signal to KILL, however many workers there are
	// ServeStopTimeout stands for a StopTimeout of 0 once several workers are wanted.
	ServeStopTimeout time.Duration
	SweepTimeout     time.Duration // for what the workers leave, when there is no StopTimeout
	DrainDelay       time.Duration
	DrainTimeout     time.Duration // a worker that is scaled or reloaded away drains at most so long

	ReloadSignal int // 0 is none
	HangSignal   int // sent to a hung worker before KILL
	HangGrace    time.Duration
	SignalMap    map[int]int // rewrites; a value of 0 drops the signal
	RemapExit    map[int]bool

	// Jitter returns numbers in [0, 1) that spread restarts; nil means none.
	Jitter func() float64
}

// Event is what happened. The types below are all there are.
type Event interface{ event() }

type (
	// Begin starts the first workers.
	Begin struct{}
	// Started answers a Start: the process exists.
	Started struct{ Seat, PID int }
	// StartFailed answers a Start: there is no process. Code is the shell's code
	// for the failure. Transient failures lack a resource and are tried again even
	// before any worker was ready.
	StartFailed struct {
		Seat, Code int
		Err        string
		Transient  bool
	}
	// Exited says that a process ended. OOM is a fact from the kernel's counters.
	Exited struct {
		PID    int
		Status Status
		OOM    bool
	}
	// Proven says that what all workers need is known to work with the first one:
	// the others may start, if Policy.FirstAlone held them back.
	Proven struct{}
	// BecameReady says that the process with this pid is ready to serve.
	BecameReady struct{ PID int }
	// Leaving says that the process with this pid has begun to end by itself: it is
	// to get nothing new.
	Leaving struct{ PID int }
	// Dying says that the kernel is ending the process with this pid. Its exit comes
	// when its memory has been given back, which takes the longer the more it has.
	Dying struct{ PID int }
	// Drained says that the accept queues of a draining seat are empty and that
	// handshakes in flight have had their second.
	Drained struct{ Seat int }
	// Hung says that the worker of a ready seat has not got on for the hang timeout.
	// Why is how that is known.
	Hung struct {
		Seat int
		Why  string
	}
	// Recycle replaces the worker of a slot gracefully. Surge starts the new one
	// before the old one stops.
	Recycle struct {
		Slot  int
		Cause Cause
		Surge bool
	}
	// Scale sets the number of workers wanted. Serve turns a lone command into the
	// first of several workers.
	Scale struct {
		Workers int
		Serve   bool
		Why     string
	}
	// Reload replaces every worker, one slot at a time.
	Reload struct{ Surge bool }
	// Signal says that skep itself received a signal.
	Signal struct{ Signal int }
	// Abandon ends skep with exactly this code without starting anything; it stands
	// for Begin. What is left may take until By, when a stop that began before has to
	// be over; zero is the time that what a lone command leaves has.
	Abandon struct {
		Code int
		By   time.Time
	}
	// Childless says that skep has no children of any kind.
	Childless struct{}
	// Tick says that Deadline has passed.
	Tick struct{}
)

func (Begin) event()       {}
func (Started) event()     {}
func (StartFailed) event() {}
func (Exited) event()      {}
func (Proven) event()      {}
func (BecameReady) event() {}
func (Leaving) event()     {}
func (Dying) event()       {}
func (Drained) event()     {}
func (Hung) event()        {}
func (Recycle) event()     {}
func (Scale) event()       {}
func (Reload) event()      {}
func (Signal) event()      {}
func (Abandon) event()     {}
func (Childless) event()   {}
func (Tick) event()        {}

// Effect is what the loop has to do, in the order given. The types below are
// all there are.
type Effect interface{ effect() }

type (
	// Start starts a process for the seat and answers with Started or StartFailed
	// before anything else is stepped.
	Start struct{ Seat, Slot int }
	// Kill sends a signal to the seat's process; Tree sends it to everything below
	// the process too.
	Kill struct {
		Seat, PID, Signal int
		Tree              bool
	}
	// Drain asks for a Drained when the seat's queues are empty.
	Drain struct{ Seat int }
	// Retire closes the seat's held sockets; the seat is gone.
	Retire struct{ Seat int }
	// Sweep sends a signal to whatever is left besides the workers.
	Sweep struct{ Signal int }
	// Note is one line for the log.
	Note struct {
		Level Level
		Text  string
		Attrs []Attr
	}
	// Quit ends skep with the code. It is the last effect there ever is.
	Quit struct{ Code int }
)

func (Start) effect()  {}
func (Kill) effect()   {}
func (Drain) effect()  {}
func (Retire) effect() {}
func (Sweep) effect()  {}
func (Note) effect()   {}
func (Quit) effect()   {}

// Level is the weight of a Note.
type Level int

// The levels of notes, as in --log-level.
const (
	Debug Level = iota
	Info
	Warn
	Error
)

// Attr is one key and value of a Note: an int, a string or a time.Duration.
type Attr struct {
	Key   string
	Value any
}

// End is how a worker's process ended last.
type End struct {
	Cause  Cause
	Status Status
	At     time.Time
}

// Seat is a copy of what is known of one seat.
type Seat struct {
	ID       int
	Slot     int
	PID      int // 0 when there is no process
	State    State
	Since    time.Time // in this state
	Started  time.Time // of the process, or of the last one
	Restarts int
	Last     *End // nil when no process of the seat has ended yet
}

// Phase is what skep as a whole is doing.
type Phase int

// The phases, in the only order in which they can follow each other.
const (
	Running   Phase = iota
	Lingering       // a stop began; workers still serve during the drain delay
	Halting         // workers have been told to stop
	Sweeping        // no worker is left; what they left behind is told to end
	Ended
)

var phaseNames = [...]string{"running", "draining", "stopping", "sweeping", "ended"}

// String gives the phase's name as logs and status show it.
func (p Phase) String() string { return phaseNames[p] }
