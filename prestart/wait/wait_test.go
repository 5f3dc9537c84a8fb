package wait

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"skep/internal/logger"
	"skep/prestart/wait/dial"
)

func TestMain(m *testing.M) {
	if Is(os.Args) {
		os.Exit(Main(os.Args))
	}
	if os.Getenv("WAIT_TEST_ROLE") == "parent" {
		// skep that is not PID 1: starts the wait and is killed.
		cmd := exec.Command("/proc/self/exe")
		cmd.Args = os.Args
		cmd.Args[0] = name
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestRun plays whole waits in no time, with a clock of its own.
func TestRun(t *testing.T) {
	type said struct {
		At   string
		Text string
	}
	ok := func(context.Context) error { return nil }
	refused := func(context.Context) error { return syscall.ECONNREFUSED }
	silent := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	after := func(n int, then func(context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error {
			if n--; n >= 0 {
				return refused(ctx)
			}
			return then(ctx)
		}
	}
	for _, test := range []struct {
		name    string
		timeout time.Duration
		try     func(context.Context) error
		code    int
		took    time.Duration
		lines   []said
	}{
		{"there at once, without a word", time.Minute, ok, 0, 0, nil},
		{"there at the second try", time.Minute, after(1, ok), 0, 250 * time.Millisecond, []said{
			{"0s", "info waiting for x (connection refused), 0s of 1m0s"},
			{"250ms", "info x is there after 0s"},
		}},
		{"pauses grow to a second", time.Minute, after(4, ok), 0, 2750 * time.Millisecond, []said{
			{"0s", "info waiting for x (connection refused), 0s of 1m0s"},
			{"2.75s", "info x is there after 3s"},
		}},
		{"never there", 12 * time.Second, refused, 124, 12 * time.Second, []said{
			{"0s", "info waiting for x (connection refused), 0s of 12s"},
			{"5s", "info waiting for x (connection refused), 5s of 12s"},
			{"10s", "info waiting for x (connection refused), 10s of 12s"},
			{"12s", "error x is not there after 12s (connection refused), giving up"},
		}},
		{"nobody answers", 13 * time.Second, silent, 124, 13 * time.Second, []said{
			{"1s", "info waiting for x (no answer yet), 1s of 13s"},
			{"6s", "info waiting for x (no answer within 5s), 6s of 13s"},
			{"11s", "info waiting for x (no answer within 5s), 11s of 13s"},
			{"13s", "error x is not there after 13s (no answer within 5s), giving up"},
		}},
		{"a try that does not heed its limit does not hold up the timeout", 3 * time.Second, func(ctx context.Context) error {
			time.Sleep(10 * time.Second)
			return ctx.Err()
		}, 124, 3 * time.Second, []said{
			{"1s", "info waiting for x (no answer yet), 1s of 3s"},
			{"3s", "error x is not there after 3s (no answer yet), giving up"},
		}},
		{"for ever", 0, after(3602, ok), 0, 3601*time.Second - 250*time.Millisecond, nil},
		{"nobody waits any more", time.Minute, after(2, func(context.Context) error { return errParentGone }), 125, 750 * time.Millisecond, []said{
			{"0s", "info waiting for x (connection refused), 0s of 1m0s"},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				var lines []said
				code := run("x", test.timeout, test.try, func(level logger.Level, text string) {
					lines = append(lines, said{time.Since(start).String(), level.String() + " " + text})
				})
				took := time.Since(start)
				time.Sleep(20 * time.Second) // let tries that were left behind end
				if code != test.code || took != test.took {
					t.Errorf("ended with %d after %v, want %d after %v", code, took, test.code, test.took)
				}
				if test.lines == nil && len(lines) > 700 { // for ever: every 5 s of an hour
					return
				}
				if diff := cmp.Diff(test.lines, lines); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		})
	}
}

// child runs the wait as skep does: as a process of its own.
type child struct {
	cmd    *exec.Cmd
	stderr *bufio.Reader
}

func start(t *testing.T, url string, timeout time.Duration, format logger.Format) *child {
	t.Helper()
	target, err := Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	step := Step(target, timeout, format, logger.Info)
	c := &child{cmd: exec.Command(step.Path)}
	c.cmd.Args = step.Argv
	pipe, err := c.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.stderr = bufio.NewReader(pipe)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.cmd.ProcessState == nil {
			_ = c.cmd.Process.Kill()
			_ = c.cmd.Wait()
		}
	})
	return c
}

// line waits for the next line.
func (c *child) line(t *testing.T) string {
	t.Helper()
	text, err := c.stderr.ReadString('\n')
	if err != nil {
		t.Fatalf("no further line: %v", err)
	}
	return strings.TrimSuffix(text, "\n")
}

// end waits for the end and returns the code, 128+n after a signal, with what
// was said in the meantime.
func (c *child) end(t *testing.T) (int, string) {
	t.Helper()
	var rest bytes.Buffer
	if _, err := rest.ReadFrom(c.stderr); err != nil {
		t.Fatal(err)
	}
	_ = c.cmd.Wait()
	status := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal()), rest.String()
	}
	return status.ExitStatus(), rest.String()
}

