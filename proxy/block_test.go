package proxy_test

import (
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/router"
)

const untilWrite = "transaction_reads = \"until_write\"\n"

// isReplica tells where the client's connection is, by the server's own word.
const isReplica = "SELECT pg_is_in_recovery()"

// steps runs statements and checks, after each, the answer and where it ran.
func steps(t *testing.T, c *pgtest.RawClient, list []stage) {
	t.Helper()
	for how, do := range both {
		for i, v := range list {
			got := do(c, v.sql)
			if !strings.HasSuffix(got, v.want) || v.at != "" && !strings.HasSuffix(got, "Z(E)") && !strings.HasPrefix(route(c), v.at) {
				t.Errorf("%s, step %d, %s: %s at %s; want %s at %s", how, i, v.sql, got, route(c), v.want, v.at)
			}
		}
	}
}

type stage struct{ sql, want, at string }

// TestUntilWrite: a block begins on a replica and goes on at the primary from its
// first statement on that is no read.
func TestUntilWrite(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust, Database: untilWrite})
	a := h.Client(t)
	a.Query("DROP TABLE IF EXISTS roams; CREATE TABLE roams (i int)")
	for name, list := range map[string][]stage{
		"reads only": {
			{"BEGIN", "C(BEGIN) Z(T)", "replica"}, {"SELECT 7", "D(7) C(SELECT 1) Z(T)", "replica"}, {"COMMIT", "C(COMMIT) Z(I)", ""},
		},
		"read, write, read": {
			{"BEGIN ISOLATION LEVEL READ COMMITTED", "C(BEGIN) Z(T)", "replica"},
			{"SELECT 7", "D(7) C(SELECT 1) Z(T)", "replica"},
			{"INSERT INTO roams VALUES (1)", "C(INSERT 0 1) Z(T)", "primary"},
			{"SELECT count(*) FROM roams", "D(1) C(SELECT 1) Z(T)", "primary"},
			{"SELECT 8", "D(8) C(SELECT 1) Z(T)", "primary"},
			{"ROLLBACK", "C(ROLLBACK) Z(I)", ""},
		},
		"write first": {
			{"START TRANSACTION", "C(START TRANSACTION) Z(T)", "replica"},
			{"INSERT INTO roams VALUES (1)", "C(INSERT 0 1) Z(T)", "primary"},
			{"ROLLBACK", "C(ROLLBACK) Z(I)", ""},
		},
		"a setting of the block": {
			{"BEGIN", "C(BEGIN) Z(T)", "replica"},
			{"SELECT 7", "D(7) C(SELECT 1) Z(T)", "replica"},
			{"SET LOCAL work_mem = '9MB'", "C(SET) Z(T)", "primary"},
			{"SHOW work_mem", "D(9MB) C(SHOW) Z(T)", "primary"},
			{"COMMIT", "C(COMMIT) Z(I)", ""},
		},
		"a savepoint": {
			{"BEGIN", "C(BEGIN) Z(T)", "replica"},
			{"SELECT 7", "D(7) C(SELECT 1) Z(T)", "replica"},
			{"SAVEPOINT s", "C(SAVEPOINT) Z(T)", "primary"},
			{"ROLLBACK TO s", "C(ROLLBACK) Z(T)", "primary"},
			{"COMMIT", "C(COMMIT) Z(I)", ""},
		},
		"a cursor": {
			{"BEGIN", "C(BEGIN) Z(T)", "replica"},
			{"DECLARE k CURSOR FOR SELECT 7", "C(DECLARE CURSOR) Z(T)", "primary"},
			{"FETCH k", "D(7) C(FETCH 1) Z(T)", "primary"},
			{"COMMIT", "C(COMMIT) Z(I)", ""},
		},
		"a lock": {
			{"BEGIN", "C(BEGIN) Z(T)", "replica"}, {"SELECT i FROM roams FOR UPDATE", "C(SELECT 0) Z(T)", "primary"}, {"COMMIT", "C(COMMIT) Z(I)", ""},
		},
		"what tells the time": {
			{"BEGIN", "C(BEGIN) Z(T)", "replica"}, {"SELECT now() IS NULL", "D(f) C(SELECT 1) Z(T)", "primary"}, {"COMMIT", "C(COMMIT) Z(I)", ""},
		},
		"the number of the transaction": {
			{"BEGIN", "C(BEGIN) Z(T)", "replica"}, {"SELECT pg_current_xact_id() IS NULL", "D(f) C(SELECT 1) Z(T)", "primary"}, {"COMMIT", "C(COMMIT) Z(I)", ""},
		},
		"a read that fails": {
			{"BEGIN", "C(BEGIN) Z(T)", "replica"},
			{"SELECT 1/0", "E(22012) Z(E)", "replica"},
			{"INSERT INTO roams VALUES (1)", "E(25P02) Z(E)", ""},
			{"COMMIT", "C(ROLLBACK) Z(I)", ""},
		},
		"another snapshot": {
			{"BEGIN ISOLATION LEVEL REPEATABLE READ", "C(BEGIN) Z(T)", "primary"}, {"ROLLBACK", "C(ROLLBACK) Z(I)", ""},
		},
		"nothing": {{"BEGIN", "C(BEGIN) Z(T)", "replica"}, {"COMMIT", "C(COMMIT) Z(I)", ""}},
		"a chain": {
			{"BEGIN", "C(BEGIN) Z(T)", "replica"},
			{"SELECT 7", "D(7) C(SELECT 1) Z(T)", "replica"},
			{"COMMIT AND CHAIN", "C(COMMIT) Z(T)", ""},
			{"INSERT INTO roams VALUES (1)", "C(INSERT 0 1) Z(T)", "primary"},
			{"ROLLBACK", "C(ROLLBACK) Z(I)", ""},
		},
		"a level that the block is given later": {
			{"BEGIN", "C(BEGIN) Z(T)", "replica"},
			{"SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "C(SET) Z(T)", "primary"},
			{"SHOW transaction_isolation", "D(serializable) C(SHOW) Z(T)", "primary"},
			{"COMMIT", "C(COMMIT) Z(I)", ""},
		},
		"a hint": {
			{"BEGIN", "C(BEGIN) Z(T)", "replica"}, {"/* pgproxy: target=primary */ SELECT 7", "D(7) C(SELECT 1) Z(T)", "primary"}, {"COMMIT", "C(COMMIT) Z(I)", ""},
		},
	} {
		t.Run(name, func(t *testing.T) { steps(t, a, list) })
	}
	if got := value(a, "SELECT count(*) FROM roams"); got != "0" {
		t.Errorf("%s rows are left", got)
	}

	// All at once.
	a.Send(pgtest.Query("BEGIN"), pgtest.Query("SELECT 7"), pgtest.Extended("INSERT INTO roams VALUES (1)"), pgtest.Query("SELECT count(*) FROM roams"), pgtest.Query("COMMIT"))
	for _, want := range []string{"C(BEGIN) Z(T)", "T D(7) C(SELECT 1) Z(T)", "1 2 n C(INSERT 0 1) Z(T)", "T D(1) C(SELECT 1) Z(T)", "C(COMMIT) Z(I)"} {
		a.Expect(want)
	}
	// A batch that begins a block and writes in it is whole.
	a.Send(pgtest.Parse("", "BEGIN"), pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.Parse("", "INSERT INTO roams VALUES (1)"), pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.Sync())
	a.Expect("1 2 C(BEGIN) 1 2 C(INSERT 0 1) Z(T)")
	same(t, a, "ROLLBACK", "C(ROLLBACK) Z(I)")
	// A portal that would be left behind.
	same(t, a, "BEGIN", "C(BEGIN) Z(T)")
	a.Send(pgtest.Parse("", "SELECT * FROM generate_series(1, 3)"), pgtest.Bind("p", ""), pgtest.Execute("p", 1), pgtest.Sync())
	a.Expect("1 2 D(1) s Z(T)")
	if got := route(a); !strings.HasPrefix(got, "primary") {
		t.Errorf("a portal was opened at %s", got)
	}
	same(t, a, "INSERT INTO roams VALUES (1)", "C(INSERT 0 1) Z(T)")
	a.Send(pgtest.Execute("p", 0), pgtest.Sync())
	a.Expect("D(2) D(3) C(SELECT 2) Z(T)")
	same(t, a, "ROLLBACK", "C(ROLLBACK) Z(I)")
	// Prepared statements go along.
	a.Send(pgtest.Parse("r", "SELECT 7"), pgtest.Parse("w", "INSERT INTO roams VALUES (1)"), pgtest.Sync())
	a.Expect("1 1 Z(I)")
	same(t, a, "BEGIN", "C(BEGIN) Z(T)")
	for _, v := range []stage{{"r", "2 D(7) C(SELECT 1) Z(T)", "replica"}, {"w", "2 C(INSERT 0 1) Z(T)", "primary"}, {"r", "2 D(7) C(SELECT 1) Z(T)", "primary"}} {
		if got := run(a, v.sql); got != v.want || !strings.HasPrefix(route(a), v.at) {
			t.Errorf("%s: %s at %s", v.sql, got, route(a))
		}
	}
	same(t, a, "ROLLBACK", "C(ROLLBACK) Z(I)")
	// Settings go along.
	a.Query("SET work_mem = '7MB'")
	same(t, a, "BEGIN", "C(BEGIN) Z(T)")
	same(t, a, "SELECT 7", "T D(7) C(SELECT 1) Z(T)")
	same(t, a, "SHOW work_mem", "T D(7MB) C(SHOW) Z(T)")
	same(t, a, "COMMIT", "C(COMMIT) Z(I)")
	a.Terminate()
	h.idle(t)
}

