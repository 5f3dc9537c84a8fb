package e2e

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"skep/internal/dockertest"
)

// gunicornUnder runs gunicorn, which forks its own workers after it has begun to
// listen, under skep in 512 MiB and on two processors.
func gunicornUnder(t *testing.T, env, flags []string, more ...string) *dockertest.Container {
	t.Helper()
	docker := []string{"--memory=512m", "--memory-swap=512m", "--cpus=2", "--entrypoint=/skep"}
	for _, e := range env {
		docker = append(docker, "--env="+e)
	}
	command := append(append([]string{}, flags...), "--", "gunicorn", "--worker-class=uvicorn.workers.UvicornWorker", "--bind=0.0.0.0:8000")
	return dockertest.Run(t, dockertest.Options{
		Image:   serversImage(t),
		Flags:   docker,
		Args:    append(append(command, more...), "app:app"),
		Publish: []int{8000},
	})
}

// gunicorns counts the processes of gunicorn: masters and workers.
func gunicorns(c *dockertest.Container) (masters, workers int) {
	parents := map[int]bool{}
	all := c.Processes()
	for _, p := range all {
		if strings.Contains(p.Command, "/gunicorn") {
			parents[p.HostPid] = true
		}
	}
	for _, p := range all {
		switch {
		case parents[p.HostPid] && parents[p.Parent]:
			workers++
		case parents[p.HostPid]:
			masters++
		}
	}
	return masters, workers
}

// TestGunicornIsLeftAlone has skep find out what gunicorn is: it listens before it
// has forked, and must not be taken for a server without workers.
func TestGunicornIsLeftAlone(t *testing.T) {
	c := gunicornUnder(t, nil, nil, "--workers=3")
	line := c.WaitLog(`running one process|replicating`, 1, 2*time.Minute)[0]
	if !strings.Contains(line, "it has forked workers of its own") || !strings.Contains(line, "--export-workers") {
		t.Errorf("skep says %q", line)
	}
	waitFor(t, c.URL(8000), 60*time.Second, "answers by 3 workers", func(seen []request) bool { return len(pids(seen)) == 3 })
	if masters, workers := gunicorns(c); masters != 1 || workers != 3 {
		t.Errorf("%d masters and %d workers, want 1 and 3", masters, workers)
	}
}

// TestGunicornIsToldTheNumber gives the number to gunicorn's own workers, in the
// environment and as an argument.
func TestGunicornIsToldTheNumber(t *testing.T) {
	const why = `serving workers=5 why="5 workers: memory 512 MiB × 0\.8 − \S+ MiB base = \S+ MiB fits 5 × 76\.2 MiB; cpu 2 × 8 allows 16; memory decides"`
	for name, more := range map[string][]string{"WEB_CONCURRENCY": nil, "argument": {"--workers={workers}"}} {
		t.Run(name, func(t *testing.T) {
			flags := []string{"--workers-per-cpu=8", "--worker-memory=80M"}
			if more == nil {
				flags = append(flags, "--export-workers")
			}
			c := gunicornUnder(t, nil, flags, more...)
			c.WaitLog(why, 1, 60*time.Second)
			waitFor(t, c.URL(8000), 2*time.Minute, "answers by 5 workers", func(seen []request) bool { return len(pids(seen)) == 5 })
			if masters, workers := gunicorns(c); masters != 1 || workers != 5 {
				t.Errorf("%d masters and %d workers, want 1 and 5", masters, workers)
			}
			if log := c.Logs(); strings.Contains(log, "learn") || strings.Contains(log, "does not bound") {
				t.Errorf("the log speaks of learning, or of a number without a bound:\n%s", log)
			}
		})
	}
	t.Run("without a size", func(t *testing.T) {
		c := gunicornUnder(t, nil, []string{"--export-workers"})
		c.WaitLog(`the memory limit does not bound the number .* give --worker-memory`, 1, 60*time.Second)
		c.WaitLog(`serving workers=2 why="2 workers: .*; cpu 2 × 1 allows 2; cpu decides"`, 1, 60*time.Second)
	})
}

// TestGunicornIsMeasuredWhole replicates gunicorn as it was told to. When it
// listens it is small: its worker, forked later, has the application, which takes
// its time and then 60 MiB. What is learned is all of it; also when the application
// waits for so long that the others are being started already.
func TestGunicornIsMeasuredWhole(t *testing.T) {
	t.Parallel()
	for _, delay := range []string{"1.5", "7"} {
		t.Run(delay+" s", func(t *testing.T) {
			t.Parallel() // it mostly waits
			c := gunicornUnder(t, []string{"IMPORT_DELAY=" + delay, "IMPORT_MB=60"}, []string{"-w", "auto", "--workers-per-cpu=8"})
			// Gunicorn, its worker and the 60 MiB in it need about 95.
			line := c.WaitLog(`learned what one worker needs .* fits \d × (7[5-9]|[89]\d|1[0-2]\d)(\.\d)? MiB`, 1, 2*time.Minute)[0]
			t.Log(line)
			count, _ := strconv.Atoi(regexp.MustCompile(`fits (\d) ×`).FindStringSubmatch(line)[1])
			settledWorkers(t, c)
			masters, workers := 0, 0
			for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
				if masters, workers = gunicorns(c); masters == workers && (masters == count || masters == count-1) {
					break
				}
			}
			if masters != workers || masters < count-1 || masters > count {
				t.Errorf("%d masters and %d workers, want %d of each, or one fewer", masters, workers, count)
			}
			if kills := oomKills(t, c); kills != 0 {
				t.Errorf("the kernel killed %d times for memory", kills)
			}
		})
	}
}
