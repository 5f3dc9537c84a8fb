package conformance

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// exitCases are about how an end, or a start that fails, is told.
func exitCases() []*testcase {
	return []*testcase{
		{name: "exit-codes", mode: plain, what: "every exit code 0 to 255 is passed on", defects: []string{"lose-code", "127-is-ours"}, run: func(r *run) {
			for code := range 256 {
				r.start(setup{}, built.probe, "exit", strconv.Itoa(code)).wantCode(code)
			}
		}},
		{name: "exit-codes", mode: pid1, what: "exit codes 0, 1, 7, 125 to 127, 255 are passed on", defects: []string{"lose-code", "127-is-ours"}, run: func(r *run) {
			for _, code := range []int{0, 1, 7, 125, 126, 127, 255} {
				r.start(setup{}, built.probe, "exit", strconv.Itoa(code)).wantCode(code)
			}
		}},
		{name: "exit-300", mode: plain, what: "exit(300) is 44", defects: []string{"lose-code"}, run: func(r *run) {
			r.start(setup{}, built.probe, "exit", "300").wantCode(44)
		}},
		{name: "exit-by-signal", mode: plain, what: "death by a signal is 128 + its number", defects: []string{"signal-is-255"}, run: func(r *run) {
			for _, n := range []int{15, 1, 3, 9, 11, 2, 6, 35, 64} {
				r.start(setup{}, built.probe, "die", strconv.Itoa(n)).wantCode(128 + n)
			}
		}},
		{name: "instant-exit", mode: plain, what: "500 commands that end at once: always the right code", defects: []string{"lose-code"}, run: func(r *run) {
			for range 500 {
				r.start(setup{}, built.probe, "exit", "7").wantCode(7)
			}
		}},
		{name: "remap", mode: plain, what: "chosen exit codes become 0, others stay", defects: []string{"no-remap"}, run: func(r *run) {
			set := setup{options: options{remap: []string{"3", "143", "255"}}}
			for code, want := range map[string]int{"3": 0, "143": 0, "255": 0, "0": 0, "4": 4, "254": 254} {
				r.start(set, built.probe, "exit", code).wantCode(want)
			}
			r.start(set, built.probe, "die", "15").wantCode(0)
		}},
		{name: "remap-refused", mode: plain, what: "−1, 256 and words are no exit codes: usage error, nothing runs", defects: []string{"lax-flags"}, run: func(r *run) {
			for _, bad := range []string{"-1", "256", "abc"} {
				r.refused(setup{options: options{remap: []string{bad}}})
			}
		}},
		{name: "not-found", mode: plain, what: "a command that does not exist: 127, named on stderr, stdout empty",
			defects: []string{"exec-is-1", "silent-exec", "stdout-exec"}, run: func(r *run) {
				r.execFailure(127, "no-such-program-anywhere")
				r.execFailure(127, "/no/such/program")
				r.execFailure(127, "./no-such-program")
			}},
		{name: "not-executable", mode: plain, what: "a directory, a file without x: 126, named on stderr", defects: []string{"exec-is-1"}, run: func(r *run) {
			r.execFailure(126, r.dir)
			file := filepath.Join(r.dir, "plain-file")
			r.must(os.WriteFile(file, []byte("#!/bin/sh\n"), 0o644))
			r.execFailure(126, file)
		}},
		{name: "bad-interpreter", mode: plain, what: "#! with an interpreter that does not exist: 127", defects: []string{"exec-is-1"}, run: func(r *run) {
			r.execFailure(127, r.script("#!/no/such/interpreter\n"))
		}},
		{name: "no-shebang", mode: plain, what: "a script without #! is run by /bin/sh, as execvp(3) does", defects: []string{"no-shell"}, run: func(r *run) {
			p := r.start(setup{}, r.script("test \"$1\" = \"a b\" && exit 7\n"), "a b")
			p.wantCode(7)
		}},
		{name: "path-search", mode: plain, what: "PATH unset, an empty element, a relative one: as execvp(3) does", defects: []string{"no-path"}, run: func(r *run) {
			r.program("here", "#!/bin/sh\nexit 7\n")
			r.start(setup{env: []string{"A=b"}}, "sh", "-c", "exit 7").wantCode(7)
			r.start(setup{env: []string{"PATH=/nowhere:"}, dir: r.dir}, "here").wantCode(7)
			r.start(setup{env: []string{"PATH=/nowhere:.:/usr/bin"}, dir: r.dir}, "here").wantCode(7)
			// A file that cannot be executed does not hide one that can, further on.
			first := filepath.Join(r.dir, "first")
			r.must(os.Mkdir(first, 0o755))
			r.must(os.WriteFile(filepath.Join(first, "here"), nil, 0o644))
			r.start(setup{env: []string{"PATH=" + first + ":" + r.dir}}, "here").wantCode(7)
		}},
		{name: "usage", mode: plain, what: "no command, an unknown flag: one code, neither 0, 126 nor 127, and words on stderr", defects: []string{"usage-is-0"}, run: func(r *run) {
			none := r.refused(setup{argv: append([]string{}, r.s.flags...)})
			unknown := r.refused(setup{argv: append(append([]string{}, r.s.flags...), "-7", "--", built.probe, "exit", "0")})
			if none != unknown {
				r.failf("code %d without a command, %d for an unknown flag", none, unknown)
			}
		}},
		{name: "version", mode: plain, what: "--version prints one on stdout, also without HOME, PATH or anything", defects: []string{"no-version"}, run: func(r *run) {
			argv := []string{"--version"}
			if r.s.manners == asBadInit {
				argv = append(append([]string{}, r.s.flags...), argv...)
			}
			p := r.start(setup{argv: argv, env: []string{}})
			p.wantCode(0)
			if out, _ := p.output(); !strings.ContainsAny(out, "0123456789") {
				r.failf("stdout is %q", out)
			}
		}},
		{name: "options-end", mode: plain, what: "after -- all words are the command's, even a program named -h", defects: []string{"flags-after"}, run: func(r *run) {
			r.program("-h", "#!/bin/sh\necho \"-h $*\"\n")
			set := setup{env: []string{"PATH=" + r.dir + ":/usr/bin:/bin"}}
			p := r.start(set, "-h", "-x", "--", "--help")
			p.expect("-h -x -- --help")
			p.wantCode(0)
		}},
		{name: "options-first-word", mode: plain, what: "without --, the first word that is no flag ends the flags", defects: []string{"permute"}, run: func(r *run) {
			args, _ := r.s.args(options{}, built.probe, "args", "-g", "-s", "--help")
			for i, word := range args {
				if word == "--" {
					args = append(args[:i:i], args[i+1:]...)
					break
				}
			}
			p := r.start(setup{argv: args})
			if out, _ := p.output(); out != strings.Join([]string{built.probe, "args", "-g", "-s", "--help", ""}, "\x00") {
				r.failf("the command saw %q%s", out, p.said())
			}
		}},
		{name: "args-exact", mode: plain, what: "arguments arrive byte for byte: empty, blanks, newlines, UTF-8, broken UTF-8, 200 KB", defects: []string{"drop-empty"}, run: func(r *run) {
			words := []string{built.probe, "args", "", " ", "a  b", "\t\n", "ünï", "\xff\xfe", "-", "--", "$HOME", "'\"", strings.Repeat("x", 100<<10), strings.Repeat("y", 100<<10), ""}
			p := r.start(setup{}, words...)
			p.wantCode(0)
			if out, _ := p.output(); out != strings.Join(words, "\x00")+"\x00" {
				r.failf("%d bytes of arguments arrived changed (%d)", len(strings.Join(words, "\x00"))+1, len(out))
			}
		}},
		{name: "quiet", mode: plain, what: "not PID 1, nothing asked for: it runs the command and says nothing", defects: []string{"noisy"}, run: func(r *run) {
			p := r.start(setup{}, built.probe, "exit", "0")
			p.wantCode(0)
			if out, errs := p.output(); out != "" || errs != "" {
				r.failf("stdout %q, stderr %q", out, errs)
			}
		}},
		{name: "closed-streams", mode: plain, what: "stdin, stdout and stderr closed, or a stderr that nobody reads: the command runs and its code counts", defects: []string{"needs-stderr"}, run: func(r *run) {
			broken := func() *os.File {
				pr, pw, err := os.Pipe()
				r.must(err)
				pr.Close()
				r.later(func() { pw.Close() })
				return pw
			}
			r.start(setup{stdout: broken(), stderr: broken()}, built.probe, "exit", "7").wantCode(7)
			r.start(setup{wrapper: []string{"/bin/sh", "-c", `exec "$@" <&- >&- 2>&-`, "sh"}}, built.probe, "exit", "7").wantCode(7)
			if r.s.known["not-found"] == "" && !(r.s.manners == asDumbInit || r.s.manners == asCatatonit) {
				r.start(setup{stdout: broken(), stderr: broken()}, "/no/such/program").wantCode(127)
			}
		}},
	}
}

