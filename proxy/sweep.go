package proxy

import (
	"context"
	"time"

	"pgproxy/wire"
)

// sweepInterval is how often sessions are looked after: the precision of their
// timeouts, and how long a client that left unseen may stay.
const sweepInterval = time.Second

// sweep enforces the timeouts of sessions and finds clients that have gone
// unseen. It ends with the server.
func (s *Server) sweep() {
	defer s.goes.Done()
	t := time.NewTicker(sweepInterval)
	defer t.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		s.asker.tidy(false)
		s.shadow.tidy(false)
		cfg := s.current.Load().Config
		for _, ses := range s.list() {
			if ses.welcomed.Load() {
				ses.inspect(cfg)
			} else {
				ses.inspectLogin(&cfg.Proxy)
			}
		}
	}
}

// busy reports whether the client has a server connection, or waits for one.
func (s *Session) busy() bool {
	if r := s.replica.Load(); r != nil {
		return r.busy()
	}
	if s.waiter.Waiting() || s.waiting.Load() != 0 || s.failing.Load() || s.inBlock.Load() {
		return true
	}
	c := s.current.Load()
	return c != nil && c.HeldBy(s)
}

var errShutdown = wire.Fatalf(wire.CodeAdminShutdown, "terminating connection due to administrator command")

// drainTick is how often a drain looks for clients that have come to rest, and
// drainBatch how many of them it sends away at once: those that come back are
// not to storm another proxy.
const (
	drainTick  = 20 * time.Millisecond
	drainBatch = 100
)

// Shutdown ends the server gently: no new clients, those that are idle are sent
// away, transactions may finish. When ctx ends the rest is cut, as Close does.
func (s *Server) Shutdown(ctx context.Context) error {
	return s.drain(ctx, func() bool {
		sent := 0
		for _, ses := range s.list() {
			if sent < drainBatch && !ses.busy() && ses.endReason() == nil {
				ses.end(errShutdown)
				sent++
			}
		}
		return s.clients.Load() == 0
	})
}

// ShutdownWhenEmpty ends the server when the last client has left by itself; the
// console's clients do not count. When ctx ends the rest is cut.
func (s *Server) ShutdownWhenEmpty(ctx context.Context) error {
	return s.drain(ctx, func() bool {
		for _, ses := range s.list() {
			if ses.loggedIn() {
				return false
			}
		}
		return true
	})
}

// drain stops listening, waits until over says so, and closes.
func (s *Server) drain(ctx context.Context, over func() bool) error {
	s.draining.Store(true)
	s.stopListening()
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

func (s *Server) stopListening() {
	s.mu.Lock()
	ls := s.listeners
	s.listeners = nil
	s.mu.Unlock()
	for _, l := range ls {
		_ = l.Close()
	}
}

// Close cuts every session and waits for all goroutines.
func (s *Server) Close() error {
	s.draining.Store(true)
	s.stopListening()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	for _, ses := range s.list() {
		ses.end(errShutdown)
	}
	s.goes.Wait()
	s.asker.close()
	s.shadow.tidy(true)
	return nil
}

// What clients hear that the console has cut; the texts are PgBouncer's.
var (
	errKilled       = wire.Fatalf(wire.CodeAdminShutdown, "database removed")
	errClientKilled = wire.Fatalf(wire.CodeAdminShutdown, "admin forced disconnect")
	errSuspend      = wire.Fatalf(wire.CodeProtocolViolation, "suspend_timeout")
)

// EndBusy ends all sessions that have a server connection: suspend_timeout is
// over.
func (s *Server) EndBusy() {
	for _, ses := range s.list() {
		if c := ses.current.Load(); c != nil && ses.welcomed.Load() && c.HeldBy(ses) {
			ses.end(errSuspend)
		}
	}
}

// Kill ends all sessions of a database, or all if it is "".
func (s *Server) Kill(database string) {
	for _, ses := range s.list() {
		if ses.loggedIn() && (database == "" || ses.database == database) {
			ses.end(errKilled)
		}
	}
}

// KillClient ends one session, by the number that SHOW CLIENTS gives as id.
func (s *Server) KillClient(id uint64) bool {
	for _, ses := range s.list() {
		if ses.id == id {
			ses.end(errClientKilled)
			return true
		}
	}
	return false
}
