package sys

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sigaction is struct sigaction as rt_sigaction(2) takes it on 64-bit machines.
type Sigaction struct {
	Handler, Flags, Restorer, Mask uintptr
}

// SARestorer says that Sigaction.Restorer is set; amd64 needs it, arm64 has its own way
// back from a handler.
const SARestorer = 0x04000000

// The handlers of asm-generic/signal-defs.h.
const (
	sigDefault = 0
	sigIgnore  = 1
)

// sigsetBytes is the size of the kernel's signal set.
const sigsetBytes = 8

// GetAction reads what is done with a signal, past the Go runtime.
func GetAction(sig int, act *Sigaction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(act)), sigsetBytes, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("rt_sigaction", errno)
	}
	return nil
}

// SetAction sets what is done with a signal, past the Go runtime.
func SetAction(sig int, act *Sigaction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(act)), 0, sigsetBytes, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("rt_sigaction", errno)
	}
	return nil
}

// StopIgnoring gives an ignored signal its default action, which execve(2) hands
// on; a signal that is not ignored stays as it is.
func StopIgnoring(sig int) {
	var act Sigaction
	if GetAction(sig, &act) == nil && act.Handler == sigIgnore {
		_ = SetAction(sig, &Sigaction{Handler: sigDefault})
	}
}
