// Package testneed is how a test says that the machine lacks something it needs. Such a test is skipped on a developer's machine, and fails where
// SKEP_REQUIRE=all promises that everything is there, so that no suite goes quiet unnoticed.
package testneed

import (
	"os"
	"testing"
)

// Skip skips the test with a reason, or fails it when SKEP_REQUIRE is "all". It does not return.
func Skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("SKEP_REQUIRE") == "all" {
		t.Fatalf("SKEP_REQUIRE=all, but: "+format, args...)
	}
	t.Skipf(format, args...)
}

// Root skips a test that only makes sense as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "needs root")
	}
}
