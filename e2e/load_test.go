package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// request is what became of one connection with one request on it. The times
// are the machine's own, so that they compare with what a test did meanwhile.
type request struct {
	start, end time.Time
	pid        int // of the worker that answered, as it numbers itself
	err        error
}

// client opens a new connection for every request: connections, not requests,
// are what a port is shared by.
var client = &http.Client{
	Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
	},
	Timeout: 20 * time.Second,
}

// ask makes one request.
func ask(ctx context.Context, url string) request {
	r := request{start: time.Now()}
	r.pid, r.err = fetchPid(ctx, url)
	r.end = time.Now()
	return r
}

func fetchPid(ctx context.Context, url string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("status %s: %.100q", resp.Status, body)
	}
	return pidOf(string(body))
}

// pidOf reads the process id in an answer: {"pid":7} of the Python application,
// "… pid 7 …" of the Go servers, or the page that http.server makes of
// /proc/self/task, where the thread with the least number is the process itself.
func pidOf(body string) (int, error) {
	var fields struct{ Pid int }
	if json.Unmarshal([]byte(body), &fields) == nil && fields.Pid > 0 {
		return fields.Pid, nil
	}
	words := strings.Fields(body)
	if i := slices.Index(words, "pid"); i >= 0 && i+1 < len(words) {
		return strconv.Atoi(words[i+1])
	}
	least := 0
	for _, m := range taskLink.FindAllStringSubmatch(body, -1) {
		if n, err := strconv.Atoi(m[1]); err == nil && (least == 0 || n < least) {
			least = n
		}
	}
	if least > 0 {
		return least, nil
	}
	return 0, fmt.Errorf("no pid in the answer %.100q", body)
}

var taskLink = regexp.MustCompile(`href="(\d+)/"`)

// askMany makes count requests, a few at a time, and returns all of them.
func askMany(url string, count int) []request {
	const atATime = 8
	requests := make([]request, count)
	var wg sync.WaitGroup
	next := make(chan int)
	for range atATime {
		wg.Go(func() {
			for i := range next {
				requests[i] = ask(context.Background(), url)
			}
		})
	}
	for i := range requests {
		next <- i
	}
	close(next)
	wg.Wait()
	return requests
}

// openLoop starts rate requests a second for the time given, whether or not
// earlier ones have been answered, as independent users do, and returns all of
// them when the last has ended.
func openLoop(url string, rate int, length time.Duration) []request {
	count := int(length.Seconds() * float64(rate))
	requests := make([]request, count)
	began := time.Now()
	var wg sync.WaitGroup
	for i := range requests {
		// The instants are laid out beforehand: a late one does not delay the
		// rest.
		wait := time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate)))
		<-time.After(wait)
		wg.Go(func() { requests[i] = ask(context.Background(), url) })
	}
	wg.Wait()
	return requests
}

// pids counts the answers of each process.
func pids(requests []request) map[int]int {
	count := map[int]int{}
	for _, r := range requests {
		if r.err == nil {
			count[r.pid]++
		}
	}
	return count
}

// spread tells whether every request was answered, by exactly workers
// processes, none of which had less than a fifth of its fair share.
func spread(requests []request, workers int) error {
	for _, r := range requests {
		if r.err != nil {
			return fmt.Errorf("a request failed: %w", r.err)
		}
	}
	count := pids(requests)
	if len(count) != workers {
		return fmt.Errorf("answers by pid %v: %d processes, want %d", count, len(count), workers)
	}
	for pid, n := range count {
		if n*workers*5 < len(requests) {
			return fmt.Errorf("answers by pid %v: process %d had too few", count, pid)
		}
	}
	return nil
}

// lostOnlyInFlight tells whether no request failed but those that a process
// had accepted when it died: at most accepted many, and none that began after
// its death.
func lostOnlyInFlight(requests []request, died time.Time, accepted int) error {
	lost := 0
	for _, r := range requests {
		if r.err == nil {
			continue
		}
		lost++
		if r.start.After(died) {
			return fmt.Errorf("a request that began %v after the death failed: %w", r.start.Sub(died), r.err)
		}
		if r.end.Before(died.Add(-time.Second)) {
			return fmt.Errorf("a request failed %v before the death: %w", died.Sub(r.end), r.err)
		}
	}
	if lost > accepted {
		return fmt.Errorf("%d requests failed, the dead process had accepted %d", lost, accepted)
	}
	return nil
}

// slowest returns the longest that a request that was answered took.
func slowest(requests []request) time.Duration {
	var most time.Duration
	for _, r := range requests {
		if r.err == nil {
			most = max(most, r.end.Sub(r.start))
		}
	}
	return most
}

// waitFor asks until done is satisfied with what it has seen, or fails the
// test when the time is over.
func waitFor(t *testing.T, url string, within time.Duration, what string, done func(seen []request) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	var seen []request
	for ctx.Err() == nil {
		r := ask(ctx, url)
		seen = append(seen, r)
		if done(seen) {
			return
		}
		if r.err != nil { // nobody listens yet: let others have the processor
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	t.Fatalf("%s not seen within %v: answers by pid %v, last error %v", what, within, pids(seen), seen[len(seen)-1].err)
}

func TestSpreadDetects(t *testing.T) {
	answers := func(counts ...int) []request {
		var rs []request
		for pid, n := range counts {
			rs = append(rs, slices.Repeat([]request{{pid: pid + 1}}, n)...)
		}
		return rs
	}
	for _, c := range []struct {
		requests []request
		workers  int
		ok       bool
	}{
		{answers(130, 140, 130), 3, true},
		{answers(400), 3, false},
		{answers(200, 200), 3, false},
		{answers(100, 100, 100, 100), 3, false},
		{answers(390, 5, 5), 3, false},
		{append(answers(130, 140, 130), request{err: io.EOF}), 3, false},
	} {
		if err := spread(c.requests, c.workers); (err == nil) != c.ok {
			t.Errorf("%v over %d workers: %v", pids(c.requests), c.workers, err)
		}
	}
}

func TestLostOnlyInFlightDetects(t *testing.T) {
	died := time.Now()
	lost := func(start, end time.Duration) request {
		return request{start: died.Add(start), end: died.Add(end), err: io.EOF}
	}
	for _, c := range []struct {
		name     string
		requests []request
		accepted int
		ok       bool
	}{
		{"nothing lost", []request{{pid: 1}}, 0, true},
		{"in flight", []request{lost(-time.Millisecond, time.Millisecond)}, 1, true},
		{"more than accepted", []request{lost(-time.Millisecond, time.Millisecond)}, 0, false},
		{"begun after the death", []request{lost(time.Millisecond, 2*time.Millisecond)}, 1, false},
		{"ended long before", []request{lost(-3*time.Second, -2*time.Second)}, 1, false},
	} {
		if err := lostOnlyInFlight(c.requests, died, c.accepted); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