// script is the path of an executable file with this text.
func (r *run) script(text string) string { return r.program("script", text) }

// program makes an executable file in the run's folder.
func (r *run) program(name, text string) string {
	path := filepath.Join(r.dir, name)
	// A child that a parallel case forks in this moment would inherit the open file, and executing it would fail with ETXTBSY.
	syscall.ForkLock.RLock()
	err := os.WriteFile(path, []byte(text), 0o755)
	syscall.ForkLock.RUnlock()
	r.must(err)
	return path
}

// execFailure runs what cannot be run and wants this code, the command's name on stderr and nothing on stdout.
func (r *run) execFailure(code int, command string) {
	r.t.Helper()
	p := r.start(setup{}, command)
	p.wantCode(code)
	stdout, stderr := p.output()
	if stdout != "" {
		r.failf("%s: stdout is %q", command, stdout)
	}
	if !strings.Contains(stderr, strings.TrimPrefix(command, "./")) {
		r.failf("stderr %q does not name %s", stderr, command)
	}
}

// refused starts the init in a way that it has to refuse, and is the code it ends with.
func (r *run) refused(set setup) int {
	r.t.Helper()
	p := r.start(set, built.probe, "env")
	code, sig := p.ended(r.patient)
	stdout, stderr := p.output()
	if sig != 0 || code == 0 || code == 126 || code == 127 {
		r.failf("%q ended with %d, signal %d", p.cmd.Args, code, sig)
	}
	if strings.Contains(stdout, "PATH=") {
		r.failf("%q ran the command", p.cmd.Args)
	}
	if strings.TrimSpace(stderr) == "" {
		r.failf("%q says nothing on stderr", p.cmd.Args)
	}
	return code
}
