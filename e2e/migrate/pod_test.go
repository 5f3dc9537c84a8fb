package migrate

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"skep/internal/dockertest"
	"skep/internal/testneed"
)

// podman has storage of its own under a test's folder: nothing of it is seen by,
// or seen of, whatever else the machine runs.
type podman struct {
	t   *testing.T
	dir string
}

func newPodman(t *testing.T) podman {
	t.Helper()
	testneed.Root(t)
	testneed.Program(t, "podman")
	testneed.Program(t, "runc")
	// The path of its sockets has to be short.
	dir, err := os.MkdirTemp("", "skep-pod")
	if err != nil {
		t.Fatal(err)
	}
	p := podman{t, dir}
	t.Cleanup(func() {
		if out, err := p.command("rmi", "--all", "--force").CombinedOutput(); err != nil {
			t.Errorf("cannot remove podman's images: %v: %s", err, out)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	// Its own defaults ask for more than the hard limit of some machines. The
	// number of processes counts those of the whole machine.
	config := "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=20000:20000\"]\n" +
		"[engine]\nevents_logger = \"file\"\n"
	if err := os.WriteFile(filepath.Join(dir, "containers.conf"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p podman) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	p.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "podman", append([]string{
		"--root", filepath.Join(p.dir, "root"), "--runroot", filepath.Join(p.dir, "run"), "--tmpdir", filepath.Join(p.dir, "tmp"),
		"--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", "runc",
	}, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+filepath.Join(p.dir, "containers.conf"), "TMPDIR="+p.dir)
	cmd.WaitDelay = time.Second
	return cmd
}

func (p podman) must(args ...string) string {
	p.t.Helper()
	out, err := p.command(args...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("podman %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// listener counts who comes: a wait says nothing, a step says a line.
type listener struct {
	net.Listener
	mu    sync.Mutex
	waits int
	lines []string
}

func listen(t *testing.T) *listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // at the end of its life
	own := &listener{Listener: l}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			line, err := bufio.NewReader(conn).ReadString('\n')
			_ = conn.Close() // everything has been read
			own.mu.Lock()
			if err != nil {
				own.waits++
			} else {
				own.lines = append(own.lines, strings.TrimSpace(line))
			}
			own.mu.Unlock()
		}
	}()
	return own
}

func (l *listener) seen() (waits int, lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waits, append([]string(nil), l.lines...)
}

func (l *listener) port() int { return l.Addr().(*net.TCPAddr).Port }

// documentPod lets podman play the pod of the document's Deployment: its init
// container does the steps once, its main container serves without them. The pod
// has the machine's network, since that needs no network of podman's, and is
// never restarted: otherwise podman 4 also starts an init container that ended
// well again, which Kubernetes does not.
func documentPod(t *testing.T, deployment string) {
	t.Helper()
	var whole struct {
		APIVersion string
		Kind       string
		Metadata   map[string]any
		Spec       struct {
			Replicas int
			Selector map[string]any
			Template struct {
				Metadata map[string]any
				Spec     map[string][]map[string]any
			}
		}
	}
	yaml(t, deployment, &whole)
	p := newPodman(t)
	told := listen(t)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serving := free.Addr().String()
	_ = free.Close() // the pod takes it

	image := derived(t, "debian:bookworm-slim", map[string]string{
		"SKEP_WAIT":     fmt.Sprintf("tcp://127.0.0.1:%d", told.port()),
		"SKEP_PRESTART": fmt.Sprintf(`bash -c 'echo "step of $PPID" >/dev/tcp/127.0.0.1/%d'`, told.port()),
		"SKEP_WORKERS":  "2",
	}, "CMD [\"/hello\", \"-addr\", \""+serving+"\"]")
	archive := filepath.Join(p.dir, "image.tar")
	dockertest.Save(t, image, "localhost/shop:1.4", archive)
	p.must("load", "--quiet", "--input", archive)

	// play starts the pod, with a change, and returns what went wrong.
	play := func(change ...string) string {
		t.Helper()
		spec := map[string]any{"hostNetwork": true, "restartPolicy": "Never"}
		for kind, containers := range whole.Spec.Template.Spec {
			for _, c := range containers {
				c["image"], c["imagePullPolicy"] = "localhost/shop:1.4", "Never"
				delete(c, "ports") // which podman wants a network of its own for
			}
			spec[kind] = containers
		}
		text, err := json.Marshal(map[string]any{
			"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "shop-pod"}, "spec": spec,
		})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(p.dir, "pod.yaml") // JSON is YAML
		if err := os.WriteFile(file, []byte(strings.NewReplacer(change...).Replace(string(text))), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := p.command("play", "kube", file).CombinedOutput(); err != nil {
			said, _ := p.command("logs", "shop-pod-prestart").CombinedOutput() // it may be gone
			return fmt.Sprintf("%v: %s\nthe init container said:\n%s", err, out, said)
		}
		return ""
	}
	t.Cleanup(func() {
		if out, err := p.command("pod", "rm", "--all", "--force", "--time", "1").CombinedOutput(); err != nil {
			t.Errorf("cannot remove the pod: %v: %s", err, out)
		}
	})

	if failure := play(); failure != "" {
		t.Fatal(failure)
	}
	deadline := time.Now().Add(within)
	for {
		resp, err := http.Get("http://" + serving) //nolint:gosec,noctx // a test's own server
		if err == nil {
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close() // read to its end
			if err != nil || !strings.HasPrefix(string(body), "hello from pid") {
				t.Errorf("answer %q, %v", body, err)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the pod does not serve: %v\n%s", err, p.must("ps", "--all"))
		}
		time.Sleep(50 * time.Millisecond)
	}
	waits, lines := told.seen()
	if waits != 1 || len(lines) != 1 || lines[0] != "step of 1" {
		t.Errorf("%d waits and the steps %q, want one of each, by PID 1 of the init container", waits, lines)
	}
	p.must("pod", "rm", "--all", "--force", "--time", "1")

	// Without the flag in the main container that one does the steps again: what
	// was counted above counts.
	if failure := play("SKEP_SKIP_PRESTART", "SKEP_NOT_A_FLAG"); failure != "" {
		t.Fatal(failure)
	}
	for deadline = time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		if _, lines = told.seen(); len(lines) == 3 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("steps %q, want three", lines)
		}
	}
	p.must("pod", "rm", "--all", "--force", "--time", "1")

	// A step that fails keeps the main container from starting.
	if failure := play(`"/skep","prestart"`, `"/skep","prestart","--prestart","sh -c 'exit 7'"`); !strings.Contains(failure, "exited with code 7") {
		t.Errorf("a failing step: podman says %q", failure)
	}
	if running := p.must("ps", "--format", "{{.Names}}"); strings.Contains(running, "pod-shop") {
		t.Errorf("the main container runs: %s", running)
	}
}
