package sizing

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const mib, gib = 1 << 20, 1 << 30

func mem(n uint64) Memory { return Memory{n, true, "/sys/fs/cgroup/memory.max"} }
func cpu(m Milli) CPU     { return CPU{m, true, "/sys/fs/cgroup/cpu.max"} }

// machine is l on a machine of 16 GiB and 8 CPUs.
func machine(l Limits) Limits {
	l.MemTotal, l.MemTotalSource = 16*gib, "/proc/meminfo"
	l.Online = 8
	if !l.Affinity.Set {
		l.Affinity = CPU{8000, true, "sched_getaffinity"}
	}
	return l
}

// reasons is every branch of the decision with its line for a person.
var reasons = []struct {
	name     string
	limits   Limits
	policy   Policy
	learned  uint64
	workers  int
	reason   string
	warnings []string
}{
	{
		name: "memory decides", limits: machine(Limits{Memory: mem(300 * mib), Quota: cpu(4000)}), learned: 100 * mib,
		workers: 2, reason: "2 workers: memory 300 MiB × 0.8 − 0 base = 240 MiB fits 2 × 100 MiB; cpu 4 × 1 allows 4; memory decides",
	}, {
		name: "cpu decides", limits: machine(Limits{Memory: mem(512 * mib), Quota: cpu(1500)}), learned: 60 * mib, policy: Policy{Base: 12 * mib},
		workers: 2, reason: "2 workers: memory 512 MiB × 0.8 − 12 MiB base = 397.6 MiB fits 6 × 60 MiB; cpu 1.5 × 1 allows 2; cpu decides",
	}, {
		name: "both agree", limits: machine(Limits{Memory: mem(300 * mib), Quota: cpu(2000)}), learned: 100 * mib,
		workers: 2, reason: "2 workers: memory 300 MiB × 0.8 − 0 base = 240 MiB fits 2 × 100 MiB; cpu 2 × 1 allows 2; memory and cpu agree",
	}, {
		name: "reserve, target and workers per cpu", limits: machine(Limits{Memory: mem(gib), Quota: cpu(500)}), learned: 100 * mib,
		policy:  Policy{Target: 900, Reserve: 100 * mib, Base: 20 * mib, WorkersPerCPU: 2500},
		workers: 2, reason: "2 workers: memory 1 GiB × 0.9 − 100 MiB reserve − 20 MiB base = 801.6 MiB fits 7 × 112.5 MiB; cpu 0.5 × 2.5 allows 2; cpu decides",
	}, {
		name: "need given", limits: machine(Limits{Memory: mem(300 * mib), Quota: cpu(4000)}), policy: Policy{WorkerMemory: 60 * mib}, learned: 100 * mib,
		workers: 4, reason: "4 workers: memory 300 MiB × 0.8 − 0 base = 240 MiB fits 4 × 60 MiB; cpu 4 × 1 allows 4; memory and cpu agree",
	}, {
		name: "nothing learned yet", limits: machine(Limits{Memory: mem(300 * mib), Quota: cpu(4000)}),
		workers: 4, reason: "4 workers: memory 300 MiB × 0.8 − 0 base = 240 MiB, one worker's need not learned yet; cpu 4 × 1 allows 4; cpu decides",
	}, {
		name: "memory limit only", limits: machine(Limits{Memory: mem(300 * mib)}), learned: 10 * mib,
		workers: 8, reason: "8 workers: memory 300 MiB × 0.8 − 0 base = 240 MiB fits 24 × 10 MiB; cpu 8 × 1 allows 8; cpu decides",
	}, {
		name: "cpu limit only", limits: machine(Limits{Quota: cpu(3000)}), learned: 10 * gib,
		workers: 1, reason: "1 worker: machine memory 16 GiB × 0.8 − 0 base = 12.8 GiB fits 1 × 10 GiB; cpu 3 × 1 allows 3; memory decides",
	}, {
		name: "limit above the machine", limits: machine(Limits{Memory: mem(64 * gib), Quota: cpu(3000)}), learned: gib,
		workers: 3, reason: "3 workers: memory 16 GiB × 0.8 − 0 base = 12.8 GiB fits 12 × 1 GiB; cpu 3 × 1 allows 3; cpu decides",
	}, {
		name: "cpu limit and memory unknown", limits: Limits{Quota: cpu(3000)}, learned: gib,
		workers: 3, reason: "3 workers: memory unlimited; cpu 3 × 1 allows 3; cpu decides",
	}, {
		name: "cpu unknown", limits: Limits{Memory: mem(300 * mib)}, learned: 100 * mib,
		workers: 2, reason: "2 workers: memory 300 MiB × 0.8 − 0 base = 240 MiB fits 2 × 100 MiB; cpu unknown; memory decides",
	}, {
		name: "cpu unknown and nothing learned", limits: Limits{Memory: mem(300 * mib)},
		workers: 1, reason: "1 worker: memory 300 MiB × 0.8 − 0 base = 240 MiB, one worker's need not learned yet; cpu unknown; nothing known to count by",
	}, {
		name: "no limit of any kind", limits: machine(Limits{}), learned: 10 * mib,
		workers: 1, reason: "1 worker: no memory or cpu limit is set here; --workers auto takes the whole machine, --workers N decides by hand",
	}, {
		name: "no limit but a lower bound", limits: machine(Limits{}), policy: Policy{Min: 2},
		workers: 2, reason: "2 workers: no memory or cpu limit is set here; --workers auto takes the whole machine, --workers N decides by hand",
	}, {
		name: "no limit, auto by hand", limits: machine(Limits{}), policy: Policy{ByHand: true}, learned: 100 * mib,
		workers: 8, reason: "8 workers: machine memory 16 GiB × 0.8 − 0 base = 12.8 GiB fits 131 × 100 MiB; cpu 8 × 1 allows 8; cpu decides",
	}, {
		name: "nothing known at all, auto by hand", policy: Policy{ByHand: true},
		workers: 1, reason: "1 worker: memory unlimited; cpu unknown; nothing known to count by",
	}, {
		name: "upper bound", limits: machine(Limits{Memory: mem(gib), Quota: cpu(4000)}), policy: Policy{Max: 3}, learned: 10 * mib,
		workers: 3, reason: "3 workers: memory 1 GiB × 0.8 − 0 base = 819.2 MiB fits 81 × 10 MiB; cpu 4 × 1 allows 4; --max-workers 3 decides",
	}, {
		name: "lower bound", limits: machine(Limits{Memory: mem(gib), Quota: cpu(1000)}), policy: Policy{Min: 3}, learned: 10 * mib,
		workers: 3, reason: "3 workers: memory 1 GiB × 0.8 − 0 base = 819.2 MiB fits 81 × 10 MiB; cpu 1 × 1 allows 1; --min-workers 3 decides",
	}, {
		name: "lower bound does not fit", limits: machine(Limits{Memory: mem(300 * mib), Quota: cpu(8000)}), policy: Policy{Min: 4}, learned: 100 * mib,
		workers: 4, reason: "4 workers: memory 300 MiB × 0.8 − 0 base = 240 MiB fits 2 × 100 MiB; cpu 8 × 1 allows 8; --min-workers 4 decides",
		warnings: []string{"--min-workers 4 may run out of memory: 4 × 100 MiB is more than the 240 MiB that may be planned for; 2 fit"},
	}, {
		name: "not even one", limits: machine(Limits{Memory: mem(100 * mib), Quota: cpu(2000)}), learned: 125 * mib,
		workers: 1, reason: "1 worker: memory 100 MiB × 0.8 − 0 base = 80 MiB does not fit one of 125 MiB; cpu 2 × 1 allows 2; at least one is started",
		warnings: []string{"not even one worker fits: it needs 125 MiB, more than the 80 MiB that may be planned for; raise the memory limit or --memory-target"},
	}, {
		name: "base eats all", limits: machine(Limits{Memory: mem(100 * mib), Quota: cpu(2000)}), policy: Policy{Base: 90 * mib}, learned: mib,
		workers: 1, reason: "1 worker: memory 100 MiB × 0.8 − 90 MiB base = 0 does not fit one of 1 MiB; cpu 2 × 1 allows 2; at least one is started",
		warnings: []string{"not even one worker fits: it needs 1 MiB, more than the 0 that may be planned for; raise the memory limit or --memory-target"},
	}, {
		name: "fixed number", limits: machine(Limits{}), policy: Policy{Workers: 4},
		workers: 4, reason: "4 workers as --workers says",
	}, {
		name: "fixed number without a limit", limits: machine(Limits{}), policy: Policy{Workers: 4}, learned: 10 * gib,
		workers: 4, reason: "4 workers as --workers says",
	}, {
		name: "fixed number that fits", limits: machine(Limits{Memory: mem(gib)}), policy: Policy{Workers: 4, Max: 2}, learned: 100 * mib,
		workers: 4, reason: "4 workers as --workers says: memory 1 GiB × 0.8 − 0 base = 819.2 MiB fits 8 × 100 MiB",
	}, {
		name: "fixed number that does not fit", limits: machine(Limits{Memory: mem(300 * mib)}), policy: Policy{Workers: 4}, learned: 100 * mib,
		workers: 4, reason: "4 workers as --workers says: memory 300 MiB × 0.8 − 0 base = 240 MiB fits 2 × 100 MiB",
		warnings: []string{"--workers 4 may run out of memory: 4 × 100 MiB is more than the 240 MiB that may be planned for; 2 fit"},
	}, {
		name: "fixed number where one fits", limits: machine(Limits{Memory: mem(300 * mib)}), policy: Policy{Workers: 2}, learned: 200 * mib,
		workers: 2, reason: "2 workers as --workers says: memory 300 MiB × 0.8 − 0 base = 240 MiB fits 1 × 200 MiB",
		warnings: []string{"--workers 2 may run out of memory: 2 × 200 MiB is more than the 240 MiB that may be planned for; 1 fits"},
	}, {
		name: "cpuset narrower than the machine", limits: machine(Limits{CPUSet: CPU{2000, true, "/sys/fs/cgroup/cpuset.cpus.effective"}}), learned: mib,
		workers: 2, reason: "2 workers: machine memory 16 GiB × 0.8 − 0 base = 12.8 GiB fits 13107 × 1 MiB; cpu 2 × 1 allows 2; cpu decides",
	}, {
		name: "affinity narrower than the machine", limits: machine(Limits{Affinity: CPU{3000, true, "sched_getaffinity"}}), learned: mib,
		workers: 3, reason: "3 workers: machine memory 16 GiB × 0.8 − 0 base = 12.8 GiB fits 13107 × 1 MiB; cpu 3 × 1 allows 3; cpu decides",
	}, {
		name: "shares set by someone", limits: machine(Limits{Memory: mem(gib), Shares: CPU{2500, true, "/sys/fs/cgroup/cpu.weight"}}), learned: mib,
		workers: 3, reason: "3 workers: memory 1 GiB × 0.8 − 0 base = 819.2 MiB fits 819 × 1 MiB; cpu 2.5 × 1 allows 3; cpu decides",
	}, {
		name: "default shares", limits: machine(Limits{Memory: mem(gib), Shares: CPU{1000, true, "/sys/fs/cgroup/cpu.weight"}, SharesDefault: true}), learned: mib,
		workers: 8, reason: "8 workers: memory 1 GiB × 0.8 − 0 base = 819.2 MiB fits 819 × 1 MiB; cpu 8 × 1 allows 8; cpu decides",
	}, {
		name: "default shares in Kubernetes", policy: Policy{Kubernetes: true}, learned: mib,
		limits:  machine(Limits{Memory: mem(gib), Shares: CPU{1000, true, "/sys/fs/cgroup/cpu.weight"}, SharesDefault: true}),
		workers: 1, reason: "1 worker: memory 1 GiB × 0.8 − 0 base = 819.2 MiB fits 819 × 1 MiB; cpu 1 × 1 allows 1; cpu decides",
	}, {
		name: "shares beside a quota do not count", limits: machine(Limits{Memory: mem(gib), Quota: cpu(4000), Shares: CPU{250, true, "/sys/fs/cgroup/cpu.weight"}}), learned: mib,
		workers: 4, reason: "4 workers: memory 1 GiB × 0.8 − 0 base = 819.2 MiB fits 819 × 1 MiB; cpu 4 × 1 allows 4; cpu decides",
	}, {
		name: "machine without a count of CPUs", limits: Limits{Affinity: CPU{4000, true, "sched_getaffinity"}, CPUSet: CPU{4000, true, "/sys/fs/cgroup/cpuset.cpus.effective"}},
		workers: 1, reason: "1 worker: no memory or cpu limit is set here; --workers auto takes the whole machine, --workers N decides by hand",
	},
}

