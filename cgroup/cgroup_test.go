package cgroup

import (
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skep/sizing"
)

const (
	mib      = 1 << 20
	fixtures = "../testdata/cgroup"
	sys      = "/sys/fs/cgroup/"
)

func bytes(n uint64, source string) sizing.Memory {
	return sizing.Memory{Bytes: n, Set: true, Source: source}
}
func milli(n int, source string) sizing.CPU {
	return sizing.CPU{Milli: sizing.Milli(n), Set: true, Source: source}
}

// answers is the documented answer to each fixture tree in testdata/cgroup. All trees have 16000 MiB of memory and 8
// CPUs unless they are about that; workers is what sizing makes of it with 50 MiB for one worker, 0.8 of the limit and
// one worker per CPU, by default and with "-w auto" given by hand.
var answers = []struct {
	tree           string
	about          string
	memory         sizing.Memory
	quota          sizing.CPU
	cpuset         sizing.CPU
	shares         sizing.CPU
	defaultShares  bool
	workers, hand  int
	warnings       []string // a part of each warning
	memTotal       uint64   // 0: as all
	online         int      // 0: as all
	machineUnknown bool
}{
	{
		tree: "v1", about: "Docker without a cgroup namespace: each controller's mount has the container's cgroup as its root; cpu and cpuacct are mounted together",
		memory: bytes(300*mib, sys+"memory/memory.limit_in_bytes"), quota: milli(1500, sys+"cpu,cpuacct/cpu.cfs_quota_us"),
		cpuset: milli(8000, sys+"cpuset/cpuset.effective_cpus"), shares: milli(1000, sys+"cpu,cpuacct/cpu.shares"), defaultShares: true,
		workers: 2, hand: 2,
	}, {
		tree: "v1-host", about: "a service on a host: the whole hierarchy is mounted, the cpuset controller has no files in the service's own cgroup",
		memory: bytes(512*mib, sys+"memory/system.slice/app.service/memory.limit_in_bytes"),
		quota:  milli(500, sys+"cpu,cpuacct/system.slice/app.service/cpu.cfs_quota_us"),
		cpuset: milli(8000, sys+"cpuset/cpuset.effective_cpus"),
		shares: milli(1000, sys+"cpu,cpuacct/system.slice/app.service/cpu.shares"), defaultShares: true,
		workers: 1, hand: 1,
	}, {
		tree: "v1-page-rounded-max", about: "the largest number of pages of 4 KiB is no limit",
		cpuset: milli(8000, sys+"cpuset/cpuset.effective_cpus"), shares: milli(1000, sys+"cpu,cpuacct/cpu.shares"), defaultShares: true,
		workers: 1, hand: 8,
	}, {
		tree: "v1-page-rounded-max-64k", about: "the largest number of pages of 64 KiB is none either",
		cpuset: milli(8000, sys+"cpuset/cpuset.effective_cpus"), shares: milli(1000, sys+"cpu,cpuacct/cpu.shares"), defaultShares: true,
		workers: 1, hand: 8,
	}, {
		tree: "v1-nested-tighter-parent", about: "a parent that is visible has less memory and CPU",
		memory: bytes(256*mib, sys+"memory/kubepods/pod7d1f/memory.limit_in_bytes"),
		quota:  milli(500, sys+"cpu,cpuacct/kubepods/pod7d1f/cpu.cfs_quota_us"),
		cpuset: milli(8000, sys+"cpuset/kubepods/pod7d1f/4f1c/cpuset.effective_cpus"),
		shares: milli(1000, sys+"cpu,cpuacct/kubepods/pod7d1f/4f1c/cpu.shares"), defaultShares: true,
		workers: 1, hand: 1,
	}, {
		tree: "v1-hidden-tighter-parent", about: "a parent that is not visible has less memory: the kernel's own sum tells",
		memory: bytes(200*mib, sys+"memory/memory.stat"),
		cpuset: milli(8000, sys+"cpuset/cpuset.effective_cpus"), shares: milli(1000, sys+"cpu,cpuacct/cpu.shares"), defaultShares: true,
		workers: 3, hand: 3,
	}, {
		tree: "v1-no-hierarchy", about: "before Linux 5.11 a parent may not be charged for its children: its limit does not count",
		memory: bytes(512*mib, sys+"memory/a/b/memory.limit_in_bytes"),
		cpuset: milli(8000, sys+"cpuset/a/b/cpuset.effective_cpus"), shares: milli(1000, sys+"cpu,cpuacct/a/b/cpu.shares"), defaultShares: true,
		workers: 8, hand: 8,
	}, {
		tree: "v1-shares", about: "shares only: 2560 are two and a half CPUs",
		cpuset: milli(8000, sys+"cpuset/cpuset.effective_cpus"), shares: milli(2500, sys+"cpu,cpuacct/cpu.shares"),
		workers: 3, hand: 3,
	}, {
		tree: "v1-cgroup-namespace", about: "in a cgroup namespace the own cgroup is /",
		memory: bytes(300*mib, sys+"memory/memory.limit_in_bytes"), quota: milli(2500, sys+"cpu,cpuacct/cpu.cfs_quota_us"),
		cpuset: milli(3000, sys+"cpuset/cpuset.effective_cpus"), shares: milli(1000, sys+"cpu,cpuacct/cpu.shares"), defaultShares: true,
		workers: 3, hand: 3,
	}, {
		tree: "v1-separate-cpu", about: "cpu and cpuacct mounted apart, and a cgroup in some hierarchies only",
		memory: bytes(128*mib, sys+"memory/app/memory.limit_in_bytes"), quota: milli(1500, sys+"cpu/app/cpu.cfs_quota_us"),
		cpuset: milli(8000, sys+"cpuset/cpuset.effective_cpus"), shares: milli(1000, sys+"cpu/app/cpu.shares"), defaultShares: true,
		workers: 2, hand: 2,
	}, {
		tree: "v1-not-mounted", about: "the controllers are version 1 and none is mounted here",
		workers: 1, hand: 8,
		warnings: []string{"the memory controller is a cgroup of version 1 that is not mounted here", "the cpu controller", "the cpuset controller"},
	}, {
		tree: "v1-zero-period", about: "a period of 0 is no limit",
		memory: bytes(300*mib, sys+"memory/memory.limit_in_bytes"),
		cpuset: milli(8000, sys+"cpuset/cpuset.effective_cpus"), shares: milli(1000, sys+"cpu,cpuacct/cpu.shares"), defaultShares: true,
		workers: 4, hand: 4,
		warnings: []string{sys + "cpu,cpuacct/cpu.cfs_quota_us has no valid period"},
	}, {
		tree: "v2", about: "Docker or Kubernetes in a cgroup namespace",
		memory: bytes(300*mib, sys+"memory.max"), quota: milli(1500, sys+"cpu.max"),
		cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"cpu.weight"), defaultShares: true,
		workers: 2, hand: 2,
	}, {
		tree: "v2-max", about: "max is no limit",
		cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"cpu.weight"), defaultShares: true,
		workers: 1, hand: 8,
	}, {
		tree: "v2-absent", about: "no controller is enabled: their files are absent",
		workers: 1, hand: 8,
	}, {
		tree: "v2-empty", about: "empty files are no limit, and odd",
		workers: 1, hand: 8,
		warnings: []string{"memory.max is empty", "memory.high is empty", "cpu.max is empty", "cpu.weight is no weight", "cpuset.cpus.effective is empty"},
	}, {
		tree: "v2-zero", about: "0 is no limit, and odd: nothing could run in it",
		cpuset:  milli(8000, sys+"cpuset.cpus.effective"),
		workers: 1, hand: 8,
		warnings: []string{"memory.max holds 0", "memory.high holds 0", "cpu.max holds 0", "cpu.weight is no weight"},
	}, {
		tree: "v2-garbage", about: "what is no number is no limit, and odd",
		workers: 1, hand: 8,
		warnings: []string{`memory.max holds "lots"`, `memory.high holds "-5"`, `cpu.max holds "many"`, "cpu.weight is no weight", `cpuset.cpus.effective holds "3-1"`},
	}, {
		tree: "v2-zero-period", about: "a period of 0 is no limit",
		memory: bytes(300*mib, sys+"memory.max"),
		cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"cpu.weight"), defaultShares: true,
		workers: 4, hand: 4,
		warnings: []string{"cpu.max has no valid period"},
	}, {
		tree: "v2-quota-without-period", about: "the period is 100 ms if it is left out",
		memory: bytes(300*mib, sys+"memory.max"), quota: milli(500, sys+"cpu.max"),
		cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"cpu.weight"), defaultShares: true,
		workers: 1, hand: 1,
	}, {
		tree: "v2-memory-high-lower", about: "memory.high below memory.max: the container is throttled there, long before it is killed",
		memory: bytes(400*mib, sys+"memory.high"),
		cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"cpu.weight"), defaultShares: true,
		workers: 6, hand: 6,
	}, {
		tree: "v2-quota-half", about: "half a CPU",
		quota: milli(500, sys+"cpu.max"), cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"cpu.weight"), defaultShares: true,
		workers: 1, hand: 1,
	}, {
		tree: "v2-quota-one-and-a-half", about: "one and a half CPUs keep two workers busy",
		quota: milli(1500, sys+"cpu.max"), cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"cpu.weight"), defaultShares: true,
		workers: 2, hand: 2,
	}, {
		tree: "v2-quota-tiny", about: "less than a thousandth of a CPU is a thousandth",
		quota: milli(1, sys+"cpu.max"), cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"cpu.weight"), defaultShares: true,
		workers: 1, hand: 1,
	}, {
		tree: "v2-quota-and-cpuset", about: "the cpuset is narrower than the quota",
		quota: milli(3500, sys+"cpu.max"), cpuset: milli(3000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"cpu.weight"), defaultShares: true,
		workers: 3, hand: 3,
	}, {
		tree: "v2-cpuset-ranges", about: "ranges and single CPUs",
		cpuset: milli(6000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"cpu.weight"), defaultShares: true,
		workers: 6, hand: 6,
	}, {
		tree: "v2-cpuset-from-parent", about: "the nearest cgroup with the cpuset controller counts; of memory any",
		memory: bytes(512*mib, sys+"system.slice/memory.max"),
		cpuset: milli(4000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"system.slice/app.service/cpu.weight"), defaultShares: true,
		workers: 4, hand: 4,
	}, {
		tree: "v2-weight-runc", about: "weight only: runc makes 170 of 2000 shares; of the shares that give it the roundest number of CPUs is taken",
		cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1950, sys+"cpu.weight"),
		workers: 2, hand: 2,
	}, {
		tree: "v2-weight-default", about: "the default weight, which nobody set",
		cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"cpu.weight"), defaultShares: true,
		workers: 1, hand: 8,
	}, {
		tree: "v2-nested-tighter-parent", about: "no cgroup namespace, and the pod has less than the container",
		memory: bytes(256*mib, sys+"kubepods.slice/kubepods-pod7d1f.slice/memory.max"),
		quota:  milli(500, sys+"kubepods.slice/kubepods-pod7d1f.slice/cpu.max"),
		cpuset: milli(8000, sys+"kubepods.slice/kubepods-pod7d1f.slice/cri-containerd-4f1c.scope/cpuset.cpus.effective"),
		shares: milli(1000, sys+"kubepods.slice/kubepods-pod7d1f.slice/cri-containerd-4f1c.scope/cpu.weight"), defaultShares: true,
		workers: 1, hand: 1,
	}, {
		tree: "v2-bind-mount", about: "no cgroup namespace, only the own cgroup is mounted",
		memory: bytes(300*mib, sys+"memory.max"), quota: milli(1000, sys+"cpu.max"),
		cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"cpu.weight"), defaultShares: true,
		workers: 1, hand: 1,
	}, {
		tree: "v2-bind-mount-child", about: "and this process is in a child of it",
		memory: bytes(200*mib, sys+"init.scope/memory.max"), quota: milli(1000, sys+"cpu.max"),
		cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"init.scope/cpu.weight"), defaultShares: true,
		workers: 1, hand: 1,
	}, {
		tree: "v2-namespace-below-mount", about: "mounted from above the cgroup namespace, which hides the own cgroup's name",
		memory: bytes(300*mib, sys+"memory.max"), quota: milli(1000, sys+"cpu.max"),
		cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"cpu.weight"), defaultShares: true,
		workers: 1, hand: 1,
		warnings: []string{"the cgroup of this process, /, cannot be seen below /sys/fs/cgroup"},
	}, {
		tree: "v2-outside-namespace", about: "this process was moved out of its cgroup namespace",
		memory: bytes(200*mib, sys+"neighbour/memory.max"), quota: milli(1000, sys+"neighbour/cpu.max"),
		cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"neighbour/cpu.weight"), defaultShares: true,
		workers: 1, hand: 1,
	}, {
		tree: "v2-other-branch", about: "what is mounted is not where this process is",
		memory: bytes(300*mib, sys+"memory.max"), quota: milli(1000, sys+"cpu.max"),
		cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"cpu.weight"), defaultShares: true,
		workers: 1, hand: 1,
		warnings: []string{"the cgroup of this process, /elsewhere, cannot be seen below /sys/fs/cgroup"},
	}, {
		tree: "v2-spaces", about: "spaces and a backslash in mount point and cgroup, spaces in the options of another mount",
		memory: bytes(200*mib, `/mnt/cgroup two/a\b c/memory.max`), quota: milli(500, `/mnt/cgroup two/a\b c/cpu.max`),
		cpuset: milli(8000, "/mnt/cgroup two/cpuset.cpus.effective"), shares: milli(1000, `/mnt/cgroup two/a\b c/cpu.weight`), defaultShares: true,
		workers: 1, hand: 1,
	}, {
		tree: "v2-two-mounts", about: "of two mounts the one that shows more ancestors, if the cgroup is really there",
		memory: bytes(200*mib, sys+"app/memory.max"),
		cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"app/web/cpu.weight"), defaultShares: true,
		workers: 3, hand: 3,
	}, {
		tree: "v2-two-mounts-one-foreign", about: "of two mounts the one of the own cgroup, even if the other came later",
		memory: bytes(300*mib, sys+"memory.max"),
		cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"cpu.weight"), defaultShares: true,
		workers: 4, hand: 4,
	}, {
		tree: "v2-root", about: "the root cgroup has no limits",
		cpuset:  milli(8000, sys+"cpuset.cpus.effective"),
		workers: 1, hand: 8,
	}, {
		tree: "hybrid", about: "memory is version 1, cpu and cpuset are version 2; version 2's memory files, which a kernel would not show, do not count",
		memory: bytes(300*mib, sys+"memory/app/memory.limit_in_bytes"), quota: milli(2500, sys+"unified/app/cpu.max"),
		cpuset: milli(4000, sys+"unified/app/cpuset.cpus.effective"), shares: milli(1000, sys+"unified/app/cpu.weight"), defaultShares: true,
		workers: 3, hand: 3,
	}, {
		tree: "hybrid-all-v1", about: "the unified hierarchy of systemd's hybrid mode has no controllers",
		memory: bytes(300*mib, sys+"memory/app/memory.limit_in_bytes"), quota: milli(1000, sys+"cpu,cpuacct/app/cpu.cfs_quota_us"),
		cpuset: milli(8000, sys+"cpuset/app/cpuset.effective_cpus"), shares: milli(1000, sys+"cpu,cpuacct/app/cpu.shares"), defaultShares: true,
		workers: 1, hand: 1,
	}, {
		tree: "none", about: "no cgroup file system is mounted",
		workers: 1, hand: 8,
		warnings: []string{"no cgroup file system of version 2 is mounted here"},
	}, {
		tree: "no-limit-v1", about: "a host of version 1 without any limit",
		cpuset: milli(8000, sys+"cpuset/cpuset.effective_cpus"), shares: milli(1000, sys+"cpu,cpuacct/cpu.shares"), defaultShares: true,
		workers: 1, hand: 8,
	}, {
		tree: "odd-machine", about: "neither memory nor CPUs of the machine can be told",
		memory: bytes(300*mib, sys+"memory.max"), quota: milli(1500, sys+"cpu.max"),
		cpuset: milli(8000, sys+"cpuset.cpus.effective"), shares: milli(1000, sys+"cpu.weight"), defaultShares: true,
		workers: 2, hand: 2,
		machineUnknown: true,
		warnings:       []string{"/proc/meminfo has no MemTotal"},
	},
}

