package proxy

import (
	"cmp"
	"context"
	"slices"
	"time"

	"pgproxy/router"
)

// drainTick is how often a drain looks for clients that have come to rest.
const drainTick = 20 * time.Millisecond

// A client that has just come wants something: a drain leaves it alone until its
// first statement was answered, for drainGrace of silence, and lateLogin at most.
const (
	drainGrace = 5 * time.Second
	lateLogin  = 15 * time.Second
)

// Shutdown ends the server gently: no new clients, those that are idle are sent
// away, those that have been so for longest first and drain_rate a second,
// transactions may finish. When ctx ends the rest is cut, as Close does.
func (s *Server) Shutdown(ctx context.Context) error {
	pace := pace{last: time.Now()}
	return s.drain(ctx, func() bool {
		var idle []*Session
		for _, ses := range s.list() {
			if !ses.busy() && !ses.justCame() && ses.endReason() == nil {
				idle = append(idle, ses)
			}
		}
		slices.SortStableFunc(idle, func(a, b *Session) int { return cmp.Compare(a.lastSeen.Load(), b.lastSeen.Load()) })
		n := pace.allows(s.current.Load().Config.Proxy.DrainRate, len(idle), time.Now())
		for _, ses := range idle {
			if n == 0 {
				break
			}
			if !ses.hasSent() {
				ses.sendAway()
				n--
			}
		}
		return s.clients.Load() == 0
	})
}

// ShutdownWhenEmpty ends the server when the last client has left by itself; the
// console's clients do not count. When ctx ends the rest is cut.
func (s *Server) ShutdownWhenEmpty(ctx context.Context) error {
	return s.drain(ctx, func() bool {
		return !slices.ContainsFunc(s.list(), func(ses *Session) bool { return ses.loggedIn() || ses.justCame() })
	})
}

// drain says that it drains, goes on for drain_delay, so that load balancers
// notice, stops listening, waits until over says so, and closes.
func (s *Server) drain(ctx context.Context, over func() bool) error {
	s.draining.Store(true)
	if d := s.current.Load().Config.Proxy.DrainDelay; d > 0 && len(s.Addrs()) > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return s.Close()
		}
	}
	s.steer(ctx)
	// A peer's cancel requests come through the Unix socket until the last client has
	// gone.
	s.stopListening(func(l Socket) bool { return s.peerID == 0 || l.Addr().Network() != "unix" })
	t := time.NewTicker(drainTick)
	defer t.Stop()
	for !over() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return s.Close()
		}
	}
	return s.Close()
}

// stopListening closes the listeners that it is told to. Who comes through the
// others, which are Unix sockets, is no client any more.
func (s *Server) stopListening(which func(Socket) bool) {
	s.mu.Lock()
	var ls, rest []Socket
	for _, l := range s.listeners {
		if which(l) {
			ls = append(ls, l)
		} else {
			rest = append(rest, l)
		}
	}
	s.listeners = rest
	s.refusing = len(rest) > 0
	s.mu.Unlock()
	for _, l := range ls {
		_ = l.Close()
	}
}

// Close cuts every session and waits for all goroutines.
func (s *Server) Close() error {
	s.draining.Store(true)
	s.stopListening(func(Socket) bool { return true })
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	for _, ses := range s.list() {
		ses.end(errShutdown)
	}
	s.goes.Wait()
	s.asker.close()
	s.shadow.close()
	return nil
}

// justCame reports whether the client is about to log in, or to send its first
// statement.
func (s *Session) justCame() bool {
	switch age := time.Since(s.since); {
	case !s.welcomed.Load():
		return age < drainGrace
	case s.answered.Load() != 0 || age > lateLogin:
		return false
	}
	return time.Duration(router.Nanotime()-s.lastSeen.Load()) < drainGrace
}

// sendAway asks the session to leave if it is at rest. Where it has logged in its own
// goroutine decides: who has said BEGIN by then is not at rest any more.
func (s *Session) sendAway() {
	if !s.welcomed.Load() {
		s.end(errShutdown)
		return
	}
	s.sentAway.Store(true)
	s.io.Nudge()
}

// leavesNow reports whether the session was sent away and is at rest. It is called by the
// session's goroutine.
func (s *Session) leavesNow() bool {
	return s.sentAway.Swap(false) && !s.busy() && !s.open && !s.skipping && s.rest == 0 && !s.io.Unread()
}

// hasSent reports whether the client has sent something that nobody has read yet.
func (s *Session) hasSent() bool { return s.welcomed.Load() && s.io.Unread() }

// pace spreads out how many clients are sent away.
type pace struct {
	last time.Time
	due  float64
}

// allows returns how many of n may go now, at a rate a second; 0 is no limit.
func (p *pace) allows(rate, n int, now time.Time) int {
	if rate == 0 {
		return n
	}
	p.due = min(p.due+float64(rate)*now.Sub(p.last).Seconds(), 1+float64(rate)/10)
	p.last = now
	n = min(n, int(p.due))
	p.due -= float64(n)
	return n
}
