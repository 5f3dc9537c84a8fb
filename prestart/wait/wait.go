package wait

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skep/internal/logger"
	"skep/internal/signals"
	"skep/prestart/wait/dial"
)

// Exit codes of the child.
const (
	codeTimeout = 124 // as timeout(1)
	codeUsage   = 125
)

const (
	firstPause = 250 * time.Millisecond // between the first tries,
	lastPause  = 1 * time.Second        // doubling up to this
	tryLimit   = 5 * time.Second        // for one try: a SYN that nobody answers
	quiet      = 1 * time.Second        // without any answer until the first line
	progress   = 5 * time.Second        // between lines
	flushLimit = 1 * time.Second        // for the last lines, when stderr is full
)

// Main is the main function of the child; args is os.Args as [Step] made it. It
// returns the exit code: 0 when the target is there, 124 after the timeout, 125
// for wrong arguments or when the parent is gone. Lines go to stderr.
func Main(args []string) int {
	signals.Leave() // a stop ends it like any other step
	var (
		timeout time.Duration
		format  logger.Format
		level   = logger.Info
		url     string
		from    netip.Addr // of a probe
		problem string
	)
	for _, arg := range args[min(1, len(args)):] {
		switch flag, value, _ := strings.Cut(arg, "="); flag {
		case "--timeout":
			d, err := time.ParseDuration(value)
			if err != nil || d < 0 {
				problem = arg + " is no time"
			}
			timeout = d
		case "--from":
			a, err := netip.ParseAddr(value)
			if err != nil || !a.Is4() {
				problem = arg + " is no IPv4 address"
			}
			from = a
		case "--json":
			format = logger.JSON
		case "--log-level":
			l, ok := logger.ParseLevel(value)
			if !ok {
				problem = arg + " is no level"
			}
			level = l
		default:
			url = arg
		}
	}
	log := logger.New(2, level, format, time.Now)
	defer log.Close(flushLimit)
	target, err := Parse(url)
	if err != nil {
		problem = url + " " + err.Error()
	}
	if problem != "" {
		log.Log(logger.Error, "cannot wait: "+printable(problem))
		return codeUsage
	}
	if from.IsValid() {
		dial.Source = &unix.SockaddrInet4{Addr: from.As4()}
	}
	parent := os.Getppid()
	return run(target.String(), timeout,
		func(ctx context.Context) error {
			if os.Getppid() != parent {
				return errParentGone
			}
			if from.IsValid() {
				return target.probe(ctx)
			}
			return target.try(ctx)
		},
		func(level logger.Level, text string) { log.Log(level, text) })
}

// errParentGone ends a wait that nobody waits for: skep was killed and is not
// PID 1, or the kernel would have ended the child too.
var errParentGone = errors.New("the parent is gone")

// run tries until try returns nil. A try that takes long does not hold up the
// lines or the timeout.
func run(what string, timeout time.Duration, try func(context.Context) error, say func(logger.Level, string)) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	var (
		start   = time.Now()
		result  = make(chan error, 1)
		begin   = func() { go func() { result <- limited(ctx, try) }() }
		again   = time.NewTimer(0) // the first try
		tell    = time.NewTimer(quiet)
		pause   = firstPause
		reason  = "no answer yet"
		failed  bool
		elapsed = func() string { return time.Since(start).Round(time.Second).String() }
		report  = func() {
			text := "waiting for " + what + " (" + reason + "), " + elapsed()
			if timeout > 0 {
				text += " of " + timeout.String()
			}
			say(logger.Info, text)
			tell.Reset(progress)
		}
	)
	defer again.Stop()
	defer tell.Stop()
	for {
		select {
		case <-again.C:
			begin()
		case err := <-result:
			switch {
			case err == nil:
				if failed {
					say(logger.Info, what+" is there after "+elapsed())
				}
				return 0
			case errors.Is(err, errParentGone):
				return codeUsage
			case ctx.Err() != nil:
				continue // cut short by the timeout: the reason is that of the try before
			}
			reason = cause(err)
			if !failed {
				failed = true
				report()
			}
			again.Reset(pause)
			pause = min(2*pause, lastPause)
		case <-tell.C:
			failed = true
			report()
		case <-ctx.Done():
			say(logger.Error, what+" is not there after "+timeout.String()+" ("+reason+"), giving up")
			return codeTimeout
		}
	}
}

