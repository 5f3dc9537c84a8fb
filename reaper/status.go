package reaper

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// Status says how a process ended: with an exit code, or by a signal. The zero
// value is a clean exit. It is a plain value and may be copied and compared.
type Status struct {
	// Code is the exit code, 0 to 255. It is 0 when Signal is set.
	Code int
	// Signal is the number of the signal that ended the process, 0 for none.
	Signal int
	// Core tells whether the kernel wrote a core file.
	Core bool
}

// ExitCode is what a shell, and skep after it, reports for this end: the code,
// or 128 plus the signal (POSIX.1-2017, Shell Command Language 2.8.2).
func (s Status) ExitCode() int {
	if s.Signal != 0 {
		return 128 + s.Signal
	}
	return s.Code
}

// Success tells whether the process ended by itself with code 0.
func (s Status) Success() bool { return s.Code == 0 && s.Signal == 0 }

// String gives the status as a log line shows it, such as "code 7" or
// "signal 9".
func (s Status) String() string {
	if s.Signal != 0 {
		return "signal " + strconv.Itoa(s.Signal)
	}
	return "code " + strconv.Itoa(s.Code)
}

func statusOf(w unix.WaitStatus) Status {
	if w.Signaled() {
		return Status{Signal: int(w.Signal()), Core: w.CoreDump()}
	}
	return Status{Code: w.ExitStatus()}
}
