package initd

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/internal/signals"
	"skep/internal/sys"
	"skep/launch"
	"skep/port"
	"skep/prestart"
	"skep/reaper"
)

// Failure ends skep before the loop begins: nothing has been started yet.
type Failure struct {
	Err  error
	Code int
	// Line is the whole message when it is not skep's own form of Err.
	Line string
}

func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap gives the cause.
func (f *Failure) Unwrap() error { return f.Err }

// ExitOwnFault is skep's exit code for bad input and for faults of its own.
const ExitOwnFault = 125

// Run does everything from the first step before the start to the end of the
// last process, and returns skep's exit code. An error is returned only for what
// was found wrong before anything was started; it is a *Failure. Run is called
// once, from the main goroutine, after CatchSignals.
func Run(o Options, signals *signals.Source) (int, error) {
	l, err := prepare(o, signals)
	if err != nil {
		return 0, err
	}
	return l.finish(), nil
}

// loop is all state of a running skep. Only the goroutine in run touches it.
type loop struct {
	o       Options
	log     *logger.Logger
	signals *signals.Source
	self    int    // own pid
	exe     string // path by which the new process finds this very program
	dir     string // the working directory of workers and steps
	path    string // the program of the command
	env     []string
	user    *launch.User

	table   processes
	sup     *supervise.Supervisor
	before  *before // the steps before the start, nil when they are over
	ports   *port.Set
	given   []*port.Held    // by --listen, in the order of its addresses
	workers map[int]*worker // by seat
	size    *sizer
	steer   *steering
	notify  *notifySocket   // nil without --ready notify
	probes  map[int]*worker // by the pid of the process that asks them

	asks    chan *port.Ask
	hangups chan port.Hangup
	reports chan func()
	reading chan struct{} // as many as read, see readers
	timer   *time.Timer

	terminal    bool  // the command is the foreground job of the terminal on descriptor 0
	stopped     bool  // the command was stopped by job control
	swallow     []int // signals that skep has brought upon itself and does not pass on
	sharing     bool  // workers are started with the bind filter
	oomScore    *int  // oom_score_adj of workers, nil to leave it alone
	discover    bool  // still finding out whether the command is a server
	draining    map[int]time.Time
	stalls      map[suspect]*stall
	cannotProbe string    // why --ready http cannot be asked, empty when it can
	looked      time.Time // at starting workers that were passed descriptors
	uses        int       // times that memory may have been used since it was collected
	collectAt   time.Time // when to collect it, zero while there is no need
	quit        bool
	code        int
	ctx         context.Context // ends with the loop
	childless   bool
	sweeps      []int    // signals for what is left, sent when it is known whether anything is
	early       []string // lines from before there was a log
}

// processes is what the loop does to processes, all of it. It is reaper.Table;
// tests of timers put made-up processes in its place.
type processes interface {
	Start(c reaper.Command) (launch.Process, error)
	Has(pid int) bool
	Reap(exited func(reaper.Exit), stopped func(pid, signal int)) (children bool)
	Signal(pid, sig int, group bool) error
	SignalTree(pid, sig int)
	SignalLeft(self, group, sig int)
	Sweep(self, sig int)
}

