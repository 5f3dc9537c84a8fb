package steer

import "time"

// burst estimates how many connections will come until the next look. It counts those of about a millisecond together, so that looks at single connections do not
// hide that they come in a burst.
type burst struct {
	next  int           // the estimate
	since time.Duration // when counting began
	span  time.Duration // how long those took to come that are counted
	count int
}

const (
	// wakeBurst is how many connections may follow the one that ended a sleep. The first look after it sees only the beginning of a burst; to prefer the worker
	// that happens to have got the fewest of these would give it all the rest.
	wakeBurst = 64
	// burstRate is how many connections in a millisecond are a burst, which goes on. Fewer may be any.
	burstRate = 4
	// burstMemory is after how many milliseconds nothing is left of a burst.
	burstMemory = 32
)

// wake is for the first connection after a sleep.
func (b *burst) wake(now time.Duration) {
	*b = burst{next: wakeBurst, since: now, span: shortestTick}
}

// saw counts the connections that came since the look before. It is negative when some that were counted in a queue have been served meanwhile.
func (b *burst) saw(now time.Duration, arrived int) {
	if after := now - b.since; after >= shortestTick {
		for range min(after/shortestTick, burstMemory) {
			b.next = b.next * 7 / 8
		}
		b.since, b.span, b.count = now, after, 0
	}
	b.count += max(arrived, 0)
	expected := b.count
	if time.Duration(b.count)*shortestTick >= burstRate*b.span {
		expected *= 4
	}
	b.next = max(b.next, expected)
}
