package pool

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"pgproxy/backend"
)

// What the monitor tells pools of their servers. An entry is the name of a
// database in the configuration, "*" for all that fall to the wildcard.

// wariness is for how long after the death of a connection the others of its pool
// are in doubt: a server that ends takes all of them along, one after the other.
const wariness = 2 * time.Second

var errUnread = errors.New("the server has said something, or ended the connection")

// place is a server of an entry.
type place struct{ entry, server string }

// at returns the pools of a server.
func (s *Set) at(entry, server string) []*Pool {
	var out []*Pool
	for _, p := range s.list() {
		p.mu.Lock()
		ours := p.entry == entry
		p.mu.Unlock()
		if ours && p.Key.Server == server {
			out = append(out, p)
		}
	}
	return out
}

// Fence shuts a server: its connections are cut, also lent ones, and none is lent
// before Admit. When it returns nothing of a client goes there any more.
func (s *Set) Fence(entry, server string) {
	s.mu.Lock()
	s.fenced[place{entry, server}] = true
	s.mu.Unlock()
	for _, p := range s.at(entry, server) {
		p.mu.Lock()
		p.fenced = true
		p.moveLocked()
		var cut []*backend.Conn
		for c, m := range p.all {
			if m.state == stateClosing {
				continue
			}
			if m.state == stateLent {
				p.unlendLocked(m)
			}
			cut = append(cut, c)
		}
		p.idle = nil
		p.generation++
		p.mu.Unlock()
		for _, c := range cut {
			c.Sever(backend.ErrFenced)
		}
		p.mu.Lock()
		for _, c := range cut {
			if m := p.all[c]; m != nil && m.state != stateClosing {
				p.closeLocked(c, m)
			}
		}
		p.mu.Unlock()
	}
}

// Admit opens a server that was fenced or down. Those who wait for it are served
// at once, whatever the last login has come to.
func (s *Set) Admit(entry, server string) {
	s.mu.Lock()
	delete(s.fenced, place{entry, server})
	s.mu.Unlock()
	for _, p := range s.at(entry, server) {
		p.mu.Lock()
		p.fenced = false
		p.retryAt = 0
		p.growLocked()
		p.mu.Unlock()
	}
}

// Leave is told that a server is down: who waits for it chooses again, and its
// connections are replaced when they come free.
func (s *Set) Leave(entry, server string) {
	for _, p := range s.at(entry, server) {
		p.mu.Lock()
		p.moveLocked()
		p.renewLocked()
		p.mu.Unlock()
	}
}

// Stay is told which addresses a server's name has. Connections to others are closed
// when they come free or, with cut, at once.
func (s *Set) Stay(entry, server string, addrs []string, cut bool) {
	for _, p := range s.at(entry, server) {
		p.mu.Lock()
		var gone []*backend.Conn
		for c, m := range p.all {
			switch {
			case m.state == stateClosing || slices.Contains(addrs, c.RemoteHost()):
			case m.state == stateIdle:
				p.idle = slices.DeleteFunc(p.idle, func(i *backend.Conn) bool { return i == c })
				p.closeLocked(c, m)
			case cut:
				gone = append(gone, c)
			default:
				m.retire = true
			}
		}
		p.mu.Unlock()
		for _, c := range gone {
			c.Sever(backend.ErrFenced)
			p.Discard(c, backend.ErrFenced)
		}
	}
}

// moveLocked sends those who wait to another server.
func (p *Pool) moveLocked() {
	for w := p.first; w != nil; w = p.first {
		p.leaveLocked(w)
		w.ch <- result{err: ErrMoved}
	}
}

// Busy counts the connections to a server, over all databases, that are in a
// transaction or at work.
func (s *Set) Busy(server string) (n int) {
	for _, p := range s.list() {
		if p.Key.Server != server {
			continue
		}
		_, list := p.stats()
		for _, i := range list {
			if i.Active && (i.XactFor > 0 || i.Owed > 0) {
				n++
			}
		}
	}
	return n
}

// Drain waits until nothing is under way at a server, or ctx ends, and returns how
// many connections still are.
func (s *Set) Drain(ctx context.Context, server string) int {
	t := time.NewTicker(drainTick)
	defer t.Stop()
	for {
		n := s.Busy(server)
		if n == 0 || ctx.Err() != nil {
			return n
		}
		select {
		case <-t.C:
		case <-ctx.Done():
		}
	}
}

// drainTick is how often Drain looks.
const drainTick = 10 * time.Millisecond

// Dying makes the pool wary of its other connections.
func (p *Pool) Dying() { p.wary.Store(p.set.now()) }

// doubtful reports whether a connection that is about to be lent may be about to
// end, as another one of its pool has: it has done nothing for anybody since.
func (p *Pool) doubtful(c *backend.Conn) bool {
	since := p.wary.Load()
	if p.set.now()-since > int64(wariness) {
		p.wary.CompareAndSwap(since, 0)
		return false
	}
	return c.LentAt() <= since
}

// ask has a connection that is in doubt show that it is alive.
func (p *Pool) ask(c *backend.Conn) error {
	if c.Unread() {
		return errUnread
	}
	return c.Exec("", p.checkTimeout())
}

// maxBackOff bounds how often the pause after failed logins doubles.
const maxBackOff = 3

// backOff is the pause after a number of failed logins in a row. From the second
// on it is jittered upwards, so that pools and proxies drift apart.
func backOff(least time.Duration, failures int) time.Duration {
	if failures <= 1 {
		return least
	}
	d := least << min(failures-1, maxBackOff)
	return d + time.Duration(rand.Float64()*float64(d)/10)
}
