package proxy

import (
	"strings"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/router"
	"pgproxy/wire"
)

// Where a transaction block is. One that is READ ONLY, by its BEGIN or by
// default_transaction_read_only, may be on a replica as a whole. With
// transaction_reads = "until_write" any other one at read committed begins there
// too, and moves to the primary in front of its first statement that is not proved a
// read. That is invisible: each statement has a snapshot of its own, so far nothing
// was locked, set, or left open, and the primary shows at least as much. What tells
// the time of BEGIN makes the block move first, and so do others' writes that its
// replica does not show, where they count.

// block is the transaction block that the lease is in.
type block struct {
	begin   string // how to begin it anew; "" is none, or one that cannot
	roams   bool   // it is on a replica and may write
	fresh   bool   // no statement has run in it yet
	checked bool   // its isolation level is known to be read committed
}

// beginPlan routes a batch that begins a block and goes on with something else.
var beginPlan = &router.Plan{Class: router.ClassPrimary, Reason: "transaction: BEGIN and more in one batch", Effects: router.EffectBegin}

// leaves reports whether a BEGIN that does not say READ ONLY may run on a replica.
// Nothing else may be in its batch.
func (s *Session) leaves(plan *router.Plan) bool {
	b := plan.Block
	switch {
	case b == nil || plan.Effects != router.EffectBegin || b.Isolation == "serializable":
		return false
	case b.Access == router.AccessDefault && s.readOnly():
		return true
	case s.db.TransactionReads != config.TransactionReadsUntilWrite || b.Access == router.AccessReadOnly:
		return false
	}
	level := b.Isolation
	if level == "" {
		level, _ = s.settings.Load().Get("default_transaction_isolation")
	}
	level = strings.ToLower(level)
	return level == "" || committed(level)
}

// committed reports whether each statement of a block has a snapshot of its own.
func committed(level string) bool { return level == "read committed" || level == "read uncommitted" }

// readOnly reports whether the session's blocks are READ ONLY unless they say
// something else.
func (s *Session) readOnly() bool {
	value, _ := s.settings.Load().Get("default_transaction_read_only")
	on, _ := boolean(value)
	return on
}

// enter notes that the plan, which is about to run on the lease, begins a block.
func (s *Session) enter(plan *router.Plan) {
	if plan.Effects.Has(router.EffectBegin|router.EffectEnd) && s.leaseRole == router.RoleReplica && s.block.begin != "" {
		s.block.fresh = true // AND CHAIN: a block like the one before
		return
	}
	s.block = block{}
	b := plan.Block
	if b == nil || plan.Effects.Any(router.EffectMulti) {
		return
	}
	s.block = block{begin: "BEGIN", fresh: true}
	if b.Isolation != "" {
		s.block.begin += " ISOLATION LEVEL " + strings.ToUpper(b.Isolation)
	}
	switch b.Access {
	case router.AccessReadOnly:
		s.block.begin += " READ ONLY"
	case router.AccessReadWrite:
		s.block.begin += " READ WRITE"
	}
	s.block.roams = s.leaseRole == router.RoleReplica && b.Access != router.AccessReadOnly && (b.Access != router.AccessDefault || !s.readOnly())
}

// modes reports whether a statement sets the modes of its block, which it can only
// before any other.
func modes(plan *router.Plan) bool {
	return len(plan.Vars) > 0 && strings.HasPrefix(plan.Vars[0].Name, "transaction_")
}

// stays reports whether a statement of a block on a replica may run there.
func (s *Session) stays(plan *router.Plan) bool {
	if plan.Effects.Any(router.EffectEnd) && (plan.Tag == "COMMIT" || plan.Tag == "ROLLBACK") {
		return true
	}
	if s.block.fresh && modes(plan) {
		return false
	}
	target, _ := s.wish(plan)
	return !s.block.roams || plan.Class == router.ClassRead && plan.Refused() == "" && !plan.Clock && target != router.TargetPrimary &&
		!s.behind()
}

