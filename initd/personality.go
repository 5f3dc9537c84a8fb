package initd

import (
	"errors"
	"syscall"

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
			Workers: 1, Restart: supervise.RestartNever, StopOn: []int{int(unix.SIGTERM), int(unix.SIGINT), int(unix.SIGQUIT)},
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
func arrange(c *reaper.Command, as *compat.Init) {
	switch {
	case as.Setsid:
		c.NewSession, c.NewTerminal = true, isTerminal(0)
	case as.Program == compat.DumbInit:
		c.KeepGroup = true
	}
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
