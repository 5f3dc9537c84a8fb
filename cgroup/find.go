package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	cgroups "github.com/containerd/cgroups/v3"
)

// Controller is where one controller's files of this process are.
type Controller struct {
	Version int    // 1 or 2, 0 if the controller is not visible here
	Mount   string // mount point of the hierarchy, such as "/sys/fs/cgroup/memory"
	Path    string // this process's own cgroup: Mount or a directory below it
}

// Dirs is the cgroups whose limits bind this process and are visible: its own first, then each ancestor up to the mount
// point.
func (c Controller) Dirs() []string {
	if c.Version == 0 {
		return nil
	}
	dirs := []string{c.Path}
	for d := c.Path; d != c.Mount && len(d) > len(c.Mount); {
		d = path.Dir(d)
		dirs = append(dirs, d)
	}
	return dirs
}

// Paths is where the controllers that count for sizing are. The zero value says that none is visible.
type Paths struct {
	Memory, CPU, CPUSet Controller
	Warnings            []string // why a controller is not visible, or only in part
}

// Find looks up the cgroups of this process in /proc/self/cgroup and where they are visible in /proc/self/mountinfo. An
// error means that one of the two could not be read or understood; the Paths are good for Read even then.
func Find(root fs.FS) (Paths, error) {
	var p Paths
	b, err := readFile(root, "/proc/self/cgroup")
	if err != nil {
		return p, fmt.Errorf("cannot find the cgroup of this process: %w", err)
	}
	v1, v2, err := cgroups.ParseCgroupFromReaderUnified(strings.NewReader(b))
	if err != nil {
		return p, fmt.Errorf("cannot find the cgroup of this process: /proc/self/cgroup: %w", err)
	}
	b, err = readFile(root, "/proc/self/mountinfo")
	if err != nil {
		return p, fmt.Errorf("cannot find where cgroups are mounted: %w", err)
	}
	mounts := parseMounts(b)
	for _, c := range []struct {
		name string
		to   *Controller
	}{{"memory", &p.Memory}, {"cpu", &p.CPU}, {"cpuset", &p.CPUSet}} {
		var warning string
		if own, ok := v1[c.name]; ok {
			// A controller that is bound to a version 1 hierarchy is not in version 2 (cgroups(7)).
			*c.to, warning = place(root, mounts, 1, c.name, own)
		} else if v2 != "" {
			*c.to, warning = place(root, mounts, 2, c.name, v2)
		}
		if warning != "" && !slices.Contains(p.Warnings, warning) {
			p.Warnings = append(p.Warnings, warning)
		}
	}
	return p, nil
}

// mount is one line of mountinfo about a cgroup file system.
type mount struct {
	version int
	root    string   // the cgroup that is mounted, as a path in this process's cgroup namespace
	point   string   // where
	options []string // of the super block: for version 1 the names of the controllers among others
}

// parseMounts picks the cgroup mounts out of mountinfo. Lines it does not understand are other file systems' business.
func parseMounts(info string) []mount {
	var ms []mount
	for line := range strings.Lines(info) {
		line = strings.TrimSuffix(line, "\n")
		// 32 31 0:29 /root /point rw,relatime shared:1 - cgroup cgroup rw,cpu
		mine, super, ok := strings.Cut(line, " - ")
		if !ok {
			continue
		}
		f := strings.Split(mine, " ")
		s := strings.SplitN(super, " ", 3) // the source may be empty, the options may hold spaces
		if len(f) < 6 || len(s) < 3 {
			continue
		}
		m := mount{root: unescape(f[3]), point: unescape(f[4])}
		switch s[0] {
		case "cgroup":
			m.version, m.options = 1, strings.Split(s[2], ",")
		case "cgroup2":
			m.version = 2
		default:
			continue
		}
		if path.IsAbs(m.root) && path.IsAbs(m.point) {
			ms = append(ms, m)
		}
	}
	return ms
}

// unescape undoes the octal escapes of mountinfo: space, tab, newline and backslash as \040, \011, \012 and \134.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] >= '0' && s[i+1] <= '3' && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(c byte) bool { return c >= '0' && c <= '7' }

// place finds the directory of the cgroup own, a path from /proc/self/cgroup, in the mounts. Of several mounts that
// show it, the one that shows the most ancestors is taken, and of equals the last, which covers the earlier ones.
func place(root fs.FS, ms []mount, version int, name, own string) (Controller, string) {
	var best Controller
	var bestShown, bestThere bool
	var bestDepth int
	found := false
	for _, m := range ms {
		if m.version != version || (version == 1 && !slices.Contains(m.options, name)) {
			continue
		}
		below, shown := relative(m.root, own)
		c := Controller{version, path.Clean(m.point), path.Join(m.point, below)}
		there := exists(root, c.Path)
		depth := strings.Count(strings.Trim(below, "/"), "/")
		if below != "" {
			depth++
		}
		better := !found || rank(shown, there, depth) >= rank(bestShown, bestThere, bestDepth)
		if better {
			best, bestShown, bestThere, bestDepth, found = c, shown, there, depth, true
		}
	}
	switch {
	case !found && version == 1:
		return Controller{}, "the " + name + " controller is a cgroup of version 1 that is not mounted here: its limits cannot be seen"
	case !found:
		return Controller{}, "no cgroup file system of version 2 is mounted here: limits cannot be seen"
	case !bestShown:
		return best, "the cgroup of this process, " + own + ", cannot be seen below " + best.Mount + ": the limits there are taken for its own"
	default:
		return best, ""
	}
}

// rank orders mounts: a directory that is really there first, then one that is the cgroup itself, then more ancestors.
func rank(shown, there bool, depth int) int {
	r := depth
	if there {
		r += 1 << 21
	}
	if shown {
		r += 1 << 20
	}
	return r
}

// relative is the path of the cgroup own below the cgroup root, both as this process's cgroup namespace names them: a
// path outside the namespace begins with "/..". If own is not below root, or below it under a name that the namespace
// hides, it is "" and false.
func relative(root, own string) (string, bool) {
	r, o := split(root), split(own)
	for len(r) > 0 && len(o) > 0 && r[0] == o[0] {
		r, o = r[1:], o[1:]
	}
	for _, d := range o {
		if d == ".." {
			return "", false // a process that is outside of what is mounted
		}
	}
	if len(r) > 0 {
		return "", false
	}
	return strings.Join(o, "/"), true
}

func split(p string) []string {
	p = strings.Trim(p, "/")
	if p == "" {
		return nil
	}
	return strings.Split(p, "/")
}

func exists(root fs.FS, name string) bool {
	_, err := fs.Stat(root, rel(name))
	return err == nil
}

// rel turns an absolute path into the form that an fs.FS takes.
func rel(name string) string {
	name = strings.TrimPrefix(path.Clean(name), "/")
	if name == "" {
		return "."
	}
	return name
}

// readFile reads a file by its absolute path; errors name that path.
func readFile(root fs.FS, name string) (string, error) {
	b, err := fs.ReadFile(root, rel(name))
	if err == nil {
		return string(b), nil
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return "", fmt.Errorf("cannot read %s: %w", name, err)
}
