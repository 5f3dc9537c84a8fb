package steer

import "time"

// pace says when to look again while there is traffic: as often as a share of a processor allows, because to wake up and fall asleep again costs 5 µs on one
// machine and 40 on another, many times what is done in between.
type pace struct {
	shortest, longest time.Duration
	tick              time.Duration
	looks             int           // since the CPU time was taken
	used              time.Duration // CPU time of this process then, 0 when it was not taken
}

const (
	// paceShare is what looking may take of one processor. Whatever else this process does is in it.
	paceShare = 0.018
	// paceLooks is over how many looks their cost is averaged.
	paceLooks = 64
)

// newPace starts in the middle between shortest and longest.
func newPace(shortest, longest time.Duration) pace {
	return pace{shortest: shortest, longest: longest, tick: 2 * shortest}
}

// restart forgets what was used until now, by other things than looks.
func (p *pace) restart() { p.looks, p.used = 0, 0 }

// next counts a look and returns the time until the next one. Used is the CPU time of this process; it is asked for now and then.
func (p *pace) next(used func() time.Duration) time.Duration {
	if p.looks++; p.looks < paceLooks && p.used != 0 {
		return p.tick
	}
	now := used()
	if p.used != 0 {
		affordable := time.Duration(float64(now-p.used) / float64(p.looks) / paceShare)
		p.tick += (min(max(affordable, p.shortest), p.longest) - p.tick) / 4
	}
	p.looks, p.used = 0, now
	return p.tick
}
