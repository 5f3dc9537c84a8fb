// Hold is an HTTP server that holds as much memory as it is told: it shows how
// skep sizes, guards and replaces workers.
//
//	hold -mib 100             100 MiB from the start
//	hold -leak 5              5 MiB more every second
//	hold -mib 100 -same       the same bytes in every process, as a model or a table that all of them load
//	GET /leak?mib=5           5 MiB more every second from now on, in the worker that answers
//
// Every answer names the process that gave it.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
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

// hold takes bytes and writes to every page of them: only then they count. What is
// written differs from page to page, and unless they shall be the same from process
// to process.
func hold(bytes int, same bool) {
	seed := uint64(1)
	if !same {
		seed = rand.Uint64()
	}
	random := rand.NewPCG(seed, seed)
	block := make([]byte, bytes)
	for i := 0; i+8 <= len(block); i += os.Getpagesize() {
		binary.NativeEndian.PutUint64(block[i:], random.Uint64())
	}
	held.Lock()
	defer held.Unlock()
	held.blocks = append(held.blocks, block)
}

// leak takes so many MiB a second and never ends.
func leak(mib int) {
	const steps = 10 // a second
	for range time.Tick(time.Second / steps) {
		hold(mib<<20/steps, false)
	}
}

func main() {
	addr := flag.String("addr", ":8000", "address to listen on")
	mib := flag.Int("mib", 0, "MiB to hold from the start")
	others := flag.Int("others", 0, "MiB to hold more in every worker but the first one, slot 0")
	late := flag.Bool("late", false, "hold them only when the port is open")
	leaks := flag.Int("leak", 0, "MiB to hold more every second")
	same := flag.Bool("same", false, "hold the same bytes in every process")
	flag.Parse()

	if slot := os.Getenv("SKEP_SLOT"); slot != "" && slot != "0" {
		*mib += *others
	}
	if !*late {
		hold(*mib<<20, *same)
	}
	if *leaks > 0 {
		go leak(*leaks)
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
		go leak(n)
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
			hold(*mib<<20, *same)
		}()
	}
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatalf("cannot serve on %s: %v", *addr, err)
	}
	<-drained
}
