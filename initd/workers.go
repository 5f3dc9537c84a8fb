package initd

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
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
	probed          probed   // for --ready http
	status          string   // what it says of itself, by STATUS= of sd_notify(3)
}

// start answers supervise.Start.
func (l *loop) start(e supervise.Start) supervise.Event {
	w := &worker{seat: e.Seat, slot: e.Slot}
	failed := func(err error) supervise.Event {
		var cannot *launch.StartError
		if errors.As(err, &cannot) {
			if !cannot.Transient() && !l.sup.Serving() {
				return supervise.StartFailed{Seat: e.Seat, Code: l.cannotExecute(cannot), Err: err.Error()}
			}
			return supervise.StartFailed{Seat: e.Seat, Code: cannot.ExitCode(), Err: err.Error(), Transient: cannot.Transient()}
		}
		return supervise.StartFailed{Seat: e.Seat, Code: ExitOwnFault, Err: err.Error(), Transient: launch.Transient(err)}
	}
	l.ports.Renew(e.Seat)
	c, err := l.command(w)
	if err != nil {
		return failed(err)
	}
	p, err := l.table.Start(c)
	if err != nil {
		return failed(err)
	}
	w.pid = p.PID
	l.workers[e.Seat] = w
	l.childless = false
	l.cleared(e.Seat)
	if l.o.As != nil {
		l.print(l.o.As.Spawned(w.pid))
	}
	if p.NoOOMScore != nil {
		l.log.Log(logger.Warn, "cannot set oom_score_adj; the kernel may choose skep before its workers when memory ends",
			logger.Field{Key: "slot", Value: w.slot}, logger.Field{Key: "error", Value: p.NoOOMScore.Error()})
	}
	if c.Filter {
		l.intercept(w, p)
	}
	l.findProbe(w)
	return supervise.Started{Seat: e.Seat, PID: w.pid}
}

// cannotExecute says why a lone command could not be executed although it was
// found (its interpreter is missing, its format is wrong), and returns the code
// that skep ends with. The supervisor has no word for it: nothing was running.
func (l *loop) cannotExecute(err *launch.StartError) (code int) {
	if l.o.As != nil {
		code, line := l.o.As.ExecFailure(sys.Errno(err))
		l.print(line)
		return code
	}
	l.log.Log(logger.Error, "cannot run "+l.o.Command[0]+": "+err.Err.Error())
	return err.ExitCode()
}

// command makes the command line and environment of one worker.
func (l *loop) command(w *worker) (reaper.Command, error) {
	o := &l.o
	c := reaper.Command{Command: launch.Command{Path: l.path, Env: l.env, Dir: l.dir, Files: []uintptr{0, 1, 2}, Terminal: -1,
		User: l.user, Filter: l.sharing}}
	if l.terminal && !l.sup.Serving() {
		c.Terminal = 0
	}
	if o.Boring {
		c.Argv = o.Command
		if o.As != nil {
			l.arrange(&c)
		}
		return c, nil
	}
	if l.sup.Serving() {
		c.OOMScoreAdj = l.oomScore
	}
	count := l.size.count()
	for _, arg := range o.Command {
		arg, err := Expand(arg, o.Listen, w.slot, count)
		if err != nil {
			return c, err
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
				return c, err
			}
			c.Files = append(c.Files, uintptr(h.FD()))
			name := listen.Name
			if name == "" {
				name = "unknown" // as sd_listen_fds_with_names(3) has it
			}
			names = append(names, name)
		}
		if !takesURL(o.Command) {
			env["LISTEN_FDS"] = strconv.Itoa(len(o.Listen))
			env["LISTEN_FDNAMES"] = strings.Join(names, ":")
			c.OwnPID = append(c.OwnPID, "LISTEN_PID")
		}
	}
	if l.notify != nil {
		l.notifyEnvironment(env)
		if o.HangTimeout > 0 {
			c.OwnPID = append(c.OwnPID, "WATCHDOG_PID")
		}
	}
	c.Env = environment(l.env, env)
	return c, nil
}

// takesURL tells whether the command is given a descriptor as gunicorn and
// hypercorn have it, fd://{fd}. gunicorn adds those of LISTEN_FDS to that, and ends
// because it then has one twice.
func takesURL(command []string) bool {
	for _, arg := range command {
		if strings.Contains(arg, "fd://{fd") {
			return true
		}
	}
	return false
}

// inherited are the variables that belong to the process they were made for and
// must not reach another one.
var inherited = []string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "SKEP_ENV"}

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
	for _, name := range []string{"SKEP_SLOT", "SKEP_WORKER_COUNT", "WEB_CONCURRENCY", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC"} {
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
	l.cleared(seat)
	l.steer.leave(seat, l.ports.Held(seat)...)
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

// intercept serves the filter of a new worker, or acts on there being none.
func (l *loop) intercept(w *worker, p launch.Process) {
	l.background(func() {
		if p.NoListener != nil {
			l.reports <- func() { l.cannotShare(w, p.NoListener) }
			return
		}
		l.reports <- func() { l.step(supervise.Proven{}) }
		err := port.Intercept(l.ctx, p.Listener, w.seat, l.asks)
		if err != nil && l.ctx.Err() == nil {
			l.reports <- func() {
				l.log.Log(logger.Warn, "cannot follow what a worker binds any more; its further ports are not shared",
					logger.Field{Key: "slot", Value: w.slot}, logger.Field{Key: "error", Value: err.Error()})
			}
		}
	})
}
