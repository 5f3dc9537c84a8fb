package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
	"skep/internal/testneed"
)

// TestMain makes the test binary what starts a command, with the signals and limits that a test
// wants it to have.
func TestMain(m *testing.M) {
	switch os.Getenv("LAUNCH_TEST_ROLE") {
	case "ignorer":
		ignorer()
	case "starter":
		starter()
	}
	os.Exit(m.Run())
}

// result is how a command went.
type result struct {
	Process
	code     int
	out, err string
}

// begin starts argv with this environment and extra descriptors from 3 on, and waits for its end.
func begin(t *testing.T, argv, env []string, change func(*Command), extra ...int) (result, error) {
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
	defer func() { _, _ = outR.Close(), errR.Close() }()
	c := Command{Argv: argv, Env: env, Files: []uintptr{null.Fd(), outW.Fd(), errW.Fd()}, Terminal: -1}
	for _, fd := range extra {
		c.Files = append(c.Files, uintptr(fd))
	}
	if c.Path, err = LookPath(argv[0], ""); err != nil {
		c.Path = argv[0]
	}
	if change != nil {
		change(&c)
	}
	p, err := Start(&c)
	_, _, _ = outW.Close(), errW.Close(), null.Close()
	if err != nil {
		return result{Process: p}, err
	}
	stderr := make(chan []byte)
	go func() {
		text, _ := io.ReadAll(errR)
		stderr <- text
	}()
	stdout, _ := io.ReadAll(outR)
	r := result{Process: p, out: string(stdout), err: string(<-stderr)}
	var status syscall.WaitStatus
	if err := sys.RetryEINTR(func() error { _, err := syscall.Wait4(p.PID, &status, 0, nil); return err }); err != nil {
		t.Fatal(err)
	}
	r.code = status.ExitStatus()
	if status.Signaled() {
		r.code = 128 + int(status.Signal())
	}
	return r, nil
}

// ends is begin for what has to start.
func ends(t *testing.T, argv, env []string, change func(*Command), extra ...int) result {
	t.Helper()
	r, err := begin(t, argv, env, change, extra...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var plain = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "EMPTY=", "ODD=ü \t="}

func TestCommandGetsExactlyItsArgumentsAndEnvironment(t *testing.T) {
	r := ends(t, []string{"sh", "-c", `printf '%s|' "$0" "$@"; tr '\0' ';' </proc/$$/environ`, "-zero", "", "a b", "ü", "--"}, plain, nil)
	want := "-zero||a b|ü|--|" + strings.Join(plain, ";") + ";"
	if r.out != want || r.err != "" || r.code != 0 {
		t.Errorf("got %q, stderr %q, code %d, want %q", r.out, r.err, r.code, want)
	}
	if r := ends(t, []string{"cat", "/proc/self/cmdline"}, nil, nil); r.out != "cat\x00/proc/self/cmdline\x00" {
		t.Errorf("argv[0] is not as it was typed: %q", r.out)
	}
}

func TestExitCodesPassThrough(t *testing.T) {
	for _, code := range []int{0, 1, 7, 125, 126, 127, 128, 255} {
		if r := ends(t, []string{"sh", "-c", "exit " + strconv.Itoa(code)}, plain, nil); r.code != code {
			t.Errorf("exit %d came as %d", code, r.code)
		}
	}
}

// executableFile writes a file that may be executed.
func executableFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCommandsThatCannotStart(t *testing.T) {
	interpreter := executableFile(t, "#!/no/such\n")
	for _, c := range []struct {
		argv []string
		code int
		err  string
	}{
		{[]string{"/no/such/program"}, 127, "cannot start /no/such/program: no such file or directory"},
		{[]string{"/"}, 126, "cannot start /: permission denied"},
		{[]string{interpreter}, 127, "cannot start " + interpreter + ": no such file or directory"},
		{[]string{"/bin/sh", strings.Repeat("x", 1<<20)}, 126, "cannot start /bin/sh: argument list too long"},
		{[]string{"/bin/sh", "a\x00b"}, 126, "cannot start /bin/sh: invalid argument"},
		{[]string{"/bin/sh\x00"}, 126, "cannot start /bin/sh\x00: invalid argument"},
	} {
		r, err := begin(t, c.argv, plain, nil)
		var failure *StartError
		if !errors.As(err, &failure) || failure.ExitCode() != c.code || err.Error() != c.err || r.PID != 0 || r.Listener != -1 {
			t.Errorf("%.40q: %+v, %v, want %d, %q", c.argv, r, err, c.code, c.err)
		}
	}
	if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("a start that failed left a child: %v", err)
	}
}

