// Package report keeps the raw results of the benchmark and writes them as
// JSON, Markdown and pictures. Nothing in the written page is copied by hand.
package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"skep/bench/peers"
	"skep/bench/rows"
	"skep/bench/stats"
	"skep/bench/svg"
)

// Machine says where the figures come from, without naming it.
type Machine struct {
	CPU      string `json:"cpu"`
	Cores    int    `json:"cores"`
	MemoryMB int64  `json:"memory_mb"`
	Kernel   string `json:"kernel"`
}

// Results is the content of the raw file.
type Results struct {
	Machine  Machine           `json:"machine"`
	Versions map[string]string `json:"versions"`
	Missing  []string          `json:"missing,omitempty"` // tools that are not installed
	Rows     []Row             `json:"rows"`
}

// Row has the samples of one row.
type Row struct {
	Name  string  `json:"name"`
	Date  string  `json:"date"`           // of the last run, as 2006-01-02
	Skep  string  `json:"skep,omitempty"` // its version in this row
	Quick bool    `json:"quick,omitempty"`
	Load  float64 `json:"load"`           // load average of the machine just before
	Seed  uint64  `json:"seed"`           // of the first run's arrivals
	Nice  int     `json:"nice,omitempty"` // priority that the subjects ran with
	Cases []Case  `json:"cases"`
}

// Case has the samples of one case of a row.
type Case struct {
	Name     string    `json:"name"`
	Subjects []Subject `json:"subjects"`
}

// Subject has one sample per run.
type Subject struct {
	Name string        `json:"name"`
	Runs []rows.Sample `json:"runs"`
}

// Read returns the results in a raw file, and empty ones if there is none.
func Read(path string) (*Results, error) {
	r := &Results{}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("cannot read earlier results: %w", err)
	}
	for i := range r.Rows {
		if r.Rows[i].Skep == "" { // one version was for all rows once
			r.Rows[i].Skep = r.Versions["skep"]
		}
	}
	return r, nil
}

// Put replaces the row of the same name or adds it. Rows that were not
// measured this time keep their results, with their own date and skep.
func (r *Results) Put(row Row) {
	for i := range r.Rows {
		if r.Rows[i].Name == row.Name {
			r.Rows[i] = row
			return
		}
	}
	r.Rows = append(r.Rows, row)
}

// Write writes benchmarks.json, benchmarks.md and img/*.svg below dir.
func (r *Results) Write(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "img"), 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "benchmarks.json"), compact(b), 0o644); err != nil {
		return err
	}
	for name, pic := range r.Pictures() {
		if err := os.WriteFile(filepath.Join(dir, "img", name), pic, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "benchmarks.md"), r.Markdown(), 0o644)
}

// compact joins the lines of innermost lists and objects: readable diffs
// without a line per number.
func compact(b []byte) []byte {
	var out bytes.Buffer
	depthDrop := 0
	for line := range bytes.Lines(b) {
		text := bytes.TrimRight(line, "\n")
		indent := len(text) - len(bytes.TrimLeft(text, " "))
		if indent > 9 {
			out.Write(bytes.TrimLeft(text, " "))
			depthDrop++
			continue
		}
		if depthDrop > 0 && bytes.IndexAny(bytes.TrimLeft(text, " ")[:1], "]}") == 0 {
			out.Write(bytes.TrimLeft(text, " "))
			out.WriteByte('\n')
			depthDrop = 0
			continue
		}
		depthDrop = 0
		if out.Len() > 0 && !bytes.HasSuffix(out.Bytes(), []byte("\n")) {
			out.WriteByte('\n')
		}
		out.Write(text)
		if b := bytes.TrimRight(text, " "); indent == 9 && (bytes.HasSuffix(b, []byte("{")) || bytes.HasSuffix(b, []byte("["))) {
			continue
		}
		out.WriteByte('\n')
	}
	return out.Bytes()
}

func (r *Results) row(name string) *Row {
	for i := range r.Rows {
		if r.Rows[i].Name == name {
			return &r.Rows[i]
		}
	}
	return nil
}

func (c *Case) subject(name string) *Subject {
	for i := range c.Subjects {
		if c.Subjects[i].Name == name {
			return &c.Subjects[i]
		}
	}
	return nil
}

