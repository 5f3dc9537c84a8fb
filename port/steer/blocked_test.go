package steer

import (
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/internal/testneed"
)

// told waits for so long for a Blocked event of any seat.
func told(p *Poller, within time.Duration) (e Event, ok bool) {
	for deadline := time.After(within); ; {
		select {
		case e := <-p.Events():
			if e.Kind == Blocked {
				return e, true
			}
		case <-deadline:
			return Event{}, false
		}
	}
}

// stay opens a connection that stays, and waits until the worker has it.
func stay(t *testing.T, f *fleet) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", f.address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	ask(t, c, askStay)
	return c
}

func ask(t *testing.T, c net.Conn, what byte) {
	t.Helper()
	c.Write([]byte{what})
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

const hang = 400 * time.Millisecond

// TestBlockedIsTold has a worker that hangs in a request, without anything in its queue, and tells it apart from one that waits for a client.
func TestBlockedIsTold(t *testing.T) {
	testneed.Linux(t, 6, 2) // before, open descriptors are not counted
	f := startFleet(t, 2, false, &Options{Hang: hang, Quiet: 20 * time.Millisecond, StuckAfter: hang}, nil)
	f.poller.Update(f.probed(t, nil))
	settled(t, f.poller, Ready, Ready)
	stay(t, f)
	if e, ok := told(f.poller, 3*hang); ok {
		t.Fatalf("event %+v of workers that wait", e)
	}
	f.reach(t, 1, askBind)
	for range 3 { // it goes on
		e := await(t, f.poller, Blocked, 1)
		if e.TID != f.workers[1].pid || e.Queue != 0 || e.Group != 1 {
			t.Errorf("event %+v", e)
		}
	}
	settled(t, f.poller, Ready, Hung)
	quickOnes(t, f, 50)
}

// TestBlockedByAnOldConnection: no new connection comes that would wake the poller, and it wakes up no more than is needed.
func TestBlockedByAnOldConnection(t *testing.T) {
	testneed.Linux(t, 6, 2)
	f := startFleet(t, 1, false, &Options{Hang: hang, Quiet: 20 * time.Millisecond}, nil)
	settled(t, f.poller, Ready)
	c := stay(t, f)
	eventually(t, "it rests", func() bool {
		before := f.poller.ticks.Load()
		time.Sleep(2 * hang)
		n := f.poller.ticks.Load() - before
		return n > 2 && n <= 12
	})
	c.Write([]byte{askBind})
	await(t, f.poller, Blocked, 0)
}

// TestBlockedByTheFirst: a worker finds its first connection when it first looks for one, and hangs in it: it is never seen to wait.
func TestBlockedByTheFirst(t *testing.T) {
	testneed.Linux(t, 6, 2)
	f := startFleet(t, 2, false, nil, nil)
	pid := f.workers[1].pid
	signal(t, pid, unix.SIGSTOP)
	inState(t, pid, ") T ")
	p, err := NewPoller(Options{Hang: hang, Quiet: 20 * time.Millisecond, Tick: 2 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	f.poller = p
	p.Update(f.probed(t, nil))
	settled(t, p, Ready, Ready)
	f.reach(t, 1, askBind)
	signal(t, pid, unix.SIGCONT)
	await(t, p, Blocked, 1)
	settled(t, p, Ready, Hung)
	quickOnes(t, f, 50)
}

// TestBlockedOnlyIfAlone: when another thread waits for events it may be the one that accepts.
func TestBlockedOnlyIfAlone(t *testing.T) {
	f := startFleet(t, 1, false, nil, nil)
	var r readings
	pid := f.workers[0].pid
	w := &worker{pid: pid, tid: pid}
	eventually(t, "the worker waits", func() bool { return !(&worker{pid: pid, tid: otherThread(t, pid)}).alone(&r) })
	if !w.alone(&r) {
		t.Error("the only thread that waits for events is not alone")
	}
	if (&worker{pid: 1 << 30, tid: 1}).alone(&r) {
		t.Error("a process that is not there is alone")
	}
}

// TestBlockedNotInAnotherProcess: a child that has the socket may accept.
func TestBlockedNotInAnotherProcess(t *testing.T) {
	f := startFleet(t, 1, false, &Options{}, nil)
	p2, err := newPoller(Options{Hang: hang})
	if err != nil {
		t.Fatal(err)
	}
	defer p2.release()
	m := f.membership(t, nil, nil)
	p2.adopt(&m)
	w := p2.workers[0]
	w.conns = 1
	if !p2.accepts(w) {
		t.Fatal("the worker does not accept")
	}
	// The worker's parent is this process, which is told to be the worker: its child has the socket.
	parent := &worker{pid: os.Getpid(), tid: unix.Gettid(), conns: 1, id: p2.self}
	p2.groups[0].members[0].w = parent
	parent.pid = os.Getpid()
	if p2.accepts(parent) {
		t.Error("a process whose child accepts is held to be the one that does")
	}
}
