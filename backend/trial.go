package backend

import (
	"bytes"
	"errors"

	"pgproxy/wire"
)

// A trial is a client's statement (a simple query, or a batch up to Sync) outside
// a transaction, or together with the BEGIN in front of it, of whose answer the client has not been written a byte. It may
// fail for a reason that is none of its own: the server has a stale plan or has
// lost the statement, it is a standby that cannot run it, or it goes away. The
// client then hears nothing of that, and its goroutine runs the statement again
// from the bytes that are kept here.
//
// What comes in front of a first row (ParseComplete to RowDescription), and of reads
// without a row and of a BEGIN all but ReadyForQuery, is held back until there is
// more: the server itself sends it no sooner, unless the client says Flush, and such
// a batch is no trial. Anything else ends the trial
// when it is written. So does whatever the client sends behind it.

// Trial is what a Parcel carries of a statement that may be run again.
type Trial struct {
	Bytes   []byte // the client's messages as they came; valid until Send returns. nil: no trial
	First   bool   // it begins in this Parcel
	Reads   bool   // all of it is proved to read, or it is a BEGIN, or is undone with one: it may be run twice
	Block   bool   // it opens a transaction block: only the end of the connection lets it run again
	Standby bool   // it is on a server that nobody can write to
	Commit  *Note  // it is a COMMIT alone, and this takes the id of its transaction; nil: it is something else
	Instead []byte // it is run again: the ErrorResponse that the client gets for any other
}

// Cause is why a statement is to be run again.
type Cause uint8

const (
	// CauseStale: the server's prepared statement has become useless (0A000) or has
	// gone (26000). It will be prepared anew.
	CauseStale Cause = iota + 1
	// CauseRefused: a standby cannot run it.
	CauseRefused
	// CauseConflict: a standby has given it up in favour of its recovery.
	CauseConflict
	// CauseDied: the connection has ended.
	CauseDied
	// CauseCommit: the connection has ended during a COMMIT. It is not to be run again
	// but looked up.
	CauseCommit
	// CauseHeldUp: it stood behind another client's on the same connection for too
	// long, or that client wants to be alone. It has not been answered.
	CauseHeldUp
	// CauseCanceled: it stood behind another client's, and its client has asked for a
	// cancel. It is not to be run again.
	CauseCanceled
)

// Failure is a trial that has failed.
type Failure struct {
	Cause    Cause
	Error    *wire.Error // as far as it was read; nil if the connection has ended without one
	Sent     []byte      // the client's messages
	Answer   []byte      // what the server has said, up to ReadyForQuery: for the client if it is not run again
	At       int         // where in Answer the error begins
	Answered int         // statements of the batch that came to their end before
	Xid      string      // of CauseCommit: the id of the transaction
}

// The most bytes that a trial keeps of a statement, and of the answers that are
// held back; and how much memory a connection keeps for the next trial.
const (
	MaxTrial     = 32 << 10
	maxHeld      = 4 << 10
	maxTrialIdle = 8 << 10
)

// trial is the trial that is under way. Its owner is Conn, under Conn.mu.
type trial struct {
	on             bool // the client has been written nothing
	more           bool // its last message is not complete
	reads, standby bool
	block          bool
	begun          bool // a row has been answered, or a whole statement
	rows           bool // a row
	answered       int
	instead        []byte
	sent           []byte
	held           []byte   // of the answer
	failed         *Failure // ReadyForQuery is still to come
	commit         *Note    // see Trial.Commit
}

// send takes note of what is sent. settled says that nothing was owed before, and
// no transaction open.
func (t *trial) send(p *Parcel, settled bool) {
	b := p.Trial.Bytes
	switch {
	case len(b) == 0:
		t.on = false
		return
	case p.Trial.First:
		*t = trial{on: settled, reads: p.Trial.Reads, standby: p.Trial.Standby, block: p.Trial.Block, commit: p.Trial.Commit, instead: p.Trial.Instead, sent: t.sent[:0], held: t.held}
	}
	if t.on = t.on && len(t.sent)+len(b) <= MaxTrial; !t.on {
		return
	}
	t.reads = t.reads && p.Trial.Reads
	t.more = p.More
	t.sent = append(t.sent, b...)
}

// over ends the trial: what comes now is relayed.
func (t *trial) over() {
	t.on, t.instead = false, nil
	if cap(t.sent) > maxTrialIdle {
		t.sent = nil
	}
}

// take is told of a message of the answer.
func (t *trial) take(typ byte) {
	switch typ {
	case wire.ParseComplete, wire.BindComplete, wire.CloseComplete, wire.ParameterDescription, wire.RowDescription, wire.NoData:
	case wire.CommandComplete, wire.EmptyQueryResponse, wire.PortalSuspended:
		t.begun = true
		t.answered++
	default:
		t.begun, t.rows = true, true
	}
}