// values returns the metric of every run that has it.
func (s *Subject) values(metric string) []float64 {
	if s == nil {
		return nil
	}
	var out []float64
	for _, run := range s.Runs {
		if v, ok := run.Values[metric]; ok {
			out = append(out, v)
		}
	}
	return out
}

// ratio is the median, over the runs, of the subject's value to the base's in
// the same run: both met the same arrivals. Where the base had nothing in some run
// there is no such median, and it is the ratio of what all runs had together.
func ratio(s, base *Subject, metric string) float64 {
	if s == nil || base == nil {
		return math.NaN()
	}
	var out []float64
	sumA, sumB, nothing := 0.0, 0.0, false
	for i := range min(len(s.Runs), len(base.Runs)) {
		a, okA := s.Runs[i].Values[metric]
		b, okB := base.Runs[i].Values[metric]
		if okA && okB {
			out = append(out, stats.Ratio(a, b))
			sumA, sumB, nothing = sumA+a, sumB+b, nothing || b == 0
		}
	}
	if nothing && sumB > 0 {
		return stats.Ratio(sumA, sumB)
	}
	return stats.Quantile(out, 0.5)
}

func number(v float64, m rows.Metric) string {
	switch {
	case math.IsNaN(v):
		return "–"
	case math.IsInf(v, 1):
		if m.Never != "" {
			return m.Never
		}
		return "∞"
	}
	return strconv.FormatFloat(v, 'f', m.Digits, 64)
}

func cell(values []float64, m rows.Metric) string {
	if len(values) == 0 {
		return "–"
	}
	s := stats.Summarise(values)
	text := number(s.Median, m)
	low, top := number(s.Low, m), number(s.Top, m)
	if s.N > 1 && (low != text || top != text) {
		text += " (" + low + "–" + top + ")"
	}
	return text
}

func metric(r *rows.Row, name string) rows.Metric {
	for _, m := range r.Metrics {
		if m.Name == name {
			return m
		}
	}
	return rows.Metric{Name: name, Title: name, Digits: 2}
}

// Verdict is a goal with what was measured.
type Verdict struct {
	Row      string
	Goal     rows.Goal
	Got      float64 // median, or median ratio; NaN if not measured
	Met      bool
	Measured bool
}

// Verdicts returns all goals of the measured rows.
func (r *Results) Verdicts() []Verdict {
	var out []Verdict
	for _, def := range rows.All() {
		row := r.row(def.Name)
		if row == nil {
			continue
		}
		for _, g := range def.Goals {
			v := Verdict{Row: def.Name, Goal: g, Got: math.NaN()}
			for i := range row.Cases {
				c := &row.Cases[i]
				if c.Name != g.Case {
					continue
				}
				s := c.subject(g.Subject)
				if g.Of != "" {
					v.Got = ratio(s, c.subject(g.Of), g.Metric)
				} else {
					v.Got = stats.Quantile(s.values(g.Metric), 0.5)
				}
			}
			v.Measured = !math.IsNaN(v.Got)
			switch {
			case !v.Measured:
			case g.Exact:
				v.Met = v.Got == g.Bound
			case g.AtMost:
				v.Met = v.Got <= g.Bound
			default:
				v.Met = v.Got >= g.Bound
			}
			out = append(out, v)
		}
	}
	return out
}

func (v Verdict) text(def *rows.Row) (goal, got, word string) {
	m := metric(def, v.Goal.Metric)
	op := "≥"
	switch {
	case v.Goal.Exact:
		op = "="
	case v.Goal.AtMost:
		op = "≤"
	}
	bound := strconv.FormatFloat(v.Goal.Bound, 'g', -1, 64)
	show := m
	if v.Goal.Of != "" {
		bound += " × " + v.Goal.Of
		show.Digits = 2
	}
	goal = fmt.Sprintf("%s: %s %s %s", v.Goal.Subject, m.Title, op, bound)
	got = number(v.Got, show)
	if v.Goal.Of != "" && v.Measured {
		got += " ×"
	}
	switch {
	case !v.Measured:
		word = "**not measured**"
	case v.Met:
		word = "met"
	default:
		word = "**missed**"
	}
	return
}

// Loss is a case in which something else has a better median than skep.
type Loss struct {
	Row, Case, Metric, Subject string
	Skep, Best                 float64
	Within                     bool // the quartile ranges overlap
}

