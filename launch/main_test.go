package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
	"skep/internal/testneed"
)

// TestMain makes the test binary the stub, as skep is.
func TestMain(m *testing.M) {
	if Is(os.Args) {
		os.Exit(Main(os.Args))
	}
	if os.Getenv("LAUNCH_TEST_ROLE") == "ignorer" {
		ignorer()
	}
	os.Exit(m.Run())
}

type result struct {
	pid      int
	code     int
	out, err string
}

// start runs argv through the stub with this environment and extra descriptors from 3 on.
func start(t *testing.T, spec Spec, argv, env []string, extra ...int) result {
	t.Helper()
	path, args := Command("/proc/self/exe", spec, argv)
	return execute(t, path, args, env, extra...)
}

func execute(t *testing.T, path string, args, env []string, extra ...int) result {
	t.Helper()
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	files := []uintptr{null.Fd(), outW.Fd(), errW.Fd()}
	for _, fd := range extra {
		files = append(files, uintptr(fd))
	}
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{Env: env, Files: files})
	_, _, _ = outW.Close(), errW.Close(), null.Close()
	if err != nil {
		t.Fatal(err)
	}
	stderr := make(chan []byte)
	go func() {
		text, _ := io.ReadAll(errR)
		stderr <- text
	}()
	stdout, _ := io.ReadAll(outR)
	r := result{pid: pid, out: string(stdout), err: string(<-stderr)}
	_, _ = outR.Close(), errR.Close()
	var status syscall.WaitStatus
	if err := sys.RetryEINTR(func() error { _, err := syscall.Wait4(pid, &status, 0, nil); return err }); err != nil {
		t.Fatal(err)
	}
	r.code = status.ExitStatus()
	if status.Signaled() {
		r.code = 128 + int(status.Signal())
	}
	return r
}

var plain = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "EMPTY=", "ODD=ü \t="}

func TestCommandGetsExactlyItsArgumentsAndEnvironment(t *testing.T) {
	r := start(t, Spec{}, []string{"sh", "-c", `printf '%s|' "$0" "$@"; tr '\0' ';' </proc/$$/environ`, "-zero", "", "a b", "ü", "--"}, plain)
	want := "-zero||a b|ü|--|" + strings.Join(plain, ";") + ";"
	if r.out != want || r.err != "" || r.code != 0 {
		t.Errorf("got %q, stderr %q, code %d, want %q", r.out, r.err, r.code, want)
	}
	if r := start(t, Spec{}, []string{"cat", "/proc/self/cmdline"}, plain); r.out != "cat\x00/proc/self/cmdline\x00" {
		t.Errorf("argv[0] is not as it was typed: %q", r.out)
	}
}

func TestExitCodesPassThrough(t *testing.T) {
	for _, code := range []int{0, 1, 7, 125, 126, 127, 128, 255} {
		if r := start(t, Spec{}, []string{"sh", "-c", "exit " + strconv.Itoa(code)}, plain); r.code != code {
			t.Errorf("exit %d came as %d", code, r.code)
		}
	}
}

func TestCommandsThatCannotStart(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		argv []string
		code int
		err  string
	}{
		{[]string{"no-such-program"}, 127, "skep: cannot run no-such-program: not found in PATH\n"},
		{[]string{dir + "/gone"}, 127, "skep: cannot run " + dir + "/gone: no such file or directory\n"},
		{[]string{dir}, 126, "skep: cannot run " + dir + ": it is a directory\n"},
		{[]string{file("mode", "#!/bin/sh\n", 0o644)}, 126, "skep: cannot run " + dir + "/mode: permission denied\n"},
		{[]string{file("interpreter", "#!/no/such\n", 0o755)}, 127, "skep: cannot run " + dir + "/interpreter: no such file or directory\n"},
	} {
		r := start(t, Spec{}, c.argv, plain)
		if r.code != c.code || r.err != c.err || r.out != "" {
			t.Errorf("%q: code %d, stderr %q, stdout %q, want %d, %q", c.argv, r.code, r.err, r.out, c.code, c.err)
		}
	}
	r := execute(t, "/proc/self/exe", []string{Name, "nonsense", "--", "true"}, plain)
	if r.code != ExitOwnFault || !strings.HasPrefix(r.err, "skep: cannot launch: ") {
		t.Errorf("a broken spec: code %d, stderr %q", r.code, r.err)
	}
}