func TestFixtures(t *testing.T) {
	for _, a := range answers {
		t.Run(a.tree, func(t *testing.T) {
			t.Log(a.about)
			root := os.DirFS(fixtures + "/" + a.tree)
			p, err := Find(root)
			if err != nil {
				t.Fatal(err)
			}
			got := Read(root, p, 8)
			want := sizing.Limits{
				Memory: a.memory, MemTotal: 16000 * mib, MemTotalSource: "/proc/meminfo", Online: 8,
				Quota: a.quota, CPUSet: a.cpuset, Affinity: milli(8000, "sched_getaffinity"),
				Shares: a.shares, SharesDefault: a.defaultShares,
			}
			if a.machineUnknown {
				want.MemTotal, want.MemTotalSource, want.Online = 0, "", 0
			}
			if d := cmp.Diff(want, got.Limits); d != "" {
				t.Errorf("limits differ (-want +got):\n%s", d)
			}
			if len(got.Warnings) != len(a.warnings) {
				t.Errorf("%d warnings, want %d: %q", len(got.Warnings), len(a.warnings), got.Warnings)
			}
			for i := range min(len(got.Warnings), len(a.warnings)) {
				if !strings.Contains(got.Warnings[i], a.warnings[i]) {
					t.Errorf("warning %q, want %q in it", got.Warnings[i], a.warnings[i])
				}
			}
			if d := sizing.Plan(got.Limits, sizing.Policy{}, 50*mib); d.Workers != a.workers {
				t.Errorf("%d workers, want %d: %s", d.Workers, a.workers, d.Reason)
			}
			if d := sizing.Plan(got.Limits, sizing.Policy{ByHand: true}, 50*mib); d.Workers != a.hand {
				t.Errorf("%d workers by hand, want %d: %s", d.Workers, a.hand, d.Reason)
			}
		})
	}
}

