package launch

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fork makes the new process. The parent is suspended until the child has executed the
// command or ended (vfork(2)), and the child has the same memory until then, as that of
// syscall.ForkExec has: no tables are copied, and no page faults follow in either. Only
// for a change of user it gets a copy, because one in shared memory makes the
// parent undumpable (commit_creds of kernel/cred.c). Signals are blocked on this thread meanwhile,
// so that none runs a handler in the child.
//
//go:norace
//go:noinline
func (p *plan) fork() (pid uintptr, errno syscall.Errno) {
	flags := unix.CLONE_VFORK | uintptr(unix.SIGCHLD)
	if shares && p.user == nil {
		flags |= unix.CLONE_VM
	}
	every, old := ^uint64(0), uint64(0)
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&every)), uintptr(unsafe.Pointer(&old)), sigsetBytes, 0, 0)
	pid, failed := clone(flags)
	if pid == 0 && failed == 0 {
		p.child()
	}
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, sigsetBytes, 0, 0)
	return pid, syscall.Errno(failed)
}

const sigsetBytes = 8

// child is the new process. It has one thread and the runtime's state of the moment of the
// fork, locks and all, or even the parent's memory itself: nothing here may allocate, grow the
// stack, or call into the runtime.
//
// The order matters: rights that only root has come first, then the user, then the filter, and
// the signals at the very end. It does not return.
//
//go:nosplit
//go:norace
//go:noinline
func (p *plan) child() {
	// An empty action is the default one. After the mask is emptied no handler may run here.
	var action [4]uintptr
	for sig := uintptr(1); sig <= 64; sig++ {
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&action)), 0, sigsetBytes, 0, 0)
	}
	if p.session {
		p.must(stepSession, unix.SYS_SETSID, 0, 0, 0)
	}
	if p.group {
		p.must(stepGroup, unix.SYS_SETPGID, 0, 0, 0)
		if p.terminal >= 0 {
			pgrp, _, _ := unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0)
			p.record[0] = int32(pgrp)
			p.must(stepForeground, unix.SYS_IOCTL, uintptr(p.terminal), unix.TIOCSPGRP, uintptr(unsafe.Pointer(&p.record)))
		}
	}
	if p.score != nil {
		p.writeScore()
	}
	if p.dir != nil {
		p.must(stepDir, unix.SYS_CHDIR, uintptr(unsafe.Pointer(p.dir)), 0, 0)
	}
	if u := p.user; u != nil {
		p.must(stepGroups, unix.SYS_SETGROUPS, uintptr(len(u.Groups)), uintptr(p.groups), 0)
		p.must(stepGID, unix.SYS_SETRESGID, uintptr(u.GID), uintptr(u.GID), uintptr(u.GID))
		p.must(stepUID, unix.SYS_SETRESUID, uintptr(u.UID), uintptr(u.UID), uintptr(u.UID))
	}
	p.placeFiles()
	if p.takesTTY {
		p.must(stepTerminal, unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 1)
	}
	if p.limit != nil {
		_, _, _ = unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(p.limit)), 0, 0, 0)
	}
	p.writePID()
	if p.socket >= 0 {
		p.installFilter()
	}
	var none uint64
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, sigsetBytes, 0, 0)
	_, _, errno := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(p.path)), uintptr(unsafe.Pointer(&p.argv[0])), uintptr(unsafe.Pointer(&p.env[0])))
	if errno == unix.ENOEXEC {
		_, _, errno = unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(p.shell[0])), uintptr(unsafe.Pointer(&p.shell[0])), uintptr(unsafe.Pointer(&p.env[0])))
	}
	p.fail(stepExec, errno)
}

// must makes a system call that may not fail.
//
//go:nosplit
//go:norace
func (p *plan) must(step int32, trap, a1, a2, a3 uintptr) uintptr {
	r, _, errno := unix.RawSyscall(trap, a1, a2, a3)
	if errno != 0 {
		p.fail(step, errno)
	}
	return r
}

// fail tells what was refused and ends the process.
//
//go:nosplit
//go:norace
func (p *plan) fail(step int32, errno syscall.Errno) {
	p.tell(step, errno)
	for {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, ExitOwnFault, 0, 0)
	}
}

