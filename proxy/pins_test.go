package proxy_test

import (
	"strings"
	"testing"
	"time"

	"pgproxy/backend"
	"pgproxy/pgtest"
)

// TestPinsEnd: when the server says that the reason is gone, so is the pin.
func TestPinsEnd(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	a, b := h.Client(t), h.Client(t)
	a.Skip = "N"
	for _, v := range []struct {
		why  backend.Pin
		pins []string
		ends []string
	}{
		{backend.PinLock, []string{"SELECT pg_advisory_lock(81)"}, []string{"SELECT pg_advisory_unlock(81)"}},
		{backend.PinLock, []string{"SELECT pg_advisory_lock(81), pg_advisory_lock(82)"}, []string{"SELECT pg_advisory_unlock_all()"}},
		{backend.PinTemp, []string{"CREATE TEMP TABLE ends (i int)"}, []string{"DROP TABLE ends"}},
		{backend.PinTemp, []string{"CREATE TEMP TABLE ends (i int)"}, []string{"BEGIN", "DISCARD TEMP", "COMMIT"}},
		{backend.PinCursor, []string{"BEGIN", "DECLARE ends CURSOR WITH HOLD FOR SELECT 1", "COMMIT"}, []string{"CLOSE ends"}},
		{backend.PinLock | backend.PinTemp, []string{"SELECT pg_advisory_lock(81)", "CREATE TEMP TABLE ends (i int)"}, []string{"DROP TABLE ends", "SELECT pg_advisory_unlock(81)"}},
		{backend.PinLock, []string{"DO $$ BEGIN PERFORM pg_advisory_lock(81); END $$"}, []string{"SELECT pg_advisory_unlock(81)"}},
		// What has given it back is not known here: it is asked for now and then.
		{backend.PinTemp, []string{"CREATE TEMP TABLE ends (i int)"}, []string{"SELECT pg_sleep(1.1)", "DO $$ BEGIN DROP TABLE ends; END $$", "SELECT 1"}},
	} {
		for _, sql := range v.pins {
			if got := a.Query(sql); strings.Contains(got, "E(") {
				t.Fatalf("%s: %s", sql, got)
			}
		}
		eventually(t, 10*time.Second, "the pin of "+v.pins[0], func() bool { return h.server(t).Pinned == v.why })
		if s := h.server(t); s.PinnedSince.IsZero() || s.PinnedBy == "" || strings.Contains(s.PinnedBy, "81") {
			t.Errorf("%s: since %v by %q", v.pins[0], s.PinnedSince, s.PinnedBy)
		}
		pid := value(a, "SELECT pg_backend_pid()")
		b.Send(pgtest.Query("SELECT pg_backend_pid()"))
		h.waitState(t, b, "waiting")
		for _, sql := range v.ends {
			if got := a.Query(sql); strings.Contains(got, "E(") {
				t.Fatalf("%s: %s", sql, got)
			}
		}
		if got := pgtest.Trace(b.ReadUntilReady()); !strings.Contains(got, "D("+pid+")") {
			t.Errorf("%s: the next client got %s, want %s", v.ends, got, pid)
		}
	}
}

// TestNoPinRemains: what a transaction has undone by itself pins nothing.
func TestNoPinRemains(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1\nquery_wait_timeout = 5"})
	a, b := h.Client(t), h.Client(t)
	a.Skip = "N"
	for _, v := range [][]string{
		{"BEGIN", "CREATE TEMP TABLE gone (i int)", "ROLLBACK"},
		{"BEGIN", "CREATE TEMP TABLE gone (i int) ON COMMIT DROP", "COMMIT"},
		{"BEGIN", "DECLARE gone CURSOR WITH HOLD FOR SELECT 1", "ROLLBACK"},
		{"CREATE TEMP TABLE gone (i no_such_type)"},
		{"SELECT pg_try_advisory_lock(83) WHERE false"},
		{"BEGIN", "SAVEPOINT s", "CREATE TEMP TABLE gone (i int)", "ROLLBACK TO s", "COMMIT"},
	} {
		for _, sql := range v {
			a.Query(sql)
		}
		same(t, b, "SELECT 'free'", "T D(free) C(SELECT 1) Z(I)")
	}
	if n := h.Pools.Stats()[0].Pinned; n != 0 {
		t.Errorf("%d pinned", n)
	}
}

