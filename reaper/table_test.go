package reaper

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"skep/internal/testneed"
	"skep/launch"
)

// Every way to end is reported as the shell would.
func TestEveryStatus(t *testing.T) {
	alone(t, func(t *testing.T) {
		h := newHouse(t)
		for code := range 256 {
			e := h.run("exit " + strconv.Itoa(code))
			if e.Status != (Status{Code: code}) || e.Status.ExitCode() != code || e.Status.Success() != (code == 0) || !e.Known {
				t.Errorf("exit %d: %+v", code, e)
			}
		}
		if e := h.run("exit 300"); e.Status.Code != 44 {
			t.Errorf("exit 300: %+v", e)
		}
		harmless := []unix.Signal{unix.SIGCHLD, unix.SIGCONT, unix.SIGURG, unix.SIGWINCH, unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU}
		for sig := 1; sig <= 64; sig++ {
			if slices.Contains(harmless, unix.Signal(sig)) || sig == 32 || sig == 33 { // the C library's own
				continue
			}
			e := h.run("ulimit -c 0; kill -" + strconv.Itoa(sig) + " $$")
			if e.Status != (Status{Signal: sig}) || e.Status.ExitCode() != 128+sig || e.Status.Success() {
				t.Errorf("signal %d: %+v", sig, e)
			}
		}
	})
}

func TestStatusString(t *testing.T) {
	for status, want := range map[Status]string{{}: "code 0", {Code: 7}: "code 7", {Signal: 9}: "signal 9", {Signal: 6, Core: true}: "signal 6"} {
		if got := status.String(); got != want {
			t.Errorf("%#v is %q, want %q", status, got, want)
		}
	}
}

// No status is lost or confused while orphans stream in (law 1).
func TestNoStatusIsLost(t *testing.T) {
	alone(t, func(t *testing.T) {
		h := newHouse(t)
		total, atOnce := 4000, 32
		if testing.Short() {
			total = 400
		}
		want := make(map[int]int) // pid to code, while it runs
		lost, orphans, done := 0, 0, 0
		collect := func() {
			for pid, exits := range h.exits {
				for _, e := range exits {
					code, mine := want[pid]
					switch {
					case mine && e.Known && e.Status == Status{Code: code}:
						done++
						delete(want, pid)
					case !mine && !e.Known && e.Status == Status{Code: 99}:
						orphans++
					default:
						lost++
						t.Errorf("%+v, want code %d of mine %v", e, code, mine)
					}
				}
				delete(h.exits, pid)
			}
		}
		for i := range total {
			code := 1 + i%90
			pid := h.start(shell(fmt.Sprintf("(/bin/sh -c 'exit 99' &); exit %d", code)))
			want[pid] = code
			h.until("there is room for one more", func() bool { collect(); return len(want) < atOnce })
		}
		h.until("all have ended", func() bool { collect(); return !h.children })
		if done != total || lost != 0 || len(want) != 0 {
			t.Errorf("%d of %d statuses right, %d wrong, %d missing", done, total, lost, len(want))
		}
		if orphans < total/2 {
			t.Errorf("only %d orphans came by: nothing was proved", orphans)
		}
		t.Logf("%d statuses, %d orphans", done, orphans)
	})
}

// Exits coalesce: one SIGCHLD may stand for many, and one Reap takes them all.
func TestReapTakesAll(t *testing.T) {
	alone(t, func(t *testing.T) {
		h := newHouse(t)
		var pids []int
		for range 20 {
			pids = append(pids, h.start(shell("exit 3")))
		}
		for _, pid := range pids { // until it is a zombie, which it stays
			if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
				t.Fatal(err)
			}
		}
		var got []int
		children := h.Reap(func(e Exit) { got = append(got, e.PID) }, nil)
		if len(got) != len(pids) || children {
			t.Errorf("%d exits of %d, children left: %v", len(got), len(pids), children)
		}
		slices.Sort(got)
		slices.Sort(pids)
		if !slices.Equal(got, pids) {
			t.Errorf("exits of %v, want %v", got, pids)
		}
		if h.Reap(func(e Exit) { t.Errorf("a second exit: %+v", e) }, nil) {
			t.Error("there are children")
		}
	})
}