// free returns a loopback address on which nothing listens, held so that nobody
// else gets it until the listener is wanted.
func free(t *testing.T) (address string, listen func() net.Listener) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "listener")
	t.Cleanup(func() { _ = file.Close() })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address = fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	return address, func() net.Listener {
		t.Helper()
		if err := syscall.Listen(fd, 16); err != nil {
			t.Fatal(err)
		}
		l, err := net.FileListener(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
}

func TestTCPComesUpLate(t *testing.T) {
	address, listen := free(t)
	c := start(t, "tcp://"+address, time.Minute, logger.Text)
	if got, want := c.line(t), "skep: waiting for tcp://"+address+" (connection refused), 0s of 1m0s"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	listen()
	code, rest := c.end(t)
	if code != 0 || !strings.Contains(rest, "skep: tcp://"+address+" is there after ") {
		t.Errorf("ended with %d and %q", code, rest)
	}
}

func TestTimeout(t *testing.T) {
	address, _ := free(t)
	c := start(t, "tcp://"+address, time.Second, logger.Text)
	code, rest := c.end(t)
	if code != 124 || !strings.HasSuffix(rest, "skep: error: tcp://"+address+" is not there after 1s (connection refused), giving up\n") {
		t.Errorf("ended with %d and %q", code, rest)
	}
}

func TestTERMEndsAtOnce(t *testing.T) {
	address, _ := free(t)
	c := start(t, "tcp://"+address, 10*time.Minute, logger.Text)
	c.line(t)
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, rest := c.end(t); code != 143 || rest != "" {
		t.Errorf("ended with %d and %q", code, rest)
	}
}

// TestParentGone: nobody waits any more, so the child does not either.
func TestParentGone(t *testing.T) {
	address, _ := free(t)
	c := &child{cmd: exec.Command("/proc/self/exe", "--timeout=1m", "tcp://"+address)}
	c.cmd.Env = append(os.Environ(), "WAIT_TEST_ROLE=parent")
	pipe, err := c.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.stderr = bufio.NewReader(pipe)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.line(t)
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// The pipe ends when the child, which holds it too, has ended.
	if err := pipe.(*os.File).SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for err = nil; err == nil; {
		_, err = c.stderr.ReadString('\n')
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("the child is still waiting: %v", err)
	}
	_ = c.cmd.Wait()
}

func TestHTTP(t *testing.T) {
	address, listen := free(t)
	var (
		ready   atomic.Bool
		request = make(chan *http.Request, 100)
	)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case request <- r:
		default:
		}
		w.WriteHeader(http.StatusEarlyHints)
		if !ready.Load() {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		http.Redirect(w, r, "/elsewhere", http.StatusFound)
	})}
	t.Cleanup(func() { _ = server.Close() })
	listener := listen()
	go func() { _ = server.Serve(listener) }()

	c := start(t, "http://"+address+"/healthz?full=1", time.Minute, logger.Text)
	if got, want := c.line(t), "skep: waiting for http://"+address+"/healthz (answered 503 Service Unavailable), 0s of 1m0s"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	ready.Store(true)
	if code, rest := c.end(t); code != 0 {
		t.Errorf("ended with %d and %q", code, rest)
	}
	r := <-request
	if r.Method != "GET" || r.RequestURI != "/healthz?full=1" || r.Host != address || r.UserAgent() != "skep-wait" || !r.Close {
		t.Errorf("asked %s %s of %s as %s, close %v", r.Method, r.RequestURI, r.Host, r.UserAgent(), r.Close)
	}
}

