//go:build amd64 || arm64

// Orphans makes children of whoever is PID 1, as many as its argument says, which end at
// once, and then the file "done". A shell needs two forks of a process many times as large for each:
// on a slow machine those would be all that is measured.
//
// It leaves the work to a child and ends, so that the child's parent is PID 1; and children
// with CLONE_PARENT (clone(2)) have the parent that their maker has.
package main

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "orphans:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("want a number")
	}
	n, err := strconv.Atoi(args[0])
	if err != nil || n < 1 || n > 1_000_000 {
		return fmt.Errorf("want a number from 1 to 1000000, not %q", args[0])
	}
	if len(args) == 1 {
		_, err := syscall.ForkExec("/proc/self/exe", []string{os.Args[0], args[0], "orphan"}, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); os.Getppid() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("PID 1 has not become the parent")
		}
	}
	deadline := time.Now().Add(8 * time.Minute)
	for range n {
		for {
			pid := spawn()
			if pid > 0 {
				break
			}
			if errno := syscall.Errno(-pid); errno != syscall.EAGAIN || time.Now().After(deadline) {
				return fmt.Errorf("cannot fork: %w", errno)
			}
			time.Sleep(time.Millisecond) // as many zombies as there may be processes
		}
	}
	return os.WriteFile("done", nil, 0o644)
}
