package steer

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// Shorthands for tables. The number is the connections.
func idle(conns int) View    { return View{State: Ready, Wait: Idle, Conns: conns} }
func busy(conns int) View    { return View{State: Ready, Wait: Busy, Conns: conns, Lag: momentary} }
func blocked(conns int) View { return View{State: Ready, Wait: Busy, Conns: conns, Lag: time.Second} }
func unknown(conns int) View { return View{State: Ready, Conns: conns} }

func (v View) queued(n int) View          { v.Queue = n; return v }
func (v View) lag(d time.Duration) View   { v.Lag = d; return v }
func (v View) asleep() View               { v.Asleep = true; return v }
func (v View) costs(d time.Duration) View { v.Cost = d; return v }
func (v View) gulps() View                { v.Gulps = true; return v }
func in(s State) View                     { return View{State: s, Wait: Idle} }

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		name    string
		members []View
		burst   int
		want    []int
	}{
		{"nobody", nil, 0, nil},
		{"one", []View{idle(3)}, 0, []int{0}},
		{"one, whatever it does", []View{blocked(3).queued(9)}, 0, []int{0}},
		{"all free and equal", []View{idle(0), idle(0), idle(0), idle(0)}, 0, []int{0, 1, 2, 3}},
		{"fewest connections", []View{idle(2), idle(0), idle(1), idle(0)}, 0, []int{1, 3}},
		{"one apart is not equal", []View{idle(5), idle(6), idle(7), idle(4)}, 0, []int{3}},
		{"but one in 16 is", []View{idle(64), idle(69), idle(70), idle(68)}, 0, []int{0, 3}},
		{"a burst goes to all it would fill", []View{idle(2), idle(0), idle(1), idle(9)}, 6, []int{0, 1, 2}},
		{"a burst goes to all it would fill, exactly", []View{idle(2), idle(0)}, 2, []int{1}},
		{"a large burst", []View{idle(2), idle(0), idle(1), idle(9)}, 1000, []int{0, 1, 2, 3}},
		{"queued ones are connections too, in a burst", []View{idle(0), busy(0).queued(40), idle(0)}, 30, []int{0, 2}},
		{"unknown numbers make all equal", []View{idle(2), idle(-1), idle(7)}, 0, []int{0, 1, 2}},
		{"only the ready count for that", []View{idle(2), {State: Down, Conns: -1}, idle(1)}, 0, []int{2}},
		{"blocked ones get nothing", []View{blocked(0), idle(4), idle(4), blocked(0)}, 0, []int{1, 2}},
		{"nor in a burst", []View{blocked(0), idle(4), idle(4), blocked(0)}, 1000, []int{1, 2}},
		{"busy ones get nothing while others are free", []View{busy(0), idle(1)}, 0, []int{1}},
		{"but when they have clearly fewer connections", []View{busy(0), idle(2), idle(3)}, 0, []int{0}},
		{"and when the free ones cannot take a burst", []View{busy(0), idle(0), blocked(0)}, perTick + 1, []int{0, 1}},
		{"not before", []View{busy(0), idle(0), blocked(0)}, perTick, []int{1}},
		{"a queue is not free", []View{idle(0).queued(1).lag(time.Second), idle(3)}, 0, []int{1}},
		{"an unknown thread with an empty queue is free", []View{unknown(0), idle(0), busy(0)}, 0, []int{0, 1}},
		{"an unknown thread with a queue is not", []View{unknown(0).queued(1), idle(0)}, 0, []int{1}},
		{"none free: the moving one with the shortest queue", []View{busy(2).queued(1), busy(1).queued(2), blocked(0)}, 0, []int{0}},
		{"none free: and the fewest connections", []View{busy(5), busy(3), busy(4), busy(0).queued(1), blocked(0)}, 0, []int{1}},
		{"none free: a burst fills the queues of the moving", []View{busy(9).queued(2), busy(0).queued(3), blocked(0)}, 12, []int{0, 1}},
		{"none free: a running one rather than one that sleeps", []View{busy(0).asleep(), busy(5).queued(2), blocked(0)}, 0, []int{1}},
		{"none free: but a burst goes to both", []View{busy(0).asleep(), busy(5), blocked(0)}, 12, []int{0, 1}},
		{"none free: one that has run for longer than that rather than one that sleeps", []View{blocked(0).asleep(), busy(0).lag(10 * ms)}, 0, []int{1}},
		{"none free: but not one that has run for longer than requests do", []View{blocked(0).asleep(), busy(0).lag(11 * ms).costs(ms)}, 0, []int{0}},
		{"none running: the one that is likely to be free first", []View{busy(0).asleep().costs(3 * ms), blocked(0).costs(2 * ms).asleep(), blocked(0).asleep().costs(3 * ms)}, 0, []int{1}},
		{"one that sleeps does not count as free, however few connections it has", []View{busy(0).asleep(), idle(2), idle(3)}, 0, []int{1}},
		{"nor when the free ones cannot take a burst", []View{busy(0).asleep(), idle(0)}, 100, []int{1}},
		{"none moving: the shortest queue", []View{blocked(0).queued(2), blocked(9).queued(1), blocked(0).queued(1)}, 0, []int{1, 2}},
		{"none moving: connections do not count", []View{blocked(0), blocked(9)}, 0, []int{0, 1}},
		{"none moving: of equal queues, the one that is likely to be free first", []View{blocked(0).costs(9 * ms), blocked(9).costs(8 * ms), blocked(0).costs(9 * ms)}, 1, []int{1}},
		{"none moving: the queue comes first", []View{blocked(0).costs(200 * ms), blocked(9).queued(1)}, 1, []int{0}},
		{"none moving: but of one that takes all at once", []View{blocked(0).costs(200 * ms).gulps(), blocked(9).queued(19).gulps()}, 1, []int{1}},
		{"none moving: unless there are many", []View{blocked(0).costs(200 * ms).gulps(), blocked(9).queued(21).gulps()}, 1, []int{0}},
		{"none moving: both are equal", []View{blocked(0).costs(200 * ms).gulps(), blocked(9).queued(20).gulps()}, 1, []int{0, 1}},
		{"none moving: a burst goes to all", []View{blocked(0).costs(9 * ms), blocked(9)}, perTick + 1, []int{0, 1}},
		{"none moving: a burst goes to those that are as good after it, if they take all at once", []View{blocked(0).costs(151 * ms).gulps(), blocked(9).gulps(), blocked(9).costs(150 * ms).gulps()}, 16, []int{1, 2}},
		{"none moving: and when it is smaller, to one", []View{blocked(9).gulps(), blocked(9).costs(150 * ms).gulps()}, 15, []int{0}},
		{"the rest never", []View{in(Down), in(Starting), in(Hung), in(Draining), in(Standby), in(Leaving), blocked(9).queued(50)}, 1000, []int{6}},
		{"the rest not even alone", []View{in(Down), in(Starting), in(Hung), in(Draining), in(Standby), in(Leaving)}, 0, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, slices.Compact(Choose(nil, c.members, c.burst))); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestShares has members that are to get more than others.
func TestShares(t *testing.T) {
	for _, c := range []struct {
		members []View
		burst   int
		want    []int // how often each is in the choice
	}{
		{[]View{idle(0), idle(0)}, 10, []int{1, 1}},
		{[]View{idle(0), idle(5), idle(5), idle(5)}, 10, []int{8, 3, 3, 3}},
		{[]View{idle(0), idle(5), idle(5), idle(5)}, 1000, []int{1, 1, 1, 1}},
		{[]View{idle(4), idle(5), idle(6)}, 1, []int{1, 0, 0}},
		{[]View{idle(32), idle(33), idle(34), idle(35)}, 1, []int{8, 6, 3, 0}},
		{[]View{idle(40), idle(0), idle(20)}, 30, []int{0, 8, 2}},
	} {
		got := make([]int, len(c.members))
		for _, i := range Choose(nil, c.members, c.burst) {
			got[i]++
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%v, burst %d (-want +got)\n%s", c.members, c.burst, diff)
		}
	}
}

func TestShelter(t *testing.T) {
	for _, c := range []struct {
		name    string
		members []View
		want    []int
	}{
		{"nobody", nil, nil},
		{"a worker comes", []View{in(Down), in(Starting), in(Hung), in(Draining), in(Standby)}, []int{0, 1}},
		{"the shorter queue", []View{in(Down).queued(5), in(Starting).queued(1)}, []int{1}},
		{"about equal queues", []View{in(Down).queued(3), in(Starting).queued(1)}, []int{1}},
		{"hung", []View{in(Hung), in(Draining), in(Standby), in(Leaving)}, []int{0}},
		{"reserve", []View{in(Draining), in(Standby), in(Leaving)}, []int{1}},
		{"those that go get nothing", []View{in(Draining), in(Leaving)}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, slices.Compact(Shelter(nil, c.members))); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

var anyView = rapid.Custom(func(t *rapid.T) View {
	return View{
		State:  rapid.SampledFrom([]State{Ready, Ready, Ready, Down, Starting, Hung, Draining, Standby, Leaving}).Draw(t, "state"),
		Wait:   rapid.SampledFrom([]Wait{Unknown, Idle, Busy}).Draw(t, "wait"),
		Queue:  rapid.SampledFrom([]int{0, 0, 1, 2, 100}).Draw(t, "queue"),
		Conns:  rapid.IntRange(-1, 40).Draw(t, "conns"),
		Asleep: rapid.Bool().Draw(t, "asleep"),
		Lag:    rapid.SampledFrom([]time.Duration{0, ms, 8 * ms, time.Second}).Draw(t, "lag"),
		Cost:   rapid.SampledFrom([]time.Duration{0, 5 * ms, 50 * ms, 300 * ms}).Draw(t, "cost"),
		Gulps:  rapid.Bool().Draw(t, "gulps"),
	}
})

func TestChooseProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members := rapid.SliceOfN(anyView, 0, 12).Draw(t, "members")
		burst := rapid.IntRange(0, 200).Draw(t, "burst")
		got := Choose(nil, members, burst)
		ready, free, running := 0, 0, 0
		for _, v := range members {
			if v.State == Ready {
				ready++
			}
			if v.free() {
				free++
			}
			if v.running() {
				running++
			}
		}
		if (len(got) > 0) != (ready > 0) {
			t.Fatalf("%d ready, chosen %v", ready, got)
		}
		if !slices.IsSorted(got) || len(got) > maxShare*len(members) {
			t.Fatalf("not ascending, or too many: %v", got)
		}
		for _, i := range got {
			v := members[i]
			switch {
			case v.State != Ready:
				t.Fatalf("member %d is %v", i, v.State)
			case free > 0 && !v.free() && !v.running():
				t.Fatalf("member %d is blocked or sleeps while others are free", i)
			case free == 0 && running > 0 && !v.moving():
				t.Fatalf("member %d is blocked while others get on", i)
			case free == 0 && running > 0 && burst <= perTick && !v.running():
				t.Fatalf("member %d sleeps while others run", i)
			}
		}
		// Nobody of the same kind as a chosen one, with no more connections and no longer queue, is left out.
		for i, v := range members {
			if slices.Contains(got, i) || v.State != Ready {
				continue
			}
			for _, j := range got {
				w := members[j]
				if v.free() == w.free() && v.moving() == w.moving() && v.running() == w.running() && v.Cost == w.Cost && v.Gulps == w.Gulps && v.Queue <= w.Queue && v.Conns == w.Conns {
					t.Fatalf("member %d is no worse than %d and left out of %v", i, j, got)
				}
			}
		}
		// A larger burst does not narrow the choice, as long as the free ones take it.
		if burst <= perTick*free {
			for _, i := range Choose(nil, members, burst-1) {
				if !slices.Contains(got, i) {
					t.Fatalf("member %d is chosen for a burst of %d and not for %d", i, burst-1, burst)
				}
			}
		}
	})
}

