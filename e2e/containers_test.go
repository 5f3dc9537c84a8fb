package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"skep/internal/dockertest"
	"skep/internal/testneed"
)

// The engine's own stop deadline is 10 s. skep ends servers that are idle far
// below a second; the bound is twice that, for a machine that does other things
// as well. What was measured is logged.
const stopBound = 2 * time.Second

// workers is how many every replicated story runs.
const workers = 3

// buildOn builds Dockerfile.test on a base that has to be there.
func buildOn(t *testing.T, base string) string {
	t.Helper()
	testneed.Docker(t)
	if base != "scratch" && !dockertest.HasImage(t, base) {
		testneed.Skip(t, "needs the image %s (make images)", base)
	}
	return dockertest.Build(t, root, "Dockerfile.test", "BASE="+base)
}

// The three kinds of image that the stories run: skep before real servers, in
// an ordinary Debian, and with nothing beside it but a static server.
func serversImage(t *testing.T) string { t.Helper(); return buildOn(t, "skep-test/servers:bookworm") }
func debianImage(t *testing.T) string  { t.Helper(); return buildOn(t, "debian:bookworm-slim") }
func scratchImage(t *testing.T) string { t.Helper(); return buildOn(t, "scratch") }

// uvicorn is the command line of an application's author, who knows nothing of
// skep.
var uvicorn = []string{"uvicorn", "app:app", "--host", "0.0.0.0", "--port", "8000"}

// hostPid finds a process of the container by the number it has inside.
func hostPid(t *testing.T, c *dockertest.Container, inside int) int {
	t.Helper()
	for _, p := range c.Processes() {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.HostPid))
		if err != nil {
			continue // it has ended meanwhile
		}
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "NSpid:" && f[len(f)-1] == strconv.Itoa(inside) {
				return p.HostPid
			}
		}
	}
	t.Fatalf("no process of container %.12s has the pid %d inside", c.ID, inside)
	return 0
}

// gone tells whether no process has that pid, or only a zombie.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(after, "Z") || strings.HasPrefix(after, "X")
}

// accepted counts the TCP connections that a process holds: sockets of its own
// that its network namespace lists and that do not listen.
func accepted(t *testing.T, pid int) int {
	t.Helper()
	connected := map[string]bool{}
	for _, name := range []string{"tcp", "tcp6"} {
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, name))
		if err != nil {
			continue // a kernel without IPv6
		}
		for line := range strings.Lines(string(table)) {
			// proc(5): sl local remote st … uid timeout inode
			f := strings.Fields(line)
			if len(f) > 9 && f[3] != "0A" && f[9] != "0" {
				connected["socket:["+f[9]+"]"] = true
			}
		}
	}
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && connected[to] {
			count++
		}
	}
	return count
}

// killHolding ends a process at once and returns when it was gone and how many
// connections it held then. It is stopped first, so that the count stands.
func killHolding(t *testing.T, pid int) (died time.Time, held int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatalf("cannot stop process %d: %v", pid, err)
	}
	held = accepted(t, pid)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("cannot kill process %d: %v", pid, err)
	}
	for deadline := time.Now().Add(10 * time.Second); !gone(pid); {
		if time.Now().After(deadline) {
			t.Fatalf("process %d is there 10 s after its kill", pid)
		}
		time.Sleep(100 * time.Microsecond)
	}
	return time.Now(), held
}

// crashUnderLoad kills the worker victim while rate connections a second come
// in, and returns the requests, when it died, and how many connections it held.
func crashUnderLoad(t *testing.T, c *dockertest.Container, url string, victim int) (requests []request, died time.Time, held int) {
	t.Helper()
	const (
		rate   = 120
		length = 5 * time.Second
		before = time.Second
	)
	pid := hostPid(t, c, victim)
	load := make(chan []request)
	go func() { load <- openLoop(url, rate, length) }()
	<-time.After(before)
	died, held = killHolding(t, pid)
	return <-load, died, held
}

