package steer

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// arrivalsOf opens an arrivals for a listening socket.
func arrivalsOf(t *testing.T, listener int) (a *arrivals, epoll int) {
	t.Helper()
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	watchQueue(epoll, listener, 0)
	a = &arrivals{}
	if err := a.open(epoll, event); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.close()
		unix.Close(epoll)
		unix.Close(event)
	})
	return a, epoll
}

// told waits until a connection is told of, as its reader does: for the eventfd.
func (a *arrivals) told(t *testing.T) bool {
	t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(a.request.resultFile), Events: unix.POLLIN}}, 5000)
		if err == unix.EINTR {
			continue
		}
		var count [8]byte
		unix.Read(int(a.request.resultFile), count[:])
		return n == 1 && err == nil
	}
}

// TestArrivalsOfAcceptedConnections: what an epoll does not tell of, because it is accepted before anybody looks, is told.
func TestArrivalsOfAcceptedConnections(t *testing.T) {
	g := newGroup(t, "127.0.0.1", 1)
	a, epoll := arrivalsOf(t, g.fds[0])
	ready := make([]unix.EpollEvent, 1)
	for i := range 20 {
		if a.pending() || a.came() {
			t.Fatalf("connection %d is told of before it comes", i)
		}
		c := g.connect([4]byte{})
		fd, _, err := unix.Accept(g.fds[0])
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		closeHard(c)
		if n := epollNow(epoll, ready); n != 0 {
			t.Fatal("the epoll tells of a connection that was accepted: the test shows nothing")
		}
		if !a.told(t) || !a.pending() || !a.came() {
			t.Fatalf("connection %d is not told of", i)
		}
		if a.came() {
			t.Fatalf("connection %d is told of twice", i)
		}
		if err := a.arm(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestArrivalsOfWaitingConnections: one that waits is told of once, and the next one again.
func TestArrivalsOfWaitingConnections(t *testing.T) {
	g := newGroup(t, "127.0.0.1", 1)
	a, epoll := arrivalsOf(t, g.fds[0])
	ready := make([]unix.EpollEvent, 1)
	for i := range 3 {
		defer closeHard(g.connect([4]byte{}))
		if !a.told(t) || !a.came() {
			t.Fatalf("connection %d is not told of", i)
		}
		if n := epollNow(epoll, ready); n != 1 {
			t.Fatalf("the epoll has %d sockets with something new, want 1", n)
		}
		if err := a.arm(); err != nil {
			t.Fatal(err)
		}
		if a.pending() {
			t.Fatalf("with %d connections in the queue it tells of one at once", i+1)
		}
	}
}

// TestArrivalsTakeNothing: whoever waits for a connection, by itself or by an epoll, gets it and is woken before.
func TestArrivalsTakeNothing(t *testing.T) {
	for _, c := range []struct {
		name   string
		events uint32 // 0: it waits in accept
		told   bool   // the process is told of connections that it gets at once
	}{
		{"accept", 0, true},
		{"epoll", unix.EPOLLIN, true},
		{"epoll, edge triggered", unix.EPOLLIN | unix.EPOLLET, true},
		{"epoll, exclusively", unix.EPOLLIN | unix.EPOLLEXCLUSIVE, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGroup(t, "127.0.0.1", 1)
			listener := g.fds[0]
			if err := unix.SetNonblock(listener, c.events != 0); err != nil {
				t.Fatal(err)
			}
			worker, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(worker)
			if c.events != 0 {
				if err := unix.EpollCtl(worker, unix.EPOLL_CTL_ADD, listener, &unix.EpollEvent{Events: c.events}); err != nil {
					t.Fatal(err)
				}
			}
			a, _ := arrivalsOf(t, listener)
			const connections = 5
			waits, got := make(chan int, 1), make(chan error, 1)
			go func() {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				for range connections {
					waits <- unix.Gettid()
					if c.events != 0 {
						var events [1]unix.EpollEvent
						for {
							if n, err := unix.EpollWait(worker, events[:], 10000); n == 1 || err != unix.EINTR {
								break
							}
						}
					}
					fd, _, err := unix.Accept(listener)
					if err == nil {
						unix.Close(fd)
					}
					got <- err
				}
			}()
			untold := 0
			for i := range connections {
				inState(t, <-waits, ") S ")
				conn := g.connect([4]byte{})
				defer closeHard(conn)
				select {
				case err := <-got:
					if err != nil {
						t.Fatalf("connection %d: %v", i, err)
					}
				case <-time.After(10 * time.Second):
					t.Fatalf("connection %d is not accepted", i)
				}
				if !c.told {
					if !a.pending() {
						untold++
					}
					continue
				}
				if !a.told(t) || !a.came() {
					t.Fatalf("connection %d is not told of", i)
				}
				if err := a.arm(); err != nil {
					t.Fatal(err)
				}
			}
			if !c.told && untold == 0 {
				t.Error("it is told of a connection: what is written down of this flag is wrong")
			}
		})
	}
}

// inState waits until a thread's state is the one given: S for one that sleeps, T for one that is stopped.
func inState(t *testing.T, tid int, state string) {
	t.Helper()
	eventually(t, "the thread is in the state"+state, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", tid))
		return err == nil && strings.Contains(string(stat), state)
	})
}

// TestUntoldIsSoon: of connections that come without being told, as of a server that waits exclusively, more are expected.
func TestUntoldIsSoon(t *testing.T) {
	for told, want := range map[bool]time.Duration{true: longestTick, false: 2 * shortestTick} {
		p := tickFleet(t, 2)
		for _, w := range p.workers { // who takes the connection would change what is seen
			signal(t, w.pid, unix.SIGSTOP)
			defer syscall.Kill(w.pid, syscall.SIGCONT)
			inState(t, w.pid, ") T ")
		}
		p.tick(time.Hour)
		connectTo(t, p.groups[0].members[0])
		p.told = told
		if pause := p.tick(2 * time.Hour); p.arrived != 1 || pause != want {
			t.Errorf("%d connections, told %v: a pause of %v, want 1 and %v", p.arrived, told, pause, want)
		}
	}
}

// TestArrivalsClosed: without a context nothing is told of, and nothing is left of it in the process.
func TestArrivalsClosed(t *testing.T) {
	g := newGroup(t, "127.0.0.1", 1)
	before := contexts(t)
	a, _ := arrivalsOf(t, g.fds[0])
	if n := contexts(t); n != before+1 {
		t.Errorf("%d contexts, want %d", n, before+1)
	}
	a.close()
	if n := contexts(t); n != before || a.works() || a.pending() || a.arm() == nil {
		t.Errorf("%d contexts, works %v, pending %v; want %d, and nothing", n, a.works(), a.pending(), before)
	}
}

// contexts counts the rings that the kernel has mapped into this process.
func contexts(t *testing.T) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(maps), "/[aio]")
}

