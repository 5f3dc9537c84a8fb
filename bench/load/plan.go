package load

import (
	"math/rand/v2"
	"time"
)

// Arrival is one request of a plan. Plans are made ahead of a run, so that
// every subject of a comparison meets exactly the same arrivals.
type Arrival struct {
	// At is the intended start, counted from the beginning of the run.
	At time.Duration
	// Path is the request target, such as "/" or "/block?ms=200".
	Path string
	// Blocking says that the handler of Path blocks its worker. It is copied
	// into the Record and changes nothing else.
	Blocking bool
}

// newRand keeps the two users of a seed apart: the gaps and the mix must not
// be drawn from the same stream, or they would be correlated.
func newRand(seed, stream uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, stream))
}

// Poisson returns the arrival times of a Poisson process with the given rate
// in arrivals per second over [0, d). The same seed gives the same times. A
// rate that is not above zero gives none.
func Poisson(seed uint64, rate float64, d time.Duration) []time.Duration {
	if rate <= 0 {
		return nil
	}
	rng := newRand(seed, 1)
	times := make([]time.Duration, 0, int(rate*d.Seconds()*1.1)+1)
	at := 0.0
	for {
		at += rng.ExpFloat64() / rate
		t := time.Duration(at * float64(time.Second))
		if t >= d {
			return times
		}
		times = append(times, t)
	}
}

// Mix turns arrival times into a plan in which each request is, independently
// and with probability share (0 to 1), a blocking one. The same seed gives the
// same choice.
func Mix(seed uint64, times []time.Duration, path, blockingPath string, share float64) []Arrival {
	rng := newRand(seed, 2)
	plan := make([]Arrival, len(times))
	for i, t := range times {
		plan[i] = Arrival{At: t, Path: path}
		if rng.Float64() < share {
			plan[i].Path, plan[i].Blocking = blockingPath, true
		}
	}
	return plan
}
