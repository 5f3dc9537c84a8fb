// Package load sends HTTP/1.1 requests at times that were drawn ahead and
// measures each one from the moment it was meant to start.
//
// The generator is an open loop: a slow answer never delays a later request,
// and a request that the generator itself could not send in time is still
// measured from its intended start. Both are what keeps it free of coordinated
// omission. It is one thread around epoll(7) with a timerfd(2) for the next
// arrival: the timers of the Go runtime wake up to a millisecond late in an
// idle program, and the scheduler would add its own queue between an arrival
// and its connect(2).
//
// Libraries that were considered: vegeta v12 (lib/attack.go stamps a request
// when a goroutine of the attack picks it up, after the pacer, and has pacers
// for constant, linear and sine rates but none for Poisson arrivals), and
// k6 and wrk2, which are programs and not libraries. Histograms are not kept
// either: a run has tens of thousands of records, and exact order statistics
// of all of them cost less than the buckets would explain.
//
// It is made for loopback servers of this benchmark: IPv4, small requests,
// answers with a Content-Length or ended by the close of the connection.
package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Classes of failure, as found in Record.Err. Any other value is the text of
// an errno.
const (
	ErrRefused  = "refused"  // connect(2) refused: nobody listens
	ErrReset    = "reset"    // the peer reset the connection
	ErrEOF      = "eof"      // closed before the answer was complete
	ErrTimeout  = "timeout"  // no complete answer within Options.Timeout
	ErrProtocol = "protocol" // the answer is not one this client reads
	ErrLimit    = "limit"    // not sent: Options.MaxInFlight was reached
)

// Options say how a plan is sent. The zero value of every field but Address
// is usable.
type Options struct {
	// Address is the server, an IPv4 address and port.
	Address netip.AddrPort
	// Conns is the number of persistent connections; 0 means that every
	// request has a connection of its own.
	Conns int
	// ConnectOver spreads the opening of the persistent connections evenly
	// over this time; 0 opens them in one burst.
	ConnectOver time.Duration
	// Hold keeps the connection of every request open until the run ends (with
	// Conns 0): how connections spread over workers is seen this way.
	Hold bool
	// Timeout bounds one request from the moment it is sent; 10 s if zero.
	Timeout time.Duration
	// MaxInFlight bounds the open connections of the one-per-request mode;
	// 8192 if zero. An arrival beyond it is recorded as ErrLimit, not dropped.
	MaxInFlight int
	// Sources spreads new connections over that many source addresses from
	// 127.9.0.1 on, so that high rates do not run out of ports; 0 leaves the
	// choice to the kernel.
	Sources int
	// Begin is the origin of all times; now if zero. With it the caller can
	// line up its own actions with the plan.
	Begin time.Time
	// Seed chooses among idle persistent connections.
	Seed uint64
}

// Record is what became of one arrival. All times count from the beginning of
// the run.
type Record struct {
	Start    time.Duration // intended start, Arrival.At
	Sent     time.Duration // when the generator turned to it; Sent-Start is its own lateness
	Latency  time.Duration // from Start to the complete answer, or to the failure
	Status   int           // HTTP status, 0 without an answer
	Err      string        // class of failure, "" if answered
	PID      int           // process that answered, 0 if it did not say
	Conn     int           // number of the persistent connection, or -1
	Blocking bool          // Arrival.Blocking
	Closed   bool          // the server ended the connection with this answer
}

// OK reports whether the request was answered with a status of 2xx.
func (r Record) OK() bool { return r.Err == "" && r.Status/100 == 2 }

// End is when the answer was complete, or the failure was seen.
func (r Record) End() time.Duration { return r.Start + r.Latency }

// Run sends the plan, which must be in order of time, and returns one record
// per arrival, in the order of the plan. It returns when every request is
// answered or failed, at the latest Timeout after the last one was due, or
// when ctx ends: requests that have not finished then are ErrTimeout. The
// error is only for what keeps the generator itself from working.
func Run(ctx context.Context, o Options, plan []Arrival) ([]Record, error) {
	l, err := newLoop(o, len(plan))
	if err != nil {
		return nil, err
	}
	defer l.close()
	for i := range plan {
		l.records[i] = Record{Start: plan[i].At, Conn: -1, Blocking: plan[i].Blocking}
	}
	l.plan = plan
	err = onThread(func() error { return l.run(ctx) })
	return l.records, err
}