// TestSleepIsEnded: each connection ends the sleep, also when a worker takes it at once.
func TestSleepIsEnded(t *testing.T) {
	f := startFleet(t, 4, false, &Options{Quiet: 5 * time.Millisecond}, nil)
	settled(t, f.poller, Ready, Ready, Ready, Ready)
	for i := range 20 {
		last := sleeps(t, f.poller, 30*time.Millisecond)
		quickOnes(t, f, 1)
		for deadline := time.Now().Add(10 * time.Second); f.poller.ticks.Load() == last; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("connection %d does not wake it", i)
			}
		}
	}
}

// TestConnectionIsAskedFor: while there is traffic the next connection is asked for as long as it can be afforded, and then not before something has been saved up.
func TestConnectionIsAskedFor(t *testing.T) {
	p := tickFleet(t, 2)
	if !p.arrivals.works() {
		t.Fatal("the kernel does not tell of connections")
	}
	now := time.Hour
	p.pace.fixed(2 * time.Millisecond)
	asked := 0
	for ; asked < 10*paceSaved; asked++ {
		if p.tick(now); !p.arrivals.armed {
			break
		}
		connectTo(t, p.groups[0].members[0])
		if !p.arrivals.came() {
			t.Fatal("a connection has come and is not told of")
		}
	}
	if asked != paceSaved {
		t.Errorf("asked for %d connections at once, want %d", asked, paceSaved)
	}
	if pause := p.tick(now); pause <= p.pace.price() || p.arrivals.armed {
		t.Errorf("in debt: a pause of %v, asked %v; want more than %v, and not", pause, p.arrivals.armed, p.pace.price())
	}
	now += 4 * p.pace.price()
	if p.tick(now); !p.arrivals.armed {
		t.Error("with something saved it does not ask")
	}
}

