// Package logger writes skep's own lines to stderr.
//
// Invariant: nobody who logs ever waits. Lines go through a bounded queue to a
// goroutine of their own; when stderr is full they are dropped and counted, and
// when it is gone they are lost, but skep goes on (law 4 of docs/design.md).
//
// It is not log/slog because that adds 0.4 MB to a binary that has to stay
// under 4.5 MB and whose lines have a fixed set of values.
package logger

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Level is the weight of a line.
type Level int

// The levels, lowest first.
const (
	Debug Level = iota
	Info
	Warn
	Error
)

var levelNames = [...]string{"debug", "info", "warning", "error"}

// String gives the level's name as the lines show it.
func (l Level) String() string { return levelNames[l] }

// ParseLevel is the inverse of String; "warn" is taken too.
func ParseLevel(s string) (Level, bool) {
	if s == "warn" {
		return Warn, true
	}
	for l, name := range levelNames {
		if s == name {
			return Level(l), true
		}
	}
	return 0, false
}

// Format is the shape of a line.
type Format int

// The formats of --log-format.
const (
	Text Format = iota
	JSON
)

// Field is one key and value of a line. Value is an int, a string, a bool or a
// time.Duration.
type Field struct {
	Key   string
	Value any
}

// queueLines bounds what can wait for a slow stderr: about 100 kB.
const queueLines = 512

// Logger queues lines for one descriptor. Its methods may be called from any
// goroutine.
type Logger struct {
	fd      int
	level   Level
	format  Format
	now     func() time.Time
	lines   chan entry
	start   sync.Once
	dropped atomic.Int64
	idle    chan struct{}
}

// New makes a logger for fd. The goroutine that writes starts with the first
// line and lives until Close: an init that has nothing to say needs no thread for
// it.
func New(fd int, level Level, format Format, now func() time.Time) *Logger {
	l := &Logger{fd: fd, level: level, format: format, now: now,
		lines: make(chan entry, queueLines), idle: make(chan struct{})}
	return l
}

// Log queues one line, or counts it as lost when the queue is full.
func (l *Logger) Log(level Level, message string, fields ...Field) {
	if level < l.level {
		return
	}
	var line []byte
	if l.format == JSON {
		line = appendJSON(nil, l.now(), level, message, fields)
	} else {
		line = AppendText(nil, level, message, fields)
	}
	l.queue(entry{fd: l.fd, text: line})
}

// Raw queues text as it is for any descriptor, or counts it as a lost line.
func (l *Logger) Raw(fd int, text string) { l.queue(entry{fd: fd, text: []byte(text)}) }

type entry struct {
	fd   int
	text []byte
}

func (l *Logger) queue(e entry) {
	l.start.Do(func() { go l.write() })
	select {
	case l.lines <- e:
	default:
		l.dropped.Add(1)
	}
}

// Close waits until what is queued has been written, but no longer than the
// timeout. Nothing may be logged after it.
func (l *Logger) Close(timeout time.Duration) {
	close(l.lines)
	l.start.Do(func() { close(l.idle) })
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-l.idle:
	case <-timer.C:
	}
}

func (l *Logger) write() {
	defer close(l.idle)
	for e := range l.lines {
		if n := l.dropped.Swap(0); n > 0 {
			l.writeAll(l.fd, AppendText(nil, Warn, "log lines lost because stderr was full",
				[]Field{{"lines", int(n)}}))
		}
		l.writeAll(e.fd, e.text)
	}
}

// writeAll writes until the line is out or the descriptor refuses. A stderr
// that is non-blocking, because somebody who shares it made it so, is waited for.
func (l *Logger) writeAll(fd int, line []byte) {
	for len(line) > 0 {
		n, err := unix.Write(fd, line)
		switch {
		case n > 0:
			line = line[n:]
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, -1)
		default:
			return
		}
	}
}

// AppendText adds a line as a person reads it: "skep: worker ready slot=1
// pid=17". Warnings and errors name their level after the colon.
func AppendText(b []byte, level Level, message string, fields []Field) []byte {
	b = append(b, "skep: "...)
	if level >= Warn {
		b = append(append(b, level.String()...), ": "...)
	}
	b = append(b, message...)
	for _, f := range fields {
		b = append(append(append(b, ' '), f.Key...), '=')
		switch v := f.Value.(type) {
		case int:
			b = strconv.AppendInt(b, int64(v), 10)
		case bool:
			b = strconv.AppendBool(b, v)
		case time.Duration:
			b = append(b, shortDuration(v)...)
		case string:
			if v == "" || strings.ContainsAny(v, " \"=\n\t\r") || !utf8.ValidString(v) {
				b = strconv.AppendQuote(b, v)
			} else {
				b = append(b, v...)
			}
		}
	}
	return append(b, '\n')
}

func shortDuration(d time.Duration) string {
	if d >= time.Second {
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(100 * time.Microsecond).String()
}

// appendJSON adds a line as one JSON object (RFC 8259). Durations are seconds.
func appendJSON(b []byte, now time.Time, level Level, message string, fields []Field) []byte {
	b = append(b, `{"time":`...)
	b = AppendJSONString(b, now.UTC().Format("2006-01-02T15:04:05.000Z"))
	b = append(b, `,"level":`...)
	b = AppendJSONString(b, level.String())
	b = append(b, `,"msg":`...)
	b = AppendJSONString(b, message)
	for _, f := range fields {
		b = append(b, ',')
		b = AppendJSONString(b, f.Key)
		b = append(b, ':')
		switch v := f.Value.(type) {
		case int:
			b = strconv.AppendInt(b, int64(v), 10)
		case bool:
			b = strconv.AppendBool(b, v)
		case time.Duration:
			b = strconv.AppendFloat(b, v.Seconds(), 'f', -1, 64)
		case string:
			b = AppendJSONString(b, v)
		default:
			b = append(b, "null"...)
		}
	}
	return append(b, '}', '\n')
}

// AppendJSONString adds s as a JSON string (RFC 8259); bytes that are not UTF-8
// become U+FFFD.
func AppendJSONString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, '\\', 'n')
		case r < 0x20:
			b = append(b, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}
