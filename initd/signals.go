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
// because children would inherit that (law 5). It takes half a millisecond, two
// changes of thread for each signal; taking the rare ones after the first start
// lost those that were sent as soon as the command said that it was there.
//
// Four gaps are Go's: 32 to 34, of which the C library's threads use some, and
// PROF, the profiler's (runtime/sigtab_linux_generic.go). They are neither seen
// nor forwarded; 34 is RTMIN, and ends a skep that is not PID 1.
func CatchSignals() *Signals {
	s := &Signals{child: make(chan os.Signal, 1), other: make(chan os.Signal, 4096)}
	signal.Notify(s.child, unix.SIGCHLD)
	var rest []os.Signal
	for n := 1; n <= sys.SigMax; n++ {
		switch {
		case Catches(n):
			rest = append(rest, unix.Signal(n))
		case n >= 32 && n <= 34:
			// posix_spawn(3) of glibc leaves 32 and 33 ignored, and children would
			// inherit it.
			sys.StopIgnoring(n)
		}
	}
	signal.Notify(s.other, rest...)
	return s
}

// Catches tells whether skep is told of a signal that it is sent, and so can act
// on it or pass it on. KILL and STOP nobody is told of, CHLD says that a child
// has ended and is no message to skep, and for the others see CatchSignals.
func Catches(n int) bool {
	switch unix.Signal(n) {
	case unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGPROF, 32, 33, 34:
		return false
	}
	return n >= 1 && n <= sys.SigMax
}
