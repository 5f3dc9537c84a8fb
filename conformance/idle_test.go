package conformance

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/internal/testneed"
)

// TestNobodyLooksAround finds each thread of an idle skep in its system call: none waits for others for just a minute, as the monitor of a runtime does
// that was not told otherwise, again and again. An ordinary program is the proof that the test sees that.
func TestNobodyLooksAround(t *testing.T) {
	testneed.Root(t)
	skep := skepBinary(t)
	other := filepath.Join(t.TempDir(), "idle")
	if err := os.WriteFile(other+".go", []byte("package main\n\nimport \"os\"\n\nfunc main() { os.Stdin.Read(make([]byte, 1)) }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-o", other, other+".go").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, c := range []struct {
		name   string
		argv   []string
		limits bool
	}{
		{"skep", []string{skep, "--mode", "init", "--", "sleep", "1000"}, false},
		{"another Go program", []string{other}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command(c.argv[0], c.argv[1:]...)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Signal(unix.SIGTERM)
				_ = cmd.Wait()
			}()
			// What is waited for with a limit may be over soon: what counts is where it comes to rest.
			const rest = 500 * time.Millisecond
			var since time.Time
			var first string
			for deadline := time.Now().Add(20 * time.Second); time.Since(since) < rest || since.IsZero(); time.Sleep(10 * time.Millisecond) {
				now, ok := limitedWaits(t, cmd.Process.Pid)
				if !ok || now != first {
					since, first = time.Time{}, now
				} else if since.IsZero() {
					since = time.Now()
				}
				if time.Now().After(deadline) {
					t.Fatalf("it does not come to rest: %q", now)
				}
			}
			if (first != "") != c.limits {
				t.Errorf("threads wait for %q, limits are expected: %v", first, c.limits)
			}
		})
	}
}

// limitedWaits lists the limits with which threads of the process wait for each other (futex(2)); ok is false while one of them runs.
func limitedWaits(t *testing.T, pid int) (limits string, ok bool) {
	t.Helper()
	calls, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	if err != nil || len(calls) == 0 {
		t.Fatalf("process %d has no threads: %v", pid, err)
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	for _, call := range calls {
		text, err := os.ReadFile(call) // proc_pid_syscall(5): the number of the call and its arguments
		words := strings.Fields(string(text))
		if err != nil || len(words) < 5 {
			return "", false
		}
		if words[0] != strconv.Itoa(unix.SYS_FUTEX) {
			continue
		}
		at, err := strconv.ParseInt(words[4], 0, 64)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if at == 0 {
			continue
		}
		var limit [8]byte // the seconds of a struct timespec
		if _, err := memory.ReadAt(limit[:], at); err != nil {
			return "", false
		}
		if s := binary.NativeEndian.Uint64(limit[:]); s <= 60 { // what the monitor of the runtime waits for at most
			limits += fmt.Sprintf("%d s ", s)
		}
	}
	return limits, true
}
