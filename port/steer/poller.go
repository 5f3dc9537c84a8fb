package steer

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Membership is everything a Poller looks after.
type Membership struct {
	Groups []Group
}

// Group is one SO_REUSEPORT group: the held sockets of one address.
type Group struct {
	// ID names the group in events; the caller chooses it, once for each address.
	ID int
	// Hash leaves the choice to the kernel. Queues are watched all the same.
	Hash bool
	// Probes sends connections from ProbeSource(slot) to the slot's member.
	Probes bool
	// Members are all sockets of the group that listen, in the order of the kernel's array, whoever holds them: listen(2) appends, and what leaves is replaced by the last one.
	Members []Member
}

// Member is one listening socket of a group and the worker that accepts from it.
type Member struct {
	// Seat names the member in events; the caller chooses it. It is unique in its group, and the same in all groups for the same worker.
	Seat int
	// Slot is what a probe asks for. During a reload two seats have the same slot, and the probe reaches the later one in the list that is not on its way out.
	Slot int
	// FD is a duplicate (F_DUPFD_CLOEXEC) of the held socket. It belongs to the Poller from the call of Update on.
	FD    int
	State State
	// PID is the worker's process, 0 when there is none, and TID its thread that accepts, in the PID namespace that /proc shows. A TID of 0 is learned: the
	// main thread, or else the only thread that waits for events.
	PID, TID int
	// UID and GID are what the worker runs as.
	UID, GID uint32
}

// EventKind says what an Event reports.
type EventKind uint8

// The kinds of events.
const (
	// Stuck: a Ready member holds Queue connections and has accepted none for For. From here on it is steered around as if it were Hung.
	Stuck EventKind = iota + 1
	// Unstuck: a member that was Stuck has accepted a connection, or was emptied.
	Unstuck
	// Ignored: a Ready member holds Queue connections while its thread has done nothing but wait for events for For. The process may have closed its copy of the
	// socket. It is told once for each queue, and changes nothing by itself.
	Ignored
	// Drained: a Draining member has been out of the program for the settle time and its queue is empty.
	Drained
	// Left: the Poller holds no descriptor of the Leaving member any more, and the program in place stays right when its socket is closed.
	Left
	// Shut: the member's socket does not listen any more: somebody called shutdown(2) on it. The kernel has taken it out of the array.
	Shut
	// Failed: the kernel refused the program of the group, whose connections are now spread by its hash; Err says why.
	Failed
	// Reachable: with Group.Probes, a probe of the Starting member's slot comes to its worker, process PID.
	Reachable
	// Blocked: with Options.Hang, thread TID of a Ready member, the only one that can accept, has been asleep for For where no connection wakes it, while it
	// has connections open. It is a suspicion, and is told again as long as it lasts.
	Blocked
	// Dying: the kernel is ending process PID of a member, which gets nothing new any more. Its exit follows when its memory has been given back.
	Dying
	// Timed: the kernel does not tell of connections that a worker takes at once, Err says why: workers are looked at a little less often than it would take to see
	// each block before the next connection.
	Timed
)

var kindNames = [...]string{"none", "stuck", "unstuck", "ignored", "drained", "left", "shut", "failed", "reachable", "blocked", "dying", "timed"}

// String gives the kind's name.
func (k EventKind) String() string { return kindNames[k] }

// Event is something the owner of the members wants to know.
type Event struct {
	Kind  EventKind
	Group int
	Seat  int
	Queue int
	For   time.Duration
	PID   int
	TID   int
	Err   error
}

// Stat is what is known of one member at one moment.
type Stat struct {
	Group, Seat int
	State       State
	Queue       int
	// Conns is the number of connections the worker has open, or -1 when it is unknown.
	Conns int
	Wait  Wait
	// Chosen tells whether the program in place gives it connections.
	Chosen bool
}