// onThread runs f on a goroutine of its own, so that a thread whose priority f
// has changed ends with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return <-done
}

// Saturate keeps every one of o.Conns clients busy for d with back-to-back
// requests of path (a connection per request if fresh), and returns the number
// of answers and of failures. It is a closed loop: use its result as
// throughput, never as latency.
func Saturate(ctx context.Context, o Options, path string, fresh bool, d time.Duration) (answers, failures int, err error) {
	clients := max(o.Conns, 1)
	if fresh {
		o.Conns = 0
	}
	l, err := newLoop(o, 0)
	if err != nil {
		return 0, 0, err
	}
	defer l.close()
	l.closed = &closedLoop{path: path, clients: clients, until: l.now() + d}
	if err := onThread(func() error { return l.run(ctx) }); err != nil {
		return 0, 0, err
	}
	return l.closed.answers, l.closed.failures, nil
}

type closedLoop struct {
	path              string
	clients           int
	until             time.Duration
	answers, failures int
}

type state uint8

const (
	stConnecting state = iota // connect(2) under way
	stIdle                    // persistent, no request
	stBusy                    // a request is out
	stDraining                // answered, waiting for the server's close
)

type conn struct {
	fd    int
	num   int // number of a persistent connection, -1 else
	state state
	req   int // index in records while connecting for one or busy, else -1
	out   []byte
	in    []byte
}

type inFlight struct {
	c     *conn
	req   int
	since time.Duration
}

type dialing struct {
	at  time.Duration
	num int
}

type loop struct {
	o       Options
	to      unix.SockaddrInet4
	ep, tfd int
	start   time.Time
	plan    []Arrival
	records []Record
	next    int // first arrival that has not been turned to
	done    int // records that are final
	conns   map[int]*conn
	opened  int        // connections opened so far, for the source address
	idle    []int      // fds of idle persistent connections
	queue   []int      // arrivals that wait for a persistent connection
	dial    []dialing  // persistent connections to open, in order of time
	flights []inFlight // in order of sending
	closed  *closedLoop
	issued  int
	buf     [64 << 10]byte
	rnd     interface{ IntN(int) int }
	host    string
	broken  error
}

func newLoop(o Options, n int) (*loop, error) {
	if !o.Address.Addr().Is4() {
		return nil, fmt.Errorf("cannot load %s: want an IPv4 address", o.Address)
	}
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = 8192
	}
	if o.Begin.IsZero() {
		o.Begin = time.Now()
	}
	l := &loop{
		o: o, start: o.Begin, records: make([]Record, n), conns: map[int]*conn{},
		rnd: newRand(o.Seed, 3), host: o.Address.String(),
		to: unix.SockaddrInet4{Port: int(o.Address.Port()), Addr: o.Address.Addr().As4()},
	}
	for i := range o.Conns {
		l.dial = append(l.dial, dialing{o.ConnectOver * time.Duration(i) / time.Duration(o.Conns), i})
	}
	var err error
	if l.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("cannot create epoll: %w", err)
	}
	if l.tfd, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		unix.Close(l.ep)
		return nil, fmt.Errorf("cannot create timer: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(l.tfd)}
	if err := unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, l.tfd, &ev); err != nil {
		unix.Close(l.ep)
		unix.Close(l.tfd)
		return nil, fmt.Errorf("cannot watch timer: %w", err)
	}
	return l, nil
}

func (l *loop) close() {
	for fd := range l.conns {
		unix.Close(fd)
	}
	unix.Close(l.tfd)
	unix.Close(l.ep)
}

func (l *loop) now() time.Duration { return time.Since(l.start) }

