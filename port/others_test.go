package port_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"skep/internal/testneed"
)

// dockerCapabilities is what root has in a container by default. CAP_SYS_PTRACE is not among it, so a worker of another user can be looked into by
// taking on that user only.
var dockerCapabilities = []int{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FSETID, unix.CAP_FOWNER, unix.CAP_MKNOD, unix.CAP_NET_RAW, unix.CAP_SETGID, unix.CAP_SETUID,
	unix.CAP_SETFCAP, unix.CAP_SETPCAP, unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_CHROOT, unix.CAP_KILL, unix.CAP_AUDIT_WRITE,
}

const others = "SKEP_TEST_AS"

// TestAgainAsOthers runs the whole package again as the kinds of user skep is started as. Each run shows its own skips.
func TestAgainAsOthers(t *testing.T) {
	if as := os.Getenv(others); as != "" {
		t.Skipf("this is the run as %s", as)
	}
	testneed.Root(t)
	for _, c := range []struct {
		name   string
		change func(*exec.Cmd)
	}{
		{"uid 1000", func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
		}},
		{"root of a container", func(cmd *exec.Cmd) { keep(cmd, dockerCapabilities) }},
		{"root without capabilities", func(cmd *exec.Cmd) { keep(cmd, nil) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			cmd := exec.Command("/proc/self/exe", "-test.short", "-test.v", "-test.timeout=300s")
			cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "SKEP_REQUIRE=") })
			cmd.Env = append(cmd.Env, others+"="+c.name)
			cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &out, "/"
			c.change(cmd)
			err := cmd.Run()
			passed := 0
			var telling strings.Builder // without what passed, of which there is much
			for line := range strings.Lines(out.String()) {
				if word := strings.TrimSpace(line); !strings.HasPrefix(word, "=== ") && !strings.HasPrefix(word, "--- PASS") {
					telling.WriteString(line)
				}
				switch {
				case strings.HasPrefix(line, "--- PASS"):
					passed++
				case strings.HasPrefix(line, "--- SKIP"):
					t.Logf("%s", strings.TrimSpace(line))
				}
			}
			if err != nil {
				t.Errorf("%v\n%s", err, telling.String())
			}
			if passed < 20 {
				t.Errorf("%d tests passed, that is not the whole package:\n%s", passed, telling.String())
			}
		})
	}
}

// keep makes cmd run with these capabilities at most.
func keep(cmd *exec.Cmd, capabilities []int) {
	var numbers []string
	for _, c := range capabilities {
		numbers = append(numbers, strconv.Itoa(c))
	}
	cmd.Args = append([]string{cmd.Args[0], strings.Join(numbers, ",")}, cmd.Args[1:]...)
	cmd.Env = append(cmd.Env, "SKEP_TEST_ROLE=drop")
}

func init() {
	// drop takes all capabilities but the listed ones out of the bounding set and executes the tests, which then have the rest at most.
	roles["drop"] = func(args []string) {
		runtime.LockOSThread()
		for c := range unix.CAP_LAST_CAP + 1 {
			if !slices.Contains(strings.Split(args[0], ","), strconv.Itoa(c)) {
				if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
					fmt.Fprintln(os.Stderr, "cannot drop capability", c, err)
					os.Exit(2)
				}
			}
		}
		env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "SKEP_TEST_ROLE=") })
		err := unix.Exec("/proc/self/exe", append([]string{os.Args[0]}, args[1:]...), env)
		fmt.Fprintln(os.Stderr, "cannot exec:", err)
		os.Exit(2)
	}
}
