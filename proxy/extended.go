package proxy

import (
	"bytes"
	"crypto/rand"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/router"
	"pgproxy/wire"
)

// The extended query protocol. A batch is everything up to Sync: the server runs
// it as one transaction, so it goes to one server, and to a replica only if all
// of it is in hand and proved to read. Names of prepared statements are the
// client's own; on servers the statements have other ones (statements.go).

// maxName is the longest name of a statement or portal in bytes that is taken.
const maxName = 16 << 10

// ownPrefix starts the names that statements have on servers. Nobody can guess
// one. A client's name like that is never passed on.
var ownPrefix = []byte("pgproxy_" + rand.Text()[:8] + "_")

// noStatement is a name that no server connection has a statement of.
var noStatement = string(ownPrefix) + "0"

var (
	partPlan = &router.Plan{Class: router.ClassPrimary, Reason: "batch not complete in hand"}
	bonePlan = &router.Plan{Class: router.ClassPrimary, Reason: "batch without a statement"}
)

// needBatch makes s.lease a connection for the batch that the message at the
// front of q belongs to.
func (s *Session) needBatch(a *assembly, q []byte) error {
	if s.open {
		a.explains = false
		if !a.holding {
			a.holding = s.hold()
		}
		if !a.holding {
			return s.lostBatch()
		}
		return nil
	}
	plan := partPlan
	if s.splits() {
		plan = s.lookahead(a, q)
		if s.block.roams && s.readTx && !s.plainBatch(q) {
			plan = partPlan
		}
	} else if s.unit.whole {
		if p := s.wholePlan(a, q); p != nil && p.Shareable() {
			plan = p
		}
	}
	a.explains = (s.explains(plan) || a.explains) && s.executes(q)
	if err := s.need(a, plan); err != nil {
		return err
	}
	if s.shadowing && s.sampled() {
		s.listenForBatch(q)
	}
	if s.db.TrackCommits {
		s.trackBatch(a, q)
	}
	s.openBatch()
	return nil
}

// openBatch notes that a batch begins on the lease.
func (s *Session) openBatch() {
	s.lease.Batch()
	s.open, s.binds, s.signal, s.next = true, 0, 0, nil
	s.dropping = false
}

// executes reports whether the batch that starts at q may run a statement, and not
// only prepare or describe some.
func (s *Session) executes(q []byte) bool {
	for len(q) >= wire.HeaderLen {
		h, err := wire.ReadHeader(q, s.maxPacket())
		switch {
		case err != nil || len(q) < h.Size() || h.Type == wire.Bind:
			return true
		case h.Type == wire.Sync:
			return false
		}
		q = q[h.Size():]
	}
	return true
}

// lostBatch is the end of a session whose server has died in a batch.
func (s *Session) lostBatch() error {
	if err := s.endReason(); err != nil {
		return err
	}
	return wire.Fatalf(wire.CodeConnectionFailure, "server closed the connection unexpectedly")
}

// splits reports whether there is more than one server to choose from, as the
// statement is.
func (s *Session) splits() bool {
	return s.db.Several() && s.db.ReadWriteSplit != config.SplitOff && s.db.ReadWriteSplit != config.SplitAny &&
		s.mode != config.PoolSession
}