// TestMaxPinned: past the limit a statement fails as it does on a server, and all
// others go on.
func TestMaxPinned(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 3", Database: "max_pinned = 1"})
	a, b := h.Client(t), h.Client(t)
	same(t, a, "SELECT 'lock' FROM pg_advisory_lock(84)", "T D(lock) C(SELECT 1) Z(I)")
	same(t, b, "SELECT 'lock' FROM pg_advisory_lock(85)", "E(53300) Z(I)")
	same(t, b, "BEGIN", "C(BEGIN) Z(T)")
	same(t, b, "SELECT 1", "T D(1) C(SELECT 1) Z(T)")
	same(t, b, "CREATE TEMP TABLE too_many (i int)", "E(53300) Z(E)")
	same(t, b, "SELECT 1", "E(25P02) Z(E)")
	same(t, b, "COMMIT", "C(ROLLBACK) Z(I)")
	b.Send(pgtest.Extended("CREATE TEMP TABLE too_many (i int)"))
	if got := pgtest.Trace(b.ReadUntilReady()); got != "1 E(53300) Z(I)" {
		t.Errorf("extended: %s", got)
	}
	same(t, a, "CREATE TEMP TABLE another (i int)", "C(CREATE TABLE) Z(I)") // it has its place
	same(t, a, "DISCARD ALL", "C(DISCARD ALL) Z(I)")
	eventually(t, 10*time.Second, "the end of the pin", func() bool { return h.Pools.Stats()[0].Pinned == 0 })
	same(t, b, "SELECT 'lock' FROM pg_advisory_lock(85)", "T D(lock) C(SELECT 1) Z(I)")
	// What nobody has announced cannot be refused: it costs the client its session.
	a.Send(pgtest.Query("DO $$ BEGIN PERFORM pg_advisory_lock(86); END $$"))
	a.Expect("C(DO) Z(I)")
	if msgs := a.ExpectEOF(); len(msgs) == 0 || code(msgs[len(msgs)-1].Err()) != "53300" {
		t.Errorf("one too many: %s", pgtest.Trace(msgs))
	}
	b.Terminate()
	eventually(t, 10*time.Second, "the end of all pins", func() bool { return h.Pools.Stats()[0].Pinned == 0 })
	same(t, h.Client(t), "SELECT 'lock' FROM pg_advisory_lock(86)", "T D(lock) C(SELECT 1) Z(I)")
}

// TestOnSessionState: statements that leave state are refused, or what they leave
// is cleared away.
func TestOnSessionState(t *testing.T) {
	c := realCluster(t)
	for _, mode := range []string{"error", "ignore"} {
		t.Run(mode, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1", Database: "on_session_state = \"" + mode + "\""})
			a, b := h.Client(t), h.Client(t)
			ends := map[string]string{"error": "E(0A000) Z(I)", "ignore": "C(CREATE TABLE) Z(I)"}
			same(t, a, "CREATE TEMP TABLE nobodys (i int)", ends[mode])
			a.Query("DO $$ BEGIN PERFORM pg_advisory_lock(87); END $$")
			same(t, b, "SELECT to_regclass('nobodys') IS NULL, (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')", "T D(t,0) C(SELECT 1) Z(I)")
			same(t, a, "SELECT to_regclass('nobodys') IS NULL", "T D(t) C(SELECT 1) Z(I)")
			if n := h.Pools.Stats()[0].Pinned; n != 0 {
				t.Errorf("%d pinned", n)
			}
			// Settings are no such state.
			same(t, a, "SET work_mem = '5MB'", "C(SET) Z(I)")
			same(t, b, "SHOW work_mem", "T D(4MB) C(SHOW) Z(I)")
			same(t, a, "SHOW work_mem", "T D(5MB) C(SHOW) Z(I)")
		})
	}
}

