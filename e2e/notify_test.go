package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/internal/testneed"
)

// notifying runs testdata/notify/server.py under skep and returns what it needs to
// be told what to do. Where is the port, or "fd".
func notifying(t *testing.T, where string, flags ...string) (url string, said func() string, tell func(string)) {
	t.Helper()
	const python = "/usr/bin/python3"
	if err := exec.Command(python, "-c", "import systemd.daemon").Run(); err != nil {
		testneed.Skip(t, "needs python3-systemd (make deps installs it)")
	}
	dir, err := os.MkdirTemp("", "skep-notify-") // not t.TempDir, which other users may not enter
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	var server []byte
	if err == nil {
		server, err = os.ReadFile(filepath.Join(root, "testdata", "notify", "server.py"))
	}
	script := filepath.Join(dir, "server.py")
	if err == nil {
		err = os.WriteFile(script, server, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	url, said = underSkep(t, append([]string{"--ready", "notify", "--log-level", "debug"}, flags...), python, script, where, dir)
	return url, said, func(what string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, what), nil, 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

// signalSkep sends skep a signal: the parent of its first worker.
func signalSkep(t *testing.T, said func() string, sig unix.Signal) {
	t.Helper()
	started := untilSaid(t, said, `worker started slot=\d+ pid=\d+`, 1, time.Minute)
	worker := started[len(started)-1] // earlier ones may have gone
	stat, err := os.ReadFile(filepath.Join("/proc", worker[strings.LastIndex(worker, "=")+1:], "stat"))
	if err != nil {
		t.Fatal(err)
	}
	var parent int
	rest := string(stat[strings.LastIndex(string(stat), ")")+2:])
	if _, err := fmt.Sscanf(rest[2:], "%d", &parent); err != nil || parent < 2 {
		t.Fatalf("no parent in %q", stat)
	}
	if err := unix.Kill(parent, sig); err != nil {
		t.Fatal(err)
	}
}

// absent looks for a while at what must not be said.
func absent(t *testing.T, said func() string, pattern string, during time.Duration) {
	t.Helper()
	for over := time.Now().Add(during); time.Now().Before(over); time.Sleep(10 * time.Millisecond) {
		if line := regexp.MustCompile(pattern).FindString(said()); line != "" {
			t.Fatalf("it said %q", line)
		}
	}
}

// READY=1 makes a worker ready, and nothing else does: neither that it listens
// nor what a stranger says.
func TestReadyByNotify(t *testing.T) {
	for name, c := range map[string]struct {
		where string
		flags []string
	}{
		"bind":     {"PORT", []string{"-w", "2"}},
		"passed":   {"fd", []string{"-w", "2", "--listen", "127.0.0.1:PORT"}},
		"as other": {"PORT", []string{"-w", "2", "--user", "65534:65534"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "as other" {
				testneed.Root(t)
			}
			_, said, tell := notifying(t, c.where, c.flags...)
			pids := untilSaid(t, said, `worker started slot=\d+ pid=\d+`, 2, time.Minute)
			if c.where == "PORT" {
				untilSaid(t, said, "worker listens", 2, time.Minute)
			}
			// A stranger, who found the address in the worker's environment.
			env, err := os.ReadFile(filepath.Join("/proc", pids[0][strings.LastIndex(pids[0], "=")+1:], "environ"))
			if err != nil {
				t.Fatal(err)
			}
			address := ""
			for _, kv := range strings.Split(string(env), "\x00") {
				if value, ok := strings.CutPrefix(kv, "NOTIFY_SOCKET="); ok {
					address = value
				}
			}
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := unix.Sendto(fd, []byte("READY=1"), 0, &unix.SockaddrUnix{Name: address}); err != nil {
				t.Fatal(err)
			}
			untilSaid(t, said, "no worker's", 1, time.Minute)
			absent(t, said, "worker ready", time.Second)
			for _, slot := range []string{"1", "0"} {
				tell(slot + "ready")
				untilSaid(t, said, "worker ready slot="+slot, 1, time.Minute)
			}
			untilSaid(t, said, `status="serving in slot 0"`, 1, time.Minute)
		})
	}
}

// A reload waits for READY=1 of the new worker before the old one goes.
func TestReloadWaitsForNotify(t *testing.T) {
	_, said, tell := notifying(t, "PORT", "-w", "1")
	untilSaid(t, said, "worker listens", 1, time.Minute)
	tell("0ready")
	untilSaid(t, said, "worker ready", 1, time.Minute)
	signalSkep(t, said, unix.SIGHUP)
	untilSaid(t, said, "worker listens", 2, time.Minute)
	absent(t, said, "worker ended", time.Second)
	for deadline := time.Now().Add(time.Minute); !strings.Contains(said(), "cause=reload"); time.Sleep(50 * time.Millisecond) {
		tell("0ready") // until it is not the old one that takes it
		if time.Now().After(deadline) {
			t.Fatal("the old worker stays")
		}
	}
}

// A worker that says STOPPING=1 gets nothing new and no signal; it is replaced
// when it has ended.
func TestStoppingByNotify(t *testing.T) {
	url, said, tell := notifying(t, "PORT", "-w", "2")
	untilSaid(t, said, "worker listens", 2, time.Minute)
	tell("0ready")
	tell("1ready")
	untilSaid(t, said, "worker ready", 2, time.Minute)
	leaver := untilSaid(t, said, `worker ready slot=1 pid=\d+`, 1, time.Minute)[0]
	leaver = leaver[strings.LastIndex(leaver, "=")+1:]
	tell("1stopping")
	untilSaid(t, said, "worker says that it stops slot=1", 1, time.Minute)
	// It does not accept any more: whatever came to it would wait.
	for i := range 40 {
		if pid, err := whoAnswers(url, 10*time.Second); err != nil || pid == leaver {
			t.Fatalf("request %d: %q, %v", i, pid, err)
		}
	}
	if s := said(); strings.Contains(s, "worker ended") {
		t.Fatal("it was ended")
	}
	tell("1exit")
	untilSaid(t, said, "worker ended slot=1.*cause=exit code=0", 1, time.Minute)
	untilSaid(t, said, "worker started slot=1", 2, time.Minute)
}

// A worker that has sent WATCHDOG=1 and then does not for the hang timeout is
// ended, one that says so itself at once, and one that has never sent it never.
func TestWatchdog(t *testing.T) {
	for _, how := range []string{"silent", "sleep", "trigger"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			_, said, tell := notifying(t, "PORT", "-w", "2", "--hang-timeout", "2s")
			untilSaid(t, said, "worker listens", 2, time.Minute)
			tell("0ready")
			untilSaid(t, said, "worker ready slot=0", 1, time.Minute)
			tell("1ready")
			untilSaid(t, said, "worker ready slot=1", 1, time.Minute)
			absent(t, said, "hangs", 5*time.Second)
			tell("1" + how)
			if how == "silent" {
				// It goes on, and uses CPU time now and then: whether it does in the last
				// look is chance, and it gets as many as it takes.
				untilSaid(t, said, "worker hangs slot=1.*WATCHDOG=1", 1, time.Minute)
			} else {
				untilSaid(t, said, "worker hangs slot=1", 1, time.Minute)
			}
			untilSaid(t, said, "worker ended slot=1.*cause=hang", 1, time.Minute)
			if strings.Contains(said(), "hangs slot=0") {
				t.Error("the other one was ended")
			}
		})
	}
}

// systemd-notify(1) is a process of its own, which waits until skep has heard it.
func TestSystemdNotify(t *testing.T) {
	program := testneed.Program(t, "systemd-notify")
	_, said := underSkep(t, []string{"-w", "2", "--ready", "notify", "--log-level", "debug"},
		"sh", "-c", program+` --ready --status="it is $SKEP_SLOT" && echo heard >&2; exec sleep 1000`)
	untilSaid(t, said, "worker ready", 2, time.Minute)
	untilSaid(t, said, `status="it is [01]"`, 2, time.Minute)
	untilSaid(t, said, "(?m)^heard$", 2, time.Minute)
}
