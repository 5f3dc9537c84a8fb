package port

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
)

// past is a deadline that has come already.
var past = time.Unix(1, 0)

// Intercept attends to the calls that the filter of one worker, and of everything the worker forks, stops: it sends the loop an Ask for each that
// matters and carries out the answer; every other call goes on at once. It is a goroutine per worker and sleeps in the netpoller, so it costs
// no thread. It owns and closes listener, the one that launch.Start returned.
//
// It returns nil when no process has the filter any more, and the context's error when ctx ended before. A worker that outlives that, or skep, gets ENOSYS for
// bind and listen from then on: end ctx only when all workers are to end.
func Intercept(ctx context.Context, listener, slot int, asks chan<- *Ask) error {
	if err := sys.NotificationFits(); err != nil {
		_ = unix.Close(listener)
		return err
	}
	if err := unix.SetNonblock(listener, true); err != nil { // So that os.NewFile gives it to the netpoller.
		_ = unix.Close(listener)
		return os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(listener), "seccomp listener")
	defer func() { _ = file.Close() }()
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(past) })()
	i := &interceptor{ctx: ctx, conn: conn, slot: slot, asks: asks, v6only: make(map[uint64]bool)}
	if i.network, err = networkOf(os.Getpid()); err != nil {
		return err
	}
	for {
		n, err := i.next()
		switch {
		case err == nil:
			i.handle(n)
		case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR):
			// The call is gone: its thread died, or a signal took it away. It asks again if it still wants to.
		case errors.Is(err, errNoUsers):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		default:
			return err
		}
	}
}

var errNoUsers = errors.New("no process has the filter")

type interceptor struct {
	ctx  context.Context
	conn syscall.RawConn
	slot int
	asks chan<- *Ask
	// network is skep's network namespace. A socket of another one cannot be replaced by a held one.
	network uint64
	// v6only is what workers have set on sockets that are not bound yet, by inode. It cannot be read from outside.
	v6only map[uint64]bool
}

// maxV6Only bounds interceptor.v6only against a program that sets the option on sockets it never binds.
const maxV6Only = 1024

// next waits for a stopped call. The ioctl that takes it would block whatever O_NONBLOCK says, so it is used only after poll(2) has seen one waiting: the
// kernel counts a call that goes away between the two as taken (ENOENT), it never sleeps for it.
func (i *interceptor) next() (n sys.Notification, err error) {
	readErr := i.conn.Read(func(fd uintptr) bool {
		var events int16
		events, err = sys.Poll(int(fd), unix.POLLIN, 0)
		switch {
		case err != nil:
		case events&unix.POLLIN != 0:
			n, err = sys.ReceiveNotification(int(fd))
		case events != 0: // POLLHUP; the kernel gives it from 5.9 on, when the last user of the filter is gone.
			err = errNoUsers
		default:
			return false
		}
		return true
	})
	if readErr != nil {
		return n, readErr
	}
	return n, err
}

// with calls f with the listener, which cannot be closed meanwhile.
func (i *interceptor) with(f func(listener int) error) error {
	var err error
	if controlErr := i.conn.Control(func(fd uintptr) { err = f(int(fd)) }); controlErr != nil {
		return controlErr
	}
	return err
}

// carryOn lets the kernel do the call. That the call is gone is an outcome (law 6).
func (i *interceptor) carryOn(n sys.Notification) {
	_ = i.with(func(listener int) error { return sys.ContinueNotification(listener, n.ID) })
}

func (i *interceptor) handle(n sys.Notification) {
	switch n.Data.NR {
	case unix.SYS_BIND:
		i.bind(n)
	case unix.SYS_LISTEN:
		i.listen(n)
	case unix.SYS_SETSOCKOPT:
		i.setSockOpt(n)
	default:
		i.carryOn(n)
	}
}

// call is what inspect has seen of a stopped call.
type call struct {
	process  int
	addr     Addr
	decoded  bool // addr is one of TCP or UDP
	protocol protocol
	inode    uint64
	flags    int
	inEpoll  bool
}

// argument returns an int argument; the kernel ignores the upper half of the register.
func argument(n sys.Notification, k int) int { return int(int32(n.Data.Args[k])) }

