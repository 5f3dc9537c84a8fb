package prestart

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// laws watches a machine from outside and knows only what it was told and what
// it answered.
type laws struct {
	cfg Config
	m   *Machine

	alive     bool // a process exists
	startedEv bool // some process existed
	starting  bool // Run is not answered
	locked    bool // between LockTaken and ReleaseLock
	asked     bool // between TakeLock and ReleaseLock
	stopped   bool // Stop or KillNow was told
	stamped   bool
	finished  *Finished
	succeeded int // steps that ended well
	runs      map[int]int
}

func watch(cfg Config) *laws {
	return &laws{cfg: cfg, m: New(cfg), runs: map[int]int{}}
}

// step tells ev and returns the effects, or an error that names the broken law.
func (l *laws) step(now time.Time, ev Event) (effects []Effect, err error) {
	over := l.finished != nil
	wasAlive := l.alive || l.starting
	switch ev := ev.(type) {
	case Started:
		if l.starting {
			l.starting, l.alive, l.startedEv = false, true, true
		}
	case StartFailed:
		l.starting = false
	case Exited:
		if wasAlive {
			if ev.Code == 0 && ev.Signal == 0 && ev.Err == "" && l.m.State() != Terminating && l.m.State() != Killing && !l.stopped {
				l.succeeded++
			}
			l.alive, l.starting = false, false
		}
	case LockTaken:
		if l.asked && !l.locked {
			l.locked = true
			if ev.Done {
				l.succeeded = len(l.cfg.Steps)
			}
		}
	case Stop, KillNow:
		l.stopped = true
	}
	effects = l.m.Step(now, ev)
	if over && len(effects) > 0 {
		return effects, fmt.Errorf("effects after the end: %s", render(effects))
	}
	for i, e := range effects {
		switch e := e.(type) {
		case Run:
			switch index := int(e.Step.Name[0] - 'a'); {
			case l.stopped:
				return effects, fmt.Errorf("%s begins after a stop", e.Step.Name)
			case l.alive || l.starting:
				return effects, fmt.Errorf("%s begins beside another", e.Step.Name)
			case index != l.succeeded:
				return effects, fmt.Errorf("%s begins after %d successes", e.Step.Name, l.succeeded)
			case l.cfg.Lock && e.Step.Kind != Wait && !l.locked:
				return effects, fmt.Errorf("%s begins without the lock", e.Step.Name)
			default:
				if l.runs[index]++; l.runs[index] > e.Step.Retries+1 {
					return effects, fmt.Errorf("%s begins for the %d. time", e.Step.Name, l.runs[index])
				}
				l.starting = true
			}
		case TakeLock:
			if l.asked || !l.cfg.Lock || l.stopped {
				return effects, fmt.Errorf("the lock is taken out of turn")
			}
			l.asked = true
		case ReleaseLock:
			if !l.asked {
				return effects, fmt.Errorf("a lock is let go of that nobody took")
			}
			if e.Done && l.succeeded != len(l.cfg.Steps) {
				return effects, fmt.Errorf("the lock is opened although %d of %d steps succeeded", l.succeeded, len(l.cfg.Steps))
			}
			l.asked, l.locked = false, false
		case WriteStamp:
			if !l.locked || !l.cfg.Key || l.succeeded != len(l.cfg.Steps) || l.stamped {
				return effects, fmt.Errorf("a stamp is written out of turn")
			}
			l.stamped = true
		case Signal:
			if !l.alive {
				return effects, fmt.Errorf("signal %d to nobody", e.Sig)
			}
		case KillTree:
			if !l.startedEv {
				return effects, fmt.Errorf("KILL before anything was started")
			}
		case Finished:
			if i != len(effects)-1 {
				return effects, fmt.Errorf("something comes after Finished: %s", render(effects))
			}
			if l.asked {
				return effects, fmt.Errorf("finished with the lock")
			}
			if e.Stopped != l.stopped {
				return effects, fmt.Errorf("finished with Stopped %v", e.Stopped)
			}
			if e.Code == 0 && (l.stopped || l.succeeded != len(l.cfg.Steps) || l.cfg.Lock && l.cfg.Key && l.runs[len(l.cfg.Steps)-1] > 0 && l.cfg.Steps[len(l.cfg.Steps)-1].Kind != Wait && !l.stamped) {
				return effects, fmt.Errorf("finished with 0 after %d of %d steps", l.succeeded, len(l.cfg.Steps))
			}
			l.finished = &e
		}
	}
	if at, ok := l.m.Deadline(); ok && l.finished != nil {
		return effects, fmt.Errorf("finished with a deadline left: %v", at)
	}
	if (l.finished != nil) != (l.m.State() == Ended) {
		return effects, fmt.Errorf("state %v and finished %v", l.m.State(), l.finished)
	}
	return effects, nil
}

