package initd

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/internal/signals"
	"skep/launch"
	"skep/port"
	"skep/reaper"
	"skep/sizing"
)

// made is the processes of a loop under test: they exist as numbers, and end when
// the test says so, or by a signal that they do not ignore.
type made struct {
	begun   time.Time
	child   chan struct{}
	last    int
	alive   map[int]bool
	ended   []reaper.Exit
	starts  []time.Duration // since begun
	events  []string        // what was done to them, with the time
	refuse  error           // of every start
	ignore  []int           // signals
	orphans int             // children besides, which only KILL ends
}

// far is above every process id there can be (PID_MAX_LIMIT, linux/threads.h),
// so that nothing real is ever looked at.
const far = 5_000_000

func (m *made) at() time.Duration { return time.Since(m.begun) }

func (m *made) say(format string, args ...any) {
	m.events = append(m.events, fmt.Sprintf("%v ", m.at())+fmt.Sprintf(format, args...))
}

func (m *made) Start(c reaper.Command) (launch.Process, error) {
	m.starts = append(m.starts, m.at())
	if m.refuse != nil {
		return launch.Process{}, &launch.StartError{Path: c.Path, Err: m.refuse}
	}
	m.last++
	m.alive[far+m.last] = true
	return launch.Process{PID: far + m.last, Listener: -1}, nil
}

func (m *made) Has(pid int) bool { return m.alive[pid] }

func (m *made) Reap(exited func(reaper.Exit), _ func(int, int)) bool {
	for len(m.ended) > 0 {
		e := m.ended[0]
		m.ended = m.ended[1:]
		exited(e)
	}
	return len(m.alive) > 0 || m.orphans > 0
}

func (m *made) end(pid int, status reaper.Status) {
	if m.alive[pid] {
		delete(m.alive, pid)
		m.ended = append(m.ended, reaper.Exit{PID: pid, Status: status, Known: true})
	}
	select {
	case m.child <- struct{}{}:
	default:
	}
}

func (m *made) Signal(pid, sig int, _ bool) error {
	if !m.alive[pid] {
		return unix.ESRCH
	}
	m.say("%s to %d", signalName(sig), pid-far)
	if !slices.Contains(m.ignore, sig) {
		m.end(pid, reaper.Status{Signal: sig})
	}
	return nil
}

func (m *made) SignalTree(pid, sig int)  { _ = m.Signal(pid, sig, true) }
func (m *made) SignalLeft(int, int, int) {}
func (m *made) pids() []int              { return slices.Sorted(maps.Keys(m.alive)) }
func (m *made) want(t *testing.T, n int) {
	t.Helper()
	if len(m.alive) != n {
		t.Errorf("after %v: %d processes, want %d", m.at(), len(m.alive), n)
	}
}

func (m *made) one(t *testing.T) int {
	t.Helper()
	if len(m.alive) != 1 {
		t.Fatalf("after %v: %d processes, want 1", m.at(), len(m.alive))
	}
	return m.pids()[0]
}
func (m *made) wantEvents(t *testing.T, w ...string) {
	t.Helper()
	if !slices.Equal(m.events, w) {
		t.Errorf("\n got %q\nwant %q", m.events, w)
	}
	m.events = nil
}

func (m *made) Sweep(_, sig int) {
	if m.orphans > 0 {
		m.say("%s to the rest", signalName(sig))
	}
	if sig == int(unix.SIGKILL) && !slices.Contains(m.ignore, sig) {
		m.orphans = 0
		m.end(0, reaper.Status{})
	}
}

// played is a loop with made-up processes in a bubble of made-up time.
type played struct {
	*made
	*testing.T
	loop *loop
	done chan int
	log  *os.File
}

// play runs the loop until the body returns, which has to end it. Options get
// what every test would say.
func play(t *testing.T, o Options, body func(p *played)) {
	synctest.Test(t, func(t *testing.T) {
		o.Command, o.Share, o.LogLevel = []string{"/server"}, ShareNone, logger.Debug
		if o.Policy.StopOn == nil {
			o.Policy.StopOn = []int{int(unix.SIGTERM), int(unix.SIGINT)}
		}
		log, err := os.CreateTemp(t.TempDir(), "log")
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		m := &made{begun: time.Now(), child: make(chan struct{}, 1), alive: make(map[int]bool)}
		l := &loop{
			o: o, self: far, path: "/server", table: m,
			signals: &signals.Source{Child: m.child, Other: make(chan int, 16)},
			log:     logger.New(int(log.Fd()), o.LogLevel, o.LogFormat, time.Now),
			workers: make(map[int]*worker), draining: make(map[int]time.Time),
			asks: make(chan *port.Ask), hangups: make(chan port.Hangup), reports: make(chan func(), 64), reading: make(chan struct{}, readers),
		}
		if l.ports, err = port.NewSet(port.Options{}); err != nil {
			t.Fatal(err)
		}
		l.size, l.steer = newSizer(l), newSteering(l)
		p := &played{made: m, T: t, loop: l, done: make(chan int, 1), log: log}
		go func() { p.done <- l.run() }()
		synctest.Wait()
		body(p)
		if len(p.done) > 0 || !l.quit {
			t.Error("the body has not ended the loop")
		}
		l.log.Close(time.Second)
	})
}

