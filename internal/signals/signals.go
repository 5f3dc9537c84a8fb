// Package signals takes every signal that a process is sent, without os/signal: that
// package needs two threads of its own, which count against a container's pids limit, it
// merges real-time signals that come faster than they are read, and it cannot see PROF and 34.
//
// A handler of a few instructions writes the number of every signal to a pipe. Faults of the
// program itself go on to the Go runtime, which makes panics of them.
//
// Only 32 and 33 stay unseen: the threads of the C libraries use them among themselves, and
// so does the Go runtime.
package signals

import (
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
)

// Takes tells whether a signal, 1 to 64, is taken. KILL and STOP nobody can take.
func Takes(n int) bool {
	switch unix.Signal(n) {
	case unix.SIGKILL, unix.SIGSTOP, 32, 33:
		return false
	}
	return n >= 1 && n <= sys.SigMax
}

// fault tells whether the kernel raises a signal for what a program does wrong.
func fault(n int) bool {
	switch unix.Signal(n) {
	case unix.SIGILL, unix.SIGTRAP, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSYS:
		return true
	}
	return false
}

// Source is where a process's signals arrive. There is one per process.
type Source struct {
	// Child gets a value after a child has ended or stopped; several ends can be one
	// value.
	Child chan struct{}
	// Other gets every other signal by its number, in the order in which the kernel
	// delivers them.
	Other chan int
}

// buffer is how many signals wait in Other; more wait in the pipe.
const buffer = 64

// Take begins to take signals: the first thing that a process which may be PID 1 does, on
// the main goroutine, once. What came before waits in the kernel, if the program was linked
// with package entry, and arrives now. Nothing is ever ignored after it, because children
// would inherit that (law 5), and 32 and 33, which posix_spawn(3) of glibc leaves ignored,
// get their default action. Signals that the process sends to itself do not arrive: the
// kernel sends it PIPE for every write to a closed pipe.
func Take() (*Source, error) {
	f, err := catch()
	if err != nil {
		return nil, err
	}
	for n := 1; n <= sys.SigMax; n++ {
		if !Takes(n) {
			sys.StopIgnoring(n)
		}
	}
	s := &Source{Child: make(chan struct{}, 1), Other: make(chan int, buffer)}
	go s.read(f)
	unblock()
	return s, nil
}

// read hands on what the handler has written.
func (s *Source) read(f *os.File) {
	var buf [256]byte
	for {
		n, err := f.Read(buf[:])
		if err != nil {
			return // nobody closes either end: there is no such error
		}
		for _, sig := range buf[:n] {
			s.tell(int(sig))
		}
		// The handler found the pipe full: as in the kernel, one of each kind is kept.
		for left := atomic.SwapUint64(&missed, 0); left != 0; left &= left - 1 {
			for n := 1; n <= sys.SigMax; n++ {
				if left&-left == 1<<(n-1) {
					s.tell(n)
				}
			}
		}
	}
}

func (s *Source) tell(sig int) {
	if sig != int(unix.SIGCHLD) {
		s.Other <- sig
		return
	}
	atomic.StoreUint32(&child, 0) // before the exits are taken: a later one makes a byte of its own
	select {
	case s.Child <- struct{}{}:
	default: // one is enough: exits are taken until there are none
	}
}

// unblock lets signals in on this thread, which is enough.
func unblock() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil) }

// Leave makes the process one like any other again, which a signal ends: for programs that
// skep is under other names. It is called on the main goroutine, in place of Take.
func Leave() {
	runtime.LockOSThread() // the unblocked thread must stay
	for n := 1; n <= sys.SigMax; n++ {
		if Takes(n) && !fault(n) && unix.Signal(n) != unix.SIGURG {
			_ = sys.SetAction(n, &sys.Sigaction{})
		}
	}
	unblock()
}
