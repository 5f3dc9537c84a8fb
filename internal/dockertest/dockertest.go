// Package dockertest runs containers for tests through the docker command.
//
// Every container and image it makes carries the label skep.test with a value
// of this run of the test binary, and only what carries that value is ever
// removed: other tests, and whoever else uses the engine, are left alone. A
// container is removed by its id when its test ends; Main sweeps what a test
// that was cut short left behind.
//
// Containers are in a network of this run alone, and ports are published on
// 127.0.0.1 at numbers that the engine chooses, so stories can run beside each
// other and beside whatever else the machine does.
package dockertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Label marks every Docker object that tests make.
const Label = "skep.test"

// runValue is the label's value for this run of the test binary.
var runValue = fmt.Sprintf("%d-%d", os.Getpid(), time.Now().UnixNano())

// labels returns the flags that mark a new object: with this run's label and,
// when the environment has SKEP_TEST_RUN, with skep.test.run, by which whoever
// started several test binaries finds all that they left.
func labels() []string {
	flags := []string{"--label", Label + "=" + runValue}
	if run := os.Getenv("SKEP_TEST_RUN"); run != "" {
		flags = append(flags, "--label", Label+".run="+run)
	}
	return flags
}

// callDeadline bounds one docker command. Starting a container takes a second
// or two on a small machine that does other things as well.
const callDeadline = 2 * time.Minute

// Main runs the tests of a package and then removes what they left: call it
// from TestMain and give its result to os.Exit. With no docker command it only
// runs the tests.
func Main(m *testing.M) int {
	defer sweep()
	return m.Run()
}

// sweep removes every container, image, network and volume of this run. Its failures are told
// on stderr: no test is left that could fail.
func sweep() {
	if !used.Load() {
		return
	}
	filter := "label=" + Label + "=" + runValue
	for _, list := range []struct{ list, remove []string }{
		{[]string{"ps", "-aq", "--no-trunc", "--filter", filter}, []string{"rm", "-f", "-v"}},
		{[]string{"images", "-q", "--no-trunc", "--filter", filter}, []string{"rmi", "-f"}},
		{[]string{"network", "ls", "-q", "--no-trunc", "--filter", filter}, []string{"network", "rm"}},
		{[]string{"volume", "ls", "-q", "--filter", filter}, []string{"volume", "rm", "--force"}},
	} {
		ids, err := docker(list.list...)
		if err == nil && strings.TrimSpace(ids.Stdout) != "" {
			_, err = docker(append(list.remove, strings.Fields(ids.Stdout)...)...)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "cannot remove what the tests made: %v\n", err)
		}
	}
}

// used is set before anything is made: without it there is nothing to sweep,
// and perhaps no engine to ask.
var used atomic.Bool

// Result is what one docker command came to.
type Result struct {
	Stdout string
	Stderr string
	Code   int // the command's exit code
	Took   time.Duration
}

// docker runs one docker command. An exit code other than 0 is no error.
func docker(args ...string) (Result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String(), Took: time.Since(began)}
	if ctx.Err() != nil {
		return r, fmt.Errorf("docker %s: no end within %v", strings.Join(args, " "), callDeadline)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		r.Code = exit.ExitCode()
		err = nil
	}
	if err != nil {
		return r, fmt.Errorf("cannot run docker: %w", err)
	}
	return r, nil
}

// must runs a docker command that has to succeed and returns its trimmed
// standard output.
func must(t testing.TB, args ...string) string {
	t.Helper()
	r, err := docker(args...)
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != 0 {
		t.Fatalf("docker %s: exit code %d: %s", strings.Join(args, " "), r.Code, strings.TrimSpace(r.Stderr))
	}
	return strings.TrimSpace(r.Stdout)
}

var (
	buildMutex sync.Mutex
	built      = map[string]string{}
)

// Build builds a Dockerfile, its path given from the folder root, with build
// arguments such as "BASE=scratch", and returns the image's id. The same image
// is built once per run of the test binary and removed at its end. The steps
// have no network: what they need is in the base or in the repository.
func Build(t testing.TB, root, dockerfile string, buildArgs ...string) string {
	t.Helper()
	buildMutex.Lock()
	defer buildMutex.Unlock()
	key := strings.Join(append([]string{root, dockerfile}, buildArgs...), "\x00")
	if id := built[key]; id != "" {
		return id
	}
	used.Store(true)
	args := append([]string{"build", "--quiet", "--network=none", "--file", root + "/" + dockerfile}, labels()...)
	for _, a := range buildArgs {
		args = append(args, "--build-arg", a)
	}
	id := must(t, append(args, root)...)
	built[key] = id
	return id
}

