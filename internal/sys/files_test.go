package sys

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	for _, size := range []int{0, 1, 2047, 2048, 2049, 100_000} {
		name := filepath.Join(dir, "file")
		want := bytes.Repeat([]byte("x\x00"), size)[:size]
		if err := os.WriteFile(name, want, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadFile(name)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: %d, %v", size, len(got), err)
		}
	}
	for _, name := range []string{"/proc/self/cgroup", "/proc/version", "/proc/self/maps"} {
		got, err := ReadFile(name)
		want, _ := os.ReadFile(name)
		if err != nil || len(got) == 0 || string(got[:20]) != string(want[:20]) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for name, want := range map[string]error{filepath.Join(dir, "no"): fs.ErrNotExist, dir: unix.EISDIR, "a\x00b": unix.EINVAL} {
		got, err := ReadFile(name)
		var path *fs.PathError
		if got != nil || !errors.Is(err, want) || !errors.As(err, &path) || path.Path != name {
			t.Errorf("%q: %q, %v; want %v", name, got, err, want)
		}
	}
}

func TestReadFileClosesIt(t *testing.T) {
	const file = "/proc/sys/net/core/somaxconn"
	before, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := ReadFile(file); err != nil || !strings.HasSuffix(string(text), "\n") {
		t.Errorf("%q, %v", text, err)
	}
	after, _ := os.ReadDir("/proc/self/fd")
	if len(after) != len(before) {
		t.Errorf("%d descriptors, were %d", len(after), len(before))
	}
}

func TestFiles(t *testing.T) {
	var files Files
	got, err := fs.ReadFile(files, "proc/version")
	want, _ := os.ReadFile("/proc/version")
	if err != nil || string(got) != string(want) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := fs.Stat(files, "no/such"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if info, err := fs.Stat(files, "proc"); err != nil || !info.IsDir() {
		t.Errorf("%v", err)
	}
	if f, err := files.Open("proc/version"); err != nil {
		t.Error(err)
	} else if err := f.Close(); err != nil {
		t.Error(err)
	}
}
