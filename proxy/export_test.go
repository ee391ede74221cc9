package proxy

// HoldRoutes forgets all counts of Routes, and keeps sessions from counting, and so
// from sending anything to a new lease, until release is called.
func (s *Server) HoldRoutes() (release func()) {
	s.routes.mu.Lock()
	s.routes.current.Store(nil)
	return s.routes.mu.Unlock
}
