// Package nstest runs a program as PID 1 of fresh namespaces from a Go test, as a container engine would, but without one and in some tens of
// milliseconds. It works as root, and as a plain user where the kernel allows user namespaces.
//
// The test binary is its own helper: TestMain calls Main first; a Command starts the test binary again inside the new namespaces, where it mounts what
// was asked for and then execs the program in its place. So the program is PID 1, and cmd.Process.Pid is that very process as the parent namespace sees
// it: a signal sent there comes from outside, exactly as docker stop's does.
package nstest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"skep/internal/testneed"
)

// marker is argv[0] of the test binary when it is the helper. An environment variable would do too, but the program under test must see its environment
// untouched.
const marker = "nstest-pid1"

// Spec is a program and the namespaces it wakes up in.
type Spec struct {
	// Path is the program's file, absolute.
	Path string
	// Argv is its argument vector, argv[0] included.
	Argv []string `json:"-"`
	// Env is its environment, exactly.
	Env []string `json:"-"`
	// Dir is its working directory; empty keeps the test's.
	Dir string
	// Hide lists directories that are covered by an empty read-only file system: "/proc" leaves no /proc at all, "/dev" no devices.
	Hide []string
	// Network gives it a network namespace of its own, with nothing but a loopback that is down.
	Network bool
	// ReadOnly makes the whole root read-only.
	ReadOnly bool
}

// Main has to be the first call of TestMain. In a test it returns at once; in the helper it never does.
func Main() {
	if len(os.Args) < 3 || os.Args[0] != marker {
		return
	}
	runtime.LockOSThread() // it is this thread that execs
	err := become(os.Args[1], os.Args[2:])
	fmt.Fprintln(os.Stderr, "nstest:", err)
	os.Exit(helperFailed)
}

// helperFailed is the exit code of a helper that could not become the program. It is meant to look like nothing an init returns by itself.
const helperFailed = 99

// become turns this process into the program; it only returns on failure. The argument vector and the environment are the helper's own, so that every
// byte of them survives.
func become(text string, argv []string) error {
	var spec Spec
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return fmt.Errorf("cannot read the spec: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("cannot mount /proc: %w", err)
	}
	for _, dir := range spec.Hide {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, "mode=0555"); err != nil {
			return fmt.Errorf("cannot hide %s: %w", dir, err)
		}
	}
	if spec.ReadOnly {
		// An unprivileged mount may not lose the flags that the original was locked to, so they are kept.
		var st unix.Statfs_t
		if err := unix.Statfs("/", &st); err != nil {
			return fmt.Errorf("cannot read the flags of /: %w", err)
		}
		kept := uintptr(st.Flags) & (unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME | unix.MS_RELATIME)
		if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|kept, ""); err != nil {
			return fmt.Errorf("cannot make / read-only: %w", err)
		}
	}
	if spec.Dir != "" {
		if err := os.Chdir(spec.Dir); err != nil {
			return err
		}
	}
	if err := unix.Exec(spec.Path, argv, os.Environ()); err != nil {
		return fmt.Errorf("cannot exec %s: %w", spec.Path, err)
	}
	return errors.New("exec came back")
}

// Command prepares the program as PID 1. Standard streams, ExtraFiles (from fd 3) and more of SysProcAttr may still be set on the result; its Path, Args,
// Env, Dir and Cloneflags may not. The whole namespace dies with the program, and the program when the test binary dies. Where the machine forbids the
// namespaces the test is skipped.
func Command(t testing.TB, spec Spec) *exec.Cmd {
	t.Helper()
	if reason := unavailable(); reason != "" {
		testneed.Skip(t, "no fresh namespaces here: %s", reason)
	}
	cmd, err := build(spec)
	if err != nil {
		t.Fatal(err)
	}
	return cmd
}

func build(spec Spec) (*exec.Cmd, error) {
	if !filepath.IsAbs(spec.Path) || len(spec.Argv) == 0 {
		return nil, fmt.Errorf("cannot run %q %q: want an absolute path and argv[0]", spec.Path, spec.Argv)
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	flags := uintptr(unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC)
	if spec.Network {
		flags |= unix.CLONE_NEWNET
	}
	attr := &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	return &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        append([]string{marker, string(text)}, spec.Argv...),
		Env:         append([]string{}, spec.Env...), // never nil, which would be the test's own
		SysProcAttr: attr,
	}, nil
}

// unavailable says why this machine cannot do it, or nothing. It tries once.
var unavailable = sync.OnceValue(func() string {
	cmd, err := build(Spec{Path: "/bin/true", Argv: []string{"true"}})
	if err != nil {
		return err.Error()
	}
	var said limited
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return fmt.Sprintf("%v %s", err, said.text)
	}
	return ""
})

// limited keeps the beginning of what is written to it.
type limited struct{ text []byte }

var _ io.Writer = (*limited)(nil)

func (l *limited) Write(p []byte) (int, error) {
	if room := 1024 - len(l.text); room > 0 {
		l.text = append(l.text, p[:min(room, len(p))]...)
	}
	return len(p), nil
}
