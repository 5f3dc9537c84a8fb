package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("a/plain", 0o644)
	write("b/plain", 0o755)
	write("a/only-plain", 0o644)
	write("b/tool", 0o755)
	write("a/folder/x", 0o755)
	write("here", 0o755)
	t.Chdir(dir)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, c := range []struct {
		file, path string
		want       string
		errno      unix.Errno
		code       int
		text       string
	}{
		{"tool", a + ":" + b, b + "/tool", 0, 0, ""},
		{"plain", a + ":" + b, b + "/plain", 0, 0, ""},
		{"only-plain", a + ":" + b, "", unix.EACCES, 126, "cannot run only-plain: permission denied"},
		{"folder", a + ":" + b, "", unix.EISDIR, 126, "cannot run folder: it is a directory"},
		{"nothing", a + ":" + b, "", unix.ENOENT, 127, "cannot run nothing: not found in PATH"},
		{"tool", a + "/plain:" + b, b + "/tool", 0, 0, ""}, // An element that is a file.
		{"here", a + ":", "./here", 0, 0, ""},
		{"here", ":" + a, "./here", 0, 0, ""},
		{"here", a, "", unix.ENOENT, 127, "cannot run here: not found in PATH"},
		{"./here", "", "./here", 0, 0, ""},
		{b + "/tool", "", b + "/tool", 0, 0, ""},
		{"./gone", b, "", unix.ENOENT, 127, "cannot run ./gone: no such file or directory"},
		{"./here/x", b, "", unix.ENOTDIR, 126, "cannot run ./here/x: not a directory"},
		{a + "/plain", "", "", unix.EACCES, 126, "cannot run " + a + "/plain: permission denied"},
		{dir, "", "", unix.EISDIR, 126, "cannot run " + dir + ": it is a directory"},
		{"/dev/null", "", "", unix.EACCES, 126, "cannot run /dev/null: permission denied"},
		{"", b, "", unix.ENOENT, 127, `cannot run "": not found in PATH`},
		{"sh\x00", b, "", unix.ENOENT, 127, "cannot run a name with a zero byte: not found in PATH"},
	} {
		got, err := LookPath(c.file, c.path)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if got != c.want || c.errno != 0 && !errors.Is(err, c.errno) || ExitCode(err) != c.code || text != c.text {
			t.Errorf("LookPath(%q, %q) = %q, %v (code %d), want %q, %v (code %d) %q", c.file, c.path, got, err, ExitCode(err), c.want, c.errno, c.code, c.text)
		}
	}
	// From elsewhere the same is found by telling the folder.
	t.Chdir("/")
	for file, want := range map[string]string{"./here": "./here", "here": "./here", "./gone": "", b + "/tool": b + "/tool"} {
		if got, err := LookPathIn(dir, file, ":"); got != want || (err == nil) != (want != "") {
			t.Errorf("LookPathIn(%q, %q) = %q, %v, want %q", dir, file, got, err, want)
		}
	}
	if got, err := LookPath("sh", ""); err != nil || filepath.Base(got) != "sh" {
		t.Errorf("LookPath(sh) without PATH = %q, %v", got, err)
	}
}

func TestExitCode(t *testing.T) {
	for err, want := range map[error]int{
		nil:           0,
		unix.ENOENT:   127,
		unix.EACCES:   126,
		unix.EISDIR:   126,
		unix.ENOEXEC:  126,
		unix.E2BIG:    126,
		unix.ETXTBSY:  126,
		os.ErrInvalid: 126,
	} {
		if got := ExitCode(err); got != want {
			t.Errorf("ExitCode(%v) = %d, want %d", err, got, want)
		}
		if err != nil {
			if got := ExitCode(fmt.Errorf("wrapped: %w", err)); got != want {
				t.Errorf("ExitCode(wrapped %v) = %d, want %d", err, got, want)
			}
		}
	}
}
