package proxy

import (
	"errors"
	"strings"

	"pgproxy/backend"
	"pgproxy/router"
	"pgproxy/wire"
)

// How SET, RESET and SHOW of the own parameters are answered. A simple query that
// is one is answered here. In the extended protocol, and for errors inside a
// transaction, a server runs something that answers alike, so that its view of the
// protocol and of the transaction is the client's.

// command answers a simple query that is SHOW, SET or RESET of an own parameter.
func (s *Session) command(a *assembly, plan *router.Plan, h wire.Header) (int, bool, error) {
	if err := s.calm(a); err != nil {
		return 0, false, err
	}
	c := plan.Proxy
	status := wire.TxIdle
	if s.hold() {
		status = s.lease.State().Status
		if err := s.lease.Send(&backend.Parcel{}); err != nil {
			return 0, false, err
		}
	}
	var p []byte
	text, err := "", errOwn(c.Name)
	switch {
	case status == wire.TxFailed: // the server has its own words for it
	case c.Show:
		text, err = s.show(c)
		p = wire.AppendRowDescription(p, []wire.Column{{Name: "pgproxy." + c.Name, OID: wire.OIDText}})
		p = wire.AppendDataRow(p, []byte(text))
	default:
		err = s.obey(a, c, status)
		if c.Local && status == wire.TxIdle {
			p = errNoBlock.AppendNotice(p)
		}
	}
	if err != nil {
		return s.refuseQuery(a, err, h)
	}
	p = wire.AppendCommandComplete(p, plan.Tag)
	s.unnamed.drop() // as the server does
	return h.Size(), false, s.writeLocal(wire.AppendReadyForQuery(p, status))
}

var errNoBlock = &wire.Error{Severity: wire.SeverityWarning, Code: "25P01", Message: "SET LOCAL can only be used in transaction blocks"}

// obey obeys a SET or RESET. status is that of the client's transaction.
func (s *Session) obey(a *assembly, c *router.Command, status wire.TxStatus) *wire.Error {
	if !c.Local {
		return s.setOwn(c)
	}
	if err := s.check(c); err != nil || status == wire.TxIdle {
		return err
	}
	v, _, err := s.parsed(c)
	if err != nil || s.serves(v.target) {
		return err
	}
	if s.block.begin != "" && s.block.fresh && !a.holding && !s.open {
		if err := s.moveTo(a, v.target); err != nil {
			e, _ := errors.AsType[*wire.Error](err)
			return e
		}
		return nil
	}
	return wire.Errorf(wire.CodeInvalidParameterValue, "the transaction is on another server than pgproxy.target asks for").
		WithHint("SHOW pgproxy.route tells on which. Set pgproxy.target before the transaction.")
}

// serves reports whether the lease is on a server that a target means.
func (s *Session) serves(target string) bool {
	switch target {
	case "":
		return true
	case router.TargetPrimary:
		return s.leaseRole == router.RolePrimary
	case router.TargetReplica:
		return s.leaseRole == router.RoleReplica
	}
	for _, server := range s.db.Servers {
		if server.Addr() == s.lease.Addr {
			for _, g := range server.Groups {
				if g == target {
					return true
				}
			}
		}
	}
	return false
}

// refusals are statements that every server refuses when it executes them, by the
// SQLSTATE of that. They change nothing.
var refusals = map[string]string{
	wire.CodeUndefinedObject:       "RESET pgproxy_refuses",
	wire.CodeInvalidParameterValue: "SET work_mem = 'pgproxy refuses'",
	codeCantChange:                 "SET server_version = 'pgproxy refuses'",
}

// refuseQuery answers a simple query with an error. In a transaction the server
// fails as well, and its own error counts if that is another one.
func (s *Session) refuseQuery(a *assembly, e *wire.Error, h wire.Header) (int, bool, error) {
	if !a.holding {
		a.holding = s.hold()
	}
	sql, ok := refusals[e.Code]
	switch {
	case !a.holding:
		return s.failQuery(e, h)
	case !ok: // a wait was cancelled: nothing of a transaction has failed
		status := s.lease.State().Status
		if err := s.flush(a); err != nil {
			return 0, false, err
		}
		return h.Size(), false, s.writeLocal(wire.AppendReadyForQuery(e.Append(nil), status))
	}
	s.unit.keep = false
	s.unnamed.drop()
	s.lease.NoUnnamed()
	p := a.out.Made()
	*p = wire.AppendQuery(*p, sql)
	a.owed = append(a.owed, backend.Owed{Kind: backend.Query, Do: backend.Replace, Sink: s, Err: e})
	s.forged = false
	return h.Size(), false, nil
}

