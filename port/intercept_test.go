package port_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
	"skep/internal/testneed"
	"skep/launch"
	"skep/port"
)

// Programs under test are small Python scripts: they know system calls and nothing of skep.

type change = func(*launch.Command)

// prelude is what the scripts share. serve answers on a listener, for ever, with the process id.
const prelude = `
import ctypes, errno, os, select, signal, socket, struct, sys, threading, time
port = int(sys.argv[1])
def say(*a): os.write(1, (" ".join(map(str, a)) + "\n").encode())
def tcp(family=socket.AF_INET): return socket.socket(family, socket.SOCK_STREAM)
def inode(s): return os.fstat(s.fileno()).st_ino
def serve(s):
    s.setblocking(True)
    while True:
        c, _ = s.accept()
        c.recv(65536)
        c.sendall(b"HTTP/1.0 200 OK\r\n\r\npid %d\n" % os.getpid())
        c.close()
def attempt(f, *a):
    try:
        f(*a)
        return "ok"
    except OSError as e:
        return errno.errorcode[e.errno]
`

// script writes a program and returns its command line.
func script(t *testing.T, text string, args ...string) []string {
	t.Helper()
	dir := folder(t, map[string]string{"program.py": prelude + text})
	return append([]string{program(t, "python3"), filepath.Join(dir, "program.py")}, args...)
}

// python starts a script in a slot with the port as its first argument.
func (h *hive) python(slot, port int, text string, changes ...change) *worker {
	h.t.Helper()
	return h.spawn(slot, script(h.t, text, strconv.Itoa(port)), changes...)
}

// find returns the facts of one type.
func find[F port.Fact](h *hive) []F {
	var found []F
	for _, f := range h.all() {
		if f, ok := f.(F); ok {
			found = append(found, f)
		}
	}
	return found
}

// waitFor waits for a fact of one type.
func waitFor[F port.Fact](h *hive) F {
	h.t.Helper()
	f, _ := h.wait(0, fmt.Sprintf("%T", *new(F)), func(f port.Fact) bool {
		_, ok := f.(F)
		return ok
	})
	return f.(F)
}

func v4(n int) port.Addr {
	_, a, err := port.ParseAddr("0.0.0.0:" + strconv.Itoa(n))
	if err != nil {
		panic(err)
	}
	return a
}

// held returns the inode of the socket the slot has on a, 0 for none.
func (h *hive) held(slot int, a port.Addr) (inode uint64) {
	h.do(func(s *port.Set) {
		for _, held := range s.Held(slot) {
			if held.Addr == a {
				inode = held.Inode()
			}
		}
	})
	return inode
}

// pidOf asks a server for its process.
func pidOf(t *testing.T, address string) int {
	t.Helper()
	text, err := get(address, "/")
	if err != nil {
		t.Fatal(err)
	}
	return pidIn(t, text)
}

func pidIn(t *testing.T, text string) int {
	t.Helper()
	_, rest, found := strings.Cut(text, "pid ")
	pid, err := strconv.Atoi(strings.TrimSpace(rest))
	if !found || err != nil {
		t.Fatalf("no pid in %q", text)
	}
	return pid
}

const plainServer = `
s = tcp(); s.bind(("0.0.0.0", port)); s.listen(5)
say("listens", inode(s))
serve(s)
`

// deafServer listens and never accepts.
const deafServer = `
s = tcp(); s.bind(("0.0.0.0", port)); s.listen(5)
say("listens", inode(s))
signal.pause()
`

