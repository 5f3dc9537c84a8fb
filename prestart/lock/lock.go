// Package lock makes sure that the steps run in one replica at a time, and with
// a key once ever: flock(2) on a file of a shared volume, and a stamp beside it.
//
// At no time do two replicas hold the lock, and a stamp exists only after all
// steps of its key succeeded.
//
// Nothing here is done on the caller's goroutine: a volume that is gone may
// block any system call for ever, and the loop must not (law 4).
package lock

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"skep/prestart/env"
)

const (
	poll     = 200 * time.Millisecond // between tries: LOCK_EX would hold a thread
	progress = 5 * time.Second        // between Waiting events
)

// Check validates --prestart-lock and --prestart-key without touching any file:
// the path has to be absolute (skep changes its working directory), the key has
// to fit into the name of the stamp. An empty key is none.
func Check(path, key string) error {
	if !filepath.IsAbs(path) {
		return errors.New("the lock needs an absolute path")
	}
	if strings.HasSuffix(path, "/") {
		return errors.New("the lock needs the path of a file, not of a folder")
	}
	for i := 0; i < len(key); i++ {
		if key[i] < ' ' || key[i] == 0x7f {
			return errors.New("the key has a control character")
		}
	}
	if name := filepath.Base(stampPath(path, key) + temporary); len(name) > 255 {
		return fmt.Errorf("the key is too long: the name of its stamp has %d bytes, allowed are 255", len(name))
	}
	return nil
}

const temporary = ".tmp"

