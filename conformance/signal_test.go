package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What runtimes keep for themselves: Go's has PROF for its profiler, C libraries have 32 to 34 for their threads.
var ofRuntimes = []int{27, 32, 33, 34}

// forwardable lists the signals that the subject is expected to send on.
func (s *subject) forwardable() []int {
	var list []int
	for n := 1; n <= 64; n++ {
		switch {
		case n == 9, n == 19: // cannot be caught
		case n == 17: // CHLD is the init's own
		case n == 32, n == 33: // glibc's threads
		case s.manners == asDumbInit && n >= 20 && n <= 22: // these suspend it, see job-control
		default:
			list = append(list, n)
		}
	}
	return list
}

// signalCases are about what becomes of signals that are sent to the init.
func signalCases() []*testcase {
	forwardEach := func(r *run) {
		p := r.start(setup{}, built.probe, "signals")
		p.expect("got ready")
		var missing []string
		for _, n := range r.s.forwardable() {
			if unix.Kill(p.pid, unix.Signal(n)) != nil {
				r.failf("the init is gone before signal %d%s", n, p.said())
			}
			line, ok := p.line(time.Second)
			if !ok {
				missing = append(missing, strconv.Itoa(n))
				if len(missing) > 8 {
					break
				}
				continue
			}
			if line != fmt.Sprintf("got %d", n) {
				r.failf("after signal %d: %q", n, line)
			}
		}
		if line, ok := p.line(100 * time.Millisecond); ok {
			r.failf("one too many: %q", line)
		}
		if missing != nil {
			r.failf("not sent on: %s%s", strings.Join(missing, ", "), p.said())
		}
	}
	return []*testcase{
		{name: "forward-each", mode: plain, what: "every signal arrives at the command, exactly once", defects: []string{"no-forward", "twice", "no-realtime", "dies-of-hup"}, run: forwardEach},
		{name: "forward-each", mode: pid1, what: "every signal arrives at the command, exactly once", defects: []string{"no-forward", "twice", "no-realtime", "dies-of-hup"}, run: forwardEach},
		{name: "deaf-signals", mode: pid1, what: "signals that a runtime keeps for itself (PROF, 32, 33, 34) do not kill PID 1", defects: []string{"dies-of-deaf"}, run: func(r *run) {
			p := r.start(setup{}, built.probe, "stubborn", "7")
			p.expect("ready")
			for _, n := range ofRuntimes {
				p.signal(n)
			}
			p.signal(int(syscall.SIGUSR1))
			p.wantCode(7)
		}},
		{name: "rt-queued", mode: pid1, what: "real-time signals that queue up are all sent on, none merged", defects: []string{"no-realtime"}, run: func(r *run) {
			p := r.start(setup{}, built.probe, "signals")
			p.expect("got ready")
			const count = 500
			for range count {
				p.signal(40)
			}
			for i := range count {
				if line, ok := p.line(r.patient / 5); !ok || line != "got 40" {
					r.failf("%d of %d arrived %s", i, count, line)
				}
			}
		}},
		{name: "crash-class", mode: pid1, what: "SEGV, ABRT, QUIT, BUS, FPE, ILL, TRAP, SYS sent by the command do not kill PID 1", defects: []string{"crash"}, run: func(r *run) {
			p := r.start(setup{}, built.probe, "attack", "11", "6", "3", "7", "8", "4", "5", "31")
			p.expect("survived")
			p.wantCode(7)
		}},
		{name: "storm", mode: pid1, what: "10 000 signals in a storm: it lives, the next signal arrives at once, nothing arrives more often than sent", defects: []string{"twice-at-once", "no-forward"}, run: func(r *run) {
			p := r.start(setup{}, built.probe, "signals")
			p.expect("got ready")
			sent := map[string]int{}
			for i := range 10_000 {
				n := []int{10, 1, 40, 28, 15}[i%5]
				p.signal(n)
				sent[fmt.Sprintf("got %d", n)]++
			}
			p.signal(12)
			got := map[string]int{}
			for {
				line, ok := p.line(r.patient)
				if !ok {
					r.failf("the signal after the storm did not arrive%s", p.said())
				}
				if line == "got 12" {
					break
				}
				got[line]++
			}
			// What was sent before the last one may still come after it.
			for line, ok := p.line(200 * time.Millisecond); ok; line, ok = p.line(200 * time.Millisecond) {
				got[line]++
			}
			for line, count := range got {
				if count > sent[line] {
					r.failf("%q came %d times, %d were sent", line, count, sent[line])
				}
			}
			for line := range sent {
				if got[line] == 0 {
					r.failf("%q never came", line)
				}
			}
		}},
		{name: "no-phantom", mode: pid1, what: "no signal arrives that nobody sent, while 1000 orphans die", defects: []string{"phantom"}, run: func(r *run) {
			p := r.start(setup{}, built.probe, "phantom", "1000")
			code, _ := p.ended(6 * r.patient)
			if out, _ := p.output(); out != "" || code != 0 {
				r.failf("code %d, the command got %q%s", code, out, p.said())
			}
		}},
		{name: "early-signal", mode: plain, what: "TERM in the first 20 ms, 500 runs: it always ends, by TERM", defects: []string{"slow-start", "drop-early"}, run: func(r *run) {
			odd := map[string]int{}
			for i := range 500 {
				p := r.start(setup{}, built.probe, "wait")
				delay := time.Duration(i) * 40 * time.Microsecond
				time.Sleep(delay) // not to wait for something: the moment is what is tried out
				p.signal(15)
				code, sig := p.ended(r.patient)
				if code != 143 && sig != unix.SIGTERM {
					odd[fmt.Sprintf("code %d signal %d%s", code, int(sig), p.said())]++
				}
			}
			for what, count := range odd {
				r.failf("%d of 500 ended with %s", count, what)
			}
		}},
		{name: "early-signal", mode: pid1, alone: true, what: "TERM 0 to 5 ms after the init begins to listen for it, 100 runs: never lost", defects: []string{"drop-early"}, run: func(r *run) {
			for i := range 100 {
				p := r.start(setup{}, built.probe, "wait")
				r.listening(p)
				time.Sleep(time.Duration(i) * 50 * time.Microsecond) // not to wait for something: the moment is what is tried out
				p.signal(15)
				code, sig := p.ended(r.patient)
				if code != 143 {
					r.failf("run %d: code %d, signal %d%s", i, code, int(sig), p.said())
				}
			}
		}},
		{name: "group-off", mode: plain, what: "by default, or when asked, only the command gets a signal, not its children", defects: []string{"always-group"}, run: func(r *run) {
			p := r.start(setup{options: options{single: true}}, built.probe, "family")
			r.family(p)
			p.signal(10)
			p.expect("parent 10")
			if line, ok := p.line(200 * time.Millisecond); ok {
				r.failf("and %q", line)
			}
		}},
		{name: "group-on", mode: plain, what: "asked for, the command's whole process group gets a signal", defects: []string{"never-group"}, run: func(r *run) {
			p := r.start(setup{options: options{group: true}}, built.probe, "family")
			r.family(p)
			p.signal(10)
			var got []string
			for range 2 {
				line, _ := p.line(r.patient)
				got = append(got, line)
			}
			slices.Sort(got)
			if !slices.Equal(got, []string{"child 10", "parent 10"}) {
				r.failf("got %q%s", got, p.said())
			}
		}},
		{name: "signal-to-group", mode: plain, what: "a signal to the init's own process group arrives once, not twice", defects: []string{"same-group"}, run: func(r *run) {
			p := r.start(setup{attr: func(a *syscall.SysProcAttr) { a.Setpgid = true }}, built.probe, "signals")
			p.expect("got ready")
			r.must(unix.Kill(-p.pid, 40)) // a real-time signal: two of them are not merged
			p.expect("got 40")
			if line, ok := p.line(200 * time.Millisecond); ok {
				r.failf("and %q", line)
			}
		}},
		{name: "rewrite", mode: plain, what: "TERM becomes QUIT, INT and USR2 swap, HUP is dropped", defects: []string{"no-rewrite"}, run: func(r *run) {
			p := r.start(setup{options: options{rewrite: map[string]int{"15": 3, "2": 12, "12": 2, "1": 0}}}, built.probe, "signals")
			p.expect("got ready")
			for _, step := range [][2]int{{15, 3}, {2, 12}, {12, 2}, {10, 10}} {
				p.signal(1)
				p.signal(step[0])
				p.expect(fmt.Sprintf("got %d", step[1]))
			}
		}},
		{name: "rewrite-refused", mode: plain, what: "rules that make no sense are a usage error, nothing runs", defects: []string{"lax-flags"}, run: func(r *run) {
			for _, bad := range []string{"FOO", "0", "65", ""} {
				r.refused(setup{options: options{rewrite: map[string]int{bad: 15}}})
			}
			r.refused(setup{options: options{rewrite: map[string]int{"15": 99}}})
		}},
		{name: "term-ignored", mode: plain, what: "a command that ignores TERM is left alone, and its code counts later", defects: []string{"escalate"}, run: func(r *run) {
			p := r.start(setup{}, built.probe, "stubborn", "7")
			p.expect("ready")
			p.signal(15)
			p.expect("got 15")
			select {
			case <-p.done:
				r.failf("it ended%s", p.said())
			case <-time.After(700 * time.Millisecond):
			}
			p.signal(10)
			p.expect("got 10")
			p.wantCode(7)
		}},
		{name: "stop-timeout", mode: plain, what: "asked for, KILL follows TERM after 1 s: 137", defects: []string{"no-deadline"}, run: func(r *run) {
			p := r.start(setup{options: options{deadline: 1}}, built.probe, "stubborn", "7")
			p.expect("ready")
			began := time.Now()
			p.signal(15)
			p.wantCode(137)
			if took := time.Since(began); took < 900*time.Millisecond || took > 2500*time.Millisecond {
				r.failf("after %v", took)
			}
		}},
		{name: "job-control", mode: plain, what: "TSTP stops the command, CONT resumes it, TERM ends it", defects: []string{"no-forward"}, run: func(r *run) {
			p := r.start(setup{}, built.probe, "wait")
			p.expect("ready")
			var child int
			for pid := range children(p.pid) {
				child = pid
			}
			p.signal(20)
			r.eventually(r.patient, "the command is stopped", func() bool { s, _ := stat(child); return s == 'T' })
			if r.s.manners == asDumbInit { // it stops itself next, and a CONT that comes before that is lost
				r.eventually(r.patient, "the init is stopped", func() bool { s, _ := stat(p.pid); return s == 'T' })
			}
			p.signal(18)
			r.eventually(r.patient, "the command runs again", func() bool { s, _ := stat(child); return s == 'S' })
			p.signal(15)
			p.wantCode(143)
		}},
		{name: "no-stray-kill", mode: plain, what: "TERM after the command's death is sent to nobody: the pid may be another's", defects: []string{"kill-reaped"}, run: func(r *run) {
			strace, err := r.shell("which", "strace")
			if err != nil {
				r.na("no strace here")
			}
			log := filepath.Join(r.dir, "trace")
			args, _ := r.s.args(options{}, built.probe, "exit", "7")
			p := r.launch(r.command(strace, append([]string{"-f", "-qq", "-e", "trace=wait4,waitid,kill,tgkill,pidfd_send_signal", "-o", log, r.link()}, args...)...), nil, nil)
			// The moment of the command's death cannot be met from outside, so TERM is sent to the init all along, once it has started the command: before
			// that it may not listen yet, and would only end.
			started := make(map[int]bool)
			stop := time.After(r.patient)
			for running := true; running; {
				select {
				case <-p.done:
					running = false
				case <-stop:
					r.failf("it did not end%s", p.said())
				default:
					for pid := range children(p.pid) {
						if started[pid] = started[pid] || len(children(pid)) > 0; started[pid] {
							unix.Kill(pid, unix.SIGTERM)
						}
					}
					time.Sleep(time.Millisecond)
				}
			}
			text, err := os.ReadFile(log)
			r.must(err)
			if stray := strayKill(string(text)); stray != "" {
				r.failf("signal to a pid that was already reaped: %s", stray)
			}
		}},
	}
}