func TestQueuedConnectionsOfAKilledWorkerAreAnsweredByTheNext(t *testing.T) {
	n := freePort(t)
	h := newHive(t, port.Options{})
	first := h.python(0, n, deafServer)
	h.listening(0, 1)
	var conns []net.Conn
	for range 40 {
		conn, err := net.DialTimeout("tcp", loopback(n), patience)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if _, err := fmt.Fprintf(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	first.kill(syscall.SIGKILL)
	<-first.done
	// Nobody has the port but skep, and clients still get in.
	late, err := net.DialTimeout("tcp", loopback(n), patience)
	if err != nil {
		t.Fatalf("between the workers: %v", err)
	}
	defer func() { _ = late.Close() }()
	if _, err := fmt.Fprintf(late, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	next := h.python(0, n, plainServer)
	for i, conn := range append(conns, late) {
		_ = conn.SetDeadline(time.Now().Add(patience))
		room := make([]byte, 200)
		got, err := conn.Read(room)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if pid := pidIn(t, string(room[:got])); pid != next.pid {
			t.Errorf("connection %d was answered by %d, want %d", i, pid, next.pid)
		}
	}
}

// unusual is a list of calls whose outcome must be the kernel's, filter or not.
const unusual = `
libc = ctypes.CDLL(None, use_errno=True)
kept = []
def new(*a):
    kept.append(tcp(*a))
    return kept[-1].fileno()
def bind(fd, addr, length=None):
    r = libc.bind(fd, addr, len(addr) if length is None else length)
    return "ok" if r == 0 else errno.errorcode[ctypes.get_errno()]
def sin(host, port, family=socket.AF_INET): return struct.pack("=H", family) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)
def sin6(host, port): return struct.pack("=H", socket.AF_INET6) + struct.pack("!H", port) + bytes(4) + socket.inet_pton(socket.AF_INET6, host) + bytes(4)
busy = int(sys.argv[2])
say("in use:", bind(new(), sin("127.0.0.1", busy)))
say("in use, any address:", bind(new(), sin("0.0.0.0", busy)))
say("not local:", bind(new(), sin("192.0.2.1", port)))
say("not open:", bind(999, sin("127.0.0.1", port)))
say("negative:", bind(-1, sin("127.0.0.1", port)))
say("a pipe:", bind(os.pipe()[0], sin("127.0.0.1", port)))
say("short:", bind(new(), sin("127.0.0.1", port), 15))
say("length 0:", bind(new(), sin("127.0.0.1", port), 0))
say("length -1:", bind(new(), sin("127.0.0.1", port), -1))
say("too long:", bind(new(), sin("127.0.0.1", port) + bytes(200)))
say("nowhere:", bind(new(), ctypes.c_void_p(8), 16))
say("the kernel's half:", bind(new(), ctypes.c_void_p(2**64 - 4096), 16))
say("wrong family:", bind(new(socket.AF_INET6), sin("127.0.0.1", port)))
say("wrong family:", bind(new(), sin6("::1", port)))
say("no family:", bind(new(), sin("127.0.0.1", port, 77)))
say("AF_UNSPEC:", bind(new(), sin("127.0.0.1", port, 0)))
s = tcp(); s.bind(("127.0.0.1", 0))
say("bound already, port 0 before:", attempt(s.bind, ("127.0.0.1", 0)))
say("listen on a pipe:", errno.errorcode[ctypes.get_errno()] if libc.listen(os.pipe()[0], 1) else "ok")
say("listen on nothing:", errno.errorcode[ctypes.get_errno()] if libc.listen(999, 1) else "ok")
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
say("listen on UDP:", attempt(u.listen, 1))
s = tcp(socket.AF_INET6)
say("IPV6_V6ONLY, no value:", errno.errorcode[ctypes.get_errno()] if libc.setsockopt(s.fileno(), 41, 26, None, 4) else "ok")
say("IPV6_V6ONLY, short:", errno.errorcode[ctypes.get_errno()] if libc.setsockopt(s.fileno(), 41, 26, b"\1\0\0\0", 3) else "ok")
s = tcp(); s.bind(("127.0.0.1", port))
say("another address:", attempt(s.bind, ("127.0.0.1", port + 1 if port < 65535 else 1)))
say("name:", s.getsockname() == ("127.0.0.1", port))
say("end")
`

func TestOutcomesAreTheKernelsOwn(t *testing.T) {
	busy, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Close() }()
	n := freePort(t)
	argv := script(t, unusual, strconv.Itoa(n), strconv.Itoa(busy.Addr().(*net.TCPAddr).Port))
	var said [2]string
	for i, filter := range []bool{false, true} {
		h := newHive(t, port.Options{})
		w := h.spawn(0, argv, func(c *launch.Command) { c.Filter = filter })
		w.says("end\n")
		w.wait()
		said[i] = w.out.String()
		if filter {
			if got := find[port.Refused](h); len(got) != 3 || got[0].Errno != unix.EADDRINUSE || got[1].Errno != unix.EADDRINUSE || got[2].Errno != unix.EADDRNOTAVAIL {
				t.Errorf("refusals %+v, want EADDRINUSE twice and EADDRNOTAVAIL", got)
			}
			if got := find[port.Shared](h); len(got) != 1 {
				t.Errorf("shared %+v, want the last socket alone", got)
			}
		}
	}
	without, with := strings.Split(said[0], "\n"), strings.Split(said[1], "\n")
	if !slices.Equal(without, with) {
		for i := range min(len(without), len(with)) {
			if without[i] != with[i] {
				t.Errorf("without the filter %q, with it %q", without[i], with[i])
			}
		}
	}
	if len(without) < 20 {
		t.Errorf("the program did not run to its end: %q", said[0])
	}
}

func TestEverythingButTCPWithAPortIsUntouched(t *testing.T) {
	n := freePort(t)
	dir := folder(t, nil)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	argv := script(t, `
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("127.0.0.1", port))
z = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); z.bind(("127.0.0.1", 0))
x = socket.socket(socket.AF_UNIX); x.bind(sys.argv[2]); x.listen(5)
nl = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); nl.bind((0, 0))
t = tcp(); t.bind(("127.0.0.1", 0)); t.listen(5)
q = tcp(); q.listen(5)
say("tcp", t.getsockname()[1])
threading.Thread(target=serve, args=(x,), daemon=True).start()
threading.Thread(target=serve, args=(t,), daemon=True).start()
while True:
    d, a = u.recvfrom(100)
    u.sendto(b"echo " + d, a)
`, strconv.Itoa(n), filepath.Join(dir, "sock"))
	h := newHive(t, port.Options{})
	w := h.spawn(0, argv)
	w.says("tcp ")
	w.says("\n")
	var own int
	if _, err := fmt.Sscanf(w.out.String(), "tcp %d", &own); err != nil {
		t.Fatal(err)
	}
	if pid := pidOf(t, loopback(own)); pid != w.pid {
		t.Errorf("port 0 is served by %d", pid)
	}
	x, err := net.Dial("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = x.Close() }()
	if text, err := ask(x, "/"); err != nil || pidIn(t, text) != w.pid {
		t.Errorf("unix: %q, %v", text, err)
	}
	u, err := net.Dial("udp", loopback(n))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = u.Close() }()
	_ = u.SetDeadline(time.Now().Add(patience))
	if _, err := u.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	room := make([]byte, 20)
	if got, err := u.Read(room); err != nil || string(room[:got]) != "echo x" {
		t.Errorf("UDP: %q, %v", room[:got], err)
	}
	var kinds []port.Kind
	for _, f := range find[port.Foreign](h) {
		kinds = append(kinds, f.Kind)
		if f.Kind == port.KindUDP && f.Addr.String() != loopback(n) {
			t.Errorf("UDP on %s", f.Addr)
		}
		if f.Process != w.pid {
			t.Errorf("process %d, want %d", f.Process, w.pid)
		}
	}
	if want := []port.Kind{port.KindUDP, port.KindUnix, port.KindTCP, port.KindTCP}; !slices.Equal(kinds, want) {
		t.Errorf("foreign listeners %v, want %v", kinds, want)
	}
	if all := h.all(); len(all) != len(kinds) {
		t.Errorf("facts %+v", all)
	}
	var groups int
	h.do(func(s *port.Set) { groups = len(s.Groups()) })
	if groups != 0 {
		t.Errorf("%d groups are held", groups)
	}
}

func TestPortsThatAreNotSharedAreLeftToTheWorker(t *testing.T) {
	shared, own := freePort(t), freePort(t)
	h := newHive(t, port.Options{SharePorts: []uint16{uint16(shared)}})
	argv := script(t, `
a = tcp(); a.bind(("0.0.0.0", port)); a.listen(5)
b = tcp(); b.bind(("0.0.0.0", int(sys.argv[2]))); b.listen(5)
say("ready")
serve(b)
`, strconv.Itoa(shared), strconv.Itoa(own))
	w := h.spawn(0, argv)
	w.says("ready")
	if got, want := find[port.Shared](h), []port.Shared{{Slot: 0, Process: w.pid, Addr: v4(shared)}}; !slices.Equal(got, want) {
		t.Errorf("shared %+v, want %+v", got, want)
	}
	if got := find[port.Foreign](h); len(got) != 1 || got[0].Kind != port.KindTCP {
		t.Errorf("foreign %+v, want the other port", got)
	}
	if pid := pidOf(t, loopback(own)); pid != w.pid {
		t.Errorf("answered by %d", pid)
	}
}

func TestSeveralPortsPerWorker(t *testing.T) {
	a, b := freePort(t), freePort(t)
	h := newHive(t, port.Options{})
	argv := script(t, `
x = tcp(); x.bind(("0.0.0.0", port)); x.listen(5)
y = tcp(); y.bind(("0.0.0.0", int(sys.argv[2]))); y.listen(5)
threading.Thread(target=serve, args=(x,), daemon=True).start()
serve(y)
`, strconv.Itoa(a), strconv.Itoa(b))
	for slot := range 2 {
		h.spawn(slot, argv)
	}
	for slot := range 2 {
		h.listening(slot, 2)
	}
	for _, n := range []int{a, b} {
		seen := map[int]bool{}
		for range 40 {
			seen[pidOf(t, loopback(n))] = true
		}
		if len(seen) != 2 {
			t.Errorf("port %d is served by %v, want both workers", n, seen)
		}
	}
}

// storm binds and listens again and again, and each time a signal arrives at another moment of it. One signal and not a stream: a bind that is interrupted
// faster than skep is scheduled would never end, with or without skep's doing.
const storm = `
caught = 0
def handler(*a):
    global caught
    caught += 1
signal.signal(signal.SIGALRM, handler)
signal.siginterrupt(signal.SIGALRM, sys.argv[2] == "EINTR")
inodes, interrupted = set(), 0
def insist(f, *a):
    global interrupted
    while True:
        try:
            return f(*a)
        except InterruptedError:
            interrupted += 1
for i in range(int(sys.argv[3])):
    s = tcp()
    signal.setitimer(signal.ITIMER_REAL, 0.00001 * (1 + i % 50))
    insist(s.bind, ("0.0.0.0", port))
    insist(s.listen, 5)
    inodes.add(inode(s))
    s.close()
signal.setitimer(signal.ITIMER_REAL, 0)
say("inodes", *inodes)
say("caught some" if caught > 20 else "caught %d" % caught)
say("interrupted", interrupted)
s = tcp(); s.bind(("0.0.0.0", port)); s.listen(5); say("end"); serve(s)
`

func TestSignalStormsDuringBind(t *testing.T) {
	for _, old := range []bool{false, true} {
		for _, how := range []string{"SA_RESTART", "EINTR"} {
			t.Run(fmt.Sprintf("%s,old kernel=%v", how, old), func(t *testing.T) {
				n := freePort(t)
				h := newHive(t, port.Options{})
				argv := script(t, storm, strconv.Itoa(n), how, "400")
				var changes []change
				if old {
					argv, changes = h.oldKernel(argv)
				}
				w := h.spawn(0, argv, changes...)
				w.says("end\n")
				text := w.out.String()
				if !strings.Contains(text, "caught some") {
					t.Errorf("there was no storm: %s", text)
				}
				if want := fmt.Sprintf("inodes %d\n", h.held(0, v4(n))); !strings.Contains(text, want) {
					t.Errorf("%q, want %q: each bind must find the one socket", text, want)
				}
				if how == "EINTR" && strings.Contains(text, "interrupted 0\n") {
					t.Errorf("no signal came in a bind or listen: %s", text)
				}
				if pid := pidOf(t, loopback(n)); pid != w.pid {
					t.Errorf("answered by %d, want %d", pid, w.pid)
				}
				t.Logf("%s", text)
			})
		}
	}
}

// oldKernel makes the filter be installed as on a kernel before 5.19, where any signal interrupts a call skep has received already.
func (h *hive) oldKernel(argv []string) ([]string, []change) {
	ours, theirs, err := sys.SocketPair()
	if err != nil {
		h.t.Fatal(err)
	}
	h.notify = []int{ours, theirs}
	return append([]string{"/proc/self/exe"}, argv...), []change{func(c *launch.Command) {
		c.Filter, c.Files = false, append(c.Files, uintptr(theirs))
		c.Env = append(c.Env, "SKEP_TEST_ROLE=old-kernel")
	}}
}

func init() {
	roles["old-kernel"] = func(argv []string) {
		const notify = 3
		fail := func(what string, err error) {
			fmt.Fprintln(os.Stderr, what, err)
			os.Exit(2)
		}
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			fail("prctl", err)
		}
		prog := launch.NativeFilter()
		listener, err := installOldFilter(prog)
		if err != nil {
			fail("seccomp", err)
		}
		if err := unix.Sendmsg(notify, []byte{0}, unix.UnixRights(listener), nil, 0); err != nil {
			fail("sendmsg", err)
		}
		_, _ = unix.Close(listener), unix.Close(notify)
		env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "SKEP_TEST_ROLE=") })
		fail("exec", unix.Exec(argv[0], argv, env))
	}
}

