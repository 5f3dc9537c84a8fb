package rows

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"skep/bench/peers"
)

const (
	loopException = "exception at the first import"
	loopExit      = "process dies at the first import"
	loopLater     = "worker dies at import, after all had been ready"
)

func init() {
	register(&Row{
		Name:  "crashloop",
		Title: "An application that cannot start",
		Why: `Four workers that fail while the application is imported: with an exception, which a manager's own
code may catch, or by the end of the process, as with a crash in an extension. A manager that starts a worker again
at once burns the CPU that the others, or the container's neighbours, need, and fills the log; one that goes on
for ever hides from the orchestrator that nothing runs. Before any worker has been ready skep ends with the
application's own code, so that Kubernetes or Docker see the failure and apply their own backoff. In the last case
three good workers go on serving: one worker is killed and what replaces it dies at import; skep starts it
again with a backoff that doubles. Starts are counted for half a minute, in the first two cases for 8 s, and all but the first
of each worker made up to a minute's; with a backoff that is more than the minute would have had. "Never" is good in this case's last columns: the manager stays for the workers
that serve. A uvicorn of this version never restarts a worker, so there is no loop: the service goes on with fewer.`,
		Cases:    []string{loopException, loopExit, loopLater},
		Subjects: []string{"skep", "uvicorn --workers", "gunicorn + uvicorn", "node cluster", "supervisord"},
		Base:     "skep",
		Ratio:    "starts",
		Metrics: []Metric{
			{Name: "starts", Title: "starts a minute", Digits: 0},
			{Name: "ended", Title: "ended after, s", Digits: 2, Never: "never"},
			{Name: "code", Title: "with code", Digits: 0, Never: "–"},
		},
		Goals: []Goal{
			{Case: loopException, Subject: "skep", Metric: "ended", AtMost: true, Bound: 1},
			{Case: loopExit, Subject: "skep", Metric: "ended", AtMost: true, Bound: 1},
			{Case: loopExit, Subject: "skep", Metric: "code", Exact: true, Bound: 9},
			{Case: loopLater, Subject: "skep", Metric: "starts", AtMost: true, Bound: 12},
		},
		Runs: 1, Seconds: 230, // it counts over half minutes
		Measure: crashLoop,
	})
}

func crashLoop(ctx context.Context, e *Env, j Job) (Sample, error) {
	window := pick(e, 8*time.Second, 5*time.Second)
	c := peers.Config{Workers: 4, Env: []string{"BENCH_FAIL=9"}}
	if j.Case == loopException {
		c.Env = []string{"BENCH_FAIL=exception"}
	}
	s, ok := peers.Find(j.Subject)
	if !ok {
		return Sample{}, fmt.Errorf("no subject %q", j.Subject)
	}
	if j.Case != loopLater {
		v, err := s.Start(e.Tools, c)
		if err != nil {
			return Sample{}, err
		}
		defer v.End()
		return starts(ctx, v, 0, c.Workers, v.Started, window)
	}
	// A backoff grows over the first half minute, and who has none has settled long
	// before its end.
	window = pick(e, 30*time.Second, 10*time.Second)
	flag := filepath.Join(os.TempDir(), fmt.Sprintf("skep-bench-fail-%d", os.Getpid()))
	os.Remove(flag)
	defer os.Remove(flag)
	c.Env = append(c.Env, "BENCH_FAIL_FILE="+flag)
	v, err := serve(ctx, e, j, c)
	if err != nil {
		return Sample{}, err
	}
	defer v.End()
	if err := os.WriteFile(flag, nil, 0o644); err != nil {
		return Sample{}, err
	}
	workers := v.Workers()
	if len(workers) == 0 {
		return Sample{}, fmt.Errorf("no worker is alive")
	}
	before := len(v.Spawns())
	begin := time.Now()
	if err := v.SignalOne(workers[0], syscall.SIGKILL); err != nil {
		return Sample{}, err
	}
	return starts(ctx, v, before, 0, begin, window)
}

// starts counts the starts of the application within the window, the first of
// which come once, and notes the end of the manager.
func starts(ctx context.Context, v *peers.Server, before, first int, begin time.Time, window time.Duration) (Sample, error) {
	out := Values{"ended": math.Inf(1), "code": math.Inf(1)}
	select {
	case <-ctx.Done():
		return Sample{}, context.Cause(ctx)
	case <-time.After(time.Until(begin.Add(window))):
	case <-v.Done():
		code, at := v.Result()
		out["ended"], out["code"] = at.Sub(begin).Seconds(), float64(code)
		// Refusing its own flags is not the end of a crash loop.
		if code == 125 {
			return Sample{}, &peers.Ended{Code: code, Log: v.Log(3)}
		}
	}
	n := len(v.Spawns()) - before
	out["starts"] = float64(n)
	if math.IsInf(out["ended"], 1) {
		out["starts"] = perMinute(n, first, window)
	}
	return Sample{Values: out, Note: fmt.Sprintf("%d starts were seen", n)}, nil
}

// perMinute makes a minute's starts of those in a window: a worker's first start
// is no part of a loop, and would be none the more often for a longer window.
func perMinute(n, first int, window time.Duration) float64 {
	once := min(n, first)
	return float64(once) + float64(n-once)*time.Minute.Seconds()/window.Seconds()
}