var (
	waited = regexp.MustCompile(`wait4.* = (\d+)$|waitid\(.*si_pid=(\d+)`)
	killed = regexp.MustCompile(` kill\(-?(\d+),`)
)

// strayKill finds in a trace a signal that is sent to a process after it was waited for.
func strayKill(trace string) string {
	reaped := map[string]bool{}
	for line := range strings.Lines(trace) {
		line = strings.TrimSuffix(line, "\n")
		if found := waited.FindStringSubmatch(line); found != nil && !strings.Contains(line, "WNOWAIT") {
			reaped[found[1]+found[2]] = true
		}
		if found := killed.FindStringSubmatch(line); found != nil && found[1] != "0" && found[1] != "1" && reaped[found[1]] {
			return line
		}
	}
	return ""
}

// family reads what the two processes of the probe say when they are ready.
func (r *run) family(p *process) {
	r.t.Helper()
	var got []string
	for range 2 {
		line, _ := p.line(r.patient)
		got = append(got, line)
	}
	slices.Sort(got)
	if !slices.Equal(got, []string{"child ready", "parent ready"}) {
		r.failf("got %q%s", got, p.said())
	}
}

// listening waits until the init has taken the place of the helper and blocks or catches TERM. Before that no PID 1 can get it: the kernel drops what a PID
// 1 has no handler for.
func (r *run) listening(p *process) {
	r.t.Helper()
	const (
		term = 1 << (15 - 1)
		// What the helper caught shows for a moment after it has become the init, and is dropped then. It does not catch this one.
		rtmin = 1 << (34 - 1)
	)
	resolved, err := filepath.EvalSymlinks(r.s.path)
	r.must(err)
	r.eventually(r.patient, "the init listens for TERM", func() bool {
		// First who it is: the helper, a Go program, catches TERM too.
		// In the middle of an execve(2) there is no answer at all, and a signal would meet neither of the two.
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid)); err != nil || exe != resolved {
			// And when another thread than the first one calls execve, the first one is a zombie for a while: that is no dead process.
			// The threads are counted first: once there is one only, the first one is no zombie of that kind any more.
			threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.pid))
			state, _ := stat(p.pid)
			return state == 'Z' && len(threads) == 1 || unix.Kill(p.pid, 0) != nil
		}
		// The new program's arguments are there when the execve(2) is over that it came by: only then is what status says its own.
		if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid)); err == nil && len(args) == 0 {
			return false
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
		if err != nil {
			return unix.Kill(p.pid, 0) != nil // it is gone, and the case will see how
		}
		// In sigtimedwait(2) the kernel shows the signals that are waited for as not blocked.
		if wchan, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", p.pid)); strings.Contains(string(wchan), "sigtimedwait") {
			return true
		}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(line, ":")
			if key == "SigCgt" || key == "SigBlk" {
				mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
				if err == nil && mask&term != 0 && (key == "SigBlk" || mask&rtmin != 0) {
					return true
				}
			}
		}
		return false
	})
}
