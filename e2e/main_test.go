package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"skep/internal/dockertest"
)

// root is the repository's folder: tests run in their package's own.
var root = func() string {
	dir, err := filepath.Abs("..")
	if err != nil {
		panic(err)
	}
	return dir
}()

func TestMain(m *testing.M) {
	testscript.Main(suite{m}, map[string]func(){"serve": serveMain})
}

// suite builds what the stories are about before the first, and removes
// containers and images after the last.
type suite struct{ m *testing.M }

func (s suite) Run() int {
	build := exec.Command("make", "-C", root, "build")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "cannot build skep for the stories: %v\n%s", err, out)
		return 1
	}
	return dockertest.Main(s.m)
}
