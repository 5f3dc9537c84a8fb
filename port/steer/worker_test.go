package steer

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// roleVar makes the test binary be a worker instead of running tests.
const roleVar = "STEER_TEST_ROLE"

func init() {
	if os.Getenv(roleVar) != "" {
		runtime.LockOSThread() // init and main run on the main thread; there the worker's loop stays
	}
}

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVar); role {
	case "":
		os.Exit(m.Run())
	case "steer":
		os.Exit(steerOnly())
	case "loop":
		os.Exit(serveLoop(3))
	case "exec":
		os.Exit(execute())
	default:
		fmt.Fprintln(os.Stderr, "unknown role", role)
		os.Exit(2)
	}
}

// What a client may ask a worker for, in one byte.
const (
	askQuick = 'q' // an answer after quickWork on the CPU
	askEcho  = 'e' // an answer at once
	askWho   = 'w' // the worker's pid, as text
	askBlock = 'b' // an answer after blockTime in which the loop does nothing else
	askStay  = 's' // an answer, and the connection stays open
	askOpen  = 'o' // an answer, and the worker has two more files open that are no connections
	askBind  = 'h' // no answer, never: the loop hangs
	askGorge = 'g' // an answer, and the worker has so much memory that its end takes a while
)

const (
	quickWork = time.Millisecond
	blockTime = 200 * time.Millisecond
	gorge     = 256 << 20 // bytes
)

// serveLoop is a server as asyncio programs are: one thread, one epoll, handlers run to their end in turn, and all pending connections are accepted at once.
// It returns when standard input ends.
func serveLoop(listener int) int {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return 1
	}
	unix.SetNonblock(listener, true)
	add := func(fd int) {
		unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	}
	add(listener)
	add(0)
	os.Stdout.WriteString("ready\n")
	events := make([]unix.EpollEvent, 64)
	var buf [1]byte
	for {
		n, err := unix.EpollWait(ep, events, -1)
		if err != nil && err != unix.EINTR {
			return 1
		}
		for _, e := range events[:max(n, 0)] {
			fd := int(e.Fd)
			switch fd {
			case 0:
				return 0
			case listener:
				for {
					c, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
					if err != nil {
						break
					}
					add(c)
				}
				continue
			}
			if n, _ := unix.Read(fd, buf[:]); n != 1 {
				unix.Close(fd)
				continue
			}
			stay := false
			switch buf[0] {
			case askQuick:
				for began := time.Now(); time.Since(began) < quickWork; {
				}
			case askWho:
				unix.Write(fd, strconv.AppendInt(nil, int64(os.Getpid()), 10))
				unix.Close(fd)
				continue
			case askBlock:
				block(blockTime)
			case askGorge:
				unix.Mmap(-1, 0, gorge, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
			case askOpen:
				unix.Pipe2(make([]int, 2), unix.O_CLOEXEC)
			case askEcho:
			case askStay:
				stay = true
			case askBind:
				block(time.Hour)
			}
			unix.Write(fd, buf[:])
			if !stay {
				unix.Close(fd)
			}
		}
	}
}

// execute executes this program a number of times, by another thread than the first, and then waits for the end of standard input.
func execute() int {
	const countVar = "STEER_TEST_COUNT"
	count, _ := strconv.Atoi(os.Getenv(countVar))
	if count < 40 {
		os.Setenv(countVar, strconv.Itoa(count+1))
		go func() { // the first thread is locked
			fmt.Println(syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
			os.Exit(1)
		}()
		select {}
	}
	os.Stdout.WriteString("done\n")
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// block sleeps as C programs do: the thread itself is in the kernel.
func block(d time.Duration) {
	for ts := unix.NsecToTimespec(int64(d)); unix.Nanosleep(&ts, &ts) == unix.EINTR; {
	}
}

// testWorker is a process that accepts from one socket.
type testWorker struct {
	cmd   *exec.Cmd
	stdin *os.File
	pid   int
}

// startWorker runs a worker on the listening socket fd and returns when it is ready. Cred may be nil.
func startWorker(tb testing.TB, fd int, cred *syscall.Credential) *testWorker {
	tb.Helper()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		tb.Fatal(err)
	}
	listener := os.NewFile(uintptr(dup), "listener")
	defer listener.Close()
	fromUs, toWorker, err := os.Pipe()
	if err != nil {
		tb.Fatal(err)
	}
	defer fromUs.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"=loop", "GOMAXPROCS=1")
	cmd.Stdin, cmd.Stderr, cmd.ExtraFiles = fromUs, os.Stderr, []*os.File{listener}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatalf("cannot start a worker: %v", err)
	}
	w := &testWorker{cmd: cmd, stdin: toWorker, pid: cmd.Process.Pid}
	tb.Cleanup(w.end)
	var line [6]byte
	if n, err := out.Read(line[:]); n != len(line) {
		tb.Fatalf("worker did not get ready: %v", err)
	}
	return w
}

// end kills the worker and waits for it.
func (w *testWorker) end() {
	if w.cmd == nil {
		return
	}
	w.stdin.Close()
	w.cmd.Process.Kill()
	w.cmd.Wait()
	w.cmd = nil
}

func dupOf(tb testing.TB, fd int) int {
	tb.Helper()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		tb.Fatal(err)
	}
	return dup
}

// eventually waits until ok, or fails the test.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("it did not come about that %s", what)
		}
	}
}
