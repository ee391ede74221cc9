package backend

import (
	"errors"
	"fmt"
	"sync/atomic"

	"pgproxy/wire"
)

// Kind says which message was sent, and with that what its reply looks like.
type Kind uint8

// The kinds of owed reply. The flow of replies for each:
//
//	Query     any number of results or an error, then ReadyForQuery
//	Function  FunctionCallResponse or an error, then ReadyForQuery
//	Sync      ReadyForQuery (after an error where the commit failed)
//	Parse     ParseComplete
//	Bind      BindComplete
//	Describe  [ParameterDescription] RowDescription or NoData
//	Execute   rows or COPY, then CommandComplete, EmptyQueryResponse or PortalSuspended
//	Close     CloseComplete
//	CopyEnd   nothing: it marks where CopyDone or CopyFail stands between the others
//	Forge     nothing: the proxy makes the reply when the entry's turn comes
//	Probe     an empty query that tells how many Syncs a failed COPY has eaten
//
// After an error in Parse to Close the server ignores everything up to Sync.
const (
	Query Kind = iota
	Function
	Sync
	Parse
	Bind
	Describe
	Execute
	Close
	CopyEnd
	Forge
	Probe
)

var kindNames = [...]string{"Query", "Function", "Sync", "Parse", "Bind", "Describe", "Execute", "Close", "CopyEnd", "Forge", "Probe"}

// String returns the kind's name.
func (k Kind) String() string { return kindNames[k] }

// ready reports whether the reply ends in ReadyForQuery.
func (k Kind) ready() bool { return k <= Sync || k == Probe }

// Do says what happens to a reply.
type Do uint8

// The three fates of a reply. An error in answer to a swallowed Parse, Bind or
// Execute that has no Sync of its own is forwarded: the client's own message
// fails because of it.
const (
	Forward Do = iota
	Swallow    // injected by the proxy
	Replace    // sent in order to fail: an error with the code of Owed.Err is replaced by it
)

// Signal is a set of what a statement does to other sessions.
type Signal uint8

// The signals that SQL can send.
const (
	SignalCancel    Signal = 1 << iota // pg_cancel_backend
	SignalTerminate                    // pg_terminate_backend
)

// Owed is one reply that the server (or, for Forge, the proxy) still has to give.
type Owed struct {
	Kind   Kind
	Do     Do
	Made   byte       // Forge: the type of the message to make, without a body but for its tag
	Tags   *Tags      // of CommandCompletes: of the one that Forge makes, or in place of the server's
	Own    bool       // Swallow: its group ends in its own Sync, an error stays inside
	Signal Signal     // what its statement does to the processes that it names
	Answer bool       // the rows are for Conn.answer; Own is set with it
	Sets   bool       // of Adopt: nothing of the client's may run where it fails; Own is set with it
	Gone   bool       // who was to get it does not want it any more; Own is set with it
	Sink   Sink       // who gets it; nil: nobody
	Stmt   *Statement // what is being prepared, closed or used

	// Makes and Drops say that the message is Query or Execute of a PREPARE or
	// DEALLOCATE of Stmt.
	Makes, Drops bool

	// Client, for a DISCARD SEQUENCES of the proxy's, is whom it is for.
	Client uint64

	// Note takes the answer to a question of AppendNote.
	Note *Note

	// Told, for a Describe, takes what the answer says of the rows: see rowType.
	Told *atomic.Uint64

	// Change is the number of what the client's message does to its names of
	// statements: see Sink.Undone. 0 is nothing.
	Change uint64
	Err    *wire.Error // Replace: what the client is told in place of an error; Forge: the notice
	Code   string      // of that error; "" is the code of Err
}

// Tags are those of the CommandCompletes of one Query, or of the only one, where the
// client is told others than the server's: "" leaves the server's.
type Tags struct {
	List []string
	at   int // guarded by the mutex of the connection
}

// next returns the tag of the next CommandComplete.
func (t *Tags) next() string {
	if t == nil || t.at >= len(t.List) {
		return ""
	}
	t.at++
	return t.List[t.at-1]
}

// Verdict is what is to be done with a message from the server.
type Verdict struct {
	Forward bool        // relay it to Sink
	Sink    Sink        // of the entry that the message answers; nil: nobody
	Error   *wire.Error // make this error in its place, if it has this code
	Code    string
	Failed  bool // an error whose entry was swallowed
	Done    bool // ReadyForQuery: a statement, or a group up to Sync, is complete
	Swallow bool // Done: the statement was the proxy's own
}

// errOutOfSync says that the connection has lost its place and must be closed.
var errOutOfSync = errors.New("server's reply fits nothing that was sent")

