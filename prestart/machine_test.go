package prestart

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write testdata/states.txt anew")

// line of a story: what happens, and what the machine wants.
type line struct {
	at   time.Duration // since the beginning
	ev   Event
	want string
}

func play(t *testing.T, cfg Config, story []line) *Machine {
	t.Helper()
	m := New(cfg)
	for i, l := range story {
		if got := render(m.Step(epoch.Add(l.at), l.ev)); got != l.want {
			t.Errorf("line %d, %T at %v:\n got %s\nwant %s", i, l.ev, l.at, got, l.want)
		}
	}
	if at, ok := m.Deadline(); m.State() == Ended && ok {
		t.Errorf("ended with a deadline left, at %v", at)
	}
	return m
}

const s = time.Second

func TestStories(t *testing.T) {
	limited := steps(1, func(s *Step) { s.Timeout = 30 * time.Second })
	retried := func(n int) []Step { return steps(1, func(s *Step) { s.Retries = n }) }
	withWait := append([]Step{{Kind: Wait, Name: "w", Argv: []string{"skep-wait"}}}, steps(2, nil)...)
	for _, test := range []struct {
		name  string
		cfg   Config
		story []line
		end   State
	}{
		{"nothing to do", Config{}, []line{
			{0, Begin{}, "finished 0"},
		}, Ended},
		{"nothing to do needs no lock", Config{Lock: true, Key: true}, []line{
			{0, Begin{}, "finished 0"},
		}, Ended},
		{"waits alone need no lock", Config{Lock: true, Key: true, Steps: withWait[:1]}, []line{
			{0, Begin{}, "run w"},
			{0, Started{PID: 7}, "(started)"},
			{1 * s, Exited{}, "(ended), finished 0"},
		}, Ended},
		{"in order", Config{Steps: steps(3, nil)}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{1 * s, Exited{}, "(ended), run b"},
			{1 * s, Started{PID: 8}, "(started)"},
			{2 * s, Exited{}, "(ended), run c"},
			{2 * s, Started{PID: 9}, "(started)"},
			{3 * s, Exited{}, "(ended), finished 0"},
			{4 * s, Exited{}, "-"},
		}, Ended},
		{"failing", Config{Steps: steps(2, nil)}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{1 * s, Exited{Code: 7}, "kill, (failed), finished 7"},
		}, Ended},
		{"dying of a signal", Config{Steps: steps(2, nil)}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{1 * s, Exited{Signal: 11}, "kill, (failed), finished 139"},
		}, Ended},
		{"handing over nonsense", Config{Steps: steps(2, nil)}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{1 * s, Exited{Err: "line 1: no ="}, "kill, (failed), finished 125"},
		}, Ended},
		{"nonsense of a failed step does not hide its code", Config{Steps: steps(2, nil)}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{1 * s, Exited{Code: 3, Err: "line 1: no ="}, "kill, (failed), finished 3"},
		}, Ended},
		{"missing is not tried again", Config{Steps: retried(5)}, []line{
			{0, Begin{}, "run a"},
			{0, StartFailed{Code: 127, Err: "not found"}, "(failed), finished 127"},
		}, Ended},
		{"not executable is not tried again", Config{Steps: retried(5)}, []line{
			{0, Begin{}, "run a"},
			{0, StartFailed{Code: 126, Err: "permission denied"}, "(failed), finished 126"},
		}, Ended},
		{"a fork that fails is", Config{Steps: retried(1)}, []line{
			{0, Begin{}, "run a"},
			{0, StartFailed{Code: 125, Err: "cannot fork"}, "(retrying)"},
			{1 * s, Tick{}, "run a"},
			{1 * s, StartFailed{Err: "cannot fork"}, "(failed), finished 125"},
		}, Ended},
		{"a 127 of the step's own is tried again", Config{Steps: retried(1)}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{0, Exited{Code: 127}, "kill, (retrying)"},
			{1 * s, Tick{}, "run a"},
			{1 * s, Started{PID: 8}, "(started)"},
			{2 * s, Exited{}, "(ended), finished 0"},
		}, Ended},
		{"pauses double up to the longest, and a tick that is early does nothing",
			Config{Steps: retried(5), RetryDelay: 2 * s, RetryMaxDelay: 7 * s}, []line{
				{0, Begin{}, "run a"},
				{0, Started{PID: 1}, "(started)"},
				{0, Exited{Code: 1}, "kill, (retrying)"},
				{2*s - 1, Tick{}, "-"},
				{2 * s, Tick{}, "run a"},
				{2 * s, Started{PID: 2}, "(started)"},
				{2 * s, Exited{Code: 1}, "kill, (retrying)"},
				{6*s - 1, Tick{}, "-"},
				{6 * s, Tick{}, "run a"},
				{6 * s, Started{PID: 3}, "(started)"},
				{6 * s, Exited{Code: 1}, "kill, (retrying)"},
				{13*s - 1, Tick{}, "-"},
				{13 * s, Tick{}, "run a"},
				{13 * s, Started{PID: 4}, "(started)"},
				{13 * s, Exited{Code: 1}, "kill, (retrying)"},
				{20*s - 1, Tick{}, "-"},
				{20 * s, Tick{}, "run a"},
				{20 * s, Started{PID: 5}, "(started)"},
				{20 * s, Exited{}, "(ended), finished 0"},
			}, Ended},
		{"retries are counted for each step anew", Config{Steps: steps(2, func(s *Step) { s.Retries = 1 })}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 1}, "(started)"},
			{0, Exited{Code: 1}, "kill, (retrying)"},
			{1 * s, Tick{}, "run a"},
			{1 * s, Started{PID: 2}, "(started)"},
			{1 * s, Exited{}, "(ended), run b"},
			{1 * s, Started{PID: 3}, "(started)"},
			{1 * s, Exited{Code: 1}, "kill, (retrying)"},
			{2 * s, Tick{}, "run b"},
			{2 * s, Started{PID: 4}, "(started)"},
			{2 * s, Exited{Code: 9}, "kill, (failed), finished 9"},
		}, Ended},
		{"hanging, ends by TERM", Config{Steps: limited}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{30*s - 1, Tick{}, "-"},
			{30 * s, Tick{}, "(timed out), signal 15, signal 18"},
			{31 * s, Exited{Signal: 15}, "kill, (failed), finished 124"},
		}, Ended},
		{"hanging, answers TERM with 0: still timed out", Config{Steps: limited}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{30 * s, Tick{}, "(timed out), signal 15, signal 18"},
			{31 * s, Exited{}, "kill, (failed), finished 124"},
		}, Ended},
		{"hanging and ignoring TERM", Config{Steps: limited, Grace: 5 * s}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{30 * s, Tick{}, "(timed out), signal 15, signal 18"},
			{35*s - 1, Tick{}, "-"},
			{35 * s, Tick{}, "(killed), kill"},
			{36 * s, Exited{Signal: 9}, "kill, (failed), finished 124"},
		}, Ended},
		{"each attempt has the whole timeout", Config{Steps: steps(1, func(s *Step) { s.Timeout, s.Retries = 30*time.Second, 1 })}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{30 * s, Tick{}, "(timed out), signal 15, signal 18"},
			{30 * s, Exited{Signal: 15}, "kill, (retrying)"},
			{31 * s, Tick{}, "run a"},
			{31 * s, Started{PID: 8}, "(started)"},
			{61*s - 1, Tick{}, "-"},
			{61 * s, Tick{}, "(timed out), signal 15, signal 18"},
			{62 * s, Exited{Code: 3}, "kill, (failed), finished 124"},
		}, Ended},
		{"ended before the tick came: not timed out", Config{Steps: limited}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{40 * s, Exited{}, "(ended), finished 0"},
			{40 * s, Tick{}, "-"},
		}, Ended},

		{"lock around the commands, not the waits", Config{Steps: withWait, Lock: true}, []line{
			{0, Begin{}, "run w"},
			{0, Started{PID: 7}, "(started)"},
			{1 * s, Exited{}, "(ended), lock"},
			{9 * s, LockTaken{}, "(locked), run a"},
			{9 * s, Started{PID: 8}, "(started)"},
			{9 * s, Exited{}, "(ended), run b"},
			{9 * s, Started{PID: 9}, "(started)"},
			{9 * s, Exited{}, "(ended), open lock, finished 0"},
		}, Ended},
		{"key: the stamp is written before the lock is let go", Config{Steps: steps(1, nil), Lock: true, Key: true}, []line{
			{0, Begin{}, "lock"},
			{0, LockTaken{}, "(locked), run a"},
			{0, Started{PID: 8}, "(started)"},
			{0, Exited{}, "(ended), stamp"},
			{0, Stamped{}, "open lock, finished 0"},
		}, Ended},
		{"key: done elsewhere", Config{Steps: withWait, Lock: true, Key: true}, []line{
			{0, Begin{}, "run w"},
			{0, Started{PID: 7}, "(started)"},
			{1 * s, Exited{}, "(ended), lock"},
			{2 * s, LockTaken{Done: true}, "(skipped), open lock, finished 0"},
		}, Ended},
		{"key: a failed step leaves no stamp and the lock to what is left of it", Config{Steps: steps(2, nil), Lock: true, Key: true}, []line{
			{0, Begin{}, "lock"},
			{0, LockTaken{}, "(locked), run a"},
			{0, Started{PID: 8}, "(started)"},
			{0, Exited{Code: 4}, "kill, (failed), close lock, finished 4"},
		}, Ended},
		{"no lock to be had", Config{Steps: steps(1, nil), Lock: true}, []line{
			{0, Begin{}, "lock"},
			{0, LockFailed{Err: "no locks available"}, "(no lock), close lock, finished 125"},
		}, Ended},
		{"no stamp to be written", Config{Steps: steps(1, nil), Lock: true, Key: true}, []line{
			{0, Begin{}, "lock"},
			{0, LockTaken{}, "(locked), run a"},
			{0, Started{PID: 8}, "(started)"},
			{0, Exited{}, "(ended), stamp"},
			{0, StampFailed{Err: "no space left"}, "(no stamp), close lock, finished 125"},
		}, Ended},

		{"stop: the step gets it, dies of it, no other begins", Config{Steps: steps(2, nil), StopTimeout: 25 * s}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{1 * s, Stop{15}, "(stopping), signal 15, signal 18"},
			{2 * s, Exited{Signal: 15}, "(failed), finished 143 stopped"},
		}, Ended},
		{"stop: the step's own code is kept", Config{Steps: steps(2, nil), StopTimeout: 25 * s}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{1 * s, Stop{15}, "(stopping), signal 15, signal 18"},
			{2 * s, Exited{Code: 3}, "(failed), finished 3 stopped"},
		}, Ended},
		{"stop: code 0 is not passed off as success", Config{Steps: steps(1, nil), StopTimeout: 25 * s, Lock: true, Key: true}, []line{
			{0, Begin{}, "lock"},
			{0, LockTaken{}, "(locked), run a"},
			{0, Started{PID: 7}, "(started)"},
			{1 * s, Stop{2}, "(stopping), signal 2, signal 18"},
			{2 * s, Exited{}, "(ended), close lock, finished 130 stopped"},
		}, Ended},
		{"stop: TERM again changes nothing, the deadline stays", Config{Steps: steps(1, nil), StopTimeout: 25 * s}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{1 * s, Stop{15}, "(stopping), signal 15, signal 18"},
			{20 * s, Stop{15}, "-"},
			{26*s - 1, Tick{}, "-"},
			{26 * s, Tick{}, "(killed), kill"},
			{26 * s, Exited{Signal: 9}, "(failed), finished 137 stopped"},
		}, Ended},
		{"stop: another signal is passed on once, the deadline stays", Config{Steps: steps(1, nil), StopTimeout: 25 * s}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{1 * s, Stop{15}, "(stopping), signal 15, signal 18"},
			{20 * s, Stop{3}, "signal 3"},
			{21 * s, Stop{3}, "-"},
			{26 * s, Tick{}, "(killed), kill"},
		}, Killing},
		{"stop: a second INT kills now", Config{Steps: steps(1, nil), StopTimeout: 25 * s}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{1 * s, Stop{2}, "(stopping), signal 2, signal 18"},
			{2 * s, Stop{2}, "(killed), kill"},
			{2 * s, Exited{Signal: 9}, "(failed), finished 137 stopped"},
		}, Ended},
		{"stop: an end that never comes is not waited for", Config{Steps: steps(1, nil), StopTimeout: 25 * s}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{1 * s, Stop{15}, "(stopping), signal 15, signal 18"},
			{26 * s, Tick{}, "(killed), kill"},
			{26*s + afterKill, Tick{}, "finished 137 stopped"},
			{30 * s, Exited{Signal: 9}, "-"},
		}, Ended},
		{"stop: while a step is being started", Config{Steps: steps(1, nil), StopTimeout: 25 * s}, []line{
			{0, Begin{}, "run a"},
			{0, Stop{15}, "-"},
			{1 * s, Started{PID: 7}, "(started), signal 15, signal 18"},
			{25 * s, Tick{}, "(killed), kill"},
			{25 * s, Exited{Signal: 9}, "(failed), finished 137 stopped"},
		}, Ended},
		{"stop: while a step is being started that cannot be", Config{Steps: steps(1, func(s *Step) { s.Retries = 3 }), StopTimeout: 25 * s}, []line{
			{0, Begin{}, "run a"},
			{0, Stop{15}, "-"},
			{1 * s, StartFailed{Code: 125, Err: "cannot fork"}, "(failed), finished 125 stopped"},
		}, Ended},
		{"stop: in the pause before another attempt", Config{Steps: steps(1, func(s *Step) { s.Retries = 3 }), StopTimeout: 25 * s}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{0, Exited{Code: 1}, "kill, (retrying)"},
			{0, Stop{15}, "(stopping), finished 143 stopped"},
		}, Ended},
		{"stop: a failure after it is not tried again", Config{Steps: steps(1, func(s *Step) { s.Retries = 3 }), StopTimeout: 25 * s}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{0, Stop{15}, "(stopping), signal 15, signal 18"},
			{0, Exited{Code: 1}, "(failed), finished 1 stopped"},
		}, Ended},
		{"stop: while the lock is waited for", Config{Steps: steps(1, nil), Lock: true, StopTimeout: 25 * s}, []line{
			{0, Begin{}, "lock"},
			{0, Stop{15}, "(stopping), close lock, finished 143 stopped"},
			{0, LockTaken{}, "-"},
		}, Ended},
		{"stop: while the stamp is written, which is waited for shortly", Config{Steps: steps(1, nil), Lock: true, Key: true, StopTimeout: 25 * s}, []line{
			{0, Begin{}, "lock"},
			{0, LockTaken{}, "(locked), run a"},
			{0, Started{PID: 8}, "(started)"},
			{0, Exited{}, "(ended), stamp"},
			{0, Stop{15}, "(stopping)"},
			{stampGrace, Tick{}, "open lock, finished 143 stopped"},
		}, Ended},
		{"stop: the stamp comes in time", Config{Steps: steps(1, nil), Lock: true, Key: true, StopTimeout: 25 * s}, []line{
			{0, Begin{}, "lock"},
			{0, LockTaken{}, "(locked), run a"},
			{0, Started{PID: 8}, "(started)"},
			{0, Exited{}, "(ended), stamp"},
			{0, Stop{15}, "(stopping)"},
			{1, Stamped{}, "open lock, finished 143 stopped"},
		}, Ended},
		{"stop: it beats a later timeout and takes the nearer deadline", Config{Steps: limited, Grace: 10 * s, StopTimeout: 2 * s}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{30 * s, Tick{}, "(timed out), signal 15, signal 18"},
			{31 * s, Stop{15}, "(stopping), signal 15, signal 18"},
			{33 * s, Tick{}, "(killed), kill"},
			{33 * s, Exited{Signal: 9}, "(failed), finished 124 stopped"},
		}, Ended},
		{"stop: the step's timeout does not matter any more", Config{Steps: limited, StopTimeout: 60 * s}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{29 * s, Stop{15}, "(stopping), signal 15, signal 18"},
			{30 * s, Tick{}, "-"},
			{89 * s, Tick{}, "(killed), kill"},
			{89 * s, Exited{Signal: 9}, "(failed), finished 137 stopped"},
		}, Ended},
		{"stop: without a stop-timeout only the user kills", Config{Steps: limited}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{1 * s, Stop{15}, "(stopping), signal 15, signal 18"},
			{9999 * s, Tick{}, "-"},
			{9999 * s, KillNow{}, "(killed), kill"},
			{9999 * s, Exited{Signal: 9}, "(failed), finished 137 stopped"},
		}, Ended},
		{"stop: during the wait for the end of a step that timed out and got KILL", Config{Steps: limited, StopTimeout: 25 * s, Grace: s}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{30 * s, Tick{}, "(timed out), signal 15, signal 18"},
			{31 * s, Tick{}, "(killed), kill"},
			{40 * s, Stop{15}, "(stopping)"},
			{40*s + afterKill, Tick{}, "finished 124 stopped"},
		}, Ended},
		{"stop: before the beginning", Config{Steps: steps(1, nil)}, []line{
			{0, Stop{15}, "(stopping), finished 143 stopped"},
			{0, Begin{}, "-"},
		}, Ended},
		{"kill now: while a step is being started", Config{Steps: steps(1, nil)}, []line{
			{0, Begin{}, "run a"},
			{0, KillNow{}, "-"},
			{0, Started{PID: 7}, "(started), (killed), kill"},
			{0, Exited{Signal: 9}, "(failed), finished 137 stopped"},
		}, Ended},
		{"kill now: without a stop before", Config{Steps: steps(1, nil)}, []line{
			{0, Begin{}, "run a"},
			{0, Started{PID: 7}, "(started)"},
			{0, KillNow{}, "(killed), kill"},
			{0, Exited{Signal: 9}, "(failed), finished 137 stopped"},
		}, Ended},
	} {
		t.Run(test.name, func(t *testing.T) {
			if m := play(t, test.cfg, test.story); m.State() != test.end {
				t.Errorf("the state is %v, want %v", m.State(), test.end)
			}
		})
	}
}

