package steer

import "time"

// pace says when to look again while there is traffic: as often as a share of a processor allows, because to wake up and fall asleep again costs 5 µs on one
// machine and 60 on another, many times what is done in between. The share is spent like money: time brings credit, a look takes some, and what is saved pays for
// many looks when something is about to change.
//
// As long as there is enough for it, each connection is looked at when it has come, and hardly anything in between. When they come too fast for that, looks at regular
// times see more.
type pace struct {
	shortest, longest time.Duration // bounds of the time between two looks
	cost              time.Duration // the time that pays for a look
	credit            time.Duration // the time that has not been spent yet; below 0 when there were more looks than it pays for
	last              time.Duration // when the last look was
	gap               time.Duration // the usual time until the next connection comes
	looks             int           // how many there were
	counted           int           // how many there were when the CPU time was taken
	used              time.Duration // CPU time of this process then, 0 when it was not taken
}

const (
	// paceShare is what looking may take of one processor. Whatever else this process does is in it.
	paceShare = 0.018
	// paceLooks is over how many looks their cost is averaged.
	paceLooks = 64
	// paceSaved is how many looks can be saved up.
	paceSaved = 16
	// paceRest is how many times longer than the longest a pause may be to save something up.
	paceRest = 4
	// paceSamples is over how many connections their gap is averaged, and how many looks at regular times there are for one at a connection.
	paceSamples = 16
)

// newPace starts in the middle between shortest and longest, with all that can be saved.
func newPace(shortest, longest time.Duration) pace {
	return pace{shortest: shortest, longest: longest, cost: 2 * shortest, credit: 2 * shortest * paceSaved, gap: longest}
}

// restart forgets what was used until now, by other things than looks.
func (p *pace) restart() { p.used = 0 }

// look counts a look at the time now. Used is the CPU time of this process; it is asked for now and then.
func (p *pace) look(now time.Duration, used func() time.Duration) {
	p.credit = min(p.credit+now-p.last, p.cost*paceSaved) - p.cost
	p.last = now
	p.looks++
	n := p.looks - p.counted
	if n < paceLooks && p.used != 0 {
		return
	}
	cpu := used()
	if p.used != 0 {
		affordable := time.Duration(float64(cpu-p.used) / float64(n) / paceShare)
		p.cost += (min(max(affordable, p.shortest), p.longest) - p.cost) / 4
	}
	p.counted, p.used = p.looks, cpu
}

// asks tells whether to look at the next connection when it comes.
func (p *pace) asks() bool {
	if p.rushed() {
		return p.looks%paceSamples == 0 // to see whether they still come so fast
	}
	return p.credit >= 0
}

// came learns how long it took until a connection came.
func (p *pace) came(after time.Duration) {
	p.gap += (min(after, p.cost*paceSaved) - p.gap) / paceSamples
}

// rushed tells whether connections come too fast to look at each.
func (p *pace) rushed() bool { return p.gap < p.cost }

// pause is the time until the next look if no connection that is asked for comes before. Soon is when much may change without one.
func (p *pace) pause(soon bool) time.Duration {
	saved := p.cost * paceSaved
	switch {
	case p.credit < 0:
		return p.cost - p.credit
	case soon && p.credit >= saved/4:
		return p.shortest
	case soon || p.rushed():
		return p.cost
	case p.credit >= saved*3/4:
		return p.longest
	}
	return paceRest * p.longest
}
