package steer

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestPastLearns(t *testing.T) {
	for _, c := range []struct {
		name  string
		was   View
		is    time.Duration // its lag
		later time.Duration
		want  time.Duration // 0: nothing
	}{
		{"it gets on", blocked(1).lag(100 * ms).asleep(), 0, 10 * ms, 110 * ms},
		{"and has done so for a while", blocked(1).lag(100 * ms).asleep(), 4 * ms, 10 * ms, 106 * ms},
		{"so does one that computes", blocked(1).lag(100 * ms), 0, 10 * ms, 110 * ms},
		{"one whose queue is all that is known", unknown(0).queued(1).lag(100 * ms), 0, 10 * ms, 110 * ms},
		{"one that is held to be hung", in(Hung).queued(1).lag(1900 * ms), 0, 100 * ms, 2000 * ms},
		{"it does not", blocked(1).lag(100 * ms).asleep(), 110 * ms, 10 * ms, 0},
		{"nobody has looked for too long", blocked(1).lag(100 * ms).asleep(), 0, 101 * ms, 0},
		{"an ordinary request", busy(1), 0, ms, 0},
		{"it had nothing to do", idle(1).lag(100 * ms), 0, 10 * ms, 0},
		{"it had no process", in(Down).queued(1).lag(100 * ms), 0, 10 * ms, 0},
		{"the first look", View{}, 0, 0, 0},
	} {
		var p past
		is := c.was.lag(c.is)
		p.learn(&c.was, &is, c.later)
		if p != (past{c.want}) {
			t.Errorf("%s: learned %v, want %v", c.name, p[0], c.want)
		}
	}
}

// known is a past with the lengths.
func known(lengths ...time.Duration) (p past) {
	for _, length := range lengths {
		was, is := blocked(1).lag(length), idle(1)
		p.learn(&was, &is, 0)
	}
	return p
}

func TestPastCost(t *testing.T) {
	const l = 100 * ms
	for _, c := range []struct {
		name    string
		lengths []time.Duration
		since   time.Duration
		want    time.Duration
	}{
		{"nothing known: as long again", nil, 15 * ms, 15 * ms},
		{"which may be late", nil, 21 * ms, 21*ms + l},
		{"what is left, and as long again", []time.Duration{200 * ms}, 190 * ms, (10*ms + 190*ms + l) / 2},
		{"it has taken longer than any did", []time.Duration{20 * ms, 30 * ms}, 40 * ms, 40*ms + l},
		{"shorter ones do not count", []time.Duration{20 * ms, 30 * ms, 200 * ms}, 190 * ms, (10*ms + 190*ms + l) / 2},
		{"the mean of all longer ones", []time.Duration{20 * ms, 30 * ms, 50 * ms}, 10 * ms, (10*ms + 20*ms + 40*ms + l + 10*ms) / 4},
		{"it has just got on", []time.Duration{20 * ms}, 0, 20 * ms / 2},
	} {
		p := known(c.lengths...)
		if got := p.cost(c.since); (got - c.want).Abs() > time.Microsecond {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestPastForgets: the latest ones count, and whatever is known the cost is that of some wait.
func TestPastForgets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lengths := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) time.Duration {
			return time.Duration(rapid.IntRange(11, 3000).Draw(t, "length")) * ms
		}), 0, 100).Draw(t, "lengths")
		since := time.Duration(rapid.IntRange(0, 3000).Draw(t, "since")) * ms
		p, latest := known(lengths...), known(lengths[max(0, len(lengths)-32):]...)
		got := p.cost(since)
		if want := latest.cost(since); got != want {
			t.Errorf("%v, and %v with the latest 32", got, want)
		}
		if got < 0 || got > 3000*ms+lateCosts {
			t.Errorf("costs %v", got)
		}
	})
}

