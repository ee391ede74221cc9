package proxy

import "context"

// cancel serves a CancelRequest. A key that fits nobody is ignored, as
// PostgreSQL does. It returns when the server has acted on it.
func (s *Server) cancel(pid uint32, secret []byte) {
	if s.Cancel(pid, secret) || s.passOn(pid, secret) {
		return
	}
	if kin := s.kin.Load(); kin != nil {
		ctx, stop := context.WithTimeout(s.ctx, s.current.Load().Config.Proxy.CancelWaitTimeout)
		defer stop()
		if (*kin)(ctx, pid, secret) {
			return
		}
	}
	s.log.Debug("cancel request with an unknown key")
}

// SetKin supplies what hands a cancel request to the processes that this one has
// taken the listeners over from, or given them to. It returns when one has acted on
// it; known is false if it is nobody's.
func (s *Server) SetKin(f func(ctx context.Context, pid uint32, secret []byte) (known bool)) {
	s.kin.Store(&f)
}

// Cancel ends what a client of this process waits for, if the key is one's, and
// returns when the server has acted on it.
func (s *Server) Cancel(pid uint32, secret []byte) (known bool) {
	s.mu.RLock()
	ses := s.sessions[pid]
	s.mu.RUnlock()
	if ses == nil || !ses.loggedIn() || !s.knows(ses, secret) {
		return false
	}
	ses.cancelQuery()
	return true
}

// cancelQuery ends what the client waits for: its place in a queue, or its
// statement on a server, if it has one there at this moment.
// While one request is under way for it, further ones do nothing.
func (s *Session) cancelQuery() {
	if !s.cancelling.CompareAndSwap(false, true) {
		return
	}
	defer s.cancelling.Store(false)
	if s.waiter.Cancel(errCanceled) {
		return
	}
	s.mu.Lock()
	wait := s.cancelWait
	s.mu.Unlock()
	if wait != nil {
		wait()
		return
	}
	if r := s.replica.Load(); r != nil {
		if st := r.stream.Load(); st != nil && r.pending.Load() > 0 {
			if err := st.Cancel(s.srv.ctx); err != nil {
				s.log().Warn("cancel request failed", "error", err)
			}
		}
		return
	}
	c := s.current.Load()
	if c == nil {
		return
	}
	sent, err := c.Cancel(s.srv.ctx, s)
	if !sent && s.failing.Load() {
		s.canceled.Store(true)
	}
	if err != nil {
		s.log().Warn("cancel request failed", "error", err, "sent", sent)
	}
}
