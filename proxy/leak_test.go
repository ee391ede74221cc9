package proxy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/router"
	"pgproxy/wire"
)

// What one client leaves on a server connection must not be found by the next:
// each case made a proxy of this kind leak once.

// execute is a statement of the extended protocol without its Sync.
func execute(sql string) []byte {
	return pgtest.Join(pgtest.Parse("", sql), pgtest.Bind("", ""), pgtest.Execute("", 0))
}

// answer reads up to ReadyForQuery, or to the end of the connection.
func answer(c *pgtest.RawClient) string {
	var msgs []pgtest.Msg
	for {
		m, err := c.TryRead()
		if err != nil {
			return pgtest.Trace(msgs) + " EOF"
		}
		msgs = append(msgs, m)
		if m.Type == wire.ReadyForQuery {
			return pgtest.Trace(msgs)
		}
	}
}

func TestNothingIsLeft(t *testing.T) {
	c := realCluster(t)
	if err := c.Exec(t.Context(), "CREATE ROLE boss; GRANT boss TO alice"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		first  []byte // what the first client sends
		then   []byte // and after the answer to that, if anything
		ask    []byte // what the next client asks
		secret string // what it must not hear
	}{
		{
			"unnamed statement behind a simple query",
			pgtest.Join(pgtest.Query("SELECT 1"), pgtest.Parse("", "SELECT 'secret'"), pgtest.Sync()), nil,
			pgtest.Join(pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.Sync()), "secret",
		},
		{
			"role after RESET ALL",
			pgtest.Join(pgtest.Query("SET ROLE boss"), pgtest.Query("RESET ALL")), nil,
			pgtest.Query("SELECT current_user"), "boss",
		},
		{
			"DO block that changes a setting",
			pgtest.Query("DO $$ BEGIN PERFORM set_config('search_path', 'evil', false); END $$"), nil,
			pgtest.Query("SHOW search_path"), "evil",
		},
		{
			"DO block that takes a lock",
			pgtest.Query("DO $$ BEGIN PERFORM pg_advisory_lock(4712); END $$"), nil,
			pgtest.Query("SELECT 'lock held' FROM pg_locks WHERE locktype = 'advisory' AND objid = 4712"), "lock held",
		},
		{
			"text that is not UTF-8",
			pgtest.Join(pgtest.Query("SET client_encoding = LATIN1"), pgtest.Query("SET search_path = 'evil', 'caf\xe9'")), nil,
			pgtest.Query("SHOW search_path"), "evil",
		},
		{
			"fast path call of set_config",
			pgtest.FunctionCall(2078, "search_path", "evil", "f"), nil,
			pgtest.Query("SHOW search_path"), "evil",
		},
		{
			"temporary table behind a SET without Sync",
			pgtest.Join(execute("SET work_mem = '9MB'"), pgtest.Flush()),
			pgtest.Join(execute("CREATE TEMP TABLE mine AS SELECT 'secret'::text AS x"), pgtest.Sync()),
			pgtest.Query("SELECT * FROM mine"), "secret",
		},
		{
			"SET behind BEGIN in one batch",
			pgtest.Join(execute("BEGIN"), execute("SET work_mem = '9MB'"), pgtest.Sync()),
			pgtest.Join(pgtest.Query("COMMIT"), pgtest.Query("SET enable_seqscan = off")),
			pgtest.Query("SHOW work_mem"), "9MB",
		},
		{
			"temporary table and lock behind DISCARD ALL in one batch",
			pgtest.Join(execute("DISCARD ALL"), execute("CREATE TEMP TABLE mine AS SELECT 'secret'::text AS x"), execute("SELECT pg_advisory_lock(4711)"), pgtest.Sync()), nil,
			pgtest.Query("SELECT * FROM mine"), "secret",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1\nquery_wait_timeout = 1"})
			a, b := h.Client(t), h.Client(t)
			a.Send(pgtest.Join(tt.first, pgtest.Query("SELECT 'mark'")))
			if tt.then == nil || !strings.Contains(tt.name, "without Sync") {
				for !strings.Contains(answer(a), "mark") {
				}
			}
			if tt.then != nil {
				a.Send(pgtest.Join(tt.then, pgtest.Query("SELECT 'second mark'")))
				for !strings.Contains(answer(a), "second mark") {
				}
			}
			b.Send(tt.ask)
			// A client whose connection is pinned keeps the next one waiting.
			if got := answer(b); strings.Contains(got, tt.secret) {
				t.Errorf("the next client got %s", got)
			}
		})
	}
}

