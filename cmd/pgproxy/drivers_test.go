package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"pgproxy/pgtest"
)

// program runs one of PostgreSQL's client programs as user app and returns what
// it prints.
func program(t testing.TB, c *pgtest.Cluster, port int, name string, args ...string) string {
	t.Helper()
	path := filepath.Join(c.BinDir, name)
	if _, err := os.Stat(path); err != nil {
		if path, err = exec.LookPath(name); err != nil {
			t.Fatalf("%s is neither beside the server's programs nor in PATH", name)
		}
	}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "PGHOST=127.0.0.1", "PGPORT="+strconv.Itoa(port), "PGUSER="+appUser, "PGPASSWORD="+appPassword,
		"PGDATABASE=app", "PGSSLMODE=prefer", "PSQL_PAGER=", "PGAPPNAME=")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out.String())
	}
	return out.String()
}

// TestDriversPsql runs a script through psql, directly and through the proxy:
// both must print the same.
func TestDriversPsql(t *testing.T) {
	c := appCluster(t)
	a := startApp(t, c, "", "")
	script := filepath.Join(t.TempDir(), "script.sql")
	put(t, script, `\set ON_ERROR_STOP 0
DROP TABLE IF EXISTS psql_test;
CREATE TABLE psql_test (id serial PRIMARY KEY, name text, at date DEFAULT '2026-01-01');
INSERT INTO psql_test (name) SELECT 'row ' || i FROM generate_series(1, 5) i;
SELECT * FROM psql_test ORDER BY id;
\copy psql_test (name) FROM stdin
copied one
copied two
\.
\copy (SELECT name FROM psql_test ORDER BY id) TO stdout
\d psql_test
BEGIN;
UPDATE psql_test SET name = upper(name);
SAVEPOINT s;
SELECT 1/0;
ROLLBACK TO s;
SELECT count(*) FROM psql_test WHERE name LIKE 'ROW%';
COMMIT;
SET DateStyle = 'German';
SELECT at FROM psql_test WHERE id = 1;
RESET DateStyle;
SELECT at FROM psql_test WHERE id = 1;
PREPARE p AS SELECT name FROM psql_test WHERE id = $1;
EXECUTE p(2);
DEALLOCATE p;
DO $$ BEGIN RAISE NOTICE 'from a block'; END $$;
SELECT i, repeat('x', 200) FROM generate_series(1, 300) i;
\bind 7
SELECT $1::int + 1;
SELEC;
DROP TABLE psql_test;
`)
	args := []string{"-X", "-a", "-f", script}
	want := program(t, c, c.Primary.Port, "psql", args...)
	if got := program(t, c, a.port(), "psql", args...); got != want {
		t.Errorf("through the proxy psql prints\n%s\ndirectly\n%s", got, want)
	}
	console := exec.CommandContext(t.Context(), "psql", "-X", "-A", "-t", "-c", "SHOW VERSION",
		fmt.Sprintf("host=127.0.0.1 port=%d user=%s password='%s secret' dbname=pgbouncer", a.port(), adminUser, adminUser))
	if out, err := console.CombinedOutput(); err != nil || len(bytes.TrimSpace(out)) == 0 {
		t.Errorf("SHOW VERSION on the console: %v\n%s", err, out)
	}
}

var processed = regexp.MustCompile(`number of transactions actually processed: (\d+)`)

// TestDriversPgbench: 500 clients over 20 server connections, in each of
// pgbench's modes, writing and reading. Every transaction that pgbench counts
// must be there, once.
func TestDriversPgbench(t *testing.T) {
	c := appCluster(t)
	a := startApp(t, c, "default_pool_size = 20", "")
	const clients, each = 500, 4
	program(t, c, c.Primary.Port, "pgbench", "-i", "-q", "-s", "5")
	if err := c.WaitCaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := 0
	for _, mode := range []string{"simple", "extended", "prepared"} {
		t.Run(mode, func(t *testing.T) {
			out := program(t, c, a.port(), "pgbench", "-n", "-M", mode, "-c", strconv.Itoa(clients), "-j", "2", "-t", strconv.Itoa(each))
			m := processed.FindStringSubmatch(out)
			if m == nil || m[1] != strconv.Itoa(clients*each) {
				t.Fatalf("pgbench did not process %d transactions:\n%s", clients*each, out)
			}
			done += clients * each
			sums, err := c.Primary.Query(t.Context(), "app", `SELECT (SELECT count(*) FROM pgbench_history),
				(SELECT sum(delta) FROM pgbench_history) = (SELECT sum(abalance) FROM pgbench_accounts),
				(SELECT sum(delta) FROM pgbench_history) = (SELECT sum(tbalance) FROM pgbench_tellers),
				(SELECT sum(delta) FROM pgbench_history) = (SELECT sum(bbalance) FROM pgbench_branches)`)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := strings.Join(sums[0], " "), fmt.Sprintf("%d t t t", done); got != want {
				t.Errorf("history and sums: got %s, want %s", got, want)
			}

			before := replicaReads(t, c)
			program(t, c, a.port(), "pgbench", "-n", "-S", "-M", mode, "-c", strconv.Itoa(clients), "-j", "2", "-t", strconv.Itoa(each))
			for i, n := range replicaReads(t, c) {
				if n <= before[i] {
					t.Errorf("%s has read no rows of pgbench_accounts", c.Replicas[i].Name)
				}
			}
		})
	}
	for _, p := range a.pools.Stats() {
		if n := p.Servers(); n > 20 {
			t.Errorf("pool %v has %d server connections, want at most 20", p.Key, n)
		}
	}
}

