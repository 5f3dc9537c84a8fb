//go:build amd64 || arm64

package entry

// getrlimit is prlimit(0, RLIMIT_NOFILE, nil, old), bare: package syscall may not
// be imported here. It returns 0 or the negative error number.
//
//go:noescape
func getrlimit(old *Limit) int