func TestScriptWithoutInterpreterRunsInTheShell(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "script"), []byte("echo \"$0 $# $1\"\nexit 9\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := start(t, Spec{}, []string{"script", "a b"}, []string{"PATH=" + dir})
	if want := dir + "/script 1 a b\n"; r.out != want || r.code != 9 {
		t.Errorf("got %q, %q, code %d, want %q and 9", r.out, r.err, r.code, want)
	}
}

func TestListenPID(t *testing.T) {
	r := start(t, Spec{ListenPID: true}, []string{"sh", "-c", `tr '\0' '\n' </proc/$$/environ | grep ^LISTEN_; echo $$`}, append(slices.Clone(plain), "LISTEN_PID=1", "LISTEN_FDS=2"))
	if want := fmt.Sprintf("LISTEN_FDS=2\nLISTEN_PID=%d\n%d\n", r.pid, r.pid); r.out != want {
		t.Errorf("got %q, want %q", r.out, want)
	}
	r = start(t, Spec{}, []string{"sh", "-c", `echo "<$LISTEN_PID>"`}, plain)
	if r.out != "<>\n" {
		t.Errorf("LISTEN_PID came unasked: %q", r.out)
	}
}

// ignorer is a parent that leaves its child the worst signals: everything ignored that can be, everything blocked.
func ignorer() {
	// The runtime itself would give ignored signals back to a child; set them below it.
	for sig := uintptr(1); sig <= 64; sig++ {
		act := [4]uintptr{1} // struct sigaction with SIG_IGN
		_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&act)), 0, 8, 0, 0)
	}
	all := ^uint64(0)
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), 0, 8, 0, 0)
	path, args := os.Args[1], os.Args[2:]
	err := unix.Exec(path, args, plain)
	fmt.Println("cannot exec:", err)
	os.Exit(1)
}

func TestSignalsAreClean(t *testing.T) {
	status := func(text string) map[string]string {
		got := map[string]string{}
		for line := range strings.Lines(text) {
			if name, value, found := strings.Cut(line, ":"); found && (name == "SigBlk" || name == "SigIgn" || name == "SigCgt") {
				got[name] = strings.TrimSpace(value)
			}
		}
		return got
	}
	env := append(slices.Clone(plain), "LAUNCH_TEST_ROLE=ignorer")
	self := "/proc/self/exe"
	// The detector first: without the stub the child sees what its parent left.
	dirty := status(execute(t, self, []string{"x", "/bin/cat", "cat", "/proc/self/status"}, env).out)
	const nothing = "0000000000000000"
	if dirty["SigBlk"] == nothing || dirty["SigIgn"] == nothing {
		t.Fatalf("the parent left nothing to clean: %v", dirty)
	}
	_, args := Command(self, Spec{}, []string{"cat", "/proc/self/status"})
	for _, filter := range []bool{false, true} {
		if filter {
			_, args = Command(self, Spec{Filter: true, NotifyFD: 3}, []string{"cat", "/proc/self/status"})
		}
		ours, theirs, err := sys.SocketPair()
		if err != nil {
			t.Fatal(err)
		}
		clean := status(execute(t, self, append([]string{"x", self}, args...), env, theirs).out)
		if clean["SigBlk"] != nothing || clean["SigIgn"] != nothing || clean["SigCgt"] != nothing {
			t.Errorf("filter %v: signals %v, want none blocked, ignored or caught (the parent left %v)", filter, clean, dirty)
		}
		_, _ = unix.Close(ours), unix.Close(theirs)
	}
}