// replaced tells whether somebody answered who was not there before, and
// nobody but the survivors and that one.
func replaced(requests []request, before map[int]int, victim int) func([]request) bool {
	return func(seen []request) bool {
		for _, r := range slices.Concat(requests, seen) {
			if r.err == nil && before[r.pid] == 0 {
				return true
			}
		}
		return false
	}
}

// serveCrashStop is the life of a replicated server: connections are spread, a
// killed worker costs only what it had accepted, a stop is quick and clean.
func serveCrashStop(t *testing.T, c *dockertest.Container, port int, slow string) {
	url := c.URL(port)
	waitFor(t, url, 60*time.Second, fmt.Sprintf("%d workers", workers), func(seen []request) bool {
		return len(pids(seen)) == workers
	})
	var before map[int]int

	if !t.Run("400 connections", func(t *testing.T) {
		requests := askMany(url, 400)
		if err := spread(requests, workers); err != nil {
			t.Fatal(err)
		}
		before = pids(requests)
		t.Logf("answers by pid: %v, slowest %v", before, slowest(requests))
	}) {
		return
	}

	t.Run("a worker is killed under load", func(t *testing.T) {
		var victim int
		for pid := range before {
			victim = pid
			break
		}
		requests, died, held := crashUnderLoad(t, c, url+slow, victim)
		lost := 0
		for _, r := range requests {
			if r.err != nil {
				lost++
			}
		}
		t.Logf("%d requests, %d lost, the killed worker held %d connections; slowest answer %v",
			len(requests), lost, held, slowest(requests))
		if err := lostOnlyInFlight(requests, died, held); err != nil {
			t.Error(err)
		}
		waitFor(t, url, 30*time.Second, "the replacement", replaced(requests, before, victim))
		waitFor(t, url, 30*time.Second, fmt.Sprintf("%d workers again", workers), func(seen []request) bool {
			recent := seen[max(0, len(seen)-100):]
			count := pids(recent)
			return len(count) == workers && count[victim] == 0
		})
	})

	t.Run("stop", func(t *testing.T) {
		processes := c.Processes()
		if len(processes) < workers+1 {
			t.Errorf("%d processes before the stop, want skep and %d workers: %+v", len(processes), workers, processes)
		}
		for _, p := range processes {
			if strings.HasPrefix(p.State, "Z") {
				t.Errorf("zombie %+v", p)
			}
		}
		took, code := c.Stop()
		t.Logf("docker stop took %v, exit code %d", took, code)
		if took > stopBound {
			t.Errorf("docker stop took %v, want at most %v", took, stopBound)
		}
		if code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
		for _, p := range processes {
			if !gone(p.HostPid) {
				t.Errorf("process %d (%s) is still there", p.HostPid, p.Command)
			}
		}
	})
}

// TestUvicorn runs an unmodified FastAPI application under its own command
// line, with nothing but the number of workers said.
func TestUvicorn(t *testing.T) {
	testneed.Root(t) // to see and kill a worker from outside
	image := serversImage(t)
	t.Run("by environment", func(t *testing.T) {
		c := dockertest.Run(t, dockertest.Options{
			Image:   image,
			Flags:   []string{"--memory=512m", "--env=SKEP_WORKERS=3"},
			Args:    uvicorn,
			Publish: []int{8000},
		})
		serveCrashStop(t, c, 8000, "/sleep?s=0.1")
		if log := c.Logs(); strings.Count(log, "Finished server process") < workers {
			t.Errorf("uvicorn ended by itself fewer than %d times:\n%s", workers, log)
		}
	})
	t.Run("by flag", func(t *testing.T) {
		c := dockertest.Run(t, dockertest.Options{
			Image:   image,
			Flags:   []string{"--memory=512m", "--entrypoint=/skep"},
			Args:    append([]string{"-w", "3"}, uvicorn...),
			Publish: []int{8000},
		})
		waitFor(t, c.URL(8000), 60*time.Second, "3 workers", func(seen []request) bool { return len(pids(seen)) == 3 })
		if _, code := c.Stop(); code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
	})
}

