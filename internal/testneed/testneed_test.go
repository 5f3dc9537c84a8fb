package testneed

import (
	"fmt"
	"os"
	"runtime"
	"testing"
)

// recorder stands in for a test: it notes whether it was skipped or failed and
// ends its goroutine there, as a real test does.
type recorder struct {
	testing.TB
	outcome string
	message string
}

func (*recorder) Helper() {}

func (r *recorder) Skipf(format string, args ...any) {
	r.outcome, r.message = "skipped", fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.outcome, r.message = "failed", fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// record runs need with a recorder and returns what became of it; an outcome
// of "" means that need was met.
func record(need func(testing.TB)) *recorder {
	r := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		need(r)
	}()
	<-done
	return r
}

func TestSkipBecomesFailureWhenAllIsRequired(t *testing.T) {
	for _, c := range []struct {
		require, outcome, message string
	}{
		{"", "skipped", "needs 2 things"},
		{"some", "skipped", "needs 2 things"},
		{"all", "failed", "required: needs 2 things"},
	} {
		t.Setenv("SKEP_REQUIRE", c.require)
		r := record(func(t testing.TB) { Skip(t, "needs %d things", 2) })
		if r.outcome != c.outcome || r.message != c.message {
			t.Errorf("SKEP_REQUIRE=%q: %s with %q, want %s with %q", c.require, r.outcome, r.message, c.outcome, c.message)
		}
	}
}

func TestProgram(t *testing.T) {
	t.Setenv("SKEP_REQUIRE", "")
	var path string
	if r := record(func(t testing.TB) { path = Program(t, "sh") }); r.outcome != "" || path == "" {
		t.Errorf("sh: %s %q, path %q", r.outcome, r.message, path)
	}
	r := record(func(t testing.TB) { Program(t, "no-such-program-here") })
	if want := "needs the program no-such-program-here (make deps installs it)"; r.outcome != "skipped" || r.message != want {
		t.Errorf("missing program: %s with %q, want skipped with %q", r.outcome, r.message, want)
	}
}

func TestRoot(t *testing.T) {
	t.Setenv("SKEP_REQUIRE", "")
	want := "skipped"
	if os.Geteuid() == 0 {
		want = ""
	}
	if r := record(Root); r.outcome != want {
		t.Errorf("uid %d: outcome %q, want %q", os.Geteuid(), r.outcome, want)
	}
}

func TestDockerNamesWhatItLacks(t *testing.T) {
	t.Setenv("SKEP_REQUIRE", "")
	answers := dockerAnswers
	defer func() { dockerAnswers = answers }()
	dockerAnswers = func() string { return "the engine is down" }
	if r := record(Docker); r.outcome != "skipped" || r.message != "needs a Docker engine: the engine is down" {
		t.Errorf("%s with %q", r.outcome, r.message)
	}
	dockerAnswers = func() string { return "" }
	if r := record(Docker); r.outcome != "" {
		t.Errorf("with an engine: %s with %q", r.outcome, r.message)
	}
}

func TestLinux(t *testing.T) {
	t.Setenv("SKEP_REQUIRE", "")
	if r := record(func(t testing.TB) { Linux(t, 2, 6) }); r.outcome != "" {
		t.Errorf("2.6: %s with %q", r.outcome, r.message)
	}
	if r := record(func(t testing.TB) { Linux(t, 999, 0) }); r.outcome != "skipped" {
		t.Errorf("999.0: outcome %q, want skipped", r.outcome)
	}
}

func TestKernelVersion(t *testing.T) {
	for _, c := range []struct {
		release      string
		major, minor int
		ok           bool
	}{
		{"6.18.44-cloud-amd64", 6, 18, true},
		{"5.9-rc1", 5, 9, true},
		{"4.4", 4, 4, true},
		{"6", 0, 0, false},
		{"x.1", 0, 0, false},
		{"6.x", 0, 0, false},
		{"", 0, 0, false},
	} {
		major, minor, ok := kernelVersion(c.release)
		if ok != c.ok || ok && (major != c.major || minor != c.minor) {
			t.Errorf("%q: %d.%d %v, want %d.%d %v", c.release, major, minor, ok, c.major, c.minor, c.ok)
		}
	}
}
