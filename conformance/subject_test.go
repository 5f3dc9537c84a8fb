package conformance

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"skep/internal/testneed"
)

// manners is whose command line a subject reads.
type manners int

const (
	asSkep manners = iota
	asTini
	asDumbInit
	asCatatonit
	asBadInit
)

// subject is one init under test.
type subject struct {
	name    string
	argv0   string
	manners manners
	flags   []string // always given, before those of the options
	ours    bool     // a failure fails the test
	path    string   // found by resolve

	// known holds the cases that this subject does not pass, on purpose and documented, with the reason. They must fail: a reason that is no longer
	// true is an error too.
	known map[string]string
}

// options are what a case may ask of an init beyond running a command.
type options struct {
	group    bool           // forwarded signals go to the whole process group
	single   bool           // they go to the child alone; for most this is the default
	rewrite  map[string]int // received signal, as text, to the one sent on
	remap    []string       // exit codes, as text, that become 0
	pdeath   int            // the init gets this signal when its parent dies
	deadline int            // seconds from TERM to KILL
}

// args is the argument vector after argv[0] that asks for o and runs command, or false when the subject has no such option.
func (s *subject) args(o options, command ...string) ([]string, bool) {
	args := append([]string{}, s.flags...)
	switch s.manners {
	case asSkep:
		if o.group {
			args = append(args, "--kill-mode", "group")
		}
		for from, to := range o.rewrite {
			args = append(args, "--signal-map", from+":"+strconv.Itoa(to))
		}
		for _, code := range o.remap {
			args = append(args, "--remap-exit="+code)
		}
		if o.pdeath != 0 {
			args = append(args, "--pdeathsig", strconv.Itoa(o.pdeath))
		}
		if o.deadline != 0 {
			args = append(args, "--stop-timeout", strconv.Itoa(o.deadline)+"s")
		}
	case asTini:
		if o.rewrite != nil || o.deadline != 0 {
			return nil, false
		}
		if o.group {
			args = append(args, "-g")
		}
		for _, code := range o.remap {
			args = append(args, "-e", code)
		}
		if o.pdeath != 0 {
			args = append(args, "-p", map[int]string{10: "SIGUSR1"}[o.pdeath])
		}
	case asDumbInit:
		if o.remap != nil || o.pdeath != 0 || o.deadline != 0 {
			return nil, false
		}
		if o.single {
			args = append(args, "-c")
		}
		for from, to := range o.rewrite {
			args = append(args, "-r", from+":"+strconv.Itoa(to))
		}
	case asCatatonit:
		if o.rewrite != nil || o.remap != nil || o.pdeath != 0 || o.deadline != 0 {
			return nil, false
		}
		if o.group {
			args = append(args, "-g")
		}
	case asBadInit:
		if o.group {
			args = append(args, "-g")
		}
		for from, to := range o.rewrite {
			args = append(args, "-r", from+":"+strconv.Itoa(to))
		}
		for _, code := range o.remap {
			args = append(args, "-e", code)
		}
		if o.pdeath != 0 {
			args = append(args, "-p", strconv.Itoa(o.pdeath))
		}
		if o.deadline != 0 {
			args = append(args, "-t", strconv.Itoa(o.deadline))
		}
	}
	return append(append(args, "--"), command...), true
}

// Reasons that several subjects share.
const (
	flagsBehind  = "as tini: without --, flags are also read behind the command's name"
	execIs2      = "as dumb-init: every failed exec ends with 2"
	otherSession = "as dumb-init: the command leads a session of its own, and the shell that started the init cannot give it the terminal back"
	versionErr   = "as dumb-init: the version is printed on stderr"
)

// subjects lists who is compared, in the order of the report's columns.
func subjects() []*subject {
	return []*subject{
		{name: "skep --mode init", argv0: "skep", manners: asSkep, flags: []string{"--mode", "init"}, ours: true},
		{name: "skep", argv0: "skep", manners: asSkep, ours: true, known: map[string]string{
			"no-new-privs":  "port sharing installs a seccomp filter, which needs no_new_privs; --mode init and --share fds do without",
			"env-untouched": "a worker learns its slot from SKEP_SLOT and SKEP_WORKER_COUNT; --mode init adds nothing",
		}},
		{name: "skep as tini", argv0: "tini", manners: asTini, ours: true, known: map[string]string{
			"options-first-word": flagsBehind,
		}},
		{name: "skep as dumb-init", argv0: "dumb-init", manners: asDumbInit, ours: true, known: map[string]string{
			"not-found":       execIs2,
			"not-executable":  execIs2,
			"bad-interpreter": execIs2,
			"version":         versionErr,
			"suspend-resume":  otherSession,
		}},
		{name: "tini", argv0: "tini", manners: asTini},
		{name: "dumb-init", argv0: "dumb-init", manners: asDumbInit},
		{name: "catatonit", argv0: "catatonit", manners: asCatatonit},
	}
}

// resolve finds the program, or tells why there is none.
func (s *subject) resolve(t testing.TB) {
	t.Helper()
	if s.ours {
		s.path = skepBinary(t)
		return
	}
	path, err := exec.LookPath(s.argv0)
	if err != nil {
		testneed.Skip(t, "%s is not installed", s.argv0)
	}
	s.path = path
}

// skepBinary is the program under test: the one that SKEP_BIN names, or one built from this tree.
func skepBinary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("SKEP_BIN"); path != "" {
		path, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	if built.skepErr != "" {
		t.Fatal(built.skepErr)
	}
	return built.skep
}

// version is what the report says that it ran.
func (s *subject) version(t testing.TB) string {
	t.Helper()
	flag := "--version"
	if s.manners == asDumbInit {
		flag = "-V"
	}
	out, err := (&exec.Cmd{Path: s.path, Args: []string{s.argv0, flag}}).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v", s.name, flag, err)
	}
	return strings.TrimSpace(string(out))
}
