package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/bits"
	"strconv"
	"strings"

	"skep/sizing"
)

// Limits is what was found. The embedded [sizing.Limits] is what [sizing.Plan] takes.
type Limits struct {
	sizing.Limits
	// Levels is each visible cgroup that limits memory, own first: see ReadUsage.
	Levels []Level
	// Warnings names each file that could not be read or understood, and what is done without it.
	Warnings []string
}

// Level is one cgroup with a memory limit.
type Level struct {
	Dir    string // its directory
	Memory sizing.Memory
}

// The files that are the same on every system.
const (
	meminfo    = "/proc/meminfo"
	onlineCPUs = "/sys/devices/system/cpu/online"
	affinity   = "sched_getaffinity"
)

// unlimited is the least number of bytes that is no limit in version 1, which has no word for it: the kernel shows the
// largest number of whole pages there (9223372036854771712 with pages of 4 KiB; larger pages and older kernels have
// others). Nothing has an exbibyte.
const unlimited = 1 << 60

// Read reads the limits. affinityCPUs is how many CPUs sched_getaffinity(2) allows the caller, 0 if it does not know. Read
// never fails: what cannot be read is no limit and a line in Warnings.
func Read(root fs.FS, p Paths, affinityCPUs int) Limits {
	r := reader{root: root}
	r.Warnings = append(r.Warnings, p.Warnings...)

	if text, ok := r.text(meminfo, true); ok {
		if kib, ok := field(text, "MemTotal:"); ok && kib > 0 && kib < unlimited {
			r.MemTotal, r.MemTotalSource = kib<<10, meminfo
		} else {
			r.warn(meminfo, "has no MemTotal", "the machine's memory is unknown")
		}
	}
	if text, ok := r.text(onlineCPUs, false); ok {
		if n, err := parseList(text); err == nil {
			r.Online = n
		} else {
			r.warn(onlineCPUs, err.Error(), "the number of CPUs of the machine is unknown")
		}
	}
	if affinityCPUs > 0 {
		r.Affinity = cpus(affinityCPUs, affinity)
	}

	switch p.Memory.Version {
	case 1:
		r.memory1(p.Memory)
	case 2:
		r.memory2(p.Memory)
	}
	for _, l := range r.Levels {
		if !r.Memory.Set || l.Memory.Bytes < r.Memory.Bytes {
			r.Memory = l.Memory
		}
	}
	switch p.CPU.Version {
	case 1:
		r.cpu1(p.CPU)
	case 2:
		r.cpu2(p.CPU)
	}
	r.cpuset(p.CPUSet)
	return r.Limits
}

// LimitFiles is the files whose change may change the answer of Read, for inotify(7); those that exist. A change by the
// kernel itself, such as a CPU taken offline, makes no event: look anyway now and then.
func LimitFiles(root fs.FS, p Paths) []string {
	names := func(c Controller, v1, v2 []string) (all []string) {
		which := v2
		if c.Version == 1 {
			which = v1
		}
		for _, dir := range c.Dirs() {
			for _, name := range which {
				if f := dir + "/" + name; exists(root, f) {
					all = append(all, f)
				}
			}
		}
		return all
	}
	all := names(p.Memory, []string{"memory.limit_in_bytes"}, []string{"memory.max", "memory.high"})
	all = append(all, names(p.CPU, []string{"cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares"}, []string{"cpu.max", "cpu.weight"})...)
	return append(all, names(p.CPUSet, []string{"cpuset.cpus"}, []string{"cpuset.cpus"})...)
}

// reader collects limits and warnings.
type reader struct {
	root fs.FS
	Limits
}

func (r *reader) warn(file, what, then string) {
	r.Warnings = append(r.Warnings, file+" "+what+": "+then)
}

