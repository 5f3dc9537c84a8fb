package compat

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"skep/internal/testneed"
)

// These tests run the programs that are imitated and compare what they do with what Parse says. Compared are the exit code, which of the two streams
// speaks, and the shape of what is said: numbers of processes and the texts of help pages do not count.

var (
	pids        = regexp.MustCompile(`\(\d+\)|PID \d+|pid[:=] ?'?\d+'?|with pid '\d+'`)
	versions    = regexp.MustCompile(`(tini version |dumb-init v)\d+\.\d+\.\d+[^\s)]*(?: - git\.[^\s.)]+)?(\)|\n|$)`)
	tiniHelp    = regexp.MustCompile(`(?s)\n\n(Execute a program under|skep runs PROGRAM).*`)
	dumbHelp    = regexp.MustCompile(`(?s)\n\n(dumb-init is a simple|skep runs command).*`)
	rewriteTail = regexp.MustCompile(`(?s)(between 1 and 31\.\n).*`)
	notReaper   = regexp.MustCompile(`(?s)\[WARN  tini \(\d+\)\] Tini is not running as PID 1.*?or run Tini as PID 1\.\n`)
	detach      = regexp.MustCompile(`\[dumb-init\] (Unable to (de|at)tach (from|to) controlling tty.*|Detached from controlling tty.*|setsid complete\.)\n`)
)

// shape reduces output to what must agree.
func shape(text string) string {
	text = notReaper.ReplaceAllString(text, "") // skep always is one
	text = pids.ReplaceAllString(text, "(N)")
	text = versions.ReplaceAllString(text, "${1}V${2}")
	text = tiniHelp.ReplaceAllString(text, "\n<help>")
	text = dumbHelp.ReplaceAllString(text, "\n<help>")
	text = rewriteTail.ReplaceAllString(text, "${1}<help>")
	text = detach.ReplaceAllString(text, "")
	return text
}

// real runs the original with the given arguments and variables, and nothing else in its environment but PATH.
func real(t *testing.T, program string, args, env []string) (code int, stdout, stderr string) {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		testneed.Skip(t, "%s is not installed", program)
	}
	var out, errs bytes.Buffer
	cmd := &exec.Cmd{Path: path, Args: append([]string{program}, args...), Env: append([]string{"PATH=" + wordsDir + ":" + os.Getenv("PATH")}, env...), Stdout: &out, Stderr: &errs}
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// wordsDir has the program words, which prints its arguments and takes none of them for a flag.
var wordsDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if wordsDir, err = os.MkdirTemp("", "words"); err == nil {
			defer os.RemoveAll(wordsDir)
			err = os.WriteFile(filepath.Join(wordsDir, "words"), []byte("#!/bin/sh\nprintf '%s ' \"$@\"\n"), 0o755)
		}
		if err != nil {
			panic(err)
		}
		return m.Run()
	}())
}

// compare asks both for the same. The command, when there is one, must be words: then the original's output shows the arguments it passed on.
func compare(t *testing.T, program Program, name string, args, env []string) {
	t.Helper()
	code, stdout, stderr := real(t, name, args, env)
	result := Parse(program, append([]string{name}, args...), func(key string) (string, bool) {
		for _, word := range env {
			if k, v, _ := strings.Cut(word, "="); k == key {
				return v, true
			}
		}
		return "", false
	}, Self{PID: 1, Version: "0"})
	want := result
	if init := result.Init; init != nil {
		if init.Argv[0] != "words" {
			// Something else is to be executed, and there is no such program.
			if path, err := exec.LookPath(init.Argv[0]); err == nil {
				t.Fatalf("%q would run %s", args, path)
			}
			if !strings.Contains(stderr, ": No such file") && !strings.Contains(stderr, "failed: No such file") {
				t.Errorf("%s %q: Parse runs %q, the original says %q", name, args, init.Argv, stderr)
			}
			want.Code, _ = init.ExecFailure(syscall.ENOENT)
			if code != want.Code {
				t.Errorf("%s %q: code %d, the original has %d", name, args, want.Code, code)
			}
			return
		}
		want.Stdout += strings.Join(init.Argv[1:], " ") + " "
		if init.Verbosity > 1 || program == DumbInit && init.Verbosity > 0 {
			// The messages of a whole run are compared in TestGoldenMessages.
			stdout, stderr, want.Stdout, want.Stderr = "", "", "", ""
		}
	}
	if code != want.Code || shape(stdout) != shape(want.Stdout) || shape(stderr) != shape(want.Stderr) {
		t.Errorf("%s %q %q:\ncode %d, the original has %d\nstdout %q\n    not %q\nstderr %q\n    not %q",
			name, env, args, want.Code, code, shape(want.Stdout), shape(stdout), shape(want.Stderr), shape(stderr))
	}
}

