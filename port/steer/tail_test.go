package steer

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	tailLong  = flag.Duration("tail", 0, "how long each run of TestTail takes; 0 is the short form")
	tailModes = flag.String("tail.modes", "", "the modes of TestTail, separated by commas; all when empty")
	tailRates = flag.String("tail.rates", "150,300", "connections per second of TestTail")
	tailRuns  = flag.Int("tail.runs", 1, "runs of TestTail per mode and rate")
)

// arrival is one request of a load: when it comes, and whether its handler blocks the worker.
type arrival struct {
	at    time.Duration
	block bool
}

// poisson is an open load: exponential gaps, and 2 % of the requests block.
func poisson(rate float64, length time.Duration, seed uint64) []arrival {
	r := rand.New(rand.NewPCG(seed, 4))
	var load []arrival
	for at := 0.0; ; {
		at += r.ExpFloat64() / rate
		if at >= length.Seconds() {
			return load
		}
		load = append(load, arrival{time.Duration(at * float64(time.Second)), r.IntN(100) < 2})
	}
}

// ideal returns how long each request takes when one queue feeds the workers in order of arrival, which no choice at the time of arrival can beat.
func ideal(load []arrival, workers int) []time.Duration {
	return idealWork(load, workers, simWork(quickWork))
}

func idealWork(load []arrival, workers int, work func(arrival) time.Duration) []time.Duration {
	free := make([]time.Duration, workers)
	took := make([]time.Duration, len(load))
	for i, a := range load {
		next := 0
		for w := range free {
			if free[w] < free[next] {
				next = w
			}
		}
		start := max(free[next], a.at)
		free[next] = start + work(a)
		took[i] = free[next] - a.at
	}
	return took
}

const late = 20 * time.Millisecond

// lateShare is the share in percent of the requests that do not block themselves and take longer than 20 ms.
func lateShare(load []arrival, took []time.Duration) float64 { return slowShare(load, took, late) }

// slowShare is lateShare for another limit.
func slowShare(load []arrival, took []time.Duration, limit time.Duration) float64 {
	quick, slow := quickOf(load, took), 0
	for _, d := range quick {
		if d > limit {
			slow++
		}
	}
	return 100 * float64(slow) / float64(len(quick))
}

// quickOf is how long the requests took that do not block.
func quickOf(load []arrival, took []time.Duration) (quick []time.Duration) {
	for i, a := range load {
		if !a.block {
			quick = append(quick, took[i])
		}
	}
	return quick
}

// play sends the load to the address, each request on a connection of its own at its time whatever became of the others, and returns how long each took from
// the time it was due.
func play(tb testing.TB, address string, load []arrival) []time.Duration {
	tb.Helper()
	took := make([]time.Duration, len(load))
	var wg sync.WaitGroup
	var once sync.Once
	began := time.Now()
	for i, a := range load {
		time.Sleep(time.Until(began.Add(a.at)))
		wg.Add(1)
		go func() {
			defer wg.Done()
			ask := byte(askQuick)
			if a.block {
				ask = askBlock
			}
			if err := request(address, ask); err != nil {
				once.Do(func() { tb.Errorf("request: %v", err) })
			}
			took[i] = time.Since(began) - a.at
		}()
	}
	wg.Wait()
	return took
}

