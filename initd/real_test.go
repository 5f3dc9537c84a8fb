package initd_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/cgroup"
	"skep/initd"
	"skep/internal/testneed"
	"skep/proc"
	"skep/reaper"
)

// patience bounds every wait of these tests.
const patience = 40 * time.Second

// lines collects what a descriptor says.
type lines struct {
	mu   sync.Mutex
	text []string
	more chan struct{} // closed with every line, and made anew
	over bool
}

func collect(r io.Reader) *lines {
	l := &lines{more: make(chan struct{})}
	go func() {
		for s := bufio.NewScanner(r); s.Scan(); {
			l.add(s.Text(), false)
		}
		l.add("", true)
	}()
	return l
}

func (l *lines) add(line string, over bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over = over; !over {
		l.text = append(l.text, line)
	}
	close(l.more)
	l.more = make(chan struct{})
}

// matching is the lines that a pattern fits.
func (l *lines) matching(pattern string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.text {
		if regexp.MustCompile(pattern).MatchString(line) {
			found = append(found, line)
		}
	}
	return found
}

// end waits until nobody is left who could say more.
func (l *lines) end(t *testing.T) {
	t.Helper()
	deadline := time.After(patience)
	for {
		l.mu.Lock()
		over, more := l.over, l.more
		l.mu.Unlock()
		if over {
			return
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatal("somebody is left who holds an end of a pipe")
		}
	}
}

func (l *lines) String() string { return strings.Join(l.matching(""), "\n") }

// skep is a running skep.
type skep struct {
	*testing.T
	cmd      *exec.Cmd
	out, err *lines
	waited   chan struct{}
	files    []*os.File
}

// option changes how skep is started.
type option func(*exec.Cmd)

func role(args ...string) option {
	return func(c *exec.Cmd) { c.Args = append(append(c.Args[:1:1], args...), c.Args[2:]...) }
}

