package conformance

import (
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// cases are all of them, in the order of the report.
func cases() []*testcase {
	return slices.Concat(exitCases(), stateCases(), reapCases(), signalCases(), terminalCases(), dockerCases())
}

// results of this test binary's run, for the report.
var results = struct {
	sync.Mutex
	of map[string]map[string]outcome // case, subject
}{of: map[string]map[string]outcome{}}

// TestConformance runs every case on every subject. Only skep's failures are errors.
func TestConformance(t *testing.T) {
	helpers(t)
	for _, s := range subjects() {
		t.Run(s.name, func(t *testing.T) {
			s.resolve(t)
			for _, c := range cases() {
				t.Run(c.id(), func(t *testing.T) {
					if !c.alone {
						t.Parallel()
					}
					began := time.Now()
					o := execute(t, c, s, "")
					if took := time.Since(began); took > 5*time.Second {
						t.Logf("took %.1f s", took.Seconds())
					}
					why, known := s.known[c.name]
					switch {
					case !s.ours:
						t.Logf("%s: %s: %s %s", s.name, c.id(), o.kind, o.why)
					case known && o.kind == "pass":
						t.Errorf("passes, although it is documented not to: %q", why)
					case known:
						o = outcome{kind: "known", why: why}
					case o.kind == "fail":
						t.Error(o.why)
					}
					results.Lock()
					defer results.Unlock()
					if results.of[c.id()] == nil {
						results.of[c.id()] = map[string]outcome{}
					}
					results.of[c.id()][s.name] = o
				})
			}
		})
	}
}

// TestReport writes docs/conformance.md with -update, and otherwise looks whether the part of it that does not depend on the machine is current: the
// cases, what they say, skep's results and its documented exceptions.
func TestReport(t *testing.T) {
	results.Lock()
	defer results.Unlock()
	if *update {
		versions := map[string]string{}
		for _, s := range subjects() {
			s.resolve(t)
			versions[s.name] = s.version(t)
			for _, c := range cases() {
				if _, ok := results.of[c.id()][s.name]; !ok {
					t.Fatalf("cannot write the report: %s was not run on %s", c.id(), s.name)
				}
			}
		}
		if err := os.WriteFile(reportPath, []byte(report(versions, results.of)), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	text, err := os.ReadFile(reportPath)
	if err != nil {
		t.Fatal(err)
	}
	var ours []*subject
	for _, s := range subjects() {
		if s.ours {
			ours = append(ours, s)
		}
	}
	written := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		written[line] = true
		if cells := strings.Split(line, " | "); len(cells) > 3+len(ours) && strings.HasPrefix(line, "| ") {
			written[strings.Join(cells[:3+len(ours)], " | ")] = true
		}
	}
	for _, c := range cases() {
		var cells []string
		complete := true
		for _, s := range ours {
			o, ok := results.of[c.id()][s.name]
			complete = complete && ok
			cells = append(cells, mark(o))
		}
		want := strings.TrimSuffix(row(c, cells), " |")
		if !complete { // only some cases were run
			continue
		}
		if !written[want] {
			t.Errorf("%s is stale, it lacks the line %q; go test ./conformance -update writes it", reportPath, want)
		}
	}
	for _, line := range knownLines() {
		if !written[line] {
			t.Errorf("%s is stale, it lacks the line %q; go test ./conformance -update writes it", reportPath, line)
		}
	}
}

// TestCasesCanFail is the proof that the suite sees what it looks for: every case passes on an init without the defect and fails on one that has it.
func TestCasesCanFail(t *testing.T) {
	helpers(t)
	for _, c := range cases() {
		for _, defect := range append([]string{"none"}, c.defects...) {
			t.Run(c.id()+"/"+defect, func(t *testing.T) {
				if !c.alone {
					t.Parallel()
				}
				s := &subject{name: "badinit", argv0: "badinit", manners: asBadInit, flags: []string{"-d", defect}, path: built.badInit}
				o := execute(t, c, s, defect)
				// Some defects show only when two things meet: two signals that the kernel has not merged yet, a signal before a handler is
				// there. A case has to be able to see them, not to see them each time.
				for tries := 1; defect != "none" && o.kind == "pass" && tries < 5; tries++ {
					o = execute(t, c, s, defect)
				}
				switch {
				case defect == "none" && o.kind != "pass":
					t.Errorf("without a defect: %s %s", o.kind, o.why)
				case defect != "none" && o.kind != "fail":
					t.Errorf("did not see the defect: %s %s", o.kind, o.why)
				default:
					t.Log(o.why)
				}
			})
		}
		if len(c.defects) == 0 {
			t.Errorf("%s: no defect proves that it can fail", c.id())
		}
	}
}