// Options are the Poller's times. A zero field means the default.
type Options struct {
	// Tick is the time that pays for a look at the workers while there is traffic. The default is what makes looks take a fiftieth of a processor, from 1 to 8 ms; up
	// to 16 ms from 17 members on, to 24 ms from 33 on, and so on up to 64 ms: among many a blocked one is hit less often.
	Tick time.Duration
	// Timed has looks at times of their own only, each Tick, as where the kernel does not tell of connections. It is there to compare.
	Timed bool
	// Quiet is how long no new connection must have been seen before the Poller goes to sleep; default 100 ms.
	Quiet time.Duration
	// Idle is the time between two looks while nothing can change quickly, but something is waited for: a Draining member, a queue nobody takes from, a group
	// without a choice; default 20 ms.
	Idle time.Duration
	// StuckAfter is how long a Ready member may hold connections without accepting any; default 1 s.
	StuckAfter time.Duration
	// Settle is how long a Draining member must have been out of the program before it can be Drained, for the handshakes in flight; default 1 s.
	Settle time.Duration
	// Hang asks for Blocked events; workers are then looked at four times in it also when there is no traffic. 0 is not.
	Hang time.Duration
	// QueueOnly and NoConns make the choice by less than is known. They are there to compare.
	QueueOnly, NoConns bool
}

func (o *Options) defaults() {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&o.Quiet, 100*time.Millisecond)
	set(&o.Idle, 20*time.Millisecond)
	set(&o.StuckAfter, time.Second)
	set(&o.Settle, time.Second)
}

// Poller keeps the programs of reuseport groups right. It has a goroutine of its own that owns all its state; the methods may be called from one other
// goroutine, and never block it.
//
// While there are new connections it looks at every member when one has come and every few milliseconds, as often as its share of a processor allows, without
// allocating, and attaches a new program when the choice has changed. When no new one has been seen for a while it goes to sleep in the runtime's network poller,
// and costs no wake-ups until a connection arrives at one of the sockets.
type Poller struct {
	opts   Options
	events chan Event
	asks   chan chan<- []Stat
	update atomic.Pointer[Membership]
	closed atomic.Bool
	ending atomic.Bool
	ended  chan struct{}

	// The goroutine waits, in the runtime's poller, for an epoll of a timerfd and of the eventfd of arrivals: one wake-up per look, where a timer of the runtime takes up
	// to three. Whoever has something for it makes the timer expire at once.
	wake    *os.File
	timerfd int
	event   int
	// Sleep is an epoll of the members, armed only while there is no traffic and where arrivals do not work; a second goroutine waits for it. It is in the runtime's
	// poller too.
	sleep   *os.File
	sleepfd int
	dozed   chan struct{} // closed when the second goroutine has ended
	woken   atomic.Bool   // a connection has ended the sleep
	// Queues is an epoll of the members in which those become ready, once, that get a connection or are shut. Only arrivals waits for it.
	queues int

	// What follows belongs to the goroutine.
	start    time.Time
	self     identity
	groups   []*group
	workers  []*worker
	all      []*member // of all groups, by the number in the events of queues
	full     []unix.EpollEvent
	foreign  bool // some worker runs as somebody else
	steered  int  // members of groups with a choice
	arrivals arrivals
	asked    time.Duration // when arrivals was asked
	told     bool          // a connection is why this look is
	tried    bool          // arrivals was opened once, or is not to be any more
	failure  error         // why it does not work, not reported yet
	asleep   bool          // nothing but a connection or a message is waited for
	soon     int           // what pause wants to know: 1 when some group has no free member and one that runs, 2 when it has neither
	plenty   bool          // each group had several free ones at the last look
	traffic  time.Duration // when the last new connection was seen
	arrived  int           // connections seen to arrive in this tick
	burst    burst
	pace     pace
	later    time.Duration   // than the look before
	spent    unix.Timespec   // for cpuTime
	owed     []chan<- []Stat // not answered yet
	watched  time.Duration   // when watch was called last
	salt     uint16
	builder  Builder
	read     readings
	info     tcpInfo
	ticks    atomic.Uint64
	attaches atomic.Uint64
	past     past
}

type group struct {
	Group
	members  []*member
	views    []View
	choice   []int
	attached []int
	stale    bool // the program in place, if any, is of another array
	failed   bool
	failure  error // not reported yet
	probes   []Probe
}

type member struct {
	Member
	w        *worker // nil without a process
	group    *group
	queue    int
	before   int           // the queue at the look before
	full     bool          // epoll says that there is something to see
	held     time.Duration // since when the queue has not been empty and nothing was accepted
	out      time.Duration // since when it has been out of the program, for Draining
	stuck    bool
	rested   time.Duration // since when it has held connections while its thread waited for events; 0 when it does not
	ignored  bool          // that was reported
	shut     bool
	said     EventKind // the last of Stuck and Unstuck that was reported
	saidEnd  bool      // Drained or Left was reported
	saidShut bool
	saidNear bool // Reachable was reported
}

