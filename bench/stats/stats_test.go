package stats_test

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"skep/bench/stats"
)

func TestQuantileKnownValues(t *testing.T) {
	// Values of R's quantile(x, q, type = 7).
	x := []float64{15, 20, 35, 40, 50}
	for q, want := range map[float64]float64{0: 15, 0.25: 20, 0.4: 29, 0.5: 35, 0.9: 46, 1: 50} {
		if got := stats.Quantile(x, q); math.Abs(got-want) > 1e-9 {
			t.Errorf("Quantile(%v, %g) = %g, want %g", x, q, got, want)
		}
	}
	if got := stats.Quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("Quantile of nothing is %g, want NaN", got)
	}
	// An infinite value says "never": it must not turn its neighbours into NaN.
	if got := stats.Quantile([]float64{1, 2, math.Inf(1), math.Inf(1)}, 1); !math.IsInf(got, 1) {
		t.Errorf("largest of a series with infinities is %g", got)
	}
}

func TestQuantileIsMonotoneAndLeavesItsInput(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := rapid.SliceOfN(rapid.Float64Range(-1e6, 1e6), 1, 50).Draw(t, "x")
		before := slices.Clone(x)
		qs := rapid.SliceOfN(rapid.Float64Range(0, 1), 2, 10).Draw(t, "q")
		slices.Sort(qs)
		got := stats.Quantiles(x, qs...)
		if !slices.IsSorted(got) {
			t.Fatalf("quantiles %v of %v are %v", qs, x, got)
		}
		if got[0] < slices.Min(x) || got[len(got)-1] > slices.Max(x) {
			t.Fatalf("quantiles %v lie outside %v", got, x)
		}
		if !slices.Equal(before, x) {
			t.Fatalf("the input was changed")
		}
	})
}

func TestSummaryAndRatio(t *testing.T) {
	if got := stats.Summarise([]float64{4, 1, 3, 2, 5}); got != (stats.Summary{N: 5, Median: 3, Low: 2, Top: 4}) {
		t.Errorf("summary is %+v", got)
	}
	if got := stats.Ratio(0, 0); got != 1 {
		t.Errorf("Ratio(0, 0) = %g", got)
	}
	if got := stats.Ratio(3, 0); !math.IsInf(got, 1) {
		t.Errorf("Ratio(3, 0) = %g", got)
	}
}
