package initd

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/internal/sys"
	"skep/launch"
	"skep/port"
	"skep/reaper"
)

// worker is what the loop knows of the process in a seat.
type worker struct {
	seat, slot, pid int
	thread          int  // the one that called listen, 0 when unknown
	listening       bool // on a held socket
	inspected       bool // for Options.Discover
	addrs           []port.Addr
	foreign         []port.Foreign
	awaited         *awaited // while it starts with passed descriptors
}

// start answers supervise.Start.
func (l *loop) start(e supervise.Start) supervise.Event {
	w := &worker{seat: e.Seat, slot: e.Slot}
	failed := func(err error) supervise.Event {
		var cannot *reaper.StartError
		if errors.As(err, &cannot) {
			if !cannot.Transient() && !l.sup.Serving() {
				return supervise.StartFailed{Seat: e.Seat, Code: l.cannotExecute(cannot), Err: err.Error()}
			}
			return supervise.StartFailed{Seat: e.Seat, Code: cannot.ExitCode(), Err: err.Error(), Transient: cannot.Transient()}
		}
		return supervise.StartFailed{Seat: e.Seat, Code: ExitOwnFault, Err: err.Error(), Transient: reaper.Transient(err)}
	}
	l.ports.Renew(e.Seat)
	c, spec, err := l.command(w)
	if err != nil {
		return failed(err)
	}
	ours, theirs := -1, -1
	if spec.Filter {
		if ours, theirs, err = sys.SocketPair(); err != nil {
			return failed(err)
		}
		defer unix.Close(theirs)
		spec.NotifyFD = len(c.Files)
		c.Files = append(c.Files, uintptr(theirs))
	}
	w.pid, err = l.spawn(c, spec)
	if err != nil {
		if ours >= 0 {
			_ = unix.Close(ours)
		}
		return failed(err)
	}
	l.workers[e.Seat] = w
	l.childless = false
	delete(l.stalls, e.Seat)
	if l.o.As != nil {
		l.print(l.o.As.Spawned(w.pid))
	}
	if ours >= 0 {
		l.intercept(w, ours)
	}
	return supervise.Started{Seat: e.Seat, PID: w.pid}
}

// cannotExecute says why a lone command could not be executed although it was
// found (its interpreter is missing, its format is wrong), and returns the code
// that skep ends with. The supervisor has no word for it: nothing was running.
func (l *loop) cannotExecute(err *reaper.StartError) (code int) {
	if l.o.As != nil {
		code, line := l.o.As.ExecFailure(sys.Errno(err))
		l.print(line)
		return code
	}
	l.log.Log(logger.Error, "cannot run "+l.o.Command[0]+": "+err.Err.Error())
	return err.ExitCode()
}

// spawn forks and executes, through the stub if something has to happen in
// between. A script without #! goes to the shell, as execvp(3) has it.
func (l *loop) spawn(c reaper.Command, spec launch.Spec) (pid int, err error) {
	if needed(spec) {
		// The stub does the rest in the new process, where PATH counts again.
		spec.Named = c.Argv[0] != c.Path
		if spec.Named { // its name is the caller's affair, and skep-wait is known by it
			c.Argv = append([]string{c.Path}, c.Argv...)
		}
		c.Path, c.Argv = launch.Command(l.exe, spec, c.Argv)
		defer blockSignals()()
	}
	pid, err = l.table.Start(c)
	if errors.Is(err, unix.ENOEXEC) {
		c.Argv = append([]string{"/bin/sh", c.Path}, c.Argv[1:]...)
		c.Path = "/bin/sh"
		pid, err = l.table.Start(c)
	}
	return pid, err
}

// blockSignals blocks every signal for this thread, and so for a process forked
// from it, until the returned function is called. The stub is a Go program with
// several threads: if one of them had taken a signal at the moment another
// executes the command, the signal would die with its thread. Blocked from birth
// it stays pending until the stub's last step unblocks it (launch.Main).
func blockSignals() (restore func()) {
	runtime.LockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old) != nil {
		return runtime.UnlockOSThread
	}
	return func() {
		_ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
		runtime.UnlockOSThread()
	}
}

// needed tells whether something has to happen between fork and exec.
func needed(s launch.Spec) bool {
	return s.Filter || s.ListenPID || s.User != nil || s.OOMScoreAdj != nil || s.KSM || !cleanMask
}

// cleanMask tells whether skep was started with no signal blocked. Otherwise
// children would inherit the mask, and the stub has to empty it.
var cleanMask = func() bool {
	var set unix.Sigset_t
	return unix.PthreadSigmask(unix.SIG_BLOCK, nil, &set) == nil && set == unix.Sigset_t{}
}()