func TestReasons(t *testing.T) {
	for _, tt := range reasons {
		t.Run(tt.name, func(t *testing.T) {
			d := Plan(tt.limits, tt.policy, tt.learned)
			if d.Workers != tt.workers {
				t.Errorf("%d workers, want %d", d.Workers, tt.workers)
			}
			if d.Reason != tt.reason {
				t.Errorf("reason\n%s\nwant\n%s", d.Reason, tt.reason)
			}
			if diff := cmp.Diff(tt.warnings, d.Warnings); diff != "" {
				t.Errorf("warnings differ (-want +got):\n%s", diff)
			}
		})
	}
}

// The documented form of "skep plan --json".
func TestDecisionJSON(t *testing.T) {
	for _, tt := range []struct {
		name string
		d    Decision
		want string
	}{{
		name: "all known",
		d:    Plan(machine(Limits{Memory: mem(300 * mib), Quota: cpu(1500)}), Policy{}, 100*mib),
		want: `{"workers":2,"by_memory":2,"by_cpu":2,"limit_bytes":314572800,"limit_source":"/sys/fs/cgroup/memory.max","cpus":1.5,"cpu_source":"/sys/fs/cgroup/cpu.max",` +
			`"worker_bytes":104857600,"target":0.8,"reason":"2 workers: memory 300 MiB × 0.8 − 0 base = 240 MiB fits 2 × 100 MiB; cpu 1.5 × 1 allows 2; memory and cpu agree"}`,
	}, {
		name: "nothing known",
		d:    Plan(Limits{}, Policy{}, 0),
		want: `{"workers":1,"by_memory":null,"by_cpu":null,"limit_bytes":null,"limit_source":"","cpus":null,"cpu_source":"","worker_bytes":null,"target":0.8,` +
			`"reason":"1 worker: no memory or cpu limit is set here; --workers auto takes the whole machine, --workers N decides by hand"}`,
	}, {
		name: "does not fit",
		d:    Plan(Limits{Memory: mem(10 * mib)}, Policy{}, 100*mib),
		want: `{"workers":1,"by_memory":0,"by_cpu":null,"limit_bytes":10485760,"limit_source":"/sys/fs/cgroup/memory.max","cpus":null,"cpu_source":"","worker_bytes":104857600,"target":0.8,` +
			`"reason":"1 worker: memory 10 MiB × 0.8 − 0 base = 8 MiB does not fit one of 100 MiB; cpu unknown; at least one is started",` +
			`"warnings":["not even one worker fits: it needs 100 MiB, more than the 8 MiB that may be planned for; raise the memory limit or --memory-target"]}`,
	}} {
		got, err := json.Marshal(tt.d)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, string(got)); diff != "" {
			t.Errorf("%s: JSON differs (-want +got):\n%s", tt.name, diff)
		}
		var back Decision
		if err := json.Unmarshal(got, &back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.d, back); diff != "" {
			t.Errorf("%s: read back it differs (-wrote +read):\n%s", tt.name, diff)
		}
	}
}