// start runs skep with settings, NAME=VALUE as in --name, and a command.
func start(t *testing.T, settings []string, command []string, options ...option) *skep {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{"role:skep"}, command...)...)
	cmd.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin"} // no folder that is closed to anybody
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		if strings.ToUpper(name) != name {
			name = "SKEP_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		}
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	s := &skep{T: t, cmd: cmd, waited: make(chan struct{})}
	pipe := func() (r *os.File, w *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		return r, w
	}
	outR, outW := pipe()
	errR, errW := pipe()
	cmd.Stdout, cmd.Stderr = outW, errW
	for _, o := range options {
		o(cmd)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	outW.Close()
	errW.Close()
	s.files = []*os.File{outR, errR}
	s.out, s.err = collect(outR), collect(errR)
	go func() { _ = cmd.Wait(); close(s.waited) }()
	t.Cleanup(func() {
		below := reaper.Descendants(cmd.Process.Pid)
		select {
		case <-s.waited:
		default:
			_ = cmd.Process.Kill()
			<-s.waited
			for _, pid := range below {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		for _, f := range s.files {
			f.Close()
		}
		if t.Failed() {
			t.Logf("stdout:\n%v\nstderr:\n%v", s.out, s.err)
		}
	})
	return s
}

func sh(script string) []string { return []string{"sh", "-c", script} }

// wait waits until n lines fit the pattern, and returns them.
func (s *skep) wait(from *lines, pattern string, n int) []string {
	s.Helper()
	deadline := time.After(patience)
	for {
		from.mu.Lock()
		more := from.more
		from.mu.Unlock()
		if found := from.matching(pattern); len(found) >= n {
			return found
		}
		select {
		case <-more:
		case <-deadline:
			s.Fatalf("no %d lines with %q", n, pattern)
		}
	}
}

// pids waits for n lines "up PID".
func (s *skep) pids(n int) (pids []int) {
	s.Helper()
	for _, line := range s.wait(s.out, `^up \d+$`, n) {
		pid, _ := strconv.Atoi(line[3:])
		pids = append(pids, pid)
	}
	return pids
}

func (s *skep) signal(sig unix.Signal) {
	s.Helper()
	if err := unix.Kill(s.cmd.Process.Pid, sig); err != nil {
		s.Error(err)
	}
}

// ended waits for the end, and wants the code: 128 plus the number of a signal.
func (s *skep) ended(code int) {
	s.Helper()
	select {
	case <-s.waited:
	case <-time.After(patience):
		s.Fatal("it does not end")
	}
	for _, from := range []*lines{s.out, s.err} {
		from.end(s.T)
	}
	if got := s.code(); got != code {
		s.Errorf("code %d, want %d", got, code)
	}
}

func (s *skep) code() int {
	status := s.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

func (s *skep) gone(pids ...int) {
	s.Helper()
	for _, pid := range pids {
		if err := unix.Kill(pid, 0); err != unix.ESRCH {
			s.Errorf("process %d is left: %v", pid, err)
		}
	}
}

// quick is a service whose workers are ready as soon as they are a little old.
func quick(workers int, more ...string) []string {
	return append([]string{"workers=" + strconv.Itoa(workers), "share=none", "ready=alive:1ms", "restart-delay=10ms", "stop-timeout=30s"}, more...)
}

// fifo is a named pipe that workers wait at.
type fifo struct {
	*testing.T
	path string
}

func newFifo(t *testing.T) *fifo {
	t.Helper()
	f := &fifo{t, filepath.Join(t.TempDir(), "fifo")}
	if err := unix.Mkfifo(f.path, 0o666); err != nil {
		t.Fatal(err)
	}
	return f
}

// release lets everything go that reads from it, now and later.
func (f *fifo) release() {
	f.Helper()
	file, err := os.OpenFile(f.path, os.O_RDWR, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { file.Close() })
	if _, err := file.WriteString(strings.Repeat("x\n", 100)); err != nil {
		f.Fatal(err)
	}
}

// A lone command's end is skep's.
func TestLoneCodes(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"workers=1", "mode=auto"} {
		for _, code := range []int{0, 1, 2, 7, 63, 64, 124, 125, 126, 127, 128, 137, 143, 254, 255} {
			s := start(t, []string{mode}, sh("exit "+strconv.Itoa(code)))
			if s.ended(code); s.err.String() != "" {
				t.Errorf("exit %d: %v", code, s.err)
			}
		}
		for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGKILL, unix.SIGUSR1, unix.SIGSEGV, unix.SIGPIPE, unix.SIGTERM, 35, 64} {
			start(t, []string{mode}, sh("ulimit -c 0; kill -"+strconv.Itoa(int(sig))+" $$")).ended(128 + int(sig))
		}
	}
	start(t, []string{"workers=1", "remap-exit=143\n7"}, sh("kill $$")).ended(0)
	start(t, []string{"workers=1", "remap-exit=143\n7"}, sh("exit 7")).ended(0)
	start(t, []string{"workers=1", "remap-exit=143\n7"}, sh("exit 8")).ended(8)
}

// What cannot be executed, and what only a shell can.
func TestExecFailures(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	script := write("script", "echo plain $0 $1; exit 6\n")
	noInterpreter := write("lost", "#!/no/such/interpreter\n")
	for _, settings := range [][]string{{"workers=1"}, {"share=bind"}, {"workers=2", "share=none"}, {"workers=2"}} {
		name := strings.Join(settings, " ")
		s := start(t, settings, []string{script, "arg"})
		if s.ended(6); len(s.out.matching("^plain "+script+" arg$")) == 0 {
			t.Errorf("%s: the script did not run", name)
		}
		s = start(t, settings, []string{noInterpreter})
		if s.ended(127); len(s.err.matching("lost")) == 0 {
			t.Errorf("%s: nothing is told", name)
		}
		start(t, settings, []string{"no-such-program"}).ended(127)
		start(t, settings, []string{dir}).ended(126)
	}
}

func TestKilledWorkerComesBack(t *testing.T) {
	t.Parallel()
	s := start(t, quick(2), sh("echo up $$; exec sleep 1000"))
	first := s.pids(2)
	s.wait(s.err, "worker ready", 2)
	if err := unix.Kill(first[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pids := s.pids(3)
	if len(s.wait(s.err, "worker ended.*cause=signal signal=KILL.*restarting", 1)) != 1 {
		t.Error("the end is not told once")
	}
	if unix.Kill(pids[1], 0) != nil || unix.Kill(pids[2], 0) != nil {
		t.Error("the other one or the new one is gone")
	}
	s.signal(unix.SIGTERM)
	s.ended(0)
	s.gone(pids...)
}

// A service that cannot start ends with the code of the worker that died, and the
// others are told to stop.
func TestCrashBeforeReady(t *testing.T) {
	t.Parallel()
	f := newFifo(t)
	s := start(t, quick(2, "ready=alive:1h"),
		sh(`if [ $SKEP_SLOT = 1 ]; then echo one; read x <`+f.path+`; exit 7; fi; trap 'echo told; exit 0' TERM; echo zero; sleep 1000 & wait`))
	s.wait(s.out, "^(one|zero)$", 2)
	f.release()
	s.ended(7)
	if len(s.out.matching("^told$")) != 1 {
		t.Error("the other worker was not told")
	}
}

func TestStartLimit(t *testing.T) {
	t.Parallel()
	s := start(t, quick(2, "ready=alive:1h", "restart=always", "start-limit=3", "restart-delay=1ms"), sh("echo run; exit 9"))
	s.ended(9)
	if n := len(s.out.matching("^run$")); n != 6 {
		t.Errorf("%d runs, want 3 of each of 2", n)
	}
	if len(s.err.matching("start-limit-hit in every slot")) != 1 {
		t.Error("the reason is not told")
	}
}

// All are told at once: none ends before the last one has been told.
func TestStopTellsAllAtOnce(t *testing.T) {
	t.Parallel()
	f := newFifo(t)
	s := start(t, quick(4), sh(`trap 'echo told; read x <`+f.path+`; exit 0' TERM; echo up $$; sleep 1000 & wait`))
	pids := s.pids(4)
	s.signal(unix.SIGTERM)
	s.wait(s.out, "^told$", 4)
	s.signal(unix.SIGTERM) // kubelets repeat it; servers would take it for impatience
	s.wait(s.err, "stopping", 1)
	f.release()
	s.ended(0)
	if n := len(s.out.matching("^told$")); n != 4 {
		t.Errorf("told %d times", n)
	}
	s.gone(pids...)
}

// At the deadline the one that is deaf is killed, alone.
func TestStopDeadlineKillsTheDeafOne(t *testing.T) {
	t.Parallel()
	s := start(t, quick(2, "stop-timeout=500ms"), sh(
		`if [ $SKEP_SLOT = 0 ]; then trap '' TERM; else trap 'echo told; exit 0' TERM; fi; echo up $$; sleep 1000 & while :; do wait; done`))
	pids := s.pids(2)
	begun := time.Now()
	s.signal(unix.SIGTERM)
	s.ended(137)
	if took := time.Since(begun); took < 500*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	if killed := s.err.matching("did not end in time"); len(killed) != 1 || !strings.Contains(killed[0], "slot=0") || len(s.out.matching("^told$")) != 1 {
		t.Errorf("killed: %q", killed)
	}
	s.gone(pids...)
}

func TestSecondInterruptKills(t *testing.T) {
	t.Parallel()
	s := start(t, quick(2, "stop-timeout=1h"), sh(`trap '' TERM INT; echo up $$; sleep 1000 & while :; do wait; done`))
	pids := s.pids(2)
	s.signal(unix.SIGINT)
	s.wait(s.err, "stopping on=INT", 1)
	s.signal(unix.SIGINT)
	s.ended(137)
	s.gone(pids...)
}

// During the drain delay nobody is told.
func TestDrainDelayServesOn(t *testing.T) {
	t.Parallel()
	s := start(t, quick(2, "drain-delay=400ms"), sh(`trap 'echo told; exit 0' TERM; echo up $$; sleep 1000 & wait`))
	s.pids(2)
	begun := time.Now()
	s.signal(unix.SIGTERM)
	s.wait(s.out, "^told$", 1)
	if took := time.Since(begun); took < 400*time.Millisecond {
		t.Errorf("told after %v", took)
	}
	s.ended(0)
}

// What workers leave behind, in sessions of its own and deaf to TERM, goes too.
func TestLeftoversAreSwept(t *testing.T) {
	t.Parallel()
	testneed.Program(t, "setsid")
	s := start(t, quick(2, "stop-timeout=1s"), sh(
		`setsid sh -c 'trap "" TERM HUP; echo up $$; sleep 1000; sleep 1000' & setsid sh -c 'echo up $$; exec sleep 1000' & trap 'exit 0' TERM; echo up $$; while :; do wait; done`))
	pids := s.pids(6)
	s.signal(unix.SIGTERM)
	s.ended(0)
	s.gone(pids...)
}

// A signal to skep is one signal to the command.
func TestSignalsAreForwardedOnce(t *testing.T) {
	t.Parallel()
	signals := []unix.Signal{unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH, unix.SIGALRM, unix.SIGTSTP, 36, 64}
	script := ""
	for _, sig := range signals {
		script += fmt.Sprintf("trap 'echo got %d' %d; ", sig, sig)
	}
	s := start(t, []string{"workers=1"}, sh(script+`trap 'echo got 15; exit 0' TERM; echo up $$; sleep 1000 & while :; do wait; done`))
	s.pids(1)
	const rounds = 3
	for round := range rounds {
		for _, sig := range signals {
			s.signal(sig)
			s.wait(s.out, fmt.Sprintf("^got %d$", sig), round+1)
		}
	}
	s.signal(unix.SIGTERM)
	s.ended(0)
	for _, sig := range signals {
		if n := len(s.out.matching(fmt.Sprintf("^got %d$", sig))); n != rounds {
			t.Errorf("signal %d came %d times, was sent %d times", sig, n, rounds)
		}
	}
	if n := len(s.out.matching("^got")); n != rounds*len(signals)+1 {
		t.Errorf("%d signals came", n)
	}
}

// As a service: USR1 goes to every worker, job control to none, HUP is rewritten
// away from a reload.
func TestSignalsOfAService(t *testing.T) {
	t.Parallel()
	s := start(t, quick(2, "signal-map=USR2:USR1\nWINCH:0"), sh(`for s in USR1 USR2 WINCH TTIN TTOU TSTP HUP; do trap "echo got $s" $s; done; trap 'exit 0' TERM; echo up $$; sleep 1000 & while :; do wait; done`))
	s.pids(2)
	for _, sig := range []unix.Signal{unix.SIGTTIN, unix.SIGTTOU, unix.SIGTSTP, unix.SIGWINCH} {
		s.signal(sig)
	}
	s.signal(unix.SIGUSR1)
	s.wait(s.out, "^got USR1$", 2)
	s.signal(unix.SIGUSR2)
	s.wait(s.out, "^got USR1$", 4)
	s.signal(unix.SIGTERM)
	s.ended(0)
	if n := len(s.out.matching("^got")); n != 4 {
		t.Errorf("%d signals came", n)
	}
}

// No process is started once a stop has begun (law 7): by skep's own account, in
// which every start that left its mark is told.
func TestNoStartAfterStop(t *testing.T) {
	t.Parallel()
	for i := range 8 {
		s := start(t, quick(3, "restart=always", "start-limit=0", "restart-delay=1ms", "restart-max-delay=1ms"), sh("echo mark"))
		s.wait(s.out, "mark", 5+3*i)
		s.signal(unix.SIGTERM)
		s.ended(0)
		stopping := false
		for _, line := range s.err.matching("") {
			switch {
			case strings.HasPrefix(line, "skep: stopping"):
				stopping = true
			case stopping && (strings.Contains(line, "worker started") || strings.Contains(line, "next=restarting")):
				t.Errorf("after the stop: %s", line)
			}
		}
		marks, told := len(s.out.matching("mark")), len(s.err.matching("worker started"))
		if !stopping || marks > told {
			t.Errorf("%d marks, %d starts told", marks, told)
		}
	}
}

// A signal at any moment of the start ends skep; it is never lost and nothing
// hangs.
func TestEarlySignals(t *testing.T) {
	t.Parallel()
	runs := 48
	if testing.Short() {
		runs = 12
	}
	const atOnce = 4
	var group sync.WaitGroup
	for k := range atOnce {
		group.Go(func() {
			for i := k; i < runs; i += atOnce {
				cmd := exec.Command("/proc/self/exe", "role:skep", "sleep", "1000")
				cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
				if i%2 == 1 {
					cmd.Env = append(cmd.Env, "SKEP_WORKERS=2", "SKEP_SHARE=none")
				}
				if err := cmd.Start(); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Duration(i) * 20 * time.Millisecond / time.Duration(runs)) // what is tried, not what is waited for
				_ = cmd.Process.Signal(unix.SIGTERM)
				hang := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
				_ = cmd.Wait()
				hang.Stop()
				status := cmd.ProcessState.Sys().(syscall.WaitStatus)
				switch {
				case status.Signaled() && status.Signal() == unix.SIGTERM: // before skep could catch it
				case status.ExitStatus() == 143 && i%2 == 0, status.ExitStatus() == 0 && i%2 == 1:
				case status.ExitStatus() == 143 && i%2 == 1: // a worker that was never ready ended
				default:
					t.Errorf("run %d: %v", i, cmd.ProcessState)
				}
			}
		})
	}
	group.Wait()
}

// A fault in the loop is told with its stack, and everything ends (law 3).
func TestFaultInTheLoop(t *testing.T) {
	t.Parallel()
	for i, deaf := range []bool{false, true, false} {
		in, hold, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		trap := "trap 'echo told; exit 0' TERM"
		if deaf {
			trap = "trap '' TERM"
		}
		settings := quick(2, "stop-timeout=300ms")
		if i == 2 {
			settings = append(settings, "FAULT_ELSEWHERE=1")
		}
		s := start(t, settings, sh(trap+"; echo up $$; sleep 1000 & while :; do wait; done"),
			role("role:faulty"), func(c *exec.Cmd) { c.Stdin = in })
		in.Close()
		pids := s.pids(2)
		hold.Close()
		s.ended(125)
		if fault := s.err.matching("error: fault in skep.*made for the test"); len(fault) != 1 || !strings.Contains(fault[0], "goroutine") || !strings.Contains(fault[0], "run.go") {
			t.Errorf("told %q", fault)
		}
		if n := len(s.out.matching("told")); (n == 2) == deaf {
			t.Errorf("%d workers were told", n)
		}
		s.gone(pids...)
	}
}

// A stderr that is full and that nobody reads, or that is gone, never stops skep
// (law 4).
func TestStderrFullOrGone(t *testing.T) {
	t.Parallel()
	crashes := quick(2, "restart=always", "start-limit=0", "restart-delay=1ms", "restart-max-delay=1ms", "log-level=debug")
	full := func(c *exec.Cmd) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
			t.Fatal(err)
		}
		c.Stderr = w
		t.Cleanup(func() { r.Close(); w.Close() })
	}
	broken := func(c *exec.Cmd) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		c.Stderr = w
		t.Cleanup(func() { w.Close() })
	}
	closed := func(c *exec.Cmd) {
		c.Args = append([]string{"sh", "-c", `exec "$0" "$@" 2>&-`, c.Path}, c.Args[1:]...)
		c.Path = "/bin/sh"
	}
	for name, how := range map[string]option{"full": full, "broken": broken, "closed": closed} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := 50
			if name == "full" {
				n = 300 // 900 lines: more than the pipe and the queue hold
			}
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			s := start(t, crashes, sh("echo run; exit 3"), func(c *exec.Cmd) { c.Path = self }, how)
			s.wait(s.out, "run", n)
			if n := zombies(s.cmd.Process.Pid); n > 2 { // those of this moment
				t.Errorf("%d are not reaped", n)
			}
			s.signal(unix.SIGTERM)
			s.ended(0)
		})
	}
}

