package migrate

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"skep/internal/nstest"
)

var (
	termRuns = flag.Int("term.runs", 500, "how many runs of skep TestStopAtAnyMoment stops")
	termSeed = flag.Uint64("term.seed", 0, "its seed, 0 for a new one")
)

// stopTimeout is that of nearly every run; law 8 adds a second to it.
const stopTimeout = 500 * time.Millisecond

// latest is how long after the first step began a run is stopped at most. All
// that a run does before its last step, which has no end, is over by then.
const latest = 250 * time.Millisecond

// asked is the code of a stop that says nothing else.
const asked = 128 + int(syscall.SIGTERM)

// kind is a way to be busy before the start when the stop comes.
type kind struct {
	name  string
	flags []string
	codes []int // that docs/prestart.md has for it; in many runs each is seen
	rare  []int // the same, of moments that are hard to meet
	alone bool  // the step asks for the stop itself

	timeout time.Duration // for the stop; 0 is stopTimeout
}

func sh(script string) string { return "--prestart=sh -c '" + script + "'" }

var kinds = []kind{
	{name: "step after step", flags: []string{sh("sleep 0.02"), sh("sleep 0.02"), sh("sleep 0.02"), sh("exec sleep 300")}, codes: []int{asked}},
	{name: "deaf", flags: []string{sh("sleep 0.05"), sh(`trap "" TERM; sleep 300`)}, codes: []int{137}, rare: []int{asked}},
	{name: "code of its own", flags: []string{sh("sleep 0.05"), sh(`trap "exit 9" TERM; sleep 300 & wait`)}, codes: []int{9}, rare: []int{asked}},
	{name: "answers with 0", flags: []string{sh(`trap "exit 0" TERM; sleep 300 & wait`)}, codes: []int{asked}},
	{name: "forks", flags: []string{sh(`sleep 300 & (trap "" TERM; sleep 300) & setsid sleep 300 & wait`)}, codes: []int{asked}},
	{name: "slow end, deaf child", flags: []string{sh(`(trap "" TERM; sleep 300) & trap "sleep 0.2; exit 9" TERM; sleep 300 & wait`)}, codes: []int{9}, rare: []int{asked, 137}},
	{name: "tried again", flags: []string{"--prestart-retries=9", sh("sleep 0.05; exit 3")}, codes: []int{asked}, rare: []int{3}},
	{name: "timed out", flags: []string{"--prestart-timeout=100ms", sh(`trap "" TERM; sleep 300`)}, codes: []int{124, 137}, rare: []int{asked}},
	{name: "waits", flags: []string{"--wait=unix:///no/such/socket", sh("true")}, codes: []int{asked}},
	{name: "no lock", flags: []string{"--prestart-lock=LOCK", sh("true")}, codes: []int{asked}},
	{name: "asks itself", flags: []string{sh("kill -TERM $PPID")}, codes: []int{asked}, alone: true},
	{name: "asks itself, with a key", flags: []string{"--prestart-lock=DIR/lock", "--prestart-key=k", sh("kill -TERM $PPID")}, codes: []int{asked}, alone: true},
}

// ending is how a run ended.
type ending struct {
	kind kind
	code int
	took time.Duration // from the stop
}

