package metrics

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

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

// canary is in every secret.
const (
	canary   = "c4n4ry"
	password = "the " + canary + " password"
)

type topologies struct{ current *router.Topology }

func (t *topologies) Topology(string) *router.Topology { return t.current }
func (t *topologies) Suspect(_, _ string)              {}
func (t *topologies) Want(string, int64)               {}
func (t *topologies) Wait(ctx context.Context, _ string, _ uint64) error {
	<-ctx.Done()
	return ctx.Err()
}

// health is what a monitor would say; a test may change it.
type health struct {
	mu     sync.Mutex
	list   []monitor.Status
	states []monitor.State
}

func (h *health) States() []monitor.State {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.states
}

func (h *health) Status() []monitor.Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]monitor.Status(nil), h.list...)
}

func (h *health) set(list ...monitor.Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.list = list
}

// rig is a proxy with metrics, in front of a fake server.
type rig struct {
	Metrics *Metrics
	Server  *proxy.Server
	Health  *health
	Config  *config.Config
	Addr    string
	DB      string // address of the fake server
}

func newRig(t *testing.T) *rig {
	t.Helper()
	census := pgtest.NewCensus(t)
	t.Cleanup(census.AssertBaseline)
	fake := pgtest.NewFakeServer(t, pgtest.Script{pgtest.AcceptLogin(), pgtest.ServeAll(pgtest.Echo)}.Run)
	server := config.Server{Host: "127.0.0.1", Port: fake.Port(), Weight: 1}
	app := &config.Database{
		Name: "app", DBName: "app", Servers: []config.Server{server}, User: "app_rw", Password: config.Secret(password),
		PoolMode: config.PoolTransaction, PoolSize: 5, QueryWaitTimeout: time.Minute,
	}
	cfg := &config.Config{
		Proxy: config.Proxy{
			ListenAddr: []string{"127.0.0.1"}, MaxClientConn: 100, PoolMode: config.PoolTransaction, MaxPacketSize: 1 << 30,
			MaxQueryParseSize: 1 << 20, ServerConnectTimeout: 10 * time.Second, CancelWaitTimeout: time.Second,
			MonitorPassword: config.Secret(canary),
		},
		Databases: map[string]*config.Database{"app": app},
	}
	users, err := auth.ParseUserlist("userlist.txt", []byte(`"alice" "`+password+`"`))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	load := new(atomic.Int64)
	topo := &topologies{&router.Topology{Generation: 1, Turn: new(atomic.Uint64), Servers: []router.Server{
		{Addr: server.Addr(), Role: router.RolePrimary, Up: true, Weight: 1, Load: load},
	}}}
	pools := pool.New(cfg, pool.Options{
		Log: log, Now: router.Nanotime, Load: func(string) *atomic.Int64 { return load },
		Dial: func(*config.Config, *config.Database) *backend.Dialer {
			return &backend.Dialer{ConnectTimeout: 10 * time.Second, Now: router.Nanotime, Limits: backend.Limits{CancelWait: time.Second}}
		},
	})
	r := &rig{Health: &health{}, Config: cfg, DB: server.Addr()}
	r.Health.set(monitor.Status{
		Database: "app", Addr: r.DB, Role: router.RolePrimary, Up: true, Weight: 1, Checks: 7, Failures: 2, Lag: 1500 * time.Millisecond,
	})
	r.Metrics = New(Options{Pools: pools, Monitor: r.Health, Version: "0.test"})
	if why := r.Metrics.unready(); why != "starting" {
		t.Errorf("without a server: %q", why)
	}
	r.Server = proxy.New(&proxy.Settings{
		Config: cfg, Users: users, Auth: auth.New(config.AuthSCRAM, users, nil, nil),
	}, proxy.Options{Log: log, Pools: pools, Router: router.New(router.Options{}), Topologies: topo, Trace: r.Metrics.Trace()})
	r.Metrics.Observe(r.Server)
	if err := r.Server.Listen(); err != nil {
		t.Fatal(err)
	}
	r.Addr = r.Server.Addrs()[0].String()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Metrics.Serve(l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
		defer stop()
		for _, err := range []error{r.Server.Close(), pools.Close(ctx), r.Metrics.Close()} {
			if err != nil {
				t.Errorf("closing: %v", err)
			}
		}
		fake.Close()
	})
	return r
}

