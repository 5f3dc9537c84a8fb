package prestart

import "time"

// Event is something that happened, told to [Machine.Step]. The set is closed:
// [Begin], [LockTaken], [LockFailed], [Started], [StartFailed], [Exited],
// [Stamped], [StampFailed], [Stop], [KillNow], [Tick].
type Event interface{ isEvent() }

// Begin asks for the first step. A machine that was told to stop before has
// finished and stays so.
type Begin struct{}

// LockTaken answers [TakeLock]: the lock is held, or it is not needed because
// Done.
type LockTaken struct {
	Done bool // the stamp of the key exists: the steps have run, in this or another replica
}

// LockFailed answers [TakeLock]: there is no lock to be had on this file, ever.
// The steps do not run, since two replicas might.
type LockFailed struct{ Err string }

// Started answers [Run]: the step's process exists.
type Started struct{ PID int }

// StartFailed answers [Run]: there is no process. Code is 126 (cannot execute)
// or 127 (not found), which are final, or another (125: fork failed) that a
// retry may cure. Code 0 is read as 125.
type StartFailed struct {
	Code int
	Err  string
}

// Exited tells that the step's process has ended: by itself with Code, or by
// Signal when that is not 0. Err is what skep found wrong afterwards with what
// a step of code 0 handed over in SKEP_ENV; the step then counts as failed
// with code 125.
type Exited struct {
	Code   int
	Signal int
	Err    string
}

// Stamped answers [WriteStamp]: the stamp is on disk under its final name.
type Stamped struct{}

// StampFailed answers [WriteStamp]: the steps ran, and nothing remembers it.
type StampFailed struct{ Err string }

// Stop tells that a stop signal arrived. The first begins the stop. The same
// signal again changes nothing (kubelets and docker stop repeat TERM), except
// that a second INT (Ctrl-C) kills now; a different one is passed on once.
type Stop struct{ Signal int }

// KillNow ends the step without waiting any longer, as a stop if none began.
type KillNow struct{}

// Tick tells that the time of [Machine.Deadline] has come. A tick that is early
// or belongs to something that is over does nothing (law 9).
type Tick struct{}

func (Begin) isEvent()       {}
func (LockTaken) isEvent()   {}
func (LockFailed) isEvent()  {}
func (Started) isEvent()     {}
func (StartFailed) isEvent() {}
func (Exited) isEvent()      {}
func (Stamped) isEvent()     {}
func (StampFailed) isEvent() {}
func (Stop) isEvent()        {}
func (KillNow) isEvent()     {}
func (Tick) isEvent()        {}

// Effect is something the loop has to do, in the order given. The set is
// closed: [TakeLock], [WriteStamp], [ReleaseLock], [Run], [Signal], [KillTree],
// [Note], [Finished].
type Effect interface{ isEffect() }

// TakeLock asks to begin taking the lock, off the loop; [LockTaken] or
// [LockFailed] answers. Steps run after it inherit the lock's descriptor.
type TakeLock struct{}

// WriteStamp asks to write the stamp of the key, off the loop and while the
// lock is held; [Stamped] or [StampFailed] answers.
type WriteStamp struct{}

// ReleaseLock asks to let go of the lock, or to give up taking it.
type ReleaseLock struct {
	// Done: the steps succeeded, so the lock is opened for everybody at once,
	// even when a step left a process behind that inherited it. Without Done
	// only the own descriptor is closed and the lock lives on until the last
	// process of the steps is gone: never two at once.
	Done bool
}

// Run asks to start Step; [Started] or [StartFailed] answers, and has to answer
// before any other event is told.
type Run struct{ Step Step }

// Signal asks to send Sig to the step that runs, by the rules of --kill-mode.
type Signal struct{ Sig int }

// KillTree asks to KILL the step that runs or has just ended, with everything it
// started that is still there. What is not skep's own descendant is not meant: a
// `docker exec` may be looking on.
type KillTree struct{}

// Finished is the last effect, sent exactly once. Code 0 without Stopped is the
// only end after which workers may start.
type Finished struct {
	Code    int  // what skep exits with when it ends now
	Stopped bool // a stop was asked for, or [KillNow]; Code is then never 0

	// By is when the stop has to be over, and with it whatever the steps left
	// behind: they share its one timeout (law 8). Zero: no stop, or one without
	// a limit.
	By time.Time
}

func (TakeLock) isEffect()    {}
func (WriteStamp) isEffect()  {}
func (ReleaseLock) isEffect() {}
func (Run) isEffect()         {}
func (Signal) isEffect()      {}
func (KillTree) isEffect()    {}
func (Note) isEffect()        {}
func (Finished) isEffect()    {}