// stampPath is FILE.KEY.done. Bytes of the key that are not letters, digits,
// ., _ or - become %XX, so that different keys never share a stamp.
func stampPath(path, key string) string {
	var b strings.Builder
	b.WriteString(path)
	b.WriteByte('.')
	for i := 0; i < len(key); i++ {
		switch c := key[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	b.WriteString(".done")
	return b.String()
}

// Event tells how far taking the lock has come: [Waiting], [Taken], [Failed].
type Event interface{ isEvent() }

// Waiting: another replica holds the lock. It comes at once and then every 5 s.
type Waiting struct {
	Path string
	For  time.Duration // since the first try
}

// String returns the log line.
func (w Waiting) String() string {
	return "waiting for the lock on " + w.Path + ", held by another replica, " + w.For.Round(time.Second).String() + " so far"
}

// Taken is the good end.
type Taken struct {
	Lock *Lock    // nil when Done made it unnecessary; its methods allow that
	Done bool     // the stamp of the key exists
	Vars []string // Done: what the steps handed over then, as "KEY=value"
}

// Failed is the bad end: the lock cannot be had here, now or later.
type Failed struct{ Err error }

func (Waiting) isEvent() {}
func (Taken) isEvent()   {}
func (Failed) isEvent()  {}

// Pending is a lock that is being taken. Its methods are for one goroutine.
type Pending struct {
	events  chan Event
	abandon chan struct{}
	once    sync.Once
}

// Take begins to take the lock on path, which is created when it is missing. With
// a key the stamp is looked for first and all the while: once it exists the lock
// is not needed any more. There is no time limit; replicas wait for as long as
// one works.
func Take(path, key string) *Pending {
	p := &Pending{events: make(chan Event), abandon: make(chan struct{})}
	t := taker{path: path, key: key, events: p.events, abandon: p.abandon, flock: flock, local: local}
	go t.run()
	return p
}

// Events delivers [Waiting] any number of times and then one [Taken] or
// [Failed], and is closed after it. The loop selects on it.
func (p *Pending) Events() <-chan Event { return p.events }

// Abandon gives up. A lock that is being taken at this moment is let go of; a
// [Taken] that was received already is the receiver's. It never blocks and may
// be called more than once.
func (p *Pending) Abandon() { p.once.Do(func() { close(p.abandon) }) }

type taker struct {
	path, key string
	events    chan<- Event
	abandon   <-chan struct{}
	file      *os.File
	flock     func(*os.File) error  // a test lets it fail
	local     func(*os.File) string // a test has such a volume
}

func (t *taker) run() {
	defer close(t.events)
	start := time.Now()
	var said time.Time
	for {
		end, err := t.try()
		if err != nil {
			t.close()
			end = Failed{Err: err}
		}
		if end != nil {
			select {
			case t.events <- end:
			case <-t.abandon:
				if taken, ok := end.(Taken); ok {
					<-taken.Lock.Release(false)
				}
			}
			return
		}
		// Say so, when it is time and the loop listens, until the next try.
		events := t.events
		if !said.IsZero() && time.Since(said) < progress {
			events = nil
		}
		again := time.NewTimer(poll)
		for waiting := true; waiting; {
			select {
			case events <- Waiting{Path: t.path, For: time.Since(start)}:
				said, events = time.Now(), nil
			case <-again.C:
				waiting = false
			case <-t.abandon:
				again.Stop()
				t.close()
				return
			}
		}
	}
}

func (t *taker) close() {
	if t.file != nil {
		_ = t.file.Close() // nothing was written to it
		t.file = nil
	}
}

// try returns Taken, or nil when the lock is held elsewhere.
func (t *taker) try() (Event, error) {
	if vars, done, err := t.stamped(); err != nil || done {
		t.close()
		return Taken{Done: done, Vars: vars}, err
	}
	if t.file == nil {
		file, err := open(t.path)
		if err != nil {
			return nil, fmt.Errorf("cannot open the lock: %w", err)
		}
		t.file = file
		if why := t.local(file); why != "" {
			return nil, fmt.Errorf("cannot use the lock %s: its volume is mounted with %s, so a lock holds on this node alone", t.path, why)
		}
	}
	switch err := t.flock(t.file); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil, nil
	case errors.Is(err, syscall.ENOLCK), errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS), errors.Is(err, syscall.EINVAL):
		return nil, fmt.Errorf("the volume of %s has no locks that work between replicas: %w", t.path, err)
	case err != nil:
		return nil, fmt.Errorf("cannot lock %s: %w", t.path, err)
	}
	// The file may have been removed or replaced while it was waited for; then
	// others lock another one, and this lock is worth nothing.
	same, err := current(t.file, t.path)
	if err != nil {
		return nil, fmt.Errorf("cannot look at the lock: %w", err)
	}
	if !same {
		t.close()
		return nil, nil
	}
	// The holder before may have finished between the look at the stamp and the
	// lock.
	if vars, done, err := t.stamped(); err != nil || done {
		t.close()
		return Taken{Done: done, Vars: vars}, err
	}
	lock := &Lock{file: t.file, path: t.path, key: t.key}
	if t.key != "" {
		// Find out before the steps, not after them, that no stamp can be
		// written here.
		if err := lock.writeTemporary(nil); err != nil {
			return nil, fmt.Errorf("cannot write a stamp beside the lock: %w", err)
		}
	}
	t.file = nil // it is the Lock's now
	return Taken{Lock: lock}, nil
}

// open opens the lock for writing, which NFS wants for an exclusive lock
// (flock(2)). O_NONBLOCK keeps a device from blocking.
func open(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NONBLOCK, 0o666)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

func flock(file *os.File) error {
	return control(file, func(fd int) error { return syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB) })
}

