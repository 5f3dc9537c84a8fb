package compat

import "strings"

// option is one flag that getopt found, or one complaint.
type option struct {
	letter  byte
	value   string
	problem string // glibc's message without the program's name, for a flag that cannot be read
}

// getopt reads flags as glibc's getopt_long(3) does. short has one letter per flag, followed by a colon when it takes a value. With permute, flags are
// also found behind the first word that is none (glibc's habit for programs that do not ask for the opposite, tini among them); without it the first
// such word ends the flags. The words that are no flags are passed on in order. It stops after the first problem.
type getopt struct {
	args    []string // without argv[0]
	short   string
	long    []longOption
	permute bool

	words   []string // what is no flag, so far
	cluster string   // letters of "-abc" not read yet
}

type longOption struct {
	name      string
	letter    byte
	needValue bool
}

// next is the next flag; ok is false at the end, when words is complete.
func (g *getopt) next() (opt option, ok bool) {
	for g.cluster == "" {
		if len(g.args) == 0 {
			return option{}, false
		}
		arg := g.args[0]
		switch {
		case arg == "--":
			g.words = append(g.words, g.args[1:]...)
			g.args = nil
			return option{}, false
		case len(arg) < 2 || arg[0] != '-':
			if !g.permute {
				g.words = append(g.words, g.args...)
				g.args = nil
				return option{}, false
			}
			g.words = append(g.words, arg)
			g.args = g.args[1:]
		case g.long != nil && arg[1] == '-':
			g.args = g.args[1:]
			return g.readLong(arg[2:]), true
		default:
			g.args = g.args[1:]
			g.cluster = arg[1:]
		}
	}
	return g.readShort(), true
}

func (g *getopt) readShort() option {
	letter := g.cluster[0]
	g.cluster = g.cluster[1:]
	at := strings.IndexByte(g.short, letter)
	if at < 0 || letter == ':' {
		return option{problem: "invalid option -- '" + string([]byte{letter}) + "'"}
	}
	if !strings.HasPrefix(g.short[at+1:], ":") {
		return option{letter: letter}
	}
	value := g.cluster
	g.cluster = ""
	if value == "" {
		if len(g.args) == 0 {
			return option{problem: "option requires an argument -- '" + string([]byte{letter}) + "'"}
		}
		value, g.args = g.args[0], g.args[1:]
	}
	return option{letter: letter, value: value}
}

// readLong reads "name" or "name=value"; a name may be cut short as long as it is unambiguous.
func (g *getopt) readLong(text string) option {
	name, value, hasValue := strings.Cut(text, "=")
	var found []longOption
	for _, known := range g.long {
		if known.name == name {
			found = []longOption{known}
			break
		}
		if strings.HasPrefix(known.name, name) {
			found = append(found, known)
		}
	}
	switch len(found) {
	case 0:
		return option{problem: "unrecognized option '--" + text + "'"}
	case 1:
	default:
		problem := "option '--" + text + "' is ambiguous; possibilities:"
		for _, known := range found {
			problem += " '--" + known.name + "'"
		}
		return option{problem: problem}
	}
	known := found[0]
	switch {
	case hasValue && !known.needValue:
		return option{problem: "option '--" + known.name + "' doesn't allow an argument"}
	case !hasValue && known.needValue:
		if len(g.args) == 0 {
			return option{problem: "option '--" + known.name + "' requires an argument"}
		}
		value, g.args = g.args[0], g.args[1:]
	}
	return option{letter: known.letter, value: value}
}

// leadingInt reads a decimal number as strtol(3) does: blanks, a sign, digits; rest is what follows. Without a digit nothing is read and rest is all of
// text. Numbers are held at ±limit, far above everything that is meaningful here.
func leadingInt(text string) (n int, rest string, found bool) {
	const limit = 1 << 30
	s := strings.TrimLeft(text, " \t\n\v\f\r")
	negative := false
	if s != "" && (s[0] == '-' || s[0] == '+') {
		negative = s[0] == '-'
		s = s[1:]
	}
	if s == "" || s[0] < '0' || s[0] > '9' {
		return 0, text, false
	}
	for s != "" && s[0] >= '0' && s[0] <= '9' {
		n = min(n*10+int(s[0]-'0'), limit)
		s = s[1:]
	}
	if negative {
		n = -n
	}
	return n, s, true
}