// idle waits until no server connection is lent any more.
func (h *harness) idle(t testing.TB) {
	t.Helper()
	h.Topo.mu.Lock()
	loads := h.Topo.loads
	h.Topo.mu.Unlock()
	eventually(t, 10*time.Second, "the end of all leases", func() bool {
		for _, n := range loads {
			if n.Load() != 0 {
				return false
			}
		}
		return true
	})
}

// TestUntilWriteKnowsTheLevel: a block whose level is not read committed, though
// nobody has said so, runs on the primary as a whole.
func TestUntilWriteKnowsTheLevel(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{
		Servers: addrs(c), Proxy: trust, Database: untilWrite + "connect_query = \"SET default_transaction_isolation = 'repeatable read'\"\n",
	})
	a := h.Client(t)
	for range 2 {
		steps(t, a, []stage{
			{"BEGIN", "C(BEGIN) Z(T)", ""},
			{"SELECT 7", "D(7) C(SELECT 1) Z(T)", "primary"},
			{"SHOW transaction_isolation", "D(repeatable read) C(SHOW) Z(T)", "primary"},
			{"COMMIT", "C(COMMIT) Z(I)", ""},
		})
	}
	// Without the key nothing leaves the primary.
	b := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust}).Client(t)
	steps(t, b, []stage{{"BEGIN", "C(BEGIN) Z(T)", "primary"}, {"SELECT 7", "D(7) C(SELECT 1) Z(T)", "primary"}, {"COMMIT", "C(COMMIT) Z(I)", ""}})
}

