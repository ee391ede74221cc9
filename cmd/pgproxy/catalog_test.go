package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// connectApp logs in through the proxy with the simple protocol, or with the one
// that the driver likes.
func connectApp(t *testing.T, a *app, user, database string, simple bool) *pgx.Conn {
	t.Helper()
	cfg, err := pgx.ParseConfig(a.dsn(user, database))
	if err != nil {
		t.Fatal(err)
	}
	if simple {
		cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	}
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn
}

// client is a connection of a test that stops it on errors.
type client struct {
	t *testing.T
	*pgx.Conn
}

func (c client) exec(sql string) {
	c.t.Helper()
	if _, err := c.Exec(c.t.Context(), sql); err != nil {
		c.t.Fatalf("%s: %v", sql, err)
	}
}

func (c client) value(sql string) string {
	c.t.Helper()
	var v any
	if err := c.QueryRow(c.t.Context(), sql, pgx.QueryExecModeSimpleProtocol).Scan(&v); err != nil {
		c.t.Fatalf("%s: %v", sql, err)
	}
	return fmt.Sprint(v)
}

// route runs a statement and tells where it went.
func (c client) route(sql string) string {
	c.t.Helper()
	c.exec(sql)
	return c.value("SHOW pgproxy.route")
}

// goes waits until a statement goes to a server of this role.
func (c client) goes(sql, role string) string {
	c.t.Helper()
	last := ""
	defer func() {
		if c.t.Failed() {
			c.t.Logf("the last time it went to %s", last)
		}
	}()
	eventually(c.t, 20*time.Second, sql+" goes to the "+role, func() bool {
		last = c.route(sql)
		return strings.HasPrefix(last, role) && !strings.Contains(last, "catalog not read yet") && !strings.Contains(last, "has replayed")
	})
	return last
}

// TestCatalogDecides: statements with functions, views and tables of the
// application's own, through the whole proxy.
func TestCatalogDecides(t *testing.T) {
	a := startApp(t, appCluster(t), "catalog_interval = \"1h\"", "")
	for _, simple := range []bool{true, false} {
		t.Run(fmt.Sprintf("simple=%t", simple), func(t *testing.T) {
			c := client{t, connectApp(t, a, appUser, "app", simple)}
			c.exec("DROP SCHEMA IF EXISTS d CASCADE; CREATE SCHEMA d")
			c.exec("CREATE TABLE d.log (i int)")
			c.exec("CREATE FUNCTION d.look() RETURNS int LANGUAGE sql STABLE AS 'SELECT count(*)::int FROM d.log'")
			c.exec("CREATE FUNCTION d.undeclared(i int) RETURNS int LANGUAGE sql AS 'SELECT i'")
			c.exec("CREATE FUNCTION d.put() RETURNS int LANGUAGE sql AS 'INSERT INTO d.log VALUES (1) RETURNING i'")
			c.exec("CREATE VIEW d.sight AS SELECT i, d.undeclared(i) AS u FROM d.log")
			c.goes("SELECT * FROM d.log", "replica")
			c.goes("SELECT d.look()", "replica")
			if got := c.goes("SELECT * FROM d.sight", "primary"); !strings.Contains(got, "function is VOLATILE: d.undeclared, through sight") {
				t.Errorf("the view: %s", got)
			}
			c.goes("SELECT d.put()", "primary")

			shapes := shapesOf(t, a)
			if got := shapes["select * from d.sight"]; got != "ALTER FUNCTION d.undeclared(i integer) STABLE" {
				t.Errorf("what would free the view: %q of %v", got, shapes)
			}
			if got := shapes["select d.put()"]; got != "" {
				t.Errorf("what would free a function that writes: %q", got)
			}

			// What is declared counts from now on, for everybody.
			c.exec("ALTER FUNCTION d.undeclared(int) STABLE")
			c.goes("SELECT * FROM d.sight", "replica")
			other := client{t, connectApp(t, a, appUser, "app", simple)}
			other.goes("SELECT * FROM d.sight", "replica")

			// A function that begins to write is called right behind that.
			for i := range 20 {
				c.exec("CREATE OR REPLACE FUNCTION d.look() RETURNS int LANGUAGE sql STABLE AS 'SELECT 0'")
				c.exec("SELECT d.look()")
				c.exec("CREATE OR REPLACE FUNCTION d.look() RETURNS int LANGUAGE sql VOLATILE AS 'INSERT INTO d.log VALUES (2) RETURNING i'")
				if got := other.route("SELECT d.look()"); !strings.HasPrefix(got, "primary") {
					t.Fatalf("%d: a function that writes: %s", i, got)
				}
			}
			if st := a.server.Stats(); st.Healed != 0 {
				t.Errorf("%d statements had to be healed", st.Healed)
			}

			// A search_path of the session's own.
			c.exec("CREATE SCHEMA IF NOT EXISTS e")
			c.exec("DROP TABLE IF EXISTS e.log; CREATE UNLOGGED TABLE e.log (i int)")
			c.exec("SET search_path = d")
			c.goes("SELECT * FROM log", "replica")
			c.exec("SET search_path = e")
			c.goes("SELECT * FROM log", "primary")
			c.exec("RESET search_path")
		})
	}
}

// shapesOf returns the declarations of SHOW SHAPES by shape.
func shapesOf(t *testing.T, a *app) map[string]string {
	t.Helper()
	conn := connectApp(t, a, adminUser, "pgproxy", true)
	rows, err := conn.Query(t.Context(), "SHOW SHAPES")
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for rows.Next() {
		v, err := rows.Values()
		if err != nil {
			t.Fatal(err)
		}
		if v[4] != nil {
			out[v[7].(string)] = v[4].(string)
		}
	}
	if rows.Err() != nil {
		t.Fatal(rows.Err())
	}
	return out
}

// TestCatalogOfWildcard: each database behind the entry "*" has a catalog of its
// own, which is read when its first client comes.
func TestCatalogOfWildcard(t *testing.T) {
	cluster := appCluster(t)
	for _, name := range []string{"wild_a", "wild_b"} {
		if err := cluster.Exec(t.Context(), "CREATE DATABASE "+name+" OWNER app"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cluster.Exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)") })
	}
	var servers strings.Builder
	for _, n := range cluster.Nodes() {
		fmt.Fprintf(&servers, "{ host = %q, port = %d }, ", n.Host, n.Port)
	}
	a := startApp(t, cluster, "catalog_interval = \"1h\"", "[databases.\"*\"]\nservers = ["+servers.String()+"]\n")
	one := client{t, connectApp(t, a, appUser, "wild_a", true)}
	two := client{t, connectApp(t, a, appUser, "wild_b", true)}
	one.exec("CREATE TABLE same (i int)")
	two.exec("CREATE UNLOGGED TABLE same (i int)")
	one.goes("SELECT * FROM same", "replica")
	if got := two.goes("SELECT * FROM same", "primary"); !strings.Contains(got, "unlogged") {
		t.Errorf("%s", got)
	}
	two.exec("ALTER TABLE same SET LOGGED")
	two.goes("SELECT * FROM same", "replica")
}