// zombies counts the children that have ended and not been reaped.
func zombies(parent int) (n int) {
	for _, pid := range reaper.Descendants(parent) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if _, rest, _ := strings.Cut(string(stat), ") "); err == nil && strings.HasPrefix(rest, "Z") {
			n++
		}
	}
	return n
}

// When the kernel has no process left for skep, starts are tried again, a stop is
// heard, and the runtime of skep itself does without new threads.
func TestNoProcessesLeft(t *testing.T) {
	t.Parallel()
	testneed.Root(t)
	for i, recovers := range []bool{true, false} {
		uid := 61234 + i + 10*(os.Getpid()%500)
		in, limit, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer limit.Close()
		s := start(t, quick(2, "restart-max-delay=20ms", "log-level=debug"), sh("echo up $$; exec sleep 1000"),
			role("role:as", strconv.Itoa(uid)), func(c *exec.Cmd) { c.Stdin = in })
		in.Close()
		pids := s.pids(2)
		s.wait(s.err, "worker ready", 2)
		fmt.Fprintln(limit, 1)
		s.wait(s.err, "limit is 1", 1)
		if err := unix.Kill(pids[0], unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.wait(s.err, "cannot start worker.*temporarily unavailable", 16) // more than the start limit: that lacks a resource is no death
		if recovers {
			fmt.Fprintln(limit, 1000)
			pids = s.pids(3)
		}
		s.signal(unix.SIGTERM)
		s.ended(0)
		s.gone(pids...)
	}
}

// A command that turns out to be a server is replicated, unless it is one that
// wants to be alone; either way it is brought back when it crashes.
func TestDiscovery(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	s := start(t, []string{"WEB_CONCURRENCY=2", "restart-delay=10ms"}, []string{self, "role:serve", address})
	pids := s.pids(2)
	askUntil(t, address, 2)
	s.signal(unix.SIGTERM)
	s.ended(0)
	s.gone(pids...)

	address = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	s = start(t, []string{"restart-delay=10ms"}, []string{self, "role:serve", address})
	pids = s.pids(1)
	if why := s.wait(s.err, "running one process", 1); !strings.Contains(why[0], "loopback only") {
		t.Errorf("why: %q", why)
	}
	if err := unix.Kill(pids[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pids = s.pids(2)
	if got := askUntil(t, address, 1); got[0] != strconv.Itoa(pids[1]) {
		t.Errorf("%q answers, want %d", got, pids[1])
	}
	s.signal(unix.SIGTERM)
	s.ended(0)
	s.gone(pids...)
}

// Servers in Python that first do what another kind of program does: hold a lock; map the
// memory that the compiler of .NET writes to (doublemapping.cpp of dotnet/runtime), which is how a
// program of .NET in a single file is known.
const (
	locking  = "import fcntl, tempfile\nlock = tempfile.TemporaryFile()\nfcntl.flock(lock, fcntl.LOCK_EX)\n" + plainServer
	compiles = `import mmap, os
memory = os.memfd_create("doublemapper")
os.truncate(memory, 1 << 16)
code = mmap.mmap(memory, 1 << 16, prot=mmap.PROT_READ | mmap.PROT_EXEC)
` + plainServer
)

const plainServer = `
import os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
host, port = sys.argv[1].split(":")
listener = socket.socket()
listener.bind((host, int(port)))
listener.listen()
print("up", os.getpid(), flush=True)
while True:
    listener.accept()[0].close()
`

// What says that one process is all that a command wants, each with its line.
func TestOneProcessIsAllItWants(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, why string
		command   func(address string) []string
	}{
		{"loopback", "listens on loopback only", func(address string) []string {
			return []string{self, "role:serve", strings.Replace(address, "0.0.0.0", "127.0.0.1", 1)}
		}},
		{"udp", "listens on UDP besides", func(address string) []string { return []string{self, "role:beside", "udp", address} }},
		{"unix", "listens on unix besides", func(address string) []string { return []string{self, "role:beside", "unix", address} }},
		{"port 0", "listens on TCP besides", func(address string) []string { return []string{self, "role:beside", "port 0", address} }},
		{"forked", "forked workers of its own", func(address string) []string { return sh("sleep 1000 & exec " + self + " role:serve " + address) }},
		{"lock", "holds file locks", func(address string) []string {
			// Of a Go program it would be said that it is one.
			return []string{testneed.Program(t, "python3"), "-c", locking, address}
		}},
		{"dotnet", "dotnet uses all CPUs by itself", func(address string) []string {
			return []string{testneed.Program(t, "python3"), "-c", compiles, address}
		}},
		{"go", "go uses all CPUs by itself", func(address string) []string { return []string{self, "role:serve", address} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			address := fmt.Sprintf("0.0.0.0:%d", freePort(t))
			s := start(t, []string{"stop-timeout=5s"}, c.command(address))
			s.pids(1)
			if line := s.wait(s.err, "running one process", 1)[0]; !strings.Contains(line, c.why) || !strings.Contains(line, "-w N") {
				t.Errorf("%q; want %q in it, and the flag that decides otherwise", line, c.why)
			}
			s.signal(unix.SIGTERM)
			s.ended(0)
			if n := len(s.out.matching("^up")); n != 1 {
				t.Errorf("%d processes ran", n)
			}
			// Somebody who says so gets several.
			address = fmt.Sprintf("0.0.0.0:%d", freePort(t))
			s = start(t, []string{"workers=2", "stop-timeout=5s"}, c.command(address))
			s.pids(2)
			s.signal(unix.SIGTERM)
			s.ended(0)
			if lines := s.err.matching("running one process"); len(lines) > 0 {
				t.Errorf("%q although two were asked for", lines)
			}
		})
	}
}

// until waits until something holds.
func (s *skep) until(what string, holds func() bool) {
	s.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("not in %v: %s", patience, what)
		}
	}
}

