package rows

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"skep/bench/load"
	"skep/bench/peers"
)

func init() {
	const connections, workers = 64, 4
	register(&Row{
		Name:  "spread",
		Title: "Spread of 64 keep-alive connections over 4 workers",
		Why: `A keep-alive connection stays with the worker that took it, so an uneven start stays uneven for as
long as the clients live: the busiest worker decides the latency of a fleet that was sized for the mean. With a
shared queue the worker that wakes first takes what it finds; the kernel's hash is even only on average, with the
deviation of a throw of dice. skep gives a connection to the worker with the fewest. In one burst all connections
come before the first of them can be counted, so that chance has a part in it again. Before them nothing happens for a second. Node hands out in turn and is
exactly even; it pays for this with a process in the way of every connection.`,
		Cases: []string{"over 1 s", "in one burst"},
		Subjects: []string{"skep", "skep hash", "plain reuseport", "uvicorn --workers", "gunicorn + uvicorn",
			"node cluster", "nginx reuseport"},
		Base:  "skep",
		Ratio: "busiest",
		Metrics: []Metric{
			{Name: "busiest", Title: "busiest / mean", Digits: 2},
			{Name: "least", Title: "least / mean", Digits: 2},
			{Name: "failed", Title: "failed"},
		},
		Goals: []Goal{
			{Case: "over 1 s", Subject: "skep", Metric: "busiest", AtMost: true, Bound: 1.10},
			{Case: "in one burst", Subject: "skep", Metric: "busiest", AtMost: true, Bound: 1.3},
		},
		Runs: 2, Seconds: 75,
		Plots: []Plot{{Kind: "bars", Title: "Connections per worker, most first", Unit: "connections"}},
		Measure: func(ctx context.Context, e *Env, j Job) (Sample, error) {
			v, err := serve(ctx, e, j, peers.Config{Workers: workers})
			if err != nil {
				return Sample{}, err
			}
			defer v.End()
			// What the start has left open in some of the workers is no part of the spread.
			if err := pause(ctx, pick(e, time.Second, 300*time.Millisecond)); err != nil {
				return Sample{}, err
			}
			plan := make([]load.Arrival, connections)
			for i := range plan {
				plan[i].Path = "/"
				if j.Case == "over 1 s" {
					plan[i].At = time.Duration(i) * time.Second / connections
				}
			}
			records, err := drive(ctx, v, load.Options{Hold: true}, plan)
			if err != nil {
				return Sample{}, err
			}
			return spreadSample(records, workers)
		},
	})
}

// spreadSample counts held connections per process. A server that closes them
// has no keep-alive, and nothing to spread.
func spreadSample(records []load.Record, workers int) (Sample, error) {
	if count(records, func(r load.Record) bool { return r.Closed }) > 0 {
		return Sample{}, Lacks{"no keep-alive: closes every connection after its answer"}
	}
	perPID := map[int]float64{}
	for _, r := range records {
		if r.OK() {
			perPID[r.PID]++
		}
	}
	if perPID[0] > 0 {
		return Sample{}, errors.New("answers do not name their process")
	}
	bars := make([]float64, max(workers, len(perPID)))
	i := 0
	for _, n := range perPID {
		bars[i] = n
		i++
	}
	slices.Sort(bars)
	slices.Reverse(bars)
	mean := float64(len(records)) / float64(workers)
	note := reasons(records)
	if len(perPID) > workers {
		note = fmt.Sprintf("%d processes answered", len(perPID))
	}
	return Sample{
		Values: Values{"busiest": bars[0] / mean, "least": bars[len(bars)-1] / mean, "failed": count(records, failed)},
		Bars:   bars, Note: note,
	}, nil
}
