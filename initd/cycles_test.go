package initd_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/internal/testneed"
	"skep/proc"
)

var cycles = flag.Int("cycles", 500, "how many workers TestCyclesLeakNothing kills")

// runCounted is skep that tells, for each byte of its input, what it has.
func runCounted(args []string) {
	go func() {
		for {
			if n, err := os.Stdin.Read(make([]byte, 1)); n == 0 || err != nil {
				return
			}
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			fds, _ := os.ReadDir("/proc/self/fd")
			threads, _ := os.ReadDir("/proc/self/task")
			fmt.Fprintln(os.Stderr, "counted", len(fds), runtime.NumGoroutine(), len(threads), m.HeapAlloc)
		}
	}()
	runSkep(args, nil)
}

// counted is what a skep of runCounted has.
type counted struct{ fds, goroutines, threads, heap, listeners int }

// TestCyclesLeakNothing kills workers, some before they are ready, and starts
// others in their place, over and over. In the end skep has as many descriptors,
// listening sockets, goroutines and as much memory as in the beginning. The
// full number is "make cycles".
func TestCyclesLeakNothing(t *testing.T) {
	gcc := testneed.Program(t, "gcc")
	tiny := filepath.Join(t.TempDir(), "tiny")
	if out, err := exec.Command(gcc, "-O1", "-Wall", "-Werror", "-static", "-o", tiny, "testdata/tiny.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const workers = 4
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	host, port, _ := strings.Cut(address, ":")
	input, feed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer feed.Close()
	s := start(t, []string{fmt.Sprint("workers=", workers), "restart=always", "restart-delay=1ms", "restart-max-delay=1ms", "start-limit=0"},
		[]string{tiny, host, port}, role("role:counted"), func(c *exec.Cmd) { c.Stdin = input })
	input.Close()

	// What skep says is read once, as it comes.
	alive, told := make(map[string]bool), 0
	next := func(deadline time.Time) (line string) {
		for {
			s.err.mu.Lock()
			more, over := s.err.more, s.err.over
			if told < len(s.err.text) {
				line = s.err.text[told]
				told++
			}
			s.err.mu.Unlock()
			if line != "" {
				return line
			}
			if over {
				t.Fatal("skep has ended")
			}
			select {
			case <-more:
			case <-time.After(time.Until(deadline)):
				t.Fatal("skep says nothing any more")
			}
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	killed, early, chance := 0, 0, 0
	// watch follows the workers until so many have been killed and all are ready again.
	watch := func(until int) {
		for pid := range alive {
			n, err := strconv.Atoi(pid)
			if err != nil {
				t.Fatal(err)
			}
			delete(alive, pid)
			_ = unix.Kill(n, unix.SIGKILL)
			killed++
		}
		for killed < until || len(alive) < workers {
			line := next(time.Now().Add(patience))
			pid := ""
			for _, word := range strings.Fields(line) {
				if value, found := strings.CutPrefix(word, "pid="); found {
					pid = value
				}
			}
			kill := false
			switch {
			case strings.Contains(line, "worker ready"):
				alive[pid] = true
				kill = killed < until
			case strings.Contains(line, "worker started"):
				if kill = killed < until && r.IntN(100) < chance; kill {
					early++
				}
			case strings.Contains(line, "worker ended"):
				delete(alive, pid)
			}
			if n, err := strconv.Atoi(pid); kill && err == nil {
				delete(alive, pid)
				_ = unix.Kill(n, unix.SIGKILL)
				killed++
			}
		}
	}
	count := func() (c counted) {
		if _, err := feed.Write([]byte{'?'}); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(patience); ; {
			if line := next(deadline); strings.HasPrefix(line, "counted ") {
				if _, err := fmt.Sscanf(line, "counted %d %d %d %d", &c.fds, &c.goroutines, &c.threads, &c.heap); err != nil {
					t.Fatal(err)
				}
				break
			}
		}
		listeners, err := proc.FS("/proc").Listeners(s.cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		c.listeners = len(listeners)
		return c
	}
	// settled counts until nothing has changed for a second: the last goroutines of
	// a killed worker end a moment after its successor is ready.
	settled := func() (c counted) {
		since := time.Now()
		for deadline := since.Add(patience); time.Since(since) < time.Second && time.Now().Before(deadline); {
			time.Sleep(20 * time.Millisecond)
			now := count()
			if now.fds != c.fds || now.goroutines != c.goroutines {
				since = time.Now()
			}
			c = now
		}
		return c
	}

	watch(*cycles / 10) // buffers grow to their size
	before := settled()
	chance = 20
	begun := time.Now()
	watch(*cycles)
	took := time.Since(begun)
	chance = 0
	watch(*cycles + workers) // the last ones as ordinary as those of before
	after := settled()
	t.Logf("%d killed, %d of them before they were ready, in %v: before %+v, after %+v", killed, early, took, before, after)
	if early < *cycles/20 {
		t.Errorf("only %d were killed before they were ready", early)
	}
	if after.fds > before.fds || after.goroutines > before.goroutines || after.listeners != workers || before.listeners != workers {
		t.Errorf("before %+v, after %+v, of which %d listeners are right", before, after, workers)
	}
	if grown := after.heap - before.heap; grown > 256<<10 {
		t.Errorf("%d bytes more are in use", grown)
	}
	if after.threads > before.threads+2 {
		t.Errorf("%d threads became %d", before.threads, after.threads)
	}
	if got := askUntil(t, address, 2); len(got) < 2 {
		t.Errorf("%q answer", got)
	}
	s.signal(unix.SIGTERM)
	s.ended(0)
}
