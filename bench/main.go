// Bench measures skep beside the programs that people use in its place, and
// writes docs/benchmarks.md with the raw data and the pictures. It installs
// nothing: what is missing on the machine is named and its cells stay empty.
//
//	go run ./bench -skep build/skep              # everything, about an hour
//	go run ./bench -skep build/skep -quick       # a few minutes
//	go run ./bench -rows tail,crash -runs 3      # some rows; the others keep their figures
//	go run ./bench -resume                       # what a run of today that was interrupted lacks
//
// It needs python3 with uvicorn and gunicorn (Debian: python3-uvicorn gunicorn),
// and for all rows root, docker, nodejs, nginx, supervisor, tini, dumb-init,
// catatonit and s6.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skep/bench/peers"
	"skep/bench/report"
	"skep/bench/rows"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	skep := flag.String("skep", "build/skep", "the skep binary to measure")
	python := flag.String("python", "/usr/bin/python3", "a python that can import uvicorn and gunicorn")
	names := flag.String("rows", "", "rows to measure, comma separated; all if empty")
	subjects := flag.String("subjects", "", "subjects to measure, separated by semicolons; all if empty")
	cases := flag.String("cases", "", "cases to measure, separated by semicolons; all if empty")
	runs := flag.Int("runs", 0, "runs of every measurement; each row's own number if 0")
	quick := flag.Bool("quick", false, "short windows and one run: proves the harness, not the figures")
	out := flag.String("out", "docs", "folder for benchmarks.md, benchmarks.json and img/")
	nice := flag.Int("nice", 0, "scheduling priority of the subjects, as nice(2); below 0 for a machine that is busy with other things")
	seed := flag.Uint64("seed", 1, "seed of the arrivals")
	resume := flag.Bool("resume", false, "leave out the rows that were measured today with this skep")
	list := flag.Bool("list", false, "list the rows, how long they take and what is missing here, and measure nothing")
	draw := flag.Bool("draw", false, "write page and pictures anew from the raw data, and measure nothing")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unknown argument %q", flag.Arg(0))
	}
	given := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if *runs < 0 {
		return fmt.Errorf("cannot measure %d times", *runs)
	}
	if *quick && *runs == 0 {
		*runs = 1
	}
	if *quick && !given["out"] {
		// Figures of the quick form must not replace those of a full run.
		*out = filepath.Join("build", "bench")
	}

	raw := filepath.Join(*out, "benchmarks.json")
	results, err := report.Read(raw)
	if err != nil {
		return err
	}
	if *draw {
		return results.Write(*out)
	}
	chosen, err := choose(*names)
	if err != nil {
		return err
	}
	if abs, err := filepath.Abs(*skep); err == nil {
		*skep = abs
	}
	if _, err := os.Stat(*skep); err != nil {
		*skep = ""
	}
	tools := peers.FindTools(*skep, *python)
	for _, m := range tools.Missing() {
		fmt.Fprintf(os.Stderr, "bench: %s is not here: its cells stay empty\n", m)
	}
	if *resume {
		chosen = remaining(chosen, results, tools.Versions()["skep"], today())
	}
	steps := plan(chosen, *runs, *quick, split(*cases, ";"), split(*subjects, ";"))
	if *list {
		printSteps(os.Stdout, steps)
		return nil
	}

	peers.Nice = *nice
	if *nice != 0 {
		// Between sessions the kernel shares time by autogroup and not by
		// process (sched(7)): without this the priority would only count among
		// the benchmark's own. Run it with setsid(1), so that the shell's session is not raised as well.
		_ = os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(*nice)), 0)
	}

	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	work, err := os.MkdirTemp("", "skep-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	env := &rows.Env{Tools: tools, Quick: *quick, Seed: *seed}
	for pkg, path := range map[string]*string{"examples/hello": &env.Hello, "bench/empty": &env.Empty, "bench/orphans": &env.Orphans} {
		if *path, err = buildGo(ctx, work, pkg); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		}
	}
	results.Machine, results.Versions, results.Missing = machine(), tools.Versions(), tools.Missing()
	progress := &clock{begin: time.Now(), steps: steps}
	for i, st := range steps {
		row := measure(ctx, env, st.def, st.runs, st.sel, func(run int) {
			if *quick {
				return // Seconds is about the full form
			}
			fmt.Fprintf(os.Stderr, "bench: %s, run %d of %d: %s\n", st.def.Name, run+1, st.runs, progress.at(i, run, time.Now()))
		})
		row.Nice, row.Seed, row.Skep = *nice, *seed, results.Versions["skep"]
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted in row %s; the rows before it are in %s, and -resume measures the others", st.def.Name, *out)
		}
		results.Put(row)
		// After every row, so that an interrupted run keeps what it has.
		if err := results.Write(*out); err != nil {
			return err
		}
	}
	return nil
}