// Each tree has its answer, so that none is forgotten.
func TestEveryFixtureHasAnAnswer(t *testing.T) {
	dirs, err := os.ReadDir(fixtures)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		known := false
		for _, a := range answers {
			known = known || a.tree == d.Name()
		}
		if d.IsDir() && !known {
			t.Errorf("testdata/cgroup/%s has no answer in the table", d.Name())
		}
	}
}

// refusing is a file system in which some files cannot be read. A folder of mode 000 could not be checked in, and would
// not stop root.
type refusing struct {
	fs.FS
	names []string
	err   error
}

func (r refusing) Open(name string) (fs.File, error) {
	if slices.Contains(r.names, name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: r.err}
	}
	return r.FS.Open(name)
}

func TestUnreadableFiles(t *testing.T) {
	const v2 = "sys/fs/cgroup/"
	for _, tt := range []struct {
		tree, file string
		memory     sizing.Memory
		quota      sizing.CPU
		warning    string
	}{
		{"v2", v2 + "memory.max", sizing.Memory{}, milli(1500, sys+"cpu.max"), "cannot read /sys/fs/cgroup/memory.max: permission denied: no limit is taken from it"},
		{"v2", v2 + "memory.high", bytes(300*mib, sys+"memory.max"), milli(1500, sys+"cpu.max"), "cannot read /sys/fs/cgroup/memory.high: permission denied: no limit is taken from it"},
		{"v2", v2 + "cpu.max", bytes(300*mib, sys+"memory.max"), sizing.CPU{}, "cannot read /sys/fs/cgroup/cpu.max: permission denied: no limit is taken from it"},
		{"v1", v2 + "memory/memory.limit_in_bytes", bytes(300*mib, sys+"memory/memory.stat"), milli(1500, sys+"cpu,cpuacct/cpu.cfs_quota_us"), "cannot read /sys/fs/cgroup/memory/memory.limit_in_bytes: permission denied: no limit is taken from it"},
		{"v1", v2 + "memory/memory.stat", bytes(300*mib, sys+"memory/memory.limit_in_bytes"), milli(1500, sys+"cpu,cpuacct/cpu.cfs_quota_us"), "cannot read /sys/fs/cgroup/memory/memory.stat: permission denied: no limit is taken from it"},
	} {
		t.Run(tt.tree+"/"+tt.file, func(t *testing.T) {
			root := refusing{os.DirFS(fixtures + "/" + tt.tree), []string{tt.file}, syscall.EACCES}
			p, err := Find(root)
			if err != nil {
				t.Fatal(err)
			}
			got := Read(root, p, 0)
			if got.Memory != tt.memory {
				t.Errorf("memory %+v, want %+v", got.Memory, tt.memory)
			}
			if got.Quota != tt.quota {
				t.Errorf("quota %+v, want %+v", got.Quota, tt.quota)
			}
			if d := cmp.Diff([]string{tt.warning}, got.Warnings); d != "" {
				t.Errorf("warnings differ (-want +got):\n%s", d)
			}
		})
	}
}

