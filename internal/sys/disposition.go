package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernelSigaction is struct sigaction as rt_sigaction(2) takes it on amd64 and
// arm64. Only the handler is looked at.
type kernelSigaction struct {
	handler, flags, restorer, mask uintptr
}

// The handlers of asm-generic/signal-defs.h.
const (
	sigDefault = 0
	sigIgnore  = 1
)

// StopIgnoring gives an ignored signal its default action, which execve(2) hands
// on; a signal that is not ignored stays as it is. It goes past the Go runtime and
// is for signals that the runtime has no handler for.
func StopIgnoring(sig int) {
	const setBytes = 8
	var act kernelSigaction
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&act)), setBytes, 0, 0)
	if errno != 0 || act.handler != sigIgnore {
		return
	}
	act = kernelSigaction{handler: sigDefault}
	_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&act)), 0, setBytes, 0, 0)
}