// after lets time pass. The loop is woken once before: what the test has changed
// happens before what a timer makes the loop do, as the race detector wants it.
func (p *played) after(d time.Duration) {
	p.do(func() {})
	time.Sleep(d)
	synctest.Wait()
}

func (p *played) exit(pid, code int) {
	p.end(pid, reaper.Status{Code: code})
	synctest.Wait()
}

func (p *played) send(sig unix.Signal) {
	p.loop.signals.Other <- int(sig)
	synctest.Wait()
}

// do runs f as the loop.
func (p *played) do(f func()) {
	p.loop.reports <- f
	synctest.Wait()
}

// over wants the loop to have ended just now.
func (p *played) over(code int) {
	p.Helper()
	synctest.Wait()
	select {
	case got := <-p.done:
		if got != code {
			p.Errorf("code %d, want %d", got, code)
		}
	default:
		p.Errorf("after %v the loop goes on", p.at())
		p.loop.signals.Other <- int(unix.SIGTERM)
		p.ignore = nil
		time.Sleep(time.Hour)
		<-p.done
	}
}

func (p *played) logged(words string) bool {
	text, err := os.ReadFile(p.log.Name())
	if err != nil {
		p.Fatal(err)
	}
	return strings.Contains(string(text), words)
}

func serving(workers int) Options {
	return Options{Count: workers, Policy: supervise.Policy{
		Workers: workers, Serve: true, StartParallel: workers, ReadyAfter: time.Second,
		Delay: 500 * time.Millisecond, MaxDelay: 30 * time.Second, ResetAfter: time.Minute,
		StopTimeout: 25 * time.Second, SweepTimeout: 25 * time.Second,
	}}
}

// A worker that dies and dies is started after delays that double up to the
// longest, for hours, at the very moments and at no other.
func TestBackoffForHours(t *testing.T) {
	o := serving(1)
	o.Policy.Restart = supervise.RestartAlways
	play(t, o, func(p *played) {
		delay := o.Policy.Delay
		for tries := 1; p.at() < 3*time.Hour; tries++ {
			p.exit(p.one(p.T), 1)
			p.after(delay - time.Nanosecond)
			if p.want(p.T, 0); len(p.starts) != tries {
				p.Fatalf("start %d came early", len(p.starts))
			}
			p.after(time.Nanosecond)
			delay = min(2*delay, o.Policy.MaxDelay)
		}
		// A worker that has been up for long starts from the beginning.
		p.after(o.Policy.ResetAfter)
		p.exit(p.one(p.T), 1)
		p.after(o.Policy.Delay)
		p.want(p.T, 1)
		p.send(unix.SIGTERM)
		p.over(0)
	})
}

// While the kernel has no process left, starts are tried again for hours, and a
// stop is heard all the same.
func TestStartsThatFail(t *testing.T) {
	o := serving(2)
	o.Policy.StartLimit = 5
	play(t, o, func(p *played) {
		p.after(time.Second) // both are ready
		p.refuse = unix.EAGAIN
		for _, pid := range p.pids() {
			p.exit(pid, 1)
		}
		before := len(p.starts)
		p.after(2 * time.Hour)
		p.want(p.T, 0)
		if n := len(p.starts) - before; n < 2*(2*60*2-10) || n > 2*(2*60*2+10) {
			p.Errorf("%d starts in two hours, want two each half minute", n)
		}
		p.refuse = nil
		p.after(30 * time.Second)
		p.want(p.T, 2)
		p.refuse = unix.ENOMEM
		p.exit(p.pids()[0], 1)
		p.send(unix.SIGTERM)
		p.over(0)
	})
}

