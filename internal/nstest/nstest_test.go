package nstest

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"skep/internal/testneed"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func sh(t *testing.T, spec Spec, script string) (string, error) {
	t.Helper()
	spec.Path, spec.Argv = "/bin/sh", []string{"sh", "-c", script}
	spec.Env = append(spec.Env, "PATH=/usr/bin:/bin")
	cmd := Command(t, spec)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

func TestProgramIsPID1(t *testing.T) {
	out, err := sh(t, Spec{}, `read self rest </proc/self/stat; echo $$ $self; exit 7`)
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 7 || out != "1 1\n" {
		t.Errorf("said %q, ended with %v", out, err)
	}
}

func TestArgumentsAndEnvironmentAreExact(t *testing.T) {
	odd := []string{"sh", "", "\xff\xfe b", "ünï", strings.Repeat("x", 100<<10), strings.Repeat("y", 100<<10)}
	cmd := Command(t, Spec{Path: "/bin/cat", Argv: []string{"an odd name", "/proc/self/cmdline", "/proc/self/environ"}, Env: []string{"A=\xff", "noequals", "GODEBUG=x"}})
	out, err := cmd.Output()
	want := "an odd name\x00/proc/self/cmdline\x00/proc/self/environ\x00A=\xff\x00noequals\x00GODEBUG=x\x00"
	if string(out) != want || err != nil {
		t.Errorf("%q %v, want %q", out, err, want)
	}
	cmd = Command(t, Spec{Path: "/bin/sh", Argv: append([]string{"sh", "-c", `printf '%s\0' "$@"`}, odd...), Env: nil})
	if out, err = cmd.Output(); string(out) != strings.Join(odd[1:], "\x00")+"\x00" || err != nil {
		t.Errorf("%d bytes, %v", len(out), err)
	}
}

// A signal sent from the test reaches PID 1 as it would from outside a container: TERM without a handler does nothing, KILL does.
func TestSignalsComeFromOutside(t *testing.T) {
	cmd := Command(t, Spec{Path: "/bin/sh", Argv: []string{"sh", "-c", `trap 'echo got; exit 3' USR1; echo ready; while :; do read x; done`}})
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	line := make([]byte, 16)
	if n, err := stdout.Read(line); string(line[:n]) != "ready\n" {
		t.Fatalf("%q %v", line[:n], err)
	}
	if err := unix.Kill(cmd.Process.Pid, unix.SIGTERM); err != nil { // PID 1 has no default actions
		t.Fatal(err)
	}
	if err := unix.Kill(cmd.Process.Pid, unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if n, err := stdout.Read(line); string(line[:n]) != "got\n" {
		t.Fatalf("%q %v", line[:n], err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 3 {
		t.Errorf("ended with %v", err)
	}
}

func TestHideReadOnlyNetwork(t *testing.T) {
	if out, _ := sh(t, Spec{}, `ls /proc/1/stat; ls /dev/null`); out != "/proc/1/stat\n/dev/null\n" {
		t.Errorf("without Hide: %q", out)
	}
	if out, err := sh(t, Spec{Hide: []string{"/proc", "/sys", "/dev"}}, `ls -A /proc /sys /dev`); out != "/dev:\n\n/proc:\n\n/sys:\n" || err != nil {
		t.Errorf("with Hide: %q %v", out, err)
	}
	dir := t.TempDir()
	if out, err := sh(t, Spec{Dir: dir}, `pwd; : >file`); out != dir+"\n" || err != nil {
		t.Errorf("Dir: %q %v", out, err)
	}
	if out, err := sh(t, Spec{ReadOnly: true, Dir: "/usr"}, `: >file`); !strings.Contains(out, "Read-only file system") {
		t.Errorf("ReadOnly: %q %v", out, err)
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := sh(t, Spec{}, `readlink /proc/self/ns/net`); out != own+"\n" || err != nil {
		t.Errorf("shared network: %q %v", out, err)
	}
	if out, err := sh(t, Spec{Network: true}, `readlink /proc/self/ns/net`); out == own+"\n" || !strings.HasPrefix(out, "net:[") || err != nil {
		t.Errorf("own network: %q %v", out, err)
	}
}

func TestFailureIsTold(t *testing.T) {
	cmd := Command(t, Spec{Path: "/no/such", Argv: []string{"x"}})
	out, _ := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != helperFailed || !strings.Contains(string(out), "cannot exec /no/such") {
		t.Errorf("%v %q", cmd.ProcessState, out)
	}
}

// As root the suite also runs as a plain user: the test binary again, as nobody.
func TestAsPlainUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("the other tests have run as a plain user")
		return
	}
	binary, err := os.CreateTemp("", "nstest")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(binary.Name())
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	_, err = binary.Write(self)
	if err := firstError(err, binary.Chmod(0o755), binary.Close()); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary.Name(), "-test.v", "-test.run", "^(TestProgramIsPID1|TestSignalsComeFromOutside)$")
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), "SKIP") {
		testneed.Skip(t, "a plain user may not make namespaces here:\n%s", out)
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
