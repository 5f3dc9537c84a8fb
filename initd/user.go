package initd

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"skep/launch"
)

// lookupUser resolves --user by /etc/passwd and /etc/group of the container: a
// static program has no name service, and an image has no other one. An empty
// text is nobody: no change.
func lookupUser(text string) (*launch.User, error) {
	if text == "" {
		return nil, nil
	}
	return findUser(text, func(name string) string {
		b, _ := os.ReadFile(name) // absent in a scratch image, where numbers have to do
		return string(b)
	})
}

func findUser(text string, read func(string) string) (*launch.User, error) {
	name, group, grouped := strings.Cut(text, ":")
	if name == "" {
		return nil, fmt.Errorf("cannot use %q for --user: there is no user before the colon", text)
	}
	u := &launch.User{}
	if id, err := parseID(name); err == nil {
		u.UID, u.GID = id, id
		name = ""
	}
	found := false
	for _, f := range records(read("/etc/passwd"), 4) {
		uid, err1 := parseID(f[2])
		gid, err2 := parseID(f[3])
		if err1 != nil || err2 != nil || name != "" && f[0] != name || name == "" && uid != u.UID {
			continue
		}
		u.UID, u.GID, name, found = uid, gid, f[0], true
		break
	}
	if !found && name != "" {
		return nil, fmt.Errorf("cannot use %q for --user: /etc/passwd has no user %q", text, name)
	}
	groups := records(read("/etc/group"), 3)
	if grouped {
		id, err := parseID(group)
		for _, f := range groups {
			if err != nil && f[0] == group {
				id, err = parseID(f[2])
			}
		}
		if err != nil {
			return nil, fmt.Errorf("cannot use %q for --user: /etc/group has no group %q", text, group)
		}
		u.GID = id
		return u, nil
	}
	for _, f := range groups {
		id, err := parseID(f[2])
		if err != nil || len(f) < 4 || name == "" {
			continue
		}
		for _, member := range strings.Split(f[3], ",") {
			if member == name {
				u.Groups = append(u.Groups, id)
			}
		}
	}
	return u, nil
}

// records splits the lines of a file like passwd(5) that have enough fields.
func records(text string, least int) (all [][]string) {
	for _, line := range strings.Split(text, "\n") {
		if f := strings.Split(line, ":"); len(f) >= least {
			all = append(all, f)
		}
	}
	return all
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && n == 1<<32-1 {
		err = strconv.ErrRange // (uid_t)-1 means "no change" to the kernel
	}
	return uint32(n), err
}
