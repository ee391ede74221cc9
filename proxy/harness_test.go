package proxy_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
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

// The logins of the tests. Roles of these names exist on the shared cluster.
const (
	testUser     = "alice"
	testPassword = "alice's secret"
	otherUser    = "bob"
	otherSecret  = "bob's secret"
)

// harness is a proxy in front of servers whose roles are fixed by the test.
type harness struct {
	t      testing.TB
	Server *proxy.Server
	Pools  *pool.Set
	Topo   *topologies
	Addr   string // HOST:PORT for clients
	Log    *logBook

	panics  int              // that are none of our faults
	monitor *monitor.Monitor // of Proves
}

// harnessOptions say what is started. Servers are HOST:PORT, the first one the
// primary and the others replicas.
type harnessOptions struct {
	Servers  []string
	DBName   string         // on the servers; "" is postgres
	Proxy    string         // further lines of [proxy]
	Database string         // further lines of [databases.app]
	More     string         // further tables behind it
	Groups   map[int]string // groups of servers, by their place
	Console  proxy.Console
	Trace    *proxy.Trace
	Panics   int // that the test brings about
	Watch    func(backend.Owner) backend.Owner
	Proves   bool   // statements are proved from the catalog
	Untidy   string // why what is outside of the proxy may not be back where it was
}