// text reads a file. That it is absent is a matter of course unless it must be there; anything else is a warning.
func (r *reader) text(file string, must bool) (string, bool) {
	text, err := readFile(r.root, file)
	switch {
	case err == nil:
		return text, true
	case errors.Is(err, fs.ErrNotExist) && !must:
	default:
		r.Warnings = append(r.Warnings, err.Error()+": no limit is taken from it")
	}
	return "", false
}

// bytes reads a file that holds one number of bytes. ok is false if there is no limit in it.
func (r *reader) bytes(file string) (m sizing.Memory, ok bool) {
	text, ok := r.text(file, false)
	if !ok {
		return m, false
	}
	n, ok, err := parseLimit(text)
	if err != nil {
		r.warn(file, err.Error(), "no limit is taken from it")
	}
	return sizing.Memory{Bytes: n, Set: ok, Source: file}, ok
}

func (r *reader) memory2(c Controller) {
	for _, dir := range c.Dirs() {
		var least sizing.Memory
		for _, name := range []string{"/memory.max", "/memory.high"} {
			if m, ok := r.bytes(dir + name); ok && (!least.Set || m.Bytes < least.Bytes) {
				least = m
			}
		}
		if least.Set {
			r.Levels = append(r.Levels, Level{dir, least})
		}
	}
}

func (r *reader) memory1(c Controller) {
	for i, dir := range c.Dirs() {
		if i > 0 {
			// Before Linux 5.11 a parent without the hierarchy flag is not charged for its children.
			if text, ok := r.text(dir+"/memory.use_hierarchy", false); ok && strings.TrimSpace(text) == "0" {
				break
			}
		}
		if m, ok := r.bytes(dir + "/memory.limit_in_bytes"); ok {
			r.Levels = append(r.Levels, Level{dir, m})
		}
	}
	// The kernel's own sum over all ancestors, the invisible ones too.
	file := c.Path + "/memory.stat"
	text, ok := r.text(file, false)
	if !ok {
		return
	}
	n, ok := field(text, "hierarchical_memory_limit")
	if !ok || n == 0 || n >= unlimited {
		return
	}
	for _, l := range r.Levels {
		if l.Memory.Bytes <= n {
			return // seen where it was set
		}
	}
	r.Levels = append(r.Levels, Level{c.Path, sizing.Memory{Bytes: n, Set: true, Source: file}})
}

func (r *reader) cpu2(c Controller) {
	for _, dir := range c.Dirs() {
		file := dir + "/cpu.max"
		if text, ok := r.text(file, false); ok {
			quota, period, _ := strings.Cut(strings.TrimSpace(text), " ")
			if period == "" {
				period = "100000" // may be left out when it is written; the kernel always shows it
			}
			r.quota(file, quota, period)
		}
	}
	file := c.Path + "/cpu.weight"
	if text, ok := r.text(file, false); ok {
		w, set, err := parseLimit(text)
		switch {
		case err != nil || !set || w > 10000:
			r.warn(file, "is no weight from 1 to 10000", "no limit is taken from it")
		default:
			r.Shares = sizing.CPU{Milli: milliOfWeight(w), Set: true, Source: file}
			r.SharesDefault = w == 100
		}
	}
}

func (r *reader) cpu1(c Controller) {
	for _, dir := range c.Dirs() {
		file := dir + "/cpu.cfs_quota_us"
		if quota, ok := r.text(file, false); ok {
			if period, ok := r.text(dir+"/cpu.cfs_period_us", true); ok {
				r.quota(file, strings.TrimSpace(quota), strings.TrimSpace(period))
			}
		}
	}
	file := c.Path + "/cpu.shares"
	if text, ok := r.text(file, false); ok {
		s, set, err := parseLimit(text)
		if err != nil || !set {
			r.warn(file, "is no number of shares", "no limit is taken from it")
			return
		}
		r.Shares = sizing.CPU{Milli: sharesMilli(s), Set: true, Source: file}
		r.SharesDefault = s == 1024
	}
}

