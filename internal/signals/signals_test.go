package signals

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
)

// TestMain makes the test binary the process whose signals are taken: it is the business
// of a whole process.
func TestMain(m *testing.M) {
	if role := roles[os.Getenv("SIGNALS_TEST_ROLE")]; role != nil {
		role()
		return
	}
	os.Exit(m.Run())
}

var roles = map[string]func(){
	"take": func() {
		s := take()
		fmt.Println("up")
		for sig := range s.Other {
			fmt.Println(sig)
			if sig == int(unix.SIGTERM) {
				return
			}
		}
	},
	// Reads nothing until its input ends.
	"late": func() {
		f, err := catch()
		if err != nil {
			panic(err)
		}
		fmt.Println("up")
		_, _ = os.Stdin.Read(make([]byte, 1))
		s := &Source{Child: make(chan struct{}, 1), Other: make(chan int, buffer)}
		go s.read(f)
		counts := map[int]int{}
		for sig := range s.Other {
			counts[sig]++
			if sig == int(unix.SIGTERM) {
				break
			}
		}
		// What was missed comes after what was in the pipe.
		timeout := time.After(patience)
		for counts[int(unix.SIGUSR2)] == 0 {
			select {
			case sig := <-s.Other:
				counts[sig]++
			case <-timeout:
				panic("USR2 is lost")
			}
		}
		fmt.Println(counts[int(unix.SIGUSR1)], counts[int(unix.SIGUSR2)])
	},
	"faults": func() {
		s := take()
		fmt.Println(recovered(func() { var none *int; fmt.Println(*none) }))
		fmt.Println(recovered(func() {
			data, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ, unix.MAP_ANON|unix.MAP_PRIVATE)
			if err != nil {
				panic(err)
			}
			data[0] = 1
		}))
		zero := 0
		fmt.Println(recovered(func() { fmt.Println(1 / zero) }))
		fmt.Println(len(s.Other), "signals")
	},
	"pipe": func() {
		s := take()
		r, w, err := os.Pipe()
		if err != nil {
			panic(err)
		}
		_ = r.Close()
		_, err = unix.Write(int(w.Fd()), []byte("x"))
		fmt.Println(errors.Is(err, unix.EPIPE))
		if err := unix.Kill(os.Getpid(), unix.SIGUSR1); err != nil {
			panic(err)
		}
		fmt.Println("up")
		fmt.Println(<-s.Other)
	},
	"child": func() {
		s := take()
		if err := exec.Command("/bin/true").Start(); err != nil {
			panic(err)
		}
		select {
		case <-s.Child:
			fmt.Println("child")
		case <-time.After(patience):
			fmt.Println("nothing")
		}
	},
	"leave": func() {
		Leave()
		fmt.Println("up")
		time.Sleep(patience)
	},
}

const patience = 30 * time.Second

func take() *Source {
	s, err := Take()
	if err != nil {
		panic(err)
	}
	return s
}

func recovered(f func()) (text string) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { text = fmt.Sprint(recover()) }()
	f()
	return "no fault"
}

// subject is a process in one of the roles.
type subject struct {
	*exec.Cmd
	t     *testing.T
	lines *bufio.Scanner
	in    func()
}

func begin(t *testing.T, role string) *subject {
	t.Helper()
	s := &subject{Cmd: exec.CommandContext(t.Context(), "/proc/self/exe"), t: t}
	// The runtime's own URG, which skep is linked without, is tried separately.
	s.Env = append(os.Environ(), "SIGNALS_TEST_ROLE="+role)
	s.Stderr = os.Stderr
	late := time.AfterFunc(2*patience, func() { _ = s.Process.Kill() })
	t.Cleanup(func() { late.Stop() })
	out, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.in = func() { _ = in.Close() }
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	s.lines = bufio.NewScanner(out)
	return s
}

func (s *subject) line() string {
	if !s.lines.Scan() {
		return "nothing more"
	}
	return s.lines.Text()
}

func (s *subject) want(lines ...string) {
	s.t.Helper()
	for _, w := range lines {
		if got := s.line(); got != w {
			s.t.Fatalf("said %q, want %q", got, w)
		}
	}
}

func (s *subject) send(sig int) {
	s.t.Helper()
	if err := unix.Kill(s.Process.Pid, unix.Signal(sig)); err != nil {
		s.t.Fatal(err)
	}
}

func TestEverySignalIsTaken(t *testing.T) {
	s := begin(t, "take")
	s.want("up")
	for n := 1; n <= sys.SigMax; n++ {
		if !Takes(n) || unix.Signal(n) == unix.SIGCHLD || unix.Signal(n) == unix.SIGTERM {
			continue
		}
		s.send(n)
		s.want(strconv.Itoa(n))
	}
	// The last handler has written its byte and may still be at its end, with everything blocked.
	file := "/proc/" + strconv.Itoa(s.Process.Pid) + "/status"
	for late := time.Now().Add(patience); ; {
		status, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(status), "SigIgn:\t0000000000000000") && strings.Contains(string(status), "SigBlk:\t0000000000000000") {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("ignored or blocked signals:\n%s", status)
		}
		runtime.Gosched()
	}
	s.send(int(unix.SIGTERM))
	s.want("15")
	if err := s.Wait(); err != nil {
		t.Error(err)
	}
}

// Real-time signals are queued, and each arrives (signal(7)).
func TestRealTimeSignalsAreNotMerged(t *testing.T) {
	const each = 300
	s := begin(t, "take")
	s.want("up")
	for range each {
		for sig := 34; sig <= sys.SigMax; sig++ {
			s.send(sig)
		}
	}
	counts := map[string]int{}
	for range each * (sys.SigMax - 33) {
		counts[s.line()]++ // waits, and ends when the subject has ended
	}
	for sig := 34; sig <= sys.SigMax; sig++ {
		if got := counts[strconv.Itoa(sig)]; got != each {
			t.Errorf("signal %d arrived %d times, was sent %d times", sig, got, each)
		}
	}
	s.send(int(unix.SIGTERM))
	s.want("15")
}

// A pipe that is full keeps one of each kind, as the kernel does.
func TestFullPipeKeepsOneOfEach(t *testing.T) {
	s := begin(t, "late")
	s.want("up")
	const room = 65536
	for range room + 100 {
		s.send(34) // queued: each is a byte
	}
	s.send(int(unix.SIGUSR1))
	s.send(int(unix.SIGUSR2))
	s.send(int(unix.SIGTERM))
	s.in()
	s.want("1 1")
}

func TestFaultsStayPanics(t *testing.T) {
	s := begin(t, "faults")
	s.want("runtime error: invalid memory address or nil pointer dereference")
	if line := s.line(); !strings.Contains(line, "unexpected fault address") && !strings.Contains(line, "invalid memory address") {
		t.Errorf("a write to read-only memory: %q", line)
	}
	s.want("runtime error: integer divide by zero", "0 signals")
}

func TestOwnSignalsDoNotArrive(t *testing.T) {
	s := begin(t, "pipe")
	s.want("true", "up")
	s.send(int(unix.SIGWINCH))
	s.want("28")
}

func TestChildIsTold(t *testing.T) { begin(t, "child").want("child") }

func TestLeaveMakesItMortal(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1} {
		s := begin(t, "leave")
		s.want("up")
		s.send(int(sig))
		var exit *exec.ExitError
		if err := s.Wait(); !errors.As(err, &exit) || exit.Sys().(interface{ Signal() unix.Signal }).Signal() != sig {
			t.Errorf("%v: %v", sig, err)
		}
	}
}
