package supervise

import (
	"fmt"
	"math"
	"testing"
	"time"
)

// What follows the end of a worker, for every policy, number of workers, way
// to end and past. "next" is again (at once), later (with backoff), gone (the
// others go on) or a code that skep ends with.
func TestRestartTable(t *testing.T) {
	type row struct {
		restart   Restart
		workers   int
		everReady bool // any worker has been ready, the one that ends too
		status    int  // minus a signal
		next      string
	}
	names := map[Restart]string{RestartAuto: "auto", RestartAlways: "always", RestartOnFailure: "on-failure", RestartNever: "never"}
	for _, r := range []row{
		{RestartAuto, 1, false, 0, "0"},
		{RestartAuto, 1, false, 3, "3"},
		{RestartAuto, 1, false, -9, "137"},
		{RestartAuto, 1, true, 0, "0"},
		{RestartAuto, 1, true, 3, "later"},
		{RestartAuto, 1, true, -9, "later"},
		{RestartAuto, 2, false, 0, "0"},
		{RestartAuto, 2, false, 3, "3"},
		{RestartAuto, 2, false, -9, "137"},
		{RestartAuto, 2, true, 0, "again"},
		{RestartAuto, 2, true, 3, "later"},
		{RestartAuto, 2, true, -9, "later"},
		{RestartAlways, 1, false, 0, "later"},
		{RestartAlways, 1, false, 3, "later"},
		{RestartAlways, 1, false, -9, "later"},
		{RestartAlways, 1, true, 0, "again"},
		{RestartAlways, 1, true, 3, "later"},
		{RestartAlways, 1, true, -9, "later"},
		{RestartAlways, 2, false, 0, "later"},
		{RestartAlways, 2, false, 3, "later"},
		{RestartAlways, 2, false, -9, "later"},
		{RestartAlways, 2, true, 0, "again"},
		{RestartAlways, 2, true, 3, "later"},
		{RestartAlways, 2, true, -9, "later"},
		{RestartOnFailure, 1, false, 0, "0"},
		{RestartOnFailure, 1, false, 3, "later"},
		{RestartOnFailure, 1, false, -9, "later"},
		{RestartOnFailure, 1, true, 0, "0"},
		{RestartOnFailure, 1, true, 3, "later"},
		{RestartOnFailure, 1, true, -9, "later"},
		{RestartOnFailure, 2, false, 0, "gone"},
		{RestartOnFailure, 2, false, 3, "later"},
		{RestartOnFailure, 2, false, -9, "later"},
		{RestartOnFailure, 2, true, 0, "gone"},
		{RestartOnFailure, 2, true, 3, "later"},
		{RestartOnFailure, 2, true, -9, "later"},
		{RestartNever, 1, false, 0, "0"},
		{RestartNever, 1, false, 3, "3"},
		{RestartNever, 1, false, -9, "137"},
		{RestartNever, 1, true, 0, "0"},
		{RestartNever, 1, true, 3, "3"},
		{RestartNever, 1, true, -9, "137"},
		{RestartNever, 2, false, 0, "gone"},
		{RestartNever, 2, false, 3, "gone"},
		{RestartNever, 2, false, -9, "gone"},
		{RestartNever, 2, true, 0, "gone"},
		{RestartNever, 2, true, 3, "gone"},
		{RestartNever, 2, true, -9, "gone"},
	} {
		t.Run(fmt.Sprintf("%s/%d workers/ready %v/status %d", names[r.restart], r.workers, r.everReady, r.status), func(t *testing.T) {
			p := service(r.workers)
			p.Restart = r.restart
			sc := play(t, p)
			if r.everReady {
				sc.allReady()
			}
			sc.after(2*time.Second).clear().exit(0, r.status)
			got := ""
			switch {
			case sc.s.Phase() != Running:
				for _, st := range sc.s.Seats() {
					sc.exit(st.ID, 0)
				}
				sc.clear().step(Childless{})
				got = sc.effects[0][len("quit "):]
			case sc.s.Seats()[0].ID != 0:
				got = "gone"
			case sc.seat(0).State == Starting:
				got = "again"
			case sc.seat(0).State == Backoff:
				got = "later"
			}
			if got != r.next {
				t.Errorf("got %s, want %s", got, r.next)
			}
			if r.workers == 2 && sc.s.Phase() == Running {
				// One bad slot never disturbs the others.
				if st := sc.seat(1); st.PID != 101 || st.State != Starting && st.State != Ready {
					t.Errorf("the other worker is disturbed: %+v", st)
				}
			}
		})
	}
}