// queue is the owed-reply queue: a pure state machine without I/O. Its owner is
// Conn, under Conn.mu.
type queue struct {
	ring     []Owed // power of two long
	head, n  int
	skipping bool // the server ignores everything up to the next Sync, which is not sent yet
	copyIn   bool // the head is a COPY that reads from the client
	failed   bool // the head Query or Sync has had its error
	begun    bool // the head has had another message
	probed   bool // the head Probe has seen its EmptyQueryResponse
	doubt    int  // Syncs that a failed COPY may or may not have eaten
	dropped  func(o Owed, refused bool)
}

func (q *queue) at(i int) *Owed { return &q.ring[(q.head+i)&(len(q.ring)-1)] }

// front returns the entry whose reply is next; the zero value if there is none.
func (q *queue) front() Owed {
	if q.n == 0 {
		return Owed{}
	}
	return *q.at(0)
}

func (q *queue) empty() bool { return q.n == 0 }

// settled reports whether nothing more will come for what has been sent.
func (q *queue) settled() bool { return q.n == 0 && !q.skipping && q.doubt == 0 && !q.copyIn }

// push notes that o's message is about to be sent.
func (q *queue) push(o Owed) {
	switch {
	case o.Kind == Sync:
		q.skipping = false
	case q.skipping:
		q.drop(o)
		return
	case o.Kind == CopyEnd && q.n == 0:
		return // the COPY is over: the server ignores the message
	}
	if q.n == len(q.ring) {
		q.grow()
	}
	q.n++
	*q.at(q.n - 1) = o
}

func (q *queue) grow() {
	ring := make([]Owed, max(4, 2*len(q.ring)))
	for i := range q.n {
		ring[i] = *q.at(i)
	}
	q.ring, q.head = ring, 0
}

// compact frees a ring that a long pipeline has grown.
func (q *queue) compact() {
	if q.n == 0 && len(q.ring) > 64 {
		q.ring, q.head = nil, 0
	}
}

// pop takes out the head, and the marks behind it: at the head they stand behind
// no COPY, so the server ignores their messages.
func (q *queue) pop() Owed {
	o := *q.at(0)
	q.skip()
	return o
}

// skip is pop without a copy of what was there.
func (q *queue) skip() {
	q.take()
	q.failed, q.probed, q.begun = false, false, false
	for q.n > 0 && q.at(0).Kind == CopyEnd {
		q.take()
	}
}

func (q *queue) take() {
	*q.at(0) = Owed{}
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.n--
}

// removeNext takes out the entry behind the head, by moving the head over it.
func (q *queue) removeNext() {
	h := *q.at(0)
	o := *q.at(1)
	q.take()
	*q.at(0) = h
	q.drop(o)
}

// drop is told of entries whose message the server ignores.
func (q *queue) drop(o Owed) { q.lose(o, false) }

// lose is drop; refused says that the message is the one that the error is about.
func (q *queue) lose(o Owed, refused bool) {
	if q.dropped != nil {
		q.dropped(o, refused)
	}
}

// forged pops the head if it is a reply that the proxy makes itself.
func (q *queue) forged() (Owed, bool) {
	if q.n > 0 && q.at(0).Kind == Forge {
		return q.pop(), true
	}
	return Owed{}, false
}