// TestMemoryIsTheParents starts processes that share the memory until they execute, and ones
// that fail there, while other threads allocate and collect: what the child does to the
// stack and to the plan must not be seen.
func TestMemoryIsTheParents(t *testing.T) {
	stop := make(chan struct{})
	var others sync.WaitGroup
	for range 2 {
		others.Go(func() {
			for n := 1; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if garbage := make([]byte, n%100000); n%50 == 0 {
					runtime.GC()
				} else if len(garbage) > 0 {
					garbage[0] = 1
				}
			}
		})
	}
	defer others.Wait()
	defer close(stop)
	const rounds = 150
	var deep func(depth int, c *Command) (Process, error)
	deep = func(depth int, c *Command) (p Process, err error) { // from stacks of many sizes
		var pad [64]int
		for i := range pad {
			pad[i] = depth + i
		}
		if depth > 0 {
			p, err = deep(depth-1, c)
		} else {
			p, err = Start(c)
		}
		for i := range pad {
			if pad[i] != depth+i {
				t.Errorf("the stack was written to %d calls above the start", depth)
				break
			}
		}
		return p, err
	}
	for i := range rounds {
		c := &Command{Path: "/bin/true", Argv: []string{"true"}, Env: slices.Clone(plain), Files: []uintptr{0, 1, 2}, Terminal: -1, OwnPID: []string{"LISTEN_PID"}}
		switch i % 3 {
		case 1:
			c.Path = "/no/such/program"
		case 2:
			c.Dir = "/no/such/folder"
		}
		p, err := deep(i%40, c)
		if (err == nil) != (i%3 == 0) || !slices.Equal(c.Env, plain) || !slices.Equal(c.Files, []uintptr{0, 1, 2}) {
			t.Fatalf("round %d: %v, environment %q, files %v", i, err, c.Env, c.Files)
		}
		if err == nil {
			if ended, err := unix.Wait4(p.PID, nil, 0, nil); p.PID <= 1 || ended != p.PID {
				t.Fatalf("round %d: pid %d; %d ended: %v", i, p.PID, ended, err)
			}
		}
	}
}

func TestTransient(t *testing.T) {
	for errno, transient := range map[unix.Errno]bool{
		unix.EAGAIN: true, unix.ENOMEM: true, unix.EMFILE: true, unix.ENFILE: true,
		unix.ENOENT: false, unix.EACCES: false, unix.ENOEXEC: false, unix.EPERM: false, unix.E2BIG: false,
	} {
		if got := (&StartError{Err: errno}).Transient(); got != transient {
			t.Errorf("%v is transient: %v", errno, got)
		}
	}
}

func TestScriptWithoutInterpreterRunsInTheShell(t *testing.T) {
	script := executableFile(t, "echo \"$0 $# $1\"\nexit 9\n")
	r := ends(t, []string{script, "a b"}, plain, nil)
	if want := script + " 1 a b\n"; r.out != want || r.code != 9 {
		t.Errorf("got %q, %q, code %d, want %q and 9", r.out, r.err, r.code, want)
	}
	if r := ends(t, []string{executableFile(t, "")}, plain, nil); r.code != 0 || r.out+r.err != "" {
		t.Errorf("an empty file: %+v", r)
	}
}

