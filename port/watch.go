package port

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Watch sends a Hangup whenever a worker shuts down a held socket (shutdown(2), as Twisted and WEBrick do when they end), binds one, or connects with one, until
// ctx ends or the Set is closed. It is a goroutine of its own, which sleeps otherwise: connections do not wake it.
func (s *Set) Watch(ctx context.Context, hangups chan<- Hangup) error {
	conn, err := s.hangups.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = s.hangups.SetReadDeadline(past) })()
	var events [16]unix.EpollEvent
	for {
		n := 0
		var failure error
		err := conn.Read(func(fd uintptr) bool {
			n, failure = unix.EpollWait(int(fd), events[:], 0)
			return n != 0 || failure != nil
		})
		if err == nil && failure != nil && !errors.Is(failure, unix.EINTR) {
			err = os.NewSyscallError("epoll_wait", failure)
		}
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		for _, event := range events[:max(n, 0)] {
			select {
			case hangups <- Hangup{id: uint64(uint32(event.Fd)) | uint64(uint32(event.Pad))<<32}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}
