package proxy

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/singleflight"

	"pgproxy/auth"
	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/pool"
	"pgproxy/router"
	"pgproxy/wire"
)

// asker finds the secrets of users that the userlist does not have, by auth_query
// as PgBouncer does. Its connections log in as auth_user, are lent to no client,
// and take nothing of a client but its name, as a bound parameter. Any number of
// goroutines may use it.
type asker struct {
	srv    *Server
	once   singleflight.Group
	slots  chan struct{} // one token for each query under way
	guests *pool.Guests  // counts the connections

	ending sync.WaitGroup // of yield

	mu     sync.Mutex
	known  map[askKey]answer // guarded by mu
	idle   []*askLine        // guarded by mu
	closed bool              // guarded by mu
}

// askKey is a user as one database knows it.
type askKey struct{ entry, dbname, user string }

// answer is what is remembered of a user.
type answer struct {
	secret config.Secret
	known  bool
	until  int64 // Nanotime
}

// askLine is a connection. It belongs to the goroutine that has taken it, or to
// the asker's list.
type askLine struct {
	conn  *pgconn.PgConn
	at    pool.Key // under which it is counted
	to    askKey   // of auth_user
	since int64    // when it was last used
}

const (
	maxAsking   = 8                      // queries at once
	maxAskIdle  = 4                      // connections that are kept
	askIdle     = 60 * time.Second       // for so long
	askFresh    = 200 * time.Millisecond // for so long although others wait, if there is enough for all
	maxAnswers  = 10_000                 // users that are remembered
	unknownFor  = time.Second            // for which a user that is not known is remembered
	askPatience = 10 * time.Second       // for one query, login included
)

func newAsker(srv *Server) *asker {
	a := &asker{srv: srv, slots: make(chan struct{}, maxAsking), known: make(map[askKey]answer)}
	a.guests = srv.pools.Guests(a.yield)
	return a
}

// Secret finds the secret of a user that wants to log in to a database. known is
// false if there is none, or nobody to ask. It waits for askPatience at most.
func (a *asker) Secret(database, user string) (secret config.Secret, known bool, err error) {
	st := a.srv.current.Load()
	db, by := askedDatabase(st.Config, database)
	if db == nil {
		return "", false, nil
	}
	key := askKey{db.Name, db.DBName, user}
	now := router.Nanotime()
	a.mu.Lock()
	have, ok := a.known[key]
	a.mu.Unlock()
	if ok && now < have.until {
		return have.secret, have.known, nil
	}
	// Those who come meanwhile share the answer.
	got, err, _ := a.once.Do(fmt.Sprintf("%q", key), func() (any, error) { return a.ask(st, db, by, key) })
	if err != nil {
		return "", false, wire.Fatalf(wire.CodeCannotConnectNow, "the secret of user %q cannot be asked for at the moment", user).
			Because(fmt.Errorf("auth_query: %w", err))
	}
	have = got.(answer)
	return have.secret, have.known, nil
}

// asking is whom to ask as, and what.
type asking struct{ user, query string }

// askedDatabase finds the database whose users log in to a database that a client
// has named, which may be the console; nil if there is nobody to ask.
func askedDatabase(cfg *config.Config, name string) (*config.Database, asking) {
	by, dbname := asking{cfg.Proxy.AuthUser, cfg.Proxy.AuthQuery}, cfg.Proxy.AuthDBName
	db, ok := cfg.Database(name)
	switch {
	case ok:
		by, dbname = asking{db.AuthUser, db.AuthQuery}, db.AuthDBName
	case !slices.Contains(ConsoleNames, name) || dbname == "":
		return nil, asking{}
	}
	if by.user == "" || by.query == "" {
		return nil, asking{}
	}
	if dbname != "" {
		db, ok = cfg.Database(dbname)
	}
	if !ok {
		return nil, asking{}
	}
	return db, by
}

// Forget drops what is remembered of a user, whose password was wrong: it may have
// been changed a moment ago.
func (a *asker) Forget(database, user string) {
	if db, _ := askedDatabase(a.srv.current.Load().Config, database); db != nil {
		a.mu.Lock()
		delete(a.known, askKey{db.Name, db.DBName, user})
		a.mu.Unlock()
	}
}

// ask asks a server.
func (a *asker) ask(st *Settings, db *config.Database, by asking, key askKey) (answer, error) {
	ctx, stop := context.WithTimeout(a.srv.ctx, askPatience)
	defer stop()
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-ctx.Done():
		return answer{}, fmt.Errorf("waiting for other queries: %w", ctx.Err())
	}
	for {
		line, fresh, err := a.take(ctx, st, db, by, key)
		if err != nil {
			return answer{}, err
		}
		got, err := query(ctx, line.conn, by.query, key.user)
		if err == nil {
			ttl := st.Config.Proxy.AuthQueryTTL
			if !got.known {
				ttl = min(ttl, unknownFor)
			}
			got.until = router.Nanotime() + int64(ttl)
			a.remember(key, got)
			a.give(line)
			return got, nil
		}
		a.end(line)
		if fresh || ctx.Err() != nil {
			return answer{}, err
		}
		// A connection that was kept may have died meanwhile.
	}
}