func TestBackoff(t *testing.T) {
	t.Run("doubles up to the limit", func(t *testing.T) {
		p := service(2)
		p.StartLimit = 0
		sc := playReady(t, p)
		for _, want := range []time.Duration{500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000} {
			want *= time.Millisecond
			sc.exit(0, 3).clear().after(want - 1).want("").wantStates("0:backoff 1:ready")
			sc.after(1).want("start 0 in slot 0")
		}
	})
	t.Run("also for workers that become ready and crash at once", func(t *testing.T) {
		sc := playReady(t, service(2))
		starts := 0
		for end := sc.now.Add(time.Minute); sc.now.Before(end); {
			sc.exit(0, -sigkill)
			at, _ := sc.s.Deadline()
			sc.after(at.Sub(sc.now)).ready(0)
			starts++
		}
		if starts > 12 {
			t.Errorf("%d starts in a minute, want at most 12", starts)
		}
	})
	t.Run("begins anew after a minute up", func(t *testing.T) {
		sc := playReady(t, service(2))
		for range 3 {
			sc.exit(0, 3).after(2 * time.Second).ready(0)
		}
		sc.after(time.Minute-2*time.Second).exit(0, 3).clear().after(4*time.Second - 1).want("").after(1).want("start 0 in slot 0")
		sc.ready(0).after(time.Minute).exit(0, 3).clear().after(500 * time.Millisecond).want("start 0 in slot 0")
	})
	t.Run("no reset time means no reset", func(t *testing.T) {
		p := service(2)
		p.ResetAfter = 0
		sc := playReady(t, p)
		sc.exit(0, 3).after(time.Second).ready(0).exit(0, 3).clear().after(time.Second - 1).want("").after(1).want("start 0 in slot 0")
	})
	t.Run("a clean end that comes too soon is a crash", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.exit(0, 0).want("start 0 in slot 0").ready(0)
		sc.after(settled-1).exit(0, 0).want("").wantStates("0:backoff 1:ready")
		sc.after(time.Second).ready(0).clear().after(settled).exit(0, 0).want("start 0 in slot 0")
	})
	t.Run("one slot's does not count for another", func(t *testing.T) {
		sc := playReady(t, service(3))
		for range 4 {
			sc.exit(0, 3).after(4 * time.Second).ready(0)
		}
		sc.exit(1, 3).clear().after(500 * time.Millisecond).want("start 1 in slot 1")
	})
	t.Run("shape and jitter", func(t *testing.T) {
		for _, c := range []struct {
			first, limit time.Duration
			n            int
			r            float64
			want         time.Duration
		}{
			{time.Second, time.Minute, 0, 0, time.Second},
			{time.Second, time.Minute, 5, 0, 32 * time.Second},
			{time.Second, time.Minute, 6, 0, time.Minute},
			{time.Second, time.Minute, math.MaxInt, 0, time.Minute},
			{time.Second, time.Minute, 0, 0.5, 1050 * time.Millisecond},
			{time.Second, time.Minute, 9, 0.5, 63 * time.Second},
			{time.Minute, time.Second, 3, 0, time.Second},
			{0, time.Minute, 3, 0.5, 0},
			{time.Second, 0, 3, 0, time.Second},
			{1, math.MaxInt64, 62, 0, 1 << 62},
			{1, math.MaxInt64, 63, 0, math.MaxInt64},
			{3, math.MaxInt64, 1000, 0.999, math.MaxInt64},
		} {
			if got := backoff(c.first, c.limit, c.n, c.r); got != c.want {
				t.Errorf("backoff(%v, %v, %d, %v) = %v, want %v", c.first, c.limit, c.n, c.r, got, c.want)
			}
		}
	})
	t.Run("jitter comes from the policy", func(t *testing.T) {
		p := service(2)
		p.Jitter = func() float64 { return 0.9 }
		sc := playReady(t, p)
		sc.exit(0, 3).clear().after(545*time.Millisecond - 1).want("").after(1).want("start 0 in slot 0")
	})
}

