package conformance

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/internal/nstest"
)

// mode is how the init under test is run.
type mode string

const (
	plain    mode = "N" // an ordinary process
	pid1     mode = "P" // PID 1 of fresh namespaces
	docker   mode = "D" // in a container of the machine's Docker engine
	terminal mode = "T" // on a pseudo-terminal
)

// testcase is one behaviour. Its name is unique together with the mode.
type testcase struct {
	name string
	mode mode
	what string // one line for the report
	// defects are the switches of badinit with which the case must fail.
	defects []string
	// alone: not beside other cases, because it measures a time or fills the machine.
	alone bool
	run   func(r *run)
}

func (c *testcase) id() string { return c.name + "/" + string(c.mode) }

// run is one case on one subject. Its methods end the case where it fails, as those of testing.T do, but the failure is only recorded: whether it
// fails the test depends on whose it is.
type run struct {
	t       testing.TB
	c       *testcase
	s       *subject
	defect  string        // badinit's, else empty
	patient time.Duration // how long to wait for what ought to come at once
	dir     string

	mu      sync.Mutex
	cleanup []func()
}

// failure and notApplicable are what a run ends with by panicking; the runner knows them.
type (
	failure       struct{ text string }
	notApplicable struct{ text string }
)

func (r *run) failf(format string, args ...any) {
	r.t.Helper()
	panic(failure{fmt.Sprintf(format, args...)})
}

func (r *run) na(format string, args ...any) { panic(notApplicable{fmt.Sprintf(format, args...)}) }

func (r *run) must(err error) {
	if err != nil {
		r.failf("%v", err)
	}
}

func (r *run) later(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cleanup = append(r.cleanup, f)
}

// outcome of a case on a subject.
type outcome struct {
	kind string // "pass", "fail", "n/a"
	why  string
}

// execute runs the case and tells how it went.
func execute(t testing.TB, c *testcase, s *subject, defect string) (o outcome) {
	r := &run{t: t, c: c, s: s, defect: defect, patient: 10 * time.Second, dir: t.TempDir()}
	if _, known := s.known[c.name]; known || defect != "" && defect != "none" {
		r.patient = 1500 * time.Millisecond // it is expected to fail
	}
	os.Chmod(r.dir, 0o755)
	defer func() {
		thrown := recover()
		for i := len(r.cleanup) - 1; i >= 0; i-- {
			r.cleanup[i]()
		}
		switch end := thrown.(type) {
		case nil:
			o = outcome{kind: "pass"}
		case failure:
			o = outcome{kind: "fail", why: end.text}
		case notApplicable:
			o = outcome{kind: "n/a", why: end.text}
		default:
			panic(thrown)
		}
	}()
	c.run(r)
	return
}

// process is a running init, or the shell around it.
type process struct {
	r      *run
	cmd    *exec.Cmd
	pid    int
	lines  chan string // of stdout
	stdout *bytes.Buffer
	stderr *bytes.Buffer
	done   chan struct{}
	mu     sync.Mutex
}

// setup changes how an init is started.
type setup struct {
	options
	env     []string // nil: a small clean one
	dir     string
	stdin   *os.File
	stdout  *os.File // nil: read by the run
	stderr  *os.File
	extra   []*os.File
	attr    func(*syscall.SysProcAttr)
	spec    nstest.Spec // for pid1: Hide and the like
	argv    []string    // everything after argv[0], in place of the options and the command
	wrapper []string    // run by this command, for instance a shell that changes a limit and execs "$@"; plain mode only
}

var cleanEnv = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/root", "TERM=dumb"}

// start runs the command under the subject in the case's mode.
func (r *run) start(set setup, command ...string) *process {
	r.t.Helper()
	args := set.argv
	if args == nil {
		var ok bool
		if args, ok = r.s.args(set.options, command...); !ok {
			r.na("no such option")
		}
	}
	env := set.env
	if env == nil {
		env = cleanEnv
	}
	argv := append([]string{r.s.argv0}, args...)
	var cmd *exec.Cmd
	if r.c.mode == pid1 {
		spec := set.spec
		spec.Path, spec.Argv, spec.Env, spec.Dir = r.s.path, argv, env, set.dir
		cmd = nstest.Command(r.t, spec)
	} else {
		cmd = &exec.Cmd{Path: r.s.path, Args: argv, Env: env, Dir: set.dir, SysProcAttr: &syscall.SysProcAttr{}}
		if set.wrapper != nil {
			// argv[0] is the init's name, which a shell cannot set: a link of that name stands in.
			cmd.Path = set.wrapper[0]
			cmd.Args = append(append([]string{}, set.wrapper...), append([]string{r.link()}, args...)...)
		}
	}
	if set.attr != nil {
		set.attr(cmd.SysProcAttr)
	}
	cmd.ExtraFiles = set.extra
	if set.stdin != nil {
		cmd.Stdin = set.stdin
	}
	return r.launch(cmd, set.stdout, set.stderr)
}

// link is a path to the subject whose last element is its argv[0].
func (r *run) link() string {
	if filepath.Base(r.s.path) == r.s.argv0 {
		return r.s.path
	}
	path := filepath.Join(r.dir, r.s.argv0)
	if _, err := os.Lstat(path); err != nil {
		r.must(os.Symlink(r.s.path, path))
	}
	return path
}

