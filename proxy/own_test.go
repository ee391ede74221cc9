package proxy_test

import (
	"strings"
	"testing"

	"pgproxy/pgtest"
	"pgproxy/router"
)

// grouped starts a proxy whose second replica is in the group slow.
func grouped(t *testing.T, lines string) *harness {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust, Database: lines, Groups: map[int]string{2: "slow"}})
	return h
}

// route is what SHOW pgproxy.route says.
func route(c *pgtest.RawClient) string {
	c.Send(pgtest.Query("SHOW pgproxy.route"))
	for _, m := range c.ReadUntilReady() {
		if m.Type == 'D' {
			return string(m.Body[6:])
		}
	}
	return ""
}

// both runs a statement by the simple and by the extended protocol, named and not.
var both = map[string]func(c *pgtest.RawClient, sql string) string{
	"simple": func(c *pgtest.RawClient, sql string) string { return c.Query(sql) },
	"extended": func(c *pgtest.RawClient, sql string) string {
		c.Send(pgtest.Extended(sql))
		return pgtest.Trace(c.ReadUntilReady())
	},
	"named": func(c *pgtest.RawClient, sql string) string {
		c.Send(pgtest.Parse("named", sql), pgtest.Sync())
		if got := pgtest.Trace(c.ReadUntilReady()); strings.Contains(got, "E(") {
			return got
		}
		got := run(c, "named")
		c.Send(pgtest.Close('S', "named"), pgtest.Sync())
		c.ReadUntilReady()
		return got
	},
}

// TestOwnParameters: SET, RESET and SHOW of pgproxy.* by both protocols, and their
// errors.
func TestOwnParameters(t *testing.T) {
	for how, do := range both {
		t.Run(how, func(t *testing.T) {
			h := grouped(t, "")
			a := h.Client(t)
			for _, v := range []struct{ sql, want string }{
				{"SHOW pgproxy.target", "D()"},
				{"SET pgproxy.target = 'primary'", "C(SET)"},
				{"SHOW pgproxy.target", "D(primary)"},
				{"SET pgproxy.target TO Replica", "C(SET)"},
				{"SHOW pgproxy.target", "D(replica)"},
				{"SET pgproxy.target = slow", "C(SET)"},
				{"SET pgproxy.target = 'fast'", "E(22023)"},
				{"SHOW pgproxy.target", "D(slow)"},
				{"RESET pgproxy.target", "C(RESET)"},
				{"SHOW pgproxy.target", "D()"},
				{"SET pgproxy.target = 'it''s'", "E(22023)"},
				{"SHOW pgproxy.consistency", "D(session)"},
				{"SET pgproxy.consistency = global", "C(SET)"},
				{"SHOW pgproxy.consistency", "D(global)"},
				{"SET pgproxy.consistency = DEFAULT", "C(SET)"},
				{"SHOW pgproxy.consistency", "D(session)"},
				{"SET pgproxy.consistency = 'strong'", "E(22023)"},
				{"SET pgproxy.consistency = ''", "E(22023)"},
				{"SET pgproxy.trace = 'of'", "C(SET)"},
				{"SET pgproxy.trace = o", "E(22023)"},
				{"SHOW pgproxy.trace", "D(off)"},
				{"SET pgproxy.route = 'x'", "E(55P02)"},
				{"SET pgproxy.lsn = 'x'", "E(22023)"},
				{"SET pgproxy.lsn = '1/2'", "E(22023)"},
				{"SET pgproxy.nothing = 1", "E(42704)"},
				{"SHOW pgproxy.nothing", "E(42704)"},
				{"RESET pgproxy.nothing", "E(42704)"},
				{"SET pgproxy.stands_in = 1", "E(42704)"},
				{"SET LOCAL pgproxy.consistency = 'global'", "E(22023)"},
				{"SELECT 1", "D(1) C(SELECT 1)"},
			} {
				if got := do(a, v.sql); !strings.Contains(got, v.want+" Z(I)") && !strings.Contains(got, v.want+" C(SHOW) Z(I)") && !strings.Contains(got, v.want+" C(SELECT 1) Z(I)") {
					t.Errorf("%s: %s, want %s", v.sql, got, v.want)
				}
			}
			// In a transaction an error is an error of the transaction.
			begin(a)
			if got := do(a, "SHOW pgproxy.target"); !strings.Contains(got, "Z(T)") {
				t.Errorf("in a transaction: %s", got)
			}
			if got := do(a, "SET pgproxy.target = 'fast'"); !strings.HasSuffix(got, "E(22023) Z(E)") {
				t.Errorf("in a transaction: %s", got)
			}
			if got := do(a, "SET pgproxy.target = 'primary'"); !strings.HasSuffix(got, "E(25P02) Z(E)") {
				t.Errorf("in a failed transaction: %s", got)
			}
			same(t, a, "ROLLBACK", "C(ROLLBACK) Z(I)")
			same(t, a, "SHOW pgproxy.target", "T D() C(SHOW) Z(I)")
			// What is set is gone with DISCARD ALL and RESET ALL.
			for _, reset := range []string{"DISCARD ALL", "RESET ALL"} {
				do(a, "SET pgproxy.target = 'primary'")
				do(a, reset)
				same(t, a, "SHOW pgproxy.target", "T D() C(SHOW) Z(I)")
			}
		})
	}
}