// lookahead returns the plan of the batch that starts at q: that of its first
// statement if all of them are reads and everything up to Sync is in hand, else
// one for the primary.
func (s *Session) lookahead(a *assembly, q []byte) *router.Plan {
	batch := bonePlan
	// planOf knows statements by what was sent before. The Parse of another unnamed
	// one in this batch has told what that is.
	parsed := false
	planOf := func(name []byte) *router.Plan {
		if parsed && len(name) == 0 {
			return nil
		}
		return s.resolved(s.planOf(name))
	}
	for len(q) >= wire.HeaderLen {
		h, err := wire.ReadHeader(q, s.maxPacket())
		if err != nil || len(q) < h.Size() {
			return partPlan
		}
		body := q[wire.HeaderLen:h.Size()]
		var plan *router.Plan
		switch h.Type {
		case wire.Sync:
			return batch
		case wire.Parse:
			if m, err := wire.ReadParse(body); err == nil {
				plan = s.resolved(s.plan(a, m.Query))
				parsed = parsed || len(m.Name) == 0
			}
		case wire.Bind:
			if _, name, _, ok := wire.ReadBindNames(body); ok {
				plan = planOf(name)
			}
		case wire.Describe:
			if kind, name, err := wire.ReadTarget(body); err == nil && kind == 'S' {
				plan = planOf(name)
			}
		case wire.Execute, wire.Close, wire.Flush:
		default:
			return partPlan
		}
		if plan != nil {
			target, _ := s.wish(plan)
			switch {
			case plan.Refused() == "" && s.hinted(plan):
				if batch == bonePlan {
					batch = plan
				}
			case plan.Class == router.ClassPrimary, target == router.TargetPrimary, plan.Refused() != "":
				if s.leaves(plan) && (batch != bonePlan || !endsWith(q, s.maxPacket())) {
					return beginPlan
				}
				if plan.Effects.Any(router.EffectEnd) && batch.Effects.Any(router.EffectBegin) && endsWith(q, s.maxPacket()) {
					return batch // BEGIN READ ONLY ... COMMIT, and nothing behind it
				}
				return plan
			case batch == bonePlan || plan.Effects != 0 || target != "" && batch.Effects == 0:
				batch = plan
			}
		}
		q = q[h.Size():]
	}
	return partPlan
}

// hinted reports whether a statement that is not proved a read may leave the
// primary all the same, because the client or a rule asks for that.
func (s *Session) hinted(plan *router.Plan) bool {
	if plan.Class != router.ClassPrimary || !plan.Hintable() {
		return false
	}
	target, _ := s.wish(plan)
	return target != "" && target != router.TargetPrimary
}

// endsWith reports whether of the batch that goes on with q only one statement is
// left.
func endsWith(q []byte, limit int) bool {
	statements := 0
	for len(q) >= wire.HeaderLen {
		h, err := wire.ReadHeader(q, limit)
		if err != nil || len(q) < h.Size() {
			return false
		}
		switch h.Type {
		case wire.Sync:
			return true
		case wire.Parse, wire.Bind:
			if h.Type == wire.Bind {
				statements++
			}
			if statements > 1 || h.Type == wire.Parse && statements > 0 {
				return false
			}
		}
		q = q[h.Size():]
	}
	return false
}

// planOf returns the plan of a statement that the client has; nil if it has none
// of this name (then the batch holds its Parse, or fails).
func (s *Session) planOf(name []byte) *router.Plan {
	if len(name) == 0 {
		if s.unnamed.id == 0 {
			return nil
		}
		return s.proved(s.unnamed.plan)
	}
	if st := s.stmts[string(name)]; st != nil {
		return s.proved(st.runs())
	}
	return nil
}

var (
	errParseFormat  = wire.Fatalf(wire.CodeProtocolViolation, "invalid format of Parse message")
	errBindFormat   = wire.Fatalf(wire.CodeProtocolViolation, "invalid format of Bind message")
	errTargetFormat = wire.Fatalf(wire.CodeProtocolViolation, "invalid format of Describe or Close message")
)

