package monitor

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/pgtest"
	"pgproxy/router"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// patience bounds every wait for something that must happen.
const patience = 30 * time.Second

// The role of the checks, as the file of a careful administrator has it.
const (
	checker         = "checker"
	checkerPassword = "let me look"
)

var makeChecker sync.Map // *pgtest.Cluster -> *sync.Once

// withChecker makes the role of the checks, which may see statistics.
func withChecker(t *testing.T, c *pgtest.Cluster) {
	t.Helper()
	once, _ := makeChecker.LoadOrStore(c, new(sync.Once))
	once.(*sync.Once).Do(func() {
		if err := c.CreateRole(t.Context(), checker, checkerPassword, ""); err != nil {
			t.Fatal(err)
		}
		if err := c.Exec(t.Context(), "GRANT pg_read_all_stats TO checker"); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitCaughtUp(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

// configFor returns a configuration with the one database app.
func configFor(servers ...config.Server) *config.Config {
	for i := range servers {
		servers[i].Weight = max(servers[i].Weight, 1)
	}
	return &config.Config{
		Proxy: config.Proxy{
			ServerCheckInterval: 250 * time.Millisecond, LSNInterval: 20 * time.Millisecond,
			ServerConnectTimeout: 5 * time.Second,
		},
		Databases: map[string]*config.Database{"app": {
			Name: "app", DBName: "postgres", Servers: servers,
			MonitorUser: checker, MonitorPassword: checkerPassword,
		}},
	}
}

func serverOf(n *pgtest.Node) config.Server { return config.Server{Host: n.Host, Port: n.Port} }

func serversOf(c *pgtest.Cluster) []config.Server {
	var out []config.Server
	for _, n := range c.Nodes() {
		out = append(out, serverOf(n))
	}
	return out
}

// record is a log that can be read.
type record struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

func (r *record) count(text string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Count(r.b.String(), text)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}

func optionsFor(w *record) Options {
	return Options{
		Log: slog.New(slog.NewTextHandler(w, nil)),
		Dial: func(cfg *config.Config, _ *config.Database) *backend.Dialer {
			return &backend.Dialer{ConnectTimeout: cfg.Proxy.ServerConnectTimeout, Now: router.Nanotime}
		},
	}
}

// watched is a Monitor under test.
type watched struct {
	*Monitor
	t   *testing.T
	log *record
}

// start starts a Monitor, waits for the first round, and closes it with the test.
func start(t *testing.T, cfg *config.Config) *watched {
	t.Helper()
	w := &watched{t: t, log: new(record)}
	w.Monitor = New(cfg, optionsFor(w.log))
	t.Cleanup(func() {
		w.Close()
		if t.Failed() {
			t.Logf("log:\n%s", w.log)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := w.Ready(ctx); err != nil {
		t.Fatalf("Ready: %v", err)
	}
	return w
}

// until waits until the picture of app is as wanted, and returns it.
func (w *watched) until(what string, is func(*router.Topology) bool) *router.Topology {
	w.t.Helper()
	return w.untilWithin(patience, what, is)
}

func (w *watched) untilWithin(limit time.Duration, what string, is func(*router.Topology) bool) *router.Topology {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), limit)
	defer cancel()
	for {
		top := w.Topology("app")
		if is(top) {
			return top
		}
		if err := w.Wait(ctx, "app", top.Generation); err != nil {
			w.t.Fatalf("waited in vain for %s: %v; last: %+v; status: %+v", what, err, top.Servers, w.Status())
		}
	}
}

// settled waits until one server is primary and all others are replicas, all up
// and covered.
func (w *watched) settled() *router.Topology {
	w.t.Helper()
	return w.until("a primary and covered replicas", func(top *router.Topology) bool {
		primaries := 0
		for _, s := range top.Servers {
			switch {
			case !s.Up || s.Role == router.RoleUnknown || s.Role == router.RoleReplica && s.Covered == 0:
				return false
			case s.Role == router.RolePrimary:
				primaries++
			}
		}
		return primaries == 1
	})
}
