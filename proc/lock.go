package proc

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// HoldsFileLocks says whether any of the processes holds a file lock: by flock(2), fcntl(2), or an open file
// description lock. Leases and locks that are only waited for do not count.
func (f FS) HoldsFileLocks(pids ...int) (bool, error) {
	b, err := os.ReadFile(string(f) + "/locks")
	if err != nil {
		return false, fmt.Errorf("cannot list file locks: %w", err)
	}
	nameless := false
	for line := range strings.Lines(string(b)) {
		_, line, _ = strings.Cut(line, ": ") // "1: "
		switch pid, ok := parseLock(line); {
		case !ok:
		case pid == ofd:
			nameless = true
		case slices.Contains(pids, pid):
			return true, nil
		}
	}
	if !nameless {
		return false, nil
	}
	// Locks of open file descriptions name no process; the descriptors that hold them do.
	for _, pid := range pids {
		held := false
		err := f.descriptors(pid, func(fd, link string) bool {
			if !strings.HasPrefix(link, "/") {
				return true // sockets and their like have no locks
			}
			b, err := os.ReadFile(f.path(pid, "fdinfo", fd))
			if err != nil {
				return true
			}
			for line := range strings.Lines(string(b)) {
				if line, ok := strings.CutPrefix(line, "lock:"); ok {
					_, line, _ = strings.Cut(line, ": ")
					if _, ok := parseLock(line); ok {
						held = true
					}
				}
			}
			return !held
		})
		if held || err != nil {
			return held, err
		}
	}
	return false, nil
}

// ofd stands for the pid of a lock that belongs to an open file description.
const ofd = -1

// parseLock reads the part of a line of /proc/locks behind its number: "POSIX  ADVISORY  WRITE 1363 fe:00:76 0 EOF".
// A lock that is waited for has "->" before it, and leases are no locks: not ok.
func parseLock(line string) (pid int, ok bool) {
	v := strings.Fields(line)
	if len(v) < 4 {
		return 0, false
	}
	switch v[0] {
	case "POSIX", "FLOCK", "OFDLCK":
	default:
		return 0, false
	}
	pid, err := strconv.Atoi(v[3])
	return pid, err == nil && (pid > 0 || pid == ofd)
}
