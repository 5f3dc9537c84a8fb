package supervise

import (
	"testing"
	"time"
)

func TestNothingStartsBeforeBegin(t *testing.T) {
	sc := &scene{t: t, s: New(service(2)), now: epoch, nextPID: 100}
	sc.step(Tick{}).step(Scale{Workers: 3}).step(Signal{sigusr1}).step(Reload{Surge: true}).want("")
	sc.step(Begin{}).want("start 0 in slot 0, start 1 in slot 1, start 2 in slot 2")
}

// A worker that ends while a replacement is queued must not leave a process
// behind that was started by the same decision that ended skep (law 7).
func TestNoStartInTheStepThatEnds(t *testing.T) {
	p := service(1)
	p.Standby = 1
	sc := playReady(t, p)
	sc.step(Recycle{Slot: 0, Cause: CauseAge}).step(Recycle{Slot: 1, Cause: CauseAge, Surge: true})
	sc.step(Drained{0}).exit(0, 0).clear()
	sc.exit(0, 0) // the only worker wanted ends with 0: so does skep
	sc.want("retire 0, kill 1 TERM")
	if sc.s.Phase() != Halting {
		t.Errorf("phase %v, want %v", sc.s.Phase(), Halting)
	}
}

// A worker that waits for its turn gets it when the one before it is gone,
// whatever it was started for.
func TestTurnPassesOnWhenAReplacementDies(t *testing.T) {
	p := service(2)
	p.StartParallel, p.StartSpacing = 1, time.Hour
	sc := playReady(t, p)
	sc.step(Reload{Surge: true}).want("start 2 in slot 0")
	sc.exit(1, 3).after(time.Second).want("").wantStates("0:ready 2:starting 1:down")
	sc.exit(2, 4).want("retire 2, start 1 in slot 1").wantStates("0:ready 1:starting")
}

func TestSpareServesAsSoonAsAWorkerDrains(t *testing.T) {
	p := service(2)
	p.Standby = 1
	sc := playReady(t, p)
	sc.wantStates("0:ready 1:ready 2:standby")
	sc.step(Recycle{Slot: 0, Cause: CauseMemory}).want("drain 0").wantStates("0:draining 1:ready 2:ready")
	sc.step(Drained{0}).exit(0, 0).ready(0).wantStates("0:standby 1:ready 2:ready")
}

// When nothing is left that could ever start again, skep ends.
func TestEndsWhenEveryWorkerIsOver(t *testing.T) {
	p := service(2)
	p.Restart, p.StartLimit = RestartOnFailure, 1
	sc := playReady(t, p)
	sc.exit(0, 3).after(time.Second).exit(0, 7) // once ready, then over its limit
	sc.wantStates("0:failed 1:ready").clear()
	sc.exit(1, 0) // not restarted: what is left has failed
	sc.want("retire 1, retire 0, sweep TERM").step(Childless{}).want("quit 7").wantOver()
}

func TestEndsWhenTheLastReplacementDies(t *testing.T) {
	p := service(1)
	p.Restart = RestartNever
	sc := playReady(t, p)
	sc.step(Reload{Surge: true}).exit(0, 3).clear() // gone for good while its successor starts
	sc.exit(1, 4).want("retire 1, sweep TERM").step(Childless{}).want("quit 3").wantOver()
}

// Two slow starts at different ages must not leave a deadline in the past: the
// loop would spin until the younger one is old enough.
func TestDeadlineIsWhenTheNextMayStart(t *testing.T) {
	p := service(3)
	p.StartParallel = 1
	sc := play(t, p)
	sc.want("start 0 in slot 0").after(999 * time.Millisecond).want("")
	sc.after(time.Millisecond).want("start 1 in slot 1") // 0 is not ready, but a second old
	at, _ := sc.s.Deadline()
	if got := at.Sub(sc.now); got != time.Second {
		t.Errorf("deadline in %v, want 1s", got)
	}
	sc.after(time.Second).want("start 2 in slot 2")
}

func TestAbandon(t *testing.T) {
	sc := &scene{t: t, s: New(service(2)), now: epoch, nextPID: 100}
	sc.step(Abandon{Code: 7}).want("retire 1, retire 0, sweep TERM").step(Begin{}).want("")
	sc.step(Childless{}).want("quit 7").wantOver()

	// A step that failed does not look done because a command may end like that.
	p := service(2)
	p.RemapExit = map[int]bool{7: true}
	sc = &scene{t: t, s: New(p), now: epoch, nextPID: 100}
	sc.step(Abandon{Code: 7}).clear().step(Childless{}).want("quit 7").wantOver()

	// What the steps leave has no more time than the stop that ended them.
	p.StopTimeout, p.SweepTimeout = time.Minute, time.Minute
	sc = &scene{t: t, s: New(p), now: epoch, nextPID: 100}
	sc.step(Abandon{Code: 143, By: epoch.Add(3 * time.Second)}).clear()
	sc.after(2999 * time.Millisecond).want("").after(time.Millisecond).want("sweep KILL")
	sc.after(giveUp).want("quit 143").wantOver()
	sc = &scene{t: t, s: New(p), now: epoch, nextPID: 100}
	sc.step(Abandon{Code: 137, By: epoch.Add(-500 * time.Millisecond)}).want("retire 1, retire 0, sweep TERM, sweep KILL")
	sc.after(giveUp - 500*time.Millisecond).want("quit 137").wantOver()

	// It stands for Begin: afterwards it would leave the workers behind.
	playReady(t, service(1)).step(Abandon{Code: 7}).want("").wantStates("0:ready")
}

// The others wait until the first has shown that it works, and are not started
// at all when it has shown the opposite.
func TestFirstAlone(t *testing.T) {
	p := service(3)
	p.FirstAlone = true
	sc := play(t, p).want("start 0 in slot 0").clear()
	sc.step(Tick{}).after(10 * time.Second).want("")
	sc.step(Proven{}).want("start 1 in slot 1, start 2 in slot 2")

	sc = play(t, p).clear()
	sc.step(Scale{Workers: 1}).want("retire 2, retire 1")
	sc.clear().step(Proven{}).ready(0).want("")

	// Nobody waits for a first one that is gone.
	p.Restart = RestartAlways
	sc = play(t, p).clear().exit(0, 1).after(time.Second)
	sc.want("start 1 in slot 1")
}
