package supervise

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write docs/state-table.md")

const tableFile = "../../docs/state-table.md"

// subject is the slot and the seat that the table is about: the highest of
// three, so that it is the one that scaling down takes away.
const subject = 2

// inState plays a service of three workers, or two and a spare, until the
// worker in the last slot is in the state and the others are ready.
var inState = map[State]func(*testing.T) *scene{
	Down: func(t *testing.T) *scene {
		p := service(3)
		p.StartParallel, p.StartSpacing = 1, time.Minute
		return playReady(t, p).step(Hung{Seat: 1}).exit(1, -sigabrt).exit(subject, 3).after(time.Second) // 1 holds it up
	},
	Starting: func(t *testing.T) *scene {
		sc := playReady(t, service(2))
		return sc.step(Scale{Workers: 3})
	},
	Ready: func(t *testing.T) *scene { return playReady(t, service(3)) },
	Draining: func(t *testing.T) *scene {
		return playReady(t, service(3)).step(Recycle{Slot: subject, Cause: CauseMemory})
	},
	Stopping: func(t *testing.T) *scene {
		return playReady(t, service(3)).step(Recycle{Slot: subject, Cause: CauseMemory}).step(Drained{subject})
	},
	Killing: func(t *testing.T) *scene {
		return playReady(t, service(3)).step(Recycle{Slot: subject, Cause: CauseMemory}).step(Drained{subject}).after(25 * time.Second)
	},
	Backoff: func(t *testing.T) *scene { return playReady(t, service(3)).exit(subject, 3) },
	Standby: func(t *testing.T) *scene {
		p := service(2)
		p.Standby = 1
		return playReady(t, p)
	},
	Failed: func(t *testing.T) *scene {
		p := service(3)
		p.StartLimit = 1
		return playReady(t, p).exit(subject, 3).after(time.Second).exit(subject, 3)
	},
}

var stateMeaning = map[State]string{
	Down:     "It has no process and waits for its turn to start: only so many start at a time.",
	Starting: "Its process runs and is not ready yet.",
	Ready:    "It serves.",
	Draining: "It gets no new connections while its queue runs empty. Here it drains to be recycled.",
	Stopping: "It has been sent the stop signal, or the hang signal, or is dying. Here it is being recycled.",
	Killing:  "It did not end in time and has been sent KILL.",
	Backoff:  "It crashed and starts again when its delay is over.",
	Standby:  "It is ready, and kept out of the choice of connections until a place is free.",
	Failed:   "It died before it was ready more often than the start limit allows.",
}

type tableEvent struct {
	name string
	do   func(*scene)
	live bool // it can only happen to a seat that has a process
}

// ofProcess does something to the subject's process.
func ofProcess(do func(*scene, int)) func(*scene) {
	return func(sc *scene) { do(sc, sc.seat(subject).PID) }
}

func tableEvents() []tableEvent {
	return []tableEvent{
		{"its process exits with 0", ofProcess(func(sc *scene, pid int) { sc.step(Exited{PID: pid}) }), true},
		{"its process exits with 3", ofProcess(func(sc *scene, pid int) { sc.step(Exited{PID: pid, Status: Status{Code: 3}}) }), true},
		{"its process says that it is ready", ofProcess(func(sc *scene, pid int) { sc.step(BecameReady{PID: pid}) }), true},
		{"its process says that it stops", ofProcess(func(sc *scene, pid int) { sc.step(Leaving{PID: pid}) }), true},
		{"the kernel ends its process", ofProcess(func(sc *scene, pid int) { sc.step(Dying{PID: pid}) }), true},
		{"its queues are empty", func(sc *scene) { sc.step(Drained{subject}) }, false},
		{"it hangs", func(sc *scene) { sc.step(Hung{Seat: subject}) }, false},
		{"the next deadline passes", func(sc *scene) {
			if at, ok := sc.s.Deadline(); ok {
				sc.now = at
				sc.step(Tick{})
			}
		}, false},
		{"recycle, new one first", func(sc *scene) { sc.step(Recycle{Slot: subject, Cause: CauseAge, Surge: true}) }, false},
		{"recycle, old one first", func(sc *scene) { sc.step(Recycle{Slot: subject, Cause: CauseAge}) }, false},
		{"reload", func(sc *scene) { sc.step(Reload{Surge: true}) }, false},
		{"one worker fewer is wanted", func(sc *scene) { sc.step(Scale{Workers: sc.s.Wanted() - 1}) }, false},
		{"one worker more is wanted", func(sc *scene) { sc.step(Scale{Workers: sc.s.Wanted() + 1}) }, false},
		{"USR1", func(sc *scene) { sc.step(Signal{sigusr1}) }, false},
		{"TERM", func(sc *scene) { sc.step(Signal{sigterm}) }, false},
		{"its start succeeds, unasked", func(sc *scene) { sc.step(Started{Seat: subject, PID: 9}) }, false},
		{"its start fails, unasked", func(sc *scene) { sc.step(StartFailed{Seat: subject, Code: 126}) }, false},
		{"skep has no children", func(sc *scene) { sc.step(Childless{}) }, false},
	}
}

