// Hold is an HTTP server that holds as much memory as it is told: it shows how
// skep sizes, guards and replaces workers.
//
//	hold -mib 100             100 MiB from the start
//	GET /leak?mib=5           5 MiB more every second from now on, in the worker that answers
//
// Every answer names the process that gave it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"
)

var held struct {
	sync.Mutex
	blocks [][]byte
}

// hold takes bytes and writes to every page of them: only then they count.
func hold(bytes int) {
	block := make([]byte, bytes)
	for i := 0; i < len(block); i += os.Getpagesize() {
		block[i] = 1
	}
	held.Lock()
	defer held.Unlock()
	held.blocks = append(held.blocks, block)
}

func main() {
	addr := flag.String("addr", ":8000", "address to listen on")
	mib := flag.Int("mib", 0, "MiB to hold from the start")
	others := flag.Int("others", 0, "MiB to hold more in every worker but the first one, slot 0")
	late := flag.Bool("late", false, "hold them only when the port is open")
	flag.Parse()

	if slot := os.Getenv("SKEP_SLOT"); slot != "" && slot != "0" {
		*mib += *others
	}
	if !*late {
		hold(*mib << 20)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "hello from pid %d\n", os.Getpid())
	})
	mux.HandleFunc("/leak", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.FormValue("mib"))
		if err != nil || n < 1 || n > 1024 {
			http.Error(w, "mib: want a number from 1 to 1024", http.StatusBadRequest)
			return
		}
		go func() {
			const steps = 10 // a second
			for range time.Tick(time.Second / steps) {
				hold(n << 20 / steps)
			}
		}()
		fmt.Fprintf(w, "leaking %d MiB/s in pid %d\n", n, os.Getpid())
	})
	srv := &http.Server{Addr: *addr, Handler: mux, ReadHeaderTimeout: 10 * time.Second}

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
	if *late {
		go func() {
			time.Sleep(100 * time.Millisecond)
			hold(*mib << 20)
		}()
	}
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatalf("cannot serve on %s: %v", *addr, err)
	}
	<-drained
}
