package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// FS is a mounted proc file system, by its path. Pids are those of the PID namespace it was mounted in.
type FS string

// Host is the proc file system of this process's own namespace.
const Host FS = "/proc"

func (f FS) path(pid int, elem ...string) string {
	return filepath.Join(append([]string{string(f), strconv.Itoa(pid)}, elem...)...)
}

// gone says whether an error means that the process or thread ended: its files vanish, or reading them says ESRCH.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
}

// Stat is part of /proc/PID/stat.
type Stat struct {
	Name    string // the file name of the program, at most 15 bytes, as the process may have changed it
	State   byte   // R, S, D, T, t, Z, X, I: proc_pid_stat(5)
	PPID    int
	Group   int // process group
	Session int
	CPU     time.Duration // user and system time of it and of the children it has waited for
	Start   uint64        // ticks after boot when it started; with the pid it names a process for good
}

// Stat reads /proc/PID/stat.
func (f FS) Stat(pid int) (Stat, error) {
	b, err := os.ReadFile(f.path(pid, "stat"))
	if err != nil {
		return Stat{}, fmt.Errorf("cannot read the state of process %d: %w", pid, err)
	}
	st, ok := parseStat(string(b))
	if !ok {
		return Stat{}, fmt.Errorf("cannot read the state of process %d: unknown form of %s", pid, f.path(pid, "stat"))
	}
	return st, nil
}

// tick is the unit of times in /proc: USER_HZ, 100 on every architecture that Go knows on Linux.
const tick = time.Second / 100

func parseStat(s string) (st Stat, ok bool) {
	// 42 (name) S 1 ...: the name may hold anything, the last bracket ends it.
	open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if open < 0 || end < open {
		return st, false
	}
	st.Name = s[open+1 : end]
	v := strings.Fields(s[end+1:])
	if len(v) < 20 || len(v[0]) != 1 {
		return st, false
	}
	st.State = v[0][0]
	ints := [...]struct {
		field int // of proc_pid_stat(5)
		to    *int
	}{{4, &st.PPID}, {5, &st.Group}, {6, &st.Session}}
	for _, x := range ints {
		n, err := strconv.Atoi(v[x.field-3])
		if err != nil {
			return st, false
		}
		*x.to = n
	}
	for field := 14; field <= 17; field++ { // utime, stime, cutime, cstime
		n, err := strconv.ParseInt(v[field-3], 10, 64)
		if err != nil {
			return st, false
		}
		n = min(max(n, 0), int64(1<<62/tick)/4)
		st.CPU += time.Duration(n) * tick
	}
	var err error
	st.Start, err = strconv.ParseUint(v[22-3], 10, 64)
	return st, err == nil
}

// State is the state letter of a process, 0 if it is gone.
func (f FS) State(pid int) (byte, error) {
	st, err := f.Stat(pid)
	if gone(err) {
		return 0, nil
	}
	return st.State, err
}

// Thread is one thread of a process. Two readings that are equal show that it did not run in between.
type Thread struct {
	TID      int
	State    byte   // as in Stat
	Switches uint64 // how often it has left its CPU, by its own will or not
}

// Sleeps says whether the thread is asleep or stopped.
func (t Thread) Sleeps() bool {
	return t.State == 'S' || t.State == 'D' || t.State == 'T' || t.State == 't'
}

// Thread reads /proc/PID/task/TID/status, which everybody may. The zero Thread is of one that is gone.
func (f FS) Thread(pid, tid int) (Thread, error) {
	b, err := os.ReadFile(f.path(pid, "task", strconv.Itoa(tid), "status"))
	if gone(err) {
		return Thread{}, nil
	}
	if err != nil {
		return Thread{}, fmt.Errorf("cannot read the state of thread %d: %w", tid, err)
	}
	t := Thread{TID: tid}
	t.State, t.Switches = parseThread(string(b))
	return t, nil
}

// parseThread finds "State:\tS (sleeping)" and the two lines "voluntary_ctxt_switches:\t12". The name of the
// program, which may hold anything, comes first and has its line ends escaped.
func parseThread(status string) (state byte, switches uint64) {
	for status != "" {
		var line string
		line, status, _ = strings.Cut(status, "\n")
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch name {
		case "State":
			if value != "" {
				state = value[0]
			}
		case "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches":
			n, _ := strconv.ParseUint(value, 10, 63)
			switches += n
		}
	}
	return state, switches
}