// newHarness starts a proxy and ends it, with a check that nothing leaks, when
// the test is over.
func newHarness(t testing.TB, opt harnessOptions) *harness {
	t.Helper()
	cfg := parseConfig(t, opt)
	users, err := auth.LoadUserlist(cfg.Proxy.AuthFile)
	if err != nil {
		t.Fatal(err)
	}
	encrypt, err := cfg.Proxy.ClientTLS.ForClients()
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{t: t, Topo: newTopologies(cfg), Log: &logBook{}, panics: opt.Panics}
	census := pgtest.NewCensus(t, realNodes()...)
	log := slog.New(slog.NewTextHandler(h.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	dial := func(cfg *config.Config, db *config.Database) *backend.Dialer {
		return &backend.Dialer{
			Limits:         backend.Limits{MaxPrepared: cfg.Proxy.MaxPreparedStatements, AuditRatio: cfg.Proxy.SessionAuditRatio, CancelWait: cfg.Proxy.CancelWaitTimeout},
			ConnectTimeout: cfg.Proxy.ServerConnectTimeout, ConnectQuery: db.ConnectQuery, Now: router.Nanotime,
			TLS: &db.TLS, Watch: opt.Watch,
		}
	}
	h.Pools = pool.New(cfg, pool.Options{Log: log, Now: router.Nanotime, Load: h.Topo.load, Dial: dial})
	if opt.Proves {
		h.prove(cfg, log, dial)
	}
	h.Server = proxy.New(&proxy.Settings{
		Config: cfg, Users: users, Auth: auth.New(cfg.Proxy.AuthType, users, cfg.Proxy.AdminUsers, cfg.Proxy.StatsUsers), TLS: encrypt,
	}, proxy.Options{Log: log, Pools: h.Pools, Router: router.New(router.Options{}), Topologies: h.Topo, Trace: opt.Trace})
	if opt.Console != nil {
		h.Server.SetConsole(opt.Console)
	}
	if err := h.Server.Listen(); err != nil {
		t.Fatal(err)
	}
	h.Addr = h.Server.Addrs()[0].String()
	t.Cleanup(func() {
		h.close()
		if opt.Untidy == "" {
			census.AssertBaseline()
		}
	})
	return h
}

// prove has a monitor read the catalog of the test's database, which proves its
// statements. Nothing else of that monitor is used.
func (h *harness) prove(cfg *config.Config, log *slog.Logger, dial func(*config.Config, *config.Database) *backend.Dialer) {
	h.t.Helper()
	m := monitor.New(cfg, monitor.Options{Log: log, Dial: dial})
	h.monitor = m
	h.Topo.prove("app", m.Topology("app").Provers)
	db, _ := cfg.Database("app")
	pr := m.Topology("app").Provers.Prover(db.DBName)
	eventually(h.t, 20*time.Second, "the catalog has been read", func() bool { return pr.Since() != 0 })
}

func (h *harness) close() {
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()
	if err := h.Server.Close(); err != nil {
		h.t.Errorf("closing the proxy: %v", err)
	}
	if h.monitor != nil {
		h.monitor.Close()
	}
	if err := h.Pools.Close(ctx); err != nil {
		h.t.Errorf("closing the pools: %v", err)
	}
	if n := h.Server.Stats().Panics; n != uint64(h.panics) {
		h.t.Errorf("%d panics:\n%s", n, h.Log.Text())
	}
	for _, secret := range []string{testPassword, otherSecret} { // S-16
		if strings.Contains(h.Log.Text(), secret) {
			h.t.Errorf("a password is in the log:\n%s", h.Log.Text())
		}
	}
}

// Client logs in to database app.
func (h *harness) Client(t testing.TB, pairs ...string) *pgtest.RawClient {
	t.Helper()
	c := pgtest.DialRaw(t, h.Addr)
	c.Login(testUser, testPassword, append([]string{"database", "app"}, pairs...)...)
	return c
}

// client logs in to another database.
func (h *harness) client(t testing.TB, database string) *pgtest.RawClient {
	t.Helper()
	c := pgtest.DialRaw(t, h.Addr)
	c.Login(testUser, testPassword, "database", database)
	return c
}

// begin starts a transaction and gives it a server connection, which BEGIN alone does
// not take.
func begin(c *pgtest.RawClient) {
	c.Query("BEGIN")
	c.Query("SELECT 1")
}

// port is that of a server, as the configuration has it.
func port(n *pgtest.Node) string { return strconv.Itoa(n.Port) }

// parseConfig writes a configuration and its auth_file into a temporary folder.
func parseConfig(t testing.TB, opt harnessOptions) *config.Config {
	t.Helper()
	dir := t.TempDir()
	list := fmt.Sprintf("%q %q\n%q %q\n", testUser, testPassword, otherUser, otherSecret)
	if err := os.WriteFile(filepath.Join(dir, "userlist.txt"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	dbname := opt.DBName
	if dbname == "" {
		dbname = "postgres"
	}
	var b strings.Builder
	b.WriteString("[proxy]\n")
	if !strings.Contains(opt.Proxy, "listen_port") {
		b.WriteString("listen_port = 0\n")
	}
	fmt.Fprintf(&b, "http_listen = \"\"\nauth_file = \"userlist.txt\"\n%s\n", opt.Proxy)
	if opt.Proves {
		opt.Database += fmt.Sprintf("monitor_user = %q\nmonitor_password = %q\n", testUser, testPassword)
	}
	fmt.Fprintf(&b, "[databases.app]\ndbname = %q\n%s\nservers = [\n", dbname, opt.Database)
	for i, addr := range opt.Servers {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		role := "replica"
		if i == 0 {
			role = "primary"
		}
		groups := ""
		if g := opt.Groups[i]; g != "" {
			groups = fmt.Sprintf(", groups = [%q]", g)
		}
		fmt.Fprintf(&b, "  { host = %q, port = %s, role = %q%s },\n", host, port, role, groups)
	}
	b.WriteString("]\n" + opt.More)
	cfg, err := config.Parse(filepath.Join(dir, "pgproxy.toml"), []byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// topologies are pictures that the test paints itself.
type topologies struct {
	mu      sync.Mutex
	now     map[string]*router.Topology
	changed chan struct{}
	loads   map[string]*atomic.Int64
	suspect []string
	wanted  int64
}

// newTopologies has every server of a configuration up, in its fixed role, and
// the replicas caught up for ever.
func newTopologies(cfg *config.Config) *topologies {
	t := &topologies{now: make(map[string]*router.Topology), changed: make(chan struct{}), loads: make(map[string]*atomic.Int64)}
	for name, db := range cfg.Databases {
		topo := &router.Topology{Generation: 1, Turn: new(atomic.Uint64)}
		for _, s := range db.Servers {
			role := router.RoleReplica
			if s.Role == config.RolePrimary {
				role = router.RolePrimary
			}
			topo.Servers = append(topo.Servers, router.Server{
				Addr: s.Addr(), Role: role, Up: true, Weight: s.Weight, Groups: s.Groups, Covered: 1 << 62, Load: t.load(s.Addr()),
			})
		}
		t.now[name] = topo
	}
	return t
}

// prove makes a database's statements be proved.
func (t *topologies) prove(database string, by router.Provers) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.now[database].Provers = by
}

func (t *topologies) load(addr string) *atomic.Int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.loads[addr] == nil {
		t.loads[addr] = new(atomic.Int64)
	}
	return t.loads[addr]
}

// Topology implements proxy.Topologies.
func (t *topologies) Topology(database string) *router.Topology {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.now[database]
}

// Wait implements proxy.Topologies.
func (t *topologies) Wait(ctx context.Context, database string, than uint64) error {
	for {
		t.mu.Lock()
		topo, changed := t.now[database], t.changed
		t.mu.Unlock()
		if topo != nil && topo.Generation > than {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Suspect implements proxy.Topologies.
func (t *topologies) Suspect(_, addr string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.suspect = append(t.suspect, addr)
}

// Want implements proxy.Topologies.
func (t *topologies) Want(_ string, stamp int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wanted = max(t.wanted, stamp)
}

// Change paints a new picture of database app.
func (t *topologies) Change(change func(servers []router.Server)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.now["app"]
	topo := &router.Topology{
		Generation: old.Generation + 1, System: old.System, Servers: append([]router.Server(nil), old.Servers...), Turn: old.Turn,
	}
	change(topo.Servers)
	t.now["app"] = topo
	close(t.changed)
	t.changed = make(chan struct{})
}

// setSystem says which cluster all servers are of.
func (t *topologies) setSystem(system string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, old := range t.now {
		topo := *old
		topo.System = system
		topo.Generation++
		t.now[name] = &topo
	}
}

// logBook keeps what was logged.
type logBook struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// Text returns all of it.
func (l *logBook) Text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// realCluster returns the shared cluster with the roles of the tests.
func realCluster(t testing.TB) *pgtest.Cluster {
	t.Helper()
	c := pgtest.Shared(t)
	realOne = c
	rolesOnce.Do(func() {
		ctx, stop := context.WithTimeout(context.Background(), time.Minute)
		defer stop()
		for name, secret := range map[string]string{testUser: testPassword, otherUser: otherSecret} {
			if err := c.CreateRole(ctx, name, secret, ""); err != nil {
				rolesErr = err
				return
			}
		}
		if err := c.Exec(ctx, "GRANT ALL ON SCHEMA public TO public"); err != nil {
			rolesErr = err
			return
		}
		rolesErr = c.WaitCaughtUp(ctx)
	})
	if rolesErr != nil {
		t.Fatal(rolesErr)
	}
	return c
}

var (
	rolesOnce sync.Once
	rolesErr  error
	realOne   *pgtest.Cluster
)

// realNodes returns the servers of the shared cluster, if a test has asked for it.
func realNodes() []*pgtest.Node {
	if realOne == nil {
		return nil
	}
	return realOne.Nodes()
}

// addrs returns the addresses of a cluster's servers, the primary first.
func addrs(c *pgtest.Cluster) []string {
	var out []string
	for _, n := range c.Nodes() {
		out = append(out, n.Addr())
	}
	return out
}

// within fails the test if f has not ended in time.
func within(t testing.TB, d time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("%s: not within %v", what, d)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(d)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, d)
		}
		<-tick.C
	}
}

// dialTCP opens a bare connection.
func dialTCP(addr string) (net.Conn, error) { return net.DialTimeout("tcp", addr, 10*time.Second) }
