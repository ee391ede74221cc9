package admin

import (
	"cmp"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"pgproxy/config"
	"pgproxy/monitor"
	"pgproxy/pool"
	"pgproxy/proxy"
)

// ownName is the database and user under which the console itself stands in
// PgBouncer's tables.
const ownName = "pgbouncer"

var (
	poolNames = []string{
		"database", "user", "cl_active", "cl_waiting", "cl_active_cancel_req", "cl_waiting_cancel_req", "sv_active",
		"sv_active_cancel", "sv_being_canceled", "sv_idle", "sv_used", "sv_tested", "sv_login", "maxwait", "maxwait_us",
		"pool_mode", "load_balance_hosts",
	}
	poolColumns       = columns("ssiiiiiiiiiiiiiss", poolNames...)
	poolServerColumns = columns("ssiiiiiiiiiiiiiss"+"sisiiiis", append(poolNames[:len(poolNames):len(poolNames)],
		"host", "port", "role", "pool_size", "sv_pinned", "paused", "login_failures", "last_error")...)
	databaseColumns = columns("ssissiiiissiiiiii",
		"name", "host", "port", "database", "force_user", "pool_size", "min_pool_size", "reserve_pool_size", "server_lifetime",
		"pool_mode", "load_balance_hosts", "max_connections", "current_connections", "max_client_connections",
		"current_client_connections", "paused", "disabled")
	userColumns = columns("ssssiiii",
		"name", "pool_size", "reserve_pool_size", "pool_mode", "max_user_connections", "current_connections",
		"max_user_client_connections", "current_client_connections")
)

// poolKey is what PgBouncer calls a pool: ours has one for each server besides.
type poolKey struct{ database, user string }

// poolSum is one row of SHOW POOLS.
type poolSum struct {
	pool.Stats          // summed over the servers
	clActive, clWaiting int
}

func (p *poolSum) add(st *pool.Stats) {
	p.Active += st.Active
	p.Idle += st.Idle
	p.Used += st.Used
	p.Tested += st.Tested
	p.Login += st.Login
	p.ActiveCancel += st.ActiveCancel
	p.BeingCanceled += st.BeingCanceled
	p.MaxWait = max(p.MaxWait, st.MaxWait)
}

// poolUser is the role that a session's pools log in as.
func poolUser(cfg *config.Config, s *proxy.SessionInfo) string {
	if db, ok := cfg.Database(s.Database); ok && db.User != "" {
		return db.User
	}
	return s.User
}

// poolMode is the mode of a pool: a user's own comes first.
func poolMode(cfg *config.Config, database, user string) string {
	if u := cfg.Users[user]; u != nil && u.PoolMode != config.PoolInherit {
		return u.PoolMode.String()
	}
	if db, ok := cfg.Database(database); ok {
		return db.PoolMode.String()
	}
	return cfg.Proxy.PoolMode.String()
}

// balance is the column load_balance_hosts: NULL where there is one server.
func balance(cfg *config.Config, database string) any {
	db, ok := cfg.Databases[database]
	if !ok {
		db, ok = cfg.Database(database)
	}
	if !ok || len(db.Servers) < 2 {
		return nil
	}
	if db.LoadBalance == config.LoadBalanceFirst {
		return "disable"
	}
	return strings.ReplaceAll(db.LoadBalance.String(), "_", "-")
}

// pools sums pools and clients by database and user.
func (c *call) pools() map[poolKey]*poolSum {
	cfg := c.config()
	sums := make(map[poolKey]*poolSum)
	at := func(k poolKey) *poolSum {
		if sums[k] == nil {
			sums[k] = new(poolSum)
		}
		return sums[k]
	}
	for _, st := range c.console.opt.Pools.Stats() {
		at(poolKey{st.Key.Database, st.Key.User}).add(&st)
	}
	for _, s := range c.console.opt.Server.Sessions() {
		if s.User == "" {
			continue // not logged in, or the console's
		}
		p := at(poolKey{s.Database, poolUser(cfg, &s)})
		if s.State == "waiting" {
			p.clWaiting++
			p.MaxWait = max(p.MaxWait, s.Wait)
		} else {
			p.clActive++
		}
	}
	own := at(poolKey{ownName, ownName})
	own.clActive += len(c.console.list())
	return sums
}

