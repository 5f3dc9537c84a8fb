package load_test

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skep/bench/load"
)

// ks returns the Kolmogorov–Smirnov distance between the sample and cdf.
func ks(sample []float64, cdf func(float64) float64) float64 {
	s := slices.Clone(sample)
	slices.Sort(s)
	d, n := 0.0, float64(len(s))
	for i, x := range s {
		f := cdf(x)
		d = max(d, math.Abs(f-float64(i)/n), math.Abs(float64(i+1)/n-f))
	}
	return d
}

func gaps(at []time.Duration) []float64 {
	g := make([]float64, len(at))
	last := time.Duration(0)
	for i, t := range at {
		g[i] = (t - last).Seconds()
		last = t
	}
	return g
}

func TestPoissonGapsAreExponential(t *testing.T) {
	for _, rate := range []float64{10, 300, 10000} {
		at := load.Poisson(1, rate, time.Duration(20000/rate*float64(time.Second)))
		if !slices.IsSorted(at) {
			t.Fatal("arrivals are not in order")
		}
		g := gaps(at)
		// 1.628/√n is the critical distance at the 1 % level.
		limit := 1.628 / math.Sqrt(float64(len(g)))
		if d := ks(g, func(x float64) float64 { return 1 - math.Exp(-rate*x) }); d > limit {
			t.Errorf("rate %g: distance to the exponential distribution %.4f, limit %.4f", rate, d, limit)
		}
		// The test must be able to fail: even gaps, and a rate that is 5 % off.
		even := make([]float64, len(g))
		for i := range even {
			even[i] = 1 / rate
		}
		if d := ks(even, func(x float64) float64 { return 1 - math.Exp(-rate*x) }); d <= limit {
			t.Errorf("rate %g: even gaps pass as exponential (distance %.4f)", rate, d)
		}
		if d := ks(g, func(x float64) float64 { return 1 - math.Exp(-1.05*rate*x) }); d <= limit {
			t.Errorf("rate %g: a rate that is 5 %% off is not seen (distance %.4f)", rate, d)
		}
		// Independence: neighbouring gaps are not correlated.
		if c := autocorrelation(g); math.Abs(c) > 3/math.Sqrt(float64(len(g))) {
			t.Errorf("rate %g: neighbouring gaps correlate: %.4f", rate, c)
		}
	}
	if got := load.Poisson(1, 0, time.Second); got != nil {
		t.Errorf("rate 0 gives %d arrivals", len(got))
	}
}

func autocorrelation(g []float64) float64 {
	mean := 0.0
	for _, x := range g {
		mean += x / float64(len(g))
	}
	var num, den float64
	for i := range g {
		den += (g[i] - mean) * (g[i] - mean)
		if i > 0 {
			num += (g[i] - mean) * (g[i-1] - mean)
		}
	}
	return num / den
}

func TestPlansAreRepeatableAndMixed(t *testing.T) {
	at := load.Poisson(5, 1000, 20*time.Second)
	if !slices.Equal(at, load.Poisson(5, 1000, 20*time.Second)) {
		t.Error("the same seed gives other arrivals")
	}
	if slices.Equal(at, load.Poisson(6, 1000, 20*time.Second)) {
		t.Error("another seed gives the same arrivals")
	}
	plan := load.Mix(5, at, "/", "/block", 0.02)
	blocking := 0
	for _, a := range plan {
		if a.Blocking != (a.Path == "/block") {
			t.Fatalf("%+v: mark and path disagree", a)
		}
		if a.Blocking {
			blocking++
		}
	}
	n := float64(len(plan))
	if sigma := math.Sqrt(n * 0.02 * 0.98); math.Abs(float64(blocking)-0.02*n) > 4*sigma {
		t.Errorf("%d of %.0f arrivals block, want about %.0f", blocking, n, 0.02*n)
	}
}

func serve(t *testing.T, h http.Handler) netip.AddrPort {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

func run(t *testing.T, o load.Options, plan []load.Arrival) []load.Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	records, err := load.Run(ctx, o, plan)
	if err != nil {
		t.Fatal(err)
	}
	if len(records) != len(plan) {
		t.Fatalf("%d records for %d arrivals", len(records), len(plan))
	}
	for i, r := range records {
		if r.Start != plan[i].At || r.Blocking != plan[i].Blocking {
			t.Fatalf("record %d is %+v, its arrival %+v", i, r, plan[i])
		}
		if r.Sent < r.Start {
			t.Fatalf("record %d was sent %v before its time", i, r.Start-r.Sent)
		}
	}
	return records
}

