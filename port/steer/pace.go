package steer

import "time"

// pace says when to look again while there is traffic: as often as a share of a processor allows, because to wake up and fall asleep again costs 5 µs on one
// machine and 60 on another, many times what is done in between. The share is spent like money: time brings credit, a look takes some, and what is saved pays for
// many looks when something is about to change.
//
// As long as there is enough for it, each connection is looked at when it has come, and hardly anything in between. When they come too fast for that, looks at regular
// times see more.
type pace struct {
	shortest, longest time.Duration // bounds of the time between two looks, and of the price
	set               time.Duration // the price, if it is given
	took              time.Duration // CPU time of a look
	credit            time.Duration // the time that has not been spent yet; below 0 when there were more looks than it pays for
	last              time.Duration // when the last look was
	gap               time.Duration // the usual time until the next connection comes
	recent            time.Duration // the same of fewer connections
	learned           int           // of how many
	looks             int           // how many there were
	blocked           time.Duration // when a worker was last seen to sleep instead of serving; the Poller says so
	counted           int           // how many there were when the CPU time was taken
	used              time.Duration // CPU time of this process then, 0 when it was not taken
}

const (
	// paceCalm is what looks may take of one processor, as long as connections are few, no more than one in paceFew, and paceShare what they may take for paceTrouble after a
	// worker was seen to sleep instead of serving: only then do connections wait for something that looks can prevent. The faster connections come, the nearer it is to
	// paceRushed: of so many hardly any is saved by one more look. Whatever else this process does is in it.
	paceCalm, paceShare, paceRushed = 0.02, 0.05, 0.013
	paceTrouble                     = time.Second
	paceFew                         = 3 * time.Millisecond
	// paceLooks is over how many looks their cost is averaged.
	paceLooks = 32
	// paceSaved is how many looks can be saved up.
	paceSaved = 64
	// paceRest is how many times longer than the longest a pause may be to save something up.
	paceRest = 2
	// paceSamples is over how many connections their gap is averaged: few, and it seems too short now and then, which it takes many looks to find out. When the
	// paceRecent last ones say that it is a third shorter, or half as long again, it is learned anew.
	paceSamples, paceRecent = 64, 16
	// paceTimed is how many looks at regular times there are for one at a connection, and paceLearning how many while the gap is learned.
	paceTimed, paceLearning = 16, 2
)

// newPace starts with a look that takes 50 µs, and with all that can be saved.
func newPace(shortest, longest time.Duration) pace {
	p := pace{shortest: shortest, longest: longest, took: 50 * time.Microsecond, gap: longest, recent: longest, blocked: -paceTrouble}
	p.credit = p.saved()
	return p
}

// fixed makes the price what it is given as, whatever looks cost.
func (p *pace) fixed(price time.Duration) {
	p.set = price
	p.shortest, p.longest = min(p.shortest, price), max(p.longest, price)
	p.credit = p.saved()
}

// restart forgets what was used until now, by other things than looks.
func (p *pace) restart() { p.used = 0 }

// look counts a look at the time now. Used is the CPU time of this process; it is asked for now and then.
func (p *pace) look(now time.Duration, used func() time.Duration) {
	p.credit = min(p.credit+now-p.last, p.saved()) - p.price()
	p.last = now
	p.looks++
	n := p.looks - p.counted
	if n < paceLooks && p.used != 0 {
		return
	}
	cpu := used()
	if p.used != 0 {
		dearest := time.Duration(float64(p.longest) * paceShare)
		p.took += (min((cpu-p.used)/time.Duration(n), dearest) - p.took) / 2
	}
	p.counted, p.used = p.looks, cpu
}

// price is the time that pays for a look.
func (p *pace) price() time.Duration {
	if p.set != 0 {
		return p.set
	}
	most := paceCalm
	if p.last-p.blocked < paceTrouble {
		most = paceShare
	}
	share := paceRushed + (most-paceRushed)*float64(min(p.gap, paceFew))/float64(paceFew)
	return min(max(time.Duration(float64(p.took)/share), p.shortest), p.longest)
}

// saved is the most that can be saved.
func (p *pace) saved() time.Duration { return paceSaved * p.price() }

// asks tells whether to look at the next connection when it comes.
func (p *pace) asks() bool {
	if p.rushed() {
		// It may seem so for a moment only, and now and then has to be seen again.
		return p.credit >= p.saved()/2 || p.looks%paceTimed == 0 || p.learned < paceSamples && p.looks%paceLearning == 0
	}
	return p.credit >= 0
}

// came learns how long it took until a connection came.
func (p *pace) came(after time.Duration) {
	after = min(after, 4*p.longest)
	p.learned = min(p.learned+1, paceSamples)
	p.gap += (after - p.gap) / time.Duration(p.learned+1)
	p.recent += (after - p.recent) / time.Duration(min(p.learned, paceRecent)+1)
	if 3*p.recent < 2*p.gap || 2*p.recent > 3*p.gap {
		p.learned, p.gap = 0, p.recent
	}
}

// rushed tells whether connections come too fast to look at each: by a fifth or more, because up to there a pause now and then makes looks at connections see more than
// looks at regular times, and because the gap is a guess.
func (p *pace) rushed() bool { return 6*p.gap < 5*p.price() }

// expects is how many connections are likely to come until the next look, when none is asked for: those that a worker takes and ends in between are never seen.
func (p *pace) expects() int { return int((p.price() - min(p.credit, 0)) / max(p.gap, 1)) }

// pause is the time until the next look if no connection that is asked for comes before. Soon is above 0 when much may change without one: then it is how many of the
// shortest pauses that takes.
func (p *pace) pause(soon int) time.Duration {
	price, saved := p.price(), p.saved()
	switch {
	case p.credit < 0:
		return price - p.credit
	case soon > 0 && p.credit >= saved/4:
		return time.Duration(soon) * p.shortest
	case soon > 0 || p.rushed():
		return price
	case p.credit >= saved*3/4:
		return p.longest
	}
	return paceRest * p.longest
}
