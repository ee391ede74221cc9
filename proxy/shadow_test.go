package proxy_test

import (
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/proxy"
	"pgproxy/router"
)

// shadowOf returns the figures of the shape that begins so.
func (h *harness) shadowOf(shape string) proxy.ShadowStat {
	for _, st := range h.Server.Shadow() {
		if strings.HasPrefix(st.Shape, shape) {
			return st
		}
	}
	return proxy.ShadowStat{}
}

// TestShadow: the primary answers, and what a replica would have answered is
// compared with it.
func TestShadow(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{
		Servers: addrs(c)[:2], Proxy: trust + "default_pool_size = 1", Database: "read_write_split = \"shadow\"\nshadow_ratio = 1\n",
	})
	a := h.Client(t)
	for _, sql := range []string{
		"DROP TABLE IF EXISTS shadowed", "CREATE TABLE shadowed (i int, x text)",
		"INSERT INTO shadowed SELECT i, repeat('x', i) FROM generate_series(1, 3000) i", "SET timezone = 'Asia/Tokyo'",
	} {
		if got := a.Query(sql); strings.Contains(got, "E(") {
			t.Fatal(got)
		}
	}
	if err := c.WaitCaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	compared := func(shape string, runs uint64) proxy.ShadowStat {
		t.Helper()
		eventually(t, 10*time.Second, "a comparison of "+shape, func() bool { st := h.shadowOf(shape); return st.Runs+st.Skipped >= runs })
		st := h.shadowOf(shape)
		if st.Skipped > 0 {
			t.Fatalf("skipped: %+v", st)
		}
		return st
	}

	// The same rows, many and few, by both protocols, with parameters and results of
	// every form, and with the client's settings.
	for _, v := range []struct {
		shape string
		send  [][]byte
	}{
		{"select * from shadowed", [][]byte{pgtest.Query("SELECT * FROM shadowed")}},
		{"select i from shadowed where", [][]byte{pgtest.Query("SELECT i FROM shadowed WHERE i < 0")}},
		{"select count(*)", [][]byte{pgtest.Extended("SELECT count(*) FROM shadowed")}},
		{"select x from shadowed where i =", [][]byte{pgtest.Parse("", "SELECT x FROM shadowed WHERE i = $1"), pgtest.BindFormats("", "", []uint16{1}, [][]byte{{0, 0, 0, 7}}, []uint16{1}), pgtest.Execute("", 0), pgtest.Sync()}},
		{"select ?::timestamptz", [][]byte{pgtest.Query("SELECT '2026-01-02 03:04:05'::timestamptz")}},
		{"select null", [][]byte{pgtest.Query("SELECT null, i FROM shadowed LIMIT 3")}},
	} {
		a.Send(v.send...)
		a.ReadUntilReady()
		if got := where(a); got != "primary" {
			t.Errorf("%s was answered by %s", v.shape, route(a))
		}
		if st := compared(v.shape, 1); st.Same != 1 || st.Database != "app" {
			t.Errorf("%+v", st)
		}
	}
	// What answers otherwise each time cannot be told.
	a.Query("SELECT random()")
	if st := compared("select random()", 1); st.Changed != 1 {
		t.Errorf("%+v", st)
	}
	// What is no read, fails, or stands in a block is not compared.
	for _, sql := range []string{"INSERT INTO shadowed VALUES (0)", "SELECT 1/0", "BEGIN", "SELECT 'in a block'", "COMMIT"} {
		a.Query(sql)
	}
	for _, st := range h.Server.Shadow() {
		if strings.Contains(st.Shape, "insert") || strings.Contains(st.Shape, "1/0") {
			t.Errorf("compared: %+v", st)
		}
	}
	// A replica that answers otherwise: this one does not replay, and is said to.
	if err := c.Replicas[0].PauseReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
	resume := func() {
		if err := c.Replicas[0].ResumeReplay(t.Context()); err != nil {
			t.Error(err)
		}
	}
	a.Query("INSERT INTO shadowed VALUES (77777)")
	a.Query("SELECT i FROM shadowed WHERE i > 50000 ORDER BY i")
	st := compared("select i from shadowed where i > ?", 1)
	resume()
	if st.Differs != 1 || st.Last.IsZero() {
		t.Errorf("%+v", st)
	}
	// A replica that is behind is not asked.
	h.cover(1)
	a.Query("SELECT i + 5 FROM shadowed LIMIT 1")
	eventually(t, 10*time.Second, "that it is skipped", func() bool { return h.shadowOf("select i + ?").Skipped >= 1 })
	h.Topo.Change(func(servers []router.Server) { servers[1].Covered = 1 << 62 })
	_ = c.WaitCaughtUp(t.Context())
}

