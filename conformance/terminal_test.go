package conformance

import (
	"bytes"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"skep/internal/nstest"
)

// console is a process on a pseudo-terminal whose controlling process it is.
type console struct {
	*process
	master *os.File
	seen   int // bytes of output that expectText has passed
}

// console starts cmd as leader of a session with a terminal of its own. What it prints is in the process's stdout.
func (r *run) console(cmd *exec.Cmd) *console {
	r.t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		r.na("no pseudo-terminal: %v", err)
	}
	r.later(func() { slave.Close() })
	// As it comes, a pending Read would hold the master open beyond its Close. A descriptor that does not block is left to the poller, and Close is one.
	fd, err := unix.FcntlInt(master.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	r.must(err)
	master.Close()
	r.must(unix.SetNonblock(fd, true))
	master = os.NewFile(uintptr(fd), "master")
	r.later(func() { master.Close() })
	r.must(pty.Setsize(master, &pty.Winsize{Rows: 24, Cols: 200}))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty, cmd.SysProcAttr.Ctty = true, true, 0
	p := &process{r: r, cmd: cmd, lines: make(chan string, 1<<15), stdout: new(bytes.Buffer), stderr: new(bytes.Buffer), done: make(chan struct{})}
	err = cmd.Start()
	slave.Close()
	r.must(err)
	p.pid = cmd.Process.Pid
	read := make(chan struct{})
	go func() {
		defer close(read)
		buffer := make([]byte, 4096)
		line := ""
		for {
			n, err := master.Read(buffer)
			p.mu.Lock()
			p.stdout.Write(buffer[:n])
			p.mu.Unlock()
			line += string(buffer[:n])
			for {
				whole, rest, found := strings.Cut(line, "\n")
				if !found {
					break
				}
				select {
				case p.lines <- strings.TrimRight(whole, "\r"):
				default:
				}
				line = rest
			}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		cmd.Wait()
		select {
		case <-read:
		case <-time.After(time.Second):
		}
		close(p.done)
	}()
	r.later(func() {
		// Jobs of a shell are in groups of their own, but in its session.
		entries, _ := os.ReadDir("/proc")
		for _, entry := range entries {
			if pid, err := strconv.Atoi(entry.Name()); err == nil {
				if sid, err := unix.Getsid(pid); err == nil && sid == p.pid {
					unix.Kill(pid, unix.SIGKILL)
				}
			}
		}
		<-p.done
	})
	return &console{process: p, master: master}
}

func (c *console) keys(text string) {
	c.r.t.Helper()
	if _, err := c.master.WriteString(text); err != nil {
		c.r.failf("cannot type: %v%s", err, c.said())
	}
}

// expectText waits until the output, behind what was expected before, contains text.
func (c *console) expectText(text string) {
	c.r.t.Helper()
	deadline := time.Now().Add(c.r.patient)
	for {
		c.mu.Lock()
		out := c.stdout.String()
		c.mu.Unlock()
		if at := strings.Index(out[c.seen:], text); at >= 0 {
			c.seen += at + len(text)
			return
		}
		ended := false
		select {
		case <-c.done:
			ended = true
		default:
		}
		if ended || time.Now().After(deadline) {
			tail := out[c.seen:]
			if len(tail) > 300 {
				tail = tail[len(tail)-300:]
			}
			c.r.failf("no %q on the terminal, but %q%s", text, tail, c.said())
		}
		time.Sleep(time.Millisecond)
	}
}

// terminalCommand is the subject running command, for a console of its own; as PID 1 of fresh namespaces if asked.
func (r *run) terminalCommand(asPID1 bool, command ...string) *exec.Cmd {
	args, _ := r.s.args(options{}, command...)
	argv := append([]string{r.s.argv0}, args...)
	env := append([]string{"PS1=shell> "}, cleanEnv...)
	if asPID1 {
		return nstest.Command(r.t, nstest.Spec{Path: r.s.path, Argv: argv, Env: env})
	}
	return &exec.Cmd{Path: r.s.path, Args: argv, Env: env}
}

// shellConsole is an interactive shell on a terminal, at its prompt, and the words with which it starts the subject with command.
func (r *run) shellConsole(command ...string) (*console, string) {
	r.t.Helper()
	bash, err := exec.LookPath("bash")
	if err != nil {
		r.na("no bash here")
	}
	env := append([]string{"PS1=shell> "}, cleanEnv...)
	c := r.console(&exec.Cmd{Path: bash, Args: []string{"bash", "--norc", "--noediting", "-i"}, Env: env})
	c.expectText("shell> ")
	args, _ := r.s.args(options{}, command...)
	return c, strings.Join(append([]string{r.link()}, args...), " ")
}

// terminalCases are about a command on a terminal.
func terminalCases() []*testcase {
	interactive := func(asPID1 bool) func(r *run) {
		return func(r *run) {
			c := r.console(r.terminalCommand(asPID1, "bash", "--norc", "--noediting", "-i"))
			c.expectText("shell> ")
			c.keys("echo flags $-\r")
			c.expectText("\nflags ")
			c.expectText("\r\n")
			c.mu.Lock()
			out := c.stdout.String()
			c.mu.Unlock()
			flags, _, _ := strings.Cut(out[strings.LastIndex(out, "flags ")+6:], "\r")
			if !strings.Contains(flags, "m") || strings.Contains(out, "no job control") {
				r.failf("no job control: %q", out)
			}
			c.keys("sleep 1000\r")
			c.expectText("sleep 1000\r\n")
			r.eventually(r.patient, "the shell lent its terminal to sleep", func() bool { return c.foreground() != 0 && c.command(c.foreground()) == "sleep" })
			c.keys("\x1a")
			c.expectText("Stopped")
			c.keys("kill %1; fg; echo gone $?\r") // wait(1) gives up on a job that is still stopped
			c.expectText("\ngone ")
			c.keys("exit 5\r")
			c.wantCode(5)
		}
	}
	return []*testcase{
		{name: "ctrl-c-once", mode: terminal, what: "^C is exactly one INT for the command, 20 times", defects: []string{"same-group"}, run: func(r *run) {
			c := r.console(r.terminalCommand(false, built.probe, "signals"))
			c.expectText("got ready")
			for range 20 {
				c.keys("\x03")
				c.expectText("got 2\r\n")
			}
			c.nothingMore()
		}},
		{name: "winch-once", mode: terminal, what: "a new window size is exactly one WINCH for the command, 20 times", defects: []string{"same-group"}, run: func(r *run) {
			c := r.console(r.terminalCommand(false, built.probe, "signals"))
			c.expectText("got ready")
			for i := range 20 {
				r.must(pty.Setsize(c.master, &pty.Winsize{Rows: uint16(30 + i), Cols: 100}))
				c.expectText("got 28\r\n")
			}
			c.nothingMore()
		}},
		{name: "job-shell", mode: terminal, what: "bash -i has job control: ^Z stops a job, kill %1 ends it, exit 5 is 5", defects: []string{"no-terminal"}, run: interactive(false)},
		{name: "job-shell-pid1", mode: terminal, what: "the same as PID 1, as docker run -it has it", defects: []string{"no-terminal"}, run: interactive(true)},
		{name: "suspend-resume", mode: terminal, what: "started by a shell: ^Z gives the prompt back, fg resumes, ^C ends", defects: []string{"no-suspend"}, run: func(r *run) {
			c, line := r.shellConsole(built.probe, "wait")
			c.keys(line + "\r")
			c.expectText("ready\r\n")
			c.keys("\x1a")
			c.expectText("Stopped")
			c.expectText("shell> ")
			c.keys("echo prompt $((40+2))\r")
			c.expectText("prompt 42")
			c.keys("fg\r")
			c.expectText("probe wait\r\n")
			r.eventually(r.patient, "the command has the terminal back", func() bool { return c.command(c.foreground()) == "probe" })
			c.keys("\x03")
			c.expectText("shell> ")
			c.keys("echo code $?\r")
			c.expectText("code 130\r\n")
		}},
		{name: "background", mode: terminal, what: "started with & it takes no terminal from the shell; fg works later", defects: []string{"steal-terminal"}, run: func(r *run) {
			c, line := r.shellConsole(built.probe, "wait")
			c.keys(line + " &\r")
			c.expectText("ready\r\n")
			c.keys("echo prompt $((40+2))\r")
			c.expectText("prompt 42")
			if who := c.command(c.foreground()); who != "bash" {
				r.failf("the terminal belongs to %q", who)
			}
			c.keys("fg\r")
			c.expectText("probe wait")
			// The shell sends no CONT to a job that runs, so an init need not notice: ^C reaches it or its command either way.
			r.eventually(r.patient, "the shell gives its terminal away", func() bool { return c.command(c.foreground()) != "bash" })
			c.keys("\x03")
			c.expectText("shell> ")
			c.keys("echo code $?\r")
			c.expectText("code 130\r\n")
		}},
		{name: "end-of-input", mode: terminal, what: "tac reads the terminal until ^D", defects: []string{"no-terminal"}, run: func(r *run) {
			c := r.console(r.terminalCommand(false, "tac"))
			r.eventually(r.patient, "tac reads", func() bool { return c.command(c.foreground()) == "tac" })
			c.keys("one\rtwo\r\x04")
			c.expectText("two\r\none\r\n")
			c.wantCode(0)
		}},
		{name: "hang-up", mode: terminal, what: "a terminal that hangs up ends both, the command and the init", defects: []string{"lingers"}, run: func(r *run) {
			c := r.console(r.terminalCommand(false, built.probe, "wait"))
			c.expectText("ready")
			command := 0
			for pid := range children(c.pid) {
				command = pid
			}
			r.must(c.master.Close())
			c.ended(r.patient)
			if state, _ := stat(command); state != 0 && state != 'Z' {
				r.failf("the command lives on")
			}
		}},
	}
}

// nothingMore wants no output for a moment.
func (c *console) nothingMore() {
	c.r.t.Helper()
	time.Sleep(250 * time.Millisecond) // there is no event to wait for: the point is that nothing comes
	c.mu.Lock()
	defer c.mu.Unlock()
	if more := strings.TrimSpace(strings.ReplaceAll(c.stdout.String()[c.seen:], "^C", "")); more != "" {
		c.r.failf("and then %q", more)
	}
}

// foreground is the process group that the terminal belongs to, 0 when unknown.
func (c *console) foreground() int {
	pgrp := 0
	if conn, err := c.master.SyscallConn(); err == nil { // not Fd, which would make it block
		conn.Control(func(fd uintptr) { pgrp, _ = unix.IoctlGetInt(int(fd), unix.TIOCGPGRP) })
	}
	return pgrp
}

// command is the name of the leader of a process group.
func (c *console) command(pgrp int) string {
	name, err := os.ReadFile("/proc/" + strconv.Itoa(pgrp) + "/comm")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(name))
}
