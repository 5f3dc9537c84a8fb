package launch

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"skep/internal/entry"
	"skep/internal/sys"
)

// Command says what Start runs, and what becomes of the new process before that.
type Command struct {
	// Path is executed as it stands: there is no search in PATH here. A text file without
	// #! goes to /bin/sh, as execvp(3) has it.
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

	// Filter asks for the filter of bind sharing (NativeFilter), whose listener is in the
	// Process that Start returns. It sets no_new_privs.
	Filter bool
	// OwnPID names variables of the environment that get the child's own pid, which only the
	// new process knows: LISTEN_PID (sd_listen_fds(3)), WATCHDOG_PID (sd_watchdog_enabled(3)).
	OwnPID []string
	// User is whom the child runs as, nil for no change.
	User *User
	// OOMScoreAdj is written to /proc/self/oom_score_adj, -1000 to 1000; nil for no change. A
	// refusal is in the Process and does not stop the start.
	OOMScoreAdj *int
}

// User is a user id, a group id and the supplementary groups, all of them set exactly as given. When the process has that user and group already, none
// of them is touched, so that a plain user may name itself.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// Process is what has been started.
type Process struct {
	PID int
	// Listener is where the Filter's notifications arrive, close-on-exec and the caller's
	// to close; -1 without one.
	Listener int
	// NoListener says why a Filter that was asked for is not there: the kernel is too old or a
	// sandbox refuses (ENOSYS, EINVAL, EPERM, EACCES), or another listener is above
	// this process (EBUSY). The command runs without.
	NoListener error
	// NoOOMScore says why oom_score_adj is not as asked for.
	NoOOMScore error
}

// StartError says why a command could not be started.
type StartError struct {
	Path string
	Err  error
	// Call is the system call that failed, empty for fork and exec themselves.
	Call string
	// User is whom the process could not become, when that was it.
	User *User
}

func (e *StartError) Error() string {
	cause := describe(e.Err)
	if e.Call != "" {
		cause = e.Call + ": " + cause
	}
	if u := e.User; u != nil {
		cause = "cannot become user " + strconv.FormatUint(uint64(u.UID), 10) + ":" + strconv.FormatUint(uint64(u.GID), 10) + ": " + cause
	}
	return "cannot start " + e.Path + ": " + cause
}

// Unwrap gives the errno.
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
// other refusal of the command itself (POSIX.1-2017, Shell Command Language 2.8.2), and 125
// when what has to be done before it was refused.
func (e *StartError) ExitCode() int {
	switch {
	case e.Call != "":
		return ExitOwnFault
	case errors.Is(e.Err, fs.ErrNotExist):
		return ExitNotFound
	}
	return ExitCannotExecute
}

// What a child tells in its report, and the name of the call that was refused. Those
// before stepFatal do not stop the start.
const (
	stepOOMScore = iota
	stepFilter
	stepFatal
	stepSession
	stepGroup
	stepForeground
	stepDir
	stepGroups
	stepGID
	stepUID
	stepFiles
	stepTerminal
	stepExec
)

var stepNames = [...]string{
	stepSession: "setsid", stepGroup: "setpgid", stepForeground: "ioctl(TIOCSPGRP)", stepDir: "chdir", stepGroups: "setgroups",
	stepGID: "setresgid", stepUID: "setresuid", stepFiles: "dup3", stepTerminal: "ioctl(TIOCSCTTY)", stepExec: "",
}

// plan is all that the child needs, made before the fork: the child may not allocate.
type plan struct {
	path, dir, score         *byte
	argv, shell, env         []*byte
	files                    []int
	terminal                 int
	session, group, takesTTY bool
	user                     *User
	groups                   unsafe.Pointer
	limit                    *entry.Limit
	pids                     [][]byte // where the digits of the own pid go
	report, socket           int
	filter                   *unix.SockFprog
	message                  *unix.Msghdr
	rights                   *rights
	record                   [2]int32
}

// rights is one descriptor as a control message (unix(7), SCM_RIGHTS).
type rights struct {
	head unix.Cmsghdr
	fd   int32
	_    int32
}

