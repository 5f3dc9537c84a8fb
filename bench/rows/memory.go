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
	const limit = 512 << 20
	register(&Row{
		Name:  "memory",
		Title: "A container of 512 MiB and workers of about 130 MB",
		Why: `The number of workers is what the documentation of each advises, or what it finds by itself: gunicorn's
2 × cores + 1, the same given to uvicorn; for skep the count is auto with four workers per CPU allowed, so that memory decides. Nobody but skep
looks at the container's memory: with a fixed number the kernel's OOM killer does, in the middle of requests, and
the manager starts the killed worker again, which meets the same limit. skep starts one worker, measures what it needs
when it has settled, and adds others only as far as they fit. The price is a slower start and
memory that stays free. Killed in a Kubernetes of today, all processes of the container would go at once.`,
		Cases:    []string{"512 MiB"},
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
			{Case: "512 MiB", Subject: "skep", Metric: "kills", AtMost: true, Bound: 0},
			{Case: "512 MiB", Subject: "skep", Metric: "failed", AtMost: true, Bound: 0},
			{Case: "512 MiB", Subject: "skep", Metric: "median", Bound: 50},
		},
		Plots: []Plot{{Kind: "lines", Title: "Memory of the container", Of: []string{"memory"}, Unit: "MB"}},
		Measure: func(ctx context.Context, e *Env, j Job) (Sample, error) {
			uvicorn := []string{e.Tools.Python, "-m", "uvicorn", "app:app", "--host", "127.0.0.1", "--port", "{port}",
				"--log-level", "warning", "--no-access-log"}
			advised := strconv.Itoa(2*runtime.NumCPU() + 1)
			var argv []string
			switch j.Subject {
			case "skep":
				if err := e.Tools.Check("skep", "python", "uvicorn"); err != nil {
					return Sample{}, err
				}
				argv = append([]string{"{skep}", "-w", "auto", "--workers-per-cpu", "4", "--"}, uvicorn...)
			case "uvicorn --workers":
				argv = append(uvicorn, "--workers", advised)
			default:
				if err := e.Tools.Check("gunicorn"); err != nil {
					return Sample{}, err
				}
				argv = []string{e.Tools.Python, "-m", "gunicorn", "-k", "uvicorn.workers.UvicornWorker", "-w", advised,
					"-b", "127.0.0.1:{port}", "--log-level", "warning", "app:app"}
			}
			c, err := peers.StartContainer(ctx, e.Tools, argv, []string{"BENCH_BALLAST_MB=110"}, limit)
			if err != nil {
				return Sample{}, err
			}
			defer c.End(e.Tools)
			return crowd(ctx, e, j, c, limit)
		},
	})
}

// crowd loads the container from its start on, and samples its memory.
func crowd(ctx context.Context, e *Env, j Job, c *peers.Container, limit float64) (Sample, error) {
	const step = 250 * time.Millisecond
	window := pick(e, 45*time.Second, 15*time.Second)
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
	err := c.AwaitAnswer(ctx, e.Tools, 30*time.Second)
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