// launch starts cmd, reads its output, and sees to it that it does not outlive the run.
func (r *run) launch(cmd *exec.Cmd, stdout, stderr *os.File) *process {
	r.t.Helper()
	p := &process{r: r, cmd: cmd, lines: make(chan string, 1<<15), stdout: new(bytes.Buffer), stderr: new(bytes.Buffer), done: make(chan struct{})}
	var readers sync.WaitGroup
	var closeAfter []*os.File
	pipe := func(into *bytes.Buffer, lines chan string) *os.File {
		pr, pw, err := os.Pipe()
		r.must(err)
		closeAfter = append(closeAfter, pw)
		readers.Add(1)
		go func() {
			defer readers.Done()
			defer pr.Close()
			in := bufio.NewReaderSize(pr, 1<<16)
			for {
				line, err := in.ReadString('\n')
				p.mu.Lock()
				into.WriteString(line)
				p.mu.Unlock()
				if line != "" && lines != nil {
					select {
					case lines <- strings.TrimSuffix(line, "\n"):
					default:
					}
				}
				if err != nil {
					return
				}
			}
		}()
		return pw
	}
	if stdout == nil {
		stdout = pipe(p.stdout, p.lines)
	}
	if stderr == nil {
		stderr = pipe(p.stderr, nil)
	}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err := cmd.Start()
	for _, f := range closeAfter {
		f.Close()
	}
	r.must(err)
	p.pid = cmd.Process.Pid
	go func() {
		cmd.Wait()
		// What the init leaves behind may keep the pipes open; what has been written is read in a moment.
		drained := make(chan struct{})
		go func() { readers.Wait(); close(drained) }()
		select {
		case <-drained:
		case <-time.After(time.Second):
		}
		close(p.done)
	}()
	r.later(func() {
		cmd.Process.Kill()
		<-p.done
	})
	return p
}

// signal sends a signal to the init.
func (p *process) signal(n int) {
	p.r.t.Helper()
	if err := unix.Kill(p.pid, unix.Signal(n)); err != nil {
		p.r.failf("cannot send signal %d to the init: %v", n, err)
	}
}

// line is the next line of stdout; false when none comes within d.
func (p *process) line(d time.Duration) (string, bool) {
	select {
	case line := <-p.lines:
		return line, true
	default:
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case line := <-p.lines:
		return line, true
	case <-timer.C:
		return "", false
	case <-p.done:
		select {
		case line := <-p.lines:
			return line, true
		default:
			return "", false
		}
	}
}

// expect wants the next line to be exactly this.
func (p *process) expect(want string) {
	p.r.t.Helper()
	line, ok := p.line(p.r.patient)
	if !ok {
		p.r.failf("no %q came%s", want, p.said())
	}
	if line != want {
		p.r.failf("got %q instead of %q", line, want)
	}
}

// said is stderr for a failure's text, and how the process ended if it did.
func (p *process) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := ""
	select {
	case <-p.done:
		text = "; the init ended: " + p.cmd.ProcessState.String()
	default:
	}
	if s := p.stdout.String(); s != "" && p.stderr.Len() == 0 {
		text += "; stdout ends in " + strconv.Quote(s[max(0, len(s)-300):])
	}
	if s := strings.TrimSpace(p.stderr.String()); s != "" {
		if len(s) > 300 {
			s = s[:300] + "…"
		}
		text += "; stderr: " + strconv.Quote(s)
	}
	return text
}

// code waits for the end and is its exit code, or -1 and the signal.
func (p *process) ended(d time.Duration) (code int, sig syscall.Signal) {
	p.r.t.Helper()
	select {
	case <-p.done:
	case <-time.After(d):
		p.r.failf("it did not end within %v%s", d, p.said())
	}
	status := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return -1, status.Signal()
	}
	return status.ExitStatus(), 0
}

// wantCode waits for the end with exactly this exit code.
func (p *process) wantCode(want int) {
	p.r.t.Helper()
	code, sig := p.ended(p.r.patient)
	if sig != 0 {
		p.r.failf("it was killed by signal %d (%v) instead of ending with %d%s", int(sig), sig, want, p.said())
	}
	if code != want {
		p.r.failf("code %d instead of %d%s", code, want, p.said())
	}
}

// output waits for the end and is all of stdout and stderr.
func (p *process) output() (stdout, stderr string) {
	p.r.t.Helper()
	p.ended(p.r.patient)
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stdout.String(), p.stderr.String()
}

// eventually asks until the answer is yes.
func (r *run) eventually(d time.Duration, what string, ask func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(d)
	for !ask() {
		if time.Now().After(deadline) {
			r.failf("%s: not within %v", what, d)
		}
		time.Sleep(500 * time.Microsecond)
	}
}

// children lists pid and state of the children of a process.
func children(pid int) map[int]byte {
	found := map[int]byte{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return found
	}
	for _, entry := range entries {
		n, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		state, ppid := stat(n)
		if ppid == pid {
			found[n] = state
		}
	}
	return found
}

// stat is the state and the parent of a process; 0, 0 when it is gone.
func stat(pid int) (state byte, ppid int) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0
	}
	after := string(text[bytes.LastIndexByte(text, ')')+1:])
	fields := strings.Fields(after)
	if len(fields) < 2 {
		return 0, 0
	}
	ppid, _ = strconv.Atoi(fields[1])
	return fields[0][0], ppid
}

// shell runs a command of the test itself, bounded in time.
func (r *run) shell(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// command is a program of the test's own, in the clean environment.
func (r *run) command(path string, args ...string) *exec.Cmd {
	return &exec.Cmd{Path: path, Args: append([]string{path}, args...), Env: cleanEnv}
}