// TestScratch runs skep where there is nothing else, and may do nothing else:
// no shell, no files to write, an ordinary user, no capability.
func TestScratch(t *testing.T) {
	testneed.Root(t)
	c := dockertest.Run(t, dockertest.Options{
		Image: scratchImage(t),
		Flags: []string{
			"--memory=512m", "--env=SKEP_WORKERS=3", "--read-only", "--user=1000",
			"--cap-drop=ALL", "--security-opt=no-new-privileges",
		},
		Args:    []string{"/hello"},
		Publish: []int{8000},
	})
	serveCrashStop(t, c, 8000, "/sleep?for=100ms")
}

// TestDetectorsSeeAPlainInit runs the same application under an ordinary init,
// one process: the stories above must fail there. The container outlives the
// server, so that what comes after its death is refused at once.
func TestDetectorsSeeAPlainInit(t *testing.T) {
	testneed.Root(t)
	c := dockertest.Run(t, dockertest.Options{
		Image:   serversImage(t),
		Flags:   []string{"--memory=512m", "--entrypoint=tini"},
		Args:    []string{"--", "sh", "-c", "uvicorn app:app --host 0.0.0.0 --port 8000; sleep 300"},
		Publish: []int{8000},
	})
	url := c.URL(8000)
	waitFor(t, url, 60*time.Second, "an answer", func(seen []request) bool { return len(pids(seen)) == 1 })
	requests := askMany(url, 100)
	err := spread(requests, workers)
	if err == nil {
		t.Fatal("one process passes for three")
	}
	t.Logf("as it should: %v", err)

	only := requests[0].pid
	requests, died, held := crashUnderLoad(t, c, url+"/sleep?s=0.1", only)
	err = lostOnlyInFlight(requests, died, held)
	if err == nil {
		t.Fatal("a server that is gone passes for one that lost only what it had accepted")
	}
	t.Logf("as it should: %v", err)
}

// TestOneShot runs commands that serve nothing: they run once, and what they
// end with is what the container ends with.
func TestOneShot(t *testing.T) {
	image := debianImage(t)
	for _, c := range []struct {
		name   string
		args   []string
		stdout string
		code   int
	}{
		{"exit code", []string{"bash", "-c", "echo ran; exit 7"}, "ran\n", 7},
		{"success", []string{"bash", "-c", "echo ran"}, "ran\n", 0},
		{"by a signal", []string{"bash", "-c", "echo ran; kill -KILL $$"}, "ran\n", 137},
		{"a word that is a subcommand", []string{"bash", "-c", "echo plan"}, "plan\n", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := dockertest.Once(t, dockertest.Options{Image: image, Args: c.args})
			if r.Code != c.code || r.Stdout != c.stdout {
				t.Errorf("exit code %d, stdout %q, stderr %q; want %d and %q", r.Code, r.Stdout, r.Stderr, c.code, c.stdout)
			}
		})
	}
}

// TestStopOneShot stops a lone command that does nothing about TERM of its own:
// as with any init, the container's code says by which signal it ended.
func TestStopOneShot(t *testing.T) {
	c := dockertest.Run(t, dockertest.Options{Image: debianImage(t), Args: []string{"sleep", "300"}})
	took, code := c.Stop()
	t.Logf("docker stop took %v, exit code %d", took, code)
	if code != 143 || took > stopBound {
		t.Errorf("exit code %d after %v, want 143 within %v", code, took, stopBound)
	}
}

