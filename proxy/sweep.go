package proxy

import (
	"time"

	"pgproxy/wire"
)

// sweepInterval is how often sessions are looked after: the precision of their
// timeouts, and how long a client that left unseen may stay.
const sweepInterval = time.Second

// unsteerSweeps is how often what a process on the same port has left is taken away.
const unsteerSweeps = 10

// sweep enforces the timeouts of sessions and finds clients that have gone
// unseen. It ends with the server.
func (s *Server) sweep() {
	defer s.goes.Done()
	t := time.NewTicker(sweepInterval)
	defer t.Stop()
	for n := 1; ; n++ {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		if n%unsteerSweeps == 0 {
			s.unsteerAll()
		}
		if dropped := s.failed.renew(); dropped > 0 {
			s.log.Warn("logins have failed that are not logged one by one", "count", dropped)
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