// TestStates writes down what every event does in every state and compares it
// with testdata/states.txt.
func TestStates(t *testing.T) {
	cfg := Config{Steps: steps(2, func(s *Step) { s.Timeout, s.Retries = 30*time.Second, 1 }), Lock: true, Key: true, StopTimeout: 25 * s}
	none := func(*Machine) {}
	tell := func(events ...Event) func(*Machine) {
		return func(m *Machine) {
			for _, ev := range events {
				m.Step(epoch, ev)
			}
		}
	}
	late := func(d time.Duration) func(*Machine) { return func(m *Machine) { m.Step(epoch.Add(d), Tick{}) } }
	ways := []struct {
		state State
		way   []func(*Machine)
	}{
		{Idle, nil},
		{Locking, []func(*Machine){tell(Begin{})}},
		{Starting, []func(*Machine){tell(Begin{}, LockTaken{})}},
		{Running, []func(*Machine){tell(Begin{}, LockTaken{}, Started{PID: 7})}},
		{Terminating, []func(*Machine){tell(Begin{}, LockTaken{}, Started{PID: 7}), late(30 * s)}},
		{Killing, []func(*Machine){tell(Begin{}, LockTaken{}, Started{PID: 7}), late(30 * s), late(60 * s)}},
		{Backoff, []func(*Machine){tell(Begin{}, LockTaken{}, Started{PID: 7}, Exited{Code: 1})}},
		{Stamping, []func(*Machine){tell(Begin{}, LockTaken{}, Started{PID: 7}, Exited{}, Started{PID: 8}, Exited{})}},
		{Ended, []func(*Machine){tell(Begin{}, LockTaken{Done: true})}},
	}
	events := []struct {
		name string
		ev   Event
		at   time.Duration
	}{
		{"Begin", Begin{}, 0},
		{"LockTaken", LockTaken{}, 0},
		{"LockTaken done", LockTaken{Done: true}, 0},
		{"LockFailed", LockFailed{Err: "e"}, 0},
		{"Started", Started{PID: 9}, 0},
		{"StartFailed 127", StartFailed{Code: 127, Err: "e"}, 0},
		{"StartFailed 125", StartFailed{Code: 125, Err: "e"}, 0},
		{"Exited 0", Exited{}, 0},
		{"Exited 3", Exited{Code: 3}, 0},
		{"Stamped", Stamped{}, 0},
		{"StampFailed", StampFailed{Err: "e"}, 0},
		{"Stop TERM", Stop{15}, 0},
		{"KillNow", KillNow{}, 0},
		{"Tick early", Tick{}, 0},
		{"Tick late", Tick{}, 200 * s},
	}
	var b strings.Builder
	for _, stopped := range []bool{false, true} {
		for _, w := range ways {
			for _, e := range events {
				m := New(cfg)
				for _, step := range append(w.way, none) {
					step(m)
				}
				if m.State() != w.state {
					t.Fatalf("the way to %v leads to %v", w.state, m.State())
				}
				name := w.state.String()
				now := epoch.Add(100 * s)
				if w.state == Running || w.state == Backoff || w.state == Terminating {
					now = epoch.Add(500 * time.Millisecond)
				}
				if stopped {
					m.Step(now, Stop{15})
					if m.State() == Ended && w.state != Ended {
						break // a stop ends it here: there is no such state
					}
					name += " stopping"
				}
				fmt.Fprintf(&b, "%-20s %-16s %s", name, e.name, render(m.Step(now.Add(e.at), e.ev)))
				fmt.Fprintf(&b, " → %v\n", m.State())
			}
		}
	}
	const golden = "testdata/states.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("run with -update when this is meant (-want +got):\n%s", diff)
	}
}

