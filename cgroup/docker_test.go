package cgroup

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"skep/internal/dockertest"
	"skep/internal/testneed"
	"skep/sizing"
)

// The test program is also what runs in the container: as what, the variable says.
const childEnv = "SKEP_CGROUP_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		os.Exit(dockertest.Main(m))
	case "report":
		report()
	case "oom": // lets the kernel kill a child for want of memory, and lives to tell
		hog := exec.Command("/proc/self/exe")
		hog.Env = []string{childEnv + "=hog"}
		err := hog.Run()
		var ee *exec.ExitError
		if !errors.As(err, &ee) || ee.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			fmt.Fprintf(os.Stderr, "the hog ended with %v\n", err)
			os.Exit(1)
		}
		report()
	case "hog":
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		b := make([]byte, 1<<30)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
	}
}

// found is what a container finds about itself.
type found struct {
	Limits Limits
	Usage  Usage
	Kills  uint64
	Counts bool // kills are counted here
	Files  []string
	Err    string
}

func report() {
	root := os.DirFS("/")
	p, err := Find(root)
	r := found{Limits: Read(root, p, 0), Files: LimitFiles(root, p)}
	if err == nil {
		r.Usage, err = ReadUsage(root, p, r.Limits)
	}
	if err != nil {
		r.Err = err.Error()
	}
	r.Kills, _, r.Counts = Events(root, p)
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		os.Exit(1)
	}
}

// What a real engine sets is what is found.
func TestDocker(t *testing.T) {
	testneed.Docker(t)
	image := dockertest.Build(t, imageFolder(t), "Dockerfile")
	for name, test := range map[string]func(*testing.T, string){
		"limits": dockerLimits, "none": dockerWithoutLimits, "shares": dockerShares, "oom": dockerOOMKillIsCounted,
	} {
		t.Run(name, func(t *testing.T) { test(t, image) })
	}
}

// inContainer runs the test program in a container of nothing else.
func inContainer(t *testing.T, image, what string, flags ...string) found {
	t.Helper()
	r := dockertest.Once(t, dockertest.Options{Image: image, Flags: append(flags, "--env", childEnv+"="+what)})
	if r.Code != 0 {
		t.Fatalf("the container ended with %d: %s", r.Code, r.Stderr)
	}
	var f found
	if err := json.Unmarshal([]byte(r.Stdout), &f); err != nil {
		t.Fatalf("%v in %q", err, r.Stdout)
	}
	if f.Err != "" {
		t.Error(f.Err)
	}
	return f
}

func imageFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	// Not this very binary: under the race detector it is linked dynamically, and the image has no libraries.
	build := exec.Command("go", "test", "-c", "-o", filepath.Join(dir, "t"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the program for the image: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY t /t\nENTRYPOINT [\"/t\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func dockerLimits(t *testing.T, image string) {
	f := inContainer(t, image, "report", "--memory=300m", "--cpus=1.5", "--cpuset-cpus=0", "--user=1000")
	if m := f.Limits.Memory; m.Bytes != 300*mib || !strings.HasPrefix(m.Source, sys) {
		t.Errorf("memory %+v", m)
	}
	if q := f.Limits.Quota; q.Milli != 1500 {
		t.Errorf("quota %+v", q)
	}
	if c := f.Limits.CPUSet; c.Milli != 1000 {
		t.Errorf("cpuset %+v", c)
	}
	if len(f.Limits.Warnings) != 0 {
		t.Errorf("warnings %q", f.Limits.Warnings)
	}
	if u := f.Usage; u.Limit.Bytes != 300*mib || u.Current == 0 || u.Current > 300*mib {
		t.Errorf("usage %+v", u)
	}
	if len(f.Files) < 3 {
		t.Errorf("files to watch %q", f.Files)
	}
	if d := sizing.Plan(f.Limits.Limits, sizing.Policy{WorkersPerCPU: 16000}, 100*mib); d.Workers != 2 {
		t.Errorf("%s", d.Reason)
	}
}

func dockerWithoutLimits(t *testing.T, image string) {
	f := inContainer(t, image, "report")
	if f.Limits.Memory.Set || f.Limits.Quota.Set || len(f.Limits.Warnings) != 0 || len(f.Limits.Levels) != 0 {
		t.Errorf("limits %+v", f.Limits)
	}
	if d := sizing.Plan(f.Limits.Limits, sizing.Policy{}, mib); d.Workers != 1 {
		t.Errorf("%s", d.Reason)
	}
}

func dockerShares(t *testing.T, image string) {
	f := inContainer(t, image, "report", "--cpu-shares=512")
	if s := f.Limits.Shares; s.Milli != 500 || f.Limits.SharesDefault {
		t.Errorf("shares %+v, default %v", s, f.Limits.SharesDefault)
	}
}

func dockerOOMKillIsCounted(t *testing.T, image string) {
	f := inContainer(t, image, "oom", "--memory=64m", "--memory-swap=64m")
	if !f.Counts || f.Kills != 1 {
		t.Errorf("%d kills, counted %v", f.Kills, f.Counts)
	}
}
