package proxy

import (
	"bytes"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/router"
	"pgproxy/wire"
)

// With deferred_begin, a BEGIN that stands alone needs no server: it is answered here, and sent with the
// first statement that needs one, as Parse, Bind and Execute without a Sync in front
// of it. So a client that has said BEGIN and nothing more holds no connection, and
// the server skips the statement if BEGIN fails: the client hears that error in its
// place. A COMMIT or ROLLBACK right behind BEGIN is answered here as well.
//
// Where no server can be had for it, that is an error in the transaction: the client
// hears it, and is in a failed transaction block, which a server is made to have as
// well if anything but its end is asked for.
//
// The connection is chosen by BEGIN, not by the statement. A BEGIN that a replica
// could run, or whose place the client may still change, is not put off.

// begun is a BEGIN that was answered and that no server has heard of.
type begun struct {
	sql    string
	plan   *router.Plan
	portal bool // it came as a batch: its portal stays
	own    bool // it is sent alone, and its answer waited for
	failed bool // the client has had an error in its transaction
}

// defers reports whether a BEGIN can be put off: it stands alone, and would go to
// the primary whatever comes.
func (s *Session) defers(plan *router.Plan) bool {
	if !s.cfg.Proxy.DeferredBegin || plan.Effects&^router.EffectBeginReadOnly != router.EffectBegin || plan.Tag != "BEGIN" && plan.Tag != "START TRANSACTION" ||
		plan.Bad != nil || plan.Proxy != nil || s.mode != config.PoolTransaction || s.explains(plan) || s.ears.Load() != nil ||
		len(s.changes) > 0 || s.lease != nil && s.lease.HeldBy(s) {
		return false
	}
	if !s.splits() {
		return true
	}
	target, _ := s.wish(plan)
	return (s.db.ReadWriteSplit == config.SplitAuto || s.db.ReadWriteSplit == config.SplitHinted) &&
		plan.Class == router.ClassPrimary && target == "" && !s.leaves(plan)
}

// ends reports whether a statement only ends a transaction block.
func ends(plan *router.Plan) bool {
	return plan.Effects == router.EffectEnd && (plan.Tag == "COMMIT" || plan.Tag == "ROLLBACK") && plan.Bad == nil && !plan.Explain
}

// plain reports whether a statement can be sent in one write with BEGIN: nothing
// but its own answer comes of it.
func plain(plan *router.Plan) bool {
	return plan.Effects&^(router.EffectWrite|router.EffectDDL) == 0 && plan.Bad == nil && plan.Proxy == nil && plan.Listens == nil &&
		plan.Use == router.PreparedNone && !plan.Explain
}

// localStatus is the state of the client's transaction while it has no server.
func (s *Session) localStatus() wire.TxStatus {
	switch {
	case s.begun == nil:
		return wire.TxIdle
	case s.begun.failed:
		return wire.TxFailed
	}
	return wire.TxInside
}

// endTag is the tag of the statement that ends the transaction which was put off.
func (s *Session) endTag(plan *router.Plan) string {
	if s.begun != nil && s.begun.failed {
		return "ROLLBACK"
	}
	return plan.Tag
}

// putOff notes a BEGIN, or forgets the one that was put off.
func (s *Session) putOff(b *begun) {
	s.begun = b
	s.inBlock.Store(b != nil)
}

// deferQuery deals with a simple query if it is a BEGIN to be put off, or stands
// behind one. done says that the client was answered; otherwise the query goes its
// way.
func (s *Session) deferQuery(a *assembly, plan *router.Plan, q []byte, h wire.Header) (done bool, err error) {
	if s.open {
		return false, nil
	}
	tag := s.endTag(plan)
	switch {
	case s.begun == nil:
		if plan.Effects&router.EffectBegin == 0 || a.holding || !s.defers(plan) {
			return false, nil
		}
		s.putOff(&begun{sql: string(q[wire.HeaderLen : h.Size()-1]), plan: plan})
	case ends(plan) && !s.params.trace:
		s.putOff(nil)
	case plain(plan) && !s.params.trace && len(q) >= h.Size():
		return false, nil
	default:
		return false, s.beginNow(a)
	}
	s.unnamed.drop() // as the server does
	return true, s.writeLocal(wire.AppendReadyForQuery(wire.AppendCommandComplete(nil, tag), s.localStatus()))
}