// Losses returns, for the metrics that a row is judged by, the cases where a peer
// that could be used in skep's place is ahead, or where skep has no figure.
func (r *Results) Losses() []Loss {
	var out []Loss
	for _, def := range rows.All() {
		row := r.row(def.Name)
		if row == nil {
			continue
		}
		for i := range row.Cases {
			c := &row.Cases[i]
			for _, name := range append([]string{def.Ratio}, def.Judged...) {
				if l, ok := lossOf(def, c, metric(def, name)); ok {
					out = append(out, l)
				}
			}
		}
	}
	return out
}

// lossOf compares one metric of one case.
func lossOf(def *rows.Row, c *Case, m rows.Metric) (Loss, bool) {
	// Of several ways to run skep, the row's own choice counts: the first one
	// of its table that was measured in this case.
	var own *Subject
	for _, name := range def.Subjects {
		if s := c.subject(name); strings.HasPrefix(name, "skep") && s != nil {
			own = s
			if len(s.values(m.Name)) > 0 {
				break
			}
		}
	}
	if own == nil {
		return Loss{}, false
	}
	mine := stats.Summarise(own.values(m.Name))
	loss := Loss{Row: def.Name, Case: c.Name, Metric: m.Name, Skep: mine.Median}
	better := func(a, b float64) bool { return a < b || math.IsNaN(b) && !math.IsNaN(a) }
	if m.Most {
		better = func(a, b float64) bool { return a > b || math.IsNaN(b) && !math.IsNaN(a) }
	}
	best := mine
	for i := range c.Subjects {
		s := &c.Subjects[i]
		if strings.HasPrefix(s.Name, "skep") || slices.Contains(def.Reference, s.Name) {
			continue
		}
		if sum := stats.Summarise(s.values(m.Name)); better(sum.Median, best.Median) {
			best, loss.Subject, loss.Best = sum, s.Name, sum.Median
		}
	}
	if loss.Subject == "" {
		return Loss{}, false
	}
	loss.Within = best.Top >= mine.Low && best.Low <= mine.Top
	return loss, true
}

// Markdown returns the page.
func (r *Results) Markdown() []byte {
	var b bytes.Buffer
	p := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	p("# Benchmarks\n\n")
	p("<!-- Written by `make bench`; edit the rows in bench/rows instead. -->\n\n")
	p("Every table compares skep with what people use in its place, in the same runs on the same machine: ")
	p("the subjects take turns within a run, in a different order each time, and all of them meet the same arrivals; where nothing happens they sit side by side. ")
	p("A cell is the median of the runs, with the lower and upper quartile in brackets; the last column is the median of the ratios run by run. ")
	p("Latency counts from the moment a request was due, whether or not the generator or the server was ready for it. ")
	p("The load generator runs on the same machine as the servers. ")
	p("Ratios travel to other machines better than milliseconds do. Raw data: [benchmarks.json](benchmarks.json). ")
	p("Make your own with `make bench`.\n\n")
	p("Machine: %s, %d cores, %.0f GB of memory, Linux %s.\n\n", r.Machine.CPU, r.Machine.Cores, float64(r.Machine.MemoryMB)/1024, r.Machine.Kernel)
	names := make([]string, 0, len(r.Versions))
	for n := range r.Versions {
		if n != "skep" { // each row says with which it was measured
			names = append(names, n)
		}
	}
	slices.Sort(names)
	p("Versions:")
	for i, n := range names {
		if i > 0 {
			p(",")
		}
		p(" %s %s", n, r.Versions[n])
	}
	p(". Distributions' packages are older than what their projects offer.\n\n")
	if len(r.Missing) > 0 {
		p("Not installed when this was measured, so their rows are empty: %s.\n\n", strings.Join(r.Missing, ", "))
	}

	p("<details><summary>What the names stand for</summary>\n\n")
	for _, s := range peers.Subjects() {
		p("- **%s**: %s\n", s.Name, s.What)
	}
	p("\n</details>\n\n")
	p("## Where skep is not first\n\n")
	losses := r.Losses()
	if len(losses) == 0 {
		p("In nothing that was measured.\n\n")
	} else {
		p("| row | case | measured | skep | best | |\n|---|---|---|---|---|---|\n")
		for _, l := range losses {
			def := find(l.Row)
			m := metric(def, l.Metric)
			note := ""
			if l.Within {
				note = "within the spread"
			}
			p("| [%s](#%s) | %s | %s | %s | %s: %s | %s |\n", l.Row, l.Row, l.Case, m.Title, number(l.Skep, m), l.Subject, number(l.Best, m), note)
		}
		p("\n")
	}
	if verdicts := r.Verdicts(); len(verdicts) > 0 {
		met := 0
		for _, v := range verdicts {
			if v.Met {
				met++
			}
		}
		p("## Goals\n\n%d of %d are met.\n\n| row | case | goal | measured | |\n|---|---|---|---|---|\n", met, len(verdicts))
		for _, v := range verdicts {
			goal, got, word := v.text(find(v.Row))
			p("| [%s](#%s) | %s | %s | %s | %s |\n", v.Row, v.Row, v.Goal.Case, goal, got, word)
		}
		p("\n")
	}

	for _, def := range rows.All() {
		row := r.row(def.Name)
		if row == nil {
			continue
		}
		p("<a id=\"%s\"></a>\n\n## %s\n\n", def.Name, def.Title)
		p("%s\n\n", strings.Join(strings.Fields(def.Why), " "))
		form := "full"
		if row.Quick {
			form = "quick"
		}
		p("Measured %s with skep %s, %s form, load of the machine before it %.1f", row.Date, row.Skep, form, row.Load)
		if row.Nice != 0 {
			p(", everything at priority %d because the machine had other work", row.Nice)
		}
		p(".\n\n")
		for i := range row.Cases {
			r.markdownCase(&b, def, &row.Cases[i])
		}
	}
	return b.Bytes()
}

