package supervise

import (
	"fmt"
	"testing"
	"time"
)

func TestReload(t *testing.T) {
	t.Run("one slot after the other, the new worker beside the old", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Reload{Surge: true}).want("start 2 in slot 0").wantStates("0:ready 2:starting 1:ready")
		sc.ready(2).want("drain 0").wantStates("0:draining 2:ready 1:ready")
		sc.step(Drained{0}).want("kill 0 TERM").exit(0, 0).want("retire 0, start 3 in slot 1")
		sc.ready(3).want("drain 1").step(Drained{1}).exit(1, 0).want("kill 1 TERM, retire 1")
		sc.wantStates("2:ready 3:ready").after(time.Hour).want("")
	})
	t.Run("without a surge the old one goes first", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Reload{}).want("drain 0").step(Drained{0}).want("kill 0 TERM").exit(0, 0).want("start 0 in slot 0")
		sc.want("").ready(0).want("drain 1").step(Drained{1}).exit(1, 0).want("kill 1 TERM, start 1 in slot 1")
		sc.ready(1).want("").wantStates("0:ready 1:ready")
	})
	t.Run("aborted when the new worker dies", func(t *testing.T) {
		for _, status := range []int{0, 3, -9} {
			sc := playReady(t, service(2))
			sc.step(Reload{Surge: true}).clear().exit(2, status).want("retire 2").wantStates("0:ready 1:ready")
			sc.wantNote(Error, "reload aborted").after(time.Hour).want("")
			sc.step(Reload{Surge: true}).want("start 3 in slot 0") // the next one begins anew
		}
	})
	t.Run("aborted when the new worker is not ready in time", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Reload{Surge: true}).clear().after(2 * time.Minute).want("kill 2 TERM")
		sc.exit(2, 0).want("retire 2").wantStates("0:ready 1:ready").wantNote(Error, "reload aborted")
	})
	t.Run("aborted without a surge the slot goes on by itself", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Reload{}).step(Drained{0}).exit(0, 0).clear().exit(0, 3)
		sc.want("").wantStates("0:backoff 1:ready").wantNote(Error, "reload aborted").after(time.Second).want("start 0 in slot 0")
		sc.ready(0).want("").wantStates("0:ready 1:ready")
	})
	t.Run("asked for again it is done once more", func(t *testing.T) {
		sc := playReady(t, service(1))
		sc.step(Reload{Surge: true}).step(Reload{Surge: true}).step(Reload{Surge: true}).want("start 1 in slot 0")
		sc.ready(1).step(Drained{0}).exit(0, 0).want("drain 0, kill 0 TERM, retire 0, start 2 in slot 0")
		sc.ready(2).step(Drained{1}).exit(1, 0).want("drain 1, kill 1 TERM, retire 1").after(time.Hour).want("")
	})
	t.Run("an abort forgets the one that was asked for again", func(t *testing.T) {
		sc := playReady(t, service(1))
		sc.step(Reload{Surge: true}).step(Reload{Surge: true}).clear().exit(1, 3).want("retire 1").after(time.Hour).want("")
	})
	t.Run("the old worker dies first", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Reload{Surge: true}).exit(0, 3).clear().wantStates("0:backoff 2:starting 1:ready")
		sc.ready(2).want("retire 0, start 3 in slot 1").wantStates("2:ready 1:ready 3:starting")
	})
	t.Run("the old worker ends for good first", func(t *testing.T) {
		p := service(2)
		p.Restart = RestartOnFailure
		sc := playReady(t, p)
		sc.step(Reload{Surge: true}).exit(0, 0).want("start 2 in slot 0, retire 0")
		sc.ready(2).want("start 3 in slot 1").wantStates("2:ready 1:ready 3:starting")
	})
	t.Run("aborted when the new worker dies while the old one drains", func(t *testing.T) {
		p := service(2)
		p.StartLimit = 2
		sc := playReady(t, p)
		sc.step(Reload{Surge: true}).ready(2).exit(2, 3).wantNote(Error, "reload aborted")
		sc.wantStates("0:draining 2:backoff 1:ready").clear()
		sc.step(Recycle{Slot: 1, Cause: CauseAge, Surge: true}).want("") // two processes in one slot are enough
		sc.step(Drained{0}).exit(0, 0).want("kill 0 TERM, retire 0, start 3 in slot 1")
		sc.exit(3, 3).clear().after(time.Second).want("start 2 in slot 0")
		sc.exit(2, 3).after(time.Second).exit(2, 3).wantStates("2:failed 1:ready").clear()
		sc.step(Reload{Surge: true}).want("start 2 in slot 0, start 4 in slot 1") // the new version may cure it
	})
	t.Run("the replacement of a spare is a spare", func(t *testing.T) {
		p := service(1)
		p.Standby = 1
		sc := playReady(t, p)
		sc.step(Reload{Surge: true}).ready(2).step(Drained{0}).exit(0, 0).ready(3)
		sc.wantStates("2:ready 1:draining 3:standby").step(Drained{1}).exit(1, 0).wantStates("2:ready 3:standby")
	})
	t.Run("a slot in backoff begins at once", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.exit(0, 3).wantStates("0:backoff 1:ready").step(Reload{Surge: true})
		sc.want("start 0 in slot 0, start 2 in slot 1")
	})
	t.Run("what waits or ends already is not replaced", func(t *testing.T) {
		p := service(4)
		p.StartParallel, p.StartSpacing = 1, time.Hour
		sc := playReady(t, p)
		sc.step(Scale{Workers: 3}).step(Hung{Seat: 0}).exit(1, 3).exit(2, 3).after(time.Second).clear()
		sc.wantStates("0:stopping 1:starting 2:down 3:draining").step(Reload{Surge: true}).want("")
		sc.ready(1).want("start 2 in slot 2").ready(2).want("start 4 in slot 1")
	})
	t.Run("the drain has a limit", func(t *testing.T) {
		sc := playReady(t, service(1))
		sc.step(Reload{Surge: true}).ready(1).clear().after(20*time.Second - 1).want("").after(1).want("kill 0 TERM")
		sc.step(Drained{0}).want("").after(25 * time.Second).want("kill 0 KILL tree")
	})
}

