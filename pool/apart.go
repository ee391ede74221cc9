package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pgproxy/backend"
)

// ErrNoRoom is returned by Dial when max_db_connections or max_user_connections
// leave no room.
var ErrNoRoom = errors.New("max_db_connections or max_user_connections is reached")

// roomTick is how often Dial looks for room.
const roomTick = 20 * time.Millisecond

// Dial opens a connection with the pool's login that is never lent, for the use
// of sink alone. It stands beside the pool, whose size it does not count towards,
// but the limits that pools share hold for it: it waits for room, and while the
// pool is paused, until ctx ends. It ends with the pool, and when the pool's
// connections are renewed.
func (p *Pool) Dial(ctx context.Context, sink backend.Sink) (*backend.Conn, error) {
	if err := p.takeApart(ctx); err != nil {
		return nil, err
	}
	p.mu.Lock()
	l, d, generation := p.login, p.dialer, p.generation
	p.mu.Unlock()
	c, err := d.Dial(ctx, l, apart{p})
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.set.caps.give(p)
		return nil, err
	}
	p.opened++
	if err := c.Lend(sink, 0, 0); err != nil {
		p.endLocked(c)
		return nil, err
	}
	if p.apart == nil {
		p.apart = make(map[*backend.Conn]bool)
	}
	p.apart[c] = true
	if p.closed || p.paused || generation != p.generation {
		p.endApartLocked()
		return nil, ErrClosed
	}
	if err := c.Send(&backend.Parcel{Pin: backend.PinApart}); err != nil {
		delete(p.apart, c)
		p.endLocked(c)
		return nil, err
	}
	return c, nil
}

// takeApart waits until one more connection is allowed, and counts it.
func (p *Pool) takeApart(ctx context.Context) error {
	t := time.NewTicker(roomTick)
	defer t.Stop()
	for {
		p.mu.Lock()
		closed, paused := p.closed, p.paused
		ok := !closed && !paused && p.set.caps.take(p)
		var want *starving
		if !ok && !closed && !paused {
			want = p.demandLocked()
			if len(p.idle) > 0 && p.first == nil {
				c := p.idle[0]
				p.idle = append(p.idle[:0], p.idle[1:]...)
				p.closeLocked(c, p.all[c])
				want = nil
			}
		}
		p.mu.Unlock()
		switch {
		case closed:
			return ErrClosed
		case ok:
			return nil
		case want != nil:
			p.set.makeRoom(want)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			if want != nil {
				return fmt.Errorf("%w: %w", ErrNoRoom, ctx.Err())
			}
			return ctx.Err()
		}
	}
}

// apart owns the connections of Dial.
type apart struct{ p *Pool }

// Release does not happen to a connection that is pinned.
func (a apart) Release(c *backend.Conn) { a.p.Forgo(c) }

// Reset does not happen either.
func (a apart) Reset(c *backend.Conn) { a.p.Forgo(c) }

// Pin counts nothing: such connections are no client's.
func (a apart) Pin(bool) bool { return true }

// Unpin counts nothing.
func (a apart) Unpin() {}

// Discard counts out a connection that has ended.
func (a apart) Discard(c *backend.Conn, _ error) { a.p.Forgo(c) }

// Forgo closes a connection of Dial that is not needed any more.
func (p *Pool) Forgo(c *backend.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.apart[c] {
		delete(p.apart, c)
		p.endLocked(c)
	}
}

// endApartLocked closes every connection of Dial and Replicate.
func (p *Pool) endApartLocked() {
	for c := range p.apart {
		p.endLocked(c)
	}
	for st := range p.streams {
		p.closeStreamLocked(st)
	}
	p.apart, p.streams = nil, nil
}

// endLocked closes a connection of Dial, outside of the mutex.
func (p *Pool) endLocked(c *backend.Conn) {
	p.set.goes.Add(1)
	go func() {
		defer p.set.goes.Done()
		c.Kill()
		c.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		n := c.Counters()
		p.gone.Merge(&n)
		p.set.caps.give(p)
		p.growLocked()
	}()
}

// Replicate opens a connection in the replication protocol with the pool's login
// and the parameters given. It counts towards no limit of the pool's, as it does
// not count towards the server's max_connections. While the pool is paused it
// waits until ctx ends. It ends with Leave, with the pool, and when the pool's
// connections are renewed.
func (p *Pool) Replicate(ctx context.Context, params map[string]string) (*backend.Stream, error) {
	t := time.NewTicker(roomTick)
	defer t.Stop()
	for {
		p.mu.Lock()
		l, d, generation, closed, paused := p.login, p.dialer, p.generation, p.closed, p.paused
		p.mu.Unlock()
		if closed {
			return nil, ErrClosed
		}
		if !paused {
			st, err := d.Replicate(ctx, l, params)
			if err != nil {
				return nil, err
			}
			return p.keep(st, generation)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// keep takes a stream into account.
func (p *Pool) keep(st *backend.Stream, generation int) (*backend.Stream, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.opened++
	if p.closed || p.paused || generation != p.generation {
		p.closeStreamLocked(st)
		return nil, ErrClosed
	}
	if p.streams == nil {
		p.streams = make(map[*backend.Stream]bool)
	}
	p.streams[st] = true
	return st, nil
}

// Leave closes a connection of Replicate.
func (p *Pool) Leave(st *backend.Stream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.streams, st)
	p.used = p.set.now()
	p.closeStreamLocked(st)
}

// closeStreamLocked closes a stream outside of the mutex, for the second time if
// need be.
func (p *Pool) closeStreamLocked(st *backend.Stream) {
	p.set.goes.Add(1)
	go func() {
		defer p.set.goes.Done()
		_ = st.Close()
	}()
}
