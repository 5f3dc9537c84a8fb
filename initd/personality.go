package initd

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skep/compat"
	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/reaper"
)

// Personality makes the options of an init for one command that skep was called
// as. Everything that only skep has is off.
func Personality(as *compat.Init, environ []string) Options {
	remap := make(map[int]bool, len(as.Remap))
	for _, code := range as.Remap {
		remap[code] = true
	}
	return Options{
		Command: as.Argv, Environ: environ, Boring: true, As: as,
		KillGroup: as.Group, ParentDeath: as.Pdeathsig, LogLevel: logger.Error,
		Share:    ShareNone,
		Prestart: PrestartOptions{Skip: true},
		Policy: supervise.Policy{
			Workers: 1, Restart: supervise.RestartNever, StartLimit: 5, Delay: 100 * time.Millisecond, MaxDelay: time.Second, StopOn: []int{int(unix.SIGTERM), int(unix.SIGINT), int(unix.SIGQUIT)},
			SweepTimeout: SweepTimeout, SignalMap: as.Rewrite, RemapExit: remap,
		},
	}
}

// print writes messages of the init that skep was called as.
func (l *loop) print(lines ...compat.Line) {
	for _, line := range lines {
		if line.Text == "" {
			continue
		}
		fd := 2
		if line.Stdout {
			fd = 1
		}
		l.log.Raw(fd, line.Text)
	}
}

// arrange gives the command the session and group that the personality wants.
func (l *loop) arrange(c *reaper.Command) {
	switch as := l.o.As; {
	case as.Setsid:
		c.NewSession, c.NewTerminal = true, l.letGoOfTerminal()
	case as.Program == compat.DumbInit:
		c.KeepGroup = true
	}
}

// letGoOfTerminal gives up the terminal on descriptor 0, so that the command's
// new session can have it, and tells whether there was one to give. Only the
// leader of a session, as PID 1 in a container is, may do that: the terminal of
// a shell that started skep stays the shell's.
func (l *loop) letGoOfTerminal() bool {
	if sid, err := unix.Getsid(0); err != nil || sid != l.self || !isTerminal(0) {
		return false
	}
	if unix.IoctlSetInt(0, unix.TIOCNOTTY, 0) != nil {
		return false
	}
	// The kernel sends HUP and CONT to the group that had the terminal, which is
	// skep's own (ioctl_tty(2)). The command is not meant.
	l.swallow = []int{int(unix.SIGHUP), int(unix.SIGCONT)}
	return true
}

// refuse is the Failure for a command that cannot be executed, in the words of
// the personality.
func refuse(as *compat.Init, err error) *Failure {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		errno = syscall.ENOENT
	}
	if errno == unix.EISDIR {
		errno = unix.EACCES // what execve(2) says of a directory
	}
	code, line := as.ExecFailure(errno)
	return &Failure{Err: err, Code: code, Line: line.Text}
}
