package dockertest

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"skep/internal/testneed"
)

const debian = "debian:bookworm-slim"

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func need(t *testing.T) {
	t.Helper()
	testneed.Docker(t)
	if !HasImage(t, debian) {
		testneed.Skip(t, "needs the image %s (make images)", debian)
	}
}

func TestOnceKeepsOutputsAndCodeApart(t *testing.T) {
	need(t)
	r := Once(t, Options{Image: debian, Args: []string{"sh", "-c", "echo out; echo err >&2; exit 7"}})
	if r.Stdout != "out\n" || r.Stderr != "err\n" || r.Code != 7 {
		t.Errorf("stdout %q, stderr %q, code %d; want out, err, 7", r.Stdout, r.Stderr, r.Code)
	}
}

func TestContainerFromStartToStop(t *testing.T) {
	need(t)
	c := Run(t, Options{
		Image: debian,
		Flags: []string{"--memory=64m"},
		Args:  []string{"sh", "-c", `trap "echo stopped; exit 3" TERM; echo up 1; echo up 2 >&2; sleep 30 & wait`},
	})
	if got := c.WaitLog(`^up \d$`, 2, 20*time.Second); len(got) != 2 {
		t.Errorf("matches %q, want two", got)
	}
	if s := c.State(); !s.Running || s.Pid == 0 {
		t.Errorf("state %+v, want a running process", s)
	}
	if r := c.Exec("sh", "-c", "echo inside; exit 4"); r.Stdout != "inside\n" || r.Code != 4 {
		t.Errorf("exec: stdout %q, code %d", r.Stdout, r.Code)
	}
	if ps := c.Processes(); !slices.ContainsFunc(ps, func(p Process) bool { return p.Command == "sleep 30" }) {
		t.Errorf("no sleep among %+v", ps)
	}
	took, code := c.Stop()
	if code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	if took > 9*time.Second {
		t.Errorf("the stop took %v: the engine had to kill", took)
	}
	if log := c.Logs(); !strings.Contains(log, "stopped\n") {
		t.Errorf("log %q", log)
	}
}

func TestWaitForEnd(t *testing.T) {
	need(t)
	c := Run(t, Options{Image: debian, Args: []string{"sh", "-c", "exit 5"}})
	if code := c.Wait(20 * time.Second); code != 5 {
		t.Errorf("exit code %d, want 5", code)
	}
}

func TestVolumeIsShared(t *testing.T) {
	need(t)
	mount := "--volume=" + Volume(t) + ":/shared"
	Once(t, Options{Image: debian, Flags: []string{mount}, Args: []string{"sh", "-c", "echo here >/shared/file"}})
	r := Once(t, Options{Image: debian, Flags: []string{mount}, Args: []string{"cat", "/shared/file"}})
	if r.Stdout != "here\n" {
		t.Errorf("the second container reads %q: %s", r.Stdout, r.Stderr)
	}
}

// TestSweepTakesOnlyItsOwn makes a container of this run and one of another,
// and sees that a sweep removes the first alone.
func TestSweepTakesOnlyItsOwn(t *testing.T) {
	need(t)
	own := must(t, "create", "--label", Label+"="+runValue, debian, "true")
	other := must(t, "create", "--label", Label+"=another-run", debian, "true")
	t.Cleanup(func() { must(t, "rm", other) })
	net := ownNetwork(t)
	volume := must(t, append([]string{"volume", "create"}, labels()...)...)
	sweep()
	network.id = "" // the next test makes another
	left := must(t, "ps", "-aq", "--no-trunc", "--filter", "label="+Label)
	if strings.Contains(left, own) {
		t.Error("the container of this run is still there")
	}
	if !strings.Contains(left, other) {
		t.Error("the container of another run was removed")
	}
	if networks := must(t, "network", "ls", "-q", "--no-trunc"); strings.Contains(networks, net) {
		t.Error("the network of this run is still there")
	}
	if volumes := must(t, "volume", "ls", "-q"); strings.Contains(volumes, volume) {
		t.Error("the volume of this run is still there")
	}
}