// Start forks and executes c. It returns when the exec has succeeded or failed. The error is
// always a *StartError; then there is no process and nothing to reap. It is called by package
// reaper only, on the goroutine that owns wait4.
//
// It is syscall.ForkExec with more between fork and exec, all of it raw system calls in the
// new process: a program in between, even a small one, costs a start of its own. Unlike that
// one it empties the signal mask, which is full in all of skep.
func Start(c *Command) (p Process, err error) {
	p.Listener = -1
	fail := func(err error) (Process, error) {
		return Process{Listener: -1}, &StartError{Path: c.Path, Err: sys.Errno(err)}
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return fail(err)
	}
	defer unix.Close(ends[0])
	report := ends[1]
	ours, theirs := -1, -1
	if c.Filter {
		if ours, theirs, err = sys.SocketPair(); err != nil {
			_ = unix.Close(report)
			return fail(err)
		}
		defer unix.Close(ours)
	}
	pl, err := prepare(c, report, theirs)
	if err != nil {
		_ = unix.Close(report)
		if theirs >= 0 {
			_ = unix.Close(theirs)
		}
		return fail(err)
	}
	pid, errno := pl.fork()
	_ = unix.Close(report)
	if theirs >= 0 {
		_ = unix.Close(theirs)
	}
	if errno != 0 {
		return fail(errno)
	}
	p.PID = int(pid)
	if failure := p.read(ends[0], c.User); failure != nil {
		failure.Path = c.Path
		_ = sys.RetryEINTR(func() error { _, err := unix.Wait4(p.PID, nil, 0, nil); return err })
		return Process{Listener: -1}, failure
	}
	if c.Filter && p.NoListener == nil {
		var tag [1]byte
		if _, p.Listener, err = sys.ReceiveDescriptor(ours, tag[:]); err != nil {
			p.NoListener = err
		}
	}
	return p, nil
}

// read takes in what the child tells until it has executed the command, which closes its
// end of the pipe, or has failed.
func (p *Process) read(report int, user *User) *StartError {
	for {
		var record [2]int32
		const size = int(unsafe.Sizeof(record))
		n := 0
		err := sys.RetryEINTR(func() (err error) {
			n, err = unix.Read(report, (*[size]byte)(unsafe.Pointer(&record))[:])
			return err
		})
		if err != nil || n < size {
			return nil
		}
		step, errno := int(record[0]), syscall.Errno(record[1])
		switch {
		case step == stepOOMScore:
			p.NoOOMScore = errno
		case step == stepFilter:
			p.NoListener = errno
		case step > stepFatal && step < len(stepNames):
			failure := &StartError{Err: errno, Call: stepNames[step]}
			if step == stepGroups || step == stepGID || step == stepUID {
				failure.User = user
			}
			return failure
		}
	}
}

func prepare(c *Command, report, socket int) (*plan, error) {
	p := &plan{report: report, socket: socket, terminal: c.Terminal, session: c.NewSession, group: !c.NewSession && !c.KeepGroup,
		takesTTY: c.NewTerminal, files: make([]int, len(c.Files))}
	var err error
	if p.path, err = unix.BytePtrFromString(c.Path); err != nil {
		return nil, err
	}
	if p.argv, err = syscall.SlicePtrFromStrings(c.Argv); err != nil {
		return nil, err
	}
	if p.shell, err = syscall.SlicePtrFromStrings(append([]string{"/bin/sh", c.Path}, c.Argv[min(1, len(c.Argv)):]...)); err != nil {
		return nil, err
	}
	const digits = "0000000000"
	env := slices.Clip(c.Env)
	for _, name := range c.OwnPID {
		env = append(env, name+"="+digits)
	}
	if p.env, err = syscall.SlicePtrFromStrings(env); err != nil {
		return nil, err
	}
	for i, name := range c.OwnPID {
		variable := unsafe.Pointer(p.env[len(c.Env)+i])
		p.pids = append(p.pids, unsafe.Slice((*byte)(unsafe.Add(variable, len(name)+1)), len(digits)+1))
	}
	if c.Dir != "" {
		if p.dir, err = unix.BytePtrFromString(c.Dir); err != nil {
			return nil, err
		}
	}
	for i, fd := range c.Files {
		p.files[i] = int(fd)
	}
	if c.OOMScoreAdj != nil {
		p.score, _ = unix.BytePtrFromString(strconv.Itoa(*c.OOMScoreAdj))
	}
	if u := c.User; u != nil && !is(u) {
		p.user = u
		if len(u.Groups) > 0 {
			p.groups = unsafe.Pointer(&u.Groups[0])
		}
	}
	p.limit = raised()
	if c.Filter {
		prog := NativeFilter()
		if len(prog) == 0 {
			return p, nil // no filter is known for this architecture: the child says so
		}
		p.filter = &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
		p.rights = &rights{}
		p.rights.head.Level, p.rights.head.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
		p.rights.head.SetLen(unix.CmsgLen(4))
		tag := new(byte)
		p.message = &unix.Msghdr{Iov: &unix.Iovec{Base: tag}, Iovlen: 1, Control: (*byte)(unsafe.Pointer(p.rights))}
		p.message.Iov.SetLen(1)
		p.message.SetControllen(unix.CmsgSpace(4))
	}
	return p, nil
}

// is tells whether this process has the user's ids already.
func is(u *User) bool {
	return uint32(os.Getuid()) == u.UID && uint32(os.Geteuid()) == u.UID && uint32(os.Getgid()) == u.GID && uint32(os.Getegid()) == u.GID
}

// raised returns the limit of open files that the Go runtime has raised and that a child has to
// get back, nil when there is none. One that somebody has changed since is left.
func raised() *entry.Limit {
	var now unix.Rlimit
	if !entry.Known || unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &now) != nil {
		return nil
	}
	if was := entry.Files; was.Hard == now.Max && was.Soft < now.Cur {
		return &was
	}
	return nil
}
