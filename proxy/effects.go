package proxy

import (
	"strings"

	"pgproxy/backend"
	"pgproxy/router"
	"pgproxy/wire"
)

// What statements do to the state of a session, and how it stays the client's
// own: settings that a plain SET changes are remembered and applied to whichever
// server connection the client gets next. Whatever cannot be replayed pins the
// connection to the client.

// stateEffects change what must be remembered. They are acted on when their
// statement has succeeded.
const stateEffects = router.EffectSet | router.EffectDiscardAll | router.EffectDeallocateAll

// pins are the effects that tie a client to its server connection.
var pins = []struct {
	effect router.Effect
	reason string
}{
	{router.EffectPrepare, "PREPARE"},
	{router.EffectListen, "LISTEN"},
	{router.EffectTemp, "temporary object"},
	{router.EffectAdvisoryLock, "session advisory lock"},
	{router.EffectHoldCursor, "cursor WITH HOLD"},
}

const (
	pinSetting = backend.PinBrief
	pinSet     = "setting changed where it cannot be followed"
)

// before brings the session to rest in front of a statement that changes state,
// so that it can be told apart whether the statement stands in a transaction.
func (s *Session) before(a *assembly, plan *router.Plan) error {
	if !plan.Effects.Any(stateEffects) {
		return nil
	}
	return s.calm(a)
}

// calm sends what has been put together and waits until all of it is answered.
// No batch may be open: its answers may come only with its Sync.
func (s *Session) calm(a *assembly) error {
	if err := s.flush(a); err != nil {
		return err
	}
	return s.quiet()
}

// effects notes what the statement that is about to be sent will do. alone says
// that nothing else is in its batch, so that its end tells all.
func (s *Session) effects(a *assembly, plan *router.Plan, alone bool) {
	e := plan.Effects
	if e == 0 {
		return
	}
	if e.Any(router.EffectWrite | router.EffectDDL | router.EffectCopy | router.EffectOther | router.EffectMulti) {
		a.wrote = true
	}
	if e.Any(router.EffectOther) {
		a.dirty = true
	}
	if e.Any(router.EffectDDL) && !e.Any(router.EffectTemp) && s.prover != nil {
		s.prover.Changed(router.Nanotime(), false)
		s.ddl.Store(s.prover)
	}
	for _, p := range pins {
		if e.Any(p.effect) {
			a.pin = p.reason
		}
	}
	s.listensThere = s.listensThere || e.Any(router.EffectListen)
	if !e.Any(stateEffects) {
		return
	}
	st := s.lease.State()
	followed := alone && s.barrier == nil && !e.Any(router.EffectMulti) && st.Status == wire.TxIdle && !st.Owing && replayable(plan)
	switch {
	case !followed && e.Any(router.EffectSet|router.EffectDiscardAll):
		a.pin = pinSet
	case a.pin == "":
		a.pin = pinSetting // settle needs the connection
	}
	if s.barrier == nil || !followed {
		s.barrier = plan
		s.barrierErrors = st.Errors
		s.barrierAlone = followed
		s.barrierChange = s.srv.changes.Load()
	}
}

// aloneFrom reports whether the Bind at the front of q is the only one of its
// batch, all of which is in hand.
func (s *Session) aloneFrom(q []byte) bool {
	if s.binds != 1 {
		return false
	}
	executes := 0
	for first := true; len(q) >= wire.HeaderLen; first = false {
		h, err := wire.ReadHeader(q, s.maxPacket())
		if err != nil || len(q) < h.Size() {
			return false
		}
		switch h.Type {
		case wire.Sync:
			return true
		case wire.Bind:
			if !first {
				return false
			}
		case wire.Execute:
			if executes++; executes > 1 {
				return false
			}
		case wire.Describe, wire.Flush:
		default:
			return false
		}
		q = q[h.Size():]
	}
	return false
}

// wanted returns the settings that the connection must have for a statement: all
// that the client has set, but for what the statement itself sets anew. A setting
// that a server refuses can so be given up.
func (s *Session) wanted(c *backend.Conn, plan *router.Plan) *backend.Settings {
	want := s.settings.Load()
	if plan.Effects == 0 || want == nil {
		return want
	}
	if plan.Effects.Any(router.EffectDiscardAll) && !plan.Effects.Any(router.EffectMulti) {
		return c.Applied()
	}
	for _, v := range plan.Vars {
		if _, reported := c.Reported(v.Name); !v.Local && !v.All && !reported {
			want = want.Without(v.Name)
		}
	}
	return want
}

// replayable reports whether the settings that a statement changes can be set
// again with set_config to the same end.
func replayable(plan *router.Plan) bool {
	if plan.Effects.Any(router.EffectSet) && len(plan.Vars) == 0 {
		return false
	}
	for _, v := range plan.Vars {
		if v.Name == "session_authorization" {
			return false
		}
	}
	return true
}

// settle sends what has been put together, waits until it is answered, and acts
// on a statement that changes state.
func (s *Session) settle(a *assembly) error {
	plan := s.barrier
	s.barrier = nil
	c := s.lease
	if err := s.flush(a); err != nil {
		return err
	}
	c.Quiet(s)
	if !c.Hold(s) {
		return s.lostBatch()
	}
	st := c.State()
	clean := false
	if st.Dropped {
		s.dropStatements(s.barrierChange)
	}
	if st.Errors == s.barrierErrors && s.barrierAlone {
		if st.Dropped && plan.Effects.Any(router.EffectDiscardAll) {
			s.settings.Store(s.base)
			s.unlistenAll()
			s.listensThere = false
			s.resetOwn()
			clean = true
		}
		if st.Status == wire.TxIdle {
			for _, v := range plan.Vars {
				s.follow(c, v)
			}
		}
	}
	if err := c.Send(&backend.Parcel{}); err != nil {
		return err
	}
	switch {
	case s.sessionMode():
	case clean:
		c.Unpin("")
	default:
		c.Unpin(pinSetting)
	}
	return nil
}

// follow takes over a setting that the server has changed.
func (s *Session) follow(c *backend.Conn, v router.Var) {
	if v.Local || strings.HasPrefix(v.Name, "transaction_") {
		return
	}
	want, have := s.settings.Load(), c.Applied()
	switch {
	case v.All:
		s.resetOwn()
		// RESET ALL spares the role.
		role, had := have.Get("role")
		wanted, wants := want.Get("role")
		want, have = s.base.Without("role"), nil
		if had {
			have = have.With("role", role)
		}
		if wants {
			want = want.With("role", wanted)
		}
	case v.Reset:
		have = have.Without(v.Name)
		if b, ok := s.base.Get(v.Name); ok {
			want = want.With(v.Name, b)
		} else {
			want = want.Without(v.Name)
		}
	default:
		if _, ok := c.Reported(v.Name); ok {
			return // Session.Reported has taken over what the server has made of it
		}
		want, have = want.With(v.Name, v.Value), have.With(v.Name, v.Value)
	}
	s.settings.Store(want)
	c.SetApplied(have)
}