func TestFileLimitIsTheParents(t *testing.T) {
	// The runtime of Go raises the soft limit of open files; the command must get the one skep was started with.
	_, args := Command("/proc/self/exe", Spec{}, []string{"sh", "-c", "ulimit -Sn"})
	script := "ulimit -Sn 173; exec -a " + Name + " /proc/" + strconv.Itoa(os.Getpid()) + "/exe \"$@\""
	if _, err := LookPath("bash", ""); err != nil {
		testneed.Skip(t, "%v", err)
	}
	r := start(t, Spec{}, append([]string{"bash", "-c", script, "bash"}, args[1:]...), plain)
	if r.out != "173\n" {
		t.Errorf("the soft limit is %q (stderr %q), want 173", r.out, r.err)
	}
}

func TestFilterReachesTheOtherEnd(t *testing.T) {
	ours, theirs, err := sys.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(ours) }()
	const show = "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status; ls /proc/$$/fd"
	// What the tests themselves were started with shows up in every child.
	_, inherited, _ := strings.Cut(execute(t, "/bin/sh", []string{"sh", "-c", "echo : ; ls /proc/$$/fd"}, plain).out, ":\n")
	r := start(t, Spec{Filter: true, NotifyFD: 3}, []string{"sh", "-c", show}, plain, theirs)
	_ = unix.Close(theirs)
	if want := "NoNewPrivs:\t1\nSeccomp:\t2\n" + inherited; r.out != want {
		t.Errorf("the command sees %q, want %q (no descriptor of the stub)", r.out, want)
	}
	message := make([]byte, 16)
	n, fd, err := sys.ReceiveDescriptor(ours, message)
	if err != nil || string(message[:n]) != string(rune(TagListener)) || fd < 0 {
		t.Fatalf("received %q, descriptor %d, %v", message[:n], fd, err)
	}
	link, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if link != "anon_inode:seccomp notify" {
		t.Errorf("the descriptor is %q", link)
	}
	_ = unix.Close(fd)
	if n, _, err := sys.ReceiveDescriptor(ours, message); n != 0 || err != nil {
		t.Errorf("the stub's end is still open somewhere: %d, %v", n, err)
	}
}

func TestFilterThatIsRefusedDoesNotStopTheStart(t *testing.T) {
	// A stub below a stub: the kernel allows one listener in a tree of filters.
	oursA, theirsA, err := sys.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	oursB, theirsB, err := sys.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(oursA), unix.Close(oursB) }()
	if _, err := LookPath("bash", ""); err != nil {
		testneed.Skip(t, "%v", err)
	}
	_, inner := Command("", Spec{Filter: true, NotifyFD: 4}, []string{"echo", "runs"})
	script := "exec -a " + Name + " /proc/" + strconv.Itoa(os.Getpid()) + "/exe \"$@\""
	r := start(t, Spec{Filter: true, NotifyFD: 3}, append([]string{"bash", "-c", script, "bash"}, inner[1:]...), plain, theirsA, theirsB)
	_, _ = unix.Close(theirsA), unix.Close(theirsB)
	if r.out != "runs\n" || r.code != 0 {
		t.Errorf("got %q, stderr %q, code %d", r.out, r.err, r.code)
	}
	message := make([]byte, 16)
	n, fd, err := sys.ReceiveDescriptor(oursB, message)
	if want := string(rune(TagNoListener)) + strconv.Itoa(int(unix.EBUSY)); err != nil || string(message[:n]) != want || fd >= 0 {
		t.Errorf("received %q, descriptor %d, %v, want %q", message[:n], fd, err, want)
	}
	if _, fd, err := sys.ReceiveDescriptor(oursA, message); err == nil {
		_ = unix.Close(fd)
	}
}

func TestUser(t *testing.T) {
	testneed.Root(t)
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		_ = os.Chmod(d, 0o755)
	}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	show := []string{"sh", "-c", "id -u; id -g; id -G; grep -E 'CapEff|CapPrm' /proc/self/status"}
	r := start(t, Spec{User: &User{UID: 4321, GID: 5432, Groups: []uint32{5432, 77, 88}}}, show, plain)
	if want := "4321\n5432\n5432 77 88\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"; r.out != want {
		t.Errorf("got %q, stderr %q, want %q", r.out, r.err, want)
	}
	r = start(t, Spec{User: &User{UID: 4321, GID: 5432}}, []string{"id", "-G"}, plain)
	if r.out != "5432\n" {
		t.Errorf("without groups: %q", r.out)
	}
	if r := start(t, Spec{User: &User{UID: 4321, GID: 5432}}, []string{secret}, plain); r.code != 126 {
		t.Errorf("a program only root may run: code %d, stderr %q", r.code, r.err)
	}
}

