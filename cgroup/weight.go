package cgroup

import (
	"math"

	"skep/sizing"
)

// The range of cpu.shares in version 1: MIN_SHARES and MAX_SHARES of kernel/sched.
const (
	minShares = 2
	maxShares = 1 << 18
)

// sharesMilli is a share as CPUs, in the way Kubernetes makes shares of CPU requests: 1024 are one CPU.
func sharesMilli(shares uint64) sizing.Milli {
	shares = min(shares, maxShares)
	return max(1, sizing.Milli(shares*1000/1024))
}

// weightOfShares is how runc (1.3.2 on) and crun (1.23 on) make a cpu.weight of version 2 of cpu.shares of version 1:
// the power of ten whose exponent is (l² + 125 l)/612 − 7/34 with l the binary logarithm of the shares, rounded up, so
// that 2, 1024 and 262144 become 1, 100 and 10000 (opencontainers/cgroups, ConvertCPUSharesToCgroupV2Value).
func weightOfShares(shares uint64) uint64 {
	if shares <= minShares {
		return 1
	}
	if shares >= maxShares {
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34.0)))
}

// oldWeightOfShares is how older runtimes made it, by a straight line that made 39 of the default 1024.
func oldWeightOfShares(shares uint64) uint64 {
	return 1 + (min(max(shares, minShares), maxShares)-minShares)*9999/(maxShares-minShares)
}

// milliOfWeight inverts both, in thousandths of a CPU. Many shares give the same weight, and the weight does not tell by
// which way it was made; but people ask for 1 CPU or for 0.25, not for 0.988 or 2.55. So of all the shares that either
// way makes the weight of, those are taken that are the roundest number of CPUs, and of two equally round ones those of
// today's way, which are fewer.
func milliOfWeight(weight uint64) sizing.Milli {
	if weight <= 1 {
		return sharesMilli(minShares)
	}
	best, bestStep := roundest(weight, weightOfShares)
	if old, step := roundest(weight, oldWeightOfShares); step > bestStep {
		best = old
	}
	return best
}

// roundest is the roundest number of CPUs whose shares give the weight, and the step that it is a multiple of.
func roundest(weight uint64, of func(shares uint64) uint64) (sizing.Milli, uint64) {
	low, high := sharesFrom(weight, of), sharesFrom(weight+1, of)-1
	if of(maxShares) <= weight {
		high = maxShares
	}
	last := ((high+1)*1000 - 1) / 1024 // the most thousandths that make high shares, which are rounded down
	for _, step := range []uint64{1000, 500, 250, 100, 50, 10, 5} {
		if m := last / step * step; m > 0 && m*1024/1000 >= low {
			return sizing.Milli(m), step
		}
	}
	return sharesMilli(low), 1
}

// sharesFrom is the least shares that have the weight or more.
func sharesFrom(weight uint64, of func(shares uint64) uint64) uint64 {
	low, high := uint64(minShares), uint64(maxShares)
	for low < high {
		mid := (low + high) / 2
		if of(mid) >= weight {
			high = mid
		} else {
			low = mid + 1
		}
	}
	return low
}
