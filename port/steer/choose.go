package steer

import (
	"math"
	"time"
)

// State says what a member of a group may be given.
type State uint8

// The states of a member. Only Ready ones are ever chosen while there is one.
const (
	// Down has no process. What is in its queue waits for the next worker in its place.
	Down State = iota
	// Starting has a process that is not ready yet.
	Starting
	// Ready serves.
	Ready
	// Hung holds connections in its queue and has accepted none for long.
	Hung
	// Draining is to get nothing new, and is closed once its queue has run empty.
	Draining
	// Standby is ready and kept in reserve.
	Standby
	// Leaving is Draining whose socket is about to be closed: see Poller.Update.
	Leaving
)

var stateNames = [...]string{"down", "starting", "ready", "hung", "draining", "standby", "leaving"}

// String gives the state's name.
func (s State) String() string { return stateNames[s] }

// Wait is what is known of the thread that accepts a member's connections.
type Wait uint8

// What the accepting thread may be doing.
const (
	// Unknown: it cannot be told; the queue alone decides.
	Unknown Wait = iota
	// Idle: it waits for events, and would accept at once.
	Idle
	// Busy: it runs, or waits for something else.
	Busy
)

var waitNames = [...]string{"unknown", "idle", "busy"}

// String gives the name.
func (w Wait) String() string { return waitNames[w] }

// View is what the choice of a member depends on.
type View struct {
	State State
	Wait  Wait
	// Queue is the number of connections that wait to be accepted.
	Queue int
	// Conns is the number of connections the worker has open, or -1 when that is unknown; then all count as equal.
	Conns int
	// Lag is how long ago the worker was last seen to get on: idle, with an empty queue it has not been idle for, or accepting.
	Lag time.Duration
	// Asleep tells that a Busy thread does not run: it waits for something else than a connection.
	Asleep bool
	// Cost is what it is expected to cost a connection to wait until the worker gets on. It counts when no member is free and none runs.
	Cost time.Duration
	// Gulps tells that the worker takes all that waits for it at once when it gets on, as event loops do.
	Gulps bool
}

// momentary is the longest Lag of a worker that is held to be in the middle of an ordinary request rather than blocked: a few looks. Much longer, and a worker that
// has just begun to block still gets connections; much shorter, and a busy one that is fine is taken for a blocked one. One that runs gets on more often than it is
// seen to, when looks are rare beside its requests, and longer than most requests run; of one that sleeps, nothing speaks for the same.
const (
	momentary        = 4 * time.Millisecond
	momentaryRunning = 10 * time.Millisecond
)

// free tells whether a connection given to the member now is accepted at once, as far as can be seen.
func (v *View) free() bool { return v.State == Ready && v.Queue == 0 && v.Wait != Busy }

// moving tells whether the member is ready and is held to be in the middle of an ordinary request.
func (v *View) moving() bool { return v.State == Ready && v.Lag <= momentary || v.running() }

// blocked tells whether the member has got nowhere for longer than an ordinary request takes, although there is something for it to do.
func (v *View) blocked() bool {
	return (v.State == Ready || v.State == Hung) && !v.free() && !v.moving()
}

// running tells whether it is moving as far as can be seen: one that has begun to sleep may go on with that for long.
func (v *View) running() bool { return v.State == Ready && v.Lag <= momentaryRunning && !v.Asleep }

// slack is how many connections more than the least a member may have and still count as equal to it: so few that the busiest stays near the mean, and from 16
// connections on enough that a burst between two ticks goes to more than the one emptiest worker.
func slack(least int) int { return least / 16 }