// refuseBatch answers a message of the extended protocol with an error, as
// refuseQuery does.
func (s *Session) refuseBatch(a *assembly, q []byte, e *wire.Error, h wire.Header) (int, bool, error) {
	if !a.holding {
		a.holding = s.hold()
	}
	if !a.holding && s.begun != nil {
		// The error is to fail the transaction that has been put off.
		if err := s.beginNow(a); err != nil {
			return s.failBatch(err, h)
		}
	}
	if !a.holding {
		return s.failBatch(e, h)
	}
	if err := s.needBatch(a, q); err != nil {
		return s.failBatch(err, h)
	}
	s.unit.keep = false
	s.lease.SetUnnamed(s.srv.changes.Add(1)) // nobody's
	sql, ok := refusals[e.Code]
	if !ok {
		sql, e = refusals[wire.CodeInvalidParameterValue], wire.Errorf(wire.CodeInvalidParameterValue, "%s", e.Message)
	}
	p := a.out.Made()
	*p = wire.AppendParse(*p, "", []byte(sql), nil)
	*p = wire.AppendBindText(*p, "")
	*p = wire.AppendExecute(*p)
	a.owed = append(a.owed,
		backend.Owed{Kind: backend.Parse, Do: backend.Swallow, Sink: s},
		backend.Owed{Kind: backend.Bind, Do: backend.Swallow, Sink: s},
		backend.Owed{Kind: backend.Execute, Do: backend.Replace, Sink: s, Err: e})
	s.forged = false
	return h.Size(), false, nil
}

// standIn returns a statement with the same protocol around it as a SHOW, SET or
// RESET of an own parameter, for a server to be asked for.
func standIn(plan *router.Plan) []byte {
	c := plan.Proxy
	if c.Show {
		return []byte("/* pgproxy stands in */ SELECT ''::text AS " + quoteName("pgproxy."+c.Name))
	}
	what := c.Name + "=" + c.Value
	if c.Reset {
		what = c.Name
	}
	if c.Local {
		what = "local " + what
	}
	sql := "SET SESSION pgproxy.stands_in = " + quoteText(what)
	if plan.Tag == "RESET" {
		sql = "/* " + strings.ReplaceAll(c.Name, "*/", "") + " */ RESET pgproxy.stands_in"
	}
	return []byte(sql)
}

// quoteText quotes a text so that it is read alike under every setting.
func quoteText(text string) string {
	if strings.Contains(text, `\`) {
		return " E'" + strings.NewReplacer(`'`, `''`, `\`, `\\`).Replace(text) + "'"
	}
	return "'" + strings.ReplaceAll(text, "'", "''") + "'"
}

// bindOwn handles the Bind of a SHOW, SET or RESET of an own parameter, whose
// stand-in is prepared under name. A SET must be alone in its batch: others could
// fail, and undo it.
func (s *Session) bindOwn(a *assembly, q []byte, h wire.Header, plan *router.Plan, portal []byte, n int, name string) (int, bool, error) {
	c := plan.Proxy
	alone := s.aloneFrom(q)
	s.flushOut(a)
	if err := s.calm(a); err != nil {
		return 0, false, err
	}
	if a.holding = s.hold(); !a.holding {
		return 0, false, s.lostBatch()
	}
	s.unit.keep = false
	text, err := "", (*wire.Error)(nil)
	switch st := s.lease.State(); {
	case st.Status == wire.TxFailed || st.Owing: // the server refuses it, or skips it
	case c.Show:
		text, err = s.show(c)
	case !alone:
		err = errMixed
	default:
		err = s.obey(a, c, st.Status)
	}
	if err != nil {
		return s.refuseBatch(a, q, err, h)
	}
	if c.Show {
		s.lease.SetUnnamed(s.srv.changes.Add(1)) // nobody's
		p := a.out.Made()
		*p = wire.AppendParse(*p, "", []byte("SELECT "+quoteText(text)+"::text AS "+quoteName("pgproxy."+c.Name)), nil)
		a.owed = append(a.owed, backend.Owed{Kind: backend.Parse, Do: backend.Swallow, Sink: s})
		name = ""
	}
	s.push(a, backend.Bind)
	return s.rebind(a, portal, name, n, h)
}

var errMixed = wire.Errorf(wire.CodeInvalidParameterValue, "SET and RESET of pgproxy.* must each be sent alone, not among several statements")
