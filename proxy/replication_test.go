package proxy_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// sender is a cluster that replicates in every way, with a role for it.
func sender(t *testing.T) *pgtest.Cluster {
	t.Helper()
	c := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"wal_level": "logical", "wal_sender_timeout": "20s"}})
	for _, err := range []error{
		c.CreateRole(t.Context(), testUser, testPassword, "SUPERUSER REPLICATION"), // a subscription needs to read tables
		c.CreateRole(t.Context(), otherUser, otherSecret, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// replicationHarness is a proxy in front of a sender; when it is closed nothing
// is left on that.
func replicationHarness(t *testing.T, c *pgtest.Cluster, more string) *harness {
	t.Helper()
	census := pgtest.NewCensus(t, c.Nodes()...)
	t.Cleanup(census.AssertBaseline)
	return newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 2\n" + more})
}

// run starts one of PostgreSQL's programs through the proxy.
func (h *harness) run(ctx context.Context, t *testing.T, c *pgtest.Cluster, name string, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	path := filepath.Join(c.BinDir, name)
	if _, err := os.Stat(path); err != nil {
		if path, err = exec.LookPath(name); err != nil {
			t.Fatalf("%s is neither beside the server's programs nor in PATH", name)
		}
	}
	host, port, err := net.SplitHostPort(h.Addr)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "PGHOST="+host, "PGPORT="+port, "PGUSER="+testUser, "PGPASSWORD="+testPassword)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, &out
}

// replicas waits until so many clients replicate.
func (h *harness) replicas(t *testing.T, n int) {
	t.Helper()
	eventually(t, 20*time.Second, fmt.Sprintf("%d replication connections", n), func() bool { return h.Server.Stats().Replicas == n })
}

// TestBaseBackup: pg_basebackup, with the WAL over a second connection, makes a
// server that starts.
func TestBaseBackup(t *testing.T) {
	c := sender(t)
	h := replicationHarness(t, c, "")
	if err := c.Exec(t.Context(), "CREATE TABLE kept AS SELECT i FROM generate_series(1, 50000) i"); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "backup")
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	cmd, out := h.run(ctx, t, c, "pg_basebackup", "-D", dir, "-X", "stream", "-c", "fast", "-C", "-S", "backup_slot")
	if err := cmd.Wait(); err != nil {
		t.Fatalf("pg_basebackup: %v\n%s", err, out)
	}
	verify, out := h.run(ctx, t, c, "pg_verifybackup", dir)
	if err := verify.Wait(); err != nil {
		t.Errorf("pg_verifybackup: %v\n%s", err, out)
	}
	h.replicas(t, 0)
}

