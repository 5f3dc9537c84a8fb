package migrate

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep/internal/dockertest"
	"skep/internal/testneed"
)

// derived builds an image from Dockerfile.test with environment of its own and
// further lines, as an image's author writes it.
func derived(t *testing.T, base string, env map[string]string, lines ...string) string {
	t.Helper()
	from := imageOn(t, base)
	dir := t.TempDir()
	text := "FROM " + from + "\n"
	for name, value := range env {
		text += "ENV " + name + "=" + quoted(value) + "\n"
	}
	text += strings.Join(lines, "\n") + "\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dockertest.Build(t, dir, "Dockerfile")
}

// quoted is a value as a Dockerfile has it, in which \ and $ mean something.
func quoted(value string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`).Replace(value) + `"`
}

// TestInitContainer runs one image with one configuration as init container and
// as main container: the first does the steps and nothing else, the second all
// but the steps.
func TestInitContainer(t *testing.T) {
	image := derived(t, "debian:bookworm-slim", map[string]string{
		"SKEP_PRESTART": `sh -c 'echo step by pid $$ of $PPID | tee -a /data/steps'`,
		"SKEP_WAIT":     "file:///data",
		"SKEP_WORKERS":  "2",
	})
	volume := "--volume=" + dockertest.Volume(t) + ":/data"
	steps := func() string {
		return dockertest.Once(t, dockertest.Options{Image: image, Flags: []string{volume, "--entrypoint=cat"}, Args: []string{"/data/steps"}}).Stdout
	}

	first := dockertest.Once(t, dockertest.Options{Image: image, Flags: []string{volume, "--entrypoint=/skep"}, Args: []string{"prestart"}})
	if first.Code != 0 || !strings.HasPrefix(first.Stdout, "step by pid") || !strings.HasSuffix(first.Stdout, " of 1\n") {
		t.Fatalf("skep prestart: exit code %d, stdout %q, stderr %q", first.Code, first.Stdout, first.Stderr)
	}
	done := steps()

	c := dockertest.Run(t, dockertest.Options{
		Image: image, Flags: []string{volume, "--env=SKEP_SKIP_PRESTART=true"},
		Args: []string{"/hello"}, Publish: []int{8000},
	})
	c.WaitLog("worker ready", 2, within)
	if log := c.Logs(); strings.Contains(log, "step") {
		t.Errorf("the main container tells of steps:\n%s", log)
	}
	if now := steps(); now != done || strings.Count(now, "\n") != 1 {
		t.Errorf("steps that ran: %q, after the init container: %q", now, done)
	}
	if _, code := c.Stop(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}

	// A step that fails is the init container's code, by which Kubernetes tries
	// again and starts no main container.
	failed := dockertest.Once(t, dockertest.Options{
		Image: image, Flags: []string{volume, "--entrypoint=/skep", "--env=SKEP_PRESTART=sh -c 'exit 7'"}, Args: []string{"prestart"},
	})
	if failed.Code != 7 {
		t.Errorf("failing step: exit code %d, want 7; stderr %q", failed.Code, failed.Stderr)
	}
}

// TestStepsOnATerminal gives the container a terminal, as one who looks around
// in the image does: the steps are skipped, with one line. skep prestart runs
// them all the same, as that is all it is for.
func TestStepsOnATerminal(t *testing.T) {
	image := imageOn(t, "debian:bookworm-slim")
	const line = "skep: warning: the steps before the start are not run for a command on a terminal; skep prestart runs them"
	step := []string{"--env=SKEP_PRESTART=echo stepped", "--entrypoint=/skep"}

	on := dockertest.Once(t, dockertest.Options{Image: image, Flags: append(step, "--tty"), Args: []string{"--", "echo", "ran"}})
	if want := line + "\r\nran\r\n"; on.Code != 0 || on.Stdout != want {
		t.Errorf("on a terminal: exit code %d, %q; want 0 and %q", on.Code, on.Stdout, want)
	}
	off := dockertest.Once(t, dockertest.Options{Image: image, Flags: step, Args: []string{"--", "echo", "ran"}})
	if off.Code != 0 || off.Stdout != "stepped\nran\n" || strings.Contains(off.Stderr, "terminal") {
		t.Errorf("without a terminal: exit code %d, stdout %q, stderr %q", off.Code, off.Stdout, off.Stderr)
	}
	alone := dockertest.Once(t, dockertest.Options{Image: image, Flags: append(step, "--tty"), Args: []string{"prestart"}})
	if alone.Code != 0 || !strings.Contains(alone.Stdout, "stepped\r\n") || strings.Contains(alone.Stdout, line) {
		t.Errorf("skep prestart on a terminal: exit code %d, %q", alone.Code, alone.Stdout)
	}
	none := dockertest.Once(t, dockertest.Options{Image: image, Flags: []string{"--tty"}, Args: []string{"echo", "ran"}})
	if none.Stdout != "ran\r\n" {
		t.Errorf("on a terminal and without steps: %q, want the command's output alone", none.Stdout)
	}
}

