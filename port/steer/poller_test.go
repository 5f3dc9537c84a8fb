package steer

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"skep/internal/testneed"
	"skep/proc"

	"golang.org/x/sys/unix"
)

// await returns the next event of the kind for the seat; others are passed over.
func await(tb testing.TB, p *Poller, kind EventKind, seat int) Event {
	tb.Helper()
	for deadline := time.After(10 * time.Second); ; {
		select {
		case e := <-p.Events():
			if e.Kind == Failed && kind != Failed {
				tb.Fatalf("program refused: %v", e.Err)
			}
			if e.Kind == kind && e.Seat == seat {
				return e
			}
		case <-deadline:
			tb.Fatalf("no %v of seat %d", kind, seat)
		}
	}
}

// stats asks for a snapshot and waits for it.
func stats(tb testing.TB, p *Poller) []Stat {
	tb.Helper()
	reply := make(chan []Stat, 1)
	if !p.Snapshot(reply) {
		tb.Fatal("too many questions")
	}
	select {
	case s := <-reply:
		return s
	case <-time.After(10 * time.Second):
		tb.Fatal("no answer")
		return nil
	}
}

// signal sends a process a signal.
func signal(tb testing.TB, pid int, sig unix.Signal) {
	tb.Helper()
	if err := unix.Kill(pid, sig); err != nil {
		tb.Fatal(err)
	}
}

// quickOnes makes n requests one after another and returns how long the slowest took.
func quickOnes(tb testing.TB, f *fleet, n int) (slowest time.Duration) {
	tb.Helper()
	for range n {
		began := time.Now()
		if err := request(f.address(), askQuick); err != nil {
			tb.Fatal(err)
		}
		slowest = max(slowest, time.Since(began))
	}
	return slowest
}

// reach connects until the given worker has the connection, sends it the byte, and returns the connection.
func (f *fleet) reach(tb testing.TB, slot int, ask byte) net.Conn {
	tb.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IP(addrOf(slot))}}
	c, err := d.Dial("tcp", f.address())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	if _, err := c.Write([]byte{ask}); err != nil {
		tb.Fatal(err)
	}
	return c
}

// TestLeavingIsNotFollowedByAStandby looks between the close of a socket and the update that says so. Of members 0 to 3 the kernel then has 3, 1, 2.
func TestLeavingIsNotFollowedByAStandby(t *testing.T) {
	f := startFleet(t, 4, false, &Options{}, nil)
	f.poller.Update(f.membership(t, nil, map[int]State{0: Leaving, 2: Standby}))
	await(t, f.poller, Left, 0)
	f.workers[0].end()
	unix.Close(f.group.fds[0])
	f.group.fds[0] = -1
	for range 60 {
		if got := f.anyone(t); got != f.workers[1].pid {
			t.Fatalf("process %d got a connection, want %d", got, f.workers[1].pid)
		}
	}
}

// connectTo opens a connection to the member's group.
func connectTo(tb testing.TB, m *member) net.Conn {
	tb.Helper()
	sa, err := unix.Getsockname(m.FD)
	if err != nil {
		tb.Fatal(err)
	}
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	return conn
}

// anyone is the process that gets an ordinary connection.
func (f *fleet) anyone(tb testing.TB) int {
	tb.Helper()
	c, err := net.Dial("tcp", f.address())
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte{askWho})
	answer, _ := io.ReadAll(c)
	pid, err := strconv.Atoi(string(answer))
	if err != nil {
		tb.Fatal(err)
	}
	return pid
}

// who is the process that the probe of a slot reaches.
func (f *fleet) who(tb testing.TB, slot int) int {
	tb.Helper()
	answer, err := io.ReadAll(f.reach(tb, slot, askWho))
	if err != nil {
		tb.Fatal(err)
	}
	pid, err := strconv.Atoi(string(answer))
	if err != nil {
		tb.Fatal(err)
	}
	return pid
}

func addrOf(slot int) []byte {
	a := ProbeSource(slot)
	return a[:]
}

// probed is the membership with probes, so that a test can reach the worker it means.
func (f *fleet) probed(tb testing.TB, states map[int]State) Membership {
	tb.Helper()
	m := f.membership(tb, nil, states)
	m.Groups[0].Probes = true
	return m
}

// settled waits until the poller has adopted an update with these states.
func settled(tb testing.TB, p *Poller, states ...State) {
	tb.Helper()
	eventually(tb, fmt.Sprintf("the states are %v", states), func() bool {
		return slices.EqualFunc(stats(tb, p), states, func(s Stat, want State) bool { return s.State == want })
	})
}

func TestPollerGivesOnlyToTheReady(t *testing.T) {
	f := startFleet(t, 7, false, &Options{}, nil)
	states := map[int]State{0: Down, 1: Starting, 2: Hung, 4: Draining, 5: Standby}
	f.poller.Update(f.membership(t, nil, states))
	settled(t, f.poller, Down, Starting, Hung, Ready, Draining, Standby, Ready)
	for range 100 {
		quickOnes(t, f, 1)
		for _, s := range stats(t, f.poller) {
			if s.State != Ready && (s.Queue > 0 || s.Conns > 0 || s.Chosen) {
				t.Fatalf("%v member %d: queue %d, connections %d, chosen %v", s.State, s.Seat, s.Queue, s.Conns, s.Chosen)
			}
		}
	}
	// A new worker in an old place.
	states[0] = Ready
	f.poller.Update(f.membership(t, nil, states))
	settled(t, f.poller, Ready, Starting, Hung, Ready, Draining, Standby, Ready)
	got := make(map[int]bool)
	eventually(t, "all ready ones are chosen", func() bool {
		quickOnes(t, f, 1)
		for _, s := range stats(t, f.poller) {
			if s.Chosen {
				got[s.Seat] = true
			}
		}
		return len(got) == 3 && got[0] && got[3] && got[6]
	})
}

