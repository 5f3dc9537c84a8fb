package steer

import (
	"flag"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	simTicks   = flag.String("sim.ticks", "1ms,2ms,0", "times between two looks of TestTailSimulated; 0 is looks at connections, at the pace that Poller keeps")
	simLatency = flag.Duration("sim.latency", 100*time.Microsecond, "how long after a connection it is looked at")
	simCost    = flag.Duration("sim.cost", 2*time.Millisecond, "the time that pays for a look")
	simSpin    = flag.Bool("sim.spin", false, "requests that block compute instead of sleeping")
	simLength  = flag.Duration("sim.length", 300*time.Second, "the length of the load of TestTailSimulated")
)

// simWorker is a model of serveLoop: one thread that accepts all that is pending when it has nothing left to do, and runs the handlers in turn.
type simWorker struct {
	queue, local []int // requests, by their number
	until        time.Duration
	working      bool
	blocks       bool // the request in hand does
	moved        time.Duration
	conns, wait  int // at the look before
}

// simulation runs a load against workers and the choice made once per tick. It has no noise: what it shows is the choice's own doing.
type simulation struct {
	load    []arrival
	work    func(arrival) time.Duration
	took    []time.Duration
	workers []simWorker
	next    int
	port    int
	choose  func(now time.Duration, views []View, burst int) []int
	burst   burst
	past    past
	arrived int

	attaches, looks int
}

// run returns how long each request took. A tick of 0 is looks at connections.
func (s *simulation) run(workers int, tick time.Duration) []time.Duration {
	s.workers = make([]simWorker, workers)
	s.took = make([]time.Duration, len(s.load))
	views := make([]View, workers)
	r := rand.New(rand.NewPCG(3, 3))
	pace := newPace(shortestTick, longestTick)
	pace.fixed(*simCost)
	var choice []int
	var asked, came, last time.Duration
	armed := false
	for now := time.Duration(0); s.next < len(s.load); {
		soon := 2
		for i := range s.workers {
			s.workers[i].advance(s, now)
			v := s.workers[i].view(now)
			s.past.learn(&views[i], &v, now-last)
			v.Cost = s.past.cost(v.Lag)
			views[i] = v
			switch {
			case views[i].free():
				soon = 0
			case views[i].running():
				soon = min(soon, 1)
			}
		}
		last = now
		s.burst.saw(now, s.arrived)
		s.arrived = 0
		s.looks++
		if armed && now == came+*simLatency {
			pace.came(now - asked)
			armed = false
		}
		pace.look(now, func() time.Duration { return 0 })
		due, burst := now+tick, s.burst.next
		if tick == 0 {
			due = now + pace.pause(soon)
			if !armed && pace.asks() {
				asked, armed = now, true
			}
			if !armed {
				burst = max(burst, pace.expects())
			}
		}
		if now := s.choose(now, views, burst); !serves(choice, now, burst <= perTick) {
			choice = now
			s.attaches++
		}
		for ; s.next < len(s.load) && s.load[s.next].at < due; s.next++ {
			at := s.load[s.next].at
			s.port += 2 + 2*r.IntN(8) // as Linux clients do
			w := &s.workers[choice[s.port/int(portWidth(len(choice)))%len(choice)]]
			w.advance(s, at)
			w.queue = append(w.queue, s.next)
			w.advance(s, at)
			s.arrived++
			if armed && at+*simLatency < due {
				came, due = at, at+*simLatency
			}
		}
		now = due
	}
	for i := range s.workers {
		s.workers[i].advance(s, time.Hour*1000)
	}
	return s.took
}

// runShared is the same with one queue for all: a worker that has nothing left to do accepts all that is pending.
func (s *simulation) runShared(workers int) []time.Duration {
	s.took = make([]time.Duration, len(s.load))
	free := make([]time.Duration, workers)
	for s.next < len(s.load) {
		first := slices.Index(free, slices.Min(free))
		now := max(free[first], s.load[s.next].at)
		free[first] = now
		for ; s.next < len(s.load) && s.load[s.next].at <= now; s.next++ {
			free[first] += s.work(s.load[s.next])
			s.took[s.next] = free[first] - s.load[s.next].at
		}
	}
	return s.took
}