// Runnable says whether a thread of the process runs or waits for a CPU.
func (f FS) Runnable(pid int) bool {
	threads, _ := os.ReadDir(f.path(pid, "task"))
	for _, thread := range threads {
		b, err := os.ReadFile(f.path(pid, "task", thread.Name(), "stat"))
		if st, ok := parseStat(string(b)); err == nil && ok && st.State == 'R' {
			return true
		}
	}
	return false
}

// Waits is the functions of the kernel in which the threads of a process sleep (/proc/PID/task/TID/wchan of proc(5)), without
// what compilers add (".constprop.0"); "0" for a thread that runs, or for all where the caller may not know. It is empty for a
// process that is gone.
func (f FS) Waits(pid int) (names []string) {
	threads, err := os.ReadDir(f.path(pid, "task"))
	if err != nil {
		return nil
	}
	for _, thread := range threads {
		if b, err := os.ReadFile(f.path(pid, "task", thread.Name(), "wchan")); err == nil {
			name, _, _ := strings.Cut(strings.TrimSpace(string(b)), ".")
			names = append(names, name)
		}
	}
	return names
}

// CPU is the user and system time that the processes have used, with that of the children they have waited for.
// Processes that are gone count nothing; an error means that none could be read.
func (f FS) CPU(pids ...int) (time.Duration, error) {
	var sum time.Duration
	var failed error
	read := 0
	for _, pid := range pids {
		st, err := f.Stat(pid)
		if err != nil {
			failed = err
			continue
		}
		sum += st.CPU
		read++
	}
	if read == 0 && failed != nil {
		return 0, failed
	}
	return sum, nil
}

// Children is the pids of a process's children, ascending; none if it is gone. Children of all its threads are in it. A
// kernel without /proc/PID/task/TID/children (CONFIG_PROC_CHILDREN) has the parent of every process looked at instead.
func (f FS) Children(pid int) ([]int, error) {
	kids, ok, err := f.children(pid)
	if ok || err != nil {
		return kids, err
	}
	all, err := f.byParent()
	return all[pid], err
}

// children reads the children files; ok is false if the kernel has none.
func (f FS) children(pid int) (kids []int, ok bool, err error) {
	threads, err := os.ReadDir(f.path(pid, "task"))
	if err != nil {
		if gone(err) {
			return nil, true, nil
		}
		return nil, false, fmt.Errorf("cannot list the threads of process %d: %w", pid, err)
	}
	for _, t := range threads {
		b, err := os.ReadFile(f.path(pid, "task", t.Name(), "children"))
		if err != nil {
			if !gone(err) {
				return nil, false, fmt.Errorf("cannot list the children of process %d: %w", pid, err)
			}
			if _, err := os.Stat(f.path(pid, "task", t.Name())); err == nil {
				return nil, false, nil // the thread lives, so it is the file that does not exist
			}
			continue
		}
		for s := range strings.FieldsSeq(string(b)) {
			if n, err := strconv.Atoi(s); err == nil {
				kids = append(kids, n)
			}
		}
	}
	sort.Slice(kids, func(i, j int) bool { return kids[i] < kids[j] })
	return kids, true, nil
}

// byParent looks at every process for its parent.
func (f FS) byParent() (map[int][]int, error) {
	all, err := os.ReadDir(string(f))
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	kids := make(map[int][]int)
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if st, err := f.Stat(pid); err == nil {
			kids[st.PPID] = append(kids[st.PPID], pid)
		}
	}
	for _, k := range kids {
		sort.Slice(k, func(i, j int) bool { return k[i] < k[j] })
	}
	return kids, nil
}

// Tree is a process and all its descendants, itself first. A descendant whose parent has ended belongs to another tree
// by then: the kernel gave it to the next subreaper or to PID 1. An error means that the tree may be incomplete.
func (f FS) Tree(pid int) ([]int, error) {
	tree := []int{pid}
	seen := map[int]bool{pid: true} // pids are used again while this reads: never go in circles
	var parents map[int][]int
	for i := 0; i < len(tree); i++ {
		kids := parents[tree[i]]
		if parents == nil {
			var ok bool
			var err error
			if kids, ok, err = f.children(tree[i]); err != nil {
				return tree, err
			}
			if !ok {
				if parents, err = f.byParent(); err != nil {
					return tree, err
				}
				kids = parents[tree[i]]
			}
		}
		for _, k := range kids {
			if !seen[k] {
				seen[k] = true
				tree = append(tree, k)
			}
		}
	}
	return tree, nil
}
