package dir

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestList(t *testing.T) {
	root := t.TempDir()
	write := func(name string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(root, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(root, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{
		"20-migrate.sh", "10-check", "9-last", "B", "a",
		".hidden", "10-check~", "x.bak", "x.orig", "x.swp", "#x#", "x.dpkg-old", "x.rpmsave", "x.ucf-dist",
	} {
		write(name, 0o755)
	}
	write("owner-only", 0o700)
	write("README", 0o644)
	write(".no-line", 0o644)
	if err := os.Mkdir(filepath.Join(root, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(root, "fifo"), 0o755); err != nil {
		t.Fatal(err)
	}
	// As a ConfigMap is mounted.
	if err := os.Mkdir(filepath.Join(root, "..data"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("..data/30-seed", 0o555)
	if err := os.Symlink("..data/30-seed", filepath.Join(root, "30-seed")); err != nil {
		t.Fatal(err)
	}

	files, skipped, err := List(root, true)
	if err != nil {
		t.Fatal(err)
	}
	for i := range files {
		files[i] = strings.TrimPrefix(files[i], root+"/")
	}
	if diff := cmp.Diff([]string{"10-check", "20-migrate.sh", "30-seed", "9-last", "B", "a", "owner-only"}, files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for i := range skipped {
		skipped[i] = strings.TrimPrefix(skipped[i], root+"/")
	}
	if diff := cmp.Diff([]string{
		"README is not executable (mode 0644), not run; chmod +x it, or set defaultMode: 0555 for a ConfigMap",
		"fifo is no regular file, not run",
		"folder is a folder, not run",
	}, skipped); diff != "" {
		t.Errorf("skipped (-want +got):\n%s", diff)
	}
}

func TestListAbsent(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent")
	if files, skipped, err := List(absent, false); files != nil || skipped != nil || err != nil {
		t.Errorf("the default folder may be absent: %v %v %v", files, skipped, err)
	}
	_, _, err := List(absent, true)
	if err == nil || !strings.HasPrefix(err.Error(), "cannot read the folder of steps: ") || !strings.Contains(err.Error(), absent) {
		t.Errorf("a folder that was given may not: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, err := List(file, false); err == nil {
		t.Error("a file is no folder, not even by default")
	}
}

func TestListDeadLink(t *testing.T) {
	root := t.TempDir()
	if err := os.Symlink("nowhere", filepath.Join(root, "10-migrate")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := List(root, true); err == nil || !strings.Contains(err.Error(), "10-migrate") {
		t.Errorf("a step that is missing is an error that names it: %v", err)
	}
}
