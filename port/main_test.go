package port_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
	"skep/internal/testneed"
	"skep/launch"
	"skep/port"
)

// TestMain makes the test binary two things: the tests, and the programs of roles_test.go.
func TestMain(m *testing.M) {
	if name := os.Getenv("SKEP_TEST_ROLE"); name != "" {
		play(name)
	}
	// Orphans of workers stay below the tests, as they stay below skep.
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	os.Exit(m.Run())
}

// patience is how long a test waits for an event that is certain to come on a machine that does anything at all.
const patience = 20 * time.Second

// hive is a small skep: a loop goroutine that owns a Set, and workers with the filter.
type hive struct {
	t       *testing.T
	ctx     context.Context
	asks    chan *port.Ask
	notify  []int // where the next worker itself sends its listener, and its end; see oldKernel
	calls   chan func(*port.Set)
	hangups chan port.Hangup

	mu      sync.Mutex
	facts   []port.Fact
	changed chan struct{} // closed and replaced on every new fact
	loops   sync.WaitGroup
}

func newHive(t *testing.T, options port.Options) *hive {
	t.Helper()
	set, err := port.NewSet(options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h := &hive{
		t: t, ctx: ctx,
		asks: make(chan *port.Ask), calls: make(chan func(*port.Set)), hangups: make(chan port.Hangup),
		changed: make(chan struct{}),
	}
	h.loops.Add(2)
	go func() {
		defer h.loops.Done()
		_ = set.Watch(ctx, h.hangups)
	}()
	go func() {
		defer h.loops.Done()
		for {
			select {
			case a := <-h.asks:
				h.note(set.Answer(a))
			case hangup := <-h.hangups:
				fact, err := set.Relisten(hangup)
				if err != nil {
					t.Errorf("Relisten: %v", err)
				}
				h.note(fact)
			case call := <-h.calls:
				call(set)
			case <-ctx.Done():
				set.CloseAll()
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		h.loops.Wait()
	})
	return h
}

// do runs f in the loop.
func (h *hive) do(f func(*port.Set)) {
	done := make(chan struct{})
	h.calls <- func(s *port.Set) {
		defer close(done)
		f(s)
	}
	<-done
}

func (h *hive) note(f port.Fact) {
	if f == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.facts = append(h.facts, f)
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *hive) all() []port.Fact {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.facts)
}

// wait returns the first fact from index from on that match accepts, and the index after it.
func (h *hive) wait(from int, what string, match func(port.Fact) bool) (port.Fact, int) {
	h.t.Helper()
	deadline := time.After(patience)
	for {
		h.mu.Lock()
		facts, changed := h.facts, h.changed
		h.mu.Unlock()
		for i := from; i < len(facts); i++ {
			if match(facts[i]) {
				return facts[i], i + 1
			}
		}
		select {
		case <-changed:
		case <-deadline:
			h.t.Fatalf("no fact %s; facts: %+v", what, facts)
		}
	}
}

// listening waits until the worker's slot has listened n times in all.
func (h *hive) listening(slot, times int) {
	h.t.Helper()
	from := 0
	for range times {
		_, from = h.wait(from, fmt.Sprintf("Listening in slot %d (%d times)", slot, times), func(f port.Fact) bool {
			l, ok := f.(port.Listening)
			return ok && l.Slot == slot
		})
	}
}

// worker is a process behind the stub.
type worker struct {
	t    *testing.T
	pid  int
	out  *output
	done chan struct{} // closed when Intercept has ended
	wait func() syscall.WaitStatus
}

// output collects what a worker writes.
type output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.changed)
	o.changed = make(chan struct{})
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// outputs is how many workers' outputs are open.
var outputs atomic.Int32

// says waits until the worker has written text.
func (w *worker) says(text string) {
	w.t.Helper()
	deadline := time.After(patience)
	for {
		w.out.mu.Lock()
		got, changed := w.out.text.String(), w.out.changed
		w.out.mu.Unlock()
		if strings.Contains(got, text) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			w.t.Fatalf("the worker did not say %q but %q", text, got)
		}
	}
}

