package main

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"pgproxy/config"
	"pgproxy/router"
)

func routeCommand(args []string, stdout, stderr io.Writer) int {
	fs := newFlags("route", "[-config FILE] [-database NAME] 'SQL'", stderr)
	path := fs.String("config", "", "configuration `FILE` with the database's settings; without one the defaults count")
	name := fs.String("database", "", "database of the configuration; may be left out if there is only one")
	user := fs.String("user", "", "name of the client, for the rules of the database")
	application := fs.String("application_name", "", "application_name of the client, for the rules")
	client := fs.String("client_addr", "", "address of the client, for the rules")
	if code, done := parseFlags(fs, args); done {
		return code
	}
	if fs.NArg() != 1 {
		fmt.Fprintln(stderr, "pgproxy route: want one statement, as in: pgproxy route 'SELECT 1'")
		return exitUsage
	}
	db := &config.Database{}
	maxParse := 0
	if *path != "" {
		cfg, err := config.Load(*path)
		if err != nil {
			fmt.Fprintf(stderr, "%v\n", err)
			return exitUsage
		}
		maxParse = cfg.Proxy.MaxQueryParseSize
		if db, err = pickDatabase(cfg, *name); err != nil {
			fmt.Fprintf(stderr, "pgproxy route: %v\n", err)
			return exitUsage
		}
	}
	addr, err := netip.ParseAddr(*client)
	if *client != "" && err != nil {
		fmt.Fprintf(stderr, "pgproxy route: -client_addr %q is no address\n", *client)
		return exitUsage
	}
	plan := router.New(router.Options{MaxParse: maxParse}).Plan([]byte(fs.Arg(0)))
	fmt.Fprint(stdout, explainRoute(plan, db, router.RulesFor(db, *user, *application, addr)))
	return exitOK
}

// pickDatabase finds the database that is meant.
func pickDatabase(cfg *config.Config, name string) (*config.Database, error) {
	names := slices.Sorted(maps.Keys(cfg.Databases))
	switch {
	case name == "" && len(names) == 1:
		return cfg.Databases[names[0]], nil
	case name == "":
		return nil, fmt.Errorf("-database is needed: the configuration has %s", strings.Join(names, ", "))
	}
	db, ok := cfg.Database(name)
	if !ok {
		return nil, fmt.Errorf("database %q is not in the configuration, which has %s", name, strings.Join(names, ", "))
	}
	return db, nil
}

// explainRoute says what happens to a statement outside a transaction while
// every server is up and has caught up.
func explainRoute(plan *router.Plan, db *config.Database, rules *router.Rules) string {
	req := router.Request{Plan: plan, Target: plan.Target, By: router.ByComment}
	if req.Target == "" {
		req.Target, req.By = rules.Target(plan), router.ByRule
	}
	ch := assumedTopology(db).Choose(router.Policy{
		Split: db.ReadWriteSplit, PrimaryReads: db.PrimaryReads, LoadBalance: db.LoadBalance,
	}, &req)
	var b strings.Builder
	line := func(name, value string) { fmt.Fprintf(&b, "%-10s %s\n", name, value) }
	goes := "nowhere"
	switch {
	case plan.Bad != nil:
		goes = "nowhere, it is refused: " + plan.Bad.Message
	case plan.Proxy != nil:
		goes = "the proxy answers it"
	case ch.Server >= 0:
		goes = "the " + ch.Role.String()
		if ch.Role == router.RoleReplica {
			goes = "a replica"
		}
	}
	line("goes to", goes)
	line("because", string(ch.Reason))
	line("class", plan.Class.String())
	line("reason", string(plan.Reason))
	if plan.Effects != 0 {
		line("effects", strings.ReplaceAll(plan.Effects.String(), "|", ", "))
	}
	if plan.Target != "" {
		line("hint", "target="+plan.Target)
	}
	return b.String()
}

// assumedTopology has the servers of a configuration, all up: the first one that
// may be is the primary. Without servers it has one of each role.
func assumedTopology(db *config.Database) *router.Topology {
	servers := db.Servers
	if len(servers) == 0 {
		servers = []config.Server{{Role: config.RolePrimary}, {Role: config.RoleReplica}}
	}
	t := &router.Topology{Turn: new(atomic.Uint64)}
	primary := slices.IndexFunc(servers, func(s config.Server) bool { return s.Role == config.RolePrimary })
	if primary < 0 {
		primary = slices.IndexFunc(servers, func(s config.Server) bool { return s.Role == config.RoleAuto })
	}
	for i, s := range servers {
		role := router.RoleReplica
		if i == primary {
			role = router.RolePrimary
		}
		t.Servers = append(t.Servers, router.Server{
			Addr: s.Addr(), Role: role, Up: true, Weight: max(s.Weight, 1), Groups: s.Groups, Load: new(atomic.Int64),
		})
	}
	return t
}
