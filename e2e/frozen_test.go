package e2e

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// freeAddress is an address of 127.0.0.1 where nobody listens.
func freeAddress(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// runSkep runs a command under skep with these flags, in the folder of the
// programs, until the test ends. It returns what skep and the command have said
// so far.
func runSkep(t *testing.T, flags []string, command ...string) (said func() string) {
	t.Helper()
	var log lockedBuffer
	cmd := exec.Command(filepath.Join(root, "build", "skep"), slices.Concat(flags, []string{"--"}, command)...)
	cmd.Dir = programs
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stdout, cmd.Stderr = &log, &log
	return follow(t, cmd, &log)
}

// ready waits until skep has said of so many workers that they are ready.
func ready(t *testing.T, said func() string, workers int) {
	t.Helper()
	untilSaid(t, said, "worker ready", workers, 60*time.Second)
}

// froze is what clients saw of a worker that was stopped, and killed later.
type froze struct {
	requests        []request
	stopped, killed time.Time
	held            int // connections it had accepted
	old             map[int]int
	victim          int
}

// freeze sends 200 connections a second to four workers, stops one of them for 3 s
// and kills it.
func freeze(t *testing.T, flags ...string) (f froze) {
	t.Helper()
	const (
		rate   = 200
		lead   = time.Second
		frozen = 3 * time.Second
		after  = 3 * time.Second
	)
	address := freeAddress(t)
	url := "http://" + address
	said := runSkep(t, append([]string{"-w", "4"}, flags...), filepath.Join(root, "build", "hello"), "-addr", address)
	ready(t, said, 4)
	f.old = pids(askMany(url, 200))
	if len(f.old) != 4 {
		t.Fatalf("answers by pid %v, want four workers", f.old)
	}
	for pid := range f.old {
		f.victim = pid
	}
	load := make(chan []request)
	go func() { load <- openLoop(url, rate, lead+frozen+after) }()
	<-time.After(lead)
	if err := syscall.Kill(f.victim, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	f.stopped = time.Now()
	<-time.After(frozen)
	f.killed, f.held = killHolding(t, f.victim)
	f.requests = <-load
	return f
}

// waited tells who waited for the frozen worker: how many requests that began while
// it was stopped were answered after its kill, and how long after the first of them
// the last one began.
func (f *froze) waited() (n int, over time.Duration) {
	var first, last time.Time
	for _, r := range f.requests {
		if r.err == nil && r.start.Before(f.killed) && r.end.After(f.killed) && f.old[r.pid] == 0 {
			if n++; n == 1 {
				first = r.start
			}
			last = r.start
		}
	}
	return n, last.Sub(first)
}

// A worker that is stopped, as by a debugger or a full disk, and killed 3 s later
// costs nobody anything but those whose connections it had accepted, and those few
// that came to it before its queue was seen, whom its successor answers.
func TestFrozenWorkerIsLeftAlone(t *testing.T) {
	f := freeze(t)
	n, over := f.waited()
	lost := 0
	for _, r := range f.requests {
		if r.err != nil {
			lost++
		}
	}
	t.Logf("%d requests, %d lost, the frozen worker had accepted %d; %d waited for its successor, which came within %v of each other",
		len(f.requests), lost, f.held, n, over)
	if err := lostOnlyInFlight(f.requests, f.killed, f.held); err != nil {
		t.Error(err)
	}
	// 10 ms is what is promised.
	if over > 20*time.Millisecond {
		t.Errorf("connections were given to the worker for %v after the first was in its queue", over)
	}
	if n == 0 && f.held == 0 { // one that it had accepted, and that is lost, shows it as well
		t.Error("nobody waited, so nothing was shown")
	}
	// The detector can fail: the kernel's hash goes on giving a quarter to it.
	f = freeze(t, "--balance", "hash")
	if n, over := f.waited(); over < time.Second {
		t.Errorf("with the kernel's hash only %d waited, for %v", n, over)
	}
}