func TestPollerAvoidsTheBlocked(t *testing.T) {
	f := startFleet(t, 4, false, &Options{}, nil)
	f.poller.Update(f.probed(t, nil))
	settled(t, f.poller, Ready, Ready, Ready, Ready)
	eventually(t, "all are known to be idle", func() bool {
		return !slices.ContainsFunc(stats(t, f.poller), func(s Stat) bool { return s.Wait != Idle })
	})
	f.reach(t, 1, askBind)
	eventually(t, "worker 1 is seen to be busy and left out", func() bool {
		s := stats(t, f.poller)[1]
		return s.Wait == Busy && !s.Chosen && s.Queue == 0
	})
	quickOnes(t, f, 200)
	if s := stats(t, f.poller)[1]; s.Queue != 0 {
		t.Errorf("%d connections wait for the blocked worker", s.Queue)
	}
}

// TestPollerReportsTheStuck has a worker that is found out by its queue.
func TestPollerReportsTheStuck(t *testing.T) {
	f := startFleet(t, 3, false, &Options{StuckAfter: 50 * time.Millisecond}, nil)
	f.poller.Update(f.probed(t, nil))
	settled(t, f.poller, Ready, Ready, Ready)
	signal(t, f.workers[2].pid, unix.SIGSTOP)
	f.reach(t, 2, askQuick)
	e := await(t, f.poller, Stuck, 2)
	if e.Queue != 1 || e.For < 50*time.Millisecond || e.Group != 1 {
		t.Errorf("event %+v", e)
	}
	settled(t, f.poller, Ready, Ready, Hung)
	quickOnes(t, f, 50)
	if s := stats(t, f.poller)[2]; s.Queue != 1 || s.Chosen {
		t.Errorf("the stuck one: %+v", s)
	}
	signal(t, f.workers[2].pid, unix.SIGCONT)
	if e := await(t, f.poller, Unstuck, 2); e.Queue != 0 {
		t.Errorf("event %+v", e)
	}
	settled(t, f.poller, Ready, Ready, Ready)
}

// sleeps waits until the poller has not looked for the time given, and returns how often it had.
func sleeps(tb testing.TB, p *Poller, still time.Duration) (ticks uint64) {
	tb.Helper()
	eventually(tb, "the poller sleeps", func() bool {
		ticks = p.ticks.Load()
		time.Sleep(still)
		return p.ticks.Load() == ticks
	})
	return ticks
}

// TestOpenFilesAreNoConnections has a worker open files for itself while it serves, as one does that starts processes of its own then: it does not look busier than the
// other one for ever. Its connections still count.
func TestOpenFilesAreNoConnections(t *testing.T) {
	f := startFleet(t, 2, false, &Options{}, nil)
	f.poller.Update(f.probed(t, nil))
	settled(t, f.poller, Ready, Ready)
	f.reach(t, 0, askStay)
	f.reach(t, 0, askOpen)
	eventually(t, "the files are told from the connection", func() bool {
		f.anyone(t) // without traffic nobody looks
		s := stats(t, f.poller)
		return s[0].Conns == 1 && s[1].Conns == 0
	})
	f.reach(t, 1, askStay)
	eventually(t, "connections go to both", func() bool { return f.anyone(t) == f.workers[0].pid })
}

// TestManyBetweenTwoLooks: of connections that are served one by one and so fast that a look sees only the last of them, those until the next look do not all go to the worker
// that happens to be free at that moment.
func TestManyBetweenTwoLooks(t *testing.T) {
	f := startFleet(t, 2, false, &Options{Tick: 20 * time.Millisecond}, nil)
	f.poller.Update(f.probed(t, nil))
	settled(t, f.poller, Ready, Ready)
	const many = 400
	for range many { // until it is known how fast they come
		f.anyone(t)
	}
	looks, changes, last := f.poller.ticks.Load(), 0, 0
	for range many {
		if pid := f.anyone(t); pid != last {
			last = pid
			changes++
		}
	}
	looks = f.poller.ticks.Load() - looks
	t.Logf("the worker changed %d times in %d connections and %d looks", changes, many, looks)
	if changes < many*2/5 {
		t.Errorf("the worker changed %d times in %d connections, want %d or more", changes, many, many*2/5)
	}
}

// TestCountsAreRare: a new worker that seems to have a connection is counted at once, for it may be none, and then less and less often. Without one for a moment it is not new again.
func TestCountsAreRare(t *testing.T) {
	p := tickFleet(t, 1)
	f := startFleet(t, 1, false, nil, nil)
	m := f.membership(t, nil, nil)
	p.adopt(&m)
	w := p.workers[0]
	began := w.none
	counts := func(from, to time.Duration) (at []time.Duration) {
		for now := from; now < to; now += time.Millisecond {
			w.conns = 1
			if w.wantsCount(began + now) {
				w.recount(began+now, nil, &p.read)
				at = append(at, now)
			}
		}
		return at
	}
	w.count(began, false, &p.read)
	at := counts(0, 10*time.Second)
	if len(at) == 0 || at[0] > 2*time.Millisecond || len(at) > 14 {
		t.Errorf("counted at %v, want the first time within 2 ms, and up to 14 times in all", at)
	}
	if i := slices.IndexFunc(at, func(d time.Duration) bool { return d >= doubtFirst }); i < 0 || len(at)-i < 3 || len(at)-i > 6 {
		t.Errorf("counted at %v, want 3 to 6 times after the first 200 ms", at)
	}
	w.conns = 0
	w.count(began+10*time.Second, false, &p.read)
	again := counts(10*time.Second, 11*time.Second)
	if len(again) == 0 || again[0] != 10*time.Second+doubtFirst {
		t.Errorf("counted again at %v, want 200 ms after it had none", again)
	}
}

