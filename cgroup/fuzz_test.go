package cgroup

import (
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"skep/sizing"
)

// seeds adds the text of a file from all fixture trees.
func seeds(f *testing.F, names ...string) {
	f.Helper()
	n := 0
	err := filepath.WalkDir(fixtures, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		for _, want := range names {
			if strings.HasSuffix(name, want) {
				b, err := os.ReadFile(name)
				if err != nil {
					return err
				}
				f.Add(string(b))
				n++
			}
		}
		return nil
	})
	if err != nil || n == 0 {
		f.Fatalf("%d seeds, %v", n, err)
	}
}

func FuzzMounts(f *testing.F) {
	seeds(f, "/mountinfo")
	f.Add(`30 1 0:26 /a\040b\ /\134\777 rw - cgroup2  `)
	f.Fuzz(func(t *testing.T, info string) {
		for _, m := range parseMounts(info) {
			if !path.IsAbs(m.root) || !path.IsAbs(m.point) || m.version < 1 || m.version > 2 {
				t.Errorf("mount %+v", m)
			}
		}
	})
}

func FuzzRelative(f *testing.F) {
	f.Add("/", "/")
	f.Add("/..", "/../a")
	f.Add("/../..", "/../a")
	f.Add("/docker/x", "/docker/x/y")
	f.Fuzz(func(t *testing.T, root, own string) {
		below, ok := relative(root, own)
		if !ok {
			if below != "" {
				t.Errorf("%q below %q is %q, and not", own, root, below)
			}
			return
		}
		for d := range strings.SplitSeq(below, "/") {
			if d == ".." {
				t.Errorf("%q below %q leads out: %q", own, root, below)
			}
		}
	})
}

func FuzzLimit(f *testing.F) {
	seeds(f, "/memory.max", "/memory.limit_in_bytes", "/cpu.weight", "/cpu.shares", "/cpu.cfs_quota_us")
	f.Fuzz(func(t *testing.T, text string) {
		n, set, err := parseLimit(text)
		if set && (n == 0 || n >= unlimited || err != nil) {
			t.Errorf("%q is the limit %d, %v", text, n, err)
		}
	})
}

func FuzzList(f *testing.F) {
	seeds(f, "/cpuset.cpus.effective", "/cpuset.cpus", "/online")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := parseList(text)
		if err == nil && (n < 1 || n > maxCPU) {
			t.Errorf("%q is %d CPUs", text, n)
		}
	})
}

func FuzzField(f *testing.F) {
	seeds(f, "/memory.stat", "/memory.events", "/memory.oom_control", "/meminfo")
	f.Fuzz(func(t *testing.T, text string) {
		if n, ok := field(text, "oom_kill"); ok && !strings.Contains(text, strconv.FormatUint(n, 10)) {
			t.Errorf("%d found in %q", n, text)
		}
	})
}

// All files at once: whatever they hold, there is an answer, it is sound, and skep's plan has a worker.
func FuzzRead(f *testing.F) {
	f.Add("0::/a\n", "30 1 0:26 / /c rw - cgroup2 cgroup rw\n", "300\n", "150000 100000\n", "0-3\n", "MemTotal: 100 kB\n")
	f.Add("3:memory:/a\n2:cpu,cpuacct:/a\n1:cpuset:/\n", "30 1 0:26 / /c rw - cgroup cgroup rw,memory,cpu,cpuset\n", "max\n", "-1\n", "0\n", "x")
	f.Fuzz(func(t *testing.T, cgroup, mountinfo, memory, cpu, cpuset, meminfo string) {
		root := fstest.MapFS{
			"proc/self/cgroup":     {Data: []byte(cgroup)},
			"proc/self/mountinfo":  {Data: []byte(mountinfo)},
			"proc/meminfo":         {Data: []byte(meminfo)},
			"c/memory.high":        {Data: []byte(memory)},
			"c/a/memory.max":       {Data: []byte(memory)},
			"c/a/memory.current":   {Data: []byte(memory)},
			"c/a/memory.stat":      {Data: []byte(memory)},
			"c/cpu.max":            {Data: []byte(cpu)},
			"c/cpu.cfs_quota_us":   {Data: []byte(cpu)},
			"c/cpu.cfs_period_us":  {Data: []byte(memory)},
			"c/a/cpu.weight":       {Data: []byte(memory)},
			"c/cpuset.cpus":        {Data: []byte(cpuset)},
			"c/a/cpuset.cpus":      {Data: []byte(cpuset)},
			"c/a/memory.events":    {Data: []byte(memory)},
			"c/memory.oom_control": {Data: []byte(memory)},

			"c/memory.limit_in_bytes":             {Data: []byte(memory)},
			"c/cpuset.cpus.effective":             {Data: []byte(cpuset)},
			"sys/devices/system/cpu/online":       {Data: []byte(cpuset)},
			"sys/fs/cgroup/memory.max":            {Data: []byte(memory)},
			"sys/fs/cgroup/cpu.max":               {Data: []byte(cpu)},
			"sys/fs/cgroup/cpuset.cpus.effective": {Data: []byte(cpuset)},
		}
		p, _ := Find(root)
		for _, c := range []Controller{p.Memory, p.CPU, p.CPUSet} {
			dirs := c.Dirs()
			if c.Version != 0 && (dirs[0] != c.Path || dirs[len(dirs)-1] != c.Mount) {
				t.Errorf("%+v has %q", c, dirs)
			}
		}
		l := Read(root, p, 0)
		if l.Memory.Set && (l.Memory.Bytes == 0 || l.Memory.Bytes >= unlimited || l.Memory.Source == "") {
			t.Errorf("memory %+v", l.Memory)
		}
		for _, c := range []sizing.CPU{l.Quota, l.CPUSet, l.Shares} {
			if c.Set && (c.Milli < 1 || c.Source == "") {
				t.Errorf("cpu %+v", c)
			}
		}
		if u, err := ReadUsage(root, p, l); err == nil && (u.Held > u.WorkingSet || u.WorkingSet > u.Current) {
			t.Errorf("usage %+v", u)
		}
		Events(root, p)
		LimitFiles(root, p)
		if d := sizing.Plan(l.Limits, sizing.Policy{ByHand: true}, 1<<20); d.Workers < 1 {
			t.Errorf("plan %+v", d)
		}
	})
}
