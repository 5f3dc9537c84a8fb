package steer

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

const ms = time.Millisecond

// paced looks again and again, on a clock that counts nothing but looks of the cost given, at connections that come each gap, when they are asked for, and else when the
// pace says so. It returns how much of a processor the second half of the looks took, and at what part of the connections it looked.
func paced(p *pace, cost, gap time.Duration, soon int) (share, seen float64) {
	return pacedBy(p, cost, gap, soon, false, each(gap))
}

// pacedBy is paced with connections of which the next one comes when the function says. Each look may see a blocked worker.
func pacedBy(p *pace, cost, gap time.Duration, soon int, blocked bool, nextAfter func(now time.Duration) time.Duration) (share, seen float64) {
	const looks = 160 * paceLooks
	l := looker{pace: p, cost: cost, soon: soon, blocked: blocked, nextAfter: nextAfter, used: time.Second}
	var began, before time.Duration
	for i := range looks {
		if i == looks/2 {
			began, before, l.atConnections = l.now, l.used, 0
		}
		l.look()
	}
	return float64(l.used-before) / float64(l.now-began), float64(l.atConnections) * float64(gap) / float64(l.now-began)
}

// looker looks as the pace says, on a clock that counts nothing but looks.
type looker struct {
	*pace
	cost          time.Duration
	soon          int
	blocked       bool                                  // each look sees a blocked worker
	nextAfter     func(now time.Duration) time.Duration // when a connection comes
	now, used     time.Duration
	asked         time.Duration
	armed         bool // the next connection has been asked for
	atConnections int  // looks at one
}

// look looks once and goes to the time of the next look.
func (l *looker) look() {
	l.used += l.cost
	l.pace.look(l.now, func() time.Duration { return l.used })
	if l.blocked {
		l.pace.blocked = l.now
	}
	if !l.armed && l.asks() {
		l.asked, l.armed = l.now, true
	}
	next := l.now + l.pause(l.soon)
	if comes := l.nextAfter(l.now); l.armed && comes < next {
		next, l.armed = comes, false
		l.came(comes - l.asked)
		l.atConnections++
	}
	l.now = next
}

// each is when a connection comes after the given time if one comes each gap.
func each(gap time.Duration) func(now time.Duration) time.Duration {
	return func(now time.Duration) time.Duration { return now + gap - now%gap }
}

// atRandom is when a connection comes after the given time if they come independently of each other.
func atRandom(gap time.Duration) func(now time.Duration) time.Duration {
	r := rand.New(rand.NewPCG(1, 1))
	return func(now time.Duration) time.Duration { return now + time.Duration(r.ExpFloat64()*float64(gap)) }
}

// TestPaceNearTheLimit: connections that come about as fast as looks at each can be paid for are looked at when they come, many of them.
func TestPaceNearTheLimit(t *testing.T) {
	p := newPace(ms, 8*ms)
	p.fixed(3 * ms)
	const gap = 3 * ms
	if _, seen := pacedBy(&p, 0, gap, 0, false, atRandom(gap)); seen < 0.3 {
		t.Errorf("%.2f of the connections were looked at", seen)
	}
}

// TestPaceFollows: when connections come much faster or slower than before, the pace is that of what comes now after a fraction of a second and not after many seconds:
// a load of some seconds would cost twice what it may, or be looked at too seldom.
func TestPaceFollows(t *testing.T) {
	p := newPace(ms, 8*ms)
	const cost = 60 * time.Microsecond
	l := looker{pace: &p, cost: cost, used: time.Second}
	settles := func(gap time.Duration, settled func() bool) time.Duration {
		began := l.now
		l.nextAfter = atRandom(gap)
		for !settled() && l.now-began < time.Minute {
			l.look()
		}
		return l.now - began
	}
	rushed := func() bool { return float64(cost)/float64(p.price()) < 1.1*paceRushed }
	slow := func() bool { return !p.rushed() && float64(cost)/float64(p.price()) > 0.9*paceCalm }
	for range 3 {
		if took := settles(100*time.Microsecond, rushed); took > 2*time.Second {
			t.Errorf("when a connection comes each 0.1 ms, looks take what they may then after %v", took)
		}
		if took := settles(4*ms, slow); took > 2*time.Second {
			t.Errorf("when a connection comes each 4 ms, looks take what they may then after %v", took)
		}
	}
}

// TestPaceKeepsToItsShare: whatever happens, looks do not take more than they may, but for those that are as seldom as can be; and connections are all looked at as
// long as that is affordable. They may take more while workers are seen to block.
func TestPaceKeepsToItsShare(t *testing.T) {
	for _, blocked := range []bool{false, true} {
		for _, cost := range []time.Duration{3 * time.Microsecond, 15 * time.Microsecond, 27 * time.Microsecond, 45 * time.Microsecond, 120 * time.Microsecond} {
			for _, soon := range []int{0, 1, 2} {
				for _, gap := range []time.Duration{50 * time.Microsecond, 1001 * time.Microsecond, 3001 * time.Microsecond, 7 * ms, time.Hour} {
					p := newPace(ms, 8*ms)
					share, seen := pacedBy(&p, cost, gap, soon, blocked, each(gap))
					most := paceCalm
					if blocked {
						most = paceShare
					}
					most = min(most, float64(cost)/float64(ms))
					if gap < ms {
						most = min(1.04*paceRushed, most)
					}
					most = max(most, float64(cost)/float64(p.longest))
					what := fmt.Sprintf("looks of %v, a connection each %v, soon %d, blocked %v", cost, gap, soon, blocked)
					if share > 1.06*most {
						t.Errorf("%s: %.4f of a processor, at most %.4f", what, share, most)
					}
					if affordable := float64(p.price()) < 0.95*float64(gap); gap != time.Hour && affordable && soon == 0 && seen < 0.99 {
						t.Errorf("%s: %.3f of the connections were looked at", what, seen)
					}
					if gap < ms && seen > 0.1 {
						t.Errorf("%s: %.3f of the connections were looked at", what, seen)
					}
				}
			}
		}
	}
}