func drawConfig(t *rapid.T) Config {
	second := func(name string, most int) time.Duration {
		return time.Duration(rapid.IntRange(0, most).Draw(t, name)) * time.Second
	}
	cfg := Config{
		Steps: steps(rapid.IntRange(0, 4).Draw(t, "steps"), func(s *Step) {
			s.Timeout = second("timeout", 20)
			s.Retries = rapid.IntRange(0, 3).Draw(t, "retries")
		}),
		Lock:        rapid.Bool().Draw(t, "lock"),
		StopTimeout: second("stop-timeout", 20),
		Grace:       second("grace", 5),
	}
	cfg.Key = cfg.Lock && rapid.Bool().Draw(t, "key")
	for i := range rapid.IntRange(0, len(cfg.Steps)).Draw(t, "waits") {
		cfg.Steps[i].Kind = Wait
	}
	return cfg
}

// TestAnyEvents tells any events at all, also those that cannot happen.
func TestAnyEvents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := watch(drawConfig(t))
		now := epoch
		for range rapid.IntRange(0, 60).Draw(t, "events") {
			if at, ok := l.m.Deadline(); ok && at.After(now) && rapid.Bool().Draw(t, "to the deadline") {
				now = at
			} else {
				now = now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond)
			}
			ev := drawEvent(rapid.Uint16().Draw(t, "event"))
			if _, err := l.step(now, ev); err != nil {
				t.Fatalf("%T%+v: %v", ev, ev, err)
			}
		}
	})
}

// drawEvent makes an event of a number; mostly those that get somewhere.
func drawEvent(n uint16) Event {
	arg := int(n >> 5)
	switch n % 24 {
	case 0:
		return LockTaken{Done: arg%4 == 0}
	case 1:
		return LockFailed{Err: "e"}
	case 2, 3, 4, 5, 6:
		return Started{PID: arg + 1}
	case 7:
		return StartFailed{Code: arg % 128, Err: "e"}
	case 8, 9, 10:
		return Exited{}
	case 11:
		return Exited{Code: arg % 256, Err: "e"}
	case 12:
		return Exited{Signal: arg % 65}
	case 13:
		return Stamped{}
	case 14:
		return StampFailed{Err: "e"}
	case 15:
		if arg%4 == 0 {
			return Stop{Signal: []int{15, 2, 3, 0, -1, 99, 9}[arg/4%7]}
		}
		return Begin{}
	case 16:
		if arg%8 == 0 {
			return KillNow{}
		}
		return Begin{}
	case 17, 18, 19, 20:
		return Begin{}
	default:
		return Tick{}
	}
}

