package peers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a program that the benchmark has started, with all that it
// starts itself.
type Process struct {
	PID     int
	Started time.Time
	Dir     string // scratch folder, removed by End

	cmd   *exec.Cmd
	done  chan struct{}
	ended time.Time
	err   error
}

// Nice is the scheduling priority that Launch gives to a program, as nice(2).
// It is set once, before the first Launch. Below 0 it needs CAP_SYS_NICE.
var Nice int

// running has every Process that has not been ended, so that the sweep of one
// leaves the others alone. Who holds it sees no Process that has been started
// and is not yet in the list: rows may start several at once.
var running struct {
	sync.Mutex
	list []*Process
}

// adopt makes orphans of subjects children of this process: nothing that was
// started can get away (PR_SET_CHILD_SUBREAPER(2const)).
var adopt = sync.OnceValue(func() error {
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
})

// Launch starts argv in a process group of its own, with its output in
// Dir/log. extra is added to a small, fixed environment, so that the caller's
// own variables never change a result.
func Launch(dir string, argv, extra []string, attr *syscall.SysProcAttr) (*Process, error) {
	if err := adopt(); err != nil {
		return nil, fmt.Errorf("cannot adopt orphans: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if attr == nil {
		attr = &syscall.SysProcAttr{}
	}
	attr.Setpgid = true
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = dir, log, log, attr
	cmd.Env = append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LANG=C.UTF-8", "HOME=" + dir, "SKEP_CONTROL=none", "PYTHONDONTWRITEBYTECODE=1",
		"BENCH_SPAWN_LOG=" + filepath.Join(dir, "spawns"),
	}, extra...)
	p := &Process{Dir: dir, Started: time.Now(), cmd: cmd, done: make(chan struct{})}
	running.Lock()
	defer running.Unlock()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", filepath.Base(argv[0]), err)
	}
	p.PID = cmd.Process.Pid
	if Nice != 0 {
		// The group has one member now; what that starts later inherits it.
		if err := unix.Setpriority(unix.PRIO_PGRP, p.PID, Nice); err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			return nil, fmt.Errorf("cannot set the priority to %d: %w", Nice, err)
		}
	}
	running.list = append(running.list, p)
	go func() {
		p.err = cmd.Wait()
		p.ended = time.Now()
		close(p.done)
	}()
	return p, nil
}

// Done is closed when the program itself has ended; its children may live on.
func (p *Process) Done() <-chan struct{} { return p.done }

// Result returns the exit code (128 plus the signal for a killed program) and
// the time at which it was seen. Only after Done.
func (p *Process) Result() (code int, at time.Time) {
	ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return -1, p.ended
	case ws.Signaled():
		return 128 + int(ws.Signal()), p.ended
	}
	return ws.ExitStatus(), p.ended
}

// Signal sends sig to the program, not to its children.
func (p *Process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// SignalOne sends sig to one process of the tree, and to nothing else: a pid
// that has meanwhile gone to a stranger is left alone.
func (p *Process) SignalOne(pid int, sig syscall.Signal) error {
	if !slices.Contains(p.Tree(), pid) {
		return fmt.Errorf("cannot signal process %d: it is not in the tree", pid)
	}
	return syscall.Kill(pid, sig)
}

// Log returns the last lines of the program's output, at most n.
func (p *Process) Log(n int) string {
	b, _ := os.ReadFile(filepath.Join(p.Dir, "log"))
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Spawn is one start of the application: a line of the spawn log.
type Spawn struct {
	PID int
	At  time.Duration // CLOCK_MONOTONIC
}

// Spawns returns all starts of the application so far, oldest first.
func (p *Process) Spawns() []Spawn {
	b, _ := os.ReadFile(filepath.Join(p.Dir, "spawns"))
	var out []Spawn
	for line := range strings.Lines(string(b)) {
		var s Spawn
		if _, err := fmt.Sscanf(line, "%d %d", &s.PID, &s.At); err == nil {
			out = append(out, s)
		}
	}
	return out
}

// Workers returns the application's live processes, oldest first.
func (p *Process) Workers() []int {
	var out []int
	for _, s := range p.Spawns() {
		if Alive(s.PID) && !slices.Contains(out, s.PID) {
			out = append(out, s.PID)
		}
	}
	return out
}

// Tree returns the live processes that came from this one, with itself.
func (p *Process) Tree() []int {
	var out []int
	if Alive(p.PID) {
		out = append(out, p.PID)
	}
	for _, st := range p.rest() {
		if st.State != 'Z' && st.PID != p.PID {
			out = append(out, st.PID)
		}
	}
	return out
}

// rest returns everything below this benchmark that does not belong to another
// running Process: orphans have been adopted, so nothing is missing.
func (p *Process) rest() []Stat {
	running.Lock()
	defer running.Unlock()
	others := map[int]bool{}
	for _, q := range running.list {
		if q != p {
			others[q.PID] = true
		}
	}
	var out []Stat
	for _, st := range Descendants(os.Getpid()) {
		if others[st.PID] || others[st.Parent] {
			others[st.PID] = true
			continue
		}
		out = append(out, st)
	}
	return out
}

// Stop sends TERM and waits until the whole tree is gone or limit has passed,
// and returns how long that took. gone is false when something was left; it
// is still there then.
func (p *Process) Stop(limit time.Duration) (took time.Duration, gone bool) {
	begin := time.Now()
	_ = p.Signal(syscall.SIGTERM)
	for time.Since(begin) < limit {
		p.reap()
		if len(p.Tree()) == 0 {
			return time.Since(begin), true
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(begin), false
}

// End kills what is left of the tree and removes the scratch folder. It is
// safe to call at any time, and twice.
func (p *Process) End() {
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		tree := p.Tree()
		if len(tree) == 0 {
			break
		}
		for _, pid := range tree {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		p.reap()
		time.Sleep(5 * time.Millisecond)
	}
	select {
	case <-p.done:
	case <-time.After(time.Second):
	}
	p.reap()
	running.Lock()
	running.list = slices.DeleteFunc(running.list, func(q *Process) bool { return q == p })
	running.Unlock()
	_ = os.RemoveAll(p.Dir)
}

// reap waits for adopted orphans; the program itself is waited for by Launch's
// goroutine, and other Processes by theirs.
func (p *Process) reap() {
	for _, st := range p.rest() {
		if st.Parent == os.Getpid() && st.State == 'Z' && st.PID != p.PID {
			var ws syscall.WaitStatus
			_, _ = syscall.Wait4(st.PID, &ws, syscall.WNOHANG, nil)
		}
	}
}

// WaitFor polls cond every 5 ms until it is true, the program ends, ctx ends
// or limit has passed.
func (p *Process) WaitFor(ctx context.Context, limit time.Duration, cond func() bool) error {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if cond() {
			return nil
		}
		select {
		case <-p.done:
			code, _ := p.Result()
			return &Ended{Code: code, Log: p.Log(3)}
		case <-timeout.C:
			return fmt.Errorf("not within %v", limit)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// Ended is the error for a program that ended when it should not have.
type Ended struct {
	Code int
	Log  string // its last lines
}

func (e *Ended) Error() string { return fmt.Sprintf("ended with code %d: %s", e.Code, e.Log) }

// IsEnded reports whether err says that a program ended.
func IsEnded(err error) bool {
	var e *Ended
	return errors.As(err, &e)
}
