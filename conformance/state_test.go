package conformance

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"skep/internal/nstest"
)

// facts is what the command sees of its own state.
type facts map[string][]string

func (r *run) facts(set setup) facts {
	r.t.Helper()
	p := r.start(set, built.probe, "facts")
	p.wantCode(0)
	out, _ := p.output()
	found := facts{}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		found[key] = append(found[key], value)
	}
	if len(found["pid"]) != 1 {
		r.failf("no facts: %q%s", out, p.said())
	}
	return found
}

func (r *run) wantFact(f facts, key, want string) {
	r.t.Helper()
	if got := strings.Join(f[key], " "); got != want {
		r.failf("%s is %q instead of %q", key, got, want)
	}
}

// stateCases are about what the command inherits: everything of the caller's, nothing of the init's.
func stateCases() []*testcase {
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script + `; exec "$@"`, "sh"} }
	return []*testcase{
		{name: "signals-clean", mode: plain, what: "no signal is blocked, ignored or caught in the command", defects: []string{"block-term", "ignore-pipe"}, run: func(r *run) {
			f := r.facts(setup{})
			r.wantFact(f, "SigBlk", "0")
			r.wantFact(f, "SigIgn", "0")
			r.wantFact(f, "SigCgt", "0")
		}},
		{name: "signals-clean", mode: pid1, what: "no signal is blocked, ignored or caught in the command", defects: []string{"block-term", "ignore-pipe"}, run: func(r *run) {
			f := r.facts(setup{})
			r.wantFact(f, "SigBlk", "0")
			r.wantFact(f, "SigIgn", "0")
			r.wantFact(f, "SigCgt", "0")
		}},
		{name: "sigpipe", mode: plain, what: "a writer to a pipe that nobody reads ends by PIPE", defects: []string{"ignore-pipe"}, run: func(r *run) {
			p := r.start(setup{}, "bash", "-c", `yes 2>/dev/null | head -n 1 >/dev/null; echo ${PIPESTATUS[0]}`)
			p.expect("141")
			p.wantCode(0)
		}},
		{name: "descriptors", mode: plain, what: "an inherited descriptor 7 is there; nothing of the init's own leaks", defects: []string{"leak-fd", "close-fds"}, run: func(r *run) {
			null, err := os.Open("/dev/null")
			r.must(err)
			defer null.Close()
			f := r.facts(setup{extra: []*os.File{nil, nil, nil, nil, null}})
			var fds []string
			for _, fd := range f["fd"] {
				n, _, _ := strings.Cut(fd, ":")
				fds = append(fds, n)
			}
			if !slices.Equal(fds, []string{"0", "1", "2", "7"}) {
				r.failf("the command has descriptors %v instead of 0, 1, 2, 7", fds)
			}
		}},
		{name: "streams-same", mode: plain, what: "stdout and stderr are the init's own open files, not copies", defects: []string{"copy-output"}, run: func(r *run) {
			pr, pw, err := os.Pipe()
			r.must(err)
			defer pr.Close()
			defer pw.Close()
			var st unix.Stat_t
			r.must(unix.Fstat(int(pw.Fd()), &st))
			f := r.facts(setup{stderr: pw})
			if want := fmt.Sprintf("2:%d", st.Ino); !slices.Contains(f["fd"], want) {
				r.failf("descriptor 2 is not inode %d: %v", st.Ino, f["fd"])
			}
			// stdout through a file: its inode must be the one that the command has.
			file, err := os.CreateTemp(r.dir, "out")
			r.must(err)
			defer file.Close()
			r.must(unix.Fstat(int(file.Fd()), &st))
			r.start(setup{stdout: file}, built.probe, "facts").wantCode(0)
			text, err := os.ReadFile(file.Name())
			r.must(err)
			if want := fmt.Sprintf("fd=1:%d\n", st.Ino); !strings.Contains(string(text), want) {
				r.failf("descriptor 1 is not inode %d", st.Ino)
			}
		}},
		{name: "cwd", mode: plain, what: "the command starts in the caller's directory", defects: []string{"child-cwd"}, run: func(r *run) {
			r.wantFact(r.facts(setup{dir: r.dir}), "cwd", r.dir)
		}},
		{name: "cwd-own", mode: plain, what: "the init itself goes to /, so that it keeps no file system busy", defects: []string{"keep-cwd"}, run: func(r *run) {
			p := r.start(setup{dir: r.dir}, built.probe, "wait")
			p.expect("ready")
			cwd := ""
			r.eventually(r.patient, "the init's directory is /", func() bool {
				cwd, _ = os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.pid))
				return cwd == "/"
			})
		}},
		{name: "env-untouched", mode: plain, what: "the environment arrives as it is, order and odd entries included", defects: []string{"add-env"}, run: func(r *run) {
			env := []string{"PATH=/usr/bin:/bin", "Z=1", "A=", "=odd", "UTF=ünï", "BROKEN=\xff", "noequals", "SPACES= a b ", "GODEBUG=asyncpreemptoff=0", "GOGC=50", "WEB_CONCURRENCY=3"}
			p := r.start(setup{env: env}, built.probe, "env")
			p.wantCode(0)
			if out, _ := p.output(); out != strings.Join(env, "\x00")+"\x00" {
				r.failf("environment is %q", out)
			}
		}},
		{name: "umask", mode: plain, what: "the umask is the caller's", defects: []string{"umask"}, run: func(r *run) {
			r.wantFact(r.facts(setup{wrapper: sh("umask 0137")}), "umask", "137")
		}},
		{name: "rlimit-nofile", mode: plain, what: "soft and hard limit of open files are the caller's (Go raises its own)", defects: []string{"nofile"}, run: func(r *run) {
			r.wantFact(r.facts(setup{wrapper: sh("ulimit -S -n 256 && ulimit -H -n 1000")}), "nofile", "256:1000")
		}},
		{name: "nice", mode: plain, what: "the nice value is the caller's", defects: []string{"nice"}, run: func(r *run) {
			own, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // the system call's answer is 20 minus the value
			r.must(err)
			r.wantFact(r.facts(setup{wrapper: []string{"/usr/bin/nice", "-n", "5"}}), "nice", strconv.Itoa(20-own+5))
		}},
		{name: "oom-score-adj", mode: plain, what: "oom_score_adj is the caller's", defects: []string{"oom"}, run: func(r *run) {
			r.wantFact(r.facts(setup{wrapper: sh("echo 321 >/proc/self/oom_score_adj")}), "oom", "321")
		}},
		{name: "no-new-privs", mode: plain, what: "no_new_privs is not set behind the caller's back", defects: []string{"nnp"}, run: func(r *run) {
			r.wantFact(r.facts(setup{}), "nnp", "0")
		}},
		{name: "bare-room", mode: pid1, what: "works without /proc, /sys, /dev and HOME, orphans included", defects: []string{"needs-proc", "needs-dev", "needs-home"}, run: func(r *run) {
			if r.s.path == "/usr/bin/catatonit" && os.Geteuid() != 0 {
				r.na("catatonit wants root here")
			}
			set := setup{env: []string{"PATH=/usr/bin:/bin"}, spec: nstest.Spec{Hide: []string{"/proc", "/sys", "/dev"}}}
			p := r.start(set, built.probe, "orphans", "20", "7")
			p.expect("ready")
			p.signal(int(syscall.SIGUSR1))
			p.wantCode(7)
		}},
		{name: "read-only", mode: pid1, what: "works on a read-only root, without a network", defects: []string{"writes-root"}, run: func(r *run) {
			p := r.start(setup{spec: nstest.Spec{ReadOnly: true, Network: true}}, built.probe, "orphans", "20", "7")
			p.expect("ready")
			p.signal(int(syscall.SIGUSR1))
			p.wantCode(7)
		}},
		{name: "parent-death", mode: plain, what: "the init gets the chosen signal when its parent dies, and sends it on", defects: []string{"no-pdeathsig"}, run: func(r *run) {
			// The shell is the parent; it goes when its stdin does. The init then belongs to someone else and is found by its pid.
			pr, pw, err := os.Pipe()
			r.must(err)
			defer pw.Close()
			args, ok := r.s.args(options{pdeath: 10}, built.probe, "stubborn", "7")
			if !ok {
				r.na("no such option")
			}
			argv := append([]string{"sh", "-c", `"$@" & echo $!; read x <&3`, "sh", r.link()}, args...)
			p := r.launch(&exec.Cmd{Path: "/bin/sh", Args: argv, Env: cleanEnv, ExtraFiles: []*os.File{pr}}, nil, nil)
			pr.Close()
			// The shell's line and the probe's may come in either order.
			first, _ := p.line(r.patient)
			second, _ := p.line(r.patient)
			if first == "ready" {
				first, second = second, first
			}
			pid, err := strconv.Atoi(first)
			if err != nil || second != "ready" {
				r.failf("got %q and %q instead of a pid and ready%s", first, second, p.said())
			}
			r.later(func() { unix.Kill(pid, unix.SIGKILL) })
			pw.Close()
			p.expect("got 10")
		}},
	}
}
