package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
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
	python := testneed.Program(t, "python3")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := fmt.Sprint(ln.Addr().(*net.TCPAddr).Port)
	ln.Close()
	var log lockedBuffer
	args := append(flags, "--", python, filepath.Join(root, "testdata", "blocking", "server.py"), port)
	cmd := exec.Command(filepath.Join(root, "build", "skep"), args...)
	cmd.Stderr = &log
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
	return "http://127.0.0.1:" + port, log.String
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