// TestScarceIsSoon: without a free worker anything may change soon.
func TestScarceIsSoon(t *testing.T) {
	p := tickFleet(t, 2)
	if pause := p.tick(time.Hour); pause != longestTick {
		t.Errorf("with free workers a pause of %v, want %v", pause, longestTick)
	}
	for _, m := range p.groups[0].members {
		m.State = Starting
	}
	if pause := p.tick(2 * time.Hour); pause != 2*shortestTick {
		t.Errorf("without a free worker a pause of %v, want %v", pause, 2*shortestTick)
	}
	for _, m := range p.groups[0].members {
		m.State, m.w.wait, m.w.asleep, m.w.moved = Ready, Busy, true, time.Hour
	}
	for want, change := range []func(){0: func() { p.workers[1].wait = Idle }, 1: func() { p.workers[0].asleep = false }, 2: func() {}} {
		saved := *p.workers[0]
		change()
		p.soon = 0
		if p.steer(time.Hour, p.groups[0], 1, false); p.soon != want {
			t.Errorf("%d, want %d", p.soon, want)
		}
		*p.workers[0], p.workers[1].wait = saved, Busy
	}
}

// TestBlockedIsPaidFor: looks may cost more when a worker is seen that has slept for long instead of getting on, and only then: where workers compute, looks would take the
// processor from them.
func TestBlockedIsPaidFor(t *testing.T) {
	p := tickFleet(t, 2)
	p.tick(time.Hour)
	for _, c := range []struct {
		wait    Wait
		lag     time.Duration
		asleep  bool
		blocked bool
	}{{Idle, time.Second, false, false}, {Busy, momentary, true, false}, {Busy, momentary + ms, true, true}, {Busy, time.Second, false, false}} {
		p.pace.blocked = 0
		w := p.workers[0]
		w.wait, w.asleep, w.moved = c.wait, c.asleep, time.Hour-c.lag
		p.steer(time.Hour, p.groups[0], 1, false)
		if got := p.pace.blocked == time.Hour; got != c.blocked {
			t.Errorf("%+v: blocked is %v", c, got)
		}
	}
}

// TestNothingIsNoLook: what ends the wait without a message, a connection or the end of a pause is not followed by a look.
func TestNothingIsNoLook(t *testing.T) {
	f := startFleet(t, 2, false, &Options{}, nil)
	p := f.poller
	sleeps(t, p, 100*time.Millisecond)
	reply := make(chan []Stat, 1)
	looks := p.ticks.Load()
	for range 5 {
		if !p.Snapshot(reply) {
			t.Fatal("no room")
		}
		<-reply
		p.poke() // there is no message any more
		sleeps(t, p, 20*time.Millisecond)
	}
	if n := p.ticks.Load() - looks; n != 5 {
		t.Errorf("%d looks for 5 messages", n)
	}
}

// TestEnding: the context is given back, and connections are steered as before.
func TestEnding(t *testing.T) {
	before := contexts(t)
	f := startFleet(t, 2, false, &Options{}, nil)
	settled(t, f.poller, Ready, Ready)
	if n := contexts(t); n != before+1 {
		t.Fatalf("%d contexts, want %d", n, before+1)
	}
	f.poller.Ending()
	f.poller.Ending()
	eventually(t, "the context is gone", func() bool { return contexts(t) == before })
	f.poller.Update(f.membership(t, nil, map[int]State{0: Standby}))
	settled(t, f.poller, Standby, Ready)
	if n := contexts(t); n != before {
		t.Errorf("%d contexts after an update, want %d", n, before)
	}
	ticks := f.poller.ticks.Load()
	quickOnes(t, f, 5)
	eventually(t, "traffic is seen", func() bool { return f.poller.ticks.Load() > ticks })
}

// TestTimedIsTold: when the kernel does not tell of connections, that is reported once, and they are steered all the same.
func TestTimedIsTold(t *testing.T) {
	p, err := newPoller(Options{Quiet: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(p.event)
	p.event = -1 // what the kernel is to signal with
	f := startFleet(t, 2, false, nil, nil)
	f.poller = p
	go p.run()
	t.Cleanup(p.Close)
	p.Update(f.membership(t, nil, nil))
	if e := await(t, p, Timed, 0); !errors.Is(e.Err, unix.EBADF) || !strings.Contains(e.Err.Error(), "io_submit") {
		t.Errorf("event %+v", e)
	}
	settled(t, p, Ready, Ready)
	last := sleeps(t, p, 60*time.Millisecond)
	eventually(t, "traffic wakes it", func() bool {
		quickOnes(t, f, 1)
		return p.ticks.Load() > last+3
	})
	select {
	case e := <-p.Events():
		if e.Kind == Timed {
			t.Error("it is told twice")
		}
	default:
	}
}