// NewPoller starts a Poller without members. It fails only when the process has no descriptors left.
func NewPoller(opts Options) (*Poller, error) {
	p, err := newPoller(opts)
	if err != nil {
		return nil, fmt.Errorf("cannot start the poller of accept queues: %w", err)
	}
	go p.run()
	return p, nil
}

func newPoller(opts Options) (*Poller, error) {
	opts.defaults()
	p := &Poller{
		opts:   opts,
		events: make(chan Event, 64),
		asks:   make(chan chan<- []Stat, 4),
		ended:  make(chan struct{}),
		dozed:  make(chan struct{}),
		full:   make([]unix.EpollEvent, 1), // epoll_wait wants room for at least one
		start:  time.Now(),
		pace:   newPace(shortestTick, longestTick),
		self:   identity{uint32(os.Geteuid()), uint32(os.Getegid())},
	}
	if opts.Tick != 0 {
		p.pace.fixed(opts.Tick)
	}
	fds := [...]int{-1, -1, -1, -1, -1}
	if err := openAll(&fds); err != nil {
		for _, fd := range fds {
			closeFD(fd)
		}
		return nil, err
	}
	p.timerfd, p.event, p.queues, p.sleepfd = fds[0], fds[1], fds[2], fds[4]
	p.wake, p.sleep = os.NewFile(uintptr(fds[3]), "epoll of what is waited for"), os.NewFile(uintptr(p.sleepfd), "epoll of held sockets")
	return p, nil
}

// openAll makes the timer, the eventfd, and the epolls: of queues, of the first two, and of sleep.
func openAll(fds *[5]int) (err error) {
	if fds[0], err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK); err != nil {
		return os.NewSyscallError("timerfd_create", err)
	}
	if fds[1], err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	for i := range fds[2:] {
		if fds[2+i], err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
			return os.NewSyscallError("epoll_create1", err)
		}
	}
	for _, fd := range fds[:2] {
		if err := unix.EpollCtl(fds[3], unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}); err != nil {
			return os.NewSyscallError("epoll_ctl", err)
		}
	}
	// Makes NewFile put them into the runtime's poller.
	for _, fd := range fds[3:] {
		if err := unix.SetNonblock(fd, true); err != nil {
			return os.NewSyscallError("fcntl", err)
		}
	}
	return nil
}

// Update replaces everything the Poller knew of who is a member. It is called after each change of a group's array and of a member's state; the duplicates
// are new ones each time. A message that was not looked at yet is dropped and its duplicates are closed.
//
// A socket stays in the kernel's array as long as anybody holds a descriptor of it, and leaving the array moves another member. So a held socket is closed in
// three steps: Update with the member Leaving; wait for its Left; close it, and Update without it. In between no connection can reach a wrong member.
func (p *Poller) Update(m Membership) {
	if old := p.update.Swap(&m); old != nil {
		old.close()
	}
	p.poke()
}

func (m *Membership) close() {
	for i := range m.Groups {
		for _, x := range m.Groups[i].Members {
			closeFD(x.FD)
		}
	}
}

// poke makes the goroutine look for messages, which must be there before.
func (p *Poller) poke() { setTimer(p.timerfd, 1) }

// Events delivers what has happened. When nobody receives, events wait: what they report is told as soon as there is room, if it still holds.
func (p *Poller) Events() <-chan Event { return p.events }

// Snapshot asks for the state of all members. The answer, in the order of the last Update, is sent to reply, which must have room for it; without room it is
// dropped. It returns false when too many questions wait already.
func (p *Poller) Snapshot(reply chan<- []Stat) bool {
	select {
	case p.asks <- reply:
		p.poke()
		return true
	default:
		return false
	}
}

// Close ends the Poller and closes all its descriptors. The programs stay in place: the kernel keeps them as long as the groups exist. No other method may be
// called any more.
func (p *Poller) Close() {
	p.closed.Store(true)
	p.poke()
	<-p.ended
	p.sleep.Close()
	<-p.dozed
	p.release()
}

// Ending says that the process is about to end. What takes the kernel long to give back is given back now, which may take 30 ms of the Poller's time; from here on
// it looks at times only. It may be called more than once.
func (p *Poller) Ending() {
	if !p.ending.Swap(true) {
		p.poke()
	}
}

