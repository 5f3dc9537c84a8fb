package proc

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"skep/internal/testneed"
)

// The test binary is its own child: as what, the variable says.
const childEnv = "SKEP_PROC_TEST_CHILD"

func TestMain(m *testing.M) {
	switch what := os.Getenv(childEnv); what {
	case "":
		os.Exit(m.Run())
	case "wait": // does nothing until its stdin ends
		ready()
	case "tree": // has a child and a grandchild
		os.Setenv(childEnv, "parent")
		fallthrough
	case "parent":
		next := "parent"
		if what == "parent" {
			next = "wait"
		}
		in, out := child(next)
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			fatal(err)
		}
		fmt.Printf("%d %s", in.pid, line)
		wait()
		in.Close()
	case "hold": // touches 64 MiB
		b := make([]byte, 64<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		ready()
		runtime.KeepAlive(b)
	case "spin": // uses half a second of processor time
		for begin := cpuTime(); cpuTime()-begin < 500*time.Millisecond; {
		}
		ready()
	}
	os.Exit(0)
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func cpuTime() time.Duration {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func ready() {
	fmt.Println("ready")
	wait()
}

func wait() { bufio.NewReader(os.Stdin).ReadByte() }

type stdin struct {
	*os.File
	pid int
}

// child starts the test binary as a child of the child.
func child(what string) (stdin, *os.File) {
	inR, inW, err := os.Pipe()
	if err != nil {
		fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		fatal(err)
	}
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), childEnv+"="+what)
	c.Stdin, c.Stdout, c.Stderr = inR, outW, os.Stderr
	if err := c.Start(); err != nil {
		fatal(err)
	}
	inR.Close()
	outW.Close()
	return stdin{inW, c.Process.Pid}, outR
}

// start runs the test binary as a child until the test ends, and returns its pid and the line it said when it was ready.
func start(t *testing.T, what string) (pid int, line string) {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), childEnv+"="+what)
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	})
	line, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return c.Process.Pid, strings.TrimSpace(line)
}

// ended is the pid of a child that was waited for.
func ended(t *testing.T) int {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), childEnv+"=none")
	if err := c.Run(); err != nil {
		t.Fatal(err)
	}
	return c.Process.Pid
}

