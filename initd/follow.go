package initd

import (
	"context"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"skep/cgroup"
	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/proc"
	"skep/sizing"
)

const (
	// claimWithin is how long after a kill for memory an exit by KILL may be that kill.
	claimWithin = 5 * time.Second
	// sizesEvery bounds the time between two looks at workers that have a largest size.
	sizesEvery = 10 * time.Second
	// sizesWithin is how long measuring all workers may take.
	sizesWithin = 2 * time.Second
	// oomScoreMore is what workers have above skep in oom_score_adj: a tenth of the
	// limit outweighs that skep may be the larger of the two.
	oomScoreMore = 100
)

// follower is what sizer knows of memory while the workers run. Files are read off
// the loop; what is wanted of the next look is collected meanwhile. How much memory
// is in use is one look, what each worker holds is another: measuring workers takes
// long where there is little CPU, and the guard must not wait for it.
type follower struct {
	guard   *sizing.Guard
	used    cgroup.Usage
	watched map[int]*watched // by pid
	why     string           // of the number planned

	looking    bool      // at the memory in use
	weighing   bool      // the workers
	weighed    time.Time // when all workers were measured last
	code       uint64    // pages of files that the workers share, when the number was computed last
	limitsRead time.Time
	unwatch    context.CancelFunc // nil while limits are not watched
	wantLimits bool               // a limit file has changed
	wantSizes  bool               // the guard asks what each worker holds
	replan     string             // why the number has to be computed again; the sizes are needed for it
	settled    int                // how many workers have been learned from
	full       bool               // there was no room for one more worker
	fullAt     int                // the number of workers for which that was said

	ooms     uint64    // kills for memory that were counted
	kills    int       // of those, ones that no exit was found for yet
	killed   time.Time // the last one
	shortage bool      // the guard has not been told of it
	told     bool      // that the first worker is too large

	replacing int // the slot whose worker was recycled last, until another serves there
	leaver    int // pid of that worker
	measuring atomic.Bool
}

// none is no slot.
const none = -1

// watched is one worker that has become ready, or that is on its way.
type watched struct {
	slot    int
	fed     bool      // the learner has it
	bytes   uint64    // held when it was measured last
	over    int       // samples in a row over --max-worker-memory
	expires time.Time // --max-worker-age
}

// look is what one look found.
type look struct {
	limits *cgroup.Limits // nil when they were not read
	usage  cgroup.Usage
	known  bool // usage could be read
	kills  uint64
	counts bool // kills could be read
	weighs bool // it measured workers, which may have taken seconds; else it is only of what is in use
	due    []int
	sizes  map[int]proc.Memory // by pid; missing where it could not be read
	all    bool                // sizes has every worker
}

// watch follows the limits and the kills by inotify(7), as long as they matter. Letting
// go of an inotify descriptor takes the kernel up to 20 ms (fsnotify_destroy_group of
// fs/notify/group.c waits for readers of its lists): a command that is no server does
// not pay for that, and a server does while its workers stop.
func (s *sizer) watch() {
	switch follows := s.follows(); {
	case follows && s.unwatch == nil:
		var ctx context.Context
		ctx, s.unwatch = context.WithCancel(s.l.ctx)
		s.wantLimits = true // they may have changed since they were read
		s.watchFiles(ctx)
	case !follows && s.unwatch != nil:
		s.unwatch()
		s.unwatch = nil
	}
}

func (s *sizer) watchFiles(ctx context.Context) {
	files := cgroup.LimitFiles(s.root, s.paths)
	if s.paths.Memory.Version == 2 {
		if _, events, ok := cgroup.Events(s.root, s.paths); ok {
			files = append(files, events)
		}
	}
	if len(files) == 0 {
		return // nothing there could change
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return // the poll remains
	}
	for _, name := range files {
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
			s.l.reports <- func() { s.wantLimits = true }
		}
	})
}

// follows tells whether there are workers to size or to guard. Where no memory is
// counted, a number given by hand leaves nothing to do.
func (s *sizer) follows() bool {
	o := &s.l.o
	return s.l.sup.Serving() && s.l.sup.Phase() == supervise.Running &&
		(s.fixed == 0 || s.paths.Memory.Version != 0 || o.MaxWorkerMemory > 0 || o.MaxWorkerAge > 0)
}

// deadline is when tick has something to do.
func (s *sizer) deadline() time.Time {
	if !s.follows() {
		return time.Time{}
	}
	at := s.lookAt()
	earliest := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	earliest(s.weighAt())
	if !s.busy() {
		for _, w := range s.watched {
			earliest(w.expires)
		}
	}
	return at
}