// get asks over HTTP.
func (r *rig) get(t *testing.T, path string) (int, string) {
	t.Helper()
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + r.Metrics.Listener().Addr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// value finds one series in a scrape.
func value(t *testing.T, scrape, series string) float64 {
	t.Helper()
	for _, l := range strings.Split(scrape, "\n") {
		if v, ok := strings.CutPrefix(l, series+" "); ok {
			f, err := strconv.ParseFloat(v, 64)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
	t.Errorf("no series %s", series)
	return -1
}

func TestScrape(t *testing.T) {
	r := newRig(t)
	c := pgtest.DialRaw(t, r.Addr)
	c.Login("alice", password, "database", "app")
	for range 10 {
		c.Query("select 1")
	}
	if e := pgtest.DialRaw(t, r.Addr).TryLogin("alice", "wrong", "database", "app"); e == nil {
		t.Error("a wrong password is good")
	}
	of := `{database="app",server="` + r.DB + `",user="app_rw"}`
	var code int
	var scrape string
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for { // what has just happened is counted a moment later
		code, scrape = r.get(t, "/metrics")
		if code != http.StatusOK {
			t.Fatalf("%d\n%s", code, scrape)
		}
		if value(t, scrape, "pgproxy_pool_queries_total"+of) >= 10 && value(t, scrape, "pgproxy_clients") == 1 || time.Now().After(deadline) {
			break
		}
		<-tick.C
	}
	for series, want := range map[string]float64{
		"pgproxy_pool_queries_total" + of:                                          10,
		"pgproxy_pool_transactions_total" + of:                                     10,
		"pgproxy_pool_query_seconds_count" + of:                                    10,
		"pgproxy_pool_connections_max" + of:                                        5,
		"pgproxy_pool_clients_waiting" + of:                                        0,
		"pgproxy_clients":                                                          1,
		"pgproxy_clients_max":                                                      100,
		`pgproxy_logins_total{result="ok"}`:                                        1,
		`pgproxy_logins_total{result="failed"}`:                                    1,
		`pgproxy_client_sessions{database="app",state="idle"}`:                     1,
		`pgproxy_server_up{database="app",server="` + r.DB + `"}`:                  1,
		`pgproxy_server_role{database="app",role="primary",server="` + r.DB + `"}`: 1,
		`pgproxy_server_role{database="app",role="replica",server="` + r.DB + `"}`: 0,
		`pgproxy_server_lag_seconds{database="app",server="` + r.DB + `"}`:         1.5,
		`pgproxy_server_checks_total{database="app",server="` + r.DB + `"}`:        7,
		`pgproxy_build_info{version="0.test"}`:                                     1,
		"pgproxy_panics_total":                                                     0,
		"pgproxy_draining":                                                         0,
	} {
		if got := value(t, scrape, series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
	// The pool may have opened one more than was needed.
	opened := value(t, scrape, "pgproxy_pool_opened_total"+of)
	idle := value(t, scrape, `pgproxy_pool_connections{database="app",server="`+r.DB+`",state="idle",user="app_rw"}`)
	if opened < 1 || idle < 1 || idle > opened {
		t.Errorf("%v connections opened, %v idle", opened, idle)
	}
	if !strings.Contains(scrape, `pgproxy_routed_total{database="app",reason="`) {
		t.Error("no routes")
	}
	if !strings.Contains(scrape, `pgproxy_pool_wait_seconds_bucket{database="app",server="`+r.DB+`",user="app_rw",le="6.4e-05"}`) ||
		!strings.Contains(scrape, "go_goroutines ") || !strings.Contains(scrape, "process_open_fds ") {
		t.Error("something is missing")
	}
	if strings.Contains(scrape, canary) {
		t.Error("a secret is in the metrics")
	}
	problems, err := promlint.New(strings.NewReader(scrape)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestHistogramAgrees: the sum and the counts of a scraped histogram are those of
// the pool.
func TestHistogramAgrees(t *testing.T) {
	var h backend.Histogram
	for _, d := range []time.Duration{0, 3 * time.Microsecond, 100 * time.Microsecond, 5 * time.Millisecond, time.Second, 5 * time.Minute} {
		h.Add(d)
	}
	m := New(Options{Pools: emptySet(t)})
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if rec.Code != http.StatusOK {
		t.Fatalf("without a server and a monitor: %d", rec.Code)
	}
	counts := bucketsOf(t, &h)
	for bound, want := range map[float64]uint64{64e-6: 2, 128e-6: 3, 8192e-6: 4, 1.048576: 5, 67.108864: 5} {
		if counts[bound] != want {
			t.Errorf("below %v s: %d, want %d", bound, counts[bound], want)
		}
	}
	if len(counts) != 21 {
		t.Errorf("%d buckets", len(counts))
	}
}

func TestReady(t *testing.T) {
	r := newRig(t)
	status := func(role router.Role, up bool) monitor.Status {
		return monitor.Status{Database: "app", Addr: r.DB, Role: role, Up: up}
	}
	check := func(want int, line string) {
		t.Helper()
		code, body := r.get(t, "/readyz")
		if code != want || body != line+"\n" {
			t.Errorf("%d %q, want %d %q", code, body, want, line)
		}
	}
	check(200, "ok")
	r.Health.set(status(router.RolePrimary, false))
	check(503, `database "app": no primary is up`)
	r.Health.set(status(router.RoleReplica, true))
	check(503, `database "app": no primary is up`)
	r.Health.set()
	check(503, `database "app": no primary is up`)
	app := *r.Config.Databases["app"]
	replica := app.Servers[0]
	replica.Role = config.RoleReplica
	app.Servers = []config.Server{replica}
	if why := (view{}).lacks(&app, ""); why != "no server is up" {
		t.Errorf("replicas only, none up: %q", why)
	}
	one := view{up: map[string][]monitor.Status{"app": {status(router.RoleReplica, true)}}}
	if why := one.lacks(&app, ""); why != "" {
		t.Errorf("replicas only: %q", why)
	}
	r.Health.set(status(router.RolePrimary, true))
	check(200, "ok")
	if err := r.Server.Close(); err != nil {
		t.Fatal(err)
	}
	check(503, "shutting down")
	if code, body := r.get(t, "/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("healthz: %d %q", code, body)
	}
	if code, _ := r.get(t, "/nothing"); code != 404 {
		t.Errorf("another path: %d", code)
	}
}

func TestReadyForAPurpose(t *testing.T) {
	r := newRig(t)
	primary := monitor.Status{Database: "app", Addr: "a", Role: router.RolePrimary, Up: true, Weight: 1}
	replica := monitor.Status{Database: "app", Addr: "b", Role: router.RoleReplica, Up: true, Weight: 1}
	with := func(s monitor.Status, change func(*monitor.Status)) monitor.Status { change(&s); return s }
	late := with(replica, func(s *monitor.Status) { s.Slow = true })
	banned := with(replica, func(s *monitor.Status) { s.Banned = time.Now() })
	fenced := with(primary, func(s *monitor.Status) { s.Fenced = true })
	for _, c := range []struct {
		path    string
		servers []monitor.Status
		halted  router.Reason
		code    int
	}{
		{"/readyz?database=app", []monitor.Status{primary}, "", 200},
		{"/readyz?database=app", []monitor.Status{fenced}, "", 503},
		{"/readyz?database=app", []monitor.Status{primary}, router.HaltedContest, 503},
		{"/readyz?database=app", []monitor.Status{primary}, router.HaltedSwitchover, 200},
		{"/readyz?database=app&target=replica", []monitor.Status{primary}, "", 503},
		{"/readyz?database=app&target=replica", []monitor.Status{replica}, router.HaltedContest, 200},
		{"/readyz?database=app&target=primary", []monitor.Status{replica}, "", 503},
		{"/readyz?database=app&target=analytics", []monitor.Status{replica}, "", 404},
		{"/readyz?database=nothing", []monitor.Status{primary}, "", 404},
		{"/readyz?target=primary", []monitor.Status{primary}, "", 400},
		{"/primary", []monitor.Status{primary}, "", 200},
		{"/primary?database=app", []monitor.Status{replica}, "", 503},
		{"/primary", []monitor.Status{primary}, router.HaltedClusters, 503},
		{"/replica", []monitor.Status{primary, replica}, "", 200},
		{"/replica", []monitor.Status{primary, late}, "", 503},
		{"/replica?database=app", []monitor.Status{primary, banned}, "", 503},
	} {
		r.Health.mu.Lock()
		r.Health.list, r.Health.states = c.servers, []monitor.State{{Database: "app", Halted: c.halted}}
		r.Health.mu.Unlock()
		if code, body := r.get(t, c.path); code != c.code {
			t.Errorf("%s with %d servers, halted %q: %d %s, want %d", c.path, len(c.servers), c.halted, code, body, c.code)
		}
	}
	_, scrape := r.get(t, "/metrics")
	if got := value(t, scrape, `pgproxy_server_banned{database="app",server="b"}`); got != 1 {
		t.Errorf("banned is %v", got)
	}
	if got := value(t, scrape, `pgproxy_database_writes_halted{database="app",reason="`+string(router.HaltedContest)+`"}`); got != 0 {
		t.Errorf("halted is %v", got)
	}
}

// TestGarbage is S-18b: whatever is sent, the next request is answered.
func TestGarbage(t *testing.T) {
	r := newRig(t)
	random := make([]byte, 64<<10)
	src := rand.NewPCG(1, 2)
	for i := range random {
		random[i] = byte(src.Uint64())
	}
	for name, send := range map[string][]byte{
		"random bytes":     random,
		"a startup packet": pgtest.StartupMessage(3<<16, "user", "x"),
		"a huge length":    []byte("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\nxx"),
		"a negative one":   []byte("GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n"),
		"huge headers":     append([]byte("GET / HTTP/1.1\r\nHost: x\r\nX: "), bytes.Repeat([]byte("a"), 1<<20)...),
		"half a request":   []byte("GET /metrics HT"),
		"a write":          []byte("DELETE /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			nc, err := net.Dial("tcp", r.Metrics.Listener().Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
			_, _ = nc.Write(send) // it may hang up in the middle
			_ = nc.(*net.TCPConn).CloseWrite()
			answer, _ := io.ReadAll(nc)
			if len(answer) > 0 && bytes.Contains(answer[:min(len(answer), 20)], []byte(" 200 ")) {
				t.Errorf("it was answered: %q", answer[:min(len(answer), 200)])
			}
			if code, _ := r.get(t, "/healthz"); code != 200 {
				t.Errorf("then: %d", code)
			}
		})
	}
}

// TestSlowHeaders: a client that does not finish its request is cut, and keeps
// nobody from being served. The bound itself is looked at, not waited for.
func TestSlowHeaders(t *testing.T) {
	r := newRig(t)
	var open []net.Conn
	for range 50 {
		nc, err := net.Dial("tcp", r.Metrics.Listener().Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		_, _ = nc.Write([]byte("GET /metrics HTTP/1.1\r\nX-Slow"))
		open = append(open, nc)
	}
	if code, _ := r.get(t, "/healthz"); code != 200 {
		t.Errorf("%d", code)
	}
	srv := r.Metrics.http.srv
	if srv.ReadHeaderTimeout <= 0 || srv.ReadTimeout <= 0 || srv.WriteTimeout <= 0 || srv.IdleTimeout <= 0 || srv.MaxHeaderBytes > 64<<10 {
		t.Errorf("bounds: %+v", srv)
	}
	if err := r.Metrics.Close(); err != nil {
		t.Error(err)
	}
	_ = open[0].SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := open[0].Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes after Close", n)
	}
	if r.Metrics.Listener() != nil {
		t.Error("a listener after Close")
	}
}