var network struct {
	mu sync.Mutex
	id string
}

// ownNetwork returns the network of this run and makes it at the first call.
func ownNetwork(t testing.TB) string {
	t.Helper()
	network.mu.Lock()
	defer network.mu.Unlock()
	if network.id == "" {
		used.Store(true)
		network.id = must(t, append(append([]string{"network", "create"}, labels()...), "skep-test-"+runValue)...)
	}
	return network.id
}

// HasImage tells whether the engine has an image of that name.
func HasImage(t testing.TB, name string) bool {
	t.Helper()
	r, err := docker("image", "inspect", "--format", "{{.Id}}", name)
	if err != nil {
		t.Fatal(err)
	}
	return r.Code == 0
}

// Volume makes an empty volume and removes it when the test ends, after the
// containers that were started later. The flag "--volume=NAME:/path" mounts it.
func Volume(t testing.TB) (name string) {
	t.Helper()
	used.Store(true)
	name = must(t, append([]string{"volume", "create"}, labels()...)...)
	t.Cleanup(func() {
		if r, err := docker("volume", "rm", "--force", name); err != nil || r.Code != 0 {
			t.Errorf("cannot remove volume %.12s: %v %s", name, err, r.Stderr)
		}
	})
	return name
}

// Save writes an image under a name into an archive that other engines can
// load. The engine has that name only meanwhile.
func Save(t testing.TB, image, name, archive string) {
	t.Helper()
	must(t, "tag", image, name)
	defer must(t, "rmi", "--no-prune", name)
	must(t, "save", "--output", archive, name)
}

// Options say what to run.
type Options struct {
	Image   string
	Flags   []string // for docker run, before the image, such as "--memory=512m"
	Args    []string // after the image: the container's command
	Publish []int    // ports of the container to publish on 127.0.0.1
}

func (o Options) args(t testing.TB, first ...string) []string {
	t.Helper()
	args := append(append([]string{"run", "--network", ownNetwork(t)}, labels()...), first...)
	for _, port := range o.Publish {
		args = append(args, "--publish", fmt.Sprintf("127.0.0.1::%d", port))
	}
	args = append(args, o.Flags...)
	return append(append(args, o.Image), o.Args...)
}

// Once runs a container in the foreground to its end and removes it: what
// "docker run --rm" shows a user. Code is the container's exit code.
func Once(t testing.TB, o Options) Result {
	t.Helper()
	used.Store(true)
	r, err := docker(o.args(t, "--rm")...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Container is a running container, or one that has ended.
type Container struct {
	ID string
	t  testing.TB
}

// Run starts a container in the background and removes it, with its log shown
// if the test failed, when the test ends.
func Run(t testing.TB, o Options) *Container {
	t.Helper()
	used.Store(true)
	c := &Container{ID: must(t, o.args(t, "--detach")...), t: t}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of container %.12s:\n%s", c.ID, c.Logs())
		}
		if r, err := docker("rm", "--force", "--volumes", c.ID); err != nil || r.Code != 0 {
			t.Errorf("cannot remove container %.12s: %v %s", c.ID, err, r.Stderr)
		}
	})
	return c
}

// Address returns where a published port is reached, such as
// "127.0.0.1:32768".
func (c *Container) Address(port int) string {
	c.t.Helper()
	address, _, _ := strings.Cut(must(c.t, "port", c.ID, strconv.Itoa(port)), "\n")
	return address
}

// URL returns "http://" and Address.
func (c *Container) URL(port int) string {
	c.t.Helper()
	return "http://" + c.Address(port)
}