// replicaReads returns how many rows each replica has fetched in database app.
func replicaReads(t testing.TB, c *pgtest.Cluster) []int {
	t.Helper()
	var out []int
	for _, n := range c.Replicas {
		// A server connection reports its counts when it is idle for a second.
		v, err := n.Value(t.Context(), "app", "SELECT pg_stat_get_db_tuples_fetched(oid) FROM pg_database WHERE datname = 'app'")
		if err != nil {
			t.Fatal(err)
		}
		i, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, i)
	}
	return out
}

// TestDriversPgx works as an application with pgx does, in each of its modes.
func TestDriversPgx(t *testing.T) {
	c := appCluster(t)
	a := startApp(t, c, "default_pool_size = 4", "")
	if err := c.Primary.Exec(t.Context(), "app", "SET ROLE app; DROP TABLE IF EXISTS pgx_test; CREATE TABLE pgx_test (id int PRIMARY KEY, name text, data bytea, n numeric, at timestamptz)"); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			g, ctx := errgroup.WithContext(t.Context())
			for i := range 12 {
				g.Go(func() error { return pgxClient(ctx, a.dsn(appUser, "app"), mode, i) })
			}
			if err := g.Wait(); err != nil {
				t.Error(err)
			}
			n, err := c.Primary.Value(t.Context(), "app", "SELECT count(*) || ' ' || sum(length(name)) FROM pgx_test")
			if err != nil || n != "12 72" {
				t.Errorf("rows in the table: %s, %v", n, err)
			}
			if err := c.Primary.Exec(t.Context(), "app", "TRUNCATE pgx_test"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// pgxClient is one application of TestDriversPgx.
func pgxClient(ctx context.Context, dsn string, mode pgx.QueryExecMode, id int) error {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return err
	}
	cfg.DefaultQueryExecMode = mode
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	name := fmt.Sprintf("name%02d", id)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	if _, err := conn.Exec(ctx, "INSERT INTO pgx_test VALUES ($1, $2, $3, $4, $5)", id, name, []byte{0, byte(id)}, "12.50", at); err != nil {
		return fmt.Errorf("insert: %w", err)
	}
	for range 20 {
		// What has just been written must be read, wherever the read goes.
		var got string
		var data []byte
		var when time.Time
		if err := conn.QueryRow(ctx, "SELECT name, data, at FROM pgx_test WHERE id = $1", id).Scan(&got, &data, &when); err != nil {
			return fmt.Errorf("select: %w", err)
		}
		if got != name || len(data) != 2 || data[1] != byte(id) || !when.Equal(at) {
			return fmt.Errorf("read %q %v %v", got, data, when)
		}
	}
	var b pgx.Batch
	for i := range 10 {
		b.Queue("SELECT $1::int * 2", i)
	}
	res := conn.SendBatch(ctx, &b)
	for i := range 10 {
		var n int
		if err := res.QueryRow().Scan(&n); err != nil || n != 2*i {
			return fmt.Errorf("batch: %d, %w", n, err)
		}
	}
	if err := res.Close(); err != nil {
		return err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "UPDATE pgx_test SET name = 'gone' WHERE id = $1", id); err != nil {
		return err
	}
	var pe *pgconn.PgError
	if _, err := tx.Exec(ctx, "SELECT 1/0"); !errors.As(err, &pe) || pe.Code != "22012" {
		return fmt.Errorf("division by zero: %w", err)
	}
	if err := tx.Rollback(ctx); err != nil {
		return err
	}
	rows := [][]any{{1000 + id, "c1"}, {2000 + id, "c2"}}
	if n, err := conn.CopyFrom(ctx, pgx.Identifier{"pgx_test"}, []string{"id", "name"}, pgx.CopyFromRows(rows)); err != nil || n != 2 {
		return fmt.Errorf("copy: %d rows, %w", n, err)
	}
	tag, err := conn.Exec(ctx, "DELETE FROM pgx_test WHERE id = $1 OR id = $2", 1000+id, 2000+id)
	if err != nil || tag.RowsAffected() != 2 {
		return fmt.Errorf("delete: %v, %w", tag, err)
	}
	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	if _, err := conn.Exec(short, "SELECT pg_sleep(10)"); err == nil {
		return errors.New("pg_sleep(10) ended without an error after 50 ms")
	}
	return nil
}
