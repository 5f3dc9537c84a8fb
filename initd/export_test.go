package initd

// RunFaulty is Run with a fault in the loop as soon as the channel is closed.
func RunFaulty(o Options, signals *Signals, fault <-chan struct{}) (int, error) {
	l, err := prepare(o, signals)
	if err != nil {
		return 0, err
	}
	go func() {
		<-fault
		l.reports <- func() { panic("made for the test") }
	}()
	return l.finish(), nil
}
