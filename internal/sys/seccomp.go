package sys

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SeccompData is struct seccomp_data of linux/seccomp.h: the system call a filter or a listener is asked about.
type SeccompData struct {
	NR                 int32
	Arch               uint32
	InstructionPointer uint64
	Args               [6]uint64
}

// Notification is struct seccomp_notif: one system call of a worker that waits for an answer. PID is the thread that made it, seen from the
// reader's PID namespace; it is 0 for a thread outside of it.
type Notification struct {
	ID    uint64
	PID   uint32
	Flags uint32
	Data  SeccompData
}

// notificationResponse is struct seccomp_notif_resp.
type notificationResponse struct {
	id    uint64
	val   int64
	err   int32
	flags uint32
}

// notificationAddFD is struct seccomp_notif_addfd.
type notificationAddFD struct {
	id         uint64
	flags      uint32
	srcFD      uint32
	newFD      uint32
	newFDFlags uint32
}

// notificationSizes is struct seccomp_notif_sizes.
type notificationSizes struct {
	notif, resp, data uint16
}

// notificationRoom is the size of the buffer a notification is read into. The kernel writes as many bytes as its own struct has, whatever the reader
// expects; see NotificationFits.
const notificationRoom = 512

// NotificationFits asks the kernel how large its notification structs are and returns an error when they would not fit into the buffers of this
// package: then nothing may be received. An error of the call itself means a kernel without user notification (before 5.0) or a sandbox that
// refuses seccomp(2).
func NotificationFits() error {
	var sizes notificationSizes
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_NOTIF_SIZES, 0, uintptr(unsafe.Pointer(&sizes))); errno != 0 {
		return os.NewSyscallError("seccomp(GET_NOTIF_SIZES)", errno)
	}
	if sizes.notif > notificationRoom || sizes.notif < uint16(unsafe.Sizeof(Notification{})) || sizes.resp > uint16(unsafe.Sizeof(notificationResponse{})) {
		return os.NewSyscallError("seccomp(GET_NOTIF_SIZES)", unix.E2BIG)
	}
	return nil
}

// ReceiveNotification takes the next waiting system call from a listener. The ioctl ignores O_NONBLOCK: poll the descriptor first. ENOENT
// means that the waiting call is gone (its thread died or a signal took it away), EINTR that nothing was taken.
func ReceiveNotification(listener int) (Notification, error) {
	var room [notificationRoom / 8]uint64 // Aligned, and zero: the kernel refuses anything else.
	if err := seccompIoctl(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&room)); err != nil {
		return Notification{}, os.NewSyscallError("ioctl(SECCOMP_IOCTL_NOTIF_RECV)", err)
	}
	return *(*Notification)(unsafe.Pointer(&room)), nil
}

// AnswerNotification ends a waiting system call: it returns errno to the worker, 0 meaning success with the value 0. ENOENT means that the call is
// gone.
func AnswerNotification(listener int, id uint64, errno unix.Errno) error {
	return sendNotification(listener, notificationResponse{id: id, err: -int32(errno)})
}

// ContinueNotification lets the kernel carry out the waiting system call as if there were no filter. ENOENT means that the call is gone.
func ContinueNotification(listener int, id uint64) error {
	return sendNotification(listener, notificationResponse{id: id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE})
}

func sendNotification(listener int, resp notificationResponse) error {
	err := RetryEINTR(func() error { return seccompIoctl(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&resp)) })
	return os.NewSyscallError("ioctl(SECCOMP_IOCTL_NOTIF_SEND)", err)
}

// NotificationAlive says whether the thread of notification id still waits in it. What was opened under /proc/PID before a true answer
// belongs to that thread and not to a later one with the same number.
func NotificationAlive(listener int, id uint64) bool {
	err := RetryEINTR(func() error { return seccompIoctl(listener, unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&id)) })
	return err == nil
}

// ReplaceDescriptor puts a copy of the caller's descriptor source in the place of the waiting thread's descriptor target, as dup3(2) would do it, with
// close-on-exec as asked. The waiting thread carries it out; ENOENT means that the call is gone (Linux 5.9 on).
func ReplaceDescriptor(listener int, id uint64, source, target int, cloexec bool) error {
	add := notificationAddFD{id: id, flags: unix.SECCOMP_ADDFD_FLAG_SETFD, srcFD: uint32(source), newFD: uint32(target)}
	if cloexec {
		add.newFDFlags = unix.O_CLOEXEC
	}
	err := RetryEINTR(func() error { return seccompIoctl(listener, unix.SECCOMP_IOCTL_NOTIF_ADDFD, unsafe.Pointer(&add)) })
	// A thread that is killed while it should do this makes the kernel answer ESRCH.
	if errors.Is(err, unix.ESRCH) {
		err = unix.ENOENT
	}
	return os.NewSyscallError("ioctl(SECCOMP_IOCTL_NOTIF_ADDFD)", err)
}

func seccompIoctl(fd int, request uint, argument unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}

// DecodeNotification reads a Notification from the bytes of a kernel of the same byte order, for tests and fuzzing. ok is false when there are too few.
func DecodeNotification(b []byte) (n Notification, ok bool) {
	if uintptr(len(b)) < unsafe.Sizeof(n) {
		return n, false
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&n)), unsafe.Sizeof(n)), b)
	return n, true
}
