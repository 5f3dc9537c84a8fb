package sizing

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const limit = 1000 * mib

// near is a sample of three workers that hold so much.
func near(used uint64) Usage {
	return Usage{Used: used, Limit: limit, Planned: 3, Running: 3, Worker: 200 * mib, Room: used+200*mib <= 800*mib}
}

var three = []Worker{{0, 200 * mib}, {1, 450 * mib}, {2, 250 * mib}}

// want compares the actions of one call.
func want(t *testing.T, got []Action, want ...Action) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("actions differ (-want +got):\n%s", d)
	}
}

// over feeds samples over the threshold until the guard asks for the workers' memory, then gives it.
func over(t *testing.T, g *Guard, now time.Time, u Usage, ws []Worker) []Action {
	t.Helper()
	for range 3 {
		for _, a := range g.Usage(now, u) {
			if _, ok := a.(Measure); ok {
				return g.Workers(now, ws)
			}
			t.Fatalf("unexpected %#v", a)
		}
		now = now.Add(100 * time.Millisecond)
	}
	t.Fatal("the guard does not ask")
	return nil
}

func TestGuardRecyclesTheLargestAfterTwoSamples(t *testing.T) {
	g := NewGuard(1)
	want(t, g.Usage(at(0), near(901*mib)))
	want(t, g.Usage(at(100*time.Millisecond), near(900*mib))) // not over: one peak is nothing
	want(t, g.Usage(at(200*time.Millisecond), near(901*mib)))
	want(t, g.Usage(at(300*time.Millisecond), near(902*mib)), Measure{})
	want(t, g.Usage(at(400*time.Millisecond), near(903*mib))) // asked already
	want(t, g.Workers(at(450*time.Millisecond), three), Recycle{Slot: 1, StopThenStart: true,
		Why: "memory in use is 903 MiB of 1000 MiB, slot 1 is the largest with 450 MiB"})
	want(t, g.Workers(at(460*time.Millisecond), three)) // not asked
	if n := g.Allowed(3); n != 3 {
		t.Errorf("%d workers allowed", n)
	}
}

func TestGuardStartsFirstWhereACopyFits(t *testing.T) {
	u := near(910 * mib)
	u.Worker = 80 * mib
	want(t, over(t, NewGuard(1), at(0), u, three), Recycle{Slot: 1,
		Why: "memory in use is 910 MiB of 1000 MiB, slot 1 is the largest with 450 MiB"})
	u.Worker = 0
	want(t, over(t, NewGuard(1), at(0), u, three), Recycle{Slot: 1, StopThenStart: true,
		Why: "memory in use is 910 MiB of 1000 MiB, slot 1 is the largest with 450 MiB"})
}

// A copy fits beside the worker that has to go, but not for as long as it takes to start while that one goes on growing.
func TestGuardLooksAhead(t *testing.T) {
	for _, c := range []struct {
		grows uint64 // MiB a second
		stop  bool
	}{{0, false}, {2, false}, {3, true}, {50, true}} {
		g, u := NewGuard(1), near(0)
		u.Worker = 20 * mib
		var got []Action
		for i := range 300 {
			u.Used = 890*mib + uint64(i)*c.grows*mib/10
			if c.grows == 0 {
				u.Used = 910 * mib
			}
			now := at(time.Duration(i) * 100 * time.Millisecond)
			for _, a := range g.Usage(now, u) {
				if _, ok := a.(Measure); ok && got == nil {
					got = g.Workers(now, three)
				}
			}
		}
		if len(got) != 1 || got[0].(Recycle).StopThenStart != c.stop {
			t.Errorf("growing by %d MiB/s: %#v", c.grows, got)
		}
	}
}

func TestGuardRecyclesOneAtATime(t *testing.T) {
	g := NewGuard(1)
	over(t, g, at(0), near(950*mib), three)
	busy := near(950 * mib)
	busy.Busy = true
	for i := range 20 {
		want(t, g.Usage(at(time.Second+time.Duration(i)*100*time.Millisecond), busy))
	}
	// It is over, and still there is too little room. A worker that begins to end while the sizes are read stops it once
	// more.
	want(t, g.Usage(at(3500*time.Millisecond), near(950*mib)), Measure{})
	want(t, g.Usage(at(3600*time.Millisecond), busy))
	want(t, g.Workers(at(3700*time.Millisecond), three))
	want(t, g.Usage(at(9*time.Second), near(950*mib)), Measure{})
	want(t, g.Workers(at(9*time.Second), []Worker{{0, 300 * mib}, {1, 100 * mib}, {2, 250 * mib}}), Recycle{Slot: 0, StopThenStart: true,
		Why: "memory in use is 950 MiB of 1000 MiB, slot 0 is the largest with 300 MiB"})
	// The samples before a recycling do not count for the next.
	want(t, g.Usage(at(10*time.Second), near(950*mib)))
	want(t, g.Usage(at(11*time.Second), near(950*mib)), Measure{})
}

