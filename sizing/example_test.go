package sizing_test

import (
	"fmt"
	"time"

	"skep/sizing"
)

// One worker of 80 MiB is started, learned, and the rest follows from it.
func Example() {
	const mib = 1 << 20
	limits := sizing.Limits{
		Memory: sizing.Memory{Bytes: 512 * mib, Set: true, Source: "/sys/fs/cgroup/memory.max"},
		Quota:  sizing.CPU{Milli: 4000, Set: true, Source: "/sys/fs/cgroup/cpu.max"},
	}
	policy := sizing.Policy{}

	var learner sizing.Learner
	ready := time.Unix(0, 0)
	learner.Ready(ready, 0)
	for settled := false; !settled; {
		now := learner.Deadline()
		for _, slot := range learner.Due(now) {
			settled = learner.Sample(now, slot, 80*mib)
		}
	}

	policy.Base = sizing.Base(92*mib, 80*mib) // the container holds 92 MiB, the worker 80 of them
	d := sizing.Plan(limits, policy, learner.Worker())
	fmt.Println(d.Workers)
	fmt.Println(d.Reason)
	// Output:
	// 4
	// 4 workers: memory 512 MiB × 0.8 − 12 MiB base = 397.6 MiB fits 4 × 80 MiB; cpu 4 × 1 allows 4; memory and cpu agree
}