// TestOwnParametersAmongOthers: what cannot be obeyed exactly is refused.
func TestOwnParametersAmongOthers(t *testing.T) {
	h := grouped(t, "")
	a := h.Client(t)
	same(t, a, "SELECT 1; SET pgproxy.target = 'primary'", "E(22023) Z(I)")
	same(t, a, "BEGIN; SHOW pgproxy.route; COMMIT", "E(22023) Z(I)")
	for how, do := range both {
		if got := do(a, "SELECT set_config('pgproxy.target', 'primary', false)"); !strings.HasSuffix(got, "E(22023) Z(I)") {
			t.Errorf("set_config, %s: %s", how, got)
		}
	}
	a.Send(pgtest.Parse("", "SET pgproxy.target = 'primary'"), pgtest.Bind("", ""), pgtest.Execute("", 0),
		pgtest.Parse("", "SELECT 1"), pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.Sync())
	if got := pgtest.Trace(a.ReadUntilReady()); got != "1 E(22023) Z(I)" {
		t.Errorf("in a pipeline: %s", got)
	}
	same(t, a, "SHOW pgproxy.target", "T D() C(SHOW) Z(I)")
	a.Send(pgtest.Parse("", "SELECT 1"), pgtest.Query("SET pgproxy.target = 'primary'"), pgtest.Sync())
	if got := pgtest.Trace(a.ReadUntilReady()) + " " + pgtest.Trace(a.ReadUntilReady()); got != "1 E(22023) Z(I) Z(I)" {
		t.Errorf("a simple query within a batch: %s", got)
	}
	// Nothing of it is left on a server.
	for range 3 {
		same(t, a, "SELECT current_setting('pgproxy.target', true) IS NULL", "T D(t) C(SELECT 1) Z(I)")
	}
}

// TestTargets: the strongest of several wishes is obeyed.
func TestTargets(t *testing.T) {
	c := realCluster(t)
	h := grouped(t, "")
	slow := addrs(c)[2]
	a := h.Client(t, "options", "-c pgproxy.target=slow")
	same(t, a, "SHOW pgproxy.target", "T D(slow) C(SHOW) Z(I)")
	for _, v := range []struct{ set, sql, want, reason string }{
		{"", "SELECT 7", slow, "group: startup option pgproxy.target"},
		{"", "/* pgproxy: target=primary */ SELECT 7", "primary", "primary: hint"},
		{"SET pgproxy.target = 'primary'", "SELECT 7", "primary", "primary: SET pgproxy.target"},
		{"", "/* pgproxy: target=slow */ SELECT 7", slow, "group: hint"},
		{"SET pgproxy.target = ''", "/* pgproxy: target=primary */ SELECT 7", "primary", "primary: hint"},
		{"RESET pgproxy.target", "SELECT 7", slow, "group: startup option pgproxy.target"},
		{"SET pgproxy.target = 'replica'", "INSERT INTO nowhere VALUES (1)", "primary", "primary: not proved a read"},
	} {
		if v.set != "" {
			a.Query(v.set)
		}
		for _, send := range [][]byte{pgtest.Query(v.sql), pgtest.Extended(v.sql)} {
			a.Send(send)
			a.ReadUntilReady()
			if got := route(a); where(a) != v.want || !strings.Contains(got, ": "+v.reason+" (") {
				t.Errorf("%s: %s went to %s", v.set, v.sql, got)
			}
		}
	}
	// A batch with a write in it stays whole.
	same(t, a, "CREATE TABLE IF NOT EXISTS targets (i int)", "C(CREATE TABLE) Z(I)")
	a.Send(pgtest.Parse("", "SELECT pg_catalog.lo_get(0) IS NULL WHERE false"), pgtest.Bind("", ""), pgtest.Execute("", 0),
		pgtest.Parse("", "INSERT INTO targets VALUES (1)"), pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.Sync())
	if got := pgtest.Trace(a.ReadUntilReady()); !strings.HasSuffix(got, "C(INSERT 0 1) Z(I)") {
		t.Errorf("a read that is asked away from the primary, and a write: %s", got)
	}
}