// The limit of a decision is the one it was made by; the machine's memory stands in for it only where it is taken.
func TestLimitOfTheDecision(t *testing.T) {
	for _, tt := range []struct {
		name   string
		l      Limits
		p      Policy
		bytes  uint64 // 0: none
		source string
	}{
		{"limited", machine(Limits{Memory: mem(gib)}), Policy{}, gib, "/sys/fs/cgroup/memory.max"},
		{"above the machine", machine(Limits{Memory: mem(64 * gib)}), Policy{}, 16 * gib, "/proc/meminfo"},
		{"none of any kind", machine(Limits{}), Policy{}, 0, ""},
		{"none, by hand", machine(Limits{}), Policy{ByHand: true}, 16 * gib, "/proc/meminfo"},
		{"none, fixed", machine(Limits{}), Policy{Workers: 3}, 0, ""},
		{"cpu only", machine(Limits{Quota: cpu(2000)}), Policy{}, 16 * gib, "/proc/meminfo"},
		{"limited, machine unknown", Limits{Memory: mem(gib)}, Policy{}, gib, "/sys/fs/cgroup/memory.max"},
	} {
		d := Plan(tt.l, tt.p, 0)
		var got uint64
		if d.LimitBytes != nil {
			got = *d.LimitBytes
		}
		if got != tt.bytes || d.LimitSource != tt.source || (d.LimitBytes == nil) != (tt.bytes == 0) {
			t.Errorf("%s: limit %d from %q, want %d from %q", tt.name, got, d.LimitSource, tt.bytes, tt.source)
		}
	}
}