func TestBindingTheHeldSocketAgainSucceeds(t *testing.T) {
	// What the kernel repeats after a signal that came between the exchange and the answer.
	n := freePort(t)
	h := newHive(t, port.Options{})
	w := h.python(0, n, `
s = tcp()
s.bind(("0.0.0.0", port)); before = inode(s)
say(attempt(s.bind, ("0.0.0.0", port)), inode(s) == before)
say(attempt(s.bind, ("127.0.0.1", port)))
`)
	w.wait()
	w.says("EINVAL\n")
	if want := "ok True\nEINVAL\n"; w.out.String() != want {
		t.Errorf("said %q, want %q", w.out, want)
	}
}

func TestForkedChildrenShareTheSlotsSocket(t *testing.T) {
	n := freePort(t)
	h := newHive(t, port.Options{})
	w := h.python(0, n, `
s = tcp(); s.bind(("0.0.0.0", port)); s.listen(50)
for i in range(3):
    if os.fork() == 0:
        own = tcp(); own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        own.bind(("0.0.0.0", port)); own.listen(50)
        say("child", inode(own) == inode(s), os.getpid())
        serve(own if i else s)
signal.pause()
`)
	h.listening(0, 4)
	seen := map[int]bool{}
	eventually(t, "all three children answer", func() bool {
		seen[pidOf(t, loopback(n))] = true
		return len(seen) == 3
	})
	if seen[w.pid] {
		t.Error("the parent answered")
	}
	if text := w.out.String(); strings.Count(text, "child True") != 3 {
		t.Errorf("children have other sockets: %s", text)
	}
	for _, f := range find[port.Shared](h)[1:] {
		if f.Process == w.pid || !seen[f.Process] {
			t.Errorf("%+v names neither child of %v", f, seen)
		}
	}
	for pid := range seen {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func TestThreadsAreNamedWithTheirProcess(t *testing.T) {
	n := freePort(t)
	h := newHive(t, port.Options{})
	w := h.python(0, n, `
def run():
    s = tcp(); s.bind(("0.0.0.0", port)); s.listen(5); say("thread", threading.get_native_id()); serve(s)
threading.Thread(target=run).start()
`)
	l := waitFor[port.Listening](h)
	w.says("\n")
	var thread int
	if _, err := fmt.Sscanf(w.out.String(), "thread %d", &thread); err != nil {
		t.Fatal(err)
	}
	if want := (port.Listening{Slot: 0, Process: w.pid, Thread: thread, Addr: v4(n)}); l != want || thread == w.pid {
		t.Errorf("got %+v, want %+v", l, want)
	}
	if pid := pidOf(t, loopback(n)); pid != w.pid {
		t.Errorf("answered by %d", pid)
	}
}

func TestSocketInAnEpollSetIsNotExchanged(t *testing.T) {
	n, other := freePort(t), freePort(t)
	h := newHive(t, port.Options{})
	argv := script(t, `
s, ep = tcp(), select.epoll()
ep.register(s.fileno(), select.EPOLLIN)
before = inode(s)
s.bind(("0.0.0.0", port)); s.listen(5); s.setblocking(False)
say("own", inode(s) == before)
o = tcp(); o.bind(("0.0.0.0", int(sys.argv[2]))); o.listen(5)
while True:
    for fd, _ in ep.poll():
        c, _ = s.accept(); c.setblocking(True); c.recv(100); c.sendall(b"HTTP/1.0 200 OK\r\n\r\npid %d\n" % os.getpid()); c.close()
`, strconv.Itoa(n), strconv.Itoa(other))
	w := h.spawn(0, argv)
	h.listening(0, 1)
	if got, want := find[port.EpollFirst](h), []port.EpollFirst{{Slot: 0, Process: w.pid, Addr: v4(n)}}; !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	w.says("own True\n")
	if pid := pidOf(t, loopback(n)); pid != w.pid {
		t.Errorf("answered by %d", pid)
	}
	// A socket that is in no set is exchanged all the same.
	if got := find[port.Shared](h); len(got) != 1 || got[0].Addr != v4(other) {
		t.Errorf("shared %+v, want the other port", got)
	}
}

func TestRebindingAfterCloseTakesTheNewFlags(t *testing.T) {
	n := freePort(t)
	h := newHive(t, port.Options{})
	w := h.python(0, n, `
for blocking in (True, False, True, False):
    s = tcp(); s.setblocking(blocking); os.set_inheritable(s.fileno(), blocking)
    s.bind(("0.0.0.0", port)); s.listen(5)
    say(inode(s), os.get_blocking(s.fileno()) == blocking, os.get_inheritable(s.fileno()) == blocking)
    s.close()
say("end")
`)
	w.says("end\n")
	line := fmt.Sprintf("%d True True\n", h.held(0, v4(n)))
	if want := strings.Repeat(line, 4) + "end\n"; w.out.String() != want {
		t.Errorf("said %q, want %q", w.out, want)
	}
}

func TestFlagsOfALivingOwnerAreLeftAlone(t *testing.T) {
	n := freePort(t)
	h := newHive(t, port.Options{})
	w := h.python(0, n, `
s = tcp(); s.setblocking(True)
s.bind(("0.0.0.0", port)); s.listen(5)
r, wr = os.pipe()
child = os.fork()
if child == 0:
    os.close(wr); os.read(r, 1); os._exit(0)
s.close()
a = tcp(); a.setblocking(False); a.bind(("0.0.0.0", port))
say("with an owner:", os.get_blocking(a.fileno()))
a.close()
os.close(wr); os.waitpid(child, 0)
b = tcp(); b.setblocking(False); b.bind(("0.0.0.0", port))
say("without:", os.get_blocking(b.fileno()))
`)
	w.says("without: ")
	w.wait()
	if want := "with an owner: True\nwithout: False\n"; w.out.String() != want {
		t.Errorf("said %q, want %q", w.out, want)
	}
}

func TestSingleSharesOneSocketBetweenSlots(t *testing.T) {
	n := freePort(t)
	h := newHive(t, port.Options{Single: true})
	for slot := range 2 {
		h.python(slot, n, plainServer)
	}
	for slot := range 2 {
		h.listening(slot, 1)
	}
	if a, b := h.held(0, v4(n)), h.held(1, v4(n)); a != b || a == 0 {
		t.Errorf("inodes %d and %d", a, b)
	}
	seen := map[int]bool{}
	eventually(t, "both workers answer", func() bool {
		seen[pidOf(t, loopback(n))] = true
		return len(seen) == 2
	})
}

func TestV6OnlyIsKept(t *testing.T) {
	if probe, err := net.Listen("tcp6", "[::1]:0"); err != nil {
		testneed.Skip(t, "no IPv6: %v", err)
	} else {
		_ = probe.Close()
	}
	for _, only := range []bool{true, false} {
		t.Run(fmt.Sprint(only), func(t *testing.T) {
			n := freePort(t)
			h := newHive(t, port.Options{})
			argv := script(t, `
only = int(sys.argv[2])
six = tcp(socket.AF_INET6)
six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 - only)
six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
decoy = tcp(socket.AF_INET6); decoy.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 - only)
six.bind(("::", port)); six.listen(5)
say("only", six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == only, six.getsockname()[:2] == ("::", port))
if only:
    four = tcp(); four.bind(("0.0.0.0", port)); four.listen(5)
    threading.Thread(target=serve, args=(four,), daemon=True).start()
serve(six)
`, strconv.Itoa(n), map[bool]string{true: "1", false: "0"}[only])
			const copies = 2
			listens := 1
			if only {
				listens = 2
			}
			var workers []*worker
			for slot := range copies {
				workers = append(workers, h.spawn(slot, argv))
			}
			for slot, w := range workers {
				h.listening(slot, listens)
				w.says("only True True\n")
			}
			for _, address := range []string{loopback(n), net.JoinHostPort("::1", strconv.Itoa(n))} {
				seen := map[int]bool{}
				for range 40 {
					seen[pidOf(t, address)] = true
				}
				if len(seen) != copies {
					t.Errorf("%s is served by %v, want %d workers", address, seen, copies)
				}
			}
			for _, f := range find[port.Shared](h) {
				if f.Addr.Network == port.IPv6 && f.Addr.V6Only != only {
					t.Errorf("%+v, want V6Only %v", f, only)
				}
			}
		})
	}
}

func TestWorkerOfAnotherUser(t *testing.T) {
	testneed.Root(t)
	if !capable(t, unix.CAP_SETUID) || !capable(t, unix.CAP_SETGID) {
		testneed.Skip(t, "needs CAP_SETUID and CAP_SETGID")
	}
	n := freePort(t)
	h := newHive(t, port.Options{})
	seen := map[int]bool{}
	for slot, user := range []*launch.User{nil, {UID: 1000, GID: 1000}, {UID: 4321, GID: 1234, Groups: []uint32{7}}} {
		w := h.python(slot, n, plainServer, func(c *launch.Command) { c.User = user })
		h.listening(slot, 1)
		seen[w.pid] = false
	}
	// Every thread must have its own user back, or the next socket of the loop would be of another group.
	last := h.python(3, n, plainServer)
	h.listening(3, 1)
	seen[last.pid] = false
	for range 100 {
		seen[pidOf(t, loopback(n))] = true
	}
	for pid, answered := range seen {
		if !answered || len(seen) != 4 {
			t.Errorf("worker %d answered nothing: %v", pid, seen)
		}
	}
	checkIDs(t)
}

// checkIDs sees that no thread of the tests has kept another user, and that the process can be looked into.
func checkIDs(t *testing.T) {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		text, err := os.ReadFile("/proc/self/task/" + thread.Name() + "/status")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			words := strings.Fields(line)
			if len(words) == 5 && (words[0] == "Uid:" || words[0] == "Gid:") && words[4] != words[2] {
				t.Errorf("thread %s: %s", thread.Name(), line)
			}
		}
	}
	if v, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || v != 1 {
		t.Errorf("dumpable is %d, %v", v, err)
	}
}

