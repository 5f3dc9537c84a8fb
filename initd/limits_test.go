package initd_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/internal/testneed"
)

// memoryCgroup makes a cgroup with a limit that can be set.
func memoryCgroup(t *testing.T) (procs string, limit func(bytes int)) {
	t.Helper()
	testneed.Root(t)
	root, name := "/sys/fs/cgroup", "memory.max"
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.limit_in_bytes"); err == nil {
		root, name = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	}
	dir := filepath.Join(root, fmt.Sprint("skep-test-", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		testneed.Skip(t, "needs to make a cgroup: %v", err)
	}
	t.Cleanup(func() {
		// The kernel lets go of a process some time after it has been waited for.
		for deadline := time.Now().Add(patience); ; {
			err := os.Remove(dir)
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Error(err)
				return
			}
		}
	})
	file := filepath.Join(dir, name)
	if _, err := os.Stat(file); err != nil {
		testneed.Skip(t, "needs the memory controller: %v", err)
	}
	return filepath.Join(dir, "cgroup.procs"), func(bytes int) {
		t.Helper()
		if err := os.WriteFile(file, []byte(fmt.Sprint(bytes)), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// A limit that changes while skep runs changes the number of workers, at once and
// both ways.
func TestLimitChanges(t *testing.T) {
	t.Parallel()
	procs, limit := memoryCgroup(t)
	const mib = 1 << 20
	limit(400 * mib)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, []string{"workers=auto", "workers-per-cpu=8", "worker-memory=100Mi", "share=none", "ready=alive:1ms", "start-timeout=0"},
		sh("echo up $$; exec sleep 1000"), func(c *exec.Cmd) {
			c.Args = append([]string{"sh", "-c", `echo $$ >"$0"; exec "$@"`, procs, self}, c.Args[1:]...)
			c.Path = "/bin/sh"
		})
	s.pids(3) // 400 × 0.8 / 100
	limit(800 * mib)
	s.wait(s.err, "limits changed workers=6", 1)
	s.pids(6)
	limit(200 * mib)
	s.wait(s.err, "limits changed workers=1", 1)
	s.wait(s.err, "worker ended.*cause=scale", 5)
	s.signal(unix.SIGTERM)
	s.ended(0)
	s.gone(s.pids(6)...)
}