// atOnce is a time that has come.
var atOnce = time.Unix(0, 0)

// lookAt is when to look at the memory in use; zero while that is done.
func (s *sizer) lookAt() time.Time {
	switch at := s.guard.Deadline(); {
	case s.looking:
		return time.Time{}
	case at.IsZero() || s.wantLimits || s.shortage:
		return atOnce
	default:
		return at
	}
}

// weighAt is when to measure workers; zero while that is done, or where nobody
// wants to know.
func (s *sizer) weighAt() time.Time {
	if s.weighing {
		return time.Time{}
	}
	if s.wantSizes || s.replan != "" || s.grows() {
		return atOnce
	}
	at := s.learner.Deadline()
	if s.l.o.MaxWorkerMemory > 0 {
		if next := s.weighed.Add(sizesEvery); at.IsZero() || next.Before(at) {
			return next
		}
	}
	return at
}

// tick looks at what is due: files are read off the loop (law 4).
func (s *sizer) tick(now time.Time) {
	if !s.follows() {
		return
	}
	s.expire(now)
	if at := s.lookAt(); !at.IsZero() && !now.Before(at) {
		s.look(now)
	}
	if at := s.weighAt(); !at.IsZero() && !now.Before(at) {
		s.weigh(now)
	}
}

// look reads how much memory is in use.
func (s *sizer) look(now time.Time) {
	readLimits := s.wantLimits || now.Sub(s.limitsRead) >= limitsEvery
	s.looking, s.wantLimits = true, false
	root, paths, limits := s.root, s.paths, s.limits
	s.l.offload(func() func() {
		var m look
		if readLimits {
			limits, _ = Limits()
			m.limits = &limits
		}
		m.read(root, paths, limits)
		return func() {
			s.looking = false
			s.looked(time.Now(), m)
		}
	})
}

// weigh measures the workers that are due, or all of them.
func (s *sizer) weigh(now time.Time) {
	m := look{weighs: true, due: s.learner.Due(now)}
	m.all = s.wantSizes || s.replan != "" || s.l.o.MaxWorkerMemory > 0 && now.Sub(s.weighed) >= sizesEvery
	var pids []int
	for _, st := range s.l.sup.Seats() {
		if st.PID != 0 && (m.all || s.unsettled(st) || slices.Contains(m.due, st.Slot)) {
			pids = append(pids, st.PID)
		}
	}
	s.weighing, s.wantSizes = true, false
	root, paths, limits := s.root, s.paths, s.limits
	s.l.offload(func() func() {
		m.read(root, paths, limits)
		m.sizes = s.sizes(pids)
		return func() {
			s.weighing = false
			s.looked(time.Now(), m)
		}
	})
}

// read takes what the kernel counts of the whole container. It is called off the loop.
func (m *look) read(root fs.FS, paths cgroup.Paths, limits cgroup.Limits) {
	var err error
	m.usage, err = cgroup.ReadUsage(root, paths, limits)
	m.known = err == nil
	m.kills, _, m.counts = cgroup.Events(root, paths)
}

// sizes measures workers. A process can keep its memory from being read for as long
// as it likes: what is not there in time is left out, and until it is there nothing
// else is measured. It is called off the loop, by one look at a time.
func (s *sizer) sizes(pids []int) map[int]proc.Memory {
	if len(pids) == 0 || s.measuring.Swap(true) {
		return nil
	}
	found := make(chan map[int]proc.Memory, 1)
	s.l.background(func() {
		s.l.reading <- struct{}{}
		defer func() { <-s.l.reading }()
		sizes := make(map[int]proc.Memory, len(pids))
		for _, pid := range pids {
			if tree, err := proc.Host.Tree(pid); err == nil {
				if memory, err := proc.Host.PSS(tree...); err == nil {
					sizes[pid] = memory
				}
			}
		}
		s.measuring.Store(false)
		found <- sizes
	})
	late := time.NewTimer(sizesWithin)
	defer late.Stop()
	select {
	case sizes := <-found:
		return sizes
	case <-late.C:
		return nil
	}
}