func (p *Poller) run() {
	defer close(p.ended)
	go p.doze()
	raw, err := p.wake.SyscallConn()
	if err != nil {
		return // only when the file is closed
	}
	var due time.Duration // 0: never
	expired := func(uintptr) bool {
		// The runtime has forgotten all events up to here, and none that comes from here on is lost; what was seen already may end the wait for nothing.
		if p.wanted() {
			return true
		}
		if due > 0 {
			rest := due - time.Since(p.start)
			if rest <= 0 {
				return true
			}
			setTimer(p.timerfd, rest)
		}
		return p.wanted() // a message that came before the timer was set has set it in vain
	}
	for !p.closed.Load() {
		if p.ending.Load() {
			p.tried = true
			p.arrivals.close()
		}
		if m := p.update.Swap(nil); m != nil {
			p.adopt(m)
		}
		now := time.Since(p.start)
		p.told = p.arrivals.came()
		if p.told {
			p.pace.came(now - p.asked)
		}
		if p.told || p.woken.Swap(false) {
			p.traffic = now
			if p.asleep {
				p.burst.wake(now) // the first of how many, nobody knows
			}
		}
		due = 0
		if next := p.tick(now); next > 0 {
			due = now + next
		}
		p.answer()
		if raw.Read(expired) != nil {
			return
		}
	}
}

// wanted tells whether there is a message, or a connection has come.
func (p *Poller) wanted() bool {
	return p.update.Load() != nil || len(p.asks) > 0 || p.woken.Load() || p.closed.Load() || p.arrivals.pending() || p.ending.Load() && p.arrivals.works()
}

// doze waits, in a goroutine of its own, for the connection that ends the sleep. The sockets are armed for one event each.
func (p *Poller) doze() {
	defer close(p.dozed)
	raw, err := p.sleep.SyscallConn()
	if err != nil {
		return
	}
	var ready [16]unix.EpollEvent
	something := func(fd uintptr) bool { return epollNow(int(fd), ready[:]) > 0 }
	for raw.Read(something) == nil {
		p.woken.Store(true)
		p.poke()
	}
}

// release closes all descriptors, when the goroutine has ended.
func (p *Poller) release() {
	if m := p.update.Swap(nil); m != nil {
		m.close()
	}
	for _, g := range p.groups {
		for _, m := range g.members {
			closeFD(m.FD)
		}
	}
	for _, w := range p.workers {
		w.close()
	}
	p.arrivals.close()
	p.sleep.Close()
	p.wake.Close()
	closeFD(p.timerfd)
	closeFD(p.event)
	closeFD(p.queues)
}

// adopt makes the message the state, and keeps what was learned of members and workers that are still there.
func (p *Poller) adopt(msg *Membership) {
	oldGroups, oldWorkers := p.groups, p.workers
	p.groups, p.workers, p.all, p.foreign, p.steered = nil, nil, nil, false, 0
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for i := range msg.Groups {
		g := &group{Group: msg.Groups[i], stale: true}
		var before *group
		for _, old := range oldGroups {
			if old.ID == g.ID {
				before = old
			}
		}
		for _, x := range g.Members {
			m := &member{Member: x, group: g}
			if before != nil {
				before.hand(m)
			}
			if x.PID != 0 && (x.State == Ready || x.State == Standby || x.State == Hung || x.State == Draining) {
				m.w = p.workerOf(x, oldWorkers)
				p.foreign = p.foreign || m.w.id != p.self
			}
			g.members = append(g.members, m)
		}
		g.probe()
		g.views = make([]View, len(g.members))
		g.choice = make([]int, 0, maxShare*len(g.members))
		g.attached = make([]int, 0, maxShare*len(g.members))
		if !g.Hash && len(g.members) > 1 {
			p.steered += len(g.members)
		}
		p.groups = append(p.groups, g)
	}
	for _, w := range oldWorkers {
		if !slices.Contains(p.workers, w) {
			w.close()
		}
	}
	for _, g := range oldGroups {
		for _, m := range g.members {
			p.forget(m)
		}
	}
	for _, g := range p.groups {
		for _, m := range g.members {
			// No events yet: only hang-ups and errors, which cannot be masked, could be reported.
			unix.EpollCtl(p.sleepfd, unix.EPOLL_CTL_ADD, m.FD, &unix.EpollEvent{Events: unix.EPOLLONESHOT})
			watchQueue(p.queues, m.FD, len(p.all))
			p.all = append(p.all, m)
		}
	}
	p.full = make([]unix.EpollEvent, max(len(p.all), 1))
	if p.steered > 0 && !p.tried && !p.opts.Timed {
		p.tried = true
		p.failure = p.arrivals.open(p.queues, p.event)
	}
	p.pace.longest = max(longestTick*time.Duration(min(1+(p.steered-1)/16, 8)), p.opts.Tick)
}

