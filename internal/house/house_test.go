package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "skep"

// floors gives packages their floor, 0 the lowest: imports point only
// downwards, or along a floor. A package that is not named is on the floor of
// the nearest one above it in the tree that is, and otherwise in the middle,
// among the tables and machines that the loop is made of.
var floors = map[string]int{
	"internal":        0,
	"initd/supervise": 1, // the pure part, below the loop that owns it
	"initd":           2, // the loop
	"config":          3,
	"cmd":             4,
}

const middle = 1

// outside has what is no part of skep: tests, their helpers, and programs for
// people who build it.
var outside = []string{
	"bench", "conformance", "e2e", "examples", "scripts", "testdata",
	"internal/dockertest", "internal/house", "internal/nstest", "internal/testneed", "internal/vmtest",
}

// pure packages decide and do nothing: given the same they answer the same.
var pure = []string{"initd/supervise", "prestart", "sizing"}

// impure is what they may not reach: the machine.
var impure = []string{"os", "syscall", "golang.org/x/sys", "net"}

// heavy may not be in process 1 at all, whoever brings it: every container
// would carry it for its whole life. A name with /... means all below it too.
var heavy = []string{"net", "net/http", "os/exec", "crypto/tls", "html/template", "encoding/json/v2", "github.com/prometheus/..."}

// dear is what no package of skep may ask for itself, though the command-line
// library brings some of it along; the exceptions have their reason.
var dear = map[string][]string{
	"net":           nil,
	"regexp":        nil,
	"text/template": nil,
	"encoding/json": {"cmd/skep", "control"}, // what users' programs read
}

// pkg is what "go list -json" says of a package, as far as it matters here.
type pkg struct {
	ImportPath   string
	Name         string
	Imports      []string
	Deps         []string
	TestImports  []string
	XTestImports []string
	GoFiles      []string
	Dir          string
	Standard     bool
}

func list(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json", "-tags", "urfave_cli_no_docs"}, args...)...)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cannot list packages: %v: %s", err, stderr.Bytes())
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("cannot read what go list says: %v", err)
		}
		all = append(all, p)
	}
}

// local returns a package's path inside this module, and whether it is one.
func local(importPath string) (string, bool) {
	return strings.CutPrefix(importPath, module+"/")
}

