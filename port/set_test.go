package port

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/internal/testneed"
)

func newTestSet(t *testing.T, options Options) *Set {
	t.Helper()
	s, err := NewSet(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.CloseAll)
	return s
}

// freeAddr returns an address on 127.0.0.1 with a port nobody has.
func freeAddr(t *testing.T) Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return Addr{Network: IPv4, IP: netip.MustParseAddr("127.0.0.1"), Port: uint16(l.Addr().(*net.TCPAddr).Port)}
}

func mustHold(t *testing.T, s *Set, slot int, a Addr) *Held {
	t.Helper()
	h, err := s.Hold(slot, a)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func option(t *testing.T, fd, level, name int) int {
	t.Helper()
	v, err := unix.GetsockoptInt(fd, level, name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestHeldSocketsHaveTheirOptions(t *testing.T) {
	s := newTestSet(t, Options{})
	a := freeAddr(t)
	six := a
	six.Network, six.IP = IPv6, netip.IPv6Unspecified()
	for _, only := range []bool{false, true} {
		six.V6Only = only
		six.Port = freeAddr(t).Port
		for _, each := range []Addr{a, six} {
			for slot := range 2 {
				h := mustHold(t, s, slot, each)
				for name, got := range map[string]int{
					"SO_REUSEPORT": option(t, h.FD(), unix.SOL_SOCKET, unix.SO_REUSEPORT),
					"SO_REUSEADDR": option(t, h.FD(), unix.SOL_SOCKET, unix.SO_REUSEADDR),
					"TCP_NODELAY":  option(t, h.FD(), unix.IPPROTO_TCP, unix.TCP_NODELAY),
				} {
					if got != 1 {
						t.Errorf("%s: %s is %d", each, name, got)
					}
				}
				if each.Network == IPv6 && (option(t, h.FD(), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY) == 1) != only {
					t.Errorf("%s: IPV6_V6ONLY is not %v", each, only)
				}
				if flags, _ := unix.FcntlInt(uintptr(h.FD()), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
					t.Errorf("%s is not close-on-exec", each)
				}
				if h.Listening() || listens(h.FD()) {
					t.Errorf("%s listens before Listen", each)
				}
				if again := mustHold(t, s, slot, each); again != h {
					t.Errorf("a second Hold made another socket")
				}
			}
		}
	}
	if got := s.Slots(a); !slices.Equal(got, []int{0, 1}) {
		t.Errorf("Slots = %v", got)
	}
	if got := s.Held(1); len(got) != 3 {
		t.Errorf("Held = %v", got)
	}
}

func TestBacklogIsTheSystemsUpTo4096(t *testing.T) {
	s := newTestSet(t, Options{})
	h := mustHold(t, s, 0, freeAddr(t))
	if err := s.Listen(h); err != nil {
		t.Fatal(err)
	}
	info, err := unix.GetsockoptTCPInfo(h.FD(), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		t.Fatal(err)
	}
	// On a listener tcpi_sacked is the backlog (tcp_get_info).
	if int(info.Sacked) != s.backlog || s.backlog < 1 || s.backlog > 4096 {
		t.Errorf("backlog %d, want %d", info.Sacked, s.backlog)
	}
}

func TestPortOfAnotherProgramIsRefused(t *testing.T) {
	for _, reuse := range []bool{false, true} {
		t.Run(fmt.Sprintf("SO_REUSEPORT=%v", reuse), func(t *testing.T) {
			s := newTestSet(t, Options{})
			a := freeAddr(t)
			other, err := bindTCP(a, reuse)
			if err != nil {
				t.Fatal(err)
			}
			if err := unix.Listen(other, 1); err != nil {
				t.Fatal(err)
			}
			before := countFDs(t)
			h, err := s.Hold(0, a)
			if !errors.Is(err, unix.EADDRINUSE) || h != nil || !strings.Contains(err.Error(), a.String()) {
				t.Errorf("Hold = %v, %v, want EADDRINUSE with the address", h, err)
			}
			if after := countFDs(t); after != before {
				t.Errorf("%d descriptors before, %d after", before, after)
			}
			if s.group(a) != nil {
				t.Error("a group was left")
			}
			_ = unix.Close(other)
			mustHold(t, s, 0, a)
		})
	}
}

func TestPortTakenBetweenBindAndListen(t *testing.T) {
	s := newTestSet(t, Options{})
	a := freeAddr(t)
	h := mustHold(t, s, 0, a)
	// Another user of SO_REUSEADDR may bind beside a bound socket, and the first to listen has the port.
	other, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(other) }()
	_ = unix.SetsockoptInt(other, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err := unix.Bind(other, a.sockaddr()); err != nil {
		testneed.Skip(t, "the kernel does not let another program bind: %v", err)
	}
	if err := unix.Listen(other, 1); err != nil {
		testneed.Skip(t, "the kernel does not let another program listen: %v", err)
	}
	if err := s.Listen(h); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), a.String()) {
		t.Errorf("Listen = %v, want EADDRINUSE with the address", err)
	}
	if h.Listening() || len(order(s.group(a))) != 0 {
		t.Error("it counts as listening")
	}
}

func TestEitherFallsBackToIPv4(t *testing.T) {
	s := newTestSet(t, Options{})
	_, a, err := ParseAddr(fmt.Sprintf(":%d", freeAddr(t).Port))
	if err != nil {
		t.Fatal(err)
	}
	h := mustHold(t, s, 0, a)
	if h.Addr.Network != IPv6 && h.Addr.Network != IPv4 {
		t.Errorf("held on %+v", h.Addr)
	}
	if again := mustHold(t, s, 0, a); again != h {
		t.Error("a second Hold made another socket")
	}
	if second := mustHold(t, s, 1, a); second.Addr != h.Addr || s.group(a) != s.group(h.Addr) {
		t.Errorf("the second slot holds %+v, the first %+v", second.Addr, h.Addr)
	}
	for slot := range 2 {
		for _, h := range s.Held(slot) {
			if err := s.Listen(h); err != nil {
				t.Fatal(err)
			}
		}
	}
	conn, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", a.Port), 5*time.Second)
	if err != nil {
		t.Fatalf("no IPv4: %v", err)
	}
	_ = conn.Close()
}

func TestSingleIsOneSocketForAllSlots(t *testing.T) {
	s := newTestSet(t, Options{Single: true})
	a := freeAddr(t)
	h := mustHold(t, s, 0, a)
	for range 2 {
		if mustHold(t, s, 1, a) != h {
			t.Error("slot 1 has another socket")
		}
	}
	if err := s.Listen(h); err != nil {
		t.Fatal(err)
	}
	if got := s.Slots(a); !slices.Equal(got, []int{0, 1}) {
		t.Errorf("Slots = %v", got)
	}
	if got := order(s.group(a)); !slices.Equal(got, []int{SharedSlot}) {
		t.Errorf("order %v", got)
	}
	s.Close(0)
	if !listens(h.FD()) || !slices.Equal(s.Slots(a), []int{1}) {
		t.Errorf("after Close(0): slots %v", s.Slots(a))
	}
	s.Close(1)
	if s.group(a) != nil {
		t.Error("the group outlives its last slot")
	}
}

// order is the model of the kernel's array, by slots.
func order(g *Group) []int {
	var slots []int
	for _, h := range g.Listening() {
		slots = append(slots, h.Slot)
	}
	return slots
}

// kernelOrder finds the kernel's array out: a program that returns the constant k makes the kernel choose socket k.
func kernelOrder(t *testing.T, s *Set, a Addr) []int {
	t.Helper()
	g := s.group(a)
	var order []int
	if g == nil {
		return order
	}
	for k := range g.listening {
		prog := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: uint32(k)}}
		fprog := unix.SockFprog{Len: 1, Filter: &prog[0]}
		if err := unix.SetsockoptSockFprog(g.listening[0].FD(), unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF, &fprog); err != nil {
			t.Fatal(err)
		}
		conn, err := net.DialTimeout("tcp", a.String(), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		slot := -2
		for _, h := range g.listening {
			if events, _ := poll(h.FD()); events {
				slot = h.Slot
				fd, _, err := unix.Accept4(h.FD(), unix.SOCK_CLOEXEC)
				if err != nil {
					t.Fatal(err)
				}
				_ = unix.Close(fd)
			}
		}
		_ = conn.Close()
		order = append(order, slot)
	}
	return order
}

