package proc

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// OpenCount is the number of descriptors a process has open, by one stat(2) of /proc/PID/fd. ok is false before Linux
// 6.2, which does not tell, and for a process that cannot be looked at; a process with none open is not told from that.
func (f FS) OpenCount(pid int) (n int, ok bool) {
	st, err := os.Stat(f.path(pid, "fd"))
	if err != nil || st.Size() <= 0 {
		return 0, false
	}
	return int(st.Size()), true
}

// descriptors calls look with the number and the link text of each open descriptor, until look says false.
func (f FS) descriptors(pid int, look func(fd, link string) bool) error {
	dir, err := os.Open(f.path(pid, "fd"))
	if err != nil {
		if gone(err) {
			return nil
		}
		return fmt.Errorf("cannot list the descriptors of process %d: %w", pid, err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil && !gone(err) {
		return fmt.Errorf("cannot list the descriptors of process %d: %w", pid, err)
	}
	for _, fd := range names {
		link, err := os.Readlink(f.path(pid, "fd", fd))
		if err != nil {
			continue // closed in between
		}
		if !look(fd, link) {
			return nil
		}
	}
	return nil
}

// Sockets is the inode numbers of the sockets a process has open, as /proc/net/tcp and its siblings name them; each
// once, in no order. A process that is gone has none.
func (f FS) Sockets(pid int) ([]uint64, error) {
	var inodes []uint64
	seen := make(map[uint64]bool)
	err := f.descriptors(pid, func(_, link string) bool {
		if n, ok := socketInode(link); ok && !seen[n] {
			seen[n] = true
			inodes = append(inodes, n)
		}
		return true
	})
	return inodes, err
}

func socketInode(link string) (uint64, bool) {
	s, ok := strings.CutPrefix(link, "socket:[")
	if !ok {
		return 0, false
	}
	s, ok = strings.CutSuffix(s, "]")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil
}

// EpollWatches says whether the socket with this inode number is in the set of any epoll descriptor of the process: it
// waits for something to happen there. The kernel shows the members with their inode numbers since Linux 5.3; where it
// does not, or the process cannot be looked at, the answer is false.
func (f FS) EpollWatches(pid int, inode uint64) bool {
	found := false
	_ = f.descriptors(pid, func(fd, link string) bool {
		if link != "anon_inode:[eventpoll]" {
			return true
		}
		b, err := os.ReadFile(f.path(pid, "fdinfo", fd))
		found = err == nil && watches(string(b), inode)
		return !found
	})
	return found
}

// watches looks for the inode, which is in hex, in lines such as
// "tfd:        3 events:       1f data:                3  pos:0 ino:1d317 sdev:9".
func watches(fdinfo string, inode uint64) bool {
	want := "ino:" + strconv.FormatUint(inode, 16)
	for line := range strings.Lines(fdinfo) {
		if !strings.HasPrefix(line, "tfd:") {
			continue
		}
		for v := range strings.FieldsSeq(line) {
			if v == want {
				return true
			}
		}
	}
	return false
}

// Kind is the kind of a listening socket.
type Kind string

// The kinds of [Listener].
const (
	TCP  Kind = "tcp"
	TCP6 Kind = "tcp6"
	UDP  Kind = "udp"
	UDP6 Kind = "udp6"
	Unix Kind = "unix"
)

// Listener is a socket that a process holds and at which others can reach it: a TCP or unix socket in listen state, or
// a UDP socket that is bound and connected to nobody.
type Listener struct {
	Kind  Kind
	Addr  netip.AddrPort // of TCP and UDP; the port is the real one, even if port 0 was asked for
	Path  string         // of unix sockets: a file, or "@name" for an abstract one
	Inode uint64
}

// Loopback says whether only this host can reach the listener by network: false for unix sockets.
func (l Listener) Loopback() bool { return l.Addr.Addr().Unmap().IsLoopback() }

// String is the kind and the address: "tcp 0.0.0.0:8000".
func (l Listener) String() string {
	if l.Kind == Unix {
		return "unix " + l.Path
	}
	return string(l.Kind) + " " + l.Addr.String()
}

// Listeners is what a process listens on, looked up in its own network namespace; none if it is gone. Sockets that it
// shares with others are in it, those of its children are not. Two sockets that share an address are two listeners.
func (f FS) Listeners(pid int) ([]Listener, error) {
	inodes, err := f.Sockets(pid)
	if err != nil || len(inodes) == 0 {
		return nil, err
	}
	own := make(map[uint64]bool, len(inodes))
	for _, n := range inodes {
		own[n] = true
	}
	var all []Listener
	for _, k := range []Kind{TCP, TCP6, UDP, UDP6, Unix} {
		b, err := os.ReadFile(f.path(pid, "net", string(k)))
		if err != nil {
			if gone(err) {
				continue // the process ended, or the kernel has no such sockets
			}
			if pe, ok := err.(*fs.PathError); ok {
				err = pe.Err
			}
			return all, fmt.Errorf("cannot list the %s sockets of process %d: %w", k, pid, err)
		}
		for line := range strings.Lines(string(b)) {
			var l Listener
			var ok bool
			if k == Unix {
				l, ok = parseUnix(strings.TrimSuffix(line, "\n"))
			} else {
				l, ok = parseInet(line, k)
			}
			if ok && own[l.Inode] {
				all = append(all, l)
			}
		}
	}
	return all, nil
}

// States of sockets in /proc/net (include/net/tcp_states.h). A UDP socket that is connected is "established".
const (
	stateClose  = "07"
	stateListen = "0A"
)

// parseInet reads a line of /proc/net/{tcp,tcp6,udp,udp6} if it is of a listener.
func parseInet(line string, k Kind) (Listener, bool) {
	v := strings.Fields(line)
	if len(v) < 10 {
		return Listener{}, false
	}
	want := stateListen
	if k == UDP || k == UDP6 {
		want = stateClose
	}
	if v[3] != want {
		return Listener{}, false
	}
	addr, ok := parseAddr(v[1])
	if !ok || addr.Port() == 0 {
		return Listener{}, false
	}
	inode, err := strconv.ParseUint(v[9], 10, 64)
	if err != nil || inode == 0 {
		return Listener{}, false
	}
	return Listener{Kind: k, Addr: addr, Inode: inode}, true
}

// parseAddr reads "0100007F:1F90": the address as 32-bit words of network byte order shown as numbers of the host, the
// port as a number.
func parseAddr(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	if !ok || len(port) != 4 {
		return netip.AddrPort{}, false
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	var b [16]byte
	if len(host) != 8 && len(host) != 32 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(host)/8; i++ {
		w, err := strconv.ParseUint(host[8*i:8*i+8], 16, 32)
		if err != nil {
			return netip.AddrPort{}, false
		}
		binary.NativeEndian.PutUint32(b[4*i:], uint32(w))
	}
	a := netip.AddrFrom16(b)
	if len(host) == 8 {
		a = netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrPortFrom(a, uint16(p)), true
}

// acceptCon is the flag of a listening unix socket (__SO_ACCEPTCON of include/linux/net.h).
const acceptCon = 1 << 16

// parseUnix reads a line of /proc/net/unix if it is of a listener:
// "000000004845b89b: 00000002 00000000 00010000 0001 01  2960 /run/app.sock".
func parseUnix(line string) (Listener, bool) {
	rest := line
	var v [7]string
	for i := range v {
		rest = strings.TrimLeft(rest, " ")
		v[i], rest, _ = strings.Cut(rest, " ")
	}
	flags, err := strconv.ParseUint(v[3], 16, 32)
	if err != nil || flags&acceptCon == 0 {
		return Listener{}, false
	}
	inode, err := strconv.ParseUint(v[6], 10, 64)
	if err != nil || inode == 0 {
		return Listener{}, false
	}
	return Listener{Kind: Unix, Path: rest, Inode: inode}, true
}
