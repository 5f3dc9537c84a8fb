package sys

import (
	"errors"

	"golang.org/x/sys/unix"
)

// RetryEINTR calls f until it returns anything but EINTR, and returns that. It is for calls that can be interrupted before they did anything
// (signal(7), "Interruption of system calls"); law 6 counts EINTR among the outcomes.
func RetryEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Errno returns the error number inside err, 0 when err is nil, and EIO when err carries none, so that a caller that must report a number to a
// worker never reports success by mistake.
func Errno(err error) unix.Errno {
	if err == nil {
		return 0
	}
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return unix.EIO
}