func TestServes(t *testing.T) {
	for _, c := range []struct {
		attached, choice []int
		few, many        bool
	}{
		{nil, nil, true, true},
		{nil, []int{0}, false, false},
		{[]int{0}, nil, false, false},
		{[]int{0, 1, 2, 3}, []int{0, 1, 2, 3}, true, true},
		{[]int{0, 1, 3}, []int{0, 1, 2, 3}, true, false}, // one has become free as well
		{[]int{0, 1}, []int{0, 1, 2, 3}, false, false},
		{[]int{0, 1, 2, 3}, []int{0, 1, 3}, false, false}, // one has begun to block
		{[]int{4}, []int{0, 1, 2, 3}, false, false},
		{[]int{0, 0, 0, 1}, []int{0, 0, 1}, true, true},
		{[]int{0, 0, 1}, []int{0, 1, 1}, false, false},
		{[]int{0, 0, 0, 0, 0, 1, 1, 1, 1, 1}, []int{0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2}, true, false},
	} {
		if few, many := serves(c.attached, c.choice, true), serves(c.attached, c.choice, false); few != c.few || many != c.many {
			t.Errorf("serves(%v, %v) = %v for few connections and %v for many", c.attached, c.choice, few, many)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.Custom(func(t *rapid.T) (l []int) {
			for i := range 12 {
				for range max(0, rapid.IntRange(-3, maxShare).Draw(t, "share")) {
					l = append(l, i)
				}
			}
			return l
		})
		attached, choice := list.Draw(t, "attached"), list.Draw(t, "choice")
		count := func(l []int, of int) (n float64) {
			for _, i := range l {
				if i == of {
					n++
				}
			}
			return n / float64(max(len(l), 1))
		}
		want := len(attached) == 0 == (len(choice) == 0)
		for _, i := range attached {
			want = want && count(attached, i) <= count(choice, i)*4/3+1e-9
		}
		few := rapid.Bool().Draw(t, "few")
		for _, i := range choice {
			want = want && (few || slices.Contains(attached, i))
		}
		if got := serves(attached, choice, few); got != want {
			t.Fatalf("serves is %v, want %v", got, want)
		}
		if !serves(choice, choice, few) {
			t.Fatal("a choice does not serve itself")
		}
	})
}