// run owns one thread, with little timer slack and, where that is permitted, a
// higher priority than the servers it measures: the generator's own lateness
// would be read as theirs.
func (l *loop) run(ctx context.Context) error {
	runtime.LockOSThread()
	// The thread is not unlocked: its changed priority ends with it.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -15)

	last := time.Duration(0)
	if n := len(l.plan); n > 0 {
		last = l.plan[n-1].At
	}
	if l.closed != nil {
		last = l.closed.until
	}
	deadline := max(last, l.o.ConnectOver) + l.o.Timeout
	events := make([]unix.EpollEvent, 128)
	for {
		l.turn()
		if l.broken != nil {
			return l.broken
		}
		if l.finished() {
			return nil
		}
		now := l.now()
		if now >= deadline || ctx.Err() != nil {
			l.giveUp(now)
			return nil
		}
		if err := l.arm(now, deadline); err != nil {
			return fmt.Errorf("cannot arm timer: %w", err)
		}
		n, err := unix.EpollWait(l.ep, events, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("cannot wait for events: %w", err)
		}
		for _, ev := range events[:max(n, 0)] {
			if int(ev.Fd) == l.tfd {
				unix.Read(l.tfd, l.buf[:8])
				continue
			}
			if c := l.conns[int(ev.Fd)]; c != nil {
				l.event(c, ev.Events)
			}
			// A long batch must not hold up an arrival.
			if l.next < len(l.plan) && l.plan[l.next].At <= l.now() {
				l.turn()
			}
		}
	}
}

func (l *loop) finished() bool {
	if l.closed != nil {
		return l.now() >= l.closed.until
	}
	return l.done == len(l.plan)
}

func (l *loop) giveUp(now time.Duration) {
	for i := range l.records {
		if r := &l.records[i]; r.Status == 0 && r.Err == "" {
			if r.Sent == 0 {
				r.Sent = now
			}
			l.finish(i, now, 0, ErrTimeout)
		}
	}
}

// turn does everything that is due: openings, arrivals, timeouts.
func (l *loop) turn() {
	now := l.now()
	for len(l.dial) > 0 && l.dial[0].at <= now {
		num := l.dial[0].num
		l.dial = l.dial[1:]
		l.connect(num, -1)
	}
	for l.next < len(l.plan) && l.plan[l.next].At <= now {
		i := l.next
		l.next++
		l.issue(i)
		now = l.now()
	}
	if cl := l.closed; cl != nil {
		for l.issued < cl.clients && now < cl.until {
			l.issued++
			l.records = append(l.records, Record{Start: now, Conn: -1})
			l.issue(len(l.records) - 1)
			now = l.now()
		}
	}
	for len(l.flights) > 0 {
		f := l.flights[0]
		gone := f.c.req != f.req
		if !gone && now-f.since < l.o.Timeout {
			break
		}
		l.flights = l.flights[1:]
		if !gone {
			l.fail(f.c, ErrTimeout)
		}
	}
}

// issue turns to arrival i: it connects, or uses or queues for a persistent
// connection.
func (l *loop) issue(i int) {
	r := &l.records[i]
	r.Sent = l.now()
	if l.o.Conns == 0 {
		if len(l.conns) >= l.o.MaxInFlight {
			l.finish(i, l.now(), 0, ErrLimit)
			return
		}
		l.connect(-1, i)
		return
	}
	l.queue = append(l.queue, i)
	l.feed()
}

// feed gives waiting arrivals to idle connections, first come first served.
// Any idle connection will do: all of them have no work, the least there is.
func (l *loop) feed() {
	for len(l.queue) > 0 && len(l.idle) > 0 {
		k := l.rnd.IntN(len(l.idle))
		fd := l.idle[k]
		l.idle[k] = l.idle[len(l.idle)-1]
		l.idle = l.idle[:len(l.idle)-1]
		c := l.conns[fd]
		if c == nil || c.state != stIdle {
			continue
		}
		i := l.queue[0]
		l.queue = l.queue[1:]
		l.send(c, i)
	}
}

func (l *loop) connect(num, req int) {
	fail := func(err error) {
		if req >= 0 {
			l.finish(req, l.now(), 0, class(err))
		} else {
			l.redial(num, class(err))
		}
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		fail(err)
		return
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if l.o.Sources > 0 {
		k := l.opened % l.o.Sources
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		src := &unix.SockaddrInet4{Addr: [4]byte{127, 9, byte(k >> 8), byte(k + 1)}}
		if err := unix.Bind(fd, src); err != nil {
			unix.Close(fd)
			fail(err)
			return
		}
	}
	l.opened++
	c := &conn{fd: fd, num: num, req: req, state: stConnecting}
	err = unix.Connect(fd, &l.to)
	if err != nil && err != unix.EINPROGRESS && err != unix.EINTR {
		unix.Close(fd)
		fail(err)
		return
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff, Fd: int32(fd)}
	if err := unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		unix.Close(fd)
		l.broken = fmt.Errorf("cannot watch connection: %w", err)
		return
	}
	l.conns[fd] = c
	if req >= 0 {
		l.flights = append(l.flights, inFlight{c, req, l.now()})
	}
}

