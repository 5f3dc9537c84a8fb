package config

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"skep/initd"
	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/internal/sys"
	"skep/port"
	"skep/prestart/wait"
	"skep/prestart/words"
	"skep/sizing"
)

// Setting is one flag and the environment variable of the same meaning.
type Setting struct {
	// Name is the flag's name without dashes.
	Name string
	// Short is a one-letter name, or empty.
	Short string
	// Placeholder stands for the value in the help; empty for a switch.
	Placeholder string
	// Default is what holds when nothing is given, as the help shows it.
	Default string
	// Usage is one line for the help.
	Usage string
	// Repeat allows several values: the flag several times, one per line in the
	// environment.
	Repeat bool
	// Serving marks the settings that only make sense for a service, so that
	// --workers 1 with one of them is a service with one worker.
	Serving bool

	set func(*draft, string) error
}

// Switch tells whether the flag can stand without a value.
func (s Setting) Switch() bool { return s.Placeholder == "" }

// Variable is the environment variable of the setting: SKEP_STOP_TIMEOUT for
// --stop-timeout.
func (s Setting) Variable() string {
	return "SKEP_" + strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
}

// draft collects values; what depends on several of them is settled at the end.
type draft struct {
	initd.Options
	mode         string
	workers      string // "", "auto" or a number
	stopTimeout  *time.Duration
	startTimeout time.Duration
	alive        time.Duration
	serving      string // the first serving flag that was given
	reloadSignal int
	given        map[string]given // by the setting's name
}

// given is where a setting's value came from, and the last value as it was given.
type given struct{ source, value string }

func duration(at func(*draft) *time.Duration) func(*draft, string) error {
	return func(d *draft, s string) (err error) {
		*at(d), err = ParseDuration(s)
		return err
	}
}

func count(least int, at func(*draft) *int) func(*draft, string) error {
	return func(d *draft, s string) (err error) {
		*at(d), err = parseCount(s, least)
		return err
	}
}

func toggle(at func(*draft) *bool) func(*draft, string) error {
	return func(d *draft, s string) (err error) {
		*at(d), err = parseBool(s)
		return err
	}
}

// choice sets one of a few named values.
func choice[T any](at func(*draft) *T, names string, values ...T) func(*draft, string) error {
	list := strings.Split(names, "|")
	return func(d *draft, s string) error {
		for i, name := range list {
			if s == name {
				*at(d) = values[i]
				return nil
			}
		}
		return errors.New("want " + strings.Join(list[:len(list)-1], ", ") + " or " + list[len(list)-1])
	}
}

func signalNumber(s string) (int, error) {
	n, err := sys.ParseSignal(s)
	if err != nil {
		return 0, errors.New("want a signal such as TERM, RTMIN+3 or 15")
	}
	return n, nil
}

// heardSignal is signalNumber for signals that skep itself has to hear.
func heardSignal(s string) (int, error) {
	n, err := signalNumber(s)
	if err == nil && !initd.Catches(n) {
		err = errors.New("skep is never told of " + sys.SignalName(n))
	}
	return n, err
}

