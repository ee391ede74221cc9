package proxy

import (
	"pgproxy/backend"
	"pgproxy/router"
	"pgproxy/wire"
)

// Statements that are run again without the client's noticing, see
// backend/trial.go. Such a statement stands alone: in no transaction, with nothing
// in front of it and nothing behind it, and it changes nothing of the session. Or it
// is the first of a transaction whose BEGIN goes with it: that is rolled back with its
// server.

// maxRuns is how often one statement is run again, which may itself be what its
// servers die of. A BEGIN is not: see maxUnsent.
const maxRuns = 3

// unit is a simple query, or a batch up to its Sync.
type unit struct {
	from   int          // where it begins in what the client has just sent
	batch  uint64       // Session.batches while it is sent
	first  bool         // nothing of it was sent yet
	alone  bool         // nothing was put together in front of it
	keep   bool         // it may be run again
	commit bool         // it is a COMMIT alone, whose transaction is known by its id
	stale  bool         // it uses a statement that an earlier one has prepared
	parsed bool         // it has a Parse of the unnamed statement
	whole  bool         // it is one statement, all of it is in hand and nothing else
	reads  bool         // all of it is proved to read, or it is a BEGIN alone
	noted  *router.Plan // of the first statement in it
	begun  *begun       // the BEGIN that was put off and stands in front of it now
}

// begins reports whether a statement opens a transaction and does nothing else: it
// may be run again like a read.
func begins(plan *router.Plan) bool {
	return plan.Effects.Any(router.EffectBegin) && plan.Effects&^(router.EffectBegin|router.EffectBeginReadOnly) == 0
}

// note takes account of a statement in it.
func (u *unit) note(plan *router.Plan) {
	first := u.noted
	if first == nil {
		u.noted = plan
	}
	switch {
	case begins(plan) && (first == nil || first == plan):
		return
	case first != nil && begins(first):
		u.keep = false
		return
	}
	u.keep = u.keep && plan.Effects&^router.EffectWrite == 0 && plan.Proxy == nil
	u.reads = u.reads && (plan.Class == router.ClassRead || u.begun != nil && plan.Undoable)
}

// bind takes account of a Bind in it; plan is nil for a statement that is not
// known.
func (u *unit) bind(plan *router.Plan, unnamed bool) {
	if plan == nil {
		u.keep = false
		return
	}
	u.note(plan)
	u.stale = u.stale || !unnamed || !u.parsed
}

// trial says whether what is about to be sent, the client's bytes p, may have to
// be run again. Where there is more than one server anything may: a read because its
// server dies, the rest because the server was gone already.
func (s *Session) trial(a *assembly, p []byte) {
	u := &s.unit
	if u.commit {
		if u.first && !s.open && s.rest == 0 {
			s.tried = u.batch
			a.trial = backend.Trial{Bytes: p, First: true, Commit: &s.pending.xid}
		}
		u.first = false
		return
	}
	standby := s.leaseRole == router.RoleReplica && !s.readTx
	begin := u.reads && u.noted != nil && begins(u.noted)
	again := begin || u.reads && u.begun != nil || a.pace != nil || s.db.Several()
	if u.keep && (u.stale && u.begun == nil || standby || again) {
		s.tried, s.triedBegin, s.triedBegun = u.batch, begin, u.begun
		a.trial = backend.Trial{Bytes: p, First: u.first, Reads: u.reads, Block: u.begun != nil, Standby: standby, Instead: s.detour.instead}
	}
	u.first = false
}

// Failing notes that a trial has failed.
func (s *Session) Failing() { s.failing.Store(true) }

// Failed notes what is to be run again, and wakes the session's goroutine for it.
func (s *Session) Failed(f *backend.Failure) {
	s.mu.Lock()
	s.failed = f
	s.mu.Unlock()
	s.failing.Store(true)
	s.io.Nudge()
}

// hold keeps the lease if it still is one. What has failed is run again first.
func (s *Session) hold() bool {
	for s.lease != nil && !s.lease.Hold(s) {
		if !s.failing.Load() {
			return false
		}
		if err := s.rerun(); err != nil {
			s.end(err)
			return false
		}
	}
	return s.lease != nil
}

// quiet waits until the client has been written all that it is owed.
func (s *Session) quiet() error {
	for s.lease != nil {
		s.lease.Quiet(s)
		if !s.failing.Load() {
			break
		}
		if err := s.rerun(); err != nil {
			return err
		}
	}
	return nil
}

// detour is where a statement must go that is run again.
type detour struct {
	primary bool
	avoid   string // not to the server of this address, if there is another
	instead []byte // the error that the client gets for any other
	runs    int
}

// choose is router.Topology.Choose with the detour, which it puts into r.
func (d *detour) choose(t *router.Topology, p router.Policy, r *router.Request) router.Choice {
	if d.primary {
		r.Plan = refusedPlan
	}
	if d.avoid == "" {
		return t.Choose(p, r)
	}
	r.Avoid = d.avoid
	ch := t.Choose(p, r)
	if ch.Server < 0 {
		r.Avoid = ""
		ch = t.Choose(p, r)
	}
	return ch
}

// refusedPlan routes what a standby has refused.
var refusedPlan = &router.Plan{Class: router.ClassPrimary, Reason: "a standby has refused it"}

