// Package rows has what the benchmark measures: one file per row, each with the
// paragraph that says why the figures are what they are.
package rows

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"time"

	"skep/bench/load"
	"skep/bench/peers"
	"skep/bench/stats"
)

// Metric is one column of a row's table.
type Metric struct {
	Name   string // key in Sample.Values
	Title  string // head of the column, with the unit
	Digits int    // after the decimal point
	Most   bool   // more is better; else less is
	// Never is shown for +Inf: what did not happen while the row looked.
	Never string
}

// Goal is a bound that the row is checked against, from the requirements. What
// misses it is shown as missed.
type Goal struct {
	Case, Subject, Metric string
	AtMost                bool    // else at least
	Exact                 bool    // the bound itself and nothing else
	Bound                 float64 // of the median; with Of, a factor
	Of                    string  // another subject of the same case, or ""
}

// Row is one comparison.
type Row struct {
	Name, Title string
	// Why explains the figures: the mechanism, not the numbers.
	Why      string
	Cases    []string
	Subjects []string // in the order of the table
	// Reference has those of Subjects that are there for comparison and that
	// nobody could use in skep's place, such as the ideal.
	Reference []string
	Base      string // subject that ratios are taken to
	Ratio     string // metric that the ratio is shown for
	Metrics   []Metric
	// Judged has further metrics by which skep can be behind; that of the ratio
	// always is one.
	Judged []string
	Goals  []Goal
	// Quick has the cases of the quick form; the first one if empty.
	Quick []string
	// Runs is how often the full form measures the row, and Seconds about how
	// long one run of it takes on two slow cores: all rows together are to fit
	// into an hour of a machine that has nothing else to do.
	Runs, Seconds int
	// Together says that all subjects in all cases are measured at once, for a row
	// in which they take nothing from each other; see Job.meet.
	Together bool
	// Limit bounds one measurement; 3 minutes if zero.
	Limit time.Duration
	// Plots says what is drawn for each case.
	Plots []Plot
	// Measure takes one measurement. It must leave nothing running.
	Measure func(ctx context.Context, e *Env, j Job) (Sample, error)
}

// Plot is a picture of a case.
type Plot struct {
	Kind  string // "curve", "bars", "strips" or "lines", by the part of Sample that it shows
	Title string
	Of    []string // names of Series, for "strips" and "lines"
	Unit  string   // of the values
}

// Env is what measurements share.
type Env struct {
	Tools   *peers.Tools
	Hello   string // path of the built examples/hello, "" if there is none
	Empty   string // the same of bench/empty
	Orphans string // and of bench/orphans
	Quick   bool   // shorter windows, for CI
	Seed    uint64

	base map[string]time.Duration
}

// pick returns the full or the quick form of a setting.
func pick[T any](e *Env, full, quick T) T {
	if e.Quick {
		return quick
	}
	return full
}

// Job names one measurement.
type Job struct {
	Case, Subject string
	Run           int

	together *barrier // of those that are measured at the same time, or nil
}

// seed is the same for every subject of a run, and differs between runs and
// cases: subjects meet the same arrivals, runs do not.
func (e *Env) seed(j Job) uint64 {
	s := e.Seed + uint64(j.Run)*1_000_003
	for _, c := range j.Case {
		s = s*31 + uint64(c)
	}
	return s
}

// Sample is the outcome of one measurement.
type Sample struct {
	Values Values `json:"values,omitempty"`
	// Curve has the quantiles of the latencies, for the plots.
	Curve []Point `json:"curve,omitempty"`
	// Series has counts or sizes over time, by name.
	Series map[string]Series `json:"series,omitempty"`
	// Bars has one number per worker, most first.
	Bars []float64 `json:"bars,omitempty"`
	Note string    `json:"note,omitempty"`
	// Missing says why there are no values: the subject lacks the feature, the
	// tool is not installed, or the start failed.
	Missing string `json:"missing,omitempty"`
}

// Point is a quantile: the share (0 to 1) of the latencies that are at most MS.
type Point struct {
	Q  float64 `json:"q"`
	MS float64 `json:"ms"`
}

// Series is a function of time in even steps.
type Series struct {
	From float64   `json:"from"` // seconds, of the first value
	Step float64   `json:"step"` // seconds
	V    []float64 `json:"v"`
}

// Values has the metrics of a sample. +Inf says "never"; JSON has no word for
// it, so that it is written as the string "never".
type Values map[string]float64

