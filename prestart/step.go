package prestart

import (
	"strconv"
	"strings"
	"time"
)

// Kind says where a step comes from.
type Kind uint8

// The kinds, in the order in which their steps run.
const (
	Wait    Kind = iota + 1 // a --wait URL: skep's own child that looks for something
	Command                 // a --prestart command line
	File                    // an executable of --prestart-dir
)

// String returns the word used in log lines.
func (k Kind) String() string {
	switch k {
	case Wait:
		return "wait"
	case Command:
		return "prestart"
	case File:
		return "file"
	}
	return "kind " + strconv.Itoa(int(k))
}

// Step is one thing to run to its end before the workers start.
type Step struct {
	Kind Kind

	// Name is what log lines call the step: the URL of a wait, otherwise the
	// program's name without its arguments, because those may hold secrets.
	Name string

	// Path is the file to execute. Empty means: look up Argv[0] in the PATH
	// of the environment the step gets.
	Path string

	// Argv holds the arguments from the program's own name on; never empty.
	Argv []string

	// Timeout is how long one attempt may take before it gets TERM; 0 is no
	// limit.
	Timeout time.Duration

	// Retries is how often a failed attempt is repeated; 0 is never.
	Retries int
}

// Plan puts the steps in the order in which they run: the waits as they were
// given, then the --prestart commands, then the executables of --prestart-dir
// (which package dir has put in name order). timeout and retries are
// --prestart-timeout and --prestart-retries; waits bring their own timeout and
// are not repeated, because trying again is all they do.
func Plan(waits []Step, commands [][]string, files []string, timeout time.Duration, retries int) []Step {
	steps := make([]Step, 0, len(waits)+len(commands)+len(files))
	steps = append(steps, waits...)
	for _, argv := range commands {
		steps = append(steps, Step{
			Kind: Command, Name: base(argv[0]), Argv: argv, Timeout: timeout, Retries: retries,
		})
	}
	for _, path := range files {
		steps = append(steps, Step{
			Kind: File, Name: base(path), Path: path, Argv: []string{path}, Timeout: timeout, Retries: retries,
		})
	}
	return steps
}

// base is the part of a path after its last slash.
func base(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 && i < len(path)-1 {
		return path[i+1:]
	}
	return path
}
