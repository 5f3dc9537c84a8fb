package supervise

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// impure tells what a file of a pure package does that it must not: import
// anything but the packages allowed, or ask for the time.
func impure(t *testing.T, name string, src any) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), name, src, 0)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, i := range file.Imports {
		path, _ := strconv.Unquote(i.Path.Value)
		if !slices.Contains([]string{"math", "slices", "sort", "time"}, path) {
			found = append(found, "import "+path)
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "time" && pkg.Obj == nil &&
			!slices.Contains([]string{"Time", "Duration", "Nanosecond", "Microsecond", "Millisecond", "Second", "Minute", "Hour"}, sel.Sel.Name) {
			found = append(found, "time."+sel.Sel.Name)
		}
		return true
	})
	return found
}

func TestPure(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	pure := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		pure++
		for _, what := range impure(t, name, nil) {
			t.Errorf("%s: %s", name, what)
		}
	}
	if pure == 0 {
		t.Error("no files")
	}
	// The negative control.
	got := impure(t, "x.go", `package x; import ("os"; "time"); var a = time.Now(); func f(now time.Time) { time.Sleep(1); os.Exit(1) }`)
	if want := []string{"import os", "time.Now", "time.Sleep"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
