package admin

import (
	"context"
	"strings"

	"pgproxy/wire"
)

// argument says whether a command takes one.
type argument uint8

const (
	argNone argument = iota
	argOptional
	argRequired
)

// entry is one command, or one word behind SHOW.
type entry struct {
	name string // upper case
	// readOnly lets stats_users run it. Whatever is not marked is for
	// admin_users.
	readOnly bool
	arg      argument
	noArg    string        // what is said when the argument is missing
	cols     []wire.Column // nil: no rows
	rows     func(*call) []row
	run      func(*call) error // of what has no rows
}

// call is one execution of an entry.
type call struct {
	ctx     context.Context // ends when the client goes, or the proxy
	console *Console
	client  *client
	arg     string
	value   string        // of SET
	to      string        // of SWITCHOVER
	notices []*wire.Error // to send in front of CommandComplete
}

// shows are the words that SHOW knows, set in init since SHOW HELP lists them.
var shows map[string]*entry

// commands are all others.
var commands map[string]*entry

func init() {
	shows = index(
		&entry{name: "HELP", readOnly: true, run: showHelp},
		&entry{name: "VERSION", readOnly: true, cols: columns("s", "version"), rows: showVersion},
		&entry{name: "CONFIG", readOnly: true, cols: columns("ssss", "key", "value", "default", "changeable"), rows: showConfig},
		&entry{name: "DATABASES", readOnly: true, cols: databaseColumns, rows: showDatabases},
		&entry{name: "POOLS", readOnly: true, cols: poolColumns, rows: showPools},
		&entry{name: "POOLS_SERVERS", readOnly: true, cols: poolServerColumns, rows: showPoolsServers},
		&entry{name: "STATS", readOnly: true, cols: statColumns, rows: showStats},
		&entry{name: "STATS_TOTALS", readOnly: true, cols: statTotalColumns, rows: showStatsTotals},
		&entry{name: "STATS_AVERAGES", readOnly: true, cols: statAverageColumns, rows: showStatsAverages},
		&entry{name: "TOTALS", readOnly: true, cols: columns("sN", "name", "value"), rows: showTotals},
		&entry{name: "CLIENTS", readOnly: true, cols: clientColumns, rows: showClients},
		&entry{name: "SERVERS", readOnly: true, cols: socketColumns, rows: showServers},
		&entry{name: "SOCKETS", readOnly: true, cols: socketDebugColumns, rows: showSockets},
		&entry{name: "ACTIVE_SOCKETS", readOnly: true, cols: socketDebugColumns, rows: showActiveSockets},
		&entry{name: "LISTS", readOnly: true, cols: columns("si", "list", "items"), rows: showLists},
		&entry{name: "USERS", readOnly: true, cols: userColumns, rows: showUsers},
		&entry{name: "STATE", readOnly: true, cols: columns("ss", "key", "value"), rows: showState},
		&entry{name: "MEM", readOnly: true, cols: columns("siiii", "name", "size", "used", "free", "memtotal"), rows: nothing},
		&entry{name: "DNS_HOSTS", readOnly: true, cols: columns("sqs", "hostname", "ttl", "addrs"), rows: showDNSHosts},
		&entry{name: "DNS_ZONES", readOnly: true, cols: columns("sqi", "zonename", "serial", "count"), rows: nothing},
		&entry{name: "PEERS", readOnly: true, cols: columns("isii", "peer_id", "host", "port", "pool_size"), rows: showPeers},
		&entry{name: "PEER_POOLS", readOnly: true, cols: columns("iiiii", "peer_id", "cl_active_cancel_req",
			"cl_waiting_cancel_req", "sv_active_cancel", "sv_login"), rows: showPeerPools},
		&entry{name: "SERVERS_HEALTH", readOnly: true, cols: healthColumns, rows: showServersHealth},
		&entry{name: "HOSTS", readOnly: true, cols: hostColumns, rows: showHosts},
		&entry{name: "TOPOLOGY", readOnly: true, cols: topologyColumns, rows: showTopology},
		&entry{name: "EVENTS", readOnly: true, cols: columns("sssss", "time", "database", "server", "event", "detail"), rows: showEvents},
		&entry{name: "STATEMENTS", readOnly: true, cols: columns("sN", "name", "value"), rows: showStatements},
		&entry{name: "AUDIT", readOnly: true, cols: auditColumns, rows: showAudit},
		&entry{name: "PINS", readOnly: true, cols: pinColumns, rows: showPins},
		&entry{name: "ROUTES", readOnly: true, cols: routeColumns, rows: showRoutes},
		&entry{name: "CATALOGS", readOnly: true, cols: catalogColumns, rows: showCatalogs},
		&entry{name: "SHADOW", readOnly: true, cols: shadowColumns, rows: showShadow},
		&entry{name: "SHAPES", readOnly: true, cols: shapeColumns, rows: showShapes},
		&entry{name: "LISTENERS", readOnly: true, cols: listenerColumns, rows: showListeners},
		&entry{name: "FDS", cols: fdColumns, rows: nothing},
	)
	for _, p := range fakeParams {
		value := p.value
		e := &entry{name: strings.ToUpper(p.name), readOnly: true, cols: columns("s", p.name)}
		e.rows = func(*call) []row { return []row{{value}} }
		shows[p.name] = e
	}
	commands = index(
		&entry{name: "RELOAD", run: reload},
		&entry{name: "PAUSE", arg: argOptional, run: pause},
		&entry{name: "RESUME", arg: argOptional, run: resume},
		&entry{name: "KILL", arg: argOptional, run: kill},
		&entry{name: "KILL_CLIENT", arg: argRequired, noArg: "invalid client pointer supplied", run: killClient},
		&entry{name: "RECONNECT", arg: argOptional, run: reconnect},
		&entry{name: "DISABLE", arg: argRequired, noArg: "a database is required", run: disable},
		&entry{name: "ENABLE", arg: argRequired, noArg: "a database is required", run: enable},
		&entry{name: "WAIT_CLOSE", arg: argOptional, run: waitClose},
		&entry{name: "SWITCHOVER", arg: argRequired, noArg: "a database is required", run: switchover},
		&entry{name: "SUSPEND", run: suspend},
		&entry{name: "SHUTDOWN", arg: argOptional, run: shutdown},
		&entry{name: "SET", arg: argOptional, run: set},
	)
}