func (l *loop) path(i int) string {
	if l.closed != nil {
		return l.closed.path
	}
	return l.plan[i].Path
}

func (l *loop) send(c *conn, i int) {
	if c.req != i {
		l.flights = append(l.flights, inFlight{c, i, l.now()})
	}
	c.req, c.state, c.in = i, stBusy, c.in[:0]
	l.records[i].Conn = c.num
	how := "keep-alive"
	if c.num < 0 && !l.o.Hold {
		how = "close"
	}
	c.out = fmt.Appendf(c.out[:0], "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: %s\r\n\r\n", l.path(i), l.host, how)
	l.flush(c)
}

func (l *loop) flush(c *conn) {
	for len(c.out) > 0 {
		n, err := unix.Write(c.fd, c.out)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return
		case err != nil:
			l.fail(c, class(err))
			return
		default:
			c.out = c.out[n:]
		}
	}
}

func (l *loop) event(c *conn, events uint32) {
	if c.state == stConnecting {
		errno, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && errno != 0 {
			err = unix.Errno(errno)
		}
		if err != nil {
			l.fail(c, class(err))
			return
		}
		if events&unix.EPOLLOUT == 0 {
			return
		}
		if c.req >= 0 {
			l.send(c, c.req)
		} else {
			l.rest(c)
		}
		if l.conns[c.fd] != c {
			return
		}
	}
	if len(c.out) > 0 && events&unix.EPOLLOUT != 0 {
		l.flush(c)
		if l.conns[c.fd] != c {
			return
		}
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
		return
	}
	for {
		n, err := unix.Read(c.fd, l.buf[:])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return
		case err != nil:
			l.end(c, class(err))
			return
		case n == 0:
			l.end(c, ErrEOF)
			return
		}
		if c.state != stBusy {
			if c.state == stIdle {
				l.drop(c) // an answer nobody asked for
				return
			}
			continue
		}
		c.in = append(c.in, l.buf[:n]...)
		if a, whole, ok := parse(c.in, false); !ok {
			l.fail(c, ErrProtocol)
			return
		} else if whole {
			l.answered(c, a)
			if l.conns[c.fd] != c {
				return
			}
		}
	}
}

// end handles a connection that the server has ended.
func (l *loop) end(c *conn, why string) {
	if c.state == stBusy && why == ErrEOF {
		if a, whole, ok := parse(c.in, true); ok && whole {
			a.close = true
			l.answered(c, a)
			if l.conns[c.fd] == c {
				l.drop(c)
			}
			return
		}
	}
	l.fail(c, why)
}

// fail ends the connection, and its request if it has one.
func (l *loop) fail(c *conn, why string) {
	req := c.req
	l.drop(c)
	if req >= 0 {
		l.finish(req, l.now(), 0, why)
	}
}

// drop closes the connection. A persistent one is opened anew, as long as
// there is something left to send: a client with a pool does the same.
func (l *loop) drop(c *conn) {
	num, refused := c.num, c.state == stConnecting
	delete(l.conns, c.fd)
	unix.Close(c.fd)
	c.req, c.state = -1, stDraining
	if num < 0 || l.closed == nil && l.next >= len(l.plan) && len(l.queue) == 0 {
		return
	}
	if refused {
		l.redial(num, ErrRefused)
		return
	}
	l.connect(num, -1)
}

// redial opens a persistent connection again after a pause, because a server
// that is gone must not be asked in a busy loop. The arrival that waits longest
// is the one that the attempt was for: it fails, as it would in a client's pool.
func (l *loop) redial(num int, why string) {
	at := l.now() + 10*time.Millisecond
	i := sort.Search(len(l.dial), func(i int) bool { return l.dial[i].at > at })
	l.dial = slices.Insert(l.dial, i, dialing{at, num})
	if len(l.queue) > 0 {
		req := l.queue[0]
		l.queue = l.queue[1:]
		l.finish(req, l.now(), 0, why)
	}
}

