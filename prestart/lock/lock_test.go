package lock

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// patience is how long a test waits for something that has to come.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv("LOCK_TEST_ROLE") == "replica" {
		os.Exit(replica(os.Args[1], os.Args[2]))
	}
	os.Exit(m.Run())
}

// replica is what skep does in one replica. It says on stdout how far it is and
// does on stdin's word what it is told.
func replica(path, key string) int {
	var taken Taken
	waited := false
	for ev := range Take(path, key).Events() {
		switch ev := ev.(type) {
		case Waiting:
			if !waited {
				waited = true
				fmt.Println("waiting")
			}
		case Failed:
			fmt.Println("failed", ev.Err)
			return 1
		case Taken:
			taken = ev
		}
	}
	if taken.Done {
		fmt.Println("done", strings.Join(taken.Vars, ","))
		return 0
	}
	fmt.Println("taken")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch word, arg, _ := strings.Cut(in.Text(), " "); word {
		case "stamp":
			if err := <-taken.Lock.Stamp(strings.Split(arg, ",")); err != nil {
				fmt.Println("failed", err)
				return 1
			}
			fmt.Println("stamped")
		case "step": // leaves a process behind that inherits the lock, as a step does
			step := exec.Command("cat")
			step.ExtraFiles = []*os.File{taken.Lock.File()}
			if _, err := step.StdinPipe(); err != nil {
				panic(err)
			}
			if arg == "stays" { // even when this process is gone
				step.Stdin = nil
				file, err := os.Open(os.Getenv("LOCK_TEST_FIFO"))
				if err != nil {
					panic(err)
				}
				step.Stdin = file
			}
			if err := step.Start(); err != nil {
				panic(err)
			}
			fmt.Println("step", step.Process.Pid)
		case "release":
			<-taken.Lock.Release(arg == "done")
			fmt.Println("released")
		}
	}
	return 0
}

type proc struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
}

func start(t *testing.T, path, key string, environ ...string) *proc {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", path, key)
	cmd.Env = append(append(os.Environ(), "LOCK_TEST_ROLE=replica"), environ...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &proc{t: t, cmd: cmd, in: in, lines: make(chan string, 100)}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	t.Cleanup(p.kill)
	return p
}

func (p *proc) tell(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.in, text+"\n"); err != nil {
		p.t.Fatal(err)
	}
}

// line returns the next line.
func (p *proc) line() string {
	p.t.Helper()
	select {
	case text, ok := <-p.lines:
		if !ok {
			return "(ended)"
		}
		return text
	case <-time.After(patience):
		p.t.Fatal("nothing is said")
		return ""
	}
}

func (p *proc) want(text string) {
	p.t.Helper()
	if got := p.line(); got != text {
		p.t.Fatalf("got %q, want %q", got, text)
	}
}

// kill ends the process as an OOM kill or a lost node does.
func (p *proc) kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

// open tells whether the lock on path can be had at this moment.
func available(t *testing.T, path string) bool {
	t.Helper()
	file, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	switch err := flock(file); {
	case err == nil:
		return true
	case errors.Is(err, syscall.EWOULDBLOCK):
		return false
	default:
		t.Fatal(err)
		return false
	}
}

// turn waits until one of ps takes the lock and returns it with the others; it
// fails when a second does so at once.
func turn(t *testing.T, ps []*proc) (*proc, []*proc) {
	t.Helper()
	first := make(chan int, len(ps))
	stop := make(chan struct{})
	back := make(chan struct{}, len(ps))
	for i, p := range ps {
		go func() {
			defer func() { back <- struct{}{} }()
			select {
			case text := <-p.lines:
				if text != "taken" {
					t.Errorf("replica %d says %q", i, text)
				}
				first <- i
			case <-stop:
			}
		}()
	}
	var winner int
	select {
	case winner = <-first:
	case <-time.After(patience):
		t.Fatal("nobody takes the lock")
	}
	close(stop)
	for range ps {
		<-back
	}
	if len(first) > 0 {
		t.Fatalf("two replicas have the lock")
	}
	others := append(append([]*proc(nil), ps[:winner]...), ps[winner+1:]...)
	return ps[winner], others
}

// race starts n replicas at once and waits until one has the lock and all others
// know that they wait.
func race(t *testing.T, n int, path, key string) (*proc, []*proc) {
	t.Helper()
	all := make([]*proc, n)
	for i := range all {
		all[i] = start(t, path, key)
	}
	var holder *proc
	var waiters []*proc
	for _, p := range all {
		switch text := p.line(); {
		case text == "taken" && holder == nil:
			holder = p
		case text == "waiting":
			waiters = append(waiters, p)
		default:
			t.Fatalf("a replica says %q", text)
		}
	}
	if holder == nil {
		// Each of them met the short moment in which another only looked.
		holder, waiters = turn(t, waiters)
	}
	return holder, waiters
}

func TestOneAfterAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	holder, waiters := race(t, 8, path, "")
	for {
		if available(t, path) {
			t.Fatal("the lock is held and can be had")
		}
		holder.tell("release done")
		holder.want("released")
		if len(waiters) == 0 {
			break
		}
		holder, waiters = turn(t, waiters)
	}
	if !available(t, path) {
		t.Error("all have released it and it cannot be had")
	}
}

func TestOnceForAKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	holder, waiters := race(t, 8, path, "v1")
	holder.tell("stamp A=1,B=x y")
	holder.want("stamped")
	// The work is done, so the others go on, even while the lock is held.
	for _, p := range waiters {
		p.want("done A=1,B=x y")
	}
	if available(t, path) {
		t.Error("the holder has not released it and it can be had")
	}
	holder.tell("release done")
	holder.want("released")
	// Ever: also after all are gone.
	start(t, path, "v1").want("done A=1,B=x y")
	// Another key is other work.
	start(t, path, "v2").want("taken")
}

func TestHolderKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	holder, waiters := race(t, 8, path, "v1")
	for len(waiters) > 3 {
		holder.kill()
		holder, waiters = turn(t, waiters)
	}
	holder.tell("stamp ")
	holder.want("stamped")
	for _, p := range waiters {
		p.want("done ")
	}
}

// TestStepOutlivesSkep: skep is killed and its step goes on. Nobody else may
// begin until the step is gone.
func TestStepOutlivesSkep(t *testing.T) {
	folder := t.TempDir()
	path, fifo := filepath.Join(folder, "lock"), filepath.Join(folder, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	end, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()

	holder := start(t, path, "", "LOCK_TEST_FIFO="+fifo)
	holder.want("taken")
	holder.tell("step stays")
	var pid int
	if _, err := fmt.Sscanf(holder.line(), "step %d", &pid); err != nil {
		t.Fatal(err)
	}
	other := start(t, path, "")
	other.want("waiting")
	holder.kill()
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("the step is gone too, the test shows nothing: %v", err)
	}
	if available(t, path) {
		t.Fatal("the step runs and another could begin")
	}
	if err := end.Close(); err != nil { // the step ends
		t.Fatal(err)
	}
	other.want("taken")
}

// TestRelease: what a step left behind keeps the lock only when it failed.
func TestRelease(t *testing.T) {
	for _, how := range []string{"done", "failed"} {
		path := filepath.Join(t.TempDir(), "lock")
		p := start(t, path, "k")
		p.want("taken")
		p.tell("step")
		var pid int
		if _, err := fmt.Sscanf(p.line(), "step %d", &pid); err != nil {
			t.Fatal(err)
		}
		p.tell("release " + how)
		p.want("released")
		if got := available(t, path); got != (how == "done") {
			t.Errorf("%s: the lock can be had: %v", how, got)
		}
		if left, _ := filepath.Glob(path + ".*"); left != nil {
			t.Errorf("%s: %q is left", how, left)
		}
	}
}

// end waits for the last event.
func end(t *testing.T, p *Pending) Event {
	t.Helper()
	var last Event
	for {
		select {
		case ev, ok := <-p.Events():
			if !ok {
				return last
			}
			last = ev
		case <-time.After(patience):
			t.Fatal("no end")
		}
	}
}

func TestStamp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	taken, ok := end(t, Take(path, "v1/ü")).(Taken)
	if !ok || taken.Done {
		t.Fatalf("%+v", taken)
	}
	if err := <-taken.Lock.Stamp([]string{"A=1", "B=", "C=x=y z"}); err != nil {
		t.Fatal(err)
	}
	<-taken.Lock.Release(true)
	files, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
	if err != nil {
		t.Fatal(err)
	}
	stamp := path + ".v1%2F%C3%BC.done"
	if diff := cmp.Diff([]string{path, stamp}, files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	info, err := os.Stat(stamp)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the stamp may hold secrets and has mode %o", info.Mode().Perm())
	}
	again, ok := end(t, Take(path, "v1/ü")).(Taken)
	if !ok {
		t.Fatal("the stamp is not taken for the end of the work")
	}
	if diff := cmp.Diff(Taken{Done: true, Vars: []string{"A=1", "B=", "C=x=y z"}}, again); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	<-again.Lock.Release(true) // a nil Lock
	if again.Lock.File() != nil {
		t.Error("a nil Lock has a file")
	}
	// By hand: touch FILE.KEY.done.
	if err := os.WriteFile(path+".v2.done", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, ok := end(t, Take(path, "v2")).(Taken); !ok || !got.Done || got.Vars != nil {
		t.Errorf("an empty stamp: %+v", got)
	}
}