// capable says whether the tests have a capability.
func capable(t *testing.T, capability uint) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, "CapEff:"); found {
			set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return set&(1<<capability) != 0
		}
	}
	return false
}

func TestWorkerThatIsNotDumpable(t *testing.T) {
	n := freePort(t)
	h := newHive(t, port.Options{})
	w := h.python(0, n, `
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
s = tcp(); s.bind(("0.0.0.0", port)); s.listen(5); say("listens"); serve(s)
`)
	w.says("listens\n")
	if capable(t, unix.CAP_SYS_PTRACE) {
		h.listening(0, 1)
		if got := find[port.Blind](h); len(got) != 0 {
			t.Errorf("blind: %+v", got)
		}
	} else {
		b := waitFor[port.Blind](h)
		if !errors.Is(b.Err, unix.EACCES) && !errors.Is(b.Err, unix.EPERM) {
			t.Errorf("blind by %v", b.Err)
		}
		if got := find[port.Shared](h); len(got) != 0 {
			t.Errorf("shared: %+v", got)
		}
	}
	if pid := pidOf(t, loopback(n)); pid != w.pid {
		t.Errorf("answered by %d", pid)
	}
}

func TestWorkerThatShutsItsListenerDown(t *testing.T) {
	n := freePort(t)
	h := newHive(t, port.Options{})
	first := h.python(0, n, `
s = tcp(); s.bind(("0.0.0.0", port)); s.listen(5)
say("ready"); sys.stdin.read()
s.shutdown(socket.SHUT_RDWR); s.close()
say("shut"); signal.pause()
`)
	h.listening(0, 1)
	r := waitFor[port.Revived](h)
	if want := (port.Revived{Slot: 0, Addr: v4(n)}); r != want {
		t.Errorf("got %+v, want %+v", r, want)
	}
	conn, err := net.DialTimeout("tcp", loopback(n), patience)
	if err != nil {
		t.Fatalf("after the shutdown: %v", err)
	}
	defer func() { _ = conn.Close() }()
	first.kill(syscall.SIGKILL)
	next := h.python(0, n, plainServer)
	if text, err := ask(conn, "/"); err != nil || pidIn(t, text) != next.pid {
		t.Errorf("%q, %v", text, err)
	}
}

