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
// The loop calls Ready when a worker becomes ready, asks Due at each Deadline whom to measure, has the memory read
// elsewhere (law 4) and hands it to Sample. The zero value is ready for use.
type Learner struct {
	slots map[int]*learning
	most  uint64
}

type learning struct {
	since, next time.Time
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
func (l *Learner) Forget() { l.most = 0 }

// Due is the slots to measure now, in ascending order; each is due again after a second.
func (l *Learner) Due(now time.Time) []int {
	var due []int
	for slot, s := range l.slots {
		if !now.Before(s.next) {
			s.next = now.Add(learnEvery)
			due = append(due, slot)
		}
	}
	sort.Slice(due, func(i, j int) bool { return due[i] < due[j] })
	return due
}

// Sample takes the memory of the process tree of the worker in slot as it was at now, in bytes; 0 says that it could
// not be read. It reports whether the worker has settled with this sample, that is, whether Worker may have a new
// answer. Samples of slots that are not being measured are ignored.
func (l *Learner) Sample(now time.Time, slot int, bytes uint64) (settled bool) {
	s := l.slots[slot]
	if s == nil {
		return false
	}
	late := now.Sub(s.since) >= learnAtMost
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
		if now.Sub(first.at) >= learnWindow && (most-first.bytes) < (first.bytes+49)/50 {
			l.most = max(l.most, most)
			delete(l.slots, slot)
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

// Measuring says whether the worker in slot is still being measured.
func (l *Learner) Measuring(slot int) bool { return l.slots[slot] != nil }

// Worker is what one worker holds, in bytes: the largest settled one. It is 0 until one has settled.
func (l *Learner) Worker() uint64 { return l.most }
