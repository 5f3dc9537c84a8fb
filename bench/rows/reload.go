package rows

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"skep/bench/load"
	"skep/bench/peers"
)

const (
	goodVersion = "good new version"
	badVersion  = "new version that cannot be imported"
	manyTimes   = "20 reloads of two workers, one after another"
)

func init() {
	register(&Row{
		Name:  "reload",
		Title: "Reload under load, with an import that takes 3 s",
		Why: `100 connections a second while four workers are replaced by new ones on HUP. gunicorn starts the
new workers and tells the old ones to go at once, so that for the length of the import nobody serves: connections
wait in the shared queue. skep starts each new worker beside the old one with a socket of its own, and moves the
traffic when it has listened; that takes longer in all, and nobody sees it. In the second case the new version
fails at import: gunicorn ends altogether when its new workers cannot boot, while skep gives up the reload and keeps
what works. The others have no reload by signal: HUP ends them. One reload proves little about one lost connection: in the
third case each reload begins when the one before it is over, at least 5 s later, with two workers so that twenty of them take minutes.
Its baseline is the minute before the first.`,
		Cases:    []string{goodVersion, badVersion, manyTimes},
		Subjects: []string{"skep", "gunicorn + uvicorn", "uvicorn --workers", "node cluster"},
		Base:     "skep",
		Ratio:    "worst",
		Judged:   []string{"failed", "done"},
		Metrics: []Metric{
			{Name: "failed", Title: "failed"},
			{Name: "worst", Title: "worst, ms", Digits: 0},
			{Name: "above", Title: "worst above the worst before, ms", Digits: 0},
			{Name: "silent", Title: "longest time without an answer, ms", Digits: 0},
			{Name: "done", Title: "all workers new after, s", Digits: 1, Never: "not while it was watched"},
		},
		Goals: []Goal{
			{Case: goodVersion, Subject: "skep", Metric: "failed", AtMost: true, Bound: 0},
			{Case: goodVersion, Subject: "skep", Metric: "above", AtMost: true, Bound: 15},
			{Case: badVersion, Subject: "skep", Metric: "failed", AtMost: true, Bound: 0},
			{Case: manyTimes, Subject: "skep", Metric: "failed", AtMost: true, Bound: 0},
			{Case: manyTimes, Subject: "skep", Metric: "above", AtMost: true, Bound: 15},
		},
		Runs: 1, Seconds: 600,
		Limit:   6 * time.Minute,
		Plots:   []Plot{{Kind: "strips", Title: "Failed and slow (> 100 ms) requests around the reload", Of: []string{"failed", "slow"}, Unit: "requests per 200 ms"}},
		Measure: reload,
	})
}

func reload(ctx context.Context, e *Env, j Job) (Sample, error) {
	if j.Case == manyTimes {
		return reloads(ctx, e, j)
	}
	const lead, workers = 3 * time.Second, 4
	slow := pick(e, "3", "1")
	after := pick(e, 22*time.Second, 9*time.Second)
	if j.Case == badVersion {
		after = pick(e, 8*time.Second, 4*time.Second)
	}
	flag := filepath.Join(os.TempDir(), fmt.Sprintf("skep-bench-bad-%d", os.Getpid()))
	os.Remove(flag)
	defer os.Remove(flag)
	v, err := serve(ctx, e, j, peers.Config{Workers: workers, StopTimeout: 10 * time.Second,
		Env: []string{"BENCH_IMPORT_SECONDS=" + slow, "BENCH_FAIL=exception", "BENCH_FAIL_FILE=" + flag}})
	if err != nil {
		return Sample{}, err
	}
	defer v.End()

	seed := e.seed(j)
	begin := time.Now().Add(50 * time.Millisecond)
	timer := time.AfterFunc(time.Until(begin)+lead, func() {
		if j.Case == badVersion {
			if os.WriteFile(flag, nil, 0o644) != nil {
				return
			}
		}
		_ = v.Signal(syscall.SIGHUP)
	})
	defer timer.Stop()
	plan := load.Mix(seed, load.Poisson(seed, 100, lead+after), "/", "", 0)
	records, err := drive(ctx, v, load.Options{Begin: begin, Timeout: 10 * time.Second}, plan)
	if err != nil {
		return Sample{}, err
	}
	if v.Subject.Reload == 0 {
		select {
		case <-v.Done():
			return Sample{}, Lacks{fmt.Sprintf("no reload: HUP ends it, and %.0f requests failed", count(records, failed))}
		default:
		}
	}
	before := worst(records, func(r load.Record) bool { return r.OK() && r.End() < lead })
	// Later than the signal in either direction: waiting from before it, too.
	during := worst(records, func(r load.Record) bool { return r.OK() && r.End() >= lead })
	return Sample{
		Values: Values{
			"failed": count(records, failed), "worst": during, "above": math.Max(0, during-before),
			"silent": silence(records, lead, lead+after), "done": replaced(records, lead, workers),
			"late": lateness(records),
		},
		Series: map[string]Series{
			"failed": over(records, lead, -lead, after, 200*time.Millisecond, failed),
			"slow":   over(records, lead, -lead, after, 200*time.Millisecond, func(r load.Record) bool { return r.OK() && r.Latency > 100*time.Millisecond }),
		},
		Note: reasons(records),
	}, nil
}

// silence is the longest time in [from, to) in which no request was answered,
// in milliseconds.
func silence(rs []load.Record, from, to time.Duration) float64 {
	at := []time.Duration{from, to}
	for _, r := range rs {
		if r.OK() && r.End() > from && r.End() < to {
			at = append(at, r.End())
		}
	}
	slices.Sort(at)
	longest := time.Duration(0)
	for i := 1; i < len(at); i++ {
		longest = max(longest, at[i]-at[i-1])
	}
	return ms(longest)
}

// replaced returns how many seconds after the signal the n new processes had
// all answered and no old one answered any more; +Inf if that never came.
func replaced(rs []load.Record, signal time.Duration, n int) float64 {
	old := map[int]bool{}
	for _, r := range rs {
		if r.OK() && r.End() < signal {
			old[r.PID] = true
		}
	}
	first := map[int]time.Duration{}
	done := signal
	for _, r := range rs {
		if !r.OK() || r.End() < signal {
			continue
		}
		if old[r.PID] {
			done = max(done, r.End())
		} else if at, ok := first[r.PID]; !ok || r.End() < at {
			first[r.PID] = r.End()
		}
	}
	if len(first) < n {
		return math.Inf(1)
	}
	for _, at := range first {
		done = max(done, at)
	}
	return (done - signal).Seconds()
}