func index(list ...*entry) map[string]*entry {
	m := make(map[string]*entry, len(list))
	for _, e := range list {
		m[strings.ToLower(e.name)] = e
	}
	return m
}

// ready is a statement that a client may run.
type ready struct {
	statement
	entry *entry // nil if there is nothing to run
	tag   string // of CommandComplete
	cols  []wire.Column
}

// prepare is the one way from a text to something that can be run, and so the
// one place where privileges are checked.
func prepare(sql string, admin bool) (*ready, *wire.Error) {
	r := &ready{statement: parse(sql)}
	switch r.kind {
	case kindEmpty:
		return r, nil
	case kindTx:
		r.tag = r.statement.tag
		return r, nil
	case kindSet:
		r.tag = "SET"
		if ignored(r.key) {
			r.entry = ignoredSet
			return r, nil
		}
		r.entry, r.arg = commands["set"], r.key
		r.tag = "SET " + r.key + "=" + r.value
	case kindCommand:
		switch r.verb {
		case "show", "select":
			r.entry, r.tag, r.hasArg = shows[strings.ToLower(r.arg)], "SHOW", false
		default:
			r.entry = commands[r.verb]
		}
	}
	if r.entry == nil {
		return nil, r.invalid()
	}
	if !r.entry.readOnly && !admin {
		return nil, wire.Errorf(wire.CodeInsufficientPrivilege, "admin access needed")
	}
	if r.kind == kindSet {
		return r, nil
	}
	switch {
	case (r.verb == "switchover") != (r.to != ""), r.verb == "switchover" && !toServer(r.to):
		return nil, r.invalid()
	case r.verb == "set", r.hasArg && r.entry.arg == argNone:
		return nil, r.invalid()
	case r.entry.arg == argRequired && !r.hasArg:
		return nil, wire.Errorf(wire.CodeProtocolViolation, "%s", r.entry.noArg)
	}
	if r.tag == "" {
		r.tag = r.entry.name
	}
	r.cols = r.entry.cols
	return r, nil
}

// execute runs a statement and returns its rows.
func (r *ready) execute(c *call) ([]row, error) {
	if r.entry.rows != nil {
		return r.entry.rows(c), nil
	}
	return nil, r.entry.run(c)
}

func nothing(*call) []row { return nil }
