package sizing

import (
	"math"
	"strconv"
	"strings"
)

// Defaults of the fields of [Policy] that are zero.
const (
	DefaultTarget        Milli = 800
	DefaultWorkersPerCPU Milli = 1000
)

// Policy is what the user asked for. The zero value is skep's default: workers are counted, one per CPU at most, on
// eight tenths of the memory limit.
type Policy struct {
	Workers       int    // a fixed number of workers (-w N), 0 to count them
	ByHand        bool   // "-w auto" was given: with no limit of any kind the machine's CPUs and memory are taken
	Min, Max      int    // bounds of the count; 0 is 1 for Min and none for Max; a fixed number is not bound by them
	WorkersPerCPU Milli  // 0 is DefaultWorkersPerCPU
	WorkerMemory  uint64 // what one worker needs, in bytes; 0 to use what was learned
	Target        Milli  // the share of the memory limit that may be planned for; 0 is DefaultTarget
	Reserve       uint64 // bytes kept free beside the target
	Base          uint64 // bytes in use beside the workers, see Base
	Kubernetes    bool   // in a pod CPU shares are always set by someone, even when they have the default value
}

// Decision is how many workers there shall be and why. Its JSON form is what "skep plan --json" prints; the names of
// the fields are documented and never change.
type Decision struct {
	Workers     int      `json:"workers"`            // at least 1
	ByMemory    *int     `json:"by_memory"`          // how many fit into memory, 0 if not even one; nil: unknown
	ByCPU       *int     `json:"by_cpu"`             // how many the CPUs allow; nil: unknown
	LimitBytes  *uint64  `json:"limit_bytes"`        // the memory that counts: a limit, or the machine's if it is taken; nil: none
	LimitSource string   `json:"limit_source"`       // the file LimitBytes was read from
	CPUs        *Milli   `json:"cpus"`               // nil: unknown
	CPUSource   string   `json:"cpu_source"`         // the file or system call CPUs was read from
	WorkerBytes *uint64  `json:"worker_bytes"`       // what one worker is taken to need; nil: not given and not learned yet
	Target      Milli    `json:"target"`             // share of the limit that may be planned for
	Reason      string   `json:"reason"`             // one line for a person
	Warnings    []string `json:"warnings,omitempty"` // what the person should change; nil when all is well
}

// Plan counts the workers. learned is what one worker needs as a [Learner] found it, 0 as long as nothing is learned;
// p.WorkerMemory beats it. Plan has no state: the same limits, policy and need give the same decision.
//
// With p.Workers 0, Workers is the least of what memory and CPU allow, within p.Min and p.Max, and at least 1. The sum
// of the workers' needs exceeds the target only when a fixed number, p.Min, or the rule of at least one worker asks for
// it, and then Warnings says so. As long as neither given nor learned, memory is left out.
func Plan(l Limits, p Policy, learned uint64) Decision {
	if p.Target <= 0 {
		p.Target = DefaultTarget
	}
	if p.WorkersPerCPU <= 0 {
		p.WorkersPerCPU = DefaultWorkersPerCPU
	}
	if p.Min < 1 {
		p.Min = 1
	}

	cpu, cpuLimited := l.cpus(p.Kubernetes)
	lone := p.Workers <= 0 && !p.ByHand && !l.Memory.Set && !cpuLimited

	c := count{Policy: p, per: p.WorkerMemory}
	if c.per == 0 {
		c.per = Need(learned, p.Target)
	}
	c.limit = l.memory(lone || p.Workers > 0)
	c.budget = Budget(c.limit.Bytes, p)

	d := Decision{Target: p.Target}
	if c.per > 0 {
		d.WorkerBytes = &c.per
	}
	if c.limit.Set {
		d.LimitBytes, d.LimitSource = &c.limit.Bytes, c.limit.Source
		if c.per > 0 {
			n := clampInt(c.budget / c.per)
			d.ByMemory = &n
		}
	}
	if cpu.Set {
		d.CPUs, d.CPUSource = &cpu.Milli, cpu.Source
		n := ceilCPU(cpu.Milli, p.WorkersPerCPU)
		d.ByCPU = &n
	}
	c.machine = c.limit.Set && !l.Memory.Set
	c.cpu, c.byMemory, c.byCPU = cpu, d.ByMemory, d.ByCPU

	switch {
	case p.Workers > 0:
		d.Workers = p.Workers
		d.Reason = c.fixed()
	case lone:
		// Without any limit the machine belongs to others too; taking all of it must be asked for.
		d.Workers = p.Min
		d.Reason = c.unlimited()
	default:
		d.Workers, d.Reason = c.auto()
	}
	d.Warnings = c.warnings(d.Workers)
	return d
}

