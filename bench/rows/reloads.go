package rows

import (
	"context"
	"fmt"
	"math"
	"slices"
	"syscall"
	"time"

	"skep/bench/load"
	"skep/bench/peers"
)

// reloads reloads one server many times under load.
func reloads(ctx context.Context, e *Env, j Job) (Sample, error) {
	const workers = 2
	lead, n := pick(e, 60*time.Second, 3*time.Second), pick(e, 20, 2) // the worst of few seconds is no baseline for minutes
	slow, least, most := pick(e, "3", "1"), pick(e, 5*time.Second, 3*time.Second), 12*time.Second
	if s, ok := peers.Find(j.Subject); ok && s.Reload == 0 {
		return Sample{}, Lacks{"no reload: HUP ends it"}
	}
	v, err := serve(ctx, e, j, peers.Config{Workers: workers, StopTimeout: 10 * time.Second, Env: []string{"BENCH_IMPORT_SECONDS=" + slow}})
	if err != nil {
		return Sample{}, err
	}
	defer v.End()

	// The load ends with the reloads, and those are over when they are: what the
	// plan has beyond is cut off.
	const rest = 4 * time.Second // for the answers to what was due before the end
	underLoad, cut := context.WithCancel(ctx)
	defer cut()
	seed := e.seed(j)
	plan := load.Mix(seed, load.Poisson(seed, 100, lead+time.Duration(n)*most+rest), "/", "", 0)
	begin := time.Now().Add(50 * time.Millisecond)
	type outcome struct {
		at  []time.Duration // of each signal, and the end of the last reload
		err error
	}
	ended := make(chan outcome, 1)
	go func() {
		defer cut()
		at, err := inTurn(underLoad, v, n, workers, begin, lead, least, most)
		if err == nil {
			err = pause(underLoad, rest)
		}
		ended <- outcome{at, err}
	}()
	records, err := drive(underLoad, v, load.Options{Begin: begin, Timeout: 10 * time.Second}, plan)
	cut()
	o := <-ended
	if err != nil {
		return Sample{}, err
	}
	if o.err != nil {
		return Sample{}, o.err
	}
	return reloadsSample(records, o.at, workers), nil
}

// inTurn signals n times: first after lead, and then when all workers are new, at
// least and at most that long after the signal before.
func inTurn(ctx context.Context, v *peers.Server, n, workers int, begin time.Time, lead, least, most time.Duration) ([]time.Duration, error) {
	if err := pause(ctx, time.Until(begin.Add(lead))); err != nil {
		return nil, err
	}
	var at []time.Duration
	for i := range n {
		old := v.Workers()
		signalled := time.Now()
		at = append(at, signalled.Sub(begin))
		if err := v.Signal(syscall.SIGHUP); err != nil {
			return nil, fmt.Errorf("cannot reload: %w", err)
		}
		fresh := func() bool {
			now := v.Workers()
			return len(now) == workers && !slices.ContainsFunc(now, func(pid int) bool { return slices.Contains(old, pid) })
		}
		// To look takes the processor from what is measured: not often.
		for time.Since(signalled) < least || !fresh() {
			if time.Since(signalled) > most {
				return nil, fmt.Errorf("reload %d of %d was not over after %v", i+1, n, most)
			}
			if err := pause(ctx, 100*time.Millisecond); err != nil {
				return nil, err
			}
		}
	}
	return append(at, time.Since(begin)), nil
}

// reloadsSample is about the requests from before the first signal to the last of
// at, the end.
func reloadsSample(records []load.Record, at []time.Duration, workers int) Sample {
	first, end := at[0], at[len(at)-1]
	records = slices.DeleteFunc(slices.Clone(records), func(r load.Record) bool { return r.Start >= end })
	before := worst(records, func(r load.Record) bool { return r.OK() && r.End() < first })
	during := worst(records, func(r load.Record) bool { return r.OK() && r.End() >= first })
	slow := func(r load.Record) bool { return r.OK() && r.Latency > 100*time.Millisecond }
	const lead, after, step = time.Second, 10 * time.Second, 200 * time.Millisecond
	failures, slows := over(nil, 0, -lead, after, step, failed), over(nil, 0, -lead, after, step, slow)
	slowest := 0.0
	for i, signal := range at[:len(at)-1] {
		// Who answered in the second before is old.
		part := slices.DeleteFunc(slices.Clone(records), func(r load.Record) bool { return r.End() < signal-lead || r.Start >= at[i+1] })
		slowest = max(slowest, replaced(part, signal, workers))
		for k, x := range over(part, signal, -lead, after, step, failed).V {
			failures.V[k] += x
		}
		for k, x := range over(part, signal, -lead, after, step, slow).V {
			slows.V[k] += x
		}
	}
	return Sample{
		Values: Values{
			"failed": count(records, failed), "worst": during, "above": math.Max(0, during-before),
			"silent": silence(records, first, end), "done": slowest, "late": lateness(records),
		},
		Series: map[string]Series{"failed": failures, "slow": slows},
		Note:   reasons(records),
	}
}