// TestSleepIsNoStall: what happened before a connection came does not count, however long it was.
func TestSleepIsNoStall(t *testing.T) {
	f := startFleet(t, 2, false, &Options{StuckAfter: 50 * time.Millisecond, Quiet: 10 * time.Millisecond}, nil)
	f.poller.Update(f.probed(t, nil))
	settled(t, f.poller, Ready, Ready)
	quickOnes(t, f, 4)
	sleeps(t, f.poller, 100*time.Millisecond) // the time that must not count
	signal(t, f.workers[1].pid, unix.SIGSTOP)
	asked := time.Now()
	f.reach(t, 1, askQuick)
	e := await(t, f.poller, Stuck, 1)
	if since := time.Since(asked); e.For > since {
		t.Errorf("stuck for %v, and the connection came %v ago", e.For, since)
	}
}

// TestSleepIsNoLag: a worker that had nothing to do counts as moving when its first connection is seen, however long nobody has looked. Otherwise the one that a burst
// out of nothing has woken first would be the only one that seems to get on, and get all the rest of it.
func TestSleepIsNoLag(t *testing.T) {
	g := newGroup(t, "127.0.0.1", 2)
	p, err := newPoller(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.release()
	worker := startWorker(t, g.fds[0], nil)
	m := Membership{Groups: []Group{{ID: 1}}}
	for i, fd := range g.fds {
		m.Groups[0].Members = append(m.Groups[0].Members, Member{Seat: i, Slot: i, FD: dupOf(t, fd), State: Ready, PID: worker.pid, UID: p.self.uid, GID: p.self.gid})
	}
	p.adopt(&m)
	w, second := p.workers[1], p.groups[0].members[1]
	closeFD(w.wchan)
	w.wchan, w.base, w.files, w.conns = -1, 1, 1, 0 // nothing is known of its thread
	closeFD(w.fdDir)
	w.fdDir = -1
	p.tick(time.Second)
	var b Builder
	if err := Attach(g.fds[0], b.Program(Choice{Among: []int{1}})); err != nil {
		t.Fatal(err)
	}
	defer closeHard(g.connect([4]byte{})) // nobody accepts it
	const woken = time.Minute
	p.tick(woken)
	if v := second.view(woken, &p.opts); v.Queue != 1 || v.Lag != 0 || !v.moving() {
		t.Errorf("%+v after a minute in which nobody looked; want no lag", v)
	}
	p.tick(woken + 5*time.Millisecond)
	if v := second.view(woken+5*time.Millisecond, &p.opts); v.Lag != 5*time.Millisecond {
		t.Errorf("%+v 5 ms later, want a lag of 5 ms", v)
	}
}

// TestPollerNoticesTheDead kills a worker and tells nobody.
func TestPollerNoticesTheDead(t *testing.T) {
	testneed.Linux(t, 6, 2) // before, open descriptors are not counted
	f := startFleet(t, 2, false, &Options{}, nil)
	eventually(t, "both are chosen", func() bool { s := stats(t, f.poller); return s[0].Chosen && s[1].Chosen })
	f.workers[0].cmd.Process.Kill()
	eventually(t, "the dead one is down", func() bool { s := stats(t, f.poller)[0]; return s.State == Down && !s.Chosen })
	quickOnes(t, f, 50)
}

// TestPollerNoticesTheDying kills a worker that takes long to end, because it has much memory.
func TestPollerNoticesTheDying(t *testing.T) {
	for range 5 { // the Poller may get no CPU for as long
		f := startFleet(t, 3, false, &Options{}, nil)
		f.poller.Update(f.probed(t, nil))
		settled(t, f.poller, Ready, Ready, Ready)
		if _, err := io.ReadAll(f.reach(t, 1, askGorge)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "all are known to be idle", func() bool {
			return !slices.ContainsFunc(stats(t, f.poller), func(s Stat) bool { return s.Wait != Idle })
		})
		quickOnes(t, f, 10)
		f.workers[1].cmd.Process.Kill()
		// Connections keep the Poller awake; nobody waits for an answer, which the dying one does not give.
		for late := time.Now().Add(2 * time.Second); time.Now().Before(late); {
			c, err := net.Dial("tcp", f.address())
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
			select {
			case e := <-f.poller.Events():
				if e.Kind != Dying || e.Seat != 1 || e.PID != f.workers[1].pid {
					t.Errorf("event %+v", e)
				}
				if s := stats(t, f.poller)[1]; s.State != Down || s.Chosen {
					t.Errorf("the dying one: %+v", s)
				}
				return
			default:
			}
		}
	}
	t.Error("a dying worker was not seen five times")
}

// TestEndingBySignal looks at what has ended and was not waited for.
func TestEndingBySignal(t *testing.T) {
	for script, want := range map[string]bool{"kill -9 $$": true, "kill -TERM $$": true, "exit 1": false} {
		cmd := exec.Command("/bin/sh", "-c", script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it has ended", func() bool { s, _ := proc.Host.State(cmd.Process.Pid); return s == 'Z' })
		w := &worker{pid: cmd.Process.Pid, wchan: -1, pulse: -1}
		w.open()
		defer w.close()
		var r readings
		if got := w.ending(&r); got != want {
			t.Errorf("%s: ending by a signal %v, want %v", script, got, want)
		}
		for names, at := range map[string]int{"ep_poll 0": 2, "ep_poll hrtimer_nanosleep 0": 3, "ep_poll hrtimer_nanosleep futex_wait_queue": 0} {
			w.dying, w.gone, w.seenIdle, w.zeros = false, false, true, 0
			seen := 0
			for i, name := range strings.Fields(names) {
				if w.checkPulse([]byte(name), &r); w.dying && seen == 0 {
					seen = i + 1
				}
			}
			if want && seen != at || !want && seen != 0 {
				t.Errorf("%s, %q: dying at %d, want %d if by a signal", script, names, seen, at)
			}
		}
		cmd.Wait()
		if w.ending(&r) {
			t.Errorf("%s: ending when it is gone", script)
		}
	}
	w := &worker{pid: os.Getpid(), wchan: -1, pulse: -1}
	w.open()
	defer w.close()
	if w.ending(new(readings)) {
		t.Error("this process is ending")
	}
}

// TestExecutingIsNoEnd looks at a process that becomes another program again and again, as servers do that upgrade themselves. While its other threads are ended for
// that, the first one looks as it does when all are.
func TestExecutingIsNoEnd(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"=exec")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()
	late := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer late.Stop()
	done := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(out).ReadString('\n')
		done <- text
	}()
	w := &worker{pid: cmd.Process.Pid, wchan: -1, pulse: -1}
	w.open()
	defer w.close()
	for r := new(readings); ; {
		if w.ending(r) {
			t.Fatal("it seemed to be ending")
		}
		select {
		case text := <-done:
			if text != "done\n" {
				t.Errorf("it said %q", text)
			}
			return
		default:
		}
	}
}