func find(name string) *rows.Row {
	for _, def := range rows.All() {
		if def.Name == name {
			return def
		}
	}
	return &rows.Row{Name: name}
}

func (r *Results) markdownCase(b *bytes.Buffer, def *rows.Row, c *Case) {
	p := func(format string, args ...any) { fmt.Fprintf(b, format, args...) }
	runs := 0
	for _, s := range c.Subjects {
		runs = max(runs, len(s.Runs))
	}
	p("### %s\n\n", c.Name)
	p("| %s |", plural(runs, "run"))
	for _, m := range def.Metrics {
		p(" %s |", m.Title)
	}
	p(" ratio to %s |\n|---|", def.Base)
	for range def.Metrics {
		p("---|")
	}
	p("---|\n")
	base := c.subject(def.Base)
	for i := range c.Subjects {
		s := &c.Subjects[i]
		p("| %s |", s.Name)
		if text := missing(s); text != "" {
			p(" %s |", text)
			for range def.Metrics {
				p(" |")
			}
			p("\n")
			continue
		}
		for _, m := range def.Metrics {
			p(" %s |", cell(s.values(m.Name), m))
		}
		p(" %s |\n", number(ratio(s, base, def.Ratio), rows.Metric{Digits: 2}))
	}
	p("\n")
	if notes := partial(c); notes != "" {
		p("%s\n\n", notes)
	}
	for _, name := range pictureNames(def, c.Name) {
		p("![%s](img/%s)\n\n", def.Title+", "+c.Name, name)
	}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// missing returns why the subject has no figure in any run, "" if it has one.
func missing(s *Subject) string {
	text := "not measured"
	for _, run := range s.Runs {
		if run.Missing == "" {
			return ""
		}
		text = run.Missing
	}
	// One line, without what would end the cell.
	text = strings.Join(strings.Fields(strings.ReplaceAll(text, "|", "/")), " ")
	if r := []rune(text); len(r) > 160 {
		text = string(r[:160]) + "…"
	}
	return "*" + text + "*"
}

// partial names the runs that failed of subjects that have others.
func partial(c *Case) string {
	var out []string
	for i := range c.Subjects {
		s := &c.Subjects[i]
		n, why := 0, ""
		for _, run := range s.Runs {
			if run.Missing != "" {
				n, why = n+1, run.Missing
			}
		}
		if n > 0 && n < len(s.Runs) {
			out = append(out, fmt.Sprintf("%s: %d of %d runs gave no figure (%s).", s.Name, n, len(s.Runs), strings.Join(strings.Fields(why), " ")))
		}
	}
	return strings.Join(out, " ")
}

func slug(s string) string {
	var b strings.Builder
	dash := false
	for _, c := range strings.ToLower(s) {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			if dash && b.Len() > 0 {
				b.WriteByte('-')
			}
			b.WriteRune(c)
			dash = false
		} else {
			dash = true
		}
	}
	return b.String()
}

