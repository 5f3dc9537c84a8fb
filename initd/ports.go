package initd

import (
	"time"

	"golang.org/x/sys/unix"

	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/port"
)

// holdListeners takes the addresses of --listen, so that one that cannot be had
// is found before anything is started. skep prestart serves nothing and takes
// none: its container may share the network with one that serves.
func (l *loop) holdListeners() error {
	if l.o.Prestart.Only {
		return nil
	}
	for _, listen := range l.o.Listen {
		for seat := range l.o.Policy.Workers {
			h, err := l.ports.Hold(seat, listen.Addr)
			if err != nil {
				return err
			}
			l.given = append(l.given, h)
		}
	}
	return nil
}

// openListeners makes them listen, after the steps before the start: until then
// a port that accepts connections would have nobody behind it.
func (l *loop) openListeners() error {
	for _, h := range l.given {
		if err := l.ports.Listen(h); err != nil {
			return err
		}
	}
	return nil
}

// answer answers one call of a worker and acts on what it means.
func (l *loop) answer(ask *port.Ask) {
	if l.workers[ask.Slot] == nil {
		l.ports.Decline(ask) // what a worker that is gone has left behind
		return
	}
	fact := l.ports.Answer(ask)
	switch fact := fact.(type) {
	case port.Shared:
		l.log.Log(logger.Debug, "worker got a held socket", l.slotOf(fact.Slot), logger.Field{Key: "address", Value: fact.Addr.String()})
	case port.Listening:
		l.listening(fact)
	case port.Refused:
		l.log.Log(logger.Error, "cannot hold a socket for a worker; it was told the same", l.slotOf(fact.Slot),
			logger.Field{Key: "address", Value: fact.Addr.String()}, logger.Field{Key: "error", Value: fact.Errno.Error()})
	case port.EpollFirst:
		l.fallBack("the program polls its socket before it binds it, so " + fact.Addr.String() +
			" cannot be shared; use --listen if it can take a descriptor")
	case port.Blind:
		l.fallBack("skep may not look into the worker (" + fact.Err.Error() + "); use --listen if it can take a descriptor")
	case port.Foreign:
		if w := l.workers[fact.Slot]; w != nil {
			w.foreign = append(w.foreign, fact)
			l.log.Log(logger.Debug, "worker listens on something that is not shared", l.slotOf(fact.Slot),
				logger.Field{Key: "kind", Value: fact.Kind.String()})
		}
	}
}

func (l *loop) slotOf(seat int) logger.Field {
	if w := l.workers[seat]; w != nil {
		return logger.Field{Key: "slot", Value: w.slot}
	}
	return logger.Field{Key: "seat", Value: seat}
}

func (l *loop) listening(fact port.Listening) {
	w := l.workers[fact.Slot]
	if w == nil {
		return
	}
	if !w.listening {
		w.listening = true
		l.log.Log(logger.Debug, "worker listens", l.slotOf(fact.Slot), logger.Field{Key: "address", Value: fact.Addr.String()})
	}
	w.addrs = append(w.addrs, fact.Addr)
	l.probeAt(w, fact.Addr)
	if fact.Process == w.pid {
		w.thread = fact.Thread
		l.steer.changes++
	}
	if l.o.Ready.seen() {
		l.step(supervise.BecameReady{PID: w.pid})
	}
	if l.discover {
		l.inspect(w)
	}
}

// cannotShare acts on a filter that could not be installed.
func (l *loop) cannotShare(w *worker, err error) {
	if l.workers[w.seat] != w {
		return
	}
	l.fallBack("cannot install the bind filter: " + err.Error() + "; use --listen if the program can take a descriptor")
}

// fallBack goes on with one worker, which is always right.
func (l *loop) fallBack(why string) {
	if !l.sharing {
		return
	}
	l.sharing, l.discover = false, false
	l.log.Log(logger.Warn, "the port cannot be shared, going on with one worker", logger.Field{Key: "why", Value: why})
	l.size.fixed = 1
	l.noProbes("its port is not shared")
	if l.sup.Phase() == supervise.Running {
		l.step(supervise.Scale{Workers: 1, Why: "the port cannot be shared"})
	}
}

func (l *loop) relisten(hangup port.Hangup) {
	fact, err := l.ports.Relisten(hangup)
	switch fact := fact.(type) {
	case port.Revived:
		l.log.Log(logger.Warn, "a worker shut down a shared socket; listening again, what was queued in it is lost",
			l.slotOf(fact.Slot), logger.Field{Key: "address", Value: fact.Addr.String()})
	case port.Client:
		l.log.Log(logger.Debug, "a worker connects from a port that it has bound; letting go of the socket",
			l.slotOf(fact.Slot), logger.Field{Key: "address", Value: fact.Addr.String()})
	}
	if err != nil {
		l.log.Log(logger.Error, "cannot listen again on a socket that a worker shut down; the slot gets nothing until it restarts",
			logger.Field{Key: "error", Value: err.Error()})
	}
}

// Draining. A handshake that is in flight when a slot is taken out of the choice
// still ends in its queue, which the queue's length does not show: hence the
// second.
const (
	drainLeast = time.Second
	drainEvery = 20 * time.Millisecond
)

// drainCheck is when the queues of draining seats are to be looked at.
func (l *loop) drainCheck() time.Time {
	var at time.Time
	for seat, since := range l.draining {
		next := since
		if l.steer.drains() && len(l.ports.Held(seat)) > 0 {
			continue
		}
		if len(l.ports.Held(seat)) > 0 {
			next = since.Add(drainLeast)
			if l.sup.Serving() && time.Since(since) >= drainLeast {
				next = time.Now().Add(drainEvery)
			}
		}
		if at.IsZero() || next.Before(at) {
			at = next
		}
	}
	return at
}

func (l *loop) checkDrained(now time.Time) {
	for seat, since := range l.draining {
		held := l.ports.Held(seat)
		if l.steer.drains() && len(held) > 0 {
			continue
		}
		if len(held) > 0 && now.Sub(since) < drainLeast {
			continue
		}
		queued := 0
		for _, h := range held {
			queued += queueLength(h.FD())
		}
		if queued == 0 {
			delete(l.draining, seat)
			l.step(supervise.Drained{Seat: seat})
		}
	}
}

// queueLength is the number of connections in the accept queue of a listening
// TCP socket: tcpi_unacked of tcp_info there (net/ipv4/tcp.c, tcp_get_info).
func queueLength(fd int) int {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return int(info.Unacked)
}
