package initd

import (
	"errors"
	"strconv"
	"strings"
)

// firstFD is the number of the first descriptor that a worker is passed, as
// sd_listen_fds(3) has it.
const firstFD = 3

// Expand fills the placeholders of one argument of the command: {fd} is the
// first listener's descriptor, {fd:NAME} a named one's, {slot} and {workers}
// are numbers. Other braces are left alone. A descriptor that no listener has
// is an error.
func Expand(arg string, listen []Listen, slot, workers int) (string, error) {
	if !strings.Contains(arg, "{") {
		return arg, nil
	}
	var b strings.Builder
	for rest := arg; rest != ""; {
		before, after, found := strings.Cut(rest, "{")
		b.WriteString(before)
		if !found {
			break
		}
		word, tail, closed := strings.Cut(after, "}")
		value, known, err := placeholder(word, listen, slot, workers)
		switch {
		case err != nil:
			return "", err
		case closed && known:
			b.WriteString(value)
			rest = tail
		default:
			b.WriteByte('{')
			rest = after
		}
	}
	return b.String(), nil
}

func placeholder(word string, listen []Listen, slot, workers int) (value string, known bool, err error) {
	switch word {
	case "slot":
		return strconv.Itoa(slot), true, nil
	case "workers":
		return strconv.Itoa(workers), true, nil
	case "fd":
		if len(listen) == 0 {
			return "", false, errors.New("{fd} needs --listen")
		}
		return strconv.Itoa(firstFD), true, nil
	}
	name, found := strings.CutPrefix(word, "fd:")
	if !found {
		return "", false, nil
	}
	for i, l := range listen {
		if name != "" && l.Name == name {
			return strconv.Itoa(firstFD + i), true, nil
		}
	}
	return "", false, errors.New("{" + word + "} names no --listen " + name + "=ADDR")
}
