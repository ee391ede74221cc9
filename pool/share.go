package pool

import "pgproxy/backend"

// Clients that share a connection by the statement: see backend.Conn.Join. Whoever
// needs one alone stands in the same line, and nobody joins while such a client is the
// first in it.

// maxSeats is how many connections are tried that look as if they could be joined.
const maxSeats = 4

// seatLocked returns a connection that looks as if somebody could join it, another one
// each time; nil if there is none.
func (p *Pool) seatLocked() *backend.Conn {
	n := len(p.out)
	for range n {
		p.seat++
		if p.seat >= n {
			p.seat = 0
		}
		c := p.out[p.seat]
		if c.Seats() > 0 && !p.retiringLocked(memberOf(c)) {
			return c
		}
	}
	return nil
}

// retiringLocked reports whether a connection is closed when it comes back.
func (p *Pool) retiringLocked(m *member) bool {
	return m == nil || p.closed || p.replacesLocked(m)
}

// Sharer is what a Sink must be whose Waiter has Share set.
type Sharer interface {
	// Wants returns the settings that a connection must have that it joins.
	Wants() *backend.Settings
}

// join makes sink one of those that share a connection. The mutex is not held.
func (p *Pool) join(c *backend.Conn, w *Waiter, sink backend.Sink) bool {
	if w.Primary && c.Standby() {
		return false
	}
	s, ok := sink.(Sharer)
	return ok && c.Join(sink, s.Wants())
}

// Room calls the oldest waiter to a connection that may be joined.
func (p *Pool) Room(c *backend.Conn) {
	if p.queued.Load() == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.first
	if w == nil || !w.Share || p.paused || p.fenced || c.Seats() == 0 {
		return
	}
	if m := memberOf(c); m == nil || m.state != stateLent || p.retiringLocked(m) {
		return
	}
	p.leaveLocked(w)
	w.ch <- result{room: c}
}
