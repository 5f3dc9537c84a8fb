package rows

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"skep/bench/peers"
	"skep/bench/stats"
)

const (
	bare     = "bare exec"
	emptyGo  = "empty Go program"
	bareInit = "no init (sh is PID 1)"
	plain    = "plain process"
	asPID1   = "as PID 1"
)

// initArgv returns the command line that runs argv under one of the inits.
func initArgv(e *Env, subject, dir string, argv ...string) ([]string, error) {
	with := func(tool string, before ...string) ([]string, error) {
		if err := e.Tools.Check(tool); err != nil {
			return nil, err
		}
		return append(append([]string{e.Tools.Path(tool)}, before...), argv...), nil
	}
	switch subject {
	case bare, bareInit:
		return argv, nil
	case emptyGo:
		if e.Empty == "" {
			return nil, &peers.MissingTool{Name: "bench/empty"}
		}
		return []string{e.Empty}, nil
	case "tini":
		return with("tini", "-s", "--")
	case "dumb-init", "catatonit":
		return with(subject)
	case "skep":
		return with("skep", "--")
	case "skep --mode init":
		return with("skep", "--mode", "init", "--")
	case "skep as tini":
		if err := e.Tools.Check("skep"); err != nil {
			return nil, err
		}
		link := filepath.Join(dir, "tini")
		if err := os.Symlink(e.Tools.Path("skep"), link); err != nil && !os.IsExist(err) {
			return nil, err
		}
		return append([]string{link, "-s", "--"}, argv...), nil
	}
	return nil, fmt.Errorf("no init %q", subject)
}

// namespace puts a command into a PID namespace of its own, with its own /proc,
// as a container would. It needs root.
func namespace(argv []string) ([]string, error) {
	if os.Geteuid() != 0 {
		return nil, Lacks{"needs root for a PID namespace"}
	}
	return append([]string{"unshare", "--pid", "--fork", "--kill-child", "--mount-proc"}, argv...), nil
}

func init() {
	inits := []string{bare, emptyGo, "tini", "dumb-init", "catatonit", "skep --mode init", "skep", "skep as tini"}
	var least []Goal
	for _, c := range []string{plain, asPID1} {
		for _, s := range []string{"skep --mode init", "skep as tini", "skep"} {
			least = append(least, Goal{Case: c, Subject: s, Metric: "over", AtMost: true, Bound: 2})
		}
	}
	register(&Row{
		Name:  "startup",
		Title: "Start-up overhead for one short command",
		Why: `The time from fork to the end of /bin/true, run in turn with a bare one, so that both meet the
same machine: the medians of 180 starts of each, after 20 that only warm the caches; as PID 1 everything, the bare
command too, is in a fresh PID namespace. tini, dumb-init and catatonit are small C programs that need one fork. skep
is a Go program, and an empty Go program in place of /bin/true, which starts nothing and ends at once, is what the
language costs: what is above that and above a fork is skep's own. Without --mode init and by a name that
is not an init's it has to prepare for a command that may turn out to be a server. Once per container, this is the
price of the rest.`,
		Cases:     []string{plain, asPID1},
		Subjects:  inits,
		Reference: []string{bare, emptyGo},
		Base:      "tini",
		Ratio:     "over",
		Metrics: []Metric{
			{Name: "over", Title: "over bare exec, ms", Digits: 2},
			{Name: "total", Title: "in all, ms", Digits: 2},
			{Name: "p90", Title: "p90 in all, ms", Digits: 2},
		},
		Goals: least,
		Runs:  2, Seconds: 30,
		Measure: startup,
	})
	register(&Row{
		Name:  "orphans",
		Title: "Reaping orphans",
		Why: `A program under the init makes 100 000 processes (5 000 in the quick form), one after the
other, whose parent is PID 1, as that of an orphan is, and which end at once: the init must wait for each. Processor time
is the init's own; the forks are most of the time in all and the same for everybody. The last column counts
what was still a zombie at the end: a process that nobody waits for stays in the table of the container, whose pids
are limited.`,
		Cases:     []string{asPID1},
		Subjects:  []string{bareInit, "tini", "dumb-init", "catatonit", "skep --mode init", "skep"},
		Reference: []string{bareInit},
		Base:      "tini",
		Ratio:     "cpu",
		Judged:    []string{"rss", "zombies"},
		Metrics: []Metric{
			{Name: "cpu", Title: "init's CPU per orphan, µs", Digits: 1},
			{Name: "total", Title: "in all, s", Digits: 1},
			{Name: "rss", Title: "init's peak RSS, MB", Digits: 1},
			{Name: "zombies", Title: "zombies left", Digits: 0},
		},
		Goals: []Goal{{Case: asPID1, Subject: "skep --mode init", Metric: "zombies", AtMost: true, Bound: 0}},
		Runs:  2, Seconds: 90,
		Limit:   10 * time.Minute,
		Measure: orphans,
	})
}