func TestGuardAsksAgainWhenTheAnswerIsLost(t *testing.T) {
	g := NewGuard(1)
	g.Usage(at(0), near(950*mib))
	want(t, g.Usage(at(time.Second), near(950*mib)), Measure{})
	want(t, g.Usage(at(5*time.Second), near(950*mib)))
	want(t, g.Usage(at(6*time.Second), near(950*mib)), Measure{})
	want(t, g.Workers(at(7*time.Second), nil)) // no worker may be recycled now
	want(t, g.Usage(at(8*time.Second), near(950*mib)), Measure{})
	want(t, g.Usage(at(9*time.Second), near(500*mib)))
	want(t, g.Workers(at(10*time.Second), three)) // no longer needed
}

func TestGuardTakesOneFewerWhenRecyclingDoesNotHelp(t *testing.T) {
	const minute = time.Minute
	g := NewGuard(1)
	over(t, g, at(0), near(950*mib), three)
	want(t, g.Usage(at(9*minute), near(500*mib)))
	want(t, over(t, g, at(9*minute+50*time.Second), near(950*mib), three),
		Shrink{To: 2, Why: "recycling slot 1 twice within ten minutes did not help"},
		Recycle{Slot: 1, StopThenStart: true, Why: "memory in use is 950 MiB of 1000 MiB, slot 1 is the largest with 450 MiB, again within ten minutes"})
	if n := g.Allowed(3); n != 2 {
		t.Errorf("%d workers allowed", n)
	}
	// The one that is too large is the one that goes: no other need be recycled.
	two := near(950 * mib)
	two.Running = 2
	big := []Worker{{0, 200 * mib}, {1, 450 * mib}}
	want(t, over(t, g, at(11*minute), two, big), Shrink{To: 1, Why: "recycling slot 1 twice within ten minutes did not help"})
	// Fewer than one there cannot be: what is left is recycling.
	one := near(950 * mib)
	one.Running = 1
	over(t, g, at(12*minute), one, []Worker{{0, 900 * mib}})
	want(t, over(t, g, at(13*minute), one, []Worker{{0, 900 * mib}}),
		Recycle{Slot: 0, StopThenStart: true, Why: "memory in use is 950 MiB of 1000 MiB, slot 0 is the largest with 900 MiB, again within ten minutes"})
	if n := g.Allowed(3); n != 1 {
		t.Errorf("%d workers allowed", n)
	}
	// After more than ten minutes it is an ordinary recycling again.
	want(t, over(t, g, at(24*minute), one, []Worker{{0, 900 * mib}}),
		Recycle{Slot: 0, StopThenStart: true, Why: "memory in use is 950 MiB of 1000 MiB, slot 0 is the largest with 900 MiB"})
}

func TestGuardBacksOffAfterAnOOMKill(t *testing.T) {
	const minute = time.Minute
	g := NewGuard(1)
	want(t, g.OOMKill(at(0), 3), Shrink{To: 2, Why: "the kernel killed a process because memory ran out"})
	want(t, g.OOMKill(at(time.Second), 3)) // part of the same
	want(t, g.OOMKill(at(4*time.Second), 3), Shrink{To: 1, Why: "the kernel killed a process because memory ran out"})
	want(t, g.OOMKill(at(8*time.Second), 3))
	want(t, g.Usage(at(9*minute), near(300*mib)))
	full, busy := near(700*mib), near(300*mib)
	busy.Busy = true
	want(t, g.Usage(at(11*minute), full)) // no room
	want(t, g.Usage(at(11*minute), busy)) // another is on its way
	want(t, g.Usage(at(11*minute), near(300*mib)), Grow{To: 2, Why: "ten minutes without a shortage of memory"})
	want(t, g.Usage(at(12*minute), near(300*mib)))
	want(t, g.Usage(at(21*minute), near(300*mib)), Grow{To: 3, Why: "ten minutes without a shortage of memory"})
	want(t, g.Usage(at(40*minute), near(300*mib)))
	if n := g.Allowed(3); n != 3 {
		t.Errorf("%d workers allowed", n)
	}
}

