package pool

import (
	"context"

	"pgproxy/backend"
)

// Dial opens a connection with the pool's login that is never lent, for the use
// of sink alone. It stands beside the pool, whose size it does not count towards,
// but the limits that pools share hold for it: it waits for room, and while the
// pool is paused, until ctx ends. It ends with the pool, and when the pool's
// connections are renewed.
func (p *Pool) Dial(ctx context.Context, sink backend.Sink) (*backend.Conn, error) {
	if err := p.beside.take(ctx, p.lends); err != nil {
		return nil, err
	}
	p.mu.Lock()
	l, d, generation := p.login, p.dialer, p.generation
	p.mu.Unlock()
	c, err := d.Dial(ctx, l, apart{p})
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.beside.give()
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

// lends reports whether the pool opens connections; an error if it never will.
func (p *Pool) lends() (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false, ErrClosed
	}
	return !p.paused, nil
}

// apart owns the connections of Dial.
type apart struct{ p *Pool }

// Release does not happen to a connection that is pinned.
func (a apart) Release(c *backend.Conn) { a.p.Forgo(c) }

// Reset does not happen either.
func (a apart) Reset(c *backend.Conn) { a.p.Forgo(c) }

// Dying is told to the pool: what happens to one connection may happen to all.
func (a apart) Dying() { a.p.Dying() }

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
		p.closeStreamLocked(st, true)
	}
	p.apart, p.streams = nil, nil
}

// endLocked closes a connection of Dial, outside of the mutex.
func (p *Pool) endLocked(c *backend.Conn) {
	p.beside.leave()
	p.set.goes.Add(1)
	go func() {
		defer p.set.goes.Done()
		c.Kill()
		c.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		n := c.Counters()
		p.gone.Merge(&n)
		p.beside.free()
	}()
}

// Replicate opens a connection in the replication protocol with the pool's login
// and the parameters given. Of all limits only max_host_connections holds for it.
// It waits for room, and while the pool is paused, until ctx ends. It ends with
// Leave, with the pool, and when the pool's connections are renewed.
func (p *Pool) Replicate(ctx context.Context, params map[string]string) (*backend.Stream, error) {
	if err := p.sent.take(ctx, p.lends); err != nil {
		return nil, err
	}
	p.mu.Lock()
	l, d, generation := p.login, p.dialer, p.generation
	p.mu.Unlock()
	st, err := d.Replicate(ctx, l, params)
	if err != nil {
		p.sent.give()
		return nil, err
	}
	return p.keep(st, generation)
}

// keep takes a stream into account.
func (p *Pool) keep(st *backend.Stream, generation int) (*backend.Stream, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.opened++
	if p.closed || p.paused || generation != p.generation {
		p.closeStreamLocked(st, true)
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
	counted := p.streams[st]
	delete(p.streams, st)
	p.used = p.set.now()
	p.closeStreamLocked(st, counted)
}

// closeStreamLocked closes a stream outside of the mutex, for the second time if
// need be: counted says that it is the first.
func (p *Pool) closeStreamLocked(st *backend.Stream, counted bool) {
	if counted {
		p.sent.leave()
	}
	p.set.goes.Add(1)
	go func() {
		defer p.set.goes.Done()
		_ = st.Close()
		if counted {
			p.sent.free()
		}
	}()
}

// Served counts for nothing.
func (apart) Served(int) {}

// Room is never called: nobody joins them.
func (apart) Room(*backend.Conn) {}