// Exec runs a command in the container.
func (c *Container) Exec(args ...string) Result {
	c.t.Helper()
	r, err := docker(append([]string{"exec", c.ID}, args...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// Logs returns what the container has printed so far on both outputs: stdout
// first, then stderr.
func (c *Container) Logs() string {
	c.t.Helper()
	r, err := docker("logs", c.ID)
	if err != nil {
		return err.Error()
	}
	return r.Stdout + r.Stderr
}

// WaitLog waits until a line of the container's output matches the expression
// count times, and fails the test when the container ends or the time is over
// before. It returns the matches.
func (c *Container) WaitLog(expression string, count int, within time.Duration) []string {
	c.t.Helper()
	re := regexp.MustCompile(expression)
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", "logs", "--follow", c.ID)
	cmd.WaitDelay = time.Second
	w := &matcher{re: re, want: count, found: cancel}
	cmd.Stdout, cmd.Stderr = w.stream(), w.stream()
	_ = cmd.Run() // it ends by the cancel, or with the container
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.matches) < count {
		c.t.Fatalf("the log has %d lines like %q, want %d within %v", len(w.matches), expression, count, within)
	}
	return w.matches
}

// matcher looks through lines as they come and calls found when it has seen
// enough of them.
type matcher struct {
	re    *regexp.Regexp
	want  int
	found func()

	mu      sync.Mutex
	matches []string
}

func (m *matcher) stream() *lineWriter { return &lineWriter{m: m} }

type lineWriter struct {
	m    *matcher
	rest []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		line, rest, whole := bytes.Cut(w.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		w.rest = rest
		if w.m.re.Match(line) {
			w.m.mu.Lock()
			w.m.matches = append(w.m.matches, string(line))
			enough := len(w.m.matches) >= w.m.want
			w.m.mu.Unlock()
			if enough {
				w.m.found()
			}
		}
	}
}

// State is what the engine says of a container.
type State struct {
	Status    string // "running", "exited", …
	Running   bool
	OOMKilled bool
	Pid       int // of its first process, as this machine numbers it
	ExitCode  int
}

// State asks the engine.
func (c *Container) State() State {
	c.t.Helper()
	var s State
	out := must(c.t, "inspect", "--format", "{{json .State}}", c.ID)
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		c.t.Fatalf("cannot read the state of container %.12s: %v", c.ID, err)
	}
	return s
}

// Stop does as "docker stop" with its own default of 10 seconds before KILL,
// and returns how long the container took and its exit code. Telling the
// engine itself takes part of that time.
func (c *Container) Stop() (took time.Duration, code int) {
	c.t.Helper()
	r, err := docker("stop", c.ID)
	if err != nil || r.Code != 0 {
		c.t.Fatalf("docker stop: %v, exit code %d: %s", err, r.Code, r.Stderr)
	}
	return r.Took, c.State().ExitCode
}

// Restart stops the container and starts it again, as after a crash of its own.
func (c *Container) Restart() {
	c.t.Helper()
	must(c.t, "restart", c.ID)
}

// Update changes limits while the container runs, as "docker update" with these
// flags does.
func (c *Container) Update(flags ...string) {
	c.t.Helper()
	must(c.t, append(append([]string{"update"}, flags...), c.ID)...)
}

// Kill sends a signal, by name or number, to the container's first process.
func (c *Container) Kill(signal string) {
	c.t.Helper()
	must(c.t, "kill", "--signal", signal, c.ID)
}

// Wait waits for the container to end and returns its exit code.
func (c *Container) Wait(within time.Duration) int {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", "wait", c.ID)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("container %.12s did not end within %v: %v", c.ID, within, err)
	}
	code, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		c.t.Fatalf("docker wait: %v", err)
	}
	return code
}

// Process is one process of a container.
type Process struct {
	HostPid int    // as this machine numbers it
	Parent  int    // likewise
	State   string // as ps prints it: Z is a zombie
	Command string
}

// Processes returns what runs in the container, seen from outside: it works in
// images that have no program but their own.
func (c *Container) Processes() []Process {
	c.t.Helper()
	lines := strings.Split(must(c.t, "top", c.ID, "-eo", "pid,ppid,stat,args"), "\n")
	var ps []Process
	for _, line := range lines[1:] {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			c.t.Fatalf("cannot read %q of docker top", line)
		}
		pid, err1 := strconv.Atoi(fields[0])
		ppid, err2 := strconv.Atoi(fields[1])
		if err := errors.Join(err1, err2); err != nil {
			c.t.Fatalf("cannot read %q of docker top: %v", line, err)
		}
		ps = append(ps, Process{pid, ppid, fields[2], strings.Join(fields[3:], " ")})
	}
	return ps
}