// kill ends the worker and waits for its end.
func (w *worker) kill(sig syscall.Signal) syscall.WaitStatus {
	_ = syscall.Kill(w.pid, sig)
	return w.wait()
}

// environment is what workers of a test get.
func environment(extra ...string) []string {
	return append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1"}, extra...)
}

// spawn starts argv in a slot with the filter.
func (h *hive) spawn(slot int, argv []string, change ...func(*launch.Command)) *worker {
	h.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		h.t.Fatal(err)
	}
	c := launch.Command{Argv: argv, Env: environment(), Files: []uintptr{null.Fd(), w.Fd(), w.Fd()}, Terminal: -1, Filter: true}
	if c.Path, err = launch.LookPath(argv[0], ""); err != nil {
		h.t.Fatal(err)
	}
	for _, f := range change {
		f(&c)
	}
	p, err := launch.Start(&c)
	_, _ = w.Close(), null.Close()
	if err != nil {
		h.t.Fatal(err)
	}
	pid, listener, filter := p.PID, p.Listener, c.Filter
	if h.notify != nil {
		filter = true
		p.NoListener = sys.RetryEINTR(func() (err error) {
			if _, err = sys.Poll(h.notify[0], unix.POLLIN, int(patience.Milliseconds())); err == nil {
				_, listener, err = sys.ReceiveDescriptor(h.notify[0], make([]byte, 1))
			}
			return err
		})
		_, _ = unix.Close(h.notify[0]), unix.Close(h.notify[1])
		h.notify = nil
	}
	worker := &worker{t: h.t, pid: pid, out: &output{changed: make(chan struct{})}, done: make(chan struct{})}
	outputs.Add(1)
	go func() {
		_, _ = io.Copy(worker.out, r)
		_ = r.Close()
		outputs.Add(-1)
	}()
	worker.wait = sync.OnceValue(func() (status syscall.WaitStatus) {
		_ = sys.RetryEINTR(func() error {
			_, err := syscall.Wait4(pid, &status, 0, nil)
			return err
		})
		return status
	})
	go func() {
		defer close(worker.done)
		if !filter || p.NoListener != nil {
			h.note(lost{slot: slot, err: p.NoListener})
			return
		}
		if err := port.Intercept(h.ctx, listener, slot, h.asks); err != nil && !errors.Is(err, context.Canceled) {
			h.t.Errorf("Intercept: %v", err)
		}
	}()
	h.t.Cleanup(func() {
		worker.kill(syscall.SIGKILL)
		if h.t.Failed() {
			h.t.Logf("worker %d of slot %d said:\n%s", pid, slot, worker.out)
		}
	})
	return worker
}

// lost is the fact that no listener came.
type lost struct {
	port.Fact
	slot int
	err  error
}

// role is the command line of a program in roles_test.go.
func role(name string, args ...string) ([]string, func(*launch.Command)) {
	argv := append([]string{"/proc/self/exe"}, args...)
	return argv, func(c *launch.Command) { c.Env = append(c.Env, "SKEP_TEST_ROLE="+name) }
}

// freePort returns a port that nobody listens on. It is below the range of ephemeral ports of the tests' own connections only by chance, so a test
// binds it soon.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// program returns the path of a program that the machine may lack.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := launch.LookPath(name, "/usr/sbin:/usr/bin:/sbin:/bin:"+os.Getenv("PATH"))
	if err != nil {
		testneed.Skip(t, "%v", err)
	}
	return path
}

// get makes an HTTP/1.0 request on a connection of its own and returns the whole response.
func get(address, path string) (string, error) {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	return ask(conn, path)
}

func ask(conn net.Conn, path string) (string, error) {
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.0\r\nHost: test\r\nConnection: close\r\n\r\n", path); err != nil {
		return "", err
	}
	all, err := io.ReadAll(conn)
	return string(all), err
}

// loopback is 127.0.0.1 with a port.
func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// eventually waits until condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}

// descriptors counts the open descriptors of the tests.
func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// folder returns a folder with these files, readable by every user.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		_ = os.Chmod(d, 0o755)
	}
	return dir
}