// The textbook case: 1 GB workers on a 3 GB server are two, never four, scaled down to tenths.
func TestTextbook(t *testing.T) {
	l := machine(Limits{Memory: mem(300 * mib)})
	l.Online, l.Affinity.Milli = 64, 64000
	if d := Plan(l, Policy{}, 100*mib); d.Workers != 2 {
		t.Errorf("%d workers: %s", d.Workers, d.Reason)
	}
}

func drawLimits(t *rapid.T) Limits {
	cpu := func(name string) CPU {
		return CPU{Milli(rapid.Int64Range(1, 1<<40).Draw(t, name)), rapid.Bool().Draw(t, name+" set"), name}
	}
	return Limits{
		Memory:   Memory{drawBytes(t, "limit"), rapid.Bool().Draw(t, "limited"), "limit"},
		MemTotal: drawBytes(t, "total"), MemTotalSource: "total",
		Quota: cpu("quota"), CPUSet: cpu("cpuset"), Affinity: cpu("affinity"), Shares: cpu("shares"),
		SharesDefault: rapid.Bool().Draw(t, "default shares"),
		Online:        rapid.IntRange(0, 4096).Draw(t, "online"),
	}
}

// drawBytes draws sizes of all magnitudes, the extremes included.
func drawBytes(t *rapid.T, name string) uint64 {
	return rapid.OneOf(
		rapid.Uint64Range(0, 64*gib),
		rapid.Uint64(),
		rapid.SampledFrom([]uint64{0, 1, math.MaxUint64, math.MaxUint64 - 1, math.MaxInt64}),
	).Draw(t, name)
}