// inotify tells whether a skep has a descriptor of inotify(7).
func (s *skep) inotify() bool {
	s.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.cmd.Process.Pid))
	if err != nil {
		s.Fatal(err)
	}
	return slices.ContainsFunc(links, func(link string) bool {
		what, err := os.Readlink(link)
		return err == nil && what == "anon_inode:inotify"
	})
}

// Limits are watched as long as there are workers to size: letting go of the watch is
// what would make the end of a short command, and of a server, late.
func TestLimitsAreWatchedWhileServing(t *testing.T) {
	t.Parallel()
	if _, paths := initd.Limits(); len(cgroup.LimitFiles(os.DirFS("/"), paths)) == 0 || paths.Memory.Version == 0 {
		testneed.Skip(t, "no cgroup here counts memory")
	}
	lone := start(t, []string{"stop-timeout=5s"}, sh("trap 'exit 7' TERM; echo up $$; while :; do sleep 0.05; done"))
	lone.pids(1)
	if lone.inotify() {
		t.Error("the limits of a command that has not listened are watched")
	}
	lone.signal(unix.SIGTERM)
	lone.ended(7)

	server := start(t, quick(2, "stop-timeout=20s"), sh("trap : TERM; echo up $$; while :; do sleep 0.05; done"))
	server.pids(2)
	server.until("the limits are watched", server.inotify)
	server.signal(unix.SIGTERM)
	server.until("they are not while the workers stop", func() bool { return !server.inotify() })
}

