package steer

import (
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// arrivals tells of the next connection that comes to any of the sockets in an epoll, also when a worker accepts it at once. An epoll that waits for an epoll misses
// those: before the kernel reports one it looks again (ep_item_poll of fs/eventpoll.c). A poll of the asynchronous I/O interface believes whoever wakes it
// (aio_poll_wake of fs/aio.c). See io_submit(2), and struct iocb and struct io_event of linux/aio_abi.h.
//
// A process that ends with a context for it takes some 30 ms longer, a grace period of the kernel's RCU (exit_aio), as does close.
type arrivals struct {
	context uintptr // 0: there is none
	ring    *aioRing
	armed   bool
	request aioRequest
	list    *aioRequest // the argument of io_submit
}

// watchQueue adds a listening socket to the epoll, with a number. In the socket's list of those to be woken it comes behind the worker, which needs the processor for the
// connection more urgently: that is where EPOLLEXCLUSIVE puts it (add_wait_queue_exclusive of kernel/sched/wait.c). It takes the connection from nobody, because nobody
// waits for this epoll itself (ep_poll_callback of fs/eventpoll.c). Of a connection that a worker with the same flag is woken for at once it is not told.
func watchQueue(epoll, listener, number int) {
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET | unix.EPOLLEXCLUSIVE, Fd: int32(number)}
	if unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, listener, &event) == unix.EINVAL { // not every kernel has the flag
		event.Events &^= unix.EPOLLEXCLUSIVE
		unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, listener, &event)
	}
}

// aioRing is the beginning of struct aio_ring of fs/aio.c, which the kernel maps into the process at the address that names the context. Events are taken from it by
// moving head to tail.
type aioRing struct {
	_          [2]uint32 // id, nr
	head, tail uint32
	magic      uint32
}

const aioMagic = 0xa10a10a1 // AIO_RING_MAGIC

// aioRequest is struct iocb.
type aioRequest struct {
	_          [2]uint64 // data, key and flags of reads and writes
	opcode     uint16
	_          int16
	fd         uint32
	events     uint64
	_          [3]uint64 // length, offset, reserved
	flags      uint32
	resultFile uint32
}

const (
	aioPoll       = 5 // IOCB_CMD_POLL, since Linux 4.18
	aioResultFile = 1 // IOCB_FLAG_RESFD
)

// open prepares for the epoll. Event must be an eventfd, which becomes readable when a connection has come; it stays the caller's.
func (a *arrivals) open(epoll, event int) error {
	a.request = aioRequest{opcode: aioPoll, fd: uint32(epoll), events: unix.EPOLLIN, flags: aioResultFile, resultFile: uint32(event)}
	a.list = &a.request
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&a.context)), 0); errno != 0 {
		return os.NewSyscallError("io_setup", errno)
	}
	a.ring = *(**aioRing)(unsafe.Pointer(&a.context))
	err := error(unix.ENOSYS)
	if a.ring.magic == aioMagic {
		err = a.arm()
	}
	if err != nil {
		a.close()
	}
	return os.NewSyscallError("io_submit", err)
}

// close gives the context back. It may take 30 ms, during which the thread cannot do anything else.
func (a *arrivals) close() {
	if a.context != 0 {
		unix.Syscall(unix.SYS_IO_DESTROY, a.context, 0, 0)
		a.context, a.ring, a.armed = 0, nil, false // a pointer to what is not mapped any more could one day point into the heap
	}
}

// works tells whether arm has an effect.
func (a *arrivals) works() bool { return a.context != 0 }

// arm asks for the next connection. One that has come before and still waits is reported at once, unless the epoll has reported it edge-triggered.
func (a *arrivals) arm() error {
	if a.context == 0 {
		return unix.EINVAL
	}
	_, _, errno := unix.RawSyscall(unix.SYS_IO_SUBMIT, a.context, 1, uintptr(unsafe.Pointer(&a.list)))
	if errno != 0 {
		return errno
	}
	a.armed = true
	return nil
}

// pending tells whether a connection has come since it was asked for, and came has not told.
func (a *arrivals) pending() bool { return a.armed && atomic.LoadUint32(&a.ring.tail) != a.ring.head }

// came is pending, and allows to ask again.
func (a *arrivals) came() bool {
	if !a.pending() {
		return false
	}
	a.ring.head = atomic.LoadUint32(&a.ring.tail)
	a.armed = false
	return true
}
