package steer

import "time"

// past is how long members have been blocked lately, the latest first, from which is guessed for how much longer one that is will be. It belongs to one goroutine.
type past [32]time.Duration

// lateness is what counts as late, and lateCosts how much more a wait counts that is: as long as it can still be avoided, it is worth some waiting of those that are late
// anyway.
const (
	lateness  = 20 * time.Millisecond
	lateCosts = 100 * time.Millisecond
)

// learn learns from a member, as it was at a look and is the given time later. What cannot be told to within a factor of two is not learned.
func (p *past) learn(was, is *View, later time.Duration) {
	if was.blocked() && is.Lag < was.Lag && later <= was.Lag {
		copy(p[1:], p[:])
		p[0] = was.Lag + later - is.Lag
	}
}

// cost is what it is expected to cost to wait for a member that has been blocked for the given time: the mean of what was left of those that were blocked for longer, and
// of one more that was for as long again.
func (p *past) cost(since time.Duration) time.Duration {
	sum, n := weigh(since), time.Duration(1)
	for _, length := range p {
		if length > since {
			sum += weigh(length - since)
			n++
		}
	}
	return sum / n
}

// weigh is what it costs to wait.
func weigh(d time.Duration) time.Duration {
	if d > lateness {
		return d + lateCosts
	}
	return d
}
