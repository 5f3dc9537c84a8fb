package port

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// socketFile is the file of a bound unix socket. The zero value is none: an abstract socket, or TCP.
type socketFile struct {
	path     string
	dev, ino uint64
}

// remove deletes the file unless something else has taken its place.
func (f socketFile) remove() {
	var st unix.Stat_t
	if f.path == "" || unix.Lstat(f.path, &st) != nil || st.Dev != f.dev || st.Ino != f.ino {
		return
	}
	_ = unix.Unlink(f.path)
}

// openUnix makes a bound unix socket. A socket file that nobody listens on, left by a program that was killed, is replaced; one that is in use, and
// any other kind of file, is EADDRINUSE.
func openUnix(a Addr) (fd int, file socketFile, err error) {
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, socketFile{}, os.NewSyscallError("socket", err)
	}
	err = unix.Bind(fd, a.sockaddr())
	if errors.Is(err, unix.EADDRINUSE) && a.Path[0] == '/' && stale(a) {
		if err = unix.Unlink(a.Path); err == nil || errors.Is(err, unix.ENOENT) {
			err = unix.Bind(fd, a.sockaddr())
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, socketFile{}, os.NewSyscallError("bind", err)
	}
	var st unix.Stat_t
	if a.Path[0] == '/' && unix.Lstat(a.Path, &st) == nil {
		file = socketFile{path: a.Path, dev: st.Dev, ino: st.Ino}
	}
	return fd, file, nil
}

// stale says whether the file is a socket that refuses connections. A full queue (EAGAIN) is a listener.
func stale(a Addr) bool {
	var st unix.Stat_t
	if unix.Lstat(a.Path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return false
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	return errors.Is(unix.Connect(fd, a.sockaddr()), unix.ECONNREFUSED)
}
