package steer

import (
	"bytes"
	"math"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"skep/proc"
)

// worker is what the poller knows of the process behind one or several members.
type worker struct {
	seat, pid int
	tid       int // the thread that is watched
	given     int // the thread that Update named, 0 for none
	id        identity

	wchan int // open /proc/PID/task/TID/wchan, or -1
	fdDir int // open /proc/PID/fd, or -1
	pulse int // open /proc/PID/task/TID/stat, or -1

	seenIdle  bool          // the thread has been seen to wait for events, so its wait channel can be read and means something
	zeroSince time.Duration // since when the wait channel has been "0" without a break; 0 when it is not
	looks     int           // reads that have not shown the thread idle, up to learnAfter
	scanned   time.Duration // when the threads were looked through last

	wait    Wait
	files   int           // open descriptors, or -1
	changed bool          // their number is another one than at the look before
	base    int           // the descriptors that are no connections: the fewest ever seen, or as many as were counted
	conns   int           // files - base, or -1
	none    time.Duration // when conns was 0 last, or was counted
	doubt   time.Duration // how long after that they are counted
	moved   time.Duration // when it was last seen to get on
	stalls  bool          // a member's queue was not empty at the last look
	gulps   int           // how much more often it was seen to take several connections at once and to leave none than to take one of several, from -2 to 2
	looked  uint          // how often it has been looked at
	gone    bool          // the process has ended
	zeros   int           // looks in a row in which the thread did not sleep
	dying   bool          // the kernel is ending the process
	mourned bool          // that was told

	runs    bool          // the accepting thread was seen to run at the last look
	asleep  bool          // it sleeps, and not for a connection
	mute    bool          // so does it, but it has never been seen to wait for one: perhaps it is another thread that accepts, or its first connection has blocked it
	blocked time.Duration // since when it has been asleep without a break; 0 when it is not
	seen    time.Duration // since when each look, however far apart, has shown it asleep; 0 when it is not
	told    time.Duration // when that was told last
	crowded bool          // other threads or processes accept as well
}

const (
	// learnAfter is how many looks at a thread that is never idle it takes to look for another one that accepts.
	learnAfter = 256
	// newLooks is how many looks a new worker gets without traffic until it is seen idle.
	newLooks = 50
	// doubtFirst is how long a worker must have had connections until they are counted, and doubtLongest the longest time until they are counted again. It doubles with
	// each count, and begins at doubtNew: most of what a worker opens for itself it opens when it has just begun to serve, and looks busier than the others by it.
	doubtNew, doubtFirst, doubtLongest = time.Millisecond, 200 * time.Millisecond, 10 * time.Minute
	// countMost bounds the number of descriptors that are counted. Among more connections a few more or less make no difference.
	countMost = 512
	// learnPause is the time between two searches for the accepting thread.
	learnPause = 5 * time.Second
	// runsLong is how long a thread may run without a break, with nothing in its queue, before its wait channel is no longer believed: it may have become
	// unreadable, which looks the same.
	runsLong = 5 * time.Second
	// maxThreads bounds the search for the accepting thread. A process with more accepts in several.
	maxThreads = 64
)

// open opens the files that are read at each tick. The thread's file-system identity must be the worker's.
func (w *worker) open() {
	w.wchan, w.fdDir, w.pulse = -1, -1, -1
	if w.tid == 0 {
		w.tid = w.pid
	}
	w.openThread()
	w.fdDir = openAt("/proc/"+strconv.Itoa(w.pid)+"/fd", unix.O_DIRECTORY)
	var st unix.Stat_t
	w.files = -1
	if w.fdDir >= 0 {
		if n := fileSize(w.fdDir, &st); n > 0 {
			w.files = n
		} else {
			closeFD(w.fdDir) // before Linux 6.2 the size is always 0
			w.fdDir = -1
		}
	}
	w.base, w.conns = w.files, w.files
	if w.conns > 0 {
		w.conns = 0
	}
}

func (w *worker) openThread() {
	closeFD(w.wchan)
	closeFD(w.pulse)
	task := "/proc/" + strconv.Itoa(w.pid) + "/task/" + strconv.Itoa(w.tid)
	w.wchan, w.pulse = openAt(task+"/wchan", 0), openAt(task+"/stat", 0)
	w.seenIdle, w.zeroSince, w.looks = false, 0, 0
	w.blocked, w.seen, w.crowded, w.mute = 0, 0, false, false
}

func (w *worker) close() {
	closeFD(w.wchan)
	closeFD(w.fdDir)
	closeFD(w.pulse)
	w.wchan, w.fdDir, w.pulse = -1, -1, -1
}

