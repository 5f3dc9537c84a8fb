//go:build !amd64 && !arm64

package launch

import "golang.org/x/sys/unix"

// nativeFilter is empty: installing it fails with ENOSYS, and skep falls back to what works without bind sharing.
func nativeFilter() []unix.SockFilter { return nil }
