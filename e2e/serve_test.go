package e2e

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// serveMain is the server of the scripts, the program "serve" in them. It takes
// its listener by number (-fd), by name from LISTEN_FDS (-named), or opens it
// itself (-addr), and answers every request with its process id and slot.
func serveMain() {
	fd := flag.Int("fd", -1, "number of the inherited listener")
	named := flag.String("named", "", "name of the inherited listener in LISTEN_FDNAMES")
	addr := flag.String("addr", "", "address to listen on")
	flag.Parse()
	log.SetFlags(0)
	log.SetPrefix("serve: ")

	listener, err := listen(*fd, *named, *addr)
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if d, err := time.ParseDuration(r.FormValue("sleep")); err == nil {
				time.Sleep(min(d, time.Minute))
			}
			fmt.Fprintf(w, "pid %d slot %s of %s\n", os.Getpid(), os.Getenv("SKEP_SLOT"), os.Getenv("SKEP_WORKER_COUNT"))
		}),
	}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		<-stop.Done()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			log.Printf("cannot drain every connection: %v", err)
		}
	}()
	log.Printf("pid %d serves", os.Getpid())
	if err := srv.Serve(listener); err != http.ErrServerClosed {
		log.Fatal(err)
	}
	<-drained
}

func listen(fd int, named, addr string) (net.Listener, error) {
	switch {
	case addr != "":
		return net.Listen("tcp", addr)
	case named != "":
		var err error
		if fd, err = namedFD(named); err != nil {
			return nil, err
		}
	}
	f := os.NewFile(uintptr(fd), "listener")
	if f == nil {
		return nil, fmt.Errorf("cannot listen: want -fd, -named or -addr")
	}
	defer f.Close()
	return net.FileListener(f)
}

// namedFD finds a listener by the rules of sd_listen_fds_with_names(3).
func namedFD(name string) (int, error) {
	if pid := os.Getenv("LISTEN_PID"); pid != strconv.Itoa(os.Getpid()) {
		return 0, fmt.Errorf("LISTEN_PID is %q, this is pid %d", pid, os.Getpid())
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	if count := os.Getenv("LISTEN_FDS"); count != strconv.Itoa(len(names)) {
		return 0, fmt.Errorf("LISTEN_FDS is %q for the names %q", count, names)
	}
	for i, n := range names {
		if n == name {
			return 3 + i, nil
		}
	}
	return 0, fmt.Errorf("no listener %q among %q", name, names)
}