// count reads how many descriptors there are, which takes nobody's identity. It returns how many more connections there are than before. Plenty is what rests wants
// to know.
func (w *worker) count(now time.Duration, plenty bool, r *readings) (more int) {
	w.changed = false
	if w.fdDir >= 0 {
		n := fileSize(w.fdDir, &r.stat)
		switch {
		case n <= 0:
			// A zombie has none, and of a process that was waited for nothing can be read. The first of several threads is a zombie while the others still end,
			// and while another one executes a program in its place (execve(2)).
			w.gone = true
		case w.gone && !w.dying:
			w.gone, w.files = false, n
		case n != w.files:
			w.changed = true
			more = max(0, n-w.files)
			w.files, w.base = n, min(w.base, n)
			w.conns = n - w.base
			w.moved = now
		}
		if w.conns == 0 {
			w.none, w.doubt = now, min(w.doubt, doubtFirst)
		}
	}
	w.looked++
	w.runs = false
	switch {
	case !w.rests(plenty):
		w.asleep = false
	case w.wait == Idle:
		w.moved = now
	}
	return more
}

// rests tells whether the worker may be left alone this time: without a connection it has nothing to do, and while plenty of others are free, one that was asleep is not
// wanted. Reading the wait channel is the dearest part of a look, so it is then read only now and then.
func (w *worker) rests(plenty bool) bool {
	if w.wchan < 0 || w.gone || w.looked%4 == 0 {
		return false
	}
	return w.wait == Idle && w.conns == 0 && !w.stalls || w.asleep && plenty && !w.changed
}

// look reads what the thread waits for. The thread's file-system identity must be the worker's.
func (w *worker) look(now time.Duration, r *readings) {
	if w.wchan < 0 {
		w.wait = Unknown
	} else {
		n := readStart(w.wchan, r.name[:])
		w.wait = w.classify(now, r.name[:n])
		w.checkPulse(r.name[:n], r)
		w.runs = w.wait == Busy && r.name[0] == '0'
		w.asleep = w.wait == Busy && !w.runs && w.conns != 0
		w.mute = !w.seenIdle && w.conns != 0 && n > 0 && r.name[0] != '0' && !pooled(r.name[:n])
	}
	if w.wait == Busy && w.conns == 0 {
		// It has no request to be busy with. In Go and Java the thread that called listen(2) is one of many, and rests anywhere.
		w.wait = Unknown
	}
	if w.wait == Idle {
		w.moved = now
	}
	w.stalls = false
}

// checkPulse finds out whether the kernel is ending the process: of a thread that does not sleep it reads the flags. Until a process has given its memory back nobody is told of its end, and its sockets stay open: 10 ms for a small interpreter, and a
// hundred times as long for one with gigabytes. With each look in a row it is asked half as often.
func (w *worker) checkPulse(name []byte, r *readings) {
	if string(name) != "0" || !w.seenIdle || w.changed { // who has just accepted or closed something is alive
		w.zeros = 0
		return
	}
	w.zeros++
	if w.zeros&(w.zeros-1) == 0 && !w.dying && w.ending(r) {
		w.gone, w.dying = true, true
	}
}

// PF_EXITING and PF_SIGNALED of include/linux/sched.h: the thread ends, and it has taken a signal that ends its process (get_signal of kernel/signal.c).
const (
	exiting  = 0x4
	signaled = 0x400
)

// ending tells whether the process ends because of a signal: then all of its threads have taken it, or one ends the process for the others. A thread that ends
// alone does not have the flag of the signal; when one of them executes a program the others have it, and that one has neither. It must not be missed: a folder
// that is read while threads end may lack another one (next_tid of fs/proc/base.c), so their number must be the same before, after, and in the folder.
func (w *worker) ending(r *readings) bool {
	before, ok := w.signaled(r)
	if !ok {
		return false
	}
	dir := "/proc/" + strconv.Itoa(w.pid) + "/task"
	tasks, err := os.ReadDir(dir)
	if err != nil || len(tasks) != before {
		return false
	}
	for _, task := range tasks {
		fd := openAt(dir+"/"+task.Name()+"/stat", 0)
		if fd < 0 {
			return false // it has ended, or has just become the first one: the next look will tell
		}
		n := readStart(fd, r.line[:])
		closeFD(fd)
		if flags, ok := statField(r.line[:n], statFlags); !ok || flags&(exiting|signaled) == 0 {
			return false
		}
	}
	after, ok := w.signaled(r) // or the two have changed names meanwhile (de_thread of fs/exec.c)
	return ok && after == before
}

// signaled tells whether the watched thread has taken a signal that ends its process, and how many threads that has.
func (w *worker) signaled(r *readings) (threads int, ok bool) {
	stat := r.line[:readStart(w.pulse, r.line[:])]
	flags, known := statField(stat, statFlags)
	n, counted := statField(stat, statThreads)
	return int(n), known && counted && flags&signaled != 0
}

// Fields of the stat of a thread, counted from 1 as in proc_pid_stat(5).
const (
	statFlags   = 9
	statThreads = 20
)