// rerun runs again what has failed. Nothing else of this client is on a server.
func (s *Session) rerun() error {
	if s.lease != nil {
		s.lease.Quiet(s)
	}
	s.mu.Lock()
	f := s.failed
	s.failed = nil
	s.failing.Store(false)
	s.mu.Unlock()
	canceled := s.canceled.Swap(false)
	if f == nil {
		return nil // its connection was closed by the proxy
	}
	if s.ending.Load() {
		return s.endReason()
	}
	if f.Cause == backend.CauseRefused {
		s.refused(f)
	}
	if f.Cause == backend.CauseCommit {
		return s.lookUp(f)
	}
	s.revertBatch(s.tried)
	if b := s.triedBegun; b != nil {
		s.began = false
		s.putOff(b)
	}
	if canceled || f.Cause == backend.CauseCanceled {
		if s.begun != nil {
			s.begun.failed = true
		}
		return s.writeLocal(wire.AppendReadyForQuery(errCanceled.Append(nil), s.localStatus()))
	}
	runs, most := s.detour.runs+1, maxRuns
	if f.Cause == backend.CauseDied && s.triedBegin {
		most = maxUnsent
	}
	if runs > most {
		return s.giveUp(f)
	}
	s.detour.runs = runs
	switch f.Cause {
	case backend.CauseStale:
		// A driver knows by this error that it must prepare anew: it has asked for
		// columns that are no more.
		if f.Error.Code == wire.CodeFeatureNotSupported {
			s.detour.instead = f.Answer[f.At:]
		}
	case backend.CauseRefused:
		s.detour.primary = true
	case backend.CauseConflict, backend.CauseDied:
		s.detour.avoid = s.lease.Addr
		if f.Cause == backend.CauseDied {
			s.srv.topo.Suspect(s.db.Name, s.lease.Addr)
		}
	}
	if f.Cause == backend.CauseStale {
		same, done, err := s.asTold(f.Sent)
		if err != nil || done {
			return err
		}
		if !same {
			return s.giveUp(f)
		}
	}
	s.srv.reruns[f.Cause].Add(1)
	next := s.unit
	_, err := s.walk(f.Sent, 0)
	s.unit, s.detour = next, detour{runs: runs}
	return err
}

// unsent sends a statement again whose server connection was dead before anything
// was sent: whatever it is, it has not been executed. used is how much of p was
// dealt with.
func (s *Session) unsent(p []byte, used int, why error) (int, error) {
	u := s.unit
	if !u.alone || s.rest > 0 || s.barrier != nil || s.detour.runs >= maxUnsent || s.ending.Load() {
		return used, why
	}
	s.open, s.skipping = false, false
	if u.begun != nil { // no server has heard of it either
		u.begun.own, s.began = false, false
		s.putOff(u.begun)
	}
	s.revertBatch(u.batch)
	s.detour.runs++
	n, err := s.walk(p[u.from:], 0)
	return u.from + n, err
}

// maxUnsent is how often one statement is sent again because its connection was
// dead. Each dead connection leaves its pool, so this is never reached but by
// servers that end every connection.
const maxUnsent = 100

// giveUp tells the client what the server has said at last.
func (s *Session) giveUp(f *backend.Failure) error {
	if f.Answer == nil {
		tell := f.Error
		if tell == nil {
			tell = wire.Fatalf(wire.CodeConnectionFailure, "server closed the connection unexpectedly")
		}
		return tell
	}
	return s.writeLocal(wire.AppendReadyForQuery(f.Answer, wire.TxIdle))
}

// refused remembers that a standby cannot run a statement.
func (s *Session) refused(f *backend.Failure) {
	if f.Error.Routine == "GetSerializableTransactionSnapshot" {
		return // it is the session's isolation level that a standby does not have
	}
	sql, plan := s.statementIn(f.Sent, f.Answered)
	if plan == nil || !plan.Refuse(f.Error.Message) {
		return
	}
	s.prover.Refresh() // it may have been read before somebody changed it
	s.srv.healed.Add(1)
	s.log().Warn("a standby has refused a statement: it goes to the primary from now on",
		"server", s.lease.Addr, "error", f.Error.Message, "code", f.Error.Code, "shape", s.srv.router.Shape(sql))
}

// statementIn returns the text and plan of the statement that is executed behind
// the first n of a simple query or batch; nil if that cannot be told.
func (s *Session) statementIn(p []byte, n int) (sql []byte, plan *router.Plan) {
	parsed := make(map[string][]byte)
	for len(p) >= wire.HeaderLen {
		h, err := wire.ReadHeader(p, s.maxPacket())
		if err != nil || len(p) < h.Size() {
			return nil, nil
		}
		body := p[wire.HeaderLen:h.Size()]
		switch h.Type {
		case wire.Query:
			sql = body[:len(body)-1]
			return sql, s.proved(s.srv.router.Plan(sql))
		case wire.Parse:
			if m, err := wire.ReadParse(body); err == nil {
				parsed[string(m.Name)] = m.Query
			}
		case wire.Bind:
			if _, name, _, ok := wire.ReadBindNames(body); ok {
				sql, plan = s.unnamed.query, s.planOf(name)
				if st := s.stmts[string(name)]; st != nil {
					sql = st.Query
				}
				if q, ok := parsed[string(name)]; ok {
					sql, plan = q, s.proved(s.srv.router.Plan(q))
				}
			}
		case wire.Execute:
			if n--; n < 0 {
				return sql, plan
			}
		}
		p = p[h.Size():]
	}
	return nil, nil
}