// query runs auth_query.
func query(ctx context.Context, conn *pgconn.PgConn, sql, user string) (answer, error) {
	r := conn.ExecParams(ctx, sql, [][]byte{[]byte(user)}, nil, nil, nil).Read()
	switch {
	case r.Err != nil:
		return answer{}, backend.LoginError(r.Err)
	case len(r.Rows) == 0:
		return answer{}, nil
	case len(r.Rows) > 1 || len(r.Rows[0]) != 2:
		return answer{}, fmt.Errorf("auth_query gives %d rows of %d columns: want one row with name and password", len(r.Rows), len(r.Rows[0]))
	case string(r.Rows[0][0]) != user:
		return answer{}, nil // of somebody else
	}
	return answer{secret: config.Secret(r.Rows[0][1]), known: true}, nil
}

// take returns a connection; fresh says that it was just opened.
func (a *asker) take(ctx context.Context, st *Settings, db *config.Database, by asking, key askKey) (line *askLine, fresh bool, err error) {
	server, err := a.server(db)
	if err != nil {
		return nil, false, err
	}
	to := askKey{key.entry, key.dbname, by.user}
	_, password, err := auth.ServerPassword(auth.Identity{User: by.user}, &config.Database{}, st.Users)
	if err != nil {
		return nil, false, err
	}
	login := backend.Login{Server: server, Database: db.DBName, User: by.user, Password: password, AppName: "pgproxy auth_query"}
	at := pool.Key{Database: db.Name, User: by.user, Server: server.Addr()}
	if db.Name == config.Wildcard {
		at.Database = db.DBName // which is what its clients ask for
	}
	for entered := false; !entered; {
		if line := a.kept(to, at.Server, true); line != nil {
			return line, false, nil
		}
		entered, err = a.guests.Enter(ctx, at, func() bool { return a.kept(to, at.Server, false) != nil })
		if err != nil {
			return nil, false, err
		}
	}
	conn, err := a.srv.pools.Dialer(st.Config, db).Open(ctx, login)
	if err != nil {
		a.guests.Leave(at)
		return nil, false, fmt.Errorf("login of auth_user %q to %s: %w", by.user, server.Addr(), err)
	}
	return &askLine{conn: conn, at: at, to: to}, true, nil
}

// kept returns a connection that nobody uses, or nil; with take it is the caller's.
func (a *asker) kept(to askKey, server string, take bool) *askLine {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.idle, func(l *askLine) bool { return l.to == to && l.at.Server == server })
	if i < 0 {
		return nil
	}
	line := a.idle[i]
	if take {
		a.idle = slices.Delete(a.idle, i, i+1)
	}
	return line
}

// server chooses where to ask: the primary, else a replica.
func (a *asker) server(db *config.Database) (config.Server, error) {
	addr := ""
	if topo := a.srv.topo.Topology(db.Name); topo != nil {
		for i := range topo.Servers {
			if s := &topo.Servers[i]; s.Up && (addr == "" || s.Role == router.RolePrimary) {
				addr = s.Addr
			}
		}
	}
	if addr == "" {
		return config.Server{}, fmt.Errorf("no server of database %q is up", db.Name)
	}
	return config.ServerAt(addr), nil
}

func (a *asker) remember(key askKey, got answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.known) >= maxAnswers {
		clear(a.known)
	}
	a.known[key] = got
}

// give keeps a connection for the next query.
func (a *asker) give(line *askLine) {
	line.since = router.Nanotime()
	a.mu.Lock()
	keep := !a.closed && len(a.idle) < maxAskIdle
	if keep {
		a.idle = append(a.idle, line)
	}
	a.mu.Unlock()
	if !keep {
		a.end(line)
		return
	}
	a.guests.Nudge(line.at)
}

// end closes a connection.
func (a *asker) end(line *askLine) {
	ctx, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	_ = line.conn.Close(ctx)
	a.guests.Leave(line.at)
}

// yield closes a connection that is kept in vain while others wait for its place.
func (a *asker) yield(at pool.Key, fresh bool) bool {
	now := router.Nanotime()
	a.mu.Lock()
	i := slices.IndexFunc(a.idle, func(l *askLine) bool { return l.at == at && (fresh || now-l.since > int64(askFresh)) })
	if i < 0 || a.closed {
		a.mu.Unlock()
		return false
	}
	line := a.idle[i]
	a.idle = slices.Delete(a.idle, i, i+1)
	a.ending.Go(func() { a.end(line) }) // until the server has closed it; waited for by close
	a.mu.Unlock()
	return true
}

// tidy closes what was not used for long; with all, everything, and forgets what
// is known: the configuration has changed.
func (a *asker) tidy(all bool) {
	now := router.Nanotime()
	a.mu.Lock()
	var old []*askLine
	a.idle = slices.DeleteFunc(a.idle, func(l *askLine) bool {
		if all || now-l.since > int64(askIdle) {
			old = append(old, l)
			return true
		}
		return false
	})
	if all {
		clear(a.known)
	}
	a.mu.Unlock()
	for _, l := range old {
		a.end(l)
	}
}

// close ends everything. Queries under way end with the Server's context.
func (a *asker) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.tidy(true)
	a.ending.Wait()
}