func (i *interceptor) bind(n sys.Notification) {
	fd := argument(n, 0)
	var c call
	err := i.inspect(n, func(thread int) error {
		c = call{}
		return i.lookAtBind(n, thread, fd, &c)
	})
	ask := &Ask{Slot: i.slot, Thread: int(n.PID), Process: c.process}
	switch {
	case err != nil:
		i.blind(n, ask, err)
		return
	case !c.decoded || c.addr.Port == 0:
		i.carryOn(n)
		return
	case c.protocol == protocolUDP:
		i.carryOn(n)
		i.tell(ask, Foreign{Slot: i.slot, Process: c.process, Kind: KindUDP, Addr: c.addr})
		return
	case c.protocol == protocolTCP4 && c.addr.Network == IPv4, c.protocol == protocolTCP6 && c.addr.Network == IPv6:
	default:
		i.carryOn(n) // Not TCP, or an address of the wrong family, for which the kernel has the right error.
		return
	}
	ask.op, ask.addr, ask.inode, ask.inEpoll = operationBind, c.addr, c.inode, c.inEpoll
	r, ok := i.await(ask)
	switch {
	case !ok:
	case r.swap:
		i.swap(n, ask, r, fd, c)
	default:
		i.finish(n, r)
	}
}

// lookAtBind fills in c what decides a bind(2), cheapest first: most binds of a program (netlink, UDP with port 0) end after the address.
func (i *interceptor) lookAtBind(n sys.Notification, thread, fd int, c *call) error {
	memory, err := openMemory(thread)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(memory) }()
	if err := i.alive(n); err != nil {
		return err
	}
	length := argument(n, 2)
	var b [unix.SizeofSockaddrAny]byte
	if length <= 0 || length > len(b) {
		return nil // EINVAL, says the kernel.
	}
	got, err := readMemory(memory, b[:length], n.Data.Args[1])
	if errors.Is(err, unix.EFAULT) {
		return nil // The kernel says the same to the worker.
	}
	if err != nil {
		return os.NewSyscallError("pread", err)
	}
	if c.addr, c.decoded = decodeSockaddr(b[:got]); !c.decoded || c.addr.Port == 0 {
		return nil
	}
	if c.process, err = processOf(thread); err != nil {
		return err
	}
	if c.protocol, err = protocolOf(thread, fd); err != nil || c.protocol != protocolTCP4 && c.protocol != protocolTCP6 {
		return err
	}
	if network, err := networkOf(thread); err != nil || network != i.network {
		c.protocol = protocolOther
		return err
	}
	if c.inode, err = inodeOf(thread, fd); err != nil {
		return err
	}
	if c.flags, err = flagsOf(thread, fd); err != nil {
		return err
	}
	if c.inEpoll, err = inEpollSet(thread, fd, c.inode); err != nil {
		return err
	}
	if c.addr.Network == IPv6 {
		only, known := i.v6only[c.inode]
		if !known {
			only = defaultV6Only()
		}
		c.addr.V6Only = only
	}
	return nil
}

// swap puts the held socket in the place of the worker's descriptor and ends the bind with success.
func (i *interceptor) swap(n sys.Notification, ask *Ask, r reply, fd int, c call) {
	defer func() { _ = unix.Close(r.fd) }()
	// O_NONBLOCK belongs to the description that all owners of the socket share. When nobody has it yet, or any more, it becomes what the worker made of its
	// own; under a living owner it stays, or that one would block, or spin.
	if !r.given || !i.owned(r.inode, n, fd) {
		_ = unix.SetNonblock(r.fd, c.flags&unix.O_NONBLOCK != 0)
	}
	err := i.with(func(listener int) error {
		if err := sys.ReplaceDescriptor(listener, n.ID, r.fd, fd, c.flags&unix.O_CLOEXEC != 0); err != nil {
			return err
		}
		return sys.AnswerNotification(listener, n.ID, 0)
	})
	switch {
	case err == nil:
		delete(i.v6only, c.inode)
	case errors.Is(err, unix.ENOENT) || errors.Is(err, os.ErrClosed):
		// Stale. If the exchange was done, the bind that the worker repeats meets the held socket in its descriptor and succeeds.
	default:
		errno := sys.Errno(err)
		_ = i.with(func(listener int) error { return sys.AnswerNotification(listener, n.ID, errno) })
		i.tell(ask, Refused{Slot: i.slot, Process: c.process, Addr: c.addr, Errno: errno})
	}
}

// owned says whether a process that lives has the socket already.
func (i *interceptor) owned(inode uint64, n sys.Notification, fd int) bool {
	is := true
	err := i.inspect(n, func(thread int) error {
		// The asker's descriptors must be readable, or the answer would be that of one who may not look.
		if _, err := inodeOf(thread, fd); err != nil {
			return err
		}
		is = owned(inode)
		return nil
	})
	return err != nil || is
}

