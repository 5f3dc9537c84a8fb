package rows

import (
	"context"
	"sync"
)

// TakeTogether measures all jobs at once. Where Measure calls Job.meet, each
// waits for the others: none is measured while another one still starts. done is
// called with every outcome as it comes, by one goroutine at a time.
func TakeTogether(ctx context.Context, e *Env, r *Row, jobs []Job, done func(i int, s Sample)) {
	all := newBarrier(len(jobs))
	var wg sync.WaitGroup
	var one sync.Mutex
	for i, j := range jobs {
		j.together = all
		wg.Go(func() {
			s := Take(ctx, e, r, j)
			all.leave()
			one.Lock()
			defer one.Unlock()
			done(i, s)
		})
	}
	wg.Wait()
}

// meet waits until all jobs that are measured at the same time have come here
// or have ended; a job that is measured alone never waits.
func (j Job) meet(ctx context.Context) error {
	if j.together == nil {
		return nil
	}
	return j.together.wait(ctx)
}

// barrier lets its members go on when the last of them has come.
type barrier struct {
	mu            sync.Mutex
	members, here int
	open          chan struct{}
}

func newBarrier(members int) *barrier {
	return &barrier{members: members, open: make(chan struct{})}
}

func (b *barrier) wait(ctx context.Context) error {
	b.mu.Lock()
	open := b.open
	b.here++
	b.look()
	b.mu.Unlock()
	select {
	case <-open:
		return nil
	case <-ctx.Done():
		// It is over for this one; leave lets the others go.
		b.mu.Lock()
		if open == b.open {
			b.here--
		}
		b.mu.Unlock()
		return context.Cause(ctx)
	}
}

// leave takes out a member that will not come again.
func (b *barrier) leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.members--
	b.look()
}

// look opens the barrier if all are here. The caller holds the lock.
func (b *barrier) look() {
	if b.here > 0 && b.here >= b.members {
		close(b.open)
		b.here, b.open = 0, make(chan struct{})
	}
}