func startup(ctx context.Context, e *Env, j Job) (Sample, error) {
	dir, err := os.MkdirTemp("", "skep-bench-")
	if err != nil {
		return Sample{}, err
	}
	defer os.RemoveAll(dir)
	argv, err := initArgv(e, j.Subject, dir, "/bin/true")
	if err != nil {
		return Sample{}, err
	}
	base := []string{"/bin/true"}
	if j.Case == asPID1 {
		if argv, err = namespace(argv); err != nil {
			return Sample{}, err
		}
		if base, err = namespace(base); err != nil {
			return Sample{}, err
		}
	}
	n := pick(e, 200, 40)
	var with, without []float64
	for i := range n {
		if ctx.Err() != nil {
			return Sample{}, context.Cause(ctx)
		}
		a, err := timeOnce(dir, argv)
		if err != nil {
			return Sample{}, err
		}
		b, err := timeOnce(dir, base)
		if err != nil {
			return Sample{}, err
		}
		// The first ones read the programs from disk.
		if i >= n/10 {
			with, without = append(with, a), append(without, b)
		}
	}
	q := stats.Quantiles(with, 0.5, 0.9)
	return Sample{Values: Values{"total": q[0], "p90": q[1], "over": q[0] - stats.Quantile(without, 0.5)}}, nil
}

// timeOnce runs argv and returns the milliseconds from before its fork to
// after its end. It fails for any code but 0.
func timeOnce(dir string, argv []string) (float64, error) {
	path := argv[0]
	if !strings.Contains(path, "/") {
		path = "/usr/bin/" + path
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	attr := &syscall.ProcAttr{
		Dir: dir, Env: []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin"}, Files: []uintptr{0, log.Fd(), log.Fd()},
	}
	begin := time.Now()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return 0, fmt.Errorf("cannot start %s: %w", filepath.Base(path), err)
	}
	var ws syscall.WaitStatus
	for {
		if _, err = syscall.Wait4(pid, &ws, 0, nil); err != syscall.EINTR {
			break
		}
	}
	took := ms(time.Since(begin))
	if err != nil {
		return 0, fmt.Errorf("cannot wait for %s: %w", filepath.Base(path), err)
	}
	if ws.ExitStatus() != 0 {
		text, _ := os.ReadFile(filepath.Join(dir, "log"))
		return 0, &peers.Ended{Code: ws.ExitStatus(), Log: strings.TrimSpace(string(text))}
	}
	return took, nil
}

