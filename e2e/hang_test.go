package e2e

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"skep/internal/testneed"
)

// blocking runs the server of testdata/blocking under skep with these flags, and
// returns its URL and what skep has said so far.
func blocking(t *testing.T, flags ...string) (url string, said func() string) {
	t.Helper()
	return underSkep(t, flags, testneed.Program(t, "/usr/bin/python3"), filepath.Join(root, "testdata", "blocking", "server.py"), "PORT")
}

// underSkep runs a server under skep, with a free port for the word PORT.
func underSkep(t *testing.T, flags []string, command ...string) (url string, said func() string) {
	t.Helper()
	return serving(t, append([]string{filepath.Join(root, "build", "skep")}, flags...), command...)
}

// serving is underSkep with the whole command line of skep.
func serving(t *testing.T, skep []string, command ...string) (url string, said func() string) {
	t.Helper()
	port := freePort(t)
	var args []string
	for _, word := range append(append(slices.Clone(skep[1:]), "--"), command...) {
		args = append(args, strings.ReplaceAll(word, "PORT", port))
	}
	var log lockedBuffer
	cmd := exec.Command(skep[0], args...)
	cmd.Stderr = &log
	return "http://127.0.0.1:" + port, follow(t, cmd, &log)
}

// freePort is the number of a port that nobody has.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return fmt.Sprint(ln.Addr().(*net.TCPAddr).Port)
}

// follow starts skep, and ends it with the test. It returns what the log that its
// output goes to has so far.
func follow(t *testing.T, cmd *exec.Cmd, log *lockedBuffer) (said func() string) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return log.String
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// whoAnswers asks for the pid of who answers, waiting at most so long.
func whoAnswers(url string, limit time.Duration) (string, error) {
	client := http.Client{Timeout: limit, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	return strings.TrimSpace(string(body)), err
}

// answering waits for the first answer.
func answering(t *testing.T, url string) string {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		pid, err := whoAnswers(url, 5*time.Second)
		if err == nil {
			return pid
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// A worker that sleeps or spins in a request, while another connection waits for
// it, is ended, and its successor answers the one that waited.
func TestHungWorkerIsReplaced(t *testing.T) {
	for _, how := range []string{"/block", "/spin"} {
		t.Run(how, func(t *testing.T) {
			url, said := blocking(t, "-w", "1", "--hang-timeout", "2s")
			first := answering(t, url)
			go func() { _, _ = whoAnswers(url+how, time.Minute) }()
			// Until the request has arrived the worker still answers.
			var next string
			for deadline := time.Now().Add(60 * time.Second); next == "" || next == first; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("nobody else answers")
				}
				next, _ = whoAnswers(url, 60*time.Second)
			}
			if !strings.Contains(said(), "cause=hang") {
				t.Error("no line says that the worker hung")
			}
			// ABRT comes before KILL, so that the program can tell where it was.
			// Its words come in pieces, between which a line of skep may fall.
			if !strings.Contains(said(), "Fatal Python error: ") && !strings.Contains(said(), "most recent call first") {
				t.Error("the worker has not said where it hung")
			}
		})
	}
	// The detector can fail: without the flag the worker stays.
	url, said := blocking(t, "-w", "1", "--ready", "listen")
	first := answering(t, url)
	go func() { _, _ = whoAnswers(url+"/block", time.Minute) }()
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(said(), "accepts nothing"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the block is not even noticed")
		}
		if pid, err := whoAnswers(url, 3*time.Second); err == nil && pid != first {
			t.Fatal("the worker was replaced although nobody asked for it")
		}
	}
}

// With a spare, the death of the only worker is answered by the spare at once;
// its successor would come much later.
func TestSpareTakesOver(t *testing.T) {
	url, said := blocking(t, "-w", "1", "--standby", "1", "--restart-delay", "1m")
	first := answering(t, url)
	for deadline := time.Now().Add(30 * time.Second); strings.Count(said(), "worker ready") < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the spare is not ready")
		}
	}
	for range 20 {
		if pid := answering(t, url); pid != first {
			t.Fatalf("%s answers although it is the spare", pid)
		}
	}
	kill(t, first)
	if pid := answering(t, url); pid == first {
		t.Error("the dead answer")
	}

	url, _ = blocking(t, "-w", "1", "--ready", "listen", "--restart-delay", "1m")
	kill(t, answering(t, url))
	if pid, err := whoAnswers(url, 2*time.Second); err == nil {
		t.Errorf("without a spare %s answers", pid)
	}
}

func kill(t *testing.T, pid string) {
	t.Helper()
	var n int
	if _, err := fmt.Sscan(pid, &n); err != nil || n <= 1 {
		t.Fatalf("%q is no pid", pid)
	}
	if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// untilSaid waits for a line of skep.
func untilSaid(t *testing.T, said func() string, pattern string, n int, within time.Duration) []string {
	t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
		if found := regexp.MustCompile(pattern).FindAllString(said(), -1); len(found) >= n {
			return found
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %q, %d times", pattern, n)
		}
	}
}

// uvicornApp is the command line of the test application.
func uvicornApp(t *testing.T) []string {
	t.Helper()
	const python = "/usr/bin/python3" // Debian's own, which has Debian's packages
	if err := exec.Command(python, "-c", "import uvicorn, fastapi").Run(); err != nil {
		testneed.Skip(t, "needs python3-uvicorn and python3-fastapi (make deps installs them)")
	}
	return []string{python, "-m", "uvicorn", "--app-dir", filepath.Join(root, "testdata", "app"), "app:app", "--port", "PORT", "--no-access-log"}
}