//go:nosplit
//go:norace
func (p *plan) tell(step int32, errno syscall.Errno) {
	p.record[0], p.record[1] = step, int32(errno)
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(p.report), uintptr(unsafe.Pointer(&p.record)), unsafe.Sizeof(p.record))
}

// scoreFile is where a process writes its own score (proc(5)).
var scoreFile = [...]byte{'/', 'p', 'r', 'o', 'c', '/', 's', 'e', 'l', 'f', '/', 'o', 'o', 'm', '_', 's', 'c', 'o', 'r', 'e', '_', 'a', 'd', 'j', 0}

//go:nosplit
//go:norace
func (p *plan) writeScore() {
	here := unix.AT_FDCWD
	fd, _, errno := unix.RawSyscall6(unix.SYS_OPENAT, uintptr(here), uintptr(unsafe.Pointer(&scoreFile[0])), unix.O_WRONLY|unix.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		p.tell(stepOOMScore, errno)
		return
	}
	n := uintptr(0)
	for *(*byte)(unsafe.Add(unsafe.Pointer(p.score), n)) != 0 {
		n++
	}
	if _, _, errno = unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(p.score)), n); errno != 0 {
		p.tell(stepOOMScore, errno)
	}
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, fd, 0, 0)
}

// placeFiles puts the descriptors where they belong. First everything that stands where
// another one belongs goes out of the way.
//
//go:nosplit
//go:norace
func (p *plan) placeFiles() {
	n := len(p.files)
	if p.report < n {
		p.report = int(p.must(stepFiles, unix.SYS_FCNTL, uintptr(p.report), unix.F_DUPFD_CLOEXEC, uintptr(n)))
	}
	if p.socket >= 0 && p.socket < n {
		p.socket = int(p.must(stepFiles, unix.SYS_FCNTL, uintptr(p.socket), unix.F_DUPFD_CLOEXEC, uintptr(n)))
	}
	for i := range p.files {
		if fd := p.files[i]; fd != i && fd < n {
			p.files[i] = int(p.must(stepFiles, unix.SYS_FCNTL, uintptr(fd), unix.F_DUPFD_CLOEXEC, uintptr(n)))
		}
	}
	for i := range p.files {
		if fd := p.files[i]; fd == i {
			p.must(stepFiles, unix.SYS_FCNTL, uintptr(fd), unix.F_SETFD, 0)
		} else {
			p.must(stepFiles, unix.SYS_DUP3, uintptr(fd), uintptr(i), 0)
		}
	}
}

// writePID puts the digits of the own pid in the environment, from the left.
//
//go:nosplit
//go:norace
func (p *plan) writePID() {
	pid, _, _ := unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0)
	digits := 1
	for rest := pid; rest >= 10; rest /= 10 {
		digits++
	}
	for _, room := range p.pids {
		room[digits] = 0
		rest := pid
		for i := digits - 1; i >= 0; i-- {
			room[i] = '0' + byte(rest%10)
			rest /= 10
		}
	}
}

// installFilter sets no_new_privs and the filter, and sends the listener to skep. A filter
// that cannot be installed does not stop the start.
//
// The filter asks for WAIT_KILLABLE_RECV (Linux 5.19), with which a call that was received can only be interrupted by a fatal signal; an older kernel
// refuses the flag with EINVAL and gets the filter without.
//
//go:nosplit
//go:norace
func (p *plan) installFilter() {
	if p.filter == nil {
		p.tell(stepFilter, unix.ENOSYS)
		return
	}
	if _, _, errno := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		p.tell(stepFilter, errno)
		return
	}
	flags := uintptr(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(p.filter)))
	if errno == unix.EINVAL {
		flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
		fd, _, errno = unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(p.filter)))
	}
	if errno == 0 {
		p.rights.fd = int32(fd)
		_, _, errno = unix.RawSyscall(unix.SYS_SENDMSG, uintptr(p.socket), uintptr(unsafe.Pointer(p.message)), unix.MSG_NOSIGNAL)
		// close-on-exec, as the socket and the report are
	}
	if errno != 0 {
		p.tell(stepFilter, errno)
	}
}
