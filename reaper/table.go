package reaper

import (
	"errors"
	"io/fs"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Exit is the end of one child of skep, taken from the kernel exactly once.
type Exit struct {
	PID    int
	Status Status
	// Known tells whether the pid was in the Table; the others are orphans that
	// the kernel gave to skep as PID 1 or as a subreaper.
	Known bool
}

// Command says what Table.Start runs. Path is executed as it stands: there is
// no search in PATH here.
type Command struct {
	Path string
	Argv []string
	Env  []string
	// Dir is the child's working directory; empty leaves skep's own.
	Dir string
	// Files become the child's descriptors 0, 1, 2 and so on. They stay open in
	// skep and their flags are not touched: O_NONBLOCK belongs to a description
	// that other processes share.
	Files []uintptr
	// Terminal is the descriptor, in skep, of a terminal whose foreground group
	// the child becomes, or -1.
	Terminal int
	// NewSession starts the child in a session of its own (setsid(2)) instead of
	// a process group of its own.
	NewSession bool
	// KeepGroup leaves the child in skep's own process group.
	KeepGroup bool
	// NewTerminal makes descriptor 0 the controlling terminal of the child's new
	// session; it needs NewSession.
	NewTerminal bool
	// Leftovers is the signal that what is left of the child's process group gets
	// at the moment its first process is reaped, 0 for none.
	Leftovers int
}

// StartError says why a command could not be started.
type StartError struct {
	Path string
	Err  error
}

func (e *StartError) Error() string { return "cannot start " + e.Path + ": " + e.Err.Error() }

// Unwrap gives the errno of fork or exec.
func (e *StartError) Unwrap() error { return e.Err }

// Transient tells whether the kernel refused for lack of a resource (pids,
// memory, descriptors) and a later try may succeed.
func (e *StartError) Transient() bool { return Transient(e.Err) }

// Transient tells whether an error of a system call is the lack of a resource
// that may be there again later.
func Transient(err error) bool {
	for _, lack := range []error{unix.EAGAIN, unix.ENOMEM, unix.ENFILE, unix.EMFILE, unix.ENOBUFS} {
		if errors.Is(err, lack) {
			return true
		}
	}
	return false
}

// ExitCode is the shell's code for the failure: 127 not found, 126 for every
// other refusal (POSIX.1-2017, Shell Command Language 2.8.2).
func (e *StartError) ExitCode() int {
	if errors.Is(e.Err, fs.ErrNotExist) {
		return 127
	}
	return 126
}

// Table knows the processes that skep started and has not reaped. It has no
// lock: the loop is its only caller.
type Table struct {
	started map[int]int // pid to the signal for what it leaves in its group
}

// NewTable returns an empty table.
func NewTable() *Table { return &Table{started: make(map[int]int)} }

// Start forks and executes c. It returns when the exec has succeeded or failed,
// so the pid is in the Table before its exit can be seen. The error is always a
// *StartError; then there is no process and nothing to reap.
func (t *Table) Start(c Command) (int, error) {
	attr := &syscall.ProcAttr{Dir: c.Dir, Env: c.Env, Files: c.Files, Sys: &syscall.SysProcAttr{}}
	switch {
	case c.NewSession:
		attr.Sys.Setsid = true
		attr.Sys.Setctty = c.NewTerminal
	case c.KeepGroup:
	case c.Terminal >= 0:
		attr.Sys.Foreground = true
		attr.Sys.Ctty = c.Terminal
	default:
		attr.Sys.Setpgid = true
	}
	pid, err := syscall.ForkExec(c.Path, c.Argv, attr)
	if err != nil {
		return 0, &StartError{Path: c.Path, Err: err}
	}
	t.started[pid] = c.Leftovers
	return pid, nil
}

// Len is the number of processes in the table.
func (t *Table) Len() int { return len(t.started) }

// Has tells whether pid was started here and is not reaped yet.
func (t *Table) Has(pid int) bool {
	_, ok := t.started[pid]
	return ok
}

// Reap takes every exit that the kernel holds and calls exited for each, in the
// kernel's order. Stopped children are told to stopped, which may be nil. It
// never blocks and returns whether skep still has children of any kind.
func (t *Table) Reap(exited func(Exit), stopped func(pid, signal int)) (children bool) {
	options := unix.WEXITED | unix.WNOHANG | unix.WNOWAIT
	if stopped != nil {
		options |= unix.WSTOPPED
	}
	for {
		// Look first and take afterwards: until the zombie is taken, its pid and its
		// group's number cannot be given to anybody else.
		var info siginfo
		err := waitid(&info, options)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false // ECHILD: there is no child at all (law 6)
		}
		pid := int(info.pid)
		if pid == 0 {
			return true
		}
		halted := info.code == cldStopped || info.code == cldTrapped
		if leftovers := t.started[pid]; leftovers != 0 && !halted {
			_ = unix.Kill(-pid, unix.Signal(leftovers))
			_ = unix.Kill(-pid, unix.SIGCONT)
		}
		status, ok := take(pid, options&unix.WSTOPPED)
		switch {
		case !ok:
			return true
		case status.Stopped():
			stopped(pid, int(status.StopSignal()))
		default:
			known := t.Has(pid)
			delete(t.started, pid)
			exited(Exit{PID: pid, Status: statusOf(status), Known: known})
		}
	}
}

