//go:build !amd64 && !arm64

package entry

// getrlimit has no form here: children keep the limit that Go has raised.
func getrlimit(*Limit) int { return -1 }
