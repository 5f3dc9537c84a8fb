package main

import (
	"os"
	"strings"

	"skep/config"
)

// plainFlags reads what stands after "skep run" when it means the same to everybody:
// known flags, each with its value, then the command. Anything else (a flag that
// there is not, a missing value, help, another subcommand) is not for it, and ok is
// false: the library reads those and says what is wrong. It is here because the
// library, which first makes all flags and a few regular expressions over their
// names, takes longer than starting the command does (bench row startup).
func plainFlags(args []string) (in config.Input, ok bool) {
	if args[1] != "run" {
		return in, false
	}
	args = args[2:]
	var settings []config.Setting // the usual ENTRYPOINT has no flags and needs none
	in = config.Input{Flags: make(map[string][]string), Environ: os.Environ(), NeedsCommand: true}
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' {
		word := args[0]
		args = args[1:]
		if word == "--" {
			break
		}
		if settings == nil {
			settings = config.Settings()
		}
		name, value, found := strings.Cut(strings.TrimPrefix(word[1:], "-"), "=")
		s := setting(settings, name)
		switch {
		case s == nil:
			return in, false
		case found:
		case s.Switch():
			value = "true"
		case len(args) == 0:
			return in, false
		default:
			value, args = args[0], args[1:]
		}
		in.Flags[s.Name] = append(in.Flags[s.Name], value)
	}
	in.Command = args
	return in, true
}

// setting finds the setting that has this flag; nil if there is none.
func setting(settings []config.Setting, flag string) *config.Setting {
	for i := range settings {
		if s := &settings[i]; flag != "" && (flag == s.Name || flag == s.Short) {
			return s
		}
	}
	return nil
}
