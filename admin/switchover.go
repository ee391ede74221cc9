package admin

import (
	"context"
	"errors"
	"strings"
	"time"

	"pgproxy/config"
	"pgproxy/monitor"
	"pgproxy/wire"
)

// Failover is what the console shows and asks of changes of the primary. Package
// monitor has the real one.
type Failover interface {
	States() []monitor.State
	Events() []monitor.Event
	Hold(database, target string, most time.Duration) (*monitor.Switchover, error)
}

// switchover holds new transactions, waits for those that are open, has Patroni or
// the operator promote the target, and lets transactions go on at the new primary.
// If its client leaves before that, they go on at the old one.
func switchover(c *call) error {
	f := c.console.opt.Failover
	if err := c.database("switch over"); err != nil {
		return err
	}
	db, ok := c.config().Database(c.arg)
	if f == nil || !ok {
		return wire.Errorf(wire.CodeFeatureNotSupported, "SWITCHOVER is not supported here")
	}
	sw, err := f.Hold(db.Name, c.to, db.SwitchoverDrain+db.FailoverTimeout)
	if err != nil {
		return wire.Errorf(wire.CodeObjectNotInState, "cannot switch over: %s", err)
	}
	defer sw.End()
	began := time.Now()
	drain, end := context.WithTimeout(c.ctx, db.SwitchoverDrain)
	left := c.console.opt.Pools.Drain(drain, sw.Primary)
	end()
	ctx, end := context.WithTimeout(c.ctx, db.FailoverTimeout)
	defer end()
	c.tell("new transactions are held, %d are still open on %s", left, sw.Primary)
	switch err := sw.Promote(ctx); {
	case err == nil:
	case errors.Is(err, monitor.ErrNoPatroni):
		c.tell("waiting for %s to become the primary: stop %s and promote it now", sw.Target, sw.Primary)
	default:
		return wire.Errorf(wire.CodeObjectNotInState, "switchover failed, transactions go on: %s", err)
	}
	addr, err := sw.Wait(ctx)
	switch {
	case c.ctx.Err() != nil:
		return wire.Errorf(wire.CodeQueryCanceled, "SWITCHOVER was ended: its client has left")
	case err != nil:
		return wire.Errorf(wire.CodeObjectNotInState, "no new primary within failover_timeout, transactions go on where they can")
	case addr != sw.Target:
		c.tell("the new primary is %s, not %s", addr, sw.Target)
	}
	c.tell("the primary is %s, transactions were held for %v", addr, time.Since(began).Round(time.Millisecond))
	return nil
}

// tell sends a notice at once.
func (c *call) tell(format string, args ...any) {
	n := wire.Errorf("00000", format, args...)
	n.Severity = wire.SeverityNotice
	c.client.out = n.AppendNotice(c.client.out)
	_ = c.client.flush(c.ctx) // a client that is gone is noticed elsewhere
}

var topologyColumns = columns("sssssisqqqsiisssssss",
	"database", "server", "role", "state", "role_from", "timeline", "lsn", "lag_bytes", "lag_us", "replay_delay_us", "sync_state",
	"connections", "leases", "reason", "until", "changed", "started", "system_identifier", "writes", "patroni")

// showTopology tells of each server what it is, and why it is used or not.
func showTopology(c *call) []row {
	health := c.console.opt.Health
	if health == nil {
		return nil
	}
	states := make(map[string]monitor.State)
	if f := c.console.opt.Failover; f != nil {
		for _, s := range f.States() {
			states[s.Database] = s
		}
	}
	conns := make(map[[2]string]int)
	for _, st := range c.console.opt.Pools.Stats() {
		if db, ok := c.config().Database(st.Key.Database); ok {
			conns[[2]string{db.Name, st.Key.Server}] += st.Servers()
		}
	}
	var out []row
	for _, s := range health.Status() {
		db := states[s.Database]
		writes := "go on"
		if db.Halted != "" {
			writes = "wait: " + string(db.Halted)
		}
		patroni := db.Patroni
		if db.Paused {
			patroni += ", paused"
		}
		if db.Scheduled != "" {
			patroni += ", switchover " + db.Scheduled
		}
		state, reason := serverState(&s)
		timeline := any(nil)
		if s.Timeline != 0 {
			timeline = int(s.Timeline)
		}
		out = append(out, row{
			s.Database, s.Addr, s.Role.String(), state, roleFrom(&s), timeline, lsn(s.LSN), s.LagBytes, int64(s.Lag / time.Microsecond),
			int64(s.Delay / time.Microsecond), optional(s.SyncState), conns[[2]string{s.Database, s.Addr}], s.Load, optional(reason),
			stamp(s.Banned), stamp(s.Changed), stamp(s.Started), optional(s.System), writes, optional(patroni),
		})
	}
	return out
}

// serverState says in a word whether a server is used, and why not.
func serverState(s *monitor.Status) (state, reason string) {
	switch {
	case s.Fenced:
		return "fenced", s.Odd
	case !s.Up:
		return "down", s.LastError
	case !s.Banned.IsZero():
		return "banned", "it came and went"
	case s.Slow:
		return "lagging", "its lag is over max_replica_lag, or was a moment ago"
	case s.Role.String() == "unknown":
		return "unused", s.Odd
	}
	return "up", s.Odd
}

func roleFrom(s *monitor.Status) string {
	if s.Fixed {
		return "configuration"
	}
	return "server"
}

// showEvents lists what has changed, the newest last.
func showEvents(c *call) []row {
	f := c.console.opt.Failover
	if f == nil {
		return nil
	}
	var out []row
	for _, e := range f.Events() {
		out = append(out, row{e.At.Format("2006-01-02 15:04:05.000 MST"), e.Database, optional(e.Server), e.Kind, e.Text})
	}
	return out
}

// toServer checks the target of SWITCHOVER.
func toServer(to string) bool {
	s := config.ServerAt(to)
	return s.Host != "" && s.Port != 0 && s.Addr() == to
}

// Host is one name in DNS: for how long its addresses are still good, and what they
// are.
type Host struct {
	Name  string
	Left  time.Duration
	Addrs []string
}

func showDNSHosts(c *call) []row {
	if c.console.opt.Hosts == nil {
		return nil
	}
	var out []row
	for _, h := range c.console.opt.Hosts() {
		out = append(out, row{h.Name, int64(max(h.Left, 0) / time.Second), strings.Join(h.Addrs, ",")})
	}
	return out
}