// TestPulseIsTakenSeldom counts how often the flags of a thread are read that runs for long.
func TestPulseIsTakenSeldom(t *testing.T) {
	w := &worker{pid: os.Getpid(), wchan: -1, pulse: -1}
	w.open()
	defer w.close()
	w.seenIdle = true
	r, read := readings{}, 0
	for range 1000 {
		r.line[0] = 0
		if w.checkPulse([]byte("0"), &r); r.line[0] != 0 {
			read++
		}
	}
	if read != 10 {
		t.Errorf("read %d times in 1000 looks, want 10", read)
	}
	w.zeros, w.changed, r.line[0] = 0, true, 0
	if w.checkPulse([]byte("0"), &r); r.line[0] != 0 {
		t.Error("it is read of a worker that has just accepted something")
	}
}

func TestStatField(t *testing.T) {
	const tail = " R 7 8 9 0 -1 4195328 1 2 3 4 5 6 7 8 20 -5 12 0 33\n"
	line := []byte("42 (a (b) c) x)" + tail)
	if flags, ok := statField(line, statFlags); flags != 0x400400 || !ok {
		t.Errorf("flags %#x, %v", flags, ok)
	}
	if threads, ok := statField(line, statThreads); threads != 12 || !ok {
		t.Errorf("%d threads, %v", threads, ok)
	}
	for _, bad := range []string{"", "42", "42 (x)", "42 (x) R 7 8 9 0 -1", "42 (x) R 7 8 9 0 -1 ", "42 (x) R 7 8 9 0 -1 5", "42 (x) R 7 8 9 0 -1 x 1", "42 (x) R 7 8 9 0 -1 99999999999999 1",
		"42 (1 2 3 4 5 6 7 8 9"} {
		if flags, ok := statField([]byte(bad), statFlags); ok {
			t.Errorf("%q has flags %#x", bad, flags)
		}
	}
}

// TestTwoGroups has the same workers on two addresses, as programs with two ports do.
func TestTwoGroups(t *testing.T) {
	f := startFleet(t, 2, false, &Options{}, nil)
	other := newGroup(t, "127.0.0.1", 2)
	m := f.membership(t, nil, map[int]State{1: Standby})
	g := Group{ID: 2}
	for i, x := range m.Groups[0].Members {
		x.FD = dupOf(t, other.fds[i])
		if i == 0 {
			x.State = Draining
		} else {
			x.State = Ready
		}
		g.Members = append(g.Members, x)
	}
	m.Groups = append(m.Groups, g)
	f.poller.Update(m)
	settled(t, f.poller, Ready, Standby, Draining, Ready)
	quickOnes(t, f, 20) // from the first group only worker 0 answers
	for range 20 {
		if got := other.got([4]byte{}); got != 1 {
			t.Fatalf("member %d of the second group got a connection, want 1", got)
		}
	}
	for i, s := range stats(t, f.poller) {
		if want := i == 0 || i == 3; s.Chosen != want || s.Conns > 0 && i%2 == 1 {
			t.Errorf("%+v; want chosen %v", s, want)
		}
	}
}

func TestDrained(t *testing.T) {
	f := startFleet(t, 2, false, &Options{Settle: 60 * time.Millisecond}, nil)
	f.poller.Update(f.probed(t, nil))
	settled(t, f.poller, Ready, Ready)
	signal(t, f.workers[0].pid, unix.SIGSTOP)
	f.reach(t, 0, askQuick)
	eventually(t, "a connection waits", func() bool { return stats(t, f.poller)[0].Queue == 1 })
	f.poller.Update(f.membership(t, nil, map[int]State{0: Draining}))
	settled(t, f.poller, Draining, Ready)
	quickOnes(t, f, 20)
	select {
	case e := <-f.poller.Events():
		t.Fatalf("event %+v while a connection waits", e)
	case <-time.After(120 * time.Millisecond): // twice the settle time without the event that must not come
	}
	signal(t, f.workers[0].pid, unix.SIGCONT)
	if e := await(t, f.poller, Drained, 0); e.For < 60*time.Millisecond {
		t.Errorf("event %+v", e)
	}
	// With nothing in the queue it is the settle time alone.
	f.poller.Update(f.membership(t, nil, map[int]State{1: Draining}))
	if e := await(t, f.poller, Drained, 1); e.For < 60*time.Millisecond {
		t.Errorf("event %+v", e)
	}
	f.poller.Update(f.membership(t, nil, map[int]State{0: Draining}))
	await(t, f.poller, Drained, 0)
	// Said once, also after another update.
	f.poller.Update(f.membership(t, nil, map[int]State{0: Draining}))
	settled(t, f.poller, Draining, Ready)
	select {
	case e := <-f.poller.Events():
		t.Fatalf("event %+v, again", e)
	default:
	}
}

