package main

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skep/sizing"
)

// The JSON is an interface: it has to be what encoding/json writes for the
// documented struct, with every field present or null.
func TestPlanJSON(t *testing.T) {
	zero, two, bytes, cpus := 0, 2, uint64(512<<20), sizing.Milli(1500)
	for _, d := range []sizing.Decision{
		{Workers: 1, Target: 800, Reason: "no limit"},
		{Workers: 2, ByMemory: &zero, ByCPU: &two, LimitBytes: &bytes, LimitSource: "/sys/fs/cgroup/memory.max",
			CPUs: &cpus, CPUSource: "/sys/fs/cgroup/cpu.max", WorkerBytes: &bytes, Target: 900,
			Reason: "a \"quoted\" reason × 0.8", Warnings: []string{"one", "two\nlines"}},
	} {
		want, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		got := appendPlan(nil, d)
		var a, b map[string]any
		if err := json.Unmarshal(want, &a); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(got, &b); err != nil {
			t.Fatalf("%v: %s", err, got)
		}
		if diff := cmp.Diff(a, b); diff != "" {
			t.Error(diff)
		}
	}
}