// TestDateStyle: a setting is what the server has made of it, not what the text
// says.
func TestDateStyle(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1"})
	a, b := h.Client(t), h.Client(t, "datestyle", "dmy")
	for _, sql := range []string{"SET datestyle = 'sql'", "SET datestyle = 'dmy'"} {
		a.Query(sql)
	}
	const ask = "SELECT date '2024-12-31'"
	for range 2 {
		if got := b.Query(ask); !strings.Contains(got, "D(2024-12-31)") {
			t.Errorf("with datestyle=dmy at login: %s", got)
		}
		if got := a.Query(ask); !strings.Contains(got, "D(31/12/2024)") {
			t.Errorf("after SET sql and SET dmy: %s", got)
		}
	}
}

// TestRefusedSetting: a statement does not run where its session's settings could
// not be taken over.
func TestRefusedSetting(t *testing.T) {
	c := realCluster(t)
	if err := c.Exec(t.Context(), "CREATE ROLE low; GRANT low TO alice"); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1"})
	a, b := h.Client(t), h.Client(t)
	a.Query("SET ROLE low")
	if got := b.Query("SELECT current_user"); !strings.Contains(got, "D(alice)") {
		t.Fatal(got)
	}
	if err := c.Exec(t.Context(), "REVOKE low FROM alice"); err != nil {
		t.Fatal(err)
	}
	if got := a.Query("SELECT current_user"); got != "E(42501) Z(I)" {
		t.Errorf("after REVOKE a session with SET ROLE got %s", got)
	}
	if got := b.Query("SELECT current_user"); !strings.Contains(got, "D(alice)") {
		t.Errorf("another client got %s", got)
	}
	a.Query("RESET ROLE")
	if got := a.Query("SELECT current_user"); !strings.Contains(got, "D(alice)") {
		t.Errorf("after RESET ROLE: %s", got)
	}
}

// TestDeallocateAllInBatch: what is prepared behind it in the same batch is there.
func TestDeallocateAllInBatch(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1"})
	a, b := h.Client(t), h.Client(t)
	a.Send(execute("DEALLOCATE ALL"), pgtest.Parse("s1", "SELECT 'x' AS kept"), pgtest.Sync())
	a.ReadUntilReady()
	use := func(name string) []byte {
		return pgtest.Join(pgtest.Bind("", name), pgtest.Execute("", 0), pgtest.Sync())
	}
	a.Send(use("s1"))
	if got := answer(a); got != "2 D(x) C(SELECT 1) Z(I)" {
		t.Errorf("its own use: %s\n%s", got, h.Log.Text())
	}
	b.Send(pgtest.Parse("mine", "SELECT 'x' AS kept"), use("mine"))
	if got := answer(b); got != "1 2 D(x) C(SELECT 1) Z(I)" {
		t.Errorf("another client: %s", got)
	}
}

// TestDeallocateOther: nobody can take or replace what another client has
// prepared.
func TestDeallocateOther(t *testing.T) {
	c := realCluster(t)
	for name, sql := range map[string]string{
		"DEALLOCATE": "DEALLOCATE pgproxy_1",
		"DO":         "DO $$ BEGIN EXECUTE 'DEALLOCATE pgproxy_1'; EXECUTE 'PREPARE pgproxy_1 AS SELECT ''evil'''; END $$",
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1"})
			a, b := h.Client(t), h.Client(t)
			use := pgtest.Join(pgtest.Bind("", "mine"), pgtest.Execute("", 0), pgtest.Sync())
			b.Send(pgtest.Parse("mine", "SELECT 'text of b'"), use)
			answer(b)
			a.Query(sql)
			a.Terminate() // it has kept the connection for what it has prepared
			b.Send(use)
			if got := answer(b); got != "2 D(text of b) C(SELECT 1) Z(I)" {
				t.Errorf("the owner got %s", got)
			}
		})
	}
}

// TestNamesOfOneLease: in a lease that lasts, names that are closed are forgotten.
func TestNamesOfOneLease(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1\npool_mode = \"session\""})
	a := h.Client(t)
	const batches = 6000
	for n := range batches {
		s := fmt.Sprintf("s%d", n)
		a.Send(pgtest.Parse(s, fmt.Sprintf("SELECT %d", n)), pgtest.Close('S', s), pgtest.Sync())
		a.ReadUntilReady()
	}
	if n := h.Server.Stats().Statements; n > batches-1000 {
		t.Errorf("%d statements are remembered, the client has none", n)
	}
}