// An event loop that is blocked while all connections go around it is found by
// its thread, with nobody waiting in its queue; nobody else notices anything.
func TestBlockedLoopIsReplaced(t *testing.T) {
	const timeout = 3 * time.Second
	url, said := underSkep(t, []string{"-w", "4", "--hang-timeout", timeout.String(), "--log-level", "debug"},
		uvicornApp(t)...)
	untilSaid(t, said, "worker ready", 4, time.Minute)
	blocked := time.Now()
	lost := make(chan error, 1)
	go func() {
		_, err := whoAnswers(url+"/block?s=60", time.Minute)
		lost <- err
	}()
	slow, caught := 0, false
	for !strings.Contains(said(), "cause=hang") {
		asked := time.Now()
		_, err := whoAnswers(url, 3*timeout)
		// One may have been on its way when the worker was blocked, and shares its fate.
		early := asked.Sub(blocked) < time.Second
		waited := time.Since(asked) > timeout/2 // one that waits for the blocked worker waits till its end
		switch {
		case time.Since(blocked) > 2*timeout+2*time.Second:
			t.Fatal("it is not replaced")
		case early && err != nil: // it had been accepted
		case err != nil:
			t.Fatal(err)
		case early && waited:
			caught = true
		case waited:
			slow++
		}
		time.Sleep(10 * time.Millisecond)
	}
	took := time.Since(blocked)
	t.Logf("replaced after %v", took)
	if took < timeout {
		t.Errorf("ended after %v, before the timeout", took)
	}
	if slow > 0 {
		t.Errorf("%d others waited", slow)
	}
	if err := <-lost; err == nil {
		t.Error("the one that blocked was answered")
	}
	why := "the thread"
	if caught {
		why = "it accepts nothing" // it waited in the queue, for the successor
	}
	untilSaid(t, said, "worker hangs.*why=\""+why, 1, time.Second)
	untilSaid(t, said, "worker ready", 5, time.Minute)
	if n := strings.Count(said(), "worker hangs"); n != 1 {
		t.Errorf("%d workers hung", n)
	}
}

// What looks blocked is not ended: another process or thread serves, the handler
// runs now and then, a client keeps an idle connection.
func TestPatientIsNotHung(t *testing.T) {
	python := testneed.Program(t, "/usr/bin/python3")
	for _, how := range []string{"fork", "thread", "naps"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			url, said := underSkep(t, []string{"-w", "1", "--hang-timeout", "1s"},
				python, filepath.Join(root, "testdata", "blocking", "patient.py"), "PORT", how)
			untilSaid(t, said, "worker ready", 1, time.Minute)
			time.Sleep(time.Second) // it is seen to wait for its first connection
			conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Read(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(4 * time.Second) // the time in which it must not be ended
			if strings.Contains(said(), "hangs") {
				t.Error("ended although it serves")
			}
			if _, err := whoAnswers(url, 20*time.Second); err != nil {
				t.Error(err)
			}
		})
	}
}

// cpuCgroup makes a cgroup with half a CPU and returns its file of processes.
func cpuCgroup(t *testing.T) (procs string) {
	t.Helper()
	testneed.Root(t)
	root, name, half := "/sys/fs/cgroup", "cpu.max", "50000 100000"
	if _, err := os.Stat("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"); err == nil {
		root, name, half = "/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "50000"
	}
	dir := filepath.Join(root, fmt.Sprint("skep-e2e-", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		testneed.Skip(t, "needs to make a cgroup: %v", err)
	}
	t.Cleanup(func() {
		for deadline := time.Now().Add(10 * time.Second); os.Remove(dir) != nil; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Error("the cgroup cannot be removed")
				return
			}
		}
	})
	if err := os.WriteFile(filepath.Join(dir, name), []byte(half), 0); err != nil {
		testneed.Skip(t, "needs the cpu controller: %v", err)
	}
	return filepath.Join(dir, "cgroup.procs")
}

var starving = flag.Duration("starving", 15*time.Second, "how long TestStarvedIsNotHung starves its workers")

// Four workers that always have something to compute get an eighth of a CPU each,
// at a hang timeout of a second: none is ended.
func TestStarvedIsNotHung(t *testing.T) {
	python := testneed.Program(t, "/usr/bin/python3")
	procs := cpuCgroup(t)
	skep := []string{"/bin/sh", "-c", `echo $$ >"$0"; exec "$@"`, procs, filepath.Join(root, "build", "skep"), "-w", "4", "--hang-timeout", "1s"}
	url, said := serving(t, skep, python, filepath.Join(root, "testdata", "blocking", "server.py"), "PORT")
	untilSaid(t, said, "worker ready", 4, time.Minute)
	over := time.Now().Add(*starving)
	answers := make(chan int)
	for range 8 {
		go func() {
			n := 0
			for time.Now().Before(over) {
				if _, err := whoAnswers(url+"/work", time.Minute); err == nil {
					n++
				}
			}
			answers <- n
		}()
	}
	sum := 0
	for range 8 {
		sum += <-answers
	}
	t.Logf("%d answers in %v", sum, *starving)
	if sum == 0 {
		t.Error("no answers: nothing was tried")
	}
	if s := said(); strings.Contains(s, "hangs") || strings.Contains(s, "worker ended") {
		t.Error("a worker was ended")
	}
}