// parse handles Parse.
func (s *Session) parse(a *assembly, q []byte, h wire.Header) (int, bool, error) {
	if len(q) < h.Size() {
		if h.Body <= s.parseMax() {
			return 0, true, nil
		}
		return s.longParse(a, q, h)
	}
	m, err := wire.ReadParse(q[wire.HeaderLen:h.Size()])
	if err != nil {
		return 0, false, errParseFormat
	}
	plan := s.plan(a, m.Query)
	if plan.Effects.Any(router.EffectBegin) && s.mode == config.PoolStatement {
		return 0, false, errBlock
	}
	if n, err := s.deferBatch(a, plan, q); n > 0 || err != nil {
		return n, false, err
	}
	if !s.open {
		if err := s.before(a, plan); err != nil {
			return 0, false, err
		}
	}
	if plan.Bad != nil {
		return s.refuseBatch(a, q, errBad(plan), h)
	}
	if plan.Proxy != nil {
		if err := s.check(plan.Proxy); err != nil {
			return s.refuseBatch(a, q, err, h)
		}
		m.Query = standIn(plan)
	}
	if err := s.sure(a, m.Name); err != nil {
		return 0, false, err
	}
	if text, ok := s.ownChannels(plan, m.Query); ok {
		m.Query = []byte(text)
	}
	if !s.open && !a.holding {
		if n, err := s.parseAlone(q, h, m); n > 0 || err != nil {
			return n, false, err
		}
	}
	a.explains = plan.Explain
	if err := s.needBatch(a, q); err != nil {
		return s.failBatch(err, h)
	}
	a.parses++
	s.unit.note(s.resolved(plan))
	s.expose(a, plan)
	if len(m.Name) == 0 {
		s.unit.parsed = true
		return s.parseUnnamed(a, q, h, m, plan)
	}
	name := string(m.Name)
	if s.stmts[name] != nil {
		s.parseTaken(a, name, &m)
		return h.Size(), false, nil
	}
	if e := s.mayName(); e != nil {
		return s.refuseParse(a, e, h)
	}
	st := s.srv.registry.get(m.Query, m.OIDs, s.editionOf(m.Query), func() *router.Plan { return plan.Draft() })
	if st == nil {
		return s.refuseParse(a, errStatementMemory, h)
	}
	s.prepare(a, st, s.rename(name, st), len(q) == h.Size())
	return h.Size(), false, nil
}

// parseTaken has the server refuse a Parse of a name that the client has. The server
// must fail as well, for the state of its transaction, and with whatever it finds wrong
// first: it is asked for a name that it has. Only that name is taken out of its answer.
func (s *Session) parseTaken(a *assembly, name string, m *wire.ParseMessage) {
	taken := s.prepare(a, s.stmts[name], 0, false)
	e := wire.Errorf(wire.CodeDuplicatePrepared, "prepared statement %q already exists", name)
	p := a.out.Made()
	*p = wire.AppendParse(*p, taken.Name, m.Query, m.OIDs)
	a.owed = append(a.owed, backend.Owed{Kind: backend.Parse, Do: backend.Replace, Sink: s, Err: e})
	s.forged = false
}

// prepare makes sure that the lease's server has the statement, and returns the
// one that it has. change is the number of the client's Parse; 0 where it has sent
// none.
//
// last says that the client's Parse is the last message in hand. The server is to
// see it then: with it begins its transaction, and the time of statement_timeout.
func (s *Session) prepare(a *assembly, st *statement, change uint64, last bool) *statement {
	before := len(a.owed)
	p := a.out.Made()
	if st.Own {
		a.owed, *p = s.lease.PrepareOwn(&st.Statement, s, true, a.owed, *p)
		s.forged = s.forged && len(a.owed) == before
		return st
	}
	if change == 0 {
		st = s.twin(st)
	}
	a.owed, *p = s.lease.Prepare(&st.Statement, s, change, change != 0 && (last || !s.srv.registry.isProved(st, s.proof())), a.owed, *p)
	if n := len(a.owed); n > before {
		s.forged = a.owed[n-1].Kind == backend.Forge
	}
	return st
}