func TestOwnPID(t *testing.T) {
	ask := func(c *Command) { c.OwnPID = []string{"LISTEN_PID", "WATCHDOG_PID"} }
	r := ends(t, []string{"sh", "-c", `tr '\0' '\n' </proc/$$/environ | grep -E "^(LISTEN|WATCHDOG)_"; echo $$`}, append(slices.Clone(plain), "LISTEN_FDS=2"), ask)
	if want := fmt.Sprintf("LISTEN_FDS=2\nLISTEN_PID=%d\nWATCHDOG_PID=%[1]d\n%[1]d\n", r.PID); r.out != want {
		t.Errorf("got %q, want %q", r.out, want)
	}
	if r = ends(t, []string{"sh", "-c", `echo "<$LISTEN_PID>"`}, plain, nil); r.out != "<>\n" {
		t.Errorf("LISTEN_PID came unasked: %q", r.out)
	}
}

// Descriptors arrive in the order asked for, whatever numbers they have here, and none besides.
func TestDescriptorsArePlaced(t *testing.T) {
	dir := t.TempDir()
	var fds []int
	for _, name := range []string{"a", "b", "c", "d"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Close(fd) }()
		fds = append(fds, fd)
	}
	const show = "for n in 3 4 5 6 7 8; do readlink /proc/$$/fd/$n || echo none; done"
	for _, order := range [][]int{{0, 1, 2, 3}, {3, 2, 1, 0}, {1, 1, 0, 3}, {2, 3, 0, 1}} {
		var extra []int
		want := ""
		for _, i := range order {
			extra = append(extra, fds[i])
			want += filepath.Join(dir, string(rune('a'+i))) + "\n"
		}
		if r := ends(t, []string{"sh", "-c", show}, plain, nil, extra...); r.out != want+"none\nnone\n" {
			t.Errorf("%v: got %q, want %q", order, r.out, want)
		}
	}
	// Numbers that stand in each other's way.
	low := func(order ...int) (starter string) {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "LAUNCH_TEST_ROLE=starter")
		for _, i := range order {
			cmd.Env = append(cmd.Env, fmt.Sprintf("FILE%d=%d", len(cmd.Env), i))
		}
		for _, fd := range fds {
			cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(dup(t, fd)), "x"))
		}
		cmd.Args = []string{"starter", "sh", "-c", show}
		for _, i := range order {
			cmd.Args[0] += " " + strconv.Itoa(i)
		}
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range cmd.ExtraFiles {
			_ = f.Close()
		}
		return string(out)
	}
	for _, order := range [][]int{{3, 4, 5, 6}, {6, 5, 4, 3}, {4, 3, 6, 5}, {5, 3, 3, 4}} {
		want := ""
		for _, fd := range order {
			want += filepath.Join(dir, string(rune('a'+fd-3))) + "\n"
		}
		if got := low(order...); got != want+"none\nnone\n" {
			t.Errorf("%v: got %q, want %q", order, got, want)
		}
	}
}

func dup(t *testing.T, fd int) int {
	t.Helper()
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 20)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// starter starts its arguments with the descriptors that are in its own name, and close-on-exec
// on everything from 3 on.
func starter() {
	for fd := 3; fd < 64; fd++ {
		unix.CloseOnExec(fd)
	}
	c := Command{Path: "/bin/sh", Argv: os.Args[1:], Env: plain, Files: []uintptr{0, 1, 2}, Terminal: -1}
	for _, word := range strings.Fields(os.Args[0])[1:] {
		fd, err := strconv.Atoi(word)
		if err != nil {
			panic(err)
		}
		c.Files = append(c.Files, uintptr(fd))
	}
	p, err := Start(&c)
	if err != nil {
		panic(err)
	}
	var status syscall.WaitStatus
	_ = sys.RetryEINTR(func() error { _, err := syscall.Wait4(p.PID, &status, 0, nil); return err })
	os.Exit(status.ExitStatus())
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
	_ = os.Setenv("LAUNCH_TEST_ROLE", os.Getenv("LAUNCH_TEST_NEXT"))
	err := unix.Exec(os.Args[1], os.Args[1:], os.Environ())
	fmt.Println("cannot exec:", err)
	os.Exit(1)
}

