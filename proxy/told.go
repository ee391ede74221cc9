package proxy

import (
	"sync/atomic"

	"pgproxy/backend"
	"pgproxy/wire"
)

// What clients know of the rows of their prepared statements. A server that has
// prepared a statement before some DDL goes on describing it as it was, and refuses
// to run it with 0A000. Which of the two a client must see depends on when it
// prepared and described the statement itself, not on who did so on this server
// connection.

// describe asks the lease's server to describe the client's statement, as it is now,
// and notes what the client is told.
func (s *Session) describe(a *assembly, name string, st *statement) {
	told := new(atomic.Uint64)
	if s.told == nil {
		s.told = make(map[string]*atomic.Uint64)
	}
	s.told[name] = told
	o := backend.Owed{Kind: backend.Describe, Sink: s, Stmt: &st.Statement, Told: told}
	target := st.Name
	p := a.out.Made()
	if !st.Own && !s.lease.Fresh(&st.Statement) {
		s.lease.SetUnnamed(s.srv.changes.Add(1)) // nobody's
		*p = wire.AppendParse(*p, "", st.Query, st.OIDs)
		a.owed = append(a.owed, backend.Owed{Kind: backend.Parse, Do: backend.Swallow, Sink: s})
		o.Stmt, target = nil, ""
	}
	*p = wire.AppendTarget(*p, wire.Describe, 'S', target)
	a.owed = append(a.owed, o)
	s.forged = false
}

// asTold reports whether a batch that has failed because of a stale plan, p, would
// now give rows as its client expects them. A client that has described a statement
// and does not ask again would take other rows for what they are not: it hears the
// error, as on a direct connection. done says that the client has been answered
// already. If same is true the lease is kept.
func (s *Session) asTold(p []byte) (same, done bool, err error) {
	var names []string
	for q := p; len(q) >= wire.HeaderLen; {
		h, err := wire.ReadHeader(q, s.maxPacket())
		if err != nil || len(q) < h.Size() {
			break
		}
		body := q[wire.HeaderLen:h.Size()]
		switch h.Type {
		case wire.Describe:
			if kind, _, err := wire.ReadTarget(body); err == nil && kind == 'P' {
				return true, false, nil
			}
		case wire.Bind:
			if _, name, _, ok := wire.ReadBindNames(body); ok {
				if t := s.told[string(name)]; t != nil && t.Load() != 0 && s.stmts[string(name)] != nil {
					names = append(names, string(name))
				}
			}
		}
		q = q[h.Size():]
	}
	if len(names) == 0 {
		return true, false, nil
	}
	a := assemblies.Get().(*assembly)
	defer func() {
		a.reset()
		assemblies.Put(a)
	}()
	if err := s.need(a, s.lookahead(a, p)); err != nil {
		return true, false, nil // the batch itself will say so
	}
	s.lease.Batch()
	now := make([]atomic.Uint64, len(names))
	n := len(a.owed)
	for i, name := range names {
		st := s.stmts[name]
		st = s.prepare(a, st, 0, false)
		*a.out.Made() = wire.AppendTarget(*a.out.Made(), wire.Describe, 'S', st.Name)
		a.owed = append(a.owed, backend.Owed{Kind: backend.Describe, Do: backend.Swallow, Sink: s, Stmt: &st.Statement, Told: &now[i]})
	}
	*a.out.Made() = wire.AppendSync(*a.out.Made())
	a.owed = append(a.owed, backend.Owed{Kind: backend.Sync, Do: backend.Swallow, Sink: s})
	for i := range a.owed[n:] {
		a.owed[n+i].Own = true
	}
	s.forged = false
	if done, err := s.ensured(a); done || err != nil {
		return false, done, err
	}
	for i, name := range names {
		if t := s.told[name]; t == nil || t.Load() != now[i].Load() {
			return false, false, s.flush(a) // with nothing: lets go
		}
	}
	return true, false, nil
}

// errStalePlan is PostgreSQL's own error.
var errStalePlan = wire.Errorf(wire.CodeFeatureNotSupported, "cached plan must not change result type")

// givesAsTold reports whether the lease's server gives such rows for a statement as
// the client was told, or will tell it anew. It asks the server once for each
// connection; an older form of the statement that is there is prepared anew first.
func (s *Session) givesAsTold(a *assembly, st *statement, told uint64, q []byte) (same bool, err error) {
	if told == 0 {
		return true, nil
	}
	for anew := false; ; anew = true {
		rows := s.lease.Rows(&st.Statement)
		if rows == 0 {
			if s.describesPortal(q) {
				return true, nil
			}
			answer := new(atomic.Uint64)
			*a.out.Made() = wire.AppendTarget(*a.out.Made(), wire.Describe, 'S', st.Name)
			a.owed = append(a.owed, backend.Owed{Kind: backend.Describe, Do: backend.Swallow, Sink: s, Stmt: &st.Statement, Told: answer})
			s.flushOut(a)
			if err := s.calm(a); err != nil {
				return false, err
			}
			if a.holding = s.hold(); !a.holding {
				return false, s.lostBatch()
			}
			rows = answer.Load() // 0: an error, which ends the batch
		}
		switch {
		case rows == 0, rows == told:
			return true, nil
		case s.describesPortal(q):
			return true, nil
		case anew:
			return false, nil
		}
		s.lease.Stale(&st.Statement)
		s.prepare(a, st, 0, false)
	}
}

// describesPortal reports whether the batch that goes on with q has a Describe of a
// portal.
func (s *Session) describesPortal(q []byte) bool {
	for len(q) >= wire.HeaderLen {
		h, err := wire.ReadHeader(q, s.maxPacket())
		if err != nil || len(q) < h.Size() || h.Type == wire.Sync {
			return false
		}
		if h.Type == wire.Describe && h.Body > 0 && q[wire.HeaderLen] == 'P' {
			return true
		}
		q = q[h.Size():]
	}
	return false
}
