// Package conformance is the suite that says what an init for containers has to do, and who does it. It runs skep under each of its names, and beside it
// tini, dumb-init and catatonit as Debian has them, through the same cases: as a plain process, as PID 1 of fresh namespaces, in Docker, and on a
// terminal. Its tests fail only where skep fails; what its peers do is a fact for docs/conformance.md, which
//
//	go test ./conformance -update
//
// writes anew. Every case also runs on testdata/badinit.c, an init with switches for its defects: the case must pass without a defect and fail with the
// one it looks for, so no case can be one that never fails.
//
// The package has no code of its own, only tests. They want gcc, which builds the two small static helpers, and skip what else is missing.
package conformance
