package main

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

func TestWaitsUntilThereIsRoomForConnections(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, n int) {
		t.Helper()
		tmp := filepath.Join(dir, "new")
		if err := os.WriteFile(tmp, []byte(strconv.Itoa(n)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan struct{})
	wait := func() { awaitRoom(t.Context(), dir, time.Millisecond); done <- struct{}{} }
	returns := func(what string) {
		t.Helper()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: it still waits", what)
		}
	}
	go wait()
	returns("nothing is followed")
	write("nf_conntrack_max", 1000)
	write("nf_conntrack_count", 750)
	go wait()
	returns("there is room")
	write("nf_conntrack_count", 751)
	go wait()
	select {
	case <-done:
		t.Error("it does not wait")
	case <-time.After(50 * time.Millisecond):
		write("nf_conntrack_count", 10)
		returns("there is room again")
	}
}
