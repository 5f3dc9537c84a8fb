package sizing

import (
	"slices"
	"strconv"
	"time"
)

// The times and shares of the guard.
const (
	guardOver    = 900                    // per mille of the limit: two samples above it and a worker must go
	guardSoonest = 100 * time.Millisecond // between two samples, near the limit
	guardLatest  = 30 * time.Second       // between two samples, far from it
	guardAgain   = 10 * time.Minute       // a worker recycled twice in this time was recycled in vain
	guardVain    = 30 * time.Second       // over again this soon, a worker needs what it takes and does not leak
	guardBack    = 10 * time.Minute       // this long without trouble one worker is added again
	guardUnknown = time.Second            // between two samples, while it is not known how memory grows
	guardOneKill = 2 * time.Second        // kills this close together are one shortage
	guardStart   = 30 * time.Second       // a successor may take as long to start, and meanwhile what grows goes on growing
	guardRate    = time.Second            // growth is taken over this long or longer
	guardAnswer  = 5 * time.Second        // sizes of workers asked for and not given by then are asked for again
)

// Guard keeps the container's memory below its limit while the workers run. Where one OOM kill ends the whole container
// (memory.oom.group) a worker has to be recycled before the limit, not after it.
//
// It is fed samples of the memory in use and answers with actions. Over nine tenths of the limit in two samples in a
// row, the largest worker is recycled, one at a time. A worker that has to go again within ten minutes shows that
// recycling does not help: then there shall be one worker fewer, too. After an OOM kill there is one worker fewer. One
// worker is added back after ten minutes without either if there is room for it, and all of them when the limit is
// raised. NewGuard makes one.
type Guard struct {
	least int // never fewer workers than this

	limit   uint64
	fewer   int       // workers that the guard holds back from the plan
	calm    time.Time // the last trouble, or the last worker added back
	over    bool      // the sample before was over
	asked   time.Time // sizes of workers were asked for; zero if no answer is awaited
	last    Usage
	next    time.Time
	seen    time.Time  // when last was taken
	rate    [2]reading // for the growth: an older one, and one that becomes it
	killed  time.Time
	recycle map[int]time.Time // slot to the last time it was recycled for its memory
	patient time.Time         // until then nothing is recycled: it would be in vain
}

// NewGuard makes a guard that never asks for fewer than least workers: the number itself if it was given by hand, else
// --min-workers.
func NewGuard(least int) *Guard {
	return &Guard{least: max(1, least), recycle: make(map[int]time.Time)}
}

// Usage is one sample of the whole container.
type Usage struct {
	Used    uint64 // memory in use that counts against the limit, in bytes, without what the kernel drops freely
	Limit   uint64 // in bytes; 0: no limit but the machine, which others fill too, and nothing is guarded
	Planned int    // workers that Plan wants
	Running int    // workers there are
	Worker  uint64 // what one worker needs as learned, 0 if unknown
	Room    bool   // one more worker fits now, see RoomForOne
	Busy    bool   // a worker is on its way out, or in place of a recycled one on its way in: no further one may go now
}

// reading is one amount of memory in use.
type reading struct {
	at   time.Time
	used uint64
}

// Worker is the memory of one worker.
type Worker struct {
	Slot  int
	Bytes uint64 // of its process tree
}

// Action is what the guard wants done: one of [Measure], [Recycle], [Shrink] and [Grow].
type Action interface{ action() }

// Measure asks for the memory of all ready workers, to be handed to [Guard.Workers]. It is asked for only over the
// threshold, as reading it costs the workers something.
type Measure struct{}

// Recycle asks for a worker to be replaced gracefully.
type Recycle struct {
	Slot int
	// StopThenStart says that a second copy does not fit beside it, or not for as long as it may take to start: the old
	// worker ends first. Otherwise the new one starts first.
	StopThenStart bool
	Why           string
}

// Shrink asks for a lower number of workers. The loop takes away the highest slots.
type Shrink struct {
	To  int
	Why string
}

// Grow takes back a Shrink.
type Grow struct {
	To  int
	Why string
}

func (Measure) action() {}
func (Recycle) action() {}
func (Shrink) action()  {}
func (Grow) action()    {}

// Allowed is how many of planned workers the guard lets run.
func (g *Guard) Allowed(planned int) int {
	return max(min(planned, g.least), planned-g.fewer)
}

// Usage takes one sample. Shrink and Grow in the answer are told by Allowed, too: a loop may take the number from
// there and only log them.
func (g *Guard) Usage(now time.Time, u Usage) []Action {
	var out []Action
	before, had := g.last, g.seen
	if g.limit != 0 && (u.Limit > g.limit || u.Limit == 0) && g.fewer > 0 {
		g.fewer = 0
		clear(g.recycle) // what did not help under the old limit may help now
		out = append(out, Grow{u.Planned, "the memory limit was raised"})
	}
	g.limit, g.last, g.seen = u.Limit, u, now
	g.next = now.Add(interval(u, before, now.Sub(had)))
	if now.Sub(g.rate[1].at) >= guardRate {
		g.rate = [2]reading{g.rate[1], {now, u.Used}}
	}
	if u.Limit == 0 {
		g.over, g.asked, g.next = false, time.Time{}, now.Add(guardLatest)
		return out
	}

	over := Over(u.Used, u.Limit)
	twice := over && g.over
	g.over = over
	switch {
	case !over:
		g.asked = time.Time{}
		if g.fewer > 0 && now.Sub(g.calm) >= guardBack && u.Room && !u.Busy {
			was := g.Allowed(u.Planned)
			for g.fewer > 0 && g.Allowed(u.Planned) == was {
				g.fewer-- // the plan may have become smaller than what was held back of it
			}
			if n := g.Allowed(u.Planned); n > was {
				g.calm = now
				out = append(out, Grow{n, "ten minutes without a shortage of memory"})
			}
		}
	case twice && !u.Busy && !now.Before(g.patient) && (g.asked.IsZero() || now.Sub(g.asked) >= guardAnswer):
		g.asked = now
		out = append(out, Measure{})
	}
	return out
}

