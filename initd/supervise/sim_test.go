package supervise

import (
	"bufio"
	"flag"
	"os"
	"strconv"
	"strings"
	"testing"
)

var (
	simRuns = flag.Int("sim.runs", 0, "worlds to simulate; 0 is until 1000000 events have been stepped")
	simSeed = flag.Uint64("sim.seed", 1, "seed of the first world; the next ones count up")
)

// TestSimulation plays worlds of random events against a fake kernel and looks
// after every event whether the laws hold. A failure names its seed, which
// belongs into testdata/seeds.txt, and shows the shortest course of events that
// breaks the same law.
func TestSimulation(t *testing.T) {
	var w world
	events, worlds := 0, 0
	for seed := *simSeed; *simRuns > 0 && worlds < *simRuns || *simRuns == 0 && events < 1_000_000; seed++ {
		simulate(t, &w, seed)
		events += w.events
		worlds++
	}
	t.Logf("%d events in %d worlds", events, worlds)
}

func simulate(t *testing.T, w *world, seed uint64) {
	t.Helper()
	if failure := w.run(newSeeded(seed), nil); failure != "" {
		keep := &kept{choices: newSeeded(seed)}
		w.run(keep, nil)
		_, shortest := shrink(keep.list, failure, nil)
		t.Fatalf("seed %d (-run TestSimulation -sim.seed=%d -sim.runs=1): %s", seed, seed, shortest)
	}
}

// TestSimulationSeeds plays the worlds that have broken a law before.
func TestSimulationSeeds(t *testing.T) {
	file, err := os.Open("testdata/seeds.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var w world
	n := 0
	for lines := bufio.NewScanner(file); lines.Scan(); {
		number, law, ok := strings.Cut(lines.Text(), " ")
		if strings.HasPrefix(number, "#") {
			continue
		}
		seed, err := strconv.ParseUint(number, 10, 64)
		if err != nil || !ok {
			t.Fatalf("testdata/seeds.txt: want a seed and what it broke, got %q", lines.Text())
		}
		t.Run(law, func(t *testing.T) { simulate(t, &w, seed) })
		n++
	}
	if n == 0 {
		t.Error("no seeds")
	}
}

// TestShrink shows that a shorter course of events is found and still breaks
// the same law.
func TestShrink(t *testing.T) {
	wrong := func(s *Supervisor) core {
		return &wrongCore{Supervisor: s, before: func(s *Supervisor, ev Event) Event {
			if _, ok := ev.(Reload); ok {
				return Tick{}
			}
			return ev
		}}
	}
	var w world
	for seed := uint64(1); ; seed++ {
		keep := &kept{choices: newSeeded(seed)}
		failure := w.run(keep, wrong)
		if failure == "" {
			continue
		}
		long := len(keep.list)
		list, shortest := shrink(keep.list, failure, wrong)
		if len(list) >= long/2 || w.run(&listed{list: list}, wrong) != shortest || !strings.Contains(shortest, "not replaced by the reload") {
			t.Errorf("%d choices became %d: %s", long, len(list), shortest)
		}
		return
	}
}

// FuzzStep lets a fuzzer make the choices of a world.
func FuzzStep(f *testing.F) {
	for seed := range uint64(8) {
		keep := &kept{choices: newSeeded(seed)}
		new(world).run(keep, nil)
		f.Add(keep.list)
	}
	f.Fuzz(func(t *testing.T, list []byte) {
		var w world
		if failure := w.run(&listed{list: list}, nil); failure != "" {
			_, shortest := shrink(list, failure, nil)
			t.Fatal(shortest)
		}
	})
}
