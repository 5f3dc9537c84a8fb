package initd

import (
	"time"

	"skep/initd/supervise"
	"skep/proc"
)

// stall is a ready worker whose queue holds connections and does not shrink.
type stall struct {
	since   time.Time     // of the last connection accepted
	cpu     time.Duration // used by the worker's tree at the last look
	began   time.Duration // used when the poller found the stall
	looking time.Time     // when that look began, zero before the first
	reading bool
}

// stalled and unstalled follow what the poller sees.
func (l *loop) stalled(seat int, since time.Duration) {
	w := l.workers[seat]
	if l.o.HangTimeout == 0 || l.stalls[seat] != nil || w == nil {
		return
	}
	s := &stall{since: time.Now().Add(-since), reading: true}
	l.stalls[seat] = s
	l.offload(func() func() {
		cpu, _ := rest(w.pid)
		return func() { s.began, s.reading = cpu, false }
	})
}

func (l *loop) unstalled(seat int) { delete(l.stalls, seat) }

// hangAt is when the next stalled worker is to be looked at.
func (l *loop) hangAt() time.Time {
	var at time.Time
	for _, s := range l.stalls {
		next := s.looking.Add(hangLook)
		if s.looking.IsZero() {
			next = s.since.Add(max(l.o.HangTimeout-hangLook, 0))
		}
		if !s.reading && (at.IsZero() || next.Before(at)) {
			at = next
		}
	}
	return at
}

// steerStuck is how long the poller watches a queue before it tells of a stall,
// within which CPU time is not counted.
const steerStuck = time.Second

// hangLook is the time between two looks at a worker that may hang.
const hangLook = 250 * time.Millisecond

// checkHangs ends a worker that has accepted nothing for the hang timeout. That
// alone is no proof where CPU is short: one that could not run must not be
// killed for it. So it also has to sleep through the last look, or to have used
// the whole timeout as CPU time without accepting (an endless loop).
func (l *loop) checkHangs(now time.Time) {
	for seat, s := range l.stalls {
		w := l.workers[seat]
		switch {
		case w == nil:
			delete(l.stalls, seat)
			continue
		case s.reading:
			continue
		case s.looking.IsZero() && now.Before(s.since.Add(l.o.HangTimeout-hangLook)),
			!s.looking.IsZero() && now.Before(s.looking.Add(hangLook)):
			continue
		}
		s.reading = true
		pid, first := w.pid, s.looking.IsZero()
		l.offload(func() func() {
			cpu, sleeps := rest(pid)
			return func() {
				s.reading = false
				if l.stalls[seat] != s || l.workers[seat] != w {
					return
				}
				used := cpu - s.cpu
				if !first && time.Since(s.since) >= l.o.HangTimeout &&
					(sleeps && used == 0 || cpu-s.began >= max(l.o.HangTimeout-steerStuck, l.o.HangTimeout/2)) {
					delete(l.stalls, seat)
					l.step(supervise.Hung{Seat: seat})
					return
				}
				s.cpu, s.looking = cpu, time.Now()
			}
		})
	}
}

// rest tells how much CPU time a worker's processes have used, and whether its
// main thread sleeps or is stopped. It reads files of another process.
func rest(pid int) (cpu time.Duration, sleeps bool) {
	tree, err := proc.Host.Tree(pid)
	if err != nil {
		return 0, false
	}
	cpu, _ = proc.Host.CPU(tree...)
	state, err := proc.Host.State(pid)
	return cpu, err == nil && (state == 'S' || state == 'D' || state == 'T' || state == 't')
}
