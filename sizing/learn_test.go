package sizing

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// epoch is when the tests' clocks begin. Nothing here asks for the real time.
var epoch = time.Unix(1000, 0)

func at(d time.Duration) time.Time { return epoch.Add(d) }

// learn runs a learner over one worker, whose memory is a function of its age, until it has settled, and returns when
// that was.
func learn(t *testing.T, l *Learner, slot int, from time.Time, memory func(age time.Duration) uint64) time.Duration {
	t.Helper()
	l.Ready(from, slot)
	for range 1000 {
		now := l.Deadline()
		if now.IsZero() {
			t.Fatal("nothing is due and nothing has settled")
		}
		for _, s := range l.Due(now) {
			if l.Sample(now, s, memory(now.Sub(from))) {
				if l.Measuring(slot) {
					t.Error("a settled worker is still measured")
				}
				return now.Sub(from)
			}
		}
		if !l.Deadline().After(now) {
			t.Fatal("the deadline does not move on")
		}
	}
	t.Fatal("never settles")
	return 0
}

func TestLearnerWaitsForTheWorkerToSettle(t *testing.T) {
	const s = time.Second
	for _, tt := range []struct {
		name     string
		memory   func(age time.Duration) uint64
		from, to time.Duration // settled in between
		worker   uint64
	}{
		{"steady", func(time.Duration) uint64 { return 100 * mib }, 3 * s, 4 * s, 100 * mib},
		{"a little growth", func(a time.Duration) uint64 { return 100*mib + uint64(a/s)*mib/2 }, 3 * s, 4 * s, 101*mib + mib/2},
		{"forks after a second", func(a time.Duration) uint64 {
			if a < s {
				return 20 * mib
			}
			return 80 * mib
		}, 4 * s, 5 * s, 80 * mib},
		{"forks when it nearly seems settled", func(a time.Duration) uint64 {
			if a < 2900*time.Millisecond {
				return 20 * mib
			}
			return 80 * mib
		}, 5 * s, 7 * s, 80 * mib},
		{"loads for ten seconds", func(a time.Duration) uint64 { return uint64(min(a, 10*s)/(100*time.Millisecond)) * mib }, 12 * s, 14 * s, 100 * mib},
		{"shrinks", func(a time.Duration) uint64 { return 100*mib - uint64(a/s)*mib }, 3 * s, 4 * s, 100 * mib},
		{"grows for ever", func(a time.Duration) uint64 { return uint64(a/s) * mib }, 60 * s, 61 * s, 60 * mib},
		{"cannot be read at first", func(a time.Duration) uint64 {
			if a < 5*s {
				return 0
			}
			return 40 * mib
		}, 8 * s, 9 * s, 40 * mib},
		{"cannot be read ever", func(time.Duration) uint64 { return 0 }, 60 * s, 61 * s, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var l Learner
			if took := learn(t, &l, 0, epoch, tt.memory); took < tt.from || took > tt.to {
				t.Errorf("settled after %v, want between %v and %v", took, tt.from, tt.to)
			}
			if got := l.Worker(); got != tt.worker {
				t.Errorf("one worker needs %d, want %d", got, tt.worker)
			}
			for n := 0; !l.Deadline().IsZero(); n++ {
				now := l.Deadline()
				if n > 25 || now.Sub(epoch) > 63*s {
					t.Fatal("measured for more than a minute")
				}
				for _, slot := range l.Due(now) {
					if l.Sample(now, slot, tt.worker) {
						t.Error("told again though nothing has grown")
					}
				}
			}
		})
	}
}

