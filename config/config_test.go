package config

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"skep/initd"
	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/port"
	"skep/prestart/wait"
)

func build(t *testing.T, in Input) initd.Options {
	t.Helper()
	o, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	o.Environ = nil
	return o
}

// row is what one setting does.
type row struct {
	good string
	want func(*initd.Options)
	bad  string // none when every text is a good one
	more string // a second value, for the settings that can be repeated
	both func(*initd.Options)
}

func target(url string) wait.Target {
	t, err := wait.Parse(url)
	if err != nil {
		panic(err)
	}
	return t
}

func address(text string) port.Addr {
	_, a, err := port.ParseAddr(text)
	if err != nil {
		panic(err)
	}
	return a
}

// serves is what a number of workers or --mode serve means.
func serves(o *initd.Options, workers int) {
	o.Discover, o.Insist = false, true
	o.Policy.Serve, o.Policy.Workers, o.Policy.ReadyAfter = true, workers, 10*time.Second
}

var rows = map[string]row{
	"mode": {good: "serve", bad: "server", want: func(o *initd.Options) { serves(o, 1); o.Sizing.ByHand = true }},
	"workers": {good: "3", bad: "0", want: func(o *initd.Options) {
		serves(o, 3)
		o.Count, o.Sizing.Workers = 3, 3
	}},
	"min-workers":     {good: "2", bad: "0", want: func(o *initd.Options) { o.Sizing.Min = 2 }},
	"max-workers":     {good: "9", bad: "513", want: func(o *initd.Options) { o.Sizing.Max = 9 }},
	"workers-per-cpu": {good: "1.5", bad: "0", want: func(o *initd.Options) { o.Sizing.WorkersPerCPU = 1500 }},
	"worker-memory":   {good: "128Mi", bad: "12Q", want: func(o *initd.Options) { o.Sizing.WorkerMemory = 128 << 20 }},
	"memory-target":   {good: "0.75", bad: "1.1", want: func(o *initd.Options) { o.Sizing.Target = 750 }},
	"memory-reserve":  {good: "1k", bad: "-1", want: func(o *initd.Options) { o.Sizing.Reserve = 1024 }},
	"share":           {good: "none", bad: "all", want: func(o *initd.Options) { o.Share = initd.ShareNone }},
	"listen": {good: "web=127.0.0.1:80", bad: "nowhere:80", more: ":81",
		want: func(o *initd.Options) {
			serves(o, 1)
			o.Listen = []initd.Listen{{Name: "web", Addr: address("127.0.0.1:80")}}
		},
		both: func(o *initd.Options) { o.Listen = append(o.Listen, initd.Listen{Addr: address(":81")}) }},
	"share-port": {good: "80", bad: "65536", more: "81",
		want: func(o *initd.Options) { o.SharePorts, o.Insist = []uint16{80}, true },
		both: func(o *initd.Options) { o.SharePorts = append(o.SharePorts, 81) }},
	"balance": {good: "hash", bad: "random", want: func(o *initd.Options) { o.Balance = initd.BalanceHash }},
	"prestart": {good: "migrate 'a b'", bad: "a | b", more: "warm up",
		want: func(o *initd.Options) { o.Prestart.Steps = [][]string{{"migrate", "a b"}} },
		both: func(o *initd.Options) { o.Prestart.Steps = append(o.Prestart.Steps, []string{"warm", "up"}) }},
	"prestart-dir":     {good: "/steps", want: func(o *initd.Options) { o.Prestart.Dir, o.Prestart.DirGiven = "/steps", true }},
	"prestart-timeout": {good: "5", bad: "-5s", want: func(o *initd.Options) { o.Prestart.Timeout = 5 * time.Second }},
	"prestart-retries": {good: "0003", bad: "-1", want: func(o *initd.Options) { o.Prestart.Retries = 3 }},
	"wait": {good: "tcp://db:5432", bad: "db:5432", more: "file:///ready",
		want: func(o *initd.Options) { o.Prestart.Waits = []wait.Target{target("tcp://db:5432")} },
		both: func(o *initd.Options) { o.Prestart.Waits = append(o.Prestart.Waits, target("file:///ready")) }},
	"wait-timeout":  {good: "2m", bad: "1 m", want: func(o *initd.Options) { o.Prestart.WaitTimeout = 2 * time.Minute }},
	"skip-prestart": {good: "true", bad: "perhaps", want: func(o *initd.Options) { o.Prestart.Skip = true }},
	"prestart-lock": {good: "/var/lock/x", bad: "lock", want: func(o *initd.Options) { o.Prestart.LockFile = "/var/lock/x" }},
	"restart": {good: "on-failure", bad: "sometimes",
		want: func(o *initd.Options) { o.Policy.Restart = supervise.RestartOnFailure }},
	"restart-delay":     {good: "250ms", bad: "x", want: func(o *initd.Options) { o.Policy.Delay = 250 * time.Millisecond }},
	"restart-max-delay": {good: "1h", bad: "x", want: func(o *initd.Options) { o.Policy.MaxDelay = time.Hour }},
	"max-worker-memory": {good: "512Mi", bad: "big", want: func(o *initd.Options) { o.MaxWorkerMemory = 512 << 20 }},
	"max-worker-age":    {good: "12h", bad: "old", want: func(o *initd.Options) { o.MaxWorkerAge = 12 * time.Hour }},
	"hang-timeout":      {good: "5", bad: "-1s", want: func(o *initd.Options) { o.HangTimeout = 5 * time.Second }},
	"hang-signal":       {good: "QUIT", bad: "BANG", want: func(o *initd.Options) { o.Policy.HangSignal = 3 }},
	"standby":           {good: "1", bad: "-1", want: func(o *initd.Options) { o.Policy.Standby = 1 }},
	"start-limit":       {good: "0", bad: "1.5", want: func(o *initd.Options) { o.Policy.StartLimit = 0 }},
	"start-timeout":     {good: "0", bad: "x", want: func(o *initd.Options) { o.Policy.StartTimeout = 0 }},
	"ready": {good: "alive:2s", bad: "alive:0",
		want: func(o *initd.Options) { o.Ready, o.Policy.ReadyAfter = initd.ReadyAlive, 2*time.Second }},
	"reload-signal": {good: "USR2", bad: "ONE", want: func(o *initd.Options) { o.Policy.ReloadSignal = 12 }},
	"stop-on":       {good: "QUIT, RTMIN+3", bad: "TERM,", want: func(o *initd.Options) { o.Policy.StopOn = []int{3, 37} }},
	"stop-signal":   {good: "QUIT", bad: "0", want: func(o *initd.Options) { o.Policy.StopSignal = 3 }},
	"stop-timeout": {good: "3s", bad: "soon", want: func(o *initd.Options) {
		o.Policy.StopTimeout, o.Policy.SweepTimeout, o.Policy.ServeStopTimeout = 3*time.Second, 3*time.Second, 0
	}},
	"drain-delay": {good: "5", bad: "x", want: func(o *initd.Options) { o.Policy.DrainDelay = 5 * time.Second }},
	"signal-map": {good: "TERM:QUIT", bad: "TERM", more: "USR1:0",
		want: func(o *initd.Options) { o.Policy.SignalMap = map[int]int{15: 3} },
		both: func(o *initd.Options) { o.Policy.SignalMap[10] = 0 }},
	"kill-mode": {good: "group", bad: "tree", want: func(o *initd.Options) { o.KillGroup = true }},
	"remap-exit": {good: "143", bad: "256", more: "0",
		want: func(o *initd.Options) { o.Policy.RemapExit = map[int]bool{143: true} },
		both: func(o *initd.Options) { o.Policy.RemapExit[0] = true }},
	"pdeathsig": {good: "KILL", bad: "DEATH", want: func(o *initd.Options) { o.ParentDeath = 9 }},
	"user":      {good: "1000:0", want: func(o *initd.Options) { o.User = "1000:0" }},
	"ksm":       {good: "yes", bad: "2", want: func(o *initd.Options) { o.KSM = true }},
	"export-workers": {good: "on", bad: "2", want: func(o *initd.Options) {
		serves(o, 1)
		o.Insist, o.ExportWorkers = false, true
	}},
	"log-format": {good: "json", bad: "xml", want: func(o *initd.Options) { o.LogFormat = logger.JSON }},
	"log-level":  {good: "error", bad: "loud", want: func(o *initd.Options) { o.LogLevel = logger.Error }},
	// It is nothing without a lock; see TestContradictions.
	"prestart-key": {},
}

