// Package reaper is the only caller of fork, exec, wait4 and kill in skep; the fork itself,
// with the end of a child that could not execute, is package launch's.
//
// Invariant: a process is in the Table before its exit can be seen, and leaves
// it in the same call that takes its exit from the kernel. Everything here is
// called from one goroutine, the loop of package initd, so a pid in the Table
// cannot have been reused and no signal can reach a stranger (laws 1 and 2 of
// docs/design.md).
package reaper