// TestPollerLearns has a process stopped for a time that the poller is told.
func TestPollerLearns(t *testing.T) {
	p := tickFleet(t, 1)
	m, w := p.groups[0].members[0], p.workers[0]
	defer signal(t, w.pid, unix.SIGCONT)
	look := func(now time.Duration, what string, is func() bool) {
		t.Helper()
		eventually(t, what, func() bool {
			p.tick(now)
			return is()
		})
	}
	connectTo(t, m)
	look(time.Second, "it waits for a request", func() bool { return w.wait == Idle && w.conns == 1 })
	signal(t, w.pid, unix.SIGSTOP)
	look(time.Second, "it is stopped", func() bool { return w.asleep })
	p.tick(1100 * ms)
	p.tick(1150 * ms)
	if p.past[0] != 0 {
		t.Errorf("learned %v of one that is still blocked", p.past[0])
	}
	signal(t, w.pid, unix.SIGCONT)
	look(1200*ms, "it goes on", func() bool { return w.wait == Idle })
	if p.past[0] != 200*ms || p.past[1] != 0 {
		t.Errorf("learned %v of one that was blocked for 200 ms", p.past[:2])
	}
}

// TestBlocksOfAllKinds has loads whose requests block for times that are spread in different ways. Who goes to the worker that has been blocked for the longest does well
// when all blocks are of one length, and the worse the more they differ; and the other way round.
func TestBlocksOfAllKinds(t *testing.T) {
	const quick = time.Millisecond
	draw := func(a arrival) *rand.Rand { return rand.New(rand.NewPCG(uint64(a.at), 8)) }
	spread := func(mean float64) time.Duration { return time.Duration(mean * float64(blockTime)) }
	for _, c := range []struct {
		name   string
		length func(arrival) time.Duration
		most   float64 // of the mean wait when the longest is chosen
	}{
		{"all alike", func(arrival) time.Duration { return blockTime }, 1.05},
		{"normal, a quarter", func(a arrival) time.Duration { return max(spread(1+draw(a).NormFloat64()/4), ms) }, 1.05},
		{"exponential", func(a arrival) time.Duration { return spread(draw(a).ExpFloat64()) }, 1},
		{"one in ten is 24 times as long", func(a arrival) time.Duration {
			if draw(a).IntN(10) == 0 {
				return spread(7.3)
			}
			return spread(0.3)
		}, 0.75},
		{"heavy tail", func(a arrival) time.Duration { return spread(math.Pow(draw(a).Float64(), -1/1.5) / 3) }, 0.7},
	} {
		load := poisson(300, *simLength, 99)
		work := func(a arrival) time.Duration {
			if a.block {
				return c.length(a)
			}
			return quick
		}
		hung := func(cost func(View) time.Duration) func(time.Duration, []View, int) []int {
			return func(_ time.Duration, views []View, burst int) []int {
				for i := range views {
					views[i].Cost = cost(views[i])
					if v := &views[i]; v.Asleep && v.Lag >= time.Second { // as Poller has it
						v.State = Hung
					}
				}
				return pick(nil, views, burst)
			}
		}
		ways := []struct {
			name string
			cost func(View) time.Duration
		}{
			{"learned", func(v View) time.Duration { return v.Cost }},
			{"the longest", func(v View) time.Duration { return -v.Lag }},
			{"the longest, however many wait", func(v View) time.Duration { return -v.Lag - turn*time.Duration(v.Queue) }},
			{"the latest", func(v View) time.Duration { return v.Lag }},
		}
		var lines []string
		result := func(name string, took []time.Duration) (share float64, mean time.Duration) {
			waits := quickOf(load, took)
			slices.Sort(waits)
			for _, d := range waits {
				mean += d
			}
			share, mean = lateShare(load, took), mean/time.Duration(len(waits))
			lines = append(lines, fmt.Sprintf("%s: %.2f %% late, mean %v, p99.9 %v", name, share, mean.Round(10*time.Microsecond), waits[len(waits)*999/1000].Round(ms)))
			return share, mean
		}
		shares, means := make([]float64, len(ways)), make([]time.Duration, len(ways))
		for i, way := range ways {
			s := &simulation{load: load, work: work, choose: hung(way.cost)}
			shares[i], means[i] = result(way.name, s.run(4, 0))
		}
		most, _ := result("shared", (&simulation{load: load, work: work}).runShared(4))
		t.Logf("%s: %s", c.name, strings.Join(lines, "; "))
		if got := float64(means[0]) / float64(means[1]); got > c.most {
			t.Errorf("%s: requests take %.2f times what they take when the worker that has been blocked for the longest gets them; want at most %v", c.name, got, c.most)
		}
		if shares[0] > most {
			t.Errorf("%s: %.2f %% of the requests are late, and %.2f with one queue for all", c.name, shares[0], most)
		}
	}
}