func TestGoldenTini(t *testing.T) {
	for _, line := range []string{
		"", "--", "-x", "-h", "-hx", "-xh", "-vh", "--version", "--version x", "x --version", "--help", "-V",
		"words", "-- words a b", "words a -- -b", "words -s a", "words - a", "-s -- words -n", "-g words", "-w words", "-sgw words",
		"-e 5 words", "-e5 words", "-e 0 -e 255 words", "-e 256 words", "-e -1 words", "-e abc words", "-e 5x words", "-e +5 words", "-e 0x5 words", "-e 010 words",
		"-e", "words -e", "-e -- words", "-p SIGTERM words", "-pSIGHUP words", "-p SIGWINCH words", "-p TERM words", "-p 15 words", "-p sigterm words", "-p SIG15 words",
		"-p SIGRTMIN words", "-p SIGCLD words", "-p SIGFOO words", "-p", "-v -e 999 words", "-h -e 999", "-e 999 -h", "nosuchprogram", "-- --version", "-- -x",
	} {
		for _, env := range [][]string{nil, {"TINI_VERBOSITY=0"}, {"TINI_SUBREAPER=", "TINI_KILL_PROCESS_GROUP=", "TINI_VERBOSITY="}, {"POSIXLY_CORRECT=1"}} {
			compare(t, Tini, "tini", strings.Fields(line), env)
		}
	}
	compare(t, Tini, "tini", []string{"-e", "", "words"}, nil)
	compare(t, Tini, "tini", []string{"-e", " 5", "words"}, nil)
	compare(t, Tini, "tini", []string{"-e", "5 ", "words"}, nil)
	compare(t, Tini, "tini", []string{"-e", " ", "words"}, nil)
	compare(t, Tini, "tini", []string{"-\xff", "words"}, nil)
	compare(t, Tini, "tini", []string{"--", "words", "", "\xff", "-s", "a b"}, nil)
}

func TestGoldenDumbInit(t *testing.T) {
	for _, line := range []string{
		"", "--", "-x words", "-h", "-hx", "-V", "--version x", "--help", "--ver", "--verb words", "--h", "--he=3", "--nope", "--nope=3", "--v",
		"words", "-c words", "--single-child words", "--s words", "-- words -c", "words -c -- x", "-c words -V",
		"-r", "--rewrite", "-r 15 words", "-r 15:3 words", "-r15:3 words", "-r 15:0 words", "-r 0:15 words", "-r 31:31 words", "-r 32:1 words", "-r 1:32 words", "-r -1:1 words",
		"-r 1:-1 words", "-r TERM:INT words", "-r 1:2:3 words", "-r 1:2x words", "-r 1: words", "-r :1 words", "-r +1:+2 words", "--rewrite=15:2 words", "--rewrite 15:2 words",
		"--rew=1 words", "nosuchprogram", "-- -x", "-vV", "-c -r 15:99 -V",
	} {
		for _, env := range [][]string{nil, {"DUMB_INIT_SETSID=0"}, {"DUMB_INIT_SETSID=", "DUMB_INIT_DEBUG="}, {"DUMB_INIT_DEBUG=2", "DUMB_INIT_SETSID=1"}} {
			compare(t, DumbInit, "dumb-init", strings.Fields(line), env)
		}
	}
	compare(t, DumbInit, "dumb-init", []string{"-r", " 15: 2", "words"}, nil)
	compare(t, DumbInit, "dumb-init", []string{"-r", "15 :2", "words"}, nil)
	compare(t, DumbInit, "dumb-init", []string{"-r", "", "words"}, nil)
}

// Command lines put together at random, from pieces that matter to a parser, find what no table thought of.
func TestGoldenRandom(t *testing.T) {
	for name, test := range map[string]struct {
		program Program
		pieces  []string
	}{
		"tini":      {Tini, []string{"-s", "-g", "-w", "-e", "-p", "5", "-e5", "SIGHUP", "-pSIGINT", "--", "-", "-sg", "-gx", "--version", "-we", "-h", "", "256", "word"}},
		"dumb-init": {DumbInit, []string{"-c", "-r", "15:3", "-r15:0", "--rewrite", "--rew=1:2", "--si", "--", "-", "-cx", "--ve", "--help", "-V", "", "1:99", "word", "--rewrite="}},
	} {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			for range 150 {
				var args []string
				for range 1 + random.IntN(5) {
					args = append(args, test.pieces[random.IntN(len(test.pieces))])
				}
				// With words at a random place most lines run something; the rest try to run a word that is no program.
				if at := random.IntN(len(args) + 2); at <= len(args) {
					args = slices.Insert(args, at, "words")
				}
				compare(t, test.program, name, args, nil)
			}
		})
	}
}

