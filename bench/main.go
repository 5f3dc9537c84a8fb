// Bench measures skep beside the programs that people use in its place, and
// writes docs/benchmarks.md with the raw data and the pictures. It installs
// nothing: what is missing on the machine is named and its cells stay empty.
//
//	go run ./bench -skep build/skep              # everything, about three hours
//	go run ./bench -skep build/skep -quick       # a few minutes
//	go run ./bench -rows tail,crash -runs 3      # some rows; the others keep their figures
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
	runs := flag.Int("runs", 5, "runs of every measurement")
	quick := flag.Bool("quick", false, "short windows and one run: proves the harness, not the figures")
	out := flag.String("out", "docs", "folder for benchmarks.md, benchmarks.json and img/")
	nice := flag.Int("nice", 0, "scheduling priority of the subjects, as nice(2); below 0 for a machine that is busy with other things")
	seed := flag.Uint64("seed", 1, "seed of the arrivals")
	list := flag.Bool("list", false, "list the rows and what is missing here, and measure nothing")
	draw := flag.Bool("draw", false, "write page and pictures anew from the raw data, and measure nothing")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unknown argument %q", flag.Arg(0))
	}
	given := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if *quick && !given["runs"] {
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
	if *list {
		for _, r := range chosen {
			fmt.Printf("%-12s %s\n", r.Name, r.Title)
		}
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
	if env.Hello, err = buildHello(ctx, work); err != nil {
		fmt.Fprintf(os.Stderr, "bench: cannot build examples/hello: %v\n", err)
	}
	results.Machine, results.Versions, results.Missing = machine(), tools.Versions(), tools.Missing()
	for _, def := range chosen {
		n := *runs
		if def.Runs > 0 && !given["runs"] {
			n = min(n, def.Runs)
		}
		row := measure(ctx, env, def, n, selection(def, *quick, split(*cases, ";"), split(*subjects, ";")))
		row.Nice, row.Seed = *nice, *seed
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted in row %s; what was complete is in %s", def.Name, *out)
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

// measure takes all samples of a row. Subjects take turns within a run, and
// each run begins with another one, so that a machine that changes over time
// changes for all of them.
func measure(ctx context.Context, e *rows.Env, def *rows.Row, runs int, sel report.Row) report.Row {
	row := sel
	row.Date, row.Quick, row.Load = time.Now().UTC().Format(time.DateOnly), e.Quick, loadAverage()
	for i := range row.Cases {
		for k := range row.Cases[i].Subjects {
			row.Cases[i].Subjects[k].Runs = make([]rows.Sample, runs)
		}
	}
	for run := range runs {
		for i := range row.Cases {
			c := &row.Cases[i]
			for k := range c.Subjects {
				s := &c.Subjects[(k+run)%len(c.Subjects)]
				if ctx.Err() != nil {
					return row
				}
				begin := time.Now()
				sample := rows.Take(ctx, e, def, rows.Job{Case: c.Name, Subject: s.Name, Run: run})
				s.Runs[run] = sample
				fmt.Fprintf(os.Stderr, "%s %d/%d %s, %s: %s (%.1f s)\n", def.Name, run+1, runs, c.Name, s.Name, brief(def, sample), time.Since(begin).Seconds())
			}
		}
	}
	return row
}

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

func buildHello(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "hello")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "skep/examples/hello")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
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