// under tells whether a path is dir or below it.
func under(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// matches tells whether a path is a name, or below one that ends in /....
func matches(p, name string) bool {
	dir, all := strings.CutSuffix(name, "/...")
	return p == name || all && under(p, dir)
}

// counts tells whether a package is part of skep.
func counts(p string) bool {
	return !slices.ContainsFunc(outside, func(dir string) bool { return under(p, dir) })
}

func floor(p string) int {
	best, at := "", middle
	for named, f := range floors {
		if under(p, named) && len(named) > len(best) {
			best, at = named, f
		}
	}
	return at
}

// upward returns the imports among packages of skep that point upwards.
func upward(packages []pkg) []string {
	var bad []string
	for _, p := range packages {
		from, ok := local(p.ImportPath)
		if !ok || !counts(from) {
			continue
		}
		for _, i := range p.Imports {
			to, ok := local(i)
			if !ok {
				continue
			}
			switch {
			case !counts(to):
				bad = append(bad, from+" imports "+to+", which is no part of skep")
			case floor(to) > floor(from):
				bad = append(bad, from+" imports "+to+", which is above it")
			}
		}
	}
	return bad
}

func TestImportsPointDownwards(t *testing.T) {
	for _, bad := range upward(list(t, "./...")) {
		t.Error(bad)
	}
}

func TestUpwardDetects(t *testing.T) {
	for _, c := range []struct {
		from, to string
		bad      bool
	}{
		{"cmd/skep", "config", false},
		{"config", "initd", false},
		{"initd", "initd/supervise", false},
		{"initd", "reaper", false},
		{"reaper", "internal/sys", false},
		{"port", "port/steer", false},
		{"initd/supervise", "initd", true},
		{"reaper", "initd", true},
		{"sizing", "config", true},
		{"initd", "config", true},
		{"initd", "cmd/skep", true},
		{"internal/sys", "reaper", true},
		{"port", "internal/testneed", true},
		{"reaper", "internal/logger", false},
		{"internal/logger", "config", true},
	} {
		got := upward([]pkg{{ImportPath: module + "/" + c.from, Imports: []string{"fmt", module + "/" + c.to}}})
		if (len(got) > 0) != c.bad {
			t.Errorf("%s imports %s: %q", c.from, c.to, got)
		}
	}
}

func TestPurePackagesReachNothing(t *testing.T) {
	found := 0
	for _, p := range list(t, "./...") {
		name, _ := local(p.ImportPath)
		if !slices.Contains(pure, name) {
			continue
		}
		found++
		// fmt and errors reach os by themselves; what counts is what the
		// package asks for, or asks of another package of skep.
		for _, i := range p.Imports {
			if slices.ContainsFunc(impure, func(bad string) bool { return under(i, bad) }) {
				t.Errorf("%s is pure and imports %s", name, i)
			}
			if to, ok := local(i); ok && !slices.Contains(pure, to) {
				t.Errorf("%s is pure and imports %s", name, to)
			}
		}
		for _, file := range p.GoFiles {
			text, err := os.ReadFile(filepath.Join(p.Dir, file))
			if err != nil {
				t.Fatal(err)
			}
			if use := clock.Find(text); use != nil {
				t.Errorf("%s/%s is pure and asks for the time: %s", name, file, use)
			}
		}
	}
	if found != len(pure) {
		t.Errorf("found %d of the pure packages %v", found, pure)
	}
}

var clock = regexp.MustCompile(`\btime\.(Now|Since|Until|Sleep|After|AfterFunc|Tick|NewTimer|NewTicker)\b`)

func TestProcessOneIsSmall(t *testing.T) {
	skep := list(t, "./cmd/skep")[0]
	for _, dep := range skep.Deps {
		if slices.ContainsFunc(heavy, func(bad string) bool { return matches(dep, bad) }) {
			t.Errorf("skep links %s", dep)
		}
		if name, ok := local(dep); ok && !counts(name) {
			t.Errorf("skep links %s, which is no part of it", dep)
		}
	}
	for _, bad := range dearImports(list(t, "./...")) {
		t.Error(bad)
	}
}

// dearImports returns what packages of skep import that is too dear for them.
func dearImports(packages []pkg) []string {
	var bad []string
	for _, p := range packages {
		name, ok := local(p.ImportPath)
		if !ok || !counts(name) || under(name, "cmd/skep-exporter") {
			continue
		}
		for _, i := range p.Imports {
			if allowed, is := dear[i]; is && !slices.Contains(allowed, name) {
				bad = append(bad, name+" imports "+i+", too dear for process 1")
			}
			if under(i, "github.com/urfave") && !under(name, "cmd") {
				bad = append(bad, name+" imports "+i+": the command line is cmd's alone")
			}
		}
	}
	return bad
}

func TestDearImportsDetects(t *testing.T) {
	for _, c := range []struct {
		from, to string
		bad      bool
	}{
		{"port", "strings", false},
		{"port", "regexp", true},
		{"port", "net", true},
		{"control", "encoding/json", false},
		{"config", "github.com/urfave/cli/v2", true},
		{"cmd/skep", "github.com/urfave/cli/v2", false},
		{"internal/testneed", "regexp", false},
		{"cmd/skep-exporter", "text/template", false},
	} {
		got := dearImports([]pkg{{ImportPath: module + "/" + c.from, Imports: []string{c.to}}})
		if (len(got) > 0) != c.bad {
			t.Errorf("%s imports %s: %q", c.from, c.to, got)
		}
	}
}

func TestNames(t *testing.T) {
	for _, p := range list(t, "./...") {
		for _, bad := range []string{"util", "utils", "common", "helpers", "misc"} {
			if p.Name == bad || path.Base(p.ImportPath) == bad {
				t.Errorf("%s: a package's name says what it is for", p.ImportPath)
			}
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// deadLinks returns the links of a document that lead to no file. Links to
// other sites are not followed.
func deadLinks(dir string, text []byte) []string {
	dead := map[string]bool{}
	for _, m := range link.FindAllSubmatch(text, -1) {
		to, _, _ := strings.Cut(string(m[1]), "#")
		if to == "" || strings.Contains(to, "://") || strings.HasPrefix(to, "mailto:") {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, to)); err != nil {
			dead[to] = true
		}
	}
	return slices.Sorted(maps.Keys(dead))
}

func TestLinks(t *testing.T) {
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(file string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains([]string{".git", "build"}, d.Name()):
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(file) != ".md":
			return nil
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for _, to := range deadLinks(filepath.Dir(file), text) {
			t.Errorf("%s: link to %s, which is not there", file, to)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestDeadLinksDetects(t *testing.T) {
	text := "[a](doc.go) [b](no-such-file.md#part) [c](https://example.com/x) [d](#here)"
	if got := deadLinks(".", []byte(text)); !slices.Equal(got, []string{"no-such-file.md"}) {
		t.Errorf("dead links %q", got)
	}
}
