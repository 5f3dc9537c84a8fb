package rows

import (
	"context"
	"fmt"
	"time"

	"skep/bench/load"
	"skep/bench/peers"
	"skep/bench/queueing"
	"skep/bench/stats"
)

const (
	tailWorkers = 4
	tailBlock   = 200 * time.Millisecond
	tailShare   = 0.02
	tailLimit   = 20 * time.Millisecond
	tailWork    = 2 * time.Millisecond
	ideal       = "ideal queue"
)

// tailMetrics are what tailSample gives.
var tailMetrics = []Metric{
	{Name: "over", Title: "over 20 ms, %", Digits: 2},
	{Name: "p50", Title: "p50, ms", Digits: 2},
	{Name: "p99", Title: "p99, ms", Digits: 1},
	{Name: "p999", Title: "p99.9, ms", Digits: 1},
	{Name: "failed", Title: "failed"},
	{Name: "late", Title: "generator late p99, ms", Digits: 2},
}

func init() {
	register(&Row{
		Name:  "tail",
		Title: "Tail latency when 2 % of the handlers block their worker",
		Why: `Poisson arrivals, a connection each, four workers; one request in fifty blocks its
worker for 200 ms. The table counts the other requests that needed more than 20 ms: they waited behind a
blocked worker. With plain SO_REUSEPORT the kernel picks the worker by a hash of the addresses, so a blocked
worker goes on getting its share, and everything that it gets waits. A shared queue (gunicorn, uvicorn) has
only free workers take connections, but a free asyncio worker takes several at once from the queue, and those
behind a blocking one wait although others are idle. skep steers before the worker takes anything: it looks at
the queues and at what the accepting threads wait for. Node's primary hands connections out in turn, whether
the worker is blocked or not. The ideal queue is the same arrivals in a simulation: four workers, one queue,
first come first served, no time lost between. (For the quick requests alone it is not a strict bound: a server that
makes one blocking request wait behind another keeps the rest of its workers free.) skep looks when a connection has come, as long as
5 % of a processor pay for it, which depends on the machine. What is left above the ideal are the connections that came
between a worker's block and the next look at it, those that had to be given to some queue while all workers were blocked, where in a shared queue the first
free worker takes them, and the time the machine itself takes. skep guesses from the last blocks which worker will be free first, and does not give it too many: one that takes
all at once and is blocked again by one of them keeps the rest waiting. With requests as short as these the shared queues are at their best, and even under the ideal, which counts the latency of a quick request as work although part of it is a wake-up. At the lower rate a few
requests of two thousand decide: the raw data has them.`,
		Cases: []string{"150/s", "300/s"},
		// skep hash is plain reuseport here, and gunicorn's default worker serves
		// no asyncio application: both would only make the longest row longer.
		Subjects:  []string{ideal, "skep", "plain reuseport", "uvicorn --workers", "gunicorn + uvicorn", "node cluster"},
		Reference: []string{ideal},
		Base:      ideal,
		Ratio:     "over",
		Judged:    []string{"p50"},
		Metrics:   tailMetrics,
		Goals: []Goal{
			{Case: "150/s", Subject: "skep", Metric: "over", AtMost: true, Bound: 1.1, Of: ideal},
			{Case: "300/s", Subject: "skep", Metric: "over", AtMost: true, Bound: 1.1, Of: ideal},
			{Case: "300/s", Subject: "skep", Metric: "over", AtMost: true, Bound: 1, Of: "gunicorn + uvicorn"},
			{Case: "300/s", Subject: "skep", Metric: "over", AtMost: true, Bound: 1, Of: "uvicorn --workers"},
		},
		Runs: 5, Seconds: 155,
		Plots: []Plot{{Kind: "curve", Title: "Latency of the requests that do not block", Unit: "ms"}},
		Measure: func(ctx context.Context, e *Env, j Job) (Sample, error) {
			return tail(ctx, e, j, 0, pick(e, 15*time.Second, 4*time.Second))
		},
	})
	register(&Row{
		Name:  "work",
		Title: "The same when each request computes",
		Why: fmt.Sprintf(`The load of the row before, but the requests that do not block compute for %v of processor time, as requests do that are good for something.
A free worker is then rare, and a busy one has to be told from a blocked one, by what its thread does and by when it was last seen to get on. The ideal queue has a processor for each
worker; the servers share two with each other and with the load generator, so that none gets near it.`, tailWork),
		Cases:     []string{"300/s"},
		Subjects:  []string{ideal, "skep", "uvicorn --workers", "gunicorn + uvicorn"},
		Reference: []string{ideal},
		Base:      "gunicorn + uvicorn",
		Ratio:     "over",
		Judged:    []string{"p50"},
		Metrics:   tailMetrics,
		Runs:      3, Seconds: 40,
		Measure: func(ctx context.Context, e *Env, j Job) (Sample, error) {
			return tail(ctx, e, j, tailWork, pick(e, 12*time.Second, 4*time.Second))
		},
	})
}

