package initd

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/launch"
	"skep/prestart"
	"skep/prestart/dir"
	"skep/prestart/env"
	"skep/prestart/envfile"
	"skep/prestart/lock"
	"skep/prestart/wait"
	"skep/reaper"
)

// before carries out what the machine of the steps before the start decides.
type before struct {
	l       *loop
	machine *prestart.Machine
	pid     int           // of the step that runs, 0 for none
	last    int           // of the step that ran last
	file    *envfile.File // what that step hands over
	vars    []string      // what the steps have handed over so far
	pending *lock.Pending // the lock that is being taken
	held    *lock.Lock    // the lock that is held
}

// newBefore plans the steps, or returns nil when there are none to run. It reads
// the folder of steps and belongs before the loop.
func newBefore(l *loop) (*before, error) {
	o := &l.o.Prestart
	if o.Skip {
		return nil, nil
	}
	files, skipped, err := dir.List(o.Dir, o.DirGiven)
	if err != nil {
		return nil, err
	}
	waits := make([]prestart.Step, len(o.Waits))
	for i, target := range o.Waits {
		waits[i] = wait.Step(target, o.WaitTimeout, l.o.LogFormat, l.o.LogLevel)
		waits[i].Path = l.exe
	}
	steps := prestart.Plan(waits, o.Steps, files, o.Timeout, o.Retries)
	l.early = append(l.early, skipped...)
	if len(steps) == 0 {
		return nil, nil
	}
	if isTerminal(0) && !o.Only {
		l.early = append(l.early, "the steps before the start are not run for a command on a terminal; skep prestart runs them")
		return nil, nil
	}
	stop := l.o.Policy.StopTimeout
	if stop == 0 {
		stop = prestart.DefaultStopTimeout
	}
	return &before{l: l, machine: prestart.New(prestart.Config{
		Steps: steps, Lock: o.LockFile != "", Key: o.Key != "", StopTimeout: stop,
	})}, nil
}

func (b *before) begin() { b.step(prestart.Begin{}) }

func (b *before) step(ev prestart.Event) {
	effects := b.machine.Step(time.Now(), ev)
	for len(effects) > 0 {
		e := effects[0]
		effects = effects[1:]
		if answer := b.apply(e); answer != nil {
			effects = append(effects, b.machine.Step(time.Now(), answer)...)
		}
	}
}

func (b *before) apply(e prestart.Effect) (answer prestart.Event) {
	l := b.l
	switch e := e.(type) {
	case prestart.Run:
		return b.run(e.Step)
	case prestart.Signal:
		_ = l.table.Signal(b.pid, e.Sig, l.o.KillGroup)
	case prestart.KillTree:
		if l.table.Has(b.pid) {
			l.table.SignalTree(b.pid, int(unix.SIGKILL))
		} else {
			l.table.SignalLeft(l.self, b.last, int(unix.SIGKILL))
		}
	case prestart.TakeLock:
		b.pending = lock.Take(l.o.Prestart.LockFile, l.o.Prestart.Key)
		events := b.pending.Events()
		l.background(func() {
			for ev := range events {
				l.reports <- func() { b.lockEvent(ev) }
			}
		})
	case prestart.WriteStamp:
		written := b.held.Stamp(b.vars)
		l.offload(func() func() {
			err := <-written
			return func() {
				if err != nil {
					b.step(prestart.StampFailed{Err: err.Error()})
				} else {
					b.step(prestart.Stamped{})
				}
			}
		})
	case prestart.ReleaseLock:
		if b.pending != nil {
			b.pending.Abandon()
		}
		b.held.Release(e.Done)
		b.held = nil
	case prestart.Note:
		level := logger.Info
		switch e.Level() {
		case prestart.Warn:
			level = logger.Warn
		case prestart.Error:
			level = logger.Error
		case prestart.Info:
		}
		l.log.Log(level, e.String())
	case prestart.Finished:
		b.finished(e)
	}
	return nil
}

func (b *before) lockEvent(ev lock.Event) {
	if b.l.before != b {
		if taken, ok := ev.(lock.Taken); ok {
			taken.Lock.Release(false) // the stop came first
		}
		return
	}
	switch ev := ev.(type) {
	case lock.Waiting:
		b.l.log.Log(logger.Info, ev.String())
	case lock.Taken:
		b.pending, b.held = nil, ev.Lock
		b.vars = append(b.vars, ev.Vars...)
		b.step(prestart.LockTaken{Done: ev.Done})
	case lock.Failed:
		b.pending = nil
		b.step(prestart.LockFailed{Err: ev.Err.Error()})
	}
}