// TestBadHints: a hint that is not understood is an error, wherever it stands.
func TestBadHints(t *testing.T) {
	h := grouped(t, "")
	a := h.Client(t)
	for _, sql := range []string{"/* pgproxy: target=fast */ SELECT 1", "/* pgproxy: taget=primary */ SELECT 1", "/* pgproxy: */ SELECT 1"} {
		for how, do := range both {
			if got := do(a, sql); !strings.HasSuffix(got, "E(22023) Z(I)") {
				t.Errorf("%s, %s: %s", sql, how, got)
			}
		}
	}
	begin(a)
	if got := a.Query("/* pgproxy: taget=primary */ SELECT 1"); got != "E(22023) Z(E)" {
		t.Errorf("in a transaction: %s", got)
	}
	a.Query("ROLLBACK")
	for option, want := range map[string]string{"pgproxy.target=fast": "22023", "pgproxy.nothing=1": "42704", "pgproxy.trace=perhaps": "22023"} {
		b := pgtest.DialRaw(t, h.Addr)
		if e := b.TryLogin(testUser, testPassword, "database", "app", "options", "-c "+option); e == nil || e.Code != want || !e.Fatal() {
			t.Errorf("login with %s: %v", option, e)
		}
	}
}

// TestSetLocalTarget: SET LOCAL is for a transaction, and an error where that is
// elsewhere already.
func TestSetLocalTarget(t *testing.T) {
	h := grouped(t, "")
	a := h.Client(t)
	same(t, a, "SET LOCAL pgproxy.target = 'primary'", "N(25P01) C(SET) Z(I)")
	same(t, a, "SHOW pgproxy.target", "T D() C(SHOW) Z(I)")
	begin(a)
	same(t, a, "SET LOCAL pgproxy.target = 'primary'", "C(SET) Z(T)")
	same(t, a, "SET LOCAL pgproxy.target = 'fast'", "E(22023) Z(E)")
	a.Query("ROLLBACK")
	a.Query("BEGIN READ ONLY")
	a.Query("SELECT 1")
	same(t, a, "SET LOCAL pgproxy.target = 'replica'", "C(SET) Z(T)")
	same(t, a, "SET LOCAL pgproxy.target = 'primary'", "E(22023) Z(E)")
	a.Query("ROLLBACK")
}

// TestExplain: a notice in front of the answer says where the statement goes.
func TestExplain(t *testing.T) {
	h := grouped(t, "")
	a := h.Client(t)
	notice := func(send ...[]byte) string {
		a.Send(send...)
		text := ""
		for _, m := range a.ReadUntilReady() {
			if m.Type == 'N' {
				text += string(m.Body)
			}
		}
		return text
	}
	const sql = "/* pgproxy: explain */ SELECT 7"
	a.Send(pgtest.Query(sql))
	a.Expect("N(00000) T D(7) C(SELECT 1) Z(I)")
	a.Send(pgtest.Extended(sql))
	a.Expect("N(00000) 1 2 T D(7) C(SELECT 1) Z(I)")
	if got := notice(pgtest.Query(sql)); !strings.Contains(got, "pgproxy: replica ") || !strings.Contains(got, "replica: read") {
		t.Errorf("the notice says %q", got)
	}
	a.Send(pgtest.Parse("n", sql), pgtest.Sync())
	a.Expect("1 Z(I)")
	if got := notice(pgtest.Bind("", "n"), pgtest.Execute("", 0), pgtest.Sync()); !strings.Contains(got, "pgproxy: replica ") {
		t.Errorf("the notice of a prepared statement says %q", got)
	}
	same(t, a, "SET pgproxy.trace = on", "C(SET) Z(I)")
	if got := notice(pgtest.Query("SELECT 7")); !strings.Contains(got, "pgproxy: replica ") {
		t.Errorf("the notice says %q", got)
	}
	// Several at once: each notice stands in front of its answer.
	a.Send(pgtest.Query("SELECT 1"), pgtest.Query("BEGIN"), pgtest.Query("SELECT 2"), pgtest.Extended("SELECT 3"), pgtest.Query("COMMIT"))
	for _, want := range []string{"N(00000) T D(1) C(SELECT 1) Z(I)", "N(00000) C(BEGIN) Z(T)", "N(00000) T D(2) C(SELECT 1) Z(T)", "N(00000) 1 2 T D(3) C(SELECT 1) Z(T)", "N(00000) C(COMMIT) Z(I)"} {
		a.Expect(want)
	}
	same(t, a, "RESET pgproxy.trace", "C(RESET) Z(I)")
	same(t, a, "SELECT 7", "T D(7) C(SELECT 1) Z(I)")
}