// Every setting does what it says, from the flag and from the variable; the flag
// wins; an empty variable is none; a bad value is told with where it came from.
func TestSettings(t *testing.T) {
	command := []string{"server"}
	plain := build(t, Input{Command: command})
	seen := make(map[string]bool)
	for _, s := range Settings() {
		r, ok := rows[s.Name]
		if !ok || seen[s.Name] {
			t.Fatalf("no row for --%s, or two settings of this name", s.Name)
		}
		seen[s.Name] = true
		if want := "SKEP_" + strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_")); s.Variable() != want {
			t.Errorf("the variable of --%s is %s", s.Name, s.Variable())
		}
		if r.good == "" {
			continue
		}
		t.Run(s.Name, func(t *testing.T) {
			flags := func(values ...string) map[string][]string { return map[string][]string{s.Name: values} }
			variable := func(value string) []string { return []string{s.Variable() + "=" + value} }
			same := func(what string, got, want initd.Options) {
				t.Helper()
				if !reflect.DeepEqual(got, want) {
					t.Errorf("%s:\n got %+v\nwant %+v", what, got, want)
				}
			}
			want := build(t, Input{Command: command})
			r.want(&want)
			if reflect.DeepEqual(want, plain) {
				t.Fatal("the row shows nothing: the value is the default")
			}
			same("flag", build(t, Input{Command: command, Flags: flags(r.good)}), want)
			same("variable", build(t, Input{Command: command, Environ: variable(r.good)}), want)
			same("empty variable", build(t, Input{Command: command, Environ: variable("")}), plain)
			same("first of two variables", build(t, Input{Command: command, Environ: append(variable(r.good), variable(r.bad)...)}), want)
			same("flag before a variable", build(t, Input{Command: command, Flags: flags(r.good), Environ: variable(r.bad)}), want)
			if s.Repeat != (r.more != "") {
				t.Fatalf("repeat is %v, the row has a second value %q", s.Repeat, r.more)
			}
			if s.Repeat {
				r.both(&want)
				same("two flags", build(t, Input{Command: command, Flags: flags(r.good, r.more)}), want)
				same("two lines", build(t, Input{Command: command, Environ: variable("\n " + r.good + "\t\n\n" + r.more + "\n")}), want)
				same("only blank lines", build(t, Input{Command: command, Environ: variable(" \n\n")}), plain)
			} else if r.bad != "" {
				same("the last of two flags", build(t, Input{Command: command, Flags: flags(r.bad, r.good)}), want)
			}
			if r.bad == "" {
				return
			}
			for source, in := range map[string]Input{"--" + s.Name: {Flags: flags(r.bad)}, s.Variable(): {Environ: variable(r.bad)}} {
				in.Command = command
				_, err := Build(in)
				oneLine(t, err, source, strconv.Quote(r.bad))
				var p *Problem
				if !errors.As(err, &p) || p.Source != source || p.Value != r.bad || p.Cause == "" {
					t.Errorf("the problem is %#v", p)
				}
			}
		})
	}
	if len(seen) != len(rows) {
		t.Errorf("%d settings, %d rows", len(seen), len(rows))
	}
}

