package initd_test

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"skep/config"
	"skep/initd"
	"skep/prestart/wait"
)

// TestMain makes the test binary skep, and what skep runs: the loop changes what
// a whole process is (subreaper, signals, working directory), so it is always in
// one of its own.
func TestMain(m *testing.M) {
	if wait.Is(os.Args) {
		os.Exit(wait.Main(os.Args))
	}
	if len(os.Args) > 1 {
		if role := roles[os.Args[1]]; role != nil {
			role(os.Args[2:])
			return
		}
	}
	os.Exit(m.Run())
}

var roles = map[string]func(args []string){
	"role:skep":     func(args []string) { runSkep(args, nil) },
	"role:faulty":   runFaulty,
	"role:as":       runAs,
	"role:refuse":   runRefused,
	"role:listened": runListened,
	"role:idle":     func([]string) { up() },
	"role:listen":   runListen,
	"role:serve":    runServe,
	"role:beside":   runBeside,
	"role:closing":  runClosing,
	"role:counted":  runCounted,
	"role:passed":   runPassed,
}

// runSkep is skep with the SKEP_ variables for flags. Run gets CatchSignals
// first, as main does.
func runSkep(command []string, fault <-chan struct{}) {
	signals, err := initd.CatchSignals()
	if err != nil {
		fatal(err)
	}
	o, err := config.Build(config.Input{Environ: os.Environ(), Command: command, NeedsCommand: true})
	if err == nil {
		var code int
		if fault != nil {
			code, err = initd.RunFaulty(o, signals, fault, os.Getenv("FAULT_ELSEWHERE") != "")
		} else {
			code, err = initd.Run(o, signals)
		}
		if err == nil {
			os.Exit(code)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	if f, ok := err.(*initd.Failure); ok {
		os.Exit(f.Code)
	}
	os.Exit(initd.ExitOwnFault)
}

// runFaulty has its fault as soon as its input ends.
func runFaulty(command []string) {
	fault := make(chan struct{})
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		close(fault)
	}()
	runSkep(command, fault)
}

// runAs is skep under another user, args[0].
func runAs(args []string) {
	uid, err := strconv.Atoi(args[0])
	if err == nil {
		err = unix.Setgroups(nil)
	}
	if err == nil {
		err = unix.Setresgid(uid, uid, uid)
	}
	if err == nil {
		err = unix.Setresuid(uid, uid, uid)
	}
	if err != nil {
		fatal(err)
	}
	// Its input says how many processes this user may have from now on.
	go func() {
		for {
			var n uint64
			if _, err := fmt.Fscan(os.Stdin, &n); err != nil {
				return
			}
			var limit unix.Rlimit
			err := unix.Prlimit(0, unix.RLIMIT_NPROC, nil, &limit)
			limit.Cur = min(n, limit.Max)
			if err == nil {
				err = unix.Prlimit(0, unix.RLIMIT_NPROC, &limit, nil)
			}
			fmt.Fprintln(os.Stderr, "limit is", limit.Cur, err)
		}
	}()
	runSkep(args[1:], nil)
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(99)
}

// filter installs a seccomp program on this thread, with no_new_privs.
func filter(flags uintptr, program []unix.SockFilter) (fd uintptr) {
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		fatal(err)
	}
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		fatal(errno)
	}
	return fd
}

// again executes this program anew, in the same process, as another role.
func again(args ...string) {
	fatal(unix.Exec("/proc/self/exe", append([]string{os.Args[0]}, args...), os.Environ()))
}

// runRefused is skep in a sandbox where seccomp(2) has the error args[0].
func runRefused(args []string) {
	errno, _ := strconv.Atoi(args[0])
	filter(0, []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the call's number, on this architecture
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SECCOMP, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	})
	again(append([]string{"role:skep"}, args[1:]...)...)
}

// runListened is skep where somebody has a user-notification listener already.
func runListened(args []string) {
	fd := filter(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}})
	if _, err := unix.FcntlInt(fd, unix.F_SETFD, 0); err != nil {
		fatal(err)
	}
	again(append([]string{"role:skep"}, args...)...)
}

// runListen listens on a port of its own and does nothing with it.
func runListen([]string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fatal(err)
	}
	defer l.Close()
	up()
}

// answer tells everyone who connects a text, until TERM.
func answer(l net.Listener, text string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			fatal(err)
		}
		fmt.Fprintln(conn, text)
		_ = conn.Close()
	}
}

// exitOnTerm makes TERM end this process with 0, from its return on.
func exitOnTerm() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	go func() {
		<-stop
		os.Exit(0)
	}()
}

// up says that this process has begun, and waits for TERM.
func up() {
	exitOnTerm()
	fmt.Println("up")
	select {}
}

// runServe binds the address and answers with its pid.
func runServe(args []string) {
	exitOnTerm()
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		fatal(err)
	}
	fmt.Println("up", os.Getpid())
	answer(l, strconv.Itoa(os.Getpid()))
}

// runClosing serves as runServe does until USR2, when it closes its listener and
// lives on.
func runClosing(args []string) {
	exitOnTerm()
	closing := make(chan os.Signal, 1)
	signal.Notify(closing, unix.SIGUSR2)
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		fatal(err)
	}
	fmt.Println("up", os.Getpid())
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, os.Getpid())
			_ = conn.Close()
		}
	}()
	<-closing
	_ = l.Close()
	fmt.Println("closed", os.Getpid())
	select {}
}

// runBeside does args[0] and then what runServe does with args[1].
func runBeside(args []string) {
	var err error
	switch args[0] {
	case "udp":
		_, err = net.ListenPacket("udp", strings.Replace(args[1], "0.0.0.0", "127.0.0."+strconv.Itoa(1+os.Getpid()%250), 1)) // each its own
	case "unix":
		_, err = net.Listen("unix", "@"+args[1]+" "+strconv.Itoa(os.Getpid()))
	case "port 0":
		_, err = net.Listen("tcp", "0.0.0.0:0")
	}
	if err != nil {
		fatal(err)
	}
	runServe(args[1:])
}

// runPassed serves what it is passed, by the rules of sd_listen_fds(3), and
// answers with its slot, the listener's name and its number as the arguments say.
func runPassed(args []string) {
	exitOnTerm()
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		fatal(fmt.Errorf("LISTEN_PID is %s, this is %d", os.Getenv("LISTEN_PID"), os.Getpid()))
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	if os.Getenv("LISTEN_FDS") != strconv.Itoa(len(names)) {
		fatal(fmt.Errorf("LISTEN_FDS is %s, names %q", os.Getenv("LISTEN_FDS"), names))
	}
	for i, name := range names {
		l, err := net.FileListener(os.NewFile(uintptr(3+i), name))
		if err != nil {
			fatal(err)
		}
		go answer(l, fmt.Sprint(name, " ", 3+i, " slot ", os.Getenv("SKEP_SLOT"), " args ", strings.Join(args, " ")))
	}
	fmt.Println("up", os.Getpid())
	select {}
}