// parseUnnamed relays a Parse of the unnamed statement and keeps a copy of it.
func (s *Session) parseUnnamed(a *assembly, q []byte, h wire.Header, m wire.ParseMessage, plan *router.Plan) (int, bool, error) {
	u := &s.unnamed
	u.id = s.srv.changes.Add(1)
	u.query = append(u.query[:0], m.Query...)
	u.oids = append(u.oids[:0], m.OIDs...)
	u.plan = plan.Draft()
	s.lease.SetUnnamed(u.id)
	a.owed = append(a.owed, backend.Owed{Kind: backend.Parse, Sink: s, Change: u.id})
	s.forged = false
	if plan.Proxy != nil {
		p := a.out.Made()
		*p = wire.AppendParse(*p, "", m.Query, m.OIDs)
		return h.Size(), false, nil
	}
	if len(m.Query) > 0 && &m.Query[0] != &q[wire.HeaderLen+1] {
		p := a.out.Made() // ownChannels has changed it
		*p = wire.AppendParse(*p, "", m.Query, m.OIDs)
		return h.Size(), false, nil
	}
	a.out.Relay(q[:h.Size()])
	return h.Size(), false, nil
}

// longParse relays a Parse that is too long to be kept. The statement exists on
// this one server connection, which stays with the client for that reason.
func (s *Session) longParse(a *assembly, q []byte, h wire.Header) (int, bool, error) {
	name, text, ok := wire.String(q[wire.HeaderLen:])
	if !ok {
		if len(q) > maxName {
			return 0, false, errName
		}
		return 0, true, nil
	}
	if bytes.HasPrefix(name, ownPrefix) || s.stmts[string(name)] != nil {
		return 0, false, wire.Fatalf(wire.CodeProgramLimit, "prepared statement %q is longer than max_query_parse_size", name)
	}
	if err := s.needBatch(a, q); err != nil {
		return s.failBatch(err, h)
	}
	s.absent(a, name)
	if len(name) == 0 {
		s.unnamed = unnamedStatement{id: s.srv.changes.Add(1), plan: router.TooLarge()}
		s.lease.SetUnnamed(s.unnamed.id)
	}
	if e := s.pin(a, backend.PinStatement, text); e != nil {
		return s.refuse(a, e, h)
	}
	a.wrote, a.ends = true, true
	s.unit.keep = false
	s.push(a, backend.Parse)
	return s.stream(h)
}

var errName = wire.Fatalf(wire.CodeProtocolViolation, "name of a statement or portal is longer than %d bytes", maxName)

// bind handles Bind. Its parameters are not looked at.
func (s *Session) bind(a *assembly, q []byte, h wire.Header) (int, bool, error) {
	body := q[wire.HeaderLen:min(len(q), h.Size())]
	portal, name, n, ok := wire.ReadBindNames(body)
	if !ok {
		switch {
		case len(q) >= h.Size():
			return 0, false, errBindFormat
		case len(q) > maxName:
			return 0, false, errName
		}
		return 0, true, nil
	}
	if err := s.sure(a, name); err != nil {
		return 0, false, err
	}
	plan := s.planOf(name)
	run := s.resolved(plan)
	if plan != nil {
		if n, err := s.deferBatch(a, plan, q); n > 0 || err != nil {
			return n, false, err
		}
	}
	if run != nil && !s.open {
		if err := s.before(a, run); err != nil {
			return 0, false, err
		}
	}
	if plan != nil && plan.Use != router.PreparedNone {
		if err := s.sureOf(a, plan); err != nil {
			return 0, false, err
		}
	}
	a.explains = run != nil && run.Explain
	if err := s.needBatch(a, q); err != nil {
		return s.failBatch(err, h)
	}
	a.binds++
	s.binds++
	st := s.stmts[string(name)]
	if plan != nil && plan.Proxy != nil {
		stand := ""
		if st != nil && len(name) > 0 {
			stand = s.prepare(a, st, 0, false).Name
		} else {
			s.reparse(a, name)
		}
		return s.bindOwn(a, q, h, plan, portal, n, stand)
	}
	if plan != nil && plan.Use != router.PreparedNone {
		var e *wire.Error
		if run, st, e = s.bindPrepared(a, plan, q, string(name)); e != nil {
			return s.refuseBind(a, e, portal, n, h)
		}
	}
	s.unit.bind(run, len(name) == 0)
	s.bound(portal)
	if run == nil {
		a.wrote, a.ends = true, true // what SQL's PREPARE has made where it could not be followed
	} else if run.Listens != nil && s.shares(run) {
		if err := s.bindListen(portal, run.Listens[0]); err != nil {
			return 0, false, err
		}
	} else {
		var params []byte
		if len(q) >= h.Size() && plan.Use == router.PreparedNone {
			params = body[n:]
		}
		if e := s.pin(a, pinsOf(run, params), s.statementText(name)); e != nil {
			return s.refuse(a, e, h)
		}
		s.sequences(a, run, true)
		s.effects(a, run, run.Effects.Any(stateEffects) && s.aloneFrom(q), params)
		s.signal |= signalOf(run)
		s.dropping = run.Effects.Any(router.EffectDiscardAll|router.EffectDeallocateAll) && !run.Effects.Any(router.EffectMulti) && !s.aloneFrom(q)
	}
	if len(name) == 0 || st == nil {
		s.absent(a, name)
		s.reparse(a, name)
		s.push(a, backend.Bind)
		if !bytes.HasPrefix(name, ownPrefix) {
			return s.stream(h)
		}
		return s.rebind(a, portal, noStatement, n, h)
	}
	st = s.prepare(a, st, 0, false)
	if told := s.told[string(name)]; told != nil {
		if same, err := s.givesAsTold(a, st, told.Load(), q); err != nil {
			return 0, false, err
		} else if !same {
			return s.refuseBind(a, errStalePlan, portal, n, h)
		}
	}
	s.push(a, backend.Bind)
	a.owed[len(a.owed)-1].Stmt = &st.Statement
	return s.rebind(a, portal, st.Name, n, h)
}