func poll(fd int) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return n == 1, err
}

// TestOrderIsTheKernels does random listens, closes and shutdowns and compares the model of the group with the kernel after each.
func TestOrderIsTheKernels(t *testing.T) {
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := newTestSet(t, Options{})
		a := freeAddr(t)
		removals := 0
		for step := range 40 {
			slot := r.IntN(7)
			held := s.Held(slot)
			before, generation := order(s.group(a)), s.Generation()
			switch {
			case len(held) == 0:
				mustHold(t, s, slot, a)
			case !held[0].Listening():
				if err := s.Listen(held[0]); err != nil {
					t.Fatal(err)
				}
			case r.IntN(2) == 0:
				s.Close(slot)
				removals++
			default:
				// What a worker does to its copy, before the news arrive.
				if err := unix.Shutdown(held[0].FD(), unix.SHUT_RDWR); err != nil {
					t.Fatal(err)
				}
				if listens(held[0].FD()) {
					t.Fatal("still listening after shutdown")
				}
				if _, err := s.Relisten(Hangup{held[0].id}); err != nil {
					t.Fatal(err)
				}
				removals++
			}
			if got, want := order(s.group(a)), kernelOrder(t, s, a); !slices.Equal(got, want) {
				t.Fatalf("seed %d, step %d: the model says %v, the kernel %v", seed, step, got, want)
			} else if !slices.Equal(got, before) && s.Generation() == generation {
				t.Fatalf("seed %d, step %d: %v became %v in the same generation", seed, step, before, got)
			}
		}
		if removals == 0 {
			t.Errorf("seed %d removed nothing", seed)
		}
		s.CloseAll()
	}
}

