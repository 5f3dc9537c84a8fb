package report

import (
	"math"
	"testing"

	"skep/bench/rows"
)

func TestRatioWhereTheBaseHasNothing(t *testing.T) {
	of := func(values ...float64) *Subject {
		s := &Subject{}
		for _, v := range values {
			s.Runs = append(s.Runs, rows.Sample{Values: rows.Values{"over": v}})
		}
		return s
	}
	for _, c := range []struct {
		s, base *Subject
		want    float64
	}{
		{of(2, 9, 4), of(1, 3, 4), 2},   // the median of the pairs
		{of(2, 1, 6), of(4, 0, 2), 1.5}, // of all runs together
		{of(1, 2, 3), of(0, 0, 0), -1},  // no figure
		{of(0, 0, 0), of(0, 0, 4), 0},   //
		{of(3, 3), of(1, 3, 4), 2},      // runs that both have
	} {
		got := ratio(c.s, c.base, "over")
		if c.want < 0 && !math.IsNaN(got) && !math.IsInf(got, 0) || c.want >= 0 && math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%v to %v is %v, want %v", c.s.values("over"), c.base.values("over"), got, c.want)
		}
	}
}