// TestPacePaysWhenBlocked: a worker that is seen to block makes looks worth more, for a while.
func TestPacePaysWhenBlocked(t *testing.T) {
	p := newPace(ms, 8*ms)
	p.came(time.Second)
	look := func(now time.Duration) time.Duration {
		p.look(now, func() time.Duration { return 0 })
		return p.price()
	}
	calm := look(time.Hour)
	p.blocked = time.Hour
	if got, want := p.price(), time.Duration(float64(calm)*paceCalm/paceShare); got != want {
		t.Errorf("when a worker is blocked %v pay for a look, want %v", got, want)
	}
	if got := look(time.Hour + paceTrouble - ms); got >= calm {
		t.Errorf("a moment later %v pay for a look, want less than %v", got, calm)
	}
	if got := look(time.Hour + paceTrouble); got != calm {
		t.Errorf("after %v without a blocked worker %v pay for a look, want %v", paceTrouble, got, calm)
	}
}

// TestPaceLooksAtTimes: when connections come too fast, looks are as regular as they are without being told of any.
func TestPaceLooksAtTimes(t *testing.T) {
	p := newPace(ms, 4*ms)
	for range 200 {
		p.came(0)
	}
	if !p.asks() {
		t.Error("with much saved it does not look at what comes")
	}
	p.credit = p.saved() / 4
	asked := 0
	for i := range 16 * paceTimed {
		now := time.Duration(i) * p.price()
		p.look(now, func() time.Duration { return 0 })
		if p.asks() {
			asked++
		}
		if got := p.pause(0); got != p.price() {
			t.Fatalf("a pause of %v, want %v", got, p.price())
		}
	}
	if asked != 16 {
		t.Errorf("asked for %d connections in %d looks, want 16", asked, 16*paceTimed)
	}
	for range 3 * paceSamples {
		p.came(time.Second)
	}
	if p.rushed() {
		t.Error("it does not notice that they come slower again")
	}
}

// TestPaceExpects: connections come until the next look as fast as those that were asked for have.
func TestPaceExpects(t *testing.T) {
	p := newPace(ms, 8*ms)
	p.fixed(3 * ms)
	for range 200 {
		p.came(ms / 2)
	}
	if got := p.expects(); got < 5 || got > 6 {
		t.Errorf("%d connections are expected in 3 ms, want 6", got)
	}
	p.credit = -3 * ms // the next look is later
	if got := p.expects(); got < 11 || got > 12 {
		t.Errorf("%d connections are expected in 6 ms, want 12", got)
	}
	for range 3 * paceSamples {
		p.came(0)
	}
	if got := p.expects(); got < 100 {
		t.Errorf("%d connections are expected when they come faster than can be told", got)
	}
}

// TestPaceAsksSeldom: the CPU time is asked for once in many looks.
func TestPaceAsksSeldom(t *testing.T) {
	p := newPace(ms, 4*ms)
	asked := 0
	for i := range 40 * paceLooks {
		p.look(time.Duration(i)*ms, func() time.Duration { asked++; return time.Second })
	}
	if asked > 41 {
		t.Errorf("asked %d times for the CPU time in %d looks", asked, 40*paceLooks)
	}
}

// TestPaceSaves: what is saved while little happens is spent when much does, and not more than that.
func TestPaceSaves(t *testing.T) {
	p := newPace(ms, 4*ms)
	none := func() time.Duration { return 0 }
	p.look(time.Hour, none)
	if got := p.pause(0); got != 4*ms {
		t.Errorf("with all that can be saved a pause of %v, want %v", got, 4*ms)
	}
	for soon := range 3 {
		if got, want := p.pause(soon), time.Duration(soon)*ms; soon > 0 && got != want {
			t.Errorf("one that is to be short: %v, want %v", got, want)
		}
	}
	n := 0
	for ; p.asks(); n++ {
		p.look(time.Hour, none)
		if p.credit >= 0 && p.credit < p.price() {
			if got := p.pause(0); got != paceRest*4*ms {
				t.Errorf("with hardly anything saved a pause of %v, want %v", got, paceRest*4*ms)
			}
			if got := p.pause(1); got != p.price() {
				t.Errorf("one that is to be short: %v, want %v", got, p.price())
			}
		}
	}
	if n != paceSaved {
		t.Errorf("%d looks at once after an hour, want %d", n, paceSaved)
	}
	if got := p.pause(1); got != 2*p.price() {
		t.Errorf("then a pause of %v, want %v", got, 2*p.price())
	}
}

// TestPaceForgetsWhatOthersUsed: the CPU time of a start of workers, in a sleep, is not the price of looks.
func TestPaceForgetsWhatOthersUsed(t *testing.T) {
	p := newPace(ms, 4*ms)
	paced(&p, 36*time.Microsecond, time.Hour, 1)
	before := p.took
	p.restart()
	used := 10 * time.Hour
	for range 2 * paceLooks {
		used += 36 * time.Microsecond
		p.look(time.Hour, func() time.Duration { return used })
		if p.took != before {
			t.Fatalf("a look takes %v, was %v", p.took, before)
		}
	}
}
