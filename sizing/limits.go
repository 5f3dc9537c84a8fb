package sizing

import (
	"errors"
	"math/bits"
	"strconv"
)

// Milli is a number in thousandths: 1500 is 1.5. It carries CPUs, workers per CPU and the memory target, so that a
// quota of a third of a CPU or a target of 0.8 is exact arithmetic and prints as it was written.
type Milli int64

// String writes m as the shortest decimal: 1500 is "1.5", 2000 is "2".
func (m Milli) String() string {
	return string(m.append(nil))
}

func (m Milli) append(b []byte) []byte {
	u := uint64(m)
	if m < 0 {
		b, u = append(b, '-'), -u
	}
	b = strconv.AppendUint(b, u/1000, 10)
	rest := u % 1000
	if rest == 0 {
		return b
	}
	b = append(b, '.')
	for unit := uint64(100); rest > 0; unit /= 10 {
		b = append(b, byte('0'+rest/unit))
		rest %= unit
	}
	return b
}

// MarshalJSON writes m as a JSON number, as [Milli.String] does.
func (m Milli) MarshalJSON() ([]byte, error) {
	return m.append(nil), nil
}

// UnmarshalJSON reads a decimal JSON number with at most three digits behind the point, the form [Milli.MarshalJSON]
// writes. It takes no exponent.
func (m *Milli) UnmarshalJSON(b []byte) error {
	v, err := ParseMilli(string(b))
	if err != nil {
		return err
	}
	*m = v
	return nil
}

var errMilli = errors.New("cannot read number: want a decimal with at most three digits behind the point, such as 0.8 or 2")

// ParseMilli reads a decimal such as "2", "0.8" or "1.25": digits, at most one point, at most three digits behind it,
// with an optional leading minus sign. Flags such as --workers-per-cpu and --memory-target are read with it.
func ParseMilli(s string) (Milli, error) {
	neg := len(s) > 0 && s[0] == '-'
	if neg {
		s = s[1:]
	}
	var v int64
	digits, behind := 0, -1
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '.' && behind < 0:
			behind = 0
		case c >= '0' && c <= '9' && behind < 3:
			if v > (1<<62)/10 {
				return 0, errMilli
			}
			v = v*10 + int64(c-'0')
			digits++
			if behind >= 0 {
				behind++
			}
		default:
			return 0, errMilli
		}
	}
	if digits == 0 {
		return 0, errMilli
	}
	for ; behind < 3; behind++ {
		if behind < 0 {
			behind = 0
		}
		if v > (1<<62)/10 {
			return 0, errMilli
		}
		v *= 10
	}
	if neg {
		v = -v
	}
	return Milli(v), nil
}

// Memory is an amount of memory that may be bounded.
type Memory struct {
	Bytes  uint64 // the bound; of no meaning unless Set
	Set    bool   // somebody set a bound: "max", an absent file and 0 are no bound
	Source string // where Bytes was read, an absolute path
}

// CPU is an amount of processor time that may be bounded.
type CPU struct {
	Milli  Milli  // thousandths of a CPU; of no meaning unless Set
	Set    bool   // the value is known
	Source string // where Milli was read: an absolute path, or the name of the system call
}

// Limits is what the kernel and the machine allow. Package cgroup fills it.
type Limits struct {
	// Memory is the least limit that any visible cgroup sets; the machine's own memory is not in it.
	Memory Memory
	// MemTotal is the memory of the machine in bytes, 0 if unknown.
	MemTotal       uint64
	MemTotalSource string

	// Quota is the least CPU bandwidth (quota per period) of the visible cgroups.
	Quota CPU
	// CPUSet is the number of CPUs in the cpuset, times 1000.
	CPUSet CPU
	// Affinity is the number of CPUs that this process may run on (sched_getaffinity(2)), times 1000.
	Affinity CPU
	// Shares is the CPU share as a number of CPUs, 1024 shares being one. SharesDefault says that it has the kernel's
	// default value, so that probably nobody chose it.
	Shares        CPU
	SharesDefault bool
	// Online is the number of CPUs of the machine, 0 if unknown.
	Online int
}

// Saturating arithmetic: sizes come from files and flags, and a sum that wraps would start workers without end.

func addSat(a, b uint64) uint64 {
	if s := a + b; s >= a {
		return s
	}
	return ^uint64(0)
}

func subSat(a, b uint64) uint64 {
	if a < b {
		return 0
	}
	return a - b
}

// mulDiv is a × num / den rounded down, den > 0; what does not fit saturates.
func mulDiv(a, num, den uint64) uint64 {
	q, _ := divide(a, num, den)
	return q
}

// mulDivUp is the same rounded up.
func mulDivUp(a, num, den uint64) uint64 {
	q, rest := divide(a, num, den)
	if rest > 0 {
		q = addSat(q, 1)
	}
	return q
}

func divide(a, num, den uint64) (q, rest uint64) {
	hi, lo := bits.Mul64(a, num)
	if hi >= den {
		return ^uint64(0), 0
	}
	return bits.Div64(hi, lo, den)
}