// Only pids of the table are signalled (law 2).
func TestSignalRefusesStrangers(t *testing.T) {
	alone(t, func(t *testing.T) {
		h := newHouse(t)
		other := NewTable()
		up, wait := h.up()
		started, err := other.Start(shell("echo up >&3; exec sleep 1000", up))
		if err != nil {
			t.Fatal(err)
		}
		stranger := started.PID
		wait(1)
		for _, group := range []bool{false, true} {
			if err := h.Signal(stranger, int(unix.SIGKILL), group); !errors.Is(err, unix.ESRCH) {
				t.Errorf("signal to a stranger: %v", err)
			}
			// With signal 0 the kernel only says whether it would: were the refusal
			// broken, nothing else would be safe to send to these.
			for _, pid := range []int{0, -1, 1, -stranger, os.Getpid(), os.Getppid()} {
				if err := h.Signal(pid, 0, group); !errors.Is(err, unix.ESRCH) {
					t.Errorf("signal to %d: %v", pid, err)
				}
			}
		}
		h.SignalTree(stranger, int(unix.SIGKILL))
		h.until("exits are taken", func() bool { return true })
		if len(h.exits) != 0 || !alive(stranger) {
			t.Fatalf("the stranger was hit: %v", h.exits)
		}

		mine := h.start(shell("exit 0"))
		h.until("it has ended", func() bool { return len(h.exits[mine]) > 0 })
		if err := h.Signal(mine, int(unix.SIGKILL), false); !errors.Is(err, unix.ESRCH) {
			t.Errorf("signal to a reaped pid: %v", err)
		}
		if h.Has(mine) || h.Len() != 0 {
			t.Error("a reaped pid is still in the table")
		}
	})
}

func TestSignal(t *testing.T) {
	alone(t, func(t *testing.T) {
		h := newHouse(t)
		const family = "sh -c 'trap \"exit 5\" USR1; echo up >&3; while :; do sleep 0.05; done' & trap 'wait; exit 6' USR1; echo up >&3; wait; wait"
		for _, c := range []struct {
			name      string
			group     bool
			wantOther bool // the child in the group has ended as well
		}{{"process", false, false}, {"group", true, true}} {
			clear(h.exits)
			up, wait := h.up()
			pid := h.start(shell(family, up))
			wait(2)
			if err := h.Signal(pid, int(unix.SIGUSR1), c.group); err != nil {
				t.Fatal(err)
			}
			if c.group {
				h.until("both have ended", func() bool { return len(h.exits[pid]) > 0 })
				if e := h.exits[pid][0]; e.Status.Code != 6 {
					t.Errorf("%s: %+v", c.name, e)
				}
				continue
			}
			if below := Descendants(pid); len(below) == 0 {
				t.Errorf("%s: the child is gone as well", c.name)
			}
			h.SignalTree(pid, int(unix.SIGKILL))
			h.until("all have ended", func() bool { return !h.children })
		}

		// A process that has no group of its own is reached by its pid.
		up, wait := h.up()
		c := shell("echo up >&3; exec sleep 1000", up)
		c.KeepGroup = true // it has never had one
		pid := h.start(c)
		wait(1)
		if err := h.Signal(pid, int(unix.SIGTERM), true); err != nil {
			t.Fatal(err)
		}
		h.until("it has ended", func() bool { return len(h.exits[pid]) > 0 })
		if e := h.exits[pid][0]; e.Status.Signal != int(unix.SIGTERM) {
			t.Errorf("%+v", e)
		}
		// A zombie is an outcome, not an error (law 6).
		pid = h.start(shell("echo up >&3", up))
		wait(1)
		if err := h.Signal(pid, int(unix.SIGTERM), false); err != nil {
			t.Errorf("signal to one that ends: %v", err)
		}
	})
}