func TestRecycle(t *testing.T) {
	t.Run("one at a time", func(t *testing.T) {
		sc := playReady(t, service(3))
		sc.step(Recycle{Slot: 1, Cause: CauseMemory, Surge: true}).step(Recycle{Slot: 2, Cause: CauseAge}).want("start 3 in slot 1")
		sc.step(Recycle{Slot: 1, Cause: CauseMemory, Surge: true}).step(Recycle{Slot: 2, Cause: CauseAge}) // asked again
		sc.ready(3).want("drain 1").step(Drained{1}).exit(1, 0).want("kill 1 TERM, retire 1, drain 2")
		sc.step(Drained{2}).exit(2, 0).want("kill 2 TERM, start 2 in slot 2")
		if last := sc.seat(2).Last; last.Cause != CauseAge {
			t.Errorf("cause %q, want %q", last.Cause, CauseAge)
		}
		sc.ready(2).want("").wantStates("0:ready 3:ready 2:ready")
	})
	t.Run("in turn with a reload", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Recycle{Slot: 1, Cause: CauseAge, Surge: true}).step(Reload{Surge: true}).want("start 2 in slot 1")
		sc.ready(2).step(Drained{1}).exit(1, 0).want("drain 1, kill 1 TERM, retire 1, start 3 in slot 0")
	})
	t.Run("whose new worker dies leaves the old one and a reload that waits", func(t *testing.T) {
		for _, surge := range []bool{true, false} {
			sc := playReady(t, service(2))
			sc.step(Recycle{Slot: 1, Cause: CauseAge, Surge: surge}).step(Reload{Surge: true})
			if surge {
				sc.clear().exit(2, 3).want("retire 2, start 3 in slot 0")
			} else {
				sc.step(Drained{1}).exit(1, 0).clear().exit(1, 3).want("start 2 in slot 0")
			}
			sc.wantStates(map[bool]string{true: "0:ready 3:starting 1:ready", false: "0:ready 2:starting 1:backoff"}[surge])
		}
	})
	t.Run("of a worker that crashed before its turn does not end the backoff", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Recycle{Slot: 1, Cause: CauseAge, Surge: true}).step(Recycle{Slot: 0, Cause: CauseAge}).exit(0, 3)
		sc.clear().ready(2).step(Drained{1}).exit(1, 0).want("drain 1, kill 1 TERM, retire 1").wantStates("0:backoff 2:ready")
	})
	t.Run("of what is not there or not ready means nothing", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.exit(0, 3).clear().step(Recycle{Slot: 0}).step(Recycle{Slot: 7}).want("").wantStates("0:backoff 1:ready")
	})
}

