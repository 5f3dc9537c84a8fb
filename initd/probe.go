package initd

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/launch"
	"skep/port"
	"skep/port/steer"
	"skep/prestart/wait"
	"skep/reaper"
)

// probeAgain is the time before a prober that could not do its work is replaced.
const probeAgain = time.Second

// probed is what is known of how a worker is asked whether it is ready.
type probed struct {
	at      string // where it listens, as HOST:PORT; empty until it does
	reached bool   // the program that steers takes a probe of its slot to it
	pid     int    // of the process that asks, 0 for none
}

// probeAt notes an address of a worker to ask at. A probe of one slot among many
// comes from an IPv4 address of the slot's own, so it needs one that IPv4 reaches.
func (l *loop) probeAt(w *worker, a port.Addr) {
	if l.o.Ready != ReadyHTTP || w.probed.at != "" || !a.TCP() {
		return
	}
	at, ok := ProbeAddress(a)
	if !ok {
		l.unprobed(w, "IPv4 does not reach "+a.String())
		return
	}
	w.probed.at = at
	l.probe(w)
}

// findProbe says how a new worker is asked, if that is known before it listens.
func (l *loop) findProbe(w *worker) {
	if l.o.Ready != ReadyHTTP {
		return
	}
	why := l.cannotProbe
	if why == "" && !l.sharing && len(l.o.Listen) == 0 {
		why = "its port is not shared"
	}
	// It has to be in its seat before anything can be said of it.
	l.offload(func() func() {
		return func() {
			switch {
			case l.workers[w.seat] != w:
			case why != "":
				l.unprobed(w, why)
			default:
				for _, listen := range l.o.Listen {
					l.probeAt(w, listen.Addr)
				}
			}
		}
	})
}

// noProbes says that no worker can be asked from now on.
func (l *loop) noProbes(why string) {
	if l.o.Ready != ReadyHTTP || l.cannotProbe != "" {
		return
	}
	l.cannotProbe = why
	for _, w := range l.workers {
		if l.starting(w) {
			l.unprobed(w, why)
		}
	}
}

// ProbeAddress is where a probe of a listener connects to. ok is false when IPv4
// does not reach it.
func ProbeAddress(a port.Addr) (at string, ok bool) {
	ip := a.IP.Unmap()
	if a.Network == port.Either || !a.V6Only && ip.IsUnspecified() {
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.AddrPortFrom(ip, a.Port).String(), a.TCP() && ip.Is4()
}

// reachable says that a probe of the seat's slot now comes to its worker.
func (l *loop) reachable(seat, pid int) {
	if w := l.workers[seat]; w != nil && w.pid == pid {
		w.probed.reached = true
		l.probe(w)
	}
}

// unprobed makes a worker ready that cannot be asked.
func (l *loop) unprobed(w *worker, why string) {
	l.log.Log(logger.Warn, "cannot ask the worker over HTTP; it counts as ready without", l.slotOf(w.seat), logger.Field{Key: "why", Value: why})
	l.step(supervise.BecameReady{PID: w.pid})
}

// probe starts the process that asks a worker until it is ready: skep itself, as
// for --wait. Several workers are only asked when the answer comes from the right
// one.
func (l *loop) probe(w *worker) {
	if w.probed.at == "" || w.probed.pid != 0 || !l.starting(w) || l.sup.Serving() && !w.probed.reached {
		return
	}
	c := reaper.Command{Command: launch.Command{
		Path: l.exe, Argv: wait.Probe(w.probed.at+l.o.ReadyPath, steer.ProbeSource(w.slot), l.o.LogFormat, l.o.LogLevel),
		Env: []string{}, Dir: l.dir, Files: []uintptr{0, 1, 2}, Terminal: -1,
	}}
	p, err := l.table.Start(c)
	if err != nil {
		l.log.Log(logger.Warn, "cannot ask the worker over HTTP yet", l.slotOf(w.seat), logger.Field{Key: "error", Value: err.Error()})
		l.probeLater(w)
		return
	}
	l.childless = false
	w.probed.pid, l.probes[p.PID] = p.PID, w
}

func (l *loop) probeLater(w *worker) {
	l.background(func() {
		select {
		case <-time.After(probeAgain):
			l.reports <- func() { l.probe(w) }
		case <-l.ctx.Done():
		}
	})
}

// starting tells whether a worker's process is the one in its seat and not ready.
func (l *loop) starting(w *worker) bool {
	for _, st := range l.sup.Seats() {
		if st.ID == w.seat {
			return st.State == supervise.Starting && st.PID == w.pid
		}
	}
	return false
}

// proberEnded tells whether an exit was that of a process that asks, and acts on
// what it has found out.
func (l *loop) proberEnded(e reaper.Exit) bool {
	w := l.probes[e.PID]
	if w == nil {
		return false
	}
	delete(l.probes, e.PID)
	w.probed.pid = 0
	switch {
	case !l.starting(w):
	case e.Status.ExitCode() == 0:
		l.step(supervise.BecameReady{PID: w.pid})
	default:
		l.log.Log(logger.Warn, "asking the worker over HTTP failed", l.slotOf(w.seat), logger.Field{Key: "status", Value: e.Status.String()})
		l.probeLater(w)
	}
	return true
}

// endProbes ends what asks workers that are not starting any more.
func (l *loop) endProbes() {
	for pid, w := range l.probes {
		if !l.starting(w) {
			_ = l.table.Signal(pid, int(unix.SIGKILL), false)
		}
	}
}
