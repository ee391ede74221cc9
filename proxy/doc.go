// Package proxy is the client's side: it accepts connections, logs clients in,
// and relays each of their transactions over a server connection that it borrows
// for just as long.
//
// The way of one message: Session.onClient (loop.go) is shown what the client
// has sent and walks the messages in it; attach.go chooses a server and borrows a
// connection when one is needed; extended.go translates statement names; what
// was gathered goes out in one write (Session.flush). The answer comes through
// the server connection's goroutine (package backend), which calls the Session's
// Sink methods (sink.go).
//
// # Concurrency
//
// Each Session has one goroutine, waited for by Server.Close. It owns all fields
// that are not marked otherwise. Lock order, across packages:
//
//	Session.wmu (writing to a client)
//	listener.sending, listener.mu, ears.mu (LISTEN)
//	backend.Conn.mu
//	Session.mu, pool.Pool.mu (neither is taken under the other)
//	pool.outside.mu, pool.Guests.mu (neither is taken under the other)
//	pool.caps.mu
//
// Server.mu (the registry of sessions) is taken alone.
package proxy
