// Package compat reads the command lines of the inits that skep replaces. Called as tini, tini-static, docker-init or dumb-init, by a link to the one
// binary, skep takes that program's flags and environment, prints messages of its shape and ends with its exit codes, so that dockerd's --init-path and
// existing Dockerfiles work unchanged.
//
// Everything here is pure: arguments, environment and facts about the process go in, a plain value comes out, and the caller prints and acts. The
// behaviour was taken from tini 0.19.0 and dumb-init 1.2.5 and is compared with the real programs by this package's tests.
package compat

import "strings"

// Program says which init's manners are wanted.
type Program int

const (
	// None: skep under its own name, or one that means nothing to it.
	None Program = iota
	// Tini also answers to tini-static and docker-init.
	Tini
	// DumbInit is Yelp's dumb-init.
	DumbInit
)

// Versions of the programs that are imitated. Scripts compare them, so they come first in what --version prints; skep's own follows.
const (
	TiniVersion     = "0.19.0"
	DumbInitVersion = "1.2.5"
)

// Called tells from argv[0], of which only the last path element counts, which program skep was called as.
func Called(argv0 string) Program {
	switch base(argv0) {
	case "tini", "tini-static", "docker-init":
		return Tini
	case "dumb-init":
		return DumbInit
	}
	return None
}

// Self is what the messages need to know about the running skep.
type Self struct {
	// PID is in the brackets of tini's messages.
	PID int
	// Version of skep, without blanks; it is appended to the version of the program that is imitated.
	Version string
	// License is what tini -l prints.
	License string
}

// Init is what was asked of an init for one command. The zero value of every field is that program's default for skep; nothing here asks for what only
// skep has.
type Init struct {
	// Program is Tini or DumbInit.
	Program Program
	// Name is argv[0] as given.
	Name string
	// Argv is the command to run, never empty.
	Argv []string
	// Group: forwarded signals go to the process group of the child.
	Group bool
	// Setsid: the child leads a session of its own and gets the terminal of standard input, if there is one, as its controlling terminal (dumb-init).
	// Without it the child leads a process group of its own when Program is Tini, and stays in the init's group when it is DumbInit.
	Setsid bool
	// Subreaper was asked for (tini -s). skep becomes one anyway when it is not PID 1; asked for explicitly a failure is worth a warning.
	Subreaper bool
	// Remap lists exit codes, 0 to 255, ascending and each once, that become 0. 128+n for a signal's death counts as such a code.
	Remap []int
	// Rewrite maps a received signal to the one that is sent on; 0 drops it. Only 1 to 31 occur.
	Rewrite map[int]int
	// Suspend: after TSTP, TTIN or TTOU was forwarded (or rewritten) the init stops itself with SIGSTOP until CONT (dumb-init).
	Suspend bool
	// Pdeathsig is the signal that the init gets when its own parent dies; 0 is none.
	Pdeathsig int
	// WarnOnReap prints a warning for every process reaped that is not the child (tini -w).
	WarnOnReap bool
	// Verbosity is tini's: 0 only fatal messages, 1 warnings, 2 information, 3 debugging, 4 everything. For dumb-init it is 0, or 1 for its -v.
	Verbosity int

	self Self
}

// Result is what a command line came to: an Init to run, or the end of the program with Code. Stdout and Stderr are printed first in either case, byte
// for byte.
type Result struct {
	// Init is nil when the program is to end with Code.
	Init   *Init
	Stdout string
	Stderr string
	Code   int
}

// Parse reads the command line argv, argv[0] included, as the given program would. lookup is os.LookupEnv or alike. Program None is no personality: it
// has the result of a usage error without text.
func Parse(program Program, argv []string, lookup func(string) (string, bool), self Self) Result {
	switch {
	case len(argv) == 0:
		return Result{Code: 1}
	case program == Tini:
		return parseTini(argv, lookup, self)
	case program == DumbInit:
		return parseDumbInit(argv, lookup, self)
	}
	return Result{Code: 1}
}

// base is what follows the last slash, as glibc's basename(3) has it.
func base(path string) string {
	return path[strings.LastIndexByte(path, '/')+1:]
}