// TestGoldenMessages compares what a whole run says with what the message methods say, in the same order.
func TestGoldenMessages(t *testing.T) {
	// The child waits for its own child, forwards itself a signal through the init, and ends with 5.
	const script = `trap 'exit 5' USR1; kill -USR1 $PPID; while :; do sleep 0.1; done`
	check := func(name string, program Program, env []string, said func(*Init) []Line, args ...string) {
		t.Helper()
		code, stdout, stderr := real(t, name, args, env)
		result := Parse(program, append([]string{name}, args...), func(key string) (string, bool) {
			value, found := "", false
			for _, word := range env {
				if k, v, _ := strings.Cut(word, "="); k == key {
					value, found = v, true
				}
			}
			return value, found
		}, Self{PID: 1, Version: "0"})
		if result.Init == nil {
			t.Fatalf("%s %q: %+v", name, args, result)
		}
		for _, line := range said(result.Init) {
			if line.Stdout {
				result.Stdout += line.Text
			} else {
				result.Stderr += line.Text
			}
		}
		if code != 5 {
			t.Errorf("%s %q ended with %d", name, args, code)
		}
		// tini's traces, and the mention of CHLD, are about its own loop.
		loop := regexp.MustCompile(`(\[TRACE tini \(N\)\] .*|\[DEBUG tini \(N\)\] Received SIGCHLD|\[dumb-init\] Received signal 17\.|\[dumb-init\] Forwarded signal 15 to children\.)\n`)
		for stream, both := range map[string][2]string{"stdout": {stdout, result.Stdout}, "stderr": {stderr, result.Stderr}} {
			want, got := loop.ReplaceAllString(shape(both[0]), ""), shape(both[1])
			if got != want {
				t.Errorf("%s %q %s:\n%s\nthe original:\n%s", name, args, stream, got, want)
			}
		}
	}
	usr1 := func(init *Init) []Line {
		lines := []Line{init.Spawned(2)}
		lines = append(lines, init.Forwarding(10)...)
		lines = append(lines, init.Reaped(2, true, 5, 0)...)
		return append(lines, init.Ended(5, 0))
	}
	check("tini", Tini, nil, usr1, "-s", "--", "sh", "-c", script)
	check("tini", Tini, nil, usr1, "-s", "-v", "--", "sh", "-c", script)
	check("tini", Tini, nil, usr1, "-s", "-vvv", "--", "sh", "-c", script)
	check("tini", Tini, []string{"TINI_VERBOSITY=3"}, usr1, "-s", "--", "sh", "-c", script)
	check("dumb-init", DumbInit, nil, usr1, "-c", "sh", "-c", script)
	check("dumb-init", DumbInit, nil, usr1, "-cv", "sh", "-c", script)
	check("dumb-init", DumbInit, []string{"DUMB_INIT_DEBUG=1", "DUMB_INIT_SETSID=0"}, usr1, "sh", "-c", script)
	check("dumb-init", DumbInit, nil, func(init *Init) []Line {
		lines := append([]Line{init.Spawned(2)}, init.Forwarding(12)...)
		lines = append(lines, init.Reaped(2, true, 5, 0)...)
		return append(lines, init.Ended(5, 0))
	}, "-c", "-v", "-r", "12:10", "sh", "-c", strings.Replace(script, "kill -USR1", "kill -USR2", 1))

	// An orphan that dies while the command lives is reaped with a warning.
	check("tini", Tini, nil, func(init *Init) []Line {
		return append(init.Reaped(3, false, 0, 0), init.Reaped(2, true, 5, 0)...)
	}, "-s", "-w", "--", "sh", "-c", "sh -c 'sleep 0.1 & exit'; sleep 0.4; exit 5")
}

func FuzzParse(f *testing.F) {
	f.Add("tini\x00-e\x005\x00--\x00true")
	f.Add("dumb-init\x00-r\x0015:3\x00--si\x00true")
	f.Add("docker-init\x00-vvv\x00-pSIGKILL\x00x\x00-g")
	f.Fuzz(func(t *testing.T, line string) {
		argv := strings.Split(line, "\x00")
		for _, program := range []Program{Called(argv[0]), Tini, DumbInit} {
			result := Parse(program, argv, func(string) (string, bool) { return "", false }, Self{PID: 1, Version: "0", License: "l"})
			init := result.Init
			switch {
			case init == nil && program != None && result.Stdout == "" && result.Stderr == "":
				t.Fatalf("%q ends without a word", argv)
			case init == nil:
			case len(init.Argv) == 0:
				t.Fatalf("%q runs nothing", argv)
			default:
				// The command's words are words of the line, in order.
				rest := argv[1:]
				for _, word := range init.Argv {
					at := slices.Index(rest, word)
					if at < 0 {
						t.Fatalf("%q runs %q", argv, init.Argv)
					}
					rest = rest[at+1:]
				}
				for _, code := range init.Remap {
					if code < 0 || code > 255 {
						t.Fatalf("%q remaps %d", argv, code)
					}
				}
				for from, to := range init.Rewrite {
					if from < 1 || from > 31 || to < 0 || to > 31 {
						t.Fatalf("%q rewrites %d to %d", argv, from, to)
					}
				}
			}
		}
	})
}
