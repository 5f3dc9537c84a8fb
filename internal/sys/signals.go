package sys

import (
	"fmt"
	"strconv"
	"strings"
)

// The range of signal numbers on Linux and the part of it that is called real-time.
//
// RTMin is 34, not the kernel's 32: glibc keeps 32 and 33 for its threads, so every program a user compares with (kill(1), bash, systemd's
// SIGRTMIN+3) counts from 34. musl does the same with 35; skep follows glibc. See signal(7), "Real-time signals".
const (
	SigMax = 64
	RTMin  = 34
	RTMax  = 64
)

// signalNames holds the names of signals 1 to 31 without their prefix, by number. It is the generic Linux numbering (asm-generic/signal.h), which
// every architecture but alpha, mips, parisc and sparc uses; skep is built for none of those.
var signalNames = [32]string{
	1: "HUP", 2: "INT", 3: "QUIT", 4: "ILL", 5: "TRAP", 6: "ABRT", 7: "BUS", 8: "FPE",
	9: "KILL", 10: "USR1", 11: "SEGV", 12: "USR2", 13: "PIPE", 14: "ALRM", 15: "TERM", 16: "STKFLT",
	17: "CHLD", 18: "CONT", 19: "STOP", 20: "TSTP", 21: "TTIN", 22: "TTOU", 23: "URG", 24: "XCPU",
	25: "XFSZ", 26: "VTALRM", 27: "PROF", 28: "WINCH", 29: "IO", 30: "PWR", 31: "SYS",
}

// signalAliases are second names that kill(1) accepts.
var signalAliases = map[string]int{"IOT": 6, "CLD": 17, "POLL": 29, "UNUSED": 31}

// ParseSignal turns what a user writes for a signal into its number, 1 to 64. It accepts a name with or without SIG in any case ("TERM", "SIGTERM",
// "term"), a number ("15", "37"), and real-time signals relative to their ends ("RTMIN", "RTMIN+3", "SIGRTMAX-14") counted as glibc does, from
// RTMin = 34. Zero is not a signal: callers for which it means "none" look for it first. The error names the text and what is allowed.
func ParseSignal(text string) (int, error) {
	if n, err := strconv.ParseUint(text, 10, 8); err == nil {
		if n < 1 || n > SigMax {
			return 0, fmt.Errorf("cannot use signal %q: numbers go from 1 to %d", text, SigMax)
		}
		return int(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	if n, ok := parseRealTime(name); ok {
		if n < RTMin || n > RTMax {
			return 0, fmt.Errorf("cannot use signal %q: real-time signals go from RTMIN to RTMIN+%d", text, RTMax-RTMin)
		}
		return n, nil
	}
	if name != "" {
		for n, known := range signalNames {
			if known == name {
				return n, nil
			}
		}
		if n, ok := signalAliases[name]; ok {
			return n, nil
		}
	}
	return 0, fmt.Errorf("cannot use signal %q: want a name such as TERM, RTMIN+3, or a number from 1 to %d", text, SigMax)
}

// parseRealTime reads RTMIN, RTMIN+n, RTMAX and RTMAX-n. ok says that the text has that form; the number may still be out of range.
func parseRealTime(name string) (n int, ok bool) {
	base, sign, direction := RTMin, "+", 1
	rest, found := strings.CutPrefix(name, "RTMIN")
	if !found {
		base, sign, direction = RTMax, "-", -1
		if rest, found = strings.CutPrefix(name, "RTMAX"); !found {
			return 0, false
		}
	}
	if rest == "" {
		return base, true
	}
	digits, found := strings.CutPrefix(rest, sign)
	if !found {
		return 0, false
	}
	offset, err := strconv.ParseUint(digits, 10, 8)
	if err != nil {
		return 0, false
	}
	return base + direction*int(offset), true
}

// SignalName is the shortest name of a signal that ParseSignal reads back: "TERM", "RTMIN+3", "RTMAX-1", and the bare number for 32 and 33, which
// have no name, and for what is no signal at all. Like kill(1) it counts the upper half of the real-time signals from RTMAX.
func SignalName(n int) string {
	switch {
	case n >= 1 && n < len(signalNames):
		return signalNames[n]
	case n == RTMin:
		return "RTMIN"
	case n == RTMax:
		return "RTMAX"
	case n > RTMin && n < RTMin+16:
		return "RTMIN+" + strconv.Itoa(n-RTMin)
	case n > RTMin && n < RTMax:
		return "RTMAX-" + strconv.Itoa(RTMax-n)
	}
	return strconv.Itoa(n)
}
