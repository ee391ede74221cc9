package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"pgproxy/config"
	"pgproxy/router"
	"pgproxy/wire"
)

// The proxy's own parameters: pgproxy.NAME. SET, RESET, SHOW and startup options of
// them are answered here; no server hears of them (ownwire.go has how).

// ownNames are all that there are.
var ownNames = []string{"consistency", "lsn", "pin_notice", "route", "target", "trace"}

// ownValues are a session's values.
type ownValues struct {
	target string // "" is none
	by     router.Source
	level  config.Consistency // ConsistencyInherit: what the configuration says
	trace  bool
	pins   bool // pin_notice
}

// own is what a session has set of them. The zero value is of one that has set
// nothing.
type own struct {
	ownValues
	login ownValues // RESET goes back to it
	local string    // target by SET LOCAL, until a transaction has its server; "" is none
}

// errOwn is the error for a name that there is not.
func errOwn(name string) *wire.Error {
	return wire.Errorf(wire.CodeUndefinedObject, "unrecognized configuration parameter \"pgproxy.%s\"", name).
		WithHint("There are pgproxy." + strings.Join(ownNames, ", pgproxy.") + ".")
}

// errValue is the error for a value that a parameter cannot have.
func errValue(name, value, want string) *wire.Error {
	return wire.Errorf(wire.CodeInvalidParameterValue, "invalid value for parameter \"pgproxy.%s\": \"%s\"", name, value).
		WithHint("Want " + want + ".")
}

// wish returns where a statement is to go by hints and rules, the strongest first;
// "" says nothing.
func (s *Session) wish(plan *router.Plan) (target string, by router.Source) {
	switch {
	case s.params.local != "":
		return s.params.local, router.ByLocal
	case plan.Target != "":
		return plan.Target, router.ByComment
	case s.params.target != "":
		return s.params.target, s.params.by
	case len(s.db.Rules) > 0:
		if target = s.rulesNow().Target(plan); target != "" {
			return target, router.ByRule
		}
	}
	return "", router.ByNobody
}

// clientRules are the rules of a database that fit a client, and for what they were
// looked up.
type clientRules struct {
	rules *router.Rules
	db    *config.Database
	name  string // application_name
}

// rulesNow returns the rules for what the session is at the moment.
func (s *Session) rulesNow() *router.Rules {
	name, _ := s.settings.Load().Get("application_name")
	if r := &s.rules; r.db != s.db || r.name != name {
		var addr netip.Addr
		if tcp, ok := s.origin.Load().remote.(*net.TCPAddr); ok {
			addr = tcp.AddrPort().Addr()
		}
		*r = clientRules{router.RulesFor(s.db, s.user, name, addr), s.db, name}
	}
	return s.rules.rules
}

// checkTarget returns an error for what is no target of the session's database.
func (s *Session) checkTarget(target string) *wire.Error {
	if target == "" || target == router.TargetPrimary || target == router.TargetReplica || s.db.HasGroup(target) {
		return nil
	}
	want := []string{router.TargetPrimary, router.TargetReplica}
	for _, server := range s.db.Servers {
		for _, g := range server.Groups {
			if !slices.Contains(want, g) {
				want = append(want, g)
			}
		}
	}
	return errValue("target", target, strings.Join(want, ", ")+" (a group of servers of this database must be meant), or an empty text")
}

// check returns an error for a SET or RESET that cannot be obeyed.
func (s *Session) check(c *router.Command) *wire.Error {
	if !slices.Contains(ownNames, c.Name) {
		return errOwn(c.Name)
	}
	switch {
	case c.Show:
		return nil
	case c.Name == "route":
		return wire.Errorf(codeCantChange, "parameter \"pgproxy.route\" cannot be changed")
	case c.Local && c.Name != "target":
		return wire.Errorf(wire.CodeInvalidParameterValue, "only pgproxy.target can be set with SET LOCAL")
	case c.Reset:
		return nil
	}
	_, _, err := s.parsed(c)
	return err
}

// codeCantChange is cant_change_runtime_param.
const codeCantChange = "55P02"

// parsed returns the session's values as a SET leaves them, and the position that
// it gives.
func (s *Session) parsed(c *router.Command) (ownValues, router.Position, *wire.Error) {
	v := s.params.ownValues
	var at router.Position
	switch c.Name {
	case "target":
		target := c.Value
		if t := strings.ToLower(target); t == router.TargetPrimary || t == router.TargetReplica {
			target = t
		}
		if err := s.checkTarget(target); err != nil {
			return v, at, err
		}
		v.target, v.by = target, router.BySet
	case "consistency":
		if err := v.level.UnmarshalText([]byte(strings.ToLower(c.Value))); err != nil || c.Value == "" {
			return v, at, errValue(c.Name, c.Value, "eventual, session or global")
		}
	case "trace":
		on, ok := boolean(c.Value)
		if !ok {
			return v, at, errValue(c.Name, c.Value, "on or off")
		}
		v.trace = on
	case "pin_notice":
		on, ok := boolean(c.Value)
		if !ok {
			return v, at, errValue(c.Name, c.Value, "on or off")
		}
		v.pins = on
	case "lsn":
		if at, ok := router.ParsePosition(c.Value); ok || c.Value == "" {
			return v, at, nil
		}
		return v, at, errValue(c.Name, c.Value, "what SHOW pgproxy.lsn has shown, or an empty text")
	}
	return v, at, nil
}

