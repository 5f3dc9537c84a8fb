package supervise

import (
	"testing"
	"time"
)

func TestStop(t *testing.T) {
	t.Run("all workers are told at once and end by themselves", func(t *testing.T) {
		sc := playReady(t, service(3))
		sc.step(Signal{sigterm}).want("kill 0 TERM, kill 1 TERM, kill 2 TERM")
		sc.exit(1, 0).want("retire 1").exit(0, -sigterm).want("retire 0")
		sc.exit(2, 3).want("retire 2, sweep TERM").step(Childless{}).want("quit 0").wantOver()
	})
	t.Run("a repeated TERM changes nothing", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Signal{sigterm}).clear().after(10 * time.Second)
		sc.step(Signal{sigterm}).step(Signal{sigint}).step(Signal{sigquit}).want("")
		sc.after(15 * time.Second).want("kill 0 KILL tree, kill 1 KILL tree")
	})
	t.Run("a second INT kills now", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Signal{sigint}).want("kill 0 INT, kill 1 INT").step(Signal{sigterm}).want("")
		sc.step(Signal{sigint}).want("kill 0 KILL tree, kill 1 KILL tree")
		sc.exit(0, -sigkill).exit(1, -sigkill).want("retire 0, retire 1, sweep TERM, sweep KILL")
		sc.step(Childless{}).want("quit 137").wantOver()
	})
	t.Run("more INTs do not put off the end", func(t *testing.T) {
		sc := playReady(t, service(1))
		sc.step(Signal{sigint}).step(Signal{sigint}).clear()
		for range 4 {
			sc.after(giveUp / 2).step(Signal{sigint})
		}
		sc.wantOver()
	})
	t.Run("two INTs in the drain delay kill now", func(t *testing.T) {
		p := service(2)
		p.DrainDelay = 5 * time.Second
		sc := playReady(t, p)
		sc.step(Signal{sigint}).want("").step(Signal{sigint}).want("kill 0 KILL tree, kill 1 KILL tree")
	})
	t.Run("a second INT kills what the workers left", func(t *testing.T) {
		sc := playReady(t, service(1))
		sc.step(Signal{sigint}).exit(0, 0).want("kill 0 INT, retire 0, sweep TERM")
		sc.step(Signal{sigint}).want("sweep KILL").after(time.Second).want("quit 0").wantOver()
	})
	t.Run("drain delay: workers serve on, then get the signal", func(t *testing.T) {
		p := service(2)
		p.DrainDelay = 5 * time.Second
		sc := playReady(t, p)
		sc.step(Signal{sigterm}).want("").wantStates("0:ready 1:ready")
		if sc.s.Phase() != Lingering {
			t.Fatalf("phase %v", sc.s.Phase())
		}
		sc.exit(0, 3).want("retire 0") // nothing is started again
		sc.after(5*time.Second - 1).want("").after(1).want("kill 1 TERM")
		sc.after(20*time.Second - 1).want("").after(1).want("kill 1 KILL tree") // counted from the signal
	})
	t.Run("drain delay: a worker that becomes ready serves", func(t *testing.T) {
		p := service(2)
		p.DrainDelay = 5 * time.Second
		sc := playReady(t, p)
		sc.step(Reload{Surge: true}).want("start 2 in slot 0").step(Signal{sigterm})
		sc.ready(2).want("").wantStates("0:ready 2:ready 1:ready")
	})
	t.Run("drain delay: ends early when no worker is left", func(t *testing.T) {
		p := service(1)
		p.DrainDelay = 5 * time.Second
		sc := playReady(t, p)
		sc.step(Signal{sigterm}).exit(0, 0).want("retire 0, sweep TERM")
	})
	t.Run("the stop signal is the one received or the one configured", func(t *testing.T) {
		sc := playReady(t, service(1))
		sc.step(Signal{sigquit}).want("kill 0 QUIT")
		p := service(1)
		p.StopSignal = sigquit
		playReady(t, p).step(Signal{sigterm}).want("kill 0 QUIT")
	})
	t.Run("killed at the deadline, and what is left with it", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Signal{sigterm}).exit(0, 0).clear().after(25*time.Second - 1).want("")
		sc.after(1).want("kill 1 KILL tree").exit(1, -sigkill).want("retire 1, sweep TERM, sweep KILL")
		sc.step(Childless{}).want("quit 137").wantOver()
	})
	t.Run("the sweep has what is left of the time", func(t *testing.T) {
		sc := playReady(t, service(1))
		sc.step(Signal{sigterm}).after(20*time.Second).exit(0, 0).want("kill 0 TERM, retire 0, sweep TERM")
		sc.after(5*time.Second - 1).want("").after(1).want("sweep KILL")
		sc.after(giveUp).want("quit 0").wantOver()
	})
	t.Run("gives up on a process that KILL does not end", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Signal{sigterm}).exit(0, 0).after(25 * time.Second).clear()
		sc.after(giveUp).want("sweep TERM, sweep KILL, quit 137").wantOver()
	})
	t.Run("gives up on one that was killed before the stop", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Hung{Seat: 0}).after(2 * time.Second).wantStates("0:killing 1:ready").clear()
		sc.step(Signal{sigterm}).want("kill 1 TERM").exit(1, 0).want("retire 1")
		sc.after(25*time.Second + giveUp).want("sweep TERM, sweep KILL, quit 137").wantOver()
	})
	t.Run("a worker that is ending already is not told twice", func(t *testing.T) {
		sc := playReady(t, service(3))
		sc.step(Scale{Workers: 2}).step(Drained{2}).want("drain 2, kill 2 TERM")
		sc.after(20 * time.Second).step(Signal{sigterm}).want("kill 0 TERM, kill 1 TERM")
		sc.after(5 * time.Second).want("kill 2 KILL tree") // 25 s after it was told
		sc.after(20 * time.Second).want("kill 0 KILL tree, kill 1 KILL tree")
	})
	t.Run("during backoff it ends at once", func(t *testing.T) {
		sc := playReady(t, service(1))
		sc.exit(0, 3).wantStates("0:backoff").step(Signal{sigterm}).want("retire 0, sweep TERM")
		sc.step(Childless{}).want("quit 0").wantOver()
	})
	t.Run("before anything was started it ends at once", func(t *testing.T) {
		for _, c := range []struct {
			policy Policy
			code   string
		}{{service(2), "quit 0"}, {lone(), "quit 143"}} {
			sc := &scene{t: t, s: New(c.policy), now: epoch}
			sc.step(Signal{sigterm}).clear().step(Childless{}).want(c.code).step(Begin{}).want("").wantOver()
		}
	})
	t.Run("asked for it ends with 0 whatever ended before", func(t *testing.T) {
		p := service(2)
		p.Restart = RestartNever
		sc := playReady(t, p)
		sc.exit(0, 3).want("retire 0").step(Signal{sigterm}).exit(1, 0).step(Childless{}).want("kill 1 TERM, retire 1, sweep TERM, quit 0")
	})
	t.Run("TERM wins over a reload and a scale", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Reload{Surge: true}).step(Reload{Surge: true}).step(Scale{Workers: 3}).clear()
		sc.step(Signal{sigterm}).want("kill 0 TERM, kill 2 TERM, kill 1 TERM, kill 3 TERM")
		sc.step(Scale{Workers: 9}).step(Reload{Surge: true}).step(Recycle{Slot: 1}).step(Hung{Seat: 1}).want("")
		sc.exit(0, 0).exit(1, 0).exit(2, 0).exit(3, 0).want("retire 0, retire 1, retire 2, retire 3, sweep TERM")
	})
	t.Run("nothing follows the end", func(t *testing.T) {
		sc := playReady(t, service(1))
		sc.step(Signal{sigterm}).exit(0, 0).step(Childless{}).wantOver().clear()
		for _, ev := range []Event{
			Begin{}, Tick{}, Childless{}, Signal{sigterm}, Signal{sighup}, Scale{Workers: 4, Serve: true},
			Reload{}, Recycle{}, Exited{PID: 100}, Started{}, StartFailed{}, BecameReady{PID: 100}, Hung{}, Drained{},
		} {
			sc.step(ev).want("").wantOver()
		}
	})
}

