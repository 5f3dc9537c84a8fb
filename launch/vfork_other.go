//go:build !amd64 && !arm64

package launch

import "golang.org/x/sys/unix"

const shares = false

// clone is clone(2) without CLONE_VM.
//
//go:norace
//go:nosplit
func clone(flags uintptr) (pid, errno uintptr) {
	pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, flags, 0, 0, 0, 0, 0)
	return pid, uintptr(e)
}