func modes(f func(t *testing.T, conns int)) func(*testing.T) {
	return func(t *testing.T) {
		t.Run("connection per request", func(t *testing.T) { f(t, 0) })
		t.Run("keep-alive", func(t *testing.T) { f(t, 32) })
	}
}

func TestKnownServiceTime(t *testing.T) {
	modes(func(t *testing.T, conns int) {
		var accepted atomic.Int32
		addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/block" {
				time.Sleep(60 * time.Millisecond)
			}
			w.Header().Set("X-Pid", "4711")
			fmt.Fprint(w, "ok")
			if r.Close {
				accepted.Add(1)
			}
		}))
		plan := load.Mix(3, load.Poisson(3, 200, time.Second), "/", "/block", 0.2)
		records := run(t, load.Options{Address: addr, Conns: conns}, plan)
		var quick []float64
		for _, r := range records {
			if !r.OK() || r.PID != 4711 {
				t.Fatalf("%+v", r)
			}
			if r.Blocking && r.Latency < 60*time.Millisecond {
				t.Errorf("a handler of 60 ms was answered after %v", r.Latency)
			}
			if !r.Blocking {
				quick = append(quick, r.Latency.Seconds())
			}
			if conns == 0 != (r.Conn == -1) {
				t.Errorf("with %d connections the record names %d", conns, r.Conn)
			}
		}
		slices.Sort(quick)
		if m := quick[len(quick)/2]; m > 0.03 {
			t.Errorf("median of an empty handler is %.1f ms", m*1e3)
		}
		if closes := int(accepted.Load()); conns == 0 && closes != len(plan) || conns > 0 && closes != 0 {
			t.Errorf("%d of %d requests asked to close", closes, len(plan))
		}
	})(t)
}

// stalling answers one request at a time and stops for a second once.
type stalling struct {
	mu       sync.Mutex
	stall    time.Duration
	begin    time.Time
	at       time.Duration
	from, to time.Duration
}

func (s *stalling) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Since(s.begin); s.to == 0 && now >= s.at {
		time.Sleep(s.stall)
		s.from, s.to = now, time.Since(s.begin)
	}
	fmt.Fprint(w, "ok")
}

// A server that stalls for a second must show in every request that was due in
// that second, however few connections there are. This is what a generator
// with coordinated omission cannot see.
func TestStallShowsInEveryArrival(t *testing.T) {
	modes(func(t *testing.T, conns int) {
		s := &stalling{stall: time.Second, at: 300 * time.Millisecond, begin: time.Now()}
		addr := serve(t, s)
		conns = min(conns, 4)
		plan := load.Mix(9, load.Poisson(9, 300, 2*time.Second), "/", "", 0)
		records := run(t, load.Options{Address: addr, Conns: conns, Begin: s.begin}, plan)
		in := 0
		for _, r := range records {
			if !r.OK() {
				t.Fatalf("%+v", r)
			}
			if r.Start <= s.from || r.Start >= s.to {
				continue
			}
			in++
			if r.End() < s.to {
				t.Errorf("arrival at %v was answered at %v, in the stall from %v to %v", r.Start, r.End(), s.from, s.to)
			}
		}
		if in < 150 {
			t.Fatalf("only %d arrivals in the stalled second", in)
		}
		if s.from == 0 {
			t.Fatal("the server never stalled")
		}
	})(t)
}

// The generator itself being late must show too: nothing is sent before Begin
// has come, and what was due earlier is measured from when it was due.
func TestOwnLatenessCounts(t *testing.T) {
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }))
	plan := load.Mix(2, load.Poisson(2, 500, 500*time.Millisecond), "/", "", 0)
	late := 400 * time.Millisecond
	for _, r := range run(t, load.Options{Address: addr, Begin: time.Now().Add(-late)}, plan) {
		if r.Start < late && r.Latency < late-r.Start {
			t.Fatalf("due at %v, generator started at %v, latency %v", r.Start, late, r.Latency)
		}
	}
}