// TestReceiveWAL: pg_receivewal streams until it is told to stop, and takes what
// a client of the pool writes meanwhile.
func TestReceiveWAL(t *testing.T) {
	c := sender(t)
	h := replicationHarness(t, c, "")
	dir := t.TempDir()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	cmd, out := h.run(ctx, t, c, "pg_receivewal", "-D", dir, "--synchronous", "-n", "-v")
	h.replicas(t, 1)
	a := h.Client(t)
	const wal = "SELECT pg_walfile_name(pg_switch_wal())"
	var file string
	eventually(t, 30*time.Second, "a whole segment", func() bool {
		a.Query("CREATE TABLE IF NOT EXISTS some (i int); INSERT INTO some SELECT generate_series(1, 1000)")
		file = value(a, wal)
		_, err := os.Stat(filepath.Join(dir, file))
		return err == nil
	})
	for _, s := range h.Server.Sessions() {
		if s.Replication == "physical" && (s.State != "active" || s.Database != "app" || s.AppName != "pg_receivewal") {
			t.Errorf("session: %+v", s)
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("pg_receivewal: %v\n%s", err, out)
	}
	h.replicas(t, 0)
}

// TestSubscription: a logical subscription of another server whose connection
// string names the proxy copies a table and follows its changes.
func TestSubscription(t *testing.T) {
	c := sender(t)
	other := pgtest.Start(t, pgtest.Options{})
	h := replicationHarness(t, c, "")
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	const table = "CREATE TABLE things (id int PRIMARY KEY, name text)"
	host, port, err := net.SplitHostPort(h.Addr)
	if err != nil {
		t.Fatal(err)
	}
	conninfo := fmt.Sprintf(`host=%s port=%s dbname=app user=%s password='%s'`, host, port, testUser, strings.ReplaceAll(testPassword, "'", `\'`))
	for _, err := range []error{
		c.Exec(ctx, table+"; INSERT INTO things SELECT i, 'name ' || i FROM generate_series(1, 1000) i; CREATE PUBLICATION pub FOR TABLE things"),
		other.Exec(ctx, table),
		other.Exec(ctx, "CREATE SUBSCRIPTION sub CONNECTION "+pgtest.QuoteLiteral(conninfo)+" PUBLICATION pub"),
		other.Primary.WaitFor(ctx, "postgres", "SELECT count(*) = 1000 FROM things"),
		c.Exec(ctx, "UPDATE things SET name = repeat('x', 100000) WHERE id = 7; DELETE FROM things WHERE id > 900"),
		other.Primary.WaitFor(ctx, "postgres", "SELECT count(*) = 900 AND bool_or(length(name) = 100000) FROM things"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	kinds := make(map[string]int)
	for _, s := range h.Server.Sessions() {
		kinds[s.Replication]++
	}
	if kinds["logical"] == 0 {
		t.Errorf("sessions by kind: %v", kinds)
	}
	// The publisher's end of it may be cut: the subscription comes back and goes on.
	h.Server.Kill("app")
	for _, err := range []error{
		c.Exec(ctx, "INSERT INTO things VALUES (5000, 'after the cut')"),
		other.Primary.WaitFor(ctx, "postgres", "SELECT count(*) = 1 FROM things WHERE id = 5000"),
		other.Exec(ctx, "DROP SUBSCRIPTION sub"),
		c.Primary.WaitFor(ctx, "postgres", "SELECT count(*) = 0 FROM pg_replication_slots"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	h.replicas(t, 0)
}

// replicate logs in to the walsender.
func (h *harness) replicate(t *testing.T, how, database string) *pgtest.RawClient {
	t.Helper()
	a := pgtest.DialRaw(t, h.Addr)
	a.Login(testUser, testPassword, "database", database, "replication", how, "application_name", "walker")
	return a
}

// TestReplicationCommands: the session is the walsender's, with a key of the
// proxy's; cancel requests reach it.
func TestReplicationCommands(t *testing.T) {
	c := sender(t)
	h := replicationHarness(t, c, "")
	for how, database := range map[string]string{"true": "replication", "ON": "app", "1": "app", "yes": "whatever", "database": "app"} {
		a := h.replicate(t, how, database)
		if got := a.Query("IDENTIFY_SYSTEM"); !strings.HasPrefix(got, "T D(") || !strings.HasSuffix(got, "Z(I)") {
			t.Errorf("replication=%s: %s", how, got)
		}
		name, err := c.Primary.Value(t.Context(), "postgres", "SELECT application_name FROM pg_stat_activity WHERE backend_type = 'walsender'")
		if err != nil || name != "walker" {
			t.Errorf("replication=%s: application_name %q, %v", how, name, err)
		}
		if how == "database" {
			a.Send(pgtest.Query("SELECT pg_sleep(60)"))
			eventually(t, 10*time.Second, "a statement that runs", func() bool {
				n, err := c.Primary.Value(t.Context(), "postgres", "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
				return err == nil && n == "1"
			})
			a.Cancel(h.Addr)
			a.Expect("T E(57014) Z(I)")
		}
		a.Terminate()
		h.replicas(t, 0)
	}
	off := pgtest.DialRaw(t, h.Addr)
	off.Login(testUser, testPassword, "database", "app", "replication", "off")
	same(t, off, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
}

// TestReplicationRefused: each reason has its error.
func TestReplicationRefused(t *testing.T) {
	c := sender(t)
	h := replicationHarness(t, c, "max_replication_connections = 1")
	try := func(user, password, how, database string) string {
		a := pgtest.DialRaw(t, h.Addr)
		defer a.Close()
		if e := a.TryLogin(user, password, "database", database, "replication", how); e != nil {
			return e.Code
		}
		return "ok"
	}
	for _, v := range []struct{ user, password, how, database, want string }{
		{testUser, testPassword, "maybe", "app", "22023"},
		{testUser, "wrong", "true", "app", "28P01"},
		{testUser, testPassword, "database", "nowhere", "3D000"},
		{otherUser, otherSecret, "true", "app", "42501"}, // in the server's own words
		{testUser, testPassword, "true", "app", "ok"},
	} {
		if got := try(v.user, v.password, v.how, v.database); got != v.want {
			t.Errorf("%+v: %s", v, got)
		}
		h.replicas(t, 0)
	}
	a := h.replicate(t, "true", "app")
	if got := try(testUser, testPassword, "database", "app"); got != "53300" {
		t.Errorf("over max_replication_connections: %s", got)
	}
	a.Close()
	h.replicas(t, 0)
}

// TestReplicationEnds: what ends a database, or the proxy, ends its replication.
func TestReplicationEnds(t *testing.T) {
	c := sender(t)
	start := func(h *harness) *pgtest.RawClient {
		a := h.replicate(t, "true", "app")
		lsn, err := c.Primary.Value(t.Context(), "postgres", "SELECT pg_current_wal_lsn()")
		if err != nil {
			t.Fatal(err)
		}
		a.Send(pgtest.Query("START_REPLICATION " + lsn))
		a.Expect("W")
		return a
	}
	for name, end := range map[string]func(h *harness){
		"KILL":     func(h *harness) { h.Server.Kill("app") },
		"the pool": func(h *harness) { h.Pools.Reconnect("app") },
		"shutdown": func(h *harness) {
			ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
			defer stop()
			if err := h.Server.Shutdown(ctx); err != nil || ctx.Err() != nil {
				t.Errorf("shutdown: %v, %v", err, ctx.Err())
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := replicationHarness(t, c, "")
			a := start(h)
			end(h)
			msgs := a.ExpectEOF()
			a.Close()
			if n := len(msgs); n > 0 && msgs[n-1].Type == wire.ErrorResponse {
				t.Logf("the client hears %v", msgs[n-1].Err())
			} else if name != "the pool" {
				t.Errorf("the client was told nothing: %s", pgtest.Trace(msgs))
			}
			h.replicas(t, 0)
			if n, err := c.Primary.Value(t.Context(), "postgres", "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'"); err != nil || n != "0" {
				eventually(t, 10*time.Second, "the end of the walsender", func() bool {
					n, err := c.Primary.Value(t.Context(), "postgres", "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'")
					return err == nil && n == "0"
				})
			}
		})
	}
}

// TestBaseBackupMayFinish: a drain waits for a command that has an end.
func TestBaseBackupMayFinish(t *testing.T) {
	c := sender(t)
	h := replicationHarness(t, c, "")
	a := h.replicate(t, "true", "app")
	defer a.Close()
	a.Send(pgtest.Query("BASE_BACKUP (CHECKPOINT 'fast')"))
	a.ReadUntil(wire.CopyData)
	done := make(chan error, 1)
	go func() {
		ctx, stop := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
		defer stop()
		done <- h.Server.Shutdown(ctx)
	}()
	eventually(t, 10*time.Second, "the drain", h.Server.Draining)
	for range 100 { // most of the data has still to come
		a.Read()
	}
	select {
	case err := <-done:
		t.Fatalf("the drain is over: %v", err)
	default:
	}
	if msgs := a.ReadUntilReady(); msgs[len(msgs)-2].Type != wire.CommandComplete {
		t.Errorf("the backup ends with %s", pgtest.Trace(msgs[len(msgs)-3:]))
	}
	a.ExpectEOF()
	if err := <-done; err != nil {
		t.Errorf("the drain: %v", err)
	}
}
