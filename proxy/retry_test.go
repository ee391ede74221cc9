package proxy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
)

// twoServers returns a proxy before a primary and one standby, whose reads go to
// the standby.
func twoServers(t *testing.T, c *pgtest.Cluster, more string) *harness {
	t.Helper()
	return newHarness(t, harnessOptions{
		Servers: addrs(c)[:2], Proxy: trust + "default_pool_size = 4\n" + more,
		Database: "read_write_split = \"auto\"\nconsistency = \"eventual\"",
	})
}

// setup runs statements on the primary and waits for the standbys.
func setup(t *testing.T, c *pgtest.Cluster, sql string) {
	t.Helper()
	if err := c.Exec(t.Context(), "SET client_min_messages = error; "+sql); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitCaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestHealing: what a standby refuses is answered by the primary, and goes there
// from then on; the client notices nothing.
func TestHealing(t *testing.T) {
	c := realCluster(t)
	setup(t, c, `CREATE TABLE IF NOT EXISTS heal_log (i int);
		CREATE OR REPLACE FUNCTION heal_write() RETURNS int LANGUAGE plpgsql VOLATILE AS $$ BEGIN INSERT INTO heal_log VALUES (1); RETURN 7; END $$;
		CREATE OR REPLACE FUNCTION heal_stable() RETURNS int LANGUAGE sql STABLE AS 'SELECT heal_write()';
		CREATE OR REPLACE VIEW heal_view AS SELECT heal_write() AS i;
		CREATE TABLE IF NOT EXISTS heal_table (i int);
		TRUNCATE heal_table, heal_log;
		INSERT INTO heal_table VALUES (5);
		ALTER TABLE heal_table SET UNLOGGED;
		CREATE SEQUENCE IF NOT EXISTS heal_numbers;
		GRANT ALL ON ALL TABLES IN SCHEMA public TO public; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO public`)
	for _, v := range []struct{ name, sql, want string }{
		{"view over a function that writes", "SELECT i FROM heal_view", "7"},
		{"function that writes", "/* pgproxy: target=replica */ SELECT heal_write()", "7"},
		{"table turned unlogged", "SELECT i FROM heal_table", "5"},
		{"sequence", "/* pgproxy: target=replica */ SELECT nextval('heal_numbers') > 0", "t"},
		{"lock", "/* pgproxy: target=replica */ SELECT 1 FROM heal_table FOR UPDATE", "1"},
	} {
		for how, send := range map[string]func(*pgtest.RawClient){
			"simple": func(r *pgtest.RawClient) { r.Send(pgtest.Query(v.sql)) },
			"extended": func(r *pgtest.RawClient) {
				r.Send(pgtest.Parse("", v.sql), pgtest.Bind("", ""), pgtest.Describe('P', ""), pgtest.Execute("", 0), pgtest.Sync())
			},
			"prepared": func(r *pgtest.RawClient) {
				r.Send(pgtest.Parse("s", v.sql), pgtest.Describe('S', "s"), pgtest.Sync())
				r.ReadUntilReady()
				r.Send(pgtest.Bind("", "s"), pgtest.Describe('P', ""), pgtest.Execute("", 0), pgtest.Sync())
			},
			"parsed in the batch": func(r *pgtest.RawClient) {
				r.Send(pgtest.Parse("t", v.sql), pgtest.Bind("", "t"), pgtest.Describe('P', ""), pgtest.Execute("", 0), pgtest.Close('S', "t"), pgtest.Sync())
			},
		} {
			t.Run(v.name+"/"+how, func(t *testing.T) {
				h := twoServers(t, c, "")
				r := h.Client(t)
				for range 2 {
					send(r)
					got := pgtest.Trace(r.ReadUntilReady())
					if !strings.Contains(got, "D("+v.want+")") || strings.Contains(got, "E(") || !strings.HasSuffix(got, "C(SELECT 1) Z(I)") && !strings.HasSuffix(got, "C(SELECT 1) 3 Z(I)") {
						t.Fatalf("got %s", got)
					}
					if how == "prepared" {
						r.Send(pgtest.Close('S', "s"), pgtest.Sync())
						r.Expect("3 Z(I)")
					}
				}
				if n := strings.Count(h.Log.Text(), "a standby has refused"); n != 1 {
					t.Errorf("%d log lines, want 1:\n%s", n, h.Log.Text())
				}
				st := h.Server.Stats()
				if st.Rerun.Refused != 1 || st.Healed != 1 {
					t.Errorf("stats %+v", st)
				}
			})
		}
	}
	want := fmt.Sprint(2 * 4 * 2)
	if rows, err := c.Query(t.Context(), "SELECT count(*) FROM heal_log"); err != nil || rows[0][0] != want {
		t.Errorf("%v rows written (%v), want %s", rows, err, want)
	}
}

// TestHealingBatch: in a batch of several reads only the one that was refused is
// kept away from standbys.
func TestHealingBatch(t *testing.T) {
	c := realCluster(t)
	setup(t, c, `CREATE TABLE IF NOT EXISTS heal_first (i int); TRUNCATE heal_first; INSERT INTO heal_first VALUES (1), (2);
		CREATE TABLE IF NOT EXISTS heal_second (i int); TRUNCATE heal_second; INSERT INTO heal_second VALUES (3);
		ALTER TABLE heal_second SET UNLOGGED; GRANT ALL ON ALL TABLES IN SCHEMA public TO public`)
	h := twoServers(t, c, "")
	r := h.Client(t)
	batch := pgtest.Join(pgtest.Parse("", "SELECT i FROM heal_first"), pgtest.Bind("", ""), pgtest.Execute("", 0),
		pgtest.Parse("", "SELECT i FROM heal_second"), pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.Sync())
	for range 2 {
		r.Send(batch)
		r.Expect("1 2 D(1) D(2) C(SELECT 2) 1 2 D(3) C(SELECT 1) Z(I)")
	}
	if st := h.Server.Stats(); st.Rerun.Refused != 1 {
		t.Errorf("stats %+v", st)
	}
	r.Query("SELECT i FROM heal_first")
	if got := value(r, "SHOW pgproxy.route"); !strings.HasPrefix(got, "replica") {
		t.Errorf("the first statement alone went to %s", got)
	}
}

// TestStalePlan: after DDL, and after somebody has taken a statement from the
// server, it is prepared again and run.
func TestStalePlan(t *testing.T) {
	c := realCluster(t)
	setup(t, c, `DROP TABLE IF EXISTS stale; CREATE TABLE stale (i int); INSERT INTO stale VALUES (1); GRANT ALL ON stale TO public`)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	r := h.Client(t)
	const sql = "SELECT * FROM stale"
	if got := prepare(r, "s", sql); got != "1 Z(I)" {
		t.Fatal(got)
	}
	use := func(want string) {
		t.Helper()
		r.Send(pgtest.Bind("", "s"), pgtest.Describe('P', ""), pgtest.Execute("", 0), pgtest.Sync())
		r.Expect(want)
	}
	use("2 T D(1) C(SELECT 1) Z(I)")
	setup(t, c, "ALTER TABLE stale ADD COLUMN j int DEFAULT 2")
	use("2 T D(1,2) C(SELECT 1) Z(I)")
	use("2 T D(1,2) C(SELECT 1) Z(I)")
	if st := h.Server.Stats(); st.Rerun.Stale != 1 {
		t.Errorf("stats %+v", st)
	}
	// Several in one batch: the first one fails, and all are run again.
	setup(t, c, "ALTER TABLE stale ADD COLUMN k int DEFAULT 3")
	one := pgtest.Join(pgtest.Bind("", "s"), pgtest.Execute("", 0))
	r.Send(one, one, one, pgtest.Sync())
	r.Expect("2 D(1,2,3) C(SELECT 1) 2 D(1,2,3) C(SELECT 1) 2 D(1,2,3) C(SELECT 1) Z(I)")
	// In a transaction the client hears it, as on a direct connection; the next use works.
	setup(t, c, "ALTER TABLE stale ADD COLUMN l int DEFAULT 4")
	begin(r)
	use("E(0A000) Z(E)")
	r.Query("ROLLBACK")
	use("2 T D(1,2,3,4) C(SELECT 1) Z(I)")
	// Behind the proxy's back.
	r.Query("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")
	use("2 T D(1,2,3,4) C(SELECT 1) Z(I)")
	// Behind a write in the same batch: it is not known to have done nothing.
	setup(t, c, "ALTER TABLE stale ADD COLUMN m int DEFAULT 5")
	r.Send(pgtest.Parse("", "INSERT INTO stale (i) VALUES (9)"), pgtest.Bind("", ""), pgtest.Execute("", 0), one, pgtest.Sync())
	r.Expect("1 2 C(INSERT 0 1) E(0A000) Z(I)")
	use("2 T D(1,2,3,4,5) C(SELECT 1) Z(I)")
	if rows, err := c.Query(t.Context(), "SELECT count(*) FROM stale"); err != nil || rows[0][0] != "1" {
		t.Errorf("rows %v, %v", rows, err)
	}
	// Pipelined, each with its own Sync: what stands behind may have written, so the
	// client hears it; the next use works.
	setup(t, c, "ALTER TABLE stale DROP COLUMN m")
	r.Send(one, pgtest.Sync(), one, pgtest.Sync(), pgtest.Query("SELECT 'last'"))
	r.Expect("E(0A000) Z(I) E(0A000) Z(I) T D(last) C(SELECT 1) Z(I)")
	use("2 T D(1,2,3,4) C(SELECT 1) Z(I)")
}

// TestDeadReplica: a read whose standby dies before its first row is answered by
// another server.
func TestDeadReplica(t *testing.T) {
	c := pgtest.Start(t, pgtest.Options{Replicas: 1})
	if err := c.CreateRole(t.Context(), testUser, testPassword, "SUPERUSER"); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitCaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, harnessOptions{
		Servers: addrs(c)[:2], Proxy: trust + "default_pool_size = 4", Untidy: "a server dies",
		Database: "consistency = \"eventual\"",
	})
	replica := c.Nodes()[1]
	running := func(sql string) bool {
		v, err := replica.Value(t.Context(), "postgres", "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '"+sql+"%'")
		return err == nil && v != "0"
	}
	// A recovery conflict, or whatever else ends one backend politely.
	r := h.Client(t)
	r.Send(pgtest.Query("SELECT 'first', pg_sleep(2)"))
	eventually(t, 10*time.Second, "the read runs", func() bool { return running("SELECT ''first''") })
	if err := replica.Exec(t.Context(), "postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT ''first''%'"); err != nil {
		t.Fatal(err)
	}
	r.Expect("T D(first,) C(SELECT 1) Z(I)")
	// Not one that has begun to answer.
	r.Send(pgtest.Query("SELECT repeat('x', 10000), CASE i WHEN 5 THEN pg_sleep(60) END FROM generate_series(1, 6) i"))
	if m := r.ReadUntil('D'); len(m) == 0 {
		t.Fatal("no row")
	}
	if err := replica.Exec(t.Context(), "postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT repeat%'"); err != nil {
		t.Fatal(err)
	}
	if got := pgtest.Trace(r.ExpectEOF()); !strings.HasSuffix(got, "E(57P01)") || strings.Contains(got, "Z") {
		t.Errorf("got %s", got)
	}
	// The whole server.
	r = h.Client(t)
	r.Send(pgtest.Parse("s", "SELECT 'second', pg_sleep(2)"), pgtest.Sync())
	r.Expect("1 Z(I)")
	r.Send(pgtest.Bind("", "s"), pgtest.Execute("", 0), pgtest.Sync())
	eventually(t, 10*time.Second, "the read runs", func() bool { return running("SELECT ''second''") })
	if err := replica.Kill(); err != nil {
		t.Fatal(err)
	}
	r.Expect("2 D(second,) C(SELECT 1) Z(I)")
	if st := h.Server.Stats(); st.Rerun.Died != 2 {
		t.Errorf("stats %+v", st)
	}
}

