package dockertest

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"skep/internal/testneed"
)

// bridge is the network by which a Swarm's containers reach the machine. The engine
// makes it with the Swarm and leaves it there.
const bridge = "docker_gwbridge"

// Swarm has the engine be a Swarm of one node, which listens on loopback only,
// until the test ends. One that is there already is used as it is and stays, unless
// a test that was cut short has left it: those carry the label skep.test on their
// node. Only one test at a time has the Swarm, of all test binaries.
func Swarm(t testing.TB) {
	t.Helper()
	testneed.Docker(t)
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "skep-swarm.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lock.Close() }) // and with it the lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	switch state := must(t, "info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}"); state {
	case "inactive false":
		hadBridge := hasBridge(t)
		must(t, "swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:2377")
		t.Cleanup(func() { leave(t, !hadBridge) })
		must(t, "node", "update", "--label-add", Label+"="+runValue, must(t, "info", "--format", "{{.Swarm.NodeID}}"))
		// Made a moment later; once it is there, it can be removed.
		await(t, "the Swarm's bridge", func() bool { return hasBridge(t) })
	case "active true":
		if strings.Contains(must(t, "node", "inspect", "--format", "{{json .Spec.Labels}}", "self"), `"`+Label+`"`) {
			t.Cleanup(func() { leave(t, true) })
		}
	default:
		testneed.Skip(t, "needs an engine that is in no Swarm or manages one; it is %s", state)
	}
}

func leave(t testing.TB, withBridge bool) {
	t.Helper()
	must(t, "swarm", "leave", "--force")
	if withBridge {
		await(t, "no Swarm's bridge", func() bool {
			_, _ = docker("network", "rm", bridge) // refused while the engine still takes the Swarm down
			return !hasBridge(t)
		})
	}
}

func hasBridge(t testing.TB) bool {
	t.Helper()
	return must(t, "network", "ls", "--quiet", "--filter", "name=^"+bridge+"$") != ""
}

// await asks again and again, for a minute.
func await(t testing.TB, what string, there func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !there(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not there after a minute: %s", what)
		}
	}
}

// Service starts a service of one task in the Swarm that the test has and returns
// the task's container. Flags are those of docker service create. The task is not
// started again when it ends.
func Service(t testing.TB, o Options) *Container {
	t.Helper()
	used.Store(true)
	args := append([]string{"service", "create", "--detach", "--quiet", "--no-resolve-image", "--restart-condition=none"}, labels()...)
	for i, l := range labels() {
		if i%2 == 1 {
			args = append(args, "--container-label", l)
		}
	}
	args = append(append(args, o.Flags...), o.Image)
	service := must(t, append(args, o.Args...)...)
	c := &Container{t: t}
	tasks := func(which ...string) string {
		return must(t, append([]string{"ps", "--all", "--quiet", "--no-trunc", "--filter", "label=com.docker.swarm.service.id=" + service}, which...)...)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("tasks of service %.12s:\n%s", service, must(t, "service", "ps", "--no-trunc", service))
			if c.ID != "" {
				t.Logf("log of container %.12s:\n%s", c.ID, c.Logs())
			}
		}
		must(t, "service", "rm", service)
		// The engine stops and removes the task in its own time.
		await(t, "the end of the service's container", func() bool { return tasks() == "" })
	})
	await(t, "the service's container", func() bool {
		c.ID = tasks("--filter", "status=running", "--filter", "status=exited")
		return c.ID != ""
	})
	return c
}
