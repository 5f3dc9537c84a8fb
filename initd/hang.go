package initd

import (
	"time"

	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/port/steer"
	"skep/proc"
)

// evidence is what makes a worker suspect.
type evidence int

const (
	// queued: its queue holds connections and does not shrink.
	queued evidence = iota
	// blocked: the thread that accepts sleeps where no connection wakes it, and the
	// worker holds connections.
	blocked
	// silent: it has sent WATCHDOG=1 before, and has not for long.
	silent
)

var evidenceWords = [...]string{
	queued:  "it accepts nothing while its queue holds connections",
	blocked: "the thread that accepts connections is blocked while some are open",
	silent:  "it has sent no WATCHDOG=1",
}

// suspect is a worker and the reason to watch it.
type suspect struct {
	seat int
	by   evidence
}

// stall is a ready worker that has not got on since some time.
type stall struct {
	since   time.Time     // of the last sign that it got on
	cpu     time.Duration // used by the worker's tree at the last look
	began   time.Duration // used when the stall was found
	looking time.Time     // when the last look began, zero before the first
	reading bool
	thread  proc.Thread // for blocked: as it was when the stall was found
}

// suspected begins to watch a worker that has not got on for since. Tid is the
// thread that must not move meanwhile, 0 for none.
func (l *loop) suspected(s suspect, since time.Duration, tid int) {
	w := l.workers[s.seat]
	if l.o.HangTimeout == 0 || l.stalls[s] != nil || w == nil {
		return
	}
	st := &stall{since: time.Now().Add(-since), reading: true}
	l.stalls[s] = st
	l.offload(func() func() {
		r := rest(w.pid, tid)
		return func() {
			st.began, st.thread, st.reading = r.cpu, r.thread, false
			if tid != 0 && !r.thread.Sleeps() && l.stalls[s] == st {
				delete(l.stalls, s)
			}
		}
	})
}

// cleared says that a worker got on, or is no longer the one it was.
func (l *loop) cleared(seat int) {
	for s := range l.stalls {
		if s.seat == seat {
			delete(l.stalls, s)
		}
	}
}

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

// checkHangs ends a worker that has not got on for the hang timeout. That alone
// is no proof where CPU is short: one that could not run must not be killed for
// it. So all of it also has to sleep through the last look, or to have used the
// whole timeout as CPU time (an endless loop). Of one that is only seen to be
// blocked, with nobody waiting in its queue, the accepting thread must not have
// run at all: a handler that takes short naps for long looks the same whenever
// one looks.
func (l *loop) checkHangs(now time.Time) {
	for s, st := range l.stalls {
		w := l.workers[s.seat]
		switch {
		case w == nil:
			delete(l.stalls, s)
			continue
		case st.reading:
			continue
		case st.looking.IsZero() && now.Before(st.since.Add(l.o.HangTimeout-hangLook)),
			!st.looking.IsZero() && now.Before(st.looking.Add(hangLook)):
			continue
		}
		st.reading = true
		pid, first := w.pid, st.looking.IsZero()
		l.offload(func() func() {
			r := rest(pid, st.thread.TID)
			return func() {
				st.reading = false
				if l.stalls[s] != st || l.workers[s.seat] != w {
					return
				}
				if r.thread != st.thread {
					delete(l.stalls, s) // it has run; if it is blocked again the poller says so
					return
				}
				used := r.cpu - st.cpu
				if !first && time.Since(st.since) >= l.o.HangTimeout &&
					(r.still && used == 0 || r.cpu-st.began >= max(l.o.HangTimeout-steerStuck, l.o.HangTimeout/2)) {
					l.cleared(s.seat)
					l.step(supervise.Hung{Seat: s.seat, Why: evidenceWords[s.by]})
					return
				}
				st.cpu, st.looking = r.cpu, time.Now()
			}
		})
	}
}

// atRest is what a look at a worker shows.
type atRest struct {
	cpu    time.Duration // that its processes have used
	still  bool          // its main thread sleeps or is stopped, and no thread of it is waiting for a CPU
	thread proc.Thread   // the one that was asked for
}

// rest looks at a worker. It reads files of other processes that everybody may.
func rest(pid, tid int) (r atRest) {
	if tid != 0 {
		r.thread, _ = proc.Host.Thread(pid, tid)
	}
	tree, err := proc.Host.Tree(pid)
	if err != nil {
		return r
	}
	r.cpu, _ = proc.Host.CPU(tree...)
	main, err := proc.Host.Thread(pid, pid)
	r.still = err == nil && main.Sleeps()
	for _, p := range tree {
		r.still = r.still && !proc.Host.Runnable(p)
	}
	return r
}

// blockedEvent follows what the poller says of an accepting thread.
func (l *loop) blockedEvent(ev steer.Event) {
	s := suspect{ev.Seat, blocked}
	if l.stalls[s] == nil {
		l.log.Log(logger.Debug, "worker may be blocked", l.slotOf(ev.Seat), logger.Field{Key: "thread", Value: ev.TID})
	}
	l.suspected(s, ev.For, ev.TID)
}
