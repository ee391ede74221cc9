package proxy

import (
	"strconv"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/router"
	"pgproxy/wire"
)

// What a statement may leave in its session that cannot be carried to another
// server connection: it pins the one that it is on to its client, until the
// server says that it is gone. on_session_state refuses such statements, or has
// what they leave cleared away; max_pinned bounds how many connections of a pool
// are pinned.

// pins are the effects that tie a client to its server connection.
var pins = []struct {
	effect router.Effect
	why    backend.Pin
}{
	{router.EffectPrepare, backend.PinPrepare},
	{router.EffectListen, backend.PinListen},
	{router.EffectTemp, backend.PinTemp},
	{router.EffectAdvisoryLock, backend.PinLock},
	{router.EffectHoldCursor, backend.PinCursor},
}

const pinEffects = router.EffectPrepare | router.EffectListen | router.EffectTemp | router.EffectAdvisoryLock | router.EffectHoldCursor

// pinsOf returns what a plan's statement pins its connection for. params is as in
// Session.effects.
func pinsOf(plan *router.Plan, params []byte) (why backend.Pin) {
	if plan.Effects.Any(pinEffects) {
		for _, p := range pins {
			if plan.Effects.Any(p.effect) {
				why |= p.why
			}
		}
	}
	if plan.SettingsHidden {
		why |= backend.PinHidden
	}
	for _, n := range plan.SettingParams {
		if _, ok := wire.ReadBindParam(params, n); !ok {
			why |= backend.PinHidden
		}
	}
	return why
}

// pin ties the lease, which is kept, to the client. An error is what the client
// is to hear in place of the statement, whose text is sql.
func (s *Session) pin(a *assembly, why backend.Pin, sql []byte) *wire.Error {
	if why == 0 || s.sessionMode() {
		return nil
	}
	switch s.db.OnSessionState {
	case config.StateError:
		return wire.Errorf(wire.CodeFeatureNotSupported, "session state is not allowed: %s", why).
			WithHint("on_session_state of this database is error.")
	case config.StateIgnore:
		a.dirty = true
		return nil
	}
	begins := false
	if !s.lease.Pin(why, func() string { begins = true; return router.Display(sql) }) {
		return errPinned
	}
	if begins && s.params.pins {
		a.owed = append(a.owed, backend.Owed{Kind: backend.Forge, Made: wire.NoticeResponse, Sink: s, Err: &wire.Error{
			Severity: wire.SeverityNotice, Code: "00000",
			Message: "pgproxy: this session keeps server connection " + strconv.FormatUint(uint64(s.lease.PID), 10) + ": " + why.String(),
		}})
	}
	return nil
}

var errPinned = wire.Errorf(wire.CodeTooManyConnections, "too many server connections are pinned to their clients (max_pinned)").
	WithHint("SHOW PINS on the console tells by whom and why.")

// refuse sends what fails in place of a message of this kind, which is dropped.
func (s *Session) refuse(a *assembly, e *wire.Error, h wire.Header) (int, bool, error) {
	o := backend.Owed{Kind: backend.Parse, Do: backend.Replace, Sink: s, Err: e, Code: wire.CodeUndefinedColumn}
	p := a.out.Made()
	if h.Type == wire.Query {
		o.Kind = backend.Query
		*p = wire.AppendQuery(*p, nonsense)
	} else {
		*p = wire.AppendParse(*p, "", []byte(nonsense), nil)
	}
	a.owed = append(a.owed, o)
	s.forged, s.unit.keep = false, false
	return s.discard(h)
}

// Followed notes which settings the session has, as the server says.
func (s *Session) Followed(raw, normal *backend.Settings) {
	for _, b := range s.base.List() {
		v, ok := raw.Get(b.Name)
		if !ok {
			v = b.Value // it was reset, which for this client means what its login gave
		}
		normal = normal.With(b.Name, v)
	}
	s.settings.Store(normal)
}

// TooManyPinned ends the session: what it has left pins one connection too many.
func (s *Session) TooManyPinned() {
	s.srv.goes.Add(1)
	go func() { // the connection's mutex is held, which end takes
		defer s.srv.goes.Done()
		e := *errPinned
		e.Severity = wire.SeverityFatal
		s.end(&e)
	}()
}

// Who tells who the client is.
func (s *Session) Who() (user, application, addr string) {
	application, _ = s.settings.Load().Get("application_name")
	if a := s.nc.RemoteAddr(); a != nil {
		addr = a.String()
	}
	return s.user, application, addr
}

// statementText returns the text of a statement that the client has; nil where it
// is not kept.
func (s *Session) statementText(name []byte) []byte {
	if len(name) == 0 {
		return s.unnamed.query
	}
	if st := s.stmts[string(name)]; st != nil {
		return st.Query
	}
	return nil
}
