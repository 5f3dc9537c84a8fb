package main

import (
	"errors"
	"os"
	"runtime"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"skep/compat"
	"skep/config"
	"skep/initd"
	"skep/internal/logger"
	"skep/internal/signals"
	"skep/prestart/wait"
)

// run is the whole program. What it was called as decides which part of it this
// process is.
func run(args []string) int {
	// One processor is enough for each part, and the threads that the runtime keeps
	// for more of them would count against the container's pids limit.
	runtime.GOMAXPROCS(1)
	if wait.Is(args) {
		return wait.Main(args)
	}
	// Before anything else: until now a TERM would end a process that may be PID 1,
	// or be lost.
	taken, err := initd.CatchSignals()
	if err != nil {
		complain(err)
		return exitCode(err)
	}
	code := 0
	if program := compat.Called(args[0]); program != compat.None {
		return personality(program, args, taken)
	}
	args = withCommand(args)
	if in, ok := plainFlags(args); ok {
		code, err = serve(taken, in, false)
	} else {
		err = application(args[1], taken, &code).Run(args)
	}
	if err != nil {
		complain(err)
		return exitCode(err)
	}
	return code
}

// personality is the whole program when it was called as another init.
func personality(program compat.Program, args []string, taken *signals.Source) int {
	r := compat.Parse(program, args, os.LookupEnv, compat.Self{PID: os.Getpid(), Version: version, License: license})
	say(1, []byte(r.Stdout))
	say(2, []byte(r.Stderr))
	if r.Init == nil {
		return r.Code
	}
	code, err := initd.Run(initd.Personality(r.Init, os.Environ()), taken)
	if err != nil {
		complain(err)
		return exitCode(err)
	}
	return code
}

const license = "skep is free software under the MIT license.\n"

// withCommand makes "run" the command when the first word is none of skep's own:
// only there is one recognised, so that any program can be run.
func withCommand(args []string) []string {
	if len(args) > 1 {
		switch args[1] {
		case "run", "prestart", "plan", "--help", "-h", "--version", "-v":
			return args
		}
	}
	return append([]string{"skep", "run"}, args[min(1, len(args)):]...)
}

func complain(err error) {
	var failure *initd.Failure
	if errors.As(err, &failure) && failure.Line != "" {
		say(2, []byte(failure.Line))
		return
	}
	for _, line := range strings.Split(err.Error(), "\n") {
		say(2, logger.AppendText(nil, logger.Info, line, nil))
	}
}

// say writes past package os, which would end the program by PIPE when nobody reads: the
// exit code is what counts then.
func say(fd int, text []byte) {
	for len(text) > 0 {
		n, err := unix.Write(fd, text)
		if err != nil && err != unix.EINTR {
			return
		}
		text = text[max(n, 0):]
	}
}

// exitCode is what skep ends with for an error from before the loop.
func exitCode(err error) int {
	var failure *initd.Failure
	if errors.As(err, &failure) {
		return failure.Code
	}
	return initd.ExitOwnFault
}

// serve runs the steps and the command, or only the steps.
func serve(taken *signals.Source, in config.Input, only bool) (int, error) {
	o, err := config.Build(in)
	if err != nil {
		return 0, err
	}
	o.Prestart.Only = only
	return initd.Run(o, taken)
}

