package initd

import (
	"strconv"

	"skep/internal/logger"
	"skep/port"
	"skep/proc"
)

// inspect finds out, off the loop, whether a command that has begun to listen is
// a server of which several copies make sense.
func (l *loop) inspect(w *worker) {
	if w.inspected {
		return
	}
	w.inspected = true
	addrs, foreign := w.addrs, w.foreign
	l.offload(func() func() {
		why := loner(w.pid, addrs, foreign)
		return func() {
			if l.workers[w.seat] != w || !l.discover {
				return
			}
			l.discover = false
			if why != "" && !l.o.Insist {
				l.size.fixed = 1
				l.log.Log(logger.Info, "running one process", logger.Field{Key: "why", Value: why})
				return
			}
			l.size.replicate()
		}
	})
}

// loner says why one process is all that a listening command wants, and which
// flag decides otherwise; empty when nothing speaks against more. It reads files
// of another process and may stall.
func loner(pid int, addrs []port.Addr, foreign []port.Foreign) string {
	const insist = "; -w N or --share-port PORT runs several"
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
	if locks, err := proc.Host.HoldsFileLocks(pid); err == nil && locks {
		return "it holds file locks, as databases do" + insist
	}
	if runtime, err := proc.Host.Runtime(pid); err == nil && runtime != "" {
		return runtime + " uses all CPUs by itself" + insist
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
