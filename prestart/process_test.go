package prestart_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skep/prestart"
	"skep/prestart/env"
	"skep/prestart/envfile"
	"skep/prestart/words"
)

// run is a small loop around a machine with real processes: each step in a
// process group of its own. stop delivers stop signals.
func run(t *testing.T, cfg prestart.Config, stop <-chan int) (prestart.Finished, []string, []string) {
	t.Helper()
	var (
		m     = prestart.New(cfg)
		log   []string
		vars  []string
		queue = []prestart.Event{prestart.Begin{}}
		cmd   *exec.Cmd
		file  *envfile.File
		exits = make(chan *exec.Cmd, 1)
		limit = time.After(60 * time.Second)
	)
	start := func(step prestart.Step) prestart.Event {
		var err error
		if file, err = envfile.Create(envfile.Options{Dirs: []string{t.TempDir()}}); err != nil {
			t.Fatal(err)
		}
		cmd = exec.Command(step.Argv[0], step.Argv[1:]...)
		if step.Path != "" {
			cmd.Path = step.Path
		}
		cmd.Env = env.Merge(append(os.Environ(), envfile.Variable+"="+file.Path(3)), vars)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			code := 126
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
				code = 127
			}
			return prestart.StartFailed{Code: code, Err: "cannot start"}
		}
		started := cmd
		go func() { _ = started.Wait(); exits <- started }()
		return prestart.Started{PID: cmd.Process.Pid}
	}
	for {
		for len(queue) > 0 {
			ev := queue[0]
			queue = queue[1:]
			for _, effect := range m.Step(time.Now(), ev) {
				switch e := effect.(type) {
				case prestart.Run:
					queue = append([]prestart.Event{start(e.Step)}, queue...)
				case prestart.Signal:
					_ = cmd.Process.Signal(syscall.Signal(e.Sig))
				case prestart.KillTree:
					_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
				case prestart.Note:
					log = append(log, e.String())
				case prestart.Finished:
					return e, vars, log
				}
			}
		}
		var tick <-chan time.Time
		if at, ok := m.Deadline(); ok {
			tick = time.After(time.Until(at))
		}
		select {
		case ended := <-exits:
			status := ended.ProcessState.Sys().(syscall.WaitStatus)
			ev := prestart.Exited{Code: status.ExitStatus()}
			if status.Signaled() {
				ev = prestart.Exited{Signal: int(status.Signal())}
			}
			if ev == (prestart.Exited{}) {
				got, err := file.Read()
				if err != nil {
					ev.Err = err.Error()
				}
				vars = append(vars, got...)
			}
			queue = append(queue, ev)
		case sig := <-stop:
			queue = append(queue, prestart.Stop{Signal: sig})
		case <-tick:
			queue = append(queue, prestart.Tick{})
		case <-limit:
			t.Fatalf("it does not end; %v, %q", m.State(), log)
		}
	}
}

