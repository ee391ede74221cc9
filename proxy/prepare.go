package proxy

import (
	"slices"

	"pgproxy/backend"
	"pgproxy/router"
	"pgproxy/wire"
)

// SQL's PREPARE, EXECUTE and DEALLOCATE. They share their names with the
// statements of the extended protocol, and like those the names belong to the
// client. The client's text goes to the server as it is; in front of it the server
// connection is made to have, under the client's own name, what the client has
// (backend/own.go). PREPARE and DEALLOCATE change names as Parse and Close do
// (names.go).
//
// Where they stand in one batch or query with other statements the server is left
// with what only it knows: that pins the connection.

// namesPlan is the plan of a PREPARE or DEALLOCATE whose effect is followed.
var namesPlan = &router.Plan{Class: router.ClassPrimary, Reason: "session: name of a prepared statement"}

// resolved returns the plan of what a statement really does: for EXECUTE that is
// the plan of the prepared statement.
func (s *Session) resolved(plan *router.Plan) *router.Plan {
	if plan == nil || plan.Use != router.PreparedRun {
		return plan
	}
	st := s.stmts[plan.Statement]
	if st == nil || st.runs().Use != router.PreparedNone {
		return plan
	}
	runs, args := s.proved(st.runs()), s.proved(plan.Inner)
	if args.Class == router.ClassRead && plan.Target == "" {
		return runs
	}
	p := &router.Plan{
		Class: router.ClassPrimary, Reason: args.Reason, Effects: runs.Effects | args.Effects, Target: plan.Target,
		Settings: runs.Settings, SettingsHidden: runs.SettingsHidden || len(runs.SettingParams) > 0,
	}
	if args.Class == router.ClassRead {
		p.Class, p.Reason, p.Tag = runs.Class, runs.Reason, runs.Tag
	}
	return p
}

// runs returns the plan, by the text alone, of what the statement does when it is
// executed.
func (st *statement) runs() *router.Plan {
	if st.SQL {
		return st.plan.Inner
	}
	return st.plan
}

// own returns the client's statement as it is called on a server where the client
// names it in SQL.
func (s *Session) own(name string, st *statement) *statement {
	if st.Own {
		return st
	}
	d := s.srv.registry.getOwn(name, st.Query, st.OIDs, st.edition, false, st.plan)
	s.srv.registry.put(d) // it is remembered for a while, which is all that is needed
	return d
}

// sureOf waits for the fate of the changes of earlier batches to the names that a
// statement uses.
func (s *Session) sureOf(a *assembly, plan *router.Plan) error {
	if plan.Use != router.PreparedAll {
		return s.sure(a, []byte(plan.Statement))
	}
	for len(s.changes) > 0 {
		i := slices.IndexFunc(s.changes, func(c nameChange) bool { return c.batch != s.batches })
		if i < 0 {
			break
		}
		if err := s.sure(a, []byte(s.changes[i].name)); err != nil {
			return err
		}
	}
	return nil
}

// named makes the lease have what the client has under the name, and returns it;
// nil if the client has nothing.
func (s *Session) named(a *assembly, name string, batch bool) *backend.Statement {
	n := len(a.owed)
	p := a.out.Made()
	var own *backend.Statement
	if st := s.stmts[name]; st != nil {
		own = &s.own(name, st).Statement
		a.owed, *p = s.lease.PrepareOwn(own, s, batch, a.owed, *p)
	} else {
		a.owed, *p = s.lease.Absent(name, s, batch, a.owed, *p)
	}
	s.forged = s.forged && len(a.owed) == n
	return own
}

// onlyMine makes the lease have the client's statements under their own names, and
// no others.
func (s *Session) onlyMine(a *assembly, batch bool) {
	list := make([]*backend.Statement, 0, len(s.stmts))
	for name, st := range s.stmts {
		list = append(list, &s.own(name, st).Statement)
	}
	n := len(a.owed)
	p := a.out.Made()
	a.owed, *p = s.lease.Only(list, s, batch, a.owed, *p)
	s.forged = s.forged && len(a.owed) == n
}