func TestScale(t *testing.T) {
	t.Run("up starts more", func(t *testing.T) {
		sc := playReady(t, service(1))
		sc.step(Scale{Workers: 3}).want("start 1 in slot 1, start 2 in slot 2")
	})
	t.Run("down drains the highest slots", func(t *testing.T) {
		sc := playReady(t, service(3))
		sc.step(Scale{Workers: 1, Why: "memory"}).want("drain 2, drain 1").wantNote(Info, "memory")
		sc.step(Drained{1}).exit(1, 0).want("kill 1 TERM, retire 1").step(Drained{2}).exit(2, -sigterm).want("kill 2 TERM, retire 2")
		sc.wantStates("0:ready")
	})
	t.Run("down at a starting worker stops it", func(t *testing.T) {
		sc := playReady(t, service(1))
		sc.step(Scale{Workers: 2}).step(Scale{Workers: 1}).want("start 1 in slot 1, kill 1 TERM").exit(1, 0).want("retire 1")
	})
	t.Run("down at a slot without a process closes it", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.exit(1, 3).step(Scale{Workers: 1}).want("retire 1").after(time.Hour).want("")
	})
	t.Run("to the same number or less than one means nothing", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Scale{Workers: 2}).step(Scale{Workers: 0}).step(Scale{Workers: -1}).want("")
		if sc.s.Wanted() != 2 {
			t.Errorf("%d wanted", sc.s.Wanted())
		}
	})
	t.Run("up again takes a free slot", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Scale{Workers: 1}).step(Scale{Workers: 2}).want("drain 1, start 2 in slot 2")
		sc.ready(2).step(Drained{1}).exit(1, 0).step(Scale{Workers: 3}).want("kill 1 TERM, retire 1, start 3 in slot 1")
	})
	t.Run("down with a spare keeps a spare", func(t *testing.T) {
		p := service(3)
		p.Standby = 1
		sc := playReady(t, p)
		sc.exit(0, 3).after(time.Second).ready(0).wantStates("0:standby 1:ready 2:ready 3:ready").clear()
		sc.step(Scale{Workers: 1}).want("drain 3, drain 2").wantStates("0:standby 1:ready 2:draining 3:draining")
		sc = playReady(t, p)
		sc.step(Scale{Workers: 1}).wantStates("0:ready 1:standby 2:draining 3:draining")
	})
	t.Run("away from a worker that is being replaced ends both", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Recycle{Slot: 1, Cause: CauseAge, Surge: true}).step(Reload{Surge: true}).want("start 2 in slot 1")
		sc.step(Scale{Workers: 1}).want("kill 2 TERM, drain 1, start 3 in slot 0")
		sc.exit(2, 0).want("retire 2").step(Drained{1}).exit(1, 0).want("kill 1 TERM, retire 1")
		sc.ready(3).step(Drained{0}).exit(0, 0).wantStates("3:ready")
	})
	t.Run("away from a replacement that serves already", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Recycle{Slot: 1, Cause: CauseAge, Surge: true}).ready(2).want("start 2 in slot 1, drain 1")
		sc.step(Scale{Workers: 1}).want("drain 2").step(Drained{1}).step(Drained{2}).exit(2, 0).exit(1, 0)
		sc.wantStates("0:ready").clear().step(Reload{Surge: true}).want("start 3 in slot 0")
	})
	t.Run("away from a worker that restarts for a reload", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Recycle{Slot: 1, Cause: CauseAge}).step(Scale{Workers: 1}).want("drain 1")
		sc.step(Drained{1}).exit(1, 0).want("kill 1 TERM, retire 1").step(Reload{Surge: true}).want("start 2 in slot 0")
	})
}

