package initd

import (
	"context"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"skep/cgroup"
	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/proc"
	"skep/sizing"
)

// SweepTimeout is how long what a lone command leaves behind may take to end
// when told, if no --stop-timeout says otherwise: half of what docker stop waits.
const SweepTimeout = 5 * time.Second

// limitsEvery is how often limits are read again without a notice: a CPU that
// the machine takes offline makes none.
const limitsEvery = 30 * time.Second

// procRoot is where facts about other processes are read.
const procRoot = proc.FS("/proc")

// sizer knows the limits and the number of workers that fits them.
type sizer struct {
	l      *loop
	root   fs.FS
	read   func() cgroup.Limits
	paths  cgroup.Paths
	limits cgroup.Limits
	policy sizing.Policy

	fixed    int // a number that is not computed, 0 for none
	decision sizing.Decision
	learner  sizing.Learner
	applied  uint64         // the need of one worker that the number in force comes from
	ready    map[int]int    // slot to the pid that is being or was measured
	reading  bool           // a measurement is under way
	limiting bool           // the limits are being read
	relimit  bool           // and have changed since that began
	pss      map[int]uint64 // the last measurement, by slot
	ooms     uint64
	recheck  time.Time
}

func newSizer(l *loop) *sizer {
	read := func() cgroup.Limits {
		limits, _ := Limits()
		return limits
	}
	return &sizer{l: l, root: os.DirFS("/"), read: read, policy: l.o.Sizing, fixed: l.o.Count,
		ready: make(map[int]int), pss: make(map[int]uint64)}
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
	s.decision = sizing.Plan(s.limits.Limits, s.policy, 0)
	l.discover = l.o.Discover
	if p.Serve && !l.o.ExportWorkers {
		p.Workers = s.first()
	}
	l.sharing = len(l.o.Listen) == 0 && (l.o.Share == ShareAuto || l.o.Share == ShareBind) &&
		!l.o.ExportWorkers && (p.Serve || l.o.Discover)
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
// not known yet.
func (s *sizer) learns() bool {
	return s.fixed == 0 && s.decision.LimitBytes != nil && s.policy.WorkerMemory == 0
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
	s.explain("serving", logger.Field{Key: "stop_timeout", Value: max(o.Policy.StopTimeout, o.Policy.ServeStopTimeout)})
}

func (s *sizer) explain(text string, more ...logger.Field) {
	reason := s.decision.Reason
	if s.learns() && s.decision.WorkerBytes == nil {
		reason += "; learning what one worker needs"
	}
	s.l.log.Log(logger.Info, text, append([]logger.Field{{Key: "workers", Value: s.count()}, {Key: "why", Value: reason}}, more...)...)
	for _, w := range s.decision.Warnings {
		s.l.log.Log(logger.Warn, w)
	}
}

// watch follows the limits while skep runs, by inotify(7).
func (s *sizer) watch(ctx context.Context) {
	if s.fixed > 0 || s.l.o.Boring || s.l.o.Prestart.Only {
		return
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return // the poll remains
	}
	for _, name := range cgroup.LimitFiles(s.root, s.paths) {
		_, _ = unix.InotifyAddWatch(fd, name, unix.IN_MODIFY)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	context.AfterFunc(ctx, func() { _ = f.Close() })
	s.l.background(func() {
		var buf [4096]byte
		for {
			if _, err := f.Read(buf[:]); err != nil {
				return
			}
			s.l.reports <- s.readAgain
		}
	})
}

// deadline is when tick has something to do.
func (s *sizer) deadline() time.Time {
	if s.fixed > 0 || !s.l.sup.Serving() || s.l.sup.Phase() != supervise.Running {
		return time.Time{}
	}
	at := s.recheck
	if d := s.learner.Deadline(); !s.reading && !d.IsZero() && (at.IsZero() || d.Before(at)) {
		at = d
	}
	return at
}

func (s *sizer) tick(now time.Time) {
	if s.fixed > 0 || !s.l.sup.Serving() || s.l.sup.Phase() != supervise.Running {
		return
	}
	if !now.Before(s.recheck) {
		if !s.recheck.IsZero() {
			s.readAgain()
		}
		s.recheck = now.Add(limitsEvery)
	}
	if !s.reading && s.learns() {
		s.measure(now)
	}
}

// observe tells the learner which workers have become ready and which are gone.
func (s *sizer) observe(now time.Time) {
	if s.fixed > 0 || !s.learns() {
		return
	}
	alive := make(map[int]bool, len(s.ready))
	for _, st := range s.l.sup.Seats() {
		if st.State != supervise.Ready && st.State != supervise.Standby {
			continue
		}
		alive[st.Slot] = true
		if s.ready[st.Slot] != st.PID {
			s.ready[st.Slot] = st.PID
			s.learner.Ready(now, st.Slot)
		}
	}
	for slot := range s.ready {
		if !alive[slot] {
			delete(s.ready, slot)
			delete(s.pss, slot)
			s.learner.Gone(slot)
		}
	}
}

// measured is what one round of reading found.
type measured struct {
	due  []int
	pss  map[int]uint64
	used uint64
}

// measure reads the memory of the workers that are due, off the loop.
func (s *sizer) measure(now time.Time) {
	due := s.learner.Due(now)
	if len(due) == 0 {
		return
	}
	s.reading = true
	pids := make(map[int]int, len(s.ready))
	for slot, pid := range s.ready {
		pids[slot] = pid
	}
	paths, limits := s.paths, s.limits
	s.l.offload(func() func() {
		m := measured{due: due, pss: make(map[int]uint64, len(pids))}
		for slot, pid := range pids {
			tree, err := procRoot.Tree(pid)
			if err != nil {
				continue // it has ended
			}
			if memory, err := procRoot.PSS(tree...); err == nil {
				m.pss[slot] = memory.Bytes
			}
		}
		if usage, err := cgroup.ReadUsage(os.DirFS("/"), paths, limits); err == nil {
			m.used = usage.Held
		}
		return func() { s.learn(m) }
	})
}

// learn takes a measurement, and changes the number of workers when the need of
// one has become clear or turned out larger.
func (s *sizer) learn(m measured) {
	s.reading = false
	now := time.Now()
	settled := false
	for slot, bytes := range m.pss {
		s.pss[slot] = bytes
	}
	for _, slot := range m.due {
		settled = s.learner.Sample(now, slot, m.pss[slot]) || settled
	}
	if !settled || s.learner.Worker() <= s.applied || s.l.sup.Phase() != supervise.Running {
		return
	}
	workers := make([]uint64, 0, len(m.pss))
	for _, bytes := range m.pss {
		workers = append(workers, bytes)
	}
	if m.used > 0 {
		s.policy.Base = sizing.Base(m.used, workers...)
	}
	s.applied = s.learner.Worker()
	s.plan("learned what one worker needs")
}

// plan computes the number again and has it carried out.
func (s *sizer) plan(occasion string) {
	if s.fixed > 0 || s.l.o.ExportWorkers {
		return
	}
	s.decision = sizing.Plan(s.limits.Limits, s.policy, s.applied)
	s.explain(occasion)
	s.l.step(supervise.Scale{Workers: s.decision.Workers, Serve: true, Why: s.decision.Reason})
}

// readAgain reads the limits off the loop and plans anew when they changed. One
// reading is under way at a time: of two the older could come in last.
func (s *sizer) readAgain() {
	if s.limiting {
		s.relimit = true
		return
	}
	s.limiting, s.relimit = true, false
	s.l.offload(func() func() {
		limits := s.read()
		return func() {
			s.limiting = false
			s.changed(limits)
			if s.relimit {
				s.readAgain()
			}
		}
	})
}

func (s *sizer) changed(limits cgroup.Limits) {
	if limits.Limits == s.limits.Limits {
		return
	}
	s.limits = limits
	if s.l.sup == nil || !s.l.sup.Serving() || s.l.sup.Phase() != supervise.Running {
		return
	}
	if s.learns() && s.applied == 0 {
		return // still learning; the new limits count when that is done
	}
	s.plan("limits changed")
}

// oomKilled tells whether the kernel has killed for memory since it was asked
// last: a fact from its own counter (cgroup-v2.rst, memory.events).
func (s *sizer) oomKilled() bool {
	n, _, ok := cgroup.Events(s.root, s.paths)
	killed := ok && n > s.ooms
	if ok {
		s.ooms = n
	}
	return killed
}

// replicate makes a service of the lone command.
func (s *sizer) replicate() {
	s.recheck = time.Now().Add(limitsEvery)
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