func TestUnixAndFile(t *testing.T) {
	folder := t.TempDir()
	socket := filepath.Join(folder, "s")
	c := start(t, "unix://"+socket, time.Minute, logger.Text)
	if got := c.line(t); !strings.Contains(got, "(no such file or directory)") {
		t.Error(got)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if code, rest := c.end(t); code != 0 {
		t.Errorf("unix: ended with %d and %q", code, rest)
	}

	file := filepath.Join(folder, "f")
	c = start(t, "file://"+file, time.Minute, logger.Text)
	if got := c.line(t); !strings.Contains(got, "(no such file or directory)") {
		t.Error(got)
	}
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	if code, rest := c.end(t); code != 0 {
		t.Errorf("file: ended with %d and %q", code, rest)
	}
}

// TestSocketTypes: a socket that is there is there, also when it is no stream;
// one whose server is gone is not.
func TestSocketTypes(t *testing.T) {
	folder := t.TempDir()
	gram, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(folder, "gram"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer gram.Close()
	packet, err := net.Listen("unixpacket", filepath.Join(folder, "packet"))
	if err != nil {
		t.Fatal(err)
	}
	defer packet.Close()
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(folder, "stale"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	for name, want := range map[string]error{"gram": nil, "packet": nil, "stale": syscall.ECONNREFUSED} {
		target, err := Parse("unix://" + filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := target.try(t.Context()); !errors.Is(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func TestNoSuchHost(t *testing.T) {
	if got := cause(dial.ErrNotFound); got != "no such host" {
		t.Error(got)
	}
	if got := cause(errors.New("server\tmisbehaving")); got != "server?misbehaving" {
		t.Error(got)
	}
}

func TestJSON(t *testing.T) {
	address, _ := free(t)
	c := start(t, "tcp://"+address, time.Second, logger.JSON)
	_, rest := c.end(t)
	lines := strings.Split(strings.TrimSpace(rest), "\n")
	if len(lines) < 2 {
		t.Fatalf("%q", rest)
	}
	for _, line := range lines {
		var got struct {
			Time  time.Time
			Level string
			Msg   string
		}
		if err := json.Unmarshal([]byte(line), &got); err != nil || got.Time.IsZero() || got.Level == "" || !strings.Contains(got.Msg, address) {
			t.Errorf("%s: %+v, %v", line, got, err)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"skep-wait"}, {"skep-wait", "https://x"}, {"skep-wait", "--timeout=x", "tcp://x:1"}, {"skep-wait", "--timeout=-1s", "tcp://x:1"}, {"skep-wait", "--log-level=x", "tcp://x:1"}, nil} {
		c := &child{cmd: exec.Command("/proc/self/exe")}
		c.cmd.Args = append([]string{"skep-wait"}, args[min(1, len(args)):]...)
		if err := c.cmd.Run(); err == nil || c.cmd.ProcessState.ExitCode() != 125 {
			t.Errorf("%q: %v", args, c.cmd.ProcessState)
		}
	}
}

func TestReadStatus(t *testing.T) {
	for in, want := range map[string]string{
		"HTTP/1.1 200 OK\r\n": "",
		"HTTP/1.0 204\r\n":    "",
		"HTTP/1.1 399 x\n":    "",
		"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 302 x\r\n": "",
		"HTTP/1.1 404 Not Found\r\n":                              "answered 404 Not Found",
		"HTTP/1.1 500 a\x1b[31m\r\n":                              "answered 500 a?[31m",
		"HTTP/1.1 500 " + strings.Repeat("x", 999) + "\r\n":       "answered 500 " + strings.Repeat("x", 54),
		"":                               "closed the connection without an answer",
		"HTTP/1.1 200":                   "did not answer in HTTP",
		"SSH-2.0-OpenSSH\r\n":            "did not answer in HTTP",
		"HTTP/2 200 OK\r\n":              "did not answer in HTTP",
		"HTTP/1.1 2000 OK\r\n":           "did not answer in HTTP",
		"HTTP/1.1 099 OK\r\n":            "did not answer in HTTP",
		"HTTP/1.1 +20 OK\r\n":            "did not answer in HTTP",
		strings.Repeat("x", 5000) + "\n": "did not answer in HTTP",
		strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 20): "did not answer in HTTP",
		"HTTP/1.1 103 Early Hints\r\n":                         "closed the connection without an answer",
	} {
		err := readStatus(bufio.NewReaderSize(strings.NewReader(in), 4096))
		if (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("%.60q: got %v, want %q", in, err, want)
		}
	}
}

func FuzzReadStatus(f *testing.F) {
	for _, s := range []string{"HTTP/1.1 200 OK\r\n", "HTTP/1.1 100 x\r\n\r\nHTTP/1.1 503 y\r\n", "HTTP/1."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		err := readStatus(bufio.NewReaderSize(strings.NewReader(in), 4096))
		if err == nil && !strings.Contains(in, "HTTP/1.") {
			t.Fatalf("%q was taken for an answer", in)
		}
		if err != nil && strings.ContainsAny(err.Error(), "\x1b\n\r") {
			t.Fatalf("%q disturbs the terminal: %q", in, err)
		}
	})
}

// A probe comes from the address it is told, and wants two good answers in a row.
func TestProbe(t *testing.T) {
	answers := make(chan int, 3)
	for _, code := range []int{200, 503, 204} {
		answers <- code
	}
	var asked atomic.Int32
	var from atomic.Value
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		from.Store(r.RemoteAddr + " " + r.URL.String())
		select {
		case code := <-answers:
			w.WriteHeader(code)
		default:
			w.WriteHeader(http.StatusFound)
		}
	})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(ln)
	defer server.Close()
	args := Probe(ln.Addr().String()+"/h?x=1", [4]byte{127, 0, 0, 9}, logger.Text, logger.Error)
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = args
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	if got, _ := from.Load().(string); !strings.HasPrefix(got, "127.0.0.9:") || !strings.HasSuffix(got, " /h?x=1") {
		t.Errorf("asked by %q", got)
	}
	if n := asked.Load(); n != 4 { // good and bad, good and good
		t.Errorf("asked %d times, want 4", n)
	}
	cmd = exec.Command("/proc/self/exe")
	cmd.Args = []string{name, "--from=::1", "http://127.0.0.1:1/"}
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != codeUsage {
		t.Errorf("from an IPv6 address: %v", err)
	}
}
