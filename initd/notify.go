package initd

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"skep/initd/supervise"
	"skep/internal/logger"
	"skep/internal/sys"
	"skep/proc"
)

// notice is what one datagram of sd_notify(3) says, of what skep heeds.
type notice struct {
	ready, stopping bool
	alive           bool // WATCHDOG=1
	trigger         bool // WATCHDOG=trigger: it says itself that it hangs
	status          string
}

// noticeMost is the longest message that is read, as systemd has it. A longer one
// is dropped whole: half of it could say something else.
const noticeMost = 4096

// parseNotice reads the assignments of a datagram, one on each line. Unknown ones
// are passed over, and so is a message with a NUL in it, as systemd does.
func parseNotice(b []byte) (n notice) {
	text := string(b)
	if strings.IndexByte(text, 0) >= 0 {
		return n
	}
	for text != "" {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		switch line {
		case "READY=1":
			n.ready = true
		case "STOPPING=1":
			n.stopping = true
		case "WATCHDOG=1":
			n.alive = true
		case "WATCHDOG=trigger":
			n.trigger = true
		default:
			if status, ok := strings.CutPrefix(line, "STATUS="); ok {
				n.status = strings.ToValidUTF8(status, "?")
			}
		}
	}
	return n
}

// notifySocket is where workers send what sd_notify(3) says. It has an abstract
// address, so it needs no writable file system and no permission; who may say
// what is decided by the kernel's word on who sent it (unix(7), SCM_CREDENTIALS).
type notifySocket struct {
	file *os.File
	name string // as NOTIFY_SOCKET has it
}

func newNotifySocket() (*notifySocket, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err == nil {
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err == nil {
			err = unix.Bind(fd, &unix.SockaddrUnix{}) // the kernel finds a name that nobody has
		}
		var sa unix.Sockaddr
		if err == nil {
			sa, err = unix.Getsockname(fd)
		}
		if err == nil {
			return &notifySocket{os.NewFile(uintptr(fd), "notify socket"), sa.(*unix.SockaddrUnix).Name}, nil
		}
		_ = unix.Close(fd)
	}
	return nil, errors.New("cannot open the socket for --ready notify: " + err.Error())
}

// receive returns the next message and the pid of its sender. Descriptors that
// come with it are closed at once: that is what sd_notify_barrier(3) waits for.
func (s *notifySocket) receive(buf, control []byte) (b []byte, pid int, err error) {
	raw, err := s.file.SyscallConn()
	if err != nil {
		return nil, 0, err
	}
	var n, cn, flags int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		failed = sys.RetryEINTR(func() (err error) {
			n, cn, flags, _, err = unix.Recvmsg(int(fd), buf, control, unix.MSG_CMSG_CLOEXEC)
			return err
		})
		return !errors.Is(failed, unix.EAGAIN)
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return nil, 0, err
	}
	messages, _ := unix.ParseSocketControlMessage(control[:cn])
	for i := range messages {
		if cred, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
			pid = int(cred.Pid)
		}
		fds, _ := unix.ParseUnixRights(&messages[i])
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
	if flags&unix.MSG_TRUNC != 0 {
		n = 0
	}
	return buf[:n], pid, nil
}

// hear takes messages until the loop ends. Whose they are is found out here,
// because that reads files of other processes, and before the next message is
// taken, while a sender that waits for a barrier is still there.
func (l *loop) hear() {
	s, ctx := l.notify, l.ctx
	l.background(func() {
		<-ctx.Done()
		_ = s.file.Close()
	})
	l.background(func() {
		buf, control := make([]byte, noticeMost), make([]byte, 2048) // as many descriptors as fit, SCM_MAX_FD
		for {
			b, pid, err := s.receive(buf, control)
			if err != nil { // closed, or no memory for a moment
				select {
				case <-time.After(time.Second):
					continue
				case <-ctx.Done():
					return
				}
			}
			n := parseNotice(b)
			if n == (notice{}) {
				continue
			}
			line := ancestors(pid)
			select {
			case l.reports <- func() { l.noticed(n, line) }:
			case <-ctx.Done():
				return
			}
		}
	})
}

// ancestors is a process and those above it up to skep, none for one that is gone
// or, with pid 0, in another PID namespace.
func ancestors(pid int) (line []int) {
	for self := os.Getpid(); pid > 0 && pid != self && len(line) < 64; {
		line = append(line, pid)
		st, err := proc.Host.Stat(pid)
		if err != nil {
			break
		}
		pid = st.PPID
	}
	return line
}

// noticed acts on what a process with these ancestors says, if it is a worker's.
func (l *loop) noticed(n notice, line []int) {
	for _, w := range l.workers {
		for _, pid := range line {
			if pid == w.pid && l.table.Has(pid) {
				l.heard(n, w)
				return
			}
		}
	}
	if len(line) > 0 {
		l.log.Log(logger.Debug, "ignoring a notification of a process that is no worker's", logger.Field{Key: "pid", Value: line[0]})
	}
}

func (l *loop) heard(n notice, w *worker) {
	if n.status != "" && n.status != w.status {
		w.status = n.status
		l.log.Log(logger.Debug, "worker says", l.slotOf(w.seat), logger.Field{Key: "status", Value: w.status})
	}
	if n.ready {
		l.step(supervise.BecameReady{PID: w.pid})
	}
	if n.stopping {
		l.step(supervise.Leaving{PID: w.pid})
	}
	if l.o.HangTimeout == 0 {
		return
	}
	s := suspect{w.seat, silent}
	switch st := l.stalls[s]; {
	case n.trigger:
		l.cleared(w.seat)
		l.step(supervise.Hung{Seat: w.seat, Why: "it says so itself"})
	case n.alive && (st == nil || !st.reading && time.Since(st.since) >= l.o.HangTimeout/8):
		delete(l.stalls, s)
		l.suspected(s, 0, 0)
	case n.alive:
		st.since, st.looking = time.Now(), time.Time{}
	}
}

// notifyEnvironment is what a worker has to know to notify. WATCHDOG_PID, which
// only the new process knows, is set between fork and exec.
func (l *loop) notifyEnvironment(env map[string]string) {
	env["NOTIFY_SOCKET"] = l.notify.name
	if l.o.HangTimeout > 0 {
		env["WATCHDOG_USEC"] = strconv.FormatInt(l.o.HangTimeout.Microseconds(), 10)
	}
}
