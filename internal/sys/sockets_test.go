package sys

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRetryEINTR(t *testing.T) {
	calls := 0
	err := RetryEINTR(func() error {
		calls++
		if calls < 3 {
			return fmt.Errorf("wrapped: %w", unix.EINTR)
		}
		return unix.EBADF
	})
	if calls != 3 || !errors.Is(err, unix.EBADF) {
		t.Errorf("%d calls, %v", calls, err)
	}
}

func TestErrno(t *testing.T) {
	for err, want := range map[error]unix.Errno{
		nil:                                      0,
		unix.EACCES:                              unix.EACCES,
		os.NewSyscallError("x", unix.EADDRINUSE): unix.EADDRINUSE,
		errors.New("no number"):                  unix.EIO,
	} {
		if got := Errno(err); got != want {
			t.Errorf("Errno(%v) = %v, want %v", err, got, want)
		}
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestDescriptorsGoOverASocket(t *testing.T) {
	ours, theirs, err := SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(ours) }()
	before := openDescriptors(t)
	if _, _, err := ReceiveDescriptor(ours, make([]byte, 8)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("nothing sent: %v", err)
	}
	if err := unix.Sendmsg(theirs, []byte("abc"), unix.UnixRights(theirs), nil, 0); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 8)
	n, fd, err := ReceiveDescriptor(ours, data)
	if err != nil || string(data[:n]) != "abc" || fd < 0 {
		t.Fatalf("%q, %d, %v", data[:n], fd, err)
	}
	if flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
		t.Error("not close-on-exec")
	}
	if a, _ := Inode(fd); func() uint64 { b, _ := Inode(theirs); return b }() != a {
		t.Error("another file came out")
	}
	_ = unix.Close(fd)
	if err := unix.Sendmsg(theirs, []byte("d"), nil, nil, 0); err != nil {
		t.Fatal(err)
	}
	if n, fd, err := ReceiveDescriptor(ours, data); n != 1 || fd != -1 || err != nil {
		t.Errorf("data alone: %d, %d, %v", n, fd, err)
	}
	// A peer that sends more than it should leaves nothing behind.
	if err := unix.Sendmsg(theirs, []byte("e"), unix.UnixRights(0, 1, 2), nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, fd, err := ReceiveDescriptor(ours, data); err == nil && fd >= 0 {
		_ = unix.Close(fd)
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	_ = unix.Close(theirs)
	if n, fd, err := ReceiveDescriptor(ours, data); n != 0 || fd != -1 || err != nil {
		t.Errorf("after the end: %d, %d, %v", n, fd, err)
	}
}

func TestAsFileUser(t *testing.T) {
	want := errors.New("from f")
	called := false
	err := AsFileUser(os.Geteuid()+1, os.Getegid()+1, func() error {
		called = true
		if got := setFileUID(-1); got != os.Geteuid()+1 {
			t.Errorf("the file-system user is %d", got)
		}
		return want
	})
	if os.Geteuid() == 0 {
		if !called || !errors.Is(err, want) {
			t.Errorf("as root: called %v, %v", called, err)
		}
	} else if called || !errors.Is(err, unix.EPERM) {
		t.Errorf("as uid %d: called %v, %v", os.Geteuid(), called, err)
	}
}
