package supervise

import (
	"strings"
	"testing"
	"time"
)

// wrongCore is a Supervisor with one deliberate fault.
type wrongCore struct {
	*Supervisor
	before   func(*Supervisor, Event) Event // may change what happens; nil swallows it
	after    func(*Supervisor, time.Time, Event, []Effect) []Effect
	deadline func(*Supervisor, time.Time, bool) (time.Time, bool)
}

func (c *wrongCore) Step(now time.Time, ev Event) []Effect {
	if c.before != nil {
		if ev = c.before(c.Supervisor, ev); ev == nil {
			return nil
		}
	}
	effects := c.Supervisor.Step(now, ev)
	if c.after != nil {
		effects = c.after(c.Supervisor, now, ev, effects)
	}
	return effects
}

func (c *wrongCore) Deadline() (time.Time, bool) {
	at, ok := c.Supervisor.Deadline()
	if c.deadline != nil {
		return c.deadline(c.Supervisor, at, ok)
	}
	return at, ok
}

// each changes, drops (nil) or keeps every effect.
func each(change func(Effect) Effect) func(*Supervisor, time.Time, Event, []Effect) []Effect {
	return func(_ *Supervisor, _ time.Time, _ Event, effects []Effect) []Effect {
		var changed []Effect
		for _, e := range effects {
			if e = change(e); e != nil {
				changed = append(changed, e)
			}
		}
		return changed
	}
}

