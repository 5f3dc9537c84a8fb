package port

import (
	"bytes"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
)

func TestParseProtocol(t *testing.T) {
	for name, want := range map[string]protocol{
		"TCP": protocolTCP4, "TCPv6": protocolTCP6, "MPTCP": protocolTCP4, "MPTCPv6": protocolTCP6, "TCP\x00": protocolTCP4,
		"UDP": protocolUDP, "UDPv6": protocolUDP, "UNIX": protocolUnix, "UNIX-STREAM": protocolUnix,
		"NETLINK": protocolOther, "": protocolOther, "TCPv66": protocolOther, "tcp": protocolOther,
	} {
		if got := parseProtocol([]byte(name)); got != want {
			t.Errorf("parseProtocol(%q) = %d, want %d", name, got, want)
		}
	}
}

func TestProtocolOfRealSockets(t *testing.T) {
	for _, c := range []struct {
		family, kind, number int
		want                 protocol
	}{
		{unix.AF_INET, unix.SOCK_STREAM, 0, protocolTCP4},
		{unix.AF_INET6, unix.SOCK_STREAM, 0, protocolTCP6},
		{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP, protocolTCP4},
		{unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_MPTCP, protocolTCP6},
		{unix.AF_INET, unix.SOCK_DGRAM, 0, protocolUDP},
		{unix.AF_INET6, unix.SOCK_DGRAM, 0, protocolUDP},
		{unix.AF_UNIX, unix.SOCK_STREAM, 0, protocolUnix},
		{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE, protocolOther},
	} {
		fd, err := unix.Socket(c.family, c.kind|unix.SOCK_CLOEXEC, c.number)
		if err != nil {
			t.Logf("socket(%d, %d, %d): %v", c.family, c.kind, c.number, err)
			continue
		}
		got, err := protocolOf(os.Getpid(), fd)
		if err != nil || got != c.want {
			t.Errorf("socket(%d, %d, %d) is %d, %v, want %d", c.family, c.kind, c.number, got, err, c.want)
		}
		_ = unix.Close(fd)
	}
	for _, fd := range []int{0, 9999, -1} {
		if got, err := protocolOf(os.Getpid(), fd); err != nil || got != protocolOther {
			t.Errorf("descriptor %d is %d, %v", fd, got, err)
		}
	}
}

func TestFlagsInodeAndEpollOfRealSockets(t *testing.T) {
	self := os.Getpid()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	for _, nonblock := range []bool{true, false} {
		if err := unix.SetNonblock(fd, nonblock); err != nil {
			t.Fatal(err)
		}
		flags, err := flagsOf(self, fd)
		if err != nil || (flags&unix.O_NONBLOCK != 0) != nonblock || flags&unix.O_CLOEXEC == 0 {
			t.Errorf("flags %#o, %v, want O_NONBLOCK %v and O_CLOEXEC", flags, err, nonblock)
		}
	}
	want, err := sys.Inode(fd)
	if err != nil {
		t.Fatal(err)
	}
	inode, err := inodeOf(self, fd)
	if err != nil || inode != want {
		t.Errorf("inode %d, %v, want %d", inode, err, want)
	}
	if holds, err := Holds(self, inode); err != nil || !holds {
		t.Errorf("Holds = %v, %v", holds, err)
	}
	if holds, err := Holds(self, inode+1<<40); err != nil || holds {
		t.Errorf("Holds of no socket = %v, %v", holds, err)
	}
	if in, err := inEpollSet(self, fd, inode); err != nil || in {
		t.Errorf("in an epoll set: %v, %v", in, err)
	}
	set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(set) }()
	// By another descriptor of the same socket, which the program has closed since: the number would say nothing.
	other, err := sys.Duplicate(fd)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.EpollCtl(set, unix.EPOLL_CTL_ADD, other, &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(other)
	if in, err := inEpollSet(self, fd, inode); err != nil || !in {
		t.Errorf("in an epoll set by a copy: %v, %v", in, err)
	}
}