// forget takes the member's descriptor out of the epolls, where it would stay as long as anybody has the socket open, and closes it.
func (p *Poller) forget(m *member) {
	if m.FD >= 0 {
		unix.EpollCtl(p.sleepfd, unix.EPOLL_CTL_DEL, m.FD, nil)
		unix.EpollCtl(p.queues, unix.EPOLL_CTL_DEL, m.FD, nil)
		closeFD(m.FD)
		m.FD = -1
	}
}

// hand gives what is known of the member of the same seat to its successor.
func (g *group) hand(m *member) {
	for _, old := range g.members {
		if old.Seat != m.Seat {
			continue
		}
		m.queue = old.queue
		if old.PID == m.PID && old.State == m.State {
			m.held, m.stuck, m.said, m.out, m.saidEnd, m.saidNear = old.held, old.stuck, old.said, old.out, old.saidEnd, old.saidNear
		}
	}
}

// workerOf finds or makes what is known of the member's process. The thread must be locked.
func (p *Poller) workerOf(x Member, old []*worker) *worker {
	same := func(w *worker) bool { return w.seat == x.Seat && w.pid == x.PID }
	for _, list := range [...][]*worker{p.workers, old} {
		if i := slices.IndexFunc(list, same); i >= 0 {
			w := list[i]
			if x.TID != 0 && w.given != x.TID {
				w.given, w.tid = x.TID, x.TID
				p.as(w.id, w.openThread)
			}
			if !slices.Contains(p.workers, w) {
				p.workers = append(p.workers, w)
			}
			return w
		}
	}
	now := time.Since(p.start)
	w := &worker{seat: x.Seat, pid: x.PID, tid: x.TID, given: x.TID, id: identity{x.UID, x.GID}, moved: now, none: now, doubt: doubtNew}
	p.as(w.id, w.open)
	p.workers = append(p.workers, w)
	return w
}

// locked calls f on a thread that no other goroutine gets meanwhile.
func (p *Poller) locked(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	f()
}

// as calls f with the given file-system identity. The thread must be locked.
func (p *Poller) as(id identity, f func()) {
	if id != p.self {
		assume(id)
		defer assume(p.self)
	}
	f()
}

// tick looks at everything once and attaches what has changed. It returns when to look again; 0 is when something arrives.
func (p *Poller) tick(now time.Duration) time.Duration {
	p.ticks.Add(1)
	p.arrived, p.soon = 0, 0
	p.later = now - p.pace.last
	p.pace.look(now, p.cpuTime)
	// What has come until now is fetched first, then the next is asked for, and only then the workers are looked at: so none is missed that changes what was seen.
	for _, e := range p.full[:epollNow(p.queues, p.full)] {
		p.all[e.Fd].full = true
	}
	if p.pace.asks() || now-p.traffic >= p.opts.Quiet {
		p.ask(now)
	}
	// Queues before workers: a connection that is accepted meanwhile is then counted twice, and never overlooked.
	for _, m := range p.all {
		m.read(&p.info)
	}
	p.lookAtWorkers(now)
	p.plenty = true
	held := false
	for _, g := range p.groups {
		for _, m := range g.members {
			p.lookAtQueue(now, m)
			held = held || m.queue > 0
		}
	}
	if p.arrived > 0 {
		if now-p.traffic >= p.opts.Quiet {
			p.burst.wake(now) // a look for another reason came before the one that ends the sleep
		}
		p.traffic = now
	}
	p.burst.saw(now, p.arrived)
	quiet := now-p.traffic >= p.opts.Quiet
	burst := p.burst.next
	exact := quiet || burst >= wakeBurst/2
	switch {
	case quiet:
		burst = math.MaxInt16 // what comes next may come all at once, before the next tick
	case !p.arrivals.armed:
		burst = max(burst, p.pace.expects())
	}
	if p.failure != nil && p.send(Event{Kind: Timed, Err: p.failure}) {
		p.failure = nil
	}
	pending := p.failure != nil
	for _, g := range p.groups {
		p.steer(now, g, burst, exact)
		pending = p.report(now, g) || pending
	}
	if p.arrived > 0 && !p.told && p.soon == 0 && !p.pace.rushed() {
		p.soon = 2 // somebody who is told first does not let this process be told
	}
	watching := p.watch(now, quiet)
	p.asleep = quiet
	switch {
	case !quiet && p.steered == 0:
		return p.opts.Idle
	case !quiet && p.arrivals.works():
		return p.pace.pause(p.soon)
	case !quiet:
		return p.pace.price()
	}
	p.pace.restart()
	p.listenIn(now)
	if held || pending || p.strangers() {
		return p.opts.Idle
	}
	return watching
}

