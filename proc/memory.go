package proc

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Memory is what processes hold.
type Memory struct {
	Bytes uint64
	// File is the part of Bytes that is pages of files, code above all: the kernel can drop them, and processes that run
	// the same program share them. It is 0 where the kernel does not tell (before Linux 5.3).
	File uint64
	// Estimated says that the kernel did not tell the proportional size of at least one process, and that its resident
	// memory less the shared part stands in for it: too little by the process's part of what is shared.
	Estimated bool
}

// Held is what only the end of the processes gives back: Bytes without File.
func (m Memory) Held() uint64 { return m.Bytes - min(m.File, m.Bytes) }

// PSS is the proportional set size of processes together: their own pages, and of each shared page the part that falls
// to them, so that the sum over all sharers is what the machine really spends. It comes from /proc/PID/smaps_rollup
// (Linux 4.14), else from statm. Swapped pages are not in it. Processes that are gone count nothing; an error means that
// a process is there and can be read in neither way.
func (f FS) PSS(pids ...int) (Memory, error) {
	var m Memory
	for _, pid := range pids {
		b, err := os.ReadFile(f.path(pid, "smaps_rollup"))
		if err == nil {
			if kib, ok := parseRollup(string(b), "Pss:"); ok {
				file, _ := parseRollup(string(b), "Pss_File:")
				m.Bytes += kib << 10
				m.File += min(file, kib) << 10
				continue
			}
		} else if gone(err) && !f.there(pid) {
			continue
		}
		// A zombie and a kernel thread have no memory: ESRCH, or an empty file, while statm says 0.
		b, err = os.ReadFile(f.path(pid, "statm"))
		if err != nil {
			if gone(err) {
				continue
			}
			return Memory{}, fmt.Errorf("cannot read the memory of process %d: %w", pid, err)
		}
		pages, ok := parseStatm(string(b))
		if !ok {
			return Memory{}, fmt.Errorf("cannot read the memory of process %d: unknown form of %s", pid, f.path(pid, "statm"))
		}
		if pages > 0 {
			m.Bytes += pages * uint64(os.Getpagesize())
			m.Estimated = true
		}
	}
	return m, nil
}

func (f FS) there(pid int) bool {
	_, err := os.Stat(f.path(pid))
	return err == nil
}

// parseRollup finds a line such as "Pss:  291 kB".
func parseRollup(s, name string) (kib uint64, ok bool) {
	for line := range strings.Lines(s) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok {
			continue
		}
		n, unit, _ := strings.Cut(strings.TrimSpace(rest), " ")
		kib, err := strconv.ParseUint(n, 10, 64)
		return kib, err == nil && unit == "kB" && kib < 1<<50
	}
	return 0, false
}

// parseStatm is resident less shared, in pages: the second and the third number.
func parseStatm(s string) (pages uint64, ok bool) {
	v := strings.Fields(s)
	if len(v) < 3 {
		return 0, false
	}
	resident, err := strconv.ParseUint(v[1], 10, 40)
	if err != nil {
		return 0, false
	}
	shared, err := strconv.ParseUint(v[2], 10, 40)
	if err != nil {
		return 0, false
	}
	return resident - min(shared, resident), true
}