func (p *poolSum) row(k poolKey, mode string, balance any) row {
	sec, us := parts(p.MaxWait)
	return row{
		k.database, k.user, p.clActive, p.clWaiting, p.ActiveCancel, 0, p.Active, p.ActiveCancel, p.BeingCanceled, p.Idle, p.Used, p.Tested,
		p.Login, sec, us, mode, balance,
	}
}

func showPools(c *call) []row {
	cfg := c.config()
	sums := c.pools()
	var out []row
	for _, k := range slices.SortedFunc(maps.Keys(sums), func(a, b poolKey) int {
		return cmp.Or(cmp.Compare(a.database, b.database), cmp.Compare(a.user, b.user))
	}) {
		mode := poolMode(cfg, k.database, k.user)
		if k.database == ownName {
			mode = config.PoolStatement.String()
		}
		out = append(out, sums[k].row(k, mode, balance(cfg, k.database)))
	}
	return out
}

// status returns what the monitor says, or nothing where there is none.
func (c *Console) status() []monitor.Status {
	if c.opt.Health == nil {
		return nil
	}
	return c.opt.Health.Status()
}

// showPoolsServers has a row for each pool of ours. Its clients are those that
// have a connection of it, or wait for one.
func showPoolsServers(c *call) []row {
	cfg := c.config()
	roles := make(map[[2]string]string)
	for _, s := range c.console.status() {
		roles[[2]string{s.Database, s.Addr}] = s.Role.String()
	}
	active := make(map[pool.Key]int)
	for _, s := range c.console.opt.Server.Sessions() {
		if s.Server != nil {
			active[pool.Key{Database: s.Database, User: poolUser(cfg, &s), Server: s.Server.Addr}]++
		}
	}
	var out []row
	for _, st := range c.console.opt.Pools.Stats() {
		p := poolSum{clActive: active[st.Key], clWaiting: st.Waiting}
		p.add(&st)
		at := splitAddr(st.Key.Server)
		role, paused := "unknown", 0
		if db, ok := cfg.Database(st.Key.Database); ok && roles[[2]string{db.Name, st.Key.Server}] != "" {
			role = roles[[2]string{db.Name, st.Key.Server}]
		}
		if st.Paused {
			paused = 1
		}
		r := p.row(poolKey{st.Key.Database, st.Key.User}, poolMode(cfg, st.Key.Database, st.Key.User), balance(cfg, st.Key.Database))
		out = append(out, append(r, at.addr, at.port, role, st.Limits.Size, st.Pinned, paused, st.LoginFail, optional(st.LastError)))
	}
	return out
}

// databasesInUse lists the configured databases but "*", and the names that
// clients of "*" have asked for, in order.
func (c *call) databasesInUse() []string {
	names := make(map[string]bool)
	for n := range c.config().Databases {
		names[n] = n != config.Wildcard
	}
	for _, st := range c.console.opt.Pools.Stats() {
		names[st.Key.Database] = true
	}
	for _, s := range c.console.opt.Server.Sessions() {
		if s.Database != "" {
			names[s.Database] = true
		}
	}
	delete(names, config.Wildcard)
	return slices.Sorted(maps.Keys(names))
}

// hosts writes the servers of a database as PgBouncer's host and port: hosts
// with commas, and their ports where they are not all the same.
func hosts(servers []config.Server) (host, port any) {
	if len(servers) == 0 {
		return nil, 0
	}
	same := !slices.ContainsFunc(servers, func(s config.Server) bool { return s.Port != servers[0].Port })
	var list []string
	for _, s := range servers {
		h := s.Host
		if !same {
			h = net.JoinHostPort(h, strconv.Itoa(s.Port))
		}
		list = append(list, h)
	}
	return strings.Join(list, ","), servers[0].Port
}

