package proxy_test

import (
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/router"
)

// where tells on which server the last statement of a client ran: its role, and
// the address of a replica.
func where(c *pgtest.RawClient) string {
	role, rest, _ := strings.Cut(value(c, "SHOW pgproxy.route"), " ")
	if role == "replica" {
		addr, _, _ := strings.Cut(rest, ": ")
		return addr
	}
	return role
}

// cover sets up to which moment each replica shows what the primary did.
func (h *harness) cover(stamps ...int64) {
	h.Topo.Change(func(servers []router.Server) {
		for i, at := range stamps {
			servers[i+1].Covered = at
		}
	})
}

// reads runs a read and tells where.
func reads(t testing.TB, c *pgtest.RawClient) string {
	t.Helper()
	same(t, c, "SELECT 7", "T D(7) C(SELECT 1) Z(I)")
	return where(c)
}

func (h *harness) wanted() int64 {
	h.Topo.mu.Lock()
	defer h.Topo.mu.Unlock()
	return h.Topo.wanted
}

// TestReadsAreMonotonic: a session goes from one server to another only where it
// sees at least as much.
func TestReadsAreMonotonic(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust})
	a := h.Client(t)
	h.cover(1, 1)
	first := reads(t, a)
	for range 20 {
		if got := reads(t, a); got != first {
			t.Fatalf("went from %s to %s, which is not known to show as much", first, got)
		}
	}
	// Its replica is gone, and the other one does not show what it has seen.
	down := func(addr string, down bool) {
		h.Topo.Change(func(servers []router.Server) {
			for i := range servers {
				if servers[i].Addr == addr {
					servers[i].Up = !down
				}
			}
		})
	}
	before := router.Nanotime()
	down(first, true)
	if got := reads(t, a); got != "primary" {
		t.Errorf("without its replica it read from %s", got)
	}
	if h.wanted() == 0 {
		t.Error("nobody was told that a read waits")
	}
	h.cover(before, before) // more than its replica had shown, but it has read from the primary since
	if got := reads(t, a); got != "primary" {
		t.Errorf("after a read from the primary it read from %s", got)
	}
	now := router.Nanotime()
	h.cover(now, now)
	if got := reads(t, a); got == "primary" || got == first {
		t.Errorf("with the other one caught up it read from %s", got)
	}
	// A replica that has restarted may show less than it did.
	second := where(a)
	down(first, false)
	h.Topo.Change(func(servers []router.Server) {
		for i := range servers {
			servers[i].Covered = 1
			if servers[i].Addr == second {
				servers[i].Steady = router.Nanotime()
			}
		}
	})
	if got := reads(t, a); got != "primary" {
		t.Errorf("after a restart of its replica it read from %s", got)
	}
	// A session that has only begun has seen nothing, nor does SET show anything.
	b := h.Client(t)
	b.Query("SET work_mem = '8MB'")
	if got := reads(t, b); got == "primary" {
		t.Error("a new session read from the primary")
	}
}

// TestGlobalSeesOtherEntries: entries of the configuration for the same database
// see each other's writes, whatever they are called.
func TestGlobalSeesOtherEntries(t *testing.T) {
	c := realCluster(t)
	more := `
[databases.again]
dbname = "postgres"
servers = [{ host = "` + c.Primary.Host + `", port = ` + port(c.Primary) + `, role = "primary" }]

[databases.elsewhere]
dbname = "template1"
servers = [{ host = "` + c.Primary.Host + `", port = ` + port(c.Primary) + `, role = "primary" }]
`
	h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust, Database: "consistency = \"global\"", More: more})
	h.client(t, "app").Query("CREATE TABLE IF NOT EXISTS seen_by_all (i int)")
	settle := func() { now := router.Nanotime(); h.cover(now, now) }
	for _, v := range []struct {
		database, sql string
		want          string
	}{
		{"app", "INSERT INTO seen_by_all VALUES (1)", "primary"},
		{"again", "INSERT INTO seen_by_all VALUES (1)", "primary"},
		{"again", "SELECT 1", ""},
		{"elsewhere", "CREATE TEMP TABLE x (i int)", ""},
	} {
		writer, reader := h.client(t, v.database), h.client(t, "app")
		settle()
		if got := reads(t, reader); got == "primary" {
			t.Error("before the write it read from the primary")
		}
		writer.Query(v.sql)
		if got := reads(t, reader); v.want == "primary" && got != "primary" || v.want == "" && got == "primary" {
			t.Errorf("after %s in %s it read from %s", v.sql, v.database, got)
		}
		settle()
		if got := reads(t, reader); got == "primary" {
			t.Errorf("covered, it read from %s", got)
		}
	}
}

