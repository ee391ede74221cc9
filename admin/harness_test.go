package admin

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/auth"
	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/monitor"
	"pgproxy/pgtest"
	"pgproxy/pool"
	"pgproxy/proxy"
	"pgproxy/router"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// canary is in every secret of the tests, so that one search finds them all.
const canary = "c4n4ry"

const (
	adminUser  = "root"
	statsUser  = "watcher"
	clientUser = "alice"
	password   = "the " + canary + " password"
)

// rig is a proxy with a console, in front of fake servers.
type rig struct {
	t       *testing.T
	Console *Console
	Server  *proxy.Server
	Pools   *pool.Set
	Fake    *pgtest.FakeServer
	Config  *config.Config
	Addr    string
	Log     *logBook
	hold    chan struct{} // the statement "select hold" returns when it is closed

	mu        sync.Mutex
	shutdowns []string
	reloads   int
	sets      []string
	reloadErr error
}

// logBook keeps what is logged.
type logBook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBook) Text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// topologies says that the fake server is the primary of every database.
type topologies struct{ current *router.Topology }

func (t *topologies) Topology(string) *router.Topology { return t.current }
func (t *topologies) Suspect(_, _ string)              {}
func (t *topologies) Want(string, int64)               {}
func (t *topologies) Wait(ctx context.Context, _ string, _ uint64) error {
	<-ctx.Done()
	return ctx.Err()
}

// health is what a monitor would say.
type health []monitor.Status

func (h health) Status() []monitor.Status { return h }

func newRig(t *testing.T) *rig {
	t.Helper()
	census := pgtest.NewCensus(t)
	t.Cleanup(census.AssertBaseline)
	r := &rig{t: t, Log: &logBook{}, hold: make(chan struct{})}
	r.Fake = pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
		if err := c.Accept(); err != nil {
			return err
		}
		return c.Serve(func(sql string) (string, error) {
			if strings.Contains(sql, "hold") {
				<-r.hold
			}
			return sql, nil
		})
	})
	r.Config = testConfig(r.Fake.Port())
	users, err := auth.ParseUserlist("userlist.txt", []byte(`"root" "`+password+`"
"watcher" "`+password+`"
"alice" "`+password+`"
`))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(r.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	load := new(atomic.Int64)
	addr := r.Config.Databases["app"].Servers[0].Addr()
	topo := &topologies{&router.Topology{Generation: 1, Turn: new(atomic.Uint64), Servers: []router.Server{
		{Addr: addr, Role: router.RolePrimary, Up: true, Weight: 1, Load: load},
	}}}
	r.Pools = pool.New(r.Config, pool.Options{
		Log: log, Now: router.Nanotime, Load: func(string) *atomic.Int64 { return load },
		Dial: func(*config.Config, *config.Database) *backend.Dialer {
			return &backend.Dialer{ConnectTimeout: 10 * time.Second, Now: router.Nanotime, Limits: backend.Limits{CancelWait: time.Second}}
		},
	})
	r.Server = proxy.New(&proxy.Settings{
		Config: r.Config, Users: users,
		Auth: auth.New(config.AuthSCRAM, users, r.Config.Proxy.AdminUsers, r.Config.Proxy.StatsUsers),
	}, proxy.Options{Log: log, Pools: r.Pools, Router: router.New(router.Options{}), Topologies: topo})
	r.Console = New(Options{
		Log: log, Server: r.Server, Pools: r.Pools, Version: "0.test",
		Health: health{{
			Database: "app", Host: "127.0.0.1", Port: r.Fake.Port(), Addr: addr, Role: router.RolePrimary, Up: true,
			LSN: 0x1_0000_00ff, Weight: 1, Checks: 3, Checked: time.Now(),
		}},
		Reload: func() error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.reloads++
			return r.reloadErr
		},
		Set: func(key, value string) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			if key == "nonsense" || key == "monitor_password" {
				return errors.New("it cannot be set")
			}
			r.sets = append(r.sets, key+"="+value)
			return nil
		},
		Shutdown: func(mode string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.shutdowns = append(r.shutdowns, mode)
		},
	})
	r.Server.SetConsole(r.Console)
	if err := r.Server.Listen(); err != nil {
		t.Fatal(err)
	}
	r.Addr = r.Server.Addrs()[0].String()
	t.Cleanup(r.close)
	return r
}