// TestBadInput gives skep what it cannot use: one line names the thing, the
// code tells whose fault it is, and nothing has been started.
func TestBadInput(t *testing.T) {
	image := debianImage(t)
	for _, c := range []struct {
		name  string
		flags []string
		args  []string // after the entrypoint /skep
		code  int
		names []string // in the line
	}{
		{"unknown flag", nil, []string{"--no-such-flag", "--", "echo", "ran"}, 125, []string{"no-such-flag"}},
		{"bad size", nil, []string{"--worker-memory", "12Q", "--", "echo", "ran"}, 125, []string{"worker-memory", "12Q"}},
		{"bad size in the environment", []string{"--env=SKEP_WORKER_MEMORY=12Q"}, []string{"--", "echo", "ran"}, 125, []string{"SKEP_WORKER_MEMORY", "12Q"}},
		{"bad count", nil, []string{"-w", "some", "--", "echo", "ran"}, 125, []string{"workers", "some"}},
		{"bad time", nil, []string{"--stop-timeout", "soon", "--", "echo", "ran"}, 125, []string{"stop-timeout", "soon"}},
		{"no command", nil, nil, 125, []string{"command"}},
		{"missing program", nil, []string{"--", "no-such-program"}, 127, []string{"no-such-program"}},
		{"missing program, three workers", nil, []string{"-w", "3", "--", "no-such-program"}, 127, []string{"no-such-program"}},
		{"missing path", nil, []string{"--", "/no/such/program"}, 127, []string{"/no/such/program"}},
		{"not executable", nil, []string{"--", "/etc/passwd"}, 126, []string{"/etc/passwd"}},
		{"a folder", nil, []string{"--", "/etc"}, 126, []string{"/etc"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := dockertest.Once(t, dockertest.Options{
				Image: image,
				Flags: append([]string{"--entrypoint=/skep"}, c.flags...),
				Args:  c.args,
			})
			if r.Code != c.code {
				t.Errorf("exit code %d, want %d", r.Code, c.code)
			}
			if r.Stdout != "" {
				t.Errorf("stdout %q, want nothing: the command must not have run", r.Stdout)
			}
			if lines := strings.Count(r.Stderr, "\n"); lines != 1 {
				t.Errorf("%d lines on stderr, want one:\n%s", lines, r.Stderr)
			}
			for _, name := range c.names {
				if !strings.Contains(r.Stderr, name) {
					t.Errorf("stderr does not name %q: %s", name, r.Stderr)
				}
			}
		})
	}
}

// TestUnreadableLimit: a limit that may not be read is one line that names the
// file, and no limit; skep serves all the same.
func TestUnreadableLimit(t *testing.T) {
	image := debianImage(t)
	limit := "/sys/fs/cgroup/memory/memory.limit_in_bytes"
	if _, err := os.Stat(limit); err != nil {
		limit = "/sys/fs/cgroup/memory.max"
	}
	dir := t.TempDir()
	closed := filepath.Join(dir, "closed")
	if err := os.WriteFile(closed, nil, 0); err != nil {
		t.Fatal(err)
	}
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount := "--volume=" + closed + ":" + limit + ":ro"
	r := dockertest.Once(t, dockertest.Options{
		Image: image, Flags: []string{"--entrypoint=/skep", "--user=1000", "--memory=64m", mount},
		Args: []string{"-w", "2", "--", "sh", "-c", "exit 4"},
	})
	told := 0
	for line := range strings.Lines(r.Stderr) {
		if strings.Contains(line, limit) {
			told++
		}
	}
	if told != 1 || r.Code != 4 {
		t.Errorf("exit code %d, want 4, and one line about %s:\n%s", r.Code, limit, r.Stderr)
	}
	r = dockertest.Once(t, dockertest.Options{
		Image: image, Flags: []string{"--entrypoint=/skep", "--user=1000", "--memory=64m", mount}, Args: []string{"plan"},
	})
	if r.Code != 0 || !strings.Contains(r.Stdout, limit) {
		t.Errorf("exit code %d, and the plan does not name %s:\n%s%s", r.Code, limit, r.Stdout, r.Stderr)
	}
	// Without the obstacle nothing is told.
	r = dockertest.Once(t, dockertest.Options{
		Image: image, Flags: []string{"--entrypoint=/skep", "--user=1000", "--memory=64m"}, Args: []string{"-w", "2", "--", "sh", "-c", "exit 4"},
	})
	if strings.Contains(r.Stderr, "cannot read") {
		t.Errorf("a readable limit is complained about:\n%s", r.Stderr)
	}
}