// What a worker leaves in its group gets the signal when it is reaped, and CONT
// so that it can see it.
func TestLeftovers(t *testing.T) {
	alone(t, func(t *testing.T) {
		h := newHouse(t)
		const family = "sh -c 'echo up >&3; exec sleep 1000' & sh -c 'echo up >&3; kill -STOP $$; exec sleep 1000' & read line <&4; exit 7"
		for _, leftovers := range []int{int(unix.SIGTERM), int(unix.SIGUSR1), 0} {
			clear(h.exits)
			up, wait := h.up()
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			c := shell(family, up, r)
			c.Leftovers = leftovers
			pid := h.start(c)
			wait(2)
			below := Descendants(pid)
			if len(below) != 2 {
				t.Fatalf("%d below, want 2", len(below))
			}
			h.until("one has stopped", func() bool { return slices.ContainsFunc(below, halted) })
			w.Close()
			r.Close()
			h.until("the worker has ended", func() bool { return len(h.exits[pid]) > 0 })
			if e := h.exits[pid][0]; e.Status.Code != 7 || !e.Known {
				t.Errorf("%+v", e)
			}
			if leftovers == 0 {
				if !alive(below[0]) || !alive(below[1]) {
					t.Error("without a signal for leftovers they were hit")
				}
				h.Sweep(os.Getpid(), int(unix.SIGTERM))
				h.until("the sweep has ended them", func() bool { return !h.children })
				continue
			}
			h.until("they have ended", func() bool { return !h.children })
			for _, p := range below {
				if e := h.exits[p]; len(e) != 1 || e[0].Known || e[0].Status.Signal != leftovers {
					t.Errorf("leftover: %+v, want signal %d", e, leftovers)
				}
			}
		}
	})
}

// What is left of one group can be told to end, and only that.
func TestSignalLeft(t *testing.T) {
	testneed.Program(t, "setsid")
	alone(t, func(t *testing.T) {
		h := newHouse(t)
		up, wait := h.up()
		other := h.start(shell("echo up >&3; exec sleep 1000", up))
		pid := h.start(shell("setsid sh -c 'echo up >&3; exec sleep 1000' & sh -c 'echo up >&3; exec sleep 1000' & echo up >&3; wait", up))
		wait(4)
		below := Descendants(pid)
		if len(below) != 2 {
			t.Fatalf("%v below, want 2", below)
		}
		if err := h.Signal(pid, int(unix.SIGKILL), false); err != nil {
			t.Fatal(err)
		}
		h.until("it has ended", func() bool { return len(h.exits[pid]) > 0 })
		h.SignalLeft(os.Getpid(), pid, int(unix.SIGTERM))
		h.until("one of what it left has ended", func() bool { return len(h.exits) == 2 })
		for _, p := range below {
			group, err := unix.Getpgid(p)
			if ended := len(h.exits[p]) > 0; ended == (err == nil) {
				t.Errorf("%d in group %d has ended: %v", p, group, ended)
			} else if err == nil && group == pid {
				t.Errorf("%d of the group is left", p)
			}
		}
		if len(h.exits[other]) > 0 {
			t.Error("another group was hit")
		}
	})
}

// halted tells whether a process is stopped, from its state in /proc.
func halted(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "T")
}

// A tree is more than a group: grandchildren in sessions of their own too.
func TestSignalTree(t *testing.T) {
	testneed.Program(t, "setsid")
	alone(t, func(t *testing.T) {
		const family = `setsid sh -c 'echo up >&3; sh -c "echo up >&3; exec sleep 1000" & wait' & sh -c 'setsid sh -c "echo up >&3; exec sleep 1000" & wait' & wait`
		h := newHouse(t)
		up, wait := h.up()
		pid := h.start(shell(family, up))
		wait(3)
		below := Descendants(pid)
		if len(below) < 4 {
			t.Fatalf("%d below, want at least 4", len(below))
		}
		h.SignalTree(pid, int(unix.SIGKILL))
		h.until("all have ended", func() bool { return !h.children })

		// The control: the group alone is not enough.
		pid = h.start(shell(family, up))
		wait(3)
		if err := h.Signal(pid, int(unix.SIGKILL), true); err != nil {
			t.Fatal(err)
		}
		h.until("the worker has ended", func() bool { return len(h.exits[pid]) > 0 })
		if !h.children {
			t.Error("nothing is left although only the group was killed")
		}
	})
}