func testConfig(port int) *config.Config {
	server := config.Server{Host: "127.0.0.1", Port: port, Weight: 1}
	app := &config.Database{
		Name: "app", DBName: "app_production", Servers: []config.Server{server}, User: "app_rw", Password: config.Secret(password),
		PoolMode: config.PoolTransaction, PoolSize: 5, QueryWaitTimeout: time.Minute, MaxDBConnections: 40, ServerLifetime: time.Hour,
	}
	two := *app
	two.Name, two.DBName, two.User = "two", "two", ""
	two.Servers = []config.Server{server, {Host: "10.0.0.2", Port: 5432, Weight: 1, Role: config.RoleReplica}}
	two.PoolMode = config.PoolSession
	return &config.Config{
		Path: "pgproxy.toml",
		Proxy: config.Proxy{
			ListenAddr: []string{"127.0.0.1"}, AdminUsers: []string{adminUser}, StatsUsers: []string{statsUser},
			MaxClientConn: 100, PoolMode: config.PoolTransaction, DefaultPoolSize: 5, ServerLifetime: time.Hour,
			LogConnections: true, LogDisconnections: true, LogPoolerErrors: true,
			MaxPacketSize: 1 << 30, MaxQueryParseSize: 1 << 20, StatsPeriod: time.Minute, MonitorPassword: config.Secret(canary),
			ServerConnectTimeout: 10 * time.Second, ServerLoginRetry: time.Second, CancelWaitTimeout: time.Second,
		},
		Databases: map[string]*config.Database{"app": app, "two": &two},
		Users:     map[string]*config.User{"reporting": {Name: "reporting", PoolSize: 7, PoolMode: config.PoolStatement, MaxUserConnections: 9}},
	}
}

func (r *rig) close() {
	select {
	case <-r.hold:
	default:
		close(r.hold)
	}
	if err := r.Server.Close(); err != nil {
		r.t.Errorf("closing the proxy: %v", err)
	}
	r.Console.Close()
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()
	if err := r.Pools.Close(ctx); err != nil {
		r.t.Errorf("closing the pools: %v", err)
	}
	if n := r.Server.Stats().Panics; n != 0 {
		r.t.Errorf("%d panics:\n%s", n, r.Log.Text())
	}
	r.Fake.Close()
}

// login logs in to a database.
func (r *rig) login(user, database string, pairs ...string) *pgtest.RawClient {
	r.t.Helper()
	c := pgtest.DialRaw(r.t, r.Addr)
	c.Login(user, password, append([]string{"database", database}, pairs...)...)
	return c
}

func (r *rig) admin() *pgtest.RawClient { r.t.Helper(); return r.login(adminUser, "pgbouncer") }

// table runs a SHOW and returns the columns, as "name type", and the rows.
func table(t testing.TB, c *pgtest.RawClient, sql string) (cols []string, rows []map[string]string) {
	t.Helper()
	c.Send(pgtest.Query(sql))
	names := []string(nil)
	for _, m := range c.ReadUntilReady() {
		switch m.Type {
		case 'T':
			names, cols = readColumns(m.Body)
		case 'D':
			x := make(map[string]string)
			for i, v := range m.Values() {
				x[names[i]] = string(v)
				if v == nil {
					x[names[i]] = "NULL"
				}
			}
			rows = append(rows, x)
		case 'E':
			t.Fatalf("%s: %v", sql, m.Err())
		}
	}
	return cols, rows
}

// where returns the first row whose column has the value.
func where(rows []map[string]string, column, value string) map[string]string {
	for _, r := range rows {
		if r[column] == value {
			return r
		}
	}
	return nil
}

// await polls a console until a SHOW is as it should be.
func await(t testing.TB, c *pgtest.RawClient, sql string, ok func(rows []map[string]string) bool) []map[string]string {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		_, rows := table(t, c, sql)
		if ok(rows) {
			return rows
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s stays at %v", sql, rows)
		}
		<-tick.C
	}
}
