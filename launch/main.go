package launch

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
)

// Tags of the one message that goes over NotifyFD. TagListener comes with the listener as SCM_RIGHTS, TagNoListener with the error number as text.
const (
	TagListener   = 'L'
	TagNoListener = 'E'
)

// Main is the stub: args is os.Args with [Name] first. It returns only when the command could not be executed, with the exit code for it, after one
// line on stderr. It must be called before anything else in main, from the main goroutine.
//
// The order matters: rights that only root has come first, then the user, then the look-up of the command with that user's rights, then the filter, and
// the signals at the very end. A filter that cannot be installed does not stop the start: the reason goes to skep, which then falls back.
func Main(args []string) int {
	runtime.LockOSThread() // Everything below changes this thread, and execve must happen on it.
	spec, argv, err := parse(args)
	if err != nil {
		complain("cannot launch: " + err.Error() + " (" + Name + " is internal to skep)")
		return ExitOwnFault
	}
	if spec.OOMScoreAdj != nil {
		if err := writeOOMScoreAdj(*spec.OOMScoreAdj); err != nil {
			complain("cannot set oom_score_adj to " + strconv.Itoa(*spec.OOMScoreAdj) + ": " + describe(err) + "; starting without it")
		}
	}
	if spec.KSM {
		if err := unix.Prctl(unix.PR_SET_MEMORY_MERGE, 1, 0, 0, 0); err != nil {
			complain("cannot ask for same-page merging: " + describe(err) + "; starting without it")
		}
	}
	if spec.User != nil {
		if call, err := become(spec.User); err != nil {
			complain("cannot become user " + strconv.FormatUint(uint64(spec.User.UID), 10) + ":" + strconv.FormatUint(uint64(spec.User.GID), 10) + ": " + call + ": " + describe(err))
			return ExitOwnFault
		}
	}
	env := syscall.Environ()
	path, err := LookPath(argv[0], lookup(env, "PATH"))
	if err != nil {
		complain(err.Error())
		return ExitCode(err)
	}
	if spec.Named {
		argv = argv[1:]
	}
	if spec.ListenPID {
		env = setenv(env, "LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	if spec.Filter {
		installFilter(spec.NotifyFD)
	}
	restoreSignals()
	err = syscall.Exec(path, argv, env)
	if errors.Is(err, unix.ENOEXEC) {
		// A script without #!, which execvp(3) gives to the shell.
		err = syscall.Exec("/bin/sh", append([]string{"/bin/sh", path}, argv[1:]...), env)
	}
	complain("cannot run " + argv[0] + ": " + describe(err))
	return ExitCode(err)
}

func parse(args []string) (Spec, []string, error) {
	if len(args) < 4 || args[2] != "--" {
		return Spec{}, nil, errSpec
	}
	spec, err := decode(args[1])
	if err == nil && spec.Named && len(args) < 5 {
		err = errSpec
	}
	return spec, args[3:], err
}

// installFilter installs the filter on this thread and tells the other end of notify how that went. When it cannot even be told, the closed socket tells
// it. The descriptors of both are closed: the worker gets neither.
func installFilter(notify int) {
	listener, err := sys.InstallListener(NativeFilter())
	if err != nil {
		_ = sys.SendDescriptor(notify, append([]byte{TagNoListener}, strconv.Itoa(int(sys.Errno(err)))...), -1)
	} else {
		_ = sys.SendDescriptor(notify, []byte{TagListener}, listener)
		_ = unix.Close(listener)
	}
	_ = unix.Close(notify)
}

// become changes the ids of this thread alone: raw calls, because those of package syscall change every thread. It returns the call that failed.
func become(u *User) (call string, err error) {
	if uint32(os.Getuid()) == u.UID && uint32(os.Geteuid()) == u.UID && uint32(os.Getgid()) == u.GID && uint32(os.Getegid()) == u.GID {
		return "", nil
	}
	var groups unsafe.Pointer
	if len(u.Groups) > 0 {
		groups = unsafe.Pointer(&u.Groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(u.Groups)), uintptr(groups), 0); errno != 0 {
		return "setgroups", errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(u.GID), uintptr(u.GID), uintptr(u.GID)); errno != 0 {
		return "setresgid", errno
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(u.UID), uintptr(u.UID), uintptr(u.UID)); errno != 0 {
		return "setresuid", errno
	}
	return "", nil
}

func writeOOMScoreAdj(n int) error {
	fd, err := unix.Open("/proc/self/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	_, err = unix.Write(fd, []byte(strconv.Itoa(n)))
	return err
}

// restoreSignals gives every ignored signal its default action and empties this thread's mask: both survive execve (signal(7)), and a parent of skep
// may have left anything. Handlers need nothing, execve resets them. Law 5.
func restoreSignals() {
	const setBytes = 8
	for sig := 1; sig <= sys.SigMax; sig++ {
		sys.StopIgnoring(sig)
	}
	var empty uint64
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&empty)), 0, setBytes, 0, 0)
}

// lookup returns the value of the first variable name in env, as getenv(3).
func lookup(env []string, name string) string {
	for _, kv := range env {
		if value, found := strings.CutPrefix(kv, name+"="); found {
			return value
		}
	}
	return ""
}

// setenv returns env with name set to value exactly once.
func setenv(env []string, name, value string) []string {
	kept := env[:0]
	for _, kv := range env {
		if !strings.HasPrefix(kv, name+"=") {
			kept = append(kept, kv)
		}
	}
	return append(kept, name+"="+value)
}

// complain writes one line to stderr. Nothing can be done when that fails.
func complain(line string) {
	_, _ = unix.Write(2, []byte("skep: "+line+"\n"))
}