// Whatever workers do, a stop ends within its time and one second (law 8).
func TestStopDeadline(t *testing.T) {
	for _, c := range []struct {
		name   string
		ignore []int
		code   int
		after  time.Duration
		events []string
	}{
		{"all end", nil, 0, 0, []string{"1s TERM to 1", "1s TERM to 2", "1s TERM to 3"}},
		{"deaf to TERM", []int{15}, 137, 25 * time.Second,
			[]string{"1s TERM to 1", "1s TERM to 2", "1s TERM to 3", "26s KILL to 1", "26s KILL to 2", "26s KILL to 3"}},
		{"deaf to KILL", []int{15, 9}, 137, 26 * time.Second,
			[]string{"1s TERM to 1", "1s TERM to 2", "1s TERM to 3", "26s KILL to 1", "26s KILL to 2", "26s KILL to 3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			play(t, serving(3), func(p *played) {
				p.after(time.Second)
				p.ignore = c.ignore
				p.send(unix.SIGTERM)
				p.send(unix.SIGTERM) // kubelets repeat it
				if c.after > 0 {
					p.after(c.after - time.Second - time.Nanosecond)
					if len(p.done) > 0 {
						p.Fatal("it has ended early")
					}
					p.after(time.Second + time.Nanosecond)
				}
				p.over(c.code)
				p.wantEvents(p.T, c.events...)
			})
		})
	}
}

// The drain delay keeps everything as it is; it is part of the stop's time.
func TestDrainDelay(t *testing.T) {
	o := serving(2)
	o.Policy.DrainDelay = 10 * time.Second
	play(t, o, func(p *played) {
		p.after(time.Second)
		p.ignore = []int{15}
		p.send(unix.SIGTERM)
		p.after(10*time.Second - time.Nanosecond)
		p.wantEvents(p.T)
		p.want(p.T, 2)
		p.exit(p.pids()[0], 1) // nothing comes in its place (law 7)
		p.after(time.Nanosecond)
		p.wantEvents(p.T, "11s TERM to 2")
		p.after(15 * time.Second)
		p.wantEvents(p.T, "26s KILL to 2")
		p.over(137)
		if len(p.starts) != 2 {
			p.Errorf("%d starts", len(p.starts))
		}
	})
}

func TestSecondInterrupt(t *testing.T) {
	play(t, serving(2), func(p *played) {
		p.after(time.Second)
		p.ignore = []int{2, 15}
		p.send(unix.SIGTERM)
		p.send(unix.SIGINT)
		p.wantEvents(p.T, "1s TERM to 1", "1s TERM to 2")
		p.send(unix.SIGINT)
		p.wantEvents(p.T, "1s KILL to 1", "1s KILL to 2")
		p.over(137)
	})
}

// A signal to skep is one signal to each worker. Processes cannot tell: the
// kernel makes one of two that are pending.
func TestEachSignalIsSentOnce(t *testing.T) {
	every := []unix.Signal{unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGPIPE, unix.SIGALRM, unix.SIGCONT,
		unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGURG, unix.SIGWINCH, 35, 64}
	ignore := make([]int, 64)
	for i := range ignore {
		ignore[i] = i + 1
	}
	lone := Options{Boring: true, Policy: supervise.Policy{Workers: 1, Restart: supervise.RestartNever, SweepTimeout: SweepTimeout}}
	play(t, lone, func(p *played) {
		p.ignore = ignore
		for _, sig := range every {
			p.send(sig)
			p.wantEvents(p.T, "0s "+signalName(int(sig))+" to 1")
		}
		p.send(unix.SIGTERM)
		p.send(unix.SIGTERM)
		p.send(unix.SIGINT)
		p.wantEvents(p.T, "0s TERM to 1", "0s TERM to 1", "0s INT to 1")
		p.exit(p.one(p.T), 5)
		p.over(5)
	})
	service := serving(2)
	service.Policy.SignalMap = map[int]int{10: 12, 28: 0}
	play(t, service, func(p *played) {
		p.ignore = ignore
		for _, c := range []struct {
			send unix.Signal
			get  string // none for job control, and for what is dropped
		}{{unix.SIGUSR2, "USR2"}, {unix.SIGUSR1, "USR2"}, {unix.SIGWINCH, ""}, {unix.SIGTSTP, ""}, {unix.SIGTTIN, ""}, {unix.SIGTTOU, ""},
			{64, "RTMAX"}, {unix.SIGHUP, "HUP"}} {
			p.send(c.send)
			if c.get == "" {
				p.wantEvents(p.T)
			} else {
				p.wantEvents(p.T, "0s "+c.get+" to 1", "0s "+c.get+" to 2")
			}
		}
		p.send(unix.SIGTERM)
		p.ignore = nil
		for _, pid := range p.pids() {
			p.exit(pid, 0)
		}
		p.over(0)
	})
}