func (l *loop) answered(c *conn, a answer) {
	i := c.req
	c.req = -1
	l.records[i].PID, l.records[i].Closed = a.pid, a.close
	c.state = stDraining
	l.finish(i, l.now(), a.status, "")
	switch {
	case c.num < 0:
		// A held connection just stays open.
		// The server closes first, as with any client that said "close", so
		// that the waiting state (TIME_WAIT) is on its side.
	case a.close:
		l.drop(c)
	default:
		l.rest(c)
	}
}

// rest makes a persistent connection available.
func (l *loop) rest(c *conn) {
	c.state = stIdle
	l.idle = append(l.idle, c.fd)
	l.feed()
}

func (l *loop) finish(i int, now time.Duration, status int, why string) {
	r := &l.records[i]
	r.Latency, r.Status, r.Err = now-r.Start, status, why
	l.done++
	cl := l.closed
	if cl == nil {
		return
	}
	if r.OK() {
		cl.answers++
	} else {
		cl.failures++
	}
	if now >= cl.until {
		return
	}
	// The client's next request takes the place of the finished one.
	l.issued--
}

// arm sets the timer to the next thing that is due by the clock alone.
func (l *loop) arm(now, deadline time.Duration) error {
	at := deadline
	if l.next < len(l.plan) {
		at = min(at, l.plan[l.next].At)
	}
	if len(l.dial) > 0 {
		at = min(at, l.dial[0].at)
	}
	if len(l.flights) > 0 {
		at = min(at, l.flights[0].since+l.o.Timeout)
	}
	if cl := l.closed; cl != nil {
		at = min(at, cl.until)
		if l.issued < cl.clients {
			at = now
		}
	}
	d := max(at-now, time.Nanosecond)
	return unix.TimerfdSettime(l.tfd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil)
}

type answer struct {
	status int
	pid    int
	close  bool
}

// parse reads an answer. whole is false while more is needed; ok is false when
// it can never become one that this client reads. ended says that the server
// has closed the connection.
func parse(b []byte, ended bool) (a answer, whole, ok bool) {
	head := bytes.Index(b, []byte("\r\n\r\n"))
	if head < 0 {
		return a, false, len(b) < 64<<10 && !ended
	}
	lines := bytes.Split(b[:head], []byte("\r\n"))
	first := lines[0]
	if len(first) < 12 || !bytes.HasPrefix(first, []byte("HTTP/1.")) {
		return a, false, false
	}
	status, err := strconv.Atoi(string(first[9:12]))
	if err != nil || status < 200 || status > 599 {
		return a, false, false
	}
	a.status, a.close = status, first[7] == '0'
	length := -1
	for _, line := range lines[1:] {
		name, value, found := bytes.Cut(line, []byte(":"))
		if !found {
			return a, false, false
		}
		value = bytes.TrimSpace(value)
		switch string(bytes.ToLower(name)) {
		case "content-length":
			if length, err = strconv.Atoi(string(value)); err != nil || length < 0 {
				return a, false, false
			}
		case "transfer-encoding":
			return a, false, false
		case "connection":
			switch string(bytes.ToLower(value)) {
			case "close":
				a.close = true
			case "keep-alive":
				a.close = false
			}
		case "x-pid":
			if a.pid, err = strconv.Atoi(string(value)); err != nil {
				return a, false, false
			}
		}
	}
	body := b[head+4:]
	switch {
	case length < 0 && !ended:
		return a, false, true
	case length > len(body):
		return a, false, !ended
	case length >= 0:
		body = body[:length]
	}
	if a.pid == 0 {
		a.pid = pidIn(body)
	}
	return a, true, true
}

// pidIn finds "pid N" in a body: how examples/hello says who answered.
func pidIn(body []byte) int {
	_, rest, found := bytes.Cut(body, []byte("pid "))
	if !found {
		return 0
	}
	n := 0
	for _, c := range rest {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int(c-'0')
	}
	return n
}

func class(err error) string {
	switch err {
	case unix.ECONNREFUSED:
		return ErrRefused
	case unix.ECONNRESET, unix.EPIPE, unix.ECONNABORTED:
		return ErrReset
	case unix.ETIMEDOUT:
		return ErrTimeout
	}
	return err.Error()
}
