// Package entry is what happens before the Go runtime starts, and before
// package syscall is initialized.
//
// A Go program can be ended by a signal that comes before its first line runs, with
// code 2 as PID 1: the runtime installs handlers early, and unblocks in every thread what
// its table calls deadly. skep is linked with
//
//	-tags skep_entry -ldflags '-E skep/internal/entry.start -checklinkname=0'
//
// so that its first instructions block every signal, and take HUP, INT, QUIT, ABRT, TERM and
// CHLD off that table (runtime/sigtab_linux_generic.go; entries of another form than that of
// Go 1.26 are left alone). A signal that comes early then waits in the kernel until
// package signals lets it in, on one thread: so a signal that was sent before a child ended is
// also seen before that. A program that is linked without works as well, but for
// its first moment.
//
// They also take the runtime's periodic collection away, for which its monitor wakes up every
// minute for ever (forcegcperiod of runtime/proc.go): package initd collects when there has
// been much use.
//
// The package imports nothing: so it is initialized before package syscall
// (Go specification, "Program initialization": packages are sorted by import path,
// and this one waits for no other), which raises the soft limit of open files.
package entry

// Files is RLIMIT_NOFILE as this process was started with it. Package syscall
// raises the soft limit of every Go program; children of skep get back what was
// there. Known is false where it could not be read.
var Files, Known = openFiles()

// Limit is struct rlimit64 of prlimit(2).
type Limit struct{ Soft, Hard uint64 }

func openFiles() (l Limit, known bool) {
	known = getrlimit(&l) == 0
	return l, known
}