// TestConnectionsStayBalanced gives connections one by one to members that are busy at random, as far as the choice can know.
func TestConnectionsStayBalanced(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		workers := rapid.IntRange(2, 8).Draw(t, "workers")
		members := make([]View, workers)
		per := rapid.IntRange(16, 64).Draw(t, "connections per worker")
		busyPercent := rapid.IntRange(0, 95).Draw(t, "busy percent")
		for i := range members {
			members[i] = idle(0)
		}
		most := 0
		var choice []int
		for range per * workers {
			for i := range members {
				members[i].Wait = Idle
				if rapid.IntRange(0, 99).Draw(t, "p") < busyPercent {
					members[i].Wait = Busy
				}
			}
			if now := Choose(nil, members, 1); !serves(choice, now, true) {
				choice = now
			}
			i := rapid.SampledFrom(choice).Draw(t, "pick")
			members[i].Conns++
			most = max(most, members[i].Conns)
		}
		if ratio := float64(most) / float64(per); ratio > 1.25 {
			t.Fatalf("the busiest has %d, the mean is %d", most, per)
		}
	})
}

// TestPickStaysRightWhileMembersLeave closes the leaving members in any order and looks after each step who is where.
func TestPickStaysRightWhileMembersLeave(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members := rapid.SliceOfN(anyView, 1, 8).Draw(t, "members")
		var kernel Array
		var leaving []int
		stay, ready, steady := 0, 0, 0
		for i, v := range members {
			kernel.Listen(i)
			if v.State == Leaving {
				leaving = append(leaving, i)
			} else {
				stay++
			}
		}
		for i, v := range members {
			if v.State == Ready {
				ready++
				if i < stay {
					steady++
				}
			}
		}
		got := pick(nil, members, 5)
		for _, i := range got {
			if ready > 0 && members[i].State != Ready || members[i].State == Leaving || members[i].State == Draining {
				t.Fatalf("member %d is %v", i, members[i].State)
			}
		}
		for _, id := range rapid.Permutation(leaving).Draw(t, "order") {
			kernel.Remove(id)
			for _, i := range got {
				if steady > 0 && kernel.At(i) != i {
					t.Fatalf("index %d became member %d", i, kernel.At(i))
				}
			}
		}
	})
}