func TestFindNamesWhatItCannotRead(t *testing.T) {
	for _, name := range []string{"proc/self/cgroup", "proc/self/mountinfo"} {
		root := refusing{os.DirFS(fixtures + "/v2"), []string{name}, syscall.EACCES}
		p, err := Find(root)
		if err == nil || !strings.Contains(err.Error(), "cannot read /"+name) {
			t.Errorf("error %v does not name /%s", err, name)
		}
		if l := Read(root, p, 4); l.Memory.Set || l.MemTotal != 16000*mib {
			t.Errorf("without %s: %+v", name, l)
		}
	}
}

var ofMachine = Usage{Limit: bytes(16000*mib, "/proc/meminfo"),
	Current: 8000 * mib, InactiveFile: 2000 * mib, ActiveFile: 2000 * mib, WorkingSet: 6000 * mib, Held: 4000 * mib}

func TestOwnUsage(t *testing.T) {
	unlimited := Usage{Dir: "/sys/fs/cgroup", Current: 140 * mib, InactiveFile: 10 * mib, ActiveFile: 5 * mib, WorkingSet: 130 * mib, Held: 125 * mib}
	for tree, want := range map[string]Usage{"v2": unlimited, "v2-max": unlimited, "v2-root": ofMachine, "none": ofMachine} {
		root := os.DirFS(fixtures + "/" + tree)
		p, err := Find(root)
		if err != nil {
			t.Fatal(err)
		}
		got, err := OwnUsage(root, p)
		if err != nil {
			t.Errorf("%s: %v", tree, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: usage differs (-want +got):\n%s", tree, d)
		}
	}
}

// A limit above the machine's memory does not bound anything: the machine does.
func TestUsageWithALimitAboveTheMachine(t *testing.T) {
	root := os.DirFS(fixtures + "/v2")
	p, err := Find(root)
	if err != nil {
		t.Fatal(err)
	}
	l := Read(root, p, 0)
	l.Memory.Bytes, l.Levels[0].Memory.Bytes = 64000*mib, 64000*mib
	got, err := ReadUsage(root, p, l)
	if d := cmp.Diff(ofMachine, got); d != "" || err != nil {
		t.Errorf("%v, usage differs (-want +got):\n%s", err, d)
	}
}

func TestUsageOfTheCgroupNearestToItsLimit(t *testing.T) {
	for _, tt := range []struct {
		tree string
		want Usage
	}{
		{"v1", Usage{Dir: "/sys/fs/cgroup/memory", Limit: bytes(300*mib, sys+"memory/memory.limit_in_bytes"),
			Current: 140 * mib, InactiveFile: 10 * mib, ActiveFile: 5 * mib, WorkingSet: 130 * mib, Held: 125 * mib}},
		{"v2", Usage{Dir: "/sys/fs/cgroup", Limit: bytes(300*mib, sys+"memory.max"),
			Current: 140 * mib, InactiveFile: 10 * mib, ActiveFile: 5 * mib, WorkingSet: 130 * mib, Held: 125 * mib}},
		// The container has 100 of 512 MiB, its pod 240 of 256.
		{"v2-nested-tighter-parent", Usage{Dir: "/sys/fs/cgroup/kubepods.slice/kubepods-pod7d1f.slice",
			Limit:   bytes(256*mib, sys+"kubepods.slice/kubepods-pod7d1f.slice/memory.max"),
			Current: 240 * mib, InactiveFile: 10 * mib, ActiveFile: 5 * mib, WorkingSet: 230 * mib, Held: 225 * mib}},
		// Without a limit it is the machine that may become full.
		{"v2-max", ofMachine},
		{"v2-root", ofMachine},
		{"none", ofMachine},
	} {
		root := os.DirFS(fixtures + "/" + tt.tree)
		p, err := Find(root)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ReadUsage(root, p, Read(root, p, 0))
		if err != nil {
			t.Errorf("%s: %v", tt.tree, err)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s: usage differs (-want +got):\n%s", tt.tree, d)
		}
	}
}

// The parts are read after the whole, which may have become smaller.
func TestUsageOfNumbersThatDoNotFit(t *testing.T) {
	for _, tt := range []struct{ u, want Usage }{
		{Usage{Current: 100, InactiveFile: 120, ActiveFile: 30}, Usage{Current: 100, InactiveFile: 100}},
		{Usage{Current: 100, InactiveFile: 80, ActiveFile: 30}, Usage{Current: 100, InactiveFile: 80, ActiveFile: 20, WorkingSet: 20}},
		{Usage{Current: 100, InactiveFile: 50, ActiveFile: 30}, Usage{Current: 100, InactiveFile: 50, ActiveFile: 30, WorkingSet: 50, Held: 20}},
	} {
		tt.u.sum()
		if tt.u != tt.want {
			t.Errorf("%+v, want %+v", tt.u, tt.want)
		}
	}
}

func TestList(t *testing.T) {
	for _, tt := range []struct {
		in string
		n  int // 0: no list
	}{
		{"0\n", 1}, {"0-3", 4}, {"0-3,8,10-11\n", 7}, {"7", 1}, {"65535", 1},
		{"", 0}, {"\n", 0}, {",", 0}, {"0,", 0}, {"3-1", 0}, {"3,1", 0}, {"0-3,3", 0}, {"0,0", 0}, {"-1", 0}, {"0-", 0}, {"0-1-2", 0},
		{"0x1", 0}, {"65536", 0}, {"0-65536", 0}, {"0 1", 0}, {"all", 0},
	} {
		n, err := parseList(tt.in)
		if n != tt.n || (err == nil) != (tt.n > 0) {
			t.Errorf("%q is %d CPUs, %v; want %d", tt.in, n, err, tt.n)
		}
	}
}

func TestRelative(t *testing.T) {
	for _, tt := range []struct {
		root, own, want string
		ok              bool
	}{
		{"/", "/", "", true},
		{"/", "/a/b", "a/b", true},
		{"/a", "/a/b", "b", true},
		{"/a/b", "/a/b", "", true},
		{"/a", "/ab", "", false},
		{"/a/b", "/a", "", false},
		{"/..", "/../b", "b", true},
		{"/..", "/", "", false},      // the name of the namespace's own cgroup is hidden
		{"/..", "/b", "", false},     // and so is the way to what is below it
		{"/", "/../b", "", false},    // beside what is mounted
		{"/..", "/../..", "", false}, // above it
		{"/../a", "/../a/b", "b", true},
	} {
		if got, ok := relative(tt.root, tt.own); got != tt.want || ok != tt.ok {
			t.Errorf("%s below %s is %q, %v; want %q, %v", tt.own, tt.root, got, ok, tt.want, tt.ok)
		}
	}
}

func TestUsageErrorsNameTheFile(t *testing.T) {
	for _, name := range []string{"memory.current", "memory.stat"} {
		root := refusing{os.DirFS(fixtures + "/v2"), []string{"sys/fs/cgroup/" + name}, syscall.EACCES}
		p, err := Find(root)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = ReadUsage(root, p, Read(root, p, 0)); err == nil || !strings.Contains(err.Error(), "/sys/fs/cgroup/"+name) {
			t.Errorf("error %v does not name %s", err, name)
		}
	}
	if _, err := machineUsage(os.DirFS(fixtures + "/odd-machine")); err == nil || !strings.Contains(err.Error(), "/proc/meminfo") {
		t.Errorf("error %v does not name /proc/meminfo", err)
	}
}

func TestEvents(t *testing.T) {
	for _, tt := range []struct {
		tree, source string
		kills        uint64
		ok           bool
	}{
		{"v1", sys + "memory/memory.oom_control", 3, true},
		{"v2", sys + "memory.events", 4, true},
		{"v2-absent", sys + "memory.events", 0, false},
		{"none", "", 0, false},
	} {
		root := os.DirFS(fixtures + "/" + tt.tree)
		p, err := Find(root)
		if err != nil {
			t.Fatal(err)
		}
		if kills, source, ok := Events(root, p); kills != tt.kills || source != tt.source || ok != tt.ok {
			t.Errorf("%s: %d, %q, %v; want %d, %q, %v", tt.tree, kills, source, ok, tt.kills, tt.source, tt.ok)
		}
	}
}

func TestLimitFiles(t *testing.T) {
	for _, tt := range []struct {
		tree string
		want []string
	}{
		{"v1", []string{sys + "memory/memory.limit_in_bytes", sys + "cpu,cpuacct/cpu.cfs_quota_us", sys + "cpu,cpuacct/cpu.cfs_period_us",
			sys + "cpu,cpuacct/cpu.shares", sys + "cpuset/cpuset.cpus"}},
		{"v2-bind-mount-child", []string{sys + "init.scope/memory.max", sys + "init.scope/memory.high", sys + "memory.max", sys + "memory.high",
			sys + "init.scope/cpu.max", sys + "init.scope/cpu.weight", sys + "cpu.max", sys + "cpu.weight", sys + "cpuset.cpus"}},
		{"v2-absent", nil},
		{"none", nil},
	} {
		root := os.DirFS(fixtures + "/" + tt.tree)
		p, err := Find(root)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tt.want, LimitFiles(root, p)); d != "" {
			t.Errorf("%s: files differ (-want +got):\n%s", tt.tree, d)
		}
	}
}