// looked acts on what a look found: the number first, then what the guard wants,
// then one worker more if there is room for it.
func (s *sizer) looked(now time.Time, m look) {
	if !s.follows() {
		return
	}
	if m.counts {
		s.counted(now, m.kills)
	}
	if m.known && !m.weighs {
		s.used = m.usage
	}
	for pid, memory := range m.sizes {
		if w := s.watched[pid]; w != nil {
			w.bytes = memory.Held()
		}
	}
	occasion := s.replan
	if m.all && occasion != "" {
		s.replan = ""
		s.base(m)
		s.plan(occasion)
	}
	if m.limits != nil {
		s.limitsRead = now
		if m.limits.Limits != s.limits.Limits {
			s.replan = "limits changed"
		}
		s.limits = *m.limits
	}
	settled := false
	for _, slot := range m.due {
		first := s.learner.Measuring(slot)
		if s.learner.Sample(now, slot, s.inSlot(slot)) {
			settled = true
			if first {
				s.settled++
			}
		}
	}
	if settled && s.learner.Worker() > s.applied {
		s.applied, s.replan = s.learner.Worker(), "learned what one worker needs"
	}
	s.scale()
	s.protect(now, m)
	if m.weighs {
		s.grow(m)
	}
}

// base takes what is in use beside the workers. What belongs to workers that were
// not measured is not beside them. The code that they run is there once, however
// many they are: it is beside them too.
func (s *sizer) base(m look) {
	if !m.known || len(m.sizes) == 0 || m.usage.Dir == "" && s.limits.Memory.Set {
		return // what was found before is nearer
	}
	var workers []uint64
	s.code = 0
	for _, st := range s.l.sup.Seats() {
		if st.PID == 0 {
			continue
		}
		held := s.need()
		if memory, ok := m.sizes[st.PID]; ok {
			held = memory.Held()
			s.code += memory.File
		}
		workers = append(workers, held)
	}
	s.policy.Base = s.code + sizing.Base(m.usage.Held, workers...)
}

// need is what one worker is planned with, 0 if unknown.
func (s *sizer) need() uint64 {
	if s.decision.WorkerBytes == nil {
		return 0
	}
	return *s.decision.WorkerBytes
}

// planned is how many workers there shall be by arithmetic, goal how many of them
// the guard allows.
func (s *sizer) planned() int {
	if s.fixed > 0 || s.l.o.ExportWorkers || s.learns() && s.applied == 0 {
		return s.l.sup.Wanted()
	}
	return s.decision.Workers
}

func (s *sizer) goal() int { return s.guard.Allowed(s.planned()) }

// scale has a number carried out that is smaller, or that no memory bounds.
func (s *sizer) scale() {
	if s.replan != "" || s.l.sup.Phase() != supervise.Running {
		return
	}
	if goal := s.goal(); goal < s.l.sup.Wanted() || s.need() == 0 || s.decision.ByMemory == nil {
		s.l.step(supervise.Scale{Workers: goal, Serve: true, Why: s.why})
	}
}

// grows tells whether a look shall find out if there is room for one more worker:
// workers are added one at a time, and after the second no other until it has its
// size, because the need of the first may mislead.
func (s *sizer) grows() bool {
	if s.full || s.goal() <= s.l.sup.Wanted() {
		return false
	}
	starting := 0
	for _, st := range s.l.sup.Seats() {
		if s.learns() && s.settled < 2 && s.unsettled(st) {
			return false // the second worker shows whether the first one misled
		}
		switch st.State {
		case supervise.Down:
			return false
		case supervise.Starting:
			starting++
		case supervise.Ready, supervise.Draining, supervise.Stopping, supervise.Killing, supervise.Backoff, supervise.Standby, supervise.Failed:
		}
	}
	return starting < s.l.o.Policy.StartParallel
}

// grow adds one worker if there is room for it. What workers that have not settled
// may still take is taken as used.
func (s *sizer) grow(m look) {
	if s.replan != "" || !s.grows() {
		return
	}
	// Where the usage cannot be read the plan is all there is to go by.
	if m.known && !s.room(m.usage.Held) {
		s.full = true
		if s.fullAt == s.l.sup.Wanted() {
			return // said already
		}
		s.fullAt = s.l.sup.Wanted()
		s.l.log.Log(logger.Info, "no room for one more worker yet", logger.Field{Key: "workers", Value: s.l.sup.Wanted()},
			logger.Field{Key: "planned", Value: s.goal()}, logger.Field{Key: "used", Value: int(m.usage.Held)}, logger.Field{Key: "needs", Value: int(s.need())})
		return
	}
	s.l.step(supervise.Scale{Workers: s.l.sup.Wanted() + 1, Serve: true, Why: s.why})
}

