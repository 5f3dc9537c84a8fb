//go:build !amd64 && !arm64

package signals

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"skep/internal/sys"
)

var (
	child  uint32
	missed uint64
)

// catch takes signals by way of os/signal, with what that costs and lacks.
func catch() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c := make(chan os.Signal, 4096)
	for n := 1; n <= sys.SigMax; n++ {
		if Takes(n) {
			signal.Notify(c, unix.Signal(n))
		}
	}
	go func() {
		for sig := range c {
			_, _ = w.Write([]byte{byte(sig.(unix.Signal))})
		}
	}()
	return r, nil
}