// What a step hands over reaches the workers, and what belongs to skep's own
// parent does not.
func TestWorkersEnvironment(t *testing.T) {
	t.Parallel()
	settings := quick(2, `prestart=sh -c "echo FROM_STEP=a b >>$SKEP_ENV; echo SECOND=x >>$SKEP_ENV"`,
		"LISTEN_FDS=3", "LISTEN_PID=1", "LISTEN_FDNAMES=a:b:c", "NOTIFY_SOCKET=/run/notify", "WATCHDOG_USEC=9", "SKEP_ENV=/dev/null", "WEB_CONCURRENCY=7", "OWN=kept")
	s := start(t, settings, sh(`env | sed "s/^/$SKEP_SLOT /"; echo up $$; exec sleep 1000`))
	s.pids(2)
	for slot := range 2 {
		for _, want := range []string{"FROM_STEP=a b", "SECOND=x", "OWN=kept", "WEB_CONCURRENCY=1", "SKEP_WORKER_COUNT=2", fmt.Sprint("SKEP_SLOT=", slot)} {
			if n := len(s.out.matching(fmt.Sprintf("^%d %s$", slot, want))); n != 1 {
				t.Errorf("slot %d has %q %d times", slot, want, n)
			}
		}
	}
	if leaked := s.out.matching(`^\d (LISTEN_|NOTIFY_SOCKET|WATCHDOG_|SKEP_ENV)`); len(leaked) > 0 {
		t.Errorf("leaked: %q", leaked)
	}
	s.signal(unix.SIGTERM)
	s.ended(0)

	// A step that fails is the end, with its code, and nothing else runs.
	s = start(t, []string{"workers=2", "prestart=sh -c \"exit 9\""}, sh("echo up $$"))
	s.ended(9)
	if s.out.String() != "" {
		t.Error("a worker ran")
	}
}