func TestStartLimit(t *testing.T) {
	t.Run("the slot stays empty while others serve", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.exit(0, 3).after(time.Second) // it had been ready: does not count
		for range 4 {
			sc.exit(0, 4).wantStates("0:backoff 1:ready").after(time.Minute)
		}
		sc.exit(0, 4).wantStates("0:failed 1:ready").wantNote(Error, "start-limit-hit").clear()
		sc.after(time.Hour).want("")
		sc.exit(1, 0).want("start 1 in slot 1") // the other one lives on as ever
	})
	t.Run("being ready starts the count anew", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.exit(0, 3).after(time.Second)
		for range 4 {
			sc.exit(0, 4).after(time.Minute)
		}
		sc.ready(0).exit(0, 4).after(time.Minute)
		for range 4 {
			sc.exit(0, 4).wantStates("0:backoff 1:ready").after(time.Minute)
		}
	})
	t.Run("the only worker, killed for memory each time soon after it was ready", func(t *testing.T) {
		kill := func(sc *scene) *scene {
			return sc.step(Exited{PID: sc.seat(0).PID, Status: Status{Signal: sigkill}, OOM: true})
		}
		sc := playReady(t, service(1))
		kill(sc).after(time.Second).ready(0) // it had served for an hour: does not count
		for range 4 {
			kill(sc).wantStates("0:backoff").after(31 * time.Second).ready(0)
		}
		kill(sc).wantNote(Error, "start-limit-hit").step(Childless{}).wantOver()
	})
	t.Run("of two workers one that is killed for memory goes on", func(t *testing.T) {
		sc := playReady(t, service(2))
		for range 10 {
			sc.step(Exited{PID: sc.seat(0).PID, Status: Status{Signal: sigkill}, OOM: true})
			sc.wantStates("0:backoff 1:ready").after(40 * time.Second).ready(0)
		}
	})
	t.Run("in every slot it ends skep with the last status", func(t *testing.T) {
		p := service(2)
		p.Restart, p.StartLimit = RestartAlways, 2
		sc := play(t, p)
		sc.exit(0, 3).exit(1, 4).after(time.Second).exit(1, 5).wantStates("0:starting 1:failed").clear()
		sc.exit(0, 6).wantNote(Error, "start-limit-hit in every slot").want("retire 1, retire 0, sweep TERM")
		sc.step(Childless{}).want("quit 6").wantOver()
	})
	t.Run("none", func(t *testing.T) {
		p := service(1)
		p.Restart, p.StartLimit = RestartAlways, 0
		sc := play(t, p)
		for range 50 {
			sc.exit(0, 1).after(time.Minute).wantStates("0:starting")
		}
	})
}

func TestStartFails(t *testing.T) {
	missing := &StartFailed{Code: 127, Err: "no such file"}
	busy := &StartFailed{Code: 126, Err: "resource temporarily unavailable", Transient: true}
	t.Run("before any worker was ready it ends skep", func(t *testing.T) {
		sc := &scene{t: t, s: New(service(2)), now: epoch, refuse: missing}
		sc.step(Begin{}).want("start 0 in slot 0, retire 0, retire 1, sweep TERM").wantNote(Error, "no such file")
		sc.step(Childless{}).want("quit 127").wantOver()
	})
	t.Run("what lacks only a resource is tried again", func(t *testing.T) {
		sc := &scene{t: t, s: New(service(2)), now: epoch, nextPID: 100, refuse: busy}
		sc.step(Begin{}).want("start 0 in slot 0, start 1 in slot 1").wantStates("0:backoff 1:backoff")
		sc.refuse = nil
		sc.after(time.Minute).allReady().wantStates("0:ready 1:ready")
	})
	t.Run("up to the start limit as long as no worker was ready", func(t *testing.T) {
		sc := &scene{t: t, s: New(service(1)), now: epoch, nextPID: 100, refuse: busy}
		sc.step(Begin{}).after(7500 * time.Millisecond).want("start 0 in slot 0, start 0 in slot 0, start 0 in slot 0, start 0 in slot 0, start 0 in slot 0, retire 0, sweep TERM")
		sc.step(Childless{}).want("quit 126").wantOver()
	})
	t.Run("and for ever when one was", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.refuse = busy
		sc.exit(0, 3).exit(1, 3).after(time.Hour).wantStates("0:backoff 1:backoff")
		if n := len(sc.effects); n < 200 || n > 2*130 {
			t.Errorf("%d starts in an hour", n)
		}
		sc.refuse = nil
		sc.after(time.Minute).allReady().wantStates("0:ready 1:ready")
	})
	t.Run("afterwards it is a death like another", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.refuse = missing
		sc.exit(0, 0).wantStates("0:backoff 1:ready").after(time.Hour).wantStates("0:failed 1:ready")
	})
	t.Run("of a replacement it leaves the old worker", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.refuse = busy
		sc.step(Reload{Surge: true}).want("start 2 in slot 0, retire 2").wantStates("0:ready 1:ready").wantNote(Error, "reload aborted")
	})
}

