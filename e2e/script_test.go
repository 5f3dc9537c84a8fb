package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// eventDeadline is how long a script waits for anything to happen. Nothing
// takes this long unless it is broken.
const eventDeadline = 30 * time.Second

// TestScripts runs the stories under testdata/script. Beside testscript's own
// commands they have:
//
//	freeport NAME...            set each variable to a port that is free
//	code N COMMAND...           run a command, which has to exit with N
//	start NAME COMMAND...       start a command; NAME.out and NAME.err get its outputs
//	signal NAME SIGNAL          send a signal to it
//	ended NAME N                wait for its end, which has to be with N
//	waitfile FILE REGEXP [N]    wait until N lines (1) of a file match
//	lines FILE N                a file, stdout or stderr has N lines
//	get URL                     request URL until it answers; stdout is the answer
//	pids URL N                  request URL until N processes have answered; stdout and
//	                            the variables PID1 to PIDN name them, lowest first
//	pidgone PID                 wait until no answer to a signal 0 comes from PID
//	nothingleft                 no process that the script started is there
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"freeport":    freeport,
			"code":        code,
			"start":       start,
			"signal":      sendSignal,
			"ended":       ended,
			"waitfile":    waitFile,
			"lines":       lines,
			"get":         get,
			"pids":        answeringPids,
			"pidgone":     pidGone,
			"nothingleft": nothingLeft,
		},
	})
}

type startedKey struct{}

// started has the background commands of a script by name.
type started map[string]*background

type background struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once it has ended
}

// setup puts the built programs in PATH and marks every process of the script
// in its environment, so that none is missed at the end.
func setup(env *testscript.Env) error {
	env.Setenv("PATH", filepath.Join(root, "build")+string(filepath.ListSeparator)+env.Getenv("PATH"))
	env.Setenv("STORY", env.WorkDir)
	all := started{}
	env.Values[startedKey{}] = all
	env.Defer(func() {
		for _, pid := range marked(env.WorkDir) {
			_ = syscall.Kill(pid, syscall.SIGKILL) // gone already: as well
		}
		for _, b := range all {
			<-b.done
		}
	})
	return nil
}

