package pool

import (
	"errors"

	"pgproxy/backend"
)

var errReset = errors.New("DISCARD ALL after a client")

// Pin counts one more connection that session state pins to its client. It
// reports false if there are max_pinned already, unless forced.
func (p *Pool) Pin(forced bool) bool {
	for {
		n := p.pinned.Load()
		if !forced && n >= p.maxPinned.Load() {
			return false
		}
		if p.pinned.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Unpin counts one less.
func (p *Pool) Unpin() { p.pinned.Add(-1) }

// Reset cleans a connection that a client has left in a state that nobody knows,
// and takes it back. Set.Close waits for the goroutine that does it.
func (p *Pool) Reset(c *backend.Conn) {
	p.set.goes.Add(1)
	go func() {
		defer p.set.goes.Done()
		p.mu.Lock()
		timeout := p.limits.CheckTimeout
		p.mu.Unlock()
		if f := c.TakeFinding(); f != nil {
			p.set.found(p.Key, c, f)
		}
		if err := c.Clean(timeout); err != nil {
			p.Discard(c, errors.Join(errReset, err))
			return
		}
		p.Release(c)
	}()
}