// application is the command line. Only the command that is called gets its
// flags: making them all would take longer than starting a process.
func application(called string, taken *signals.Source, code *int) *cli.App {
	cli.FlagStringer = describe
	cli.VersionPrinter = func(c *cli.Context) { _, _ = c.App.Writer.Write([]byte("skep version " + version + "\n")) }
	run := func(only bool) func(*cli.Context, config.Input) error {
		return func(_ *cli.Context, in config.Input) (err error) {
			in.NeedsCommand = !only
			*code, err = serve(taken, in, only)
			return err
		}
	}
	commands := []*cli.Command{
		command("run", "run the command as workers", "[--] command [args...]", run(false)),
		command("prestart", "run only the steps before the start, then end", "", run(true)),
		command("plan", "show the limits found and the number of workers, and start nothing", "", plan),
	}
	var help []cli.Flag
	known := false
	for _, c := range commands {
		if c.Name != called {
			continue
		}
		known = true
		c.Flags = flags()
		if c.Name == "plan" {
			c.Flags = append(c.Flags, &cli.BoolFlag{Name: "json", Usage: "as JSON"})
		}
	}
	if !known {
		help = flags() // skep --help lists them too
	}
	return &cli.App{
		Name: "skep", Usage: "a tiny PID 1 that turns a server command into workers on one port",
		UsageText: "skep [flags] [--] command [args...]   runs the command; the same as skep run\n" +
			"skep prestart [flags]                 runs only the steps before the start\n" +
			"skep plan [flags] [--json]            shows limits and the number of workers\n" +
			"--some-flag can be given as SKEP_SOME_FLAG in the environment",
		Version:         version,
		HideHelpCommand: true,
		// The default handler calls os.Exit and prints in a form of its own.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   usageError,
		Flags:          help,
		Commands:       commands,
	}
}

// command makes one command that can take every setting as a flag.
func command(name, usage, arguments string, action func(*cli.Context, config.Input) error) *cli.Command {
	return &cli.Command{
		Name: name, Usage: usage, ArgsUsage: arguments,
		HideHelpCommand: true, OnUsageError: usageError,
		Action: func(c *cli.Context) error {
			in := config.Input{Flags: make(map[string][]string), Environ: os.Environ(), Command: c.Args().Slice()}
			for _, f := range c.Command.Flags {
				if g, ok := f.(*cli.GenericFlag); ok {
					v := g.Value.(*values)
					in.Flags[v.setting.Name] = v.list
				}
			}
			return action(c, in)
		},
	}
}

// flags makes one flag for each setting.
func flags() (flags []cli.Flag) {
	for _, s := range config.Settings() {
		v := &values{setting: s}
		flags = append(flags, &cli.GenericFlag{Name: s.Name, Value: v})
		if s.Short != "" {
			// Not as an alias: the library would set one from the other's text.
			flags = append(flags, &cli.GenericFlag{Name: s.Short, Value: v, Hidden: true})
		}
	}
	return flags
}

// describe is one line of the help of a command: the flag with its placeholder,
// a tab, and what it means.
func describe(f cli.Flag) string {
	g, ok := f.(*cli.GenericFlag)
	if !ok {
		return stringer(f)
	}
	s := g.Value.(*values).setting
	text := "--" + s.Name
	if s.Short != "" {
		text = "-" + s.Short + ", " + text
	}
	if s.Placeholder != "" {
		text += " " + s.Placeholder
	}
	text += "\t" + s.Usage
	if s.Repeat {
		text += "; can be repeated"
	}
	if s.Default != "" {
		text += " (default: " + s.Default + ")"
	}
	return text
}

var stringer = cli.FlagStringer

// usageError puts the words of package flag into skep's.
func usageError(_ *cli.Context, err error, _ bool) error {
	text := err.Error()
	if name, found := strings.CutPrefix(text, "flag provided but not defined: -"); found {
		return errors.New("cannot use the flag --" + strings.TrimPrefix(name, "-") + ": there is none of this name; see skep --help")
	}
	if name, found := strings.CutPrefix(text, "flag needs an argument: -"); found {
		return errors.New("cannot use the flag --" + strings.TrimPrefix(name, "-") + ": it needs a value")
	}
	return errors.New("cannot read the command line: " + text)
}

// values collects what a flag was given, as often as it was given; package
// config finds out whether it makes sense.
type values struct {
	list    []string
	setting config.Setting
}

// Set adds one value.
func (v *values) Set(s string) error {
	v.list = append(v.list, s)
	return nil
}

// String is empty: the help shows defaults in words.
func (v *values) String() string { return "" }

// IsBoolFlag lets a switch stand without a value (package flag).
func (v *values) IsBoolFlag() bool { return v.setting.Switch() }
