package supervise

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// core is what the simulation needs of a Supervisor, so that deliberately wrong
// ones can take its place.
type core interface {
	Step(time.Time, Event) []Effect
	Deadline() (time.Time, bool)
	Seats() []Seat
	Generation() uint64
	Phase() Phase
	Wanted() int
}

// choices decides everything that happens in a world: a seeded generator, a
// fuzzer's bytes, or a list that failed before.
type choices interface {
	below(n int) int // 0 ≤ below(n) < n
	more() bool      // false when the world should come to its end
}

type seeded struct{ *rand.Rand }

func newSeeded(seed uint64) seeded { return seeded{rand.New(rand.NewPCG(seed, 0))} }
func (s seeded) below(n int) int   { return s.IntN(n) }
func (s seeded) more() bool        { return true }

type listed struct {
	list []byte
	read int
}

func (l *listed) more() bool { return l.read < len(l.list) }
func (l *listed) below(n int) int {
	if !l.more() {
		return 0
	}
	l.read++
	return int(l.list[l.read-1]) % n
}

// kept remembers the choices of another one, as a list that makes the same.
type kept struct {
	choices
	list []byte
}

func (k *kept) below(n int) int {
	i := k.choices.below(n)
	k.list = append(k.list, byte(i))
	return i
}

// shrink looks for a shorter list of choices that breaks the same law, and
// returns it with what the world said to it.
func shrink(list []byte, failure string, wrong func(*Supervisor) core) ([]byte, string) {
	law := func(s string) string { // without the numbers in it
		said, _, _ := strings.Cut(s, "\n")
		return strings.Map(func(r rune) rune {
			if r >= '0' && r <= '9' {
				return -1
			}
			return r
		}, said[:min(len(said), 40)])
	}
	var w world
	for chunk := len(list) / 2; chunk > 0; {
		smaller := false
		for at := 0; at+chunk <= len(list); {
			shorter := append(append([]byte{}, list[:at]...), list[at+chunk:]...)
			if said := w.run(&listed{list: shorter}, wrong); said != "" && law(said) == law(failure) {
				list, failure, smaller = shorter, said, true
			} else {
				at += chunk
			}
		}
		if !smaller {
			chunk /= 2
		}
	}
	return list, failure
}

// process is one process of the fake kernel. It stays until its exit is taken,
// and only then its pid can be given to another one.
type process struct {
	pid, seat, serial int
	ready             time.Time // when it says that it is ready; zero is never
	dies              time.Time // zero is never
	reaped            time.Time // when its exit is taken, at or after dies
	status            Status
	oom               bool
	onStop            time.Duration // from the stop signal to its end; negative ignores it
	onKill            time.Duration // negative is a process in uninterruptible sleep
	started           time.Time
	told              bool      // it has said that it is ready
	left              time.Time // how long it has to end after it said that it stops; zero when it has not
	asked             bool      // it was sent the stop signal
	killed            bool      // it was sent KILL
	leaves            int
}

// leftover is a process that a worker left behind.
type leftover struct {
	dies           time.Time
	onTerm, onKill time.Duration
}

type happened struct {
	at      time.Time
	event   Event
	effects []Effect
}

// world is one run: a core, a fake kernel, a fake clock, and what the laws need
// to be judged by, none of which is asked of the core.
type world struct {
	core   core
	policy Policy
	c      choices

	now       time.Time
	processes []*process
	left      []*leftover
	drains    map[int]time.Time
	lastPID   int
	serial    int
	grid      time.Duration // exits are seen at multiples of it: they coalesce
	calm      bool          // no reload, recycle, scale or hang
	scaled    bool          // the number wanted has changed
	reloaded  bool          // a reload ends every backoff
	healthy   bool          // from now on nothing fails any more
	history   []happened
	events    int

	begun     bool
	phase     Phase
	stopped   time.Time // when the stop began, zero before
	bySignal  bool      // that asked for it
	stopBound time.Time // when skep has to be gone, zero is none
	hardKill  bool      // a worker was sent KILL after the stop began
	sweepKill bool
	quit      bool
	code      int
	serve     bool
	retired   map[int]bool
	started   map[int]bool
	waits     map[int]time.Time // seats in backoff, since when
	ticks     int               // at this very moment
}

