package proxy

import (
	"context"
	"io"
	"time"

	"pgproxy/config"
	"pgproxy/router"
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
		p := &s.current.Load().Config.Proxy
		for _, ses := range s.list() {
			if ses.welcomed.Load() {
				ses.inspect(p)
			}
		}
	}
}

// inspect looks after one session.
func (s *Session) inspect(p *config.Proxy) {
	if s.io.Probe() || s.waiter.Waiting() && s.io.Ended() {
		s.end(io.EOF)
		return
	}
	c := s.current.Load()
	if c != nil {
		i := c.Info()
		if i.Holder == s {
			switch {
			case p.QueryTimeout > 0 && i.QueryFor > p.QueryTimeout:
				s.end(wire.Fatalf(wire.CodeQueryCanceled, "query_timeout"))
			case p.IdleTransactionTimeout > 0 && i.XactIdle && s.quietFor() > p.IdleTransactionTimeout:
				s.end(wire.Fatalf(wire.CodeIdleInTransaction, "idle_transaction_timeout"))
			}
			return
		}
	}
	if p.ClientIdleTimeout > 0 && !s.waiter.Waiting() && s.quietFor() > p.ClientIdleTimeout {
		s.end(wire.Fatalf(wire.CodeAdminShutdown, "client_idle_timeout"))
	}
}

// quietFor returns how long ago the client last sent something.
func (s *Session) quietFor() time.Duration {
	return time.Duration(router.Nanotime() - s.lastSeen.Load())
}

// busy reports whether the client has a server connection, or waits for one.
func (s *Session) busy() bool {
	if s.waiter.Waiting() || s.waiting.Load() != 0 {
		return true
	}
	c := s.current.Load()
	return c != nil && c.Info().Holder == s
}

var errShutdown = wire.Fatalf(wire.CodeAdminShutdown, "terminating connection due to administrator command")

// Shutdown ends the server gently: no new clients, those that are idle are sent
// away, transactions may finish. When ctx ends the rest is cut, as Close does.
func (s *Server) Shutdown(ctx context.Context) error {
	s.draining.Store(true)
	s.stopListening()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for s.clients.Load() > 0 {
		for _, ses := range s.list() {
			if !ses.busy() {
				ses.end(errShutdown)
			}
		}
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
	return nil
}

// Kill ends all sessions of a database, or all if it is "".
func (s *Server) Kill(database string) {
	for _, ses := range s.list() {
		if ses.welcomed.Load() && (database == "" || ses.database == database) {
			ses.end(errShutdown)
		}
	}
}

// KillClient ends one session, by the number that SHOW CLIENTS gives as id.
func (s *Server) KillClient(id uint64) bool {
	for _, ses := range s.list() {
		if ses.id == id {
			ses.end(errShutdown)
			return true
		}
	}
	return false
}
