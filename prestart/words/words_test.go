package words

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestSplit(t *testing.T) {
	for line, want := range map[string][]string{
		"alembic upgrade head":                {"alembic", "upgrade", "head"},
		"  a \t b  ":                          {"a", "b"},
		"a\n":                                 {"a"},
		"\n\n a \n \n":                        {"a"},
		"a \\\n b":                            {"a", "b"},
		"a\\\nb":                              {"ab"},
		`sh -c 'echo $HOME && ls | wc > "x"'`: {"sh", "-c", `echo $HOME && ls | wc > "x"`},
		`a "b c" 'd e' f\ g`:                  {"a", "b c", "d e", "f g"},
		`a'b'"c"d`:                            {"abcd"},
		`a '' ""`:                             {"a", "", ""},
		`sh -c "echo $A >> $SKEP_ENV"`:        {"sh", "-c", "echo $A >> $SKEP_ENV"},
		"/bin/bash -c \"x=`y`\"":              {"/bin/bash", "-c", "x=`y`"},
		`''`:                                  {""},
		`a "x\$y\` + "`" + `z\"w\\v\nu"`:      {"a", "x$y`z\"w\\v\\nu"},
		"a \"b\\\nc\"":                        {"a", "bc"},
		`a 'b\'`:                              {"a", `b\`},
		`a \$HOME \| \; \' \" \\`:             {"a", "$HOME", "|", ";", "'", `"`, `\`},
		`uvicorn --forwarded-allow-ips=* [a] {b}`: {"uvicorn", "--forwarded-allow-ips=*", "[a]", "{b}"},
		`a b#c d~e x=1 ! %`:                       {"a", "b#c", "d~e", "x=1", "!", "%"},
		`'#' \~ "~"`:                              {"#", "~", "~"},
		`'A=b' c`:                                 {"A=b", "c"},
		`./a=b c`:                                 {"./a=b", "c"},
		`=a 1x=b`:                                 {"=a", "1x=b"},
		"привет 'мир и'":                          {"привет", "мир и"},
		"a \xff\xfe":                              {"a", "\xff\xfe"},
	} {
		got, err := Split(line)
		if err != nil {
			t.Errorf("%q: %v", line, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", line, diff)
		}
	}
}

func TestErrors(t *testing.T) {
	for line, want := range map[string]struct {
		pos  int
		text string
	}{
		`a 'b`:         {2, "single quote is never closed"},
		`a "b`:         {2, "double quote is never closed"},
		`a "b\"`:       {2, "double quote is never closed"},
		`a \`:          {2, "nothing to quote"},
		`a | b`:        {2, "unquoted |"},
		`a && b`:       {2, "unquoted &"},
		`a; b`:         {1, "unquoted ;"},
		`a >b`:         {2, "unquoted >"},
		`a <b`:         {2, "unquoted <"},
		`(a)`:          {0, "unquoted ("},
		`a )`:          {2, "unquoted )"},
		`a $B`:         {2, "unquoted $"},
		"a `b`":        {2, "unquoted `"},
		`a "$B"`:       {3, "$ in double quotes"},
		"a \"`b`\"":    {3, "` in double quotes"},
		`ls ~/x`:       {3, "unquoted ~"},
		`a # b`:        {2, "unquoted #"},
		"a\nb":         {1, "another follows"},
		"a \x00":       {2, "NUL"},
		"a 'x\x00'":    {4, "NUL"},
		"a \"\x00\"":   {3, "NUL"},
		"a \\\x00":     {3, "NUL"},
		`A=b alembic`:  {0, "env NAME=value"},
		` _A1=b c`:     {1, "env NAME=value"},
		`a b c 'd e"f`: {6, "single quote"},
	} {
		got, err := Split(line)
		var bad *Error
		if !errors.As(err, &bad) {
			t.Errorf("%q: got %q, %v", line, got, err)
			continue
		}
		if bad.Pos != want.pos || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%q: at %d: %v; want at %d: %s", line, bad.Pos, err, want.pos, want.text)
		}
	}
	for _, line := range []string{"", " ", "\t\n", "\\\n"} {
		if got, err := Split(line); !errors.Is(err, ErrEmpty) {
			t.Errorf("%q: got %q, %v", line, got, err)
		}
	}
	if _, err := Split("a 'b"); err.Error() != "at character 3: this single quote is never closed" {
		t.Error(err)
	}
}

// shell asks a real shell for the words, with file name patterns off.
func shell(t interface{ Fatalf(string, ...any) }, line string) []string {
	out, err := exec.Command("/bin/sh", "-fc", `printf '%s\0' `+line).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: the shell says %v: %s", line, err, out)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

// TestAsTheShell: what Split takes, it takes as the shell does.
func TestAsTheShell(t *testing.T) {
	piece := rapid.SampledFrom([]string{"a", "b c", " ", "\t", "'", `"`, `\`, "\\\n", "$", "`", "|", "*", "~", "#", "=", "{", "}", "!", "é", "1", "-", "\n", `\"`, `'x y'`, `"z'"`})
	taken := 0
	rapid.Check(t, func(t *rapid.T) {
		line := "x " + strings.Join(rapid.SliceOfN(piece, 0, 8).Draw(t, "pieces"), "")
		got, err := Split(line)
		if err != nil {
			return
		}
		taken++
		if diff := cmp.Diff(shell(t, line), got); diff != "" {
			t.Fatalf("%q (-shell +skep):\n%s", line, diff)
		}
	})
	if taken < 5 {
		t.Errorf("only %d lines were taken", taken)
	}
}

func FuzzSplit(f *testing.F) {
	for _, s := range []string{"a b", `a 'b c' "d\"e" f\ g`, "A=b c", "a\nb", "a \\\nb", "\x00", `"\`, "~ #"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		got, err := Split(line)
		if err != nil {
			var bad *Error
			if errors.As(err, &bad) && (bad.Pos < 0 || bad.Pos >= len(line)) {
				t.Fatalf("%q: position %d", line, bad.Pos)
			}
			return
		}
		if len(got) == 0 {
			t.Fatalf("%q: no words and no error", line)
		}
		// Quoted again, the words come back.
		var quoted strings.Builder
		for _, w := range got {
			if strings.Contains(w, "\x00") {
				t.Fatalf("%q: NUL in %q", line, w)
			}
			quoted.WriteString("'" + strings.ReplaceAll(w, "'", `'\''`) + "' ")
		}
		again, err := Split(quoted.String())
		if err != nil || !cmp.Equal(got, again) {
			t.Fatalf("%q: %q, quoted again %q, %v", line, got, again, err)
		}
	})
}