func (i *interceptor) listen(n sys.Notification) {
	fd := argument(n, 0)
	var c call
	err := i.inspect(n, func(thread int) (err error) {
		if c.protocol, err = protocolOf(thread, fd); err != nil {
			return err
		}
		if c.inode, err = inodeOf(thread, fd); errors.Is(err, unix.ENOENT) {
			c.protocol, err = protocolOther, nil // Not open.
		}
		if err != nil {
			return err
		}
		if c.process, err = processOf(thread); err != nil {
			return err
		}
		return i.alive(n)
	})
	ask := &Ask{Slot: i.slot, Thread: int(n.PID), Process: c.process}
	switch {
	case err != nil:
		i.blind(n, ask, err)
		return
	case c.protocol != protocolTCP4 && c.protocol != protocolTCP6 && c.protocol != protocolUnix:
		i.carryOn(n)
		return
	}
	ask.op, ask.inode, ask.protocol = operationListen, c.inode, c.protocol
	if r, ok := i.await(ask); ok {
		i.finish(n, r)
	}
}

// setSockOpt remembers IPV6_V6ONLY, the one option that decides with whom the held socket shares its port and that cannot be set after the bind.
func (i *interceptor) setSockOpt(n sys.Notification) {
	defer i.carryOn(n)
	if argument(n, 4) < 4 {
		return
	}
	var c call
	var value int32
	err := i.inspect(n, func(thread int) error {
		memory, err := openMemory(thread)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(memory) }()
		if err := i.alive(n); err != nil {
			return err
		}
		if n.Data.Args[3] != 0 { // The kernel takes no pointer for the value 0.
			if value, err = readInt(memory, n.Data.Args[3]); err != nil {
				return err
			}
		}
		c.inode, err = inodeOf(thread, argument(n, 0))
		return err
	})
	if err != nil {
		return // The bind will say so.
	}
	if len(i.v6only) >= maxV6Only {
		clear(i.v6only)
	}
	i.v6only[c.inode] = value != 0
}

// alive returns errStale when the call no longer waits.
func (i *interceptor) alive(n sys.Notification) error {
	return i.with(func(listener int) error {
		if !sys.NotificationAlive(listener, n.ID) {
			return errStale
		}
		return nil
	})
}

var errStale = errors.New("the call is gone")

// inspect calls look for the thread that waits, and again as that thread's user when the kernel refuses skep's own (which is root without CAP_SYS_PTRACE, as
// in a container).
func (i *interceptor) inspect(n sys.Notification, look func(thread int) error) error {
	thread := int(n.PID)
	if thread == 0 {
		return unix.ESRCH // Of another PID namespace, where its number means nothing here.
	}
	err := look(thread)
	if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
		return err
	}
	id, idErr := identify(thread)
	if idErr != nil {
		return err
	}
	if id.uid == os.Geteuid() && id.gid == os.Getegid() {
		return err // It is not a matter of the user.
	}
	return sys.AsFileUser(id.uid, id.gid, func() error { return look(thread) })
}

// blind lets a call go on that could not be looked at, and tells the loop, unless that is because the call is gone: a thread that is being killed loses its
// memory first. One that still waits now has waited all the time.
func (i *interceptor) blind(n sys.Notification, ask *Ask, err error) {
	gone := i.alive(n) != nil
	i.carryOn(n)
	if !gone {
		i.tell(ask, Blind{Slot: i.slot, Process: ask.Process, Err: err})
	}
}

// tell sends news for which no call waits.
func (i *interceptor) tell(from *Ask, news Fact) {
	ask := &Ask{Slot: from.Slot, Thread: from.Thread, Process: from.Process, op: operationNews, news: news}
	select {
	case i.asks <- ask:
	case <-i.ctx.Done():
	}
}

// await sends the ask to the loop and returns its reply, or false when ctx ended.
func (i *interceptor) await(ask *Ask) (reply, bool) {
	ask.reply = make(chan reply, 1)
	select {
	case i.asks <- ask:
	case <-i.ctx.Done():
		return reply{}, false
	}
	select {
	case r := <-ask.reply:
		return r, true
	case <-i.ctx.Done():
		ask.abandon()
		return reply{}, false
	}
}

// finish ends a call that needs no exchange.
func (i *interceptor) finish(n sys.Notification, r reply) {
	if r.carryOn {
		i.carryOn(n)
		return
	}
	_ = i.with(func(listener int) error { return sys.AnswerNotification(listener, n.ID, r.errno) })
}
