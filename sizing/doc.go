// Package sizing decides how many workers fit, says why, and keeps the number right while they run.
//
// It is arithmetic and nothing else: it imports no os, syscall or x/sys, never reads a file and never asks for the
// time. Limits are read by package cgroup, memory of workers by package proc; the loop hands both in and carries out
// what comes back. Memory is in bytes, CPUs are in thousandths of a CPU ([Milli]), and no number is a float. All
// sums saturate: a number too large to hold is the largest one, never a small one.
//
// Three things live here:
//   - [Plan], a function: limits, policy and the learned need of one worker in, a [Decision] with its reason out;
//   - [Learner], a machine that learns what one worker needs from samples of its memory;
//   - [Guard], a machine that watches the memory of the whole container and asks for workers to be recycled before the
//     kernel would have to kill one.
//
// The machines are deterministic: time comes in with each call and goes out as one Deadline (law 9). They are owned by
// one goroutine, the loop; none of them may be used from two at once.
package sizing
