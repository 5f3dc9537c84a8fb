// Package prestart decides how the steps before the start run: which step is
// next, when one has taken too long, when it is tried again, and what a stop
// does to it.
//
// At any time at most one step is alive, a step that follows another begins
// only after that one ended with code 0, and after a stop began no step begins
// at all.
//
// The package is pure: it starts nothing, reads nothing and never asks for the
// time. The loop of PID 1 tells a [Machine] what happened ([Event]) and when,
// carries out what it answers ([Effect]), and wakes it at [Machine.Deadline].
// The subpackages do the impure parts around it: wait (the child process behind
// --wait), lock (once across replicas), envfile and env (the SKEP_ENV
// hand-over), dir (--prestart-dir) and words (a command line split into words).
package prestart
