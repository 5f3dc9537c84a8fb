package e2e

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"skep/internal/dockertest"
)

// sizedBy is how fast the number of workers has to follow a limit: twice what is
// promised, on a machine that does other things as well.
const sizedBy = 10 * time.Second

// fitting runs hold under skep with a memory limit and no swap.
func fitting(t *testing.T, memory string, flags []string, hold ...string) *dockertest.Container {
	t.Helper()
	command := append([]string{"-w", "auto"}, flags...)
	command = append(append(command, "--", "/hold"), hold...)
	return dockertest.Run(t, dockertest.Options{
		Image:   scratchImage(t),
		Flags:   []string{"--memory=" + memory, "--memory-swap=" + memory, "--cpus=2", "--entrypoint=/skep"},
		Args:    command,
		Publish: []int{8000},
	})
}

// holders is the workers of a container, seen from outside, without those that
// are on their way between fork and exec.
func holders(c *dockertest.Container) (pids []int) {
	for _, p := range c.Processes() {
		if strings.HasPrefix(p.Command, "/hold") && !strings.HasPrefix(p.State, "Z") {
			pids = append(pids, p.HostPid)
		}
	}
	return pids
}

// wantHolders waits until there are count workers and returns how long it took.
func wantHolders(t *testing.T, c *dockertest.Container, count int, within time.Duration) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	began, have := time.Now(), 0
	for ctx.Err() == nil {
		if have = len(holders(c)); have == count {
			return time.Since(began)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatalf("%d workers after %v, want %d", have, within, count)
	return 0
}

// failures lists the requests that were not answered.
func failures(requests []request) (errs []error) {
	for _, r := range requests {
		if r.err != nil {
			errs = append(errs, r.err)
		}
	}
	return errs
}

// oomKills reads the kernel's own count of the container's group.
func oomKills(t *testing.T, c *dockertest.Container) int {
	t.Helper()
	return int(numberBehind(memoryFile(t, c, "memory.oom_control", "memory.events"), "oom_kill"))
}

// setLimit changes the limit of a running container and returns how long it took
// until there were count workers.
func setLimit(t *testing.T, c *dockertest.Container, memory string, count int) time.Duration {
	t.Helper()
	began := time.Now()
	c.Update("--memory="+memory, "--memory-swap="+memory)
	wantHolders(t, c, count, sizedBy)
	return time.Since(began)
}

func oomScoreAdj(t *testing.T, pid int) (score int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	if err == nil {
		_, err = fmt.Sscan(string(text), &score)
	}
	if err != nil {
		t.Fatal(err)
	}
	return score
}

// TestTextbook is the example of every guide: servers that hold 1 GB each, on a
// machine with 3 GB, scaled down to a tenth. Two fit, four processors or not.
func TestTextbook(t *testing.T) {
	c := fitting(t, "300m", []string{"--workers-per-cpu=2"}, "-mib=95")
	c.WaitLog(`number of workers changes`, 1, 60*time.Second)
	c.WaitLog(`worker ready`, 2, 30*time.Second)
	log := c.Logs()
	if !regexp.MustCompile(`why="2 workers: memory 300 MiB × 0\.8 .* fits 2 × \S+ MiB; cpu 2 × 2 allows 4; memory decides"`).MatchString(log) {
		t.Errorf("the log does not say why there are two:\n%s", log)
	}
	if n := strings.Count(log, "worker started"); n != 2 {
		t.Errorf("%d workers were started, want 2", n)
	}
	wantHolders(t, c, 2, sizedBy)
	own := oomScoreAdj(t, c.State().Pid)
	for _, pid := range holders(c) {
		if score := oomScoreAdj(t, pid); score <= own {
			t.Errorf("oom_score_adj is %d for a worker and %d for skep: the kernel may choose skep", score, own)
		}
	}
	plan := c.Exec("/skep", "plan", "-w", "auto", "--workers-per-cpu=2", "--worker-memory=100M")
	want := "2 workers: memory 300 MiB × 0.8 − 0 base = 240 MiB fits 2 × 95.3 MiB; cpu 2 × 2 allows 4; memory decides\n"
	if !strings.HasPrefix(plan.Stdout, want) {
		t.Errorf("skep plan says %q, want %q", plan.Stdout, want)
	}
	if n := oomKills(t, c); n != 0 {
		t.Errorf("the kernel killed %d times for memory", n)
	}
}

// TestLaterWorkersLarger has a first worker that misleads: the others need four
// times as much. They are added one at a time, and before there is no room left
// nothing is started that would not fit.
func TestLaterWorkersLarger(t *testing.T) {
	c := fitting(t, "256m", []string{"--workers-per-cpu=2"}, "-mib=20", "-others=60")
	c.WaitLog(`learned what one worker needs workers=2 why="2 workers: memory 256 MiB × 0\.8 .* fits 2 × 8\S+ MiB`, 1, 60*time.Second)
	wantHolders(t, c, 2, sizedBy)
	if n := strings.Count(c.Logs(), "worker started"); n != 2 {
		t.Errorf("%d workers were started, want 2", n)
	}
	if n := oomKills(t, c); n != 0 {
		t.Errorf("the kernel killed %d times for memory", n)
	}
}

// TestLimitChanges halves and doubles the limit while requests come in.
func TestLimitChanges(t *testing.T) {
	t.Parallel() // it mostly waits
	c := fitting(t, "256m", []string{"--workers-per-cpu=2"}, "-mib=22")
	c.WaitLog(`worker ready`, 4, 60*time.Second)
	wantHolders(t, c, 4, sizedBy)

	const rate, length = 40, 15 * time.Second
	load := make(chan []request)
	go func() { load <- openLoop(c.URL(8000), rate, length) }()
	t.Logf("halved: right after %v", setLimit(t, c, "128m", 3))
	t.Logf("doubled: right after %v", setLimit(t, c, "256m", 4))
	requests := <-load
	wantHolders(t, c, 4, sizedBy)
	if errs := failures(requests); len(errs) > 0 {
		t.Errorf("%d of %d requests failed, the first: %v", len(errs), len(requests), errs[0])
	}
	if n := oomKills(t, c); n != 0 {
		t.Errorf("the kernel killed %d times for memory", n)
	}
}

// TestLeakIsRecycled has one worker grow without end: it is replaced before the
// limit, and nobody notices.
func TestLeakIsRecycled(t *testing.T) {
	t.Parallel() // it mostly waits
	c := fitting(t, "256m", []string{"--max-workers=2"}, "-mib=20")
	c.WaitLog(`worker ready`, 2, 60*time.Second)
	before := holders(c)
	url := c.URL(8000)
	if r := ask(t.Context(), url+"/leak?mib=5"); r.err != nil {
		t.Fatal(r.err)
	}
	load := make(chan []request)
	go func() { load <- openLoop(url, 40, 60*time.Second) }()
	line := c.WaitLog(`replacing a worker .*cause=memory`, 1, 90*time.Second)
	t.Log(line[0])
	c.WaitLog(`worker ended .*cause=memory`, 1, 60*time.Second)
	requests := <-load
	if errs := failures(requests); len(errs) > 0 {
		t.Errorf("%d of %d requests failed, the first: %v", len(errs), len(requests), errs[0])
	}
	if n := oomKills(t, c); n != 0 {
		t.Errorf("the kernel killed %d times for memory", n)
	}
	after := holders(c)
	stayed := 0
	for _, pid := range before {
		if slices.Contains(after, pid) {
			stayed++
		}
	}
	if len(after) != 2 || stayed != 1 {
		t.Errorf("workers %v before and %v after, want one of two replaced", before, after)
	}
	if n := strings.Count(c.Logs(), "replacing a worker"); n != 1 {
		t.Errorf("%d workers were replaced, want 1", n)
	}
}

// TestAllLeak has every worker grow from its start on, also those that come in
// place of others: one after another is replaced, and nobody notices.
func TestAllLeak(t *testing.T) {
	t.Parallel() // it mostly waits
	c := fitting(t, "256m", []string{"-w", "3"}, "-mib=45", "-leak=2")
	c.WaitLog(`worker ready`, 3, 60*time.Second)
	requests := openLoop(c.URL(8000), 20, 36*time.Second)
	if errs := failures(requests); len(errs) > 0 {
		t.Errorf("%d of %d requests failed, the first: %v", len(errs), len(requests), errs[0])
	}
	if n := oomKills(t, c); n != 0 {
		t.Errorf("the kernel killed %d times for memory", n)
	}
	// 230 MiB are reached after 16 s, and then each time that what one held more than
	// its successor has been taken by three: after 5 s or so.
	replaced := strings.Count(c.Logs(), "replacing a worker")
	t.Logf("%d requests, the slowest answer %v, %d workers replaced", len(requests), slowest(requests), replaced)
	if replaced < 2 {
		t.Errorf("%d workers were replaced, want 2 or more", replaced)
	}
}

// TestProgramStaysInMemory has worker after worker run out of memory, for which the kernel drops every page of a file
// first: skep has to read none of its program again.
func TestProgramStaysInMemory(t *testing.T) {
	t.Parallel() // it mostly waits
	// What the container has written itself is counted as its memory, and may be dropped once it is on the disk.
	const own = "cp /skep /hold /tmp/ && sync /tmp/skep /tmp/hold && exec /tmp/skep -w auto --start-limit=100 -- /tmp/hold -mib=200 -late"
	c := dockertest.Run(t, dockertest.Options{
		Image: debianImage(t),
		Flags: []string{"--memory=64m", "--memory-swap=64m", "--cpus=2", "--ulimit=memlock=8388608", "--entrypoint=/bin/sh"},
		Args:  []string{"-c", own},
	})
	c.WaitLog(`worker ended .*cause=oom`, 1, 60*time.Second)
	first := pagesRead(t, c)
	c.WaitLog(`worker ended .*cause=oom`, 3, 60*time.Second)
	// What it needs for the first time may come from the file: that is not much.
	if n := pagesRead(t, c) - first; n > 8 {
		t.Errorf("skep has waited %d times for its own program, want 8 at most", n)
	}
	if !c.State().Running {
		t.Error("the container has ended")
	}
}

// TestProgramIsNotKept: where less may be locked than the program is large, a line says what follows.
func TestProgramIsNotKept(t *testing.T) {
	t.Parallel() // it mostly waits
	c := dockertest.Run(t, dockertest.Options{
		Image: scratchImage(t),
		Flags: []string{"--ulimit=memlock=65536", "--entrypoint=/skep"},
		Args:  []string{"-w", "auto", "--", "/hold"},
	})
	c.WaitLog(`cannot keep skep's program in memory: the kernel may end skep.* error=`, 1, 60*time.Second)
}

// pagesRead is how often the container's first process had to wait for a page from the disk (proc_pid_stat(5)).
func pagesRead(t *testing.T, c *dockertest.Container) int {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.State().Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, fields, _ := strings.Cut(string(stat), ") ")
	n, err := strconv.Atoi(strings.Fields(fields)[9])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFirstWorkerTooLarge gives the first worker less than it needs: before it
// listens, and after.
func TestFirstWorkerTooLarge(t *testing.T) {
	t.Parallel()
	const clear = "the first worker does not fit: the kernel killed it because memory ran out; raise the memory limit"
	for _, hold := range [][]string{{"-mib=200"}, {"-mib=200", "-late"}} {
		t.Run(fmt.Sprint(hold), func(t *testing.T) {
			t.Parallel() // it mostly waits
			c := fitting(t, "64m", nil, hold...)
			if code := c.Wait(90 * time.Second); code != 137 {
				t.Errorf("exit code %d, want 137", code)
			}
			log := c.Logs()
			if n := strings.Count(log, clear); n != 1 {
				t.Errorf("the log has the clear line %d times, want once", n)
			}
			if n := strings.Count(log, "worker started slot"); n < 1 || n > 5 {
				t.Errorf("%d starts, want at most as many as --start-limit has", n)
			}
		})
	}
}
