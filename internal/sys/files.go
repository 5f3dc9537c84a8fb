package sys

import (
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ReadFile is os.ReadFile for the files of the kernel, in less than half of the system calls: package os has the runtime's poller watch every file that can be
// polled, as those of /proc/sys and of cgroups can, which also wakes the thread up that waits there. A missing file is fs.ErrNotExist, as ever. A read that blocks
// keeps a thread, as with any other file.
func ReadFile(name string) ([]byte, error) {
	text, call, err := readAll(name)
	if err != nil {
		return nil, &fs.PathError{Op: call, Path: name, Err: err}
	}
	return text, nil
}

// readAll returns the call that failed with the error.
func readAll(name string) (text []byte, call string, err error) {
	fd := -1
	for ok := true; ok; ok = err == unix.EINTR {
		fd, err = unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, "open", err
	}
	defer unix.Close(fd)
	// Most have less than this. What the kernel makes up while it is read should be read in few pieces.
	text = make([]byte, 0, 2048)
	for {
		if len(text) == cap(text) {
			text = append(text, make([]byte, len(text))...)[:len(text)]
		}
		switch n, err := unix.Read(fd, text[len(text):cap(text)]); {
		case err == unix.EINTR:
		case err != nil:
			return nil, "read", err
		case n == 0:
			return text, "", nil
		default:
			text = text[:len(text)+n]
		}
	}
}

// Files is the machine's file system, as os.DirFS("/") is, with ReadFile as above. Paths have no slash at their beginning (fs.ValidPath).
type Files struct{}

// Open opens a file.
func (Files) Open(name string) (fs.File, error) { return os.Open("/" + name) }

// Stat describes a file.
func (Files) Stat(name string) (fs.FileInfo, error) { return os.Stat("/" + name) }

// ReadFile reads a file.
func (Files) ReadFile(name string) ([]byte, error) { return ReadFile("/" + name) }