// TestLeavingLosesNothing closes held sockets the way Update says, under load, and no request fails or meets a socket that is not chosen.
func TestLeavingLosesNothing(t *testing.T) {
	f := startFleet(t, 5, false, &Options{Settle: 50 * time.Millisecond}, nil)
	settled(t, f.poller, Ready, Ready, Ready, Ready, Ready)
	stop, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(failed)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := request(f.address(), askQuick); err != nil {
				failed <- err
				return
			}
		}
	}()
	var kernel Array
	for i := range f.group.fds {
		kernel.Listen(i)
	}
	send := func(seat int, state State) {
		full := f.membership(t, nil, map[int]State{seat: state})
		var m Membership
		m.Groups = []Group{{ID: 1}}
		for i := range kernel.Len() {
			m.Groups[0].Members = append(m.Groups[0].Members, full.Groups[0].Members[kernel.At(i)])
		}
		for i, x := range full.Groups[0].Members {
			if kernel.Index(i) < 0 {
				closeFD(x.FD)
			}
		}
		f.poller.Update(m)
	}
	for _, seat := range []int{1, 4, 0} {
		send(seat, Draining)
		await(t, f.poller, Drained, seat)
		eventually(t, "the worker has answered all it took", func() bool {
			return slices.ContainsFunc(stats(t, f.poller), func(s Stat) bool { return s.Seat == seat && s.Conns == 0 })
		})
		f.workers[seat].end()
		send(seat, Leaving)
		await(t, f.poller, Left, seat)
		kept := f.group.fds[seat]
		f.group.fds[seat] = dupOf(t, f.group.fds[kernel.At((kernel.Index(seat)+1)%kernel.Len())]) // keeps the numbers of the fleet
		unix.Close(kept)
		kernel.Remove(seat)
		send(-1, Ready)
		eventually(t, "the poller knows", func() bool { return len(stats(t, f.poller)) == kernel.Len() })
	}
	close(stop)
	if err := <-failed; err != nil {
		t.Errorf("request: %v", err)
	}
	for _, s := range stats(t, f.poller) {
		if s.Seat != 2 && s.Seat != 3 || s.State != Ready {
			t.Errorf("left over: %+v", s)
		}
	}
}

func TestShutIsReported(t *testing.T) {
	f := startFleet(t, 3, false, &Options{}, nil)
	f.poller.Update(f.membership(t, nil, map[int]State{2: Standby}))
	settled(t, f.poller, Ready, Ready, Standby)
	if err := unix.Shutdown(f.group.fds[0], unix.SHUT_RD); err != nil {
		t.Fatal(err)
	}
	await(t, f.poller, Shut, 0)
	// Index 0 is socket 2 now, a standby, and socket 1 is where it was; until the owner has listened again all goes there.
	for range 40 {
		if got := f.anyone(t); got != f.workers[1].pid {
			t.Fatalf("process %d got a connection, want %d", got, f.workers[1].pid)
		}
	}
	f.group.listen(0)
	m := f.membership(t, nil, nil)
	x := m.Groups[0].Members
	x[0], x[2] = x[2], x[0]
	f.poller.Update(m)
	eventually(t, "all are chosen again", func() bool {
		return !slices.ContainsFunc(stats(t, f.poller), func(s Stat) bool { return s.State != Ready })
	})
	m = f.probed(t, nil)
	x = m.Groups[0].Members
	x[0], x[2] = x[2], x[0]
	f.poller.Update(m)
	settled(t, f.poller, Ready, Ready, Ready)
	for slot, w := range f.workers {
		if got := f.who(t, slot); got != w.pid {
			t.Errorf("the probe of slot %d reached process %d, want %d", slot, got, w.pid)
		}
	}
}