// broken is a law that does not hold.
type broken struct{ law string }

func (w *world) fail(format string, args ...any) { panic(broken{fmt.Sprintf(format, args...)}) }

// lateness is how late a tick may come.
const lateness = 5 * time.Millisecond

func pick[T any](c choices, from ...T) T { return from[c.below(len(from))] }

func somePolicy(c choices) Policy {
	p := Policy{
		Workers: 1 + c.below(4), Standby: pick(c, 0, 0, 1, 2), Serve: c.below(5) > 0, Restart: Restart(pick(c, 0, 0, 0, 1, 2, 3)),
		Delay: pick(c, 500*time.Millisecond, 10*time.Millisecond, 0), MaxDelay: pick(c, 30*time.Second, time.Second, 0),
		ResetAfter: pick(c, time.Minute, 0), StartLimit: pick(c, 5, 2, 1, 0),
		StartTimeout: pick(c, 2*time.Minute, time.Second, 0), ReadyAfter: pick(c, 0, 0, 10*time.Second),
		StartParallel: 1 + c.below(3), StartSpacing: pick(c, time.Second, 0, time.Minute),
		StopOn: []int{sigterm, sigint, sigquit}, StopSignal: pick(c, 0, 0, sigquit),
		StopTimeout: pick(c, 25*time.Second, 2*time.Second, 0), SweepTimeout: pick(c, 5*time.Second, 0),
		DrainTimeout: pick(c, 20*time.Second, 0), ReloadSignal: pick(c, sighup, sighup, 0),
		HangSignal: sigabrt, HangGrace: pick(c, 2*time.Second, 0),
	}
	if p.Serve && p.StopTimeout > 0 {
		p.DrainDelay = pick(c, 0, 0, time.Second)
	}
	if p.Workers == 3 {
		p.ServeStopTimeout = 10 * time.Second
	}
	if c.below(4) == 0 {
		p.SignalMap = map[int]int{sigusr1: sigusr2, sigwinch: 0, sigquit: sigterm}
	}
	if c.below(8) == 0 {
		p.RemapExit = map[int]bool{137: true, 3: true}
	}
	p.Jitter = func() float64 { return float64(c.below(256)) / 256 }
	return p
}

// run plays one world to its end. It returns a description of what broke, with
// everything that happened, or the empty string.
func (w *world) run(c choices, wrong func(*Supervisor) core) (failure string) {
	defer func() {
		switch what := recover().(type) {
		case nil:
		case broken:
			failure = what.law + "\n" + w.tell()
		default:
			failure = fmt.Sprintf("panic: %v\n%s\n%s", what, debug.Stack(), w.tell())
		}
	}()
	*w = world{
		history: w.history[:0], c: c, now: epoch, drains: map[int]time.Time{}, retired: map[int]bool{},
		started: map[int]bool{}, waits: map[int]time.Time{}, lastPID: 1,
	}
	w.policy = somePolicy(c)
	w.serve = w.policy.Serve
	w.grid = pick(c, time.Millisecond, 20*time.Millisecond, time.Second)
	w.calm = c.below(4) == 0
	s := New(w.policy)
	if wrong != nil {
		w.core = wrong(s)
	} else {
		w.core = s
	}
	if c.below(20) == 0 { // something may come before the beginning
		w.outside()
	}
	w.begun = true
	w.step(Begin{})
	for left := 5 + c.below(120); left > 0 && c.more() && !w.quit; left-- {
		until := w.now.Add(pick(c, 0, time.Millisecond, 20*time.Millisecond, 200*time.Millisecond, time.Second, 10*time.Second, time.Minute, time.Hour))
		w.advance(until)
		if !w.quit {
			w.outside()
		}
	}
	if !w.quit && w.stopped.IsZero() && c.below(2) == 0 {
		w.heal()
	}
	w.end()
	return ""
}