// TestShadowRunsNoWriteTwice: only what is proved to read is compared, and what
// writes all the same cannot do it there.
func TestShadowRunsNoWriteTwice(t *testing.T) {
	c := realCluster(t)
	setup(t, c, `CREATE TABLE IF NOT EXISTS shadow_log (i int);
		CREATE OR REPLACE FUNCTION shadow_write() RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO shadow_log VALUES (1); RETURN 7; END $$;
		CREATE OR REPLACE FUNCTION shadow_differs() RETURNS int LANGUAGE plpgsql AS
			$$ BEGIN IF NOT pg_is_in_recovery() THEN INSERT INTO shadow_log VALUES (1); END IF; RETURN pg_is_in_recovery()::int; END $$;
		CREATE OR REPLACE VIEW shadow_writes AS SELECT shadow_write() AS i;
		CREATE OR REPLACE VIEW shadow_other AS SELECT shadow_differs() AS i;
		TRUNCATE shadow_log;
		GRANT ALL ON ALL TABLES IN SCHEMA public TO public`)
	h := newHarness(t, harnessOptions{
		Servers: addrs(c)[:2], Proxy: trust, Database: "read_write_split = \"shadow\"\nshadow_ratio = 1\n",
	})
	a := h.Client(t)
	a.Query("SET default_transaction_read_only = off")
	h.Topo.Change(func(servers []router.Server) { servers[1].Covered = 1 << 62 })
	rows := func(want string) {
		t.Helper()
		if got, err := c.Primary.Value(t.Context(), "postgres", "SELECT count(*) FROM shadow_log"); err != nil || got != want {
			t.Errorf("%s rows (%v), want %s", got, err, want)
		}
	}
	// A hint proves nothing, whatever else is in the batch.
	const hinted = "/* pgproxy: target=replica */ SELECT shadow_write()"
	same(t, a, hinted, "T D(7) C(SELECT 1) Z(I)")
	a.Send(pgtest.Extended(hinted))
	a.Expect("1 2 T D(7) C(SELECT 1) Z(I)")
	a.Send(pgtest.Parse("w", hinted), pgtest.Sync())
	a.Expect("1 Z(I)")
	a.Send(pgtest.Parse("r", "SELECT 1"), pgtest.Bind("", "w"), pgtest.Execute("", 0), pgtest.Sync())
	a.Expect("1 2 D(7) C(SELECT 1) Z(I)")
	a.Query("SET pgproxy.target = 'replica'")
	same(t, a, "SELECT shadow_write()", "T D(7) C(SELECT 1) Z(I)")
	a.Query("RESET pgproxy.target")
	same(t, a, "SELECT 'the last one'", "T D(the last one) C(SELECT 1) Z(I)")
	eventually(t, 10*time.Second, "a comparison", func() bool { return h.shadowOf("select ?").Same == 1 })
	for _, st := range h.Server.Shadow() {
		if strings.Contains(st.Shape, "shadow_write") {
			t.Errorf("compared: %+v", st)
		}
	}
	rows("4")
	// What a standby refuses is not asked again; what it answers otherwise is, where
	// it cannot write.
	same(t, a, "SELECT i FROM shadow_writes", "T D(7) C(SELECT 1) Z(I)")
	eventually(t, 10*time.Second, "a refusal", func() bool { return h.shadowOf("select i from shadow_writes").Runs == 1 })
	if st := h.shadowOf("select i from shadow_writes"); st.Failed != 1 || !strings.Contains(st.Error, "25006") {
		t.Errorf("%+v", st)
	}
	rows("5")
	same(t, a, "SELECT i FROM shadow_other", "T D(0) C(SELECT 1) Z(I)")
	eventually(t, 10*time.Second, "a comparison", func() bool { return h.shadowOf("select i from shadow_other").Runs == 1 })
	if st := h.shadowOf("select i from shadow_other"); st.Changed != 1 {
		t.Errorf("%+v", st)
	}
	rows("6")
}
