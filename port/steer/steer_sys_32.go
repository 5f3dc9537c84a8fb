//go:build 386 || arm

package steer

import "golang.org/x/sys/unix"

// The first calls of these names knew 16-bit users and 32-bit sizes.
const (
	sysFstat    = unix.SYS_FSTAT64
	sysSetfsuid = unix.SYS_SETFSUID32
	sysSetfsgid = unix.SYS_SETFSGID32
)