func FuzzStep(f *testing.F) {
	f.Add([]byte{2, 1, 1, 30, 20, 0, 17, 0, 0, 0, 2, 0, 8, 0, 13, 0})
	f.Add([]byte{1, 0, 0, 0, 0, 0, 17, 0, 2, 0, 15, 0, 21, 0, 21, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 6 {
			return
		}
		cfg := Config{
			Steps: steps(int(data[0]%5), func(s *Step) {
				s.Timeout = time.Duration(data[3]) * time.Second
				s.Retries = int(data[5] % 4)
			}),
			Lock: data[1]&1 != 0, Key: data[1]&3 == 3,
			StopTimeout: time.Duration(data[4]) * time.Second,
		}
		for i := range min(int(data[2]%5), len(cfg.Steps)) {
			cfg.Steps[i].Kind = Wait
		}
		l := watch(cfg)
		now := epoch
		for data = data[6:]; len(data) >= 2; data = data[2:] {
			n := uint16(data[0]) | uint16(data[1])<<8
			if at, ok := l.m.Deadline(); ok && at.After(now) && n&16 != 0 {
				now = at
			}
			if _, err := l.step(now, drawEvent(n)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A behaviour is what the process of one attempt does.
type behaviour struct {
	startFails int           // 0: it starts
	lasts      time.Duration // until it ends by itself
	code       int
	onSignal   string // dies, ignores, late (1 s), exits (with 0)
	onKill     string // dies, hangs (an uninterruptible system call)
}

// TestWorld lets the machine drive a world that behaves: processes that end,
// hang, ignore signals or cannot be killed, a lock that comes late or never, and
// a stop at any moment. Nothing here knows the machine's states.
func TestWorld(t *testing.T) {
	var stops, ends, kills, timeouts, hangs, retries int
	world := func(t *rapid.T) {
		cfg := drawConfig(t)
		l := watch(cfg)
		type event struct {
			at time.Time
			ev Event
		}
		var (
			now    = epoch
			queue  []event // what will happen, in any order
			death  = -1    // index in queue of the end of the process, -1: none
			proc   behaviour
			stopAt time.Time
			killed bool
		)
		after := func(d time.Duration, ev Event) { queue = append(queue, event{now.Add(d), ev}) }
		drop := func(i int) {
			queue = append(queue[:i], queue[i+1:]...)
			switch {
			case death == i:
				death = -1
			case death > i:
				death--
			}
		}
		// dies moves the end of the process to d from now, if it is not nearer.
		dies := func(d time.Duration, ev Exited) {
			if death >= 0 && !queue[death].at.After(now.Add(d)) {
				return
			}
			if death >= 0 {
				drop(death)
			}
			after(d, ev)
			death = len(queue) - 1
		}
		ms := func(name string, most int) time.Duration {
			return time.Duration(rapid.IntRange(0, most).Draw(t, name)) * time.Millisecond
		}
		if rapid.Bool().Draw(t, "stop") {
			sig := Stop{rapid.SampledFrom([]int{15, 2, 3}).Draw(t, "stop signal")}
			at := ms("stop at", 60000)
			after(at, sig)
			stopAt = now.Add(at)
			for range rapid.IntRange(0, 3).Draw(t, "repeats") {
				after(at+ms("repeat", 3000), sig)
			}
		}
		var tell func(ev Event)
		tell = func(ev Event) {
			effects, err := l.step(now, ev)
			if err != nil {
				t.Fatalf("%T%+v: %v", ev, ev, err)
			}
			for _, e := range effects {
				switch e := e.(type) {
				case TakeLock:
					switch rapid.IntRange(0, 9).Draw(t, "lock outcome") {
					case 0:
						after(ms("lock", 5000), LockFailed{Err: "e"})
					case 1: // held for ever
						after(24*time.Hour, LockTaken{})
					case 2:
						after(ms("lock", 5000), LockTaken{Done: cfg.Key})
					default:
						after(ms("lock", 5000), LockTaken{})
					}
				case WriteStamp:
					after(ms("stamp", 2000), rapid.SampledFrom([]Event{Stamped{}, Stamped{}, StampFailed{Err: "e"}}).Draw(t, "stamp outcome"))
				case Run:
					proc = behaviour{
						startFails: rapid.SampledFrom([]int{0, 0, 0, 0, 0, 0, 125, 126, 127}).Draw(t, "start"),
						lasts:      ms("lasts", 30000),
						code:       rapid.SampledFrom([]int{0, 0, 0, 1, 7, 255}).Draw(t, "code"),
						onSignal:   rapid.SampledFrom([]string{"dies", "ignores", "late", "exits"}).Draw(t, "on signal"),
						onKill:     rapid.SampledFrom([]string{"dies", "dies", "dies", "hangs"}).Draw(t, "on kill"),
					}
					killed = false
					if proc.startFails != 0 {
						defer tell(StartFailed{Code: proc.startFails, Err: "e"})
						continue
					}
					death = -1
					dies(proc.lasts, Exited{Code: proc.code})
					defer tell(Started{PID: 1})
				case Signal:
					if e.Sig == sigCONT || killed {
						continue
					}
					switch proc.onSignal {
					case "dies":
						dies(0, Exited{Signal: e.Sig})
					case "late":
						dies(time.Second, Exited{Code: 3})
					case "exits":
						dies(0, Exited{})
					case "ignores": // for longer than anybody waits
						if death >= 0 {
							queue[death].at = now.Add(24 * time.Hour)
						}
					}
				case KillTree:
					if death < 0 {
						continue
					}
					killed = true
					kills++
					if proc.onKill == "hangs" {
						hangs++
						queue[death].at = now.Add(48 * time.Hour)
					} else {
						drop(death)
						dies(0, Exited{Signal: 9})
					}
				case Note:
					switch e.What {
					case TimedOut:
						timeouts++
					case StepRetrying:
						retries++
					}
				}
			}
		}
		tell(Begin{})
		for i := 0; l.finished == nil; i++ {
			if i > 1000 {
				t.Fatal("it does not end")
			}
			next := -1
			for i := range queue {
				if next < 0 || queue[i].at.Before(queue[next].at) {
					next = i
				}
			}
			at, ok := l.m.Deadline()
			if ok && (next < 0 || at.Before(queue[next].at)) {
				if at.After(now) {
					now = at
				}
				tell(Tick{})
				continue
			}
			if next < 0 {
				t.Fatalf("stuck in %v", l.m.State())
			}
			now = queue[next].at
			ev := queue[next].ev
			drop(next)
			if _, isExit := ev.(Exited); isExit {
				death = -1
			}
			tell(ev)
		}
		ends++
		if l.stopped {
			stops++
			if took := now.Sub(stopAt); cfg.StopTimeout > 0 && took > cfg.StopTimeout+time.Second {
				t.Fatalf("the stop took %v, stop-timeout is %v", took, cfg.StopTimeout)
			}
		}
	}
	// A world in which nothing happens proves nothing, and the rarest thing happens
	// in one of a hundred.
	for ends < 3000 && !t.Failed() {
		rapid.Check(t, world)
	}
	for name, n := range map[string]int{"stops": stops, "kills": kills, "timeouts": timeouts, "hanging after KILL": hangs, "retries": retries} {
		if n == 0 {
			t.Errorf("%s: none in %d worlds", name, ends)
		}
	}
}