func TestPlan(t *testing.T) {
	wait := Step{Kind: Wait, Name: "tcp://db:1", Path: "/proc/self/exe", Argv: []string{"skep-wait"}, Timeout: 62 * s}
	got := Plan([]Step{wait}, [][]string{{"/app/bin/alembic", "upgrade", "head"}, {"x/"}}, []string{"/etc/skep/prestart.d/10-a"}, 5*s, 2)
	want := []Step{
		wait,
		{Kind: Command, Name: "alembic", Argv: []string{"/app/bin/alembic", "upgrade", "head"}, Timeout: 5 * s, Retries: 2},
		{Kind: Command, Name: "x/", Argv: []string{"x/"}, Timeout: 5 * s, Retries: 2},
		{Kind: File, Name: "10-a", Path: "/etc/skep/prestart.d/10-a", Argv: []string{"/etc/skep/prestart.d/10-a"}, Timeout: 5 * s, Retries: 2},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestNotes reads what a user reads.
func TestNotes(t *testing.T) {
	var lines []string
	m := New(Config{Steps: steps(2, func(s *Step) { s.Timeout, s.Retries = 30*time.Second, 1 }), StopTimeout: 25 * s})
	for _, l := range []line{
		{at: 0, ev: Begin{}},
		{at: 0, ev: Started{PID: 7}},
		{at: 1234 * time.Millisecond, ev: Exited{Code: 7}},
		{at: 3 * s, ev: Tick{}},
		{at: 3 * s, ev: Started{PID: 8}},
		{at: 4 * s, ev: Exited{}},
		{at: 4 * s, ev: Started{PID: 9}},
		{at: 34 * s, ev: Tick{}},
		{at: 44 * s, ev: Tick{}},
		{at: 44 * s, ev: Exited{Signal: 9}},
		{at: 50 * s, ev: Tick{}},
		{at: 50 * s, ev: Started{PID: 10}},
		{at: 51 * s, ev: Stop{15}},
		{at: 52 * s, ev: Exited{Signal: 15}},
	} {
		for _, e := range m.Step(epoch.Add(l.at), l.ev) {
			if n, ok := e.(Note); ok {
				lines = append(lines, map[Level]string{Info: "info ", Warn: "warn ", Error: "error "}[n.Level()]+n.String())
			}
		}
	}
	want := []string{
		"info step 1 of 2 (a) started, pid 7",
		"warn step 1 of 2 (a) failed after 1.2s: exit code 7; attempt 2 of 2 in 1s",
		"info step 1 of 2 (a) started, pid 8 (attempt 2 of 2)",
		"info step 1 of 2 (a) ended well after 1s",
		"info step 2 of 2 (b) started, pid 9",
		"warn step 2 of 2 (b) did not end within 30s; sent TERM, KILL in 10s",
		"warn step 2 of 2 (b) was still there after 40s; sent KILL to all of it",
		"warn step 2 of 2 (b) failed after 40s: timed out; attempt 2 of 2 in 1s",
		"info step 2 of 2 (b) started, pid 10 (attempt 2 of 2)",
		"info stop by signal 15 before the start; passed on to step 2 of 2 (b), KILL in 25s; no worker is started",
		"info step 2 of 2 (b) failed after 2s: killed by signal 15; stopped, nothing more is started",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for text, note := range map[string]Note{
		"step 1 of 1 (a) failed: not found; no worker is started, ending with code 127":          {What: StepFailed, Step: "a", Number: 1, Steps: 1, Code: 127, Err: "not found"},
		"cannot take the lock: e; no step is run, ending with code 125":                          {What: NoLock, Err: "e", Code: 125},
		"cannot write the stamp: e; the steps have run and will run again, ending with code 125": {What: NoStamp, Err: "e", Code: 125},
		"the lock is held; running the steps":                                                    {What: Locked},
		"the steps have been done for this key; skipping them":                                   {What: Skipped},
		"step 2 of 2 (b) ended well after 5ms; it was the last":                                  {What: StepEnded, Step: "b", Number: 2, Steps: 2, Took: 5 * time.Millisecond},
		"stop by signal 2 before the start; no worker is started":                                {What: Stopping, Signal: 2},
	} {
		if note.String() != text {
			t.Errorf("got  %q\nwant %q", note.String(), text)
		}
	}
}

// The stop's end is told, so that what the steps leave shares its time.
func TestStopTellsItsEnd(t *testing.T) {
	for _, test := range []struct {
		name    string
		timeout time.Duration
		events  []Event // a second apart, the stop first
		want    time.Time
	}{
		{"step obeys", 25 * time.Second, []Event{Stop{Signal: sigTERM}, Exited{Signal: sigTERM}}, epoch.Add(25 * time.Second)},
		{"no limit", 0, []Event{Stop{Signal: sigTERM}, Exited{Signal: sigTERM}}, time.Time{}},
		{"killed now", 25 * time.Second, []Event{Stop{Signal: sigINT}, Stop{Signal: sigINT}, Exited{Signal: sigKILL}}, epoch.Add(1 * time.Second)},
		{"no stop", 25 * time.Second, []Event{Exited{Code: 3}}, time.Time{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := New(Config{Steps: steps(1, nil), StopTimeout: test.timeout})
			m.Step(epoch, Begin{})
			m.Step(epoch, Started{PID: 7})
			var effects []Effect
			for i, ev := range test.events {
				effects = m.Step(epoch.Add(time.Duration(i)*time.Second), ev)
			}
			if len(effects) == 0 {
				t.Fatal("not finished")
			}
			if got, ok := effects[len(effects)-1].(Finished); !ok || !got.By.Equal(test.want) {
				t.Errorf("the end is %+v, want it with By %v", effects[len(effects)-1], test.want)
			}
		})
	}
}
