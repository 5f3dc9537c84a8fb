package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"skep/sizing"
)

// Usage is the memory in use in one cgroup, in bytes.
type Usage struct {
	Dir   string        // the cgroup; "" for the machine
	Limit sizing.Memory // its limit, not Set if there is none

	Current      uint64 // everything charged: memory.current, memory.usage_in_bytes
	InactiveFile uint64 // page cache that has not been used lately
	ActiveFile   uint64 // page cache that has
	// WorkingSet is Current less InactiveFile: what "kubectl top" and the kubelet's eviction look at.
	WorkingSet uint64
	// Held is what the kernel cannot get back by dropping page cache: Current less both kinds of it. A process is
	// killed for memory when this reaches the limit; a server that reads many files may have a large WorkingSet for ever
	// without being near that.
	Held uint64
}

// ReadUsage reads the usage that belongs to the limits: that of the cgroup which is nearest to its limit, among those in
// l.Levels, because a parent may be full with neighbours while the own cgroup is not; and the machine's where no cgroup
// limits memory, or only above what the machine has. An error means that the nearest could not be told; it names the
// file.
//
// The machine (Dir "") is shared with strangers. Its usage is right for [sizing.Base]; but to recycle workers because
// others fill it does not help, so leave it out of [sizing.Guard].
func ReadUsage(root fs.FS, p Paths, l Limits) (Usage, error) {
	if len(l.Levels) == 0 || l.MemTotal != 0 && l.MemTotal < l.Memory.Bytes {
		return machineUsage(root)
	}
	var nearest Usage
	for i, level := range l.Levels {
		u, err := readUsage(root, p.Memory.Version, level)
		if err != nil {
			return Usage{}, err
		}
		if i == 0 || nearer(u, nearest) {
			nearest = u
		}
	}
	return nearest, nil
}

// nearer compares the room below the limits.
func nearer(a, b Usage) bool {
	return int64(a.Limit.Bytes-a.Held) < int64(b.Limit.Bytes-b.Held)
}

func readUsage(root fs.FS, version int, l Level) (Usage, error) {
	u := Usage{Dir: l.Dir, Limit: l.Memory}
	name, inactive, active := "/memory.current", "inactive_file", "active_file"
	if version == 1 {
		// Of version 1's two kinds of numbers those that count the children, as usage_in_bytes does.
		name, inactive, active = "/memory.usage_in_bytes", "total_inactive_file", "total_active_file"
	}
	text, err := readFile(root, l.Dir+name)
	if err != nil {
		return Usage{}, err
	}
	if u.Current, err = strconv.ParseUint(strings.TrimSpace(text), 10, 64); err != nil {
		return Usage{}, fmt.Errorf("cannot read %s: it holds %s, which is no number", l.Dir+name, quoted(strings.TrimSpace(text)))
	}
	if text, err = readFile(root, l.Dir+"/memory.stat"); err != nil {
		return Usage{}, err
	}
	u.InactiveFile, _ = field(text, inactive)
	u.ActiveFile, _ = field(text, active)
	u.sum()
	return u, nil
}

func (u *Usage) sum() {
	// The numbers are read one after the other, so the parts may be more than the whole.
	u.InactiveFile = min(u.InactiveFile, u.Current)
	u.ActiveFile = min(u.ActiveFile, u.Current-u.InactiveFile)
	u.WorkingSet = u.Current - u.InactiveFile
	u.Held = u.WorkingSet - u.ActiveFile
}

// OwnUsage reads the usage of this process's own cgroup, whether it is limited or not; in the root cgroup, which version 2
// does not count, and without any cgroup it is the machine's. Limit is not filled in, but for the machine.
func OwnUsage(root fs.FS, p Paths) (Usage, error) {
	if p.Memory.Version == 0 {
		return machineUsage(root)
	}
	u, err := readUsage(root, p.Memory.Version, Level{Dir: p.Memory.Path})
	if errors.Is(err, fs.ErrNotExist) {
		return machineUsage(root)
	}
	return u, err
}

// machineUsage reads the usage of the machine, with what it can free as MemAvailable has it.
func machineUsage(root fs.FS) (Usage, error) {
	text, err := readFile(root, meminfo)
	if err != nil {
		return Usage{}, err
	}
	total, ok := field(text, "MemTotal:")
	free, okFree := field(text, "MemFree:")
	available, okAvailable := field(text, "MemAvailable:")
	if !ok || !okFree || !okAvailable || total >= unlimited>>10 {
		return Usage{}, fmt.Errorf("cannot read %s: it has no MemTotal, MemFree or MemAvailable", meminfo)
	}
	u := Usage{Limit: sizing.Memory{Bytes: total << 10, Set: true, Source: meminfo}}
	u.Current = (total - min(free, total)) << 10
	inactive, _ := field(text, "Inactive(file):")
	u.InactiveFile = min(inactive<<10, u.Current)
	u.WorkingSet = u.Current - u.InactiveFile
	u.Held = min(u.Current, (total-min(available, total))<<10)
	u.ActiveFile = u.WorkingSet - min(u.Held, u.WorkingSet)
	return u, nil
}

// Events reads how many processes of this cgroup and those below it the kernel has killed for want of memory since the
// cgroup was made, and the file that says so. ok is false where the kernel does not count them (version 1 before Linux
// 4.13) or the file cannot be read. In version 2 the file is modified at each kill, which inotify(7) sees.
func Events(root fs.FS, p Paths) (oomKills uint64, source string, ok bool) {
	switch p.Memory.Version {
	case 1:
		source = p.Memory.Path + "/memory.oom_control"
	case 2:
		source = p.Memory.Path + "/memory.events"
	default:
		return 0, "", false
	}
	text, err := readFile(root, source)
	if err != nil {
		return 0, source, false
	}
	oomKills, ok = field(text, "oom_kill")
	return oomKills, source, ok
}
