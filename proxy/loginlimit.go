package proxy

import (
	"net"
	"net/netip"
	"time"

	"pgproxy/auth"
	"pgproxy/wire"
)

// How auth_failure_limit is applied: before the exchange begins, and once more for
// each password or proof that has come, before anything is computed of it, as many
// logins may have begun at once.

// errGuessing is what a client hears that may not try for now.
var errGuessing = wire.Fatalf(wire.CodeInvalidAuthorization, "too many failed logins").WithHint("Try again later.")

// loginAddr is where the client comes from; not valid for Unix sockets.
func (s *Session) loginAddr() netip.Addr {
	if tcp, ok := s.origin.Load().remote.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr()
	}
	return netip.Addr{}
}

// mayTry decides whether the client may try to log in, and delays it where need be.
func (c *loginConn) mayTry() error {
	switch c.s.srv.guessing.Check(c.limit, c.s.loginAddr(), c.s.user) {
	case auth.Refused:
		return c.refuse()
	case auth.Delayed:
		t := time.NewTimer(auth.LoginDelay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-c.s.srv.ctx.Done():
			return c.s.endReason()
		}
	}
	return nil
}

// stillMayTry is for a password that has come.
func (c *loginConn) stillMayTry() error {
	if c.s.srv.guessing.Check(c.limit, c.s.loginAddr(), c.s.user) == auth.Refused {
		return c.refuse()
	}
	return nil
}

func (c *loginConn) refuse() error {
	c.s.srv.limited.Add(1)
	return errGuessing
}

// tried notes what has come of a login that has run to its end: a client that
// leaves, as psql does to ask for the password, has tried nothing.
func (c *loginConn) tried(right bool) {
	from := c.s.loginAddr()
	if right {
		c.s.srv.guessing.Passed(c.limit, from, c.s.user)
	} else if c.s.srv.guessing.Failed(c.limit, from, c.s.user) {
		c.s.log().Warn("auth_failure_limit is reached", "client_addr", from)
	}
}
