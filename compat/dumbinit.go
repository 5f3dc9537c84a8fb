package compat

// maxRewrite is the highest signal dumb-init rewrites: real-time ones are passed on as they come.
const maxRewrite = 31

// Numbers of the signals that dumb-init treats apart, see signal(7).
const (
	sigSTOP = 19
	sigTSTP = 20
	sigTTIN = 21
	sigTTOU = 22
)

var dumbInitLong = []longOption{
	{name: "help", letter: 'h'},
	{name: "single-child", letter: 'c'},
	{name: "rewrite", letter: 'r', needValue: true},
	{name: "verbose", letter: 'v'},
	{name: "version", letter: 'V'},
}

// parseDumbInit reads dumb-init's command line; the command begins at the first word that is no flag.
func parseDumbInit(argv []string, lookup func(string) (string, bool), self Self) Result {
	name := argv[0]
	init := &Init{Program: DumbInit, Name: name, Setsid: true, Group: true, Suspend: true, Rewrite: map[int]int{}, self: self}
	flags := getopt{args: argv[1:], short: "hvVcr:", long: dumbInitLong}
	for {
		opt, ok := flags.next()
		if !ok {
			break
		}
		if opt.problem != "" {
			return Result{Stderr: name + ": " + opt.problem + "\n", Code: 1}
		}
		switch opt.letter {
		case 'h':
			return Result{Stderr: dumbInitHelp(name, self)}
		case 'V':
			return Result{Stderr: dumbInitVersion(self)}
		case 'v':
			init.Verbosity = 1
		case 'c':
			init.Setsid, init.Group = false, false
		case 'r':
			from, to, ok := dumbInitRewrite(opt.value)
			if !ok {
				return Result{Stderr: dumbInitRewriteHelp, Code: 1}
			}
			init.Rewrite[from] = to
		}
	}
	if len(flags.words) == 0 {
		return Result{Stderr: "Usage: " + name + " [option] program [args]\nTry " + name + " --help for full usage.\n", Code: 1}
	}
	init.Argv = flags.words

	result := Result{Init: init}
	if value, _ := lookup("DUMB_INIT_DEBUG"); value == "1" {
		init.Verbosity = 1
		result.Stderr += init.dumbInitLine("Running in debug mode.").Text
	}
	if value, _ := lookup("DUMB_INIT_SETSID"); value == "0" {
		init.Setsid, init.Group = false, false
		if init.Verbosity > 0 {
			result.Stderr += init.dumbInitLine("Not running in setsid mode.").Text
		}
	}
	// In a session of its own the child's group is an orphaned one, and the kernel does not stop such groups with these three (setpgid(2), "orphaned
	// process group"): only STOP does.
	if init.Setsid {
		for _, n := range []int{sigTSTP, sigTTOU, sigTTIN} {
			if _, set := init.Rewrite[n]; !set {
				init.Rewrite[n] = sigSTOP
			}
		}
	}
	return result
}

// dumbInitRewrite reads "15:3" as scanf's "%d:%d" does: blanks before the numbers and anything behind them do not matter.
func dumbInitRewrite(text string) (from, to int, ok bool) {
	from, rest, ok := leadingInt(text)
	if !ok || len(rest) == 0 || rest[0] != ':' {
		return 0, 0, false
	}
	to, _, ok = leadingInt(rest[1:])
	return from, to, ok && from >= 1 && from <= maxRewrite && to >= 0 && to <= maxRewrite
}

const dumbInitRewriteHelp = `Usage: -r option takes <signum>:<signum>, where <signum> is between 1 and 31.
The second one may be 0: the signal is dropped. May be repeated; see --help.
`

func dumbInitVersion(self Self) string {
	return "dumb-init v" + DumbInitVersion + "_skep-" + self.Version + "\n"
}

func dumbInitHelp(name string, self Self) string {
	return dumbInitVersion(self) + "Usage: " + name + ` [option] command [[arg] ...]

skep runs command as dumb-init would.

Optional arguments:
   -c, --single-child   Send signals to the child alone, not to its session.
   -r, --rewrite s:r    Send signal r when s is received; 0 drops it. May be repeated.
   -v, --verbose        Print debugging information to stderr.
   -h, --help           Print this help and exit.
   -V, --version        Print the version and exit.
`
}

func (i *Init) dumbInitLine(text string) Line {
	return Line{Text: "[dumb-init] " + text + "\n"}
}