// limited runs one try within its limit.
func limited(ctx context.Context, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, tryLimit)
	defer cancel()
	return try(ctx)
}

// sure is the time between the two answers that make a probe sure of its worker.
const sure = 50 * time.Millisecond

// probe wants two answers in a row: while sockets of other workers come and go
// the kernel may for a moment give a connection to another one.
func (t Target) probe(ctx context.Context) error {
	err := t.try(ctx)
	if err == nil {
		time.Sleep(sure)
		err = t.try(ctx)
	}
	return err
}

// try looks once.
func (t Target) try(ctx context.Context) error {
	switch t.scheme {
	case "tcp":
		return hangUp(dial.TCP(ctx, t.address))
	case "unix":
		var err error
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET, unix.SOCK_DGRAM} {
			if err = hangUp(dial.Unix(ctx, t.address, kind)); !errors.Is(err, syscall.EPROTOTYPE) {
				break // EPROTOTYPE: there, and of another type
			}
		}
		return err
	case "file":
		_, err := os.Stat(t.address)
		return err
	}
	return t.get(ctx)
}

func hangUp(conn *os.File, err error) error {
	if err != nil {
		return err
	}
	return conn.Close()
}

// statusError is an answer that is not 2xx or 3xx, or none in HTTP.
type statusError string

func (e statusError) Error() string { return string(e) }

const notHTTP = statusError("did not answer in HTTP")

// get sends one GET and reads the status line. It is written by hand because
// net/http would be larger than all of skep.
func (t Target) get(ctx context.Context) error {
	conn, err := dial.TCP(ctx, t.address)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing was promised to the server
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	request := "GET " + t.path + " HTTP/1.1\r\nHost: " + t.host +
		"\r\nUser-Agent: " + name + "\r\nAccept: */*\r\nConnection: close\r\n\r\n"
	if _, err := io.WriteString(conn, request); err != nil {
		return err
	}
	return readStatus(bufio.NewReaderSize(conn, 4096))
}

// readStatus reads up to the final status line, RFC 9112, section 4; interim
// answers (1xx) come before it with headers of their own.
func readStatus(r *bufio.Reader) error {
	for interim := 0; interim < 10; interim++ {
		status, err := readLine(r)
		if err != nil {
			return err
		}
		rest, ok := strings.CutPrefix(status, "HTTP/1.")
		if !ok || len(rest) < 5 || rest[1] != ' ' {
			return notHTTP
		}
		code, err := strconv.Atoi(rest[2:5])
		switch {
		case err != nil || code < 100 || len(rest) > 5 && rest[5] != ' ':
			return notHTTP
		case code >= 200 && code <= 399:
			return nil
		case code >= 400:
			return statusError("answered " + printable(rest[2:min(len(rest), 60)]))
		}
		for header := "x"; header != ""; {
			if header, err = readLine(r); err != nil {
				return err
			}
		}
	}
	return notHTTP
}

func readLine(r *bufio.Reader) (string, error) {
	text, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", notHTTP
	case errors.Is(err, io.EOF) && len(text) == 0:
		return "", statusError("closed the connection without an answer")
	case errors.Is(err, io.EOF):
		return "", notHTTP
	case err != nil:
		return "", err
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}

// cause is the reason in an error of net or os without the address, which the
// line names already.
func cause(err error) string {
	var (
		errno   syscall.Errno
		text    statusError
		timeout interface{ Timeout() bool }
	)
	switch {
	case errors.As(err, &text):
		return string(text)
	case errors.As(err, &errno) && errno != 0:
		return errno.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer within " + tryLimit.String()
	}
	return printable(err.Error())
}

// printable replaces what could disturb a terminal: text from the network goes
// into the lines.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