// MarshalJSON writes the values with their keys in order.
func (v Values) MarshalJSON() ([]byte, error) {
	out := map[string]any{}
	for k, x := range v {
		switch {
		case math.IsInf(x, 1):
			out[k] = "never"
		case math.IsNaN(x):
			out[k] = nil
		default:
			out[k] = math.Round(x*1e6) / 1e6
		}
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (v *Values) UnmarshalJSON(b []byte) error {
	var in map[string]any
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	*v = Values{}
	for k, x := range in {
		switch x := x.(type) {
		case float64:
			(*v)[k] = x
		case nil:
			(*v)[k] = math.NaN()
		case string:
			if x != "never" {
				return fmt.Errorf("cannot read value %q of %s", x, k)
			}
			(*v)[k] = math.Inf(1)
		}
	}
	return nil
}

// Lacks is the error of a subject that does not have what the row measures.
type Lacks struct{ Reason string }

func (l Lacks) Error() string { return l.Reason }

// describe turns an error of a measurement into the text of the table.
func describe(err error) string {
	var lacks Lacks
	var missing *peers.MissingTool
	if errors.As(err, &lacks) || errors.As(err, &missing) {
		return err.Error()
	}
	if text, ok := peers.Refused(err); ok {
		return "refused: " + text
	}
	return "failed: " + err.Error()
}

// Take runs one measurement. Errors become Sample.Missing: a benchmark goes on
// and shows them.
func Take(ctx context.Context, e *Env, r *Row, j Job) Sample {
	limit := r.Limit
	if limit == 0 {
		limit = 3 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s, err := r.Measure(ctx, e, j)
	if err != nil {
		return Sample{Missing: describe(err), Note: s.Note}
	}
	return s
}

var registry []*Row

func register(r *Row) { registry = append(registry, r) }

// All returns the rows in the order of the report.
func All() []*Row {
	out := slices.Clone(registry)
	sort.SliceStable(out, func(i, j int) bool { return rank(out[i].Name) < rank(out[j].Name) })
	return out
}

// QuickSubjects are those that the quick form measures: skep, and enough
// others to see that the harness works with them. Of a row that has none of
// these, all are measured.
var QuickSubjects = []string{ideal, bare, "skep", "skep --mode init", "skep standby", "skep, serving", "skep ksm", "tini", "gunicorn + uvicorn"}

// order of the report: what users notice first.
var order = []string{
	"tail", "work", "spread", "crash", "standby", "reload", "hung", "stop", "crashloop",
	"handler", "throughput", "startup", "idle", "orphans", "cost", "memory", "ksm",
}

func rank(name string) int {
	if i := slices.Index(order, name); i >= 0 {
		return i
	}
	return len(order)
}

// serve starts the job's subject.
func serve(ctx context.Context, e *Env, j Job, c peers.Config) (*peers.Server, error) {
	s, ok := peers.Find(j.Subject)
	if !ok {
		return nil, fmt.Errorf("no subject %q", j.Subject)
	}
	return s.Serve(ctx, e.Tools, c, 30*time.Second)
}

// drive sends a plan to a server and fails if the server ends meanwhile.
func drive(ctx context.Context, v *peers.Server, o load.Options, plan []load.Arrival) ([]load.Record, error) {
	o.Address = v.Addr
	return load.Run(ctx, o, plan)
}

// milliseconds returns the latencies of the records that pass keep.
func milliseconds(rs []load.Record, keep func(load.Record) bool) []float64 {
	var out []float64
	for _, r := range rs {
		if keep(r) {
			out = append(out, ms(r.Latency))
		}
	}
	return out
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func count(rs []load.Record, keep func(load.Record) bool) float64 {
	n := 0
	for _, r := range rs {
		if keep(r) {
			n++
		}
	}
	return float64(n)
}

func failed(r load.Record) bool { return !r.OK() }

var curveAt = []float64{0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.9925, 0.995, 0.9975, 0.999, 1}

func curve(values []float64) []Point {
	if len(values) == 0 {
		return nil
	}
	out := make([]Point, len(curveAt))
	for i, x := range stats.Quantiles(values, curveAt...) {
		out[i] = Point{curveAt[i], math.Round(x*1e3) / 1e3}
	}
	return out
}

// over counts the records that pass keep in steps of their intended start,
// with time 0 at origin.
func over(rs []load.Record, origin, from, to, step time.Duration, keep func(load.Record) bool) Series {
	s := Series{From: from.Seconds(), Step: step.Seconds(), V: make([]float64, int((to-from)/step))}
	for _, r := range rs {
		i := int(math.Floor(float64(r.Start-origin-from) / float64(step)))
		if i >= 0 && i < len(s.V) && keep(r) {
			s.V[i]++
		}
	}
	return s
}

// firstNew returns when, after origin, a process answered that is not among
// old; +Inf if none did.
func firstNew(rs []load.Record, old []int, origin time.Duration) float64 {
	return firstOfNew(rs, old, origin, load.Record.End)
}

// firstFor returns when, after origin, the first connection came that a process
// answered, and not slowly, that is not among old; +Inf if none did. One that has
// waited in the queue of a dead process for the next one says nothing.
func firstFor(rs []load.Record, old []int, origin time.Duration, slow func(load.Record) bool) float64 {
	quick := slices.DeleteFunc(slices.Clone(rs), slow)
	return firstOfNew(quick, old, origin, func(r load.Record) time.Duration { return r.Start })
}

func firstOfNew(rs []load.Record, old []int, origin time.Duration, when func(load.Record) time.Duration) float64 {
	first := math.Inf(1)
	for _, r := range rs {
		if r.OK() && r.PID != 0 && !slices.Contains(old, r.PID) && when(r) > origin {
			first = min(first, (when(r) - origin).Seconds())
		}
	}
	return first
}

// worst returns the longest latency in milliseconds among those that pass keep.
func worst(rs []load.Record, keep func(load.Record) bool) float64 {
	w := 0.0
	for _, r := range rs {
		if keep(r) {
			w = max(w, ms(r.Latency))
		}
	}
	return w
}

// reasons says what failures there were.
func reasons(rs []load.Record) string {
	n := map[string]int{}
	for _, r := range rs {
		switch {
		case r.Err != "":
			n[r.Err]++
		case !r.OK():
			n[fmt.Sprintf("status %d", r.Status)]++
		}
	}
	var out []string
	for k, c := range n {
		out = append(out, fmt.Sprintf("%d %s", c, k))
	}
	slices.Sort(out)
	text := ""
	for i, s := range out {
		if i > 0 {
			text += ", "
		}
		text += s
	}
	return text
}

// lateness is the generator's own delay at the 99th percentile, in ms: when it
// is not small, the machine was too busy for the row.
func lateness(rs []load.Record) float64 {
	late := make([]float64, len(rs))
	for i, r := range rs {
		late[i] = ms(r.Sent - r.Start)
	}
	return stats.Quantile(late, 0.99)
}
