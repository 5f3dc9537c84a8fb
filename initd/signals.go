package initd

import (
	"golang.org/x/sys/unix"

	"skep/internal/signals"
)

// CatchSignals takes every signal that can be caught. It has to be the first
// thing that a process which may become PID 1 does, and is called once, from the main
// goroutine; see signals.Take. The error is a *Failure.
func CatchSignals() (*signals.Source, error) {
	s, err := signals.Take()
	if err != nil {
		return nil, &Failure{Err: err, Code: ExitOwnFault}
	}
	return s, nil
}

// Catches tells whether skep is told of a signal that it is sent, and so can act
// on it or pass it on. CHLD says that a child has ended and is no message to skep.
func Catches(n int) bool { return n != int(unix.SIGCHLD) && signals.Takes(n) }