func drawPolicy(t *rapid.T) Policy {
	return Policy{
		Workers: rapid.SampledFrom([]int{0, 0, 0, 1, 7}).Draw(t, "workers"),
		ByHand:  rapid.Bool().Draw(t, "by hand"),
		Min:     rapid.SampledFrom([]int{0, 0, 0, 1, 3}).Draw(t, "min"),
		Max:     rapid.SampledFrom([]int{0, 0, 0, 5, 100}).Draw(t, "max"),

		WorkersPerCPU: Milli(rapid.OneOf(rapid.Int64Range(0, 10000), rapid.Int64()).Draw(t, "workers per cpu")),
		WorkerMemory:  rapid.SampledFrom([]uint64{0, 0, 1, 100 * mib, math.MaxUint64}).Draw(t, "worker memory"),
		Target:        Milli(rapid.Int64Range(0, 1000).Draw(t, "target")),
		Reserve:       rapid.SampledFrom([]uint64{0, mib, math.MaxUint64}).Draw(t, "reserve"),
		Base:          rapid.SampledFrom([]uint64{0, mib, math.MaxUint64}).Draw(t, "base"),
		Kubernetes:    rapid.Bool().Draw(t, "kubernetes"),
	}
}

func TestPlanNeverExceedsTheTargetSilently(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, p := drawLimits(t), drawPolicy(t)
		d := Plan(l, p, drawBytes(t, "learned"))
		if d.Workers < 1 {
			t.Fatalf("%d workers", d.Workers)
		}
		if strings.ContainsAny(d.Reason, "\n") || d.Reason == "" {
			t.Fatalf("reason %q is not one line", d.Reason)
		}
		if d.LimitBytes == nil || d.WorkerBytes == nil {
			return
		}
		// workers × need + reserve + base ≤ limit × target, worked out in 128 bits by hand.
		target := float64(*d.LimitBytes) * float64(d.Target) / 1000
		sum := float64(d.Workers)*float64(*d.WorkerBytes) + float64(p.Reserve) + float64(p.Base)
		if sum > target*(1+1e-9) && len(d.Warnings) == 0 {
			t.Fatalf("%s: takes %g of %g and does not say so", d.Reason, sum, target)
		}
		if p.Workers == 0 && p.Min <= 1 && d.Workers > 1 && sum > target*(1+1e-9) {
			t.Fatalf("%s: takes %g of %g without having been told to", d.Reason, sum, target)
		}
	})
}

func TestPlanIsMonotoneInTheLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, p, learned := drawLimits(t), drawPolicy(t), drawBytes(t, "learned")
		l.Memory.Set = true
		more := l
		more.Memory.Bytes = max(l.Memory.Bytes, drawBytes(t, "larger limit"))
		if a, b := Plan(l, p, learned), Plan(more, p, learned); a.Workers > b.Workers {
			t.Fatalf("with a larger limit fewer workers:\n%s\n%s", a.Reason, b.Reason)
		}
		// And the other way in what one worker needs.
		if learned > 0 && p.WorkerMemory == 0 {
			needier := addSat(learned, drawBytes(t, "more need"))
			if a, b := Plan(l, p, learned), Plan(l, p, needier); a.Workers < b.Workers {
				t.Fatalf("with a larger need more workers:\n%s\n%s", a.Reason, b.Reason)
			}
		}
	})
}

// What is planned may be started one by one: when every worker holds what was planned for it, there is room for the last.
func TestRoomForOneAgreesWithPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, p := Limits{Memory: mem(rapid.Uint64Range(mib, 64*gib).Draw(t, "limit")), Quota: cpu(1e9)}, Policy{}
		p.Base = rapid.Uint64Range(0, gib).Draw(t, "base")
		p.Reserve = rapid.Uint64Range(0, gib).Draw(t, "reserve")
		need := rapid.Uint64Range(mib, gib).Draw(t, "need")
		d := Plan(l, p, need)
		if len(d.Warnings) > 0 {
			return
		}
		before := p.Base + uint64(d.Workers-1)*need
		if !RoomForOne(l, p, before, need) {
			t.Fatalf("%s: no room for the last one", d.Reason)
		}
		if RoomForOne(l, p, before+need, need) {
			t.Fatalf("%s: room for one more", d.Reason)
		}
	})
}

func TestRoomForOneWithoutALimit(t *testing.T) {
	if !RoomForOne(Limits{}, Policy{}, math.MaxUint64, math.MaxUint64) {
		t.Error("no room though nothing is known of memory")
	}
	if RoomForOne(machine(Limits{}), Policy{}, 15*gib, gib) {
		t.Error("room on a machine that is full")
	}
}

func TestBase(t *testing.T) {
	if got := Base(100*mib, 30*mib, 50*mib); got != 20*mib {
		t.Errorf("base is %d", got)
	}
	if got := Base(100*mib, 80*mib, 50*mib); got != 0 {
		t.Errorf("base is %d where the workers' shares are more than the whole", got)
	}
}

func TestSaturation(t *testing.T) {
	for _, tt := range []struct{ got, want uint64 }{
		{mulDiv(math.MaxUint64, 1000, 1000), math.MaxUint64},
		{mulDiv(math.MaxUint64, 1001, 1000), math.MaxUint64},
		{mulDiv(math.MaxUint64, math.MaxUint64, 1), math.MaxUint64},
		{mulDiv(7, 3, 2), 10},
		{mulDivUp(7, 3, 2), 11},
		{mulDivUp(8, 3, 2), 12},
		{mulDivUp(math.MaxUint64, 1001, 1000), math.MaxUint64},
		{addSat(math.MaxUint64, 1), math.MaxUint64},
		{addSat(3, 4), 7},
		{subSat(3, 4), 0},
		{subSat(4, 3), 1},
	} {
		if tt.got != tt.want {
			t.Errorf("%d, want %d", tt.got, tt.want)
		}
	}
}

func TestMilli(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Milli
	}{{"0", 0}, {"1", 1000}, {"0.8", 800}, {".5", 500}, {"1.25", 1250}, {"0.001", 1}, {"-1.5", -1500}, {"2.", 2000}, {"1048576", 1048576000}} {
		got, err := ParseMilli(tt.in)
		if err != nil || got != tt.want {
			t.Errorf("%q is %d, %v; want %d", tt.in, got, err, tt.want)
		}
	}
	for _, in := range []string{"", ".", "-", "1.2345", "1e3", "+1", "1.2.3", "x", " 1", "99999999999999999999", "4611686018427387904"} {
		if got, err := ParseMilli(in); err == nil {
			t.Errorf("%q is taken for %s", in, got)
		}
	}
}