func request(address string, ask byte) error {
	c, err := net.DialTimeout("tcp", address, 30*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	buf := [1]byte{ask}
	if _, err := c.Write(buf[:]); err != nil {
		return err
	}
	_, err = c.Read(buf[:])
	return err
}

// fleet is four workers behind a group or a single socket, with or without a poller.
type fleet struct {
	group   *testGroup
	workers []*testWorker
	poller  *Poller
}

func (f *fleet) address() string { return fmt.Sprintf("127.0.0.1:%d", f.group.port()) }

// startFleet starts n workers. Single gives them one socket; otherwise each has its own. Without options there is no poller.
func startFleet(tb testing.TB, n int, single bool, opts *Options, cred *syscall.Credential) *fleet {
	tb.Helper()
	sockets := n
	if single {
		sockets = 1
	}
	f := &fleet{group: newGroup(tb, "127.0.0.1", sockets)}
	for i := range n {
		f.workers = append(f.workers, startWorker(tb, f.group.fds[i%sockets], cred))
	}
	if opts == nil {
		return f
	}
	o := *opts
	if o.Tick == 0 {
		o.Tick = 2 * time.Millisecond // this process makes the load, too: its CPU time is not the price of looks
	}
	p, err := NewPoller(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.Close)
	f.poller = p
	p.Update(f.membership(tb, cred, nil))
	return f
}

// membership is the message for the fleet as it is, all Ready but for the given states.
func (f *fleet) membership(tb testing.TB, cred *syscall.Credential, states map[int]State) Membership {
	tb.Helper()
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	if cred != nil {
		uid, gid = cred.Uid, cred.Gid
	}
	g := Group{ID: 1}
	for i, w := range f.workers {
		state, ok := states[i]
		if !ok {
			state = Ready
		}
		g.Members = append(g.Members, Member{Seat: i, Slot: i, FD: dupOf(tb, f.group.fds[i]), State: state, PID: w.pid, TID: w.pid, UID: uid, GID: gid})
	}
	return Membership{Groups: []Group{g}}
}

// tailModes lists what TestTail compares.
var modes = []struct {
	name   string
	single bool
	opts   *Options
}{
	{"hash", false, nil},
	{"single", true, nil},
	{"queue", false, &Options{QueueOnly: true, NoConns: true}},
	{"queue+wait", false, &Options{NoConns: true}},
	{"steer", false, &Options{}},
	{"timed", false, &Options{Timed: true}},
	{"timed1ms", false, &Options{Timed: true, Tick: time.Millisecond}},
}

// TestTail compares how many requests wait behind a blocked worker: 4 workers, Poisson arrivals, 2 % of them block their worker for 200 ms. The long form
// (go test -run TestTail -tail 40s -v) prints a table; the short one checks that steering is far better than the kernel's hash on the same arrivals.
func TestTail(t *testing.T) {
	length := *tailLong
	if length == 0 {
		length = 3 * time.Second
	}
	for _, rateText := range strings.Split(*tailRates, ",") {
		var rate float64
		if _, err := fmt.Sscan(rateText, &rate); err != nil {
			t.Fatal(err)
		}
		if *tailLong == 0 && rate < 300 {
			continue
		}
		shares, stalls := make(map[string][]float64), make(map[string]float64)
		for run := range *tailRuns {
			load := poisson(rate, length, uint64(run)+1)
			best := lateShare(load, ideal(load, 4))
			for _, m := range modes {
				if *tailModes != "" && !slices.Contains(strings.Split(*tailModes, ","), m.name) {
					continue
				}
				if *tailLong == 0 && m.name != "hash" && m.name != "steer" {
					continue
				}
				t.Run(fmt.Sprintf("%s/%v/%d", m.name, rate, run), func(t *testing.T) {
					f := startFleet(t, 4, m.single, m.opts, nil)
					took := play(t, f.address(), load)
					share := lateShare(load, took)
					stalls[m.name] = slowShare(load, took, blockTime/2)
					shares[m.name] = append(shares[m.name], share)
					line := fmt.Sprintf("%-10s %3.0f/s run %d: %5.2f %% late, ideal %5.2f %%, ratio %.2f; %.2f %% over 100 ms, ideal %.2f %%", m.name, rate, run, share, best,
						share/best, stalls[m.name], slowShare(load, ideal(load, 4), blockTime/2))
					if f.poller != nil {
						line += fmt.Sprintf(", %d ticks, %d attaches", f.poller.ticks.Load(), f.poller.attaches.Load())
					}
					t.Log(line)
				})
			}
		}
		for name, s := range shares {
			slices.Sort(s)
			if len(s) > 1 {
				t.Logf("%-10s %3.0f/s: median %.2f %% of %d", name, rate, s[len(s)/2], len(s))
			}
		}
		if *tailLong == 0 {
			// A busy machine makes requests late for reasons of its own, but seldom for half a block.
			if h, s := stalls["hash"], stalls["steer"]; h < 5 || s > h/2 {
				t.Errorf("%.2f %% of the requests stall with steering, with hash %.2f %%; want less than half", s, h)
			}
		}
	}
}

// TestIdeal holds the yardstick against Erlang's formula for M/M/4, with exponential work.
func TestIdealOfOneWorker(t *testing.T) {
	load := []arrival{{0, true}, {50 * time.Millisecond, false}, {300 * time.Millisecond, false}}
	got := ideal(load, 1)
	want := []time.Duration{blockTime, blockTime - 50*time.Millisecond + quickWork, quickWork}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := ideal(load, 2)[1]; got != quickWork {
		t.Errorf("with two workers the second request takes %v, want %v", got, quickWork)
	}
	if s := lateShare(load, got); math.Abs(s-50) > 0.01 {
		t.Errorf("late share %v, want 50", s)
	}
}
