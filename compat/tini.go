package compat

import (
	"slices"
	"sort"
	"strconv"
	"strings"

	"skep/internal/sys"
)

// parseTini reads tini's command line and then its variables, which therefore beat -v. Flags are found behind the program's name too, unless "--" stands
// before them or POSIXLY_CORRECT is set: tini leaves that to glibc, and every image that says `tini -- program` is written for it.
func parseTini(argv []string, lookup func(string) (string, bool), self Self) Result {
	name := argv[0]
	if len(argv) == 2 && argv[1] == "--version" {
		return Result{Stdout: tiniVersion(self) + "\n"}
	}
	init := &Init{Program: Tini, Name: name, Verbosity: 1, self: self}
	fail := func(text string) Result {
		return Result{Stderr: init.tiniLine("FATAL", text).Text, Code: 1}
	}

	_, posix := lookup("POSIXLY_CORRECT")
	flags := getopt{args: argv[1:], short: "p:hvwgle:s", permute: !posix}
	for {
		opt, ok := flags.next()
		if !ok {
			break
		}
		if opt.problem != "" {
			return Result{Stderr: name + ": " + opt.problem + "\n" + tiniUsage(name, self), Code: 1}
		}
		switch opt.letter {
		case 'h':
			return Result{Stdout: tiniUsage(name, self)}
		case 'l':
			return Result{Stdout: self.License}
		case 's':
			init.Subreaper = true
		case 'g':
			init.Group = true
		case 'w':
			init.WarnOnReap = true
		case 'v':
			init.Verbosity++
		case 'p':
			n, ok := tiniSignal(opt.value)
			if !ok {
				return fail("Not a valid option for -p: " + opt.value)
			}
			init.Pdeathsig = n
		case 'e':
			n, rest, _ := leadingInt(opt.value) // the empty string is 0, as for strtol
			if rest != "" || n < 0 || n > 255 {
				return fail("Not a valid option for -e: " + opt.value)
			}
			init.Remap = append(init.Remap, n)
		}
	}
	if len(flags.words) == 0 {
		return Result{Stderr: tiniUsage(name, self), Code: 1}
	}
	init.Argv = flags.words
	sort.Slice(init.Remap, func(i, j int) bool { return init.Remap[i] < init.Remap[j] })
	init.Remap = slices.Compact(init.Remap)

	// The two switches are on when they are set at all, even to nothing; a verbosity that is no number is 0, as for atoi.
	if _, set := lookup("TINI_SUBREAPER"); set {
		init.Subreaper = true
	}
	if _, set := lookup("TINI_KILL_PROCESS_GROUP"); set {
		init.Group = true
	}
	if value, set := lookup("TINI_VERBOSITY"); set {
		init.Verbosity, _, _ = leadingInt(value)
		if init.Verbosity < 0 { // tini reads it into an unsigned variable
			init.Verbosity = 4
		}
	}
	return Result{Init: init}
}

// tiniSignal reads a signal as tini -p does: by its full name in capitals, never by number and never a real-time one. Unlike tini it also knows IO, PWR
// and STKFLT.
func tiniSignal(text string) (int, bool) {
	if !strings.HasPrefix(text, "SIG") || text != strings.ToUpper(text) {
		return 0, false
	}
	n, err := sys.ParseSignal(text)
	return n, err == nil && n < 32 && "SIG"+sys.SignalName(n) == text
}

// tiniVersion has the form that Docker takes apart: it shows as the init's version what stands between "git." and the end, which must not have a dot
// (moby, daemon/info_unix.go, parseInitVersion). tini's own releases put their commit there.
func tiniVersion(self Self) string {
	return "tini version " + TiniVersion + " - git.skep-" + strings.ReplaceAll(self.Version, ".", "-")
}

func tiniUsage(name string, self Self) string {
	name = base(name)
	return name + " (" + tiniVersion(self) + `)
Usage: ` + name + ` [OPTIONS] PROGRAM -- [ARGS] | --version

skep runs PROGRAM as tini would.

Command line options:

  --version: Print the version and exit.
  -h: Print this help and exit.
  -s: Become a child subreaper.
  -p SIGNAL: Get SIGNAL when the parent dies, e.g. "-p SIGKILL".
  -v: Say more; up to 3 times.
  -w: Warn about every process that is reaped.
  -g: Send signals to the process group of the child.
  -e EXIT_CODE: Turn EXIT_CODE (0 to 255) into 0; may be repeated.
  -l: Print the license and exit.

Environment variables:

  TINI_SUBREAPER: As -s.
  TINI_VERBOSITY: The verbosity (default: 1).
  TINI_KILL_PROCESS_GROUP: As -g.

`
}

// tiniLine is a message as tini prints it: level and process id in brackets, warnings and worse on stderr, the rest on stdout.
func (i *Init) tiniLine(level, text string) Line {
	line := Line{Stdout: level != "FATAL" && level != "WARN"}
	line.Text = "[" + level + strings.Repeat(" ", 5-len(level)) + " tini (" + strconv.Itoa(i.self.PID) + ")] " + text + "\n"
	return line
}