// refuseBind has the server refuse a Bind, and the client hear e.
func (s *Session) refuseBind(a *assembly, e *wire.Error, portal []byte, n int, h wire.Header) (int, bool, error) {
	a.owed = append(a.owed, backend.Owed{Kind: backend.Bind, Do: backend.Replace, Sink: s, Err: e, Code: wire.CodeUndefinedStatement})
	s.forged, s.unit.keep = false, false
	return s.rebind(a, portal, noStatement, n, h)
}

// rebind relays a Bind under another statement name: its head now, n bytes of
// names shorter, and the rest as it comes.
func (s *Session) rebind(a *assembly, portal []byte, statement string, n int, h wire.Header) (int, bool, error) {
	p := a.out.Made()
	*p = wire.AppendBindHead(*p, portal, statement, h.Body-n)
	s.rest, s.drop = h.Body-n, false
	return wire.HeaderLen + n, false, nil
}

// reparse prepares the client's unnamed statement again if this server
// connection has another one, and takes that away if the client has none.
func (s *Session) reparse(a *assembly, name []byte) {
	if len(name) != 0 {
		return
	}
	u := &s.unnamed
	if u.id == 0 {
		p := a.out.Made()
		a.owed, *p = s.lease.DropUnnamed(s, a.owed, *p)
		return
	}
	if u.query == nil || s.lease.Unnamed(u.id) {
		return
	}
	s.lease.SetUnnamed(u.id)
	p := a.out.Made()
	*p = wire.AppendParse(*p, "", u.query, u.oids)
	a.owed = append(a.owed, backend.Owed{Kind: backend.Parse, Do: backend.Swallow, Sink: s})
}

// target handles Describe and Close.
func (s *Session) target(a *assembly, q []byte, h wire.Header) (int, bool, error) {
	if len(q) < h.Size() {
		if h.Body > maxName {
			return 0, false, errName
		}
		return 0, true, nil
	}
	kind, name, err := wire.ReadTarget(q[wire.HeaderLen:h.Size()])
	if err != nil {
		return 0, false, errTargetFormat
	}
	if kind == 'S' {
		if err := s.sure(a, name); err != nil {
			return 0, false, err
		}
	}
	if h.Type == wire.Close {
		if done, err := s.closeLocally(a, kind, name); done || err != nil {
			return h.Size(), false, err
		}
	}
	if err := s.needBatch(a, q); err != nil {
		return s.failBatch(err, h)
	}
	if kind == 'S' && s.stmts[string(name)] == nil {
		s.absent(a, name)
	}
	if h.Type == wire.Close {
		s.push(a, backend.Close)
	} else {
		if kind == 'S' {
			if st := s.stmts[string(name)]; st != nil {
				s.expose(a, st.runs())
				s.describe(a, string(name), s.prepare(a, st, 0, false))
				return h.Size(), false, nil
			}
			s.reparse(a, name)
		}
		s.push(a, backend.Describe)
	}
	if kind == 'S' && bytes.HasPrefix(name, ownPrefix) {
		p := a.out.Made()
		*p = wire.AppendTarget(*p, h.Type, 'S', noStatement)
		return h.Size(), false, nil
	}
	a.out.Relay(q[:h.Size()])
	return h.Size(), false, nil
}

