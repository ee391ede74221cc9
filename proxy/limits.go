package proxy

import (
	"errors"
	"io"
	"slices"
	"time"

	"pgproxy/config"
	"pgproxy/netio"
	"pgproxy/router"
	"pgproxy/wire"
)

// What a client may not exceed: the number of clients of its database and user,
// and times. The texts and the SQLSTATE are PgBouncer's.

// timeouts are those of one session; 0 is none.
type timeouts struct{ query, idleTransaction, transaction, clientIdle time.Duration }

// timeoutsOf are those of a user: its own, or those of all.
func timeoutsOf(cfg *config.Config, user string) timeouts {
	p := &cfg.Proxy
	t := timeouts{p.QueryTimeout, p.IdleTransactionTimeout, p.TransactionTimeout, p.ClientIdleTimeout}
	if u := cfg.Users[user]; u != nil {
		for _, x := range []struct {
			to  *time.Duration
			own time.Duration
		}{
			{&t.query, u.QueryTimeout},
			{&t.idleTransaction, u.IdleTransactionTimeout},
			{&t.transaction, u.TransactionTimeout},
			{&t.clientIdle, u.ClientIdleTimeout},
		} {
			if x.own > 0 {
				*x.to = x.own
			}
		}
	}
	return t
}

// inspect looks after one session.
func (s *Session) inspect(cfg *config.Config) {
	if s.io.Probe() || s.waiter.Waiting() && s.io.Ended() {
		s.end(io.EOF)
		return
	}
	if e := s.ears.Load(); e != nil {
		e.prod()
	}
	t := timeoutsOf(cfg, s.user)
	c := s.current.Load()
	lent := c != nil && c.HeldBy(s)
	if s.silent(cfg.Proxy.TCPUserTimeout, !lent && !s.queued()) {
		s.end(errSilent)
		return
	}
	if !lent {
		switch {
		case s.queued():
			s.inspectWait(cfg, t)
		case s.inBlock.Load():
			if t.idleTransaction > 0 && s.quietFor() > t.idleTransaction {
				s.end(timeoutError("idle transaction timeout"))
			} else if t.transaction > 0 && s.quietFor() > t.transaction {
				s.end(timeoutError("transaction timeout"))
			}
		case t.clientIdle > 0 && s.quietFor() > t.clientIdle:
			s.end(timeoutError("client_idle_timeout"))
		}
		return
	}
	if t == (timeouts{}) {
		return
	}
	switch i := c.Info(); {
	case i.Holder != s:
	case t.query > 0 && i.QueryFor > t.query:
		s.end(timeoutError("query timeout"))
	case t.idleTransaction > 0 && i.XactIdle && s.quietFor() > t.idleTransaction:
		s.end(timeoutError("idle transaction timeout"))
	case t.transaction > 0 && i.XactFor > t.transaction:
		s.end(timeoutError("transaction timeout"))
	case t.clientIdle > 0 && i.Owed == 0 && i.Status == wire.TxIdle && s.quietFor() > t.clientIdle: // of a connection that stays
		s.end(timeoutError("client_idle_timeout"))
	}
}

// errSilent ends a session in the middle of an answer. Keepalive probes go out only
// where nothing else is to be acknowledged.
var errSilent = errors.New("the client's machine does not answer")

// silent reports whether a client's machine is gone in the middle of an answer, for
// longer than d. A client at rest is looked at only a few times behind its last answer.
func (s *Session) silent(d time.Duration, idle bool) bool {
	quiet := time.Duration(router.Nanotime() - max(s.lastSeen.Load(), s.answered.Load()))
	return d > 0 && s.quietFor() > d && (!idle || quiet > 2*d && quiet < 2*d+3*sweepInterval) && netio.Silent(s.nc, d)
}

// inspectLogin looks after a session that has not logged in. What it waits for
// from its client has a deadline of its own; a server may be waited for as well.
func (s *Session) inspectLogin(p *config.Proxy) {
	if p.ClientLoginTimeout > 0 && s.queued() && time.Since(s.since) > p.ClientLoginTimeout {
		s.end(timeoutError("client_login_timeout (server down)"))
	}
}

// timeoutError is what a client hears of a timeout.
func timeoutError(text string) error { return wire.Fatalf(wire.CodeProtocolViolation, "%s", text) }

// quietFor returns how long ago the client last sent something.
func (s *Session) quietFor() time.Duration {
	return time.Duration(router.Nanotime() - s.lastSeen.Load())
}

// queued reports whether the client waits for a server connection.
func (s *Session) queued() bool { return s.waiter.Waiting() || s.waiting.Load() != 0 }

// inspectWait looks after a client that waits. The end of its wait is the pool's
// affair.
func (s *Session) inspectWait(cfg *config.Config, t timeouts) {
	began := s.lastSeen.Load() // it sends nothing while it waits
	switch d := cfg.Proxy.QueryWaitNotify; {
	case t.query > 0 && s.quietFor() > t.query:
		s.end(timeoutError("query_timeout"))
	case d > 0 && s.quietFor() > d && s.noticed.Swap(began) != began:
		s.srv.goes.Add(1)
		go func() { // ends with the write, which the session's end bounds
			defer s.srv.goes.Done()
			s.noticeWait()
		}()
	}
}

// waitNotice is query_wait_notify's.
var waitNotice = func() *wire.Error {
	n := wire.Errorf("00000", "No server connection available in postgres backend, client being queued")
	n.Severity = wire.SeverityNotice
	return n
}()

// noticeWait tells a client that it waits. As long as it does no server writes to
// it, and one that begins to needs wmu.
func (s *Session) noticeWait() {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if s.queued() && s.endReason() == nil {
		_ = s.Reply(waitNotice.AppendNotice(nil))
	}
}

// counts are the clients by name.
type counts map[string]int

func (c counts) add(name string, n int) {
	if c[name] += n; c[name] == 0 {
		delete(c, name)
	}
}

// admit counts a client that has logged in, unless its database or user has as
// many as it may. The console's clients are not counted.
func (s *Server) admit(ses *Session, cfg *config.Config) error {
	if slices.Contains(ConsoleNames, ses.database) {
		return nil
	}
	db, ok := cfg.Database(ses.database)
	if !ok {
		return nil // which is refused next
	}
	most := cfg.Proxy.MaxUserClientConnections
	if u := cfg.Users[ses.user]; u != nil && u.MaxUserClientConnections > 0 {
		most = u.MaxUserClientConnections
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case db.MaxDBClientConnections > 0 && s.byDatabase[ses.database] >= db.MaxDBClientConnections:
		return wire.Fatalf(wire.CodeTooManyConnections, "client connections exceeded (max_db_client_connections)")
	case most > 0 && s.byUser[ses.user] >= most:
		return wire.Fatalf(wire.CodeTooManyConnections, "client connections exceeded (max_user_client_connections)")
	}
	ses.admitted = true
	s.byDatabase.add(ses.database, 1)
	s.byUser.add(ses.user, 1)
	return nil
}
