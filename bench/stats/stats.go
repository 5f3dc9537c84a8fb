// Package stats has the few order statistics that the report is made of. All
// are exact: they sort what they are given.
package stats

import (
	"math"
	"slices"
)

// Quantile returns the q-quantile (0 to 1) of values by linear interpolation
// between order statistics (type 7 of Hyndman and Fan, as R and numpy do), and
// NaN for no values. Values may be in any order and are not changed.
func Quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Clone(values)
	slices.Sort(s)
	return ofSorted(s, q)
}

// Quantiles is Quantile for several q at the price of one sort.
func Quantiles(values []float64, qs ...float64) []float64 {
	s := slices.Clone(values)
	slices.Sort(s)
	out := make([]float64, len(qs))
	for i, q := range qs {
		out[i] = math.NaN()
		if len(s) > 0 {
			out[i] = ofSorted(s, q)
		}
	}
	return out
}

func ofSorted(s []float64, q float64) float64 {
	pos := min(max(q, 0), 1) * float64(len(s)-1)
	lo := int(pos)
	if lo+1 >= len(s) || s[lo] == s[lo+1] {
		return s[lo]
	}
	return s[lo] + (pos-float64(lo))*(s[lo+1]-s[lo])
}

// Summary is what a table shows of several runs.
type Summary struct {
	N                int     // number of runs
	Median, Low, Top float64 // median, lower and upper quartile
}

// Summarise returns the summary of the runs' values; NaN fields for none.
func Summarise(values []float64) Summary {
	q := Quantiles(values, 0.25, 0.5, 0.75)
	return Summary{N: len(values), Low: q[0], Median: q[1], Top: q[2]}
}

// Ratio is a/b, with the two cases that a table has to show: 1 when both are
// zero, and infinity when only b is.
func Ratio(a, b float64) float64 {
	if b == 0 {
		if a == 0 {
			return 1
		}
		return math.Inf(1)
	}
	return a / b
}
