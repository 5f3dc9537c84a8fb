package conformance

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const reportPath = "../docs/conformance.md"

// modeNames is how the report calls the modes.
var modeNames = map[mode]string{plain: "process", pid1: "PID 1", docker: "Docker", terminal: "terminal"}

// mark is what a cell of the table says.
func mark(o outcome) string {
	return map[string]string{"pass": "yes", "fail": "**no**", "n/a": "–", "known": "no, see below"}[o.kind]
}

// row is a line of the table without the peers' cells: the part that has to be the same on every machine.
func row(c *testcase, cells []string) string {
	return "| " + c.name + " | " + modeNames[c.mode] + " | " + c.what + " | " + strings.Join(cells, " | ") + " |"
}

// report is the text of docs/conformance.md.
func report(versions map[string]string, of map[string]map[string]outcome) string {
	var b strings.Builder
	all := subjects()
	b.WriteString(`# Who does what as an init

<!-- Written by "go test ./conformance -update"; do not edit. -->

The conformance suite runs skep, under each of its names, and three other inits through the same cases: as a plain process, as PID 1 of fresh namespaces
with signals from outside, in Docker, and on a pseudo-terminal. ` + "`go test ./conformance`" + ` repeats it and fails where skep does; the peers' results are
facts of the day they were written down. Every case has been seen to fail on an init that has the defect it looks for (` + "`conformance/testdata/badinit.c`" + `).

A dash means that the program has no such option. The real-time signals count from glibc's RTMIN, 34.

## Versions

| program | says |
|---|---|
`)
	for _, s := range all {
		if s.ours {
			continue
		}
		fmt.Fprintf(&b, "| %s | %s |\n", s.name, versions[s.name])
	}
	b.WriteString("\n## Results\n\n| case | as | what | " + strings.Join(names(all), " | ") + " |\n|---|---|---" + strings.Repeat("|---", len(all)) + "|\n")
	passed := map[string]int{}
	for _, c := range cases() {
		var cells []string
		for _, s := range all {
			o := of[c.id()][s.name]
			cells = append(cells, mark(o))
			if o.kind == "pass" {
				passed[s.name]++
			}
		}
		b.WriteString(row(c, cells) + "\n")
	}
	b.WriteString("| **passed** | | |")
	for _, s := range all {
		fmt.Fprintf(&b, " %d of %d |", passed[s.name], len(cases()))
	}
	b.WriteString("\n\n## Where skep says no\n\n")
	for _, line := range knownLines() {
		b.WriteString(line + "\n")
	}
	b.WriteString("\n32 and 33, which the C libraries' threads keep for themselves, are not sent on by anybody; they do not harm skep.\n")
	for _, s := range all {
		if s.ours {
			continue
		}
		b.WriteString("\n## Why not: " + s.name + "\n\n")
		for _, c := range cases() {
			if o := of[c.id()][s.name]; o.kind == "fail" {
				fmt.Fprintf(&b, "- %s (%s): %s\n", c.name, modeNames[c.mode], tidy(o.why))
			}
		}
	}
	return b.String()
}

func names(list []*subject) []string {
	var names []string
	for _, s := range list {
		names = append(names, s.name)
	}
	return names
}

// knownLines are the documented exceptions, one line for each reason.
func knownLines() []string {
	who := map[string][]string{}
	for _, s := range subjects() {
		for name, why := range s.known {
			key := name + "\x00" + why
			who[key] = append(who[key], s.name)
		}
	}
	var lines []string
	for key, list := range who {
		name, why, _ := strings.Cut(key, "\x00")
		lines = append(lines, fmt.Sprintf("- %s (%s): %s.", name, strings.Join(list, ", "), why))
	}
	slices.SortFunc(lines, cmp.Compare)
	return lines
}

var (
	paths   = regexp.MustCompile(`/tmp/\S*/`)
	numbers = regexp.MustCompile(`\(\d+\)|parents of the command and of the orphan are \d+ and \d+`)
	streams = regexp.MustCompile(`; stderr: .*|, stderr ".*|; stdout ends in .*`)
)

// tidy leaves out of a failure what differs from run to run.
func tidy(why string) string {
	why = streams.ReplaceAllString(why, "")
	why = paths.ReplaceAllString(why, "…/")
	why = numbers.ReplaceAllStringFunc(why, func(s string) string {
		if strings.HasPrefix(s, "(") {
			return "(N)"
		}
		return "parents of the command and of the orphan differ"
	})
	why = strings.ReplaceAll(why, "\n", " ")
	if runes := []rune(why); len(runes) > 160 {
		why = string(runes[:160]) + "…"
	}
	return why
}

func TestTidy(t *testing.T) {
	for why, want := range map[string]string{
		`code 2 instead of 127; the init ended: exit status 2; stderr: "x"`:       `code 2 instead of 127; the init ended: exit status 2`,
		`exec /tmp/TestConformance123/001/script`:                                 `exec …/script`,
		`the parents of the command and of the orphan are 12 and 1`:               `the parents of the command and of the orphan differ`,
		`stdout "", stderr "[WARN  tini (7948)] Tini is not running as PID 1 and`: `stdout ""`,
	} {
		if got := tidy(why); got != want {
			t.Errorf("tidy(%q) = %q, want %q", why, got, want)
		}
	}
}