// TestOtherUser has the steps and the worker run as another user than skep, on
// a root that cannot be written: each step reads and writes its SKEP_ENV, which
// nobody else may read, wherever it had to be made.
func TestOtherUser(t *testing.T) {
	image := imageOn(t, "debian:bookworm-slim")
	script := `id -u; stat -L -c "%a %u:%g" "$SKEP_ENV"; cat "$SKEP_ENV"; echo "HANDED=$HANDED.$(id -u)" >>"$SKEP_ENV"`
	for _, c := range []struct {
		name  string
		flags []string
		uid   string
		owner string
	}{
		{"user", []string{"--env=SKEP_USER=4321:5432"}, "4321", "4321:5432"},
		{"user, read-only", []string{"--env=SKEP_USER=4321:5432", "--read-only"}, "4321", "4321:5432"},
		{"user, nothing writable", []string{"--env=SKEP_USER=4321:5432", "--read-only", "--volume=/etc:/dev/shm:ro"}, "4321", "4321:5432"},
		{"the container's user, read-only", []string{"--user=4321:5432", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"}, "4321", "4321:5432"},
		{"the container's user, nothing writable", []string{"--user=4321:5432", "--read-only", "--volume=/etc:/dev/shm:ro"}, "4321", "4321:5432"},
		{"root, nothing writable", []string{"--read-only", "--volume=/etc:/dev/shm:ro"}, "0", "0:0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := dockertest.Once(t, dockertest.Options{
				Image: image,
				Flags: append(c.flags, "--env=SKEP_PRESTART=sh -c '"+script+"'\nsh -c '"+script+"'"),
				Args:  []string{"sh", "-c", `echo "worker $(id -u) $HANDED ${SKEP_ENV-none}"`},
			})
			stepped := c.uid + "\n600 " + c.owner + "\n"
			want := stepped + stepped + "worker " + c.uid + " ." + c.uid + "." + c.uid + " none\n"
			if r.Code != 0 || r.Stdout != want {
				t.Errorf("exit code %d, stdout %q, want 0 and %q; stderr:\n%s", r.Code, r.Stdout, want, r.Stderr)
			}
		})
	}
}

// TestScratch runs steps where there is nothing but skep and one static
// program: no shell, no /etc, a root that cannot be written, no rights.
func TestScratch(t *testing.T) {
	from := imageOn(t, "scratch")
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "step"), "./testdata/step")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the step: %v\n%s", err, out)
	}
	text := "FROM " + from + "\nCOPY step /bin/step\nCOPY step /etc/skep/prestart.d/10-last\n" +
		`ENV PATH=/bin SKEP_PRESTART="step 'one word' two \"th\\\\ree\""` + "\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	image := dockertest.Build(t, dir, "Dockerfile")
	r := dockertest.Once(t, dockertest.Options{
		Image: image,
		Flags: []string{"--read-only", "--user=1000", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--entrypoint=/skep"},
		Args:  []string{"--wait", "file:///bin/step", "--", "step", "as worker"},
	})
	want := `step "one word" "two" "th\\ree": STEPS=` + "\n" + `10-last: STEPS=/step` + "\n" + `step "as worker": STEPS=/step/10-last` + "\n"
	if r.Code != 0 || r.Stdout != want {
		t.Errorf("exit code %d, stdout\n%swant 0 and\n%sstderr:\n%s", r.Code, r.Stdout, want, r.Stderr)
	}
	missing := dockertest.Once(t, dockertest.Options{Image: image, Flags: []string{"--env=SKEP_PRESTART=sh -c true"}, Args: []string{"step"}})
	if missing.Code != 127 || missing.Stdout != "" || !strings.Contains(missing.Stderr, "sh") {
		t.Errorf("a shell where there is none: exit code %d, stdout %q, stderr %q", missing.Code, missing.Stdout, missing.Stderr)
	}
}

// TestOrphansOfSteps leaves processes behind in a step, which skep as PID 1 has
// to take when they end; the stop takes the rest.
func TestOrphansOfSteps(t *testing.T) {
	testneed.Root(t)
	c := dockertest.Run(t, dockertest.Options{
		Image: imageOn(t, "debian:bookworm-slim"),
		Flags: []string{"--env=SKEP_PRESTART=sh -c 'for i in 1 2 3 4 5 6 7 8 9 10; do (sleep 0.0$i; exit $i) & done; setsid sleep 600 & exec true'\n" +
			"sh -c 'echo second; exec sleep 600'"},
		Args: []string{"echo", "worker"},
	})
	c.WaitLog("^second$", 1, within)
	for deadline := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		ps := c.Processes()
		if len(ps) == 3 { // skep, the second step, and what the first left
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("want skep and two others: %+v", ps)
		}
	}
	if took, code := c.Stop(); code != 143 || took > 10*time.Second {
		t.Errorf("docker stop took %v, exit code %d; want 143 before the engine kills", took, code)
	}
	if log := c.Logs(); strings.Contains(log, "worker\n") {
		t.Errorf("a worker was started:\n%s", log)
	}
}
