package rows

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"skep/bench/load"
	"skep/bench/peers"
)

const (
	killed  = "kill -9"
	stopped = "stopped 3 s, then kill -9"
)

func init() {
	register(&Row{
		Name:  "crash",
		Title: "One of four workers is killed under load",
		Why: `200 connections a second, a connection per request; one worker gets SIGKILL, as from the OOM killer
or a crash, in the second case after it has been frozen for 3 s. What a worker had accepted is lost with every
program: nobody else has those connections. What waits in a queue of its own is lost as well with plain
SO_REUSEPORT, because the queue dies with its worker's socket. With skep, PID 1 holds the socket: the queue
outlives the worker and the next one in the slot answers it. A frozen worker shows the difference best: skep's
steering sees its queue and leaves it alone, while the kernel's hash goes on feeding it for as long as it is there.
A shared queue has the same strength here: a frozen worker takes nothing from it. The few that came to a frozen
worker before its queue was seen wait for its successor with skep, which is the worst answer of the table. The last
column is how long it took until a new process answered. gunicorn and node are fast: they start at once, and gunicorn forks
a process that has python loaded already. skep waits half a second before it restarts a worker that crashed, so that a crash loop never storms, and then starts the
command from nothing; where that is too long there is a spare (see below). uvicorn of this version restarts nothing.`,
		Cases: []string{killed, stopped},
		Subjects: []string{"skep", "skep hash", "plain reuseport", "uvicorn --workers", "gunicorn + uvicorn",
			"node cluster", "supervisord"},
		Base:   "skep",
		Ratio:  "failed",
		Judged: []string{"slow", "gap"},
		Metrics: []Metric{
			{Name: "failed", Title: "failed"},
			{Name: "slow", Title: "answered after > 100 ms"},
			{Name: "worst", Title: "worst answer, ms", Digits: 0},
			{Name: "gap", Title: "new worker after, s", Digits: 2, Never: "not while it was watched"},
		},
		Goals: []Goal{
			{Case: killed, Subject: "skep", Metric: "failed", AtMost: true, Bound: 1},
			{Case: stopped, Subject: "skep", Metric: "failed", AtMost: true, Bound: 1},
		},
		Runs: 2, Seconds: 150,
		Plots: []Plot{{Kind: "strips", Title: "Failed and slow (> 100 ms) requests around the crash", Of: []string{"failed", "slow"}, Unit: "requests per 100 ms"}},
		Measure: func(ctx context.Context, e *Env, j Job) (Sample, error) {
			frozen, after := time.Duration(0), pick(e, 6*time.Second, 3*time.Second)
			if j.Case == stopped {
				frozen = 3 * time.Second
			}
			return crash(ctx, e, j, 200, peers.Config{Workers: 4}, frozen, after, 0)
		},
	})

	register(&Row{
		Name:  "standby",
		Title: "The same with a hot spare",
		Why: `100 connections a second, and one more every two milliseconds just after one of four workers is killed; how soon after the kill came a connection that
a process answered at once that had not answered before? The connections stay open, so that one that has just come to serve is the next choice wherever the fewest count, and the figure is not
how the dice fell. Without a spare that is the time to start an interpreter and import the application, and a
real application takes seconds for it. skep's standby slot is a complete worker that already listens and that steering never picks: one
system call puts it in the dead worker's place, as soon as the kernel begins to end that one: until it has taken the memory back, some
ten milliseconds for an interpreter, nobody else is told. No peer here has such a thing; a fifth worker is not
the same, because it serves all the time and is as likely to be hit.`,
		Cases:    []string{"kill -9, import takes 1 s"},
		Subjects: []string{"skep standby", "skep", "gunicorn + uvicorn", "node cluster"},
		Base:     "skep standby",
		Ratio:    "gap_ms",
		Metrics: []Metric{
			{Name: "gap_ms", Title: "full number of workers after, ms", Digits: 0, Never: "not while it was watched"},
			{Name: "failed", Title: "failed"},
			{Name: "slow", Title: "answered after > 100 ms"},
		},
		Runs: 3, Seconds: 40,
		Goals: []Goal{{Case: "kill -9, import takes 1 s", Subject: "skep standby", Metric: "gap_ms", AtMost: true, Bound: 10}},
		Measure: func(ctx context.Context, e *Env, j Job) (Sample, error) {
			c := peers.Config{Workers: 4, Env: []string{"BENCH_IMPORT_SECONDS=1"}}
			return crash(ctx, e, j, 100, c, 0, 3*time.Second, dense)
		},
	})
}

