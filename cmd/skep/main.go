// Skep is a tiny static PID 1 for containers that serve: put before any server
// command, it runs the steps before the start, reads the limits, and runs as
// many workers on one port as fit.
package main

import "os"

// version is set by the linker.
var version = "dev"

func main() { os.Exit(run(os.Args)) }
