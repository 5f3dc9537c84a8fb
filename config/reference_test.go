package config

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/reference.md anew")

const referenceFile = "../docs/reference.md"

// reference is docs/reference.md: what --help says, with the variables.
func reference() string {
	var b strings.Builder
	b.WriteString(`# Settings

Every setting is a flag and an environment variable; a flag beats the variable, and an empty variable is none.
Settings marked *repeat* take several values: the flag several times, or one value per line in the variable.
Sizes are bytes, or have a unit: ` + "`512M`, `512Mi`, `1.5Gi`" + `; lower-case ` + "`k`, `m`, `g`" + ` are powers of 1024, as for ` + "`docker run`" + `.
Times are Go durations, ` + "`500ms`, `30s`, `2m`" + `, or a number of seconds. Signals are names or numbers: ` + "`TERM`, `RTMIN+3`, `15`" + `.
A value that cannot be used ends skep with code 125 before anything is started; everything wrong is told at once.

<!-- Made by: go test ./config -update -->

| Flag | Variable | Default | Meaning |
|---|---|---|---|
`)
	cell := strings.NewReplacer("|", `\|`, "\n", " ").Replace
	code := func(s string) string { return "`" + cell(s) + "`" }
	for _, s := range Settings() {
		name := "--" + s.Name
		if !s.Switch() {
			name += " " + s.Placeholder
		}
		names := code(name)
		if s.Short != "" {
			names = code("-"+s.Short) + ", " + names
		}
		usage := cell(s.Usage)
		if s.Repeat {
			usage += " (*repeat*)"
		}
		def := cell(s.Default)
		switch {
		case s.Switch():
			def = "off"
		case def == "":
			def = "–"
		}
		b.WriteString("| " + names + " | " + code(s.Variable()) + " | " + def + " | " + usage + " |\n")
	}
	b.WriteString("\n`WEB_CONCURRENCY` is the number of workers when neither `--workers` nor `SKEP_WORKERS` is given;\n" +
		"one that is no number is told about and not used.\n")
	return b.String()
}

func TestReference(t *testing.T) {
	want := reference()
	if *update {
		if err := os.WriteFile(referenceFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != want {
		t.Error("docs/reference.md is stale: go test ./config -update")
	}
}