// run starts one step.
func (b *before) run(step prestart.Step) prestart.Event {
	l := b.l
	failed := func(err error) prestart.Event {
		code := ExitOwnFault
		var cannot *launch.StartError
		var missing *launch.LookPathError
		switch {
		case errors.As(err, &missing):
			code = launch.ExitCode(err)
		case errors.As(err, &cannot) && !cannot.Transient():
			code = cannot.ExitCode()
		}
		b.closeFile()
		return prestart.StartFailed{Code: code, Err: err.Error()}
	}
	environ := environment(env.Merge(l.env, b.vars), nil)
	c := reaper.Command{Command: launch.Command{Path: step.Path, Argv: step.Argv, Dir: l.dir, Files: []uintptr{0, 1, 2}, Terminal: -1, User: l.user}}
	if step.Kind != prestart.Wait {
		options := envfile.Options{}
		if l.user != nil {
			options = envfile.Options{Switch: true, UID: int(l.user.UID), GID: int(l.user.GID)}
		}
		var err error
		if b.file, err = envfile.Create(options); err != nil {
			return failed(err)
		}
		if inherit := b.file.Inherit(); inherit != nil {
			c.Files = append(c.Files, inherit.Fd())
		}
		environ = env.Merge(environ, []string{envfile.Variable + "=" + b.file.Path(firstFD)})
	}
	if file := b.held.File(); file != nil {
		c.Files = append(c.Files, file.Fd())
	}
	c.Env = environ
	if c.Path == "" {
		var err error
		if c.Path, err = launch.LookPathIn(l.dir, c.Argv[0], variable(environ, "PATH")); err != nil {
			return failed(err)
		}
	}
	if step.Kind == prestart.Wait {
		c.User = nil // it is skep itself that waits
	}
	p, err := l.table.Start(c)
	if err != nil {
		return failed(err)
	}
	b.pid, b.last = p.PID, p.PID
	l.childless = false
	return prestart.Started{PID: p.PID}
}

func (b *before) exited(e reaper.Exit) {
	if e.PID != b.pid {
		return
	}
	ev := prestart.Exited{Code: e.Status.Code, Signal: e.Status.Signal}
	if b.file != nil && e.Status.Success() {
		vars, err := b.file.Read()
		if err != nil {
			ev.Err = err.Error()
		} else {
			b.vars = append(b.vars, vars...)
		}
	}
	b.closeFile()
	b.pid = 0
	b.step(ev)
}

func (b *before) closeFile() {
	if b.file != nil {
		_ = b.file.Close() // at worst an empty file is left in a memory file system
		b.file = nil
	}
}

// heed tells the machine every signal that has arrived. It comes before exits
// are taken: a step that ended well after a stop was asked for would otherwise
// be followed by another one, or by a worker (law 7).
func (l *loop) heed() {
	for l.before != nil {
		select {
		case sig := <-l.signals.Other:
			l.signal(sig)
		default:
			return
		}
	}
}

// signal passes a signal on to the step that runs; a stop ends the steps.
func (b *before) signal(sig int) {
	p := &b.l.o.Policy
	send := sig
	if to, mapped := p.SignalMap[sig]; mapped {
		if to == 0 {
			return
		}
		send = to
	}
	if slices.Contains(p.StopOn, sig) {
		b.step(prestart.Stop{Signal: send})
		return
	}
	_ = b.l.table.Signal(b.pid, send, b.l.o.KillGroup)
}

// finished goes on to the workers, or ends skep.
func (b *before) finished(e prestart.Finished) {
	l := b.l
	l.before = nil
	abandon := func(end supervise.Abandon, why error) {
		if why != nil {
			l.log.Log(logger.Error, why.Error(), logger.Field{Key: "next", Value: "no worker is started, ending"},
				logger.Field{Key: "exit", Value: end.Code})
		}
		l.sup = supervise.New(l.o.Policy)
		l.step(end)
	}
	if e.Code != 0 || e.Stopped || l.o.Prestart.Only {
		abandon(supervise.Abandon{Code: e.Code, By: e.By}, nil)
		return
	}
	l.env = env.Merge(l.env, b.vars)
	path, err := launch.LookPathIn(l.dir, l.o.Command[0], variable(l.env, "PATH"))
	if err != nil {
		abandon(supervise.Abandon{Code: launch.ExitCode(err)}, err)
		return
	}
	l.path = path
	if err := l.openListeners(); err != nil {
		abandon(supervise.Abandon{Code: ExitOwnFault}, err)
		return
	}
	l.startWorkers()
}