// absent makes the lease have no statement under a name that the client has not.
func (s *Session) absent(a *assembly, name []byte) {
	if len(name) > 0 {
		s.named(a, string(name), true)
	}
}

// expose prepares, in a batch, what the server looks at when it parses or describes
// a statement that uses prepared statements by name.
func (s *Session) expose(a *assembly, plan *router.Plan) {
	switch plan.Use {
	case router.PreparedNone:
	case router.PreparedAll:
		s.onlyMine(a, true)
	default:
		s.named(a, plan.Statement, true)
	}
}

// queryPrepared deals with a simple query that uses prepared statements by name: it
// makes s.lease a connection that can run it, fills in what its reply does to
// names, and returns the plan of what will run. done says that the client has been
// answered.
func (s *Session) queryPrepared(a *assembly, q []byte, h wire.Header, plan *router.Plan, o *backend.Owed) (run *router.Plan, done bool, err error) {
	if err := s.sureOf(a, plan); err != nil {
		return nil, false, err
	}
	run = s.resolved(plan)
	if err := s.before(a, run); err != nil {
		return nil, false, err
	}
	if plan.Use == router.PreparedDrop && !a.holding && s.stmts[plan.Statement] != nil && !s.hold() {
		s.unname(plan.Statement) // no server needs to know
		return nil, true, s.writeLocal(wire.AppendReadyForQuery(wire.AppendCommandComplete(nil, plan.Tag), wire.TxIdle))
	}
	if err := s.need(a, run); err != nil {
		_, _, err = s.failQuery(err, h)
		s.rest, s.drop = 0, false
		return nil, true, err
	}
	n := len(a.owed)
	if plan.Use == router.PreparedAll {
		s.onlyMine(a, false)
	} else {
		o.Stmt = s.named(a, plan.Statement, false)
	}
	if len(a.owed) > n {
		if done, err := s.ensured(a); done || err != nil {
			return nil, done, err
		}
	}
	s.unit.stale = true
	switch plan.Use {
	case router.PreparedMake:
		run = namesPlan
		if o.Stmt != nil {
			break // the name is taken, and the server says so
		}
		st, e := s.newOwn(plan.Statement, q[wire.HeaderLen:h.Size()-1], plan)
		if e != nil {
			return s.refusePrepare(a, e)
		}
		o.Stmt, o.Makes, o.Change = &st.Statement, true, s.rename(plan.Statement, st)
		s.lease.Making(o.Stmt)
	case router.PreparedDrop:
		run = namesPlan
		o.Drops = true
		if o.Stmt != nil {
			o.Change = s.rename(plan.Statement, nil)
		}
	}
	return run, false, nil
}

// newOwn returns a new statement of SQL's PREPARE, or why the client cannot have
// one more.
func (s *Session) newOwn(name string, text []byte, plan *router.Plan) (*statement, *wire.Error) {
	if e := s.mayName(); e != nil {
		return nil, e
	}
	if st := s.srv.registry.getOwn(name, text, nil, s.editionOf(text), true, plan); st != nil {
		return st, nil
	}
	return nil, errStatementMemory
}

// mayName returns why the client cannot have one more named statement; nil if it
// can.
func (s *Session) mayName() *wire.Error {
	if most := s.srv.current.Load().Config.Proxy.MaxClientPreparedStatements; most > 0 && len(s.stmts) >= most {
		return wire.Errorf(wire.CodeOutOfMemory, "more than %d prepared statements", most).
			WithHint("This is max_client_prepared_statements. DEALLOCATE, or Close, those that are not needed any more.")
	}
	return nil
}

var errStatementMemory = wire.Errorf(wire.CodeOutOfMemory, "no memory for another prepared statement").
	WithHint("The statements of all clients take prepared_statement_memory bytes.")

// nonsense is sent in place of a statement that the proxy refuses: the server must
// fail too, for the state of its transaction.
const nonsense = `SELECT "refused by the proxy"`

