package steer

import (
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of a tick are raw: each takes a microsecond and cannot block, and the runtime's bookkeeping around an ordinary call (which also wakes its
// monitor thread) would cost more than the call.

// Attach puts the program in place of the kernel's hash for the whole group that the listening socket fd is a member of. The kernel copies the program.
// It must not be called for a socket that is bound but does not listen: that would give the socket a group of its own.
func Attach(fd int, prog []unix.SockFilter) error {
	if len(prog) == 0 || len(prog) > maxInstructions {
		return fmt.Errorf("cannot attach a program to the reuseport group: %d instructions, the kernel takes 1 to %d", len(prog), maxInstructions)
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
		uintptr(unsafe.Pointer(&fprog)), unsafe.Sizeof(fprog), 0)
	runtime.KeepAlive(prog)
	if errno != 0 {
		return fmt.Errorf("cannot attach a program to the reuseport group: %w", errno)
	}
	return nil
}

// Detach gives the choice among the group's members back to the kernel's hash. A group without a program is left as it is.
func Detach(fd int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0)
	if err != nil && err != unix.ENOENT {
		return fmt.Errorf("cannot detach the program of the reuseport group: %w", err)
	}
	return nil
}

const (
	maxInstructions = 4096 // BPF_MAXINSNS of linux/bpf_common.h
	tcpListen       = 10   // TCP_LISTEN of net/tcp_states.h
)

// tcpInfo is the first part of struct tcp_info of linux/tcp.h.
type tcpInfo struct {
	state   uint8
	_       [23]byte
	unacked uint32
	_       uint32
}

// acceptQueue reads how many connections wait in the accept queue of a socket, and whether it listens at all: tcpi_unacked of a listener
// (tcp_get_info in net/ipv4/tcp.c).
func acceptQueue(fd int, info *tcpInfo) (queue int, listens bool) {
	size := uint32(unsafe.Sizeof(*info))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 || info.state != tcpListen {
		return 0, false
	}
	return int(info.unacked), true
}

// openAt opens a file of another process for reading; it never becomes anybody's controlling terminal and is not inherited.
func openAt(path string, flags int) int {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
		switch err {
		case nil:
			return fd
		case unix.EINTR:
			continue
		}
		return -1
	}
}

// readStart reads the beginning of a file that is generated at each read. It returns 0 when it cannot.
func readStart(fd int, buf []byte) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// setTimer makes a timerfd expire once, after the time given, whatever it was set to.
func setTimer(fd int, after time.Duration) {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(after))}
	unix.RawSyscall6(unix.SYS_TIMERFD_SETTIME, uintptr(fd), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
}

// fileSize is the size fstat(2) shows, or -1. For /proc/PID/fd it is the number of open descriptors since Linux 6.2 and 0 before.
func fileSize(fd int, st *unix.Stat_t) int {
	_, _, errno := unix.RawSyscall(sysFstat, uintptr(fd), uintptr(unsafe.Pointer(st)), 0)
	if errno != 0 {
		return -1
	}
	return int(st.Size)
}

// identity is the user and group as whom files of a worker are opened and read.
type identity struct{ uid, gid uint32 }

// assume sets the file-system user and group of the calling thread, which must be locked to its goroutine. The kernel checks them, not the effective ones,
// when a file in /proc shows what only a debugger may see (PTRACE_MODE_READ_FSCREDS). Without the privilege nothing changes, and what cannot be read then
// counts as unknown.
func assume(id identity) {
	unix.RawSyscall(sysSetfsgid, uintptr(id.gid), 0, 0)
	unix.RawSyscall(sysSetfsuid, uintptr(id.uid), 0, 0)
}

// epollNow fetches what is ready in an epoll, without waiting.
func epollNow(epfd int, events []unix.EpollEvent) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}
