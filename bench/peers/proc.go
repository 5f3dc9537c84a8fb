package peers

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Stat is what the benchmark reads of /proc/PID/stat.
type Stat struct {
	PID, Parent int
	State       byte
	Started     uint64 // clock ticks after boot: with PID, the name of a process
	Ticks       uint64 // user and system time in clock ticks (1/100 s)
}

// ReadStat reads /proc/PID/stat (proc_pid_stat(5)).
func ReadStat(pid int) (Stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Stat{}, err
	}
	// The name is in parentheses and may contain anything, parentheses too.
	end := bytes.LastIndexByte(b, ')')
	f := strings.Fields(string(b[end+1:]))
	if end < 0 || len(f) < 20 {
		return Stat{}, fmt.Errorf("cannot read /proc/%d/stat: %d fields", pid, len(f))
	}
	num := func(i int) uint64 { n, _ := strconv.ParseUint(f[i], 10, 64); return n }
	return Stat{PID: pid, Parent: int(num(1)), State: f[0][0], Started: num(19), Ticks: num(11) + num(12)}, nil
}

// Alive reports whether pid is there and not a zombie.
func Alive(pid int) bool {
	st, err := ReadStat(pid)
	return err == nil && st.State != 'Z' && st.State != 'X'
}

// Descendants returns all processes below pid, zombies too, parents first.
func Descendants(pid int) []Stat {
	children := map[int][]Stat{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		n, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		if st, err := ReadStat(n); err == nil {
			children[st.Parent] = append(children[st.Parent], st)
		}
	}
	var out []Stat
	for todo := []int{pid}; len(todo) > 0; todo = todo[1:] {
		for _, c := range children[todo[0]] {
			out = append(out, c)
			todo = append(todo, c.PID)
		}
	}
	return out
}

// CPU returns the time that the threads of pid have run, in nanoseconds, from
// schedstat, which is exact where stat counts ticks. Threads that have ended
// are missing: use it for programs whose threads stay.
func CPU(pid int) (int64, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		return 0, fmt.Errorf("cannot read the run time of process %d", pid)
	}
	sum := int64(0)
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			continue
		}
		if f := strings.Fields(string(b)); len(f) > 0 {
			n, _ := strconv.ParseInt(f[0], 10, 64)
			sum += n
		}
	}
	return sum, nil
}

// Wakeups returns how often the threads of pid have gone to sleep by
// themselves, and so have been woken: voluntary_ctxt_switches of
// proc_pid_status(5), over all threads.
func Wakeups(pid int) (int64, error) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if len(tasks) == 0 {
		return 0, fmt.Errorf("cannot read the wake-ups of process %d", pid)
	}
	sum := int64(0)
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			continue
		}
		sum += field(b, "voluntary_ctxt_switches:")
	}
	return sum, nil
}

// Memory is the resident and the proportional set size in bytes.
type Memory struct{ RSS, PSS int64 }

// ReadMemory reads /proc/PID/smaps_rollup.
func ReadMemory(pid int) (Memory, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return Memory{}, err
	}
	return Memory{RSS: field(b, "Rss:") << 10, PSS: field(b, "Pss:") << 10}, nil
}

// field returns the number after a name at the start of a line, 0 without it.
func field(b []byte, name string) int64 {
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte(name)); ok {
			f := bytes.Fields(rest)
			if len(f) > 0 {
				n, _ := strconv.ParseInt(string(f[0]), 10, 64)
				return n
			}
		}
	}
	return 0
}
