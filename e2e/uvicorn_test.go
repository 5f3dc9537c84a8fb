package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// runningApp is skep before uvicorn with an application of a few lines, seen from
// outside until it ends.
type runningApp struct {
	*testing.T
	cmd   *exec.Cmd
	log   lockedBuffer
	ended chan struct{}
}

func runApp(t *testing.T, app string, flags ...string) *runningApp {
	t.Helper()
	command := uvicornApp(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "app.py"), []byte(app), 0o644); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := fmt.Sprint(ln.Addr().(*net.TCPAddr).Port)
	ln.Close()
	args := append(flags, "--")
	for _, word := range command {
		args = append(args, strings.NewReplacer("PORT", port, filepath.Join(root, "testdata", "app"), dir).Replace(word))
	}
	a := &runningApp{T: t, cmd: exec.Command(filepath.Join(root, "build", "skep"), args...), ended: make(chan struct{})}
	a.cmd.Stderr = &a.log
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = a.cmd.Wait(); close(a.ended) }()
	t.Cleanup(func() {
		_ = a.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-a.ended:
		case <-time.After(time.Minute):
			_ = a.cmd.Process.Kill()
			t.Error("skep does not end")
		}
		if t.Failed() {
			t.Log(a.log.String())
		}
	})
	return a
}

// end waits for skep's end and wants its code.
func (a *runningApp) end(code int, within time.Duration) {
	a.Helper()
	select {
	case <-a.ended:
	case <-time.After(within):
		a.Fatalf("it has not ended after %v", within)
	}
	if got := a.cmd.ProcessState.ExitCode(); got != code {
		a.Errorf("code %d, want %d", got, code)
	}
}

// Four workers that end while they are imported end skep with their own code, as
// soon as the first one has.
func TestAppThatCannotStart(t *testing.T) {
	a := runApp(t, "import os\nos._exit(7)\n", "-w", "4")
	untilSaid(t, a.log.String, "worker ended", 1, time.Minute)
	first := time.Now()
	a.end(7, 2*time.Second)
	t.Logf("%v after the first", time.Since(first))
	if n := strings.Count(a.log.String(), "worker started"); n > 4 {
		t.Errorf("%d workers were started", n)
	}
}

// An application that has been ready and then crashes again and again does not
// become a storm: the delays grow, and skep stays.
func TestAppThatCrashesWhenReady(t *testing.T) {
	a := runApp(t, `
import os, threading
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        threading.Timer(0.1, os._exit, [3]).start()
`, "-w", "1", "--ready", "listen")
	untilSaid(t, a.log.String, "worker ended.*cause=exit code=3.*next=restarting", 1, time.Minute)
	time.Sleep(8 * time.Second) // the time in which there must not be many
	ends := untilSaid(t, a.log.String, `next=restarting delay=[^ ]+`, 2, 0)
	// 0.5, 1, 2 and 4 s: the fifth start comes after 7.5 s, and a worker takes its time too.
	if len(ends) > 5 {
		t.Errorf("%d ends in 8 s", len(ends))
	}
	var delays []time.Duration
	for _, end := range ends {
		d, err := time.ParseDuration(end[strings.LastIndex(end, "=")+1:])
		if err != nil {
			t.Fatal(err)
		}
		if n := len(delays); n > 0 && d < delays[n-1]*3/2 {
			t.Errorf("a delay of %v after one of %v", d, delays[n-1])
		}
		delays = append(delays, d)
	}
}

// Four workers that are stopped do not see TERM, and do not hold up the end.
func TestFrozenWorkersEndInTime(t *testing.T) {
	const timeout = 2 * time.Second
	a := runApp(t, `
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
`, "-w", "4", "--stop-timeout", timeout.String())
	var pids []int
	for _, line := range untilSaid(t, a.log.String, `worker ready slot=\d pid=\d+`, 4, time.Minute) {
		var pid int
		if _, err := fmt.Sscan(line[strings.LastIndex(line, "=")+1:], &pid); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	asked := time.Now()
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	a.end(137, 2*(timeout+time.Second))
	t.Logf("gone after %v", time.Since(asked))
	if took := time.Since(asked); took < timeout/2 {
		t.Errorf("ended after %v: they had no time", took)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("process %d is left: %v", pid, err)
		}
	}
}