// Choose appends to dst the indices, ascending, of the members among which the next connections are to be spread, and returns the extended slice. A member that
// is to get twice as many as another is in it twice as often, at most maxShare times. It is empty only when no member is Ready; Shelter then says where
// connections can wait. Burst is the number of connections that are expected before the next call; below 1 it counts as 1. Choose does not allocate when dst has
// room for maxShare times the members.
//
// In this order: the free members with the fewest connections; with no free one, the running members with the shortest queue and the fewest connections; with
// no running one either, the ready one at which a connection is expected to wait at the least cost. When a burst is expected, which one alone should not get, all moving members
// count as running, and without one several are chosen.
// "Fewest" and "shortest" take in as many members as the expected burst would fill up to one level. A member that is
// running counts as free when it has clearly fewer connections than all that are free, and when so many connections are expected that the free ones
// cannot take them at once.
func Choose(dst []int, members []View, burst int) []int {
	c := chooser{members: members, burst: max(burst, 1), conns: true, gulps: true}
	free, moving, running := 0, 0, 0
	for i := range members {
		v := &members[i]
		switch {
		case v.State != Ready:
			continue
		case v.free():
			free++
		case v.moving():
			moving++
			if v.running() {
				running++
			}
		}
		c.conns, c.gulps = c.conns && v.Conns >= 0, c.gulps && v.Gulps
	}
	switch {
	case free > 0 && running > 0 && (c.burst > perTick*free || c.lopsided()):
		return c.pour(dst, classFreeOrRunning)
	case free > 0:
		return c.pour(dst, classFree)
	case moving > 0 && c.burst > perTick:
		return c.pour(dst, classMoving)
	case running > 0:
		return c.pour(dst, classRunning)
	case c.gulps || c.burst <= perTick:
		return c.first(dst)
	}
	return c.pour(dst, classReady)
}

// Shelter is for a group without a Ready member. It appends to dst the indices, as Choose does, of those in whose queue a connection has the best prospects: the
// members that are to have a worker soon (Starting, Down), those with the shortest queue; else the hung ones; else those that are kept in reserve.
// Draining and Leaving members get nothing, so the result may be empty.
func Shelter(dst []int, members []View) []int {
	c := chooser{members: members, burst: len(members)}
	for _, k := range [...]class{classComing, classHung, classStandby} {
		if out := c.pour(dst, k); len(out) > len(dst) {
			return out
		}
	}
	return dst
}

// perTick is how many connections a free worker is trusted to take between two calls. An asyncio server answers about one small request per millisecond.
const perTick = 4

// A class is a set of members that are as good as each other but for their load.
type class uint8

const (
	classFree class = iota
	classFreeOrRunning
	classMoving
	classRunning
	classReady
	classComing
	classHung
	classStandby
)

func (k class) has(v *View) bool {
	switch k {
	case classFree:
		return v.free()
	case classFreeOrRunning:
		return v.free() || v.running()
	case classMoving:
		return v.moving()
	case classRunning:
		return v.running()
	case classReady:
		return v.State == Ready
	case classComing:
		return v.State == Starting || v.State == Down
	case classHung:
		return v.State == Hung
	case classStandby:
		return v.State == Standby
	}
	return false
}

type chooser struct {
	members []View
	burst   int
	conns   bool // the number of connections is known for all that are ready
	gulps   bool // all that are ready do
}

// load is what members of a class are compared by: among free ones the connections they have or are about to have. Among moving ones a connection in the queue
// weighs as much as several open ones, since one waits for it; among blocked ones there is nothing but the wait.
func (c *chooser) load(v *View, k class) int {
	switch {
	case !c.conns || k > classRunning:
		return v.Queue
	case k >= classMoving:
		return v.Conns + perTick*v.Queue
	}
	return v.Conns + v.Queue
}

// lopsided tells whether every free member has clearly more connections than one that is busy for a moment. Waiting that moment is then better than
// the lasting imbalance.
func (c *chooser) lopsided() bool {
	free, soon := c.least(classFree), c.least(classFreeOrRunning)
	return free > soon+1+slack(soon)
}

// least is the smallest load in the class, or math.MaxInt for a class without members.
func (c *chooser) least(k class) int {
	least := math.MaxInt
	for i := range c.members {
		if v := &c.members[i]; k.has(v) {
			least = min(least, c.load(v, k))
		}
	}
	return least
}

// turn is what each connection costs those that come to the same event loop after it: mostly what a small request takes, but now and then as long as a block.
const turn = 10 * time.Millisecond