func showDatabases(c *call) []row {
	cfg := c.config()
	s, pools := c.console.opt.Server, c.console.opt.Pools
	conns, clients := make(map[string]int), make(map[string]int)
	for _, st := range pools.Stats() {
		conns[st.Key.Database] += st.Servers()
	}
	for _, i := range s.Sessions() {
		clients[i.Database]++
	}
	names := c.databasesInUse()
	if _, ok := cfg.Databases[config.Wildcard]; ok {
		names = append(names, config.Wildcard)
	}
	seconds := func(d time.Duration) int64 { return int64(d / time.Second) }
	out := []row{{
		ownName, nil, cfg.Proxy.ListenPort, ownName, ownName, 2, 0, 0, seconds(cfg.Proxy.ServerLifetime), config.PoolStatement.String(), nil,
		0, 0, 0, len(c.console.list()), 0, 0,
	}}
	for _, n := range names {
		db := cfg.Databases[n]
		dbname := n
		if db == nil {
			db, _ = cfg.Database(n)
		}
		if db == nil {
			continue // taken out of the configuration a moment ago
		}
		if n != config.Wildcard {
			dbname = db.DBName
		}
		host, port := hosts(db.Servers)
		out = append(out, row{
			n, host, port, dbname, optional(db.User), db.PoolSize, db.MinPoolSize, db.ReservePoolSize, seconds(db.ServerLifetime), db.PoolMode.String(), balance(cfg, n),
			db.MaxDBConnections, conns[n], db.MaxDBClientConnections, clients[n], pools.Paused(n), s.Disabled(n),
		})
	}
	slices.SortStableFunc(out, func(a, b row) int { return cmp.Compare(a[0].(string), b[0].(string)) })
	return out
}

// users lists everybody who is known: from auth_file, [users] and the lists of
// the console, and clients that needed no entry.
func (c *call) users() []string {
	st := c.console.opt.Server.Settings()
	names := make(map[string]bool)
	if st.Users != nil {
		for _, n := range st.Users.Names() {
			names[n] = true
		}
	}
	for n := range st.Config.Users {
		names[n] = true
	}
	for _, n := range slices.Concat(st.Config.Proxy.AdminUsers, st.Config.Proxy.StatsUsers) {
		names[n] = true
	}
	for _, s := range c.console.opt.Server.Sessions() {
		if s.User != "" {
			names[s.User] = true
		}
	}
	names[ownName] = true
	return slices.Sorted(maps.Keys(names))
}

func showUsers(c *call) []row {
	cfg := c.config()
	conns, clients := make(map[string]int), make(map[string]int)
	for _, st := range c.console.opt.Pools.Stats() {
		conns[st.Key.User] += st.Servers()
	}
	for _, s := range c.console.opt.Server.Sessions() {
		clients[s.User]++
	}
	for _, cl := range c.console.list() {
		clients[cl.pc.Identity.User]++
	}
	var out []row
	for _, n := range c.users() {
		size, reserve, mode := "", "", any(nil)
		limit, clientLimit := cfg.Proxy.MaxUserConnections, cfg.Proxy.MaxUserClientConnections
		if u := cfg.Users[n]; u != nil {
			if u.PoolSize > 0 {
				size = strconv.Itoa(u.PoolSize)
			}
			if u.ReservePoolSize > 0 {
				reserve = strconv.Itoa(u.ReservePoolSize)
			}
			if u.MaxUserConnections > 0 {
				limit = u.MaxUserConnections
			}
			if u.MaxUserClientConnections > 0 {
				clientLimit = u.MaxUserClientConnections
			}
			mode = optional(u.PoolMode.String())
		}
		out = append(out, row{n, size, reserve, mode, limit, conns[n], clientLimit, clients[n]})
	}
	return out
}
