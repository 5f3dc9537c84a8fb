package initd

import (
	"net"
	"slices"
	"strconv"
	"testing"
	"time"

	"skep/initd/supervise"
	"skep/port"
	"skep/port/steer"
)

// A seat's sockets are closed when the poller has let go of it in every group,
// and at once when it is a member of none.
func TestLeave(t *testing.T) {
	addr := func() port.Addr {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		_, a, err := port.ParseAddr("127.0.0.1:" + strconv.Itoa(ln.Addr().(*net.TCPAddr).Port))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	set, err := port.NewSet(port.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer set.CloseAll()
	poller, err := steer.NewPoller(steer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer poller.Close()
	l := &loop{ports: set, sup: supervise.New(supervise.Policy{Workers: 2, Serve: true})}
	l.steer = newSteering(l)
	l.steer.poller = poller
	const listening, bound = 0, 1
	for range 2 {
		a := addr()
		for _, seat := range []int{listening, bound} {
			h, err := set.Hold(seat, a)
			if err == nil && seat == listening {
				err = set.Listen(h)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	l.steer.leave(bound, set.Held(bound)...)
	if n := len(set.Held(bound)); n != 0 {
		t.Errorf("%d sockets that nobody is told of are still held", n)
	}
	l.steer.leave(listening, set.Held(listening)...)
	if m := l.steer.membership(); len(m.Groups) != 2 || m.Groups[0].Members[0].State != steer.Leaving || m.Groups[1].Members[0].State != steer.Leaving {
		t.Errorf("the poller is told %+v", m)
	}
	for left, want := range []int{2, 1, 0} { // Left events so far, and sockets held then
		if n := len(set.Held(listening)); n != want {
			t.Errorf("after %d of 2 groups: %d sockets are held, want %d", left, n, want)
		}
		l.steer.event(steer.Event{Kind: steer.Left, Group: left, Seat: listening})
	}
	if len(l.steer.leaving) != 0 {
		t.Errorf("still leaving: %v", l.steer.leaving)
	}
}

// A spare serves as soon as the poller has seen that a worker is dying.
func TestDyingIsHeeded(t *testing.T) {
	sup := supervise.New(supervise.Policy{Workers: 2, Standby: 1, Serve: true, StartParallel: 3})
	now := time.Now()
	sup.Step(now, supervise.Begin{})
	for seat := range 3 {
		sup.Step(now, supervise.Started{Seat: seat, PID: 100 + seat})
	}
	for seat := range 3 {
		sup.Step(now, supervise.BecameReady{PID: 100 + seat})
	}
	l := &loop{sup: sup}
	l.steer = newSteering(l)
	states := func() (s []supervise.State) {
		for _, seat := range sup.Seats() {
			s = append(s, seat.State)
		}
		return s
	}
	if got := states(); !slices.Equal(got, []supervise.State{supervise.Ready, supervise.Ready, supervise.Standby}) {
		t.Fatalf("the seats are %v", got)
	}
	l.steer.event(steer.Event{Kind: steer.Dying, Seat: 0, PID: 100})
	if got := states(); !slices.Equal(got, []supervise.State{supervise.Stopping, supervise.Ready, supervise.Ready}) {
		t.Errorf("with a dying worker the seats are %v", got)
	}
}