// TestClientFromAPortOfItsOwn has a worker that connects from a fixed port, several times, as FTP servers do: its connections have to end when it closes them.
func TestClientFromAPortOfItsOwn(t *testing.T) {
	n := freePort(t)
	h := newHive(t, port.Options{})
	var peers []net.Listener // several, because a connection that has ended keeps its two ends from meeting again for a while (TIME_WAIT)
	ports := make([]int, 3)
	for i := range ports {
		peer, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = peer.Close() }()
		_ = peer.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
		peers, ports[i] = append(peers, peer), peer.Addr().(*net.TCPAddr).Port
	}
	w := h.python(0, n, fmt.Sprintf(`
for peer in %s:
    s = tcp(); s.bind(("0.0.0.0", port)); s.connect(("127.0.0.1", peer))
    s.sendall(b"hello"); s.recv(1); s.close()
say("end"); signal.pause()
`, strings.ReplaceAll(fmt.Sprint(ports), " ", ",")))
	for _, peer := range peers {
		conn, err := peer.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.RemoteAddr().(*net.TCPAddr).Port; got != n {
			t.Errorf("it comes from port %d, want %d", got, n)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = conn.Write([]byte{'x'})
		if text, err := io.ReadAll(conn); string(text) != "hello" || err != nil {
			t.Errorf("%q, %v; want the end of the connection", text, err)
		}
		_ = conn.Close()
	}
	w.says("end\n")
	waitFor[port.Client](h)
	for late := time.Now().Add(patience); h.held(0, v4(n)) != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("the socket is still held")
		}
	}
}