// first appends the ready members at which a connection is expected to wait at the least cost: of those that take one connection at a time, which then takes a request's
// time, the ones with the shortest queue. Event loops take all that waits at once. What is already late is then best kept together, at the one that gets on first; but
// each connection before another may be one that blocks, so that it is better to wait for a second worker a little longer than behind many. A
// burst costs as much, and goes to all that are as good as the best one would be after it.
func (c *chooser) first(dst []int) []int {
	rank := func(v *View) (int, time.Duration) {
		if v.Gulps {
			return 0, v.Cost + turn*time.Duration(v.Queue)
		}
		return v.Queue, v.Cost
	}
	queue, cost := math.MaxInt, time.Duration(0)
	for i := range c.members {
		if v := &c.members[i]; v.State == Ready {
			if q, d := rank(v); q < queue || q == queue && d < cost {
				queue, cost = q, d
			}
		}
	}
	cost += turn * time.Duration(c.burst-1)
	for i := range c.members {
		if v := &c.members[i]; v.State == Ready {
			if q, d := rank(v); q == queue && d <= cost {
				dst = append(dst, i)
			}
		}
	}
	return dst
}

// pour appends the members of the class that get wet when the burst is poured on their loads, and those that are no more than slack above the least.
func (c *chooser) pour(dst []int, k class) []int {
	least := c.least(k)
	if least == math.MaxInt {
		return dst
	}
	// The smallest level that leaves room for the burst. At least+burst the emptiest member alone has room for all of it.
	level, high := least+1, least+c.burst
	for level < high {
		mid := level + (high-level)/2
		room := 0
		for i := range c.members {
			if v := &c.members[i]; k.has(v) {
				room += max(0, mid-c.load(v, k))
			}
		}
		if room >= c.burst {
			high = mid
		} else {
			level = mid + 1
		}
	}
	if c.conns && k <= classRunning {
		level = max(level, least+1+slack(least))
	}
	equal := true
	for i := range c.members {
		if v := &c.members[i]; k.has(v) && c.load(v, k) < level {
			equal = equal && c.share(v, k, level, least) == maxShare
		}
	}
	for i := range c.members {
		if v := &c.members[i]; k.has(v) && c.load(v, k) < level {
			n := 1
			if !equal {
				n = c.share(v, k, level, least)
			}
			for range n {
				dst = append(dst, i)
			}
		}
	}
	return dst
}

// serves tells whether a program that picks among attached, made for an earlier choice, is as good as one for the choice of now: it picks nobody that is not
// in the choice, nobody more than a third more often than it should, and leaves nobody out unless few connections are expected until the next look. Making the
// kernel take a new program costs as much as looking at ten members, and with short connections the choice would change at nearly every one. Both are as Choose
// returns them.
func serves(attached, choice []int, few bool) bool {
	if len(attached) == 0 || len(choice) == 0 {
		return len(attached) == len(choice)
	}
	if !few && different(attached) < different(choice) {
		return false
	}
	for i, j := 0, 0; i < len(attached); {
		for j < len(choice) && choice[j] < attached[i] {
			j++
		}
		has, should := run(attached[i:]), 0
		if j < len(choice) && choice[j] == attached[i] {
			should = run(choice[j:])
		}
		if 3*has*len(choice) > 4*should*len(attached) {
			return false
		}
		i += has
	}
	return true
}

// run is how often the first number is repeated at the beginning.
func run(list []int) int {
	n := 1
	for n < len(list) && list[n] == list[0] {
		n++
	}
	return n
}

// different is how many different numbers are in the list.
func different(list []int) (n int) {
	for i := 0; i < len(list); i += run(list[i:]) {
		n++
	}
	return n
}

// maxShare is how many times more than another one a member can get.
const maxShare = 8

// share is how much a member gets: maxShare for the emptiest, less for others, in proportion to their room below the level.
func (c *chooser) share(v *View, k class, level, least int) int {
	room, most := level-c.load(v, k), level-least
	return (maxShare*room + most - 1) / most
}
