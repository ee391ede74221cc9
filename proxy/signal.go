package proxy

import (
	"pgproxy/backend"
	"pgproxy/router"
)

// pg_cancel_backend and pg_terminate_backend name a process by its number, which
// clients take from the key that they get at login. That number is the proxy's:
// a server does not have such a process, and says so in a warning, whatever way
// the number took into the function. The warning is what the proxy acts on.

// signalOf returns what a statement does to the processes that it names.
func signalOf(plan *router.Plan) (sig backend.Signal) {
	if plan.Effects.Any(router.EffectCancel) {
		sig |= backend.SignalCancel
	}
	if plan.Effects.Any(router.EffectTerminate) {
		sig |= backend.SignalTerminate
	}
	return sig
}

// Signalled cancels or ends the session of this number, if the client may do
// that. Of a statement that does both it is not known which was meant: nothing
// happens then.
func (s *Session) Signalled(sig backend.Signal, pid uint32, superuser bool) {
	s.srv.mu.RLock()
	victim := s.srv.sessions[pid]
	s.srv.mu.RUnlock()
	if victim == nil || !victim.welcomed.Load() || !s.maySignal(victim, superuser) {
		return
	}
	switch sig {
	case backend.SignalTerminate:
		victim.end(errShutdown)
	case backend.SignalCancel:
		s.srv.spawn(victim.cancelQuery)
	}
}

// maySignal tells whether the server would let this client's role interrupt that
// of another: it is the same one, or this is a superuser's. Membership in
// pg_signal_backend is not known here.
func (s *Session) maySignal(other *Session, superuser bool) bool {
	if s.database != other.database {
		return false // it may be on another server
	}
	db, ok := s.srv.current.Load().Config.Database(s.database)
	return ok && (superuser || db.User != "" || s.user == other.user)
}