func TestFailedIsReportedOnce(t *testing.T) {
	p, err := NewPoller(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	// A socket without SO_REUSEPORT that listens: the kernel has no group to attach to.
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	p.Update(Membership{Groups: []Group{{ID: 9, Members: []Member{{FD: dupOf(t, fd), State: Ready}}}}})
	if e := await(t, p, Failed, 0); e.Group != 9 || !errors.Is(e.Err, unix.EINVAL) {
		t.Errorf("event %+v", e)
	}
	for range 3 { // each question is a tick
		stats(t, p)
	}
	select {
	case e := <-p.Events():
		t.Errorf("event %+v, again", e)
	default:
	}
}

// TestWhatTheWaitChannelMeans goes through the life of a thread.
func TestWhatTheWaitChannelMeans(t *testing.T) {
	const s = time.Second
	var w worker
	for _, step := range []struct {
		now    time.Duration
		name   string
		queued bool
		want   Wait
	}{
		{1 * s, "0", false, Unknown}, // unreadable, or never seen idle
		{2 * s, "hrtimer_nanosleep", false, Unknown},
		{3 * s, "futex_do_wait", false, Unknown},
		{4 * s, "do_epoll_wait", false, Idle},
		{5 * s, "0", false, Busy},
		{9 * s, "0", false, Busy},
		{11 * s, "0", false, Unknown}, // runs for long, or has become unreadable
		{12 * s, "0", true, Busy},     // its queue shows that it does not get on
		{13 * s, "poll_schedule_timeout.constprop.0\n", false, Idle},
		{14 * s, "hrtimer_nanosleep", false, Busy},
		{15 * s, "0", false, Busy},
		{15 * s, "futex_do_wait", false, Unknown}, // a thread of a pool rests; others may accept
		{15 * s, "0", false, Busy},
		{16 * s, "", false, Unknown}, // the thread is gone
	} {
		w.stalls = step.queued
		if got := w.classify(step.now, []byte(step.name)); got != step.want {
			t.Errorf("at %v %q means %v, want %v", step.now, step.name, got, step.want)
		}
	}
}

// TestNothingToBeBusyWith: whatever its thread does, a worker without a connection is not busy with one.
func TestNothingToBeBusyWith(t *testing.T) {
	w := &worker{pid: os.Getpid()}
	w.open()
	defer w.close()
	var r readings
	for conns, want := range map[int]Wait{0: Unknown, 1: Busy} {
		// This thread runs at this moment, which is busy for one that has been idle.
		runtime.LockOSThread()
		w.tid = unix.Gettid()
		w.openThread()
		w.seenIdle, w.wait, w.stalls = true, Busy, true
		w.files = fileSize(w.fdDir, &r.stat)
		w.base, w.conns = w.files-conns, conns
		w.look(time.Second, &r)
		runtime.UnlockOSThread()
		if w.wait != want {
			t.Errorf("with %d connections it is %v, want %v", conns, w.wait, want)
		}
		if !w.runs {
			t.Error("it does not seem to run")
		}
	}
}

// TestAcceptingIsGettingOn: a connection that waits at each look is another one each time for a worker that runs and has none.
func TestAcceptingIsGettingOn(t *testing.T) {
	for _, c := range []struct {
		w    worker
		want time.Duration
	}{
		{worker{wait: Unknown, runs: true}, 0},
		{worker{wait: Unknown}, time.Second},
		{worker{wait: Busy, runs: true, conns: 1}, time.Second},
	} {
		m := &member{w: &c.w, queue: 1, before: 1}
		new(Poller).lookAtQueue(time.Second, m)
		if got := m.view(time.Second, &Options{}).Lag; got != c.want {
			t.Errorf("waits: %v, runs: %v, %d connections: not seen to get on for %v, want %v", c.w.wait, c.w.runs, c.w.conns, got, c.want)
		}
	}
}

// TestNewWorkersAreSeenIdle: without traffic the poller looks until it knows how a new worker waits, but not for good.
func TestNewWorkersAreSeenIdle(t *testing.T) {
	for _, c := range []struct {
		w         worker
		queueOnly bool
		want      bool
	}{
		{worker{}, false, true},
		{worker{seenIdle: true}, false, false},
		{worker{looked: newLooks}, false, false},
		{worker{wchan: -1}, false, false},
		{worker{}, true, false},
	} {
		p := &Poller{opts: Options{QueueOnly: c.queueOnly}, workers: []*worker{&c.w}}
		if got := p.strangers(); got != c.want {
			t.Errorf("%+v: %v, want %v", c.w, got, c.want)
		}
	}
	p := tickFleet(t, 1)
	p.workers[0].seenIdle, p.workers[0].looked = false, 0
	p.traffic = 0
	eventually(t, "it sleeps", func() bool { return p.tick(time.Hour) == 0 })
	if !p.workers[0].seenIdle {
		t.Error("it sleeps, and the worker has not been seen idle")
	}
}

// TestRests: of four looks one reads what a thread waits for that nobody needs to know.
func TestRests(t *testing.T) {
	asleep := worker{wait: Busy, asleep: true, conns: 1}
	for _, c := range []struct {
		name   string
		w      worker
		plenty bool
		want   int
	}{
		{"idle without a connection", worker{wait: Idle}, false, 3},
		{"idle with one", worker{wait: Idle, conns: 1}, true, 0},
		{"busy", worker{wait: Busy, conns: 1}, true, 0},
		{"asleep, and wanted", asleep, false, 0},
		{"asleep, and others are free", asleep, true, 3},
	} {
		rested := 0
		for c.w.looked = range 4 {
			if c.w.rests(c.plenty) {
				rested++
			}
		}
		if rested != c.want {
			t.Errorf("%s: it rests %d times of 4, want %d", c.name, rested, c.want)
		}
	}
	asleep.looked, asleep.changed = 1, true
	if asleep.rests(true) {
		t.Error("one that has taken or closed something is not looked at")
	}
	asleep.fdDir, asleep.looked = -1, 1
	for looked, want := range map[uint]bool{1: true, 3: false} {
		asleep.looked, asleep.asleep = looked, true
		if asleep.count(0, true, nil); asleep.asleep != want {
			t.Errorf("after %d looks it is asleep: %v, want %v", looked, asleep.asleep, want)
		}
	}
}

func TestHashGivesTheChoiceBack(t *testing.T) {
	f := startFleet(t, 3, false, &Options{}, nil)
	f.poller.Update(f.membership(t, nil, map[int]State{0: Standby, 1: Standby}))
	settled(t, f.poller, Standby, Standby, Ready)
	m := f.membership(t, nil, map[int]State{0: Standby, 1: Standby})
	m.Groups[0].Hash = true
	f.poller.Update(m)
	eventually(t, "the kernel's hash reaches all", func() bool {
		quickOnes(t, f, 20)
		s := stats(t, f.poller)
		return s[0].Chosen && s[1].Chosen && s[2].Chosen
	})
	for i := range 3 {
		f.workers[i].end() // nobody accepts any more, so that the queues can be counted
	}
	eventually(t, "all queues have connections", func() bool {
		c := f.group.connect([4]byte{})
		t.Cleanup(func() { unix.Close(c) })
		return !slices.ContainsFunc(stats(t, f.poller), func(s Stat) bool { return s.Queue == 0 })
	})
}

// TestThreadIsLearned names no thread, and a wrong one.
func TestThreadIsLearned(t *testing.T) {
	for _, wrong := range []bool{false, true} {
		f := startFleet(t, 2, false, &Options{Quiet: time.Hour}, nil)
		m := f.membership(t, nil, nil)
		for i := range m.Groups[0].Members {
			x := &m.Groups[0].Members[i]
			x.TID = 0
			if wrong {
				x.TID = otherThread(t, x.PID)
			}
		}
		f.poller.Update(m)
		eventually(t, "both are known to be idle", func() bool {
			s := stats(t, f.poller)
			return s[0].Wait == Idle && s[1].Wait == Idle
		})
	}
}

// otherThread is a thread of the Go process pid that does not serve.
func otherThread(tb testing.TB, pid int) int {
	tb.Helper()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		tb.Fatal(err)
	}
	for _, task := range tasks {
		var tid int
		if _, err := fmt.Sscan(task.Name(), &tid); err == nil && tid != pid {
			return tid
		}
	}
	tb.Fatal("the worker has only one thread")
	return 0
}

