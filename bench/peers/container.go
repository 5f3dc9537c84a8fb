package peers

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"skep/bench/load"
)

// Container is a program in a Docker container with the machine's own /usr,
// so that no image has to be fetched. It uses the host's network, loopback
// only.
type Container struct {
	ID   string
	Dir  string
	Addr netip.AddrPort
	// Cgroup is the folder of its memory controller; V2 says of which kind.
	Cgroup string
	V2     bool
}

const image = "skep-bench:empty"

// docker runs the client and returns its trimmed output.
func docker(ctx context.Context, t *Tools, stdin io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, t.Path("docker"), args...)
	cmd.Stdin = stdin
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("cannot run docker %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// emptyImage makes an image with nothing but the links that a system with a
// merged /usr has in its root.
func emptyImage(ctx context.Context, t *Tools) error {
	if _, err := docker(ctx, t, nil, "image", "inspect", image); err == nil {
		return nil
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, dir := range []string{"usr", "etc", "app", "tmp", "proc", "sys", "dev", "run", "var"} {
		if err := w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return err
		}
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := w.WriteHeader(&tar.Header{Name: link, Linkname: "usr/" + link, Typeflag: tar.TypeSymlink, Mode: 0o777}); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	_, err := docker(ctx, t, &b, "import", "-c", "LABEL skep.test=bench", "-", image)
	return err
}

// StartContainer runs argv in a new container with a memory limit, and with more
// flags of docker run if there are any. In argv, "{port}" becomes the port to serve
// on and "{skep}" the path of skep.
func StartContainer(ctx context.Context, t *Tools, argv, env []string, limit int64, flags ...string) (*Container, error) {
	if err := t.Check("docker"); err != nil {
		return nil, err
	}
	if target, err := os.Readlink("/bin"); err != nil || target != "usr/bin" {
		return nil, errors.New("this machine's /bin is not a link to usr/bin")
	}
	if err := emptyImage(ctx, t); err != nil {
		return nil, err
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	dir, err := Scratch()
	if err != nil {
		return nil, err
	}
	c := &Container{Dir: dir, Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port))}
	size := strconv.FormatInt(limit, 10)
	args := []string{"run", "--detach", "--label", "skep.test=bench", "--network", "host", "--memory", size, "--memory-swap", size,
		"--volume", "/usr:/usr:ro", "--volume", "/etc:/etc:ro", "--volume", dir + ":/app", "--workdir", "/app", "--tmpfs", "/tmp",
		"--env", "BENCH_SPAWN_LOG=/app/spawns", "--env", "PYTHONDONTWRITEBYTECODE=1", "--env", "SKEP_CONTROL=none",
		"--env", "PATH=/usr/local/bin:/usr/bin:/bin"}
	if t.Path("skep") != "" {
		args = append(args, "--volume", t.Path("skep")+":/skep:ro")
	}
	for _, e := range env {
		args = append(args, "--env", e)
	}
	args = append(append(args, flags...), image)
	for _, a := range argv {
		args = append(args, strings.NewReplacer("{port}", strconv.Itoa(port), "{skep}", "/skep").Replace(a))
	}
	c.ID, err = docker(ctx, t, nil, args...)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	if err := c.find(ctx, t); err != nil {
		err = fmt.Errorf("%w: %s", err, c.Log(ctx, t))
		c.End(t)
		return nil, err
	}
	return c, nil
}

// find learns the container's memory cgroup from its first process.
func (c *Container) find(ctx context.Context, t *Tools) error {
	pid, err := docker(ctx, t, nil, "inspect", "--format", "{{.State.Pid}}", c.ID)
	if err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil || pid == "0" {
		return errors.New("the container has ended")
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		if slices.Contains(strings.Split(f[1], ","), "memory") {
			c.Cgroup, c.V2 = filepath.Join("/sys/fs/cgroup/memory", f[2]), false
			return nil
		}
		if f[0] == "0" {
			c.Cgroup, c.V2 = filepath.Join("/sys/fs/cgroup", f[2]), true
		}
	}
	if _, err := os.Stat(filepath.Join(c.Cgroup, "memory.current")); err != nil {
		return fmt.Errorf("cannot find the container's memory: %w", err)
	}
	return nil
}

// Usage returns the container's memory in bytes, page cache that could go at
// once not counted, and the number of processes that the OOM killer has ended.
func (c *Container) Usage() (bytes, kills int64, err error) {
	read := func(v1, v2 string) []byte {
		name := v1
		if c.V2 {
			name = v2
		}
		b, e := os.ReadFile(filepath.Join(c.Cgroup, name))
		if e != nil {
			err = e
		}
		return b
	}
	usage := read("memory.usage_in_bytes", "memory.current")
	bytes, _ = strconv.ParseInt(strings.TrimSpace(string(usage)), 10, 64)
	stat := read("memory.stat", "memory.stat")
	if c.V2 {
		bytes -= field(stat, "inactive_file ")
	} else {
		bytes -= field(stat, "total_inactive_file ")
	}
	kills = field(read("memory.oom_control", "memory.events"), "oom_kill ")
	return max(bytes, 0), kills, err
}

// Running reports whether the container's first process still runs.
func (c *Container) Running(ctx context.Context, t *Tools) bool {
	out, err := docker(ctx, t, nil, "inspect", "--format", "{{.State.Running}}", c.ID)
	return err == nil && out == "true"
}

// Log returns the end of the container's output.
func (c *Container) Log(ctx context.Context, t *Tools) string {
	out, _ := exec.CommandContext(ctx, t.Path("docker"), "logs", "--tail", "3", c.ID).CombinedOutput()
	return strings.TrimSpace(string(out))
}

// AwaitAnswer waits until a request is answered.
func (c *Container) AwaitAnswer(ctx context.Context, t *Tools, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		records, err := load.Run(ctx, load.Options{Address: c.Addr, Timeout: time.Second}, []load.Arrival{{Path: "/"}})
		if err != nil {
			return err
		}
		if records[0].OK() {
			return nil
		}
		if !c.Running(ctx, t) {
			return fmt.Errorf("the container has ended: %s", c.Log(ctx, t))
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("no answer within %v: %s", limit, c.Log(ctx, t))
}

// End removes the container, by its own id.
func (c *Container) End(t *Tools) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, _ = docker(ctx, t, nil, "rm", "--force", "--volumes", c.ID)
	_ = os.RemoveAll(c.Dir)
}