// outside makes one thing happen that neither the kernel nor the clock does.
func (w *world) outside() {
	seats := w.core.Seats()
	seat := -1
	if len(seats) > 0 {
		seat = seats[w.c.below(len(seats))].ID
	}
	kind := w.c.below(32)
	if w.calm && kind < 14 {
		kind += 14
	}
	switch {
	case kind < 4:
		w.step(Reload{Surge: w.c.below(3) > 0})
	case kind < 7:
		w.step(Recycle{Slot: w.c.below(6), Cause: pick(w.c, CauseMemory, CauseAge), Surge: w.c.below(2) == 0})
	case kind < 11:
		n := w.c.below(7)
		w.scaled = w.scaled || n > 0 && n != w.core.Wanted() && w.stopped.IsZero()
		serve := w.c.below(4) == 0
		w.serve = w.serve || serve && n > 0 && w.stopped.IsZero()
		w.step(Scale{Workers: n, Serve: serve})
	case kind < 14:
		w.step(Hung{Seat: seat})
	case kind < 16:
		sig := pick(w.c, sigusr1, sigusr2, sigwinch, sigttin, sigtstp, 40)
		if !w.calm {
			sig = pick(w.c, sig, sighup)
		}
		w.step(Signal{sig})
	case kind < 17:
		w.step(Signal{pick(w.c, sigterm, sigint, sigint, sigquit)})
	case kind < 18:
		w.step(Tick{}) // one too many
	case kind < 19:
		w.step(Exited{PID: 40 + w.c.below(9)}) // an orphan's
	case kind < 20:
		w.step(BecameReady{PID: pick(w.c, 0, 40, 41)})
	case kind < 21:
		w.step(Drained{Seat: pick(w.c, seat, 1000)})
	case kind < 22:
		w.step(pick[Event](w.c, Started{Seat: seat, PID: 50}, StartFailed{Seat: seat, Code: 126}, Recycle{Slot: 99}, Hung{Seat: 1000}))
	case kind < 25:
		for _, p := range w.processes { // somebody kills a worker
			if p.seat == seat && p.dies.IsZero() {
				w.kill(p, Status{Signal: sigkill}, 0)
			}
		}
	case kind < 27:
		for _, p := range w.processes { // it wedges
			if p.seat == seat {
				p.onStop = -1
				p.onKill = pick[time.Duration](w.c, 0, -1)
			}
		}
	case kind < 29 && !w.calm:
		w.leave(seat)
	case kind < 30:
		w.die(seat)
	}
	w.childless()
}

// advance lets the kernel and the clock do what they do until then.
func (w *world) advance(until time.Time) {
	for n, from := 0, w.now; !w.quit; n++ {
		if n > 2000 {
			if d := w.now.Sub(from); d < 100*time.Millisecond {
				w.fail("a storm: 2000 events in %v", d)
			}
			return // it goes on like this, and nothing new comes of it
		}
		next, do := w.next()
		if do == nil || next.After(until) {
			break
		}
		if next.After(w.now) {
			w.now, w.ticks = next, 0
		}
		do()
		if !w.quit {
			w.childless()
		}
	}
	if until.After(w.now) && !w.quit {
		w.now, w.ticks = until, 0
	}
}

// next is what happens next, and when.
func (w *world) next() (at time.Time, do func()) {
	consider := func(t time.Time, f func()) {
		if !t.IsZero() && (do == nil || t.Before(at)) {
			at, do = t, f
		}
	}
	for _, p := range w.processes {
		consider(p.reaped, func() { w.reap(p) })
		if !p.told && p.dies.IsZero() {
			consider(p.ready, func() {
				p.told = true
				w.step(BecameReady{PID: p.pid})
			})
		}
	}
	for i, l := range w.left {
		consider(l.dies, func() { w.left = append(w.left[:i:i], w.left[i+1:]...) })
	}
	for _, seat := range w.core.Seats() {
		if t, ok := w.drains[seat.ID]; ok {
			consider(t, func() {
				delete(w.drains, seat.ID)
				w.step(Drained{Seat: seat.ID})
			})
		}
	}
	if t, ok := w.core.Deadline(); ok {
		if w.ticks == 0 && t.After(w.now) {
			t = t.Add(time.Duration(w.c.below(2)) * lateness)
		}
		consider(t, func() {
			w.ticks++
			if w.ticks > 4 {
				w.fail("a tick at the deadline makes no progress")
			}
			w.step(Tick{})
		})
	}
	return at, do
}

func (w *world) childless() {
	if len(w.processes) == 0 && len(w.left) == 0 {
		w.step(Childless{})
	}
}