// TestWriteBehindReadOnlyBatch: a batch goes to a replica only as a whole.
func TestWriteBehindReadOnlyBatch(t *testing.T) {
	c := oracleSetup(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)})
	a := h.Client(t)
	a.Send(execute("BEGIN READ ONLY"), execute("COMMIT"), execute("INSERT INTO sink SELECT 1 WHERE false"), pgtest.Sync())
	if got := answer(a); strings.Contains(got, "E(") {
		t.Errorf("a write behind a read-only transaction: %s", got)
	}
	a.Send(execute("BEGIN READ ONLY"), execute("SELECT pg_is_in_recovery()::text"), execute("COMMIT"), pgtest.Sync())
	answer(a)
	a.Send(pgtest.Query("SHOW pgproxy.route"))
	if got := answer(a); !strings.Contains(got, "replica") && !strings.Contains(got, "primary") {
		t.Errorf("route: %s", got)
	}
}

// TestPreparedWriteIsAWrite: a write by a statement of SQL's PREPARE counts for
// the reads that follow.
func TestPreparedWriteIsAWrite(t *testing.T) {
	c := oracleSetup(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)})
	a := h.Client(t)
	a.Query("PREPARE ins AS INSERT INTO sink SELECT 1 WHERE false")
	h.Topo.Change(func(servers []router.Server) {
		for i := range servers[1:] {
			servers[1+i].Covered = 1 // nothing that is written from here on
		}
	})
	a.Send(pgtest.Bind("", "ins"), pgtest.Execute("", 0), pgtest.Sync())
	answer(a)
	a.Query("DISCARD ALL")
	a.Query("SELECT 1")
	if got := a.Query("SHOW pgproxy.route"); !strings.Contains(got, "D(primary ") {
		t.Errorf("the read behind it: %s", got)
	}
}

// TestCloseAlwaysEnds: whatever a client does, it cannot hold up the end of the
// proxy.
func TestCloseAlwaysEnds(t *testing.T) {
	c := oracleSetup(t)
	flood := func(a *pgtest.RawClient, p []byte) {
		for {
			_ = a.Conn().SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
			if _, err := a.Conn().Write(p); err != nil {
				return
			}
		}
	}
	for name, do := range map[string]func(a *pgtest.RawClient){
		"SET behind a slow query": func(a *pgtest.RawClient) {
			a.Send(pgtest.Query("SELECT pg_sleep(60)"), pgtest.Query("SET work_mem = '1MB'"))
		},
		"SET in COPY": func(a *pgtest.RawClient) {
			a.Send(pgtest.Query("COPY sink FROM STDIN"))
			a.Expect("G")
			a.Send(pgtest.Query("SET work_mem = '1MB'"))
		},
		"SHOW pgproxy.route in COPY": func(a *pgtest.RawClient) {
			a.Send(pgtest.Query("COPY sink FROM STDIN"))
			a.Expect("G")
			a.Send(pgtest.Query("SHOW pgproxy.route"))
		},
		"answers that nobody reads, of the proxy": func(a *pgtest.RawClient) {
			flood(a, []byte(strings.Repeat("S\x00\x00\x00\x04", 1<<18)))
		},
		"answers that nobody reads, of the server": func(a *pgtest.RawClient) {
			flood(a, []byte(strings.Repeat(string(pgtest.Query("SELECT repeat('x', 100000)")), 2000)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1"})
			do(h.Client(t))
			within(t, 15*time.Second, "Server.Close", func() { _ = h.Server.Close() })
		})
	}
}

// TestUnnamedBehindUnnamed: what an unnamed statement is does not count for the
// next one.
func TestUnnamedBehindUnnamed(t *testing.T) {
	c := oracleSetup(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)})
	a := h.Client(t)
	a.Send(pgtest.Extended("SET search_path = pg_catalog"))
	answer(a)
	for range 2 {
		a.Send(pgtest.Extended("SELECT current_schema()"))
		if got := answer(a); got != "1 2 T D(pg_catalog) C(SELECT 1) Z(I)" {
			t.Errorf("behind SET search_path: %s", got)
		}
	}
	a.Send(pgtest.Extended("SHOW work_mem"))
	answer(a)
	a.Send(pgtest.Extended("SELECT 1"))
	answer(a)
	if got := a.Query("SHOW pgproxy.route"); !strings.Contains(got, "D(replica ") {
		t.Errorf("a read behind a statement for the primary: %s", got)
	}
}
