package port

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
)

// This file reads /proc of a thread that waits in a system call. All of it may stall (law 4), so only goroutines of Intercept call it. The kernel checks
// each access against the file-system user of the reader (ptrace_may_access): see inspect in intercept.go.

// protocol is what a descriptor is, by the name its socket was made with.
type protocol uint8

const (
	protocolOther protocol = iota // another socket, or none
	protocolTCP4
	protocolTCP6
	protocolUDP
	protocolUnix
)

// threadPath returns /proc/TID/… for a thread number; threads are not listed in /proc and are there all the same.
func threadPath(thread int, rest string) string {
	return "/proc/" + strconv.Itoa(thread) + rest
}

func descriptorPath(thread int, folder string, fd int) string {
	return threadPath(thread, folder+strconv.Itoa(fd))
}

// openMemory opens the memory of a thread's process for reading. Its caller must then ask whether the call still waits: before that it may be the
// memory of another process.
func openMemory(thread int) (int, error) {
	return openFile(threadPath(thread, "/mem"))
}

func openFile(path string) (fd int, err error) {
	err = sys.RetryEINTR(func() error {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// readMemory reads up to len(b) bytes at address; fewer at the end of what is mapped. EFAULT when nothing is there.
func readMemory(memory int, b []byte, address uint64) (n int, err error) {
	if int64(address) < 0 {
		return 0, unix.EFAULT
	}
	err = sys.RetryEINTR(func() error {
		n, err = unix.Pread(memory, b, int64(address))
		return err
	})
	if err == nil && n == 0 || errors.Is(err, unix.EIO) {
		return 0, unix.EFAULT
	}
	return n, err
}

// readFile reads a small file of /proc at once.
func readFile(path string) ([]byte, error) {
	fd, err := openFile(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	var text []byte
	for {
		room := make([]byte, 4096)
		var n int
		err := sys.RetryEINTR(func() (err error) {
			n, err = unix.Read(fd, room)
			return err
		})
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return text, nil
		}
		text = append(text, room[:n]...)
	}
}

// protocolOf reads the name of the protocol that made the socket (sockfs_xattr_get in net/socket.c: the dentry's name). MPTCP is TCP here: Go
// asks for it on every listener since 1.24, and the held socket that takes its place is plain TCP.
func protocolOf(thread, fd int) (protocol, error) {
	var name [32]byte
	path := descriptorPath(thread, "/fd/", fd)
	var n int
	err := sys.RetryEINTR(func() (err error) {
		n, err = unix.Getxattr(path, "system.sockprotoname", name[:])
		return err
	})
	switch {
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOENT):
		return protocolOther, nil // Not a socket, or not open: the kernel has the right error for that.
	case err != nil:
		return protocolOther, &os.PathError{Op: "getxattr", Path: path, Err: err}
	}
	return parseProtocol(name[:n]), nil
}

func parseProtocol(name []byte) protocol {
	switch string(bytes.TrimRight(name, "\x00")) {
	case "TCP", "MPTCP":
		return protocolTCP4
	case "TCPv6", "MPTCPv6":
		return protocolTCP6
	case "UDP", "UDPv6", "UDP-Lite", "UDPLITEv6":
		return protocolUDP
	case "UNIX", "UNIX-STREAM":
		return protocolUnix
	default:
		return protocolOther
	}
}

// inodeOf returns the inode number of what a descriptor of the thread refers to.
func inodeOf(thread, fd int) (uint64, error) {
	var st unix.Stat_t
	path := descriptorPath(thread, "/fd/", fd)
	if err := sys.RetryEINTR(func() error { return unix.Stat(path, &st) }); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}

// flagsOf returns the open flags of a descriptor, O_CLOEXEC among them (proc_pid_fdinfo(5)).
func flagsOf(thread, fd int) (int, error) {
	path := descriptorPath(thread, "/fdinfo/", fd)
	text, err := readFile(path)
	if err != nil {
		return 0, err
	}
	flags, ok := parseFlags(text)
	if !ok {
		return 0, &os.PathError{Op: "read", Path: path, Err: io.ErrUnexpectedEOF}
	}
	return flags, nil
}

// parseFlags finds the line "flags:\t02004002", octal.
func parseFlags(text []byte) (int, bool) {
	value, ok := field(text, "flags:")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(string(value), 8, 31)
	return int(n), err == nil
}

// field returns the first word after a name at the beginning of a line.
func field(text []byte, name string) ([]byte, bool) {
	for line := range bytes.Lines(text) {
		if rest, found := bytes.CutPrefix(line, []byte(name)); found {
			words := bytes.Fields(rest)
			if len(words) == 0 {
				return nil, false
			}
			return words[0], true
		}
	}
	return nil, false
}

// inEpollSet says whether an epoll set of the thread's process has the descriptor fd or another one of the same socket in it.
func inEpollSet(thread, fd int, inode uint64) (bool, error) {
	found := false
	err := eachLink(thread, func(n int, link []byte) bool {
		if string(link) != "anon_inode:[eventpoll]" {
			return true
		}
		text, err := readFile(descriptorPath(thread, "/fdinfo/", n))
		found = err == nil && epollHas(text, fd, inode)
		return !found
	})
	return found, err
}

// epollHas looks through the lines "tfd: 5 events: 19 data: 5 pos:0 ino:1a2b sdev:8" of an epoll descriptor's fdinfo. The inode is hexadecimal; a
// kernel that does not show it (before 4.18) leaves the number of the descriptor.
func epollHas(text []byte, fd int, inode uint64) bool {
	for line := range bytes.Lines(text) {
		rest, found := bytes.CutPrefix(line, []byte("tfd:"))
		if !found {
			continue
		}
		words := bytes.Fields(rest)
		if len(words) == 0 {
			continue
		}
		same, known := false, false
		for _, word := range words {
			if value, found := bytes.CutPrefix(word, []byte("ino:")); found {
				n, err := strconv.ParseUint(string(value), 16, 64)
				same, known = err == nil && n == inode, err == nil
			}
		}
		if !known {
			n, err := strconv.Atoi(string(words[0]))
			same = err == nil && n == fd
		}
		if same {
			return true
		}
	}
	return false
}

// eachLink calls visit with every descriptor of the thread and what it links to, until visit returns false. A descriptor that is closed meanwhile is
// left out.
func eachLink(thread int, visit func(fd int, link []byte) bool) error {
	path := threadPath(thread, "/fd")
	folder, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(folder) }()
	room := make([]byte, 8192)
	var link [64]byte
	for {
		var n int
		err := sys.RetryEINTR(func() (err error) {
			n, err = unix.Getdents(folder, room)
			return err
		})
		if err != nil {
			return &os.PathError{Op: "getdents64", Path: path, Err: err}
		}
		if n == 0 {
			return nil
		}
		_, _, names := unix.ParseDirent(room[:n], -1, nil)
		for _, name := range names {
			fd, err := strconv.Atoi(name)
			if err != nil {
				continue
			}
			got, err := unix.Readlinkat(folder, name, link[:])
			if err != nil {
				continue
			}
			if !visit(fd, link[:got]) {
				return nil
			}
		}
	}
}

// Holds says whether process pid has a descriptor of the socket with this inode. It reads /proc, which may stall: never call it in the loop.
func Holds(pid int, inode uint64) (bool, error) {
	want := "socket:[" + strconv.FormatUint(inode, 10) + "]"
	found := false
	err := eachLink(pid, func(_ int, link []byte) bool {
		found = string(link) == want
		return !found
	})
	return found, err
}

// owned says whether a descendant of skep has a descriptor of the socket. It walks the tree by /proc/PID/task/TID/children. When the kernel does not show
// that (CONFIG_PROC_CHILDREN), the answer is true: the caller then leaves the socket as it is. A process whose descriptors may not be read is passed over; it
// has changed its user since it was started.
func owned(inode uint64) bool {
	todo := children(os.Getpid())
	if len(todo) == 0 {
		return true
	}
	for len(todo) > 0 {
		pid := todo[len(todo)-1]
		todo = append(todo[:len(todo)-1], children(pid)...)
		if held, err := Holds(pid, inode); err == nil && held {
			return true
		}
	}
	return false
}

// children returns the child processes of pid, nil also when the kernel does not show them (CONFIG_PROC_CHILDREN).
func children(pid int) []int {
	path := threadPath(pid, "/task")
	threads, err := os.ReadDir(path)
	if err != nil {
		return nil
	}
	var all []int
	for _, t := range threads {
		text, err := readFile(path + "/" + t.Name() + "/children")
		if err != nil {
			continue
		}
		for _, word := range bytes.Fields(text) {
			if n, err := strconv.Atoi(string(word)); err == nil {
				all = append(all, n)
			}
		}
	}
	return all
}

// networkOf returns the inode number of the thread's network namespace.
func networkOf(thread int) (uint64, error) {
	var st unix.Stat_t
	path := threadPath(thread, "/ns/net")
	if err := sys.RetryEINTR(func() error { return unix.Stat(path, &st) }); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}

// identity is who a thread is.
type identity struct {
	process  int // thread group
	uid, gid int // effective
}

// processOf returns the process of a thread.
func processOf(thread int) (int, error) {
	id, err := identify(thread)
	return id.process, err
}

// identify reads /proc/TID/status, which everybody may.
func identify(thread int) (identity, error) {
	path := threadPath(thread, "/status")
	text, err := readFile(path)
	if err != nil {
		return identity{}, err
	}
	id, ok := parseIdentity(text)
	if !ok {
		return identity{}, &os.PathError{Op: "read", Path: path, Err: io.ErrUnexpectedEOF}
	}
	return id, nil
}

func parseIdentity(text []byte) (id identity, ok bool) {
	number := func(name string, column int) int {
		for line := range bytes.Lines(text) {
			if rest, found := bytes.CutPrefix(line, []byte(name)); found {
				if words := bytes.Fields(rest); len(words) > column {
					if n, err := strconv.ParseUint(string(words[column]), 10, 32); err == nil {
						return int(n)
					}
				}
			}
		}
		ok = false
		return 0
	}
	ok = true
	const effective = 1 // real, effective, saved, file system
	id = identity{process: number("Tgid:", 0), uid: number("Uid:", effective), gid: number("Gid:", effective)}
	return id, ok
}

// defaultV6Only is net.ipv6.bindv6only, what a new IPv6 socket starts with.
func defaultV6Only() bool {
	text, err := readFile("/proc/sys/net/ipv6/bindv6only")
	return err == nil && len(text) > 0 && text[0] == '1'
}

// readInt reads an int of the worker.
func readInt(memory int, address uint64) (int32, error) {
	var b [4]byte
	n, err := readMemory(memory, b[:], address)
	if err != nil {
		return 0, err
	}
	if n < len(b) {
		return 0, unix.EFAULT
	}
	return int32(binary.NativeEndian.Uint32(b[:])), nil
}
