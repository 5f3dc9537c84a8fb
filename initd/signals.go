package initd

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
)

// Signals is where the process's signals arrive. There is one per process.
type Signals struct {
	child chan os.Signal // SIGCHLD; one is enough, exits are taken until there are none
	other chan os.Signal // everything else that Go can see
}

// CatchSignals takes every signal that can be caught. It has to be the first
// thing that a process which may become PID 1 does: until then a TERM kills a
// Go program, or is lost when it is PID 1 (signal(7)). Nothing is ever ignored,
// because children would inherit that (law 5).
//
// Three gaps are Go's: 32 and 33 belong to the C library's threads and PROF to
// the profiler; they are neither seen nor forwarded.
func CatchSignals() *Signals {
	s := &Signals{child: make(chan os.Signal, 1), other: make(chan os.Signal, 4096)}
	signal.Notify(s.child, unix.SIGCHLD)
	var rest []os.Signal
	for n := 1; n <= sys.SigMax; n++ {
		switch unix.Signal(n) {
		case unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGPROF:
		case 32, 33:
			// posix_spawn(3) of glibc leaves them ignored, and children would inherit it.
			sys.StopIgnoring(n)
		default:
			rest = append(rest, unix.Signal(n))
		}
	}
	signal.Notify(s.other, rest...)
	return s
}