// kill ends a process after d.
func (w *world) kill(p *process, status Status, d time.Duration) {
	dies := w.now.Add(d)
	if !p.dies.IsZero() && !dies.Before(p.dies) {
		return
	}
	p.dies, p.status = dies, status
	p.reaped = dies.Truncate(w.grid).Add(w.grid)
	if w.healthy {
		p.reaped = dies
	}
}

func (w *world) reap(p *process) {
	for i, other := range w.processes {
		if other == p {
			w.processes = append(w.processes[:i:i], w.processes[i+1:]...)
		}
	}
	for range p.leaves {
		w.left = append(w.left, &leftover{
			onTerm: pick(w.c, 0, time.Second, -1), onKill: pick[time.Duration](w.c, 0, 0, 0, -1),
		})
	}
	w.step(Exited{PID: p.pid, Status: p.status, OOM: p.oom})
}

// answer is what the kernel says to a Start.
func (w *world) answer(start Start) Event {
	if !w.healthy && w.c.below(12) == 0 {
		return pick[Event](w.c,
			StartFailed{Seat: start.Seat, Code: 126, Err: "resource temporarily unavailable", Transient: true},
			StartFailed{Seat: start.Seat, Code: 127, Err: "no such file or directory"})
	}
	// As the kernel does: the next free number, around a small circle.
	for used := true; used; {
		w.lastPID = 2 + (w.lastPID-1)%31
		used = false
		for _, p := range w.processes {
			used = used || p.pid == w.lastPID
		}
	}
	w.serial++
	p := &process{pid: w.lastPID, seat: start.Seat, serial: w.serial, started: w.now}
	w.processes = append(w.processes, p)
	if w.healthy {
		p.ready = w.now.Add(10 * time.Millisecond)
		return Started{Seat: start.Seat, PID: p.pid}
	}
	if d := pick(w.c, time.Millisecond, 100*time.Millisecond, 3*time.Second, -1); d >= 0 {
		p.ready = w.now.Add(d)
	}
	p.onStop = pick(w.c, 0, 0, 100*time.Millisecond, 5*time.Second, -1)
	p.onKill = pick[time.Duration](w.c, 0, 0, time.Millisecond, 0, 0, 0, 0, 0, 0, 0, 0, -1)
	p.leaves = pick(w.c, 0, 0, 0, 1)
	if d := pick(w.c, -1, -1, -1, 0, time.Millisecond, time.Second, 20*time.Second, 2*time.Minute); d >= 0 {
		w.kill(p, pick(w.c, Status{}, Status{Code: 3}, Status{Signal: 11}, Status{Signal: sigkill}), d)
		p.oom = p.status.Signal == sigkill
	}
	return Started{Seat: start.Seat, PID: p.pid}
}

// step hands one event to the core, carries its effects out, answers its
// starts, and looks whether every law holds.
func (w *world) step(ev Event) {
	for ev != nil {
		w.events++
		before := w.stopped
		if sig, ok := ev.(Signal); ok && w.stopped.IsZero() && w.stops(sig.Signal) {
			w.begin(true)
		}
		if _, reload := ev.(Reload); reload || ev == Event(Signal{sighup}) {
			w.reloaded = true
		}
		seats, generation := w.core.Seats(), w.core.Generation()
		effects := w.core.Step(w.now, ev)
		if w.core.Generation() == generation && !slices.EqualFunc(seats, w.core.Seats(), sameMember) {
			w.fail("the seats have changed and the generation %d has not", generation)
		}
		w.history = append(w.history, happened{w.now, ev, effects})
		if w.stopped.IsZero() && w.core.Phase() != Running {
			w.begin(false)
		}
		if before.IsZero() && w.calm && w.stopped.IsZero() {
			w.undisturbed(ev, effects)
		}
		var answer Event
		for i, e := range effects {
			if w.quit {
				w.fail("an effect after Quit: %#v", e)
			}
			if a := w.carryOut(e, effects[i+1:], ev); a != nil {
				answer = a
			}
		}
		w.laws()
		ev = answer
	}
}

// sameMember tells whether two copies of a seat are the same for those who follow
// the generation.
func sameMember(a, b Seat) bool {
	return a.ID == b.ID && a.Slot == b.Slot && a.State == b.State && a.PID == b.PID
}

