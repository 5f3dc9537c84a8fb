package initd

import "skep/internal/signals"

// RunFaulty is Run with a fault as soon as the channel is closed: in the loop, or
// in what it has others do.
func RunFaulty(o Options, taken *signals.Source, fault <-chan struct{}, elsewhere bool) (int, error) {
	l, err := prepare(o, taken)
	if err != nil {
		return 0, err
	}
	l.background(func() {
		<-fault
		if elsewhere {
			panic("made for the test")
		}
		l.reports <- func() { panic("made for the test") }
	})
	return l.finish(), nil
}