// freePort is a port that nobody listens on.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// ask connects and returns the line it gets.
func ask(network, address string) (string, error) {
	conn, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line), err
}

// askUntil asks until n different answers have come.
func askUntil(t *testing.T, address string, n int) []string {
	t.Helper()
	seen := make(map[string]bool)
	for deadline := time.Now().Add(patience); len(seen) < n; {
		line, err := ask("tcp", address)
		if err == nil {
			seen[line] = true
		}
		if time.Now().After(deadline) {
			t.Fatalf("only %d answer: %v, %v", len(seen), seen, err)
		}
	}
	var all []string
	for line := range seen {
		all = append(all, line)
	}
	slices.Sort(all)
	return all
}

func TestPassedListeners(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	port, path := freePort(t), filepath.Join(t.TempDir(), "s")
	s := start(t, []string{"workers=2", fmt.Sprintf("listen=web=127.0.0.1:%d\nadmin=unix://%s", port, path), "ready=alive:1ms"},
		[]string{self, "role:passed", "{fd}", "{fd:admin}", "{slot}", "{other}"})
	pids := s.pids(2)
	want := []string{"web 3 slot 0 args 3 4 0 {other}", "web 3 slot 1 args 3 4 1 {other}"}
	if got := askUntil(t, fmt.Sprintf("127.0.0.1:%d", port), 2); !slices.Equal(got, want) {
		t.Errorf("answers %q", got)
	}
	if got, err := ask("unix", path); err != nil || !strings.HasPrefix(got, "admin 4 slot ") {
		t.Errorf("unix: %q, %v", got, err)
	}
	s.signal(unix.SIGTERM)
	s.ended(0)
	s.gone(pids...)
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket's file is left: %v", err)
	}

	// A port that is taken is known before anything runs.
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s = start(t, []string{"workers=2", "listen=" + taken.Addr().String()}, sh("echo ran"))
	if s.ended(125); s.out.String() != "" || len(s.err.matching(taken.Addr().String())) != 1 {
		t.Errorf("%v %v", s.out, s.err)
	}
}