// closeLocally handles a Close that no server needs to see: of a statement that
// others may share, or of anything while no server is lent.
func (s *Session) closeLocally(a *assembly, kind byte, name []byte) (done bool, err error) {
	if !a.holding {
		a.holding = s.hold()
	}
	known := kind == 'S' && s.stmts[string(name)] != nil
	if kind == 'S' && len(name) == 0 {
		s.unnamed.drop()
	}
	if !a.holding {
		if known {
			s.unname(string(name))
		}
		if s.begun != nil && kind == 'P' && len(name) == 0 {
			s.begun.portal = false
		}
		return true, s.writeLocal(wire.AppendEmpty(nil, wire.CloseComplete))
	}
	if known {
		if !s.open {
			s.openBatch()
		}
		change := s.rename(string(name), nil)
		// The server closes something else: it may take the message for what it is
		// not, in a COPY for one.
		p := a.out.Made()
		*p = wire.AppendTarget(*p, wire.Close, 'S', noStatement)
		a.owed = append(a.owed, backend.Owed{Kind: backend.Close, Sink: s, Change: change})
		s.forged = false
	}
	return known, nil
}

// flushMessage handles Flush.
func (s *Session) flushMessage(a *assembly, h wire.Header) (int, bool, error) {
	// The client waits for what there is of the answer. What is held back of it, by a
	// server that has sent it before it had to, goes out with the next thing it says.
	s.forged = s.forged || s.unit.keep && !s.unit.first
	s.unit.keep = false
	if !a.holding {
		a.holding = s.hold()
	}
	if !a.holding {
		return s.discard(h)
	}
	s.pushForged(a)
	return s.stream(h)
}

// pushForged gives the server something to answer if the last reply is one that
// the proxy makes itself, since that goes out with the server's next one.
func (s *Session) pushForged(a *assembly) {
	if !s.forged {
		return
	}
	s.forged = false
	p := a.out.Made()
	*p = wire.AppendTarget(*p, wire.Close, 'S', noStatement)
	a.owed = append(a.owed, backend.Owed{Kind: backend.Close, Do: backend.Swallow, Sink: s})
}

// flushOut has the server answer what it has of the open batch.
func (s *Session) flushOut(a *assembly) {
	if !a.holding {
		a.holding = s.hold()
	}
	if a.holding {
		s.pushForged(a)
		p := a.out.Made()
		*p = wire.AppendFlush(*p)
	}
}

// sync handles Sync. Without a server the proxy answers itself: there is nothing
// to commit.
func (s *Session) sync(a *assembly, q []byte, h wire.Header) (int, bool, error) {
	if h.Body != 0 || len(q) < h.Size() {
		return 0, false, wire.Fatalf(wire.CodeProtocolViolation, "invalid length of Sync message")
	}
	s.open, s.began = false, false
	s.batches++
	if !s.skipping && !a.holding {
		a.holding = s.hold()
	}
	if s.skipping || !a.holding {
		s.skipping = false
		return h.Size(), false, s.writeLocal(wire.AppendReadyForQuery(nil, s.localStatus()))
	}
	s.push(a, backend.Sync)
	a.out.Relay(q[:h.Size()])
	return h.Size(), false, s.settleAll(a)
}