// control runs call on the descriptor of file, again when a signal interrupts
// it (law 6).
func control(file *os.File, call func(fd int) error) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = conn.Control(func(fd uintptr) {
		for {
			if result = call(int(fd)); !errors.Is(result, syscall.EINTR) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return result
}

// current tells whether path still leads to file.
func current(file *os.File, path string) (bool, error) {
	held, err := file.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(held, named), nil
}

// The stamp is text: a head of "name: value" lines, an empty line, and what the
// steps handed over. An empty file, made by hand, is a stamp too.
const title = "skep prestart done"

// maxStamp bounds what is read of a stamp: a head and the hand-over.
const maxStamp = env.MaxSize + 4096

// stamped reads the stamp, if there is one.
func (t *taker) stamped() (vars []string, done bool, err error) {
	if t.key == "" {
		return nil, false, nil
	}
	path := stampPath(t.path, t.key)
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("cannot read the stamp: %w", err)
	}
	defer file.Close() //nolint:errcheck // only read
	text, err := io.ReadAll(io.LimitReader(file, maxStamp+1))
	if err != nil {
		return nil, false, fmt.Errorf("cannot read the stamp: %w", err)
	}
	vars, err = parseStamp(text, t.key)
	if err != nil {
		return nil, false, fmt.Errorf("cannot use the stamp %s: %w", path, err)
	}
	return vars, true, nil
}

func parseStamp(text []byte, key string) ([]string, error) {
	if len(text) > maxStamp {
		return nil, errors.New("it is too long")
	}
	if len(strings.TrimSpace(string(text))) == 0 {
		return nil, nil
	}
	head, body, ok := strings.Cut(string(text), "\n\n")
	if !ok || !strings.HasPrefix(head, title+"\nkey: ") {
		return nil, errors.New("skep has not written it; remove it to run the steps, or empty it to skip them")
	}
	found, _, _ := strings.Cut(strings.TrimPrefix(head, title+"\nkey: "), "\n")
	if found != key {
		return nil, errors.New("it belongs to another key: the volume does not tell capital letters from small ones")
	}
	return env.Parse([]byte(body))
}

// Lock is a lock that is held. Its methods are for the loop and do not block; a
// nil Lock holds nothing.
type Lock struct {
	path, key string

	mu   sync.Mutex // of the goroutines that work on the files, one after another
	file *os.File
}

// File is the locked file, for the steps to inherit: the kernel drops the lock
// when the last descriptor is closed, so it lives as long as any process of a
// step does, even when skep is killed. The file is close-on-exec and belongs to
// the Lock; nil for a nil Lock.
func (l *Lock) File() *os.File {
	if l == nil {
		return nil
	}
	return l.file
}

// Stamp writes the stamp of the key with vars, what the steps handed over, and
// sends the outcome: on disk and under its final name, or the error. Only before
// Release.
func (l *Lock) Stamp(vars []string) <-chan error {
	result := make(chan error, 1)
	go func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		result <- l.stamp(vars)
	}()
	return result
}

func (l *Lock) stamp(vars []string) error {
	if err := l.writeTemporary(vars); err != nil {
		return err
	}
	path := stampPath(l.path, l.key)
	if err := os.Rename(path+temporary, path); err != nil {
		return err
	}
	// The name is on disk only when the folder is, fsync(2).
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer folder.Close()                                                     //nolint:errcheck // only synced
	if err := folder.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // EINVAL: this file system has no such thing
		return err
	}
	return nil
}

// writeTemporary writes the stamp under a name that nobody looks for. The name
// may be fixed, since only the holder of the lock writes it; one left by a holder
// that was killed is overwritten.
func (l *Lock) writeTemporary(vars []string) error {
	host, _ := os.Hostname() // for the reader only
	var b strings.Builder
	b.WriteString(title + "\nkey: " + l.key + "\nat: " + time.Now().UTC().Format(time.RFC3339) + "\nby: " + host + "\n\n")
	for _, v := range vars {
		b.WriteString(v)
		b.WriteByte('\n')
	}
	// 0600: what is handed over may be secret.
	file, err := os.OpenFile(stampPath(l.path, l.key)+temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(b.String())
	return errors.Join(err, file.Sync(), file.Close())
}

// Release lets go of the lock, after a [Lock.Stamp] that is under way. done says
// that the steps succeeded: then the lock is opened for everybody, even when a
// process that a step left behind has inherited it. Otherwise only this
// descriptor is closed, and the next replica has to wait for the last process of
// the steps. The channel is closed when it is over; nobody has to wait for it.
func (l *Lock) Release(done bool) <-chan struct{} {
	over := make(chan struct{})
	if l == nil {
		close(over)
		return over
	}
	go func() {
		defer close(over)
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.key != "" {
			_ = os.Remove(stampPath(l.path, l.key) + temporary) // gone when the stamp was written
		}
		if done {
			_ = control(l.file, func(fd int) error { return syscall.Flock(fd, syscall.LOCK_UN) }) // closing is the other way
		}
		_ = l.file.Close()
	}()
	return over
}
