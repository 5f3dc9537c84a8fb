package steer

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// testGroup is a real SO_REUSEPORT group on loopback whose sockets the test accepts from itself.
type testGroup struct {
	tb   testing.TB
	addr unix.Sockaddr
	v6   bool
	fds  []int
}

// newGroup makes a group of n listening sockets on a free port.
func newGroup(tb testing.TB, address string, n int) *testGroup {
	tb.Helper()
	g := &testGroup{tb: tb, v6: address == "::"}
	g.addr = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if g.v6 {
		g.addr = &unix.SockaddrInet6{}
	}
	tb.Cleanup(func() {
		for _, fd := range g.fds {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
	})
	// The first socket only finds a free port and keeps it: a socket that was bound to port 0 loses its port by a shutdown.
	g.bind()
	keep := g.fds[0]
	g.fds = nil
	tb.Cleanup(func() { unix.Close(keep) })
	for range n {
		g.listen(g.bind())
	}
	return g
}

// bind adds a socket that is bound and does not listen yet, and returns its number.
func (g *testGroup) bind() int {
	g.tb.Helper()
	family := unix.AF_INET
	if g.v6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		g.tb.Fatal(err)
	}
	for _, opt := range []int{unix.SO_REUSEPORT, unix.SO_REUSEADDR} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, 1); err != nil {
			g.tb.Fatal(err)
		}
	}
	if err := unix.Bind(fd, g.addr); err != nil {
		g.tb.Fatalf("cannot bind: %v", err)
	}
	if g.addr, err = unix.Getsockname(fd); err != nil {
		g.tb.Fatal(err)
	}
	g.fds = append(g.fds, fd)
	return len(g.fds) - 1
}

func (g *testGroup) listen(i int) {
	g.tb.Helper()
	if err := unix.Listen(g.fds[i], 1024); err != nil {
		g.tb.Fatalf("cannot listen: %v", err)
	}
}

func (g *testGroup) port() int {
	switch a := g.addr.(type) {
	case *unix.SockaddrInet4:
		return a.Port
	case *unix.SockaddrInet6:
		return a.Port
	}
	return 0
}

// connect opens a blocking connection over IPv4; an all-zero source is the kernel's choice. The caller closes it.
func (g *testGroup) connect(source [4]byte) int {
	g.tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		g.tb.Fatal(err)
	}
	if source != ([4]byte{}) {
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: source}); err != nil {
			g.tb.Fatalf("cannot bind to %v: %v", source, err)
		}
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: g.port()}); err != nil {
		g.tb.Fatalf("cannot connect: %v", err)
	}
	return fd
}

// connect6 is connect over IPv6.
func (g *testGroup) connect6() int {
	g.tb.Helper()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		g.tb.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet6{Addr: [16]byte{15: 1}, Port: g.port()}); err != nil {
		g.tb.Fatalf("cannot connect: %v", err)
	}
	return fd
}

// closeHard closes a connection with a reset, so that it leaves no TIME_WAIT.
func closeHard(fd int) {
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}

// taker accepts the one connection that is there and returns the number of the socket that got it. On loopback a connection is in a queue when connect
// returns, so no waiting is needed but for a busy machine.
func (g *testGroup) taker() int {
	g.tb.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
		for i, fd := range g.fds {
			if fd < 0 {
				continue
			}
			c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			switch {
			case err == nil:
				closeHard(c)
				return i
			case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ECONNABORTED):
			default:
				g.tb.Fatalf("cannot accept: %v", err)
			}
		}
	}
	g.tb.Fatal("nobody got the connection")
	return -1
}

// got connects once and returns who got it.
func (g *testGroup) got(source [4]byte) int {
	c := g.connect(source)
	defer closeHard(c)
	return g.taker()
}