func (w *world) stops(sig int) bool {
	to, mapped := w.policy.SignalMap[sig]
	return (!mapped || to != 0) && (sig == sigterm || sig == sigint || sig == sigquit)
}

// begin notes when a stop began, and by when law 8 wants skep to be gone.
func (w *world) begin(bySignal bool) {
	w.stopped, w.bySignal = w.now, bySignal
	timeout := w.policy.StopTimeout
	if timeout == 0 && w.serve {
		timeout = w.policy.ServeStopTimeout
	}
	if timeout == 0 && !bySignal {
		timeout = w.policy.SweepTimeout
	}
	if timeout > 0 || !bySignal {
		w.stopBound = w.now.Add(timeout + time.Second)
	}
}

// leave lets the process in a seat say that it ends by itself, which it does, or
// lies; without one an orphan says so.
func (w *world) leave(seat int) {
	p := w.bySeat(seat)
	if p == nil {
		w.step(Leaving{PID: 40})
		return
	}
	before := w.stateOf(seat)
	w.step(Leaving{PID: p.pid})
	if (before == Ready || before == Standby) && w.stopped.IsZero() {
		if after := w.stateOf(seat); after != Draining {
			w.fail("seat %d is %v although its worker said that it stops", seat, after)
		}
		p.left = w.now.Add(w.patience())
	}
	if d := pick(w.c, 0, time.Second, -1); d >= 0 {
		w.kill(p, pick(w.c, Status{}, Status{Code: 3}), d)
	}
}

// die lets the kernel end the process in a seat, which takes its time; without one an
// orphan dies.
func (w *world) die(seat int) {
	p := w.bySeat(seat)
	if p == nil {
		w.step(Dying{PID: 40})
		return
	}
	if !p.dies.IsZero() {
		return
	}
	w.kill(p, Status{Signal: sigkill}, pick(w.c, 0, 20*time.Millisecond, time.Second))
	before := w.stateOf(seat)
	w.step(Dying{PID: p.pid})
	if after := w.stateOf(seat); (before == Ready || before == Standby) && w.stopped.IsZero() && after != Stopping {
		w.fail("seat %d is %v although its worker is dying", seat, after)
	}
}

func (w *world) stateOf(seat int) State {
	for _, st := range w.core.Seats() {
		if st.ID == seat {
			return st.State
		}
	}
	return Down
}

// patience is the time that a worker has that ends by itself.
func (w *world) patience() time.Duration {
	switch p := w.policy; {
	case p.StopTimeout > 0:
		return p.StopTimeout
	case w.serve && p.ServeStopTimeout > 0:
		return p.ServeStopTimeout
	default:
		return 1 << 60 // as long as it wants
	}
}

func (w *world) bySeat(id int) *process {
	for _, p := range w.processes {
		if p.seat == id {
			return p
		}
	}
	return nil
}

