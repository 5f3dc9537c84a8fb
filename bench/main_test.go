package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"skep/bench/load"
	"skep/bench/peers"
	"skep/bench/report"
	"skep/bench/rows"
)

// The harness in its shortest form on a real server: what is well is measured
// as well, and a freeze and a kill are seen for what they are.
func TestHarnessOnHello(t *testing.T) {
	hello, err := buildGo(t.Context(), t.TempDir(), "examples/hello")
	if err != nil {
		t.Fatal(err)
	}
	port, err := peers.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := peers.Scratch()
	if err != nil {
		t.Fatal(err)
	}
	p, err := peers.Launch(dir, []string{hello, "-addr", fmt.Sprintf("127.0.0.1:%d", port)}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.End()
	addr := netip.MustParseAddrPort(fmt.Sprintf("127.0.0.1:%d", port))
	send := func(plan []load.Arrival, begin time.Time) []load.Record {
		t.Helper()
		records, err := load.Run(t.Context(), load.Options{Address: addr, Begin: begin, Timeout: 5 * time.Second}, plan)
		if err != nil {
			t.Fatal(err)
		}
		return records
	}
	if err := p.WaitFor(t.Context(), 10*time.Second, func() bool {
		return send([]load.Arrival{{Path: "/"}}, time.Now())[0].OK()
	}); err != nil {
		t.Fatal(err)
	}

	plan := load.Mix(1, load.Poisson(1, 200, time.Second), "/", "", 0)
	for _, r := range send(plan, time.Now()) {
		if !r.OK() || r.PID != p.PID {
			t.Fatalf("%+v, the server is process %d", r, p.PID)
		}
	}

	// Frozen from 300 ms for at least 400 ms: everything due then shows it.
	begin := time.Now()
	frozen := make(chan [2]time.Duration, 1)
	time.AfterFunc(300*time.Millisecond, func() {
		var w [2]time.Duration
		_ = p.Signal(syscall.SIGSTOP)
		w[0] = time.Since(begin)
		time.Sleep(400 * time.Millisecond)
		w[1] = time.Since(begin)
		_ = p.Signal(syscall.SIGCONT)
		frozen <- w
	})
	records := send(plan, begin)
	w, in := <-frozen, 0
	for _, r := range records {
		// Threads stop one by one, when the signal reaches each.
		if r.Start > w[0]+50*time.Millisecond && r.Start < w[1] {
			in++
			if r.End() < w[1] {
				t.Errorf("due at %v, answered at %v by a server frozen from %v to %v", r.Start, r.End(), w[0], w[1])
			}
		}
	}
	if in < 40 {
		t.Errorf("only %d requests were due while the server was frozen", in)
	}

	begin = time.Now()
	time.AfterFunc(500*time.Millisecond, func() { _ = p.Signal(syscall.SIGKILL) })
	refused := 0
	for _, r := range send(plan, begin) {
		if r.Err == load.ErrRefused {
			refused++
		}
		if r.OK() && r.Start > 700*time.Millisecond && r.Sent < r.Start+100*time.Millisecond {
			t.Fatalf("a killed server has answered: %+v", r)
		}
	}
	if refused < 30 {
		t.Errorf("only %d requests are refused after the kill", refused)
	}
}

// One row, from the choice to the written page.
func TestOneRowToThePage(t *testing.T) {
	chosen, err := choose("startup")
	if err != nil {
		t.Fatal(err)
	}
	e := &rows.Env{Tools: peers.FindTools("", ""), Quick: true, Seed: 1}
	sel := selection(chosen[0], true, nil, []string{"bare exec", "skep"})
	row := measure(t.Context(), e, chosen[0], 2, sel, func(int) {})
	results := &report.Results{Machine: machine()}
	results.Put(row)
	out := t.TempDir()
	if err := results.Write(out); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(out, "benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| bare exec | ", "*skep is not installed here*", "**not measured**"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	host, err := os.Hostname()
	if err == nil && len(host) > 2 && strings.Contains(string(page), host) {
		t.Error("the page names the machine")
	}
}

// What fails is a note in the table, and the next measurement follows.
func TestOneFailureIsNotTheEnd(t *testing.T) {
	def := &rows.Row{Name: "x", Cases: []string{"a", "b"}, Subjects: []string{"p", "q"},
		Measure: func(_ context.Context, _ *rows.Env, j rows.Job) (rows.Sample, error) {
			if j.Case == "a" && j.Subject == "p" {
				return rows.Sample{}, errors.New("cannot start it: no reason")
			}
			return rows.Sample{Values: rows.Values{"run": float64(j.Run)}}, nil
		}}
	for _, def.Together = range []bool{false, true} {
		row := measure(t.Context(), &rows.Env{}, def, 3, selection(def, false, nil, nil), func(int) {})
		for _, c := range row.Cases {
			for _, s := range c.Subjects {
				for run, sample := range s.Runs {
					if c.Name == "a" && s.Name == "p" {
						if sample.Missing != "failed: cannot start it: no reason" {
							t.Errorf("the failure is %+v", sample)
						}
					} else if sample.Values["run"] != float64(run) {
						t.Errorf("%s, %s, run %d: %+v", c.Name, s.Name, run, sample)
					}
				}
			}
		}
	}
}

func TestSelection(t *testing.T) {
	chosen, err := choose("tail,crash")
	if err != nil || len(chosen) != 2 {
		t.Fatalf("%v, %v", chosen, err)
	}
	if _, err := choose("tail,nonsense"); err == nil {
		t.Error("an unknown row is accepted")
	}
	full := selection(chosen[0], false, nil, nil)
	if len(full.Cases) != len(chosen[0].Cases) || len(full.Cases[0].Subjects) != len(chosen[0].Subjects) {
		t.Errorf("the full form leaves something out: %+v", full)
	}
	quick := selection(chosen[0], true, nil, nil)
	if len(quick.Cases) != 1 || !slices.ContainsFunc(quick.Cases[0].Subjects, func(s report.Subject) bool { return s.Name == "skep" }) {
		t.Errorf("the quick form is %+v", quick)
	}
	// What is named by hand is measured, quick or not.
	one := selection(chosen[0], true, []string{"300/s"}, []string{"node cluster"})
	if len(one.Cases) != 1 || one.Cases[0].Name != "300/s" || one.Cases[0].Subjects[0].Name != "node cluster" {
		t.Errorf("%+v", one)
	}
}
