package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pgproxy/config"
	"pgproxy/pgtest"
)

// runAsProgram makes the test binary behave as pgproxy itself, for tests of the
// process.
const runAsProgram = "PGPROXY_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(runAsProgram) != "" {
		code := dispatch(os.Args[1:], os.Stdout, os.Stderr)
		if err := pgtest.RemoveTemplates(); err != nil { // which only test binaries make
			fmt.Fprintln(os.Stderr, err)
			code = exitFailed
		}
		os.Exit(code)
	}
	pgtest.Main(m)
}

const (
	appUser     = "app"
	appPassword = "app secret"
	adminUser   = "admin"
	statsUser   = "stats"
)

// appCluster returns the shared cluster with database app and its roles.
func appCluster(t testing.TB) *pgtest.Cluster {
	t.Helper()
	c := pgtest.Shared(t)
	appOnce.Do(func() { appErr = prepareCluster(c) })
	if appErr != nil {
		t.Fatal(appErr)
	}
	return c
}

var (
	appOnce sync.Once
	appErr  error
)

func prepareCluster(c *pgtest.Cluster) error {
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	for _, role := range []string{appUser, adminUser, statsUser, "monitor"} {
		if err := c.CreateRole(ctx, role, role+" secret", ""); err != nil {
			return err
		}
	}
	if err := c.Exec(ctx, "CREATE DATABASE app OWNER app"); err != nil {
		return err
	}
	return c.WaitCaughtUp(ctx)
}

// writeConfig writes a configuration for a cluster and returns its path. More is
// added to [proxy], database to [databases.app].
func writeConfig(t testing.TB, c *pgtest.Cluster, more, database string) string {
	t.Helper()
	dir := t.TempDir()
	var list strings.Builder
	for _, role := range []string{appUser, adminUser, statsUser} {
		fmt.Fprintf(&list, "%q %q\n", role, role+" secret")
	}
	put(t, filepath.Join(dir, "userlist.txt"), list.String())
	var servers strings.Builder
	for _, n := range c.Nodes() {
		fmt.Fprintf(&servers, "  { host = %q, port = %d },\n", n.Host, n.Port)
	}
	path := filepath.Join(dir, "pgproxy.toml")
	put(t, path, fmt.Sprintf(`[proxy]
listen_port = 0
http_listen = "127.0.0.1:0"
auth_file = "userlist.txt"
admin_users = ["admin"]
stats_users = ["stats"]
monitor_user = "monitor"
monitor_password = "monitor secret"
%s
[databases.app]
servers = [
%s]
%s
`, more, servers.String(), database))
	return path
}

func put(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// startApp runs a proxy in this process until the test ends, when nothing of it
// may be left.
func startApp(t testing.TB, c *pgtest.Cluster, more, database string) *app {
	t.Helper()
	return startAppLogged(t, c, more, database, testWriter{t})
}

// startAppLogged is startApp with a place for the log.
func startAppLogged(t testing.TB, c *pgtest.Cluster, more, database string, log io.Writer) *app {
	t.Helper()
	census := pgtest.NewCensus(t, c.Nodes()...)
	cfg, err := config.Load(writeConfig(t, c, more, database))
	if err != nil {
		t.Fatal(err)
	}
	a, err := newApp(cfg, slog.New(slog.NewTextHandler(log, nil)), appOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
		defer stop()
		if err := a.close(ctx); err != nil {
			t.Errorf("closing the proxy: %v", err)
		}
		if n := a.server.Stats().Panics; n != 0 {
			t.Errorf("%d panics", n)
		}
		census.AssertBaseline()
	})
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	for _, name := range []string{"app"} {
		for {
			topo := a.monitor.Topology(name)
			up := 0
			for _, s := range topo.Servers {
				if s.Up {
					up++
				}
			}
			if up == len(topo.Servers) {
				break
			}
			if err := a.monitor.Wait(ctx, name, topo.Generation); err != nil {
				t.Fatalf("%d of %d servers are up: %v", up, len(topo.Servers), err)
			}
		}
	}
	return a
}

// port is where the proxy listens.
func (a *app) port() int { return a.server.Addrs()[0].(*net.TCPAddr).Port }

// dsn is a connection string for the proxy.
func (a *app) dsn(user, database string) string {
	return fmt.Sprintf("postgres://%s:%s%%20secret@127.0.0.1:%d/%s?sslmode=disable", user, user, a.port(), database)
}

// testWriter shows what is logged when a test fails.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// eventually waits for a condition.
func eventually(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(d)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, d)
		}
		<-tick.C
	}
}
