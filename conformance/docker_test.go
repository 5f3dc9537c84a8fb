package conformance

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"skep/internal/testneed"
)

// The image is almost empty: the machine's own /usr is mounted into every container, so the same programs run there as in the other modes, and no
// registry is asked for anything.
const image = "skep-test/conformance:empty"

// label marks every Docker object that a test makes.
const label = "skep.test=conformance"

var makeImage = sync.OnceValue(func() error {
	text, err := archive()
	if err != nil {
		return err
	}
	cmd := exec.Command("docker", "import", "-c", "LABEL "+label, "-c", "ENV PATH=/usr/bin", "-", image)
	cmd.Stdin = bytes.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot import an image: %w: %s", err, out)
	}
	return nil
})

// archive has the folders and links that a container with the machine's /usr needs.
func archive() ([]byte, error) {
	var text bytes.Buffer
	w := tar.NewWriter(&text)
	for _, dir := range []string{"usr", "tmp", "proc", "sys", "dev", "etc", "run", "sbin", "t", "probe"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	for _, dir := range []string{"bin", "lib", "lib64"} { // not sbin, where Docker puts its init
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: dir, Linkname: "usr/" + dir}); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return text.Bytes(), nil
}

// placeSubject puts the subject where containers find it, under its own name, and is the path there.
func (r *run) placeSubject() (folder, entry string) {
	if strings.HasPrefix(r.s.path, "/usr/") {
		return r.dir, r.s.path
	}
	to := filepath.Join(r.dir, r.s.argv0)
	if _, err := os.Stat(to); err != nil {
		text, err := os.ReadFile(r.s.path)
		r.must(err)
		r.program(r.s.argv0, string(text))
	}
	return r.dir, "/t/" + r.s.argv0
}

// container is a running one.
type container struct {
	r  *run
	id string
}

// container starts the command under the subject.
func (r *run) container(flags []string, command ...string) *container {
	r.t.Helper()
	testneed.Docker(r.t)
	if err := makeImage(); err != nil {
		r.failf("%v", err)
	}
	folder, entry := r.placeSubject()
	args, _ := r.s.args(options{}, command...)
	all := []string{"run", "-d", "--label", label, "--network", "none", "-v", "/usr:/usr:ro", "-v", folder + ":/t:ro", "-v", filepath.Dir(built.probe) + ":/probe:ro", "--entrypoint", entry}
	all = append(append(append(all, flags...), image), args...)
	id, err := r.shell("docker", all...)
	if err != nil {
		r.failf("docker run: %v: %s", err, id)
	}
	if at := strings.LastIndex(id, "\n"); at >= 0 { // warnings come first
		id = id[at+1:]
	}
	r.later(func() { r.shell("docker", "rm", "-f", "-v", id) })
	return &container{r: r, id: id}
}