// deferBatch is deferQuery for a batch of the extended protocol that starts at q and
// has nothing in it but this one statement. It returns how many bytes it is done
// with; 0 if the batch goes its way.
func (s *Session) deferBatch(a *assembly, plan *router.Plan, q []byte) (n int, err error) {
	begins := s.begun == nil && plan.Effects.Any(router.EffectBegin) && s.defers(plan)
	if s.open || a.holding || !begins && (s.begun == nil || !ends(plan) || s.params.trace) {
		return 0, nil
	}
	var parsed *wire.ParseMessage
	var sql, out []byte
	bound, ran := false, false
	for rest := q; ; {
		if len(rest) < wire.HeaderLen {
			return 0, nil
		}
		h, err := wire.ReadHeader(rest, s.maxPacket())
		if err != nil || len(rest) < h.Size() {
			return 0, nil
		}
		body := rest[wire.HeaderLen:h.Size()]
		rest = rest[h.Size():]
		n += h.Size()
		switch h.Type {
		case wire.Parse:
			m, err := wire.ReadParse(body)
			if err != nil || parsed != nil || bound || len(m.Name) > 0 || !bytes.Equal(m.OIDs, []byte{0, 0}) {
				return 0, nil
			}
			parsed, sql = &m, m.Query
			out = wire.AppendEmpty(out, wire.ParseComplete)
		case wire.Bind:
			portal, name, used, ok := wire.ReadBindNames(body)
			if !ok || bound || len(portal) > 0 || parsed != nil && len(name) > 0 || !bytes.HasPrefix(body[used:], []byte{0, 0, 0, 0}) {
				return 0, nil
			}
			if parsed == nil {
				if s.planOf(name) == nil {
					return 0, nil
				}
				sql = s.statementText(name)
			}
			bound = true
			out = wire.AppendEmpty(out, wire.BindComplete)
		case wire.Describe:
			kind, name, err := wire.ReadTarget(body)
			if err != nil || kind != 'P' || len(name) > 0 || !bound || ran {
				return 0, nil
			}
			out = wire.AppendEmpty(out, wire.NoData)
		case wire.Execute:
			if !bound || ran || len(body) != 5 || body[0] != 0 {
				return 0, nil
			}
			ran = true
			out = wire.AppendCommandComplete(out, s.endTag(plan))
		case wire.Sync:
			if h.Body != 0 || !ran || len(sql) == 0 {
				return 0, nil
			}
			if s.begun == nil {
				s.putOff(&begun{sql: string(sql), plan: plan, portal: true})
			} else {
				s.putOff(nil)
			}
			if parsed != nil {
				s.unnamed = unnamedStatement{
					id: s.srv.changes.Add(1), query: bytes.Clone(parsed.Query), oids: bytes.Clone(parsed.OIDs), plan: plan,
				}
			}
			s.batches++
			return n, s.writeLocal(wire.AppendReadyForQuery(out, s.localStatus()))
		default:
			return 0, nil
		}
	}
}

// begin puts the BEGIN that was put off in front of what is sent to the lease.
func (s *Session) begin(a *assembly) {
	b := s.begun
	s.putOff(nil)
	s.unit.begun, s.forged, s.began = b, false, true
	s.unit.keep = s.unit.keep && !b.own
	n := len(a.owed)
	p := a.out.Made()
	a.owed, *p = s.lease.Inside(b.sql, s, a.owed, *p)
	if !b.portal {
		*p = wire.AppendTarget(*p, wire.Close, 'P', "")
		a.owed = append(a.owed, backend.Owed{Kind: backend.Close, Do: backend.Swallow, Sink: s})
	}
	if b.failed {
		a.owed, *p = s.lease.Inside(refusals[wire.CodeUndefinedObject], s, a.owed, *p)
	}
	if b.own {
		for i := range a.owed[n:] {
			a.owed[n+i].Own = true
		}
		s.endBegin(a)
	}
}

// endBegin appends the Sync behind a BEGIN that no Sync of the client's follows. If
// BEGIN fails, its ReadyForQuery is the client's.
func (s *Session) endBegin(a *assembly) {
	s.began = false
	p := a.out.Made()
	*p = wire.AppendSync(*p)
	a.owed = append(a.owed, backend.Owed{Kind: backend.Sync, Do: backend.Swallow, Own: true, Sink: s})
}

// beginNow sends the BEGIN that was put off and waits for its answer: the lease is
// kept then, in a transaction, or in a failed one.
func (s *Session) beginNow(a *assembly) error {
	b := s.begun
	b.own = true
	if err := s.lend(a, b.plan); err != nil {
		b.own = false
		return err
	}
	pin, brief := a.pin, backend.PinBrief&^a.pin
	a.pin |= backend.PinBrief
	if err := s.flush(a); err != nil {
		return err
	}
	c := s.lease
	c.Quiet(s)
	if !c.Hold(s) {
		return s.lostBatch()
	}
	a.holding, a.pin = true, pin
	c.Unpin(brief) // it is held
	if st := c.State(); st.Failed != nil && (!b.failed || st.Status != wire.TxFailed) {
		e := *st.Failed
		e.Severity = wire.SeverityFatal
		return &e
	}
	return nil
}