// oneLine wants an error of one line with the words in it.
func oneLine(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", words)
		return
	}
	if strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "cannot ") {
		t.Errorf("not one line that begins with cannot: %q", err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not name %s", err, word)
		}
	}
}

// A value cannot break out of its line, whichever setting gets it.
func TestMessagesAreOneLine(t *testing.T) {
	for _, s := range Settings() {
		if rows[s.Name].bad == "" {
			continue
		}
		_, err := Build(Input{Command: []string{"x"}, Flags: map[string][]string{s.Name: {"a\nb\r\x1b[1m"}}})
		if err == nil {
			t.Errorf("--%s takes a line end", s.Name)
		} else if strings.ContainsAny(err.Error(), "\n\r\x1b") {
			t.Errorf("--%s: %q", s.Name, err)
		}
	}
}

// What the last of the settings of one name is does not depend on case or sign.
func TestChoices(t *testing.T) {
	for _, c := range []struct {
		name, value string
		want        any
		get         func(initd.Options) any
	}{
		{"share", "auto", initd.ShareAuto, func(o initd.Options) any { return o.Share }},
		{"share", "bind", initd.ShareBind, func(o initd.Options) any { return o.Share }},
		{"balance", "steer", initd.BalanceSteer, func(o initd.Options) any { return o.Balance }},
		{"balance", "single", initd.BalanceSingle, func(o initd.Options) any { return o.Balance }},
		{"restart", "auto", supervise.RestartAuto, func(o initd.Options) any { return o.Policy.Restart }},
		{"restart", "always", supervise.RestartAlways, func(o initd.Options) any { return o.Policy.Restart }},
		{"restart", "never", supervise.RestartNever, func(o initd.Options) any { return o.Policy.Restart }},
		{"ready", "auto", initd.ReadyAuto, func(o initd.Options) any { return o.Ready }},
		{"ready", "listen", initd.ReadyListen, func(o initd.Options) any { return o.Ready }},
		{"reload-signal", "none", 0, func(o initd.Options) any { return o.Policy.ReloadSignal }},
		{"reload-signal", "sighup", 1, func(o initd.Options) any { return o.Policy.ReloadSignal }},
		{"kill-mode", "process", false, func(o initd.Options) any { return o.KillGroup }},
		{"worker-memory", "auto", uint64(0), func(o initd.Options) any { return o.Sizing.WorkerMemory }},
		{"stop-timeout", "0", time.Duration(0), func(o initd.Options) any { return max(o.Policy.StopTimeout, o.Policy.ServeStopTimeout) }},
		{"ksm", "NO", false, func(o initd.Options) any { return o.KSM }},
		{"ksm", "True", true, func(o initd.Options) any { return o.KSM }},
		{"log-format", "text", logger.Text, func(o initd.Options) any { return o.LogFormat }},
		{"log-level", "warning", logger.Warn, func(o initd.Options) any { return o.LogLevel }},
		{"log-level", "debug", logger.Debug, func(o initd.Options) any { return o.LogLevel }},
	} {
		o := build(t, Input{Command: []string{"x"}, Flags: map[string][]string{c.name: {c.value}, "workers": {"2"}}})
		if got := c.get(o); got != c.want {
			t.Errorf("--%s %s is %v, want %v", c.name, c.value, got, c.want)
		}
	}
	for _, bad := range []map[string][]string{
		{"mode": {"Init"}}, {"mode": {""}}, {"workers": {"-1"}}, {"workers": {"1.5"}}, {"workers": {"513"}}, {"worker-memory": {"0"}},
		{"ready": {"alive:"}}, {"ready": {"listening"}}, {"ready": {"http:"}}, {"ready": {"http:healthz"}}, {"ready": {"http:/a b"}}, {"ready": {"http:/a#b"}}, {"ready": {"notify:"}},
		{"ready": {"http"}}, {"ready": {"alive"}}, {"ready": {"auto:"}},
		{"ready": {"alive:-1"}}, {"signal-map": {"TERM:"}}, {"signal-map": {"0:TERM"}},
		{"signal-map": {"TERM:X"}}, {"prestart": {" "}}, {"user": {""}}, {"memory-target": {"0"}}, {"workers-per-cpu": {"513"}},
		{"share-port": {"0"}}, {"start-limit": {"-1"}}, {"remap-exit": {"-1"}}, {"remap-exit": {"x"}}, {"stop-on": {""}},
		{"stop-on": {"TERM,KILL"}}, {"stop-on": {"33"}}, {"reload-signal": {"CHLD"}}, {"reload-signal": {"32"}}, {"signal-map": {"STOP:TERM"}},
	} {
		if _, err := Build(Input{Command: []string{"x"}, Flags: bad}); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}

// What decides between a plain init, a service, and finding out.
func TestModes(t *testing.T) {
	type outcome struct {
		Mode    string
		Workers int // of the policy
		Count   int
		Insist  bool
		ByHand  bool
		Restart supervise.Restart
		Stop    time.Duration
		Ready   time.Duration
	}
	lone := outcome{Mode: "init", Workers: 1, Count: 0, Restart: supervise.RestartNever}
	discover := outcome{Mode: "discover", Workers: 1, Stop: 25 * time.Second}
	serve := func(workers, count int) outcome {
		return outcome{Mode: "serve", Workers: workers, Count: count, Insist: true, Stop: 25 * time.Second, Ready: 10 * time.Second}
	}
	with := func(o outcome, edit func(*outcome)) outcome { edit(&o); return o }
	one := with(lone, func(o *outcome) { o.Count = 1 })
	export := outcome{Mode: "export", Workers: 1, Stop: 25 * time.Second, Ready: 10 * time.Second}
	for _, c := range []struct {
		flags    string // NAME=VALUE separated by blanks
		environ  string
		command  string
		want     outcome
		warnings string // words that they have in common with
	}{
		{want: discover},
		{flags: "mode=auto", want: discover},
		{flags: "mode=init", want: lone},
		{flags: "mode=init workers=4", want: with(lone, func(o *outcome) { o.Count = 4 }), warnings: "--workers"},
		{flags: "mode=init", environ: "SKEP_WORKERS=auto", want: with(lone, func(o *outcome) { o.ByHand = true }), warnings: "SKEP_WORKERS"},
		{flags: "mode=init workers=1", want: one},
		{flags: "mode=init balance=hash", want: lone, warnings: "--balance"},
		{flags: "mode=init", environ: "SKEP_KSM=1", want: lone, warnings: "SKEP_KSM"},
		{flags: "mode=init", environ: "WEB_CONCURRENCY=4", want: lone},
		{flags: "mode=init", environ: "WEB_CONCURRENCY=x", want: lone},
		{flags: "workers=1", want: one},
		{environ: "SKEP_WORKERS=1", want: one},
		{flags: "workers=1 restart=always", want: with(serve(1, 1), func(o *outcome) { o.Restart = supervise.RestartAlways })},
		{flags: "workers=1", environ: "SKEP_SHARE=bind", want: serve(1, 1)},
		{flags: "workers=1 mode=serve", want: serve(1, 1)},
		{flags: "workers=1", command: "{workers}", want: with(export, func(o *outcome) { o.Count = 1 })},
		{flags: "workers=1 stop-timeout=3", want: with(one, func(o *outcome) { o.Stop = 3 * time.Second })},
		{flags: "workers=2", want: serve(2, 2)},
		{flags: "workers=512", want: serve(512, 512)},
		{flags: "workers=auto", want: with(serve(1, 0), func(o *outcome) { o.ByHand = true })},
		{flags: "mode=serve", want: with(serve(1, 0), func(o *outcome) { o.ByHand = true })},
		{flags: "mode=serve", environ: "WEB_CONCURRENCY=3", want: with(serve(3, 3), func(o *outcome) { o.ByHand = true })},
		{flags: "listen=:80", want: serve(1, 0)},
		{flags: "share-port=80", want: with(discover, func(o *outcome) { o.Insist = true })},
		{environ: "WEB_CONCURRENCY=3", want: with(discover, func(o *outcome) { o.Count, o.Insist = 3, true })},
		{environ: "WEB_CONCURRENCY=", want: discover},
		{environ: "WEB_CONCURRENCY=0", want: discover, warnings: `WEB_CONCURRENCY="0"`},
		{environ: "WEB_CONCURRENCY=many", want: discover, warnings: `WEB_CONCURRENCY="many"`},
		{flags: "workers=2", environ: "WEB_CONCURRENCY=many", want: serve(2, 2)},
		{environ: "WEB_CONCURRENCY=3 SKEP_WORKERS=2", want: serve(2, 2)},
		{flags: "workers=auto", environ: "WEB_CONCURRENCY=3", want: with(serve(1, 0), func(o *outcome) { o.ByHand = true })},
		{flags: "export-workers=1", want: export},
		{command: "{workers}", want: export},
		{command: "-w{workers} x", environ: "WEB_CONCURRENCY=3", want: with(export, func(o *outcome) { o.Count, o.Insist = 3, true })},
		{flags: "mode=init", command: "{workers}", want: lone},
		{command: "{workers", want: discover},
		{flags: "workers=2 ready=alive:3s", want: with(serve(2, 2), func(o *outcome) { o.Ready = 3 * time.Second })},
		{flags: "workers=2 ready=listen", want: with(serve(2, 2), func(o *outcome) { o.Ready = 0 })},
		{flags: "workers=2 ready=notify", want: with(serve(2, 2), func(o *outcome) { o.Ready = 0 })},
		{flags: "workers=1 ready=notify", want: with(serve(1, 1), func(o *outcome) { o.Ready = 0 })},
		{flags: "workers=2 ready=http:/h", want: with(serve(2, 2), func(o *outcome) { o.Ready = 0 })},
		{flags: "ready=alive:3s", want: with(discover, func(o *outcome) { o.Ready = 3 * time.Second })},
	} {
		name := strings.TrimSpace(c.flags + " " + c.environ + " " + c.command)
		t.Run(name, func(t *testing.T) {
			in := Input{Flags: make(map[string][]string), Environ: strings.Fields(c.environ), Command: append([]string{"server"}, strings.Fields(c.command)...)}
			for _, f := range strings.Fields(c.flags) {
				name, value, _ := strings.Cut(f, "=")
				in.Flags[name] = append(in.Flags[name], value)
			}
			o := build(t, in)
			got := outcome{Workers: o.Policy.Workers, Count: o.Count, Insist: o.Insist, ByHand: o.Sizing.ByHand,
				Restart: o.Policy.Restart, Stop: max(o.Policy.StopTimeout, o.Policy.ServeStopTimeout), Ready: o.Policy.ReadyAfter}
			var modes []string
			for mode, is := range map[string]bool{"init": o.Boring, "discover": o.Discover,
				"export": o.Policy.Serve && o.ExportWorkers, "serve": o.Policy.Serve && !o.ExportWorkers} {
				if is {
					modes = append(modes, mode)
				}
			}
			got.Mode = strings.Join(modes, "+")
			if got != c.want {
				t.Errorf("\n got %+v\nwant %+v", got, c.want)
			}
			if o.Sizing.Workers != o.Count {
				t.Errorf("sizing works with %d, the loop with %d", o.Sizing.Workers, o.Count)
			}
			if (len(o.Warnings) > 0) != (c.warnings != "") || len(o.Warnings) > 0 && !strings.Contains(strings.Join(o.Warnings, "\n"), c.warnings) {
				t.Errorf("warnings %q, want %q", o.Warnings, c.warnings)
			}
		})
	}
}

// Mode init opens nothing and fills nothing: the command runs as it stands.
func TestModeInitTouchesNothing(t *testing.T) {
	o := build(t, Input{Flags: map[string][]string{"mode": {"init"}, "listen": {":80"}}, Command: []string{"awk", "{print}"}})
	if len(o.Listen) != 0 {
		t.Errorf("it would open %v", o.Listen)
	}
	build(t, Input{Flags: map[string][]string{"mode": {"init"}}, Command: []string{"awk", "{fd}", "{fd:x}"}})
}

func TestContradictions(t *testing.T) {
	for _, c := range []struct {
		flags, environ, command string
		want                    []string // words; none when it is good
	}{
		{flags: "min-workers=3 max-workers=2", want: []string{"--min-workers", `"3"`, "--max-workers 2"}},
		{flags: "min-workers=3", environ: "SKEP_MAX_WORKERS=2", want: []string{"--min-workers", `"3"`, "SKEP_MAX_WORKERS 2"}},
		{flags: "max-workers=2", environ: "SKEP_MIN_WORKERS=3", want: []string{"SKEP_MIN_WORKERS", "--max-workers 2"}},
		{flags: "min-workers=2 max-workers=2"},
		{flags: "drain-delay=25", want: []string{"--drain-delay", `"25"`, "--stop-timeout 25s"}},
		{environ: "SKEP_DRAIN_DELAY=25", want: []string{"SKEP_DRAIN_DELAY", "--stop-timeout 25s"}},
		{flags: "drain-delay=24.9"},
		{flags: "drain-delay=24 stop-timeout=20", want: []string{"--drain-delay", "--stop-timeout 20s"}},
		{flags: "drain-delay=30 stop-timeout=31"},
		{flags: "drain-delay=1h stop-timeout=0"},
		{flags: "drain-delay=30 workers=1"}, // a lone command has no stop timeout
		{flags: "prestart-key=v1", want: []string{"--prestart-key", `"v1"`, "--prestart-lock"}},
		{environ: "SKEP_PRESTART_KEY=v1", want: []string{"SKEP_PRESTART_KEY", "--prestart-lock"}},
		{flags: "prestart-key=v1 prestart-lock=/shared/lock"},
		{flags: "prestart-lock=lock", want: []string{"--prestart-lock", `"lock"`, "absolute"}},
		{flags: "prestart-lock=/shared/", want: []string{"--prestart-lock", `"/shared/"`, "file"}},
		{environ: "SKEP_PRESTART_LOCK=lock", want: []string{"SKEP_PRESTART_LOCK", "absolute"}},
		{flags: "share=fds", want: []string{"--share", `"fds"`, "--listen"}},
		{flags: "share=fds listen=:80"},
		{flags: "share=bind listen=:80", want: []string{"--share", `"bind"`, "--listen"}},
		{flags: "reload-signal=TERM", want: []string{"--reload-signal", `"TERM"`, "--stop-on"}},
		{environ: "SKEP_RELOAD_SIGNAL=USR1 SKEP_STOP_ON=USR1", want: []string{"SKEP_RELOAD_SIGNAL", `"USR1"`, "SKEP_STOP_ON"}},
		{flags: "ready=http:/h balance=hash", want: []string{"--ready", `"http:/h"`, "--balance steer"}},
		{flags: "ready=http:/h workers=2", environ: "SKEP_BALANCE=single", want: []string{"--ready", `"http:/h"`, "--balance steer"}},
		{flags: "ready=http:/h share=none", want: []string{"--ready", "--share none"}},
		{flags: "ready=http:/h listen=unix:///run/x", want: []string{"--ready", "TCP", "--listen"}},
		{flags: "ready=http:/h listen=[::1]:80", want: []string{"--ready", "IPv4", "--listen"}},
		{flags: "ready=http:/h listen=unix:///run/x listen=[::]:80"},
		{flags: "ready=http:/h?deep=1 listen=10.0.0.1:80"},
		{flags: "ready=http:/h mode=init share=none"},
		{flags: "standby=1 balance=hash", want: []string{"--standby", `"1"`, "--balance steer"}},
		{flags: "standby=1"},
		{flags: "balance=single", environ: "SKEP_HANG_TIMEOUT=9", want: []string{"SKEP_HANG_TIMEOUT", `"9"`, "--balance single"}},
		{flags: "hang-timeout=9 balance=hash"},
		{flags: "stop-on=HUP"}, // nobody asked for a reload by HUP
		{flags: "listen=:80 listen=:80", want: []string{"--listen", ":80", "twice"}},
		{flags: "listen=a=:80 listen=a=:81", want: []string{"--listen", "a=:81", "twice"}},
		{flags: "listen=a=:80 listen=b=:81 listen=:82 listen=:83"},
		{command: "--fd {fd}", want: []string{"{fd}", "--listen"}},
		{flags: "workers=1", command: "{fd}", want: []string{"{fd}", "--listen"}},
		{flags: "listen=:80", command: "--fd {fd}"},
		{flags: "listen=web=:80", command: "{fd:web} {fd} {slot} {}"},
		{flags: "listen=web=:80", command: "fd://{fd:admin}", want: []string{"fd://{fd:admin}", "--listen admin=ADDR"}},
		{flags: "mode=init listen=:80", command: "--fd={fd}", want: []string{"--fd={fd}", "mode init"}},
		{flags: "mode=init listen=web=:80", command: "{fd:web}", want: []string{"{fd:web}", "mode init"}},
	} {
		t.Run(strings.TrimSpace(c.flags+" "+c.environ+" "+c.command), func(t *testing.T) {
			in := Input{Flags: make(map[string][]string), Environ: strings.Fields(c.environ), Command: append([]string{"server"}, strings.Fields(c.command)...)}
			for _, f := range strings.Fields(c.flags) {
				name, value, _ := strings.Cut(f, "=")
				in.Flags[name] = append(in.Flags[name], value)
			}
			_, err := Build(in)
			if c.want == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			oneLine(t, err, c.want...)
		})
	}
}

// Everything that is wrong is told at once, in the order of the help.
func TestAllProblemsAtOnce(t *testing.T) {
	in := Input{NeedsCommand: true, Flags: map[string][]string{
		"workers": {"some"}, "stop-timeout": {"soon"}, "share-port": {"0", "80", "x"}, "share": {"fds"},
	}, Environ: []string{"SKEP_MEMORY_TARGET=2", "SKEP_SIGNAL_MAP=TERM\nINT:TERM\nQUIT"}}
	_, err := Build(in)
	if err == nil {
		t.Fatal("no error")
	}
	var sources []string
	for _, line := range strings.Split(err.Error(), "\n") {
		if !strings.HasPrefix(line, "cannot ") {
			t.Errorf("line %q", line)
		}
		_, rest, _ := strings.Cut(line, " for ")
		source, _, _ := strings.Cut(rest, ":")
		sources = append(sources, source)
	}
	want := "--workers SKEP_MEMORY_TARGET --share-port --share-port --stop-timeout SKEP_SIGNAL_MAP SKEP_SIGNAL_MAP  --share"
	if got := strings.Join(sources, " "); got != want {
		t.Errorf("told %q\nwant %q\n%v", got, want, err)
	}
	if _, err := Build(Input{NeedsCommand: true}); err == nil || !strings.Contains(err.Error(), "no command") {
		t.Errorf("without a command: %v", err)
	}
	if _, err := Build(Input{}); err != nil {
		t.Errorf("plan and prestart need no command: %v", err)
	}
}

// The rest that the loop gets from here.
func TestDefaults(t *testing.T) {
	environ := []string{"A=b", "KUBERNETES_SERVICE_HOST=10.0.0.1"}
	o, err := Build(Input{Command: []string{"server", "x"}, Environ: environ})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(o.Environ, environ) || !reflect.DeepEqual(o.Command, []string{"server", "x"}) || !o.Sizing.Kubernetes {
		t.Errorf("%+v", o)
	}
	want := supervise.Policy{
		Workers: 1, Delay: 500 * time.Millisecond, MaxDelay: 30 * time.Second, ResetAfter: time.Minute, StartLimit: 5,
		StartTimeout: 2 * time.Minute, StartSpacing: time.Second, StopOn: []int{15, 2, 3}, ServeStopTimeout: 25 * time.Second,
		SweepTimeout: 5 * time.Second, DrainTimeout: 30 * time.Second, ReloadSignal: 1, HangSignal: 6, HangGrace: 300 * time.Millisecond,
	}
	if !reflect.DeepEqual(o.Policy, want) {
		t.Errorf("\n got %+v\nwant %+v", o.Policy, want)
	}
	if o := build(t, Input{Command: []string{"x"}}); o.Sizing.Kubernetes {
		t.Error("Kubernetes without its variables")
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]uint64{
		"0": 0, "1": 1, "1024": 1024, "1K": 1000, "1Ki": 1024, "1k": 1024, "1M": 1e6, "1Mi": 1 << 20, "1m": 1 << 20, "512MB": 512e6, "512MiB": 512 << 20,
		"1G": 1e9, "1g": 1 << 30, "1Gi": 1 << 30, "1.5Gi": 3 << 29, "0.5K": 500, ".5K": 500, "1T": 1e12, "2Ti": 2 << 40, "1.9": 1, "100B": 100,
		"9007199254740993": 9007199254740993, "9223372036854774784": 9223372036854774784, "007": 7,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", " ", "M", "B", "-1", "+1", "1 M", "1M ", "1e6", "0x10", "1KK", "1iK", "1.2.3", ".", "1,5G", "12Q", "1P", "1_000",
		"1BB", "1i", "9223372036854775807", "9223372036854775808", "18446744073709551616", "99999999T", "inf", "NaN"} {
		if got, err := ParseSize(text); err == nil || got != 0 || !strings.Contains(err.Error(), "512Mi") {
			t.Errorf("%q is %d, %v", text, got, err)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, seed := range []string{"512M", "1.5Gi", "0", "", "9223372036854775807", "1e3", "..", "1kB"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := ParseSize(text)
		if err != nil {
			if n != 0 {
				t.Fatalf("%q is %d with error %v", text, n, err)
			}
			return
		}
		if int64(n) < 0 {
			t.Fatalf("%q is %d: more than the kernel can count", text, n)
		}
		if again, err := ParseSize(strconv.FormatUint(n, 10)); n < 1<<62 && (err != nil || again != n) {
			t.Fatalf("%q is %d, which reads as %d, %v", text, n, again, err)
		}
		if more, err := ParseSize("1" + text); err == nil && more < n {
			t.Fatalf("%q is %d, a digit more %d", text, n, more)
		}
	})
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "-0s": 0, "1": time.Second, "1.5": 1500 * time.Millisecond, ".5": 500 * time.Millisecond, "30s": 30 * time.Second,
		"1m30s": 90 * time.Second, "500ms": 500 * time.Millisecond, "1h": time.Hour, "9000000000": 9e18, "010": 10 * time.Second,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("%q is %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", ".", "-1", "-1s", "+1", "1 s", "s", "1d", "soon", "1.2.3", "1e3", "NaN", "9223372036.854775807", "9223372037", "99999999999999999999", "2562048h"} {
		if got, err := ParseDuration(text); err == nil || got != 0 || !strings.Contains(err.Error(), "500ms") {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
}

func FuzzParseDuration(f *testing.F) {
	for _, seed := range []string{"1m30s", "1.5", "9223372036.854775807", "-1", "", "1d", "."} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseDuration(text)
		if d < 0 || err != nil && d != 0 {
			t.Fatalf("%q is %v, %v", text, d, err)
		}
		if again, err2 := ParseDuration(d.String()); err == nil && (err2 != nil || again != d) {
			t.Fatalf("%q is %v, which reads as %v, %v", text, d, again, err2)
		}
	})
}

// Whatever stands in flags and environment, it ends in options or in lines.
func FuzzBuild(f *testing.F) {
	f.Add("workers", "2", "SKEP_LISTEN=:80\n:81", "{fd}")
	f.Add("mode", "init", "WEB_CONCURRENCY=x", "{workers}")
	f.Add("prestart", "a 'b", "SKEP_PRESTART_KEY=\x00", "{")
	f.Fuzz(func(t *testing.T, name, value, variable, arg string) {
		o, err := Build(Input{Flags: map[string][]string{name: {value}}, Environ: []string{variable}, Command: []string{"x", arg}})
		if err != nil {
			for _, line := range strings.Split(err.Error(), "\n") {
				if !strings.HasPrefix(line, "cannot ") {
					t.Fatalf("line %q", line)
				}
			}
			return
		}
		if o.Policy.Workers < 1 || o.Policy.Workers > maxCount || o.Boring && o.Discover || o.Policy.Serve && (o.Discover || o.Boring) {
			t.Fatalf("%+v", o)
		}
	})
}

func ExampleProblem() {
	_, err := Build(Input{Command: []string{"server"}, Environ: []string{"SKEP_STOP_TIMEOUT=soon"}})
	fmt.Println(err)
	// Output: cannot use "soon" for SKEP_STOP_TIMEOUT: want a time such as 500ms, 30s, 2m or a number of seconds
}
