package e2e

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"skep/internal/dockertest"
)

// TestSwarm has a service with limits in a real Swarm of one node. What
// --limit-memory and --limit-cpu set is what skep counts by, whichever of both
// bounds the number, and the log of the task and skep plan say so.
func TestSwarm(t *testing.T) {
	image := scratchImage(t)
	dockertest.Swarm(t)
	for name, c := range map[string]struct {
		limits, flags []string
		mib           string
		workers       int
		why           string // of the number in force
		plan          string // the first line, when one worker needs 100 MB
		sources       []string
	}{
		"memory": {
			limits: []string{"--limit-memory=300m", "--limit-cpu=1.5"}, flags: []string{"--workers-per-cpu=2"}, mib: "95", workers: 2,
			why:     `2 workers: memory 300 MiB × 0\.8 − \S+ MiB base = \S+ MiB fits 2 × \S+ MiB; cpu 1\.5 × 2 allows 3; memory decides`,
			plan:    `2 workers: memory 300 MiB × 0\.8 − 0 base = 240 MiB fits 2 × 95\.3 MiB; cpu 1\.5 × 2 allows 3; memory decides`,
			sources: []string{`memory +314572800 bytes, from /sys/fs/cgroup/\S*memory\.(limit_in_bytes|max)`, `cpus +1\.5, from /sys/fs/cgroup/\S*cpu\.(cfs_quota_us|max)`},
		},
		"cpu": {
			limits: []string{"--limit-memory=512m", "--limit-cpu=1.5"}, mib: "20", workers: 2,
			why:     `2 workers: memory 512 MiB × 0\.8 − \S+ MiB base = \S+ MiB fits \d\d × \S+ MiB; cpu 1\.5 × 1 allows 2; cpu decides`,
			plan:    `2 workers: memory 512 MiB × 0\.8 − 0 base = 409\.6 MiB fits 4 × 95\.3 MiB; cpu 1\.5 × 1 allows 2; cpu decides`,
			sources: []string{`memory +536870912 bytes, from /sys/fs/cgroup/`, `cpus +1\.5, from /sys/fs/cgroup/`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			task := dockertest.Service(t, dockertest.Options{
				Image: image,
				Flags: append(c.limits, "--entrypoint=/skep"),
				Args:  append(append([]string{"-w", "auto"}, c.flags...), "--", "/hold", "-mib="+c.mib),
			})
			task.WaitLog(`worker ready`, c.workers, 60*time.Second)
			wantHolders(t, task, c.workers, sizedBy)
			log := task.Logs()
			if !regexp.MustCompile(`number of workers changes .*to=2 why="` + c.why).MatchString(log) {
				t.Errorf("the log does not say why there are %d:\n%s", c.workers, log)
			}
			if n := strings.Count(log, "worker started"); n != c.workers {
				t.Errorf("%d workers were started, want %d", n, c.workers)
			}
			plan := task.Exec(append(append([]string{"/skep", "plan", "-w", "auto"}, c.flags...), "--worker-memory=100M")...)
			for _, line := range append(c.sources, "^"+c.plan+"\n") {
				if !regexp.MustCompile(line).MatchString(plan.Stdout) {
					t.Errorf("skep plan has no line like %q:\n%s%s", line, plan.Stdout, plan.Stderr)
				}
			}
			if n := oomKills(t, task); n != 0 {
				t.Errorf("the kernel killed %d times for memory", n)
			}
		})
	}
}