func pictureNames(def *rows.Row, name string) []string {
	var out []string
	for _, plot := range def.Plots {
		out = append(out, slug(def.Name+" "+name+" "+plot.Kind)+".svg")
	}
	return out
}

// Pictures returns all charts by file name.
func (r *Results) Pictures() map[string][]byte {
	out := map[string][]byte{}
	for _, def := range rows.All() {
		row := r.row(def.Name)
		if row == nil {
			continue
		}
		for i := range row.Cases {
			c := &row.Cases[i]
			names := pictureNames(def, c.Name)
			for k, plot := range def.Plots {
				out[names[k]] = draw(plot, c)
			}
		}
	}
	return out
}

func draw(plot rows.Plot, c *Case) []byte {
	title := plot.Title + ", " + c.Name
	switch plot.Kind {
	case "curve":
		var lines []svg.Line
		for i := range c.Subjects {
			if l, ok := medianCurve(&c.Subjects[i]); ok {
				lines = append(lines, l)
			}
		}
		return svg.Lines(title, svg.Axis{Label: "share of the requests", Nines: true}, svg.Axis{Label: plot.Unit, Log: true}, lines)
	case "bars":
		var groups []svg.Group
		for i := range c.Subjects {
			if v := medians(len(c.Subjects[i].Runs), func(k int) []float64 { return c.Subjects[i].Runs[k].Bars }); len(v) > 0 {
				groups = append(groups, svg.Group{Name: c.Subjects[i].Name, V: v})
			}
		}
		return svg.Bars(title, plot.Unit, groups)
	case "lines":
		var lines []svg.Line
		for i := range c.Subjects {
			for _, run := range c.Subjects[i].Runs[:min(1, len(c.Subjects[i].Runs))] {
				for _, name := range plot.Of {
					s, ok := run.Series[name]
					if !ok {
						continue
					}
					l := svg.Line{Name: c.Subjects[i].Name}
					for k, v := range s.V {
						l.X, l.Y = append(l.X, s.From+s.Step*float64(k)), append(l.Y, v)
					}
					lines = append(lines, l)
				}
			}
		}
		return svg.Lines(title, svg.Axis{Label: "seconds"}, svg.Axis{Label: plot.Unit}, lines)
	}
	var strips []svg.Strip
	var from, step float64
	for i := range c.Subjects {
		s := &c.Subjects[i]
		strip := svg.Strip{Name: s.Name}
		for _, name := range plot.Of {
			v := means(s, name)
			strip.V = append(strip.V, v)
			for _, run := range s.Runs {
				if x, ok := run.Series[name]; ok {
					from, step = x.From, x.Step
				}
			}
		}
		if missing(s) == "" {
			strips = append(strips, strip)
		}
	}
	return svg.Strips(title, plot.Unit, plot.Of, from, step, strips)
}

// means averages a series over the runs: failures are rare, and a median of
// rare things is nothing.
func means(s *Subject, name string) []float64 {
	var out []float64
	n := 0.0
	for _, run := range s.Runs {
		x, ok := run.Series[name]
		if !ok {
			continue
		}
		n++
		for len(out) < len(x.V) {
			out = append(out, 0)
		}
		for i, v := range x.V {
			out[i] += v
		}
	}
	for i := range out {
		out[i] /= n
	}
	return out
}

func medians(n int, of func(int) []float64) []float64 {
	var out []float64
	for pos := 0; ; pos++ {
		var at []float64
		for k := range n {
			if v := of(k); pos < len(v) {
				at = append(at, v[pos])
			}
		}
		if len(at) == 0 {
			return out
		}
		out = append(out, stats.Quantile(at, 0.5))
	}
}

func medianCurve(s *Subject) (svg.Line, bool) {
	at := map[float64][]float64{}
	for _, run := range s.Runs {
		for _, pt := range run.Curve {
			at[pt.Q] = append(at[pt.Q], pt.MS)
		}
	}
	l := svg.Line{Name: s.Name}
	for q := range at {
		// The maximum of a run has no place on an axis of nines.
		if q < 1 {
			l.X = append(l.X, q)
		}
	}
	slices.Sort(l.X)
	for _, q := range l.X {
		l.Y = append(l.Y, stats.Quantile(at[q], 0.5))
	}
	return l, len(l.X) > 0
}