// Where the PID namespace is shared, a sweep touches own descendants alone.
func TestSweepSparesStrangers(t *testing.T) {
	const strangerName = "REAPER_TEST_STRANGER"
	var more []string
	if os.Getenv(strangerName) == "" {
		stranger := exec.Command(testneed.Program(t, "sleep"), "1000")
		if err := stranger.Start(); err != nil {
			t.Fatal(err)
		}
		defer stranger.Wait()
		defer stranger.Process.Kill()
		more = append(more, fmt.Sprintf("%s=%d", strangerName, stranger.Process.Pid))
	}
	alone(t, func(t *testing.T) {
		stranger, err := strconv.Atoi(os.Getenv(strangerName))
		if err != nil {
			t.Fatal(err)
		}
		h := newHouse(t)
		for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
			up, wait := h.up()
			pid := h.start(shell("setsid sh -c 'echo up >&3; kill -STOP $$; exec sleep 1000' & (sh -c 'echo up >&3; exec sleep 1000' &); wait", up))
			wait(2)
			h.until("one has stopped", func() bool { return slices.ContainsFunc(Descendants(pid), halted) })
			h.Sweep(os.Getpid(), int(sig))
			h.until("all have ended, the stopped one too", func() bool { return !h.children })
			if e := h.exits[pid]; len(e) != 1 || e[0].Status.Signal != int(sig) {
				t.Errorf("%+v", e)
			}
			clear(h.exits)
		}
		if !alive(stranger) || os.Getppid() == 1 {
			t.Error("a stranger was hit")
		}
	}, more...)
}

func TestStopped(t *testing.T) {
	alone(t, func(t *testing.T) {
		h := newHouse(t)
		c := shell("kill -STOP $$; exit 3")
		c.Leftovers = int(unix.SIGKILL) // that is for the end, not for a stop
		pid := h.start(c)
		h.until("it is reported as stopped", func() bool { return len(h.stops[pid]) > 0 })
		if got := h.stops[pid]; len(got) != 1 || got[0] != int(unix.SIGSTOP) {
			t.Errorf("stops %v", got)
		}
		if !h.Has(pid) || !h.children {
			t.Error("a stopped process has left the table")
		}
		if err := h.Signal(pid, int(unix.SIGCONT), false); err != nil {
			t.Fatal(err)
		}
		h.until("it has ended", func() bool { return len(h.exits[pid]) > 0 })
		if e := h.exits[pid][0]; e.Status.Code != 3 {
			t.Errorf("%+v", e)
		}

		h.ignore = true
		up, wait := h.up()
		pid = h.start(shell("echo up >&3; kill -STOP $$; exit 3", up))
		wait(1)
		h.until("it has stopped", func() bool { return halted(pid) })
		h.until("nothing comes of it", func() bool { return true })
		if len(h.exits[pid]) > 0 || len(h.stops[pid]) > 0 {
			t.Error("a stop that nobody asked for is reported")
		}
		if err := h.Signal(pid, int(unix.SIGCONT), false); err != nil {
			t.Fatal(err)
		}
		h.until("it has ended", func() bool { return len(h.exits[pid]) > 0 })
	})
}

func TestStartErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		name, path string
		code       int
	}{
		{"missing", filepath.Join(dir, "missing"), 127},
		{"missing folder", "/no/such/program", 127},
		{"directory", dir, 126},
		{"not executable", write("plain", "#!/bin/sh\n", 0o644), 126},
		{"missing interpreter", write("script", "#!/no/such/interpreter\n", 0o755), 127},
		{"below a file", filepath.Join(dir, "plain", "x"), 126},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := NewTable()
			p, err := table.Start(Command{Command: launch.Command{Path: c.path, Argv: []string{c.path}, Terminal: -1, Files: []uintptr{0, 1, 2}}})
			var failure *launch.StartError
			if p.PID != 0 || !errors.As(err, &failure) || failure.ExitCode() != c.code || failure.Transient() {
				t.Errorf("pid %d, error %v", p.PID, err)
			}
			if want := "cannot start " + c.path + ": "; !strings.HasPrefix(err.Error(), want) {
				t.Errorf("error %q", err)
			}
			if table.Len() != 0 {
				t.Error("there is something in the table")
			}
		})
	}
}