func TestSignals(t *testing.T) {
	for _, c := range []struct {
		name   string
		signal int
		edit   func(*Policy)
		want   string
	}{
		{"USR1 goes to every worker", sigusr1, nil, "kill 0 USR1, kill 1 USR1"},
		{"WINCH goes to every worker", sigwinch, nil, "kill 0 WINCH, kill 1 WINCH"},
		{"a real-time signal goes to every worker", 40, nil, "kill 0 40, kill 1 40"},
		{"TTIN is job control", sigttin, nil, ""},
		{"TTOU is job control", sigttou, nil, ""},
		{"TSTP is job control", sigtstp, nil, ""},
		{"HUP reloads", sighup, nil, "start 2 in slot 0"},
		{"HUP that is no reload signal is passed on", sighup, func(p *Policy) { p.ReloadSignal = 0 }, "kill 0 HUP, kill 1 HUP"},
		{"another reload signal", sigusr2, func(p *Policy) { p.ReloadSignal = sigusr2 }, "start 2 in slot 0"},
		{"INT that begins no stop is passed on", sigint, func(p *Policy) { p.StopOn = []int{sigterm} }, "kill 0 INT, kill 1 INT"},
		{"rewritten", sigusr1, func(p *Policy) { p.SignalMap = map[int]int{sigusr1: sigusr2} }, "kill 0 USR2, kill 1 USR2"},
		{"rewritten HUP does not reload", sighup, func(p *Policy) { p.SignalMap = map[int]int{sighup: sigusr2} }, "kill 0 USR2, kill 1 USR2"},
		{"rewritten TTIN is passed on", sigttin, func(p *Policy) { p.SignalMap = map[int]int{sigttin: sigusr2} }, "kill 0 USR2, kill 1 USR2"},
		{"rewritten TERM still stops", sigterm, func(p *Policy) { p.SignalMap = map[int]int{sigterm: sigquit} }, "kill 0 QUIT, kill 1 QUIT"},
		{"dropped TERM does not stop", sigterm, func(p *Policy) { p.SignalMap = map[int]int{sigterm: 0} }, ""},
		{"dropped USR1", sigusr1, func(p *Policy) { p.SignalMap = map[int]int{sigusr1: 0} }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := service(2)
			if c.edit != nil {
				c.edit(&p)
			}
			sc := playReady(t, p)
			sc.step(Signal{c.signal}).want(c.want)
			if stops := c.signal == sigterm && p.SignalMap[sigterm] != 0 || c.signal == sigterm && p.SignalMap == nil; stops != (sc.s.Phase() != Running) {
				t.Errorf("phase %v", sc.s.Phase())
			}
		})
	}
	t.Run("a killed worker gets no more signals", func(t *testing.T) {
		sc := playReady(t, service(2))
		sc.step(Hung{Seat: 0}).after(2 * time.Second).clear().step(Signal{sigusr1}).want("kill 1 USR1")
	})
}