// TestStopAtAnyMoment stops skep, as PID 1 and not, at random moments before
// the start: it always ends in time, with a code that says it, leaves nothing,
// and has started no worker.
func TestStopAtAnyMoment(t *testing.T) {
	runs := *termRuns
	if testing.Short() {
		runs /= 5
	}
	seed := *termSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	random := rand.New(rand.NewPCG(seed, 0))

	// Somebody else holds this lock all the time.
	held, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := syscall.Flock(int(held.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}

	work := make(chan stopped)
	var (
		mu   sync.Mutex
		ends []ending
		all  sync.WaitGroup
	)
	began := time.Now()
	for range 8 {
		all.Go(func() {
			for s := range work {
				end, err := s.run(t, held.Name())
				mu.Lock()
				if err != nil {
					t.Errorf("%v (-term.seed=%d)", err, seed)
				}
				ends = append(ends, end)
				mu.Unlock()
			}
		})
	}
	mark := "STORY=" + t.TempDir()
	for i := range runs {
		work <- stopped{
			kind: kinds[i%len(kinds)], first: random.IntN(5) == 0, dir: t.TempDir(), mark: mark,
			after: time.Duration(random.Int64N(int64(latest))), atOnce: random.IntN(5) == 0,
		}
	}
	close(work)
	all.Wait()

	for _, pid := range marked(mark) {
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // gone meanwhile: as empty
		t.Errorf("left: %d %s", pid, bytes.ReplaceAll(command, []byte{0}, []byte{' '}))
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	var slowest time.Duration
	for _, k := range kinds {
		seen := map[int]int{}
		for _, e := range ends {
			if e.kind.name == k.name {
				seen[e.code]++
				slowest = max(slowest, e.took)
			}
		}
		t.Logf("%-24s codes %v", k.name, seen)
		for _, code := range k.codes {
			// 40 runs of a kind miss a code that every fourth has once in 100,000 tests.
			if runs >= 500 && seen[code] == 0 {
				t.Errorf("%s: code %d was never seen (-term.seed=%d)", k.name, code, seed)
			}
		}
	}
	t.Logf("%d runs in %v, the slowest end took %v of %v", runs, time.Since(began).Round(time.Millisecond),
		slowest.Round(time.Millisecond), stopTimeout+time.Second)
}

// TestStopHasOneTimeout stops a step that takes most of the stop timeout and
// leaves a process behind that heeds nothing: what is left of the timeout is all
// that this one has.
func TestStopHasOneTimeout(t *testing.T) {
	const timeout = 2 * time.Second
	k := kind{
		name: "slow end, deaf child", timeout: timeout, codes: []int{9},
		flags: []string{sh(`(trap "" TERM; sleep 300) & trap "sleep 1.8; exit 9" TERM; sleep 300 & echo up; wait`)},
	}
	end, err := stopped{kind: k, dir: t.TempDir(), mark: "STORY=" + t.TempDir(), after: latest}.run(t, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ended %v after the stop, with a timeout of %v", end.took, timeout)
}

// TestStopBeforeTheLastStepEnds has the stop and, after it, the good end of the
// last step arrive together, because skep gets no time between them: the stop
// came first, so no worker is started.
func TestStopBeforeTheLastStepEnds(t *testing.T) {
	for range 10 {
		dir := t.TempDir()
		fifo := filepath.Join(dir, "end")
		if err := syscall.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(skep, "--prestart", "sh -c 'echo up; read end <"+fifo+"'", "--", "touch", filepath.Join(dir, "worker"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(stdout, make([]byte, len("up\n"))); err != nil {
			t.Fatal(err)
		}
		end, err := os.OpenFile(fifo, os.O_WRONLY, 0) // returns when the step has opened it too
		if err != nil {
			t.Fatal(err)
		}
		pid := cmd.Process.Pid
		step := onlyChild(t, pid)
		signal := func(sig syscall.Signal) {
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
		}
		signal(syscall.SIGSTOP)
		waitState(t, pid, "T")
		signal(syscall.SIGTERM)
		if _, err := end.WriteString("now\n"); err != nil {
			t.Fatal(err)
		}
		waitState(t, step, "Z")
		signal(syscall.SIGCONT)
		_ = end.Close() // written to already
		_ = cmd.Wait()  // the code is asked for
		if code := cmd.ProcessState.ExitCode(); code != asked {
			t.Errorf("exit code %d, want %d", code, asked)
		}
		// A worker that is started and told to stop at once leaves no mark, so
		// what counts is what skep took the stop for.
		if _, err := os.Stat(filepath.Join(dir, "worker")); err == nil || !strings.Contains(stderr.String(), "stop by signal 15 before the start") {
			t.Fatalf("a worker was started; skep said:\n%s", &stderr)
		}
	}
}

// onlyChild returns the pid of the one child of a process.
func onlyChild(t *testing.T, pid int) int {
	t.Helper()
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var pids []string
	for _, path := range children {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // a thread that has ended
		}
		pids = append(pids, strings.Fields(string(text))...)
	}
	if len(pids) != 1 {
		t.Fatalf("process %d has the children %v, want one", pid, pids)
	}
	child, err := strconv.Atoi(pids[0])
	if err != nil {
		t.Fatal(err)
	}
	return child
}

// waitState waits until a process is in a state, as proc(5) writes it.
func waitState(t *testing.T, pid int, state string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(stat), ") ")
		if strings.HasPrefix(after, state) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d is not in state %s within 30 s", pid, state)
		}
		time.Sleep(time.Millisecond)
	}
}

// stopped is one run.
type stopped struct {
	kind   kind
	first  bool          // skep is PID 1
	after  time.Duration // of the stop, since the steps began
	atOnce bool          // the same, since skep's start
	dir    string
	mark   string
}

func (s stopped) String() string {
	return fmt.Sprintf("%s, PID 1: %v, stopped after %v, at once: %v", s.kind.name, s.first, s.after, s.atOnce)
}

func (s stopped) run(t *testing.T, lock string) (ending, error) {
	end := ending{kind: s.kind}
	timeout := s.kind.timeout
	if timeout == 0 {
		timeout = stopTimeout
	}
	worker := filepath.Join(s.dir, "worker")
	argv := []string{"skep", "--stop-timeout=" + timeout.String()}
	for _, f := range s.kind.flags {
		argv = append(argv, strings.NewReplacer("LOCK", lock, "DIR", s.dir).Replace(f))
	}
	argv = append(argv, "--", "touch", worker)
	env := append(os.Environ(), s.mark)
	cmd := &exec.Cmd{Path: skep, Args: argv, Env: env, SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}}
	if s.first {
		cmd = nstest.Command(t, nstest.Spec{Path: skep, Argv: argv, Env: env})
	}
	said := &firstWrite{began: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.WaitDelay = 5 * time.Second // whoever holds the output must not stop the test
	if err := cmd.Start(); err != nil {
		return end, fmt.Errorf("%v: %w", s, err)
	}
	// A signal to a PID 1 that has not caught it yet is lost, and so is one to
	// skep before it is skep (signal(7), "Signal mask and pending signals").
	if !s.atOnce || s.first || s.kind.alone {
		select {
		case <-said.began:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			return end, fmt.Errorf("%v: no step began within 30 s", s)
		}
	}
	if !s.kind.alone {
		<-time.After(s.after)
	}
	at := time.Now()
	if !s.kind.alone {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			return end, fmt.Errorf("%v: ended before the stop: %w; it said:\n%s", s, err, said)
		}
	}
	over := make(chan error, 1)
	go func() { over <- cmd.Wait() }()
	select {
	case <-over:
	case <-time.After(timeout + 30*time.Second):
		_ = cmd.Process.Kill()
		<-over
	}
	end.took = time.Since(at)
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	end.code = status.ExitStatus()
	if status.Signaled() && status.Signal() == syscall.SIGTERM && said.String() == "" {
		end.code = asked // so early that skep had not yet caught the signal
	}
	switch _, err := os.Stat(worker); {
	case err == nil:
		return end, fmt.Errorf("%v: a worker was started; skep said:\n%s", s, said)
	case !slices.Contains(slices.Concat(s.kind.codes, s.kind.rare), end.code):
		return end, fmt.Errorf("%v: ended with %v, want one of the codes %v or %v; skep said:\n%s", s, cmd.ProcessState, s.kind.codes, s.kind.rare, said)
	case end.took > timeout+time.Second:
		return end, fmt.Errorf("%v: ended %v after the stop, want at most %v; skep said:\n%s", s, end.took, timeout+time.Second, said)
	}
	return end, nil
}

// firstWrite keeps what is written and tells when it begins.
type firstWrite struct {
	mu    sync.Mutex
	text  bytes.Buffer
	began chan struct{}
}

func (w *firstWrite) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.text.Len() == 0 {
		close(w.began)
	}
	return w.text.Write(p)
}

func (w *firstWrite) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// marked returns the processes, zombies excepted, that have the text in their
// environment.
func marked(text string) (pids []int) {
	environs, _ := filepath.Glob("/proc/[0-9]*/environ") // the pattern is good
	for _, path := range environs {
		environ, err := os.ReadFile(path)
		if err == nil && bytes.Contains(append(environ, 0), append([]byte(text), 0)) {
			var pid int
			if _, err := fmt.Sscanf(path, "/proc/%d/", &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