// prepare does all that may fail before anything is started.
func prepare(o Options, signals *signals.Source) (*loop, error) {
	l := &loop{
		o: o, signals: signals, self: os.Getpid(), env: o.Environ,
		table:   reaper.NewTable(),
		workers: make(map[int]*worker), draining: make(map[int]time.Time), stalls: make(map[suspect]*stall), probes: make(map[int]*worker),
		asks: make(chan *port.Ask, 64), hangups: make(chan port.Hangup, 16), reports: make(chan func(), 64),
		reading: make(chan struct{}, readers),
	}
	var err error
	if l.user, err = lookupUser(o.User); err != nil {
		return nil, &Failure{Err: err, Code: ExitOwnFault}
	}
	l.exe = executable()
	if l.before, err = newBefore(l); err != nil {
		return nil, &Failure{Err: err, Code: ExitOwnFault}
	}
	// A step may bring the program or set PATH: after steps it is looked for then.
	if !o.Prestart.Only && l.before == nil {
		if l.path, err = launch.LookPath(o.Command[0], variable(o.Environ, "PATH")); err != nil {
			if o.As != nil {
				return nil, refuse(o.As, err)
			}
			return nil, &Failure{Err: err, Code: launch.ExitCode(err)}
		}
	}
	if l.ports, err = port.NewSet(port.Options{SharePorts: o.SharePorts, Single: o.Balance == BalanceSingle}); err != nil {
		return nil, &Failure{Err: err, Code: ExitOwnFault}
	}
	// The workers' directory is today's; skep's own becomes / so that it holds no
	// mount busy.
	l.dir, _ = os.Getwd()
	l.terminal = foreground(0)
	if isTerminal(0) {
		l.o.Discover = false // a command on a terminal is a person's, not a service
	}
	if o.Policy.Jitter == nil {
		l.o.Policy.Jitter = jitter()
	}
	l.size, l.steer = newSizer(l), newSteering(l)
	l.decideAtStart()
	if o.Ready == ReadyNotify && !o.Prestart.Only {
		l.notify, err = newNotifySocket()
	}
	if err == nil {
		err = l.holdListeners()
	}
	if err == nil && l.before == nil {
		err = l.openListeners()
	}
	if err != nil {
		l.ports.CloseAll()
		return nil, &Failure{Err: err, Code: ExitOwnFault}
	}

	// From here on nothing fails any more.
	if l.self != 1 {
		// Without /proc/sys or in an old sandbox this may be refused: then orphans
		// go to whoever is PID 1, and skep does without (prctl(2)).
		err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
		if errno, ok := err.(syscall.Errno); ok && o.As != nil && o.As.Subreaper {
			defer func() { l.print(o.As.SubreaperFailure(errno)) }()
		}
	}
	if o.ParentDeath != 0 {
		runtime.LockOSThread() // the signal follows the thread that asked (prctl(2))
		_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(o.ParentDeath), 0, 0, 0)
	}
	_ = unix.Chdir("/")
	l.log = logger.New(2, o.LogLevel, o.LogFormat, time.Now)
	if o.Discover && !l.o.Discover {
		l.alone(logger.Debug, "a terminal is on its stdin"+insist)
	}
	if o.Boring {
		haveThreads(spareThreads - 1) // nobody reads of limits and workers
	} else {
		haveThreads(spareThreads)
	}
	return l, nil
}

// keepProgram keeps skep's program in memory. When a container's memory runs out the kernel first drops what can be read
// again from files. The last of a killed worker's threads lets go of the bind filter before it gives its memory back
// (do_exit of kernel/exit.c, Linux 6.11 and later), which wakes skep; if that has to be read first, memory is needed
// just then, the worker no longer counts, and the kernel kills who is left: PID 1. In a container of 64 MiB that
// happened in one of twenty kills for memory. It costs some tenths of a millisecond once, which a lone command
// does without: it has no filter.
func (l *loop) keepProgram() {
	if err := sys.KeepProgram(); err != nil {
		l.log.Log(logger.Info, "cannot keep skep's program in memory: the kernel may end skep when memory runs out; raise RLIMIT_MEMLOCK to 8 MiB",
			logger.Field{Key: "error", Value: err.Error()})
	}
}

// readers is how many goroutines read of limits and workers at a time, and
// spareThreads how many may be in a system call that lasts: those, and the one that
// writes the log. The loop itself has the first thread. With what the runtime has
// for itself that makes six, so that there is room for one worker where a container
// may have seven.
const (
	readers      = 2
	spareThreads = readers + 1
	ownThreads   = 3 // the loop's and the runtime's own
)

// haveThreads makes the runtime start threads that it keeps for later, until there
// are n beside ownThreads. When a container's pids limit is reached there are no more
// to be had, and a Go program that needs one then dies (runtime.newosproc): just when
// skep has to tell of it and try again. Some the runtime has already, how many differs
// from start to start; the number of links of the threads' folder tells
// (proc_task_getattr of fs/proc/base.c). Where it does not, n are started.
func haveThreads(n int) {
	var done sync.WaitGroup
	gate, up := make(chan struct{}), make(chan struct{})
	var tasks unix.Stat_t
	for range n {
		if unix.Stat("/proc/self/task", &tasks) == nil && int(tasks.Nlink)-2 >= ownThreads+n {
			break
		}
		done.Go(func() {
			runtime.LockOSThread() // so that no other goroutine can wait in this thread
			up <- struct{}{}
			<-gate
			runtime.UnlockOSThread()
		})
		<-up
	}
	close(gate)
	done.Wait()
}

// finish runs the loop to its end and lets go of what it had.
func (l *loop) finish() (code int) {
	code = l.run()
	l.ports.CloseAll()
	l.log.Close(200 * time.Millisecond)
	return code
}

