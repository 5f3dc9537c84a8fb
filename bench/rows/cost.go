package rows

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"skep/bench/load"
	"skep/bench/peers"
)

func init() {
	register(&Row{
		Name:  "cost",
		Title: "What PID 1 costs under load",
		Why: `Processor time of the manager itself while its workers serve new connections at a rate; the workers are
examples/hello, which is cheap, so that the rate is reached on a small machine. Steering looks at the queues and at the waiting threads when
a connection has come, and when they come as fast as here every 1 to 8 ms, as often as 1.3 % of a processor allows, so its cost grows with the workers and not with the connections: reading one
queue is one system call, and the kernel does the choosing. With --balance hash nothing is chosen, and
only watched for queues that nobody empties. The
masters of gunicorn and uvicorn do nothing per connection either, and node's primary handles every one. Where the
reached rate is below the wanted one, the machine is full: the share of a core is then what is left to PID 1, and
what failed are arrivals that found 256 requests on their way already: a limit that keeps the row about PID 1 and not
about servers that drown. What it costs when nobody connects is in the row "idle": skep samples the memory every 30 s, so
that a window of seconds would show that or hide it.`,
		Cases:    []string{"4 workers, 1000/s", "4 workers, 10000/s", "32 workers, 1000/s", "32 workers, 10000/s"},
		Quick:    []string{"4 workers, 1000/s"},
		Subjects: []string{"skep", "skep hash", "gunicorn + uvicorn", "node cluster"},
		Base:     "skep hash",
		Ratio:    "cpu",
		Judged:   []string{"wakeups"},
		Metrics: []Metric{
			{Name: "cpu", Title: "CPU of PID 1, % of a core", Digits: 2},
			{Name: "wakeups", Title: "wake-ups a second", Digits: 0},
			{Name: "rate", Title: "connections a second", Digits: 0, Most: true},
			{Name: "failed", Title: "failed"},
		},
		Goals: []Goal{
			{Case: "4 workers, 10000/s", Subject: "skep", Metric: "cpu", AtMost: true, Bound: 2},
		},
		Runs: 2, Seconds: 140,
		Measure: cost,
	})
}

func cost(ctx context.Context, e *Env, j Job) (Sample, error) {
	var workers int
	var rate float64
	if _, err := fmt.Sscanf(j.Case, "%d workers, %f/s", &workers, &rate); err != nil {
		return Sample{}, err
	}
	c := peers.Config{Workers: workers}
	if strings.HasPrefix(j.Subject, "skep") {
		if e.Hello == "" {
			return Sample{}, &peers.MissingTool{Name: "examples/hello"}
		}
		c.Hello, c.Env = e.Hello, []string{"GOMAXPROCS=1"}
	}
	v, err := serve(ctx, e, j, c)
	if err != nil {
		return Sample{}, err
	}
	defer v.End()
	// What the start has set in motion must be over.
	if err := pause(ctx, time.Second); err != nil {
		return Sample{}, err
	}
	wake0, err := peers.Wakeups(v.PID)
	if err != nil {
		return Sample{}, err
	}
	cpu0, err := peers.CPU(v.PID)
	if err != nil {
		return Sample{}, err
	}
	begin := time.Now()
	seed := e.seed(j)
	plan := load.Mix(seed, load.Poisson(seed, rate, pick(e, 4*time.Second, 3*time.Second)), "/", "", 0)
	records, err := drive(ctx, v, load.Options{Sources: 250, Timeout: 5 * time.Second, MaxInFlight: 256}, plan)
	if err != nil {
		return Sample{}, err
	}
	took := time.Since(begin)
	wake1, err := peers.Wakeups(v.PID)
	if err != nil {
		return Sample{}, err
	}
	cpu1, err := peers.CPU(v.PID)
	if err != nil {
		return Sample{}, err
	}
	return Sample{
		Values: Values{
			"cpu": 100 * float64(cpu1-cpu0) / float64(took), "wakeups": float64(wake1-wake0) / took.Seconds(),
			"rate": count(records, load.Record.OK) / took.Seconds(), "failed": count(records, failed), "late": lateness(records),
		},
		Note: reasons(records),
	}, nil
}

func init() {
	register(&Row{
		Name:  "ksm",
		Title: "Same-page merging between workers",
		Why: `Eight workers with 64 MB of identical data each, as from a model or a table that every worker loads.
Workers that are forked from one parent share such pages until they write to them; workers that are started
one by one do not. With --ksm, skep asks the kernel to merge equal pages of its workers
(PR_SET_MEMORY_MERGE), which costs the kernel's scanner some time and gives most of it back. The row turns the scanner
on while it measures. It shows memory that the workers use together, each page counted once.`,
		Cases:    []string{"8 workers"},
		Subjects: []string{"skep ksm", "skep", "gunicorn + uvicorn"},
		Base:     "skep",
		Ratio:    "pss",
		Metrics:  []Metric{{Name: "pss", Title: "memory of the workers, MB", Digits: 0}, {Name: "saved", Title: "merged away, MB", Digits: 0, Most: true}},
		Runs:     2, Seconds: 50,
		Measure: func(ctx context.Context, e *Env, j Job) (Sample, error) {
			const run, scan = "/sys/kernel/mm/ksm/run", "/sys/kernel/mm/ksm/pages_to_scan"
			for path, value := range map[string]string{run: "1", scan: "20000"} {
				old, err := os.ReadFile(path)
				if err == nil {
					err = os.WriteFile(path, []byte(value), 0)
				}
				if err != nil {
					return Sample{}, Lacks{"the kernel's same-page merging cannot be turned on here"}
				}
				defer os.WriteFile(path, old, 0)
			}
			v, err := serve(ctx, e, j, peers.Config{Workers: 8, Env: []string{"BENCH_BALLAST_MB=64", "BENCH_BALLAST_SAME=1"}})
			if err != nil {
				return Sample{}, err
			}
			defer v.End()
			if err := pause(ctx, pick(e, 12*time.Second, 8*time.Second)); err != nil {
				return Sample{}, err
			}
			pss := 0.0
			for _, pid := range v.Workers() {
				m, err := peers.ReadMemory(pid)
				if err != nil {
					return Sample{}, err
				}
				pss += float64(m.PSS) / (1 << 20)
			}
			var pages float64
			b, _ := os.ReadFile("/sys/kernel/mm/ksm/pages_sharing")
			fmt.Sscan(string(b), &pages)
			saved := pages * float64(os.Getpagesize()) / (1 << 20)
			// PSS divides a merged page among those that map it, so that the sum
			// has it once.
			return Sample{Values: Values{"pss": pss, "saved": saved}}, nil
		},
	})
}