func TestTree(t *testing.T) {
	pid, line := start(t, "tree")
	var kid, grandkid int
	if _, err := fmt.Sscanf(line, "%d %d ready", &kid, &grandkid); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	// Both ways of finding children, whatever this kernel has.
	plain := t.TempDir()
	for _, p := range []int{os.Getpid(), pid, kid, grandkid} {
		copyProc(t, plain, p, "stat")
		if err := os.MkdirAll(filepath.Join(plain, fmt.Sprint(p), "task", fmt.Sprint(p)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []FS{Host, FS(plain)} {
		if got, err := f.Tree(pid); err != nil || !slices.Equal(got, []int{pid, kid, grandkid}) {
			t.Errorf("%s: tree %v, %v; want %v", f, got, err, []int{pid, kid, grandkid})
		}
		if got, err := f.Children(pid); err != nil || !slices.Equal(got, []int{kid}) {
			t.Errorf("%s: children %v, %v; want %v", f, got, err, []int{kid})
		}
		if got, err := f.Children(grandkid); err != nil || len(got) != 0 {
			t.Errorf("%s: children %v, %v; want none", f, got, err)
		}
		if got, err := f.Children(os.Getpid()); err != nil || !slices.Contains(got, pid) {
			t.Errorf("%s: children %v, %v; want %d among them", f, got, err, pid)
		}
	}
}

// copyProc copies a file of a process to a folder that plays a proc file system.
func copyProc(t *testing.T, dir string, pid int, name string) {
	t.Helper()
	b, err := os.ReadFile(Host.path(pid, name))
	if err != nil {
		t.Fatal(err)
	}
	write(t, FS(dir).path(pid, name), string(b))
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What ends while it is looked at is nothing, and no error.
func TestGone(t *testing.T) {
	pid := ended(t)
	if got, err := Host.Children(pid); err != nil || got != nil {
		t.Errorf("children %v, %v", got, err)
	}
	if got, err := Host.Tree(pid); err != nil || !slices.Equal(got, []int{pid}) {
		t.Errorf("tree %v, %v", got, err)
	}
	if got, err := Host.PSS(pid); err != nil || got != (Memory{}) {
		t.Errorf("memory %v, %v", got, err)
	}
	if got, err := Host.Sockets(pid); err != nil || got != nil {
		t.Errorf("sockets %v, %v", got, err)
	}
	if got, err := Host.Listeners(pid); err != nil || got != nil {
		t.Errorf("listeners %v, %v", got, err)
	}
	if got, err := Host.HoldsFileLocks(pid); err != nil || got {
		t.Errorf("locks %v, %v", got, err)
	}
	if got, err := Host.Runtime(pid); err != nil || got != "" {
		t.Errorf("runtime %q, %v", got, err)
	}
	if got, err := Host.State(pid); err != nil || got != 0 {
		t.Errorf("state %q, %v", got, err)
	}
	if got, err := Host.CPU(pid, os.Getpid()); err != nil || got < 0 {
		t.Errorf("processor time %v, %v", got, err)
	}
	if _, err := Host.CPU(pid); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("processor time of none: %v", err)
	}
	if Host.EpollWatches(pid, 1) {
		t.Error("watches")
	}
	if n, ok := Host.OpenCount(pid); ok {
		t.Errorf("%d open", n)
	}
}

func TestPSS(t *testing.T) {
	pid, _ := start(t, "hold")
	got, err := Host.PSS(pid)
	if err != nil {
		t.Fatal(err)
	}
	// Four times as much is room for the race detector's own memory.
	if got.Bytes < 64<<20 || got.Bytes > 256<<20 || got.Estimated {
		t.Errorf("%+v for a process that holds 64 MiB", got)
	}
	// Its code is a few MiB, shared with this very process, and not what it holds.
	if got.File == 0 || got.File > 32<<20 || got.Held() < 64<<20 || got.Held() != got.Bytes-got.File {
		t.Errorf("%+v, of which %d are held, for a process that holds 64 MiB", got, got.Held())
	}
	both, err := Host.PSS(pid, os.Getpid())
	if err != nil || both.Bytes <= got.Bytes {
		t.Errorf("together with another %+v, %v", both, err)
	}
	// Without smaps_rollup the estimate is about as much.
	dir := t.TempDir()
	copyProc(t, dir, pid, "statm")
	guess, err := FS(dir).PSS(pid)
	if err != nil || !guess.Estimated || guess.Bytes < 64<<20 || guess.Bytes > 256<<20 {
		t.Errorf("estimate %+v, %v", guess, err)
	}
	for _, bad := range []string{"", "1 x 2", "1 2"} {
		write(t, FS(dir).path(pid, "statm"), bad)
		if m, err := FS(dir).PSS(pid); err == nil {
			t.Errorf("%q is taken for %+v", bad, m)
		}
	}
}

func TestCPUAndState(t *testing.T) {
	pid, _ := start(t, "spin")
	got, err := Host.CPU(pid)
	if err != nil || got < 400*time.Millisecond || got > 10*time.Second {
		t.Errorf("processor time %v, %v", got, err)
	}
	if s, err := Host.State(pid); err != nil || s == 0 || strings.IndexByte("RSD", s) < 0 {
		t.Errorf("state %q, %v", s, err)
	}
	st, err := Host.Stat(pid)
	if err != nil || st.PPID != os.Getpid() || st.Start == 0 || st.Group == 0 {
		t.Errorf("stat %+v, %v", st, err)
	}
}

func TestParseStat(t *testing.T) {
	const tail = " 7 8 9 0 -1 4194304 1 2 3 4 100 50 25 25 20 0 1 0 4242 1 2 3\n"
	want := Stat{Name: "a (b) c) x", State: 'S', PPID: 7, Group: 8, Session: 9, CPU: 2 * time.Second, Start: 4242}
	got, ok := parseStat("42 (a (b) c) x) S" + tail)
	if d := cmp.Diff(want, got); d != "" || !ok {
		t.Errorf("%v, differs (-want +got):\n%s", ok, d)
	}
	for _, bad := range []string{"", "42", "42 (x", "42 )x( S" + tail, "42 (x) SS" + tail, "42 (x) S 7 8", "42 (x) S" + strings.Replace(tail, "7", "x", 1)} {
		if st, ok := parseStat(bad); ok {
			t.Errorf("%q is taken for %+v", bad, st)
		}
	}
}

// inode is the inode number of a socket.
func inode(t *testing.T, c syscall.Conn) uint64 {
	t.Helper()
	var st syscall.Stat_t
	control(t, c, func(fd int) error { return syscall.Fstat(fd, &st) })
	return st.Ino
}

func control(t *testing.T, c syscall.Conn, do func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = do(int(fd)) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
}

func TestListeners(t *testing.T) {
	var want []Listener
	listen := func(network, addr string) {
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		switch a := l.Addr().(type) {
		case *net.TCPAddr:
			k := TCP
			if a.IP.To4() == nil {
				k = TCP6
			}
			want = append(want, Listener{Kind: k, Addr: a.AddrPort(), Inode: inode(t, l.(*net.TCPListener))})
		case *net.UnixAddr:
			want = append(want, Listener{Kind: Unix, Path: a.Name, Inode: inode(t, l.(*net.UnixListener))})
		}
	}
	packet := func(network, addr string) *net.UDPConn {
		a, err := net.ResolveUDPAddr(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.ListenUDP(network, a)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	listen("tcp4", "127.0.0.1:0")
	listen("tcp4", "127.0.0.2:0")
	listen("tcp6", "[::1]:0")
	listen("unix", t.TempDir()+"/a b.sock")
	listen("unix", fmt.Sprintf("@skep-proc-test-%d", os.Getpid()))
	u := packet("udp4", "127.0.0.1:0")
	want = append(want, Listener{Kind: UDP, Addr: u.LocalAddr().(*net.UDPAddr).AddrPort(), Inode: inode(t, u)})
	u6 := packet("udp6", "[::1]:0")
	want = append(want, Listener{Kind: UDP6, Addr: u6.LocalAddr().(*net.UDPAddr).AddrPort(), Inode: inode(t, u6)})
	// Connected sockets are no listeners.
	for network, to := range map[string]string{"tcp4": want[0].Addr.String(), "udp4": u.LocalAddr().String(), "unix": want[3].Path} {
		c, err := net.Dial(network, to)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	// Nor is a socket that is bound only.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}

	got, err := Host.Listeners(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	byInode := cmpopts.SortSlices(func(a, b Listener) bool { return a.Inode < b.Inode })
	if d := cmp.Diff(want, got, byInode, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Errorf("listeners differ (-want +got):\n%s", d)
	}
	for _, l := range got {
		if l.Loopback() != (l.Kind != Unix) {
			t.Errorf("%v: loopback %v", l, l.Loopback())
		}
	}
	sockets, err := Host.Sockets(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range want {
		if !slices.Contains(sockets, l.Inode) {
			t.Errorf("%v is not among the sockets", l)
		}
	}
	// A child has none of them.
	pid, _ := start(t, "wait")
	if got, err := Host.Listeners(pid); err != nil || len(got) != 0 {
		t.Errorf("listeners of a child %v, %v", got, err)
	}
}

func TestListenerWords(t *testing.T) {
	for _, tt := range []struct {
		l        Listener
		s        string
		loopback bool
	}{
		{Listener{Kind: TCP, Addr: netip.MustParseAddrPort("0.0.0.0:8000")}, "tcp 0.0.0.0:8000", false},
		{Listener{Kind: TCP, Addr: netip.MustParseAddrPort("127.0.0.53:53")}, "tcp 127.0.0.53:53", true},
		{Listener{Kind: TCP6, Addr: netip.MustParseAddrPort("[::]:8000")}, "tcp6 [::]:8000", false},
		{Listener{Kind: TCP6, Addr: netip.MustParseAddrPort("[::ffff:127.0.0.1]:1")}, "tcp6 [::ffff:127.0.0.1]:1", true},
		{Listener{Kind: Unix, Path: "/run/app.sock"}, "unix /run/app.sock", false},
	} {
		if got := tt.l.String(); got != tt.s {
			t.Errorf("%q, want %q", got, tt.s)
		}
		if got := tt.l.Loopback(); got != tt.loopback {
			t.Errorf("%v: loopback %v", tt.l, got)
		}
	}
}

func TestParseAddr(t *testing.T) {
	// The kernel shows network order words as the host reads them.
	word := func(b ...byte) string { return fmt.Sprintf("%08X", binary.NativeEndian.Uint32(b)) }
	for _, tt := range []struct{ in, want string }{
		{word(127, 0, 0, 1) + ":1F90", "127.0.0.1:8080"},
		{word(0, 0, 0, 0) + ":0000", "0.0.0.0:0"},
		{word(0x20, 1, 0xd, 0xb8) + word(0, 0, 0, 0) + word(0, 0, 0, 0) + word(0, 0, 0, 1) + ":01BB", "[2001:db8::1]:443"},
	} {
		if got, ok := parseAddr(tt.in); !ok || got.String() != tt.want {
			t.Errorf("%q is %v, %v; want %s", tt.in, got, ok, tt.want)
		}
	}
	for _, bad := range []string{"", ":", "0100007F", "0100007F:", "0100007F:1", "0100007F:1F90:", "0100007:1F90", "0100007G:1F90", "0100007F0100007F:1F90"} {
		if got, ok := parseAddr(bad); ok {
			t.Errorf("%q is taken for %v", bad, got)
		}
	}
}

func TestParseUnix(t *testing.T) {
	for _, tt := range []struct {
		line string
		want Listener
		ok   bool
	}{
		{"000000004845b89b: 00000002 00000000 00010000 0001 01  2960 /run/app.sock", Listener{Kind: Unix, Path: "/run/app.sock", Inode: 2960}, true},
		{"000000004845b89b: 00000002 00000000 00010000 0001 01 12960 @a b ", Listener{Kind: Unix, Path: "@a b ", Inode: 12960}, true},
		{"000000004845b89b: 00000002 00000000 00010000 0001 01     1", Listener{Kind: Unix, Inode: 1}, true},
		{"000000004845b89b: 00000003 00000000 00000000 0001 03  2960 /run/app.sock", Listener{}, false}, // connected
		{"000000004845b89b: 00000002 00000000 00010000 0001 01     0", Listener{}, false},
		{"Num       RefCount Protocol Flags    Type St Inode Path", Listener{}, false},
		{"", Listener{}, false},
	} {
		if got, ok := parseUnix(tt.line); got != tt.want || ok != tt.ok {
			t.Errorf("%q is %+v, %v", tt.line, got, ok)
		}
	}
}

func TestParseMemory(t *testing.T) {
	if pages, ok := parseStatm("1000 50 20 1 0 40 0\n"); pages != 30 || !ok {
		t.Errorf("statm: %d, %v", pages, ok)
	}
	if pages, ok := parseStatm("1000 20 50 1 0 40 0\n"); pages != 0 || !ok {
		t.Errorf("statm with more shared than resident: %d, %v", pages, ok)
	}
	const rollup = "55a1-7ffc ---p 00000000 00:00 0 [rollup]\nRss:                1696 kB\nPss:                 291 kB\nPss_Dirty:           112 kB\n"
	if kib, ok := parseRollup(rollup, "Pss:"); kib != 291 || !ok {
		t.Errorf("rollup: %d, %v", kib, ok)
	}
	for _, bad := range []string{"", "Pss_Dirty: 112 kB\n", "Pss: 112 MB\n", "Pss: x kB\n", "Pss: 9999999999999999 kB\n"} {
		if kib, ok := parseRollup(bad, "Pss:"); ok {
			t.Errorf("%q is taken for %d", bad, kib)
		}
	}
}

func TestEpollWatches(t *testing.T) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// The runtime's own poller watches the listener; a bare socket it does not know.
	if !Host.EpollWatches(os.Getpid(), inode(t, l)) {
		t.Error("a listener of this process is not watched")
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	if Host.EpollWatches(os.Getpid(), st.Ino) {
		t.Error("a bare socket is watched")
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ep)
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		t.Fatal(err)
	}
	if !Host.EpollWatches(os.Getpid(), st.Ino) {
		t.Error("a watched socket is not seen")
	}
}

func TestWatches(t *testing.T) {
	const info = "pos:\t0\nflags:\t02\nmnt_id:\t17\nino:\t17\ntfd:        3 events:       1f data:                3  pos:0 ino:1d317 sdev:9\n"
	for _, tt := range []struct {
		inode uint64
		want  bool
	}{{0x1d317, true}, {0x1d31, false}, {0xd317, false}, {0x17, false}, {3, false}} {
		if got := watches(info, tt.inode); got != tt.want {
			t.Errorf("inode %x: %v", tt.inode, got)
		}
	}
	if watches("tfd:        3 events:       1f data:                3\n", 3) {
		t.Error("a kernel that shows no inodes is believed")
	}
}

func TestOpenCount(t *testing.T) {
	n, ok := Host.OpenCount(os.Getpid())
	if !ok {
		testneed.Skip(t, "stat(2) of /proc/PID/fd does not tell the number of descriptors before Linux 6.2")
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	more, _ := Host.OpenCount(os.Getpid())
	f.Close()
	fewer, _ := Host.OpenCount(os.Getpid())
	if more != n+1 || fewer != n {
		t.Errorf("%d open, then %d, then %d", n, more, fewer)
	}
}

func TestHoldsFileLocks(t *testing.T) {
	other, _ := start(t, "wait")
	for _, tt := range []struct {
		name string
		lock func(fd int) error
	}{
		{"flock", func(fd int) error { return unix.Flock(fd, unix.LOCK_EX) }},
		{"fcntl", func(fd int) error {
			return unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		}},
		{"open file description", func(fd int) error {
			return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			holds := func(pids ...int) bool {
				t.Helper()
				got, err := Host.HoldsFileLocks(pids...)
				if err != nil {
					t.Fatal(err)
				}
				return got
			}
			f, err := os.Create(t.TempDir() + "/lock")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if holds(os.Getpid()) {
				t.Error("a lock is seen before it is taken")
			}
			if err := tt.lock(int(f.Fd())); err != nil {
				t.Fatal(err)
			}
			if !holds(other, os.Getpid()) {
				t.Error("the lock is not seen")
			}
			if holds(other) {
				t.Error("another process is taken for the holder")
			}
		})
	}
}

func TestParseLock(t *testing.T) {
	for _, tt := range []struct {
		line string
		pid  int
		ok   bool
	}{
		{"POSIX  ADVISORY  WRITE 1363 fe:00:762137 0 EOF\n", 1363, true},
		{"FLOCK  ADVISORY  READ 7 fe:00:762137 0 EOF", 7, true},
		{"OFDLCK ADVISORY  READ -1 00:06:3 0 EOF", ofd, true},
		{"-> POSIX  ADVISORY  WRITE 1363 fe:00:762137 0 EOF", 0, false},
		{"LEASE  ACTIVE    READ 12 fe:00:762137 0 EOF", 0, false},
		{"POSIX  ADVISORY  WRITE 0 fe:00:762137 0 EOF", 0, false},
		{"POSIX", 0, false},
		{"", 0, false},
	} {
		if pid, ok := parseLock(tt.line); ok != tt.ok || ok && pid != tt.pid {
			t.Errorf("%q is %d, %v", tt.line, pid, ok)
		}
	}
}

func TestRuntime(t *testing.T) {
	if got, err := Host.Runtime(os.Getpid()); err != nil || got != "go" {
		t.Errorf("this test is %q, %v", got, err)
	}
	// A program of C, which the machine that runs the test has.
	c := exec.Command("sleep", "60")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	if got, err := Host.Runtime(c.Process.Pid); err != nil || got != "" {
		t.Errorf("sleep is %q, %v", got, err)
	}
}

// Runtimes that this machine may not have, told by what they map.
func TestRuntimeByNameAndLibraries(t *testing.T) {
	for _, tt := range []struct{ exe, maps, want string }{
		{"/usr/lib/jvm/bin/java", "", "java"},
		{"/usr/share/dotnet/dotnet", "", "dotnet"},
		{"/opt/app/launcher", "7f00-7f01 r-xp 00000000 fe:00 12 /usr/lib/jvm/lib/server/libjvm.so\n", "java"},
		{"/opt/app/launcher", "7f00-7f01 r-xp 00000000 fe:00 12 /usr/lib/jvm/lib/server/libjvm.so (deleted)\n", "java"},
		{"/opt/app/server", "7f00-7f01 r-xp 00000000 fe:00 12 /opt/app/libcoreclr.so\n", "dotnet"},
		{"/opt/app/server", "7f00-7f01 r-xp 00000000 00:01 12 /memfd:doublemapper (deleted)\n", "dotnet"},
		{"/opt/app/server", "7f00-7f01 r-xp 00000000 fe:00 12 /opt/libjvm.so.d/libc.so\n7f02-7f03 rw-p 00000000 00:00 0 [heap]\n", ""},
	} {
		dir := t.TempDir()
		f := FS(dir)
		write(t, f.path(7, "maps"), tt.maps)
		if err := os.Symlink(tt.exe, f.path(7, "exe")); err != nil {
			t.Fatal(err)
		}
		if got, err := f.Runtime(7); err != nil || got != tt.want {
			t.Errorf("%s with %q is %q, %v; want %q", tt.exe, tt.maps, got, err, tt.want)
		}
	}
}

func TestHasSection(t *testing.T) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, tt := range []struct {
		name string
		want bool
	}{{".go.buildinfo", true}, {".text", true}, {".go.build", false}, {".go.buildinfo2", false}, {"go.buildinfo", false}} {
		if got := hasSection(f, tt.name); got != tt.want {
			t.Errorf("section %s: %v", tt.name, got)
		}
	}
}

func FuzzHasSection(f *testing.F) {
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(exe[:64]))
	f.Add(tinyELF(2, ".go.buildinfo"))
	f.Add(tinyELF(1, ".go.buildinfo"))
	f.Fuzz(func(t *testing.T, s string) {
		hasSection(strings.NewReader(s), ".go.buildinfo")
	})
}

func TestHasSectionOfBothClasses(t *testing.T) {
	for class := byte(1); class <= 2; class++ {
		e := tinyELF(class, ".go.buildinfo")
		if !hasSection(strings.NewReader(e), ".go.buildinfo") {
			t.Errorf("class %d: not found", class)
		}
		if hasSection(strings.NewReader(e), ".text") {
			t.Errorf("class %d: found what is not there", class)
		}
		for n := range len(e) {
			if hasSection(strings.NewReader(e[:n]), ".go.buildinfo") {
				t.Errorf("class %d: found in the first %d of %d bytes", class, n, len(e))
			}
		}
	}
}

// tinyELF is a file of one section, which is named and holds the names.
func tinyELF(class byte, name string) string {
	names := "\x00" + name + "\x00"
	b := make([]byte, 64)
	copy(b, "\x7fELF")
	b[4], b[5] = class, 1
	le := binary.LittleEndian
	var sh []byte
	if class == 2 {
		sh = make([]byte, 64)
		le.PutUint64(b[40:], 64)
		le.PutUint16(b[58:], 64)
		le.PutUint16(b[60:], 1)
		le.PutUint64(sh[24:], 128)
		le.PutUint64(sh[32:], uint64(len(names)))
	} else {
		sh = make([]byte, 64) // longer than need be: the size counts, not the class
		le.PutUint32(b[32:], 64)
		le.PutUint16(b[46:], 64)
		le.PutUint16(b[48:], 1)
		le.PutUint32(sh[16:], 128)
		le.PutUint32(sh[20:], uint32(len(names)))
	}
	le.PutUint32(sh, 1)
	return string(b) + string(sh) + names
}

func FuzzParsers(f *testing.F) {
	for _, s := range []string{
		"42 (a (b) c) x) S 7 8 9 0 -1 4194304 1 2 3 4 100 50 25 25 20 0 1 0 4242 1 2 3\n",
		"Rss: 1696 kB\nPss:                 291 kB\n", "10 5 3 1 0 4 0",
		"   0: 0100007F:A867 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 119575 1 00000000ed028870 100 0 0 10 0",
		"000000004845b89b: 00000002 00000000 00010000 0001 01  2960 /run/app.sock", "POSIX  ADVISORY  WRITE 1363 fe:00:762137 0 EOF",
		"tfd:        3 events:       1f data:                3  pos:0 ino:1d317 sdev:9", "socket:[119575]",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if st, ok := parseStat(s); ok && (st.State == 0 || st.CPU < 0) {
			t.Errorf("%q is %+v", s, st)
		}
		parseRollup(s, "Pss:")
		parseStatm(s)
		parseThread(s)
		for _, k := range []Kind{TCP, TCP6, UDP, UDP6} {
			if l, ok := parseInet(s, k); ok && (!l.Addr.IsValid() || l.Addr.Port() == 0 || l.Inode == 0) {
				t.Errorf("%q is %v", s, l)
			}
		}
		if l, ok := parseUnix(s); ok && l.Inode == 0 {
			t.Errorf("%q is %v", s, l)
		}
		if pid, ok := parseLock(s); ok && pid < ofd {
			t.Errorf("%q is of %d", s, pid)
		}
		watches(s, 1)
		socketInode(s)
		runtimeOfMaps(s)
	})
}

// The names have no suffix of the compiler, and a process that is gone has none.
func TestWaits(t *testing.T) {
	root := t.TempDir()
	for tid, name := range map[string]string{"7": "poll_schedule_timeout.constprop.0\n", "8": "inet_csk_accept", "9": "0"} {
		dir := filepath.Join(root, "7", "task", tid)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "wchan"), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := FS(root).Waits(7), []string{"poll_schedule_timeout", "inet_csk_accept", "0"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := FS(root).Waits(8); got != nil {
		t.Errorf("a process that is gone waits in %q", got)
	}
	if got := Host.Waits(os.Getpid()); len(got) < 2 {
		t.Errorf("this process waits in %q", got)
	}
}

// A thread that sleeps all the time reads the same twice; one that has run in between does not.
func TestThread(t *testing.T) {
	tids, woken := make(chan int), make(chan struct{})
	var pipe [2]int
	if err := syscall.Pipe2(pipe[:], syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(pipe[0])
	defer syscall.Close(pipe[1])
	go func() {
		runtime.LockOSThread() // and the thread ends with the goroutine
		tids <- syscall.Gettid()
		var b [1]byte
		for range 2 {
			syscall.Read(pipe[0], b[:])
			woken <- struct{}{}
		}
	}()
	tid := <-tids
	asleep := func() (th Thread) {
		for deadline := time.Now().Add(10 * time.Second); !th.Sleeps(); time.Sleep(time.Millisecond) {
			var err error
			if th, err = Host.Thread(os.Getpid(), tid); err != nil || time.Now().After(deadline) {
				t.Fatalf("%+v, %v", th, err)
			}
		}
		return th
	}
	first := asleep()
	for deadline := time.Now().Add(10 * time.Second); ; { // until it is in read(2) and not on its way there
		time.Sleep(10 * time.Millisecond)
		again := asleep()
		if again == first {
			break
		}
		if first = again; time.Now().After(deadline) {
			t.Fatal("a thread that sleeps changes")
		}
	}
	syscall.Write(pipe[1], []byte{0})
	<-woken
	if again := asleep(); again == first {
		t.Errorf("a thread that has run is the same: %+v", again)
	}
	syscall.Write(pipe[1], []byte{0})
	<-woken
	if th, err := Host.Thread(os.Getpid(), 1<<22+1); err != nil || th != (Thread{}) || th.Sleeps() {
		t.Errorf("a thread that is not there: %+v, %v", th, err)
	}
}

func TestParseThread(t *testing.T) {
	for status, want := range map[string]Thread{
		"Name:\tx\\nState:\tR\nState:\tS (sleeping)\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t30\n": {State: 'S', Switches: 42},
		"State:\tT (stopped)\n": {State: 'T'},
		"State:\n":              {},
		"":                      {},
	} {
		var got Thread
		if got.State, got.Switches = parseThread(status); got != want {
			t.Errorf("%q is %+v, want %+v", status, got, want)
		}
	}
}

func TestRunnable(t *testing.T) {
	pid, _ := start(t, "wait")
	for deadline := time.Now().Add(10 * time.Second); Host.Runnable(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a process that waits never rests")
		}
	}
	if !Host.Runnable(os.Getpid()) {
		t.Error("this process does not run")
	}
	if Host.Runnable(1<<22 + 1) {
		t.Error("a process that is not there runs")
	}
}
