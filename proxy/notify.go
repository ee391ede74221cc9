package proxy

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"pgproxy/auth"
	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/router"
	"pgproxy/wire"
)

// LISTEN and UNLISTEN of a client in transaction pooling. No server connection of
// the pool listens: the client joins the listener of its database.
//
// They take effect when their transaction commits. In a transaction block, and in
// the extended protocol, a setting pgproxy.listen_N is set in the place of the Nth
// of them; which of these settings are there when the transaction is over tells
// what the server has kept, whatever savepoints and errors there were. A client
// whose LISTEN is not committed yet is registered already, so that it will miss
// nothing, but is told of nothing.

// shares reports whether the client can do what a plan of LISTENs says by the
// listener. Elsewhere the server connection itself listens and stays with the
// client.
func (s *Session) shares(plan *router.Plan) bool {
	if !plan.Effects.Any(router.EffectListen) || s.mode == config.PoolSession || s.listensThere && s.lease != nil && s.lease.HeldBy(s) ||
		s.lease != nil && s.lease.Doubt() {
		return false
	}
	// The listener speaks UTF-8.
	return s.utf8()
}

// utf8 reports whether that is the encoding of the client.
func (s *Session) utf8() bool {
	enc, ok := s.settings.Load().Get("client_encoding")
	if !ok {
		enc = s.loginEncoding
	}
	enc = strings.ToLower(strings.ReplaceAll(strings.Trim(enc, `'"`), "-", ""))
	return enc == "utf8" || enc == "unicode" || enc == "sql_ascii"
}

// hears returns the client's ears, which it has from its first LISTEN on.
func (s *Session) hears() (*ears, error) {
	e := s.ears.Load()
	user, _, err := auth.ServerPassword(s.identity, s.db, s.srv.current.Load().Users)
	if err != nil {
		return nil, wire.Fatalf(wire.CodeInvalidPassword, "no role to log in to the server as for user %q", s.user).Because(err)
	}
	l := s.srv.listener(listenKey{s.database, user}, s.identity)
	if e == nil {
		e = &ears{s: s, l: l, rest: -1}
		s.wmu.Lock()
		e.atRest()
		s.ears.Store(e)
		s.wmu.Unlock()
		return e, nil
	}
	e.mu.Lock()
	old := e.l
	e.l = l
	e.mu.Unlock()
	if old != l {
		old.settle(e, true, nil)
	}
	return e, nil
}

// join makes the client listen to channels: see listener.join.
func (s *Session) join(names []string, told bool) error {
	for {
		e, err := s.hears()
		if err != nil {
			return err
		}
		if err := e.listener().join(e, names, told); !errors.Is(err, errListenerEnded) {
			return err
		}
	}
}

// apply does what has been committed, in one step.
func (s *Session) apply(acts []router.Listen) {
	e := s.ears.Load()
	all, keep := outcome(acts)
	e.listener().settle(e, all, keep)
	e.decide(all, keep)
}

// outcome sums statements up: what the channels in keep are set to, and whether
// all others end.
func outcome(acts []router.Listen) (all bool, keep map[string]bool) {
	keep = make(map[string]bool)
	for _, act := range acts {
		switch {
		case act.Stop && act.Channel == "":
			all = true
			clear(keep)
		default:
			keep[act.Channel] = !act.Stop
		}
	}
	return all, keep
}

// unlistenAll is what DISCARD ALL does.
func (s *Session) unlistenAll() {
	if e := s.ears.Load(); e != nil {
		e.listener().settle(e, true, nil)
	}
}

// listenQuery handles a simple Query of LISTENs and UNLISTENs.
func (s *Session) listenQuery(a *assembly, plan *router.Plan, q []byte, h wire.Header) (int, bool, error) {
	if err := s.calm(a); err != nil {
		return 0, false, err
	}
	if err := s.refresh(); err != nil {
		return 0, false, err
	}
	if s.block.begin != "" && s.hold() {
		// No standby listens, and what LISTEN leaves there would not move along later.
		a.holding = true
		if err := s.roam(a, plan); err != nil {
			return 0, false, err
		}
	}
	status := wire.TxIdle
	if s.hold() {
		if status = s.lease.TxStatus(); status == wire.TxFailed {
			a.holding = true
			s.push(a, backend.Query)
			s.lease.NoUnnamed()
			a.out.Relay(q[:h.Size()]) // the server refuses it
			return h.Size(), false, nil
		}
		if status == wire.TxIdle {
			if err := s.lease.Send(&backend.Parcel{}); err != nil {
				return 0, false, err
			}
		}
	}
	s.unnamed.drop()
	var err error
	if status == wire.TxIdle {
		err = s.listenNow(plan.Listens)
	} else {
		status, err = s.listenInside(a, plan.Listens)
	}
	var p []byte
	var e *wire.Error
	switch {
	case err == nil:
		for _, act := range plan.Listens {
			p = wire.AppendCommandComplete(p, tagOf(act))
		}
	case errors.As(err, &e) && !e.Fatal():
		p = e.Append(p)
	default:
		return 0, false, err
	}
	return h.Size(), false, s.writeLocal(wire.AppendReadyForQuery(p, status))
}

