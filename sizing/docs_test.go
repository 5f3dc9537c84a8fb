package sizing

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDocumentedPlans checks that every plan that docs/sizing.md shows is what Plan says, and that it shows no other.
func TestDocumentedPlans(t *testing.T) {
	small := machine(Limits{Memory: mem(512 * mib), Quota: cpu(1000)})
	var want []string
	for _, x := range []struct {
		limits  Limits
		policy  Policy
		learned uint64
	}{
		{machine(Limits{Memory: mem(300 * mib), Quota: cpu(4000)}), Policy{}, 100 * mib},
		{small, Policy{Base: 6 * mib}, 50 * mib},
		{small, Policy{Base: 6 * mib, WorkersPerCPU: 8000}, 50 * mib},
		{machine(Limits{Memory: mem(512 * mib), Quota: cpu(1500)}), Policy{}, 0},
		{machine(Limits{}), Policy{}, 0},
		{machine(Limits{Memory: mem(64 * mib), Quota: cpu(2000)}), Policy{}, 100 * mib},
	} {
		want = append(want, Plan(x.limits, x.policy, x.learned).Reason)
	}
	text, err := os.ReadFile("../docs/sizing.md")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(text)) {
		line, example := strings.CutPrefix(strings.TrimRight(line, "\n"), "    ")
		if example && slices.ContainsFunc([]string{" worker: ", " workers: "}, func(s string) bool { return strings.Contains(line, s) }) {
			got = append(got, line)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/sizing.md and Plan (-Plan +document):\n%s", diff)
	}
}
