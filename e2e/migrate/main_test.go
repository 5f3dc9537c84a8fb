package migrate

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"skep/internal/dockertest"
	"skep/internal/nstest"
	"skep/internal/testneed"
)

// root is the repository's folder: tests run in their package's own.
var root = func() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}()

// skep is the built program.
var skep = filepath.Join(root, "build", "skep")

func TestMain(m *testing.M) {
	nstest.Main()
	build := exec.Command("make", "-C", root, "build")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "cannot build skep for the stories: %v\n%s", err, out)
		os.Exit(1)
	}
	os.Exit(dockertest.Main(m))
}

// imageOn builds Dockerfile.test, skep before whatever command is given, on a
// base that has to be there.
func imageOn(t *testing.T, base string) string {
	t.Helper()
	testneed.Docker(t)
	if base != "scratch" && !dockertest.HasImage(t, base) {
		testneed.Skip(t, "needs the image %s (make images)", base)
	}
	return dockertest.Build(t, root, "Dockerfile.test", "BASE="+base)
}