func TestGuardAddsOneBackOfASmallerPlan(t *testing.T) {
	g := NewGuard(1)
	for i := range 4 {
		g.OOMKill(at(time.Duration(i)*3*time.Second), 6)
	}
	want(t, g.Usage(at(11*time.Minute), near(300*mib)), Grow{To: 2, Why: "ten minutes without a shortage of memory"})
}

func TestGuardKeepsTheNumberGivenByHand(t *testing.T) {
	g := NewGuard(3)
	want(t, g.OOMKill(at(0), 3))
	if n := g.Allowed(3); n != 3 {
		t.Errorf("%d workers allowed", n)
	}
	// A plan below the bound is not raised to it.
	if n := g.Allowed(2); n != 2 {
		t.Errorf("%d workers allowed of 2", n)
	}
}

func TestGuardForgivesWhenTheLimitIsRaised(t *testing.T) {
	g := NewGuard(1)
	g.Usage(at(0), near(500*mib))
	g.OOMKill(at(time.Second), 3)
	raised := near(500 * mib)
	raised.Limit, raised.Planned = 2*limit, 6
	want(t, g.Usage(at(2*time.Second), raised), Grow{To: 6, Why: "the memory limit was raised"})
	if n := g.Allowed(6); n != 6 {
		t.Errorf("%d workers allowed", n)
	}
	g.OOMKill(at(time.Minute), 6)
	raised.Limit = limit // lowered: nothing is forgiven
	want(t, g.Usage(at(2*time.Minute), raised))
	if n := g.Allowed(6); n != 5 {
		t.Errorf("%d workers allowed", n)
	}
}

func TestGuardWithoutALimit(t *testing.T) {
	g := NewGuard(1)
	for i := range 5 {
		want(t, g.Usage(at(time.Duration(i)*time.Second), Usage{Used: 100 * gib, Planned: 3, Running: 3}))
		if got := g.Deadline().Sub(at(time.Duration(i) * time.Second)); got != 30*time.Second {
			t.Errorf("next sample after %v", got)
		}
	}
}

func TestGuardSamplesFollowTheRoom(t *testing.T) {
	g := NewGuard(1)
	if !g.Deadline().IsZero() {
		t.Error("the first sample is not due at once")
	}
	last := time.Hour
	for _, tt := range []struct {
		used     uint64 // of 1000 MiB
		from, to time.Duration
	}{
		{0, 30 * time.Second, 30 * time.Second},
		{200, 10 * time.Second, 20 * time.Second},
		{500, time.Second, 5 * time.Second},
		{700, 200 * time.Millisecond, time.Second},
		{850, 100 * time.Millisecond, 100 * time.Millisecond},
		{899, 100 * time.Millisecond, 100 * time.Millisecond},
		{990, 100 * time.Millisecond, 100 * time.Millisecond},
		{2000, 100 * time.Millisecond, 100 * time.Millisecond},
	} {
		u := near(tt.used * mib)
		g := NewGuard(1)
		g.Usage(at(-time.Minute), u)
		if got := g.Deadline().Sub(at(-time.Minute)); got > time.Second {
			t.Errorf("%d MiB: second sample after %v", tt.used, got)
		}
		g.Usage(at(0), u)
		got := g.Deadline().Sub(at(0))
		if got < tt.from || got > tt.to || got > last {
			t.Errorf("%d MiB: next sample after %v, want %v to %v and no later than with less", tt.used, got, tt.from, tt.to)
		}
		last = got
	}
	// Growth that was seen brings the next sample forward.
	g.Usage(at(0), near(100*mib))
	g.Usage(at(10*time.Second), near(300*mib))
	if got := g.Deadline().Sub(at(10 * time.Second)); got > 8*time.Second {
		t.Errorf("20 MiB/s with 600 MiB to go: next sample after %v", got)
	}
	// What comes and goes is looked at soon.
	u := near(100 * mib)
	u.Running++
	g.Usage(at(time.Minute), near(100*mib))
	g.Usage(at(2*time.Minute), u)
	if got := g.Deadline().Sub(at(2 * time.Minute)); got > time.Second {
		t.Errorf("with one worker more: next sample after %v", got)
	}
}