func TestWorkerInAnotherNetworkNamespaceKeepsItsSocket(t *testing.T) {
	unshare := program(t, "unshare")
	n := freePort(t)
	h := newHive(t, port.Options{})
	argv := append([]string{unshare, "--user", "--map-root-user", "--net", "--"}, script(t, `
s = tcp(); before = inode(s); s.bind(("0.0.0.0", port)); s.listen(5); say("own", inode(s) == before); signal.pause()
`, strconv.Itoa(n))...)
	w := h.spawn(0, argv)
	for deadline := time.Now().Add(patience); !strings.Contains(w.out.String(), "own "); time.Sleep(5 * time.Millisecond) {
		if text := w.out.String(); strings.Contains(text, "unshare") {
			testneed.Skip(t, "no namespaces: %s", text)
		}
		if time.Now().After(deadline) {
			t.Fatalf("said %q", w.out)
		}
	}
	w.says("own True\n")
	for _, f := range h.all() {
		switch f.(type) {
		case port.Foreign, port.Blind:
		default:
			t.Errorf("fact %T%+v", f, f)
		}
	}
}

// filters is how many filters of workers this process has descriptors of.
func filters(t *testing.T) (n int) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if what, err := os.Readlink(link); err == nil && what == "anon_inode:seccomp notify" {
			n++
		}
	}
	return n
}

