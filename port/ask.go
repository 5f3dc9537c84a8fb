package port

import (
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
)

// Ask is a system call of a worker that waits for Set.Answer, or news of one that does not wait. Intercept makes it, the loop answers it, once.
type Ask struct {
	// Slot is the slot Intercept was called with.
	Slot int
	// Thread is the thread that made the call, in skep's PID namespace; Process is its process (thread group).
	Thread, Process int

	op       operation
	addr     Addr     // bind
	inode    uint64   // of the worker's descriptor
	protocol protocol // listen
	inEpoll  bool     // bind
	news     Fact     // operationNews

	state atomic.Int32 // stateWaiting → stateAnswered or stateAbandoned
	reply chan reply   // buffered, so that Answer never waits
}

type operation uint8

const (
	operationBind operation = iota + 1
	operationListen
	operationNews // no reply is wanted
)

const (
	stateWaiting = iota
	stateAnswered
	stateAbandoned
)

// reply is what the waiting call gets. The zero reply is success without anything done.
type reply struct {
	carryOn bool       // let the kernel do the call itself
	errno   unix.Errno // else the result
	swap    bool       // before that, put fd in the place of the worker's descriptor
	fd      int        // a duplicate that belongs to the receiver
	inode   uint64     // of fd
	given   bool       // the socket was given to a process before
}

// deliver hands the reply over, unless Intercept has given up waiting.
func (a *Ask) deliver(r reply) {
	if a.reply != nil && a.state.CompareAndSwap(stateWaiting, stateAnswered) {
		a.reply <- r
		return
	}
	if r.swap {
		_ = unix.Close(r.fd)
	}
}

// abandon gives up waiting for the reply.
func (a *Ask) abandon() {
	if a.state.CompareAndSwap(stateWaiting, stateAbandoned) {
		return
	}
	if r := <-a.reply; r.swap {
		_ = unix.Close(r.fd)
	}
}

// Fact is what Set.Answer found out or did; the loop logs it and decides on it. It is one of the types below.
type Fact interface{ fact() }

// Shared says that the slot's held socket takes the place of the worker's own.
type Shared struct {
	Slot, Process int
	Addr          Addr
}

// Listening says that a worker of the slot has called listen(2) on the slot's held socket, which means that it is ready. Thread is the one that called,
// often the one that will accept.
type Listening struct {
	Slot, Process, Thread int
	Addr                  Addr
}

// Kind is the kind of a listener that is not shared.
type Kind uint8

// Kinds of Foreign listeners.
const (
	// KindTCP is a TCP socket with a port of its own: port 0, a port bind sharing is not for, or one that was bound before the filter was there.
	KindTCP Kind = iota + 1
	// KindUDP is a UDP socket with a fixed port.
	KindUDP
	// KindUnix is a listening unix socket.
	KindUnix
)

// String names the kind for a log line.
func (k Kind) String() string {
	switch k {
	case KindTCP:
		return "TCP"
	case KindUDP:
		return "UDP"
	case KindUnix:
		return "unix"
	default:
		return "unknown"
	}
}

// Foreign says that a worker of the slot listens on something that skep leaves alone. Addr is known for KindUDP only.
type Foreign struct {
	Slot, Process int
	Kind          Kind
	Addr          Addr
}

// Refused says that a bind or a listen of a worker failed with Errno, because the one on the held socket did: the worker was told the same.
type Refused struct {
	Slot, Process int
	Addr          Addr
	Errno         unix.Errno
}

// EpollFirst says that the worker had put its socket into an epoll set before bind(2). Replacing the descriptor would take the socket out of that
// set silently, so the worker got its own bind and this port cannot be shared.
type EpollFirst struct {
	Slot, Process int
	Addr          Addr
}

// Blind says that skep could not look into a worker's call and let the kernel do it: this process cannot share its ports. Err says why; EPERM and EACCES
// mean a process that is not dumpable, or one whose user skep may not take on.
type Blind struct {
	Slot, Process int
	Err           error
}

// Revived says that a worker had shut down the held socket it was given, and that it listens again. Connections that were queued then are lost: the
// kernel has reset them.
type Revived struct {
	Slot int // SharedSlot for a socket of all slots
	Addr Addr
}

// Client says that a worker has connected with the held socket that it had bound. It is nobody's any more but the worker's.
type Client struct {
	Slot int // SharedSlot for a socket of all slots
	Addr Addr
}

