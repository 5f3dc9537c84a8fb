package initd

import (
	"slices"
	"strconv"
	"time"

	"skep/internal/logger"
	"skep/port"
	"skep/proc"
)

// A program that keeps its own workers listens before it forks them, by a moment or
// by the time that its code takes to load. What has not forked within as long as it
// took to listen, within these bounds, has no workers.
const (
	forksAfter  = 500 * time.Millisecond
	forksWithin = 5 * time.Second
)

// inspect finds out, off the loop, whether a command that has begun to listen is
// a server of which several copies make sense.
func (l *loop) inspect(w *worker) {
	if w.inspected {
		return
	}
	w.inspected = true
	again := time.Duration(0)
	for _, st := range l.sup.Seats() {
		if st.PID == w.pid && !l.o.Insist {
			again = min(max(time.Since(st.Started), forksAfter), forksWithin)
		}
	}
	l.look(w, again)
}

// look is one look of inspect's, and another one after the time given unless that
// is 0.
func (l *loop) look(w *worker, again time.Duration) {
	addrs, foreign := slices.Clone(w.addrs), slices.Clone(w.foreign)
	l.offload(func() func() {
		why := loner(w.pid, addrs, foreign)
		if why == "" && again > 0 {
			select {
			case <-time.After(again):
			case <-l.ctx.Done():
				return nil
			}
		}
		return func() {
			if l.workers[w.seat] != w || !l.discover {
				return
			}
			if why == "" && again > 0 {
				l.look(w, 0)
				return
			}
			l.discover = false
			if why != "" && !l.o.Insist {
				l.size.fixed = 1
				l.alone(logger.Info, why)
				return
			}
			l.size.replicate()
		}
	})
}

// insist ends the line that says why one process runs.
const insist = "; -w N or --share-port PORT runs several"

// alone tells the same for what is known before the command runs. Whoever sits at a
// terminal is not told without being asked.
func (l *loop) alone(level logger.Level, why string) {
	l.log.Log(level, "running one process", logger.Field{Key: "why", Value: why})
}

// loner says why one process is all that a listening command wants, and which
// flag decides otherwise; empty when nothing speaks against more. It reads files
// of another process and may stall.
func loner(pid int, addrs []port.Addr, foreign []port.Foreign) string {
	tree, _ := proc.Host.Tree(pid)
	if len(tree) > 1 {
		return "it has forked workers of its own (" + strconv.Itoa(len(tree)) + " processes); --export-workers hands it the number" + insist
	}
	loopback := true
	for _, a := range addrs {
		loopback = loopback && a.IP.Unmap().IsLoopback()
	}
	if loopback {
		return "it listens on loopback only" + insist
	}
	for _, f := range foreign {
		return "it listens on " + f.Kind.String() + " besides" + insist
	}
	listeners, err := proc.Host.Listeners(pid)
	if err == nil {
		for _, other := range listeners {
			if !among(other.Addr.Port(), addrs) {
				return "it listens on " + other.String() + " besides" + insist
			}
		}
	}
	if runtime, err := proc.Host.Runtime(pid); err == nil && runtime != "" {
		return runtime + " uses all CPUs by itself" + insist
	}
	if locks, err := proc.Host.HoldsFileLocks(pid); err == nil && locks {
		return "it holds file locks, as databases do" + insist
	}
	return ""
}

func among(number uint16, addrs []port.Addr) bool {
	for _, a := range addrs {
		if a.Port == number {
			return true
		}
	}
	return false
}