func (w *world) carryOut(e Effect, rest []Effect, ev Event) Event {
	switch e := e.(type) {
	case Start:
		if !w.stopped.IsZero() {
			w.fail("law 7: a start after the stop began")
		}
		if !w.begun {
			w.fail("a start before Begin")
		}
		if w.bySeat(e.Seat) != nil {
			w.fail("two processes in seat %d", e.Seat)
		}
		if w.retired[e.Seat] {
			w.fail("a start for the retired seat %d", e.Seat)
		}
		if len(rest) > 0 {
			w.fail("a start is not the last effect: %#v", rest)
		}
		w.started[e.Seat] = true
		starting := 0
		for _, st := range w.core.Seats() {
			if p := w.bySeat(st.ID); p != nil && st.State == Starting && !p.told && w.now.Before(p.started.Add(w.policy.StartSpacing)) {
				starting++
			}
		}
		if starting >= w.policy.StartParallel {
			w.fail("%d are starting already", starting)
		}
		if since, ok := w.waits[e.Seat]; ok {
			delete(w.waits, e.Seat)
			if shortest := w.shortestDelay(); w.now.Sub(since) < shortest && !w.reloaded {
				w.fail("backoff of %v, at least %v expected", w.now.Sub(since), shortest)
			}
		}
		return w.answer(e)
	case Kill:
		var p *process
		for _, other := range w.processes {
			if other.pid == e.PID {
				p = other
			}
		}
		if p == nil || p.seat != e.Seat || w.retired[e.Seat] {
			w.fail("law 2: a signal for %+v, which is not the process of that seat", e)
		}
		if _, forwarded := ev.(Signal); !p.left.IsZero() && w.stopped.IsZero() && !forwarded && w.now.Before(p.left) {
			w.fail("%s for process %d, which is ending by itself", signalName(e.Signal), p.pid)
		}
		w.signal(p, e)
	case Drain:
		if w.bySeat(e.Seat) == nil || w.retired[e.Seat] {
			w.fail("a drain of seat %d without a process", e.Seat)
		}
		d := pick(w.c, time.Second, 3*time.Second, -1, time.Minute)
		if w.healthy {
			d = time.Second
		}
		if d >= 0 {
			w.drains[e.Seat] = w.now.Add(d)
		}
	case Retire:
		if w.retired[e.Seat] {
			w.fail("seat %d retired twice", e.Seat)
		}
		if w.bySeat(e.Seat) != nil {
			w.fail("seat %d retired with its process", e.Seat)
		}
		w.retired[e.Seat] = true
	case Sweep:
		if _, gone := rest0(rest).(Quit); len(w.processes) > 0 && !gone {
			w.fail("a sweep while workers are left")
		}
		w.sweepKill = w.sweepKill || e.Signal == sigkill
		for _, l := range w.left {
			d := l.onTerm
			if e.Signal == sigkill {
				d = l.onKill
			}
			if at := w.now.Add(d); d >= 0 && (l.dies.IsZero() || at.Before(l.dies)) {
				l.dies = at
			}
		}
	case Note:
		for _, a := range e.Attrs {
			switch a.Value.(type) {
			case int, string, time.Duration:
			default:
				w.fail("a note with a %T", a.Value)
			}
		}
	case Quit:
		w.quit, w.code = true, e.Code
		w.quitRight(ev)
	default:
		w.fail("an unknown effect %T", e)
	}
	return nil
}

// rest0 is the last of the effects that are not notes.
func rest0(rest []Effect) Effect {
	for i := len(rest) - 1; i >= 0; i-- {
		if _, note := rest[i].(Note); !note {
			return rest[i]
		}
	}
	return nil
}

// shortestDelay is the least backoff that the policy allows.
func (w *world) shortestDelay() time.Duration {
	d := w.policy.Delay
	if w.policy.MaxDelay > 0 {
		d = min(d, w.policy.MaxDelay)
	}
	return max(d, time.Millisecond)
}

func (w *world) longestDelay() time.Duration {
	d := w.policy.MaxDelay
	if d == 0 {
		d = w.policy.Delay
	}
	return max(d+d/10, 10*time.Millisecond)
}

func (w *world) signal(p *process, e Kill) {
	if !w.stopped.IsZero() && e.Signal == sigkill {
		w.hardKill = true
	}
	switch e.Signal {
	case sigkill:
		if !e.Tree {
			w.fail("KILL for one process and not its tree")
		}
		p.killed = true
		if p.onKill >= 0 {
			w.kill(p, Status{Signal: sigkill}, p.onKill)
		}
	case sigterm, sigint, sigquit, sigabrt:
		p.asked = true
		if p.onStop >= 0 {
			w.kill(p, pick(w.c, Status{}, Status{Signal: e.Signal}, Status{Code: 3}), p.onStop)
		}
	}
}

// undisturbed is the law that one bad worker never disturbs the others: in a
// run without reload, recycle, scale and hang nobody is drained, and only a
// start that takes too long is ended.
func (w *world) undisturbed(ev Event, effects []Effect) {
	for _, e := range effects {
		switch e := e.(type) {
		case Drain:
			w.fail("seat %d drains although nobody asked for it", e.Seat)
		case Kill:
			_, signal := ev.(Signal)
			_, tick := ev.(Tick)
			p := w.bySeat(e.Seat)
			if p == nil {
				continue // law 2 is judged elsewhere
			}
			if !signal && !(tick && w.policy.StartTimeout > 0 && (!p.told || p.asked)) {
				w.fail("seat %d is disturbed", e.Seat)
			}
		}
	}
}