func TestSignalsAreClean(t *testing.T) {
	status := func(next string, args ...string) map[string]string {
		cmd := exec.Command("/proc/self/exe", args...)
		cmd.Env = append(os.Environ(), "LAUNCH_TEST_ROLE=ignorer", "LAUNCH_TEST_NEXT="+next)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for line := range strings.Lines(string(out)) {
			if name, value, found := strings.Cut(line, ":"); found && (name == "SigBlk" || name == "SigIgn" || name == "SigCgt") {
				got[name] = strings.TrimSpace(value)
			}
		}
		return got
	}
	// The detector first: without Start the child sees what its parent left.
	dirty := status("", "/bin/cat", "/proc/self/status")
	const nothing = "0000000000000000"
	if dirty["SigBlk"] == nothing || dirty["SigIgn"] == nothing {
		t.Fatalf("the parent left nothing to clean: %v", dirty)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	clean := status("starter", self, "sh", "-c", "exec cat /proc/self/status")
	if clean["SigBlk"] != nothing || clean["SigIgn"] != nothing || clean["SigCgt"] != nothing {
		t.Errorf("signals %v, want none blocked, ignored or caught (the parent left %v)", clean, dirty)
	}
}

func TestFileLimitIsTheParents(t *testing.T) {
	// The runtime of Go raises the soft limit of open files; the command must get the one skep was started with.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[string]string{"173": "173\n", "$(ulimit -Hn)": ""} {
		cmd := exec.Command("/bin/sh", "-c", "ulimit -Sn "+limit+"; ulimit -Sn >&2; exec \"$0\" sh -c 'ulimit -Sn'", self)
		cmd.Env = append(os.Environ(), "LAUNCH_TEST_ROLE=starter")
		var before strings.Builder
		cmd.Stderr = &before
		out, err := cmd.Output()
		if err != nil || want != "" && string(out) != want || string(out) != before.String() {
			t.Errorf("ulimit -Sn %s: the soft limit is %q, was %q, %v", limit, out, before.String(), err)
		}
	}
}

func TestFilterHasItsListener(t *testing.T) {
	const show = "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status; ls /proc/$$/fd"
	// What the tests themselves were started with shows up in every child.
	_, inherited, _ := strings.Cut(ends(t, []string{"sh", "-c", "echo : ; ls /proc/$$/fd"}, plain, nil).out, ":\n")
	ask := func(c *Command) { c.Filter = true }
	r := ends(t, []string{"sh", "-c", show}, plain, ask)
	if want := "NoNewPrivs:\t1\nSeccomp:\t2\n" + inherited; r.out != want {
		t.Errorf("the command sees %q, want %q (no descriptor of skep)", r.out, want)
	}
	if r.NoListener != nil || r.Listener < 0 {
		t.Fatalf("%+v", r)
	}
	link, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(r.Listener))
	if link != "anon_inode:seccomp notify" {
		t.Errorf("the descriptor is %q", link)
	}
	if flags, err := unix.FcntlInt(uintptr(r.Listener), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the listener would go on to children: %#x, %v", flags, err)
	}
	_ = unix.Close(r.Listener)
	if r := ends(t, []string{"true"}, plain, nil); r.Listener != -1 || r.NoListener != nil {
		t.Errorf("a listener unasked: %+v", r)
	}
}