// Unchanged servers that bind the same port share it, however it is balanced.
func TestBoundPortIsShared(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, balance := range []string{"steer", "hash", "single"} {
		t.Run(balance, func(t *testing.T) {
			t.Parallel()
			address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
			s := start(t, []string{"workers=2", "balance=" + balance, "restart-delay=10ms", "log-level=debug"}, []string{self, "role:serve", address})
			pids := s.pids(2)
			s.wait(s.err, "worker ready", 2)
			listeners, err := proc.FS("/proc").Listeners(s.cmd.Process.Pid)
			if want := map[string]int{"steer": 2, "hash": 2, "single": 1}[balance]; err != nil || len(listeners) != want {
				t.Errorf("skep holds %v, %v; want %d", listeners, err, want)
			}
			got := askUntil(t, address, 2)
			for _, pid := range pids {
				if !slices.Contains(got, strconv.Itoa(pid)) {
					t.Errorf("%d does not answer: %q", pid, got)
				}
			}
			// What waits in the queue of one that dies is served by its successor.
			if err := unix.Kill(pids[0], unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			for range 20 {
				if _, err := ask("tcp", address); err != nil && balance != "single" {
					// Only what the dead one had accepted may be lost.
					if !strings.Contains(err.Error(), "reset") && err != io.EOF {
						t.Errorf("not answered: %v", err)
					}
				}
			}
			s.pids(3)
			s.signal(unix.SIGTERM)
			s.ended(0)
		})
	}
}

// The kernel tells of connections as long as skep serves. What takes it 30 ms to give
// back is given back beside the workers' end, not after it.
func TestConnectionsAreToldOfUntilTheStop(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	s := start(t, []string{"workers=2", "drain-delay=20s", "stop-timeout=60s"}, []string{self, "role:serve", address})
	told := func() bool {
		maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", s.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(maps), "/[aio]")
	}
	s.pids(2)
	s.until("connections are told of", told)
	s.signal(unix.SIGTERM)
	s.until("they are not any more", func() bool { return !told() })
	if got := askUntil(t, address, 1); len(got) == 0 {
		t.Error("nobody answers while it drains")
	}
	s.signal(unix.SIGINT)
	s.signal(unix.SIGINT)
}

// A program that picks its port anew at each start leaves no listener behind, and
// nobody who asks another worker on the old port notices.
func TestPortsThatNobodyBindsAreGivenUp(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	choice := filepath.Join(t.TempDir(), "address")
	choose := func() string {
		address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
		if err := os.WriteFile(choice, []byte(address), 0o600); err != nil {
			t.Fatal(err)
		}
		return address
	}
	first := choose()
	s := start(t, []string{"workers=2", "restart-delay=10ms"}, sh("exec "+self+" role:serve $(cat "+choice+")"))
	pids := s.pids(2)
	s.wait(s.err, "worker ready", 2)
	second := choose()
	if err := unix.Kill(pids[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pids = s.pids(3)
	s.wait(s.err, "worker ready", 3)
	listeners := func() int {
		all, err := proc.FS("/proc").Listeners(s.cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if n := listeners(); n != 3 {
		t.Errorf("skep holds %d listeners before, want 3", n)
	}
	stays := strconv.Itoa(pids[1])
	for deadline := time.Now().Add(patience); listeners() != 2; {
		if time.Now().After(deadline) {
			t.Fatalf("skep still holds %d listeners", listeners())
		}
		if got, err := ask("tcp", first); err != nil || got != stays {
			t.Fatalf("%q, %v on the old port; want %s", got, err, stays)
		}
	}
	s.wait(s.err, "does not listen where the one before it did.* address="+first, 1)
	for address, want := range map[string]string{first: stays, second: strconv.Itoa(pids[2])} {
		for range 20 {
			if got, err := ask("tcp", address); err != nil || got != want {
				t.Fatalf("%q, %v on %s; want %s", got, err, address, want)
			}
		}
	}
	s.signal(unix.SIGTERM)
	s.ended(0)
}

// A worker that closes its listener and lives on gets nothing new; what has come to
// it before that was seen is answered by its successor.
func TestWorkerThatClosesItsListener(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	s := start(t, []string{"workers=2", "restart-delay=10ms"}, []string{self, "role:closing", address})
	pids := s.pids(2)
	s.wait(s.err, "worker ready", 2)
	askUntil(t, address, 2)
	if err := unix.Kill(pids[0], unix.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	s.wait(s.out, "closed", 1)
	// Some that come now are put into the queue that nobody empties.
	answers := make(chan string, 100_000)
	asked, inTurn := 0, 0
	for deadline := time.Now().Add(patience); inTurn < 50; asked++ {
		if time.Now().After(deadline) || asked == cap(answers) {
			t.Fatalf("after %d connections skep does not notice", asked)
		}
		done := make(chan bool, 1)
		go func() {
			got, err := ask("tcp", address)
			if err != nil {
				got = err.Error()
			}
			answers <- got
			done <- true
		}()
		select {
		case <-done:
			if inTurn++; len(s.err.matching("closed its listener and lives on")) == 0 {
				inTurn = 0
			}
		case <-time.After(200 * time.Millisecond): // it waits, or the machine is slow
			inTurn = 0
		}
	}
	if err := unix.Kill(pids[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	successor := s.pids(3)[2]
	queued := 0
	for range asked {
		switch got := <-answers; got {
		case strconv.Itoa(pids[1]):
		case strconv.Itoa(successor):
			queued++
		default:
			t.Errorf("answer %q, want one of %d and %d", got, pids[1], successor)
		}
	}
	t.Logf("of %d that came before it was noticed, %d waited for the successor", asked, queued)
	if queued == 0 {
		t.Error("nothing was queued, so nothing was shown")
	}
	s.signal(unix.SIGTERM)
	s.ended(0)
}

// Where the kernel refuses the filter, one worker serves, and one line says so.
func TestFallsBackToOneWorker(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, how := range map[string]option{
		"EPERM":  role("role:refuse", strconv.Itoa(int(unix.EPERM))),
		"ENOSYS": role("role:refuse", strconv.Itoa(int(unix.ENOSYS))),
		"EBUSY":  role("role:listened"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
			s := start(t, []string{"workers=2"}, []string{self, "role:serve", address}, how)
			s.wait(s.err, "warning: the port cannot be shared, going on with one worker", 1)
			one := askUntil(t, address, 1)
			for range 20 {
				if got, err := ask("tcp", address); err != nil || got != one[0] {
					t.Errorf("answer %q, %v; want %q", got, err, one[0])
				}
			}
			s.signal(unix.SIGTERM)
			s.ended(0)
			if n := len(s.err.matching("cannot be shared, going on")); n != 1 {
				t.Errorf("told %d times", n)
			}
		})
	}
}

// A reload to a version that does not start leaves the old one as it is.
func TestReload(t *testing.T) {
	t.Parallel()
	bad := filepath.Join(t.TempDir(), "bad")
	s := start(t, quick(2, "ready=alive:1s"), sh("test -e "+bad+" && exit 1; echo up $$; exec sleep 1000"))
	old := s.pids(2)
	s.wait(s.err, "worker ready", 2)
	if err := os.WriteFile(bad, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s.signal(unix.SIGHUP)
	s.wait(s.err, "error: reload aborted", 1)
	for _, pid := range old {
		if unix.Kill(pid, 0) != nil {
			t.Error("an old worker is gone")
		}
	}
	if err := os.Remove(bad); err != nil {
		t.Fatal(err)
	}
	s.signal(unix.SIGHUP)
	pids := s.pids(4)
	s.wait(s.err, "worker ended.*cause=reload", 2)
	s.gone(old...)
	for _, pid := range pids[2:] {
		if unix.Kill(pid, 0) != nil {
			t.Error("a new worker is gone")
		}
	}
	s.signal(unix.SIGTERM)
	s.ended(0)
}

// A worker that has to be killed takes with it what it has started, while skep
// goes on.
func TestKilledWithItsTree(t *testing.T) {
	t.Parallel()
	testneed.Program(t, "setsid")
	s := start(t, []string{"workers=1", "share=none", "ready=alive:1ms", "stop-timeout=300ms", "log-level=debug"}, sh(
		`trap '' TERM; setsid sh -c 'trap "" TERM; echo up $$; sleep 1000; sleep 1000' & echo up $$; while :; do wait; done`))
	old := s.pids(2)
	s.wait(s.err, "worker ready", 1)
	s.signal(unix.SIGHUP)
	s.wait(s.err, "worker ended.*cause=reload signal=KILL", 1)
	for _, pid := range old {
		s.wait(s.err, fmt.Sprintf("(reaped an orphan|worker ended).* pid=%d ", pid), 1)
	}
	s.pids(4)
	s.signal(unix.SIGTERM)
	s.ended(137)
}

// -w auto starts what fits when it knows what one needs, and one to learn from
// when it does not.
func TestAutoByMemory(t *testing.T) {
	t.Parallel()
	auto := []string{"workers=auto", "workers-per-cpu=8", "max-workers=3", "share=none", "ready=alive:1ms", "log-level=debug"}
	s := start(t, append(auto, "worker-memory=1Mi"), sh("echo up $$; exec sleep 1000"))
	s.pids(3)
	if len(s.err.matching("learn")) > 0 {
		t.Error("there is nothing to learn")
	}
	s.signal(unix.SIGTERM)
	s.ended(0)

	s = start(t, auto, sh("echo up $$; exec sleep 1000"))
	s.wait(s.err, "learning what one worker needs", 1)
	s.wait(s.err, "number of workers changes from=\\d to=3", 1)
	before, _, _ := strings.Cut(s.err.String(), "number of workers changes")
	if n := strings.Count(before, "worker started"); n != 1 {
		t.Errorf("%d started before it was learned", n)
	}
	s.pids(3)
	s.signal(unix.SIGTERM)
	s.ended(0)
}
