package initd

import (
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"skep/cgroup"
	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/sizing"
)

// SweepTimeout is how long what a lone command leaves behind may take to end
// when told, if no --stop-timeout says otherwise: half of what docker stop waits.
const SweepTimeout = 5 * time.Second

// limitsEvery is how often limits are read again without a notice: a CPU that
// the machine takes offline makes none.
const limitsEvery = 29 * time.Second

// sizer knows the limits and the number of workers that fits them.
type sizer struct {
	l      *loop
	root   fs.FS
	paths  cgroup.Paths
	limits cgroup.Limits
	policy sizing.Policy

	fixed    int // a number that is not computed, 0 for none
	decision sizing.Decision
	learner  sizing.Learner
	applied  uint64 // the need of one worker that the number in force comes from

	follower
}

func newSizer(l *loop) *sizer {
	return &sizer{l: l, root: os.DirFS("/"), policy: l.o.Sizing, fixed: l.o.Count,
		follower: follower{replacing: none, watched: make(map[int]*watched), guard: sizing.NewGuard(max(l.o.Count, l.o.Sizing.Min))}}
}

// Limits reads what skep plan and the start of skep run go by.
func Limits() (cgroup.Limits, cgroup.Paths) {
	root := os.DirFS("/")
	// Find and Read tell of what they could not read in their warnings.
	paths, err := cgroup.Find(root)
	limits := cgroup.Read(root, paths, affinity())
	if err != nil {
		limits.Warnings = append(limits.Warnings, err.Error()+": no cgroup limit is taken")
	}
	return limits, paths
}

func affinity() int {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil {
		return 0
	}
	return set.Count()
}

// decideAtStart settles how many workers the supervisor begins with. It reads
// files and belongs before the loop.
func (l *loop) decideAtStart() {
	s, p := l.size, &l.o.Policy
	p.StartParallel = max(affinity(), 1)
	if l.o.Boring || l.o.Prestart.Only {
		return
	}
	s.limits, s.paths = Limits()
	s.ooms, _, _ = cgroup.Events(s.root, s.paths)
	if len(s.limits.Levels) > 0 { // else the whole machine's use is all there is, and most of that is others'
		if used, err := cgroup.ReadUsage(s.root, s.paths, s.limits); err == nil && used.Dir != "" {
			s.used, s.policy.Base = used, used.Held // nothing but skep runs here yet
		}
	}
	s.limitsRead = time.Now()
	s.decision = sizing.Plan(s.limits.Limits, s.policy, 0)
	l.discover = l.o.Discover
	l.oomScore = workersOOMScore()
	if l.o.KSM {
		// Children inherit the wish, through execve as well (Linux 6.7): asking for it in each
		// of them would do no more.
		if err := unix.Prctl(unix.PR_SET_MEMORY_MERGE, 1, 0, 0, 0); err != nil {
			l.early = append(l.early, "--ksm has no effect: the kernel refuses: "+err.Error())
		} else if run, err := os.ReadFile("/sys/kernel/mm/ksm/run"); err != nil || strings.TrimSpace(string(run)) != "1" {
			l.early = append(l.early, "--ksm has no effect: the kernel merges no pages (/sys/kernel/mm/ksm/run is not 1)")
		}
	}
	if p.Serve && !l.o.ExportWorkers {
		p.Workers = s.first()
	}
	l.sharing = len(l.o.Listen) == 0 && (l.o.Share == ShareAuto || l.o.Share == ShareBind) &&
		!l.o.ExportWorkers && (p.Serve || l.o.Discover)
	p.FirstAlone = l.sharing // until the kernel has taken its filter
}

// first is the number of workers before anything is learned: all of them when
// nothing has to be learned, otherwise one to learn from.
func (s *sizer) first() int {
	if s.fixed > 0 {
		return s.fixed
	}
	if s.learns() {
		return max(s.policy.Min, 1)
	}
	return s.decision.Workers
}

// learns tells whether memory bounds the number and what one worker needs is
// not known yet. From a program that keeps its own workers nothing is learned: it
// is told their number before it has any.
func (s *sizer) learns() bool {
	return s.fixed == 0 && !s.l.o.ExportWorkers && s.decision.LimitBytes != nil && s.policy.WorkerMemory == 0
}

// count is the number of workers that SKEP_WORKER_COUNT and {workers} tell.
func (s *sizer) count() int {
	if s.fixed > 0 {
		return s.fixed
	}
	return max(s.decision.Workers, 1)
}

// announce logs what was found, once.
func (s *sizer) announce() {
	o := &s.l.o
	for _, w := range s.limits.Warnings {
		s.l.log.Log(logger.Warn, w)
	}
	if !o.Policy.Serve {
		return
	}
	if o.ExportWorkers && s.fixed == 0 && s.limits.Memory.Set && s.decision.WorkerBytes == nil {
		s.l.log.Log(logger.Warn, "the memory limit does not bound the number of workers that the program is told: give --worker-memory SIZE, what one of them needs")
	}
	s.explain("serving", logger.Field{Key: "stop_timeout", Value: max(o.Policy.StopTimeout, o.Policy.ServeStopTimeout)})
}

func (s *sizer) explain(text string, more ...logger.Field) {
	reason, count := s.decision.Reason, s.count()
	if s.learns() && s.decision.WorkerBytes == nil {
		count = s.first()
		reason += "; learning what one worker needs"
	}
	s.l.log.Log(logger.Info, text, append([]logger.Field{{Key: "workers", Value: count}, {Key: "why", Value: reason}}, more...)...)
	for _, w := range s.decision.Warnings {
		s.l.log.Log(logger.Warn, w)
	}
}

// plan computes the number again and has it carried out.
func (s *sizer) plan(occasion string) {
	if s.fixed > 0 || s.l.o.ExportWorkers {
		return
	}
	s.decision = sizing.Plan(s.bounds(), s.policy, s.applied)
	if s.learns() && s.applied == 0 {
		return // still learning; the new limits count when that is done
	}
	s.explain(occasion)
	s.why, s.full = s.decision.Reason, false
}

// bounds is the limits with the memory limit that skep is nearest to: that of a
// parent full of neighbours may come before the own one.
func (s *sizer) bounds() sizing.Limits {
	l := s.limits.Limits
	if s.used.Dir != "" {
		l.Memory = s.used.Limit
	}
	return l
}

// replicate makes a service of the lone command.
func (s *sizer) replicate() {
	for _, w := range s.l.workers {
		s.l.offload(func() func() {
			raiseOOMScore(w.pid, s.l.oomScore)
			return nil
		})
	}
	switch {
	case s.fixed > 0:
		s.explain("replicating")
		s.l.step(supervise.Scale{Workers: s.fixed, Serve: true, Why: "given: " + strconv.Itoa(s.fixed)})
	case s.learns():
		s.explain("replicating")
		s.l.step(supervise.Scale{Workers: 1, Serve: true})
	default:
		s.explain("replicating")
		if s.decision.Workers > 1 {
			s.l.step(supervise.Scale{Workers: s.decision.Workers, Serve: true, Why: s.decision.Reason})
		}
	}
}
