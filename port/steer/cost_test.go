package steer

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	costLong = flag.Duration("cost", 0, "how long each run of TestCost takes; 0 is the short form")
	costRate = flag.String("cost.rates", "0,300", "connections per second of TestCost, separated by commas")
	costTick = flag.Duration("cost.tick", 0, "tick of TestCost; 0 is the default")
)

// costOf is what a process of the role "steer" says about itself.
type costOf struct {
	CPU             time.Duration
	Ticks, Attaches uint64
	Voluntary       int // context switches since the beginning, of all threads
}

// steerOnly is a process that does nothing but steer, so that what it uses is what steering costs. Its members come from standard input, its sockets are the
// descriptors from 3 on. Each further line of standard input is answered with what it has used since the last one.
func steerOnly() int {
	unix.SetNonblock(0, true) // so that reading it takes no thread of its own
	in := bufio.NewScanner(os.NewFile(0, "stdin"))
	if !in.Scan() {
		return 1
	}
	var order struct {
		PIDs []int
		Tick time.Duration
	}
	if err := json.Unmarshal(in.Bytes(), &order); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p, err := NewPoller(Options{Tick: order.Tick})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	g := Group{ID: 1}
	for i, pid := range order.PIDs {
		g.Members = append(g.Members, Member{Seat: i, Slot: i, FD: 3 + i, State: Ready, PID: pid, TID: pid, UID: p.self.uid, GID: p.self.gid})
	}
	p.Update(Membership{Groups: []Group{g}})
	out := json.NewEncoder(os.Stdout)
	for in.Scan() {
		var ts unix.Timespec
		unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts)
		out.Encode(costOf{CPU: time.Duration(ts.Nano()), Ticks: p.ticks.Load(), Attaches: p.attaches.Load(), Voluntary: voluntary()})
	}
	p.Close()
	return 0
}

// voluntary counts how often any thread of this process has gone to sleep of its own will.
func voluntary() int {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return -1
	}
	sum := 0
	for _, task := range tasks {
		data, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/status")
		for line := range strings.Lines(string(data)) {
			if rest, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
				var n int
				fmt.Sscan(rest, &n)
				sum += n
			}
		}
	}
	return sum
}

// steerer is a running process of the role "steer".
type steerer struct {
	tb  testing.TB
	in  io.Writer
	out *json.Decoder
}

func startSteerer(tb testing.TB, f *fleet, tick time.Duration) *steerer {
	tb.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"=steer", "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	for _, fd := range f.group.fds {
		file := os.NewFile(uintptr(dupOf(tb, fd)), "listener")
		defer file.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	order := struct {
		PIDs []int
		Tick time.Duration
	}{Tick: tick}
	for _, w := range f.workers {
		order.PIDs = append(order.PIDs, w.pid)
	}
	json.NewEncoder(in).Encode(order)
	s := &steerer{tb, in, json.NewDecoder(out)}
	s.ask()
	return s
}

func (s *steerer) ask() costOf {
	s.tb.Helper()
	var c costOf
	io.WriteString(s.in, "\n")
	if err := s.out.Decode(&c); err != nil {
		s.tb.Fatal(err)
	}
	return c
}

// TestCost measures a process that only steers. The long form (go test -run TestCost -cost 10s -cost.rates 0,300,10000 -v) prints how much of a core it takes; the
// short one checks that it does nothing without traffic.
func TestCost(t *testing.T) {
	length := max(*costLong, time.Second)
	for _, workers := range []int{4, 32} {
		for _, rateText := range strings.Split(*costRate, ",") {
			var rate float64
			if _, err := fmt.Sscan(rateText, &rate); err != nil {
				t.Fatal(err)
			}
			if *costLong == 0 && rate != 0 {
				continue
			}
			t.Run(fmt.Sprintf("%d/%v", workers, rate), func(t *testing.T) {
				f := startFleet(t, workers, false, nil, nil)
				s := startSteerer(t, f, *costTick)
				eventually(t, "the poller sleeps", func() bool {
					before := s.ask()
					time.Sleep(200 * time.Millisecond)
					return s.ask().Ticks == before.Ticks
				})
				before := s.ask()
				sent := 0
				if rate == 0 {
					time.Sleep(length)
				} else {
					sent = hammer(t, f.address(), rate, length)
				}
				after := s.ask()
				used := after.CPU - before.CPU
				t.Logf("%d workers, %d connections in %v: %.2f %% of a core, %d ticks, %d attaches, %d sleeps",
					workers, sent, length, 100*float64(used)/float64(length), after.Ticks-before.Ticks, after.Attaches-before.Attaches, after.Voluntary-before.Voluntary)
				if rate == 0 {
					// Each of the questions wakes its reader, and the answer takes a few more; ticks would be a thousand.
					if n := after.Voluntary - before.Voluntary; after.Ticks != before.Ticks || n > 20 {
						t.Errorf("%d ticks and %d sleeps without traffic", after.Ticks-before.Ticks, n)
					}
				}
			})
		}
	}
}

// hammer makes short connections at about the rate, from a few loops, and returns how many.
func hammer(tb testing.TB, address string, rate float64, length time.Duration) int {
	tb.Helper()
	const loops = 16
	var wg sync.WaitGroup
	counts := make([]int, loops)
	began := time.Now()
	for l := range loops {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for time.Since(began) < length {
				due := time.Duration(float64(counts[l]*loops+l) / rate * float64(time.Second))
				time.Sleep(due - time.Since(began))
				if request(address, askEcho) == nil {
					counts[l]++
				}
			}
		}()
	}
	wg.Wait()
	sum := 0
	for _, n := range counts {
		sum += n
	}
	return sum
}

// BenchmarkCalls shows what the parts of a tick cost.
func BenchmarkCalls(b *testing.B) {
	p := tickFleet(b, 4)
	w, m := p.workers[0], p.groups[0].members[0]
	for _, c := range []struct {
		name string
		call func()
	}{
		{"epoll", func() { epollNow(p.queues, p.full) }},
		{"TCP_INFO", func() { acceptQueue(m.FD, &p.info) }},
		{"wchan", func() { readStart(w.wchan, p.read.name[:]) }},
		{"fstat", func() { fileSize(w.fdDir, &p.read.stat) }},
		{"setfsuid+setfsgid", func() { assume(p.self) }},
		{"choice", func() { p.steer(time.Second, p.groups[0], 1, false) }},
		{"attach", func() { p.groups[0].stale = true; p.steer(time.Second, p.groups[0], 1, false) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			before := threadTime(b)
			for b.Loop() {
				c.call()
			}
			b.ReportMetric(float64(threadTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}