// What runtimes really write, from the change logs of runc 1.3.2 and crun 1.23.
func TestWeights(t *testing.T) {
	for _, tt := range []struct{ shares, weight uint64 }{{2, 1}, {1024, 100}, {2000, 170}, {22000, 1204}, {262144, 10000}} {
		if got := weightOfShares(tt.shares); got != tt.weight {
			t.Errorf("%d shares are weight %d, want %d", tt.shares, got, tt.weight)
		}
	}
	for _, tt := range []struct{ shares, weight uint64 }{{2, 1}, {1024, 39}, {2000, 77}, {262144, 10000}} {
		if got := oldWeightOfShares(tt.shares); got != tt.weight {
			t.Errorf("%d shares were weight %d, want %d", tt.shares, got, tt.weight)
		}
	}
	// What Kubernetes makes of the usual requests comes back as it was, by either way: shares are CPUs × 1024, rounded
	// down.
	for _, of := range []func(uint64) uint64{weightOfShares, oldWeightOfShares} {
		for _, m := range []sizing.Milli{100, 200, 250, 500, 1000, 1500, 2000, 3000, 4000, 5000, 6000, 8000, 10000, 12000, 16000, 24000, 32000, 48000, 64000} {
			want := m
			if of(1024) == 39 && m == 1500 {
				want = 500 // the one request that the two ways make the same weight, 59, and equally round: the smaller
			}
			if got := milliOfWeight(of(uint64(m) * 1024 / 1000)); got != want {
				t.Errorf("%s CPUs, weight %d, come back as %s", m, of(uint64(m)*1024/1000), got)
			}
		}
	}
	// Any weight is some number of CPUs that one of the two ways makes it of.
	for w := uint64(1); w <= 10000; w++ {
		shares := uint64(milliOfWeight(w)) * 1024 / 1000
		near := func(of func(uint64) uint64) bool { return of(shares) <= w && of(shares+2) >= w }
		if !near(weightOfShares) && !near(oldWeightOfShares) {
			t.Errorf("weight %d comes back as %s CPUs", w, milliOfWeight(w))
		}
	}
}

// The machine that runs the test has cgroups of some kind: whatever they are, reading them is sound.
func TestThisMachine(t *testing.T) {
	root := os.DirFS("/")
	p, err := Find(root)
	if err != nil {
		t.Fatal(err)
	}
	l := Read(root, p, 1)
	if l.MemTotal == 0 || l.Memory.Set && (l.Memory.Bytes == 0 || l.Memory.Source == "") {
		t.Errorf("limits %+v", l)
	}
	u, err := ReadUsage(root, p, l)
	if err != nil {
		t.Fatal(err)
	}
	own, err := OwnUsage(root, p)
	if err != nil || own.Current == 0 {
		t.Errorf("own usage %+v, %v", own, err)
	}
	if u.Current == 0 || u.WorkingSet > u.Current || u.Held > u.WorkingSet {
		t.Errorf("usage %+v", u)
	}
	for _, f := range LimitFiles(root, p) {
		if _, err := os.Stat(f); err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkReadUsage(b *testing.B) {
	root := os.DirFS("/")
	p, err := Find(root)
	if err != nil {
		b.Fatal(err)
	}
	l := Read(root, p, 0)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ReadUsage(root, p, l); err != nil {
			b.Fatal(err)
		}
	}
}
