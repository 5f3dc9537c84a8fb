// Package envfile makes the file named by SKEP_ENV, into which a step writes
// what later steps and the workers shall have in their environment, and reads
// it after the step.
//
// Every attempt of a step gets a file of its own, so that nothing half written
// by a failed attempt, and nothing written late by a process left behind,
// reaches anybody.
package envfile

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"skep/prestart/env"
)

// Variable is the name of the environment variable that holds the path.
const Variable = "SKEP_ENV"

// Dirs are the folders that are tried, in this order. The first is a writable
// memory file system in a Docker or Kubernetes container whose root is read-only.
var Dirs = []string{"/dev/shm", "/run", "/tmp"}

// Options say for whom the file is.
type Options struct {
	// Switch says that steps run as another user (--user), UID and GID, both as
	// numbers.
	Switch   bool
	UID, GID int

	// Dirs are the folders to try; nil is [Dirs], empty is none.
	Dirs []string
}

// File is one hand-over file. Its methods are for one goroutine; they work on
// memory or a local disk and are quick.
type File struct {
	path string   // what the step sees; "" when it has to inherit mem
	mem  *os.File // nil when the file is in a folder
}

// Create makes an empty file that only the steps' user may read and write: in the
// first folder of opts.Dirs that can be written, otherwise in memory
// (memfd_create(2)). The memory file is reached through /proc/PID/fd of skep, or,
// when the steps run as another user, who may not look there, through a
// descriptor that the step has to inherit, see [File.Inherit].
func Create(opts Options) (*File, error) {
	dirs := opts.Dirs
	if dirs == nil {
		dirs = Dirs
	}
	var errs []error
	for _, dir := range dirs {
		path, err := create(dir, opts)
		if err == nil {
			return &File{path: path}, nil
		}
		errs = append(errs, err)
	}
	file, err := memory(opts)
	if err == nil {
		return file, nil
	}
	return nil, fmt.Errorf("cannot make the file for %s: %w", Variable, errors.Join(append(errs, err)...))
}

func create(dir string, opts Options) (string, error) {
	// The name cannot be guessed, and O_EXCL follows no link: the folders are
	// open to everybody.
	var random [16]byte
	if _, err := unix.Getrandom(random[:], 0); err != nil {
		return "", os.NewSyscallError("getrandom", err)
	}
	path := filepath.Join(dir, "skep-env-"+hex.EncodeToString(random[:]))
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	if opts.Switch {
		err = file.Chown(opts.UID, opts.GID)
	}
	if err = errors.Join(err, file.Close()); err != nil {
		_ = os.Remove(path)
		return "", err
	}
	return path, nil
}

func memory(opts Options) (*File, error) {
	// NOEXEC_SEAL (Linux 6.3) keeps the kernel from warning; older ones refuse it.
	fd, err := unix.MemfdCreate("skep-env", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("skep-env", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := &File{mem: os.NewFile(uintptr(fd), "skep-env")}
	// As in a folder. Where that is refused the file stays open to all who reach
	// it, which is only this user through /proc, and who inherits it.
	if !opts.Switch || f.mem.Chown(opts.UID, opts.GID) == nil {
		_ = f.mem.Chmod(0o600)
	}
	// /proc may be missing, or that of another PID namespace.
	self, err := os.Readlink("/proc/self")
	if err == nil && self == strconv.Itoa(os.Getpid()) && !opts.Switch {
		f.path = "/proc/" + self + "/fd/" + strconv.Itoa(fd)
	}
	return f, nil
}

// Path is the value of SKEP_ENV. at is the number that the descriptor of
// [File.Inherit] has in the step; it is not used when there is none.
func (f *File) Path(at int) string {
	if f.path != "" {
		return f.path
	}
	return "/proc/self/fd/" + strconv.Itoa(at)
}

// Inherit is the file that the step has to inherit to reach its SKEP_ENV, or nil
// in the usual case that there is none. It stays the File's.
func (f *File) Inherit() *os.File {
	if f.path != "" {
		return nil
	}
	return f.mem
}

// Read returns what the step has written, checked by [env.Parse]. A step that
// removed the file hands nothing over. Errors are for [prestart.Exited] and hold
// no values.
func (f *File) Read() ([]string, error) {
	text, err := f.read()
	if err != nil {
		return nil, fmt.Errorf("cannot read what the step wrote into %s: %w", Variable, err)
	}
	vars, err := env.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("cannot use what the step wrote into %s: %w", Variable, err)
	}
	return vars, nil
}

func (f *File) read() ([]byte, error) {
	var r io.Reader
	if f.mem != nil {
		r = io.NewSectionReader(f.mem, 0, env.MaxSize+1)
	} else {
		// By name: sed -i and editors put a new file in its place. That file is
		// the step's making, so follow no link and do not wait for a FIFO.
		file, err := os.OpenFile(f.path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		defer file.Close() //nolint:errcheck // only read
		info, err := file.Stat()
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, errors.New("it is no regular file any more")
		}
		r = io.LimitReader(file, env.MaxSize+1)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if len(text) > env.MaxSize {
		return nil, fmt.Errorf("it is larger than %d bytes", env.MaxSize)
	}
	return text, nil
}

// Close removes the file. A file that is gone already is no error.
func (f *File) Close() error {
	if f.mem != nil {
		return f.mem.Close()
	}
	if err := os.Remove(f.path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