func TestSpawnAndKillLeaksNothing(t *testing.T) {
	cycles := 2000
	if testing.Short() {
		cycles = 100
	}
	n := freePort(t)
	h := newHive(t, port.Options{})
	argv, change := role("listen", "0.0.0.0:"+strconv.Itoa(n))
	const slots = 4
	warm := h.spawn(0, argv, change)
	h.listening(0, 1)
	if n := filters(t); n != 1 {
		t.Errorf("%d filters of one worker", n)
	}
	warm.kill(syscall.SIGKILL)
	<-warm.done
	// Of the first worker only the socket stays; its filter is let go of a little later.
	eventually(t, "the filter's descriptor is closed", func() bool { return filters(t) == 0 })
	eventually(t, "the outputs of all workers, also of tests before, are closed", func() bool { return outputs.Load() == 0 })
	before := descriptors(t)
	var all sync.WaitGroup
	for slot := range slots {
		all.Go(func() {
			for i := range cycles / slots {
				w := h.spawn(slot, argv, change)
				// Anywhere from the first instruction of the stub to the running server.
				if i%4 == 0 {
					w.says("listens\n")
				} else {
					time.Sleep(time.Duration(i%40) * 500 * time.Microsecond)
				}
				w.kill(syscall.SIGKILL)
				<-w.done
			}
		})
	}
	all.Wait()
	var held int
	h.do(func(s *port.Set) {
		for slot := range slots {
			held += len(s.Held(slot))
		}
	})
	listened := len(find[port.Listening](h))
	t.Logf("%d cycles: %d binds, %d listens; %d sockets are held", cycles, len(find[port.Shared](h)), listened, held)
	if listened < cycles/4 || listened == cycles {
		t.Errorf("%d listens: the kills came at the same stage", listened)
	}
	want := before - 1 + held
	eventually(t, fmt.Sprintf("%d descriptors (now %d)", want, descriptors(t)), func() bool { return descriptors(t) == want })
	for _, f := range h.all() {
		switch f.(type) {
		case port.Shared, port.Listening, lost:
		default:
			t.Errorf("unexpected fact %T%+v", f, f)
		}
	}
	last := h.spawn(0, argv, change)
	last.says("listens")
}

func init() {
	roles["listen"] = func(args []string) {
		l, err := net.Listen("tcp", args[0])
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("listens")
		_, _ = l.Accept()
	}
}