// Settings lists every flag in the order of the help.
func Settings() []Setting {
	return []Setting{
		{Name: "mode", Placeholder: "auto|init|serve", Default: "auto",
			Usage: "init: a plain init for one command; serve: several workers are wanted; auto: find out",
			set:   choice(func(d *draft) *string { return &d.mode }, "auto|init|serve", "auto", "init", "serve")},
		{Name: "workers", Short: "w", Placeholder: "N|auto", Default: "auto",
			Usage: "number of workers",
			set: func(d *draft, s string) error {
				d.workers = s
				if s == "auto" {
					return nil
				}
				_, err := parseCount(s, 1)
				if err != nil {
					return errors.New("want auto or a number from 1 to " + strconv.Itoa(maxCount))
				}
				return nil
			}},
		{Name: "min-workers", Placeholder: "N", Default: "1", Usage: "least number that auto may choose",
			set: count(1, func(d *draft) *int { return &d.Sizing.Min })},
		{Name: "max-workers", Placeholder: "N", Usage: "largest number that auto may choose",
			set: count(1, func(d *draft) *int { return &d.Sizing.Max })},
		{Name: "workers-per-cpu", Placeholder: "F", Default: "1", Usage: "CPU side of auto: CPUs × F, rounded up",
			set: func(d *draft, s string) error {
				m, err := sizing.ParseMilli(s)
				if err != nil || m <= 0 || m > 1000*maxCount {
					return errors.New("want a number over 0 such as 0.5, 1 or 2")
				}
				d.Sizing.WorkersPerCPU = m
				return nil
			}},
		{Name: "worker-memory", Placeholder: "SIZE|auto", Default: "auto", Usage: "what one worker needs; auto: learned from the first",
			set: func(d *draft, s string) (err error) {
				if s == "auto" {
					d.Sizing.WorkerMemory = 0
					return nil
				}
				d.Sizing.WorkerMemory, err = ParseSize(s)
				if err == nil && d.Sizing.WorkerMemory == 0 {
					err = errors.New("want auto or a size over 0 such as 128Mi")
				}
				return err
			}},
		{Name: "memory-target", Placeholder: "F", Default: "0.8", Usage: "share of the memory limit that may be planned for",
			set: func(d *draft, s string) error {
				m, err := sizing.ParseMilli(s)
				if err != nil || m <= 0 || m > 1000 {
					return errors.New("want a number over 0 and up to 1 such as 0.8")
				}
				d.Sizing.Target = m
				return nil
			}},
		{Name: "memory-reserve", Placeholder: "SIZE", Default: "0", Usage: "memory kept free beside the target",
			set: func(d *draft, s string) (err error) {
				d.Sizing.Reserve, err = ParseSize(s)
				return err
			}},
		{Name: "share", Placeholder: "auto|bind|fds|none", Default: "auto", Serving: true,
			Usage: "how workers share the port: bind replaces the socket they bind, fds passes descriptors",
			set: choice(func(d *draft) *initd.Share { return &d.Share }, "auto|bind|fds|none",
				initd.ShareAuto, initd.ShareBind, initd.ShareFDs, initd.ShareNone)},
		{Name: "listen", Placeholder: "[NAME=]ADDR", Repeat: true, Serving: true,
			Usage: "address that skep opens and passes from descriptor 3 on: :8000, [::1]:8000, unix:///run/app.sock",
			set:   setListen},
		{Name: "share-port", Placeholder: "N", Default: "any", Repeat: true, Serving: true,
			Usage: "share only these ports",
			set: func(d *draft, s string) error {
				n, err := parsePort(s)
				d.SharePorts = append(d.SharePorts, uint16(n))
				return err
			}},
		{Name: "balance", Placeholder: "steer|hash|single", Default: "steer", Serving: true,
			Usage: "steer: connections go to a free worker; hash: the kernel's choice; single: one socket for all",
			set: choice(func(d *draft) *initd.Balance { return &d.Balance }, "steer|hash|single",
				initd.BalanceSteer, initd.BalanceHash, initd.BalanceSingle)},
		{Name: "prestart", Placeholder: "CMD", Repeat: true, Usage: "step before the start; run once, in order",
			set: func(d *draft, s string) error {
				argv, err := words.Split(s)
				if err == nil && len(argv) == 0 {
					err = errors.New("want a command")
				}
				d.Prestart.Steps = append(d.Prestart.Steps, argv)
				return err
			}},
		{Name: "prestart-dir", Placeholder: "DIR", Default: "/etc/skep/prestart.d", Usage: "folder whose executables are steps too, in name order",
			set: func(d *draft, s string) error {
				d.Prestart.Dir, d.Prestart.DirGiven = s, true
				return nil
			}},
		{Name: "prestart-timeout", Placeholder: "TIME", Default: "0, none", Usage: "limit for each try of a step",
			set: duration(func(d *draft) *time.Duration { return &d.Prestart.Timeout })},
		{Name: "prestart-retries", Placeholder: "N", Default: "0", Usage: "how often a failed step is tried again",
			set: count(0, func(d *draft) *int { return &d.Prestart.Retries })},
		{Name: "wait", Placeholder: "URL", Repeat: true, Usage: "wait for tcp://HOST:PORT, http://HOST/PATH, unix:///PATH or file:///PATH before the steps",
			set: func(d *draft, s string) error {
				target, err := wait.Parse(s)
				d.Prestart.Waits = append(d.Prestart.Waits, target)
				return err
			}},
		{Name: "wait-timeout", Placeholder: "TIME", Default: "60s", Usage: "limit for each --wait",
			set: duration(func(d *draft) *time.Duration { return &d.Prestart.WaitTimeout })},
		{Name: "skip-prestart", Usage: "run no steps: an init container has done it",
			set: toggle(func(d *draft) *bool { return &d.Prestart.Skip })},
		{Name: "prestart-lock", Placeholder: "FILE", Usage: "lock on a shared volume that one replica at a time holds during the steps",
			set: func(d *draft, s string) error {
				d.Prestart.LockFile = s
				return nil
			}},
		{Name: "prestart-key", Placeholder: "KEY", Usage: "with --prestart-lock: run the steps once for this key, ever",
			set: func(d *draft, s string) error {
				d.Prestart.Key = s
				return nil
			}},
		{Name: "restart", Placeholder: "auto|always|on-failure|never", Default: "auto", Serving: true,
			Usage: "which ends of a worker are followed by a new start",
			set: choice(func(d *draft) *supervise.Restart { return &d.Policy.Restart }, "auto|always|on-failure|never",
				supervise.RestartAuto, supervise.RestartAlways, supervise.RestartOnFailure, supervise.RestartNever)},
		{Name: "restart-delay", Placeholder: "TIME", Default: "500ms", Usage: "delay before the first restart; doubles with each one that follows soon",
			set: duration(func(d *draft) *time.Duration { return &d.Policy.Delay })},
		{Name: "restart-max-delay", Placeholder: "TIME", Default: "30s", Usage: "longest delay between restarts",
			set: duration(func(d *draft) *time.Duration { return &d.Policy.MaxDelay })},
		{Name: "start-limit", Placeholder: "N", Default: "5", Usage: "deaths before ready in a row after which a slot is given up; 0 is none",
			set: count(0, func(d *draft) *int { return &d.Policy.StartLimit })},
		{Name: "start-timeout", Placeholder: "TIME", Default: "120s", Usage: "time to become ready; 0 is none",
			set: duration(func(d *draft) *time.Duration { return &d.startTimeout })},
		{Name: "ready", Placeholder: "auto|listen|notify|alive:TIME|http:PATH", Default: "auto", Serving: true,
			Usage: "when a worker counts as ready; notify: READY=1 of sd_notify(3); http: PATH answers 2xx or 3xx",
			set:   setReady},
		{Name: "hang-timeout", Placeholder: "TIME", Default: "0, only steer around it and report", Serving: true,
			Usage: "a worker that does not get on for this long while it has connections is ended",
			set:   duration(func(d *draft) *time.Duration { return &d.HangTimeout })},
		{Name: "hang-signal", Placeholder: "SIG", Default: "ABRT", Usage: "what a hung worker gets, shortly before KILL",
			set: func(d *draft, s string) (err error) {
				d.Policy.HangSignal, err = signalNumber(s)
				return err
			}},
		{Name: "standby", Placeholder: "N", Default: "0", Serving: true,
			Usage: "ready workers kept aside, one of which serves at once when another dies",
			set:   count(0, func(d *draft) *int { return &d.Policy.Standby })},
		{Name: "max-worker-memory", Placeholder: "SIZE", Usage: "replace a worker that holds more, gracefully", Serving: true,
			set: func(d *draft, s string) (err error) {
				d.MaxWorkerMemory, err = ParseSize(s)
				return err
			}},
		{Name: "max-worker-age", Placeholder: "TIME", Usage: "replace a worker that is older, give or take a tenth, gracefully", Serving: true,
			set: duration(func(d *draft) *time.Duration { return &d.MaxWorkerAge })},
		{Name: "reload-signal", Placeholder: "SIG|none", Default: "HUP", Usage: "signal that reloads the workers one by one",
			set: func(d *draft, s string) (err error) {
				d.reloadSignal = 0
				if s != "none" {
					d.reloadSignal, err = heardSignal(s)
				}
				return err
			}},
		{Name: "stop-on", Placeholder: "SIG,…", Default: "TERM,INT,QUIT", Usage: "signals that begin a stop",
			set: func(d *draft, s string) error {
				d.Policy.StopOn = nil
				for _, name := range strings.Split(s, ",") {
					if _, err := signalNumber(strings.TrimSpace(name)); err != nil {
						return errors.New("want signals such as TERM,INT,QUIT")
					}
					n, err := heardSignal(strings.TrimSpace(name))
					if err != nil {
						return err
					}
					d.Policy.StopOn = append(d.Policy.StopOn, n)
				}
				return nil
			}},
		{Name: "stop-signal", Placeholder: "SIG", Default: "as received", Usage: "what workers get on a stop",
			set: func(d *draft, s string) (err error) {
				d.Policy.StopSignal, err = signalNumber(s)
				return err
			}},
		{Name: "stop-timeout", Placeholder: "TIME", Default: "25s; a lone command: none", Usage: "from the stop signal to KILL",
			set: func(d *draft, s string) error {
				t, err := ParseDuration(s)
				d.stopTimeout = &t
				return err
			}},
		{Name: "drain-delay", Placeholder: "TIME", Default: "0", Usage: "on a stop keep serving this long first",
			set: duration(func(d *draft) *time.Duration { return &d.Policy.DrainDelay })},
		{Name: "signal-map", Placeholder: "A:B", Repeat: true, Usage: "pass on signal A as B; A:0 drops it",
			set: setSignalMap},
		{Name: "kill-mode", Placeholder: "process|group", Default: "process", Usage: "who gets forwarded signals",
			set: choice(func(d *draft) *bool { return &d.KillGroup }, "process|group", false, true)},
		{Name: "remap-exit", Placeholder: "CODE", Repeat: true, Usage: "exit code of skep that becomes 0",
			set: func(d *draft, s string) error {
				n, err := strconv.Atoi(s)
				if err != nil || n < 0 || n > 255 {
					return errors.New("want an exit code from 0 to 255")
				}
				if d.Policy.RemapExit == nil {
					d.Policy.RemapExit = make(map[int]bool)
				}
				d.Policy.RemapExit[n] = true
				return nil
			}},
		{Name: "pdeathsig", Placeholder: "SIG", Usage: "signal that skep gets when its own parent dies",
			set: func(d *draft, s string) (err error) {
				d.ParentDeath, err = signalNumber(s)
				return err
			}},
		{Name: "user", Placeholder: "UID[:GID]|NAME", Usage: "whom steps and workers run as",
			set: func(d *draft, s string) error {
				d.User = s
				if s == "" {
					return errors.New("want a user such as 1000, 1000:1000 or www-data")
				}
				return nil
			}},
		{Name: "ksm", Usage: "workers ask the kernel to merge equal pages", Serving: true,
			set: toggle(func(d *draft) *bool { return &d.KSM })},
		{Name: "export-workers", Usage: "one copy that keeps its own workers: the count goes to WEB_CONCURRENCY", Serving: true,
			set: toggle(func(d *draft) *bool { return &d.ExportWorkers })},
		{Name: "log-format", Placeholder: "text|json", Default: "text", Usage: "shape of skep's own lines on stderr",
			set: choice(func(d *draft) *logger.Format { return &d.LogFormat }, "text|json", logger.Text, logger.JSON)},
		{Name: "log-level", Placeholder: "debug|info|warning|error", Default: "info", Usage: "least weight of skep's own lines",
			set: func(d *draft, s string) error {
				l, ok := logger.ParseLevel(s)
				d.LogLevel = l
				if !ok {
					return errors.New("want debug, info, warning or error")
				}
				return nil
			}},
	}
}

