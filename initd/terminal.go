package initd

import (
	"runtime"

	"golang.org/x/sys/unix"

	"skep/reaper"
)

func isTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}

// foreground tells whether fd is skep's controlling terminal and skep is in its
// foreground group. Only then may the command be put there: one started in the
// background by a shell must not take the terminal away from it, and where there
// is no terminal asking would fail with ENOTTY (tcgetpgrp(3)).
func foreground(fd int) bool {
	group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// setForeground gives the terminal on descriptor 0 to a process group. From a
// background group that raises TTOU, which is blocked for this one call.
func setForeground(group int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var block, old unix.Sigset_t
	block.Val[0] = 1 << (uint(unix.SIGTTOU) - 1)
	if unix.PthreadSigmask(unix.SIG_BLOCK, &block, &old) == nil {
		_ = unix.IoctlSetPointerInt(0, unix.TIOCSPGRP, group)
		_ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
	}
}

// childStopped passes on a stop by job control: the shell that started skep has
// to see its job stop, or it would wait for ever.
func (l *loop) childStopped(pid, _ int) {
	if l.sup == nil || l.sup.Serving() || !l.table.Has(pid) {
		return
	}
	l.stopped = true
	setForeground(unix.Getpgrp())
	reaper.StopSelf()
}

// resume goes on after the shell's fg or bg.
func (l *loop) resume() {
	l.stopped = false
	for _, st := range l.sup.Seats() {
		if st.PID == 0 {
			continue
		}
		if foreground(0) {
			setForeground(st.PID)
		}
		_ = l.table.Signal(st.PID, int(unix.SIGCONT), true)
	}
}