func take(pid, options int) (unix.WaitStatus, bool) {
	var status unix.WaitStatus
	for {
		got, err := unix.Wait4(pid, &status, options|unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return status, err == nil && got == pid
	}
}

// Signal sends sig to a process of the table, or to its whole process group.
// Any other pid is refused with ESRCH without asking the kernel (law 2). That a
// process has just ended is an outcome, not an error (law 6).
func (t *Table) Signal(pid, sig int, group bool) error {
	if !t.Has(pid) {
		return unix.ESRCH
	}
	if group {
		err := unix.Kill(-pid, unix.Signal(sig))
		if !errors.Is(err, unix.ESRCH) {
			return err
		}
		// The child has left the group it was given; it is still ours by its pid.
	}
	return unix.Kill(pid, unix.Signal(sig))
}

// SignalTree sends sig to a process of the table, to its process group and to
// every descendant that /proc shows.
func (t *Table) SignalTree(pid, sig int) {
	if !t.Has(pid) {
		return
	}
	// The descendants are listed before the root is gone: afterwards they are
	// nobody's children but skep's.
	below := Descendants(pid)
	_ = unix.Kill(-pid, unix.Signal(sig))
	_ = unix.Kill(pid, unix.Signal(sig))
	for _, p := range below {
		_ = unix.Kill(p, unix.Signal(sig))
	}
}

// SignalLeft sends sig to what a process that has been reaped left behind: those
// of skep's descendants that are still in its process group.
func (t *Table) SignalLeft(self, group, sig int) {
	for _, p := range Descendants(self) {
		if g, err := unix.Getpgid(p); err == nil && g == group {
			_ = unix.Kill(p, unix.Signal(sig))
		}
	}
}

// Sweep sends sig to all that is left: as PID 1 to every process of the PID
// namespace, otherwise to skep's own descendants, because a shared namespace
// has strangers in it. A TERM is followed by CONT, without which a stopped
// process would never see it.
func (t *Table) Sweep(self, sig int) {
	send := func(s int) {
		if self == 1 {
			_ = unix.Kill(-1, unix.Signal(s))
			return
		}
		for _, p := range Descendants(self) {
			_ = unix.Kill(p, unix.Signal(s))
		}
	}
	send(sig)
	if sig != int(unix.SIGKILL) {
		send(int(unix.SIGCONT))
	}
}

// StopSelf stops skep itself as job control does, until CONT. As PID 1 it does
// nothing: the kernel does not let it be stopped.
func StopSelf() { _ = unix.Kill(unix.Getpid(), unix.SIGSTOP) }

// siginfo is the part of the kernel's siginfo_t that waitid(2) fills for a
// child: include/uapi/asm-generic/siginfo.h, for 64-bit machines.
type siginfo struct {
	signo, errno, code int32
	_                  int32
	pid, uid, status   int32
	_                  [128 - 7*4]byte
}

const (
	cldTrapped = 4
	cldStopped = 5
)

func waitid(info *siginfo, options int) error {
	_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0,
		uintptr(unsafe.Pointer(info)), uintptr(options), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
