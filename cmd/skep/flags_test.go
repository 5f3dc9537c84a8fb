package main

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/urfave/cli/v2"
	"pgregory.net/rapid"

	"skep/config"
)

// library is what the library makes of a command line.
func library(args []string) (in config.Input, ok bool) {
	c := command("run", "", "", func(_ *cli.Context, got config.Input) error {
		in, ok = got, true
		in.NeedsCommand = true
		return nil
	})
	c.Flags = flags()
	app := application("", nil, new(int))
	app.Commands, app.Flags = []*cli.Command{c}, nil
	quiet, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return in, false
	}
	defer quiet.Close()
	app.Writer, app.ErrWriter = quiet, quiet
	err = app.Run(args)
	return in, ok && err == nil
}

// commandWords are what command lines are made of here: each flag in both forms, values,
// and what could be taken for either.
func commandWords() (words []string) {
	words = []string{"x", "y z", "", "-", "--", "---", "-=", "--=x", "--workers", "-w", "-w=2", "-workers", "run", "0", "true", "--ksm=false", "--no-such",
		"-x", "-h", "--help", "--version", "plan"}
	for _, s := range config.Settings() {
		words = append(words, "--"+s.Name, "--"+s.Name+"=v", "-"+s.Name)
	}
	return words
}

// TestPlainFlags: what plainFlags reads, it reads as the library does, and what it
// does not read is refused there, or help.
func TestPlainFlags(t *testing.T) {
	words := commandWords()
	rapid.Check(t, func(t *rapid.T) {
		args := append([]string{"skep"}, rapid.SliceOfN(rapid.SampledFrom(words), 1, 6).Draw(t, "args")...)
		args = withCommand(args)
		if args[1] != "run" {
			return
		}
		want, wantOK := library(args)
		got, ok := plainFlags(args)
		if ok != wantOK {
			t.Fatalf("%q: read %v, by the library %v", args, ok, wantOK)
		}
		if !ok {
			return
		}
		for name, values := range want.Flags {
			if len(values) == 0 {
				delete(want.Flags, name)
			}
		}
		if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("%q: the library's and plainFlags' reading differ:\n%s", args, d)
		}
	})
}
