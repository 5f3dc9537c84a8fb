// Package cgroup reads what the kernel allows this container and what it uses: memory and CPU limits, usage and OOM
// kills, from control groups of version 1, version 2, or both at once.
//
// It reads from an [fs.FS] that stands for "/", os.DirFS("/") in production and a folder of fixtures in tests, and
// writes nothing. Which version holds a controller is decided for each controller by itself, because in hybrid set-ups
// memory may be version 1 while another is version 2.
//
// "max", an absent file, an empty one, 0, something that is no number, and the page-rounded maximum of version 1 all
// mean that there is no limit; a file that cannot be read or understood is named in a warning and reading goes on. A
// file that is not understood never makes a container look smaller or larger than the rest of the files say.
//
// The files are the kernel's own and small, but memory.stat makes it add up per-CPU counters: read from a goroutine
// beside the loop (law 4).
//
// Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/{memory,cpusets}.rst of the kernel, cgroups(7),
// cgroup_namespaces(7), proc_pid_mountinfo(5).
package cgroup
