package queueing_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"skep/bench/load"
	"skep/bench/queueing"
)

func mean(d []time.Duration) float64 {
	sum := 0.0
	for _, x := range d {
		sum += float64(x)
	}
	return sum / float64(len(d))
}

// jobs makes n jobs or so with exponential gaps and service times drawn by draw.
func jobs(seed uint64, rate float64, n int, draw func(*rand.Rand) time.Duration) []queueing.Job {
	rng := rand.New(rand.NewPCG(seed, 99))
	at := load.Poisson(seed, rate, time.Duration(float64(n)/rate*float64(time.Second)))
	js := make([]queueing.Job, len(at))
	for i, t := range at {
		js[i] = queueing.Job{At: t, Service: draw(rng)}
	}
	return js
}

func TestWaitsAgreeWithErlangC(t *testing.T) {
	for _, tc := range []struct {
		k       int
		rate    float64
		service time.Duration
	}{
		{1, 50, 10 * time.Millisecond},
		{4, 300, 10 * time.Millisecond},
		{4, 360, 10 * time.Millisecond},
		{16, 1200, 10 * time.Millisecond},
	} {
		js := jobs(7, tc.rate, 1_000_000, func(r *rand.Rand) time.Duration {
			return time.Duration(r.ExpFloat64() * float64(tc.service))
		})
		waits := queueing.Waits(tc.k, js)
		waited := 0
		for _, w := range waits {
			if w > 0 {
				waited++
			}
		}
		a := tc.rate * tc.service.Seconds()
		share, want := float64(waited)/float64(len(waits)), queueing.ErlangC(tc.k, a)
		if math.Abs(share-want) > 0.03*want+0.001 {
			t.Errorf("M/M/%d at %.1f Erlang: %.4f of the jobs wait, Erlang C says %.4f", tc.k, a, share, want)
		}
		got, wantMean := mean(waits), float64(queueing.MeanWaitMMk(tc.k, tc.rate, tc.service))
		if math.Abs(got-wantMean) > 0.06*wantMean {
			t.Errorf("M/M/%d at %.1f Erlang: mean wait %.3g ns, formula %.3g ns", tc.k, a, got, wantMean)
		}
	}
}

func TestErlangCKnownValues(t *testing.T) {
	// One worker: the probability to wait is the utilisation. Two: 2ρ²/(1+ρ).
	for _, rho := range []float64{0.1, 0.5, 0.9} {
		if got := queueing.ErlangC(1, rho); math.Abs(got-rho) > 1e-12 {
			t.Errorf("ErlangC(1, %g) = %g, want %g", rho, got, rho)
		}
		if got, want := queueing.ErlangC(2, 2*rho), 2*rho*rho/(1+rho); math.Abs(got-want) > 1e-12 {
			t.Errorf("ErlangC(2, %g) = %g, want %g", 2*rho, got, want)
		}
	}
	if got := queueing.ErlangC(3, 3); got != 1 {
		t.Errorf("ErlangC(3, 3) = %g, want 1", got)
	}
}

func TestWaitsAgreeWithMD1(t *testing.T) {
	const service = 10 * time.Millisecond
	for _, rate := range []float64{20, 50, 80} {
		js := jobs(11, rate, 1_000_000, func(*rand.Rand) time.Duration { return service })
		got, want := mean(queueing.Waits(1, js)), float64(queueing.MeanWaitMD1(rate, service))
		if math.Abs(got-want) > 0.05*want {
			t.Errorf("M/D/1 at %g/s: mean wait %.3g ns, formula %.3g ns", rate, got, want)
		}
	}
}

func TestWaitsByHand(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	js := []queueing.Job{{ms(0), ms(10)}, {ms(1), ms(3)}, {ms(2), ms(5)}, {ms(3), ms(1)}, {ms(30), ms(1)}}
	want := []time.Duration{0, 0, ms(2), ms(6), 0}
	if got := queueing.Waits(2, js); !slices.Equal(got, want) {
		t.Errorf("waits are %v, want %v", got, want)
	}
}

// One more worker never makes any first-come-first-served job wait longer, and
// with as many workers as jobs nobody waits.
func TestMoreWorkersNeverHurt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 60).Draw(t, "n")
		js := make([]queueing.Job, n)
		at := time.Duration(0)
		for i := range js {
			at += time.Duration(rapid.IntRange(0, 20).Draw(t, "gap"))
			js[i] = queueing.Job{At: at, Service: time.Duration(rapid.IntRange(0, 50).Draw(t, "service"))}
		}
		k := rapid.IntRange(1, 8).Draw(t, "k")
		few, more := queueing.Waits(k, js), queueing.Waits(k+1, js)
		for i := range js {
			if more[i] > few[i] {
				t.Fatalf("job %d waits %v with %d workers and %v with one more", i, few[i], k, more[i])
			}
		}
		for i, w := range queueing.Waits(n, js) {
			if w != 0 {
				t.Fatalf("job %d of %d waits %v although there is a worker for each", i, n, w)
			}
		}
	})
}