// laws looks whether everything holds that has to hold after every step.
func (w *world) laws() {
	phase := w.core.Phase()
	if phase < w.phase {
		w.fail("phase %v after %v", phase, w.phase)
	}
	if phase == Sweeping && w.phase < Sweeping && w.stopBound.IsZero() {
		w.stopBound = w.now.Add(w.policy.SweepTimeout + time.Second)
	}
	w.phase = phase
	at, timed := w.core.Deadline()
	if w.quit {
		if timed || phase != Ended {
			w.fail("after Quit: phase %v, deadline %v", phase, timed)
		}
		return
	}
	if !w.stopBound.IsZero() && w.now.After(w.stopBound) {
		w.fail("law 8: the stop has taken %v", w.now.Sub(w.stopped))
	}
	var count [Failed + 1]int
	seats := w.core.Seats()
	ids := make(map[int]bool, len(seats))
	placed, intact := 0, true
	for _, st := range seats {
		count[st.State]++
		if ids[st.ID] || w.retired[st.ID] {
			w.fail("seat %d is there twice or retired", st.ID)
		}
		ids[st.ID] = true
		p := w.bySeat(st.ID)
		asked := st.State == Starting && st.PID == 0
		switch {
		case p != nil && p.pid == st.PID && st.State.live():
			placed++
		case asked || p != nil && st.PID == 0 && st.State == Starting:
			intact = false // its start is being answered
			if p != nil {
				placed++
			}
		case p == nil && st.PID == 0 && !st.State.live():
		default:
			w.fail("seat %+v does not match the process %+v", st, p)
		}
		w.backoff(st)
	}
	if placed != len(w.processes) {
		w.fail("%d processes, of which %d have a seat", len(w.processes), placed)
	}
	for id := range w.started {
		if !ids[id] && !w.retired[id] {
			w.fail("seat %d went without Retire", id)
		}
	}
	if phase != Running {
		if len(w.processes) == 0 && !timed {
			w.fail("nothing runs and nothing is waited for")
		}
		return
	}
	allowed := w.core.Wanted() + w.policy.Standby + 1
	if n := count[Starting] + count[Ready] + count[Standby]; n > allowed {
		w.fail("%d workers, at most %d allowed", n, allowed)
	}
	if n := len(w.processes); n > allowed && !w.scaled {
		w.fail("%d processes, at most %d allowed", n, allowed)
	}
	if count[Ready] > w.core.Wanted() {
		w.fail("%d workers serve, %d are wanted", count[Ready], w.core.Wanted())
	}
	if count[Ready] < w.core.Wanted() && count[Standby] > 0 {
		w.fail("a spare waits although a worker is missing")
	}
	if w.begun && intact && !timed && (count[Down] > 0 || len(w.processes) == 0) {
		w.fail("a worker waits for ever")
	}
	_ = at
}

// backoff looks that no seat waits longer than the policy allows.
func (w *world) backoff(st Seat) {
	since, waits := w.waits[st.ID]
	switch {
	case st.State == Backoff && (!waits || st.Since != since):
		w.waits[st.ID] = st.Since
	case st.State == Backoff:
		if d := w.now.Sub(since); d > w.longestDelay()+lateness && w.ticks > 0 {
			w.fail("backoff of %v, at most %v expected", d, w.longestDelay())
		}
	}
}

// quitRight is the law of the exit code, and that nobody is left unkilled.
func (w *world) quitRight(ev Event) {
	if len(w.processes) > 0 || len(w.left) > 0 {
		if _, tick := ev.(Tick); !tick {
			w.fail("it ends although processes are left, for %#v", ev)
		}
	}
	for _, p := range w.processes {
		if !p.killed {
			w.fail("it ends although process %d was not killed", p.pid)
		}
	}
	if len(w.left) > 0 && !w.sweepKill {
		w.fail("it ends although what is left was not killed")
	}
	code := w.code
	want := []int{0}
	switch {
	case w.bySignal && w.serve && (w.hardKill || len(w.processes) > 0):
		want = []int{137}
	case w.bySignal && w.serve:
	case len(w.processes) > 0:
		return // it cannot know
	default:
		// What some worker ended with, or the signal when there was none.
		want = append(want, 124, 126, 127, 128+sigterm, 128+sigint, 128+sigquit, 128+sigabrt, 128+11, 137, 3)
	}
	for _, ok := range want {
		if code == ok || w.policy.RemapExit[ok] && code == 0 {
			return
		}
	}
	w.fail("it ends with %d, want one of %v", code, want)
}

