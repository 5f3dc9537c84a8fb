package supervise

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const (
	sighup   = 1
	sigquit  = 3
	sigabrt  = 6
	sigusr1  = 10
	sigusr2  = 12
	sigwinch = 28
)

var signalNames = map[int]string{
	sighup: "HUP", sigint: "INT", sigquit: "QUIT", sigabrt: "ABRT", sigkill: "KILL", sigusr1: "USR1", sigusr2: "USR2",
	sigterm: "TERM", sigtstp: "TSTP", sigttin: "TTIN", sigttou: "TTOU", sigwinch: "WINCH",
}

func signalName(sig int) string {
	if name, ok := signalNames[sig]; ok {
		return name
	}
	return fmt.Sprint(sig)
}

// scene plays the loop for one Supervisor: it answers every Start, ticks at
// every deadline and writes down the effects. There is no process and no clock.
type scene struct {
	t       *testing.T
	s       *Supervisor
	now     time.Time
	nextPID int
	refuse  *StartFailed // the answer to the next starts; nil lets them succeed
	effects []string
	notes   []Note
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// service is the policy of a replicated command with skep's defaults.
func service(workers int) Policy {
	return Policy{
		Workers: workers, Serve: true,
		Delay: 500 * time.Millisecond, MaxDelay: 30 * time.Second, ResetAfter: time.Minute,
		StartLimit: 5, StartTimeout: 2 * time.Minute, StartParallel: 8, StartSpacing: time.Second,
		StopOn: []int{sigterm, sigint, sigquit}, StopTimeout: 25 * time.Second, SweepTimeout: 5 * time.Second,
		DrainTimeout: 20 * time.Second, ReloadSignal: sighup, HangSignal: sigabrt, HangGrace: 2 * time.Second,
	}
}

// lone is the policy of one command that is not replicated.
func lone() Policy {
	p := service(1)
	p.Serve, p.StopTimeout, p.ReloadSignal = false, 0, 0
	return p
}

// play makes a supervisor and begins.
func play(t *testing.T, p Policy) *scene {
	t.Helper()
	sc := &scene{t: t, s: New(p), now: epoch, nextPID: 100}
	sc.step(Begin{})
	return sc
}

// playReady begins and lets every worker become ready.
func playReady(t *testing.T, p Policy) *scene {
	t.Helper()
	sc := play(t, p)
	sc.allReady()
	sc.after(time.Hour)
	sc.effects, sc.notes = nil, nil
	return sc
}

// step hands over one event and answers the starts that follow from it.
func (sc *scene) step(ev Event) *scene {
	sc.t.Helper()
	for answers := []Event{ev}; len(answers) > 0; answers = answers[1:] {
		for _, e := range sc.s.Step(sc.now, answers[0]) {
			if note, ok := e.(Note); ok {
				sc.notes = append(sc.notes, note)
				continue
			}
			sc.effects = append(sc.effects, sc.describe(e))
			start, ok := e.(Start)
			if !ok {
				continue
			}
			if sc.refuse != nil {
				refusal := *sc.refuse
				refusal.Seat = start.Seat
				answers = append(answers, refusal)
				continue
			}
			answers = append(answers, Started{Seat: start.Seat, PID: sc.nextPID})
			sc.nextPID++
		}
	}
	return sc
}

func (sc *scene) describe(e Effect) string {
	switch e := e.(type) {
	case Start:
		return fmt.Sprintf("start %d in slot %d", e.Seat, e.Slot)
	case Kill:
		text := fmt.Sprintf("kill %d %s", e.Seat, signalName(e.Signal))
		if e.Tree {
			text += " tree"
		}
		return text
	case Drain:
		return fmt.Sprintf("drain %d", e.Seat)
	case Retire:
		return fmt.Sprintf("retire %d", e.Seat)
	case Sweep:
		return "sweep " + signalName(e.Signal)
	case Quit:
		return fmt.Sprintf("quit %d", e.Code)
	}
	sc.t.Fatalf("unknown effect %T", e)
	return ""
}

// after lets time pass, with a Tick at every deadline on the way.
func (sc *scene) after(d time.Duration) *scene {
	sc.t.Helper()
	end := sc.now.Add(d)
	for ticks := 0; ; ticks++ {
		at, ok := sc.s.Deadline()
		if !ok || at.After(end) {
			break
		}
		if at.After(sc.now) {
			sc.now, ticks = at, 0
		}
		if ticks > 10 {
			sc.t.Fatalf("ten ticks at one deadline and it is still %v", at.Sub(sc.now))
		}
		sc.step(Tick{})
	}
	sc.now = end
	return sc
}

func (sc *scene) seat(id int) Seat {
	sc.t.Helper()
	for _, st := range sc.s.Seats() {
		if st.ID == id {
			return st
		}
	}
	sc.t.Fatalf("there is no seat %d: %s", id, sc.states())
	return Seat{}
}

func (sc *scene) ready(seats ...int) *scene {
	sc.t.Helper()
	for _, id := range seats {
		sc.step(BecameReady{PID: sc.seat(id).PID})
	}
	return sc
}

// allReady makes every starting worker ready, and those that start after it.
func (sc *scene) allReady() *scene {
	sc.t.Helper()
	for again := true; again; {
		again = false
		for _, st := range sc.s.Seats() {
			if st.State == Starting {
				sc.ready(st.ID)
				again = true
			}
		}
	}
	return sc
}

// exit ends the process of a seat: a code, or minus a signal.
func (sc *scene) exit(seat, status int) *scene {
	sc.t.Helper()
	ev := Exited{PID: sc.seat(seat).PID, Status: Status{Code: status}}
	if status < 0 {
		ev.Status = Status{Signal: -status}
	}
	return sc.step(ev)
}

// states shows every seat, such as "0:ready 1:backoff".
func (sc *scene) states() string {
	var all []string
	for _, st := range sc.s.Seats() {
		text := fmt.Sprintf("%d:%s", st.ID, st.State)
		all = append(all, text)
	}
	return strings.Join(all, " ")
}

// want compares the effects since the last call, joined by ", ".
func (sc *scene) want(effects string) *scene {
	sc.t.Helper()
	if got := strings.Join(sc.effects, ", "); got != effects {
		sc.t.Fatalf("effects\n got: %s\nwant: %s\nseats: %s", got, effects, sc.states())
	}
	sc.effects = nil
	return sc
}

func (sc *scene) wantStates(states string) *scene {
	sc.t.Helper()
	if got := sc.states(); got != states {
		sc.t.Fatalf("seats\n got: %s\nwant: %s", got, states)
	}
	return sc
}

// wantNote demands a line of this level whose text or attributes hold the words.
func (sc *scene) wantNote(level Level, words string) *scene {
	sc.t.Helper()
	for _, n := range sc.notes {
		if n.Level == level && strings.Contains(fmt.Sprint(n.Text, n.Attrs), words) {
			return sc
		}
	}
	sc.t.Fatalf("no note of level %d says %q: %v", level, words, sc.notes)
	return sc
}

// wantOver demands that skep has ended: no effect and no deadline is left.
func (sc *scene) wantOver() *scene {
	sc.t.Helper()
	if at, ok := sc.s.Deadline(); ok || sc.s.Phase() != Ended {
		sc.t.Fatalf("not over: phase %v, deadline in %v", sc.s.Phase(), at.Sub(sc.now))
	}
	return sc
}

// clear forgets what happened so far.
func (sc *scene) clear() *scene {
	sc.effects, sc.notes = nil, nil
	return sc
}