func TestStandby(t *testing.T) {
	p := service(2)
	p.Standby = 1
	t.Run("takes the place of a dead worker", func(t *testing.T) {
		sc := playReady(t, p)
		sc.wantStates("0:ready 1:ready 2:standby")
		sc.exit(0, -sigkill).wantStates("0:backoff 1:ready 2:ready")
		sc.after(time.Second).ready(0).wantStates("0:standby 1:ready 2:ready")
	})
	t.Run("takes the place of a hung worker", func(t *testing.T) {
		playReady(t, p).step(Hung{Seat: 1}).wantStates("0:ready 1:stopping 2:ready")
	})
	t.Run("a dead spare comes back as a spare", func(t *testing.T) {
		sc := playReady(t, p)
		sc.exit(2, 3).wantStates("0:ready 1:ready 2:backoff").after(time.Second).ready(2).wantStates("0:ready 1:ready 2:standby")
	})
	t.Run("serves when more are wanted", func(t *testing.T) {
		playReady(t, p).step(Scale{Workers: 3}).want("start 3 in slot 3").wantStates("0:ready 1:ready 2:ready 3:starting")
	})
	t.Run("the first to be ready serve", func(t *testing.T) {
		play(t, p).ready(2, 1).wantStates("0:starting 1:ready 2:ready").ready(0).wantStates("0:standby 1:ready 2:ready")
	})
}

func TestHung(t *testing.T) {
	t.Run("gets the signal, then KILL, and starts again at once", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Hung{Seat: 0}).want("kill 0 ABRT").wantStates("0:stopping 1:ready").wantNote(Error, "hangs")
		sc.after(2*time.Second - 1).want("").after(1).want("kill 0 KILL tree")
		sc.exit(0, -sigkill).want("start 0 in slot 0").wantStates("0:starting 1:ready")
		if last := sc.seat(0).Last; last.Cause != CauseHang || last.Status.Signal != sigkill {
			t.Errorf("last end %+v", last)
		}
	})
	t.Run("only a ready worker hangs", func(t *testing.T) {
		p := service(3)
		p.Standby = 1
		sc := playReady(t, p)
		sc.exit(0, 3).step(Recycle{Slot: 1, Cause: CauseAge}).after(time.Second).clear()
		sc.wantStates("0:starting 1:draining 2:ready 3:ready").step(Hung{Seat: 0}).step(Hung{Seat: 1}).step(Hung{Seat: 9}).want("")
	})
	t.Run("while it is being replaced", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Reload{Surge: true}).step(Hung{Seat: 0}).want("start 2 in slot 0, kill 0 ABRT").ready(2)
		sc.want("").exit(0, -sigabrt).want("retire 0, start 3 in slot 1")
	})
}

// A worker that says that it stops gets nothing new and no signal until its time
// is over, and a spare serves at once.
func TestLeaving(t *testing.T) {
	leave := func(sc *scene, seat int) *scene { return sc.step(Leaving{PID: sc.seat(seat).PID}) }
	t.Run("it ends by itself", func(t *testing.T) {
		sc := leave(playReady(t, service(2)), 0)
		sc.want("").wantStates("0:draining 1:ready")
		sc.step(Drained{0}).want("") // its queue is its successor's
		sc.after(10*time.Second).want("").exit(0, 0).want("start 0 in slot 0")
	})
	t.Run("it does not", func(t *testing.T) {
		sc := leave(playReady(t, service(2)), 0)
		sc.after(25*time.Second - 1).want("").after(1).want("kill 0 TERM").wantStates("0:stopping 1:ready")
		sc.clear().after(25 * time.Second).want("kill 0 KILL tree")
	})
	t.Run("a spare serves", func(t *testing.T) {
		p := service(2)
		p.Standby = 1
		leave(playReady(t, p), 0).wantStates("0:draining 1:ready 2:ready")
	})
	t.Run("a stop tells it too", func(t *testing.T) {
		leave(playReady(t, service(2)), 0).step(Signal{sigterm}).want("kill 0 TERM, kill 1 TERM")
	})
	t.Run("a reload has nothing to replace there", func(t *testing.T) {
		sc := leave(playReady(t, service(2)), 0).step(Reload{Surge: true})
		sc.want("start 2 in slot 1")
	})
	t.Run("not ready, it is not in service", func(t *testing.T) {
		sc := play(t, service(2)).clear()
		leave(sc, 0).want("").wantStates("0:starting 1:starting")
	})
}

