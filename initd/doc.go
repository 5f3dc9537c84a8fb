// Package initd is the loop of skep: it owns signals, timers, processes, held
// sockets and all state, and carries out what the pure machines decide.
//
// Invariant: one goroutine, the one that calls Run, forks, waits, kills and
// changes state. It never waits for anything but its own channels: what can
// stall, such as another process's memory, stderr or a lock, is done by other
// goroutines, which hand back a function for the loop to call (laws 1 and 4 of
// docs/design.md).
package initd
