// Package vm holds the stories that need a kernel of their own: skep as the first
// process of a virtual machine, under control groups of version 2.
package vm

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"skep/internal/testneed"
	"skep/internal/vmtest"
)

// within is long enough for an emulated machine on a busy one.
const within = 5 * time.Minute

// boot runs a scenario of internal/vmtest/guest and returns what it said.
func boot(t *testing.T, scenario string) (console string) {
	t.Helper()
	testneed.Program(t, "qemu-system-x86_64")
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	guest := filepath.Join(t.TempDir(), "guest")
	for _, build := range []*exec.Cmd{
		exec.Command("make", "-C", root, "build"),
		exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", guest, "skep/internal/vmtest/guest"),
	} {
		build.Env = append(build.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", build.Args, err, out)
		}
	}
	began := time.Now()
	console = vmtest.Run(t, vmtest.Machine{
		Root:   root,
		Files:  map[string]string{"init": guest, "skep": root + "/build/skep", "hold": root + "/build/hold"},
		Args:   []string{scenario},
		MiB:    "768",
		Within: within,
	})
	t.Logf("the machine ran for %v", time.Since(began).Round(time.Second))
	for line := range strings.Lines(console) {
		if strings.HasPrefix(line, "vm: ") {
			t.Log(strings.TrimSpace(line))
		}
	}
	if strings.Contains(console, "vm: failed") {
		t.Errorf("the scenario failed; the console:\n%s", console)
	}
	return console
}

// want checks that the console has a line like each expression.
func want(t *testing.T, console string, expressions ...string) {
	t.Helper()
	for _, e := range expressions {
		if !regexp.MustCompile("(?m)" + e).MatchString(console) {
			t.Errorf("the console has no line like %q", e)
		}
	}
	if t.Failed() {
		t.Logf("the console:\n%s", console)
	}
}

// TestFirstProcess is skep as the kernel's own process 1, on a machine that has no
// limits: it counts by the machine's memory and processor, replaces workers, waits
// for orphans, and a stop ends with 0, which the kernel tells in its last words.
func TestFirstProcess(t *testing.T) {
	want(t, boot(t, "machine"),
		`why="3 workers: machine memory \S+ MiB × 0\.8 .*cpu 1 × 3 allows 3; cpu decides"`,
		`^vm: replaced a killed worker`,
		`^vm: took in an orphan`,
		`^vm: score skep=0 worker=100`,
		`Attempted to kill init! exitcode=0x00000000`)
}

// TestLeakBeforeGroupKill has a worker leak where one kill would end the whole
// group: it is replaced before the limit, and nobody notices.
func TestLeakBeforeGroupKill(t *testing.T) {
	want(t, boot(t, "leak"),
		`replacing a worker .*cause=memory`,
		`^vm: recycled after`,
		`^vm: requests=\d+ failed=0 `,
		`^vm: oom=0 oom_kill=0$`)
}

// TestLimits changes limits while skep runs in a nested group.
func TestLimits(t *testing.T) {
	console := boot(t, "limits")
	want(t, console,
		`^vm: 4 workers after`,
		`^vm: pod/app/memory.high=max: 4 workers after`,
		`^vm: requests=\d+ failed=0 `,
		`^vm: oom_kill=0$`)
	for _, m := range regexp.MustCompile(`(?m)^vm: (\S+=\S+): \d+ workers after (\S+)$`).FindAllStringSubmatch(console, -1) {
		// Within 5 s is promised; twice that, as the machine is emulated.
		if took, err := time.ParseDuration(m[2]); err != nil || took > 10*time.Second {
			t.Errorf("after %s the number of workers was right only after %s", m[1], m[2])
		}
	}
}
