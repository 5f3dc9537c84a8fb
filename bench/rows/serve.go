package rows

import (
	"context"
	"fmt"
	"time"

	"skep/bench/load"
	"skep/bench/peers"
	"skep/bench/stats"
)

func init() {
	register(&Row{
		Name:  "handler",
		Title: "A handler that takes 20 ms, over keep-alive connections",
		Why: `64 keep-alive connections, 300 requests a second, and a handler that sleeps for 20 ms without blocking
its worker: everything above 20 ms is overhead. A server that writes its answer in two pieces on a connection
without TCP_NODELAY waits for the client's delayed acknowledgement, 40 ms, before the second piece leaves.
asyncio sets the option only on sockets that it made itself with the protocol number of TCP; a listener that was
passed to it lacks it unless whoever made the listener set it, and accepted sockets inherit it. skep sets it.`,
		Cases: []string{"300/s"},
		Subjects: []string{"skep", "plain reuseport", "uvicorn --workers", "gunicorn + uvicorn", "node cluster",
			"supervisord"},
		Base:  "plain reuseport",
		Ratio: "p50",
		Metrics: []Metric{
			{Name: "p50", Title: "p50, ms", Digits: 2},
			{Name: "p99", Title: "p99, ms", Digits: 2},
			{Name: "failed", Title: "failed"},
		},
		Goals: []Goal{{Case: "300/s", Subject: "skep", Metric: "p50", AtMost: true, Bound: 23}},
		Runs:  2, Seconds: 60,
		Plots: []Plot{{Kind: "curve", Title: "Latency of a handler that takes 20 ms", Unit: "ms"}},
		Measure: func(ctx context.Context, e *Env, j Job) (Sample, error) {
			v, err := serve(ctx, e, j, peers.Config{Workers: 4})
			if err != nil {
				return Sample{}, err
			}
			defer v.End()
			seed := e.seed(j)
			plan := load.Mix(seed, load.Poisson(seed, 300, pick(e, 8*time.Second, 3*time.Second)), "/sleep?ms=20", "", 0)
			records, err := drive(ctx, v, load.Options{Conns: 64, ConnectOver: 300 * time.Millisecond, Seed: seed}, plan)
			if err != nil {
				return Sample{}, err
			}
			// The connections are opened in the first moments; those are not the row.
			lat := milliseconds(records, func(r load.Record) bool { return r.OK() && r.Start > 500*time.Millisecond })
			q := stats.Quantiles(lat, 0.5, 0.99)
			return Sample{
				Values: Values{"p50": q[0], "p99": q[1], "failed": count(records, failed), "late": lateness(records)},
				Curve:  curve(lat), Note: reasons(records),
			}, nil
		},
	})

	register(&Row{
		Name:  "throughput",
		Title: "Throughput with all clients busy",
		Why: `32 clients that send the next request as soon as they have an answer; clients and servers share the
machine's cores, so the figure is what is left when everything is full. Steering costs a look at the queues every
millisecond or two and one attach when something has changed; the kernel runs a program of a few instructions per
connection in place of its hash. That takes a few hundredths at most where a new connection is all that a request is, and nothing from connections that stay. Who forks a process per worker and
accepts directly is alike; node's primary takes every new connection in one process and hands it over; nginx answers
from its configuration, without an application, and shows what the machine could do.`,
		Cases: []string{"new connections", "keep-alive"},
		Subjects: []string{"skep", "skep hash", "skep single", "plain reuseport", "uvicorn --workers", "gunicorn + uvicorn",
			"node cluster", "nginx reuseport"},
		Reference: []string{"nginx reuseport"},
		Base:      "skep hash",
		Ratio:     "rate",
		Metrics: []Metric{
			{Name: "rate", Title: "answers a second", Digits: 0, Most: true},
			{Name: "failed", Title: "failed"},
		},
		Goals: []Goal{
			{Case: "new connections", Subject: "skep", Metric: "rate", Bound: 0.97, Of: "skep hash"},
			{Case: "keep-alive", Subject: "skep", Metric: "rate", Bound: 0.97, Of: "skep hash"},
		},
		Runs: 2, Seconds: 75,
		Measure: func(ctx context.Context, e *Env, j Job) (Sample, error) {
			v, err := serve(ctx, e, j, peers.Config{Workers: 4})
			if err != nil {
				return Sample{}, err
			}
			defer v.End()
			d := pick(e, 4*time.Second, 2*time.Second)
			fresh := j.Case == "new connections"
			o := load.Options{Address: v.Addr, Conns: 32, Sources: 64, Seed: e.seed(j)}
			answers, failures, err := load.Saturate(ctx, o, "/", fresh, d)
			if err != nil {
				return Sample{}, err
			}
			if answers == 0 {
				return Sample{}, fmt.Errorf("no answer at all, %d failures", failures)
			}
			return Sample{Values: Values{"rate": float64(answers) / d.Seconds(), "failed": float64(failures)}}, nil
		},
	})
}