// tail measures a load in which some requests block, and the others compute for as long as work says.
func tail(ctx context.Context, e *Env, j Job, work, length time.Duration) (Sample, error) {
	var rate float64
	if _, err := fmt.Sscanf(j.Case, "%f/s", &rate); err != nil {
		return Sample{}, err
	}
	seed := e.seed(j)
	path := "/"
	if work > 0 {
		path = fmt.Sprintf("/work?ms=%d", work.Milliseconds())
	}
	plan := load.Mix(seed, load.Poisson(seed, rate, length), path, fmt.Sprintf("/block?ms=%d", tailBlock.Milliseconds()), tailShare)
	var records []load.Record
	if j.Subject == ideal {
		base, err := e.serviceTime(ctx)
		if err != nil {
			return Sample{}, err
		}
		records = idealRecords(plan, base, work)
	} else {
		v, err := serve(ctx, e, j, peers.Config{Workers: tailWorkers})
		if err != nil {
			return Sample{}, err
		}
		defer v.End()
		if records, err = drive(ctx, v, load.Options{}, plan); err != nil {
			return Sample{}, err
		}
	}
	return tailSample(records), nil
}

func tailSample(records []load.Record) Sample {
	quick := func(r load.Record) bool { return !r.Blocking }
	lat := milliseconds(records, func(r load.Record) bool { return quick(r) && r.OK() })
	q := stats.Quantiles(lat, 0.5, 0.99, 0.999)
	// A request that failed did not come back in time either.
	slow := count(records, func(r load.Record) bool { return quick(r) && (!r.OK() || r.Latency > tailLimit) })
	return Sample{
		Values: Values{
			"over": 100 * slow / count(records, quick), "p50": q[0], "p99": q[1], "p999": q[2],
			"failed": count(records, failed), "late": lateness(records),
		},
		Curve: curve(lat), Note: reasons(records),
	}
}

// idealRecords are the records that a server without any loss would have given
// whose requests need the time base, and work or tailBlock on top of it.
func idealRecords(plan []load.Arrival, base, work time.Duration) []load.Record {
	jobs := make([]queueing.Job, len(plan))
	for i, a := range plan {
		jobs[i] = queueing.Job{At: a.At, Service: base + work}
		if a.Blocking {
			jobs[i].Service = base + tailBlock
		}
	}
	records := make([]load.Record, len(plan))
	for i, w := range queueing.Waits(tailWorkers, jobs) {
		records[i] = load.Record{Start: plan[i].At, Sent: plan[i].At, Latency: w + jobs[i].Service,
			Status: 200, Conn: -1, Blocking: plan[i].Blocking}
	}
	return records
}

// serviceTime is how long a worker needs for an empty handler with a new
// connection, on this machine: the median at a load that queues nothing. It is
// measured once.
func (e *Env) serviceTime(ctx context.Context) (time.Duration, error) {
	if d, ok := e.base["uvicorn"]; ok {
		return d, nil
	}
	s, _ := peers.Find("plain reuseport")
	v, err := s.Serve(ctx, e.Tools, peers.Config{Workers: 1}, 30*time.Second)
	if err != nil {
		return 0, err
	}
	defer v.End()
	records, err := drive(ctx, v, load.Options{}, load.Mix(1, load.Poisson(1, 50, 2*time.Second), "/", "", 0))
	if err != nil {
		return 0, err
	}
	if n := count(records, failed); n > 0 {
		return 0, fmt.Errorf("cannot measure the service time: %s", reasons(records))
	}
	lat := milliseconds(records, load.Record.OK)
	d := time.Duration(stats.Quantile(lat, 0.5) * float64(time.Millisecond))
	if e.base == nil {
		e.base = map[string]time.Duration{}
	}
	e.base["uvicorn"] = d
	return d, nil
}
