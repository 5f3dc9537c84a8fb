// Package env reads what a step wrote into the file named by SKEP_ENV and
// merges it into an environment. It is pure.
package env

import (
	"strconv"
	"strings"
)

// MaxSize is how many bytes a step may hand over. The kernel takes at most
// 128 KiB for one variable (MAX_ARG_STRLEN) and, by default, 2 MiB for the
// arguments and the environment together, execve(2).
const MaxSize = 1 << 20

// maxLine is MAX_ARG_STRLEN without the final NUL: a longer variable makes every
// later execve(2) fail with E2BIG.
const maxLine = 32*4096 - 1

// Error is a line that is none. Its text never holds the line, which may be a
// secret.
type Error struct {
	Line    int // from 1
	Problem string
}

// Error returns "line N: problem".
func (e *Error) Error() string { return "line " + strconv.Itoa(e.Line) + ": " + e.Problem }

// Parse reads KEY=value lines and returns them in order, each as "KEY=value".
// A value is everything after the first = up to the end of the line, taken as
// it is: quotes, blanks, # and $ mean themselves, as in `docker run --env-file`.
// Blank lines and lines that begin with # are skipped; the last line needs no
// newline.
//
// A name is made of letters, digits, _, - and . and does not begin with a
// digit, as in Kubernetes. Names that skep itself decides ([Reserved]) are an
// error, since they would be lost silently. The first wrong line ends the
// reading with an [*Error].
func Parse(text []byte) ([]string, error) {
	var list []string
	rest := string(text)
	for n := 1; rest != ""; n++ {
		var line string
		line, rest, _ = strings.Cut(rest, "\n")
		if line == "" || line[0] == '#' || strings.Trim(line, " \t") == "" {
			continue
		}
		if problem := check(line); problem != "" {
			return nil, &Error{Line: n, Problem: problem}
		}
		list = append(list, line)
	}
	return list, nil
}

func check(line string) string {
	name, _, ok := strings.Cut(line, "=")
	switch {
	case strings.IndexByte(line, 0) >= 0:
		return "a NUL cannot be in the environment"
	case !ok:
		return "no =; wanted is KEY=value, and a value has no newline in it"
	case strings.HasPrefix(name, "export "):
		return "wanted is KEY=value, without export"
	case !validName(name):
		return "what is before the = is no name; allowed are letters, digits, _, - and ., with no digit first and no blanks"
	case strings.HasSuffix(line, "\r"):
		return "ends with a carriage return; lines end with a newline alone"
	case len(line) > maxLine:
		return "longer than the " + strconv.Itoa(maxLine) + " bytes that the kernel takes"
	case Reserved(name):
		return name + " cannot be handed over: skep reads or sets it itself"
	}
	return ""
}

func validName(name string) bool {
	for i := 0; i < len(name); i++ {
		c := name[i]
		switch {
		case c == '_' || c == '-' || c == '.', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case '0' <= c && c <= '9' && i > 0:
		default:
			return false
		}
	}
	return name != ""
}

// Reserved tells the names that a step cannot hand over: skep's own settings,
// which are read before the steps run, and what it sets for every worker.
func Reserved(name string) bool {
	switch name {
	case "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID":
		return true
	}
	return strings.HasPrefix(name, "SKEP_")
}

// Merge returns environ with each of vars ("KEY=value") in the place of the
// variable of that name, or after the others; of several with one name the last
// holds. Entries of environ that are doubled or have no = stay as they are
// unless vars names them. Neither argument is changed.
func Merge(environ, vars []string) []string {
	values := make(map[string]string, len(vars))
	var order []string
	for _, v := range vars {
		name, _, _ := strings.Cut(v, "=")
		if _, seen := values[name]; !seen {
			order = append(order, name)
		}
		values[name] = v
	}
	merged := make([]string, 0, len(environ)+len(order))
	placed := make(map[string]bool, len(order))
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		if value, ok := values[name]; ok {
			if !placed[name] {
				merged = append(merged, value)
				placed[name] = true
			}
			continue
		}
		merged = append(merged, v)
	}
	for _, name := range order {
		if !placed[name] {
			merged = append(merged, values[name])
		}
	}
	return merged
}