// boolean reads a boolean as PostgreSQL's parse_bool does: words in any case,
// shortened as far as they are still one.
func boolean(text string) (value, ok bool) {
	t := strings.ToLower(text)
	is := func(word string, least int) bool { return len(t) >= least && strings.HasPrefix(word, t) }
	switch {
	case is("true", 1), is("yes", 1), t == "on", t == "1":
		return true, true
	case is("false", 1), is("no", 1), is("off", 2), t == "0":
		return false, true
	}
	return false, false
}

// setOwn obeys a SET or RESET. A position of a timeline that is not known yet is
// waited for.
func (s *Session) setOwn(c *router.Command) *wire.Error {
	if err := s.check(c); err != nil {
		return err
	}
	v, at, err := s.parsed(c)
	if c.Reset {
		v, at, err = s.params.ownValues, router.Position{}, nil
		switch c.Name {
		case "target":
			v.target, v.by = s.params.login.target, s.params.login.by
		case "consistency":
			v.level = s.params.login.level
		case "trace":
			v.trace = s.params.login.trace
		case "pin_notice":
			v.pins = s.params.login.pins
		}
	}
	if err != nil {
		return err
	}
	s.sight.shared = true // a block may be on a replica that was lent before this
	switch {
	case c.Local:
		s.params.local = v.target
	case c.Name == "lsn":
		return s.carry(at)
	default:
		s.params.ownValues = v
	}
	return nil
}

// resetOwn is RESET ALL and DISCARD ALL.
func (s *Session) resetOwn() {
	s.params.ownValues, s.params.local = s.params.login, ""
	s.sight.token, s.sight.tokenAt = router.Position{}, 0
}

// startOwn takes the own parameters out of what the startup packet asks for.
func (s *Session) startOwn(name, value string) *wire.Error {
	c := &router.Command{Name: strings.TrimPrefix(name, "pgproxy."), Value: value}
	if err := s.setOwn(c); err != nil {
		err.Severity = wire.SeverityFatal
		return err
	}
	if s.params.by == router.BySet {
		s.params.by = router.ByStartup
	}
	s.params.login = s.params.ownValues
	return nil
}

// carry makes the session's reads show what lies in front of a position: a token
// that another session was shown.
func (s *Session) carry(at router.Position) *wire.Error {
	if at == (router.Position{}) {
		s.sight.token, s.sight.tokenAt = router.Position{}, 0
		return nil
	}
	now := router.Nanotime() // whatever the token covers was on the primary by now
	err := s.known(func(known router.Position, _ int64) bool { return known.Timeline == 0 || known.Timeline >= at.Timeline }, now)
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e
	}
	if err != nil {
		return wire.Errorf(wire.CodeInvalidParameterValue, "no primary with the timeline of \"%s\" is known", at).Because(err)
	}
	s.sight.token, s.sight.tokenAt = at, now
	return nil
}

// token returns a position that covers all that the session has written and read;
// "" if that is nothing.
func (s *Session) token() (string, *wire.Error) {
	v := &s.sight
	stamp := max(v.floor, s.mine.Load().Load())
	if !v.blind {
		stamp = max(stamp, s.answered.Load())
	}
	switch {
	case v.tokenAt > stamp:
		return v.token.String(), nil
	case stamp == 0:
		return "", nil
	}
	var at router.Position
	err := s.known(func(p router.Position, covered int64) bool { at = p; return covered >= stamp }, stamp)
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return "", e
	}
	if err != nil {
		return "", wire.Errorf(wire.CodeInvalidParameterValue, "the primary's WAL position is not known").
			WithHint("The monitor needs a login: monitor_user.").Because(err)
	}
	return at.String(), nil
}

// knownWait bounds the wait for a position that the monitor has been asked for.
const knownWait = 5 * time.Second

// known waits until what is known of the primary is enough.
func (s *Session) known(enough func(router.Position, int64) bool, stamp int64) error {
	for w := (wait{}); ; {
		topo := s.srv.topo.Topology(s.db.Name)
		if topo == nil {
			return wire.Errorf(wire.CodeUndefinedDatabase, "database %q does not exist", s.database)
		}
		if enough(topo.Known()) {
			return nil
		}
		left := knownWait - w.age()
		if left <= 0 {
			return context.DeadlineExceeded
		}
		s.srv.topo.Want(s.db.Name, stamp)
		if err := s.waitFor(left, func(ctx context.Context) error { return s.srv.topo.Wait(ctx, s.db.Name, topo.Generation) }); err != nil {
			return err
		}
	}
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// show returns the value of one of the own parameters.
func (s *Session) show(c *router.Command) (string, *wire.Error) {
	switch c.Name {
	case "consistency":
		return s.level().String(), nil
	case "lsn":
		return s.token()
	case "route":
		return s.route.String(), nil
	case "target":
		if s.params.local != "" {
			return s.params.local, nil
		}
		return s.params.target, nil
	case "trace":
		return onOff(s.params.trace), nil
	case "pin_notice":
		return onOff(s.params.pins), nil
	}
	return "", errOwn(c.Name)
}

// explains reports whether the client wants to hear where a statement goes.
func (s *Session) explains(plan *router.Plan) bool { return s.params.trace || plan.Explain }

// explain tells the client where its statement goes. Nothing may be owed to it.
func (s *Session) explain() error {
	n := &wire.Error{Severity: wire.SeverityNotice, Code: "00000", Message: "pgproxy: " + s.route.String()}
	return s.writeLocal(n.AppendNotice(nil))
}
