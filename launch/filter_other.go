//go:build !amd64 && !arm64

package launch

import "golang.org/x/sys/unix"

// NativeFilter is Filter for the architecture this program is built for; here it is empty: installing it fails with ENOSYS, and skep falls back to what works without bind sharing.
func NativeFilter() []unix.SockFilter { return nil }
