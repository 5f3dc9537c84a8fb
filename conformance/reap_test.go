package conformance

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// reapCases are about orphans: the init is the parent of all whose parent has died.
func reapCases() []*testcase {
	orphans := func(count int, within time.Duration) func(r *run) {
		return func(r *run) {
			p := r.start(setup{}, built.probe, "orphans", strconv.Itoa(count), "7")
			if line, ok := p.line(18 * r.patient); !ok || line != "ready" {
				r.failf("not ready: %q%s", line, p.said())
			}
			r.eventually(min(within, 2*r.patient), fmt.Sprintf("all %d orphans are gone, no zombie is left", count), func() bool { return len(children(p.pid)) == 1 })
			p.signal(int(syscall.SIGUSR1))
			p.wantCode(7)
		}
	}
	return []*testcase{
		{name: "orphans-100", mode: pid1, what: "100 orphans are reaped, the command's code is kept", defects: []string{"no-reap", "theft"}, run: orphans(100, 3*time.Second)},
		{name: "orphans-100", mode: plain, what: "100 orphans are reaped although it is not PID 1 (subreaper)", defects: []string{"no-reap", "theft"}, run: orphans(100, 3*time.Second)},
		{name: "orphans-10000", mode: pid1, what: "10 000 orphans are reaped, the command's code is kept", defects: []string{"no-reap", "theft"}, run: orphans(10_000, 5*time.Second)},
		{name: "orphan-parent", mode: plain, what: "an orphan's parent is the init although it is not PID 1 (subreaper, without a flag)", defects: []string{"no-subreaper"}, run: orphanParent},
		{name: "status-theft", mode: pid1, what: "the command's code is right while orphans with another die around it, 40 runs", defects: []string{"theft"}, run: func(r *run) {
			for range 40 {
				r.start(setup{}, built.probe, "crowd", "7").wantCode(7)
			}
		}},
		{name: "leftovers-term", mode: pid1, what: "what the command leaves behind gets TERM and the 1 s it needs to end", defects: []string{"kill-leftovers", "leave-behind"}, run: func(r *run) {
			p := r.start(setup{}, built.probe, "leftover", "1000")
			if line, _ := p.line(r.patient); !strings.HasPrefix(line, "pid ") {
				r.failf("got %q%s", line, p.said())
			}
			p.expect("orphan got 15")
			p.expect("orphan done")
			p.wantCode(5)
		}},
		{name: "leftovers-kill", mode: pid1, what: "what ignores that TERM does not keep the container: it ends within 30 s", defects: []string{"no-kill"}, run: func(r *run) {
			p := r.start(setup{}, built.probe, "leftover", "-1")
			if line, _ := p.line(r.patient); !strings.HasPrefix(line, "pid ") {
				r.failf("got %q%s", line, p.said())
			}
			limit := 30 * time.Second
			if r.defect == "no-kill" {
				limit = 6 * time.Second
			}
			code, sig := p.ended(limit)
			if code != 5 {
				r.failf("code %d, signal %d%s", code, int(sig), p.said())
			}
		}},
		{name: "leftovers-strangers", mode: plain, what: "not PID 1: processes that are not its own are let alone at the end", defects: []string{"kill-group"}, run: func(r *run) {
			// The stranger is in the init's own process group, the nearest that one can be.
			other := r.command(built.probe, "wait")
			other.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			stranger := r.launch(other, nil, nil)
			stranger.expect("ready")
			join := func(a *syscall.SysProcAttr) { a.Setpgid, a.Pgid = true, stranger.pid }
			r.start(setup{attr: join}, built.probe, "exit", "7").wantCode(7)
			select {
			case <-stranger.done:
				r.failf("a stranger was ended")
			case <-time.After(100 * time.Millisecond):
			}
		}},
	}
}

func orphanParent(r *run) {
	p := r.start(setup{}, built.probe, "ppid")
	want := ""
	for range 2 {
		line, ok := p.line(r.patient)
		if !ok {
			r.failf("no word from the orphan%s", p.said())
		}
		_, pid, _ := strings.Cut(line, " ")
		if want != "" && pid != want {
			r.failf("the parents of the command and of the orphan are %s and %s", want, pid)
		}
		want = pid
	}
	p.wantCode(0)
}
