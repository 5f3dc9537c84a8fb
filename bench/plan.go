package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"skep/bench/report"
	"skep/bench/rows"
)

// step is a row that is to be measured.
type step struct {
	def  *rows.Row
	sel  report.Row // its chosen cases and subjects
	runs int
	run  time.Duration // about how long one run takes
}

// plan returns what is to be measured. runs is for all rows; if 0, each has its
// own.
func plan(chosen []*rows.Row, runs int, quick bool, cases, subjects []string) []step {
	var out []step
	for _, def := range chosen {
		st := step{def: def, sel: selection(def, quick, cases, subjects), runs: runs}
		if runs == 0 {
			st.runs = def.Runs
		}
		// A row's measurements are taken for equally long, those that are
		// made together for as long as one of them.
		st.run = time.Duration(def.Seconds) * time.Second
		part, all := 0, len(def.Cases)*len(def.Subjects)
		for _, c := range st.sel.Cases {
			part += len(c.Subjects)
		}
		if !def.Together {
			st.run = st.run * time.Duration(part) / time.Duration(all)
		}
		out = append(out, st)
	}
	return out
}

// remaining leaves out the rows that already have a full form's figures of that
// day and of that skep.
func remaining(chosen []*rows.Row, have *report.Results, skep, day string) []*rows.Row {
	done := map[string]bool{}
	for _, r := range have.Rows {
		done[r.Name] = r.Date == day && r.Skep == skep && !r.Quick
	}
	var out []*rows.Row
	for _, def := range chosen {
		if !done[def.Name] {
			out = append(out, def)
		}
	}
	return out
}

// printSteps lists the rows with the time that they take.
func printSteps(w io.Writer, steps []step) {
	var sum time.Duration
	fmt.Fprintf(w, "%-11s %5s %6s %7s\n", "row", "runs", "s/run", "minutes")
	for _, st := range steps {
		all := time.Duration(st.runs) * st.run
		sum += all
		fmt.Fprintf(w, "%-11s %5d %6.0f %7.1f  %s\n", st.def.Name, st.runs, st.run.Seconds(), all.Minutes(), st.def.Title)
	}
	fmt.Fprintf(w, "%-11s %5s %6s %7.1f\n", "all", "", "", sum.Minutes())
}

// clock says how far a benchmark is.
type clock struct {
	begin time.Time
	steps []step
}

// at returns the time that has passed and what the runs from this one on are to
// take.
func (c *clock) at(row, run int, now time.Time) string {
	left := -time.Duration(run) * c.steps[row].run
	for _, st := range c.steps[row:] {
		left += time.Duration(st.runs) * st.run
	}
	minutes := func(d time.Duration) string {
		return strings.TrimSuffix(fmt.Sprintf("%.1f", d.Minutes()), ".0") + " min"
	}
	return fmt.Sprintf("%s passed, about %s left", minutes(now.Sub(c.begin)), minutes(left))
}