func orphans(ctx context.Context, e *Env, j Job) (Sample, error) {
	if e.Orphans == "" {
		return Sample{}, &peers.MissingTool{Name: "bench/orphans"}
	}
	dir, err := peers.Scratch()
	if err != nil {
		return Sample{}, err
	}
	n := pick(e, 100_000, 5_000)
	// The zombies are counted when they have had a second to go.
	script := fmt.Sprintf(`%s %d || exit 1
i=0
until [ -e done ]; do [ $i -lt 3000 ] || exit 1; i=$((i+1)); sleep 0.2; done
sleep 1
cat /proc/1/schedstat /proc/1/task/*/schedstat > sched
grep VmHWM /proc/1/status > peak
grep -ls '^State:.Z' /proc/[0-9]*/status | wc -l > zombies
`, e.Orphans, n)
	path := filepath.Join(dir, "orphans.sh")
	if err := os.WriteFile(path, []byte(script), 0o644); err != nil {
		os.RemoveAll(dir)
		return Sample{}, err
	}
	argv, err := initArgv(e, j.Subject, dir, "/bin/sh", path)
	if err == nil {
		argv, err = namespace(argv)
	}
	if err != nil {
		os.RemoveAll(dir)
		return Sample{}, err
	}
	p, err := peers.Launch(dir, argv, nil, nil)
	if err != nil {
		os.RemoveAll(dir)
		return Sample{}, err
	}
	defer p.End()
	select {
	case <-p.Done():
	case <-ctx.Done():
		return Sample{}, context.Cause(ctx)
	}
	code, at := p.Result()
	if code != 0 {
		return Sample{}, &peers.Ended{Code: code, Log: p.Log(2)}
	}
	read := func(name string) []string {
		b, _ := os.ReadFile(filepath.Join(dir, name))
		return strings.Fields(string(b))
	}
	sched, peak, zombies := read("sched"), read("peak"), read("zombies")
	if len(sched) < 6 || len(peak) < 2 || len(zombies) < 1 {
		return Sample{}, fmt.Errorf("the shell could not read the init's figures")
	}
	// The first line is the process (its first thread alone), then one line of
	// three numbers per thread.
	ns := 0.0
	for i := 3; i < len(sched); i += 3 {
		x, _ := strconv.ParseFloat(sched[i], 64)
		ns += x
	}
	kb, _ := strconv.ParseFloat(peak[1], 64)
	left, _ := strconv.ParseFloat(zombies[0], 64)
	cpu := ns / 1e3 / float64(n)
	if j.Subject == bareInit {
		cpu = math.NaN() // the shell's own work is in it
	}
	return Sample{Values: Values{
		"cpu": cpu, "total": at.Sub(p.Started).Seconds(), "rss": kb / 1024, "zombies": left,
	}}, nil
}

func init() {
	register(&Row{
		Name:  "idle",
		Title: "What the manager costs when nothing happens",
		Why: `Wake-ups, memory and processor time of the manager alone, without its workers, while nothing happens;
the workers are sleeping processes, or for "skep, serving" examples/hello on one shared port, so that skep holds
sockets for them. dumb-init and catatonit wait in one system call without a limit, tini looks around once a second; all three
run one command. gunicorn and supervisord are loops with a timer of a second, too; s6 has one small process per service. A wake-up keeps a core from deep sleep and is what one pays for per container on a
node with hundreds of them. skep sleeps without a timer unless something is due; the samples of memory are the exception, every 30 s far from
the limit. RSS counts pages that are shared with others, PSS divides them: for skep both are the runtime of Go. "skep" runs workers that never listen and counts
them as ready after 10 s; the clock of the row starts after that. All managers sit side by side, in all cases, each as
PID 1 of a namespace of its own: who does nothing takes nothing from the others, and all start before the first one is measured.
Only PSS could tell, because it divides a file's pages among all that run the file: skep's three ways run a copy of the binary each, so that none
is divided; s6, and gunicorn with supervisord, share theirs with those of the other cases, which is to their advantage.`,
		Cases:    []string{"1", "8", "32", "128"},
		Subjects: []string{"tini", "dumb-init", "catatonit", "s6", "skep --mode init", "skep", "skep, serving", "gunicorn sync", "supervisord"},
		Base:     "supervisord",
		Ratio:    "wakeups",
		Judged:   []string{"rss", "pss"},
		Metrics: []Metric{
			{Name: "wakeups", Title: "wake-ups in 60 s", Digits: 0},
			{Name: "rss", Title: "RSS, MB", Digits: 1},
			{Name: "pss", Title: "PSS, MB", Digits: 1},
			{Name: "cpu", Title: "CPU in 60 s, ms", Digits: 1},
			{Name: "threads", Title: "threads", Digits: 0},
		},
		Goals: []Goal{
			// A sample of the memory every 30 s may be taken: a handful of wake-ups each.
			{Case: "1", Subject: "skep --mode init", Metric: "wakeups", AtMost: true, Bound: 0},
			{Case: "1", Subject: "skep --mode init", Metric: "rss", AtMost: true, Bound: 5},
			// A tenth of one a second.
			{Case: "8", Subject: "skep, serving", Metric: "wakeups", AtMost: true, Bound: 6},
			{Case: "32", Subject: "skep, serving", Metric: "wakeups", AtMost: true, Bound: 20},
		},
		Runs: 2, Seconds: 110,
		Together: true,
		Limit:    5 * time.Minute,
		Measure:  idle,
	})
}

