package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"skep/bench/report"
	"skep/bench/rows"
)

// The full form is to fit into one quiet hour: a row that takes longer than it
// says, or that runs more often, has to be paid for by another.
func TestFullFormFitsIntoAnHour(t *testing.T) {
	var sum time.Duration
	for _, st := range plan(rows.All(), 0, false, nil, nil) {
		sum += time.Duration(st.runs) * st.run
		if st.runs < 1 || st.run <= 0 {
			t.Errorf("%s does not say how long it takes: %d runs of %v", st.def.Name, st.runs, st.run)
		}
		// One run is enough only for what lasts.
		if st.runs == 1 && st.run < 3*time.Minute {
			t.Errorf("%s has one short run", st.def.Name)
		}
		if st.def.Name == "tail" && st.runs < 5 {
			t.Errorf("tail has %d runs", st.runs)
		}
	}
	if sum > 65*time.Minute {
		t.Errorf("all rows take %v", sum)
	}
}

func TestPlanCountsWhatIsChosen(t *testing.T) {
	def := &rows.Row{Name: "x", Title: "X", Cases: []string{"a", "b"}, Subjects: []string{"p", "q", "r"}, Runs: 2, Seconds: 60}
	one := plan([]*rows.Row{def}, 0, false, []string{"b"}, []string{"q"})
	if one[0].runs != 2 || one[0].run != 10*time.Second {
		t.Errorf("one of six: %d runs of %v", one[0].runs, one[0].run)
	}
	// -runs is for all rows, and what is measured at once is not shorter with less.
	def.Together = true
	many := plan([]*rows.Row{def}, 7, false, []string{"b"}, nil)
	if many[0].runs != 7 || many[0].run != time.Minute {
		t.Errorf("together: %d runs of %v", many[0].runs, many[0].run)
	}
	var b bytes.Buffer
	printSteps(&b, append(one, many...))
	if f := strings.Fields(b.String()); !slices.Equal(f[len(f)-2:], []string{"all", "7.3"}) {
		t.Errorf("listed as\n%s", &b)
	}

	begin := time.Now()
	c := clock{begin, append(one, many...)}
	if got := c.at(1, 4, begin.Add(90*time.Second)); got != "1.5 min passed, about 3 min left" {
		t.Errorf("%q", got)
	}
	if got := c.at(0, 0, begin); got != "0 min passed, about 7.3 min left" {
		t.Errorf("%q", got)
	}
}

func TestResumeLeavesOutWhatIsDone(t *testing.T) {
	defs := []*rows.Row{{Name: "done"}, {Name: "older"}, {Name: "quick"}, {Name: "none"}}
	have := &report.Results{Rows: []report.Row{
		{Name: "done", Date: "2026-01-02", Skep: "1.2"}, {Name: "older", Date: "2026-01-01", Skep: "1.2"}, {Name: "quick", Date: "2026-01-02", Skep: "1.2", Quick: true},
	}}
	if got := remaining(defs, have, "1.2", "2026-01-02"); !slices.Equal(got, defs[1:]) {
		t.Errorf("%d rows remain", len(got))
	}
	if got := remaining(defs, have, "1.3", "2026-01-02"); len(got) != 4 {
		t.Errorf("another skep: %d rows remain", len(got))
	}
}
