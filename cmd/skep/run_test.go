package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"skep/config"
	"skep/prestart/wait"
)

// TestMain makes the test binary skep itself when a test asks for it: skep
// changes what a whole process is (signals, working directory, subreaper).
func TestMain(m *testing.M) {
	if os.Getenv("SKEP_TEST_ROLE") == "skep" || wait.Is(os.Args) {
		_ = os.Unsetenv("SKEP_TEST_ROLE")
		os.Exit(run(os.Args))
	}
	os.Exit(m.Run())
}

// skep runs this program with the arguments, argv[0] first, and returns its
// code and what it said.
func skep(t *testing.T, environ []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Args = args
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "SKEP_TEST_ROLE=skep"}, environ...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"plan", "help", "run"} {
		if err := os.WriteFile(dir+"/"+name, []byte("#!/bin/sh\necho \"program "+name+" $*\"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path := "PATH=" + dir + ":" + os.Getenv("PATH")
	for _, c := range []struct {
		name    string
		args    string
		environ string
		code    int
		out     string // all of stdout
		err     string // words of the only line on stderr; none is no line
	}{
		{name: "a command", args: "echo a b", out: "a b\n"},
		{name: "its code", args: "sh -c exit\t7", code: 7},
		{name: "after --", args: "-- echo -w 2", out: "-w 2\n"},
		{name: "run", args: "run echo x", out: "x\n"},
		{name: "run after run", args: "run run x", out: "program run x\n"},
		{name: "-- ends the flags", args: "-w 1 -- echo --mode", out: "--mode\n"},
		{name: "the first word ends the flags", args: "-w 1 echo -w 2 --mode x", out: "-w 2 --mode x\n"},
		{name: "flag with =", args: "--workers=1 echo x", out: "x\n"},
		{name: "a program named like a subcommand", args: "-- plan --json", out: "program plan --json\n"},
		{name: "the same behind a flag", args: "-w 1 plan", out: "program plan \n"},
		{name: "help is no subcommand", args: "help", out: "program help \n"},
		{name: "help after --", args: "-- help", out: "program help \n"},
		{name: "help of the program", args: "-- run --help", out: "program run --help\n"},
		{name: "version", args: "--version", out: "skep version " + version + "\n"},
		{name: "unknown flag", args: "--no-such x", code: 125, err: "--no-such"},
		{name: "unknown short flag", args: "-x y", code: 125, err: "-x"},
		{name: "unknown flag of a subcommand", args: "plan --no-such", code: 125, err: "--no-such"},
		{name: "flag without its value", args: "--workers", code: 125, err: "--workers"},
		{name: "no command", args: "", code: 125, err: "no command"},
		{name: "no command after --", args: "--", code: 125, err: "no command"},
		{name: "bad value", args: "-w some x", code: 125, err: `"some" for --workers`},
		{name: "bad variable", args: "echo x", environ: "SKEP_WORKERS=some", code: 125, err: `"some" for SKEP_WORKERS`},
		{name: "flag beats variable", args: "-w 1 echo x", environ: "SKEP_WORKERS=some", out: "x\n"},
		{name: "switch", args: "--skip-prestart -w 1 echo x", out: "x\n"},
		{name: "switch with a bad value", args: "--skip-prestart=maybe echo x", code: 125, err: `"maybe" for --skip-prestart`},
		{name: "not found", args: "no-such-program", code: 127, err: "no-such-program"},
		{name: "not executable", args: dir, code: 126, err: dir},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			args := []string{"skep"}
			for _, arg := range strings.Fields(strings.ReplaceAll(c.args, "\t", "\x00")) {
				args = append(args, strings.ReplaceAll(arg, "\x00", " "))
			}
			code, out, errs := skep(t, []string{path, c.environ}, args...)
			if code != c.code || out != c.out {
				t.Errorf("code %d, stdout %q, want %d and %q\nstderr %q", code, out, c.code, c.out, errs)
			}
			lines := strings.Count(errs, "\n")
			if c.err == "" && errs != "" || c.err != "" && (lines != 1 || !strings.HasPrefix(errs, "skep: ") || !strings.Contains(errs, c.err)) {
				t.Errorf("stderr %q, want a line with %q", errs, c.err)
			}
		})
	}
}

// The help is asked for, so it goes to stdout and is no failure; it names every
// flag.
func TestHelp(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"skep", "--help"}, {"skep", "-h"}, {"skep", "run", "--help"}, {"skep", "-w", "1", "--help"}} {
		code, out, errs := skep(t, nil, args...)
		if code != 0 || errs != "" || !strings.Contains(out, "skep") {
			t.Errorf("%q: code %d, stderr %q, stdout %q", args, code, errs, out)
		}
		for _, s := range config.Settings() {
			if !strings.Contains(out, "--"+s.Name) {
				t.Errorf("%q does not name --%s", args, s.Name)
			}
		}
	}
}

// An image that calls it by another init's name gets that init.
func TestOtherNames(t *testing.T) {
	t.Parallel()
	if code, out, errs := skep(t, nil, "/sbin/docker-init", "--version"); code != 0 || !strings.HasPrefix(out, "tini version ") {
		t.Errorf("code %d, %q, %q", code, out, errs)
	}
	if code, out, _ := skep(t, nil, "dumb-init", "sh", "-c", "echo x; exit 9"); code != 9 || out != "x\n" {
		t.Errorf("code %d, %q", code, out)
	}
}
