package rows

import (
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"skep/bench/load"
	"skep/bench/peers"
	"skep/internal/testneed"
)

func at(ms int) time.Duration { return time.Duration(ms) * time.Millisecond }

func answer(start, latency, pid int) load.Record {
	return load.Record{Start: at(start), Sent: at(start), Latency: at(latency), Status: 200, PID: pid, Conn: -1}
}

func failure(start, latency int, why string) load.Record {
	return load.Record{Start: at(start), Sent: at(start), Latency: at(latency), Err: why, Conn: -1}
}

func TestTailCountsWaitAndFailureAlike(t *testing.T) {
	records := []load.Record{answer(0, 5, 1), answer(1, 21, 1), failure(2, 1, load.ErrReset), answer(3, 20, 1)}
	blocking := answer(4, 200, 1)
	blocking.Blocking = true
	s := tailSample(append(records, blocking))
	if got := s.Values["over"]; got != 50 {
		t.Errorf("%.1f %% are over, want 50: one late, one failed, of four", got)
	}
	if s.Values["failed"] != 1 || s.Note != "1 reset" {
		t.Errorf("failed %v, note %q", s.Values["failed"], s.Note)
	}
}

func TestIdealBlocksNobodyWhileThereAreWorkers(t *testing.T) {
	plan := make([]load.Arrival, 4)
	for i := range plan {
		plan[i] = load.Arrival{At: at(i), Blocking: i < 3}
	}
	records := idealRecords(plan, at(1), 0)
	if got := tailSample(records).Values["over"]; got != 0 {
		t.Errorf("%.0f %% wait although one of four workers is free", got)
	}
	for i := range plan {
		plan[i].Blocking = true
	}
	plan = append(plan, load.Arrival{At: at(10)})
	for work, want := range []time.Duration{at(192), at(193), at(194)} {
		last := idealRecords(plan, at(1), at(work))[4]
		// The first worker is free again at 201 ms; then the request itself.
		if last.Latency != want {
			t.Errorf("behind four blocked workers the latency is %v with work of %d ms, want %v", last.Latency, work, want)
		}
	}
}

func TestSpread(t *testing.T) {
	var records []load.Record
	for i := range 64 {
		records = append(records, answer(i, 1, 1+i%3)) // three of four workers
	}
	s, err := spreadSample(records, 4)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(s.Values["busiest"]-22.0/16) > 1e-9 || s.Values["least"] != 0 {
		t.Errorf("%v", s.Values)
	}
	if !slices.Equal(s.Bars, []float64{22, 21, 21, 0}) {
		t.Errorf("bars %v", s.Bars)
	}
	records[5].Closed = true
	if _, err := spreadSample(records, 4); err == nil || !strings.Contains(err.Error(), "keep-alive") {
		t.Errorf("a server that closes: %v", err)
	}
}

func TestReplacementIsSeen(t *testing.T) {
	records := []load.Record{answer(0, 1, 1), answer(10, 1, 2), answer(100, 30, 2), failure(110, 2, load.ErrEOF), answer(150, 20, 3), answer(300, 1, 4), answer(310, 5, 3)}
	if got := firstNew(records, []int{1, 2}, at(100)); math.Abs(got-0.070) > 1e-9 {
		t.Errorf("first answer of a new process after %v s, want 0.07", got)
	}
	if got := firstNew(records, []int{1, 2, 3, 4}, at(100)); !math.IsInf(got, 1) {
		t.Errorf("without a new process: %v", got)
	}
	records = append(records, answer(105, 500, 3)) // was in the queue of a dead one
	queued := func(r load.Record) bool { return r.Latency > at(100) }
	if got := firstFor(records, []int{1, 2}, at(100), queued); math.Abs(got-0.050) > 1e-9 {
		t.Errorf("first connection for a new process after %v s, want 0.05", got)
	}
	if got := firstFor(records, []int{1, 2, 3, 4}, at(100), queued); !math.IsInf(got, 1) {
		t.Errorf("without a new process: %v", got)
	}
	if got := replaced(records, at(50), 2); math.Abs(got-0.251) > 1e-9 {
		t.Errorf("all new after %v s, want 0.251", got)
	}
	if got := replaced(records, at(50), 3); !math.IsInf(got, 1) {
		t.Errorf("with one worker never replaced: %v", got)
	}
	// From the last answer before the stop of 130 to 170 ms.
	if got := silence(records, at(100), at(320)); math.Abs(got-131) > 1e-9 {
		t.Errorf("longest silence %v ms, want 131", got)
	}
	if got := silence(nil, at(100), at(320)); math.Abs(got-220) > 1e-9 {
		t.Errorf("without any answer the silence is %v ms, want all 220", got)
	}
	s := over(records, at(100), -at(100), at(200), at(100), failed)
	if !slices.Equal(s.V, []float64{0, 1, 0}) {
		t.Errorf("failures over time %v", s.V)
	}
}