func commands(t *testing.T, lines ...string) [][]string {
	t.Helper()
	var list [][]string
	for _, line := range lines {
		argv, err := words.Split(line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		list = append(list, argv)
	}
	return list
}

func TestProcesses(t *testing.T) {
	folder := t.TempDir()
	write := func(name, text string, mode fs.FileMode) string {
		t.Helper()
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := write("plain", "", 0o644)
	fifo := filepath.Join(folder, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	hold, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	out := filepath.Join(folder, "out")
	const hang = `read x < "$HANG"`
	t.Setenv("HANG", fifo)
	t.Setenv("OUT", out)
	for _, test := range []struct {
		name    string
		lines   []string
		timeout time.Duration
		retries int
		code    int
		out     string
		vars    []string
	}{
		{name: "in order", lines: []string{`sh -c 'echo a >> "$OUT"'`, `sh -c 'echo b >> "$OUT"'`}, out: "a\nb\n"},
		{name: "failing", lines: []string{`sh -c 'exit 7'`, `sh -c 'echo b >> "$OUT"'`}, code: 7},
		{name: "dying", lines: []string{`sh -c 'kill -SEGV $$'`}, code: 139},
		{name: "missing", lines: []string{folder + "/absent"}, retries: 3, code: 127},
		{name: "missing in PATH", lines: []string{"skep-no-such-program"}, retries: 3, code: 127},
		{name: "not executable", lines: []string{plain}, retries: 3, code: 126},
		{name: "a folder", lines: []string{folder}, code: 126},
		{name: "hanging", lines: []string{`sh -c '` + hang + `'`}, timeout: 100 * time.Millisecond, code: 124},
		{name: "ignoring TERM", lines: []string{`sh -c 'trap "" TERM; ` + hang + `'`}, timeout: 100 * time.Millisecond, code: 124},
		{name: "stopped", lines: []string{`sh -c 'kill -STOP $$'`}, timeout: 100 * time.Millisecond, code: 124},
		{name: "second attempt", lines: []string{`sh -c 'echo x >> "$OUT"; test $(wc -l < "$OUT") = 2'`}, retries: 1, out: "x\nx\n"},
		{
			name:  "handing over",
			lines: []string{`sh -c 'echo "A=it'"'"'s $HOME" >> "$SKEP_ENV"; echo B=1 >> "$SKEP_ENV"'`, `sh -c 'echo "$A" >> "$OUT"; echo B=2 >> "$SKEP_ENV"'`},
			out:   "it's " + os.Getenv("HOME") + "\n", vars: []string{"A=it's " + os.Getenv("HOME"), "B=1", "B=2"},
		},
		{name: "handing over nonsense", lines: []string{`sh -c 'echo nonsense >> "$SKEP_ENV"'`}, code: 125},
	} {
		t.Run(test.name, func(t *testing.T) {
			_ = os.Remove(out)
			got, vars, log := run(t, prestart.Config{
				Steps: prestart.Plan(nil, commands(t, test.lines...), nil, test.timeout, test.retries),
				Grace: 100 * time.Millisecond, RetryDelay: time.Millisecond,
			}, nil)
			if want := (prestart.Finished{Code: test.code}); got != want {
				t.Errorf("got %+v, want %+v; %q", got, want, log)
			}
			if diff := cmp.Diff(test.vars, vars); diff != "" && test.code == 0 {
				t.Errorf("handed over (-want +got):\n%s", diff)
			}
			text, err := os.ReadFile(out)
			if err != nil && !errors.Is(err, fs.ErrNotExist) || string(text) != test.out {
				t.Errorf("wrote %q, %v; want %q", text, err, test.out)
			}
		})
	}
}

// TestLeftBehind: what a failed attempt left running is gone when it is over.
func TestLeftBehind(t *testing.T) {
	left := filepath.Join(t.TempDir(), "left")
	if err := syscall.Mkfifo(left, 0o600); err != nil {
		t.Fatal(err)
	}
	// Every process of the step holds the writing end; the reading end ends with
	// the last of them.
	end, err := os.OpenFile(left, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	t.Setenv("LEFT", left)
	got, _, log := run(t, prestart.Config{
		Steps:      prestart.Plan(nil, commands(t, `sh -c 'exec 3> "$LEFT"; sleep 60 & sleep 60 & exit 1'`), nil, 0, 1),
		RetryDelay: time.Millisecond,
	}, nil)
	if got.Code != 1 {
		t.Errorf("%+v, %q", got, log)
	}
	if err := end.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := end.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("something of the step is still there: %v", err)
	}
}

// TestStopAtRandom stops real steps at any moment: it always ends in time, as
// stopped, and never goes on.
func TestStopAtRandom(t *testing.T) {
	runs := 200
	if testing.Short() {
		runs = 20
	}
	steps := prestart.Plan(nil, commands(t,
		`sh -c 'exit 0'`,
		`sh -c 'exit 1'`, // tried again for as long as it is let
		// A signal that comes between the trap and a read is not looked at before the read ends; wait loses none.
		`sh -c 'trap "exit 5" TERM; sleep 100 & wait'`,
	), nil, 0, 1)
	steps[1].Retries = 2
	steps[1].Argv = []string{"sh", "-c", `n=$(cat "$COUNT" 2>/dev/null); echo x$n > "$COUNT"; test "$n" = xx`}
	ends := map[string]int{}
	for i := range runs {
		count := filepath.Join(t.TempDir(), fmt.Sprint(i))
		t.Setenv("COUNT", count)
		stop := make(chan int, 2)
		after := time.Duration(rand.IntN(40<<(i%4))) * time.Millisecond // on a slow machine the last step comes late
		timer := time.AfterFunc(after, func() { stop <- 15; stop <- 15 })
		begin := time.Now()
		got, _, log := run(t, prestart.Config{
			Steps: steps, StopTimeout: 5 * time.Second, RetryDelay: time.Millisecond,
		}, stop)
		timer.Stop()
		if !got.Stopped || got.Code == 0 || got.Code == 137 {
			t.Fatalf("stopped after %v: %+v; %q", after, got, log)
		}
		if took := time.Since(begin); took > 12*time.Second {
			t.Fatalf("stopped after %v, ended after %v: %q", after, took, log)
		}
		last := log[len(log)-1]
		if strings.Contains(last, " started, pid") {
			t.Fatalf("a step began last: %q", log)
		}
		ends[fmt.Sprint(got.Code)]++
	}
	t.Logf("codes of %d runs: %v", runs, ends)
	if len(ends) < 2 {
		t.Errorf("all stops met the same moment: %v", ends)
	}
}