// A leak of up to three hundredths of the limit per second, that begins at any time and any level, is answered by a
// recycling before the limit is reached, also when at the first sample the workers were still about to take their memory.
func TestGuardSeesALeakBeforeTheLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.Uint64Range(16*mib, 64*gib).Draw(t, "limit")
		base := mulDiv(limit, rapid.Uint64Range(0, 800).Draw(t, "level"), 1000)
		begins := time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "begins"))
		start := mulDiv(base, rapid.Uint64Range(0, 1000).Draw(t, "start"), 1000)      // in use at the first sample
		rate := max(1, mulDiv(limit, rapid.Uint64Range(1, 30).Draw(t, "rate"), 1000)) // bytes per second
		used := func(now time.Time) uint64 {
			age := now.Sub(epoch) - begins
			if now.Equal(epoch) {
				return start
			}
			if age < 0 {
				return base
			}
			return base + mulDiv(rate, uint64(age), uint64(time.Second))
		}
		g := NewGuard(1)
		now := epoch
		for samples := 0; ; samples++ {
			u := Usage{Used: used(now), Limit: limit, Planned: 2, Running: 2}
			if u.Used >= limit {
				t.Fatalf("the limit is reached after %d samples", samples)
			}
			if len(g.Usage(now, u)) > 0 {
				if len(g.Workers(now, []Worker{{0, base}, {1, used(now)}})) != 1 {
					t.Fatal("nobody is recycled")
				}
				return
			}
			if !g.Deadline().After(now) || g.Deadline().Sub(now) < 100*time.Millisecond {
				t.Fatalf("samples after %v", g.Deadline().Sub(now))
			}
			now = g.Deadline()
		}
	})
}

// Whatever comes in, the guard never lets fewer than the least run, never more than planned, and never samples more often
// than ten times a second or more rarely than every thirty seconds.
func TestGuardStaysWithinItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		least := rapid.IntRange(0, 5).Draw(t, "least")
		g := NewGuard(least)
		now := epoch
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(20*time.Minute)).Draw(t, "after")))
			planned := rapid.IntRange(1, 8).Draw(t, "planned")
			switch rapid.IntRange(0, 3).Draw(t, "event") {
			case 0:
				g.OOMKill(now, planned)
			case 1:
				g.Workers(now, three[:rapid.IntRange(0, 3).Draw(t, "ready")])
			default:
				g.Usage(now, Usage{
					Used: drawBytes(t, "used"), Limit: drawBytes(t, "limit"), Worker: drawBytes(t, "worker"), Planned: planned,
					Room: rapid.Bool().Draw(t, "room"), Busy: rapid.Bool().Draw(t, "busy"),
				})
				if d := g.Deadline().Sub(now); d < 100*time.Millisecond || d > 30*time.Second {
					t.Fatalf("next sample after %v", d)
				}
			}
			for p := 1; p < 10; p++ {
				if n := g.Allowed(p); n > p || n < min(p, max(1, least)) {
					t.Fatalf("%d of %d allowed, at least %d", n, p, least)
				}
			}
		}
	})
}

// The number cannot be lowered, and the worker is over the threshold as soon as it is there: restarting it again and again
// would end no shortage. One that takes longer leaks, and is recycled each time.
func TestGuardDoesNotRecycleInVain(t *testing.T) {
	g := NewGuard(1)
	u := near(950 * mib)
	u.Planned, u.Running, u.Worker = 1, 1, 900*mib
	recycled := 0
	over := func(from, to time.Duration) {
		for d := from; d < to; d += time.Second {
			for _, a := range g.Usage(at(d), u) {
				if _, ok := a.(Measure); !ok {
					t.Errorf("%#v after %v", a, d)
				}
				for _, a := range g.Workers(at(d), []Worker{{Slot: 0, Bytes: 900 * mib}}) {
					if _, ok := a.(Recycle); !ok {
						t.Errorf("%#v after %v", a, d)
					}
					recycled++
				}
			}
		}
	}
	over(0, 29*time.Second)
	if recycled != 1 {
		t.Errorf("recycled %d times within half a minute, want 1", recycled)
	}
	over(40*time.Second, 45*time.Second)
	if recycled != 2 {
		t.Errorf("recycled %d times, want a second time later on", recycled)
	}
}
