package sizing

import (
	"sort"
	"time"
)

// The times and shares of learning. A server that has not yet forked, or that still loads its code, grows; one that has
// not grown by a fiftieth for three seconds is taken to have its size.
const (
	learnEvery  = time.Second      // between two samples of one worker: 30 ms of a CPU for 512 MiB, with its mmap lock held
	learnWindow = 3 * time.Second  // this long without growth is settled
	learnAtMost = 60 * time.Second // after this the largest sample counts, settled or not
)

// Learner finds what one worker needs: the memory of its process tree when it has settled. Room for the load to come is
// added by Plan. The largest worker counts. Every worker that becomes ready is measured anew, because the need of
// the first alone may mislead; what was learned never shrinks, except by Forget.
//
// A worker may seem to have its size while its code waits for something, a database perhaps, before it loads the rest.
// The worker that settled first is therefore measured on, more rarely, until it is a minute old: it is ahead of all others,
// and the size that it settles at then is known before they have grown to it.
//
// The loop calls Ready when a worker becomes ready, asks Due at each Deadline whom to measure, has the memory read
// elsewhere (law 4) and hands it to Sample. The zero value is ready for use.
type Learner struct {
	slots map[int]*learning
	most  uint64
	ahead *learning // the worker that settled first, for ever
}

type learning struct {
	since, next time.Time
	settled     bool
	samples     []sample // the oldest is the last one that is at least learnWindow old, if there is one
	most        uint64
}

type sample struct {
	at    time.Time
	bytes uint64
}

// Ready begins to measure the worker in slot, which has just become ready; a worker measured in that slot until now is
// dropped.
func (l *Learner) Ready(now time.Time, slot int) {
	if l.slots == nil {
		l.slots = make(map[int]*learning)
	}
	l.slots[slot] = &learning{since: now, next: now}
}

// Gone ends measuring the worker in slot, because it ended or is about to. Samples still under way are ignored.
func (l *Learner) Gone(slot int) { delete(l.slots, slot) }

// Forget drops what was learned, for instance because a reload brings another program; workers being measured stay so.
func (l *Learner) Forget() { l.most, l.ahead = 0, nil }

// Due is the slots to measure now, in ascending order; each is due again after a second, or three once it has settled.
func (l *Learner) Due(now time.Time) []int {
	var due []int
	for slot, s := range l.slots {
		if !now.Before(s.next) {
			s.next = now.Add(learnEvery)
			if s.settled {
				s.next = now.Add(learnWindow)
			}
			due = append(due, slot)
		}
	}
	sort.Slice(due, func(i, j int) bool { return due[i] < due[j] })
	return due
}

// Sample takes the memory of the process tree of the worker in slot as it was at now, in bytes; 0 says that it could
// not be read. It reports whether the worker has settled with this sample, or at another size than before, that is, whether
// Worker may have a new answer. Samples of slots that are not being measured are ignored.
func (l *Learner) Sample(now time.Time, slot int, bytes uint64) (settled bool) {
	s := l.slots[slot]
	if s == nil {
		return false
	}
	late := now.Sub(s.since) >= learnAtMost
	if s.settled {
		if late {
			delete(l.slots, slot)
		}
		// One that grows and grows leaks, and what it holds is not what it needs.
		before := s.most
		s.most = bytes
		if grown(before, bytes) || !grown(l.most, bytes) {
			return false
		}
		l.most = bytes
		return true
	}
	if bytes > 0 {
		s.most = max(s.most, bytes)
		s.samples = append(s.samples, sample{now, bytes})
		for len(s.samples) > 1 && now.Sub(s.samples[1].at) >= learnWindow {
			s.samples = s.samples[1:]
		}
		first := s.samples[0]
		most := first.bytes
		for _, x := range s.samples[1:] {
			most = max(most, x.bytes)
		}
		if now.Sub(first.at) >= learnWindow && !grown(first.bytes, most) {
			l.most = max(l.most, most)
			s.settled, s.most = true, most
			if l.ahead == nil {
				l.ahead = s
			}
			if l.ahead != s || late {
				delete(l.slots, slot)
			}
			return true
		}
	}
	if late {
		// It never came to rest, or could not be read: the largest size seen is the best there is.
		l.most = max(l.most, s.most)
		delete(l.slots, slot)
		return true
	}
	return false
}

// grown tells whether a size is a fiftieth over another one or more.
func grown(from, to uint64) bool {
	return to > from && to-from >= subSat(from, 1)/50+1
}

// Deadline is when the next sample is due, the zero time if none is.
func (l *Learner) Deadline() time.Time {
	var d time.Time
	for _, s := range l.slots {
		if d.IsZero() || s.next.Before(d) {
			d = s.next
		}
	}
	return d
}

// Measuring says whether the worker in slot is being measured and has not settled yet.
func (l *Learner) Measuring(slot int) bool { return l.slots[slot] != nil && !l.slots[slot].settled }

// Worker is what one worker holds, in bytes: the largest settled one. It is 0 until one has settled.
func (l *Learner) Worker() uint64 { return l.most }