// TestGlobalByCluster: two names of one server are one cluster.
func TestGlobalByCluster(t *testing.T) {
	c := realCluster(t)
	more := `
[databases.again]
dbname = "postgres"
servers = [{ host = "localhost", port = ` + port(c.Primary) + `, role = "primary" }]
`
	h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust, Database: "consistency = \"global\"", More: more})
	h.Topo.setSystem("one")
	writer, reader := h.client(t, "again"), h.client(t, "app")
	now := router.Nanotime()
	h.cover(now, now)
	if got := reads(t, reader); got == "primary" {
		t.Error("before the write it read from the primary")
	}
	writer.Query("CREATE TABLE IF NOT EXISTS seen_by_all (i int)")
	if got := reads(t, reader); got != "primary" {
		t.Errorf("after the write it read from %s", got)
	}
}

// TestConsistencyScopeUser: a user's new session sees what an earlier one wrote.
func TestConsistencyScopeUser(t *testing.T) {
	c := realCluster(t)
	for _, scope := range []string{"session", "user"} {
		t.Run(scope, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust, Database: "consistency_scope = \"" + scope + "\""})
			a := h.Client(t)
			a.Query("CREATE TABLE IF NOT EXISTS seen_by_all (i int)")
			h.cover(1, 1)
			a.Query("INSERT INTO seen_by_all VALUES (1)")
			a.Terminate()
			b := h.Client(t)
			if got := reads(t, b); (got == "primary") != (scope == "user") {
				t.Errorf("the next session of the user read from %s", got)
			}
			other := pgtest.DialRaw(t, h.Addr)
			other.Login(otherUser, otherSecret, "database", "app")
			now := router.Nanotime()
			h.cover(now, now)
			b.Query("INSERT INTO seen_by_all VALUES (1)")
			if got := reads(t, other); got == "primary" {
				t.Error("another user read from the primary")
			}
			if got := reads(t, h.Client(t)); (got == "primary") != (scope == "user") {
				t.Errorf("another session of the user read from %s", got)
			}
		})
	}
}

// TestConsistencyOfUser: [users.NAME] has the last word of the file.
func TestConsistencyOfUser(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{
		Servers: addrs(c), Proxy: trust, Database: "consistency = \"session\"", More: "[users.alice]\nconsistency = \"eventual\"\n",
	})
	a := h.Client(t)
	other := pgtest.DialRaw(t, h.Addr)
	other.Login(otherUser, otherSecret, "database", "app")
	h.cover(1, 1)
	for client, want := range map[*pgtest.RawClient]bool{a: true, other: false} {
		client.Query("CREATE TABLE IF NOT EXISTS seen_by_all (i int)")
		if got := reads(t, client); (got != "primary") != want {
			t.Errorf("after its write it read from %s", got)
		}
	}
}

// TestCausalWait: a read waits for a replica for so long, and no longer.
func TestCausalWait(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust, Database: "causal_wait = \"1h\""})
	a := h.Client(t)
	a.Query("CREATE TABLE IF NOT EXISTS seen_by_all (i int)")
	h.cover(1, 1)
	a.Query("INSERT INTO seen_by_all VALUES (1)")
	a.Send(pgtest.Query("SELECT 7"))
	h.waitState(t, a, "waiting")
	now := router.Nanotime()
	if got := h.wanted(); got == 0 || got > now {
		t.Errorf("wanted was %d, now is %d", got, now)
	}
	h.cover(1, now)
	a.Expect("T D(7) C(SELECT 1) Z(I)")
	if got := where(a); got != addrs(c)[2] {
		t.Errorf("it read from %s", got)
	}
	// A cancel request ends the wait.
	a.Query("INSERT INTO seen_by_all VALUES (1)")
	a.Send(pgtest.Query("SELECT 7"))
	h.waitState(t, a, "waiting")
	a.Cancel(h.Addr)
	a.Expect("E(57014) Z(I)")

	short := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust, Database: "causal_wait = \"20ms\""})
	b := short.Client(t)
	short.cover(1, 1)
	b.Query("INSERT INTO seen_by_all VALUES (1)")
	began := time.Now()
	if got := reads(t, b); got != "primary" || time.Since(began) < 20*time.Millisecond {
		t.Errorf("after %v it read from %s", time.Since(began), got)
	}
}

// TestPipelineKeepsItsReplica: what a client sends at once goes to one server, by
// either protocol, however servers are chosen.
func TestPipelineKeepsItsReplica(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust, Database: "consistency = \"eventual\"\nload_balance = \"round_robin\"\n"})
	a := h.Client(t)
	leases := func() (n uint64) {
		for _, r := range h.Server.Routes() {
			if r.Role == router.RoleReplica {
				n += r.Count
			}
		}
		return n
	}
	for _, send := range [][]byte{pgtest.Query("SELECT 7"), pgtest.Extended("SELECT 7")} {
		for range 5 {
			before := leases()
			var all []byte
			for range 8 {
				all = append(all, send...)
			}
			a.Send(all)
			for range 8 {
				if got := pgtest.Trace(a.ReadUntilReady()); !strings.HasSuffix(got, "T D(7) C(SELECT 1) Z(I)") {
					t.Fatal(got)
				}
			}
			if n := leases() - before; n != 1 {
				t.Errorf("%d leases for one pipeline", n)
			}
		}
	}
}

