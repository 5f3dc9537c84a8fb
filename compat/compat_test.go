package compat

import (
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var self = Self{PID: 7, Version: "1.2.3", License: "do what you like\n"}

// env is a lookup over KEY=value words.
func env(words ...string) func(string) (string, bool) {
	return func(key string) (string, bool) {
		for _, word := range words {
			if k, v, _ := strings.Cut(word, "="); k == key {
				return v, true
			}
		}
		return "", false
	}
}

func TestCalled(t *testing.T) {
	for argv0, want := range map[string]Program{
		"tini": Tini, "/sbin/tini": Tini, "tini-static": Tini, "/sbin/docker-init": Tini, "/dev/init/tini": Tini,
		"dumb-init": DumbInit, "/usr/local/bin/dumb-init": DumbInit,
		"skep": None, "": None, "/tini/skep": None, "tini2": None, "tini/": None, "init": None,
	} {
		if got := Called(argv0); got != want {
			t.Errorf("Called(%q) = %v, want %v", argv0, got, want)
		}
	}
}

func TestTiniFlags(t *testing.T) {
	for _, test := range []struct {
		args string
		env  []string
		want Init
	}{
		{args: "true", want: Init{Verbosity: 1}},
		{args: "-- true", want: Init{Verbosity: 1}},
		{args: "-s true", want: Init{Verbosity: 1, Subreaper: true}},
		{args: "-g -w true", want: Init{Verbosity: 1, Group: true, WarnOnReap: true}},
		{args: "-gwsvv -- true", want: Init{Verbosity: 3, Group: true, WarnOnReap: true, Subreaper: true}},
		{args: "true -g", want: Init{Verbosity: 1, Group: true}},
		{args: "-pSIGKILL true", want: Init{Verbosity: 1, Pdeathsig: 9}},
		{args: "-p SIGTERM -p SIGINT true", want: Init{Verbosity: 1, Pdeathsig: 2}},
		{args: "-e 143 -e5 -ve 0 -e 5 true", want: Init{Verbosity: 2, Remap: []int{0, 5, 143}}},
		{args: "true", env: []string{"TINI_SUBREAPER=", "TINI_KILL_PROCESS_GROUP="}, want: Init{Verbosity: 1, Subreaper: true, Group: true}},
		{args: "-vv true", env: []string{"TINI_VERBOSITY=1"}, want: Init{Verbosity: 1}},
		{args: "-vv true", env: []string{"TINI_VERBOSITY="}, want: Init{Verbosity: 0}},
		{args: "true", env: []string{"TINI_VERBOSITY=3x"}, want: Init{Verbosity: 3}},
		{args: "true", env: []string{"TINI_VERBOSITY=-1"}, want: Init{Verbosity: 4}},
		{args: "true", env: []string{"TINI_UNKNOWN=1"}, want: Init{Verbosity: 1}},
	} {
		t.Run(test.args+" "+strings.Join(test.env, " "), func(t *testing.T) {
			test.want.Program, test.want.Name, test.want.Argv = Tini, "tini", []string{"true"}
			got := Parse(Tini, append([]string{"tini"}, strings.Fields(test.args)...), env(test.env...), self)
			if diff := cmp.Diff(Result{Init: &test.want}, got, cmpopts.IgnoreUnexported(Init{}), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTiniArgv(t *testing.T) {
	for _, test := range []struct {
		args, want []string
		env        []string
	}{
		{args: []string{"--", "prog", "-g", "--", "-x"}, want: []string{"prog", "-g", "--", "-x"}},
		{args: []string{"prog", "a", "-s", "b", "--", "-x"}, want: []string{"prog", "a", "b", "-x"}},
		{args: []string{"--", "-h"}, want: []string{"-h"}},
		{args: []string{"prog", "-"}, want: []string{"prog", "-"}},
		{args: []string{"prog", "-g", ""}, want: []string{"prog", "-g", ""}, env: []string{"POSIXLY_CORRECT="}},
		{args: []string{"", "\xff b"}, want: []string{"", "\xff b"}},
	} {
		got := Parse(Tini, append([]string{"tini"}, test.args...), env(test.env...), self)
		if got.Init == nil {
			t.Errorf("%q: %+v", test.args, got)
			continue
		}
		if diff := cmp.Diff(test.want, got.Init.Argv); diff != "" {
			t.Errorf("%q: %s", test.args, diff)
		}
	}
}

func TestTiniEnds(t *testing.T) {
	for _, test := range []struct {
		args           []string
		code           int
		stdout, stderr string // beginnings
	}{
		{args: []string{"--version"}, stdout: "tini version 0.19.0 - git.skep-1-2-3\n"},
		{args: []string{"-h", "x"}, stdout: "docker-init (tini version"},
		{args: []string{"-l"}, stdout: "do what you like\n"},
		{args: []string{}, code: 1, stderr: "docker-init (tini version"},
		{args: []string{"--"}, code: 1, stderr: "docker-init (tini version"},
		{args: []string{"-x"}, code: 1, stderr: "/sbin/docker-init: invalid option -- 'x'\ndocker-init (tini version"},
		{args: []string{"--version", "x"}, code: 1, stderr: "/sbin/docker-init: invalid option -- '-'\ndocker-init (tini version"},
		{args: []string{"x", "-e"}, code: 1, stderr: "/sbin/docker-init: option requires an argument -- 'e'\ndocker-init (tini version"},
		{args: []string{"-e", "256", "x"}, code: 1, stderr: "[FATAL tini (7)] Not a valid option for -e: 256\n"},
		{args: []string{"-e", "-1", "x"}, code: 1, stderr: "[FATAL tini (7)] Not a valid option for -e: -1\n"},
		{args: []string{"-e", "abc", "x"}, code: 1, stderr: "[FATAL tini (7)] Not a valid option for -e: abc\n"},
		{args: []string{"-e", "5x", "x"}, code: 1, stderr: "[FATAL tini (7)] Not a valid option for -e: 5x\n"},
		{args: []string{"-p", "15", "x"}, code: 1, stderr: "[FATAL tini (7)] Not a valid option for -p: 15\n"},
		{args: []string{"-p", "TERM", "x"}, code: 1, stderr: "[FATAL tini (7)] Not a valid option for -p: TERM\n"},
		{args: []string{"-p", "SIGRTMIN", "x"}, code: 1, stderr: "[FATAL tini (7)] Not a valid option for -p: SIGRTMIN\n"},
		{args: []string{"-p", "SIG15", "x"}, code: 1, stderr: "[FATAL tini (7)] Not a valid option for -p: SIG15\n"},
	} {
		got := Parse(Tini, append([]string{"/sbin/docker-init"}, test.args...), env(), self)
		if got.Init != nil || got.Code != test.code || !begins(got.Stdout, test.stdout) || !begins(got.Stderr, test.stderr) {
			t.Errorf("%q: %+v, want %+v", test.args, got, test)
		}
	}
}

func begins(got, want string) bool {
	return strings.HasPrefix(got, want) && (got == "") == (want == "")
}

func TestDumbInitFlags(t *testing.T) {
	stops := func(more ...int) map[int]int {
		rewrite := map[int]int{20: 19, 21: 19, 22: 19}
		for i := 0; i < len(more); i += 2 {
			rewrite[more[i]] = more[i+1]
		}
		return rewrite
	}
	for _, test := range []struct {
		args   string
		env    []string
		want   Init
		stderr string
	}{
		{args: "true", want: Init{Group: true, Setsid: true, Rewrite: stops()}},
		{args: "-- true", want: Init{Group: true, Setsid: true, Rewrite: stops()}},
		{args: "-c true", want: Init{}},
		{args: "--single-child true", want: Init{}},
		{args: "--s true", want: Init{}},
		{args: "-cv true", want: Init{Verbosity: 1}},
		{args: "-r 15:3 -r 1:0 true", want: Init{Group: true, Setsid: true, Rewrite: stops(15, 3, 1, 0)}},
		{args: "-r15:2 -r 15:3 true", want: Init{Group: true, Setsid: true, Rewrite: stops(15, 3)}},
		{args: "-r 20:20 true", want: Init{Group: true, Setsid: true, Rewrite: stops(20, 20)}},
		{args: "--rewrite=2:31 --rewrite 31:1 true", want: Init{Group: true, Setsid: true, Rewrite: stops(2, 31, 31, 1)}},
		{args: "-c -r 15:3 true", want: Init{Rewrite: map[int]int{15: 3}}},
		{args: "true", env: []string{"DUMB_INIT_SETSID=0"}, want: Init{}},
		{args: "-v true", env: []string{"DUMB_INIT_SETSID=0"}, want: Init{Verbosity: 1}, stderr: "[dumb-init] Not running in setsid mode.\n"},
		{args: "true", env: []string{"DUMB_INIT_SETSID="}, want: Init{Group: true, Setsid: true, Rewrite: stops()}},
		{args: "true", env: []string{"DUMB_INIT_DEBUG=1"}, want: Init{Group: true, Setsid: true, Rewrite: stops(), Verbosity: 1}, stderr: "[dumb-init] Running in debug mode.\n"},
		{args: "true", env: []string{"DUMB_INIT_DEBUG=2"}, want: Init{Group: true, Setsid: true, Rewrite: stops()}},
	} {
		t.Run(test.args+" "+strings.Join(test.env, " "), func(t *testing.T) {
			test.want.Program, test.want.Name, test.want.Argv, test.want.Suspend = DumbInit, "dumb-init", []string{"true"}, true
			got := Parse(DumbInit, append([]string{"dumb-init"}, strings.Fields(test.args)...), env(test.env...), self)
			if diff := cmp.Diff(Result{Init: &test.want, Stderr: test.stderr}, got, cmpopts.IgnoreUnexported(Init{}), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
	// The command's own flags are the command's.
	got := Parse(DumbInit, []string{"dumb-init", "-c", "prog", "-v", "--", "-h"}, env(), self)
	if diff := cmp.Diff([]string{"prog", "-v", "--", "-h"}, got.Init.Argv); diff != "" {
		t.Error(diff)
	}
}

func TestDumbInitEnds(t *testing.T) {
	const rewriteHelp = "Usage: -r option takes <signum>:<signum>, where <signum> is between 1 and 31.\n"
	for _, test := range []struct {
		args   []string
		code   int
		stderr string // beginning
	}{
		{args: []string{"-V"}, stderr: "dumb-init v1.2.5_skep-1.2.3\n"},
		{args: []string{"--version", "x"}, stderr: "dumb-init v1.2.5_skep-1.2.3\n"},
		{args: []string{"-hx"}, stderr: "dumb-init v1.2.5_skep-1.2.3\nUsage: /x/dumb-init [option] command"},
		{args: nil, code: 1, stderr: "Usage: /x/dumb-init [option] program [args]\nTry /x/dumb-init --help for full usage.\n"},
		{args: []string{"--"}, code: 1, stderr: "Usage: /x/dumb-init [option] program [args]\n"},
		{args: []string{"-x", "true"}, code: 1, stderr: "/x/dumb-init: invalid option -- 'x'\n"},
		{args: []string{"-r"}, code: 1, stderr: "/x/dumb-init: option requires an argument -- 'r'\n"},
		{args: []string{"--rewrite"}, code: 1, stderr: "/x/dumb-init: option '--rewrite' requires an argument\n"},
		{args: []string{"--nope=1"}, code: 1, stderr: "/x/dumb-init: unrecognized option '--nope=1'\n"},
		{args: []string{"--he=3"}, code: 1, stderr: "/x/dumb-init: option '--help' doesn't allow an argument\n"},
		{args: []string{"--ver"}, code: 1, stderr: "/x/dumb-init: option '--ver' is ambiguous; possibilities: '--verbose' '--version'\n"},
		{args: []string{"-r", "15", "x"}, code: 1, stderr: rewriteHelp},
		{args: []string{"-r", "TERM:INT", "x"}, code: 1, stderr: rewriteHelp},
		{args: []string{"-r", "32:1", "x"}, code: 1, stderr: rewriteHelp},
		{args: []string{"-r", "0:1", "x"}, code: 1, stderr: rewriteHelp},
		{args: []string{"-r", "1:-1", "x"}, code: 1, stderr: rewriteHelp},
		{args: []string{"-r", "1:", "x"}, code: 1, stderr: rewriteHelp},
		{args: []string{"-r", "1:99999999999999999999", "x"}, code: 1, stderr: rewriteHelp},
	} {
		got := Parse(DumbInit, append([]string{"/x/dumb-init"}, test.args...), env(), self)
		if got.Init != nil || got.Code != test.code || got.Stdout != "" || !begins(got.Stderr, test.stderr) {
			t.Errorf("%q: %+v, want %+v", test.args, got, test)
		}
	}
}

func TestMessages(t *testing.T) {
	parse := func(program Program, args ...string) *Init {
		t.Helper()
		result := Parse(program, append([]string{"x"}, args...), env(), self)
		if result.Init == nil {
			t.Fatalf("%q: %+v", args, result)
		}
		return result.Init
	}
	tini, loudTini, dumb := parse(Tini, "-w", "foo"), parse(Tini, "-vvvw", "foo"), parse(DumbInit, "-v", "-r", "15:3", "-r", "1:0", "foo")

	code, line := tini.ExecFailure(syscall.ENOENT)
	equal(t, code, 127)
	equal(t, line, Line{Text: "[FATAL tini (7)] exec foo failed: No such file or directory\n"})
	code, line = parse(DumbInit, "foo").ExecFailure(syscall.EACCES) // not hidden by a low verbosity
	equal(t, code, 2)
	equal(t, line, Line{Text: "[dumb-init] foo: Permission denied\n"})
	for cause, want := range map[syscall.Errno]int{syscall.EACCES: 126, syscall.ENOENT: 127, syscall.E2BIG: 1, syscall.ENOMEM: 1} {
		code, _ := tini.ExecFailure(cause)
		equal(t, code, want)
	}
	code, line = tini.SpawnFailure(syscall.EAGAIN)
	equal(t, code, 1)
	equal(t, line, Line{Text: "[FATAL tini (7)] fork failed: Resource temporarily unavailable\n"})

	equal(t, tini.Spawned(8), Line{})
	equal(t, loudTini.Spawned(8), Line{Stdout: true, Text: "[INFO  tini (7)] Spawned child process 'foo' with pid '8'\n"})
	equal(t, dumb.Spawned(8), Line{Text: "[dumb-init] Child spawned with PID 8.\n"})
	equal(t, parse(DumbInit, "foo").Spawned(8), Line{})

	equal(t, tini.Reaped(9, false, 0, 0), []Line{{Text: "[WARN  tini (7)] Reaped zombie process with pid=9\n"}})
	equal(t, tini.Reaped(8, true, 0, 0), []Line{})
	equal(t, parse(Tini, "foo").Reaped(9, false, 0, 0), []Line{})
	equal(t, loudTini.Reaped(9, false, 0, 0), []Line{
		{Stdout: true, Text: "[DEBUG tini (7)] Reaped child with pid: '9'\n"}, {Text: "[WARN  tini (7)] Reaped zombie process with pid=9\n"},
	})
	equal(t, dumb.Reaped(9, false, 3, 0), []Line{{Text: "[dumb-init] A child with PID 9 exited with exit status 3.\n"}})
	equal(t, dumb.Reaped(9, false, 0, 6), []Line{{Text: "[dumb-init] A child with PID 9 was terminated by signal 6.\n"}})

	equal(t, tini.Forwarding(15), []Line{})
	equal(t, loudTini.Forwarding(15), []Line{{Stdout: true, Text: "[DEBUG tini (7)] Passing signal: 'Terminated'\n"}})
	equal(t, loudTini.Forwarding(37), []Line{{Stdout: true, Text: "[DEBUG tini (7)] Passing signal: 'Real-time signal 3'\n"}})
	equal(t, dumb.Forwarding(2), []Line{{Text: "[dumb-init] Received signal 2.\n"}, {Text: "[dumb-init] Forwarded signal 2 to children.\n"}})
	equal(t, dumb.Forwarding(15), []Line{
		{Text: "[dumb-init] Received signal 15.\n"}, {Text: "[dumb-init] Translating signal 15 to 3.\n"}, {Text: "[dumb-init] Forwarded signal 3 to children.\n"},
	})
	equal(t, dumb.Forwarding(1), []Line{
		{Text: "[dumb-init] Received signal 1.\n"}, {Text: "[dumb-init] Translating signal 1 to 0.\n"},
		{Text: "[dumb-init] Not forwarding signal 0 to children (ignored).\n"},
	})
	equal(t, tini.ForwardedToDead(), Line{Text: "[WARN  tini (7)] Child was dead when forwarding signal\n"})
	equal(t, dumb.ForwardedToDead(), Line{})
	equal(t, tini.Suspending(), Line{})
	equal(t, dumb.Suspending(), Line{Text: "[dumb-init] Suspending self due to TTY signal.\n"})

	equal(t, loudTini.Ended(5, 0), Line{Stdout: true, Text: "[INFO  tini (7)] Main child exited normally (with status '5')\n"})
	equal(t, loudTini.Ended(0, 9), Line{Stdout: true, Text: "[INFO  tini (7)] Main child exited with signal (with signal 'Killed')\n"})
	equal(t, dumb.Ended(0, 9), Line{Text: "[dumb-init] Child exited with status 137. Goodbye.\n"})
	equal(t, tini.SubreaperFailure(syscall.EINVAL), Line{Text: "[WARN  tini (7)] Failed to register as child subreaper: Invalid argument\n"})
}

func equal[T any](t *testing.T, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