// Starts that succeed and starts that fail leave no descriptor and no child.
func TestNoDescriptorLeaks(t *testing.T) {
	alone(t, func(t *testing.T) {
		h := newHouse(t)
		count := func() int {
			names, err := os.ReadDir("/proc/self/fd")
			if err != nil {
				t.Fatal(err)
			}
			return len(names)
		}
		h.run("exit 0")
		before := count()
		for i := range 2000 {
			if i%2 == 0 {
				if _, err := h.Start(Command{Command: launch.Command{Path: "/no/such/program", Terminal: -1, Files: []uintptr{0, 1, 2}}}); err == nil {
					t.Fatal("it started")
				}
				continue
			}
			pid := h.start(Command{Command: launch.Command{Path: "/bin/sh", Argv: []string{"sh", "-c", ""}, Terminal: -1, Files: []uintptr{0, 1, 2}}})
			h.until("it has ended", func() bool { return len(h.exits[pid]) > 0 })
			delete(h.exits, pid)
		}
		if after := count(); after != before {
			t.Errorf("%d descriptors, %d before", after, before)
		}
		h.until("no child is left", func() bool { return !h.children })
		if len(h.exits) != 0 {
			t.Errorf("failed starts have exits: %v", h.exits)
		}
	})
}

// A child gets the descriptors it is given and none of skep's own.
func TestChildDescriptors(t *testing.T) {
	alone(t, func(t *testing.T) {
		h := newHouse(t)
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names { // what this process was given itself is not the question
			if fd, err := strconv.Atoi(name.Name()); err == nil && fd > 2 {
				unix.CloseOnExec(fd)
			}
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		pid := h.start(Command{Command: launch.Command{
			Path: testneed.Program(t, "ls"), Argv: []string{"ls", "/proc/self/fd"}, Terminal: -1,
			Files: []uintptr{0, w.Fd(), 2, w.Fd()},
		}})
		w.Close()
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		h.until("it has ended", func() bool { return len(h.exits[pid]) > 0 })
		if got := strings.Fields(string(text)); !slices.Equal(got, []string{"0", "1", "2", "3", "4"}) { // 4 is the folder it reads
			t.Errorf("descriptors %v", got)
		}
	})
}

// What else a child is given: folder, environment, arguments, a clean
// mask, default dispositions, its group and its session.
func TestWhatAChildGets(t *testing.T) {
	alone(t, func(t *testing.T) {
		h := newHouse(t)
		dir := t.TempDir()
		for _, c := range []struct {
			name string
			edit func(*Command)
			want string // of "$group $session", each own or skep's
		}{
			{"group of its own", func(*Command) {}, "own skep's"},
			{"skep's group", func(c *Command) { c.KeepGroup = true }, "skep's skep's"},
			{"session of its own", func(c *Command) { c.NewSession = true }, "own own"},
		} {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			out := shell(`echo "$0 $1 $# $A $PWD"; grep -E 'SigBlk|SigIgn' /proc/self/status; cut -d' ' -f 5,6 /proc/$$/stat; echo $$`)
			out.Argv = append(out.Argv, "zero", "one  two", "")
			out.Env = []string{"A=b", "PATH=/usr/bin:/bin"}
			out.Dir = dir
			out.Files = []uintptr{0, w.Fd(), 2}
			c.edit(&out)
			pid := h.start(out)
			w.Close()
			text, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
			h.until("it has ended", func() bool { return len(h.exits[pid]) > 0 })
			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			if len(lines) != 5 {
				t.Fatalf("%s: %q", c.name, lines)
			}
			group, session, _ := strings.Cut(lines[3], " ")
			whose := func(id string) string {
				if id == strconv.Itoa(pid) {
					return "own"
				}
				return "skep's"
			}
			got := []string{lines[0], lines[1], lines[2], whose(group) + " " + whose(session)}
			want := []string{"zero one  two 2 b " + dir, "SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", c.want}
			if !slices.Equal(got, want) {
				t.Errorf("%s:\n got %q\nwant %q", c.name, got, want)
			}
		}
	})
}
