package backend

import "pgproxy/wire"

// Prepared statements under the names that their clients have given them: what a
// statement names in SQL (EXECUTE, DEALLOCATE, pg_prepared_statements) must be on
// the server under that name. They stay there, and so do those of other clients,
// as long as no other statement of this name is wanted.

// portal is the name of the portal in which the proxy runs a statement of its own.
const portal = "pgproxy_own"

// PrepareOwn makes sure that the server has s, which is Own, and no other of its
// name. If anything must be sent for that it is appended, swallowed; batch says
// that the messages stand in a client's batch, else they get a Sync of their own
// and State().Failed tells an error.
func (c *Conn) PrepareOwn(s *Statement, sink Sink, batch bool, owed []Owed, dst []byte) ([]Owed, []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(owed)
	owed, dst = c.prepareOwnLocked(s, sink, !batch, owed, dst)
	return syncOwn(sink, batch, n, owed, dst)
}

// syncOwn ends what was appended to owed since it had n entries.
func syncOwn(sink Sink, batch bool, n int, owed []Owed, dst []byte) ([]Owed, []byte) {
	if batch || len(owed) == n {
		return owed, dst
	}
	return append(owed, Owed{Kind: Sync, Do: Swallow, Own: true, Sink: sink}), wire.AppendSync(dst)
}

func (c *Conn) prepareOwnLocked(s *Statement, sink Sink, own bool, owed []Owed, dst []byte) ([]Owed, []byte) {
	if old := c.prep.own[s.Name]; old != nil && old != s {
		owed, dst = c.closeLocked(old, sink, own, owed, dst)
	}
	has, unsure := c.prep.has(s)
	if has && !unsure || c.status == wire.TxFailed && own {
		return owed, dst // in a failed transaction the server refuses what needs it as well
	}
	if has || c.prep.left[s] > 0 {
		owed, dst = c.closeLocked(s, sink, own, owed, dst)
	}
	c.prep.add(s)
	owed, dst = c.makeRoomLocked(sink, own, owed, dst)
	if !s.SQL {
		return append(owed, Owed{Kind: Parse, Do: Swallow, Own: own, Sink: sink, Stmt: s}), wire.AppendParse(dst, s.Name, s.Query, s.OIDs)
	}
	return c.statementLocked(s.Query, Owed{Do: Swallow, Own: own, Sink: sink, Stmt: s, Makes: true}, owed, dst)
}

// statementLocked appends an SQL statement in the extended protocol. o is what is
// owed for it.
func (c *Conn) statementLocked(sql []byte, o Owed, owed []Owed, dst []byte) ([]Owed, []byte) {
	c.unnamed.Store(otherUnnamed)
	dst = wire.AppendParse(dst, "", sql, nil)
	dst = wire.AppendBindHead(dst, []byte(portal), "", 6)
	dst = append(dst, 0, 0, 0, 0, 0, 0)
	dst = wire.AppendExecutePortal(dst, portal)
	dst = wire.AppendTarget(dst, wire.Close, 'P', portal)
	plain, bind, execute := Owed{Do: o.Do, Own: o.Own, Sink: o.Sink}, o, o
	bind.Kind, execute.Kind = Bind, Execute
	parse, end := plain, plain
	parse.Kind, end.Kind = Parse, Close
	return append(owed, parse, bind, execute, end), dst
}

// OwnSequences makes currval and lastval tell a client of its own nextval or of
// none: if another client may have called it since on this connection, what the
// session remembers of sequences is discarded. See PrepareOwn.
func (c *Conn) OwnSequences(client uint64, sink Sink, batch bool, owed []Owed, dst []byte) ([]Owed, []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writer == client || c.writer == 0 || c.status == wire.TxFailed {
		return owed, dst
	}
	n := len(owed)
	owed, dst = c.statementLocked([]byte("DISCARD SEQUENCES"), Owed{Do: Swallow, Own: !batch, Sink: sink, Client: client}, owed, dst)
	return syncOwn(sink, batch, n, owed, dst)
}

// closeLocked appends the Close of a statement that the server has.
func (c *Conn) closeLocked(s *Statement, sink Sink, own bool, owed []Owed, dst []byte) ([]Owed, []byte) {
	c.prep.leave(s)
	return append(owed, Owed{Kind: Close, Do: Swallow, Own: own, Sink: sink, Stmt: s}), wire.AppendTarget(dst, wire.Close, 'S', s.Name)
}

// makeRoomLocked closes the statements that were used longest ago and are too
// many.
func (c *Conn) makeRoomLocked(sink Sink, own bool, owed []Owed, dst []byte) ([]Owed, []byte) {
	for old := c.prep.evict(c.limits.MaxPrepared); old != nil; old = c.prep.evict(c.limits.MaxPrepared) {
		dst = wire.AppendTarget(dst, wire.Close, 'S', old.Name)
		owed = append(owed, Owed{Kind: Close, Do: Swallow, Own: own, Sink: sink, Stmt: old})
	}
	return owed, dst
}

// Absent makes sure that the server has no statement of a client's name. See
// PrepareOwn.
func (c *Conn) Absent(name string, sink Sink, batch bool, owed []Owed, dst []byte) ([]Owed, []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.prep.own[name]
	if old == nil {
		return owed, dst
	}
	n := len(owed)
	owed, dst = c.closeLocked(old, sink, !batch, owed, dst)
	return syncOwn(sink, batch, n, owed, dst)
}

// Only makes sure that the server has these statements, which are Own, and no
// others. See PrepareOwn.
func (c *Conn) Only(list []*Statement, sink Sink, batch bool, owed []Owed, dst []byte) ([]Owed, []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(owed)
	keep := make(map[*Statement]bool, len(list))
	for _, s := range list {
		keep[s] = true
	}
	for s := range c.prep.used {
		if !keep[s] {
			owed, dst = c.closeLocked(s, sink, !batch, owed, dst)
		}
	}
	limit := c.limits.MaxPrepared
	c.limits.MaxPrepared = 0 // all of them are needed at once
	for _, s := range list {
		owed, dst = c.prepareOwnLocked(s, sink, !batch, owed, dst)
	}
	c.limits.MaxPrepared = limit
	return syncOwn(sink, batch, n, owed, dst)
}

// Making notes that the client's own PREPARE of s is about to be sent.
func (c *Conn) Making(s *Statement) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.prep.add(s)
}
