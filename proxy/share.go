package proxy

import (
	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/router"
	"pgproxy/wire"
)

// Sharing by the statement, see backend.Conn.Join: where no server connection is
// idle, a single read of a shape that has been quick so far may stand behind those of
// others on one that is at work.

// whole reports whether the client's messages in q are one whole statement with
// nothing behind it: a simple query, or a batch up to its Sync with one Bind and one
// Execute at most, that prepares nothing by name.
func (s *Session) whole(q []byte) bool {
	if len(q) > backend.MaxTrial {
		return false
	}
	binds, executes, parsed := 0, 0, false
	for first := true; len(q) >= wire.HeaderLen; first = false {
		h, err := wire.ReadHeader(q, s.maxPacket())
		if err != nil || len(q) < h.Size() {
			return false
		}
		switch h.Type {
		case wire.Query:
			return first && len(q) == h.Size()
		case wire.Parse:
			if !first || h.Body == 0 || q[wire.HeaderLen] != 0 {
				return false
			}
			parsed = true
		case wire.Bind:
			_, name, _, ok := wire.ReadBindNames(q[wire.HeaderLen:h.Size()])
			if !ok || parsed && len(name) > 0 {
				return false
			}
			binds++
		case wire.Execute:
			executes++
		case wire.Describe:
		case wire.Sync:
			return len(q) == h.Size() && binds == 1 && executes == 1
		default:
			return false
		}
		q = q[h.Size():]
	}
	return false
}

// wholePlan returns the plan of the statement in a whole batch that starts at q; nil if
// it is not known, or begins in another way.
func (s *Session) wholePlan(a *assembly, q []byte) *router.Plan {
	h, err := wire.ReadHeader(q, s.maxPacket())
	if err != nil || len(q) < h.Size() {
		return nil
	}
	switch body := q[wire.HeaderLen:h.Size()]; h.Type {
	case wire.Parse:
		if m, err := wire.ReadParse(body); err == nil {
			return s.plan(a, m.Query)
		}
	case wire.Bind:
		if _, name, _, ok := wire.ReadBindNames(body); ok {
			return s.planOf(name)
		}
	}
	return nil
}

// mayShare reports whether a statement that begins now, and is whole, may share a
// server connection, as far as the session is concerned.
func (s *Session) mayShare() bool {
	return s.db.ShareDepth > 1 && s.mode != config.PoolSession && s.detour.runs == 0 && !s.detour.primary &&
		s.begun == nil && s.barrier == nil && !s.skipping && s.block.begin == "" && !s.readTx && !s.params.trace &&
		s.ears.Load() == nil && s.tap.Load() == nil && s.ddl.Load() == nil && !s.listensThere
}

// share decides, when a connection is about to be borrowed for the statement that is
// being sent, whether it may be shared.
func (s *Session) share(plan *router.Plan, ch *router.Choice) {
	s.waiter.Share = s.unit.whole && s.detour.runs == 0 && plan.Shareable() && ch.Reason != router.ReasonShadow && plan.Pace(ch.Role).Within(s.db.ShareMaxTime)
}

// Wants returns the settings that a connection must have that the session joins.
func (s *Session) Wants() *backend.Settings { return s.settings.Load() }
