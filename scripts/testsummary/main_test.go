package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// module writes a module of the given files and returns its folder.
func module(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	files["go.mod"] = "module skep\n\ngo 1.26\n"
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// summarise runs the tests of a module under the summary and returns what it
// printed and the exit code.
func summarise(t *testing.T, files map[string]string, packages ...string) (string, int) {
	t.Helper()
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(module(t, files))
	var b strings.Builder
	s := newSummary(&b)
	code := run(append([]string{goTool, "test", "-json"}, packages...), s)
	s.close()
	return b.String(), code
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

const mixed = `package a

import "testing"

func TestPass(t *testing.T) {}
func TestNest(t *testing.T) {
	t.Run("ok", func(t *testing.T) {})
	t.Run("not", func(t *testing.T) { t.Skip("no moon: wait for the night") })
}
func TestOther(t *testing.T) { t.Skip("no moon: wait for the night") }
`

func TestAllWell(t *testing.T) {
	out, code := summarise(t, map[string]string{"a/a_test.go": mixed, "b/b.go": "package b\n"}, "./...")
	if code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if got := lastLine(out); got != "3 passed, 0 failed, 2 skipped" {
		t.Errorf("closing line %q", got)
	}
	want := "  no moon: wait for the night\n      a TestNest/not\n      a TestOther\n"
	if !strings.Contains(out, want) {
		t.Errorf("no %q in:\n%s", want, out)
	}
}

func TestFailureIsShownAndKept(t *testing.T) {
	out, code := summarise(t, map[string]string{
		"a/a_test.go": mixed,
		"b/b_test.go": "package b\nimport \"testing\"\nfunc TestBad(t *testing.T) { t.Error(\"seen once\") }\n",
	}, "./...")
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if got := lastLine(out); got != "3 passed, 1 failed, 2 skipped" {
		t.Errorf("closing line %q", got)
	}
	if strings.Count(out, "seen once") != 1 || !strings.Contains(out, "FAIL  skep/b TestBad") {
		t.Errorf("the failure is not shown once:\n%s", out)
	}
	if !strings.Contains(out, "\nFailed:\n  b TestBad\n\n3 passed") {
		t.Errorf("the failed test is not named at the end:\n%s", out)
	}
}

// The tests that take the longest are named, the longest first, without their parts.
func TestTheLongestAreNamed(t *testing.T) {
	var b strings.Builder
	s := newSummary(&b)
	for i, seconds := range []float64{12, 3, 45, 11, 13, 14, 15, 16, 17, 18} {
		name := "Test" + string(rune('A'+i))
		s.add(event{Action: "pass", Package: "skep/a", Test: name + "/part", Elapsed: seconds})
		s.add(event{Action: "pass", Package: "skep/a", Test: name, Elapsed: seconds})
	}
	s.close()
	const want = "\nThe longest:\n     45 s  a TestC\n     18 s  a TestJ\n     17 s  a TestI\n     16 s  a TestH\n     15 s  a TestG\n" +
		"     14 s  a TestF\n     13 s  a TestE\n     12 s  a TestA\n\n20 passed"
	if out := b.String(); !strings.Contains(out, want) {
		t.Errorf("no %q in:\n%s", want, out)
	}
}

func TestPackageThatDoesNotBuildFails(t *testing.T) {
	out, code := summarise(t, map[string]string{"a/a_test.go": "package a\nvar x int = \"text\"\n"}, "./...")
	if code == 0 {
		t.Error("exit code 0")
	}
	if got := lastLine(out); got != "0 passed, 1 failed, 0 skipped" {
		t.Errorf("closing line %q", got)
	}
	if !strings.Contains(out, "cannot use \"text\"") {
		t.Errorf("the compiler's words are missing:\n%s", out)
	}
}

func TestPackageThatEndsOutsideATestFails(t *testing.T) {
	out, code := summarise(t, map[string]string{
		"a/a_test.go": "package a\nimport (\"os\"; \"testing\")\nfunc TestMain(m *testing.M) { println(\"lost\"); os.Exit(3) }\n",
	}, "./...")
	if code == 0 {
		t.Error("exit code 0")
	}
	if got := lastLine(out); got != "0 passed, 1 failed, 0 skipped" {
		t.Errorf("closing line %q in:\n%s", got, out)
	}
}

func TestSplit(t *testing.T) {
	got := split([]string{"a", "b", "--", "--", "c"})
	if len(got) != 2 || strings.Join(got[0], " ") != "a b" || strings.Join(got[1], " ") != "c" {
		t.Errorf("%q", got)
	}
}
