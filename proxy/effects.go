package proxy

import (
	"slices"
	"strings"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/router"
	"pgproxy/wire"
)

// What statements do to the state of a session, and how it stays the client's
// own. A setting that is changed by a statement alone, outside a transaction, is
// taken over when its statement has succeeded. Where more than that statement
// decides what remains, the server is asked before the connection is lent again
// (backend.Ask). Whatever cannot be replayed pins the connection (pins.go).

// stateEffects change what must be remembered. They are acted on when their
// statement has succeeded.
const stateEffects = router.EffectSet | router.EffectDiscardAll | router.EffectDeallocateAll

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
	if s.open {
		s.unit.keep = false // a part of its answer is not held back
	}
	if err := s.flush(a); err != nil {
		return err
	}
	return s.quiet()
}

// effects notes what the statement that is about to be sent will do. alone says
// that nothing else is in its batch, so that its end tells all. params is what
// stands behind the names in its Bind; nil where there is none, or not all of it
// is in hand.
func (s *Session) effects(a *assembly, plan *router.Plan, alone bool, params []byte) {
	a.statement = plan
	if len(plan.Vars) > 0 && plan.Vars[0].Local {
		s.alone = s.srv.changes.Add(1)
	}
	e := plan.Effects
	if e == 0 {
		return
	}
	if e.Any(router.EffectWrite | router.EffectDDL | router.EffectCopy | router.EffectOther | router.EffectMulti) {
		a.wrote = true
	}
	if e.Any(router.EffectEnd | router.EffectMulti | router.EffectOther) {
		a.ends = true
	}
	if e.Any(router.EffectOther) {
		a.dirty = true
		switch {
		case plan.Unread:
		case s.db.OnSessionState == config.StatePin:
			s.ask(a, backend.AskSettings|backend.AskObjects)
		default:
			s.ask(a, backend.AskSettings)
		}
	}
	if e.Any(router.EffectDDL) {
		s.alters(e)
	}
	if e.Any(router.EffectGiveBack) && s.lease.Pinned(s)&backend.PinState != 0 {
		s.ask(a, backend.AskObjects)
	}
	s.listensThere = s.listensThere || e.Any(router.EffectListen)
	if !e.Any(stateEffects) {
		return
	}
	st := s.lease.State()
	followed := alone && !s.began && s.barrier == nil && !e.Any(router.EffectMulti) && st.Status == wire.TxIdle && !st.Owing
	if followed && e.Any(router.EffectSet) && len(plan.Vars) == 0 {
		followed = false
	}
	a.dirty = a.dirty || s.lease.Home() && slices.ContainsFunc(plan.Vars, func(v router.Var) bool { return v.Reset })
	if !followed && e.Any(router.EffectSet|router.EffectDiscardAll) {
		s.alone = s.srv.changes.Add(1)
		s.ask(a, backend.AskSettings|backend.AskObjects)
		a.names = append(a.names, plan.Settings...)
		for _, n := range plan.SettingParams {
			if name, ok := wire.ReadBindParam(params, n); ok {
				a.names = append(a.names, strings.ToLower(string(name)))
			}
		}
	}
	if followed || e.Any(router.EffectDeallocateAll|router.EffectDiscardAll) {
		a.pin |= backend.PinBrief // settle needs the connection
		if s.barrier == nil || !followed {
			s.barrier = plan
			s.barrierErrors = st.Errors
			s.barrierAlone = followed
			s.barrierChange = s.srv.changes.Load()
		}
	}
}

// ask has the server asked when the connection comes free, unless it is the
// client's own for good.
func (s *Session) ask(a *assembly, what backend.Ask) {
	if !s.sessionMode() {
		a.ask |= what
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

// settle sends what has been put together, waits until it is answered, and acts
// on a statement that changes state.
func (s *Session) settle(a *assembly) error {
	plan := s.barrier
	s.barrier = nil
	c := s.lease
	if s.barrierAlone && !s.sessionMode() {
		s.read(a, plan)
	}
	if err := s.flush(a); err != nil {
		return err
	}
	c.Quiet(s)
	if !c.Hold(s) {
		return s.lostBatch()
	}
	st := c.State()
	pins := backend.PinBrief
	if st.Dropped {
		s.dropStatements(s.barrierChange)
	}
	if st.Errors == s.barrierErrors && s.barrierAlone {
		if st.Dropped && plan.Effects.Any(router.EffectDiscardAll) {
			s.settings.Store(s.base)
			s.unlistenAll()
			s.listensThere = false
			s.resetOwn()
			pins |= backend.PinState
		}
		if st.Status == wire.TxIdle {
			for _, v := range plan.Vars {
				s.follow(c, v, st.Read)
			}
		}
	}
	if err := c.Send(&backend.Parcel{}); err != nil {
		return err
	}
	c.Unpin(pins)
	return nil
}

// read has the server say, behind a statement that sets settings, what it has
// made of their values: they are compared by that.
func (s *Session) read(a *assembly, plan *router.Plan) {
	var names []string
	for _, v := range plan.Vars {
		if _, reported := s.lease.Reported(v.Name); !reported && !v.Local && !v.Reset && v.Name != "role" {
			names = append(names, v.Name)
		}
	}
	if len(names) > 0 {
		p := a.out.Made()
		a.owed, *p = s.lease.AppendRead(names, a.owed, *p)
	}
}

// follow takes over a setting that the server has changed; read has the values as
// the server shows them.
func (s *Session) follow(c *backend.Conn, v router.Var, read *backend.Settings) {
	if v.Local {
		return
	}
	want, have := s.settings.Load(), c.Applied()
	switch {
	case v.All:
		s.resetOwn()
		// RESET ALL spares the roles.
		kept := want
		want, have = s.base.Without("role").Without("session_authorization"), nil
		for _, name := range [...]string{"role", "session_authorization"} {
			if x, ok := kept.Get(name); ok {
				want, have = want.With(name, x), have.With(name, x)
			}
		}
	case v.Name == "session_authorization":
		// Session.Reported knows it. The role goes with it.
		want, have = want.Without("role"), have.Without("role")
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
		value := v.Value
		if x, ok := read.Get(v.Name); ok {
			value = x
		}
		want, have = want.With(v.Name, value), have.With(v.Name, value)
	}
	s.settings.Store(want)
	c.SetApplied(have)
}

// sequences makes the lease fit for a statement that asks for what nextval has left
// in the session.
func (s *Session) sequences(a *assembly, plan *router.Plan, batch bool) {
	if !plan.Effects.Any(router.EffectSequences) {
		return
	}
	n := len(a.owed)
	p := a.out.Made()
	a.owed, *p = s.lease.OwnSequences(s.id, s, batch, a.owed, *p)
	s.forged = s.forged && len(a.owed) == n
}