// room tells whether one more worker fits beside what is in use.
func (s *sizer) room(used uint64) bool {
	used += s.code
	for _, st := range s.l.sup.Seats() {
		if w := s.watched[st.PID]; s.unsettled(st) && w != nil && w.bytes < s.need() {
			used += s.need() - w.bytes
		}
	}
	return sizing.RoomForOne(s.bounds(), s.policy, used, s.need())
}

// unsettled tells whether a worker may be smaller than it is going to be.
func (s *sizer) unsettled(st supervise.Seat) bool {
	return st.State == supervise.Starting || st.PID != 0 && s.learner.Measuring(st.Slot)
}

// inSlot is the memory of the serving worker in a slot, 0 if unknown.
func (s *sizer) inSlot(slot int) uint64 {
	for _, st := range s.l.sup.Seats() {
		if w := s.watched[st.PID]; st.Slot == slot && serves(st) && w != nil {
			return w.bytes
		}
	}
	return 0
}

func serves(st supervise.Seat) bool {
	return st.State == supervise.Ready || st.State == supervise.Standby
}

// observe keeps the list of workers, and tells the learner which have become ready
// and which are gone.
func (s *sizer) observe(now time.Time) {
	if !s.l.sup.Serving() {
		return
	}
	alive, serving := make(map[int]bool), make(map[int]bool)
	for _, st := range s.l.sup.Seats() {
		if st.PID == 0 {
			continue
		}
		alive[st.PID] = true
		w := s.watched[st.PID]
		if w == nil {
			w = &watched{slot: st.Slot}
			s.watched[st.PID] = w
			if age := s.l.o.MaxWorkerAge; age > 0 {
				// Workers that were started together shall not go together.
				w.expires = st.Started.Add(age - age/10 + time.Duration(s.l.o.Policy.Jitter()*float64(age/5)))
			}
		}
		if !serves(st) {
			continue
		}
		serving[st.Slot] = true
		if !w.fed && s.learns() {
			w.fed = true
			s.learner.Ready(now, st.Slot)
		}
		if s.replacing == st.Slot && s.leaver != st.PID {
			s.replacing = none
		}
	}
	for pid, w := range s.watched {
		if !alive[pid] {
			delete(s.watched, pid)
			if !serving[w.slot] {
				s.learner.Gone(w.slot)
			}
		}
	}
}

// busy tells whether a worker is on its way out, or in place of a recycled one on
// its way in: no further one may go now.
func (s *sizer) busy() bool {
	slots := make(map[int]bool)
	for _, st := range s.l.sup.Seats() {
		if slots[st.Slot] {
			return true
		}
		slots[st.Slot] = true
		switch st.State {
		case supervise.Draining, supervise.Stopping, supervise.Killing:
			return true
		case supervise.Down, supervise.Starting:
			if st.Slot == s.replacing {
				return true
			}
		case supervise.Ready, supervise.Backoff, supervise.Standby, supervise.Failed:
		}
	}
	return false
}

// protect feeds the guard and does what it wants.
func (s *sizer) protect(now time.Time, m look) {
	if s.shortage {
		s.shortage = false
		s.obey(s.guard.OOMKill(s.killed, s.planned()))
	}
	if !m.weighs && (!now.Before(s.guard.Deadline()) || m.limits != nil) {
		u := sizing.Usage{Used: m.usage.Held, Planned: s.planned(), Running: len(s.watched), Worker: s.need(), Room: s.room(m.usage.Held), Busy: s.busy()}
		// The machine is filled by strangers too, and what a program does about
		// workers of its own is its business.
		if m.known && m.usage.Dir != "" && !s.l.o.ExportWorkers {
			u.Limit = m.usage.Limit.Bytes
		}
		s.full = false
		s.obey(s.guard.Usage(now, u))
	}
	if !m.all {
		return
	}
	s.weighed = now
	var workers []sizing.Worker
	for _, st := range s.l.sup.Seats() {
		if memory, ok := m.sizes[st.PID]; ok && serves(st) {
			workers = append(workers, sizing.Worker{Slot: st.Slot, Bytes: memory.Held()})
			s.check(st, memory.Bytes)
		}
	}
	s.obey(s.guard.Workers(now, workers))
}

func (s *sizer) obey(actions []sizing.Action) {
	for _, a := range actions {
		switch a := a.(type) {
		case sizing.Measure:
			s.wantSizes = true
		case sizing.Recycle:
			s.recycle(a.Slot, supervise.CauseMemory, !a.StopThenStart, a.Why)
		case sizing.Shrink:
			s.l.log.Log(logger.Warn, "one worker fewer", logger.Field{Key: "workers", Value: a.To}, logger.Field{Key: "why", Value: a.Why})
			s.why = a.Why
			s.l.step(supervise.Scale{Workers: a.To, Serve: true, Why: a.Why})
		case sizing.Grow:
			s.why = a.Why // grow does it when there is room
		}
	}
}