// reply says what to do with a message from the server, of type t with this
// body (whole for ReadyForQuery, else as much of it as is in hand). Forged
// entries in front must have been taken out with forged. A FATAL error is not
// shown to it: it ends the connection, whatever is owed. An error means that the
// connection has lost its place and must be closed.
func (q *queue) reply(t byte, body []byte) (Verdict, error) {
	if t == wire.ErrorResponse {
		return q.replyError(body)
	}
	if q.n == 0 {
		if t == wire.ReadyForQuery && q.doubt > 0 {
			// The COPY failed before it had eaten all its Syncs: this is for one of them.
			q.doubt--
			q.skipping = false
			return Verdict{Forward: true, Done: true}, nil
		}
		return Verdict{}, fmt.Errorf("%w: %q with nothing owed", errOutOfSync, t)
	}
	h := q.at(0)
	if t == wire.ReadyForQuery && q.doubt > 0 && h.Kind != Sync && h.Kind != Probe && !q.begun && !q.failed {
		q.doubt-- // for one of those Syncs as well: the head's own does not come first
		return Verdict{Forward: true, Sink: h.Sink, Done: true}, nil
	}
	v := Verdict{Forward: h.Do == Forward || h.Do == Replace && t == wire.ReadyForQuery, Sink: h.Sink}
	pop := false
	ok := false
	switch t {
	case wire.ReadyForQuery:
		ok = h.Kind.ready() && (h.Kind != Probe || q.doubt > 0 || q.probed)
		if ok && h.Kind == Probe && !q.probed {
			q.doubt--
			q.failed = false
			return Verdict{Forward: true, Sink: h.Sink, Done: true}, nil
		}
		pop = true
		v.Forward = h.Do != Swallow
		v.Done = true
		v.Swallow = h.Do == Swallow
		q.copyIn = false
	case wire.ParseComplete:
		ok, pop = h.Kind == Parse, true
	case wire.BindComplete:
		ok, pop = h.Kind == Bind, true
	case wire.CloseComplete:
		ok, pop = h.Kind == Close, true
	case wire.ParameterDescription:
		ok = h.Kind == Describe
	case wire.RowDescription, wire.NoData:
		ok, pop = h.Kind == Describe || h.Kind == Query && t == wire.RowDescription, h.Kind == Describe
	case wire.DataRow, wire.CopyOutResponse, wire.CopyData, wire.CopyDone:
		ok = h.Kind == Query || h.Kind == Execute
	case wire.CopyInResponse:
		ok = h.Kind == Query || h.Kind == Execute
		q.copyIn = ok
	case wire.CommandComplete:
		ok, pop = h.Kind == Query || h.Kind == Execute, h.Kind == Execute
		if q.copyIn {
			q.copyDone()
		}
	case wire.EmptyQueryResponse:
		ok, pop = h.Kind == Query || h.Kind == Execute || h.Kind == Probe, h.Kind == Execute
		if h.Kind == Probe {
			q.probed, q.doubt = true, 0
		}
	case wire.PortalSuspended:
		ok, pop = h.Kind == Execute, true
	case wire.FunctionCallResponse:
		ok = h.Kind == Function
	}
	if !ok || h.Do == Replace && t != wire.ReadyForQuery {
		return Verdict{}, fmt.Errorf("%w: %q for %v", errOutOfSync, t, h.Kind)
	}
	q.begun = true
	if pop {
		q.skip()
	}
	return v, nil
}

// copyDone takes out what the client sent while its COPY was reading: the Syncs
// that the server ate, and the mark of CopyDone.
func (q *queue) copyDone() {
	q.copyIn = false
	for q.n > 1 {
		k := q.at(1).Kind
		q.removeNext()
		if k == CopyEnd {
			return
		}
	}
}

// replyError is reply for ErrorResponse.
func (q *queue) replyError(body []byte) (Verdict, error) {
	if q.n == 0 {
		return Verdict{}, fmt.Errorf("%w: an error with nothing owed", errOutOfSync)
	}
	h := q.at(0)
	v := Verdict{Forward: h.Do == Forward || h.Do == Swallow && !h.Own, Sink: h.Sink, Failed: h.Do == Swallow}
	if h.Do == Replace {
		v.Error, v.Code = h.Err, h.Code
		if v.Code == "" {
			v.Code = h.Err.Code
		}
	}
	if q.failed {
		return Verdict{}, fmt.Errorf("%w: a second error for %v", errOutOfSync, h.Kind)
	}
	wasCopy := q.copyIn
	q.copyIn = false
	if h.Kind.ready() {
		if wasCopy {
			q.copyFailed(body)
		}
		q.failed = true
		if h.Change != 0 || h.Makes {
			q.lose(*h, true)
		}
		if h.Kind == Probe {
			q.probed, q.doubt = true, 0 // all that was sent before it is answered
		}
		return v, nil
	}
	if wasCopy {
		q.copyFailed(body)
	}
	q.lose(q.pop(), true)
	query := false
	for q.n > 0 && q.at(0).Kind != Sync {
		o := q.pop()
		query = query || o.Kind == Query && o.Do == Forward
		q.drop(o)
	}
	if query && q.n > 0 && q.at(0).Do == Swallow {
		q.at(0).Do = Forward // the server skips the query as well: this ends it
	}
	q.skipping = q.n == 0
	return v, nil
}

// copyFailed takes out what a failed COPY has read behind its own message: up
// to and with the mark of CopyDone or, where there is none, the first message
// that does not belong to COPY, if that is what it has failed for. How many of the
// Syncs before that were read by the COPY is not known.
func (q *queue) copyFailed(body []byte) {
	for q.n > 1 {
		k := q.at(1).Kind
		switch k {
		case Sync:
			q.doubt++
			q.removeNext()
		case CopyEnd:
			q.removeNext()
			return
		default:
			if q.at(0).Kind == Query && wire.ReadError(body).Code == wire.CodeProtocolViolation {
				q.removeNext()
			}
			return
		}
	}
}
