package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// Poll waits up to timeout milliseconds (0: not at all, -1: without end) and returns the events of fd, 0 when none came. It starts anew after EINTR.
func Poll(fd int, events int16, timeout int) (int16, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	err := RetryEINTR(func() error {
		_, err := unix.Poll(fds, timeout)
		return err
	})
	if err != nil {
		return 0, os.NewSyscallError("poll", err)
	}
	return fds[0].Revents, nil
}

// SocketPair returns two connected unix sockets, close-on-exec, that keep the borders of messages (SOCK_SEQPACKET): reading 0 bytes means that
// every copy of the other end is closed.
func SocketPair() (ours, theirs int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, os.NewSyscallError("socketpair", err)
	}
	return fds[0], fds[1], nil
}

// ReceiveDescriptor reads one message into data and the descriptor that came with it (close-on-exec), -1 when there was none. More than one is never
// kept: the rest is closed. The socket should not block; EAGAIN is an outcome.
func ReceiveDescriptor(socket int, data []byte) (n, fd int, err error) {
	rights := make([]byte, unix.CmsgSpace(4))
	var got int
	err = RetryEINTR(func() (err error) {
		n, got, _, _, err = unix.Recvmsg(socket, data, rights, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		return err
	})
	if err != nil {
		return 0, -1, os.NewSyscallError("recvmsg", err)
	}
	fd = -1
	messages, err := unix.ParseSocketControlMessage(rights[:got])
	if err != nil {
		return n, -1, os.NewSyscallError("recvmsg", err)
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, each := range fds {
			if fd < 0 {
				fd = each
			} else {
				_ = unix.Close(each)
			}
		}
	}
	return n, fd, nil
}

// Duplicate returns a close-on-exec copy of fd that refers to the same open description.
func Duplicate(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("fcntl(F_DUPFD_CLOEXEC)", err)
	}
	return n, nil
}

// Inode returns the inode number of an open descriptor; for a socket it is the number that /proc/PID/fd/N shows as socket:[number].
func Inode(fd int) (uint64, error) {
	var st unix.Stat_t
	if err := RetryEINTR(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return st.Ino, nil
}