// Need is what is planned for a worker that was seen to hold learned bytes. Under load it may hold a quarter more, and all
// of them at once must still fit into the limit: with a target of 0.8 or less that quarter is the part of the limit that is
// not planned for, over it the rest is added here (docs/adr/0003-the-sum.md).
func Need(learned uint64, target Milli) uint64 {
	if target <= 800 || learned == 0 {
		return learned
	}
	return mulDivUp(learned, uint64(target)*5, 4000)
}

// memory is the bound that counts: the limit, or the machine's memory where that is less or where no limit is set. With
// limitsOnly the machine does not stand in for a limit that nobody set.
func (l Limits) memory(limitsOnly bool) Memory {
	m := l.Memory
	switch {
	case l.MemTotal == 0:
	case m.Set && m.Bytes <= l.MemTotal:
	case m.Set || !limitsOnly:
		m = Memory{Bytes: l.MemTotal, Set: true, Source: l.MemTotalSource}
	}
	return m
}

// cpus is the number of CPUs that counts, and whether somebody limited it.
func (l Limits) cpus(kubernetes bool) (least CPU, limited bool) {
	machine := Milli(l.Online) * 1000
	if machine == 0 {
		// Unknown: the larger of what is left cannot be called narrower than the machine.
		machine = max(setMilli(l.CPUSet), setMilli(l.Affinity))
	}
	take := func(c CPU) {
		if c.Set && (!least.Set || c.Milli < least.Milli) {
			least = c
		}
	}
	take(l.CPUSet)
	take(l.Affinity)
	if least.Set && least.Milli < machine {
		limited = true
	}
	if l.Quota.Set {
		limited = true
		take(l.Quota)
	}
	if !limited && l.Shares.Set && (kubernetes || !l.SharesDefault) {
		limited = true
		take(l.Shares)
	}
	return least, limited
}

func setMilli(c CPU) Milli {
	if !c.Set {
		return 0
	}
	return c.Milli
}

// Budget is how many of limit bytes may be planned for workers: limit × target − reserve − base, not below 0.
func Budget(limit uint64, p Policy) uint64 {
	t := p.Target
	if t <= 0 {
		t = DefaultTarget
	}
	if t > 1000 {
		t = 1000
	}
	return subSat(subSat(mulDiv(limit, uint64(t), 1000), p.Reserve), p.Base)
}

// Base is what is in use beside the workers: used bytes of the container less the workers' own. Use it for
// [Policy.Base] with amounts that were read at about the same time.
func Base(used uint64, workers ...uint64) uint64 {
	for _, w := range workers {
		used = subSat(used, w)
	}
	return used
}

// RoomForOne says whether one more worker of worker bytes fits beside the used bytes that the whole container really
// holds now. It is asked before each start while the number grows, so that a need that was learned too small never
// pushes the sum over the target; it is true where no memory bound is known.
func RoomForOne(l Limits, p Policy, used, worker uint64) bool {
	m := l.memory(false)
	if !m.Set {
		return true
	}
	p.Base = 0
	return addSat(used, worker) <= Budget(m.Bytes, p)
}

// ceilCPU is how many workers cpus allow: cpus × perCPU rounded up, at least 1.
func ceilCPU(cpus, perCPU Milli) int {
	if cpus <= 0 {
		return 1
	}
	// Both are thousandths, their product millionths. Bounded first, so that it cannot overflow.
	product := min(uint64(cpus), math.MaxInt32) * min(uint64(perCPU), math.MaxInt32)
	return max(1, clampInt((product+999_999)/1_000_000))
}

func clampInt(n uint64) int {
	return int(min(n, math.MaxInt32))
}

// count holds the numbers of one decision while its words are found.
type count struct {
	Policy
	limit           Memory
	machine         bool // limit is the machine's memory, nobody set one
	budget, per     uint64
	cpu             CPU
	byMemory, byCPU *int
}