// TestReadOnlyByDefault: default_transaction_read_only makes a BEGIN one of READ
// ONLY, which is on one replica as a whole.
func TestReadOnlyByDefault(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust})
	a := h.Client(t)
	a.Query("CREATE TABLE IF NOT EXISTS roams (i int)")
	a.Query("SET default_transaction_read_only = on")
	b := h.Client(t, "options", "-c default_transaction_read_only=yes")
	for _, client := range []*pgtest.RawClient{a, b} {
		steps(t, client, []stage{
			{"BEGIN", "C(BEGIN) Z(T)", "replica"},
			{"SELECT 7", "D(7) C(SELECT 1) Z(T)", "replica"},
			{"SELECT now() IS NULL", "D(f) C(SELECT 1) Z(T)", "replica"},
			{"SAVEPOINT s", "C(SAVEPOINT) Z(T)", "replica"},
			{"INSERT INTO roams VALUES (1)", "E(25006) Z(E)", "replica"},
			{"ROLLBACK", "C(ROLLBACK) Z(I)", ""},
			{"BEGIN READ WRITE", "C(BEGIN) Z(T)", "primary"},
			{"INSERT INTO roams VALUES (1)", "C(INSERT 0 1) Z(T)", "primary"},
			{"ROLLBACK", "C(ROLLBACK) Z(I)", ""},
			{"BEGIN", "C(BEGIN) Z(T)", "replica"},
			{"SET TRANSACTION READ WRITE", "C(SET) Z(T)", "primary"},
			{"INSERT INTO roams VALUES (1)", "C(INSERT 0 1) Z(T)", "primary"},
			{"ROLLBACK", "C(ROLLBACK) Z(I)", ""},
			{"BEGIN READ ONLY", "C(BEGIN) Z(T)", "replica"},
			{"SET TRANSACTION READ WRITE", "C(SET) Z(T)", "primary"},
			{"ROLLBACK", "C(ROLLBACK) Z(I)", ""},
			{"INSERT INTO roams VALUES (1)", "E(25006) Z(I)", "primary"},
		})
	}
}