func TestManyReloadsAreOneSample(t *testing.T) {
	records := []load.Record{
		answer(100, 4, 1),                      // the baseline
		answer(1100, 9, 1), answer(1200, 1, 2), // after the first signal, at 1000
		failure(2100, 5, load.ErrReset), answer(2300, 150, 3), // after the second, at 2000
		failure(3000, 0, load.ErrTimeout), answer(3500, 7000, 3), // after the end: cut off
	}
	s := reloadsSample(records, []time.Duration{at(1000), at(2000), at(3000)}, 1)
	if s.Values["failed"] != 1 || s.Values["worst"] != 150 || s.Values["above"] != 146 {
		t.Errorf("%v", s.Values)
	}
	// Process 2 is new 201 ms after the first signal, 3 is 450 ms after the second.
	if got := s.Values["done"]; math.Abs(got-0.450) > 1e-9 {
		t.Errorf("the slowest took %v s, want 0.45", got)
	}
	// Both 100 to 300 ms after their signals: bins 5 and 6 from a second before on.
	if f, slow := s.Series["failed"].V, s.Series["slow"].V; f[5] != 1 || slow[6] != 1 {
		t.Errorf("failed %v, slow %v", f, slow)
	}
}

func TestFirstStartsAreNoLoop(t *testing.T) {
	for _, tc := range []struct {
		n, first int
		want     float64
	}{{4, 4, 4}, {3, 4, 3}, {14, 4, 64}, {5, 0, 30}} {
		if got := perMinute(tc.n, tc.first, 10*time.Second); got != tc.want {
			t.Errorf("%d starts in 10 s, %d of them the first: %v a minute, want %v", tc.n, tc.first, got, tc.want)
		}
	}
}

func TestValuesSurviveJSON(t *testing.T) {
	in := Values{"a": 1.25, "never": math.Inf(1), "none": math.NaN()}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out Values
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	if out["a"] != 1.25 || !math.IsInf(out["never"], 1) || !math.IsNaN(out["none"]) {
		t.Errorf("%s became %v", b, out)
	}
}

// Every row must be complete: a goal for a case, subject or metric that is not
// there would never be checked.
func TestRowsAreConsistent(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range All() {
		if seen[r.Name] {
			t.Errorf("%s is there twice", r.Name)
		}
		seen[r.Name] = true
		if !slices.Contains(order, r.Name) {
			t.Errorf("%s has no place in the report", r.Name)
		}
		if len(strings.Fields(r.Why)) < 40 {
			t.Errorf("%s does not say why", r.Name)
		}
		metric := func(name string) bool {
			return slices.ContainsFunc(r.Metrics, func(m Metric) bool { return m.Name == name })
		}
		if !metric(r.Ratio) || !slices.Contains(r.Subjects, r.Base) {
			t.Errorf("%s: ratio %q to %q is not in the row", r.Name, r.Ratio, r.Base)
		}
		for _, g := range r.Goals {
			if !slices.Contains(r.Cases, g.Case) || !slices.Contains(r.Subjects, g.Subject) || !metric(g.Metric) ||
				g.Of != "" && !slices.Contains(r.Subjects, g.Of) {
				t.Errorf("%s: goal %+v is about nothing in the row", r.Name, g)
			}
		}
		for _, name := range r.Judged {
			if !metric(name) {
				t.Errorf("%s: judged by %q, which it does not measure", r.Name, name)
			}
		}
		for _, c := range r.Quick {
			if !slices.Contains(r.Cases, c) {
				t.Errorf("%s: quick case %q", r.Name, c)
			}
		}
	}
	for _, name := range order {
		if !seen[name] {
			t.Errorf("the report wants a row %q", name)
		}
	}
}