// recycle replaces the worker of a slot gracefully.
func (s *sizer) recycle(slot int, cause supervise.Cause, surge bool, why string) {
	for _, st := range s.l.sup.Seats() {
		if st.Slot != slot || !serves(st) {
			continue
		}
		s.replacing, s.leaver = slot, st.PID
		level := logger.Warn
		if cause == supervise.CauseAge {
			level = logger.Info // as planned
		}
		s.l.log.Log(level, "replacing a worker", logger.Field{Key: "slot", Value: slot},
			logger.Field{Key: "cause", Value: string(cause)}, logger.Field{Key: "why", Value: why})
		s.l.step(supervise.Recycle{Slot: slot, Cause: cause, Surge: surge})
		return
	}
}

// check replaces a worker that was over --max-worker-memory twice in a row.
func (s *sizer) check(st supervise.Seat, bytes uint64) {
	most, w := s.l.o.MaxWorkerMemory, s.watched[st.PID]
	if most == 0 || w == nil || bytes <= most {
		if w != nil {
			w.over = 0
		}
		return
	}
	if w.over++; w.over > 1 && !s.busy() {
		s.recycle(st.Slot, supervise.CauseMemory, s.second(), "it holds "+strconv.FormatUint(bytes, 10)+" bytes, more than --max-worker-memory")
	}
}

// expire replaces the worker that is the longest over its age.
func (s *sizer) expire(now time.Time) {
	var oldest *watched
	for _, w := range s.watched {
		if !w.expires.IsZero() && !now.Before(w.expires) && (oldest == nil || w.expires.Before(oldest.expires)) {
			oldest = w
		}
	}
	if oldest == nil || s.busy() {
		return
	}
	oldest.expires = now.Add(s.l.o.MaxWorkerAge) // unless it is not ready now
	s.recycle(oldest.slot, supervise.CauseAge, s.second(), "it is older than --max-worker-age")
}

// second tells whether a second copy of a worker fits beside it for a while, with
// which the guard has nothing to do yet.
func (s *sizer) second() bool {
	return s.used.Dir == "" || !sizing.Over(s.used.Held+s.need(), s.used.Limit.Bytes)
}

// counted takes the kernel's count of kills for memory. It only grows, but a look
// that took long may bring an older one after a newer.
func (s *sizer) counted(now time.Time, kills uint64) {
	if kills <= s.ooms {
		return
	}
	s.kills += int(kills - s.ooms)
	s.killed, s.shortage = now, true
	s.ooms = kills
}

// oomKilled tells whether an exit by KILL that has just been seen was the kernel's
// doing for want of memory: a fact from its own counter (cgroup-v2.rst,
// memory.events), used for one exit only.
func (s *sizer) oomKilled(now time.Time) bool {
	if n, _, ok := cgroup.Events(s.root, s.paths); ok {
		s.counted(now, n)
	}
	if s.kills == 0 || now.Sub(s.killed) > claimWithin {
		s.kills = 0
		return false
	}
	s.kills--
	return true
}

// tooLarge says, once, that the first worker did not even live until its need was
// known.
func (s *sizer) tooLarge() {
	if s.told || !s.l.discover && (!s.learns() || s.applied > 0 || len(s.watched) > 1) {
		return
	}
	s.told = true
	b := s.bounds().Memory
	s.l.log.Log(logger.Error, "the first worker does not fit: the kernel killed it because memory ran out; raise the memory limit",
		logger.Field{Key: "limit", Value: int(b.Bytes)}, logger.Field{Key: "from", Value: b.Source})
}

// workersOOMScore is the oom_score_adj of workers (proc_pid_oom_score_adj(5)): above
// skep's own, because a container whose PID 1 is killed ends. It is nil where it
// cannot be set.
func workersOOMScore() *int {
	const file = "/proc/self/oom_score_adj"
	text, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	own, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || own >= 1000 || unix.Access(file, unix.W_OK) != nil {
		return nil
	}
	score := min(own+oomScoreMore, 1000)
	return &score
}

// raiseOOMScore does for a worker that was started as a lone command what the fork
// does for the others. A refusal changes nothing.
func raiseOOMScore(pid int, score *int) {
	if score != nil {
		_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", strconv.AppendInt(nil, int64(*score), 10), 0)
	}
}