// What a lone command leaves behind has its five seconds.
func TestSweep(t *testing.T) {
	o := Options{Boring: true, Policy: supervise.Policy{Workers: 1, Restart: supervise.RestartNever, SweepTimeout: SweepTimeout}}
	play(t, o, func(p *played) {
		p.orphans = 1
		p.after(time.Hour)
		p.exit(p.one(p.T), 3)
		p.wantEvents(p.T, "1h0m0s TERM to the rest")
		p.after(SweepTimeout - time.Nanosecond)
		if len(p.done) > 0 {
			p.Error("it has ended before its orphan")
		}
		p.after(time.Nanosecond)
		p.wantEvents(p.T, "1h0m5s KILL to the rest")
		p.over(3)
	})
}

// A start that takes too long is a death, and a worker that got ready in time is
// not touched: its timer is stale (law 9).
func TestStartTimeout(t *testing.T) {
	o := serving(2)
	o.Policy.ReadyAfter, o.Policy.StartTimeout, o.Policy.StartLimit = 0, time.Minute, 5
	play(t, o, func(p *played) {
		first := p.pids()[0]
		p.after(59 * time.Second)
		p.do(func() { p.loop.step(supervise.BecameReady{PID: first}) })
		p.after(time.Second - time.Nanosecond)
		p.wantEvents(p.T)
		p.after(time.Nanosecond)
		p.wantEvents(p.T, "1m0s TERM to 2")
		p.after(time.Hour)
		if !p.alive[first] || !p.logged("start-limit-hit") {
			p.Error("the worker that was ready is gone, or the other slot is not given up")
		}
		p.events = nil
		p.send(unix.SIGTERM)
		p.over(0)
	})
}

// With nothing to do the loop wakes for a look at memory, seldom.
func TestIdleLoopSleeps(t *testing.T) {
	play(t, serving(1), func(p *played) {
		p.after(2 * time.Second)
		wakes := 0
		p.do(func() {
			if _, ok := p.loop.sup.Deadline(); ok {
				wakes++
			}
			if at := p.loop.size.deadline(); !at.IsZero() && time.Until(at) < 10*time.Second {
				wakes++
			}
		})
		if wakes != 0 {
			p.Error("there is a deadline soon although nothing is to come")
		}
		p.send(unix.SIGTERM)
		p.over(0)
	})
}

// Memory is collected a while after much has happened, once, and never again
// while little does.
func TestMemoryIsCollectedAfterUse(t *testing.T) {
	o := serving(1)
	o.Boring = true // nothing is looked at by itself
	play(t, o, func(p *played) {
		collections := func() int {
			var stats runtime.MemStats
			runtime.ReadMemStats(&stats)
			return int(stats.NumForcedGC)
		}
		before := collections()
		pass := func(d time.Duration, want int) {
			p.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := collections() - before; got != want {
				p.Errorf("after %v: %d collections, want %d", p.at(), got, want)
			}
		}
		pass(24*time.Hour, 0) // a start is not much
		for range collectUses {
			p.send(unix.SIGUSR1)
		}
		pass(collectAfter-time.Second, 0)
		pass(2*time.Second, 1)
		p.send(unix.SIGUSR1)
		pass(24*time.Hour, 1)
		p.send(unix.SIGTERM)
		p.over(0)
	})
}

// What is needed for one worker, given by hand, leaves nothing to learn.
func TestNothingToLearn(t *testing.T) {
	l := &loop{o: Options{Sizing: sizing.Policy{WorkerMemory: 100 << 20}}}
	s := newSizer(l)
	bytes := uint64(1000 << 20)
	s.decision = sizing.Decision{Workers: 7, LimitBytes: &bytes}
	if s.learns() || s.first() != 7 || s.count() != 7 {
		t.Errorf("learns %v, first %d, count %d", s.learns(), s.first(), s.count())
	}
	s.policy.WorkerMemory = 0
	if !s.learns() || s.first() != 1 {
		t.Errorf("learns %v, first %d", s.learns(), s.first())
	}
	s.policy.Min = 3
	if s.first() != 3 {
		t.Errorf("first %d with --min-workers 3", s.first())
	}
	s.fixed = 2
	if s.learns() || s.first() != 2 || s.count() != 2 {
		t.Error("a number that is given is not taken")
	}
	*s = sizer{l: l}
	if s.learns() || s.count() != 1 {
		t.Error("without any limit")
	}
}