func setListen(d *draft, s string) error {
	name, addr, err := port.ParseAddr(s)
	d.Listen = append(d.Listen, initd.Listen{Name: name, Addr: addr})
	return err
}

func setReady(d *draft, s string) error {
	how, value, found := strings.Cut(s, ":")
	t, err := ParseDuration(value)
	switch {
	case s == "auto":
		d.Ready = initd.ReadyAuto
	case s == "listen":
		d.Ready = initd.ReadyListen
	case s == "notify":
		d.Ready = initd.ReadyNotify
	case found && how == "alive" && err == nil && t > 0:
		d.Ready, d.alive = initd.ReadyAlive, t
	case found && how == "http" && strings.HasPrefix(value, "/"):
		if _, err := wait.Parse("http://localhost" + value); err != nil {
			return err
		}
		d.Ready, d.ReadyPath = initd.ReadyHTTP, value
	default:
		return errors.New("want auto, listen, notify, alive: with a time such as alive:2s, or http: with a path such as http:/healthz")
	}
	return nil
}

func setSignalMap(d *draft, s string) error {
	bad := errors.New("want A:B, two signals such as TERM:QUIT, or A:0")
	from, to, found := strings.Cut(s, ":")
	if _, err := signalNumber(from); !found || err != nil {
		return bad
	}
	a, err := heardSignal(from)
	if err != nil {
		return err
	}
	b := 0
	if to != "0" {
		if b, err = signalNumber(to); err != nil {
			return bad
		}
	}
	if d.Policy.SignalMap == nil {
		d.Policy.SignalMap = make(map[int]int)
	}
	d.Policy.SignalMap[a] = b
	return nil
}