// strangers tells whether some worker is new, and its thread has not been seen to wait for events yet. If its first connection blocks it, that could not be told from
// a thread that serves nobody.
func (p *Poller) strangers() bool {
	return !p.opts.QueueOnly && slices.ContainsFunc(p.workers, func(w *worker) bool { return w.wchan >= 0 && !w.seenIdle && w.looked < newLooks })
}

// The bounds of the time between two looks. More looks than with the shortest find hardly any blocked worker sooner than its next connection comes.
const (
	shortestTick = time.Millisecond
	longestTick  = 8 * time.Millisecond
)

// cpuTime is what this process has used, 0 when it is unknown or does not matter.
func (p *Poller) cpuTime() time.Duration {
	if p.opts.Tick != 0 || unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &p.spent) != nil {
		return 0
	}
	return time.Duration(p.spent.Nano())
}

// lookAtWorkers reads what the processes do.
func (p *Poller) lookAtWorkers(now time.Duration) {
	if p.opts.QueueOnly || len(p.workers) == 0 {
		return
	}
	if p.foreign {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer assume(p.self)
	}
	is := p.self
	for _, w := range p.workers {
		p.arrived += w.count(now, p.plenty, &p.read)
		if w.rests(p.plenty) {
			continue
		}
		if w.id != is {
			assume(w.id)
			is = w.id
		}
		if w.wantsCount(now) {
			w.recount(now, p.listeners(w), &p.read)
		}
		w.look(now, &p.read)
		if w.wantsThread(now) {
			w.findThread(now, &p.read)
		}
	}
}

// read reads the length of the member's accept queue.
func (m *member) read(info *tcpInfo) {
	m.before = m.queue
	if m.FD < 0 {
		return
	}
	queue, listens := 0, true
	if m.full || m.before > 0 || m.shut { // of the others epoll knows that they are empty
		queue, listens = acceptQueue(m.FD, info)
		m.full = false
	}
	m.queue, m.shut = queue, !listens
}

// lookAtQueue draws the conclusions from a member's queue.
func (p *Poller) lookAtQueue(now time.Duration, m *member) {
	if m.FD < 0 {
		return
	}
	queue, before := m.queue, m.before
	p.arrived += queue - before // one that was accepted meanwhile is among the new descriptors
	if queue == 0 || before == 0 || queue < before || m.held == 0 {
		m.held = now // before may be long ago: nothing is looked at while there is no traffic
	}
	if m.w != nil {
		m.w.stalls = m.w.stalls || queue > 0
		switch {
		case queue == 0 && before > 1:
			m.w.gulps = min(m.w.gulps+1, 2)
		case queue > 0 && queue == before-1:
			m.w.gulps = max(m.w.gulps-1, -2) // or all, and others came: that is seen less often
		}
		// Without a connection it had nothing to do until now, however long ago the look before was, and what it does now is to accept.
		if queue < before || queue == 0 && m.w.wait == Unknown || (before == 0 || m.w.runs) && m.w.conns == 0 {
			m.w.moved = now
		}
	}
	m.stuck = m.State == Ready && queue > 0 && now-m.held >= p.opts.StuckAfter
	switch {
	case m.w == nil || m.w.wait != Idle || m.State != Ready || queue == 0 || queue < before:
		m.rested, m.ignored = 0, m.ignored && queue > 0
	case m.rested == 0:
		m.rested = now
	}
}

