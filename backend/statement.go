package backend

import (
	"hash/maphash"

	"pgproxy/wire"
)

// maxTold is the longest RowDescription in bytes that is looked at.
const maxTold = 32 << 10

var rowSeed = maphash.MakeSeed()

// rowType stands for the names and types of the columns in the body of a
// RowDescription, or of NoData; never 0.
func rowType(body []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(rowSeed)
	if len(body) > 2 {
		for body = body[2:]; ; {
			name, rest, ok := wire.String(body)
			if !ok || len(rest) < 18 {
				break
			}
			_, _ = h.Write(name)
			_ = h.WriteByte(0)
			_, _ = h.Write(rest[6:10])  // the type's OID
			_, _ = h.Write(rest[12:16]) // and its modifier
			body = rest[18:]
		}
	}
	return h.Sum64() | 1
}

// Statement is a prepared statement as servers see it: one text with its
// parameter types, under a name that no client chooses. It is immutable, so any
// number of clients and server connections share it.
type Statement struct {
	Name  string // on every server connection that has it
	Query []byte
	OIDs  []byte // count and parameter type OIDs, as in Parse

	// Own says that Name is the one that a client has given it, for statements that
	// name it in SQL. A server connection then has one of this name at most.
	Own bool
	// SQL says that Query is not the statement itself, but its PREPARE.
	SQL bool
}

// prepared is the set of statements that a server connection has, or may have. Its
// owner is Conn, under Conn.mu.
type prepared struct {
	used map[*Statement]held
	own  map[string]*Statement // of used, those that are Own, by name
	left map[*Statement]int    // not in used: the Closes under way, which the server may ignore
	tick uint64
	mark uint64 // tick at the start of the batch that is being sent
}

// held is what is known of one statement. Ticks count uses.
type held struct {
	used, sent uint64 // when last used, and when its last Parse was sent
	sure       bool   // the server has accepted it; else that Parse may have been ignored
	rows       uint64 // what it gives, see rowType; 0: the server was not asked
}

// has reports whether the server has s, counting a use. unsure says that it has
// only if no error came before: of the batch that is being sent this is as good,
// since an error ends it.
func (p *prepared) has(s *Statement) (has, unsure bool) {
	h, ok := p.used[s]
	if !ok {
		return false, false
	}
	p.tick++
	h.used = p.tick
	p.used[s] = h
	return true, !h.sure && h.sent <= p.mark
}

// add notes that the Parse of s is about to be sent.
func (p *prepared) add(s *Statement) {
	if p.used == nil {
		p.used = make(map[*Statement]held)
	}
	p.tick++
	p.used[s] = held{used: p.tick, sent: p.tick}
	if s.Own {
		if p.own == nil {
			p.own = make(map[string]*Statement)
		}
		p.own[s.Name] = s
	}
}

// Rows returns what the server has said that s gives, as in Owed.Told; 0 if it was not
// asked.
func (c *Conn) Rows(s *Statement) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.prep.used[s].rows
}

// Stale notes that the server has s in a form that is of no use: it is prepared anew
// before its next use.
func (c *Conn) Stale(s *Statement) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.prep.stale(s)
}

// Distrust notes that the server is about to drop all statements: what is used from
// here on is prepared anew.
func (c *Conn) Distrust() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.prep.used {
		c.prep.stale(s)
	}
}

// Fresh reports whether the server describes s as a client that has just prepared it
// should see it: it was prepared in the batch that is being sent, or inside the
// transaction that is open. An older one may have been overtaken by DDL, and the
// server does not look.
func (c *Conn) Fresh(s *Statement) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status != wire.TxIdle || !c.q.empty() || c.prep.used[s].sent > c.prep.mark
}

// clear notes that the server has no statement any more.
func (p *prepared) clear() {
	clear(p.used)
	clear(p.own)
}

// settle notes whether the server has s for sure.
func (p *prepared) settle(s *Statement, sure bool) {
	if h, ok := p.used[s]; ok {
		h.sure = sure
		p.used[s] = h
	}
}

// stale notes that the server has s in a form that is of no use: it is prepared
// anew before its next use.
func (p *prepared) stale(s *Statement) {
	if h, ok := p.used[s]; ok {
		h.sure, h.sent = false, 0
		p.used[s] = h
	}
}

// forget notes that the server does not have s.
func (p *prepared) forget(s *Statement) {
	delete(p.used, s)
	if s.Own && p.own[s.Name] == s {
		delete(p.own, s.Name)
	}
}

// leave notes that the Close of s is about to be sent.
func (p *prepared) leave(s *Statement) {
	p.forget(s)
	if p.left == nil {
		p.left = make(map[*Statement]int)
	}
	p.left[s]++
}

// closed notes that the server has answered a Close of s, or ignored it: then it still
// has the statement.
func (p *prepared) closed(s *Statement, ignored bool) {
	if p.left[s]--; p.left[s] <= 0 {
		delete(p.left, s)
	}
	if ignored {
		p.add(s)
	}
}

// evict takes out the statement that was used longest ago if there are more
// than limit. Those of the batch that is being sent stay.
func (p *prepared) evict(limit int) *Statement {
	if limit <= 0 || len(p.used) <= limit {
		return nil
	}
	var oldest *Statement
	at := p.mark + 1
	for s, h := range p.used {
		if h.used < at {
			oldest, at = s, h.used
		}
	}
	if oldest != nil {
		p.leave(oldest)
	}
	return oldest
}
