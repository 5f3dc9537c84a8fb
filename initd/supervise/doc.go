// Package supervise decides what happens to the workers: it is the pure core of
// skep. Step takes the time and one Event and returns the Effects that the loop
// (package initd) has to carry out; Deadline says when it wants a Tick.
//
// Invariant: nothing here asks for the time, reads a file or makes a system
// call, and nothing is started once a stop has begun (law 7 of docs/design.md).
// Timers are data, kept in the seats they belong to, so a stale one cannot act
// (law 9).
//
// A slot is the stable number that users see. A seat is a place at the port: it
// has held listening sockets of its own and at most one process. Usually a slot
// has one seat; during a rolling reload it has two, the old and the new.
package supervise