// statField is a field, from the fourth on, that is a number from 0 to 2^32-1. It stands behind a name that may hold anything.
func statField(stat []byte, field int) (value uint64, ok bool) {
	rest := stat[bytes.LastIndexByte(stat, ')')+1:]
	if len(rest) == len(stat) {
		return 0, false
	}
	for range field - 2 {
		_, after, more := bytes.Cut(rest, []byte{' '})
		if rest = after; !more {
			return 0, false
		}
	}
	for i, c := range rest {
		switch {
		case c == ' ':
			return value, i > 0
		case c < '0' || c > '9' || value > math.MaxUint32:
			return 0, false
		}
		value = 10*value + uint64(c-'0')
	}
	return 0, false
}

// classify says what the name of the function means in which the thread sleeps.
func (w *worker) classify(now time.Duration, name []byte) Wait {
	switch {
	case waitsForEvents(name):
		w.seenIdle, w.zeroSince, w.looks = true, 0, 0
		return Idle
	case len(name) == 0:
		return Unknown // the thread is gone, or may no longer be read
	case !w.seenIdle:
		w.looks = min(w.looks+1, learnAfter)
		return Unknown
	case pooled(name):
		w.zeroSince = 0
		return Unknown
	case string(name) != "0":
		w.zeroSince = 0
		return Busy
	case w.zeroSince == 0:
		w.zeroSince = now
	case now-w.zeroSince > runsLong && !w.stalls:
		return Unknown
	}
	return Busy
}

// pooled tells whether a thread that sleeps in this function may be one of a pool that has nothing to run: another one may accept by now.
func pooled(name []byte) bool { return bytes.HasPrefix(name, []byte("futex_")) }

// waitsForEvents tells whether a thread that sleeps in this function of the kernel waits for events: in epoll_wait, poll, select, accept, or for completions
// of io_uring. Compilers add suffixes such as ".constprop.0". The names differ between kernels, by what is inlined.
func waitsForEvents(name []byte) bool {
	for i, c := range name {
		if c == '.' || c == '\n' {
			name = name[:i]
			break
		}
	}
	switch string(name) {
	case "do_epoll_wait", "ep_poll", "do_epoll_pwait", "schedule_hrtimeout_range", "schedule_hrtimeout_range_clock",
		"poll_schedule_timeout", "do_sys_poll", "do_poll", "do_select", "core_sys_select",
		"inet_csk_accept", "inet_csk_wait_for_connect", "io_cqring_wait":
		return true
	}
	return false
}

// readings are the buffers of look.
type readings struct {
	stat unix.Stat_t
	name [64]byte
	line [256]byte // the first fields of a stat
}

// wantsThread tells whether it is time to search for the thread that accepts, because the one that is watched has never been idle.
func (w *worker) wantsThread(now time.Duration) bool {
	return w.wchan >= 0 && !w.seenIdle && w.looks >= learnAfter && (w.scanned == 0 || now-w.scanned > learnPause)
}

// wantsCount tells whether the worker has had connections for so long that some may be none: what it has opened for itself since it was ready, such as a pipe to a
// process that it started, never goes away.
func (w *worker) wantsCount(now time.Duration) bool {
	return w.conns > 0 && w.files <= countMost && !w.gone && now-w.none >= w.doubt
}

// recount counts the descriptors that are surely no connections, because they are no sockets or those that the worker listens on. The thread's file-system identity must be the
// worker's.
func (w *worker) recount(now time.Duration, listeners []uint64, r *readings) {
	w.none, w.doubt = now, min(2*w.doubt, doubtLongest)
	n, err := w.sockets(listeners)
	if err != nil || fileSize(w.fdDir, &r.stat) != w.files { // some have come or gone meanwhile
		return
	}
	w.base = max(w.base, w.files-n)
	w.conns = w.files - w.base
}

// sockets is how many sockets the process has beside those that it listens on. The thread's file-system identity must be the worker's.
func (w *worker) sockets(listeners []uint64) (n int, err error) {
	inodes, err := proc.Host.Sockets(w.pid)
	for _, inode := range inodes {
		if !slices.Contains(listeners, inode) {
			n++
		}
	}
	return n, err
}

// findThread watches the only thread of the process that waits for events, if there is exactly one. A process with several accepts in any of them, so that
// none of them tells whether the process is free. The thread's file-system identity must be the worker's.
func (w *worker) findThread(now time.Duration, r *readings) {
	w.scanned, w.looks = now, 0
	if waiting, ok := w.waiting(r); ok && len(waiting) == 1 {
		w.tid = waiting[0]
		w.openThread()
	}
}

// waiting lists the threads of the process that wait for events. The thread's file-system identity must be the worker's.
func (w *worker) waiting(r *readings) (tids []int, ok bool) {
	dir := "/proc/" + strconv.Itoa(w.pid) + "/task"
	tasks, err := os.ReadDir(dir)
	if err != nil || len(tasks) > maxThreads {
		return nil, false
	}
	for _, task := range tasks {
		fd := openAt(dir+"/"+task.Name()+"/wchan", 0)
		if fd < 0 {
			continue
		}
		n := readStart(fd, r.name[:])
		closeFD(fd)
		if tid, err := strconv.Atoi(task.Name()); err == nil && waitsForEvents(r.name[:n]) {
			tids = append(tids, tid)
		}
	}
	return tids, true
}