// TestDeadSession: a read whose connection ends, and with it what the client has left
// in its session, is not run again: the client hears the end, as on a direct connection.
func TestDeadSession(t *testing.T) {
	c := realCluster(t)
	for _, v := range []struct{ name, mode, leaves string }{
		{"advisory lock", "transaction", "SELECT pg_advisory_lock(83)"},
		{"temporary table", "transaction", "CREATE TEMP TABLE carried (i int)"},
		{"session", "session", "SELECT 1"},
	} {
		t.Run(v.name, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust + "pool_mode = \"" + v.mode + "\""})
			cl := h.Client(t)
			cl.Query(v.leaves)
			cl.Send(pgtest.Query("SELECT 'carries', pg_sleep(60)"))
			const running = "FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT ''carries''%'"
			ended := func() bool {
				for _, n := range c.Nodes() {
					if got, err := n.Value(t.Context(), "postgres", "SELECT count(pg_terminate_backend(pid)) "+running); err == nil && got != "0" {
						return true
					}
				}
				return false
			}
			eventually(t, 10*time.Second, "the end of the backend", ended)
			if got := pgtest.Trace(cl.ExpectEOF()); got != "T E(57P01)" {
				t.Errorf("got %s", got)
			}
		})
	}
}

// TestStaleDescription: a client that has been told what rows a statement gives gets
// such rows, or the error that it would get directly; one that describes it now is
// told what it gives now.
func TestStaleDescription(t *testing.T) {
	c := realCluster(t)
	setup(t, c, `DROP TABLE IF EXISTS told; CREATE TABLE told (i int); INSERT INTO told VALUES (1); GRANT ALL ON told TO public`)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	old, blind, late := h.Client(t), h.Client(t), h.Client(t)
	const sql = "SELECT * FROM told"
	columns := func(r *pgtest.RawClient) (n int) {
		t.Helper()
		for _, m := range r.ReadUntilReady() {
			switch m.Type {
			case 'T':
				n = int(m.Body[1])
			case 'E':
				t.Fatal(m)
			}
		}
		return n
	}
	use := pgtest.Join(pgtest.Bind("", "s"), pgtest.Execute("", 0), pgtest.Sync())
	old.Send(pgtest.Parse("s", sql), pgtest.Describe('S', "s"), pgtest.Sync())
	if n := columns(old); n != 1 {
		t.Fatalf("%d columns", n)
	}
	blind.Send(pgtest.Parse("s", sql), pgtest.Sync())
	blind.ReadUntilReady()
	setup(t, c, "ALTER TABLE told ADD COLUMN j int DEFAULT 2")

	// The server connection has the statement as it was.
	late.Send(pgtest.Parse("s", sql), pgtest.Describe('S', "s"), pgtest.Sync())
	if n := columns(late); n != 2 {
		t.Errorf("described with %d columns, want 2", n)
	}
	late.Send(use)
	late.Expect("2 D(1,2) C(SELECT 1) Z(I)")
	setup(t, c, "ALTER TABLE told ALTER COLUMN j TYPE text")
	old.Send(use)
	old.Expect("E(0A000) Z(I)")
	old.Send(use) // the server connection has the new form now, but the client still does not know
	old.Expect("E(0A000) Z(I)")
	old.Send(pgtest.Bind("", "s"), pgtest.Execute("", 0), pgtest.Bind("", "s"), pgtest.Execute("", 0), pgtest.Sync())
	old.Expect("E(0A000) Z(I)")
	setup(t, c, "ALTER TABLE told ALTER COLUMN j TYPE int USING j::int")
	blind.Send(use)
	blind.Expect("2 D(1,2) C(SELECT 1) Z(I)")
	late.Send(use)
	late.Expect("2 D(1,2) C(SELECT 1) Z(I)") // as it was told
	old.Send(pgtest.Bind("", "s"), pgtest.Describe('P', ""), pgtest.Execute("", 0), pgtest.Sync())
	if n := columns(old); n != 2 {
		t.Errorf("described with %d columns, want 2", n)
	}
	old.Send(pgtest.Close('S', "s"), pgtest.Parse("s", sql), pgtest.Describe('S', "s"), pgtest.Sync())
	if n := columns(old); n != 2 {
		t.Errorf("described with %d columns, want 2", n)
	}
	old.Send(use)
	old.Expect("2 D(1,2) C(SELECT 1) Z(I)")
}