// shared are the settings under which a read must show what other sessions write.
var shared = map[string]string{"global": "consistency = \"global\"\n", "user": "consistency_scope = \"user\"\n"}

// paused makes the one replica one that shows everything until now and nothing of
// what comes.
func (h *harness) paused(c *pgtest.Cluster) {
	h.t.Helper()
	if err := c.WaitCaughtUp(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	if err := c.Replicas[0].PauseReplay(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	h.cover(router.Nanotime())
}

func resume(t *testing.T, c *pgtest.Cluster) {
	t.Helper()
	if err := c.Replicas[0].ResumeReplay(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestPipelineSeesOthersWrites: a read that is sent while an earlier one still runs
// on a replica shows what others have written meanwhile.
func TestPipelineSeesOthersWrites(t *testing.T) {
	c := realCluster(t)
	setup(t, c, "CREATE TABLE IF NOT EXISTS seen_meanwhile (i int); GRANT ALL ON seen_meanwhile TO public")
	for name, setting := range shared {
		h := newHarness(t, harnessOptions{Servers: addrs(c)[:2], Proxy: trust, Database: setting})
		w, r := h.Client(t), h.Client(t)
		for how, send := range map[string]func(string) []byte{
			"simple": pgtest.Query, "extended": func(sql string) []byte { return pgtest.Extended(sql) },
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				same(t, w, "TRUNCATE seen_meanwhile", "C(TRUNCATE TABLE) Z(I)")
				h.paused(c)
				defer resume(t, c)
				if got := reads(t, r); got == "primary" {
					t.Fatal("it does not read from the replica")
				}
				r.Send(send("SELECT repeat('x', 1000) FROM generate_series(1, 50000)")) // more than fits on the way
				r.ReadUntil('T')
				same(t, w, "INSERT INTO seen_meanwhile VALUES (1)", "C(INSERT 0 1) Z(I)")
				r.Send(send("SELECT count(*) FROM seen_meanwhile"))
				r.ReadUntilReady()
				if got := pgtest.Trace(r.ReadUntilReady()); !strings.HasSuffix(got, "T D(1) C(SELECT 1) Z(I)") {
					t.Errorf("got %s at %s", got, route(r))
				}
			})
		}
	}
}

// TestUntilWriteSeesOthersWrites: a block moves to the primary if others have written
// what its replica does not show. One that is READ ONLY stays.
func TestUntilWriteSeesOthersWrites(t *testing.T) {
	c := realCluster(t)
	setup(t, c, "CREATE TABLE IF NOT EXISTS seen_meanwhile (i int); GRANT ALL ON seen_meanwhile TO public")
	const count = "SELECT count(*) FROM seen_meanwhile"
	for name, setting := range map[string]string{"global": shared["global"], "user": shared["user"], "SET": ""} {
		h := newHarness(t, harnessOptions{Servers: addrs(c)[:2], Proxy: trust, Database: untilWrite + setting})
		w, r := h.Client(t), h.Client(t)
		for how, do := range both {
			t.Run(name+" "+how, func(t *testing.T) {
				for begin, want := range map[string]string{"BEGIN": "1", "BEGIN READ ONLY": "0"} {
					same(t, w, "TRUNCATE seen_meanwhile", "C(TRUNCATE TABLE) Z(I)")
					h.paused(c)
					defer resume(t, c)
					same(t, r, begin, "C(BEGIN) Z(T)")
					if got := do(r, count); !strings.HasSuffix(got, "D(0) C(SELECT 1) Z(T)") || where(r) == "primary" {
						t.Errorf("%s: %s at %s", begin, got, route(r))
					}
					if setting == "" {
						same(t, r, "SET pgproxy.consistency = 'global'", "C(SET) Z(T)")
					}
					same(t, w, "INSERT INTO seen_meanwhile VALUES (1)", "C(INSERT 0 1) Z(I)")
					for range 2 {
						if got := do(r, count); !strings.HasSuffix(got, "D("+want+") C(SELECT 1) Z(T)") || (where(r) == "primary") != (want == "1") {
							t.Errorf("%s: %s at %s", begin, got, route(r))
						}
					}
					same(t, r, "COMMIT", "C(COMMIT) Z(I)")
					r.Query("RESET pgproxy.consistency")
					resume(t, c)
				}
			})
		}
	}
}
