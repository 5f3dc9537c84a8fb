package e2e

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An application that takes three seconds to import is reloaded under load: no
// request fails, and none waits for an import.
func TestReloadOfASlowImport(t *testing.T) {
	const importing = 3 * time.Second
	t.Setenv("IMPORT_DELAY", importing.String()[:1])
	url, said := underSkep(t, []string{"-w", "2"}, uvicornApp(t)...)
	untilSaid(t, said, "worker ready", 2, time.Minute)
	load := make(chan []request)
	go func() { load <- openLoop(url, 100, 15*time.Second) }()
	for reload := 1; reload <= 2; reload++ {
		signalSkep(t, said, unix.SIGHUP)
		untilSaid(t, said, "worker ended.*cause=reload", 2*reload, time.Minute)
	}
	requests := <-load
	if errs := failures(requests); len(errs) > 0 {
		t.Errorf("%d of %d requests failed, the first: %v", len(errs), len(requests), errs[0])
	}
	most := slowest(requests)
	t.Logf("%d requests, the slowest answer %v", len(requests), most)
	if most > importing/2 {
		t.Errorf("the slowest answer took %v, an import takes %v", most, importing)
	}
}

// Workers that were started together do not go together: one is replaced at a
// time, after its successor is ready, and their ages differ.
func TestAgedWorkersGoOneByOne(t *testing.T) {
	t.Parallel() // it mostly waits
	const age = 4 * time.Second
	url, said := blocking(t, "-w", "4", "--max-worker-age", age.String())
	untilSaid(t, said, "worker ended.*cause=age", 8, time.Minute)
	if pid, err := whoAnswers(url, 10*time.Second); err != nil {
		t.Errorf("%q %v", pid, err)
	}
	leaving := false
	for line := range strings.Lines(said()) {
		switch {
		case strings.Contains(line, "replacing a worker"):
			if leaving {
				t.Errorf("a second worker is replaced before the first has gone:\n%s", said())
			}
			leaving = true
		case strings.Contains(line, "cause=age") && strings.Contains(line, "worker ended"):
			leaving = false
		}
	}
	ages := map[time.Duration]bool{}
	for _, m := range regexp.MustCompile(`cause=age.*uptime=(\S+)`).FindAllStringSubmatch(said(), -1) {
		d, err := time.ParseDuration(m[1])
		if err != nil {
			t.Fatal(err)
		}
		if d < age-age/10 || d > 4*age {
			t.Errorf("a worker was replaced at the age of %v", d)
		}
		ages[d.Round(time.Millisecond)] = true
	}
	if len(ages) < 4 {
		t.Errorf("the ages are %v", ages)
	}
}