func TestFailed(t *testing.T) {
	folder := t.TempDir()
	mkdir := func(name string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(folder, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	mkdir("folder")
	mkdir("lock.notmp.done.tmp")
	mkdir("lock.odd.done")
	for name, text := range map[string]string{
		"lock.foreign.done": "hello\n\nA=1\n",
		"lock.case.done":    title + "\nkey: CASE\n\nA=1\n",
		"lock.torn.done":    title + "\nkey: torn\nat: now\n",
		"lock.env.done":     title + "\nkey: env\n\nhunter2\n",
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(folder, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ path, key, want string }{
		{"absent/lock", "", "cannot open the lock: "},
		{"folder", "", "cannot open the lock: "},
		{"fifo", "", "is no regular file"},
		{"lock", "notmp", "cannot write a stamp beside the lock: "},
		{"lock", "odd", "cannot read the stamp: "},
		{"lock", "foreign", "skep has not written it"},
		{"lock", "case", "belongs to another key"},
		{"lock", "torn", "skep has not written it"},
		{"lock", "env", "line 1: no ="},
	} {
		got, ok := end(t, Take(filepath.Join(folder, test.path), test.key)).(Failed)
		if !ok || !strings.Contains(got.Err.Error(), test.want) || !strings.Contains(got.Err.Error(), folder) && test.key != "env" {
			t.Errorf("%s %s: got %v, want %s", test.path, test.key, got.Err, test.want)
		}
		if ok && strings.Contains(got.Err.Error(), "hunter2") {
			t.Errorf("the error tells a value: %v", got.Err)
		}
	}
	if !available(t, filepath.Join(folder, "lock")) {
		t.Error("the lock is still held after a failure")
	}
}

// TestNoLocks: a volume that cannot lock is an error at once, never a lock.
func TestNoLocks(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOLCK, syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EINVAL, syscall.EIO, syscall.ESTALE} {
		taker := &taker{path: filepath.Join(t.TempDir(), "lock"), flock: func(*os.File) error { return errno }, local: local}
		if ev, err := taker.try(); ev != nil || !errors.Is(err, errno) {
			t.Errorf("%v: %v, %v", errno, ev, err)
		}
		taker.close()
	}
}

// TestInterrupted: a signal does not make a lock fail (law 6).
func TestInterrupted(t *testing.T) {
	file, err := open(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	calls := 0
	if err := control(file, func(int) error {
		if calls++; calls < 3 {
			return syscall.EINTR
		}
		return nil
	}); err != nil || calls != 3 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

// TestReplaced: the file was removed while it was waited for. The old one is
// worth nothing.
func TestReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	old, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := flock(old); err != nil {
		t.Fatal(err)
	}
	pending := Take(path, "")
	if _, ok := (<-pending.Events()).(Waiting); !ok {
		t.Fatal("not waiting")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	taken, ok := end(t, pending).(Taken)
	if !ok {
		t.Fatalf("%+v", taken)
	}
	if same, err := current(taken.Lock.File(), path); err != nil || !same {
		t.Errorf("the lock is on a file that nobody else will lock: %v", err)
	}
	if available(t, path) {
		t.Error("another can have the lock too")
	}
	<-taken.Lock.Release(true)
}

func TestAbandon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	held, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := flock(held); err != nil {
		t.Fatal(err)
	}
	pending := Take(path, "k")
	if _, ok := (<-pending.Events()).(Waiting); !ok {
		t.Fatal("not waiting")
	}
	pending.Abandon()
	pending.Abandon()
	if ev := end(t, pending); ev != nil {
		t.Errorf("abandoned, and then %+v", ev)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	// At any moment: nothing keeps the lock that nobody received.
	for range 200 {
		pending := Take(path, "k")
		pending.Abandon()
		if taken, ok := end(t, pending).(Taken); ok {
			taken.Lock.Release(false)
		}
	}
	for deadline := time.Now().Add(patience); !available(t, path); {
		if time.Now().After(deadline) {
			t.Fatal("the lock was abandoned and is held")
		}
	}
}

// TestAbandonTaken: abandoned at the moment in which the lock has been taken, it
// is let go of.
func TestAbandonTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var file *os.File // kept, or the garbage collector would close it
	abandon := make(chan struct{})
	taker := &taker{path: path, events: make(chan Event), abandon: abandon, local: local, flock: func(f *os.File) error {
		file = f
		close(abandon)
		return flock(f)
	}}
	taker.run()
	if !available(t, path) {
		t.Error("nobody received the lock and it is held")
	}
	runtime.KeepAlive(file)
}

// TestDoneMeanwhile: the holder before finished between the look at the stamp and
// the lock.
func TestDoneMeanwhile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	taker := &taker{path: path, key: "k", local: local, flock: func(f *os.File) error {
		if err := (&Lock{path: path, key: "k"}).stamp([]string{"A=1"}); err != nil {
			t.Fatal(err)
		}
		return flock(f)
	}}
	got, err := taker.try()
	if diff := cmp.Diff(Event(Taken{Done: true, Vars: []string{"A=1"}}), got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if !available(t, path) {
		t.Error("the work is done and the lock is held")
	}
}

func TestLocalLocks(t *testing.T) {
	const mounts = `22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:50 / /data rw,relatime shared:5 - nfs4 server:/x rw,vers=4.2,local_lock=none,addr=10.0.0.1
31 22 0:51 / /data\040b rw,relatime - nfs server:/x rw,vers=3,nolock,local_lock=all,addr=10.0.0.1
32 22 0:52 / /c rw - nfs server:/x rw,vers=3,local_lock=flock
33 22 0:53 / /d rw - nfs server:/x rw,vers=3,local_lock=posix
34 22 0:54 / /e rw master:1 propagate_from:2 - cifs //server/x rw,nobrl
35 22 0:55 / /nolock rw,nolock - ext4 /dev/nolock rw,nolock,nobrl
36 22 0:56
37 22 0:57 / /f rw -
38 22 0:57 / /f rw - nfs
39 22 0:5 / /g rw - nfs4 server:/x rw,local_lock=all
`
	for minor, want := range map[uint32]string{50: "", 51: "nolock", 52: "local_lock=flock", 53: "", 54: "nobrl", 55: "", 56: "", 57: "", 5: "local_lock=all", 58: ""} {
		if got := localOption(mounts, 0, minor); got != want {
			t.Errorf("0:%d: got %q, want %q", minor, got, want)
		}
	}
	if got := localOption(mounts, 8, 1); got != "" {
		t.Errorf("8:1: %q", got)
	}
	// The machine's own mounts: the device of a file is found, by its numbers.
	file, err := open(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if why := local(file); why != "" {
		t.Errorf("the tests' folder: %s", why)
	}
	taker := &taker{path: file.Name(), flock: flock, local: func(*os.File) string { return "nolock" }}
	ev, err := taker.try()
	taker.close()
	if ev != nil || err == nil || !strings.Contains(err.Error(), "is mounted with nolock, so a lock holds on this node alone") {
		t.Errorf("%v, %v", ev, err)
	}
}

func TestWaitingLine(t *testing.T) {
	if got := (Waiting{Path: "/data/lock", For: 5100 * time.Millisecond}).String(); got != "waiting for the lock on /data/lock, held by another replica, 5s so far" {
		t.Error(got)
	}
}

func TestCheck(t *testing.T) {
	for _, test := range []struct{ path, key, want string }{
		{"/data/lock", "", ""},
		{"/data/lock", "ghcr.io/x/y:v1.2@sha256:ab", ""},
		{"/data/lock", strings.Repeat("k", 255-len("lock..done.tmp")), ""},
		{"/data/lock", strings.Repeat("k", 256-len("lock..done.tmp")), "too long"},
		{"/data/lock", strings.Repeat("/", 90), "too long"},
		{"/data/lock", "a\nb", "control character"},
		{"data/lock", "", "absolute"},
		{"", "", "absolute"},
		{"/data/", "", "folder"},
	} {
		err := Check(test.path, test.key)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q %q: %v, want %q", test.path, test.key, err, test.want)
		}
	}
}

// TestStampNames: different keys never share a stamp, nor does one leave the
// folder.
func TestStampNames(t *testing.T) {
	key := rapid.StringMatching(`[a-c%/.A2F]{0,4}`)
	rapid.Check(t, func(t *rapid.T) {
		a, b := key.Draw(t, "a"), key.Draw(t, "b")
		x, y := stampPath("/d/lock", a), stampPath("/d/lock", b)
		if (a == b) != (x == y) || filepath.Dir(x) != "/d" {
			t.Fatalf("%q is %s, %q is %s", a, x, b, y)
		}
	})
}

func FuzzParseStamp(f *testing.F) {
	f.Add([]byte(title+"\nkey: k\nat: x\n\nA=1\n"), "k")
	f.Add([]byte(""), "k")
	f.Add([]byte(title+"\nkey: k"), "k")
	f.Fuzz(func(t *testing.T, text []byte, key string) {
		vars, err := parseStamp(text, key)
		if err == nil && len(vars) > 0 && !strings.HasPrefix(string(text), title+"\nkey: "+key+"\n") {
			t.Fatalf("%q was taken for the stamp of %q", text, key)
		}
	})
}