// below is a process that has a filter of its own and starts another below it: the kernel
// allows one listener in a tree of filters.
func TestFilterThatIsRefusedDoesNotStopTheStart(t *testing.T) {
	if os.Getenv("LAUNCH_TEST_BELOW") != "" {
		r := ends(t, []string{"echo", "runs"}, plain, func(c *Command) { c.Filter = true })
		if r.out != "runs\n" || r.code != 0 || !errors.Is(r.NoListener, unix.EBUSY) || r.Listener != -1 {
			t.Errorf("%+v", r)
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := ends(t, []string{self, "-test.run=^" + t.Name() + "$", "-test.v"}, append(os.Environ(), "LAUNCH_TEST_BELOW=1"), func(c *Command) { c.Filter = true })
	if r.Listener >= 0 {
		_ = unix.Close(r.Listener)
	}
	if r.code != 0 || !strings.Contains(r.out, "--- PASS") {
		t.Errorf("code %d: %s%s", r.code, r.out, r.err)
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
	as := func(u *User) func(*Command) { return func(c *Command) { c.User = u } }
	dumpable := func() int {
		n, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := dumpable()
	show := []string{"sh", "-c", "id -u; id -g; id -G; grep -E 'CapEff|CapPrm' /proc/self/status"}
	r := ends(t, show, plain, as(&User{UID: 4321, GID: 5432, Groups: []uint32{5432, 77, 88}}))
	if want := "4321\n5432\n5432 77 88\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"; r.out != want {
		t.Errorf("got %q, stderr %q, want %q", r.out, r.err, want)
	}
	if r = ends(t, []string{"id", "-G"}, plain, as(&User{UID: 4321, GID: 5432})); r.out != "5432\n" {
		t.Errorf("without groups: %q", r.out)
	}
	var failure *StartError
	if _, err := begin(t, []string{secret}, plain, as(&User{UID: 4321, GID: 5432})); !errors.As(err, &failure) || failure.ExitCode() != 126 {
		t.Errorf("a program only root may run: %v", err)
	}
	if after := dumpable(); after != before {
		t.Errorf("a child that changes its user made its parent's dumpable flag %d, was %d", after, before)
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
	_, err := begin(t, []string{"true"}, plain, func(c *Command) { c.User = &User{UID: 0, GID: 0} })
	var failure *StartError
	if !errors.As(err, &failure) || failure.ExitCode() != ExitOwnFault || !strings.HasSuffix(err.Error(), "true: cannot become user 0:0: setgroups: operation not permitted") {
		t.Errorf("%v", err)
	}
	self := &User{UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Groups: []uint32{1}}
	if r := ends(t, []string{"true"}, plain, func(c *Command) { c.User = self }); r.code != 0 {
		t.Errorf("oneself: code %d, stderr %q", r.code, r.err)
	}
}

func TestOOMScoreAdj(t *testing.T) {
	adj := 321
	ask := func(c *Command) { c.OOMScoreAdj = &adj }
	own := func() string {
		text, err := os.ReadFile("/proc/self/oom_score_adj")
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	before := own()
	if r := ends(t, []string{"cat", "/proc/self/oom_score_adj"}, plain, ask); r.out != "321\n" || r.NoOOMScore != nil {
		t.Errorf("%+v", r)
	}
	if after := own(); after != before {
		t.Errorf("a child that changes its score made its parent's %q, was %q", after, before)
	}
	adj = 5000
	if r := ends(t, []string{"echo", "runs"}, plain, ask); r.out != "runs\n" || !errors.Is(r.NoOOMScore, unix.EINVAL) {
		t.Errorf("out of range: %+v", r)
	}
}

// BenchmarkStart is what Start takes with everything that it can do; compare with
// BenchmarkForkExec, the standard library's.
func BenchmarkStart(b *testing.B) {
	adj := 500
	for b.Loop() {
		p, err := Start(&Command{Path: "/bin/true", Argv: []string{"true"}, Env: plain, Files: []uintptr{0, 1, 2}, Terminal: -1,
			Filter: true, OwnPID: []string{"LISTEN_PID"}, OOMScoreAdj: &adj})
		if err != nil {
			b.Fatal(err)
		}
		_ = unix.Close(p.Listener)
		wait(p.PID)
	}
}

func BenchmarkForkExec(b *testing.B) {
	for b.Loop() {
		pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{Env: plain, Files: []uintptr{0, 1, 2}})
		if err != nil {
			b.Fatal(err)
		}
		wait(pid)
	}
}

func wait(pid int) {
	_ = sys.RetryEINTR(func() error { _, err := syscall.Wait4(pid, nil, 0, nil); return err })
}