func TestCloseTakesTheSocketOutOfTheGroupThoughACopyLives(t *testing.T) {
	s := newTestSet(t, Options{})
	a := freeAddr(t)
	for slot := range 3 {
		if err := s.Listen(mustHold(t, s, slot, a)); err != nil {
			t.Fatal(err)
		}
	}
	stray, err := unix.Dup(s.Held(0)[0].FD())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(stray) }()
	s.Close(0)
	if got, want := order(s.group(a)), kernelOrder(t, s, a); !slices.Equal(got, want) || !slices.Equal(got, []int{2, 1}) {
		t.Errorf("the model says %v, the kernel %v, want [2 1]", got, want)
	}
}

func TestWatchTellsOfShutdown(t *testing.T) {
	s := newTestSet(t, Options{})
	a := freeAddr(t)
	for slot := range 2 {
		if err := s.Listen(mustHold(t, s, slot, a)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	hangups, done := make(chan Hangup), make(chan error)
	go func() { done <- s.Watch(ctx, hangups) }()
	for round := range 3 { // Edge-triggered, and armed again by each Listen.
		if err := unix.Shutdown(s.Held(0)[0].FD(), unix.SHUT_RD); err != nil {
			t.Fatal(err)
		}
		select {
		case hangup := <-hangups:
			fact, err := s.Relisten(hangup)
			if want := (Revived{Slot: 0, Addr: a}); fact != want || err != nil {
				t.Errorf("round %d: %+v, %v, want %+v", round, fact, err, want)
			}
			if fact, err := s.Relisten(hangup); fact != nil || err != nil {
				t.Errorf("round %d, again: %+v, %v", round, fact, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("no news of a shutdown")
		}
	}
	if got := order(s.group(a)); !slices.Equal(got, []int{1, 0}) {
		t.Errorf("order %v, want [1 0]", got)
	}
	// Connections are not news.
	for range 5 {
		conn, err := net.DialTimeout("tcp", a.String(), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	s.Close(1) // Neither is this.
	select {
	case hangup := <-hangups:
		t.Errorf("news of %+v", hangup)
	case <-time.After(50 * time.Millisecond):
	}
	if fact, err := s.Relisten(Hangup{id: 1 << 40}); fact != nil || err != nil {
		t.Errorf("a socket that is gone: %+v, %v", fact, err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch = %v", err)
	}
}

func TestUnixSockets(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) Addr {
		_, a, err := ParseAddr("unix://" + filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	s := newTestSet(t, Options{})

	fresh := at("fresh")
	h := mustHold(t, s, 0, fresh)
	if mustHold(t, s, 1, fresh) != h || h.Slot != SharedSlot {
		t.Error("slots do not share a unix socket")
	}
	if err := s.Listen(h); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("unix", fresh.Path); err != nil {
		t.Error(err)
	} else {
		_ = conn.Close()
	}

	inUse := at("in-use")
	l, err := net.Listen("unix", inUse.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := s.Hold(0, inUse); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), inUse.Path) {
		t.Errorf("a socket in use: %v", err)
	}
	if conn, err := net.Dial("unix", inUse.Path); err != nil {
		t.Errorf("the other program lost its socket: %v", err)
	} else {
		_ = conn.Close()
	}

	stale := at("stale")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale.Path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	_ = old.Close()
	if err := s.Listen(mustHold(t, s, 0, stale)); err != nil {
		t.Errorf("a stale socket: %v", err)
	}

	file := at("file")
	if err := os.WriteFile(file.Path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Hold(0, file); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("an ordinary file: %v", err)
	}
	if _, err := s.Hold(0, at("no/folder")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no folder: %v", err)
	}

	taken := at("taken")
	mustHold(t, s, 0, taken)
	_ = os.Remove(taken.Path)
	if err := os.WriteFile(taken.Path, []byte("another's"), 0o600); err != nil {
		t.Fatal(err)
	}

	abstract := Addr{Network: Unix, Path: "@skep-test-" + filepath.Base(dir)}
	if err := s.Listen(mustHold(t, s, 0, abstract)); err != nil {
		t.Errorf("abstract: %v", err)
	}

	s.Close(0)
	if _, err := os.Lstat(fresh.Path); err != nil {
		t.Errorf("slot 1 lost its socket: %v", err)
	}
	s.Close(1)
	for name, want := range map[string]bool{"fresh": false, "stale": false, "in-use": true, "file": true, "taken": true} {
		if _, err := os.Lstat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("at the end %s is there: %v, want %v", name, err == nil, want)
		}
	}
}

func TestStaleIsWhatNobodyBindsAnyMore(t *testing.T) {
	s := newTestSet(t, Options{})
	kept, same, old, never := freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t)
	mustHold(t, s, 0, kept)
	bind := func(a Addr, listen bool) {
		t.Helper()
		if f, ok := s.Answer(&Ask{Slot: 0, op: operationBind, addr: a}).(Shared); !ok {
			t.Fatalf("bind of %s: %+v", a, f)
		}
		if listen {
			if err := s.Listen(s.find(0, a)); err != nil {
				t.Fatal(err)
			}
		}
	}
	bind(same, true)
	bind(old, true)
	if stale := s.Stale(); len(stale) != 0 {
		t.Errorf("%v are stale while the first worker has them", stale)
	}
	bind(never, false)
	s.Renew(0)
	bind(same, true)
	stale := s.Stale()
	if len(stale) != 2 || stale[0].Addr != old || stale[1].Addr != never {
		t.Errorf("stale are %v, want %v and %v", stale, old, never)
	}
	for _, h := range stale {
		if h.Used() {
			t.Errorf("%v is said to be used", h.Addr)
		}
		s.Drop(0, h)
		s.Drop(0, h) // changes nothing
	}
	if s.group(kept) == nil || s.group(same) == nil || s.group(old) != nil || s.group(never) != nil {
		t.Error("the wrong sockets are left")
	}
}

func TestSharePortsLeaveOtherPortsAlone(t *testing.T) {
	a, b := freeAddr(t), freeAddr(t)
	s := newTestSet(t, Options{SharePorts: []uint16{a.Port}})
	ask := func(a Addr) (Fact, reply) {
		ask := &Ask{op: operationBind, addr: a, reply: make(chan reply, 1)}
		f := s.Answer(ask)
		return f, <-ask.reply
	}
	if f, r := ask(b); f != nil || !r.carryOn {
		t.Errorf("another port: %+v, %+v", f, r)
	}
	if f, r := ask(a); f == nil || !r.swap {
		t.Errorf("the port: %+v, %+v", f, r)
	} else {
		_ = unix.Close(r.fd)
	}
}

func countFDs(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestAbandonedAsksLeakNothing(t *testing.T) {
	s := newTestSet(t, Options{})
	a := freeAddr(t)
	mustHold(t, s, 0, a)
	before := countFDs(t)
	for range 100 {
		first := &Ask{op: operationBind, addr: a, reply: make(chan reply, 1)}
		first.abandon()
		s.Answer(first)
		second := &Ask{op: operationBind, addr: a, reply: make(chan reply, 1)}
		s.Answer(second)
		second.abandon()
		third := &Ask{op: operationBind, addr: a, reply: make(chan reply, 1)}
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Answer(third)
		}()
		third.abandon()
		<-done
	}
	deadline := time.Now().Add(10 * time.Second)
	for countFDs(t) != before && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if after := countFDs(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