// TestSetLocalTargetMoves: the first thing in a block, SET LOCAL decides where it
// runs.
func TestSetLocalTargetMoves(t *testing.T) {
	h := grouped(t, "")
	a := h.Client(t)
	slow := h.Topo.Topology("app").Servers[2].Addr
	same(t, a, "BEGIN", "C(BEGIN) Z(T)")
	same(t, a, "SET LOCAL pgproxy.target = 'slow'", "C(SET) Z(T)")
	same(t, a, isReplica, "T D(t) C(SELECT 1) Z(T)")
	if got := where(a); got != slow {
		t.Errorf("the block is at %s", route(a))
	}
	same(t, a, "SET LOCAL pgproxy.target = 'primary'", "E(22023) Z(E)")
	same(t, a, "ROLLBACK", "C(ROLLBACK) Z(I)")
	same(t, a, "BEGIN READ ONLY", "C(BEGIN) Z(T)")
	same(t, a, "SET LOCAL pgproxy.target = 'primary'", "C(SET) Z(T)")
	same(t, a, isReplica, "T D(f) C(SELECT 1) Z(T)")
	same(t, a, "SHOW transaction_read_only", "T D(on) C(SHOW) Z(T)")
	same(t, a, "COMMIT", "C(COMMIT) Z(I)")
	same(t, a, "BEGIN", "C(BEGIN) Z(T)")
	same(t, a, isReplica, "T D(f) C(SELECT 1) Z(T)")
	same(t, a, "COMMIT", "C(COMMIT) Z(I)")
}

// TestMoveWithoutAPrimary: a block that cannot go on ends its session, with a clear
// error.
func TestMoveWithoutAPrimary(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust, Database: untilWrite + "failover_timeout = \"0s\"\n"})
	a := h.Client(t)
	same(t, a, "BEGIN", "C(BEGIN) Z(T)")
	same(t, a, "SELECT 7", "T D(7) C(SELECT 1) Z(T)")
	h.Topo.Change(func(servers []router.Server) { servers[0].Up = false })
	a.Send(pgtest.Query("INSERT INTO roams VALUES (1)"))
	if e := refusal(t, a); code(e) != "08006" || !e.Fatal() {
		t.Errorf("got %v", e)
	}
}