func TestStartsInParallel(t *testing.T) {
	p := service(6)
	p.StartParallel = 2
	sc := play(t, p)
	sc.want("start 0 in slot 0, start 1 in slot 1")
	sc.ready(1).want("start 2 in slot 2")
	sc.after(time.Second - 1).want("").after(1).want("start 3 in slot 3, start 4 in slot 4") // 0 and 2 are a second old
	sc.exit(4, 1).want("start 5 in slot 5")

	p.StartSpacing = 0
	play(t, p).want("start 0 in slot 0, start 1 in slot 1, start 2 in slot 2, start 3 in slot 3, start 4 in slot 4, start 5 in slot 5")
}

func TestReady(t *testing.T) {
	t.Run("by age", func(t *testing.T) {
		p := service(2)
		p.ReadyAfter = 10 * time.Second
		sc := play(t, p)
		sc.after(10*time.Second - 1).wantStates("0:starting 1:starting").after(1).wantStates("0:ready 1:ready")
	})
	t.Run("never by age", func(t *testing.T) {
		sc := play(t, lone())
		sc.after(1000 * time.Hour).wantStates("0:starting")
	})
	t.Run("of a process that is not there or not starting changes nothing", func(t *testing.T) {
		sc := playReady(t, service(1))
		sc.step(BecameReady{PID: 999}).step(BecameReady{PID: 0}).step(Scale{Workers: 2}).step(Scale{Workers: 1}).clear()
		sc.step(BecameReady{PID: 101}).want("").wantStates("0:ready 1:stopping")
	})
	t.Run("an exit that nobody waits for changes nothing", func(t *testing.T) {
		playReady(t, service(1)).step(Exited{PID: 999}).step(Exited{PID: 0}).want("").wantStates("0:ready")
	})
}

func TestStartTimeout(t *testing.T) {
	t.Run("is a failed start", func(t *testing.T) {
		p := service(2)
		sc := playReady(t, p)
		sc.exit(0, 3).after(500 * time.Millisecond).clear()
		sc.after(2*time.Minute - 1).want("").after(1).want("kill 0 TERM").wantStates("0:stopping 1:ready")
		sc.after(25*time.Second).want("kill 0 KILL tree").exit(0, -sigkill).wantStates("0:backoff 1:ready")
		if last := sc.seat(0).Last; last.Cause != CauseStartTimeout {
			t.Errorf("cause %q", last.Cause)
		}
	})
	for _, restart := range []Restart{RestartAuto, RestartOnFailure} {
		t.Run(fmt.Sprintf("even when it answers TERM with a clean exit, policy %d", restart), func(t *testing.T) {
			p := service(1)
			p.Restart = restart
			sc := playReady(t, p)
			sc.exit(0, 3).after(500 * time.Millisecond).after(p.StartTimeout).clear()
			sc.exit(0, 0).want("").wantStates("0:backoff")
		})
	}
	t.Run("of the very first start ends skep, never with 0", func(t *testing.T) {
		for status, want := range map[int]string{0: "quit 124", 3: "quit 3", -sigterm: "quit 143"} {
			sc := play(t, service(1)).after(2*time.Minute).exit(0, status).clear()
			sc.step(Childless{}).want(want).wantOver()
		}
	})
	t.Run("none for a lone command", func(t *testing.T) {
		play(t, lone()).clear().after(time.Hour).want("")
	})
}
