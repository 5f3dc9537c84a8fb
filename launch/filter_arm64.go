package launch

import "golang.org/x/sys/unix"

// NativeFilter is Filter for the architecture this program is built for.
func NativeFilter() []unix.SockFilter {
	return Filter(unix.AUDIT_ARCH_AARCH64, Calls{Bind: unix.SYS_BIND, Listen: unix.SYS_LISTEN, SetSockOpt: unix.SYS_SETSOCKOPT})
}
