package proxy

import (
	"errors"
	"strings"

	"pgproxy/backend"
	"pgproxy/pool"
	"pgproxy/router"
	"pgproxy/wire"
)

// The Session as its server connection sees it. These methods are called by the
// connection's goroutine.

var (
	_ backend.Sink     = (*Session)(nil)
	_ backend.Follower = (*Session)(nil)
	_ pool.Sharer      = (*Session)(nil)
)

// Lock takes the right to write to the client. A client that listens has by then
// its own notifications, and those that others have committed.
func (s *Session) Lock() {
	s.wmu.Lock()
	if e := s.ears.Load(); e != nil && (s.wrote.Load() || e.behind()) {
		e.earlierFirst()
	}
}

// Unlock gives the right to write to the client back.
func (s *Session) Unlock() { s.wmu.Unlock() }

// Reply writes to the client. Lock must be held.
func (s *Session) Reply(p []byte) error {
	if t := s.tap.Load(); t != nil {
		t.feed(p)
	}
	if e := s.ears.Load(); e != nil {
		return e.reply(p)
	}
	return s.write(p)
}

// TryReply writes what can be written at once, and returns the rest. Lock must be held.
func (s *Session) TryReply(p []byte) (rest []byte) {
	switch {
	case s.werr != nil:
		return nil
	case s.tap.Load() != nil || s.ears.Load() != nil:
		return p
	}
	rest, err := s.io.TryWrite(p)
	if err != nil {
		s.werr = err
		s.io.Wake()
		return nil
	}
	return rest
}

// write is Reply without regard to notifications.
func (s *Session) write(p []byte) error {
	if s.werr != nil {
		return s.werr
	}
	if err := s.io.Write(p); err != nil {
		s.werr = err
		s.io.Wake()
		return err
	}
	return nil
}

// Reported notes a parameter that the client has changed.
func (s *Session) Reported(name, value string, login bool) {
	name = strings.ToLower(name)
	cur := s.settings.Load()
	if _, based := s.base.Get(name); login && !based {
		s.settings.Store(cur.Without(name))
		return
	}
	s.settings.Store(cur.With(name, value))
}

// Undone notes that a change of the client's names has not happened.
func (s *Session) Undone(change uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.undone = append(s.undone, change)
	s.hasUndone.Store(true)
}

// Answered notes when the client has seen something last, and an acknowledged
// write.
func (s *Session) Answered(at int64, wrote bool) {
	s.answered.Store(at)
	if !wrote {
		return
	}
	if d := s.ddl.Load(); d != nil {
		d.changed(at, true)
	}
	if s.ears.Load() != nil {
		s.wrote.Store(true)
	}
	raise(s.mine.Load(), at)
	for _, w := range *s.writes.Load() {
		raise(w, at)
	}
}

// Lost ends the session: its server connection has died while it was lent.
func (s *Session) Lost(err error, fatal bool) {
	e := wire.Fatalf(wire.CodeConnectionFailure, "server closed the connection unexpectedly").Because(err)
	if errors.Is(err, backend.ErrFenced) {
		e.Message = "connection to the server was closed: it is not the primary any more"
	}
	var lost *backend.LostError
	if errors.As(err, &lost) {
		e.Detail = fates[lost.Fate]
	}
	if fatal {
		e = nil // the server's own words have been relayed
	}
	if d := s.ddl.Load(); d != nil {
		d.changed(router.Nanotime(), true) // it may have come to its end
	}
	s.end(&lostServer{err: err, tell: e})
}

// fates is what a client is told of its work on a server connection that has died.
var fates = map[backend.Fate]string{
	backend.FateRolledBack: "The transaction was rolled back: it had not been committed.",
	backend.FateCommit:     "The end of a transaction was in flight: whether it was committed is not known.",
	backend.FateInFlight:   "A statement was in flight: whether it took effect is not known.",
}

// lostServer is why a session ends whose server connection has died.
type lostServer struct {
	err  error
	tell *wire.Error
}

func (l *lostServer) Error() string { return "server connection lost: " + l.err.Error() }
func (l *lostServer) Unwrap() error { return l.err }
