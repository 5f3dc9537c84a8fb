package env

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for text, want := range map[string][]string{
		"":                                    nil,
		"A=1\n":                               {"A=1"},
		"A=1\nB=2":                            {"A=1", "B=2"},
		"A=\n":                                {"A="},
		"A='x y' # z $B\n":                    {"A='x y' # z $B"},
		"A= x \n":                             {"A= x "},
		"A=b=c\n":                             {"A=b=c"},
		"\n# note\n  \t\nA=1\n\n":             {"A=1"},
		"_a.b-C9=1\n":                         {"_a.b-C9=1"},
		"A=1\nA=2\n":                          {"A=1", "A=2"},
		"A=ü\xff\n":                           {"A=ü\xff"},
		"PATH=/venv/bin\nSKEPTIC=yes":         {"PATH=/venv/bin", "SKEPTIC=yes"},
		"A=" + strings.Repeat("x", 9):         {"A=xxxxxxxxx"},
		"WEB_CONCURRENCY=3":                   {"WEB_CONCURRENCY=3"},
		"A=1\r2\n":                            {"A=1\r2"},
		"A=" + strings.Repeat("x", maxLine-2): {"A=" + strings.Repeat("x", maxLine-2)},
	} {
		got, err := Parse([]byte(text))
		if err != nil {
			t.Errorf("%.60q: %v", text, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%.60q (-want +got):\n%s", text, diff)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]struct {
		line int
		text string
	}{
		"hunter2\n":             {1, "no ="},
		"A=1\n\nhunter2":        {3, "no ="},
		"export A=hunter2":      {1, "without export"},
		"A B=hunter2":           {1, "no name"},
		"=hunter2":              {1, "no name"},
		"9A=hunter2":            {1, "no name"},
		" A=hunter2":            {1, "no name"},
		"Ä=hunter2":             {1, "no name"},
		"A=1\r\nB=hunter2\r\n":  {1, "carriage return"},
		"A=hunter2\x00":         {1, "NUL"},
		"SKEP_WORKERS=hunter2":  {1, "SKEP_WORKERS cannot be handed over"},
		"LISTEN_FDS=hunter2":    {1, "LISTEN_FDS cannot be handed over"},
		"NOTIFY_SOCKET=hunter2": {1, "NOTIFY_SOCKET cannot be handed over"},
		"WATCHDOG_PID=hunter2":  {1, "WATCHDOG_PID cannot be handed over"},
		"A=hunter2" + strings.Repeat("x", maxLine): {1, "longer than"},
	} {
		_, err := Parse([]byte(text))
		var bad *Error
		if !errors.As(err, &bad) || bad.Line != want.line || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%.60q: got %v, want line %d: %s", text, err, want.line, want.text)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%.60q: the error tells the value: %v", text, err)
		}
	}
}

func TestMerge(t *testing.T) {
	environ := []string{"PATH=/bin", "A=0", "odd", "A=00", "Z=9"}
	vars := []string{"B=1", "A=2", "B=3", "C="}
	keptEnviron, keptVars := append([]string(nil), environ...), append([]string(nil), vars...)
	got := Merge(environ, vars)
	if diff := cmp.Diff([]string{"PATH=/bin", "A=2", "odd", "Z=9", "B=3", "C="}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	got[0] = "changed"
	if !cmp.Equal(environ, keptEnviron) || !cmp.Equal(vars, keptVars) {
		t.Errorf("the arguments were changed: %q %q", environ, vars)
	}
	if diff := cmp.Diff(environ, Merge(environ, nil)); diff != "" {
		t.Errorf("nothing to merge (-want +got):\n%s", diff)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"A=1\nB=2\n", "# x\n\nA=", "export A=1", "A=1\r\n", "\x00=", "SKEP_X=1"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		vars, err := Parse(text)
		if err != nil {
			var bad *Error
			if !errors.As(err, &bad) || bad.Line < 1 || bad.Line > strings.Count(string(text), "\n")+1 {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		for _, v := range vars {
			name, _, ok := strings.Cut(v, "=")
			if !ok || name == "" || Reserved(name) || strings.ContainsAny(v, "\x00\n") || strings.ContainsAny(name, " \t") {
				t.Fatalf("%q gives %q", text, v)
			}
		}
		// What was read, written again, is read the same.
		again, err := Parse([]byte(strings.Join(vars, "\n")))
		if err != nil || !cmp.Equal(vars, again) {
			t.Fatalf("%q: %q, then %q, %v", text, vars, again, err)
		}
		merged := Merge([]string{"A=old"}, vars)
		if len(merged) > len(vars)+1 {
			t.Fatalf("%q: merged %q", text, merged)
		}
	})
}