// expectLog waits until the container has printed text.
func (c *container) expectLog(text string) {
	c.r.t.Helper()
	var out string
	deadline := time.Now().Add(2 * c.r.patient)
	for {
		out, _ = c.r.shell("docker", "logs", c.id)
		if strings.Contains(out, text) {
			return
		}
		if time.Now().After(deadline) || !c.running() && !strings.Contains(out, text) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if out, _ = c.r.shell("docker", "logs", c.id); strings.Contains(out, text) {
		return
	}
	c.r.failf("the container did not print %q, but %q", text, out)
}

func (c *container) running() bool {
	out, err := c.r.shell("docker", "inspect", "-f", "{{.State.Running}}", c.id)
	return err == nil && out == "true"
}

// wantCode waits for the container's end.
func (c *container) wantCode(want int, within time.Duration) {
	c.r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	out, err := exec.CommandContext(ctx, "docker", "wait", c.id).Output()
	logs, _ := c.r.shell("docker", "logs", c.id)
	if err != nil {
		c.r.failf("it did not end within %v; it said %q", within, logs)
	}
	if got := strings.TrimSpace(string(out)); got != strconv.Itoa(want) {
		c.r.failf("code %s instead of %d; it said %q", got, want, logs)
	}
}

func (c *container) kill(sig string) {
	c.r.t.Helper()
	if out, err := c.r.shell("docker", "kill", "-s", sig, c.id); err != nil {
		c.r.failf("docker kill -s %s: %v: %s", sig, err, out)
	}
}

// fewPids runs one process beside the init in a container that may have so many processes and threads.
func fewPids(limit int) func(r *run) {
	return func(r *run) {
		c := r.container([]string{"--pids-limit", strconv.Itoa(limit)}, probeInside, "stubborn", "7")
		c.expectLog("ready")
		c.kill("TERM")
		c.expectLog("got 15")
		c.kill("USR1")
		c.wantCode(7, r.patient)
	}
}

const probeInside = "/probe/probe"

// dockerCases are about what only an engine does to an init.
func dockerCases() []*testcase {
	return []*testcase{
		{name: "docker-stop", mode: docker, what: "docker stop ends it with 143, long before Docker's own 10 s", defects: []string{"no-forward"}, run: func(r *run) {
			c := r.container(nil, probeInside, "wait")
			c.expectLog("ready")
			began := time.Now()
			if out, err := r.shell("docker", "stop", c.id); err != nil {
				r.failf("%v: %s", err, out)
			}
			if took := time.Since(began); took > 5*time.Second {
				r.failf("docker stop took %v", took)
			}
			c.wantCode(143, r.patient)
		}},
		{name: "docker-kill", mode: docker, what: "docker kill -s HUP, INT, QUIT, USR1, WINCH, RTMIN+3 arrive", defects: []string{"no-realtime"}, run: func(r *run) {
			c := r.container(nil, probeInside, "signals")
			c.expectLog("got ready")
			for name, n := range map[string]int{"HUP": 1, "INT": 2, "QUIT": 3, "USR1": 10, "WINCH": 28, "RTMIN+3": 37} {
				c.kill(name)
				c.expectLog(fmt.Sprintf("got %d", n))
			}
		}},
		{name: "pids-limit-7", mode: docker, what: "--pids-limit 7 is enough for it and one process", defects: []string{"many-threads"}, run: fewPids(7)},
		{name: "pids-exhausted", mode: docker, what: "the command has used up all pids: TERM is still handled at once", defects: []string{"fork-to-forward"}, run: func(r *run) {
			c := r.container([]string{"--pids-limit", "25"}, probeInside, "fill")
			c.expectLog("full")
			c.kill("TERM")
			killed := time.Now()
			c.wantCode(143, 2*r.patient)
			// The engine's own clock: the client may be slow to hear of the end.
			text, err := r.shell("docker", "inspect", "-f", "{{.State.FinishedAt}}", c.id)
			r.must(err)
			ended, err := time.Parse(time.RFC3339Nano, text)
			r.must(err)
			if took := ended.Sub(killed); took > 2*time.Second {
				r.failf("it took %v", took)
			}
		}},
		{name: "hardened", mode: docker, what: "--read-only --cap-drop ALL --user 1000 no-new-privileges: works", defects: []string{"writes-root"}, run: func(r *run) {
			c := r.container([]string{"--read-only", "--cap-drop", "ALL", "--user", "1000", "--security-opt", "no-new-privileges"}, probeInside, "orphans", "20", "7")
			c.expectLog("ready")
			c.kill("USR1")
			c.wantCode(7, r.patient)
		}},
		{name: "exec-zombies", mode: docker, what: "what docker exec leaves behind is reaped", defects: []string{"no-reap"}, run: func(r *run) {
			c := r.container(nil, probeInside, "wait")
			c.expectLog("ready")
			for range 3 {
				// Each exec leaves six orphans.
				if out, err := r.shell("docker", "exec", c.id, "/bin/sh", "-c", "for i in 1 2 3 4 5 6; do sleep 0.1 & done"); err != nil {
					r.failf("docker exec: %v: %s", err, out)
				}
			}
			out, err := r.shell("docker", "inspect", "-f", "{{.State.Pid}}", c.id)
			r.must(err)
			pid, err := strconv.Atoi(out)
			r.must(err)
			r.eventually(r.patient, "only the command is left", func() bool { return len(children(pid)) == 1 })
		}},
	}
}

// TestInitPath starts a second Docker engine that uses skep as its docker-init: docker run --init has to work with it, and docker info to know its version.
// It has its own socket, folders, containerd and network namespace, so the machine's engine does not notice: an engine told --bridge=none removes the
// docker0 that it finds.
func TestInitPath(t *testing.T) {
	helpers(t)
	testneed.Root(t)
	dockerd := testneed.Program(t, "dockerd")
	testneed.Program(t, "containerd")
	dir, err := os.MkdirTemp("", "initpath")
	if err != nil {
		t.Fatal(err)
	}
	skep := skepBinary(t)
	link := filepath.Join(dir, "docker-init")
	if err := os.Symlink(skep, link); err != nil {
		t.Fatal(err)
	}
	socket := "unix://" + filepath.Join(dir, "docker.sock")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command("unshare", "--net", dockerd, "--init-path", link, "-H", socket, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=vfs", "--containerd-namespace=skep-test",
		"--containerd-plugins-namespace=skep-test-plugins", "--log-level=error", "--config-file", filepath.Join(dir, "none.json"))
	if err := os.WriteFile(filepath.Join(dir, "none.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		daemon.Process.Signal(os.Interrupt)
		ended := make(chan struct{})
		go func() { daemon.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			daemon.Process.Kill()
			<-ended
		}
		// A container's mount may outlast the engine for a moment.
		deadline := time.Now().Add(5 * time.Second)
		for os.RemoveAll(dir) != nil && time.Now().Before(deadline) {
			time.Sleep(50 * time.Millisecond)
		}
	})
	said := func() string {
		text, _ := os.ReadFile(log.Name())
		return string(text)
	}
	run := func(args ...string) (string, int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, "docker", append([]string{"-H", socket}, args...)...).CombinedOutput()
		code := 0
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			code = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out)), code
	}
	deadline := time.Now().Add(40 * time.Second)
	for {
		if out, code := run("version", "-f", "{{.Server.Version}}"); code == 0 {
			t.Logf("dockerd %s", out)
			break
		}
		if time.Now().After(deadline) {
			testneed.Skip(t, "a second Docker engine does not start here:\n%s", said())
		}
		time.Sleep(50 * time.Millisecond)
	}

	out, code := run("info")
	version := ""
	for line := range strings.Lines(out) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && key == "init version" {
			version = strings.TrimSpace(value)
		}
	}
	if code != 0 || version == "" || strings.Contains(strings.ToLower(version), "n/a") {
		t.Errorf("docker info does not know the init's version: %q\n%s", version, said())
	}
	t.Logf("docker info: init version %q", version)

	text, err := archive()
	if err != nil {
		t.Fatal(err)
	}
	load := exec.Command("docker", "-H", socket, "import", "-", "empty")
	load.Stdin = bytes.NewReader(text)
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	mounts := []string{"--init", "--network", "none", "--label", label, "-v", "/usr:/usr:ro", "-v", filepath.Dir(built.probe) + ":/probe:ro"}
	// PID 1 is skep, its command is process 2 or later, and the code is the command's.
	args := slices.Concat([]string{"run", "--rm"}, mounts, []string{"empty", "/usr/bin/dash", "-c", `read name </proc/1/comm; echo "$name $$ $PPID"; exit 7`})
	out, code = run(args...)
	fields := strings.Fields(out)
	if code != 7 || len(fields) != 3 || fields[0] != "docker-init" || fields[1] == "1" || fields[2] != "1" {
		t.Errorf("docker run --init: code %d, %q\n%s", code, out, said())
	}
	args = slices.Concat([]string{"run", "-d"}, mounts, []string{"empty", probeInside, "wait"})
	id, code := run(args...)
	if code != 0 {
		t.Fatalf("%s\n%s", id, said())
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if out, _ := run("logs", id); strings.Contains(out, "ready") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the command did not start")
		}
	}
	began := time.Now()
	run("stop", id)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("docker stop took %v", took)
	}
	if out, _ := run("inspect", "-f", "{{.State.ExitCode}}", id); out != "143" {
		t.Errorf("docker stop: code %s", out)
	}
	run("rm", "-f", id)
}