// Workers takes the memory of the workers that a [Measure] asked for. The workers given are those that may be recycled:
// ready ones.
func (g *Guard) Workers(now time.Time, ws []Worker) []Action {
	if g.asked.IsZero() || g.last.Busy || !g.over {
		return nil // not asked for, or no longer needed
	}
	g.asked = time.Time{}
	if len(ws) == 0 {
		return nil
	}
	big := slices.MaxFunc(ws, func(a, b Worker) int {
		if a.Bytes != b.Bytes {
			if a.Bytes < b.Bytes {
				return -1
			}
			return 1
		}
		return b.Slot - a.Slot // of equals the lower slot
	})
	u := g.last
	// Until the next two samples nothing more: this one must show its effect first.
	g.over, g.calm = false, now
	r := Recycle{
		Slot: big.Slot,
		// A copy may not lift the sum over the limit while both live. Unknown needs are taken as no room.
		StopThenStart: u.Worker == 0 || addSat(addSat(u.Used, u.Worker), g.growth()) > u.Limit,
		Why: "memory in use is " + size(u.Used) + " of " + size(u.Limit) + ", slot " + strconv.Itoa(big.Slot) +
			" is the largest with " + size(big.Bytes),
	}
	at, before := g.recycle[big.Slot]
	again := before && now.Sub(at) < guardAgain
	if !again {
		g.recycle[big.Slot] = now
		return []Action{r}
	}
	r.Why += ", again within ten minutes"
	allowed := g.Allowed(u.Planned)
	if !g.take(u.Planned) {
		if now.Sub(at) < guardVain {
			g.patient = at.Add(guardVain) // one that simply needs so much would be restarted for ever
			return nil
		}
		g.recycle[big.Slot] = now
		return []Action{r}
	}
	g.recycle[big.Slot] = now
	s := Shrink{g.Allowed(u.Planned), "recycling slot " + strconv.Itoa(big.Slot) + " twice within ten minutes did not help"}
	if big.Slot >= allowed-1 {
		return []Action{s} // the one that goes is the one that is too large
	}
	return []Action{s, r}
}

// growth is what the memory in use will have grown by when a successor has started, if it goes on like this.
func (g *Guard) growth() uint64 {
	from := g.rate[0]
	if from.at.IsZero() {
		from = g.rate[1]
	}
	took := g.seen.Sub(from.at)
	if took <= 0 {
		return 0
	}
	return mulDiv(subSat(g.last.Used, from.used), uint64(guardStart), uint64(took))
}

// OOMKill tells that the kernel killed for want of memory, in this container, while planned workers were planned.
func (g *Guard) OOMKill(now time.Time, planned int) []Action {
	one := !g.killed.IsZero() && now.Sub(g.killed) < guardOneKill
	g.killed, g.calm = now, now
	if one || !g.take(planned) {
		return nil
	}
	return []Action{Shrink{g.Allowed(planned), "the kernel killed a process because memory ran out"}}
}

// Over says whether so much in use is more than the guard lets be.
func Over(used, limit uint64) bool { return used > mulDiv(limit, guardOver, 1000) }

// take holds one more worker back, if that leaves enough.
func (g *Guard) take(planned int) bool {
	was := g.Allowed(planned)
	g.fewer++
	if g.Allowed(planned) == was {
		g.fewer--
		return false
	}
	return true
}

// Deadline is when the next sample is due; the zero time before the first one says at once.
func (g *Guard) Deadline() time.Time { return g.next }

// interval is the time to the next sample. It falls with the third power of the room below the threshold: something that
// eats three hundredths of the limit per second is then still seen before the limit, whenever it begins. Growth that was
// seen is followed: at least four samples before it reaches the threshold. Of what was seen for a short time only, as at
// the start, nothing is foretold for longer than twice that time, and nothing at all while workers come and go: what
// they take at once comes on top of what grows.
func interval(u, before Usage, since time.Duration) time.Duration {
	over := mulDiv(u.Limit, guardOver, 1000)
	if u.Used >= over || over == 0 {
		return guardSoonest
	}
	room := over - u.Used
	r := mulDiv(room, 1<<16, over) // per 2¹⁶ of the threshold
	d := time.Duration(mulDiv(uint64(guardLatest), r*r*r>>16, 1<<32))
	if u.Used > before.Used && before.Limit != 0 && since > 0 {
		grown := u.Used - before.Used
		reach := mulDiv(uint64(since), room, grown) / 4
		d = min(d, time.Duration(min(reach, uint64(guardLatest))))
	}
	known := max(2*since, guardUnknown)
	if before.Limit == 0 || u.Running != before.Running || u.Busy || before.Busy {
		known = guardUnknown
	}
	return min(max(min(d, known), guardSoonest), guardLatest)
}
