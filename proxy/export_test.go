package proxy

import "time"

// HoldRoutes forgets all counts of Routes, and keeps sessions from counting, and so
// from sending anything to a new lease, until release is called.
func (s *Server) HoldRoutes() (release func()) {
	s.routes.mu.Lock()
	s.routes.current.Store(nil)
	return s.routes.mu.Unlock
}

// Pace is how a drain spreads out whom it sends away.
type Pace = pace

// NewPace begins at a time.
func NewPace(at time.Time) *Pace { return &pace{last: at} }

// Allows returns how many of n may go.
func (p *pace) Allows(rate, n int, now time.Time) int { return p.allows(rate, n, now) }

// SharersIn counts the sockets that share the address of one.
var SharersIn = sharersIn
