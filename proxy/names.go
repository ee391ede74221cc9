package proxy

import (
	"slices"

	"pgproxy/wire"
)

// The names of a client's prepared statements. Messages that change them are
// acted on when they are sent, since later ones in the same write depend on it.
// The server may ignore them after all: they stand in or behind an error then.
// Until its answer is known, a change stands in a journal and can be undone.

// nameChange is a Parse or Close that has been sent, or a part of what a DEALLOCATE
// ALL does.
type nameChange struct {
	number uint64     // backend.Owed.Change
	batch  uint64     // Session.batches when it was sent
	name   string     // of the statement
	now    *statement // what has the name; nil after a Close
	before *statement // what had it; nil if it was free
}

// rename notes that the client's name stands for st from here on (nil: for
// nothing), and returns the number of the change.
func (s *Session) rename(name string, st *statement) (number uint64) {
	number = s.srv.changes.Add(1)
	s.changes = append(s.changes, nameChange{number: number, batch: s.batches, name: name, now: st, before: s.stmts[name]})
	s.setName(name, st)
	return number
}

func (s *Session) setName(name string, st *statement) {
	delete(s.told, name)
	switch {
	case st == nil:
		delete(s.stmts, name)
	case s.stmts == nil:
		s.stmts = map[string]*statement{name: st}
	default:
		s.stmts[name] = st
	}
	s.prepared.Store(int64(len(s.stmts)))
}

// unname takes a name from the client for good.
func (s *Session) unname(name string) {
	if st := s.stmts[name]; st != nil {
		s.setName(name, nil)
		s.srv.registry.put(st)
	}
}

// catchUp takes over what has become known of the changes under way.
func (s *Session) catchUp() {
	answered := len(s.changes) > 0 && (s.lease == nil || !s.lease.HeldBy(s) || s.lease.Settled(s))
	if s.hasUndone.Load() {
		s.undo()
	}
	if answered {
		s.commit(func(*nameChange) bool { return true })
	}
}

// proof is what a statement of this client is proved for.
func (s *Session) proof() proof {
	return proof{s.database, s.user, s.settings.Load().Without("application_name").Key()}
}

// parseAlone answers a Parse of a named statement that has only its Sync behind
// it, as PQprepare sends it, without a server if one has accepted the statement
// before: it is prepared where it is needed. A client must not wait in line for
// this while those in front of it wait for its thread to go on.
func (s *Session) parseAlone(q []byte, h wire.Header, m wire.ParseMessage) (n int, err error) {
	sync := q[h.Size():]
	if len(m.Name) == 0 || s.mayName() != nil || s.stmts[string(m.Name)] != nil || s.lease != nil && s.lease.HeldBy(s) ||
		s.localStatus() == wire.TxFailed || len(sync) < wire.HeaderLen || sync[0] != wire.Sync {
		return 0, nil
	}
	if sh, err := wire.ReadHeader(sync, s.maxPacket()); err != nil || sh.Body != 0 {
		return 0, nil // sync says what is wrong with it
	}
	st := s.srv.registry.proved(m.Query, m.OIDs, s.editionOf(m.Query), s.proof())
	if st == nil {
		return 0, nil
	}
	s.setName(string(m.Name), st)
	s.batches++
	return h.Size() + wire.HeaderLen, s.writeLocal(wire.AppendReadyForQuery(wire.AppendEmpty(nil, wire.ParseComplete), s.localStatus()))
}

// undo takes back the changes that have not happened.
func (s *Session) undo() {
	s.mu.Lock()
	numbers := s.undone
	s.undone = nil
	s.hasUndone.Store(false)
	s.mu.Unlock()
	for _, n := range numbers {
		if n == s.unnamed.id {
			// What was unnamed before it may live on at the server, but is not kept
			// here: the client hears 26000 if it asks for it, never gets another.
			s.unnamed.drop()
		}
		for i := len(s.changes) - 1; i >= 0; i-- {
			if s.changes[i].number == n {
				s.revert(i)
			}
		}
	}
}

// dropAll notes that a DEALLOCATE ALL or DISCARD ALL, with other statements behind
// it in its batch, takes all names, and returns the number of the change.
func (s *Session) dropAll() (number uint64) {
	number = s.srv.changes.Add(1)
	for name, st := range s.stmts {
		s.changes = append(s.changes, nameChange{number: number, batch: s.batches, name: name, before: st})
		s.setName(name, nil)
	}
	s.lease.Distrust()
	return number
}

// revert takes back change i of the journal.
func (s *Session) revert(i int) {
	c := s.changes[i]
	s.changes = slices.Delete(s.changes, i, i+1)
	if c.now != nil {
		s.srv.registry.put(c.now)
	}
	if j := slices.IndexFunc(s.changes[i:], func(d nameChange) bool { return d.name == c.name }); j >= 0 {
		s.changes[i+j].before = c.before
	} else {
		s.setName(c.name, c.before)
	}
}

// revertBatch takes back all changes of a batch, whether they have happened or
// not: it is to be run again.
func (s *Session) revertBatch(batch uint64) {
	s.undo()
	for i := len(s.changes) - 1; i >= 0; i-- {
		if s.changes[i].batch == batch {
			s.revert(i)
		}
	}
}

// commit forgets the changes that have happened.
func (s *Session) commit(which func(*nameChange) bool) {
	s.changes = slices.DeleteFunc(s.changes, func(c nameChange) bool {
		if !which(&c) {
			return false
		}
		if c.now != nil {
			s.srv.registry.prove(c.now, s.proof())
		}
		if c.before != nil {
			s.srv.registry.put(c.before)
		}
		return true
	})
}

// sure waits for the fate of the changes of earlier batches if this name is among
// them: a name whose Parse has failed must not be taken for prepared, nor one
// whose Close was ignored for free.
func (s *Session) sure(a *assembly, name []byte) error {
	earlier := func(c *nameChange) bool { return c.batch != s.batches }
	if !slices.ContainsFunc(s.changes, func(c nameChange) bool { return earlier(&c) && c.name == string(name) }) {
		return nil
	}
	if s.open {
		s.flushOut(a)
	}
	if err := s.calm(a); err != nil {
		return err
	}
	s.undo()
	s.commit(earlier)
	if s.open {
		if a.holding = s.hold(); !a.holding {
			return s.lostBatch()
		}
	}
	return nil
}

// dropStatements takes all names from the client that it had before the change
// of this number, and its unnamed statement.
func (s *Session) dropStatements(until uint64) {
	later := make(map[string]bool)
	for _, c := range s.changes {
		if c.number > until && c.now != nil && s.stmts[c.name] == c.now {
			later[c.name] = true
		}
	}
	for name, st := range s.stmts {
		if !later[name] {
			delete(s.stmts, name)
			s.srv.registry.put(st)
		}
	}
	s.commit(func(c *nameChange) bool { return c.number <= until })
	s.unnamed = unnamedStatement{}
	clear(s.told)
	s.prepared.Store(int64(len(s.stmts)))
}