// run is the loop. It returns the exit code of skep.
func (l *loop) run() (code int) {
	defer func() {
		if r := recover(); r != nil {
			code = l.emergency(r, debug.Stack())
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	l.ctx = ctx
	defer cancel()
	l.timer = time.NewTimer(time.Hour)
	l.begin()
	if !l.o.Boring {
		l.background(l.keepProgram)
	}
	l.settle() // nothing may have been started
	for !l.quit {
		l.arm()
		select {
		case <-l.timer.C:
			l.reap()
			if !l.collect() { // what else is due is found when the timer is set again
				l.tick()
			}
		case <-l.signals.Child:
			l.reap()
		case sig := <-l.signals.Other:
			if l.before == nil {
				l.reap() // an exit that came first is seen first
			}
			l.signal(sig)
		case ask := <-l.asks:
			l.answer(ask)
		case hangup := <-l.hangups:
			l.relisten(hangup)
		case report := <-l.reports:
			report()
		}
		l.used()
		l.settle()
	}
	return l.code
}

// Memory is collected collectAfter after it may have been used collectUses times: a kilobyte or
// so each.
const (
	collectUses  = 256
	collectAfter = 2 * time.Minute
)

// used notes that memory may have been used.
func (l *loop) used() {
	if l.uses++; l.uses == collectUses {
		l.collectAt = time.Now().Add(collectAfter)
	}
}

// collect collects memory when it is time. Once it has collected for the first time, the runtime
// does so every two minutes, used or not, and wakes a thread up for that for ever, which is
// switched off (package entry). Without any, what a storm has left would stay up to the 4 MB at which
// the heap is collected anyway. It is not done without need, because the runtime gives the pages back in
// some sixty steps.
func (l *loop) collect() bool {
	if l.collectAt.IsZero() || time.Now().Before(l.collectAt) {
		return false
	}
	l.uses, l.collectAt = 0, time.Time{}
	l.background(runtime.GC)
	return true
}

func (l *loop) begin() {
	if len(l.o.Listen) > 0 || l.sharing {
		l.background(func() { _ = l.ports.Watch(l.ctx, l.hangups) })
	}
	if l.notify != nil {
		l.hear()
	}
	l.reap() // an orphan may have ended before SIGCHLD was caught
	for _, line := range append(l.o.Warnings, l.early...) {
		l.log.Log(logger.Warn, line)
	}
	if l.sup != nil {
		return // a stop came before the first step
	}
	switch {
	case l.before != nil:
		l.before.begin()
	case l.o.Prestart.Only:
		l.sup = supervise.New(l.o.Policy)
		l.step(supervise.Abandon{})
	default:
		l.startWorkers()
	}
}

// startWorkers hands over from the steps before the start to the supervisor.
func (l *loop) startWorkers() {
	l.before = nil
	l.sup = supervise.New(l.o.Policy)
	l.size.announce()
	l.step(supervise.Begin{})
}

// arm sets the one timer to the earliest deadline (law 9).
func (l *loop) arm() {
	var at time.Time
	earliest := func(t time.Time, ok bool) {
		if ok && !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	if l.before != nil {
		earliest(l.before.machine.Deadline())
	}
	if l.sup != nil {
		earliest(l.sup.Deadline())
		earliest(l.size.deadline(), true)
		earliest(l.drainCheck(), true)
		earliest(l.awaitAt(), true)
		earliest(l.hangAt(), true)
		earliest(l.steer.sweepAt(), true)
	}
	earliest(l.collectAt, true)
	if at.IsZero() {
		l.timer.Stop()
		return
	}
	l.timer.Reset(max(time.Until(at), 0))
}

func (l *loop) tick() {
	now := time.Now()
	if l.before != nil {
		l.before.step(prestart.Tick{})
		return
	}
	if at, ok := l.sup.Deadline(); ok && !now.Before(at) {
		l.step(supervise.Tick{})
	}
	l.size.tick(now)
	l.checkDrained(now)
	l.await(now)
	l.checkHangs(now)
	l.steer.sweep(now)
}

// settle tells the machines what follows from what has just happened.
func (l *loop) settle() {
	for _, sig := range l.sweeps {
		// Every descendant of a subreaper has an ancestor among its children, so
		// without children there is nothing to look for in all of /proc.
		if l.self == 1 || !l.childless {
			l.table.Sweep(l.self, sig)
		}
	}
	l.sweeps = nil
	if l.sup == nil || l.quit {
		return
	}
	if l.childless && l.sup.Phase() == supervise.Sweeping {
		l.step(supervise.Childless{})
	}
	l.endProbes()
	l.size.watch()
	l.size.observe(time.Now())
	l.steer.update()
}

func (l *loop) reap() {
	l.heed()
	var stopped func(int, int)
	if l.terminal && l.self != 1 {
		stopped = l.childStopped
	}
	l.childless = !l.table.Reap(l.exited, stopped)
}

func (l *loop) exited(e reaper.Exit) {
	if as := l.o.As; as != nil {
		l.print(as.Reaped(e.PID, e.Known, e.Status.Code, e.Status.Signal)...)
		if e.Known {
			l.print(as.Ended(e.Status.Code, e.Status.Signal))
		}
	}
	switch {
	case !e.Known:
		l.log.Log(logger.Debug, "reaped an orphan", logger.Field{Key: "pid", Value: e.PID}, logger.Field{Key: "status", Value: e.Status.String()})
	case l.before != nil:
		l.before.exited(e)
	case l.sup != nil && !l.proberEnded(e):
		oom := e.Status.Signal == int(unix.SIGKILL) && l.size.oomKilled(time.Now())
		if oom {
			l.size.tooLarge()
		}
		l.step(supervise.Exited{
			PID:    e.PID,
			Status: supervise.Status{Code: e.Status.Code, Signal: e.Status.Signal},
			OOM:    oom,
		})
	}
}

// step runs the supervisor and carries out what it wants, in order.
func (l *loop) step(ev supervise.Event) {
	effects := l.sup.Step(time.Now(), ev)
	for len(effects) > 0 {
		e := effects[0]
		effects = effects[1:]
		if answer := l.apply(e); answer != nil {
			effects = append(effects, l.sup.Step(time.Now(), answer)...)
		}
	}
}

func (l *loop) apply(e supervise.Effect) (answer supervise.Event) {
	switch e := e.(type) {
	case supervise.Start:
		return l.start(e)
	case supervise.Kill:
		l.kill(e)
	case supervise.Drain:
		l.draining[e.Seat] = time.Now()
	case supervise.Retire:
		l.retire(e.Seat)
	case supervise.Sweep:
		l.sweeps = append(l.sweeps, e.Signal)
	case supervise.Note:
		l.note(e)
	case supervise.Quit:
		l.quit, l.code = true, e.Code
	}
	return nil
}

func (l *loop) note(n supervise.Note) {
	fields := make([]logger.Field, len(n.Attrs))
	for i, a := range n.Attrs {
		fields[i] = logger.Field{Key: a.Key, Value: a.Value}
		if a.Key == "signal" || a.Key == "on" {
			if sig, ok := a.Value.(int); ok {
				fields[i].Value = signalName(sig)
			}
		}
	}
	level := logger.Level(n.Level)
	if !l.sup.Serving() && level == logger.Info {
		level = logger.Debug // a lone command is told about only when something is wrong
	}
	l.log.Log(level, n.Text, fields...)
}

func (l *loop) kill(e supervise.Kill) {
	switch {
	case e.Tree:
		l.table.SignalTree(e.PID, e.Signal)
	default:
		// That the process is gone already is an outcome; its exit is on its way.
		_ = l.table.Signal(e.PID, e.Signal, l.o.KillGroup)
	}
}

func (l *loop) signal(sig int) {
	if i := slices.Index(l.swallow, sig); i >= 0 {
		l.swallow = slices.Delete(l.swallow, i, i+1)
		return
	}
	switch {
	case l.before != nil:
		l.before.signal(sig)
	case sig == int(unix.SIGCONT) && l.stopped:
		l.resume()
	default:
		if l.o.As != nil {
			l.print(l.o.As.Forwarding(sig)...)
		}
		l.step(supervise.Signal{Signal: sig})
		if as := l.o.As; as != nil && as.Suspend && (sig == int(unix.SIGTSTP) || sig == int(unix.SIGTTIN) || sig == int(unix.SIGTTOU)) {
			l.print(as.Suspending())
			reaper.StopSelf()
		}
	}
}

// offload runs f, which may stall, on a goroutine of its own, when it is its turn.
// What f returns is called by the loop.
func (l *loop) offload(f func() func()) {
	l.background(func() {
		l.reading <- struct{}{}
		report := f()
		<-l.reading
		if report != nil {
			l.reports <- report
		}
	})
}

// background runs f on a goroutine of its own. A fault in it becomes one of the
// loop, which ends in good order (law 3); by itself it would end skep at once
// and leave the workers behind.
func (l *loop) background(f func()) {
	go func() {
		defer func() {
			if r := recover(); r != nil {
				fault := fmt.Sprintf("%v\n%s", r, debug.Stack())
				l.reports <- func() { panic(fault) }
			}
		}()
		f()
	}()
}

// emergency ends everything after a fault in skep itself: a container whose PID
// 1 hangs is worse than one that ends and is started again (law 3).
func (l *loop) emergency(fault any, stack []byte) int {
	l.log.Log(logger.Error, "fault in skep, ending", logger.Field{Key: "fault", Value: fmt.Sprint(fault)},
		logger.Field{Key: "stack", Value: string(stack)})
	reap := func() bool { return l.table.Reap(func(reaper.Exit) {}, nil) }
	l.table.Sweep(l.self, int(unix.SIGTERM))
	grace := time.NewTimer(max(l.o.Policy.StopTimeout, l.o.Policy.SweepTimeout))
	defer grace.Stop()
	for killed := false; reap(); {
		select {
		case <-l.signals.Child:
		case <-grace.C:
			if killed {
				return ExitOwnFault // what is left cannot be ended
			}
			killed = true
			l.table.Sweep(l.self, int(unix.SIGKILL))
			grace.Reset(time.Second)
		}
	}
	return ExitOwnFault
}
