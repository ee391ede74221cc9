package backend

import "pgproxy/wire"

// Fate is what is known of a client's work on a connection that has ended.
type Fate uint8

const (
	// FateNothing: nothing was under way.
	FateNothing Fate = iota
	// FateRolledBack: a transaction block was open, and nothing was under way that
	// could have ended it.
	FateRolledBack
	// FateCommit: something was under way that may have ended a transaction block.
	FateCommit
	// FateInFlight: a statement outside a transaction block was under way.
	FateInFlight
)

// LostError is what Sink.Lost is told.
type LostError struct {
	Err  error
	Fate Fate
}

// Error is the text of the cause.
func (e *LostError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *LostError) Unwrap() error { return e.Err }

// lostLocked says what has become of the holder's work.
func (c *Conn) lostLocked(err error) *LostError {
	e := &LostError{Err: err, Fate: FateInFlight}
	switch {
	case c.status != wire.TxIdle && !c.ends:
		e.Fate = FateRolledBack
	case c.status != wire.TxIdle:
		e.Fate = FateCommit
	case c.q.empty():
		e.Fate = FateNothing
	}
	return e
}
