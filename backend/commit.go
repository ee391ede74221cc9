package backend

import (
	"encoding/binary"
	"sync/atomic"

	"pgproxy/wire"
)

// A commit whose server dies before it has answered can be looked up if the id of its
// transaction is known. The server is asked for the id in the same write as the
// COMMIT, and answers before it commits.

// Note takes the answer to a question of the proxy's own; nil: there is none.
type Note = atomic.Pointer[Noted]

// Noted is the answer to a question of one row and column.
type Noted struct {
	Value string // the first column of the row; "" is NULL
	Code  string // SQLSTATE of the error that there was instead; "" is none
}

// AppendXid appends the question for the id of the transaction that the next message
// commits. It reports false where it cannot be told, or there is nothing to commit:
// outside a transaction, behind something that is not answered yet, or after reads
// alone. The connection must be kept with Hold.
func (c *Conn) AppendXid(note *Note, owed []Owed, dst []byte) (_ []Owed, _ []byte, ok bool) {
	c.mu.Lock()
	ok = c.status == wire.TxInside && c.q.settled() && c.wrote
	c.mu.Unlock()
	if !ok {
		return owed, dst, false
	}
	c.NoUnnamed() // it is a simple query
	owed, dst = AppendNote("SELECT pg_catalog.pg_current_xact_id_if_assigned()", note, owed, dst)
	return owed, dst, true
}

// AppendNote appends a question of the proxy's own whose answer goes to note.
func AppendNote(sql string, note *Note, owed []Owed, dst []byte) ([]Owed, []byte) {
	return append(owed, Owed{Kind: Query, Do: Swallow, Own: true, Note: note}), wire.AppendQuery(dst, sql)
}

// noted stores the first column of a DataRow.
func noted(note *Note, body []byte) {
	var v string
	if len(body) >= 6 {
		if n := int32(binary.BigEndian.Uint32(body[2:])); n > 0 && int(n) <= len(body)-6 {
			v = string(body[6 : 6+n])
		}
	}
	note.Store(&Noted{Value: v})
}

// xid returns the id of the transaction whose COMMIT is under way; "" if it is not
// known.
func (t *trial) xid() string {
	if t.commit == nil {
		return ""
	}
	if v := t.commit.Load(); v != nil {
		return v.Value
	}
	return ""
}