// refuseParse answers a Parse with an error.
func (s *Session) refuseParse(a *assembly, e *wire.Error, h wire.Header) (int, bool, error) {
	p := a.out.Made()
	*p = wire.AppendParse(*p, "", []byte(nonsense), nil)
	s.lease.SetUnnamed(s.srv.changes.Add(1)) // it is not the client's any more
	a.owed = append(a.owed, backend.Owed{Kind: backend.Parse, Do: backend.Replace, Sink: s, Err: e, Code: wire.CodeUndefinedColumn})
	s.forged, s.unit.keep = false, false
	return h.Size(), false, nil
}

// refusePrepare answers the simple query of a PREPARE with an error.
func (s *Session) refusePrepare(a *assembly, e *wire.Error) (run *router.Plan, done bool, err error) {
	p := a.out.Made()
	*p = wire.AppendQuery(*p, nonsense)
	a.owed = append(a.owed, backend.Owed{Kind: backend.Query, Do: backend.Replace, Sink: s, Err: e, Code: wire.CodeUndefinedColumn})
	s.forged, s.unit.keep = false, false
	s.unnamed.drop()
	s.lease.NoUnnamed()
	return nil, true, nil
}

// ensured waits until the server has what was put together for a simple query. An
// error is the client's answer.
func (s *Session) ensured(a *assembly) (done bool, err error) {
	pin, wrote, brief := a.pin, a.wrote, backend.PinBrief&^a.pin
	a.pin |= backend.PinBrief
	if err := s.flush(a); err != nil {
		return false, err
	}
	c := s.lease
	c.Quiet(s)
	if !c.Hold(s) {
		return false, s.lostBatch()
	}
	a.holding, a.pin, a.wrote = true, pin, wrote
	c.Unpin(brief) // it is held
	st := c.State()
	if st.Failed == nil {
		return false, nil
	}
	if err := s.flush(a); err != nil { // with nothing: lets go
		return false, err
	}
	return true, s.writeLocal(wire.AppendReadyForQuery(st.Failed.Append(nil), st.Status))
}

// bindPrepared deals with the Bind of a statement that uses prepared statements by
// name. It returns the plan of what will run, and the statement under the name
// that it is to be bound by. refused says why the client may not have it.
func (s *Session) bindPrepared(a *assembly, plan *router.Plan, q []byte, name string) (run *router.Plan, st *statement, refused *wire.Error) {
	st = s.stmts[name]
	run = s.resolved(plan)
	if plan.Use == router.PreparedAll {
		s.onlyMine(a, true)
		if st != nil {
			st = s.own(name, st)
		}
		return run, st, nil
	}
	own := s.named(a, plan.Statement, true)
	s.next = &backend.Owed{Stmt: own}
	if plan.Use != router.PreparedMake && plan.Use != router.PreparedDrop || !s.aloneFrom(q) {
		return run, st, nil
	}
	if plan.Use == router.PreparedDrop {
		s.next.Drops = true
		if own != nil {
			s.next.Change = s.rename(plan.Statement, nil)
		}
		return namesPlan, st, nil
	}
	if own == nil {
		text := s.unnamed.query
		if st != nil {
			text = st.Query
		}
		made, e := s.newOwn(plan.Statement, text, plan)
		if e != nil {
			return namesPlan, st, e
		}
		s.next = &backend.Owed{Stmt: &made.Statement, Makes: true, Change: s.rename(plan.Statement, made)}
		s.lease.Making(&made.Statement)
	}
	return namesPlan, st, nil
}

// executed notes what is owed for an Execute.
func (s *Session) executed(a *assembly) {
	s.push(a, backend.Execute)
	o := &a.owed[len(a.owed)-1]
	if next := s.next; next != nil {
		o.Stmt, o.Makes, o.Drops, o.Change = next.Stmt, next.Makes, next.Drops, next.Change
		s.next = nil
	}
	if s.dropping {
		s.dropping = false
		o.Change = s.dropAll()
	}
	o.Signal = s.signal
}