func TestEpollHas(t *testing.T) {
	const text = "pos:\t0\nflags:\t02\nmnt_id:\t16\ntfd:        5 events:       19 data: ffffffff00000005  pos:0 ino:1a2b sdev:8\n"
	const old = "pos:\t0\nflags:\t02\ntfd:        5 events:       19 data:                5\n"
	for _, c := range []struct {
		text  string
		fd    int
		inode uint64
		want  bool
	}{
		{text, 9, 0x1a2b, true},
		{text, 5, 0x1a2c, false}, // The number was used again for another file.
		{old, 5, 1, true},
		{old, 6, 1, false},
		{"", 5, 1, false},
		{"tfd:\n", 5, 1, false},
	} {
		if got := epollHas([]byte(c.text), c.fd, c.inode); got != c.want {
			t.Errorf("epollHas(%q, %d, %#x) = %v", c.text, c.fd, c.inode, got)
		}
	}
}

func TestParseIdentity(t *testing.T) {
	const text = "Name:\tTgid: 1\nTgid:\t42\nPid:\t43\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n"
	if id, ok := parseIdentity([]byte(text)); !ok || id != (identity{process: 42, uid: 2, gid: 6}) {
		t.Errorf("%+v, %v", id, ok)
	}
	if id, ok := parseIdentity([]byte("Tgid:\t42\n")); ok {
		t.Errorf("half a file: %+v", id)
	}
	id, err := identify(os.Getpid())
	if err != nil || id != (identity{os.Getpid(), os.Geteuid(), os.Getegid()}) {
		t.Errorf("own identity %+v, %v", id, err)
	}
}

func FuzzFdinfo(f *testing.F) {
	f.Add([]byte("pos:\t0\nflags:\t02004002\nmnt_id:\t9\nino:\t1\n"))
	f.Add([]byte("tfd:        5 events:       19 data: 5  pos:0 ino:1a2b sdev:8\n"))
	f.Add([]byte("Tgid:\t42\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if flags, ok := parseFlags(text); ok && (flags < 0 || !bytes.Contains(text, []byte(strconv.FormatInt(int64(flags), 8)))) {
			t.Errorf("%q has flags %#o", text, flags)
		}
		if epollHas(text, 5, 0x1a2b) && !bytes.Contains(text, []byte("tfd:")) {
			t.Errorf("%q is no epoll set", text)
		}
		if id, ok := parseIdentity(text); ok && (id.process < 0 || id.uid < 0 || id.gid < 0) {
			t.Errorf("%q is %+v", text, id)
		}
	})
}

// FuzzNotification feeds the handlers' decoding any notification: its ints are taken as the kernel takes them, and no length makes it read too much.
func FuzzNotification(f *testing.F) {
	f.Add(bytes.Repeat([]byte{0}, 80))
	f.Add(bytes.Repeat([]byte{0xff}, 80))
	f.Add(append(bytes.Repeat([]byte{1}, 80), 2, 3))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		n, ok := sys.DecodeNotification(b)
		if ok != (len(b) >= 80) {
			t.Fatalf("%d bytes decode: %v", len(b), ok)
		}
		if !ok {
			return
		}
		for k := range n.Data.Args {
			if got := argument(n, k); uint32(got) != uint32(n.Data.Args[k]) || got > 1<<31-1 || got < -1<<31 {
				t.Errorf("argument %d of %x is %d", k, b, got)
			}
		}
		memory, err := openMemory(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Close(memory) }()
		// Addresses of a stopped call are the worker's: any value must be an error or bytes, never a crash.
		var room [unix.SizeofSockaddrAny]byte
		if got, err := readMemory(memory, room[:], n.Data.Args[1]); err == nil && (got < 1 || got > len(room)) {
			t.Errorf("read %d bytes at %#x", got, n.Data.Args[1])
		}
	})
}