func tagOf(act router.Listen) string {
	if act.Stop {
		return "UNLISTEN"
	}
	return "LISTEN"
}

// listenNow is for statements outside of a transaction.
func (s *Session) listenNow(acts []router.Listen) error {
	var names []string
	for _, act := range acts {
		if !act.Stop {
			names = append(names, act.Channel)
		}
	}
	if len(names) > 0 {
		if err := s.join(names, true); err != nil {
			return err
		}
	}
	if e := s.ears.Load(); e != nil && len(names) < len(acts) {
		e.listener().fence() // what came before UNLISTEN is heard
		all, keep := outcome(acts)
		e.listener().settle(e, all, keep)
	}
	return nil
}

// listenInside is for statements in a transaction block. The lease is kept.
func (s *Session) listenInside(a *assembly, acts []router.Listen) (wire.TxStatus, error) {
	var sql string
	for _, act := range acts {
		mark, err := s.mark(act)
		if err != nil {
			return wire.TxInside, err
		}
		sql += mark + ";"
	}
	c := s.lease
	p := a.out.Made()
	*p = wire.AppendQuery(*p, sql)
	a.owed = append(a.owed, backend.Owed{Kind: backend.Query, Do: backend.Swallow, Own: true, Sink: s})
	a.holding = true
	a.pinCommit()
	c.NoUnnamed()
	if err := s.flush(a); err != nil {
		return 0, err
	}
	c.Quiet(s)
	if !c.Hold(s) {
		return 0, s.lostBatch()
	}
	st := c.State()
	if err := c.Send(&backend.Parcel{}); err != nil {
		return 0, err
	}
	if st.Failed != nil {
		return st.Status, st.Failed
	}
	return st.Status, nil
}

// mark notes one statement of a transaction, registers the client, and returns
// what the server is to do in the place of it.
func (s *Session) mark(act router.Listen) (sql string, err error) {
	if act.Stop {
		_, err = s.hears()
	} else {
		err = s.join([]string{act.Channel}, false)
	}
	if err != nil {
		var e *wire.Error
		if errors.As(err, &e) && !e.Fatal() {
			// The transaction would have to fail with it: the session does.
			fatal := *e
			fatal.Severity = wire.SeverityFatal
			err = fatal.Because(err)
		}
		return "", err
	}
	e := s.ears.Load()
	e.acts = append(e.acts, act)
	e.begin()
	return "SET pgproxy.listen_" + strconv.Itoa(len(e.acts)) + " = 'on'", nil
}

// bindListen notes which LISTEN a portal has.
func (s *Session) bindListen(portal []byte, act router.Listen) error {
	e, err := s.hears()
	if err != nil {
		return err
	}
	if e.portals == nil {
		e.portals = make(map[string]router.Listen)
	}
	e.portals[string(portal)] = act
	return nil
}

// bound notes that a portal has another statement.
func (s *Session) bound(portal []byte) {
	if e := s.ears.Load(); e != nil {
		delete(e.portals, string(portal))
	}
}

// listenExecute handles Execute of a portal that has a LISTEN. done is false for
// others.
func (s *Session) listenExecute(a *assembly, q []byte, h wire.Header) (n int, more, done bool, err error) {
	e := s.ears.Load()
	if e == nil || len(e.portals) == 0 {
		return 0, false, false, nil
	}
	portal, _, ok := wire.String(q[wire.HeaderLen:min(len(q), h.Size())])
	if !ok || len(q) < h.Size() {
		if len(q) > maxName {
			return 0, false, true, errName
		}
		return 0, len(q) < h.Size(), len(q) < h.Size(), nil
	}
	act, ok := e.portals[string(portal)]
	if !ok {
		return 0, false, false, nil
	}
	if err := s.needBatch(a, q); err != nil {
		n, more, err = s.failBatch(err, h)
		return n, more, true, err
	}
	sql, err := s.mark(act)
	if err != nil {
		return 0, false, true, err
	}
	p := a.out.Made()
	a.owed, *p = s.lease.Inside(sql, s, a.owed, *p)
	a.owed = append(a.owed, backend.Owed{Kind: backend.Forge, Made: wire.CommandComplete, Tags: &backend.Tags{List: []string{tagOf(act)}}, Sink: s})
	s.forged = true
	a.pinCommit()
	return h.Size(), false, true, nil
}

// pinCommit keeps the connection until it is known what has been committed.
func (a *assembly) pinCommit() {
	a.pin |= backend.PinCommit
}

// listens reports whether the end of the transaction is to be watched.
func (s *Session) listens() bool {
	e := s.ears.Load()
	return e != nil && len(e.acts)+len(e.portals) > 0
}