func split(s, sep string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, sep)
}

func choose(names string) ([]*rows.Row, error) {
	all := rows.All()
	if names == "" {
		return all, nil
	}
	var out []*rows.Row
	for _, n := range split(names, ",") {
		i := slices.IndexFunc(all, func(r *rows.Row) bool { return r.Name == n })
		if i < 0 {
			return nil, fmt.Errorf("no row %q; -list shows them", n)
		}
		out = append(out, all[i])
	}
	return out, nil
}

// selection returns the empty row of what is to be measured: what the caller
// names, else everything, or the quick form's part of it.
func selection(def *rows.Row, quick bool, cases, subjects []string) report.Row {
	if quick && len(cases) == 0 {
		if cases = def.Quick; len(cases) == 0 {
			cases = def.Cases[:1]
		}
	}
	if quick && len(subjects) == 0 {
		subjects = rows.QuickSubjects
	}
	row := report.Row{Name: def.Name}
	for _, name := range def.Cases {
		if len(cases) > 0 && !slices.Contains(cases, name) {
			continue
		}
		c := report.Case{Name: name}
		for _, s := range def.Subjects {
			if len(subjects) == 0 || slices.Contains(subjects, s) {
				c.Subjects = append(c.Subjects, report.Subject{Name: s})
			}
		}
		if len(c.Subjects) > 0 {
			row.Cases = append(row.Cases, c)
		}
	}
	return row
}

// measure takes all samples of a row and calls begin before every run. Subjects
// take turns within a run, and each run begins with another one, so that a machine
// that changes over time changes for all of them. A measurement that fails is a
// sample that says why, and the next one follows.
func measure(ctx context.Context, e *rows.Env, def *rows.Row, runs int, sel report.Row, begin func(run int)) report.Row {
	row := sel
	row.Date, row.Quick, row.Load = today(), e.Quick, loadAverage()
	for i := range row.Cases {
		for k := range row.Cases[i].Subjects {
			row.Cases[i].Subjects[k].Runs = make([]rows.Sample, runs)
		}
	}
	for run := range runs {
		begin(run)
		var jobs []rows.Job
		var places []*rows.Sample
		for i := range row.Cases {
			c := &row.Cases[i]
			for k := range c.Subjects {
				s := &c.Subjects[(k+run)%len(c.Subjects)]
				jobs = append(jobs, rows.Job{Case: c.Name, Subject: s.Name, Run: run})
				places = append(places, &s.Runs[run])
			}
		}
		start := time.Now()
		keep := func(i int, s rows.Sample) {
			*places[i] = s
			fmt.Fprintf(os.Stderr, "%s %d/%d %s, %s: %s (%.1f s)\n", def.Name, run+1, runs, jobs[i].Case, jobs[i].Subject, brief(def, s), time.Since(start).Seconds())
		}
		if def.Together {
			rows.TakeTogether(ctx, e, def, jobs, keep)
			continue
		}
		for i, j := range jobs {
			if ctx.Err() != nil {
				return row
			}
			awaitRoom(ctx, tracked, time.Second)
			start = time.Now()
			keep(i, rows.Take(ctx, e, def, j))
		}
	}
	return row
}

func today() string { return time.Now().UTC().Format(time.DateOnly) }

func brief(def *rows.Row, s rows.Sample) string {
	if s.Missing != "" {
		return s.Missing
	}
	var out []string
	for _, m := range def.Metrics {
		out = append(out, fmt.Sprintf("%s %.4g", m.Name, s.Values[m.Name]))
	}
	if s.Note != "" {
		out = append(out, "("+s.Note+")")
	}
	return strings.Join(out, ", ")
}

// buildGo builds one of this module's packages into dir.
func buildGo(ctx context.Context, dir, pkg string) (string, error) {
	path := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "skep/"+pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot build %s: %w: %s", pkg, err, out)
	}
	return path, nil
}

func machine() report.Machine {
	m := report.Machine{CPU: "unknown CPU", Cores: runtime.NumCPU()}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) == nil {
		m.MemoryMB = int64(si.Totalram) * int64(si.Unit) >> 20
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		// The numbers alone: what follows them names who built it.
		m.Kernel, _, _ = strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	}
	return m
}

func loadAverage() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), " ")
	x, _ := strconv.ParseFloat(first, 64)
	return x
}