// view is the member as Choose sees it.
func (m *member) view(now time.Duration, opts *Options) View {
	v := View{State: m.State, Queue: m.queue, Conns: -1}
	switch {
	case m.shut:
		v.State = Leaving // the kernel has removed it from the array, as it will a Leaving one
	case m.stuck:
		v.State = Hung
	}
	if m.w == nil {
		return v
	}
	switch {
	case v.State != Ready:
	case m.w.gone:
		v.State = Down
	case m.w.seen != 0 && m.w.asleep && now-m.w.seen >= opts.StuckAfter:
		v.State = Hung
	}
	v.Lag = now - m.w.moved
	v.Gulps = m.w.gulps >= 0
	v.Wait, v.Asleep = m.w.wait, m.w.asleep
	if !opts.NoConns {
		v.Conns = m.w.conns
	}
	return v
}

// steer attaches the program for what is known now, unless the one in place will do. The last one before a sleep stays for long, and those of a
// burst decide about many connections at once: they are exact.
func (p *Poller) steer(now time.Duration, g *group, burst int, exact bool) {
	if g.failed || len(g.members) == 0 {
		return
	}
	if g.Hash {
		if g.stale {
			p.detach(g)
		}
		return
	}
	free, soon := 0, 2
	for i, m := range g.members {
		v := m.view(now, &p.opts)
		p.past.learn(&g.views[i], &v, p.later)
		g.views[i] = v
		switch {
		case v.free():
			free++
		case v.running():
			soon = 1
		case v.State == Ready && v.Asleep && !v.moving():
			p.pace.blocked = now // one that runs has no processor to spare for looks
		}
	}
	if len(g.members) > 1 {
		p.plenty = p.plenty && free > 1
		if free == 0 && (p.soon == 0 || soon < p.soon) {
			p.soon = soon
		}
	}
	if free == 0 { // otherwise it does not count
		for i := range g.views {
			v := &g.views[i]
			v.Cost = p.past.cost(v.Lag)
		}
	}
	g.choice = pick(g.choice[:0], g.views, burst)
	if !g.stale && (slices.Equal(g.attached, g.choice) || !exact && serves(g.attached, g.choice, burst <= perTick)) {
		return
	}
	p.salt += 7
	c := Choice{Among: g.choice, Salt: p.salt, Probes: g.probes}
	if err := Attach(g.any(), p.builder.Program(c)); err != nil {
		g.failed, g.failure = true, err
		return
	}
	p.attaches.Add(1)
	g.stale = false
	g.attached = append(g.attached[:0], g.choice...)
}

func (p *Poller) detach(g *group) {
	if err := Detach(g.any()); err != nil {
		g.failed, g.failure = true, err
	}
	g.stale = false
	for i := range g.members {
		g.attached = append(g.attached, i)
	}
}

// any is a descriptor of the group that listens. There is one as long as the members are what the kernel has; otherwise the attach fails.
func (g *group) any() int {
	for _, m := range g.members {
		if m.FD >= 0 && !m.shut {
			return m.FD
		}
	}
	return -1
}

// pick is Choose, or else Shelter, among the members that will be at the same index when the Leaving ones are gone: removing k of n members moves only members
// from the last k places into gaps. When none of those is Ready it is among all; an index that has become out of range makes the kernel use its hash.
func pick(dst []int, members []View, burst int) []int {
	stay := 0
	for i := range members {
		if members[i].State != Leaving {
			stay++
		}
	}
	for _, among := range [...][]View{members[:stay], members} {
		if out := Choose(dst, among, burst); len(out) > len(dst) {
			return out
		}
	}
	for _, among := range [...][]View{members[:stay], members} {
		if out := Shelter(dst, among); len(out) > len(dst) {
			return out
		}
	}
	return dst
}

// probe fills in which members probes reach.
func (g *group) probe() {
	if !g.Probes || g.Hash {
		return
	}
	for i := range g.Members {
		x := &g.Members[i]
		if x.State == Leaving || x.State == Draining || x.Slot < 0 || x.Slot >= MaxMembers {
			continue
		}
		at := slices.IndexFunc(g.probes, func(pr Probe) bool { return pr.Slot == x.Slot })
		switch {
		case at < 0:
			g.probes = append(g.probes, Probe{Slot: x.Slot, Index: i})
		case x.State == Starting || g.Members[g.probes[at].Index].State != Starting: // whether it is ready is what is asked
			g.probes[at].Index = i
		}
	}
}