// TestToken: a position carried to another session makes its reads show what this
// one has written.
func TestToken(t *testing.T) {
	h := grouped(t, "")
	a, b := h.Client(t), h.Client(t)
	same(t, a, "SHOW pgproxy.lsn", "T D() C(SHOW) Z(I)")
	a.Query("CREATE TABLE IF NOT EXISTS seen_by_all (i int)")
	// paint says what the monitor would: the primary's position, and what the
	// replicas have replayed.
	paint := func(timeline uint32, at, first, second uint64, covered int64) {
		h.Topo.Change(func(servers []router.Server) {
			for i, lsn := range []uint64{at, first, second} {
				servers[i].Timeline, servers[i].LSN, servers[i].Covered = timeline, lsn, covered
			}
			servers[0].Covered = router.Nanotime()
		})
	}
	a.Query("INSERT INTO seen_by_all VALUES (1)")
	paint(2, 0x1_0000_00F0, 0x1_0000_00E0, 0x1_0000_00E0, 1)
	token := value(a, "SHOW pgproxy.lsn")
	if cut, _, _ := strings.Cut(token, ") C("); cut != "2/1/F0" {
		t.Fatalf("the token is %q", token)
	}
	const set = "SET pgproxy.lsn = '2/1/F0'"
	if got := reads(t, b); got == "primary" {
		t.Error("without the token it read from the primary")
	}
	b.Terminate()
	for how, do := range both {
		t.Run(how, func(t *testing.T) {
			paint(2, 0x1_0000_00F0, 0x1_0000_00E0, 0x1_0000_00E0, 1)
			b := h.Client(t)
			if got := do(b, set); !strings.Contains(got, "C(SET)") {
				t.Fatal(got)
			}
			if got := b.Query("SHOW pgproxy.lsn"); !strings.Contains(got, "D(2/1/F0)") {
				t.Errorf("shown again: %s", got)
			}
			if got := reads(t, b); got != "primary" {
				t.Errorf("before a replica had it, it read from %s", got)
			}
			c := h.Client(t)
			do(c, set)
			paint(2, 0x1_0000_0100, 0x1_0000_00E0, 0x1_0000_00F0, 1)
			if got := reads(t, c); got != h.Topo.Topology("app").Servers[2].Addr {
				t.Errorf("it read from %s", got)
			}
			// After a failover the position says nothing by itself.
			d := h.Client(t)
			do(d, set)
			paint(3, 0x2_0000_0000, 0x2_0000_0000, 0x2_0000_0000, 1)
			if got := reads(t, d); got != "primary" {
				t.Errorf("on a new timeline it read from %s", got)
			}
			e := h.Client(t)
			do(e, set)
			now := router.Nanotime()
			paint(3, 0x2_0000_0000, 0x2_0000_0000, 0x2_0000_0000, now)
			if got := reads(t, e); got == "primary" {
				t.Error("covered on the new timeline, it read from the primary")
			}
			f := h.Client(t)
			do(f, set)
			do(f, "RESET pgproxy.lsn")
			paint(3, 1, 1, 1, 1)
			if got := reads(t, f); got == "primary" {
				t.Error("without the token it read from the primary")
			}
			// A timeline that is not known yet is waited for.
			g := h.Client(t)
			g.Send(pgtest.Query("SET pgproxy.lsn = '4/0/1'"))
			h.waitState(t, g, "waiting")
			paint(4, 1, 1, 1, 1)
			g.Expect("C(SET) Z(I)")
		})
	}
}
