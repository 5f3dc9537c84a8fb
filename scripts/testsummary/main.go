// Testsummary runs "go test -json" commands and says what came of them: each
// failed test with its output, the tests that took the longest, each reason for which tests
// were skipped, the names of the failed ones once more, and
// one closing line "N passed, N failed, N skipped".
//
//	testsummary go test -json ./...
//	testsummary go test -json ./a -- go test -json ./b
//
// Its exit code is the first non-zero one of the commands.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sort"
	"strings"
)

func main() {
	commands := split(os.Args[1:])
	if len(commands) == 0 {
		fmt.Fprintln(os.Stderr, "testsummary: no command: want: testsummary go test -json ./...")
		os.Exit(2)
	}
	s := newSummary(os.Stdout)
	code := 0
	for _, argv := range commands {
		if c := run(argv, s); code == 0 {
			code = c
		}
	}
	failed := s.close()
	if code == 0 && failed > 0 {
		code = 1
	}
	os.Exit(code)
}

// split parts the arguments at each "--".
func split(args []string) [][]string {
	var commands [][]string
	for len(args) > 0 {
		end := slices.Index(args, "--")
		if end < 0 {
			end = len(args)
		}
		if end > 0 {
			commands = append(commands, args[:end])
		}
		args = args[min(end+1, len(args)):]
	}
	return commands
}

// run runs one command, feeds what it prints to s, and returns its exit code.
func run(argv []string, s *summary) int {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "testsummary: cannot run %s: %v\n", strings.Join(argv, " "), err)
		return 1
	}
	s.read(out)
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1) // -1: ended by a signal
	case err != nil:
		fmt.Fprintf(os.Stderr, "testsummary: %s: %v\n", argv[0], err)
		return 1
	}
	return 0
}

// event is a line of "go test -json" (go doc test2json) or, for a package that
// does not build, of "go build -json" (go help buildjson).
type event struct {
	Action      string
	Package     string
	ImportPath  string
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

// summary counts tests, subtests among them, and packages that failed outside
// any test.
type summary struct {
	w      io.Writer
	passed int
	failed int
	output map[string][]string // by package, or package and test; build output by import path
	bad    map[string]bool     // packages with a failed test
	names  []string            // of what failed
	took   []timed             // tests that took long
	skips  map[string][]string // reason: names of tests
}

// timed is a test and its seconds.
type timed struct {
	name    string
	seconds float64
}

// How many of the tests that take the longest are named, and what is not long.
const (
	slowest = 8
	quick   = 10
)

func newSummary(w io.Writer) *summary {
	return &summary{w: w, output: map[string][]string{}, bad: map[string]bool{}, skips: map[string][]string{}}
}

// read takes every event of r. A line that is no event is passed on as it is.
func (s *summary) read(r io.Reader) {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) == nil && e.Action != "" {
				s.add(e)
			} else {
				fmt.Fprint(s.w, line)
			}
		}
		if err != nil {
			return
		}
	}
}

func (s *summary) add(e event) {
	key := e.Package
	if e.Test != "" {
		key += " " + e.Test
	}
	if e.Test != "" && !strings.Contains(e.Test, "/") && e.Elapsed > quick {
		s.took = append(s.took, timed{shortPackage(key), e.Elapsed})
	}
	switch e.Action {
	case "build-output":
		s.output[e.ImportPath] = append(s.output[e.ImportPath], e.Output)
	case "output":
		s.output[key] = append(s.output[key], e.Output)
	case "pass":
		if e.Test != "" {
			s.passed++
		} else {
			fmt.Fprintf(s.w, "ok    %s (%.1f s)\n", e.Package, e.Elapsed)
		}
		delete(s.output, key)
	case "skip":
		if e.Test != "" {
			reason := skipReason(s.output[key])
			s.skips[reason] = append(s.skips[reason], shortPackage(e.Package)+" "+e.Test)
		}
		delete(s.output, key)
	case "fail":
		if e.Test != "" {
			s.failed++
			s.bad[e.Package] = true
			s.names = append(s.names, shortPackage(key))
			fmt.Fprintf(s.w, "FAIL  %s %s (%.1f s)\n", e.Package, e.Test, e.Elapsed)
			s.show(key)
			break
		}
		if !s.bad[e.Package] {
			s.failed++ // it does not build, or it ended outside a test
			s.names = append(s.names, shortPackage(key))
			if e.FailedBuild != "" {
				s.show(e.FailedBuild)
			}
			s.show(key)
		}
		fmt.Fprintf(s.w, "FAIL  %s (%.1f s)\n", e.Package, e.Elapsed)
	}
}

// show prints what was kept for key, indented.
func (s *summary) show(key string) {
	for _, line := range s.output[key] {
		switch {
		case strings.HasPrefix(line, "=== "), strings.HasPrefix(strings.TrimSpace(line), "--- FAIL"):
		default:
			fmt.Fprint(s.w, "      ", line)
		}
	}
	delete(s.output, key)
}

// close prints the skips and the closing line, and returns how many failed.
func (s *summary) close() int {
	skipped := 0
	if len(s.took) > 0 {
		fmt.Fprintln(s.w, "\nThe longest:")
		slices.SortStableFunc(s.took, func(a, b timed) int { return cmp.Compare(b.seconds, a.seconds) })
		for _, t := range s.took[:min(slowest, len(s.took))] {
			fmt.Fprintf(s.w, "  %5.0f s  %s\n", t.seconds, t.name)
		}
	}
	if len(s.skips) > 0 {
		fmt.Fprintln(s.w, "\nSkipped here, and why:")
		reasons := make([]string, 0, len(s.skips))
		for reason := range s.skips {
			reasons = append(reasons, reason)
		}
		sort.Strings(reasons)
		for _, reason := range reasons {
			tests := s.skips[reason]
			skipped += len(tests)
			fmt.Fprintf(s.w, "  %s\n", reason)
			for _, test := range tests {
				fmt.Fprintf(s.w, "      %s\n", test)
			}
		}
	}
	if len(s.names) > 0 {
		fmt.Fprintln(s.w, "\nFailed:")
		for _, name := range s.names {
			fmt.Fprintf(s.w, "  %s\n", name)
		}
	}
	fmt.Fprintf(s.w, "\n%d passed, %d failed, %d skipped\n", s.passed, s.failed, skipped)
	return s.failed
}

// skipReason finds what a test gave to t.Skip in the lines it printed, which
// testing puts behind "file.go:12: ".
func skipReason(lines []string) string {
	for i := len(lines) - 1; i >= 0; i-- {
		line := strings.TrimSpace(lines[i])
		if file, reason, ok := strings.Cut(line, ".go:"); ok && !strings.ContainsAny(file, " \t") {
			if _, reason, ok = strings.Cut(reason, ": "); ok {
				return reason
			}
		}
	}
	return "(no reason given)"
}

func shortPackage(path string) string { return strings.TrimPrefix(path, "skep/") }