func TestKernelFollowsTheProgram(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::"} {
		t.Run(address, func(t *testing.T) {
			g := newGroup(t, address, 6)
			var b Builder
			among := []int{1, 2, 5}
			c := Choice{Among: among, Probes: []Probe{{Slot: 0, Index: 4}, {Slot: 3, Index: 0}, {Slot: 4, Index: 2}}}
			if err := Attach(g.fds[3], b.Program(c)); err != nil {
				t.Fatal(err)
			}
			counts := make([]int, 6)
			const n = 300
			for i := range n {
				if g.v6 && i%2 == 0 {
					fd := g.connect6()
					counts[g.taker()]++
					closeHard(fd)
				} else {
					counts[g.got([4]byte{})]++
				}
			}
			for i, got := range counts {
				switch i {
				case 1, 2, 5:
					if got < n/6 || got > n/2 {
						t.Errorf("member %d got %d of %d, want about a third", i, got, n)
					}
				default:
					if got != 0 {
						t.Errorf("member %d got %d connections, want none", i, got)
					}
				}
			}
			for _, p := range c.Probes {
				if got := g.got(ProbeSource(p.Slot)); got != p.Index {
					t.Errorf("probe of slot %d reached member %d, want %d", p.Slot, got, p.Index)
				}
			}
			// An empty choice is the kernel's hash over all.
			if err := Attach(g.fds[0], b.Program(Choice{})); err != nil {
				t.Fatal(err)
			}
			all := make(map[int]bool)
			for range n {
				all[g.got([4]byte{})] = true
			}
			if len(all) != 6 {
				t.Errorf("without a choice %d members got connections, want 6", len(all))
			}
		})
	}
}

func TestDetach(t *testing.T) {
	g := newGroup(t, "127.0.0.1", 4)
	if err := Detach(g.fds[0]); err != nil {
		t.Errorf("without a program: %v", err)
	}
	var b Builder
	if err := Attach(g.fds[0], b.Program(Choice{Among: []int{2}})); err != nil {
		t.Fatal(err)
	}
	if got := g.got([4]byte{}); got != 2 {
		t.Fatalf("member %d got it, want 2", got)
	}
	if err := Detach(g.fds[1]); err != nil {
		t.Fatal(err)
	}
	all := make(map[int]bool)
	for range 200 {
		all[g.got([4]byte{})] = true
	}
	if len(all) != 4 {
		t.Errorf("after Detach %d members got connections, want 4", len(all))
	}
	if err := Attach(-1, b.Program(Choice{})); !errors.Is(err, unix.EBADF) {
		t.Errorf("attach to no socket: %v, want EBADF", err)
	}
	if err := Attach(g.fds[0], nil); err == nil {
		t.Error("an empty program was taken")
	}
}

// TestArrayIsTheKernels does at random what happens to held sockets, and asks the kernel after each step which socket is at which index.
func TestArrayIsTheKernels(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		g := newGroup(t, "127.0.0.1", 0)
		defer func() {
			for i, fd := range g.fds {
				closeFD(fd)
				g.fds[i] = -1
			}
		}()
		var a Array
		g.listen(g.bind())
		a.Listen(0)
		listening := func(i int) bool { return a.Index(i) >= 0 }
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			i := rapid.IntRange(0, len(g.fds)-1).Draw(rt, "socket")
			what := rapid.SampledFrom([]string{"bind", "bind and listen", "listen", "close", "shutdown"}).Draw(rt, "what")
			switch what {
			case "bind":
				g.bind()
			case "bind and listen":
				i = g.bind()
				g.listen(i)
				a.Listen(i)
			case "listen":
				if g.fds[i] < 0 {
					continue
				}
				g.listen(i)
				a.Listen(i)
			case "close", "shutdown":
				if g.fds[i] < 0 || listening(i) && a.Len() == 1 {
					continue
				}
				if what == "close" {
					unix.Close(g.fds[i])
					g.fds[i] = -1
				} else {
					unix.Shutdown(g.fds[i], unix.SHUT_RDWR)
				}
				a.Remove(i)
			}
			var b Builder
			for index := range a.Len() {
				if err := Attach(g.fds[a.At(0)], b.Program(Choice{Among: []int{index}})); err != nil {
					rt.Fatalf("after %s: %v", what, err)
				}
				if got := g.got([4]byte{}); got != a.At(index) {
					rt.Fatalf("after %s of %d: index %d is socket %d, want %d of %v", what, i, index, got, a.At(index), a.ids)
				}
			}
		}
	})
}

func ExampleArray() {
	var a Array
	for id := range 5 {
		a.Listen(id)
	}
	a.Remove(1)
	for i := range a.Len() {
		fmt.Print(string(rune('A' + a.At(i))))
	}
	// Output: AECD
}
