package rows

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
)

// What is measured together starts its window when the last one has started,
// and what cannot start keeps nobody waiting.
func TestTogetherMeets(t *testing.T) {
	var mu sync.Mutex
	var events []string
	note := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, what)
	}
	r := &Row{Measure: func(ctx context.Context, _ *Env, j Job) (Sample, error) {
		if j.Subject == "broken" {
			return Sample{}, errors.New("cannot start it: no reason")
		}
		note("start")
		if err := j.meet(ctx); err != nil {
			return Sample{}, err
		}
		note("window")
		if err := j.meet(ctx); err != nil {
			return Sample{}, err
		}
		note("end")
		return Sample{Values: Values{"run": float64(j.Run)}}, nil
	}}
	jobs := []Job{{Subject: "a", Run: 7}, {Subject: "broken", Run: 7}, {Subject: "b", Run: 7}, {Subject: "c", Run: 7}}
	out := make([]Sample, len(jobs))
	TakeTogether(t.Context(), &Env{}, r, jobs, func(i int, s Sample) { out[i] = s })
	want := []string{"start", "start", "start", "window", "window", "window", "end", "end", "end"}
	if !slices.Equal(events, want) {
		t.Errorf("in this order: %v", events)
	}
	for i, j := range jobs {
		if j.Subject == "broken" {
			if out[i].Missing == "" {
				t.Errorf("a start that failed counts: %+v", out[i])
			}
		} else if out[i].Values["run"] != 7 {
			t.Errorf("%s: %+v", j.Subject, out[i])
		}
	}
	// Alone there is nobody to wait for.
	if s := Take(t.Context(), &Env{}, r, jobs[0]); s.Missing != "" {
		t.Error(s.Missing)
	}
}

// An interrupted benchmark ends although one job never comes.
func TestTogetherEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := &Row{Measure: func(ctx context.Context, _ *Env, j Job) (Sample, error) {
		if j.Subject == "late" {
			cancel()
			<-ctx.Done()
			return Sample{}, context.Cause(ctx)
		}
		return Sample{}, j.meet(ctx)
	}}
	TakeTogether(ctx, &Env{}, r, []Job{{Subject: "a"}, {Subject: "late"}}, func(i int, s Sample) {
		if i == 1 && s.Missing == "" {
			t.Error("the job that was interrupted has a figure")
		}
	})
}
