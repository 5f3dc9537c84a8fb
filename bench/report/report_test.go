package report_test

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"skep/bench/report"
	"skep/bench/rows"
)

func runs(metric string, values ...float64) []rows.Sample {
	out := make([]rows.Sample, len(values))
	for i, v := range values {
		out[i] = rows.Sample{Values: rows.Values{metric: v}}
	}
	return out
}

func sample() *report.Results {
	curve := []rows.Point{{Q: 0, MS: 0.5}, {Q: 0.9, MS: 1}, {Q: 0.99, MS: 20}, {Q: 1, MS: 100}}
	skep := runs("over", 2.0, 2.2, 2.4)
	for i := range skep {
		skep[i].Curve = curve
	}
	return &report.Results{
		Machine: report.Machine{CPU: "a CPU", Cores: 2, MemoryMB: 4096, Kernel: "6.18"}, Versions: map[string]string{"skep": "1.0", "tini": "0.19.0"},
		Missing: []string{"nginx"},
		Rows: []report.Row{
			{Name: "tail", Date: "2026-01-02", Skep: "1.0", Load: 0.5, Cases: []report.Case{{Name: "300/s", Subjects: []report.Subject{
				{Name: "ideal queue", Runs: runs("over", 2, 2, 2)},
				{Name: "skep", Runs: skep},
				{Name: "gunicorn + uvicorn", Runs: runs("over", 1, 1.1, 1.2)},
				{Name: "node cluster", Runs: []rows.Sample{{Missing: "node is not installed here"}, {Missing: "a | b\nc"}}},
			}}}},
			{Name: "hung", Date: "2026-01-02", Skep: "1.1", Cases: []report.Case{{Name: "5 s", Subjects: []report.Subject{
				{Name: "skep", Runs: []rows.Sample{{Values: rows.Values{"replaced": 5.2, "slow": 0}}, {Missing: "failed: odd"}}},
				{Name: "uvicorn --workers", Runs: []rows.Sample{{Values: rows.Values{"replaced": math.Inf(1), "slow": 0}}}},
			}}}},
		},
	}
}

func TestPageShowsWinsAndLosses(t *testing.T) {
	page := string(sample().Markdown())
	for _, want := range []string{
		"| skep | 2.20 (2.10–2.30) |",                   // median and quartiles
		"| 1.10 |",                                      // ratio to the ideal
		"*a / b c*",                                     // a reason cannot break the table
		"not while it was watched",                      // never
		"## Where skep is not first",                    //
		"gunicorn + uvicorn: 1.10",                      // who is
		"tini 0.19.0",                                   //
		"Measured 2026-01-02 with skep 1.0, full",       // each row says with which
		"Measured 2026-01-02 with skep 1.1, full",       //
		"1 of 2 runs gave no figure (failed: odd)",      //
		"empty: nginx.",                                 //
		"img/tail-300-s-curve.svg",                      //
		"| skep: replaced after, s ≤ 5.5 | 5.2 | met |", //
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(page)
	}
}

func TestVerdicts(t *testing.T) {
	got := map[string]string{}
	for _, v := range sample().Verdicts() {
		word := "missed"
		switch {
		case !v.Measured:
			word = "not measured"
		case v.Met:
			word = "met"
		}
		got[v.Row+" "+v.Goal.Case+" "+v.Goal.Metric+" "+v.Goal.Of] = word
	}
	want := map[string]string{
		"tail 150/s over ideal queue": "not measured",
		// 1.10 exactly is met, but for the last bit of the division.
		"tail 300/s over gunicorn + uvicorn": "missed",
		"tail 300/s over uvicorn --workers":  "not measured",
		"hung 5 s replaced ":                 "met",
		"hung 5 s slow ":                     "met",
	}
	for k, w := range want {
		if got[k] != w {
			t.Errorf("%s: %q, want %q", k, got[k], w)
		}
	}
}

func TestLossesLeaveOutReferences(t *testing.T) {
	losses := sample().Losses()
	if len(losses) != 1 || losses[0].Subject != "gunicorn + uvicorn" || losses[0].Row != "tail" || losses[0].Within {
		t.Errorf("%+v", losses)
	}
	// skep never replaced the worker, a peer did: that is a loss as well.
	h := sample()
	h.Rows[1].Cases[0].Subjects[0].Runs[0].Values["replaced"] = math.Inf(1)
	h.Rows[1].Cases[0].Subjects[1].Runs[0].Values["replaced"] = 4
	if losses := h.Losses(); len(losses) != 2 || losses[1].Metric != "replaced" || losses[1].Best != 4 {
		t.Errorf("%+v", losses)
	}
	// Nobody can use the ideal: being behind it alone is not a loss.
	r := sample()
	c := &r.Rows[0].Cases[0]
	c.Subjects = append(c.Subjects[:2:2], c.Subjects[3:]...)
	if losses := r.Losses(); len(losses) != 0 {
		t.Errorf("%+v", losses)
	}
	// The section stays where it is, so that nobody has to wonder.
	if page := string(r.Markdown()); !strings.Contains(page, "## Where skep is not first\n\nIn nothing that was measured.") {
		t.Errorf("the page does not say that there is no loss:\n%s", page)
	}
}

func TestWriteAndReadAgain(t *testing.T) {
	dir := t.TempDir()
	in := sample()
	if err := in.Write(dir); err != nil {
		t.Fatal(err)
	}
	out, err := report.Read(filepath.Join(dir, "benchmarks.json"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(in, out, cmpopts.EquateNaNs(), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("raw data changed on its way (-wrote +read):\n%s", d)
	}
	if a, b := in.Markdown(), out.Markdown(); string(a) != string(b) {
		t.Error("the page from the file differs")
	}
	for _, name := range []string{"benchmarks.md", "img/tail-300-s-curve.svg", "img/hung-5-s-strips.svg"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	// A row that is measured again replaces its old figures, the others stay.
	out.Put(report.Row{Name: "hung", Date: "2026-02-03"})
	if len(out.Rows) != 2 || out.Rows[1].Date != "2026-02-03" || out.Rows[0].Name != "tail" {
		t.Errorf("%+v", out.Rows)
	}
	empty, err := report.Read(filepath.Join(dir, "none.json"))
	if err != nil || len(empty.Rows) != 0 {
		t.Errorf("%+v, %v", empty, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "benchmarks.json")); err != nil || !json.Valid(b) {
		t.Errorf("not JSON: %v", err)
	}
}
