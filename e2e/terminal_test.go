package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/creack/pty"

	"skep/internal/testneed"
)

// A server that a person starts on a terminal stays one process; the same without a
// terminal becomes two.
func TestTerminalIsNoService(t *testing.T) {
	for _, onTerminal := range []bool{false, true} {
		t.Run(fmt.Sprintf("terminal %v", onTerminal), func(t *testing.T) {
			number := freePort(t)
			var log lockedBuffer
			cmd := exec.Command(filepath.Join(root, "build", "skep"), "--log-level", "debug", "--min-workers", "2", "--worker-memory", "1M", "--",
				testneed.Program(t, "/usr/bin/python3"), "-m", "http.server", number)
			cmd.Stderr = &log
			if onTerminal {
				master, slave, err := pty.Open()
				if err != nil {
					testneed.Skip(t, "no pseudo-terminal: %v", err)
				}
				t.Cleanup(func() { master.Close(); slave.Close() })
				cmd.Stdin = slave
			}
			said := follow(t, cmd, &log)
			if !onTerminal {
				untilSaid(t, said, "worker ready", 2, time.Minute)
				return
			}
			answering(t, "http://127.0.0.1:"+number)
			untilSaid(t, said, "a terminal is on its stdin", 1, time.Minute)
			absent(t, said, "worker ready|replicating", 2*time.Second)
		})
	}
}
