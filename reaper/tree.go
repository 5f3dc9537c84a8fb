package reaper

import (
	"bytes"
	"os"
	"strconv"
)

// Descendants lists the living processes below pid, parents before children,
// as /proc shows them at this moment; none when there is no /proc. Only
// /proc/PID/stat is read, which takes no lock of the process's memory and so
// cannot stall the loop (law 4), unlike cmdline, maps or mem.
func Descendants(pid int) []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	children := make(map[int][]int)
	for _, name := range names {
		p, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if parent, ok := parentOf(name); ok {
			children[parent] = append(children[parent], p)
		}
	}
	var below []int
	queue := children[pid]
	for len(queue) > 0 {
		p := queue[0]
		queue = append(queue[1:], children[p]...)
		below = append(below, p)
	}
	return below
}

func parentOf(pid string) (int, bool) {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0, false
	}
	return parseParent(stat)
}

// parseParent finds the parent's pid in the text of /proc/PID/stat (proc(5)).
// The second field is the command name in parentheses and may itself hold
// spaces and parentheses, so the last one counts.
func parseParent(stat []byte) (int, bool) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, false
	}
	fields := bytes.Fields(stat[end+1:])
	if len(fields) < 2 {
		return 0, false
	}
	parent, err := strconv.Atoi(string(fields[1]))
	return parent, err == nil && parent >= 0
}
