package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/internal/testneed"
)

// healthy runs testdata/blocking/health.py under skep; tell makes a slot well, or
// ill again.
func healthy(t *testing.T, where string, flags []string, more ...string) (url string, said func() string, tell func(slot string, well bool)) {
	t.Helper()
	dir := t.TempDir()
	command := append([]string{testneed.Program(t, "/usr/bin/python3"), filepath.Join(root, "testdata", "blocking", "health.py"), where, dir}, more...)
	url, said = underSkep(t, append([]string{"--ready", "http:/healthz", "--log-level", "debug"}, flags...), command...)
	return url, said, func(slot string, well bool) {
		t.Helper()
		name := filepath.Join(dir, slot)
		err := os.Remove(name)
		if well {
			err = os.WriteFile(name, nil, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Each worker is ready when its own /healthz says so, through the one port; until
// then it gets nothing else.
func TestReadyByHTTP(t *testing.T) {
	for name, c := range map[string]struct {
		where string
		flags []string
		more  []string
	}{
		"bind":     {"PORT", []string{"-w", "3"}, nil},
		"wildcard": {"PORT", []string{"-w", "3"}, []string{"0.0.0.0"}},
		"passed":   {"fd", []string{"-w", "3", "--listen", "[::]:PORT"}, nil},
		"discover": {"PORT", []string{"--share-port", "PORT", "--min-workers", "3", "--worker-memory", "1M"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			url, said, tell := healthy(t, c.where, c.flags, c.more...)
			if name == "discover" {
				tell("0", true) // the first one shows that there are to be more
			}
			untilSaid(t, said, "waiting for http://127.0.0.1:", 2, time.Minute)
			tell("1", true)
			first := untilSaid(t, said, `worker ready slot=1 pid=\d+`, 1, time.Minute)[0]
			first = first[strings.LastIndex(first, "=")+1:]
			if name == "discover" {
				return
			}
			absent(t, said, "worker ready slot=[02]", time.Second)
			for range 20 {
				if pid, err := whoAnswers(url, 10*time.Second); err != nil || pid != first {
					t.Fatalf("%q answers, want %q, %v", pid, first, err)
				}
			}
			tell("0", true)
			tell("2", true)
			untilSaid(t, said, "worker ready", 3, time.Minute)
		})
	}
}

// A reload keeps the old worker until the new one's own /healthz is well.
func TestReloadWaitsForHTTP(t *testing.T) {
	url, said, tell := healthy(t, "PORT", []string{"-w", "1"})
	untilSaid(t, said, "worker listens", 1, time.Minute)
	tell("0", true)
	untilSaid(t, said, "worker ready", 1, time.Minute)
	old, err := whoAnswers(url, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	tell("0", false)
	signalSkep(t, said, unix.SIGHUP)
	untilSaid(t, said, "waiting for http", 2, time.Minute)
	absent(t, said, "worker ended", time.Second)
	if pid, err := whoAnswers(url, 10*time.Second); err != nil || pid != old {
		t.Errorf("%q answers, want the old worker %q, %v", pid, old, err)
	}
	tell("0", true)
	untilSaid(t, said, "worker ready", 2, time.Minute)
	untilSaid(t, said, "worker ended.*cause=reload", 1, time.Minute)
	if pid, err := whoAnswers(url, 10*time.Second); err != nil || pid == old {
		t.Errorf("%q answers, want the new worker, %v", pid, err)
	}
}

// One that is never well is a failed start, and nobody goes on asking.
func TestNeverWell(t *testing.T) {
	_, said, _ := healthy(t, "PORT", []string{"-w", "2", "--start-timeout", "2s"})
	untilSaid(t, said, "worker not ready in time", 1, time.Minute)
	untilSaid(t, said, `worker ended slot=\d .*cause=start-timeout`, 1, time.Minute)
}

// A worker that is killed while it is asked takes its prober with it, and the
// next one is asked anew.
func TestAskedAnewAfterACrash(t *testing.T) {
	_, said, tell := healthy(t, "PORT", []string{"-w", "2", "--restart", "always", "--restart-delay", "100ms"})
	untilSaid(t, said, "waiting for http", 2, time.Minute)
	started := untilSaid(t, said, `worker started slot=1 pid=\d+`, 1, time.Minute)[0]
	kill(t, started[strings.LastIndex(started, "=")+1:])
	untilSaid(t, said, "waiting for http", 3, time.Minute)
	absent(t, said, "worker ready", 500*time.Millisecond)
	tell("1", true)
	untilSaid(t, said, "worker ready slot=1", 1, time.Minute)
}

// Where nobody can be asked it is said in a line, and the service starts.
func TestCannotBeAsked(t *testing.T) {
	_, said := underSkep(t, []string{"-w", "2", "--ready", "http:/"}, testneed.Program(t, "/usr/bin/python3"), "-c", `
import socket
s = socket.socket(socket.AF_INET6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
s.bind(("::1", PORT))
s.listen()
while True:
    s.accept()[0].close()
`)
	untilSaid(t, said, `cannot ask the worker over HTTP; it counts as ready without slot=\d why="IPv4 does not reach`, 2, time.Minute)
	untilSaid(t, said, "worker ready", 2, time.Minute)
}