// ignoredAfter is how long a thread that would accept at once must have rested beside a queue before it is odd: a few looks, and many times what a thread
// that has been woken needs to run.
const ignoredAfter = 20 * time.Millisecond

// report tells what has to be told about the group, and whether something is still to be told or waited for.
func (p *Poller) report(now time.Duration, g *group) (pending bool) {
	if g.failure != nil {
		if p.send(Event{Kind: Failed, Group: g.ID, Err: g.failure}) {
			g.failure = nil
		}
		pending = pending || g.failure != nil
	}
	for i, m := range g.members {
		e := Event{Group: g.ID, Seat: m.Seat, Queue: m.queue}
		switch {
		case m.stuck && m.said != Stuck:
			e.Kind, e.For = Stuck, now-m.held
			if p.send(e) {
				m.said = Stuck
			}
			pending = pending || m.said != Stuck
		case !m.stuck && m.said == Stuck:
			e.Kind = Unstuck
			if p.send(e) {
				m.said = Unstuck
			}
			pending = pending || m.said == Stuck
		}
		if m.rested != 0 && now-m.rested >= ignoredAfter && !m.ignored {
			e.Kind, e.For = Ignored, now-m.rested
			m.ignored = p.send(e)
			pending = pending || !m.ignored
		}
		if m.shut != m.saidShut {
			e.Kind = Shut
			if !m.shut || p.send(e) {
				m.saidShut = m.shut
			}
			pending = pending || m.shut != m.saidShut
		}
		if w := m.w; w != nil && w.dying && !w.mourned {
			e.Kind, e.PID = Dying, w.pid
			w.mourned = p.send(e)
			pending = pending || !w.mourned
		}
		if m.State == Leaving {
			p.forget(m)
		}
		if m.State == Starting && !m.saidNear && !g.stale && !g.failed && slices.Contains(g.probes, Probe{Slot: m.Slot, Index: i}) {
			e.Kind, e.PID = Reachable, m.PID
			m.saidNear = p.send(e)
			pending = pending || !m.saidNear
		}
		switch {
		case m.saidEnd:
		case m.State == Draining:
			pending = true
			if !g.Hash && !g.failed && slices.Contains(g.attached, i) {
				m.out = 0 // it is all there is
				break
			}
			if m.out == 0 {
				m.out = now
			}
			if now-m.out >= p.opts.Settle && m.queue == 0 {
				e.Kind, e.For = Drained, now-m.out
				m.saidEnd = p.send(e)
			}
		case m.State == Leaving:
			e.Kind = Left
			m.saidEnd = p.send(e)
			pending = pending || !m.saidEnd
		}
	}
	return pending
}

func (p *Poller) send(e Event) bool {
	select {
	case p.events <- e:
		return true
	default:
		return false
	}
}

// ask makes the next connection at any member wake the Poller, and tells whether it will.
func (p *Poller) ask(now time.Duration) bool {
	if p.arrivals.armed {
		return true
	}
	p.asked = now
	return p.arrivals.arm() == nil
}

// listenIn makes the next connection at any member wake the Poller. A member that holds connections already would wake it at once, and is left out.
func (p *Poller) listenIn(now time.Duration) {
	if p.ask(now) {
		return
	}
	for _, g := range p.groups {
		for _, m := range g.members {
			if m.FD < 0 || m.queue > 0 || m.shut {
				continue
			}
			ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET | unix.EPOLLONESHOT}
			unix.EpollCtl(p.sleepfd, unix.EPOLL_CTL_MOD, m.FD, &ev)
		}
	}
}

// answer sends what is known to those who asked. Who has called Update before is not told of what was before that, but after the next look.
func (p *Poller) answer() {
	for {
		for _, reply := range p.owed {
			select {
			case reply <- p.stats():
			default:
			}
		}
		p.owed = p.owed[:0]
		select {
		case reply := <-p.asks:
			p.owed = append(p.owed, reply)
		default:
			return
		}
		if p.update.Load() != nil {
			return
		}
	}
}

func (p *Poller) stats() []Stat {
	now := time.Since(p.start)
	var stats []Stat
	for _, g := range p.groups {
		for i, m := range g.members {
			v := m.view(now, &p.opts)
			stats = append(stats, Stat{Group: g.ID, Seat: m.Seat, State: v.State, Queue: v.Queue, Conns: v.Conns, Wait: v.Wait,
				Chosen: slices.Contains(g.attached, i)})
		}
	}
	return stats
}