func TestLone(t *testing.T) {
	for _, c := range []struct {
		status int
		want   string
	}{{0, "quit 0"}, {1, "quit 1"}, {255, "quit 255"}, {-sigterm, "quit 143"}, {-sigkill, "quit 137"}, {-64, "quit 192"}} {
		sc := play(t, lone()).clear()
		sc.exit(0, c.status).want("retire 0, sweep TERM").step(Childless{}).want(c.want).wantOver()

		sc = play(t, lone()).clear()
		sc.step(Signal{sigterm}).exit(0, c.status).want("kill 0 TERM, retire 0, sweep TERM")
		sc.step(Childless{}).want(c.want).wantOver()
	}
	t.Run("every signal is passed on, every time", func(t *testing.T) {
		sc := play(t, lone()).clear()
		for _, sig := range []int{sighup, sigusr1, sigtstp, sigttin, sigttou, sigwinch, 40} {
			sc.step(Signal{sig}).want("kill 0 " + signalName(sig))
		}
		for range 3 {
			sc.step(Signal{sigint}).want("kill 0 INT")
		}
		sc.step(Signal{sigterm}).want("kill 0 TERM").step(Signal{sighup}).want("kill 0 HUP")
	})
	t.Run("has no deadline by itself", func(t *testing.T) {
		sc := play(t, lone()).clear()
		sc.step(Signal{sigterm}).want("kill 0 TERM").after(1000 * time.Hour).want("")
	})
	t.Run("has one when asked for", func(t *testing.T) {
		p := lone()
		p.StopTimeout = 3 * time.Second
		sc := play(t, p).clear()
		sc.step(Signal{sigterm}).after(3 * time.Second).want("kill 0 TERM, kill 0 KILL tree")
		sc.exit(0, -sigkill).step(Childless{}).want("retire 0, sweep TERM, sweep KILL, quit 137")

		sc = play(t, p).clear()
		sc.step(Signal{sigterm}).after(3 * time.Second).clear().after(giveUp) // KILL does not end it
		sc.want("sweep TERM, sweep KILL, quit 137").wantOver()
	})
	t.Run("what it leaves has the sweep's time", func(t *testing.T) {
		sc := play(t, lone()).clear()
		sc.exit(0, 7).want("retire 0, sweep TERM").after(5*time.Second - 1).want("").after(1).want("sweep KILL")
		sc.after(giveUp).want("quit 7").wantOver()
	})
	t.Run("stopped during backoff it ends as the signal says", func(t *testing.T) {
		p := lone()
		p.Restart = RestartAlways
		sc := play(t, p)
		sc.exit(0, 3).wantStates("0:backoff").clear()
		sc.step(Signal{sigint}).step(Childless{}).want("retire 0, sweep TERM, quit 130").wantOver()
	})
	t.Run("reload means nothing to it", func(t *testing.T) {
		play(t, lone()).clear().step(Reload{Surge: true}).want("")
	})
	t.Run("it has a service's deadline once it is one", func(t *testing.T) {
		p := lone()
		p.ServeStopTimeout = 10 * time.Second
		play(t, p).step(Signal{sigterm}).clear().after(time.Hour).want("")
		sc := play(t, p).ready(0).step(Scale{Workers: 1, Serve: true}).step(Signal{sigterm}).clear()
		sc.after(10*time.Second - 1).want("").after(1).want("kill 0 KILL tree")
	})
	t.Run("it becomes the first of several", func(t *testing.T) {
		sc := play(t, lone()).clear()
		sc.ready(0).step(Scale{Workers: 3, Serve: true}).want("start 1 in slot 1, start 2 in slot 2")
		sc.allReady().step(Signal{sigterm}).clear()
		sc.exit(0, -sigterm).exit(1, -sigterm).exit(2, 1).step(Childless{}).want("retire 0, retire 1, retire 2, sweep TERM, quit 0")
	})
}

func TestRemapExit(t *testing.T) {
	for _, status := range []int{3, -sigterm} {
		p := lone()
		p.RemapExit = map[int]bool{3: true, 143: true}
		play(t, p).exit(0, status).clear().step(Childless{}).want("quit 0")
		p.RemapExit = map[int]bool{4: true}
		play(t, p).exit(0, 3).clear().step(Childless{}).want("quit 3")
	}
}
