package config

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"skep/initd"
	"skep/initd/supervise"
	"skep/port"
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
	d := &draft{mode: "auto", startTimeout: 120 * time.Second, reloadSignal: int(unix.SIGHUP), given: make(map[string]given)}
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
		if len(values) == 0 {
			return nil
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
	d.given[s.Name] = given{source, values[len(values)-1]}
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
	// conflict is what is wrong with a value because of another one.
	conflict := func(name, value, cause string) {
		source := d.source(name)
		if g, ok := d.given[name]; ok {
			value = g.value
		}
		problems = append(problems, &Problem{Source: source, Value: value, Cause: cause})
	}

	for _, arg := range d.Command {
		if strings.Contains(arg, "{workers}") && d.mode != "init" {
			d.ExportWorkers = true
			if d.serving == "" {
				d.serving = "{workers}"
			}
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
		if asked != "" && asked != "1" {
			d.Warnings = append(d.Warnings, d.source("workers")+" has no meaning in mode init")
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
		conflict("min-workers", strconv.Itoa(d.Sizing.Min), "it is more than "+d.source("max-workers")+" "+strconv.Itoa(d.Sizing.Max))
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
		conflict("drain-delay", p.DrainDelay.String(), "it leaves nothing of "+d.source("stop-timeout")+" "+limit.String())
	}
	if d.Prestart.Key != "" && d.Prestart.LockFile == "" {
		conflict("prestart-key", d.Prestart.Key, "it needs --prestart-lock")
	}
	if d.Prestart.LockFile != "" {
		if err := lock.Check(d.Prestart.LockFile, d.Prestart.Key); err != nil {
			conflict("prestart-lock", d.Prestart.LockFile, err.Error())
		}
	}
	if p.Standby > 0 && d.Balance != initd.BalanceSteer {
		conflict("standby", strconv.Itoa(p.Standby), "only --balance steer can keep a worker aside")
	}
	if d.HangTimeout > 0 && d.Balance == initd.BalanceSingle {
		conflict("hang-timeout", d.HangTimeout.String(), "with --balance single no queue is a worker's own")
	}
	if d.Ready == initd.ReadyHTTP && !lone {
		why := ""
		tcp := len(d.Listen) == 0
		for _, l := range d.Listen {
			_, reached := initd.ProbeAddress(l.Addr)
			tcp = tcp || reached || l.Addr == (port.Addr{}) // that one could not be read, which has been said
		}
		switch {
		case d.Balance != initd.BalanceSteer:
			why = "only --balance steer can ask a worker of one's choice"
		case d.Share == initd.ShareNone:
			why = "with --share none the port is not skep's"
		case !tcp:
			why = "it needs a TCP address that IPv4 reaches in " + d.source("listen")
		}
		if why != "" {
			conflict("ready", "http:"+d.ReadyPath, why)
		}
	}
	switch {
	case d.Share == initd.ShareFDs && len(d.Listen) == 0:
		conflict("share", "fds", "it needs --listen")
	case d.Share == initd.ShareBind && len(d.Listen) > 0:
		conflict("share", "bind", "what "+d.source("listen")+" opens is passed as descriptors")
	}
	if g, ok := d.given["reload-signal"]; ok && slices.Contains(p.StopOn, d.reloadSignal) {
		conflict("reload-signal", g.value, "it begins a stop, as "+d.source("stop-on")+" says")
	}
	problems = append(problems, d.checkListeners()...)
	problems = append(problems, d.checkPlaceholders()...)
	if lone {
		d.Listen = nil // a held port would be in the way of the command that binds it
	}
	return problems
}

// source names the flag or the variable that a setting's value came from, and
// the flag when it is the default.
func (d *draft) source(name string) string {
	if g, ok := d.given[name]; ok {
		return g.source
	}
	return "--" + name
}

// checkListeners refuses addresses and names that are given twice: the second
// would be the first once more.
func (d *draft) checkListeners() (problems []error) {
	for i, l := range d.Listen {
		for _, before := range d.Listen[:i] {
			switch {
			case l.Addr == port.Addr{}: // it could not be read, which has been said
			case l.Addr == before.Addr:
				problems = append(problems, &Problem{d.source("listen"), l.Addr.String(), "it is given twice"})
			case l.Name != "" && l.Name == before.Name:
				problems = append(problems, &Problem{d.source("listen"), l.Name + "=" + l.Addr.String(), "the name is given twice"})
			}
		}
	}
	return problems
}

// quietReady is the age at which a worker that listens on nothing counts as
// ready: consumers of queues never listen.
const quietReady = 10 * time.Second

// checkPlaceholders refuses {fd} without a listener to fill it. Mode init fills
// nothing: braces are the command's own there, unless --listen shows that they
// were meant for skep.
func (d *draft) checkPlaceholders() (problems []error) {
	for _, arg := range d.Command {
		_, err := initd.Expand(arg, d.Listen, 0, 1)
		if d.mode == "init" {
			err = nil
			if len(d.Listen) > 0 && (strings.Contains(arg, "{fd}") || strings.Contains(arg, "{fd:")) {
				err = errors.New("mode init opens no listener")
			}
		}
		if err != nil {
			problems = append(problems, errors.New("cannot use the argument "+strconv.Quote(arg)+": "+err.Error()))
		}
	}
	return problems
}