// roam makes sure that the next statement of a block on a replica can run on the
// lease: where it cannot, the block moves. The lease is kept.
func (s *Session) roam(a *assembly, plan *router.Plan) error {
	b := &s.block
	if b.begin == "" || s.leaseRole != router.RoleReplica {
		b.fresh = false
		return nil
	}
	stays := s.stays(plan)
	if stays && (!b.roams || b.checked || plan.Effects.Any(router.EffectEnd)) {
		b.fresh = b.fresh && plan.Effects.Any(router.EffectBegin)
		return nil
	}
	if err := s.calm(a); err != nil {
		return err
	}
	if !s.hold() {
		a.holding = false
		return nil // it was over
	}
	a.holding = true
	if s.lease.State().Status != wire.TxInside {
		return nil // failed: the server says so; or over
	}
	if stays {
		ok, err := s.checkLevel(a)
		if ok || err != nil {
			b.checked, b.fresh = true, false
			return err
		}
	}
	return s.move(a, router.TargetPrimary)
}

// checkLevel asks the server whether the block is at read committed.
func (s *Session) checkLevel(a *assembly) (bool, error) {
	p := a.out.Made()
	a.owed, *p = s.lease.AppendRead([]string{"transaction_isolation"}, a.owed, *p)
	if err := s.flush(a); err != nil {
		return false, err
	}
	s.lease.Quiet(s)
	if !s.lease.Hold(s) {
		return false, s.lostBatch()
	}
	a.holding = true
	level, _ := s.lease.State().Read.Get("transaction_isolation")
	return committed(level), nil
}

// movedPlan routes a block that moves.
var movedPlan = &router.Plan{Class: router.ClassPrimary, Reason: "transaction: begun anew on another server", Effects: router.EffectBegin}

// move ends the block on the lease, where it has changed nothing, and begins it anew
// on a server that the target means. Nothing is owed, and the lease is kept, as the
// new one is. An error that is no refusal before anything was done ends the session:
// its block is gone.
func (s *Session) move(a *assembly, target string) error {
	begin := s.block.begin
	old := s.lease
	owed := []backend.Owed{{Kind: backend.Query, Do: backend.Swallow, Own: true}}
	old.NoUnnamed()
	if err := old.Send(&backend.Parcel{Owed: owed, Bytes: wire.AppendQuery(nil, "ROLLBACK")}); err != nil {
		return err
	}
	old.Quiet(s)
	old.Unpin(backend.PinCommit) // there is no COMMIT to wait for any more
	s.lease, s.readTx, a.holding = nil, false, false
	s.unit.keep = false
	if target != router.TargetPrimary { // which the plan is for by itself
		s.params.local = target
	}
	c, err := s.equip(a, movedPlan, 0)
	s.params.local = ""
	if err != nil {
		return wire.Fatalf(wire.CodeConnectionFailure, "the transaction could not go on on another server").Because(err)
	}
	p := a.out.Made()
	*p = wire.AppendQuery(*p, begin)
	a.owed = append(a.owed, owed...)
	c.NoUnnamed()
	if err := s.flush(a); err != nil {
		return err
	}
	c.Quiet(s)
	if !c.Hold(s) {
		return s.lostBatch()
	}
	a.holding = true
	if st := c.State(); st.Failed != nil || st.Status != wire.TxInside {
		return wire.Fatalf(wire.CodeConnectionFailure, "the transaction could not go on on another server").Because(st.Failed)
	}
	s.block = block{begin: begin, fresh: true}
	s.readTx = s.leaseRole == router.RoleReplica
	return nil
}

// moveTo moves the block, in which nothing has run yet, to where SET LOCAL asks for.
func (s *Session) moveTo(a *assembly, target string) error {
	if a.holding = s.hold(); !a.holding {
		return s.lostBatch()
	}
	if err := s.move(a, target); err != nil {
		return err
	}
	return s.flush(a)
}

// plainBatch reports whether the batch that starts at q leaves no portal behind, and
// uses none that an earlier one has left.
func (s *Session) plainBatch(q []byte) bool {
	bound := false
	for len(q) >= wire.HeaderLen {
		h, err := wire.ReadHeader(q, s.maxPacket())
		if err != nil || len(q) < h.Size() {
			return false
		}
		body := q[wire.HeaderLen:h.Size()]
		switch h.Type {
		case wire.Sync:
			return !bound
		case wire.Bind:
			if len(body) == 0 || body[0] != 0 || bound {
				return false
			}
			bound = true
		case wire.Execute: // the unnamed portal, all rows
			if !bound || string(body) != "\x00\x00\x00\x00\x00" {
				return false
			}
			bound = false
		case wire.Describe, wire.Close:
			if kind, _, err := wire.ReadTarget(body); err != nil || kind == 'P' && !bound {
				return false
			}
		}
		q = q[h.Size():]
	}
	return false
}