func (c count) auto() (int, string) {
	n, decides := 0, ""
	if c.byMemory != nil {
		n, decides = *c.byMemory, "memory"
	}
	if c.byCPU != nil {
		switch {
		case c.byMemory == nil || *c.byCPU < n:
			n, decides = *c.byCPU, "cpu"
		case *c.byCPU == n:
			decides = "memory and cpu agree"
		}
	}
	why := ""
	switch {
	case decides == "":
		n, why = c.Min, "nothing known to count by"
		if c.Max > 0 && n > c.Max {
			n = c.Max
		}
	case c.Max > 0 && max(n, c.Min) > c.Max:
		n, why = c.Max, "--max-workers "+strconv.Itoa(c.Max)+" decides"
	case n < c.Min && c.Min > 1:
		n, why = c.Min, "--min-workers "+strconv.Itoa(c.Min)+" decides"
	case n < 1:
		n, why = 1, "at least one is started"
	case decides == "memory" || decides == "cpu":
		why = decides + " decides"
	default:
		why = decides
	}
	return n, line(workers(n), c.memoryWords(), c.cpuWords(), why)
}

func (c count) fixed() string {
	head := workers(c.Workers) + " as --workers says"
	if c.byMemory == nil {
		return line(head)
	}
	return line(head, c.memoryWords())
}

func (c count) unlimited() string {
	return line(workers(c.Min), "no memory or cpu limit is set here", "--workers auto takes the whole machine, --workers N decides by hand")
}

// memoryWords is the memory side of the sum: "memory 300 MiB × 0.8 − 0 base = 240 MiB fits 2 × 100 MiB".
func (c count) memoryWords() string {
	if !c.limit.Set {
		return "memory unlimited"
	}
	what := "memory "
	if c.machine {
		what = "machine memory "
	}
	sum := what + size(c.limit.Bytes) + " × " + c.Target.String()
	if c.Reserve > 0 {
		sum += " − " + size(c.Reserve) + " reserve"
	}
	sum += " − " + size(c.Base) + " base = " + size(c.budget)
	switch {
	case c.per == 0:
		return sum + ", one worker's need not learned yet"
	case *c.byMemory == 0:
		return sum + " does not fit one of " + size(c.per)
	default:
		return sum + " fits " + strconv.Itoa(*c.byMemory) + " × " + size(c.per)
	}
}

// cpuWords is the CPU side: "cpu 2 × 1 allows 2".
func (c count) cpuWords() string {
	if c.byCPU == nil {
		return "cpu unknown"
	}
	return "cpu " + c.cpu.Milli.String() + " × " + c.WorkersPerCPU.String() + " allows " + strconv.Itoa(*c.byCPU)
}

func (c count) warnings(n int) []string {
	if c.byMemory == nil || n <= *c.byMemory {
		return nil
	}
	need := "more than the " + size(c.budget) + " that may be planned for"
	switch {
	case *c.byMemory == 0 && n == 1:
		return []string{"not even one worker fits: it needs " + size(c.per) + ", " + need +
			"; raise the memory limit or --memory-target"}
	case c.Workers > 0:
		return []string{"--workers " + strconv.Itoa(n) + " may run out of memory: " + strconv.Itoa(n) + " × " + size(c.per) + " is " + need +
			"; " + fit(*c.byMemory)}
	default:
		return []string{"--min-workers " + strconv.Itoa(n) + " may run out of memory: " + strconv.Itoa(n) + " × " + size(c.per) + " is " + need +
			"; " + fit(*c.byMemory)}
	}
}

func fit(n int) string {
	switch n {
	case 0:
		return "none fits"
	case 1:
		return "1 fits"
	default:
		return strconv.Itoa(n) + " fit"
	}
}

func workers(n int) string {
	if n == 1 {
		return "1 worker"
	}
	return strconv.Itoa(n) + " workers"
}

// line joins the head and the parts of a reason: "head: a; b; c".
func line(head string, parts ...string) string {
	if len(parts) == 0 {
		return head
	}
	return head + ": " + strings.Join(parts, "; ")
}

// size writes bytes for a person, in the largest unit that is not above it, with one digit behind the point. It is cut
// rather than rounded, so that room is never shown larger than it is; only what misses the next digit by less than half
// a thousandth, as a product that was rounded down does, is shown as that.
func size(b uint64) string {
	if b == 0 {
		return "0"
	}
	units := [...]string{" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"}
	u, unit := 0, uint64(1)
	for u < len(units)-1 && addSat(b, unit>>11)/unit >= 1024 {
		unit *= 1024
		u++
	}
	b = addSat(b, unit>>11)
	s := strconv.FormatUint(b/unit, 10)
	if tenth := mulDiv(b%unit, 10, unit); tenth > 0 {
		s += "." + strconv.FormatUint(tenth, 10)
	}
	return s + units[u]
}
