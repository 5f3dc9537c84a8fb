package initd

import (
	"testing"
	"time"
)

// A count that was read before another one and comes after it is no new kill.
func TestKillsAreCountedOnce(t *testing.T) {
	s := &sizer{}
	for _, kills := range []uint64{1, 3, 2, 3} {
		s.counted(time.Now(), kills)
	}
	if s.kills != 3 {
		t.Errorf("%d kills of 3", s.kills)
	}
}