// quota takes one CPU bandwidth limit, if it is less than those before it.
func (r *reader) quota(file, quota, period string) {
	q, set, err := parseLimit(quota)
	if err != nil {
		r.warn(file, err.Error(), "no limit is taken from it")
		return
	}
	if !set {
		return
	}
	p, set, err := parseLimit(period)
	if err != nil || !set {
		r.warn(file, "has no valid period", "no limit is taken from it")
		return
	}
	hi, lo := bits.Mul64(q, 1000)
	if hi >= p {
		return // more CPUs than can be counted
	}
	m, _ := bits.Div64(hi, lo, p)
	if m > math.MaxInt32 {
		return
	}
	c := sizing.CPU{Milli: max(1, sizing.Milli(m)), Set: true, Source: file}
	if !r.Quota.Set || c.Milli < r.Quota.Milli {
		r.Quota = c
	}
}

// cpuset takes the CPUs of the nearest cgroup that has the controller's files. Its effective set is within those of its
// ancestors already.
func (r *reader) cpuset(c Controller) {
	names := []string{"/cpuset.cpus.effective"}
	if c.Version == 1 {
		names = []string{"/cpuset.effective_cpus", "/cpuset.cpus"}
	}
	for _, dir := range c.Dirs() {
		for _, name := range names {
			text, ok := r.text(dir+name, false)
			if !ok {
				continue
			}
			n, err := parseList(text)
			if err != nil {
				r.warn(dir+name, err.Error(), "no limit is taken from it")
				continue
			}
			r.CPUSet = cpus(n, dir+name)
			return
		}
	}
}

func cpus(n int, source string) sizing.CPU {
	return sizing.CPU{Milli: sizing.Milli(min(n, math.MaxInt32/1000)) * 1000, Set: true, Source: source}
}

// parseLimit reads one number that may be "max". set is false for what means no limit; err says what is odd about it.
func parseLimit(text string) (n uint64, set bool, err error) {
	s := strings.TrimSpace(text)
	switch s {
	case "max", "-1":
		return 0, false, nil
	case "":
		return 0, false, errors.New("is empty")
	}
	n, err = strconv.ParseUint(s, 10, 64)
	switch {
	case err != nil:
		return 0, false, fmt.Errorf("holds %s, which is no number", quoted(s))
	case n == 0:
		return 0, false, errors.New("holds 0")
	case n >= unlimited:
		return 0, false, nil
	default:
		return n, true, nil
	}
}

// quoted is s in quotes, cut to a length that fits a line.
func quoted(s string) string {
	if len(s) > 40 {
		s = s[:40] + "…"
	}
	return strconv.Quote(s)
}

// field finds the number behind name in a file of lines "name number".
func field(text, name string) (uint64, bool) {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest == "" || (rest[0] != ' ' && rest[0] != '\t') {
			continue
		}
		f := strings.Fields(rest)
		if len(f) == 0 {
			return 0, false
		}
		n, err := strconv.ParseUint(f[0], 10, 64)
		return n, err == nil
	}
	return 0, false
}

// maxCPU is beyond the largest CPU number that any kernel is built for (NR_CPUS).
const maxCPU = 1 << 16

// parseList counts the numbers in a list such as "0-3,8,10-11" (cpuset(7), List format).
func parseList(text string) (int, error) {
	s := strings.TrimSpace(text)
	if s == "" {
		return 0, errors.New("is empty")
	}
	bad := func() (int, error) { return 0, fmt.Errorf("holds %s, which is no list of CPUs", quoted(s)) }
	n, next := 0, 0
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(first, 10, 32)
		if err != nil || a >= maxCPU || int(a) < next {
			return bad() // the kernel writes them in order, once each
		}
		b := a
		if isRange {
			if b, err = strconv.ParseUint(last, 10, 32); err != nil || b >= maxCPU || b < a {
				return bad()
			}
		}
		n += int(b-a) + 1
		next = int(b) + 1
	}
	return n, nil
}