// A server that loses and stalls on purpose must be seen doing so: a harness
// that reports nothing wrong would report nothing wrong with anybody.
func TestBadServerIsSeen(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var lost, stalled atomic.Int32
	go func() {
		for i := 0; ; i++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if i == 100 { // one at a time: everybody waits
				stalled.Add(1)
				time.Sleep(300 * time.Millisecond)
			}
			c.Read(make([]byte, 1024))
			if i%10 == 9 {
				lost.Add(1)
				c.(*net.TCPConn).SetLinger(0)
			} else {
				fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Pid: 7\r\n\r\nok")
			}
			c.Close()
		}
	}()
	plan := load.Mix(1, load.Poisson(1, 200, 1500*time.Millisecond), "/", "", 0)
	records, err := load.Run(t.Context(), load.Options{Address: netip.MustParseAddrPort(ln.Addr().String())}, plan)
	if err != nil {
		t.Fatal(err)
	}
	s := tailSample(records)
	if got := int32(s.Values["failed"]); got != lost.Load() || got < 20 {
		t.Errorf("%d failures are seen, the server lost %d", got, lost.Load())
	}
	if stalled.Load() != 1 {
		t.Fatal("the server never stalled")
	}
	// 300 ms at 200/s, but for the 20 ms that are allowed.
	if late := count(records, func(r load.Record) bool { return r.OK() && r.Latency > tailLimit }); late < 25 {
		t.Errorf("only %.0f requests are late around a stall of 300 ms", late)
	}
	if got := silence(records, 0, 1500*time.Millisecond); got < 295 {
		t.Errorf("the longest silence is %.0f ms, the server stalled 300", got)
	}
}

// The rows themselves, in their quick form, on a subject that is not skep: what
// fails here is the harness.
func TestRowsRunOnAPeer(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	e := &Env{Tools: peers.FindTools("", "/usr/bin/python3"), Quick: true, Seed: 1}
	if err := e.Tools.Check("python", "uvicorn", "gunicorn"); err != nil {
		testneed.Skip(t, "%v", err)
	}
	for _, tc := range []struct {
		row, c, subject, metric string
		low, high               float64
	}{
		{"spread", "over 1 s", "gunicorn + uvicorn", "busiest", 1, 4},
		{"crash", stopped, "plain reuseport", "failed", 20, 800}, // the queue dies with its worker
		{"crash", killed, "gunicorn + uvicorn", "gap", 0.01, math.Inf(1)},
		{"stop", "stop timeout 5 s", "gunicorn + uvicorn", "gone", 4, 12},
	} {
		i := slices.IndexFunc(All(), func(r *Row) bool { return r.Name == tc.row })
		s := Take(t.Context(), e, All()[i], Job{Case: tc.c, Subject: tc.subject})
		if v, ok := s.Values[tc.metric]; !ok || v < tc.low || v > tc.high {
			t.Errorf("%s, %s, %s: %s is %v, want %v to %v (%s)", tc.row, tc.c, tc.subject, tc.metric, v, tc.low, tc.high, s.Missing)
		}
	}
	i := slices.IndexFunc(All(), func(r *Row) bool { return r.Name == "spread" })
	if s := Take(t.Context(), e, All()[i], Job{Case: "over 1 s", Subject: "gunicorn sync"}); !strings.Contains(s.Missing, "keep-alive") {
		t.Errorf("gunicorn sync has no keep-alive, the row says %q, %v", s.Missing, s.Values)
	}
	if s := Take(t.Context(), e, All()[i], Job{Case: "over 1 s", Subject: "skep"}); !strings.Contains(s.Missing, "skep is not installed") {
		t.Errorf("without skep the row says %q, %v", s.Missing, s.Values)
	}
}
