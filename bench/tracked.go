package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tracked is the kernel's table of the connections that a firewall, or Docker's address translation, has it follow. A connection that has ended stays in it
// for two minutes, also one over loopback, and when the table is full new ones are dropped: whoever is measured then seems to answer a few requests a second.
const tracked = "/proc/sys/net/netfilter"

// awaitRoom waits until so much of the table is free that the busiest sample fits, which opens some 50 000 connections.
func awaitRoom(ctx context.Context, dir string, every time.Duration) {
	const most = 3 * time.Minute // longer than an entry stays
	for begin, said := time.Now(), false; time.Since(begin) < most && ctx.Err() == nil; time.Sleep(every) {
		used, err := number(dir, "nf_conntrack_count")
		limit, err2 := number(dir, "nf_conntrack_max")
		if err != nil || err2 != nil || used <= limit*3/4 {
			return
		}
		if !said {
			fmt.Fprintf(os.Stderr, "bench: waiting until the kernel forgets connections: it follows %d of at most %d\n", used, limit)
			said = true
		}
	}
}

func number(dir, name string) (int, error) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}