func TestUserThatOneMayNotBecome(t *testing.T) {
	if os.Geteuid() == 0 {
		// Root may become anybody; a plain user runs this test again.
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestUserThatOneMayNotBecome$", "-test.v")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Dir = "/"
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("as a plain user: %v\n%s", err, out)
		}
		return
	}
	r := start(t, Spec{User: &User{UID: 0, GID: 0}}, []string{"true"}, plain)
	if r.code != ExitOwnFault || r.err != "skep: cannot become user 0:0: setgroups: operation not permitted\n" {
		t.Errorf("code %d, stderr %q", r.code, r.err)
	}
	self := &User{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Groups: []uint32{1}}
	if r := start(t, Spec{User: self}, []string{"true"}, plain); r.code != 0 {
		t.Errorf("oneself: code %d, stderr %q", r.code, r.err)
	}
}

func TestOOMScoreAdj(t *testing.T) {
	adj := 321
	r := start(t, Spec{OOMScoreAdj: &adj}, []string{"cat", "/proc/self/oom_score_adj"}, plain)
	if r.out != "321\n" || r.err != "" {
		t.Errorf("got %q, stderr %q", r.out, r.err)
	}
	adj = 5000
	r = start(t, Spec{OOMScoreAdj: &adj}, []string{"echo", "runs"}, plain)
	if r.out != "runs\n" || r.err != "skep: cannot set oom_score_adj to 5000: invalid argument; starting without it\n" {
		t.Errorf("out of range: %q, stderr %q", r.out, r.err)
	}
}

func TestKSM(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_MEMORY_MERGE, 0, 0, 0, 0); errors.Is(err, unix.EINVAL) {
		testneed.Skip(t, "no PR_SET_MEMORY_MERGE in this kernel")
	}
	r := start(t, Spec{KSM: true}, []string{"cat", "/proc/self/ksm_stat"}, plain)
	if !strings.Contains(r.out, "ksm_merge_any: yes") && strings.Contains(r.out, "ksm_merge_any") {
		t.Errorf("same-page merging is off: %q, stderr %q", r.out, r.err)
	}
}

// TestSignalDuringTheStartIsNotLost sends the stub signals while it starts: Go's handlers must not swallow one that would have killed the command.
func TestSignalDuringTheStartIsNotLost(t *testing.T) {
	signal.Reset()
	path, args := Command("/proc/self/exe", Spec{}, []string{"sleep", "100"})
	for i := range 50 {
		pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{Env: plain, Files: []uintptr{0, 1, 2}})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i) * 60 * time.Microsecond)
		_ = syscall.Kill(pid, syscall.SIGTERM)
		var status syscall.WaitStatus
		done := time.AfterFunc(10*time.Second, func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
		_ = sys.RetryEINTR(func() error { _, err := syscall.Wait4(pid, &status, 0, nil); return err })
		done.Stop()
		if !status.Signaled() || status.Signal() != syscall.SIGTERM {
			t.Fatalf("run %d: TERM ended the stub or its command with %#x", i, status)
		}
	}
}

// BenchmarkStub is what the stub adds to the start of a worker: compare with BenchmarkWithoutStub.
func BenchmarkStub(b *testing.B) {
	path, args := Command("/proc/self/exe", Spec{}, []string{"/bin/true"})
	benchmarkExec(b, path, args)
}

func BenchmarkWithoutStub(b *testing.B) { benchmarkExec(b, "/bin/true", []string{"true"}) }

func benchmarkExec(b *testing.B, path string, args []string) {
	for b.Loop() {
		pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{Env: plain, Files: []uintptr{0, 1, 2}})
		if err != nil {
			b.Fatal(err)
		}
		var status syscall.WaitStatus
		_ = sys.RetryEINTR(func() error { _, err := syscall.Wait4(pid, &status, 0, nil); return err })
	}
}
