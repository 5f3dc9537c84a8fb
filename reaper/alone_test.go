package reaper

import (
	"bytes"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/internal/sys"

	"skep/internal/testneed"
	"skep/launch"
)

const aloneName = "REAPER_TEST_ALONE"

// patience bounds every wait of these tests.
const patience = 30 * time.Second

// alone runs the body in a process of its own that is a subreaper and whose
// only caller of wait4 is the body: both are properties of a whole process, so
// the one that runs the other tests can have neither. more is added to the
// environment.
func alone(t *testing.T, body func(t *testing.T), more ...string) {
	t.Helper()
	if os.Getenv(aloneName) == t.Name() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			t.Fatalf("cannot become a subreaper: %v", err)
		}
		body(t)
		return
	}
	testneed.Program(t, "/bin/sh")
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=120s")
	cmd.Env = append(os.Environ(), append(more, aloneName+"="+t.Name())...)
	if testing.Short() {
		cmd.Args = append(cmd.Args, "-test.short")
	}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP")):
		testneed.Skip(t, "%s", out)
	case !bytes.Contains(out, []byte("--- PASS: "+t.Name())):
		t.Fatalf("the test did not run:\n%s", out)
	}
	for _, line := range strings.Split(string(out), "\n") {
		if strings.HasPrefix(line, "    ") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// house is a table with what its Reap has told.
type house struct {
	*testing.T
	*Table
	chld     chan os.Signal
	exits    map[int][]Exit
	stops    map[int][]int
	ignore   bool // stops are not asked for
	children bool
}

func newHouse(t *testing.T) *house {
	sys.StopIgnoring(32) // left ignored by posix_spawn of glibc, under make
	sys.StopIgnoring(33)
	h := &house{T: t, Table: NewTable(), chld: make(chan os.Signal, 1), exits: map[int][]Exit{}, stops: map[int][]int{}}
	signal.Notify(h.chld, unix.SIGCHLD)
	t.Cleanup(func() {
		signal.Stop(h.chld)
		h.Sweep(os.Getpid(), int(unix.SIGKILL))
		h.until("all children are gone", func() bool { return !h.children })
		if h.Len() != 0 {
			t.Errorf("%d processes are left in the table", h.Len())
		}
	})
	return h
}

// until reaps, again with every SIGCHLD, until done.
func (h *house) until(what string, done func() bool) {
	h.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	again := time.NewTicker(50 * time.Millisecond) // a sweep may have missed a fork
	defer again.Stop()
	for {
		stopped := func(pid, sig int) { h.stops[pid] = append(h.stops[pid], sig) }
		if h.ignore {
			stopped = nil
		}
		h.children = h.Reap(func(e Exit) { h.exits[e.PID] = append(h.exits[e.PID], e) }, stopped)
		if done() {
			return
		}
		select {
		case <-h.chld:
		case <-again.C:
		case <-deadline.C:
			h.Fatalf("after %v it is still not so: %s", patience, what)
		}
	}
}

// shell is a Command that runs a script with skep's descriptors 0, 1 and 2 and
// more from 3 on.
func shell(script string, files ...*os.File) Command {
	c := Command{Command: launch.Command{
		Path: "/bin/sh", Argv: []string{"sh", "-c", script}, Env: os.Environ(), Terminal: -1,
		Files: []uintptr{0, 1, 2},
	}}
	for _, f := range files {
		c.Files = append(c.Files, f.Fd())
	}
	return c
}

func (h *house) start(c Command) int {
	h.Helper()
	p, err := h.Start(c)
	if err != nil {
		h.Fatal(err)
	}
	return p.PID
}

func (h *house) run(script string) Exit {
	h.Helper()
	pid := h.start(shell(script))
	h.until("the script has ended", func() bool { return len(h.exits[pid]) > 0 })
	e := h.exits[pid][0]
	delete(h.exits, pid)
	return e
}

// up is a pipe on which a script says "up" by ">&3".
func (h *house) up() (script *os.File, wait func(n int)) {
	h.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { r.Close(); w.Close() })
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		h.Fatal(err)
	}
	return w, func(n int) {
		h.Helper()
		for left := 3 * n; left > 0; {
			got, err := r.Read(make([]byte, left))
			if err != nil {
				h.Fatal(err)
			}
			left -= got
		}
	}
}

func alive(pid int) bool { return unix.Kill(pid, 0) == nil }
