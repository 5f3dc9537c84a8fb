package rows

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"time"

	"skep/bench/load"
	"skep/bench/peers"
)

func init() {
	const (
		limit   = 512 << 20
		large   = "512 MiB"
		fastAPI = "FastAPI, one CPU, advice for 20"
	)
	register(&Row{
		Name:  "memory",
		Title: "A container of 512 MiB",
		Why: `Workers that hold about 130 MB each, and an ordinary FastAPI application in a container with one CPU.
The number of workers is what the documentation of each advises, or what it finds by itself: gunicorn's
2 × cores + 1, the same given to uvicorn; for skep the count is auto with enough workers per CPU allowed that memory decides. The cores are
those of this machine, and for FastAPI 20: containers are small and the machines below them are not. Nobody but skep
looks at the container's memory: with a fixed number the kernel's OOM killer does, in the middle of requests, and
the manager starts the killed worker again, which meets the same limit. skep starts one worker, measures what it needs
when it has settled, and adds others only as far as they fit. The price is a slower start and
memory that stays free. Killed in a Kubernetes of today, all processes of the container would go at once.`,
		Cases:    []string{large, fastAPI},
		Subjects: []string{"skep", "gunicorn + uvicorn", "uvicorn --workers"},
		Base:     "skep",
		Ratio:    "kills",
		Judged:   []string{"failed"},
		Metrics: []Metric{
			{Name: "kills", Title: "OOM kills"},
			{Name: "failed", Title: "failed"},
			{Name: "workers", Title: "workers that served", Digits: 0},
			{Name: "starts", Title: "starts of a worker", Digits: 0},
			{Name: "peak", Title: "peak memory, % of the limit", Digits: 0},
			{Name: "median", Title: "median memory, % of the limit", Digits: 0},
		},
		Goals: []Goal{
			{Case: large, Subject: "skep", Metric: "kills", AtMost: true, Bound: 0},
			{Case: large, Subject: "skep", Metric: "failed", AtMost: true, Bound: 0},
			{Case: large, Subject: "skep", Metric: "median", Bound: 50},
			{Case: fastAPI, Subject: "skep", Metric: "kills", AtMost: true, Bound: 0},
			{Case: fastAPI, Subject: "skep", Metric: "failed", AtMost: true, Bound: 0},
			// Eight tenths of the limit may be planned for, and eight tenths of
			// those are to be used.
			{Case: fastAPI, Subject: "skep", Metric: "peak", Bound: 64},
		},
		Runs: 1, Seconds: 240,
		Plots: []Plot{{Kind: "lines", Title: "Memory of the container", Of: []string{"memory"}, Unit: "MB"}},
		Measure: func(ctx context.Context, e *Env, j Job) (Sample, error) {
			app, cores, perCPU := "app:app", runtime.NumCPU(), "4"
			env, flags := []string{"BENCH_BALLAST_MB=110"}, []string(nil)
			if j.Case == fastAPI {
				if err := e.Tools.Check("fastapi"); err != nil {
					return Sample{}, err
				}
				app, cores, perCPU = "api:app", 20, "64"
				env, flags = nil, []string{"--cpus", "1"}
			}
			uvicorn := []string{e.Tools.Python, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", "{port}",
				"--log-level", "warning", "--no-access-log"}
			advised := strconv.Itoa(2*cores + 1)
			var argv []string
			switch j.Subject {
			case "skep":
				if err := e.Tools.Check("skep", "python", "uvicorn"); err != nil {
					return Sample{}, err
				}
				argv = append([]string{"{skep}", "-w", "auto", "--workers-per-cpu", perCPU, "--"}, uvicorn...)
			case "uvicorn --workers":
				argv = append(uvicorn, "--workers", advised)
			default:
				if err := e.Tools.Check("gunicorn"); err != nil {
					return Sample{}, err
				}
				argv = []string{e.Tools.Python, "-m", "gunicorn", "-k", "uvicorn.workers.UvicornWorker", "-w", advised,
					"-b", "127.0.0.1:{port}", "--log-level", "warning", app}
			}
			c, err := peers.StartContainer(ctx, e.Tools, argv, env, limit, flags...)
			if err != nil {
				return Sample{}, err
			}
			defer c.End(e.Tools)
			// skep has added its last worker after a quarter to a half of it; who meets
			// the limit does so from the start on.
			window := pick(e, 25*time.Second, 15*time.Second)
			if j.Case == fastAPI { // many workers are started on one CPU
				window = pick(e, 45*time.Second, 20*time.Second)
			}
			return crowd(ctx, e, j, c, limit, window)
		},
	})
}

// crowd loads the container from its start on, for the window, and samples its
// memory.
func crowd(ctx context.Context, e *Env, j Job, c *peers.Container, limit float64, window time.Duration) (Sample, error) {
	const step = 250 * time.Millisecond
	begin := time.Now()
	samples, stop := make(chan []float64, 1), make(chan struct{})
	go func() {
		var mb []float64
		tick := time.NewTicker(step)
		defer tick.Stop()
		for {
			if b, _, err := c.Usage(); err == nil {
				mb = append(mb, float64(b)/(1<<20))
			}
			select {
			case <-tick.C:
			case <-stop:
				samples <- mb
				return
			}
		}
	}()
	err := c.AwaitAnswer(ctx, e.Tools, time.Minute)
	var records []load.Record
	if err == nil {
		seed := e.seed(j)
		plan := load.Mix(seed, load.Poisson(seed, 50, window-min(time.Since(begin), window/2)), "/touch", "", 0)
		records, err = load.Run(ctx, load.Options{Address: c.Addr, Timeout: 5 * time.Second}, plan)
	}
	close(stop)
	mb := <-samples
	if err != nil {
		return Sample{}, err
	}
	_, kills, err := c.Usage()
	if err != nil {
		return Sample{}, fmt.Errorf("the container has ended: %s", c.Log(ctx, e.Tools))
	}
	// Those that answered in the last quarter: what the container settled at.
	var pids []int
	for _, r := range records {
		if r.OK() && r.Start > records[len(records)-1].Start*3/4 && !slices.Contains(pids, r.PID) {
			pids = append(pids, r.PID)
		}
	}
	spawned := (&peers.Process{Dir: c.Dir}).Spawns()
	series := Series{Step: step.Seconds(), V: make([]float64, len(mb))}
	for i := range mb {
		series.V[i] = math.Round(mb[i]*10) / 10
	}
	sorted := slices.Clone(mb)
	slices.Sort(sorted)
	share := func(v float64) float64 { return 100 * v * (1 << 20) / limit }
	return Sample{
		Values: Values{
			"kills": float64(kills), "failed": count(records, failed), "workers": float64(len(pids)), "starts": float64(len(spawned)),
			"peak": share(sorted[len(sorted)-1]), "median": share(sorted[len(sorted)/2]),
		},
		Series: map[string]Series{"memory": series},
		Note:   reasons(records),
	}, nil
}
