package reaper

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"

	"skep/launch"
)

// Exit is the end of one child of skep, taken from the kernel exactly once.
type Exit struct {
	PID    int
	Status Status
	// Known tells whether the pid was in the Table; the others are orphans that
	// the kernel gave to skep as PID 1 or as a subreaper.
	Known bool
}

// Command says what Table.Start runs.
type Command struct {
	launch.Command
	// Leftovers is the signal that what is left of the child's process group gets
	// at the moment its first process is reaped, 0 for none.
	Leftovers int
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
// *launch.StartError; then there is no process and nothing to reap.
func (t *Table) Start(c Command) (launch.Process, error) {
	p, err := launch.Start(&c.Command)
	if err == nil {
		t.started[p.PID] = c.Leftovers
	}
	return p, err
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