// effectWords tells the effects of a scene as seen from the subject.
func effectWords(sc *scene) string {
	var words []string
	for _, e := range sc.effects {
		verb, rest, _ := strings.Cut(e, " ")
		var seat, slot int
		who := func() string {
			switch {
			case seat == subject:
				return "it"
			case slot == subject:
				return "its replacement"
			}
			return "another worker"
		}
		switch verb {
		case "start":
			fmt.Sscanf(rest, "%d in slot %d", &seat, &slot)
			words = append(words, "start "+who())
		case "kill":
			var signal, tree string
			fmt.Sscanf(rest, "%d %s %s", &seat, &signal, &tree)
			if tree != "" {
				words = append(words, fmt.Sprintf("%s to %s and all below it", signal, who()))
			} else {
				words = append(words, fmt.Sprintf("%s to %s", signal, who()))
			}
		case "drain":
			fmt.Sscan(rest, &seat)
			words = append(words, "drain "+who())
		case "retire":
			fmt.Sscan(rest, &seat)
			words = append(words, "close the sockets of "+who())
		case "sweep":
			words = append(words, rest+" to whatever is left")
		case "quit":
			words = append(words, "end with "+rest)
		}
	}
	return strings.Join(slices.Compact(words), "; ")
}

func stateOf(sc *scene, seat int) string {
	for _, st := range sc.s.Seats() {
		if st.ID == seat {
			return st.State.String()
		}
	}
	return "gone"
}

// stateTable writes the document.
func stateTable(t *testing.T) string {
	var b strings.Builder
	b.WriteString(`# What happens when

Written by ` + "`go test ./initd/supervise -update`" + ` from the supervisor itself; a test fails when it is stale.

Each table is about one worker, *it*, in a service of three whose other two are ready, with the defaults: restart
auto, replaced one slot at a time, 25 s to stop. A seat is a worker's place at the port; its sockets outlive its process.
Events that change nothing in a state are listed below its table. The numbers in later tables are seats.
`)
	b.WriteString("\n## The state after\n\nA dot is no change, a dash cannot happen.\n\n| Event |")
	for _, state := range States() {
		fmt.Fprintf(&b, " %s |", state)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(States())) + "\n")
	for _, ev := range tableEvents() {
		fmt.Fprintf(&b, "| %s |", ev.name)
		for _, state := range States() {
			sc := inState[state](t)
			after := "–"
			if state.live() || !ev.live {
				ev.do(sc)
				after = stateOf(sc, subject)
			}
			if after == state.String() {
				after = "·"
			}
			fmt.Fprintf(&b, " %s |", after)
		}
		b.WriteString("\n")
	}
	for _, state := range States() {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| Event | State after | What skep does |\n|---|---|---|\n", state, stateMeaning[state])
		var nothing []string
		for _, ev := range tableEvents() {
			sc := inState[state](t)
			if got := stateOf(sc, subject); got != state.String() {
				t.Fatalf("state %s, want %s: %s", got, state, sc.states())
			}
			sc.clear()
			if ev.live && !state.live() {
				continue
			}
			before, phase, next := sc.states(), sc.s.Phase(), sc.s.byID(subject).next
			ev.do(sc)
			words := effectWords(sc)
			if st := sc.s.byID(subject); st != nil && st.State == state && st.next == nextRetire && next != nextRetire {
				fmt.Fprintf(&b, "| %s | %s | its slot closes when its process is gone |\n", ev.name, state)
				continue
			}
			if words == "" {
				words = "–"
			}
			if sc.states() == before && sc.s.Phase() == phase && len(sc.effects) == 0 {
				nothing = append(nothing, ev.name)
				continue
			}
			fmt.Fprintf(&b, "| %s | %s | %s |\n", ev.name, stateOf(sc, subject), words)
		}
		fmt.Fprintf(&b, "\nNothing changes: %s.\n", strings.Join(nothing, "; "))
	}
	firstTable(t, &b)
	reloadTable(t, &b)
	stopTable(t, &b)
	loneTable(t, &b)
	return b.String()
}

type course struct {
	name string
	do   func(*scene)
}

// courseTable plays one course of events, a row for each.
func courseTable(b *strings.Builder, sc *scene, title, text string, rows []course) {
	fmt.Fprintf(b, "\n## %s\n\n%s\n\n| Event | What skep does | Workers after, by slot |\n|---|---|---|\n", title, text)
	for _, row := range rows {
		sc.clear()
		row.do(sc)
		fmt.Fprintf(b, "| %s | %s | %s |\n", row.name, effectLines(sc), bySlot(sc))
	}
}

func effectLines(sc *scene) string {
	if len(sc.effects) == 0 {
		return "–"
	}
	return strings.Join(sc.effects, "; ")
}

func bySlot(sc *scene) string {
	if len(sc.s.Seats()) == 0 {
		return sc.s.Phase().String()
	}
	var all []string
	for _, st := range sc.s.Seats() {
		all = append(all, fmt.Sprintf("%d %s", st.Slot, st.State))
	}
	return strings.Join(all, ", ")
}