func (w *simWorker) advance(s *simulation, now time.Duration) {
	for {
		if w.working {
			if w.until > now {
				return
			}
			s.took[w.local[0]] = w.until - s.load[w.local[0]].at
			w.local, w.working = w.local[1:], false
		}
		if len(w.local) == 0 {
			w.local, w.queue = w.queue, nil
		}
		if len(w.local) == 0 {
			return
		}
		// A worker that was idle begins when the request comes, one that was not goes on where it ended.
		w.working, w.blocks = true, s.load[w.local[0]].block
		w.until = max(w.until, s.load[w.local[0]].at) + s.work(s.load[w.local[0]])
	}
}

func (w *simWorker) view(now time.Duration) View {
	v := View{State: Ready, Wait: Busy, Queue: len(w.queue), Conns: len(w.local), Gulps: true}
	if !w.working {
		v.Wait = Idle
	}
	if !w.working || len(w.local) != w.conns || len(w.queue) < w.wait {
		w.moved = now
	}
	v.Asleep = w.working && w.blocks && !*simSpin
	w.conns, w.wait = len(w.local), len(w.queue)
	v.Lag = now - w.moved
	return v
}

func simWork(quick time.Duration) func(arrival) time.Duration {
	return func(a arrival) time.Duration {
		if a.block {
			return blockTime
		}
		return quick
	}
}

// TestTailSimulated holds the choice against the ideal, in a world without noise: 4 workers, Poisson arrivals, 2 % of the requests block their worker for
// 200 ms. TestTail does the same with processes.
func TestTailSimulated(t *testing.T) {
	forget := func(wait, conns bool) func(time.Duration, []View, int) []int {
		return func(_ time.Duration, views []View, burst int) []int {
			for i := range views {
				if wait {
					views[i].Wait = Unknown
				}
				if conns {
					views[i].Conns = -1
				}
			}
			return Choose(nil, views, burst)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	hash := func(time.Duration, []View, int) []int { return []int{r.IntN(4)} }
	for _, rate := range []float64{150, 300} {
		for _, c := range []struct {
			quick time.Duration
			limit float64 // of the ideal
		}{
			{300 * time.Microsecond, 1.25}, // requests so short that two often come to one worker within a tick, and the first may be one that blocks
			{time.Millisecond, 1.1},
			{2 * time.Millisecond, 1.1},
			{4 * time.Millisecond, 1.1},
		} {
			quick := c.quick
			load := poisson(rate, *simLength, 99)
			best := lateShare(load, idealWork(load, 4, simWork(quick)))
			looks := 0 // of the last run
			run := func(tick time.Duration, choose func(time.Duration, []View, int) []int) float64 {
				s := &simulation{load: load, work: simWork(quick), choose: choose}
				defer func() { looks = s.looks }()
				return lateShare(load, s.run(4, tick))
			}
			shared := lateShare(load, (&simulation{load: load, work: simWork(quick)}).runShared(4))
			byHash := run(time.Millisecond, hash)
			byQueue := run(time.Millisecond, forget(true, true))
			for _, text := range strings.Split(*simTicks, ",") {
				tick, err := time.ParseDuration(text)
				if err != nil {
					t.Fatal(err)
				}
				withoutConns, withoutWait, steered := run(tick, forget(false, true)), run(tick, forget(true, false)), run(tick, forget(false, false))
				t.Logf("%v/s of %v, tick %v: %.2f %% late, without connections %.2f, without wait channel %.2f, by queue %.2f, by hash %.2f; shared %.2f, ideal %.2f; %.0f looks a second",
					rate, quick, tick, steered, withoutConns, withoutWait, byQueue, byHash, shared, best, float64(looks)/simLength.Seconds())
				// Where hardly anything is late in the ideal world, a few requests more are as good as equal.
				if limit := c.limit*best + 0.1; steered > limit || withoutConns > limit {
					t.Errorf("%v/s of %v, tick %v: %.2f %% and %.2f %% late; the ideal is %.2f %%", rate, quick, tick, steered, withoutConns, best)
				}
				if tick == 0 && *simCost <= 2*ms && rate == 300 && quick <= ms && steered > shared {
					t.Errorf("%v/s of %v: %.2f %% late, and %.2f with one queue for all", rate, quick, steered, shared)
				}
				if steered >= byQueue || byQueue >= byHash {
					t.Errorf("%v/s of %v, tick %v: %.2f %% late steered, %.2f %% by queue, %.2f %% by hash; want each to be better than the next",
						rate, quick, tick, steered, byQueue, byHash)
				}
			}
		}
	}
}