// marked returns the processes, zombies excepted, whose environment names the
// script's folder.
func marked(workDir string) []int {
	want := []byte("STORY=" + workDir)
	environs, _ := filepath.Glob("/proc/[0-9]*/environ") // the pattern is good
	var pids []int
	for _, path := range environs {
		environ, err := os.ReadFile(path)
		if err != nil {
			continue // another user's, or gone
		}
		if slices.ContainsFunc(bytes.Split(environ, []byte{0}), func(v []byte) bool { return bytes.Equal(v, want) }) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// usage ends the script when a command was given the wrong words.
func usage(ts *testscript.TestScript, ok bool, form string) {
	if !ok {
		ts.Fatalf("usage: %s", form)
	}
}

func number(ts *testscript.TestScript, s string) int {
	n, err := strconv.Atoi(s)
	ts.Check(err)
	return n
}

// until waits for ready in short steps, or ends the script.
func until(ts *testscript.TestScript, what string, ready func() bool) {
	deadline := time.Now().Add(eventDeadline)
	for !ready() {
		if time.Now().After(deadline) {
			for name := range ts.Value(startedKey{}).(started) {
				ts.Logf("%s.err:\n%s", name, ts.ReadFile(name+".err"))
			}
			ts.Fatalf("%s: not within %v", what, eventDeadline)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func freeport(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 0, "freeport NAME...")
	for _, name := range args {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		defer l.Close() // all of them are held until all are chosen
		ts.Setenv(name, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
}

func code(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 1, "code N COMMAND...")
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("cannot run %s: %v", args[1], err)
	}
	if want := number(ts, args[0]); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func start(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) > 1, "start NAME COMMAND...")
	// The script's environment is not to be had otherwise; in base64 it does
	// not spoil the script's log, and lines in a value stay apart.
	ts.Check(ts.Exec("sh", "-c", "env -0 | base64 -w 0"))
	text, err := base64.StdEncoding.DecodeString(strings.TrimSpace(ts.ReadFile("stdout")))
	ts.Check(err)
	env := strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")

	// exec.Command looks in this process's PATH; the script has its own.
	cmd := exec.Command("/usr/bin/env", append([]string{"--"}, args[1:]...)...)
	cmd.Env = env
	cmd.Dir = ts.MkAbs(".")
	// The outputs are files: a pipe would make the end wait for whoever holds it.
	stdout, err := os.Create(ts.MkAbs(args[0] + ".out"))
	ts.Check(err)
	defer stdout.Close()
	stderr, err := os.Create(ts.MkAbs(args[0] + ".err"))
	ts.Check(err)
	defer stderr.Close()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	ts.Check(cmd.Start())
	b := &background{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(b.done)
		_ = cmd.Wait() // the state is asked for where it counts
	}()
	ts.Value(startedKey{}).(started)[args[0]] = b
}

func backgroundOf(ts *testscript.TestScript, name string) *background {
	b := ts.Value(startedKey{}).(started)[name]
	if b == nil {
		ts.Fatalf("nothing was started as %q", name)
	}
	return b
}

var signals = map[string]syscall.Signal{
	"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP, "QUIT": syscall.SIGQUIT,
	"USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "KILL": syscall.SIGKILL,
	"TTIN": syscall.SIGTTIN, "TTOU": syscall.SIGTTOU, "WINCH": syscall.SIGWINCH,
}

func sendSignal(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2 && signals[args[1]] != 0, "signal NAME SIGNAL")
	ts.Check(backgroundOf(ts, args[0]).cmd.Process.Signal(signals[args[1]]))
}

func ended(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "ended NAME N")
	b := backgroundOf(ts, args[0])
	select {
	case <-b.done:
	case <-time.After(eventDeadline):
		ts.Fatalf("%s has not ended within %v; its stderr:\n%s", args[0], eventDeadline, ts.ReadFile(args[0]+".err"))
	}
	status := b.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if want := number(ts, args[1]); !status.Exited() || status.ExitStatus() != want {
		ts.Fatalf("%s ended with %v, want exit status %d; its stderr:\n%s", args[0], b.cmd.ProcessState, want, ts.ReadFile(args[0]+".err"))
	}
}

func waitFile(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && (len(args) == 2 || len(args) == 3), "waitfile FILE REGEXP [N]")
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	want := 1
	if len(args) == 3 {
		want = number(ts, args[2])
	}
	path := ts.MkAbs(args[0])
	until(ts, fmt.Sprintf("%d lines like %q in %s", want, args[1], args[0]), func() bool {
		text, _ := os.ReadFile(path) // not there yet: as empty
		return len(re.FindAll(text, -1)) >= want
	})
}

func lines(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "lines FILE N")
	text := ts.ReadFile(args[0])
	if got, want := strings.Count(text, "\n"), number(ts, args[1]); got != want {
		ts.Fatalf("%s has %d lines, want %d:\n%s", args[0], got, want, text)
	}
}

func get(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "get URL")
	until(ts, args[0], func() bool {
		resp, err := client.Get(args[0])
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			return false
		}
		_, err = ts.Stdout().Write(body)
		ts.Check(err)
		return true
	})
}

func answeringPids(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 2, "pids URL N")
	want := number(ts, args[1])
	seen := map[int]bool{}
	until(ts, fmt.Sprintf("answers by %d processes", want), func() bool {
		r := ask(context.Background(), args[0])
		if r.err == nil {
			seen[r.pid] = true
		}
		return len(seen) >= want
	})
	for i, pid := range slices.Sorted(maps.Keys(seen)) {
		ts.Setenv(fmt.Sprintf("PID%d", i+1), strconv.Itoa(pid))
		fmt.Fprintln(ts.Stdout(), pid)
	}
}

func pidGone(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "pidgone PID")
	pid := number(ts, args[0])
	until(ts, fmt.Sprintf("the end of process %d", pid), func() bool {
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	})
}

func nothingLeft(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 0, "nothingleft")
	left := marked(ts.Getenv("STORY"))
	if neg {
		if len(left) == 0 {
			ts.Fatalf("no process of the script is there")
		}
		return
	}
	for _, pid := range left {
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // gone meanwhile: as empty
		ts.Logf("left: %d %s", pid, bytes.ReplaceAll(command, []byte{0}, []byte{' '}))
	}
	if len(left) > 0 {
		ts.Fatalf("%d processes of the script are left", len(left))
	}
}