func (Shared) fact()     {}
func (Listening) fact()  {}
func (Foreign) fact()    {}
func (Refused) fact()    {}
func (EpollFirst) fact() {}
func (Blind) fact()      {}
func (Revived) fact()    {}
func (Client) fact()     {}

// Answer answers an ask and says what that means, nil when it means nothing. It does not block. The descriptor it hands over is a duplicate, so
// that closing the slot in the meantime cannot make another file of it.
func (s *Set) Answer(a *Ask) Fact {
	switch a.op {
	case operationBind:
		return s.answerBind(a)
	case operationListen:
		return s.answerListen(a)
	default:
		return a.news
	}
}

// Decline lets the kernel carry out the call on the worker's own socket. It is for
// processes of a slot that is closed.
func (s *Set) Decline(a *Ask) { a.deliver(reply{carryOn: true}) }

func (s *Set) answerBind(a *Ask) Fact {
	if !s.Shares(a.addr.Port) {
		a.deliver(reply{carryOn: true})
		return nil
	}
	if h := s.byInode[a.inode]; h != nil {
		// The descriptor is a held socket already. For the same address that is a bind which a signal interrupted after the exchange and
		// which the program repeats; for another one the kernel has an error.
		a.deliver(reply{carryOn: h.Addr != a.addr})
		return nil
	}
	if a.inEpoll {
		a.deliver(reply{carryOn: true})
		return EpollFirst{Slot: a.Slot, Process: a.Process, Addr: a.addr}
	}
	h, err := s.hold(a.Slot, a.addr)
	if err == nil && h.connects() {
		s.close(h) // the news of it is on its way
		h, err = s.hold(a.Slot, a.addr)
	}
	fd := -1
	if err == nil {
		fd, err = sys.Duplicate(h.fd)
	}
	if err == nil && !h.watched && h.Addr.TCP() {
		_ = s.watch(h, unix.EPOLLOUT) // without it, a client's connection would stay open beyond its close
	}
	if err != nil {
		errno := sys.Errno(err)
		a.deliver(reply{errno: errno})
		return Refused{Slot: a.Slot, Process: a.Process, Addr: a.addr, Errno: errno}
	}
	a.deliver(reply{swap: true, fd: fd, inode: h.inode, given: h.given})
	h.given, h.claimed, h.abandoned = true, true, false
	s.changes++
	return Shared{Slot: a.Slot, Process: a.Process, Addr: a.addr}
}

func (s *Set) answerListen(a *Ask) Fact {
	h := s.byInode[a.inode]
	if h == nil {
		a.deliver(reply{carryOn: true})
		kind := KindTCP
		if a.protocol == protocolUnix {
			kind = KindUnix
		}
		return Foreign{Slot: a.Slot, Process: a.Process, Kind: kind}
	}
	if err := s.Listen(h); err != nil {
		errno := sys.Errno(err)
		a.deliver(reply{errno: errno})
		return Refused{Slot: a.Slot, Process: a.Process, Addr: h.Addr, Errno: errno}
	}
	a.deliver(reply{})
	return Listening{Slot: a.Slot, Process: a.Process, Thread: a.Thread, Addr: h.Addr}
}

// Hangup is the news that a held socket may have left the state LISTEN, or was connected. It is for Set.Relisten.
type Hangup struct{ id uint64 }

var errUnixShutdown = errors.New("a unix socket that was shut down cannot listen again")

// Relisten answers a Hangup: a held socket that a worker has shut down listens again and is at the end of its group's order, and one that a
// worker has connected with is let go of, so that its connection ends when the worker closes it. The Fact is nil when nothing was
// wrong, because the socket is closed by now or listens already.
func (s *Set) Relisten(hangup Hangup) (Fact, error) {
	h := s.byID[hangup.id]
	switch {
	case h == nil:
		return nil, nil
	case h.connects():
		s.close(h)
		return Client{Slot: h.Slot, Addr: h.Addr}, nil
	case !h.listening:
		return nil, nil
	}
	if h.Addr.Network == Unix {
		return nil, errUnixShutdown
	}
	if listens(h.fd) {
		return nil, nil
	}
	if err := s.Listen(h); err != nil {
		return nil, err
	}
	return Revived{Slot: h.Slot, Addr: h.Addr}, nil
}
