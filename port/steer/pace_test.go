package steer

import (
	"testing"
	"time"
)

// TestPaceKeepsToItsShare has looks of a known cost, on a clock that counts nothing else.
func TestPaceKeepsToItsShare(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		cost, tick time.Duration
	}{
		{3 * time.Microsecond, ms}, // it does not look more often than it is worth
		{27 * time.Microsecond, 1500 * time.Microsecond},
		{45 * time.Microsecond, 2500 * time.Microsecond},
		{500 * time.Microsecond, 4 * ms}, // nor less often than it must
	} {
		p := newPace(ms, 4*ms)
		used := time.Second
		asked := 0
		var tick time.Duration
		for range 40 * paceLooks {
			used += c.cost
			tick = p.next(func() time.Duration { asked++; return used })
		}
		if diff := (tick - c.tick).Abs(); diff > c.tick/50 {
			t.Errorf("a look of %v: one every %v, want %v", c.cost, tick, c.tick)
		}
		if asked > 41 {
			t.Errorf("asked %d times for the CPU time in %d looks", asked, 40*paceLooks)
		}
	}
}

// TestPaceForgetsWhatOthersUsed: the CPU time of a start of workers, in a sleep, is not the price of looks.
func TestPaceForgetsWhatOthersUsed(t *testing.T) {
	p := newPace(time.Millisecond, 4*time.Millisecond)
	used := time.Second
	look := func() time.Duration {
		used += 36 * time.Microsecond // affordable every 2 ms, as it begins
		return p.next(func() time.Duration { return used })
	}
	for range 10 * paceLooks {
		look()
	}
	before := p.tick
	used += 10 * time.Second
	p.restart()
	for range 2 * paceLooks {
		if tick := look(); tick != before {
			t.Fatalf("%v, was %v", tick, before)
		}
	}
}
