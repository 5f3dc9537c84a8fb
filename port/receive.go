package port

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
	"skep/launch"
)

// past is a deadline that has come already.
var past = time.Unix(1, 0)

// NoFilterError says that a worker's stub could not install the filter and runs the worker without: the kernel is too old or a sandbox
// refuses (ENOSYS, EINVAL, EPERM, EACCES), or another listener is above this process (EBUSY).
type NoFilterError struct{ Errno unix.Errno }

func (e *NoFilterError) Error() string {
	return "cannot install the bind filter: " + e.Errno.Error()
}

func (e *NoFilterError) Unwrap() error { return e.Errno }

// ErrNoListener says that the stub ended, or executed the command, without a word about the filter.
var ErrNoListener = errors.New("cannot receive the bind listener: the stub closed the socket")

// ReceiveListener waits on the other end of a stub's NotifyFD, which must be a socket of sys.SocketPair, for the listener of its filter, at most timeout.
// It blocks its goroutine, never a thread, so the loop calls it in a goroutine. It owns and closes socket. The descriptor it returns is for Intercept. A
// timeout is os.ErrDeadlineExceeded; see also NoFilterError and ErrNoListener.
func ReceiveListener(socket int, timeout time.Duration) (listener int, err error) {
	if err := unix.SetNonblock(socket, true); err != nil {
		_ = unix.Close(socket)
		return -1, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(socket), "stub")
	defer func() { _ = f.Close() }()
	if err := f.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return -1, fmt.Errorf("cannot receive the bind listener: %w", err)
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("cannot receive the bind listener: %w", err)
	}
	var message [16]byte
	n, listener := 0, -1
	var failure error
	err = conn.Read(func(fd uintptr) bool {
		n, listener, failure = sys.ReceiveDescriptor(int(fd), message[:])
		return !errors.Is(failure, unix.EAGAIN)
	})
	if err == nil {
		err = failure
	}
	switch {
	case errors.Is(err, unix.ECONNRESET):
		return -1, ErrNoListener
	case err != nil:
		return -1, fmt.Errorf("cannot receive the bind listener: %w", err)
	case n > 0 && message[0] == launch.TagListener && listener >= 0:
		return listener, nil
	}
	if listener >= 0 {
		_ = unix.Close(listener)
	}
	if n > 0 && message[0] == launch.TagNoListener {
		errno, err := strconv.ParseUint(string(message[1:n]), 10, 12)
		if err != nil || errno == 0 {
			errno = uint64(unix.EIO)
		}
		return -1, &NoFilterError{Errno: unix.Errno(errno)}
	}
	return -1, ErrNoListener
}