// dense is for how long after a kill a connection comes every two milliseconds, so that
// the time until the first one comes to a spare is hardly in the figure. All connections of
// such a run are kept open.
const dense = 40 * time.Millisecond

// crash serves, freezes a worker for a time, kills it, and looks at what the
// clients saw until after. For the time given by more, from the kill on, a
// connection every two milliseconds comes beside the others.
func crash(ctx context.Context, e *Env, j Job, rate float64, c peers.Config, frozen, after, more time.Duration) (Sample, error) {
	const lead = 1500 * time.Millisecond
	v, err := serve(ctx, e, j, c)
	if err != nil {
		return Sample{}, err
	}
	defer v.End()
	workers := v.Workers()
	if len(workers) < c.Workers {
		return Sample{}, fmt.Errorf("only %d workers are alive", len(workers))
	}
	if j.Subject == "skep standby" {
		// The spare must be up before the crash, or the row would measure a start.
		if err := v.WaitFor(ctx, 20*time.Second, func() bool { return len(v.Workers()) > c.Workers }); err != nil {
			return Sample{}, fmt.Errorf("no spare was started: %w", err)
		}
		if err := pause(ctx, 2*time.Second); err != nil { // its import
			return Sample{}, err
		}
	}
	// The victim is one that serves; a spare has not answered anybody.
	rng := rand.New(rand.NewPCG(e.seed(j), 4))
	answering := v.Answering(ctx, 40)
	if len(answering) == 0 {
		return Sample{}, fmt.Errorf("nobody answers")
	}
	victim := answering[rng.IntN(len(answering))]

	seed := e.seed(j)
	begin := time.Now().Add(50 * time.Millisecond)
	struck := make(chan time.Duration, 1)
	timer := time.AfterFunc(time.Until(begin)+lead, func() {
		at := time.Since(begin)
		if frozen > 0 {
			_ = v.SignalOne(victim, syscall.SIGSTOP)
			time.Sleep(frozen)
		}
		_ = v.SignalOne(victim, syscall.SIGKILL)
		struck <- at
	})
	defer timer.Stop()
	times := load.Poisson(seed, rate, lead+frozen+after)
	for t := time.Duration(0); t < more; t += 2 * time.Millisecond {
		times = append(times, lead+frozen+t)
	}
	slices.Sort(times)
	plan := load.Mix(seed, times, "/", "", 0)
	records, err := drive(ctx, v, load.Options{Begin: begin, Timeout: 5 * time.Second, Hold: more > 0}, plan)
	if err != nil {
		return Sample{}, err
	}
	var at time.Duration
	select {
	case at = <-struck:
	case <-ctx.Done():
		return Sample{}, context.Cause(ctx)
	}
	old := map[int]bool{}
	for _, r := range records {
		if r.OK() && r.End() < at {
			old[r.PID] = true
		}
	}
	if !old[victim] {
		return Sample{}, fmt.Errorf("the worker that was killed had served nothing")
	}
	var before []int
	for pid := range old {
		before = append(before, pid)
	}
	slow := func(r load.Record) bool { return r.OK() && r.Latency > 100*time.Millisecond }
	gap := firstNew(records, before, at+frozen)
	if frozen > 0 {
		// A new process may have answered while the frozen one was still there.
		gap = math.Max(0, firstNew(records, before, at)-frozen.Seconds())
	}
	to := frozen + after
	return Sample{
		Values: Values{
			"failed": count(records, failed), "slow": count(records, slow),
			"worst": worst(records, func(r load.Record) bool { return r.OK() && r.Start > at-100*time.Millisecond }),
			"gap":   gap, "late": lateness(records),
			"gap_ms": 1000 * firstFor(records, before, at+frozen, slow),
		},
		Series: map[string]Series{
			"failed": over(records, at, -time.Second, to, 100*time.Millisecond, failed),
			"slow":   over(records, at, -time.Second, to, 100*time.Millisecond, slow),
		},
		Note: reasons(records),
	}, nil
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