func firstTable(t *testing.T, b *strings.Builder) {
	fmt.Fprintf(b, `
## The first start

How the first start of three workers ends, as long as none has ever been ready.

| Event | What skep does | Workers after, by slot |
|---|---|---|
`)
	for _, row := range []struct {
		name   string
		refuse *StartFailed
		then   func(*scene)
	}{
		{"all start", nil, func(*scene) {}},
		{"one exits with 3", nil, func(sc *scene) { sc.clear().exit(1, 3) }},
		{"one exits with 0", nil, func(sc *scene) { sc.clear().exit(1, 0) }},
		{"the program is not found", &StartFailed{Code: 127}, func(*scene) {}},
		{"there are no resources for a process", &StartFailed{Code: 126, Transient: true}, func(*scene) {}},
		{"one is not ready in time", nil, func(sc *scene) { sc.ready(0, 2).clear().after(2 * time.Minute) }},
	} {
		sc := &scene{t: t, s: New(service(3)), now: epoch, nextPID: 100, refuse: row.refuse}
		sc.step(Begin{})
		row.then(sc)
		fmt.Fprintf(b, "| %s | %s | %s |\n", row.name, effectLines(sc), bySlot(sc))
	}
}

func reloadTable(t *testing.T, b *strings.Builder) {
	courseTable(b, playReady(t, service(2)), "A rolling reload",
		"Two workers in the seats 0 and 1. The old worker goes when the new one is ready.", []course{
			{"HUP", func(sc *scene) { sc.step(Signal{sighup}) }},
			{"HUP again: another round follows this one", func(sc *scene) { sc.step(Signal{sighup}) }},
			{"seat 2 is ready", func(sc *scene) { sc.ready(2) }},
			{"the queues of seat 0 are empty", func(sc *scene) { sc.step(Drained{0}) }},
			{"the process of seat 0 exits", func(sc *scene) { sc.exit(0, 0) }},
			{"seat 3 is ready", func(sc *scene) { sc.ready(3) }},
			{"seat 1 does not run empty in time", func(sc *scene) { sc.after(20 * time.Second) }},
			{"its process exits: the second round", func(sc *scene) { sc.exit(1, 0) }},
			{"the new process dies: the reload is aborted", func(sc *scene) { sc.exit(4, 3) }},
		})
}

func stopTable(t *testing.T, b *strings.Builder) {
	p := service(2)
	p.DrainDelay = 5 * time.Second
	courseTable(b, playReady(t, p), "A stop", "Two workers, a drain delay of 5 s, 25 s in all.", []course{
		{"TERM", func(sc *scene) { sc.step(Signal{sigterm}) }},
		{"TERM again, reload, scale, recycle, hang", func(sc *scene) {
			sc.step(Signal{sigterm}).step(Reload{Surge: true}).step(Scale{Workers: 4}).step(Recycle{Slot: 0}).step(Hung{Seat: 0})
		}},
		{"the drain delay is over", func(sc *scene) { sc.after(5 * time.Second) }},
		{"USR1", func(sc *scene) { sc.step(Signal{sigusr1}) }},
		{"TERM again", func(sc *scene) { sc.step(Signal{sigterm}) }},
		{"the process of seat 0 exits", func(sc *scene) { sc.exit(0, 0) }},
		{"the time is over", func(sc *scene) { sc.after(20 * time.Second) }},
		{"the process of seat 1 is gone", func(sc *scene) { sc.exit(1, -sigkill) }},
		{"skep has no children any more", func(sc *scene) { sc.step(Childless{}) }},
	})
	courseTable(b, playReady(t, service(2)), "A second INT", "Two workers.", []course{
		{"INT", func(sc *scene) { sc.step(Signal{sigint}) }},
		{"INT again", func(sc *scene) { sc.step(Signal{sigint}) }},
		{"a process does not go although it was killed", func(sc *scene) { sc.exit(0, -sigkill).after(giveUp) }},
	})
}

func loneTable(t *testing.T, b *strings.Builder) {
	courseTable(b, play(t, lone()), "A lone command", "One command that is not replicated, with no stop timeout.", []course{
		{"HUP", func(sc *scene) { sc.step(Signal{sighup}) }},
		{"TERM", func(sc *scene) { sc.step(Signal{sigterm}) }},
		{"TERM again", func(sc *scene) { sc.step(Signal{sigterm}) }},
		{"it exits with 7", func(sc *scene) { sc.exit(0, 7) }},
		{"what it left does not end", func(sc *scene) { sc.after(5 * time.Second) }},
		{"skep has no children any more", func(sc *scene) { sc.step(Childless{}) }},
	})
}

func TestStateTable(t *testing.T) {
	for _, state := range States() {
		if inState[state] == nil || stateMeaning[state] == "" {
			t.Fatalf("no row for the state %v", state)
		}
	}
	table := stateTable(t)
	if *update {
		if err := os.MkdirAll("../../docs", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(tableFile, []byte(table), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(tableFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != table {
		t.Error("docs/state-table.md is stale: go test ./initd/supervise -update")
	}
}