// TestWorkerOfAnotherUser reads what only the worker's own user may see, or root with its capabilities.
func TestWorkerOfAnotherUser(t *testing.T) {
	testneed.Root(t)
	cred := &syscall.Credential{Uid: 1234, Gid: 2345}
	f := startFleet(t, 2, false, &Options{}, cred)
	eventually(t, "both are known to be idle", func() bool {
		s := stats(t, f.poller)
		return s[0].Wait == Idle && s[1].Wait == Idle && s[0].Conns == 0
	})
}

// TestIdentityIsAssumed drops the capability that makes root see everything, on one thread, and shows that the file-system identity alone is enough.
func TestIdentityIsAssumed(t *testing.T) {
	testneed.Root(t)
	g := newGroup(t, "127.0.0.1", 1)
	cred := &syscall.Credential{Uid: 1234, Gid: 2345}
	process := startWorker(t, g.fds[0], cred)
	result := make(chan [2]Wait)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var hdr unix.CapUserHeader
		hdr.Version = unix.LINUX_CAPABILITY_VERSION_3
		var data [2]unix.CapUserData
		unix.Capget(&hdr, &data[0])
		drop := uint32(1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_DAC_OVERRIDE)
		data[0].Effective &^= drop
		data[0].Permitted &^= drop
		unix.Capset(&hdr, &data[0])
		var got [2]Wait
		for i, id := range []identity{{0, 0}, {1234, 2345}} {
			assume(id)
			x := &worker{pid: process.pid, tid: process.pid}
			x.open()
			for range 100 {
				x.look(time.Second, new(readings))
				if x.wait == Idle {
					break
				}
				time.Sleep(time.Millisecond)
			}
			got[i] = x.wait
			x.close()
		}
		assume(identity{0, 0})
		result <- got
	}()
	if got, want := <-result, [2]Wait{Unknown, Idle}; got != want {
		t.Errorf("as root without capabilities and as the worker's user: %v, want %v", got, want)
	}
}

// TestKeepAliveIsBalanced opens 64 connections that stay, over a second and at once. What comes at once is over before anybody can look, so that chance has its
// part in it; the benchmark has the median.
func TestKeepAliveIsBalanced(t *testing.T) {
	testneed.Linux(t, 6, 2)
	for _, c := range []struct {
		name  string
		gap   time.Duration
		runs  int
		limit float64 // of three in four
	}{
		{"over a second", 15 * time.Millisecond, 1, 1.10},
		{"in one burst", 0, 15, 1.60}, // a choice that expects no burst gives one worker twice the mean
	} {
		t.Run(c.name, func(t *testing.T) {
			var ratios []float64
			for range c.runs {
				ratios = append(ratios, keepAliveRatio(t, c.gap))
			}
			slices.Sort(ratios)
			t.Logf("%.2f", ratios)
			if got := ratios[len(ratios)*3/4]; got > c.limit {
				t.Errorf("the busiest has %.2f of the mean; at most %.2f is allowed", got, c.limit)
			}
		})
	}
}

// keepAliveRatio opens 64 connections to four workers and returns what the busiest has, of the mean.
func keepAliveRatio(t *testing.T, gap time.Duration) float64 {
	t.Helper()
	f := startFleet(t, 4, false, &Options{}, nil)
	settled(t, f.poller, Ready, Ready, Ready, Ready)
	sleeps(t, f.poller, 50*time.Millisecond) // as it does before a burst out of nothing
	const n = 64
	fds := make([]int, 0, n)
	defer func() {
		for _, fd := range fds {
			closeHard(fd)
		}
	}()
	began := time.Now()
	for i := range n {
		time.Sleep(time.Until(began.Add(time.Duration(i) * gap)))
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
		if err := unix.Connect(fd, f.group.addr); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			t.Fatal(err)
		}
	}
	most := 0
	eventually(t, "all are accepted", func() bool {
		sum := 0
		most = 0
		for _, s := range stats(t, f.poller) {
			sum += s.Conns
			most = max(most, s.Conns)
		}
		return sum == n
	})
	return float64(most) / (n / 4)
}

