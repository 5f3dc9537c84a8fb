// Package queueing computes what an ideal server would do with the arrivals of
// a run: k workers, one queue, first come first served, no time lost between
// them. It is the row that the others are measured against.
//
// It is the least for the mean wait of all jobs, not for every part of them: a
// server that lets one blocking job wait behind another, on the same worker,
// keeps the other workers free, and can serve the quick jobs a little better
// than first come first served does.
package queueing

import (
	"container/heap"
	"math"
	"time"
)

// Job is one arrival. Jobs are in order of At.
type Job struct {
	At      time.Duration // arrival
	Service time.Duration // time that a worker is busy with it
}

// Waits simulates a G/G/k queue, first come first served, that is empty at
// the start, and returns how long each job waits before a worker takes it. It
// panics if k is below 1: that is an error of the caller, not of the data.
func Waits(k int, jobs []Job) []time.Duration {
	if k < 1 {
		panic("queueing: fewer than one worker")
	}
	free := make(times, k) // when each worker becomes free, all at 0
	waits := make([]time.Duration, len(jobs))
	for i, j := range jobs {
		begin := max(j.At, free[0])
		waits[i] = begin - j.At
		free[0] = begin + j.Service
		heap.Fix(&free, 0)
	}
	return waits
}

// ErlangC returns the probability that a job has to wait in an M/M/k queue
// with offered load a = arrival rate × mean service time, in Erlang. It is 1
// when a is k or more: the queue grows without end.
func ErlangC(k int, a float64) float64 {
	if a >= float64(k) {
		return 1
	}
	// Erlang B by its recursion, which does not overflow as factorials do.
	b := 1.0
	for i := 1; i <= k; i++ {
		b = a * b / (float64(i) + a*b)
	}
	rho := a / float64(k)
	return b / (1 - rho + rho*b)
}

// MeanWaitMMk returns the mean wait of an M/M/k queue with rate jobs per
// second and the given mean service time; infinity when it is overloaded.
func MeanWaitMMk(k int, rate float64, service time.Duration) time.Duration {
	a := rate * service.Seconds()
	if a >= float64(k) {
		return math.MaxInt64
	}
	return time.Duration(ErlangC(k, a) * float64(service) / (float64(k) - a))
}

// MeanWaitMD1 returns the mean wait of an M/D/1 queue (Pollaczek–Khinchine
// with constant service times).
func MeanWaitMD1(rate float64, service time.Duration) time.Duration {
	rho := rate * service.Seconds()
	if rho >= 1 {
		return math.MaxInt64
	}
	return time.Duration(rho / (2 * (1 - rho)) * float64(service))
}

type times []time.Duration

func (t times) Len() int           { return len(t) }
func (t times) Less(i, j int) bool { return t[i] < t[j] }
func (t times) Swap(i, j int)      { t[i], t[j] = t[j], t[i] }

// Push and Pop complete heap.Interface; the heap never changes its size.
func (t *times) Push(any) { panic("queueing: the number of workers is fixed") }
func (t *times) Pop() any { panic("queueing: the number of workers is fixed") }