func TestSize(t *testing.T) {
	for _, tt := range []struct {
		bytes uint64
		want  string
	}{
		{0, "0"}, {1, "1 B"}, {1023, "1023 B"}, {1024, "1 KiB"}, {1536, "1.5 KiB"}, {mib, "1 MiB"}, {mib - 1, "1023.9 KiB"},
		{gib - 1, "1 GiB"}, {200*mib - mib/20, "199.9 MiB"}, {300 * mib, "300 MiB"}, {3 * gib / 2, "1.5 GiB"}, {1 << 60, "1 EiB"}, {math.MaxUint64, "15.9 EiB"},
	} {
		if got := size(tt.bytes); got != tt.want {
			t.Errorf("%d is %q, want %q", tt.bytes, got, tt.want)
		}
	}
}

func FuzzParseMilli(f *testing.F) {
	for _, s := range []string{"0.8", "1", "-0.001", "1.2345", "9223372036854775807", "."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseMilli(s)
		if err != nil {
			return
		}
		if back, err := ParseMilli(m.String()); err != nil || back != m {
			t.Errorf("%q is %d, written as %s, read back as %d, %v", s, m, m, back, err)
		}
	})
}

// Workers may grow by a quarter after they were measured, all at once, and must still fit into the limit beside base and
// reserve, whatever the target: and with the default target the quarter is not counted twice.
func TestNeedLeavesRoomForLoad(t *testing.T) {
	if got := Need(100*mib, DefaultTarget); got != 100*mib {
		t.Errorf("need at the default target %d", got)
	}
	if got := Need(100*mib, 1000); got != 125*mib {
		t.Errorf("need at the whole limit %d", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		limit := mem(rapid.Uint64Range(64*mib, 64*gib).Draw(t, "limit"))
		held := rapid.Uint64Range(mib, limit.Bytes).Draw(t, "held")
		p := Policy{Target: Milli(rapid.IntRange(100, 1000).Draw(t, "target")), WorkersPerCPU: 1000000}
		p.Base = rapid.Uint64Range(0, gib).Draw(t, "base")
		p.Reserve = rapid.Uint64Range(0, gib).Draw(t, "reserve")
		d := Plan(machine(Limits{Memory: limit, Quota: cpu(8000)}), p, held)
		if n := uint64(d.Workers); *d.ByMemory > 0 && n*held/100*125+p.Base+p.Reserve > limit.Bytes {
			t.Fatalf("%d workers of %d that grow by a quarter do not fit into %d", n, held, limit.Bytes)
		}
	})
}

// A larger target never takes a worker away, and a larger reserve or base never adds one. Of rounding two bytes are
// forgiven.
func TestPlanIsMonotoneInThePolicy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := machine(Limits{Memory: mem(rapid.Uint64Range(64*mib, 64*gib).Draw(t, "limit")), Quota: cpu(8000)})
		learned := rapid.Uint64Range(mib, 4*gib).Draw(t, "learned")
		p := Policy{Target: Milli(rapid.IntRange(100, 1000).Draw(t, "target")), WorkersPerCPU: 1000000}
		p.Base = rapid.Uint64Range(0, gib).Draw(t, "base")
		p.Reserve = rapid.Uint64Range(0, gib).Draw(t, "reserve")
		q := p
		q.Target = Milli(rapid.IntRange(int(p.Target), 1000).Draw(t, "larger target"))
		if a, b := Plan(l, p, learned+2), Plan(l, q, learned); *a.ByMemory > *b.ByMemory {
			t.Fatalf("with a larger target fewer workers:\n%s\n%s", a.Reason, b.Reason)
		}
		q = p
		q.Base += rapid.Uint64Range(0, gib).Draw(t, "more base")
		q.Reserve += rapid.Uint64Range(0, gib).Draw(t, "more reserve")
		if a, b := Plan(l, p, learned), Plan(l, q, learned); *a.ByMemory < *b.ByMemory {
			t.Fatalf("with less to share more workers:\n%s\n%s", a.Reason, b.Reason)
		}
	})
}