func TestDying(t *testing.T) {
	die := func(sc *scene, seat int) *scene { return sc.step(Dying{PID: sc.seat(seat).PID}) }
	t.Run("its exit tells why", func(t *testing.T) {
		sc := die(playReady(t, service(2)), 0).want("").wantStates("0:stopping 1:ready")
		sc.after(time.Hour).want("") // a core file may be large
		sc.exit(0, -sigabrt).wantStates("0:backoff 1:ready")
		if got := sc.seat(0).Last; got.Cause != CauseSignal || got.Status.Signal != sigabrt {
			t.Errorf("it ended by %+v", got)
		}
	})
	t.Run("a spare serves at once", func(t *testing.T) {
		p := service(2)
		p.Standby = 1
		die(playReady(t, p), 0).wantStates("0:stopping 1:ready 2:ready").exit(0, -sigkill).wantStates("0:backoff 1:ready 2:ready")
	})
	t.Run("a dying spare is none", func(t *testing.T) {
		p := service(2)
		p.Standby = 1
		die(die(playReady(t, p), 2), 0).wantStates("0:stopping 1:ready 2:stopping")
	})
	t.Run("a stop waits for it", func(t *testing.T) {
		sc := die(playReady(t, service(2)), 0).step(Signal{sigterm}).want("kill 1 TERM")
		sc.clear().after(25 * time.Second).want("kill 0 KILL tree, kill 1 KILL tree")
	})
	t.Run("not ready, it is not in service", func(t *testing.T) {
		die(play(t, service(2)).clear(), 0).want("").wantStates("0:starting 1:starting")
	})
}

func TestCauses(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*scene)
		want End
	}{
		{"exit", func(sc *scene) { sc.exit(0, 7) }, End{Cause: CauseExit, Status: Status{Code: 7}}},
		{"signal", func(sc *scene) { sc.exit(0, -sigkill) }, End{Cause: CauseSignal, Status: Status{Signal: sigkill}}},
		{"oom", func(sc *scene) { sc.step(Exited{PID: 100, Status: Status{Signal: sigkill}, OOM: true}) }, End{Cause: CauseOOM, Status: Status{Signal: sigkill}}},
		{"hang", func(sc *scene) { sc.step(Hung{Seat: 0}).exit(0, -sigabrt) }, End{Cause: CauseHang, Status: Status{Signal: sigabrt}}},
		{"memory", func(sc *scene) { sc.step(Recycle{Slot: 0, Cause: CauseMemory}).exit(0, 0) }, End{Cause: CauseMemory}},
		{"age", func(sc *scene) { sc.step(Recycle{Slot: 0, Cause: CauseAge}).exit(0, 0) }, End{Cause: CauseAge}},
		{"reload", func(sc *scene) { sc.step(Reload{}).exit(0, 0) }, End{Cause: CauseReload}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sc := playReady(t, service(2))
			c.do(sc)
			words := fmt.Sprintf("{code %d}", c.want.Status.Code)
			if sig := c.want.Status.Signal; sig != 0 {
				words = fmt.Sprintf("{signal %d}", sig)
			}
			level := Info
			if c.want.Cause == CauseExit || c.want.Cause == CauseSignal || c.want.Cause == CauseOOM {
				level = Warn
			}
			sc.wantNote(level, fmt.Sprintf("{cause %s} %s {uptime 1h0m0s}", c.want.Cause, words))
			c.want.At = epoch.Add(time.Hour)
			if got := sc.seat(0).Last; got == nil || *got != c.want {
				t.Errorf("last end %+v, want %+v", got, c.want)
			}
		})
	}
}