func idle(ctx context.Context, e *Env, j Job) (Sample, error) {
	n, err := strconv.Atoi(j.Case)
	if err != nil {
		return Sample{}, err
	}
	p, err := idleStart(ctx, e, j.Subject, n)
	if err != nil {
		return Sample{}, err
	}
	defer p.End()
	main, err := idleMain(ctx, p)
	if err != nil {
		return Sample{}, err
	}
	if err := j.meet(ctx); err != nil {
		return Sample{}, err
	}
	// What the start still does must be over: imports, and the 10 s after which
	// a worker of skep that never listens counts as ready.
	if err := pause(ctx, pick(e, 12*time.Second, 3*time.Second)); err != nil {
		return Sample{}, err
	}
	pids := []int{main}
	if j.Subject == "s6" {
		for _, st := range peers.Descendants(main) {
			if st.Parent == main {
				pids = append(pids, st.PID)
			}
		}
	}
	type figures struct{ wake, cpu int64 }
	take := func() (f figures, err error) {
		for _, pid := range pids {
			w, err := peers.Wakeups(pid)
			if err != nil {
				return f, err
			}
			c, err := peers.CPU(pid)
			if err != nil {
				return f, err
			}
			f.wake, f.cpu = f.wake+w, f.cpu+c
		}
		return f, nil
	}
	a, err := take()
	if err != nil {
		return Sample{}, err
	}
	begin := time.Now()
	if err := pause(ctx, pick(e, 60*time.Second, 5*time.Second)); err != nil {
		return Sample{}, err
	}
	b, err := take()
	if err != nil {
		return Sample{}, fmt.Errorf("the manager has gone: %w", err)
	}
	minute := 60 / time.Since(begin).Seconds()
	var mem peers.Memory
	threads := 0
	for _, pid := range pids {
		m, err := peers.ReadMemory(pid)
		if err != nil {
			return Sample{}, err
		}
		mem.RSS, mem.PSS = mem.RSS+m.RSS, mem.PSS+m.PSS
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		threads += len(tasks)
	}
	// Nobody goes before all are measured: an end is not nothing.
	if err := j.meet(ctx); err != nil {
		return Sample{}, err
	}
	return Sample{Values: Values{
		"wakeups": math.Round(float64(b.wake-a.wake) * minute), "cpu": float64(b.cpu-a.cpu) / 1e6 * minute,
		"rss": float64(mem.RSS) / (1 << 20), "pss": float64(mem.PSS) / (1 << 20), "threads": float64(threads),
	}}, nil
}

// idleMain finds the manager: the namespace's PID 1, below unshare.
func idleMain(ctx context.Context, p *peers.Process) (int, error) {
	main := 0
	err := p.WaitFor(ctx, 10*time.Second, func() bool {
		for _, st := range peers.Descendants(p.PID) {
			if st.Parent == p.PID {
				main = st.PID
				return true
			}
		}
		return false
	})
	return main, err
}

// idleStart starts the subject with n workers as PID 1 of a namespace.
func idleStart(ctx context.Context, e *Env, subject string, n int) (*peers.Process, error) {
	dir, err := peers.Scratch()
	if err != nil {
		return nil, err
	}
	argv, ready, err := idleArgv(e, subject, n, dir)
	if err == nil && strings.HasPrefix(subject, "skep") {
		// Other ways to run skep are measured at the same time; see PSS in Why.
		argv[0], err = ownCopy(argv[0], dir)
	}
	if err == nil {
		argv, err = namespace(argv)
	}
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	p, err := peers.Launch(dir, argv, nil, nil)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	// All workers are there when the tree has them: each is a process below
	// the manager (and below unshare). To look is to read about every process of the
	// machine; with all subjects doing it, more often would keep them from starting.
	var looked time.Time
	if err := p.WaitFor(ctx, 2*time.Minute, func() bool {
		if time.Since(looked) < 200*time.Millisecond {
			return false
		}
		defer func() { looked = time.Now() }()
		return ready(p)
	}); err != nil {
		p.End()
		return nil, err
	}
	return p, nil
}

