package conformance

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"skep/internal/nstest"
	"skep/internal/sys"
	"skep/internal/testneed"
)

var update = flag.Bool("update", false, "write docs/conformance.md anew")

// built are the programs that TestMain made, in a folder that every user may enter.
var built struct {
	dir     string
	skep    string
	skepErr string
	probe   string
	badInit string
	helpErr string // why probe and badInit are missing
}

func TestMain(m *testing.M) {
	nstest.Main()
	flag.Parse()
	// What this process was started with ignored every init hands on: 32 and 33 under make (posix_spawn of glibc), HUP under nohup, INT and QUIT in the background
	// of a shell.
	for sig := 1; sig <= 64; sig++ {
		sys.StopIgnoring(sig)
	}
	// What this process was started with must not look like a leak of an init's.
	for fd := 3; fd < 1024; fd++ {
		syscall.CloseOnExec(fd)
	}
	// Most of a case's time is waiting, so more of them go at once than there are processors.
	if f := flag.Lookup("test.parallel"); f != nil {
		given := false
		flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
		if !given {
			f.Value.Set("6")
		}
	}
	os.Exit(func() int {
		if err := build(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(built.dir)
		return m.Run()
	}())
}

func build() error {
	dir, err := os.MkdirTemp("", "conformance")
	if err != nil {
		return err
	}
	built.dir = dir
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	built.probe, built.badInit = filepath.Join(dir, "probe"), filepath.Join(dir, "badinit")
	for source, program := range map[string]string{"testdata/probe.c": built.probe, "testdata/badinit.c": built.badInit} {
		if out, err := exec.Command("gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-o", program, source).CombinedOutput(); err != nil {
			built.helpErr = fmt.Sprintf("cannot build %s: %v\n%s", source, err, out)
		}
	}
	if os.Getenv("SKEP_BIN") == "" {
		built.skep = filepath.Join(dir, "skep")
		cmd := exec.Command("make", "-C", "..", "skep", "OUT="+built.skep, "VERSION=0.0.0-test")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.skepErr = fmt.Sprintf("cannot build skep: %v\n%s", err, out)
		}
	}
	return nil
}

// helpers skips a test when the C programs could not be built.
func helpers(t testing.TB) {
	t.Helper()
	if built.helpErr != "" {
		testneed.Skip(t, "%s", built.helpErr)
	}
}
