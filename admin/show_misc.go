package admin

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"pgproxy/config"
	"pgproxy/monitor"
)

var healthColumns = columns("ssisssqsqisisssqqs",
	"database", "host", "port", "role", "role_from", "state", "lag_us", "lsn", "lag_bytes", "weight", "groups", "leases",
	"changed", "checked", "since_check", "checks", "failures", "last_error")

// showHelp answers with a notice, as PgBouncer does.
func showHelp(c *call) error {
	var b strings.Builder
	for _, l := range []string{
		"SHOW HELP|CONFIG|DATABASES|POOLS|POOLS_SERVERS|CLIENTS|SERVERS|USERS|VERSION",
		"SHOW TOPOLOGY|EVENTS|SERVERS_HEALTH|HOSTS|PINS|AUDIT|LISTENERS|ROUTES|SHADOW|SHAPES|CATALOGS|STATEMENTS",
		"SHOW PEERS|PEER_POOLS",
		"SHOW FDS|SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE",
		"SHOW DNS_HOSTS|DNS_ZONES",
		"SHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS",
		"SET key = arg",
		"RELOAD",
		"PAUSE [<db>]",
		"RESUME [<db>]",
		"DISABLE <db>",
		"ENABLE <db>",
		"RECONNECT [<db>]",
		"SWITCHOVER <db> TO <host>:<port>",
		"KILL [<db>]",
		"KILL_CLIENT <client_id>",
		"SUSPEND",
		"SHUTDOWN",
		"SHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS",
		"WAIT_CLOSE [<db>]",
	} {
		b.WriteString("\n\t" + l)
	}
	c.notice("Console usage").Detail = b.String()
	return nil
}

// showVersion begins as PgBouncer's does, which is what programs look for.
func showVersion(c *call) []row {
	v := "PgBouncer " + PgBouncer
	if own := c.console.opt.Version; own != "" {
		v += " (pgproxy " + own + ")"
	}
	return []row{{v}}
}

func showConfig(c *call) []row {
	values := c.config().Values()
	var out []row
	for _, k := range config.Keys() {
		out = append(out, row{k.Name, asBouncer(&k, values[k.Name]), asBouncer(&k, k.Default), yesNo(k.Changeable)})
	}
	idle, values := c.config().Idle()
	for _, k := range idle {
		out = append(out, row{k.Name, values[k.Name], k.Default, yesNo(false)})
	}
	slices.SortFunc(out, func(a, b row) int { return cmp.Compare(a[0].(string), b[0].(string)) })
	return out
}

// asBouncer writes a value as PgBouncer does: booleans as 1 and 0, durations as
// seconds, and tcp_user_timeout as milliseconds.
func asBouncer(k *config.Key, value string) string {
	switch k.Kind {
	case config.KindBool:
		if value == "true" {
			return "1"
		}
		return "0"
	case config.KindDuration:
		d, err := time.ParseDuration(value)
		if err != nil {
			return value
		}
		n := d.Round(time.Microsecond).Seconds()
		if k.Name == "tcp_user_timeout" {
			n *= 1000
		}
		return strconv.FormatFloat(n, 'g', -1, 64)
	}
	return value
}

// fdColumns are those of SHOW FDS, which has no rows: there is no process to hand
// connections over to, and secrets would be in them.
var fdColumns = columns("issssiqisssssbb", "fd", "task", "user", "database", "addr", "port", "cancel", "link", "client_encoding",
	"std_strings", "datestyle", "timezone", "password", "scram_client_key", "scram_server_key")

func showPeers(c *call) []row {
	peers := c.config().Peers
	var out []row
	for _, id := range slices.Sorted(maps.Keys(peers)) {
		p := peers[id]
		out = append(out, row{id, p.Host, p.Port, p.PoolSize})
	}
	return out
}

// showPeerPools shows the cancel requests that are passed on at this moment.
func showPeerPools(c *call) []row {
	var out []row
	for _, id := range slices.Sorted(maps.Keys(c.config().Peers)) {
		st := c.console.opt.Server.PeerStats(id)
		out = append(out, row{id, st.Connecting + st.Sent, st.Waiting, st.Sent, st.Connecting})
	}
	return out
}

func showState(c *call) []row {
	stopped, suspended := c.console.opt.Pools.Paused(""), c.console.opt.Pools.Suspended()
	return []row{{"active", yesNo(!stopped)}, {"paused", yesNo(stopped && !suspended)}, {"suspended", yesNo(suspended)}}
}

func showLists(c *call) []row {
	used, login, servers := len(c.console.list()), -len(c.console.list()), 0
	for _, s := range c.console.opt.Server.Sessions() {
		if s.User == "" {
			login++ // the console's clients are among them
		} else {
			used++
		}
	}
	for _, st := range c.console.opt.Pools.Stats() {
		servers += st.Servers()
	}
	return []row{
		{"databases", len(showDatabases(c))},
		{"users", len(c.users())},
		{"peers", len(c.config().Peers)},
		{"pools", len(c.pools())},
		{"peer_pools", len(c.config().Peers)},
		{"free_clients", 0},
		{"used_clients", used},
		{"login_clients", max(login, 0)},
		{"free_servers", 0},
		{"used_servers", servers},
		{"dns_names", 0},
		{"dns_zones", 0},
		{"dns_queries", 0},
		{"dns_pending", 0},
	}
}

// showStatements shows what the proxy keeps of prepared statements, and how often
// it has run a statement again without its client's noticing.
func showStatements(c *call) []row {
	st := c.console.opt.Server.Stats()
	return []row{
		{"prepared_statements", st.Statements},
		{"prepared_statement_bytes", st.StatementBytes},
		{"prepared_statement_memory", c.config().Proxy.PreparedStatementMemory},
		{"rerun_stale", st.Rerun.Stale},
		{"rerun_refused", st.Rerun.Refused},
		{"rerun_conflict", st.Rerun.Conflict},
		{"rerun_died", st.Rerun.Died},
		{"refused_shapes", st.Healed},
	}
}

// showServersHealth shows what the monitor knows of each server.
func showServersHealth(c *call) []row {
	list := slices.Clone(c.console.status())
	slices.SortStableFunc(list, func(a, b monitor.Status) int { return cmp.Compare(a.Database, b.Database) })
	now := time.Now()
	var out []row
	for i := range list {
		s := &list[i]
		from, state, since := "server", "down", any(nil)
		if s.Fixed {
			from = "configuration"
		}
		if s.Up {
			state = "up"
		}
		if !s.Checked.IsZero() {
			since = now.Sub(s.Checked).Round(time.Millisecond).String()
		}
		out = append(out, row{
			s.Database, s.Host, s.Port, s.Role.String(), from, state, int64(s.Lag / time.Microsecond), lsn(s.LSN), s.LagBytes,
			s.Weight, strings.Join(s.Groups, ","), s.Load, stamp(s.Changed), stamp(s.Checked), since, s.Checks, s.Failures,
			optional(s.LastError),
		})
	}
	return out
}

// lsn writes a WAL position as pg_lsn does.
func lsn(n uint64) any {
	if n == 0 {
		return nil
	}
	return fmt.Sprintf("%X/%X", n>>32, uint32(n))
}