// ownCopy copies a program into dir and returns the copy's path: whoever runs
// it shares no page of the file with those that run the original.
func ownCopy(path, dir string) (string, error) {
	from, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer from.Close()
	name := filepath.Join(dir, filepath.Base(path))
	to, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return "", err
	}
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		return "", fmt.Errorf("cannot copy %s: %w", filepath.Base(path), err)
	}
	return name, to.Close()
}

func idleArgv(e *Env, subject string, n int, dir string) (argv []string, ready func(*peers.Process) bool, err error) {
	sleep := []string{"/bin/sleep", "3600"}
	// named counts the live processes of that name.
	named := func(want string, n int) func(*peers.Process) bool {
		return func(p *peers.Process) bool {
			found := 0
			for _, st := range peers.Descendants(p.PID) {
				b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", st.PID))
				if strings.TrimSpace(string(b)) == want {
					found++
				}
			}
			return found >= n
		}
	}
	switch subject {
	case "tini", "dumb-init", "catatonit", "skep --mode init":
		if n > 1 {
			return nil, nil, Lacks{"runs one command"}
		}
		argv, err = initArgv(e, subject, dir, sleep...)
		return argv, named("sleep", 1), err
	case "skep":
		if err := e.Tools.Check("skep"); err != nil {
			return nil, nil, err
		}
		return append(peers.SkepFlags(e.Tools, peers.Config{Workers: n}), sleep...), named("sleep", n), nil
	case "skep, serving":
		if err := e.Tools.Check("skep"); err != nil {
			return nil, nil, err
		}
		if e.Hello == "" {
			return nil, nil, &peers.MissingTool{Name: "examples/hello"}
		}
		port, err := peers.FreePort()
		if err != nil {
			return nil, nil, err
		}
		argv = append(peers.SkepFlags(e.Tools, peers.Config{Workers: n}), e.Hello, "-addr", fmt.Sprintf("127.0.0.1:%d", port))
		return argv, named("hello", n), nil
	case "gunicorn sync":
		if err := e.Tools.Check("python", "gunicorn"); err != nil {
			return nil, nil, err
		}
		port, err := peers.FreePort()
		if err != nil {
			return nil, nil, err
		}
		argv = []string{e.Tools.Python, "-m", "gunicorn", "-w", strconv.Itoa(n), "-b", fmt.Sprintf("127.0.0.1:%d", port), "app:wsgi"}
		return argv, func(p *peers.Process) bool { return len(p.Spawns()) >= n }, nil
	case "supervisord":
		if err := e.Tools.Check("supervisord"); err != nil {
			return nil, nil, err
		}
		conf := fmt.Sprintf("[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile=%s/pid\nuser=root\n"+
			"[program:sleep]\ncommand=%s\nprocess_name=%%(process_num)d\nnumprocs=%d\n", dir, strings.Join(sleep, " "), n)
		path := filepath.Join(dir, "supervisord.conf")
		if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
			return nil, nil, err
		}
		return []string{e.Tools.Path("supervisord"), "-c", path}, named("sleep", n), nil
	case "s6":
		if err := e.Tools.Check("s6"); err != nil {
			return nil, nil, err
		}
		for i := range n {
			svc := filepath.Join(dir, "services", strconv.Itoa(i))
			if err := os.MkdirAll(svc, 0o755); err != nil {
				return nil, nil, err
			}
			if err := os.WriteFile(filepath.Join(svc, "run"), []byte("#!/bin/sh\nexec "+strings.Join(sleep, " ")+"\n"), 0o755); err != nil {
				return nil, nil, err
			}
		}
		return []string{e.Tools.Path("s6"), filepath.Join(dir, "services")}, named("sleep", n), nil
	}
	return nil, nil, fmt.Errorf("no manager %q", subject)
}