// TestPinNotice: who asks for it hears when a connection is pinned, and why.
func TestPinNotice(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 2"})
	a := h.Client(t)
	same(t, a, "SET pgproxy.pin_notice = on", "C(SET) Z(I)")
	same(t, a, "SHOW pgproxy.pin_notice", "T D(on) C(SHOW) Z(I)")
	a.Send(pgtest.Query("CREATE TEMP TABLE noticed (i int)"))
	if n := a.Expect("N(00000) C(CREATE TABLE) Z(I)")[0].Err(); !strings.Contains(n.Message, "temporary object") {
		t.Errorf("notice: %v", n)
	}
	same(t, a, "SELECT 'lock' FROM pg_advisory_lock(88)", "T D(lock) C(SELECT 1) Z(I)") // it has been said
}

// TestAudit: a function that changes a setting unseen is found, cleared away, and
// named.
func TestAudit(t *testing.T) {
	l := newLab(t, "")
	before := l.h.Pools.Stats()[0].Counters
	a := l.h.Client(t, "application_name", "culprit")
	same(t, a, "SELECT hidden_setting() FROM pg_database WHERE datname = 'postgres'", "T D(done) C(SELECT 1) Z(I)")
	if bad := l.look(t); bad != "" {
		t.Error(bad)
	}
	f := l.h.Pools.Findings()
	if len(f) != 1 || len(f[0].What) != 1 || f[0].What[0] != "setting work_mem" || f[0].Application != "culprit" || f[0].User != testUser ||
		!strings.Contains(f[0].Statement, "hidden_setting") || strings.Contains(f[0].Statement, "'postgres'") {
		t.Errorf("found %+v", f)
	}
	after := l.h.Pools.Stats()[0].Counters
	if after.AuditFindings != before.AuditFindings+1 || after.Audits <= before.Audits {
		t.Errorf("%d audits and %d findings, before %d and %d", after.Audits, after.AuditFindings, before.Audits, before.AuditFindings)
	}
	if !strings.Contains(l.h.Log.Text(), "setting work_mem") {
		t.Error("the log does not say so")
	}
}

// TestConnectQuerySettings: what connect_query sets is there for every client,
// whatever the one before has done.
func TestConnectQuerySettings(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{
		Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1\nsession_audit_ratio = 1",
		Database: "connect_query = \"SET work_mem = '22MB'; SET my.home = 'here'\"",
	})
	a, b := h.Client(t), h.Client(t)
	for _, sql := range [][]string{
		{"SELECT 1"},
		{"SET work_mem = '5MB'"},
		{"RESET work_mem"},
		{"RESET ALL"},
		{"DISCARD ALL"},
		{"BEGIN", "SET work_mem = '6MB'", "COMMIT"},
		{"BEGIN", "RESET work_mem", "COMMIT"},
		{"DO $$ BEGIN SET work_mem = '7MB'; END $$"},
	} {
		for _, q := range sql {
			a.Query(q)
		}
		same(t, b, "SHOW work_mem", "T D(22MB) C(SHOW) Z(I)")
		a.Query("DISCARD ALL")
	}
	if f := h.Pools.Findings(); len(f) != 0 {
		t.Errorf("audits have found %+v", f)
	}
}

// TestEqualSettings: clients that want the same share connections with no statement
// of the proxy's, however each has come to it.
func TestEqualSettings(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	a, b, d := h.Client(t), h.Client(t), h.Client(t, "options", "-c work_mem=9216 -c my.own=x")
	a.Query("SET work_mem = '9MB'")
	a.Query("SET my.own = 'x'")
	for _, sql := range []string{"BEGIN", "SET work_mem = '9216kB'", "SELECT set_config('my.own', 'x', false)", "COMMIT"} {
		b.Query(sql)
	}
	before := h.Pools.Stats()[0].Counters.Adopted
	for range 2 {
		for _, x := range []*pgtest.RawClient{b, d, a} {
			same(t, x, "SELECT current_setting('work_mem') || current_setting('my.own')", "T D(9MBx) C(SELECT 1) Z(I)")
		}
	}
	if n := h.Pools.Stats()[0].Counters.Adopted; n != before {
		t.Errorf("%d settings were set", n-before)
	}
	same(t, h.Client(t), "SHOW work_mem", "T D(4MB) C(SHOW) Z(I)")
	if n := h.Pools.Stats()[0].Counters.Adopted; n == before {
		t.Error("the count of settings does not count")
	}
}
