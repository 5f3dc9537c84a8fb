package prestart

import (
	"strconv"
	"time"
)

// What says which thing a [Note] is about.
type What uint8

// The things worth a log line.
const (
	StepStarted  What = iota + 1 // a step's process exists
	StepEnded                    // a step ended with code 0
	StepFailed                   // a step failed for good: skep ends
	StepRetrying                 // a step failed and is tried again after Delay
	TimedOut                     // a step got TERM because it took too long, KILL after Delay
	Killed                       // a step got KILL
	Locked                       // the lock is held
	Skipped                      // the key's stamp exists, the steps do not run
	NoLock                       // the lock cannot be had: skep ends
	NoStamp                      // the stamp cannot be written: skep ends
	Stopping                     // a stop began; Signal is its signal, KILL after Delay (0: never)
)

// Level is how loud a [Note] is, by the words of log/slog.
type Level uint8

// The levels.
const (
	Info Level = iota + 1
	Warn
	Error
)

// Note asks for one log line. The fields are for structured logs; String is the
// line itself and ends with the consequence. Neither holds arguments or
// environment of a step.
type Note struct {
	What     What
	Step     string // Step.Name; empty when the note is not about a step
	Kind     Kind
	Number   int // of the step, from 1
	Steps    int // how many there are
	Attempt  int // from 1
	Attempts int // how many there may be
	PID      int
	Code     int
	Signal   int
	TimedOut bool
	Err      string
	Took     time.Duration
	Delay    time.Duration
	Stopped  bool // a stop is under way
}

func (n *Note) took(now, since time.Time) { n.Took = now.Sub(since) }

// Level returns how loud the line is.
func (n Note) Level() Level {
	switch n.What {
	case StepFailed:
		if n.Stopped {
			return Info
		}
		return Error
	case NoLock, NoStamp:
		return Error
	case StepRetrying, TimedOut, Killed:
		return Warn
	}
	return Info
}

// String returns the text of the line.
func (n Note) String() string {
	switch n.What {
	case StepStarted:
		s := n.subject() + " started, pid " + strconv.Itoa(n.PID)
		if n.Attempt > 1 {
			s += " (attempt " + strconv.Itoa(n.Attempt) + " of " + strconv.Itoa(n.Attempts) + ")"
		}
		return s
	case StepEnded:
		s := n.subject() + " ended well after " + short(n.Took)
		switch {
		case n.Stopped:
			s += "; stopped, nothing more is started"
		case n.Number == n.Steps:
			s += "; it was the last"
		}
		return s
	case StepFailed:
		s := n.subject() + " failed" + n.cause()
		if n.Stopped {
			return s + "; stopped, nothing more is started"
		}
		return s + "; no worker is started, ending with code " + strconv.Itoa(n.Code)
	case StepRetrying:
		return n.subject() + " failed" + n.cause() + "; attempt " + strconv.Itoa(n.Attempt+1) + " of " +
			strconv.Itoa(n.Attempts) + " in " + short(n.Delay)
	case TimedOut:
		return n.subject() + " did not end within " + short(n.Took) + "; sent TERM, KILL in " + short(n.Delay)
	case Killed:
		return n.subject() + " was still there after " + short(n.Took) + "; sent KILL to all of it"
	case Locked:
		return "the lock is held; running the steps"
	case Skipped:
		return "the steps have been done for this key; skipping them"
	case NoLock:
		return "cannot take the lock: " + n.Err + "; no step is run, ending with code " + strconv.Itoa(n.Code)
	case NoStamp:
		return "cannot write the stamp: " + n.Err + "; the steps have run and will run again, ending with code " + strconv.Itoa(n.Code)
	case Stopping:
		s := "stop by signal " + strconv.Itoa(n.Signal) + " before the start"
		if n.PID != 0 {
			s += "; passed on to " + n.subject()
			if n.Delay > 0 {
				s += ", KILL in " + short(n.Delay)
			}
		}
		return s + "; no worker is started"
	}
	return "note " + strconv.Itoa(int(n.What))
}

// subject names the step: "step 2 of 3 (alembic)".
func (n Note) subject() string {
	return "step " + strconv.Itoa(n.Number) + " of " + strconv.Itoa(n.Steps) + " (" + n.Step + ")"
}

func (n Note) cause() string {
	after := " after " + short(n.Took) + ": "
	switch {
	case n.TimedOut:
		return after + "timed out"
	case n.Err != "":
		return ": " + n.Err
	case n.Signal != 0:
		return after + "killed by signal " + strconv.Itoa(n.Signal)
	}
	return after + "exit code " + strconv.Itoa(n.Code)
}

// short is a duration without digits nobody reads.
func short(d time.Duration) string {
	if d >= time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Millisecond).String()
}

// note fills in what is known about the current step; more adds the rest.
func (m *Machine) note(what What, more func(*Note)) Note {
	n := Note{What: what, Steps: len(m.cfg.Steps), Stopped: m.stopping}
	if m.index < len(m.cfg.Steps) {
		step := m.cfg.Steps[m.index]
		n.Step, n.Kind, n.Number = step.Name, step.Kind, m.index+1
		n.Attempt, n.Attempts, n.PID = m.attempt, step.Retries+1, m.pid
	}
	if more != nil {
		more(&n)
	}
	return n
}

func (m *Machine) stopNote() Note {
	n := m.note(Stopping, nil)
	n.Signal, n.Delay = m.stopSig, m.cfg.StopTimeout
	if !m.alive() {
		n.PID = 0
	}
	return n
}