// cause says why the statement can be run again that has failed with e, in answer
// to o; 0 if it cannot.
func (t *trial) cause(e *wire.Error, o Owed) Cause {
	if t.commit != nil || t.block {
		return 0
	}
	if staleness(e, o) {
		if t.begun && !t.reads {
			return 0
		}
		return CauseStale
	}
	if !t.standby {
		return 0
	}
	switch e.Code {
	case wire.CodeReadOnlyTransaction, wire.CodeFeatureNotSupported, wire.CodeObjectNotInState, wire.CodeInternal:
		// All but the first have other meanings as well. The primary's answer then is
		// the same error, and the client's.
		return CauseRefused
	case wire.CodeSerializationFailure, wire.CodeDeadlock:
		if t.reads {
			return CauseConflict
		}
	}
	return 0
}

// staleness reports whether an error says that the prepared statement that o uses
// cannot be used any more.
func staleness(e *wire.Error, o Owed) bool {
	switch {
	case o.Kind == Parse || o.Kind == Close:
		return false
	case e.Code == wire.CodeFeatureNotSupported:
		// "cached plan must not change result type", whatever the language
		return e.Routine == "RevalidateCachedQuery"
	}
	return e.Code == wire.CodeUndefinedStatement && o.Stmt != nil
}

// refutedLocked takes back what is believed of the statement that an error is
// about.
func (c *Conn) refutedLocked(e *wire.Error, o Owed) {
	switch {
	case !staleness(e, o):
	case o.Stmt == nil:
		c.unnamed.Store(otherUnnamed)
	case e.Code == wire.CodeUndefinedStatement:
		c.prep.forget(o.Stmt)
	default:
		c.prep.stale(o.Stmt)
	}
}

// holdLocked holds an error back whose statement is to be run again. body is what
// is in hand of it.
func (c *Conn) holdLocked(e *wire.Error, o Owed, h wire.Header, body []byte) bool {
	t := &c.try
	if !t.on || t.more || c.batch || len(body) < h.Body || c.holder == nil || o.Sink != nil && o.Sink != c.holder {
		return false
	}
	cause := t.cause(e, o)
	if cause == 0 {
		return false
	}
	t.on = false
	t.failed = &Failure{
		Cause: cause, Error: e, Sent: t.sent, Answered: t.answered, At: c.out.Len(),
		Answer: append(wire.AppendHeader(bytes.Clone(c.out.Bytes()), h.Type, h.Body), body...),
	}
	t.sent = nil
	c.out.Reset()
	c.holder.Failing()
	return true
}

// carriesLocked reports whether the connection has, or may have, what its client has
// left in the session: locks, temporary tables, whatever a client of pool_mode session
// does. It ends with the connection, so the client must hear of that end.
func (c *Conn) carriesLocked() bool { return c.pin.why&^PinBrief != 0 || c.ask != 0 || c.dirty }

// survivesLocked reports whether a trial is under way that may run again when the
// connection ends.
func (c *Conn) survivesLocked() bool {
	t := &c.try
	again := t.reads || c.early
	if t.commit != nil {
		again = t.xid() != ""
	}
	return t.on && again && !t.more && !c.batch && c.holder != nil && !c.q.empty() && !c.carriesLocked()
}

// diedLocked returns what is to be run again because the connection has ended;
// nil if nothing is.
func (c *Conn) diedLocked() *Failure {
	t := &c.try
	if f := t.failed; f != nil {
		t.failed = nil
		if c.carriesLocked() {
			return nil
		}
		return f
	}
	if !c.survivesLocked() {
		return nil
	}
	t.on = false
	f := &Failure{Cause: CauseDied, Sent: t.sent, Answered: t.answered}
	if t.commit != nil {
		f.Cause, f.Xid = CauseCommit, t.xid()
	}
	_ = errors.As(c.last, &f.Error)
	t.sent = nil
	return f
}

// resumeLocked puts the answers that were held back in front of what is read now.
func (c *Conn) resumeLocked(s *scan) {
	t := &c.try
	if c.rest > 0 {
		t.on = false // something else was in the middle
	}
	if len(t.held) > 0 && c.holder != nil {
		c.to(c.holder, s)
		*c.out.Made() = append(*c.out.Made(), t.held...)
	}
	t.held = t.held[:0]
}

// keepBackLocked ends a scan: while the answer has not begun, what there is of it
// stays here.
func (c *Conn) keepBackLocked() {
	t := &c.try
	if !t.on || c.out.Len() == 0 {
		return
	}
	if t.rows || t.begun && !t.reads || c.rest > 0 || c.out.Len() > maxHeld {
		t.over()
		return
	}
	t.held = append(t.held, c.out.Bytes()...)
	c.out.Reset()
}
