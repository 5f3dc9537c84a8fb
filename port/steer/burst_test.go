package steer

import (
	"testing"
	"time"
)

func TestBurst(t *testing.T) {
	type look struct {
		at      time.Duration
		arrived int
	}
	for _, c := range []struct {
		name  string
		looks []look
		want  int
	}{
		{"nothing", []look{{1 * ms, 0}}, 0},
		{"one", []look{{1 * ms, 1}}, 1},
		{"three in a millisecond", []look{{1 * ms, 3}}, 3},
		{"four in a millisecond are a burst that goes on", []look{{1 * ms, 4}}, 16},
		{"also when each is looked at", []look{{1 * ms, 1}, {1100 * time.Microsecond, 1}, {1200 * time.Microsecond, 1}, {1900 * time.Microsecond, 1}}, 16},
		{"four in three milliseconds are not", []look{{10 * ms, 0}, {13 * ms, 4}}, 4},
		{"twelve are", []look{{10 * ms, 0}, {13 * ms, 12}}, 48},
		{"one that is served does not hide one that has come", []look{{1 * ms, 3}, {1100 * time.Microsecond, -3}, {1200 * time.Microsecond, 1}}, 16},
		{"it fades", []look{{1 * ms, 16}, {2 * ms, 0}}, 56},
		{"as fast without looks", []look{{1 * ms, 16}, {9 * ms, 0}}, 20},
		{"and is over", []look{{1 * ms, 16}, {60 * ms, 0}}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b burst
			for _, l := range c.looks {
				b.saw(l.at, l.arrived)
			}
			if b.next != c.want {
				t.Errorf("expects %d, want %d", b.next, c.want)
			}
		})
	}
	var b burst
	b.saw(time.Second, 0)
	b.wake(time.Hour)
	if b.saw(time.Hour, 1); b.next != wakeBurst {
		t.Errorf("after a sleep it expects %d, want %d", b.next, wakeBurst)
	}
}
