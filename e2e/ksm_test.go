package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"skep/internal/dockertest"
	"skep/internal/testneed"
)

// mergePages has the kernel merge equal pages of those who ask for it, at a pace for
// tests, until the test ends; then all is as it was. The setting is the machine's:
// of all test binaries only one has it at a time.
func mergePages(t *testing.T, on bool) {
	t.Helper()
	testneed.Root(t)
	testneed.Linux(t, 6, 4) // PR_SET_MEMORY_MERGE
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "skep-ksm.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lock.Close() })
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	set := func(name, value string) {
		t.Helper()
		file := "/sys/kernel/mm/ksm/" + name
		before, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(file, []byte(value), 0)
		}
		if err != nil {
			testneed.Skip(t, "needs a kernel that merges pages (CONFIG_KSM): %v", err)
		}
		t.Cleanup(func() {
			if err := os.WriteFile(file, before, 0); err != nil {
				t.Error(err)
			}
		})
	}
	if !on {
		set("run", "0")
		return
	}
	set("pages_to_scan", "5000") // 20 MB every 20 ms
	set("run", "1")
}

// alike runs workers with the same 100 MiB of data each.
func alike(t *testing.T, workers string, flags ...string) *dockertest.Container {
	t.Helper()
	return dockertest.Run(t, dockertest.Options{
		Image: scratchImage(t),
		Flags: []string{"--memory=640m", "--memory-swap=640m", "--entrypoint=/skep"},
		Args:  append(append([]string{"-w", workers, "--mode", "serve"}, flags...), "--", "/hold", "-mib=100", "-same"),
	})
}

const ksmOff = "--ksm has no effect: the kernel merges no pages"

// TestSamePagesAreMerged has four workers with the same 100 MiB: with --ksm the
// container holds hardly more than with one of them, without it four times as much.
func TestSamePagesAreMerged(t *testing.T) {
	mergePages(t, true)
	// The one without --ksm: else its pages were merged with those of the other
	// container.
	one, merged, plain := alike(t, "1"), alike(t, "4", "--ksm"), alike(t, "4")
	one.WaitLog(`worker ready`, 1, 60*time.Second)
	plain.WaitLog(`worker ready`, 4, 60*time.Second)
	merged.WaitLog(`worker ready`, 4, 60*time.Second)
	began, alone := time.Now(), groupHolds(t, one)
	for groupHolds(t, merged)*10 > alone*13 && time.Since(began) < 2*time.Minute {
		time.Sleep(100 * time.Millisecond)
	}
	four, unmerged := groupHolds(t, merged), groupHolds(t, plain)
	t.Logf("one worker %.1f MiB, four merged %.1f MiB after %v, four unmerged %.1f MiB",
		float64(alone)/(1<<20), float64(four)/(1<<20), time.Since(began).Round(100*time.Millisecond), float64(unmerged)/(1<<20))
	if four*10 > alone*13 {
		t.Errorf("four workers hold %d bytes, want at most 1.3 times the %d of one", four, alone)
	}
	if unmerged < 3*alone {
		t.Errorf("without --ksm four workers hold %d bytes, want about four times the %d of one", unmerged, alone)
	}
	if strings.Contains(merged.Logs(), ksmOff) {
		t.Error("the log says that --ksm has no effect")
	}
	for _, c := range []*dockertest.Container{one, merged, plain} {
		if n := oomKills(t, c); n != 0 {
			t.Errorf("the kernel killed %d times for memory", n)
		}
	}
}

// TestMergingIsOff has the kernel merge nothing: one line says so, once, and the
// workers serve.
func TestMergingIsOff(t *testing.T) {
	mergePages(t, false)
	c := alike(t, "2", "--ksm")
	c.WaitLog(`worker ready`, 2, 60*time.Second)
	if n := strings.Count(c.Logs(), "ksm"); n != 2 || strings.Count(c.Logs(), ksmOff) != 1 { // the file is named too
		t.Errorf("the log has not one line about --ksm:\n%s", c.Logs())
	}
}
