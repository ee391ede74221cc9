package proxy_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgproxy/pgtest"
)

// limitedDatabase makes a database that takes n connections and not one more: what
// exceeds that hears 53300 from the server itself. Its roles are no superusers, for
// whom the server makes an exception.
func limitedDatabase(t *testing.T, c *pgtest.Cluster, name string, n int, roles ...string) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	for _, sql := range []string{
		"DROP DATABASE IF EXISTS " + name + " WITH (FORCE)", "CREATE DATABASE " + name,
		fmt.Sprintf("ALTER DATABASE %s CONNECTION LIMIT %d", name, n),
	} {
		if err := c.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range roles {
		if err := c.Exec(ctx, "DROP ROLE IF EXISTS "+r); err != nil {
			t.Fatal(err)
		}
		if err := c.Exec(ctx, "CREATE ROLE "+r+" LOGIN PASSWORD 'pw'"); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		ctx, stop := context.WithTimeout(context.Background(), time.Minute)
		defer stop()
		if err := c.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
		for _, r := range roles {
			if err := c.Exec(ctx, "DROP ROLE "+r); err != nil {
				t.Error(err)
			}
		}
	})
}

// driver logs in with pgx.
func (h *harness) driver(ctx context.Context, user, database string) (*pgx.Conn, error) {
	host, port, _ := strings.Cut(h.Addr, ":")
	return pgx.Connect(ctx, fmt.Sprintf("host=%s port=%s user=%s password=x dbname=%s sslmode=disable", host, port, user, database))
}

// TestFloodIsFair: two databases on one server, which takes four connections in
// all. The user with forty clients gets no more of them than the one with four, who
// has at least half of an equal part of what is served. The server never refuses a
// connection.
func TestFloodIsFair(t *testing.T) {
	c := realCluster(t)
	limitedDatabase(t, c, "crowded", 4, "crowd", "single")
	h := newHarness(t, harnessOptions{
		Servers: addrs(c)[:1], DBName: "crowded", Proxy: "auth_type = \"any\"\nmax_host_connections = 4\nquery_wait_timeout = \"1m\"\n",
		Database: "user = \"crowd\"\npassword = \"pw\"\nread_write_split = \"off\"\n",
		More: fmt.Sprintf("[databases.calm]\ndbname = \"crowded\"\nuser = \"single\"\npassword = \"pw\"\nread_write_split = \"off\"\n"+
			"servers = [{ host = \"127.0.0.1\", port = %d, role = \"primary\" }]\n", c.Primary.Port),
	})
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	var wg sync.WaitGroup
	var crowd, single, errs atomic.Int64
	over := make(chan struct{})
	run := func(database string, served *atomic.Int64) {
		wg.Go(func() {
			conn, err := h.driver(ctx, testUser, database)
			if err != nil {
				t.Error(err)
				errs.Add(1)
				return
			}
			defer func() { _ = conn.Close(ctx) }()
			for {
				select {
				case <-over:
					return
				default:
				}
				if _, err := conn.Exec(ctx, "SELECT pg_sleep(0.02)"); err != nil {
					t.Error(err)
					errs.Add(1)
					return
				}
				served.Add(1)
			}
		})
	}
	for range 40 {
		run("app", &crowd)
	}
	eventually(t, 60*time.Second, "a crowd that is at work", func() bool { return crowd.Load() > 200 || errs.Load() > 0 })
	for range 4 {
		run("calm", &single)
	}
	eventually(t, 60*time.Second, "the first of the others", func() bool { return single.Load() > 4 || errs.Load() > 0 })
	before, from := crowd.Load(), single.Load()
	eventually(t, 60*time.Second, "many statements", func() bool { return crowd.Load()-before > 400 || errs.Load() > 0 })
	close(over)
	n, m := single.Load()-from, crowd.Load()-before
	wg.Wait()
	if n < (n+m)/4 {
		t.Errorf("%d statements were served while the crowd had %d: want a quarter of all, which is half of an equal part", n, m)
	}
	for _, host := range h.Pools.Hosts() {
		if host.Used > 4 {
			t.Errorf("host: %+v", host)
		}
	}
	if log := h.Log.Text(); strings.Contains(log, "53300") || strings.Contains(log, "too many connections") {
		t.Errorf("the server has refused connections:\n%s", log)
	}
}

// TestTwoPoolsForOneLogin: with auth_query a login needs a connection of auth_user
// and then one of its own, where there are two for all (B-87). Fifty users come at
// once, and all get in.
func TestTwoPoolsForOneLogin(t *testing.T) {
	c := askCluster(t)
	var roles []string
	for i := range 50 {
		roles = append(roles, fmt.Sprint("guest", i))
	}
	limitedDatabase(t, c, "narrow", 2)
	ctx, stop := context.WithTimeout(t.Context(), 3*time.Minute)
	defer stop()
	for _, sql := range []string{
		"DROP ROLE IF EXISTS " + strings.Join(roles, ", "),
		"SET password_encryption = 'scram-sha-256'; CREATE ROLE " + strings.Join(roles, " LOGIN PASSWORD 'pw'; CREATE ROLE ") + " LOGIN PASSWORD 'pw'",
	} {
		if err := c.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := c.Exec(context.Background(), "DROP ROLE "+strings.Join(roles, ", ")); err != nil {
			t.Error(err)
		}
	})
	for _, limit := range []string{"max_host_connections", "max_db_connections"} {
		t.Run(limit, func(t *testing.T) {
			h := newHarness(t, harnessOptions{
				Servers: addrs(c)[:1], Proxy: asked("scram-sha-256") + limit + " = 2\nmin_pool_size = 2\nclient_login_timeout = \"1m\"\n",
				Database: "read_write_split = \"off\"\n",
			})
			var wg sync.WaitGroup
			for _, r := range roles {
				wg.Go(func() {
					if err := logsIn(t, h, r, "pw"); err != nil {
						t.Errorf("%s: %v", r, err)
					}
				})
			}
			wg.Wait()
			if n := h.Pools.Hosts(); len(n) == 1 && n[0].Used > 2 {
				t.Errorf("%+v", n)
			}
		})
	}
}

// TestHostLimitOfStandingConnections: LISTEN and replication take places, and hear
// 53300 where none comes free.
func TestHostLimitOfStandingConnections(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{
		Servers: addrs(c)[:1], Proxy: trust + "max_host_connections = 2\nclient_login_timeout = \"3s\"\n", Database: "read_write_split = \"off\"\nuser = \"" + c.Superuser + "\"\npassword = \"" + c.Password + "\"\n",
	})
	a, b := h.Client(t), h.Client(t)
	a.Query("LISTEN news")
	begin(b)
	if n := h.Pools.Hosts(); len(n) != 1 || n[0].Used != 2 {
		t.Errorf("hosts: %+v", n)
	}
	r := pgtest.DialRaw(t, h.Addr)
	if e := r.TryLogin(testUser, testPassword, "database", "app", "replication", "database"); e == nil || e.Code != "53300" {
		t.Errorf("a third connection: %v", e)
	}
	b.Query("COMMIT")
	r = pgtest.DialRaw(t, h.Addr)
	if e := r.TryLogin(testUser, testPassword, "database", "app", "replication", "database"); e != nil {
		t.Errorf("where there is room: %v", e)
	}
	if n := h.Pools.Hosts(); len(n) != 1 || n[0].Used != 2 {
		t.Errorf("hosts: %+v", n)
	}
}