// TestSimulationNoticesFaults is the proof that the laws have teeth: every
// fault has to be found, by the law that it breaks, within a few worlds.
func TestSimulationNoticesFaults(t *testing.T) {
	for _, fault := range []struct {
		name string
		law  string // a part of what the simulation has to say
		core wrongCore
	}{
		{"signals a stranger", "law 2", wrongCore{after: each(func(e Effect) Effect {
			if k, ok := e.(Kill); ok {
				k.PID++
				return k
			}
			return e
		})}},
		{"signals the process of another seat", "law 2", wrongCore{after: each(func(e Effect) Effect {
			if k, ok := e.(Kill); ok {
				k.Seat++
				return k
			}
			return e
		})}},
		{"starts after the stop began", "law 7", wrongCore{after: func(s *Supervisor, _ time.Time, ev Event, effects []Effect) []Effect {
			if _, ok := ev.(Exited); ok && s.phase == Halting && len(effects) > 0 {
				return []Effect{Start{Seat: s.nextID, Slot: 0}}
			}
			return effects
		}}},
		{"starts twice", "", wrongCore{after: func(_ *Supervisor, _ time.Time, _ Event, effects []Effect) []Effect {
			if n := len(effects); n > 0 {
				if start, ok := effects[n-1].(Start); ok {
					return append(effects, start)
				}
			}
			return effects
		}}},
		{"changes a seat in silence", "the generation", wrongCore{after: func(s *Supervisor, _ time.Time, _ Event, effects []Effect) []Effect {
			s.generation = 0
			return effects
		}}},
		{"does not heed one that says that it stops", "although its worker said", wrongCore{before: func(_ *Supervisor, ev Event) Event {
			if _, ok := ev.(Leaving); ok {
				return Tick{}
			}
			return ev
		}}},
		{"does not heed that one is dying", "although its worker is dying", wrongCore{before: func(_ *Supervisor, ev Event) Event {
			if _, ok := ev.(Dying); ok {
				return Tick{}
			}
			return ev
		}}},
		{"ends one that ends by itself", "ending by itself", wrongCore{after: func(s *Supervisor, _ time.Time, ev Event, effects []Effect) []Effect {
			if ev, ok := ev.(Leaving); ok {
				if st := s.byPID(ev.PID); st != nil && st.leaving && s.phase == Running {
					return append(effects, Kill{Seat: st.ID, PID: st.PID, Signal: sigterm})
				}
			}
			return effects
		}}},
		{"forgets an exit", "does not match", wrongCore{before: func(_ *Supervisor, ev Event) Event {
			if exit, ok := ev.(Exited); ok && exit.Status.Code == 3 {
				return nil
			}
			return ev
		}}},
		{"forgets a process", "have a seat", wrongCore{after: func(s *Supervisor, _ time.Time, ev Event, effects []Effect) []Effect {
			if _, ok := ev.(Hung); ok && s.phase == Running && len(s.seats) > 1 && s.seats[0].State == Stopping {
				s.retire(s.seats[0])
			}
			return effects
		}}},
		{"retires twice", "retired twice", wrongCore{after: func(_ *Supervisor, _ time.Time, _ Event, effects []Effect) []Effect {
			for _, e := range effects {
				if r, ok := e.(Retire); ok {
					return append([]Effect{r}, effects...)
				}
			}
			return effects
		}}},
		{"never retires", "went without Retire", wrongCore{after: each(func(e Effect) Effect {
			if _, ok := e.(Retire); ok {
				return nil
			}
			return e
		})}},
		{"never kills", "was not killed", wrongCore{after: each(func(e Effect) Effect {
			if k, ok := e.(Kill); ok && k.Signal == sigkill {
				return nil
			}
			return e
		})}},
		{"kills without the tree", "not its tree", wrongCore{after: each(func(e Effect) Effect {
			if k, ok := e.(Kill); ok {
				k.Tree = false
				return k
			}
			return e
		})}},
		{"never kills what is left", "what is left was not killed", wrongCore{after: each(func(e Effect) Effect {
			if k, ok := e.(Sweep); ok && k.Signal == sigkill {
				return nil
			}
			return e
		})}},
		{"does not wait for the children to go", "although processes are left", wrongCore{after: func(s *Supervisor, _ time.Time, _ Event, effects []Effect) []Effect {
			if s.phase == Sweeping {
				s.quit()
				return append(effects, s.out[len(s.out)-1])
			}
			return effects
		}}},
		{"puts the end off with every event", "law 8", wrongCore{after: func(s *Supervisor, now time.Time, _ Event, effects []Effect) []Effect {
			if s.phase == Halting && !s.quitBy.IsZero() {
				s.quitBy = now.Add(giveUp)
				s.stopBy = s.quitBy
				for _, st := range s.seats {
					st.deadline = s.quitBy
				}
			}
			return effects
		}}},
		{"never gives up", "law 8", wrongCore{after: func(s *Supervisor, _ time.Time, _ Event, effects []Effect) []Effect {
			s.quitBy = time.Time{}
			return effects
		}}},
		{"never leaves the drain delay", "", wrongCore{after: func(s *Supervisor, _ time.Time, _ Event, effects []Effect) []Effect {
			s.lingerBy = time.Time{}
			return effects
		}}},
		{"has no deadline in the stop", "", wrongCore{deadline: func(s *Supervisor, at time.Time, ok bool) (time.Time, bool) {
			return at, ok && s.phase != Halting
		}}},
		{"does not wake for a worker that waits", "waits for ever", wrongCore{deadline: func(s *Supervisor, at time.Time, ok bool) (time.Time, bool) {
			return at, ok && s.nextTurn().IsZero()
		}}},
		{"does not wake for the end of a backoff", "", wrongCore{deadline: func(s *Supervisor, at time.Time, ok bool) (time.Time, bool) {
			for _, st := range s.seats {
				ok = ok && st.State != Backoff
			}
			return at, ok
		}}},
		{"has a deadline that stays in the past", "no progress", wrongCore{deadline: func(_ *Supervisor, at time.Time, ok bool) (time.Time, bool) {
			return at.Add(-time.Hour), ok
		}}},
		{"has a deadline after Quit", "after Quit", wrongCore{deadline: func(s *Supervisor, at time.Time, ok bool) (time.Time, bool) {
			return at, ok || s.phase == Ended
		}}},
		{"quits twice", "after Quit", wrongCore{after: func(s *Supervisor, _ time.Time, ev Event, effects []Effect) []Effect {
			if _, ok := ev.(Childless); ok && s.phase == Ended {
				return append(effects, Quit{})
			}
			return effects
		}}},
		{"quits with another code", "it ends with", wrongCore{after: each(func(e Effect) Effect {
			if q, ok := e.(Quit); ok {
				return Quit{Code: q.Code + 1}
			}
			return e
		})}},
		{"takes a stop for nothing but 0", "it ends with", wrongCore{after: each(func(e Effect) Effect {
			if _, ok := e.(Quit); ok {
				return Quit{}
			}
			return e
		})}},
		{"starts all at once", "starting already", wrongCore{before: func(s *Supervisor, ev Event) Event {
			s.policy.StartParallel = 100
			return ev
		}}},
		{"waits for no backoff", "backoff of", wrongCore{after: func(s *Supervisor, now time.Time, _ Event, effects []Effect) []Effect {
			for _, st := range s.seats {
				if st.State == Backoff {
					st.deadline = now
				}
			}
			return effects
		}}},
		{"waits too long", "backoff of", wrongCore{after: func(s *Supervisor, _ time.Time, ev Event, effects []Effect) []Effect {
			for _, st := range s.seats {
				if st.State == Backoff && len(effects) > 0 && st.deadline.Sub(st.Since) < time.Minute {
					st.deadline = st.deadline.Add(time.Minute)
				}
			}
			return effects
		}}},
		{"replaces two at a time", "allowed", wrongCore{after: func(s *Supervisor, _ time.Time, _ Event, effects []Effect) []Effect {
			for _, st := range s.seats {
				if st.replaces >= 0 && s.turn != nil && s.turn.fresh == st.ID && st.PID != 0 {
					st.replaces = -1 // the next turn begins while the old one serves
					s.turn = nil
				}
			}
			return effects
		}}},
		{"gets stuck in a replacement", "not replaced by the reload", wrongCore{after: func(s *Supervisor, _ time.Time, ev Event, effects []Effect) []Effect {
			if _, ok := ev.(Recycle); ok && s.turn == nil && len(s.seats) > 0 && s.phase == Running {
				s.turn = &replacement{seat: s.seats[0].ID, fresh: -1, surge: true, reload: true}
			}
			return effects
		}}},
		{"ignores a reload", "not replaced by the reload", wrongCore{before: func(_ *Supervisor, ev Event) Event {
			if _, ok := ev.(Reload); ok {
				return Tick{}
			}
			return ev
		}}},
		{"keeps its spares", "a spare waits", wrongCore{after: func(s *Supervisor, now time.Time, _ Event, effects []Effect) []Effect {
			for _, st := range s.seats {
				if st.State == Ready && s.policy.Standby > 0 && s.phase == Running {
					s.move(now, st, Standby)
					break
				}
			}
			return effects
		}}},
		{"lets spares serve", "are wanted", wrongCore{after: func(s *Supervisor, now time.Time, _ Event, effects []Effect) []Effect {
			for _, st := range s.seats {
				if st.State == Standby {
					s.move(now, st, Ready)
				}
			}
			return effects
		}}},
		{"loses a seat when it scales", "want", wrongCore{before: func(s *Supervisor, ev Event) Event {
			if scale, ok := ev.(Scale); ok && s.phase == Running && scale.Workers > s.wanted {
				s.wanted = scale.Workers
				return Tick{}
			}
			return ev
		}}},
		{"disturbs a worker when another one dies", "is disturbed", wrongCore{after: func(s *Supervisor, _ time.Time, ev Event, effects []Effect) []Effect {
			if _, ok := ev.(Exited); ok && s.phase == Running {
				for _, st := range s.seats {
					if st.State == Ready {
						return append([]Effect{Kill{Seat: st.ID, PID: st.PID, Signal: sigterm}}, effects...)
					}
				}
			}
			return effects
		}}},
		{"goes back to an earlier phase", "", wrongCore{after: func(s *Supervisor, _ time.Time, _ Event, effects []Effect) []Effect {
			if s.phase == Halting {
				s.phase = Lingering
			}
			return effects
		}}},
	} {
		t.Run(fault.name, func(t *testing.T) {
			var w world
			for seed := uint64(1); seed <= 2000; seed++ {
				failure := w.run(newSeeded(seed), func(s *Supervisor) core {
					c := fault.core
					c.Supervisor = s
					return &c
				})
				if failure == "" {
					continue
				}
				said, _, _ := strings.Cut(failure, "\n")
				if fault.law == "" || strings.Contains(said, fault.law) {
					t.Logf("seed %d: %s", seed, said)
					return
				}
			}
			t.Error("not noticed in 2000 worlds")
		})
	}
}
