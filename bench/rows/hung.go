package rows

import (
	"context"
	"fmt"
	"math"
	"syscall"
	"time"

	"skep/bench/load"
	"skep/bench/peers"
)

func init() {
	register(&Row{
		Name:  "hung",
		Title: "A worker whose event loop hangs",
		Why: `100 connections a second; one request blocks its worker for good. Everybody is told to replace a
worker that hangs for 5 s. gunicorn's workers touch a file from their event loop and are killed when that stops.
skep needs no help from the application: a worker that takes nothing from its accept queue while connections wait in
it is hung, and so is one whose accepting thread has slept elsewhere all the time while connections are open; it gets
nothing new from the first look on. uvicorn's and node's managers look only for workers that
have ended, so a hung one stays and the service has one worker less. Requests that waited are counted from one
second after the block on, when a steering program must have seen it.`,
		Cases:    []string{"5 s"},
		Subjects: []string{"skep", "uvicorn --workers", "gunicorn + uvicorn", "node cluster", "supervisord"},
		Base:     "skep",
		Ratio:    "slow",
		Judged:   []string{"replaced", "failed"},
		Metrics: []Metric{
			{Name: "replaced", Title: "replaced after, s", Digits: 1, Never: "not while it was watched"},
			{Name: "slow", Title: "later requests over 20 ms"},
			{Name: "failed", Title: "failed"},
			{Name: "worst", Title: "worst answer, ms", Digits: 0},
		},
		Goals: []Goal{
			{Case: "5 s", Subject: "skep", Metric: "replaced", AtMost: true, Bound: 5.5},
			{Case: "5 s", Subject: "skep", Metric: "slow", AtMost: true, Bound: 0},
		},
		Runs: 2, Seconds: 70,
		Plots: []Plot{{Kind: "strips", Title: "Requests over 20 ms around the block", Of: []string{"slow"}, Unit: "requests per 200 ms"}},
		Measure: func(ctx context.Context, e *Env, j Job) (Sample, error) {
			const lead, watch = 1500 * time.Millisecond, 9 * time.Second
			v, err := serve(ctx, e, j, peers.Config{Workers: 4, HangTimeout: 5 * time.Second})
			if err != nil {
				return Sample{}, err
			}
			defer v.End()
			seed := e.seed(j)
			plan := load.Mix(seed, load.Poisson(seed, 100, lead+watch), "/", "", 0)
			for i := range plan {
				if plan[i].At >= lead {
					plan[i].Path, plan[i].Blocking = "/block?ms=600000", true
					break
				}
			}
			records, err := drive(ctx, v, load.Options{Timeout: 6 * time.Second}, plan)
			if err != nil {
				return Sample{}, err
			}
			var old []int
			for _, r := range records {
				if r.OK() && r.End() < lead {
					old = append(old, r.PID)
				}
			}
			other := func(r load.Record) bool { return !r.Blocking }
			late := func(r load.Record) bool {
				return other(r) && r.Start > lead+time.Second && (!r.OK() || r.Latency > 20*time.Millisecond)
			}
			return Sample{
				Values: Values{
					"replaced": firstNew(records, old, lead), "slow": count(records, late),
					"failed": count(records, func(r load.Record) bool { return other(r) && !r.OK() }),
					"worst":  worst(records, func(r load.Record) bool { return other(r) && r.OK() }),
					"late":   lateness(records),
				},
				Series: map[string]Series{"slow": over(records, lead, -lead, watch, 200*time.Millisecond, func(r load.Record) bool {
					return other(r) && (!r.OK() || r.Latency > 20*time.Millisecond)
				})},
				Note: reasons(records),
			}, nil
		},
	})

	register(&Row{
		Name:  "stop",
		Title: "Stop with four frozen workers",
		Why: `All workers are frozen with SIGSTOP, as a stuck disk or a debugger would, and the manager gets TERM
with a stop timeout of 5 s. A frozen process does not see TERM; only CONT or KILL reach it. skep has one deadline
for all, sends CONT with TERM, and KILL to the whole tree when it is over, so that the end is certain. A manager that
waits for its workers without a deadline is ended by the container's runtime, with everything that it still had to do.`,
		Cases:    []string{"stop timeout 5 s"},
		Subjects: []string{"skep", "uvicorn --workers", "gunicorn + uvicorn", "node cluster", "supervisord"},
		Base:     "skep",
		Ratio:    "gone",
		Metrics:  []Metric{{Name: "gone", Title: "all gone after, s", Digits: 2, Never: "not while it was watched"}},
		Goals:    []Goal{{Case: "stop timeout 5 s", Subject: "skep", Metric: "gone", AtMost: true, Bound: 6}},
		Runs:     2, Seconds: 54,
		Measure: func(ctx context.Context, e *Env, j Job) (Sample, error) {
			v, err := serve(ctx, e, j, peers.Config{Workers: 4, StopTimeout: 5 * time.Second})
			if err != nil {
				return Sample{}, err
			}
			defer v.End()
			workers := v.Workers()
			if len(workers) < 4 {
				return Sample{}, fmt.Errorf("only %d workers are alive", len(workers))
			}
			for _, pid := range workers {
				if err := v.SignalOne(pid, syscall.SIGSTOP); err != nil {
					return Sample{}, err
				}
			}
			took, gone := v.Stop(12 * time.Second)
			if !gone {
				return Sample{Values: Values{"gone": math.Inf(1)}}, nil
			}
			return Sample{Values: Values{"gone": took.Seconds()}}, nil
		},
	})
}