// The first worker loads the rest after others have been started: they are told in time. Others are not measured on, and
// neither is the first for more than a minute.
func TestLearnerLooksAfterTheFirst(t *testing.T) {
	const s = time.Second
	var l Learner
	steady := func(time.Duration) uint64 { return 30 * mib }
	learn(t, &l, 0, epoch, steady)
	learn(t, &l, 1, at(3*s), steady)
	if l.Measuring(0) || l.Measuring(1) {
		t.Error("settled, but not for those who wait for it")
	}
	sample := func(bytes uint64) (grown bool) {
		t.Helper()
		now := l.Deadline()
		if due := l.Due(now); !slices.Equal(due, []int{0}) {
			t.Fatalf("due %v", due)
		}
		return l.Sample(now, 0, bytes)
	}
	if sample(30*mib+mib/2) || sample(0) || sample(20*mib) || l.Worker() != 30*mib {
		t.Error("what is next to nothing counts for growth")
	}
	for n := uint64(40); n <= 70; n += 10 {
		if sample(n * mib) {
			t.Error("what grows and grows is learned from")
		}
	}
	if sample(90*mib) || !sample(90*mib) || l.Worker() != 90*mib {
		t.Errorf("grew to 90 MiB, and one worker needs %d", l.Worker())
	}
	if sample(90 * mib) {
		t.Error("told twice")
	}
	for !l.Deadline().IsZero() {
		if now := l.Deadline(); now.After(at(63 * s)) {
			t.Fatal("measured for more than a minute")
		}
		sample(90 * mib)
	}
	// The successor of the first is one like the others.
	learn(t, &l, 0, at(100*s), steady)
	if !l.Deadline().IsZero() {
		t.Error("a timer is left")
	}
}

func TestLearnerTakesTheLargestWorker(t *testing.T) {
	var l Learner
	steady := func(n uint64) func(time.Duration) uint64 { return func(time.Duration) uint64 { return n } }
	for slot, x := range []struct{ memory, worker uint64 }{{100, 100}, {80, 100}, {200, 200}, {120, 200}} {
		learn(t, &l, slot, at(time.Duration(slot)*time.Minute), steady(x.memory*mib))
		if l.Worker() != x.worker*mib {
			t.Errorf("after slot %d one worker needs %d", slot, l.Worker())
		}
	}
	l.Forget()
	if l.Worker() != 0 {
		t.Error("forgotten, but still known")
	}
}

func TestLearnerDropsWorkersThatEnd(t *testing.T) {
	var l Learner
	l.Ready(at(0), 0)
	l.Ready(at(0), 1)
	if due := l.Due(at(0)); !slices.Equal(due, []int{0, 1}) {
		t.Fatalf("due %v", due)
	}
	if due := l.Due(at(0)); due != nil {
		t.Errorf("due twice: %v", due)
	}
	l.Gone(0)
	if l.Sample(at(61*time.Second), 0, gib) || l.Worker() != 0 {
		t.Error("a late sample of a worker that ended counts")
	}
	l.Sample(at(0), 1, 10*mib)
	l.Ready(at(2*time.Second), 1) // restarted
	l.Sample(at(3500*time.Millisecond), 1, 10*mib)
	if !l.Measuring(1) {
		t.Error("samples of the worker before count")
	}
	l.Gone(1)
	if !l.Deadline().IsZero() {
		t.Error("a timer is left")
	}
}

// However late samples come and whatever they say, a worker is measured for no more than a minute after the first sample
// past it, and what was learned is no more than a sample that was taken.
func TestLearnerAlwaysSettles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l Learner
		l.Ready(epoch, 3)
		now := epoch
		most := uint64(0)
		for now.Sub(epoch) < 61*time.Second && !l.Deadline().IsZero() {
			if d := l.Deadline(); d.After(now) {
				now = d
			}
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(5*time.Second)).Draw(t, "late")))
			l.Due(now)
			n := drawBytes(t, "memory")
			most = max(most, n)
			before := l.Worker()
			if told := l.Sample(now, 3, n); !told && l.Worker() != before {
				t.Fatalf("learned %d after %d and did not tell", l.Worker(), before)
			}
		}
		if l.Measuring(3) {
			t.Fatal("not settled after a minute")
		}
		if l.Worker() > most {
			t.Fatalf("learned %d of at most %d", l.Worker(), most)
		}
	})
}