// TestPollerSleeps counts the ticks and the times any thread of this process went to sleep of its own will, while there is nothing to do.
func TestPollerSleeps(t *testing.T) {
	f := startFleet(t, 4, false, &Options{Quiet: 20 * time.Millisecond}, nil)
	p := f.poller
	asleep := func() bool {
		before := p.ticks.Load()
		time.Sleep(60 * time.Millisecond)
		return p.ticks.Load() == before
	}
	eventually(t, "it goes to sleep", asleep)
	before := p.ticks.Load()
	time.Sleep(300 * time.Millisecond)
	if n := p.ticks.Load() - before; n != 0 {
		t.Errorf("%d ticks without traffic", n)
	}
	// A connection wakes it, also when a worker takes the connection at once.
	eventually(t, "traffic wakes it", func() bool {
		quickOnes(t, f, 1)
		return p.ticks.Load() > before+3
	})
	// Traffic on connections that are there lets it sleep.
	conn, err := net.Dial("tcp", f.address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ping := func() {
		buf := [1]byte{askStay}
		conn.Write(buf[:])
		if _, err := conn.Read(buf[:]); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "it goes to sleep beside a busy connection", func() bool {
		before := p.ticks.Load()
		for range 60 {
			ping()
			time.Sleep(time.Millisecond)
		}
		return p.ticks.Load() == before
	})
	// An update and a question wake it too.
	p.Update(f.membership(t, nil, map[int]State{0: Standby}))
	settled(t, p, Standby, Ready, Ready, Ready)
}

// TestPollerClosesEverything replaces the members often, also faster than the poller looks, and counts descriptors.
func TestPollerClosesEverything(t *testing.T) {
	f := startFleet(t, 3, false, nil, nil)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := count()
	p, err := NewPoller(Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		p.Update(f.membership(t, nil, map[int]State{i % 3: State(i % int(Leaving+1))}))
		if i%5 == 0 {
			stats(t, p)
		}
	}
	p.Close()
	eventually(t, "no descriptor is left", func() bool { return count() <= before })
}

// tickFleet is a poller without goroutines on n members that all have this process as their worker.
func tickFleet(tb testing.TB, n int) *Poller {
	tb.Helper()
	g := newGroup(tb, "127.0.0.1", n)
	p, err := newPoller(Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.release)
	worker := startWorker(tb, g.fds[0], nil)
	m := Membership{Groups: []Group{{ID: 1, Probes: true}}}
	for i := range n {
		m.Groups[0].Members = append(m.Groups[0].Members, Member{Seat: i, Slot: i, FD: dupOf(tb, g.fds[i]), State: Ready, PID: worker.pid, TID: worker.pid,
			UID: p.self.uid, GID: p.self.gid})
	}
	p.adopt(&m)
	p.traffic = math.MaxInt64 / 2
	return p
}

// TestGulpsIsLearned: a worker that has emptied its queue takes all at once, one that has left some does not. What was seen more often of late is believed.
func TestGulpsIsLearned(t *testing.T) {
	p := tickFleet(t, 1)
	m, w := p.groups[0].members[0], p.workers[0]
	signal(t, w.pid, unix.SIGSTOP)
	defer signal(t, w.pid, unix.SIGCONT)
	look := func(queue int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d connections wait", queue), func() bool {
			p.tick(time.Second)
			return m.queue == queue
		})
	}
	connect := func() net.Conn { return connectTo(t, m) }
	take := func() {
		fd, _, err := unix.Accept(m.FD)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	gulps := func(want bool) {
		t.Helper()
		if got := m.view(time.Second, &p.opts).Gulps; got != want {
			t.Errorf("the choice is told %v", got)
		}
	}
	gulps(true) // as the most servers do
	for range 5 {
		for range 2 {
			connect()
		}
		look(2)
		take()
		take()
		look(0)
	}
	for range 5 {
		connect()
	}
	look(5)
	for left := 4; left > 1; left-- {
		gulps(true) // it may have taken all, and others have come
		take()
		look(left)
	}
	gulps(false)
	take()
	take()
	look(0)
	gulps(true)
}

func TestTickDoesNotAllocate(t *testing.T) {
	p := tickFleet(t, 8)
	p.tick(time.Second)
	now := time.Second
	if n := testing.AllocsPerRun(200, func() {
		now += time.Millisecond
		p.groups[0].members[int(p.ticks.Load())%8].State = Standby // makes a new program each time
		p.groups[0].members[int(p.ticks.Load()+1)%8].State = Ready
		p.tick(now)
	}); n != 0 {
		t.Errorf("%v allocations per tick", n)
	}
	if p.attaches.Load() < 100 {
		t.Errorf("only %d programs were attached", p.attaches.Load())
	}
}

func BenchmarkTick(b *testing.B) {
	for _, n := range []int{4, 32} {
		for _, attach := range []bool{false, true} {
			b.Run(fmt.Sprintf("members=%d/attach=%v", n, attach), func(b *testing.B) {
				p := tickFleet(b, n)
				now := time.Second
				p.tick(now)
				b.ReportAllocs()
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				before := threadTime(b)
				for b.Loop() {
					now += time.Millisecond
					if attach {
						p.groups[0].stale = true
					}
					p.tick(now)
				}
				// On a busy machine the time on the clock says little.
				b.ReportMetric(float64(threadTime(b)-before)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// threadTime is the CPU time the calling thread has used.
func threadTime(tb testing.TB) time.Duration {
	tb.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// TestReachable: a probe of a slot comes to the member that starts in it, wherever it is in the array, and only then is that said.
func TestReachable(t *testing.T) {
	for _, starting := range []int{0, 1} {
		f := startFleet(t, 3, false, nil, nil)
		p, err := NewPoller(Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		f.poller = p
		m := f.probed(t, map[int]State{starting: Starting})
		for i := range m.Groups[0].Members {
			m.Groups[0].Members[i].Slot = i / 2 // members 0 and 1 are in slot 0
		}
		p.Update(m)
		e := await(t, p, Reachable, starting)
		if e.PID != f.workers[starting].pid {
			t.Errorf("process %d is reachable, want %d", e.PID, f.workers[starting].pid)
		}
		for range 10 {
			if got := f.who(t, 0); got != f.workers[starting].pid {
				t.Fatalf("the probe comes to process %d, want %d", got, f.workers[starting].pid)
			}
			if got := f.anyone(t); got == f.workers[starting].pid {
				t.Fatal("one that is starting gets an ordinary connection")
			}
		}
	}
}
