// Package testneed names what a test needs from the machine it runs on.
//
// A test calls these before it does anything. On a machine that lacks the
// thing the test is skipped and says why; with SKEP_REQUIRE=all in the
// environment, as continuous integration sets it, the same test fails, so that
// a suite cannot become green by running less.
package testneed

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// dockerDeadline bounds the question whether a Docker engine answers. A
// stopped engine refuses at once; one that is starting can hang.
const dockerDeadline = 10 * time.Second

// Skip skips the test with a reason, or fails it with "required: " and the
// reason when the environment has SKEP_REQUIRE=all.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("SKEP_REQUIRE") == "all" {
		t.Fatalf("required: "+format, args...)
	}
	t.Skipf(format, args...)
}

// Root needs the test to run as user 0.
func Root(t testing.TB) {
	t.Helper()
	if uid := os.Geteuid(); uid != 0 {
		Skip(t, "needs root, runs as uid %d", uid)
	}
}

// Program needs the program name in PATH, or, when name holds a slash, at that
// path, and returns where it is.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Skip(t, "needs the program %s (make deps installs it)", name)
	}
	return path
}

// Docker needs the docker client and an engine that answers within 10 seconds.
// The engine is asked once per test binary.
func Docker(t testing.TB) {
	t.Helper()
	if why := dockerAnswers(); why != "" {
		Skip(t, "needs a Docker engine: %s", why)
	}
}

// dockerAnswers returns why no engine can be used, or "".
var dockerAnswers = sync.OnceValue(func() string {
	ctx, cancel := context.WithTimeout(context.Background(), dockerDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", "version", "--format", "{{.Server.Version}}")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return "it did not answer within " + dockerDeadline.String()
	case err != nil:
		if said := firstLine(string(out)); said != "" {
			return said
		}
		return err.Error()
	}
	return ""
})

// Linux needs a kernel of at least version major.minor.
func Linux(t testing.TB, major, minor int) {
	t.Helper()
	var uts syscall.Utsname
	if err := syscall.Uname(&uts); err != nil {
		t.Fatalf("cannot read the kernel's version: %v", err)
	}
	var b []byte
	for _, c := range uts.Release {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	release := string(b)
	gotMajor, gotMinor, ok := kernelVersion(release)
	if !ok {
		t.Fatalf("cannot read the kernel's version from %q", release)
	}
	if gotMajor < major || gotMajor == major && gotMinor < minor {
		Skip(t, "needs Linux %d.%d or later, runs on %s", major, minor, release)
	}
}

// kernelVersion returns the first two numbers of a release such as
// "6.18.44-cloud-amd64" or "5.9-rc1".
func kernelVersion(release string) (major, minor int, ok bool) {
	first, rest, found := strings.Cut(release, ".")
	if !found {
		return 0, 0, false
	}
	if end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
		rest = rest[:end]
	}
	major, err := strconv.Atoi(first)
	if err != nil {
		return 0, 0, false
	}
	minor, err = strconv.Atoi(rest)
	return major, minor, err == nil
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}