func TestFailuresAreNamed(t *testing.T) {
	listen := func(f func(net.Conn)) netip.AddrPort {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go f(c)
			}
		}()
		return netip.MustParseAddrPort(ln.Addr().String())
	}
	swallow := func(c net.Conn) { c.Read(make([]byte, 4096)) }
	gone, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := netip.MustParseAddrPort(gone.Addr().String())
	gone.Close()
	for _, tc := range []struct {
		want string
		addr netip.AddrPort
	}{
		{load.ErrRefused, closed},
		{load.ErrReset, listen(func(c net.Conn) { c.(*net.TCPConn).SetLinger(0); c.Close() })},
		{load.ErrEOF, listen(func(c net.Conn) { swallow(c); c.Close() })},
		{load.ErrEOF, listen(func(c net.Conn) {
			swallow(c)
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort")
			c.Close()
		})},
		{load.ErrTimeout, listen(swallow)},
		{load.ErrProtocol, listen(func(c net.Conn) { swallow(c); fmt.Fprint(c, "220 mail\r\n\r\n") })},
	} {
		for _, conns := range []int{0, 2} {
			plan := []load.Arrival{{Path: "/"}, {At: time.Millisecond, Path: "/"}}
			for _, r := range run(t, load.Options{Address: tc.addr, Conns: conns, Timeout: 200 * time.Millisecond}, plan) {
				if tc.want == load.ErrReset && conns > 0 {
					// Reset before anything was sent: such a connection is just
					// opened again, until the time is over.
					continue
				}
				if r.Err != tc.want || r.OK() {
					t.Errorf("with %d connections: %+v, want %q", conns, r, tc.want)
				}
			}
		}
	}
}

func TestAnswersInPieces(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		c.Read(make([]byte, 4096))
		for _, b := range []byte("HTTP/1.1 200 OK\r\ncontent-LENGTH: 7\r\n\r\npid 12\n") {
			c.Write([]byte{b})
		}
	}()
	addr := netip.MustParseAddrPort(ln.Addr().String())
	r := run(t, load.Options{Address: addr}, []load.Arrival{{Path: "/"}})[0]
	if !r.OK() || r.PID != 12 {
		t.Errorf("%+v", r)
	}
}

func TestHeldConnectionsStayOpen(t *testing.T) {
	var open, most atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }))
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		switch st {
		case http.StateNew:
			most.Store(max(most.Load(), open.Add(1)))
		case http.StateClosed:
			open.Add(-1)
		}
	}
	s.Start()
	defer s.Close()
	plan := make([]load.Arrival, 64)
	for i := range plan {
		plan[i] = load.Arrival{At: time.Duration(i) * 2 * time.Millisecond, Path: "/"}
	}
	addr := netip.MustParseAddrPort(s.Listener.Addr().String())
	for _, r := range run(t, load.Options{Address: addr, Hold: true}, plan) {
		if !r.OK() || r.Closed {
			t.Fatalf("%+v", r)
		}
	}
	if most.Load() != 64 {
		t.Errorf("%d connections were open at once, want 64", most.Load())
	}
}

func TestLimitIsRecorded(t *testing.T) {
	release := make(chan struct{})
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		<-release
		fmt.Fprint(w, "ok")
	}))
	time.AfterFunc(200*time.Millisecond, func() { close(release) })
	plan := make([]load.Arrival, 10)
	for i := range plan {
		plan[i].Path = "/"
	}
	limited := 0
	for _, r := range run(t, load.Options{Address: addr, MaxInFlight: 4}, plan) {
		if r.Err == load.ErrLimit {
			limited++
		} else if !r.OK() {
			t.Errorf("%+v", r)
		}
	}
	if limited != 6 {
		t.Errorf("%d arrivals beyond the limit are recorded, want 6", limited)
	}
}

func TestSaturate(t *testing.T) {
	addr := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(10 * time.Millisecond)
		fmt.Fprint(w, "ok")
	}))
	for _, fresh := range []bool{false, true} {
		o := load.Options{Address: addr, Conns: 4, Sources: 8}
		answers, failures, err := load.Saturate(t.Context(), o, "/", fresh, time.Second)
		if err != nil || failures != 0 {
			t.Fatalf("%d failures, %v", failures, err)
		}
		// 4 clients, 10 ms each: 400 a second at most.
		if answers > 400 || answers < 100 {
			t.Errorf("fresh %v: %d answers in a second, want a little under 400", fresh, answers)
		}
	}
}
