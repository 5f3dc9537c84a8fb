//go:build amd64 || arm64

package signals

import (
	"os"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
)

// What the handler needs.
var (
	//lint:ignore U1000 the handler writes to it
	pipe int32 // the end that it writes to
	//lint:ignore U1000 the handler compares with it
	self int32 // the own pid

	child  uint32                  // 1 while a CHLD is in the pipe: a second one would say no more
	missed uint64                  // signals that the pipe had no room for, the lowest bit for 1
	faults [sys.SigMax + 1]uintptr // where those go that the kernel raises for a fault
	own    [sys.SigMax + 1]uintptr // where those go that the process sends itself
)

// handler is for the kernel only.
//
//lint:ignore U1000 handlerPC returns its address
func handler()

// handlerPC is the address of handler.
func handlerPC() uintptr

// The flags of struct sigaction that the handler needs (asm-generic/signal-defs.h).
const (
	saSiginfo = 0x4
	saOnStack = 0x08000000
	saRestart = 0x10000000
)

// catch installs the handler, and returns the end of the pipe to read from.
func catch() (*os.File, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	pipe, self = int32(ends[1]), int32(os.Getpid())
	// The runtime's way back from a handler serves every one; arm64 has none.
	var first sys.Sigaction
	if err := sys.GetAction(int(unix.SIGSEGV), &first); err != nil {
		return nil, err
	}
	act := sys.Sigaction{
		Handler: handlerPC(), Flags: saSiginfo | saOnStack | saRestart | first.Flags&sys.SARestorer,
		Restorer: first.Restorer, Mask: ^uintptr(0),
	}
	for n := 1; n <= sys.SigMax; n++ {
		if !Takes(n) {
			continue
		}
		var old sys.Sigaction
		switch preemption := unix.Signal(n) == unix.SIGURG; {
		case !fault(n) && !preemption:
		case sys.GetAction(n, &old) != nil || old.Handler <= 1:
			continue
		case preemption: // the runtime's own, where it is not off (runtime/preempt.go)
			own[n] = old.Handler
		default:
			faults[n] = old.Handler
		}
		if err := sys.SetAction(n, &act); err != nil {
			return nil, err
		}
	}
	return os.NewFile(uintptr(ends[0]), "signals"), nil
}
