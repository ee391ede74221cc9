package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/auth"
	"pgproxy/backend"
	"pgproxy/config"
)

// checkTimeout bounds what one server may take to answer.
const checkTimeout = 5 * time.Second

// errNoLogin is why a server is not asked whose roles are fixed.
var errNoLogin = errors.New("nobody can log in for that: want monitor_user")

func checkCommand(args []string, stdout, stderr io.Writer) int {
	fs := newFlags("check", "-config FILE", stderr)
	path := fs.String("config", "pgproxy.toml", "the configuration `FILE`")
	offline := fs.Bool("offline", false, "do not ask the servers for max_connections")
	if code, done := parseFlags(fs, args); done {
		return code
	}
	cfg, err := config.Load(*path)
	if err != nil {
		fmt.Fprintf(stderr, "%v\n", err)
		return exitUsage
	}
	logins, err := loadSettings(cfg, nil)
	if err != nil {
		fmt.Fprintf(stderr, "%v\n", err)
		return exitUsage
	}
	users := logins.Users
	for _, w := range cfg.Warnings {
		fmt.Fprintf(stdout, "warning: %s\n", w)
	}
	if w := fileWarning(cfg, users, fileLimit()); w != "" {
		fmt.Fprintf(stdout, "warning: %s\n", w)
	}
	if w := secretsWarning(users); w != "" {
		fmt.Fprintf(stdout, "warning: %s\n", w)
	}
	code := exitOK
	for _, d := range demands(cfg, users) {
		fmt.Fprintf(stdout, "server %s: pools may open up to %s connections (%s)\n", d.server.Addr(), d.count(), d.pools())
		if *offline {
			continue
		}
		room, err := serverRoom(cfg, d)
		switch {
		case errors.Is(err, errNoLogin): // which is no fault
			fmt.Fprintf(stdout, "warning: server %s is not asked: %v\n", d.server.Addr(), err)
		case err != nil:
			fmt.Fprintf(stdout, "warning: server %s could not be asked: %v\n", d.server.Addr(), err)
			code = exitFailed
		case d.most > room:
			fmt.Fprintf(stdout, "warning: server %s takes %d connections of ordinary users: lower default_pool_size or set max_host_connections\n", d.server.Addr(), room)
			code = exitFailed
		default:
			fmt.Fprintf(stdout, "server %s takes %d connections of ordinary users\n", d.server.Addr(), room)
		}
	}
	fmt.Fprintf(stdout, "%s: no error\n", *path)
	return code
}

// demand is how many connections the pools of one server may open.
type demand struct {
	server config.Server
	db     *config.Database // one of those that are on it, for its login
	most   int
	checks int  // of most: connections of the health checks
	open   bool // further users may come, each with a pool of its own
	parts  []string
}

func (d *demand) count() string {
	if d.open {
		return strconv.Itoa(d.most) + " and more"
	}
	return strconv.Itoa(d.most)
}

func (d *demand) pools() string { return strings.Join(d.parts, ", ") }

// demands adds up the pools of each server: one for each database and user,
// where the users are those of auth_file unless the database names one, and one
// connection for the health checks of each database.
func demands(cfg *config.Config, users *auth.Userlist) []*demand {
	by := make(map[string]*demand)
	for _, name := range slices.Sorted(maps.Keys(cfg.Databases)) {
		db := cfg.Databases[name]
		sizes, open := poolSizes(cfg, db, users)
		sum := 0
		for _, n := range sizes {
			sum += n
		}
		if db.MaxDBConnections > 0 && (sum > db.MaxDBConnections || open) {
			sum, open = db.MaxDBConnections, false
		}
		for _, s := range db.Servers {
			d := by[s.Addr()]
			if d == nil {
				d = &demand{server: s, db: db}
				by[s.Addr()] = d
			}
			d.most += sum
			d.open = d.open || open
			who := "1 user"
			if len(sizes) != 1 {
				who = fmt.Sprintf("%d users", len(sizes))
			}
			d.parts = append(d.parts, fmt.Sprintf("%s: %d for %s", name, sum, who))
			if db.MonitorUser != "" {
				d.most++
				d.checks++
			}
		}
	}
	if most := cfg.Proxy.MaxHostConnections; most > 0 {
		for _, d := range by {
			if checks := d.checks; d.open || d.most > most+checks {
				d.most, d.open = most+checks, false
				d.parts = append(d.parts, fmt.Sprintf("max_host_connections: %d", most))
			}
		}
	}
	return slices.SortedFunc(maps.Values(by), func(a, b *demand) int { return cmp.Compare(a.server.Addr(), b.server.Addr()) })
}

// poolSizes returns the size of the pool of each user that is known to log in
// to a database; open says that others may.
func poolSizes(cfg *config.Config, db *config.Database, users *auth.Userlist) (sizes []int, open bool) {
	size := func(user string) int {
		n, reserve, most := db.PoolSize, db.ReservePoolSize, cfg.Proxy.MaxUserConnections
		if u := cfg.Users[user]; u != nil {
			if u.PoolSize > 0 {
				n = u.PoolSize
			}
			if u.ReservePoolSize > 0 {
				reserve = u.ReservePoolSize
			}
			if u.MaxUserConnections > 0 {
				most = u.MaxUserConnections
			}
		}
		if n == 0 { // no limit, but that of the clients
			n, reserve = cfg.Proxy.MaxClientConn, 0
		}
		if n += reserve; most > 0 {
			n = min(n, most)
		}
		return n
	}
	if db.User != "" {
		return []int{size(db.User)}, false
	}
	for _, u := range users.Names() {
		sizes = append(sizes, size(u))
	}
	return sizes, cfg.Proxy.AuthType == config.AuthAny
}

// serverRoom asks a server how many connections it has for ordinary users.
func serverRoom(cfg *config.Config, d *demand) (int, error) {
	if d.db.MonitorUser == "" {
		return 0, errNoLogin
	}
	ctx, stop := context.WithTimeout(context.Background(), checkTimeout)
	defer stop()
	cc, err := newDialer(cfg, d.db).Config(backend.Login{
		Server: d.server, Database: d.db.DBName, User: d.db.MonitorUser, Password: d.db.MonitorPassword, AppName: "pgproxy check",
	})
	if err != nil {
		return 0, err
	}
	pc, err := pgconn.ConnectConfig(ctx, cc)
	if err != nil {
		return 0, backend.LoginError(err)
	}
	defer func() { _ = pc.Close(context.WithoutCancel(ctx)) }()
	res, err := pc.Exec(ctx, "SELECT sum(CASE name WHEN 'max_connections' THEN setting::int ELSE -setting::int END) "+
		"FROM pg_catalog.pg_settings WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections')").ReadAll()
	if err != nil {
		return 0, err
	}
	if len(res) != 1 || len(res[0].Rows) != 1 {
		return 0, fmt.Errorf("no answer about max_connections")
	}
	return strconv.Atoi(string(res[0].Rows[0][0]))
}