// heal lets everything go well from now on: what is wanted has to come true,
// and a reload has to replace every worker.
func (w *world) heal() {
	w.calm = false
	w.settleDown()
	if w.quit || !w.stopped.IsZero() {
		return
	}
	w.wantWhole()
	old := make(map[int]bool)
	for _, p := range w.processes {
		old[p.serial] = true
	}
	w.step(Reload{Surge: w.c.below(2) == 0})
	w.settleDown()
	if w.quit || !w.stopped.IsZero() {
		w.fail("a reload ended skep")
	}
	w.wantWhole()
	for _, p := range w.processes {
		if w.serve && old[p.serial] {
			w.fail("process %d was not replaced by the reload", p.pid)
		}
	}
	for _, st := range w.core.Seats() {
		if w.serve && st.State == Failed {
			w.fail("slot %d was not started by the reload", st.Slot)
		}
	}
}

func (w *world) settleDown() {
	w.healthy = true
	for _, p := range w.processes {
		p.onStop, p.onKill, p.leaves = 0, 0, 0
		if p.dies.IsZero() && p.ready.IsZero() {
			p.ready = w.now
		}
		if p.killed {
			w.kill(p, Status{Signal: sigkill}, 0)
		}
		if !p.left.IsZero() {
			w.kill(p, Status{}, 0)
		}
	}
	for _, st := range w.core.Seats() {
		if st.State == Draining {
			w.drains[st.ID] = w.now
		}
	}
	w.advance(w.now.Add(time.Hour))
}

func (w *world) wantWhole() {
	whole := w.core.Wanted() + w.policy.Standby
	serving, spare, failed := 0, 0, 0
	for _, st := range w.core.Seats() {
		switch st.State {
		case Ready:
			serving++
		case Standby:
			spare++
		case Failed:
			failed++
		case Down, Starting, Draining, Stopping, Killing, Backoff:
			w.fail("an hour of peace, and seat %d of slot %d is still %v", st.ID, st.Slot, st.State)
		}
	}
	if w.policy.Restart == RestartAuto || w.policy.Restart == RestartAlways {
		if serving+spare+failed != whole {
			w.fail("%d serve, %d spare, %d failed, want %d in all", serving, spare, failed, whole)
		}
	}
}

// end asks for a stop if none has begun, and sees it through.
func (w *world) end() {
	for range 3 {
		if !w.quit {
			w.step(Signal{sigterm})
			w.childless()
		}
	}
	if w.stopBound.IsZero() {
		// There is no deadline: as with tini, it is for the workers to end.
		for _, p := range w.processes {
			p.onStop, p.onKill = 0, 0
		}
		if !w.quit {
			w.step(Signal{sigterm})
			w.childless()
		}
		for _, p := range w.processes {
			w.kill(p, Status{Signal: sigterm}, 0)
		}
	}
	w.advance(w.now.Add(time.Hour))
	if !w.quit {
		w.fail("an hour after the stop it has not ended")
	}
	for _, ev := range []Event{Tick{}, Childless{}, Signal{sigint}, Begin{}, Reload{}, Scale{Workers: 3}, Exited{PID: 2}, BecameReady{PID: 2}} {
		w.step(ev)
	}
}

// tell writes down what happened.
func (w *world) tell() string {
	var b strings.Builder
	p := w.policy
	p.Jitter = nil
	fmt.Fprintf(&b, "policy %+v\n", p)
	for _, h := range w.history {
		fmt.Fprintf(&b, "%14v %-12s %+v\n", h.at.Sub(epoch), strings.TrimPrefix(fmt.Sprintf("%T", h.event), "supervise."), h.event)
		for _, e := range h.effects {
			if _, note := e.(Note); !note {
				fmt.Fprintf(&b, "%28s %s%+v\n", "→", strings.TrimPrefix(fmt.Sprintf("%T", e), "supervise."), e)
			}
		}
	}
	if w.core != nil {
		fmt.Fprintf(&b, "phase %v, wanted %d", w.core.Phase(), w.core.Wanted())
		for _, st := range w.core.Seats() {
			fmt.Fprintf(&b, ", seat %d in slot %d %v (pid %d)", st.ID, st.Slot, st.State, st.PID)
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}
