package config

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"skep/initd"
	"skep/initd/supervise"
	"skep/prestart/lock"
)

// Problem is one thing that a user got wrong.
type Problem struct {
	Source string // the flag with its dashes, or the variable
	Value  string
	Cause  string
}

func (p *Problem) Error() string {
	return "cannot use " + strconv.Quote(p.Value) + " for " + p.Source + ": " + p.Cause
}

// Input is what the command line and the environment say.
type Input struct {
	// Flags holds the values of each flag that was given, by name.
	Flags map[string][]string
	// Environ is the process's environment as os.Environ gives it.
	Environ []string
	// Command is what stands after the flags; none for prestart and plan.
	Command []string
	// NeedsCommand refuses an empty Command.
	NeedsCommand bool
}

// Build makes the options, or returns everything that is wrong, joined by line
// ends.
func Build(in Input) (initd.Options, error) {
	d := &draft{mode: "auto", startTimeout: 120 * time.Second, reloadSignal: int(unix.SIGHUP)}
	d.Command, d.Environ = in.Command, in.Environ
	d.Prestart.Dir, d.Prestart.WaitTimeout = "/etc/skep/prestart.d", 60*time.Second
	d.LogLevel = 1
	d.Policy = supervise.Policy{
		Delay: 500 * time.Millisecond, MaxDelay: 30 * time.Second, ResetAfter: 60 * time.Second,
		StartLimit: 5, StartSpacing: time.Second,
		StopOn:       []int{int(unix.SIGTERM), int(unix.SIGINT), int(unix.SIGQUIT)},
		SweepTimeout: initd.SweepTimeout, DrainTimeout: 30 * time.Second,
		HangSignal: int(unix.SIGABRT), HangGrace: 300 * time.Millisecond,
	}
	environ := make(map[string]string)
	for _, kv := range in.Environ {
		if name, value, ok := strings.Cut(kv, "="); ok {
			if _, twice := environ[name]; !twice {
				environ[name] = value
			}
		}
	}
	var problems []error
	for _, s := range Settings() {
		problems = append(problems, apply(d, s, in.Flags[s.Name], environ)...)
	}
	if in.NeedsCommand && len(in.Command) == 0 {
		problems = append(problems, errors.New("cannot start: no command given; see skep --help"))
	}
	problems = append(problems, d.settle(environ)...)
	return d.Options, errors.Join(problems...)
}

// apply sets one setting from the flag, or from the environment without one.
func apply(d *draft, s Setting, flags []string, environ map[string]string) (problems []error) {
	source, values := "--"+s.Name, flags
	if len(values) == 0 {
		text, ok := environ[s.Variable()]
		if !ok || text == "" {
			return nil
		}
		source, values = s.Variable(), []string{text}
		if s.Repeat {
			values = lines(text)
		}
	}
	if !s.Repeat {
		values = values[len(values)-1:]
	}
	for _, v := range values {
		if err := s.set(d, v); err != nil {
			problems = append(problems, &Problem{Source: source, Value: v, Cause: err.Error()})
		}
	}
	if s.Serving && d.serving == "" {
		d.serving = source
	}
	return problems
}

func lines(text string) (kept []string) {
	for _, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			kept = append(kept, line)
		}
	}
	return kept
}

// settle decides what depends on more than one setting.
func (d *draft) settle(environ map[string]string) (problems []error) {
	p := &d.Policy
	fail := func(text string) { problems = append(problems, errors.New(text)) }

	for _, arg := range d.Command {
		if strings.Contains(arg, "{workers}") {
			d.ExportWorkers = true
		}
	}
	asked := d.workers
	if text, ok := environ["WEB_CONCURRENCY"]; ok && asked == "" && text != "" && d.mode != "init" {
		if n, err := parseCount(text, 1); err == nil {
			d.Count, d.Insist = n, true
		} else {
			d.Warnings = append(d.Warnings, "ignoring WEB_CONCURRENCY="+strconv.Quote(text)+": "+err.Error())
		}
	}
	if n, err := strconv.Atoi(asked); err == nil {
		d.Count = n
	}
	lone := d.mode == "init" || d.mode == "auto" && asked == "1" && d.serving == ""
	d.Boring = lone
	switch {
	case lone:
		if d.serving != "" {
			d.Warnings = append(d.Warnings, d.serving+" has no meaning in mode init")
		}
		p.Workers, p.Restart = 1, supervise.RestartNever
	case d.ExportWorkers:
		p.Workers, p.Serve = 1, true
	case d.mode == "serve" || asked != "" || len(d.Listen) > 0:
		p.Serve = true
		p.Workers = max(d.Count, 1)
		d.Insist = true
	default:
		d.Discover = true
		p.Workers = 1
		d.Insist = d.Insist || len(d.SharePorts) > 0
	}
	d.Sizing.Workers = d.Count
	d.Sizing.ByHand = asked == "auto" || d.mode == "serve" && asked == ""
	_, kube := environ["KUBERNETES_SERVICE_HOST"]
	d.Sizing.Kubernetes = kube
	if d.Sizing.Max > 0 && d.Sizing.Min > d.Sizing.Max {
		fail("cannot use --min-workers " + strconv.Itoa(d.Sizing.Min) + ": it is more than --max-workers " + strconv.Itoa(d.Sizing.Max))
	}

	p.ReloadSignal = d.reloadSignal
	p.StartTimeout = d.startTimeout
	switch {
	case d.Ready == initd.ReadyAlive:
		p.ReadyAfter = d.alive
	case d.Ready == initd.ReadyAuto && p.Serve:
		p.ReadyAfter = quietReady
	}
	if d.stopTimeout != nil {
		p.StopTimeout = *d.stopTimeout
		if p.StopTimeout > 0 {
			p.SweepTimeout = p.StopTimeout
		}
	} else if !d.Boring {
		p.ServeStopTimeout = 25 * time.Second
	}
	limit := p.StopTimeout
	if limit == 0 {
		limit = p.ServeStopTimeout
	}
	if p.DrainDelay > 0 && limit > 0 && p.DrainDelay >= limit {
		fail("cannot use --drain-delay " + p.DrainDelay.String() + ": it leaves nothing of --stop-timeout " + limit.String())
	}
	if d.Prestart.Key != "" && d.Prestart.LockFile == "" {
		fail("cannot use --prestart-key " + strconv.Quote(d.Prestart.Key) + ": it needs --prestart-lock")
	}
	if d.Prestart.LockFile != "" {
		if err := lock.Check(d.Prestart.LockFile, d.Prestart.Key); err != nil {
			fail("cannot use --prestart-lock " + strconv.Quote(d.Prestart.LockFile) + ": " + err.Error())
		}
	}
	if d.Share == initd.ShareFDs && len(d.Listen) == 0 {
		fail("cannot use --share fds: it needs --listen")
	}
	return append(problems, d.checkPlaceholders()...)
}

// quietReady is the age at which a worker that listens on nothing counts as
// ready: consumers of queues never listen.
const quietReady = 10 * time.Second

// checkPlaceholders refuses {fd} without a listener to fill it.
func (d *draft) checkPlaceholders() (problems []error) {
	for _, arg := range d.Command {
		if _, err := initd.Expand(arg, d.Listen, 0, 1); err != nil {
			problems = append(problems, errors.New("cannot use the argument "+strconv.Quote(arg)+": "+err.Error()))
		}
	}
	return problems
}
