package compat

import (
	"slices"
	"strconv"
	"syscall"
)

// Line is one message, complete with its newline, and where it goes. An empty Text says that nothing is to be printed: the verbosity hides it, or the
// program has no such message. Methods that return several lines leave such ones out.
type Line struct {
	Text   string
	Stdout bool
}

// say is the message that both programs have in their own words, at the verbosity from which tini prints it; dumb-init has one level only.
func (i *Init) say(level int, tini, dumbInit string) Line {
	text := tini
	if i.Program == DumbInit {
		text = dumbInit
		level = 1
	}
	if text == "" || i.Verbosity < level {
		return Line{}
	}
	if i.Program == DumbInit {
		return i.dumbInitLine(text)
	}
	return i.tiniLine([...]string{"FATAL", "WARN", "INFO", "DEBUG", "TRACE"}[level], text)
}

// ExecFailure is the code that the init ends with when the command cannot be executed, and the message for it. tini: 127 not found, 126 permission
// denied, 1 for the rest; dumb-init: always 2. ENOEXEC is not among the causes to hand in: the command is run by /bin/sh then, as execvp(3) does.
func (i *Init) ExecFailure(cause syscall.Errno) (int, Line) {
	command := i.Argv[0]
	if i.Program == DumbInit {
		return 2, i.dumbInitLine(command + ": " + errorText(cause))
	}
	code := 1
	switch cause {
	case syscall.ENOENT:
		code = 127
	case syscall.EACCES:
		code = 126
	}
	return code, i.tiniLine("FATAL", "exec "+command+" failed: "+errorText(cause))
}

// SpawnFailure is for a command that could not even be forked, for instance at the pids limit.
func (i *Init) SpawnFailure(cause syscall.Errno) (int, Line) {
	if i.Program == DumbInit {
		return 1, i.dumbInitLine("Unable to fork. Exiting.")
	}
	return 1, i.tiniLine("FATAL", "fork failed: "+errorText(cause))
}

// SubreaperFailure is the warning for a subreaper that was asked for and refused. tini ends at this; skep goes on.
func (i *Init) SubreaperFailure(cause syscall.Errno) Line {
	return i.say(1, "Failed to register as child subreaper: "+errorText(cause), "")
}

// Spawned reports that the command runs as process child.
func (i *Init) Spawned(child int) Line {
	return i.say(2, "Spawned child process '"+i.Argv[0]+"' with pid '"+strconv.Itoa(child)+"'", "Child spawned with PID "+strconv.Itoa(child)+".")
}

// Forwarding reports a received signal that is about to be sent on, rewritten or dropped as Rewrite says.
func (i *Init) Forwarding(received int) []Line {
	if i.Program != DumbInit {
		return shown(i.say(3, "Passing signal: '"+signalText(received)+"'", ""))
	}
	to, rewritten := i.Rewrite[received]
	if !rewritten {
		to = received
	}
	lines := []Line{i.say(1, "", "Received signal "+strconv.Itoa(received)+".")}
	if rewritten {
		lines = append(lines, i.say(1, "", "Translating signal "+strconv.Itoa(received)+" to "+strconv.Itoa(to)+"."))
	}
	if to == 0 {
		lines = append(lines, i.say(1, "", "Not forwarding signal 0 to children (ignored)."))
	} else {
		lines = append(lines, i.say(1, "", "Forwarded signal "+strconv.Itoa(to)+" to children."))
	}
	return shown(lines...)
}

// ForwardedToDead is the warning for a signal that came after the child had died.
func (i *Init) ForwardedToDead() Line {
	return i.say(1, "Child was dead when forwarding signal", "")
}

// Suspending reports that the init is about to stop itself after a signal from the terminal.
func (i *Init) Suspending() Line {
	return i.say(1, "", "Suspending self due to TTY signal.")
}

// Reaped reports a process that was waited for: its id, whether it is the command itself, and how it ended, with an exit code or, if signal is not 0, by
// a signal.
func (i *Init) Reaped(pid int, isCommand bool, code, signal int) []Line {
	number := strconv.Itoa(pid)
	how := " exited with exit status " + strconv.Itoa(code) + "."
	if signal != 0 {
		how = " was terminated by signal " + strconv.Itoa(signal) + "."
	}
	lines := []Line{i.say(3, "Reaped child with pid: '"+number+"'", "A child with PID "+number+how)}
	if i.WarnOnReap && !isCommand {
		lines = append(lines, i.say(1, "Reaped zombie process with pid="+number, ""))
	}
	return shown(lines...)
}

// Ended reports how the command ended: with an exit code, or by a signal if that is not 0. It is the last message before the init's own end.
func (i *Init) Ended(code, signal int) Line {
	if signal != 0 {
		return i.say(2, "Main child exited with signal (with signal '"+signalText(signal)+"')", "Child exited with status "+strconv.Itoa(128+signal)+". Goodbye.")
	}
	return i.say(2, "Main child exited normally (with status '"+strconv.Itoa(code)+"')", "Child exited with status "+strconv.Itoa(code)+". Goodbye.")
}

// shown drops the lines that are not to be printed.
func shown(lines ...Line) []Line {
	return slices.DeleteFunc(lines, func(line Line) bool { return line.Text == "" })
}

// errorText is strerror(3): Go's texts are the same but for the capital.
func errorText(cause syscall.Errno) string {
	text := cause.Error()
	if text != "" && text[0] >= 'a' && text[0] <= 'z' {
		text = string(text[0]-'a'+'A') + text[1:]
	}
	return text
}

// signalTexts is what glibc's strsignal(3) says in the C locale.
var signalTexts = [32]string{
	1: "Hangup", 2: "Interrupt", 3: "Quit", 4: "Illegal instruction", 5: "Trace/breakpoint trap", 6: "Aborted", 7: "Bus error",
	8: "Floating point exception", 9: "Killed", 10: "User defined signal 1", 11: "Segmentation fault", 12: "User defined signal 2", 13: "Broken pipe",
	14: "Alarm clock", 15: "Terminated", 16: "Stack fault", 17: "Child exited", 18: "Continued", 19: "Stopped (signal)", 20: "Stopped",
	21: "Stopped (tty input)", 22: "Stopped (tty output)", 23: "Urgent I/O condition", 24: "CPU time limit exceeded", 25: "File size limit exceeded",
	26: "Virtual timer expired", 27: "Profiling timer expired", 28: "Window changed", 29: "I/O possible", 30: "Power failure", 31: "Bad system call",
}

func signalText(n int) string {
	switch {
	case n > 0 && n < len(signalTexts):
		return signalTexts[n]
	case n >= 34 && n <= 64:
		return "Real-time signal " + strconv.Itoa(n-34)
	}
	return "Unknown signal " + strconv.Itoa(n)
}
