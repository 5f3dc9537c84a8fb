package supervise

import (
	"flag"
	"testing"
)

var (
	simRuns = flag.Int("sim.runs", 0, "worlds to simulate; 0 is until 1000000 events have been stepped")
	simSeed = flag.Uint64("sim.seed", 1, "seed of the first world; the next ones count up")
)

// TestSimulation plays worlds of random events against a fake kernel and looks
// after every event whether the laws hold. A failure names its seed, which
// belongs into testdata/seeds.txt once it is understood.
func TestSimulation(t *testing.T) {
	var w world
	events, worlds := 0, 0
	for seed := *simSeed; *simRuns > 0 && worlds < *simRuns || *simRuns == 0 && events < 1_000_000; seed++ {
		if failure := w.run(newSeeded(seed), nil); failure != "" {
			t.Fatalf("seed %d (-sim.seed=%d -sim.runs=1): %s", seed, seed, failure)
		}
		events += w.events
		worlds++
	}
	t.Logf("%d events in %d worlds", events, worlds)
}