// TestEveryOutputIsALiveMember takes the whole way twice: what is known of the members, the choice, whether the program in place stays, the program, and what it
// answers to any packet.
func TestEveryOutputIsALiveMember(t *testing.T) {
	var b Builder
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "members")
		var attached []int
		for look := range 2 {
			members := rapid.SliceOfN(anyView, n, n).Draw(t, "members")
			if choice := pick(nil, members, rapid.IntRange(0, 100).Draw(t, "burst")); look == 0 || !serves(attached, choice, rapid.Bool().Draw(t, "few")) {
				attached = choice
			}
			ready, shelter := false, false
			for _, v := range members {
				ready = ready || v.State == Ready
				shelter = shelter || v.State != Leaving && v.State != Draining
			}
			prog := b.Program(Choice{Among: attached, Salt: rapid.Uint16().Draw(t, "salt")})
			for range 20 {
				v6 := rapid.Bool().Draw(t, "v6")
				got := interpret(t, prog, packet(v6, [4]byte{10, 0, 0, 1}, rapid.Uint16().Draw(t, "port"), rapid.IntRange(0, 10).Draw(t, "options")))
				switch {
				case got == noIndex && !shelter: // nobody is left; the kernel's hash decides
				case got >= uint32(n):
					t.Fatalf("index %d of %d members", got, n)
				case ready && members[got].State != Ready:
					t.Fatalf("member %d is %v while others are ready", got, members[got].State)
				case members[got].State == Leaving || members[got].State == Draining:
					t.Fatalf("member %d is %v", got, members[got].State)
				}
			}
		}
	})
}

func TestChooseDoesNotAllocate(t *testing.T) {
	members := []View{idle(2), busy(0), blocked(1).queued(3), unknown(2), in(Down)}
	dst := make([]int, 0, maxShare*len(members))
	if n := testing.AllocsPerRun(100, func() { dst = Choose(dst[:0], members, 3) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, n := range []int{4, 32, MaxMembers} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			members := make([]View, n)
			for i := range members {
				members[i] = idle(i % 7)
			}
			dst := make([]int, 0, maxShare*n)
			b.ReportAllocs()
			for b.Loop() {
				dst = Choose(dst[:0], members, 3)
			}
		})
	}
}
