//go:build !386 && !arm

package steer

import "golang.org/x/sys/unix"

const (
	sysFstat    = unix.SYS_FSTAT
	sysSetfsuid = unix.SYS_SETFSUID
	sysSetfsgid = unix.SYS_SETFSGID
)