// listenMixed handles a simple Query of which some statements are LISTEN or
// UNLISTEN: each of them gives its place to what mark says. done is false where
// the text cannot be taken apart.
func (s *Session) listenMixed(a *assembly, plan *router.Plan, q []byte, h wire.Header) (n int, done bool, err error) {
	sql := string(q[wire.HeaderLen : h.Size()-1])
	parts := router.ListenParts(sql)
	if parts == nil {
		return 0, false, nil
	}
	tags := &backend.Tags{}
	var b strings.Builder
	at := 0
	for _, p := range parts {
		if p.Listen == nil {
			tags.List = append(tags.List, "")
			continue
		}
		mark, err := s.mark(*p.Listen)
		if err != nil {
			return 0, true, err
		}
		tags.List = append(tags.List, tagOf(*p.Listen))
		b.WriteString(sql[at:p.Start] + mark)
		at = p.End
	}
	b.WriteString(sql[at:])
	rest := &router.Plan{
		Class: plan.Class, Reason: plan.Reason, Effects: plan.Effects &^ router.EffectListen,
		Settings: plan.Settings, SettingsHidden: plan.SettingsHidden,
	}
	if e := s.pin(a, pinsOf(rest, nil), []byte(sql)); e != nil {
		n, _, err := s.refuse(a, e, h)
		return n, true, err
	}
	s.effects(a, rest, !s.open, nil)
	a.pinCommit()
	a.owed = append(a.owed, backend.Owed{Kind: backend.Query, Sink: s, Tags: tags, Signal: signalOf(plan)})
	s.forged = false
	s.unnamed.drop()
	s.lease.NoUnnamed()
	p := a.out.Made()
	*p = wire.AppendQuery(*p, b.String())
	return h.Size(), true, s.settleAll(a)
}

// ownChannels returns a text that gives the client's own channels where it asks
// for those of its session; ok is false where nothing is to be changed.
func (s *Session) ownChannels(plan *router.Plan, sql []byte) (text string, ok bool) {
	e := s.ears.Load()
	if e == nil || !plan.Effects.Any(router.EffectChannels) {
		return "", false
	}
	channels := e.listener().heardBy(e)
	if len(channels) == 0 {
		return "", false
	}
	return router.WithChannels(string(sql), channels)
}

// settleListens sends what has been put together and, if the transaction is over
// then, does what it has committed.
func (s *Session) settleListens(a *assembly) error {
	e := s.ears.Load()
	if len(e.acts) > 0 && !e.passed {
		e.listener().fence()
		e.forget() // it was committed before
	}
	e.passed = e.passed || a.ends
	if err := s.flush(a); err != nil {
		return err
	}
	c := s.lease
	if c == nil || !c.Rest(s) {
		return nil // in COPY: the next message will tell
	}
	s.wmu.Lock()
	e.atRest()
	s.wmu.Unlock()
	if !c.Hold(s) {
		if len(e.acts) == 0 { // it has not been pinned
			e.portals = nil
			return nil
		}
		return s.lostBatch()
	}
	if c.TxStatus() != wire.TxIdle {
		return c.Send(&backend.Parcel{})
	}
	e.portals, e.passed = nil, false
	acts := e.acts
	e.acts = nil
	if len(acts) == 0 {
		return c.Send(&backend.Parcel{})
	}
	kept, err := s.kept(acts)
	if err != nil {
		return err
	}
	s.apply(kept)
	e.tell() // before the client begins something else, which would hold it back
	c.Unpin(backend.PinCommit)
	return nil
}

// kept asks the server which statements of a transaction have been committed.
// The lease is held, and is let go.
func (s *Session) kept(acts []router.Listen) ([]router.Listen, error) {
	var ask, reset strings.Builder
	for i := range acts {
		if i > 0 {
			ask.WriteString(", ")
		}
		fmt.Fprintf(&ask, "pg_catalog.current_setting('pgproxy.listen_%d', true)", i+1)
		fmt.Fprintf(&reset, "; RESET pgproxy.listen_%d", i+1)
	}
	rows, err := s.question("SELECT " + ask.String() + reset.String())
	if err != nil {
		return nil, err
	}
	if len(rows) != 1 || len(rows[0]) != len(acts) {
		return nil, wire.Fatalf(wire.CodeInternal, "the server does not tell which LISTEN it has committed")
	}
	var out []router.Listen
	for i, v := range rows[0] {
		if v == "on" {
			out = append(out, acts[i])
		}
	}
	return out, nil
}

// question asks the server of the lease, which must be held, pinned and at rest,
// and waits for the answer. The lease is let go.
func (s *Session) question(sql string) ([][]string, error) {
	c := s.lease
	var r answers
	c.NoUnnamed()
	err := c.Send(&backend.Parcel{Owed: []backend.Owed{{Kind: backend.Query, Sink: &r}}, Bytes: wire.AppendQuery(nil, sql)})
	if err != nil {
		return nil, err
	}
	c.Quiet(s)
	if !c.Hold(s) {
		return nil, s.lostBatch()
	}
	if err := c.Send(&backend.Parcel{}); err != nil {
		return nil, err
	}
	if r.err != nil {
		fatal := *r.err
		fatal.Severity = wire.SeverityFatal
		return nil, &fatal
	}
	return r.rows, nil
}