// command makes the command line and environment of one worker.
func (l *loop) command(w *worker) (reaper.Command, launch.Spec, error) {
	o := &l.o
	spec := launch.Spec{User: l.user, KSM: o.KSM, Filter: l.sharing}
	c := reaper.Command{Path: l.path, Env: l.env, Dir: l.dir, Files: []uintptr{0, 1, 2}, Terminal: -1}
	if l.terminal && !l.sup.Serving() {
		c.Terminal = 0
	}
	if o.Boring {
		c.Argv = o.Command
		if o.As != nil {
			l.arrange(&c)
		}
		return c, spec, nil
	}
	if l.sup.Serving() {
		spec.OOMScoreAdj = l.oomScore
	}
	count := l.size.count()
	for _, arg := range o.Command {
		arg, err := Expand(arg, o.Listen, w.slot, count)
		if err != nil {
			return c, spec, err
		}
		c.Argv = append(c.Argv, arg)
	}
	env := map[string]string{
		"SKEP_SLOT":         strconv.Itoa(w.slot),
		"SKEP_WORKER_COUNT": strconv.Itoa(count),
	}
	switch {
	case o.ExportWorkers:
		env["WEB_CONCURRENCY"] = strconv.Itoa(count)
	case l.sup.Serving() || variable(l.env, "WEB_CONCURRENCY") != "":
		env["WEB_CONCURRENCY"] = "1" // skep has the copies; they shall not make more
	}
	if l.sup.Serving() {
		c.Leftovers = int(unix.SIGTERM)
	}
	if len(o.Listen) > 0 {
		var names []string
		for _, listen := range o.Listen {
			h, err := l.ports.Hold(w.seat, listen.Addr)
			if err == nil {
				err = l.ports.Listen(h)
			}
			if err != nil {
				return c, spec, err
			}
			c.Files = append(c.Files, uintptr(h.FD()))
			name := listen.Name
			if name == "" {
				name = "unknown" // as sd_listen_fds_with_names(3) has it
			}
			names = append(names, name)
		}
		env["LISTEN_FDS"] = strconv.Itoa(len(o.Listen))
		env["LISTEN_FDNAMES"] = strings.Join(names, ":")
		spec.ListenPID = true
	}
	c.Env = environment(l.env, env)
	return c, spec, nil
}

// inherited are the variables that belong to the process they were made for and
// must not reach another one.
var inherited = []string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "SKEP_ENV"}

// environment returns base without what must not be inherited, with set on top.
func environment(base []string, set map[string]string) []string {
	env := make([]string, 0, len(base)+len(set))
	for _, kv := range base {
		name, _, _ := strings.Cut(kv, "=")
		drop := false
		for _, each := range inherited {
			drop = drop || name == each
		}
		if _, replaced := set[name]; !replaced && !drop {
			env = append(env, kv)
		}
	}
	for _, name := range []string{"SKEP_SLOT", "SKEP_WORKER_COUNT", "WEB_CONCURRENCY", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if value, ok := set[name]; ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// variable returns the first value of a name, as getenv(3) does.
func variable(env []string, name string) string {
	for _, kv := range env {
		if value, found := strings.CutPrefix(kv, name+"="); found {
			return value
		}
	}
	return ""
}

// retire closes the seat's sockets: nothing will take its connections any more.
func (l *loop) retire(seat int) {
	delete(l.workers, seat)
	delete(l.draining, seat)
	delete(l.stalls, seat)
	l.steer.leave(seat)
}

// executable is the path by which a child finds this very program, even if the
// file has been replaced or removed. Without /proc it is the path that the
// kernel was given (getauxval(3), AT_EXECFN), made absolute while skep is still
// in the directory that it was started in.
func executable() string {
	const self = "/proc/self/exe"
	if _, err := os.Stat(self); err == nil {
		return self
	}
	const atExecFn = 31
	path := os.Args[0]
	vector, _ := unix.Auxv()
	for _, entry := range vector {
		if entry[0] == atExecFn {
			path = unix.BytePtrToString(*(**byte)(unsafe.Pointer(&entry[1])))
		}
	}
	if absolute, err := filepath.Abs(path); err == nil {
		return absolute
	}
	return path
}

func jitter() func() float64 {
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), uint64(os.Getpid())))
	return r.Float64
}

func signalName(n int) string { return sys.SignalName(n) }

// listenerTimeout bounds the time from the fork of a stub to its filter. A
// container that is starved of CPU can take long.
const listenerTimeout = 60 * time.Second

// intercept waits for the worker's filter and then serves it.
func (l *loop) intercept(w *worker, socket int) {
	l.background(func() {
		listener, err := port.ReceiveListener(socket, listenerTimeout)
		if err != nil {
			l.reports <- func() { l.cannotShare(w, err) }
			return
		}
		l.reports <- func() { l.step(supervise.Proven{}) }
		err = port.Intercept(l.ctx, listener, w.seat, l.asks)
		if err != nil && l.ctx.Err() == nil {
			l.reports <- func() {
				l.log.Log(logger.Warn, "cannot follow what a worker binds any more; its further ports are not shared",
					logger.Field{Key: "slot", Value: w.slot}, logger.Field{Key: "error", Value: err.Error()})
			}
		}
	})
}
