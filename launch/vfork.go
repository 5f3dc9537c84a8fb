//go:build amd64 || arm64

package launch

// shares tells that the new process can run in this one's memory until it executes its command.
const shares = true

// clone is clone(2) without a stack of its own for the new process, which with CLONE_VM and
// CLONE_VFORK returns first, on this very stack, and overwrites what lies below the caller's
// frame: the return address is kept in a register. It returns 0 in the new process.
//
//go:noescape
func clone(flags uintptr) (pid, errno uintptr)
