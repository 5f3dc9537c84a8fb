package peers_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"skep/bench/peers"
)

func TestTreeIsFoundAndEnded(t *testing.T) {
	dir, err := peers.Scratch()
	if err != nil {
		t.Fatal(err)
	}
	// A child that ignores TERM, a grandchild in a session of its own whose
	// parent ends: all must be found and ended.
	script := `trap '' TERM; (setsid sleep 300 &) ; sleep 301 & wait; sleep 302`
	p, err := peers.Launch(dir, []string{"/bin/sh", "-c", script}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.End()
	if err := p.WaitFor(t.Context(), 10*time.Second, func() bool { return len(p.Tree()) == 3 }); err != nil {
		t.Fatalf("tree is %v: %v", p.Tree(), err)
	}
	if _, gone := p.Stop(200 * time.Millisecond); gone {
		t.Error("a tree that ignores TERM counts as gone")
	}
	tree := p.Tree()
	p.End()
	for _, pid := range tree {
		if peers.Alive(pid) {
			t.Errorf("process %d is still there", pid)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("scratch folder: %v", err)
	}
	if code, _ := p.Result(); code != 128+int(syscall.SIGKILL) {
		t.Errorf("code %d", code)
	}
}

// Rows may start subjects side by side. What one of them ends must never be
// another one, not even while that is being started.
func TestStartsSideBySideLeaveEachOtherAlone(t *testing.T) {
	stay, stop := make(chan *peers.Process), make(chan struct{})
	go func() {
		defer close(stay)
		for range 150 {
			select {
			case <-stop:
				return
			default:
			}
			p, err := peers.Launch(t.TempDir(), []string{"/bin/sleep", "300"}, nil, nil)
			if err != nil {
				t.Error(err)
				return
			}
			stay <- p
		}
	}()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range 15 {
			p, err := peers.Launch(t.TempDir(), []string{"/bin/sleep", "300"}, nil, nil)
			if err != nil {
				t.Error(err)
				return
			}
			p.End()
		}
	}()
	var all []*peers.Process
	for open := true; open; {
		select {
		case p, ok := <-stay:
			if open = ok; ok {
				all = append(all, p)
			}
		case <-ended:
			close(stop)
			ended = nil
		}
	}
	for _, p := range all {
		if !peers.Alive(p.PID) {
			t.Errorf("process %d was ended with another one", p.PID)
		}
		p.End()
	}
}

func TestWaitForNamesTheEnd(t *testing.T) {
	dir := t.TempDir()
	p, err := peers.Launch(dir, []string{"/bin/sh", "-c", "echo skep: unknown flag --frobnicate >&2; exit 125"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.End()
	err = p.WaitFor(t.Context(), 10*time.Second, func() bool { return false })
	if text, ok := peers.Refused(err); !ok || text != "skep: unknown flag --frobnicate" {
		t.Errorf("%v: %q, %v", err, text, ok)
	}
	if _, ok := peers.Refused(context.Canceled); ok {
		t.Error("every error counts as a refusal")
	}
}

func TestMissingToolIsNamed(t *testing.T) {
	tools := peers.FindTools(filepath.Join(t.TempDir(), "no-skep"), "/no/python")
	s, _ := peers.Find("skep")
	_, err := s.Start(tools, peers.Config{Workers: 1})
	var m *peers.MissingTool
	if !errors.As(err, &m) || m.Name != "skep" {
		t.Errorf("%v", err)
	}
}
