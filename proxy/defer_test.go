package proxy_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"pgproxy/pgtest"
)

// TestDeferredBegin: BEGIN holds no server connection, and a transaction is one from
// its first statement on.
func TestDeferredBegin(t *testing.T) {
	c := realCluster(t)
	if err := c.Exec(t.Context(), "CREATE TABLE IF NOT EXISTS deferred (i int); GRANT ALL ON deferred TO public"); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	a, b := h.Client(t), h.Client(t)
	a.Skip = "S"
	query := func(sql string) []byte { return pgtest.Query(sql) }
	extended := func(sql string) []byte { return pgtest.Join(execute(sql), pgtest.Sync()) }
	described := func(sql string) []byte { return pgtest.Extended(sql) }
	for name, v := range map[string]struct {
		send   func(string) []byte
		before string
	}{"simple": {query, ""}, "extended": {extended, "1 2 "}, "described": {described, "1 2 n "}} {
		t.Run(name, func(t *testing.T) {
			leases := h.Pools.Stats()[0].Assigned
			for _, sql := range []string{"COMMIT", "ROLLBACK", "END", "abort ;"} {
				a.Send(v.send("/* hi */ BEGIN ISOLATION LEVEL REPEATABLE READ;"))
				a.Expect(v.before + "C(BEGIN) Z(T)")
				a.Send(v.send(sql))
				tag := "COMMIT"
				if sql == "ROLLBACK" || strings.HasPrefix(sql, "abort") {
					tag = "ROLLBACK"
				}
				a.Expect(v.before + "C(" + tag + ") Z(I)")
			}
			if n := h.Pools.Stats()[0].Assigned; n != leases {
				t.Errorf("%d leases", n-leases)
			}
			for _, behind := range []struct{ sql, want string }{
				{"SELECT current_setting('transaction_isolation')", "T D(repeatable read) C(SELECT 1) Z(T)"},
				{"SELECT 1/0", "E(22012) Z(E)"},
				{"no sql", "E(42601) Z(E)"},
				{"INSERT INTO deferred VALUES (1)", "C(INSERT 0 1) Z(T)"},
				{"SET LOCAL work_mem = '9MB'", "C(SET) Z(T)"},
				{"SET work_mem = '9MB'", "C(SET) Z(T)"},
				{"SELECT 1; SELECT 2", "T D(1) C(SELECT 1) T D(2) C(SELECT 1) Z(T)"},
				{"SAVEPOINT s", "C(SAVEPOINT) Z(T)"},
				{"BEGIN", "N(25001) C(BEGIN) Z(T)"},
				{"COMMIT AND CHAIN", "C(COMMIT) Z(T)"},
				{"SHOW pgproxy.target", "T D() C(SHOW) Z(T)"},
				{"VACUUM", "E(25001) Z(E)"},
				{"", "I Z(T)"},
				{"EXECUTE nothing", "E(26000) Z(E)"},
				{"COPY (SELECT 1) TO STDOUT", `H d(1\n) c C(COPY 1) Z(T)`},
			} {
				a.Send(v.send("START TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
				a.Expect(v.before + "C(START TRANSACTION) Z(T)")
				same(t, b, "SELECT 'free'", "T D(free) C(SELECT 1) Z(I)")
				same(t, a, behind.sql, behind.want)
				b.Send(pgtest.Query("SELECT 'next'"))
				h.waitState(t, b, "waiting")
				a.Send(v.send("ROLLBACK"))
				a.Expect(v.before + "C(ROLLBACK) Z(I)")
				b.Expect("T D(next) C(SELECT 1) Z(I)")
			}
		})
	}
	same(t, b, "SELECT count(*) FROM deferred", "T D(0) C(SELECT 1) Z(I)")
	// In the extended protocol: named statements, a batch in parts, a Sync alone.
	a.Send(pgtest.Parse("begin", "BEGIN READ ONLY"), pgtest.Sync())
	a.Expect("1 Z(I)")
	begin := pgtest.Join(pgtest.Bind("", "begin"), pgtest.Execute("", 0), pgtest.Sync())
	a.Send(begin)
	a.Expect("2 C(BEGIN) Z(T)")
	a.Send(pgtest.Sync())
	a.Expect("Z(T)")
	a.Send(pgtest.Parse("", "INSERT INTO deferred VALUES (1)"), pgtest.Flush())
	a.Expect("1")
	a.Send(pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.Sync())
	a.Expect("2 E(25006) Z(E)")
	a.Send(pgtest.Extended("SELECT 1"))
	a.Expect("E(25P02) Z(E)")
	a.Send(pgtest.Extended("ROLLBACK"))
	a.Expect("1 2 n C(ROLLBACK) Z(I)")
	a.Send(begin)
	a.Expect("2 C(BEGIN) Z(T)")
	a.Send(pgtest.FunctionCall(1598)) // random()
	if got := pgtest.Trace(a.ReadUntilReady()); !strings.HasPrefix(got, "V") || !strings.HasSuffix(got, "Z(T)") {
		t.Errorf("fast path: %s", got)
	}
	same(t, a, "COPY deferred FROM STDIN", "E(25006) Z(E)")
	same(t, a, "COMMIT", "C(ROLLBACK) Z(I)")
	same(t, a, "BEGIN", "C(BEGIN) Z(T)")
	a.Send(pgtest.Query("COPY deferred FROM STDIN"))
	a.Expect("G")
	a.Send(pgtest.CopyData("1\n"), pgtest.CopyDone())
	a.Expect("C(COPY 1) Z(T)")
	same(t, a, "ROLLBACK", "C(ROLLBACK) Z(I)")
	// All in one write.
	a.Send(pgtest.Query("BEGIN"), pgtest.Query("SELECT 1"), pgtest.Query("COMMIT"), pgtest.Query("BEGIN"), pgtest.Query("COMMIT"), pgtest.Query("SELECT 2"))
	a.Expect("C(BEGIN) Z(T) T D(1) C(SELECT 1) Z(T) C(COMMIT) Z(I) C(BEGIN) Z(T) C(COMMIT) Z(I) T D(2) C(SELECT 1) Z(I)")
}

// TestDeferredBeginFails: the statement behind a BEGIN that the server refuses does
// not run.
func TestDeferredBeginFails(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[1:2], Proxy: trust + "default_pool_size = 1"}) // a standby
	a, b := h.Client(t), h.Client(t)
	for range 2 {
		same(t, a, "BEGIN ISOLATION LEVEL SERIALIZABLE", "C(BEGIN) Z(T)")
		same(t, a, "SELECT 1", "E(0A000) Z(I)")
		same(t, a, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
		a.Send(pgtest.Extended("BEGIN ISOLATION LEVEL SERIALIZABLE"))
		a.Expect("1 2 n C(BEGIN) Z(T)")
		a.Send(pgtest.Extended("SELECT 1"))
		a.Expect("E(0A000) Z(I)")
		a.Send(pgtest.Extended("SELECT 1"))
		a.Expect("1 2 T D(1) C(SELECT 1) Z(I)")
		same(t, b, "SELECT 2", "T D(2) C(SELECT 1) Z(I)")
	}
	// Where its answer was waited for, the session ends with it.
	same(t, a, "BEGIN ISOLATION LEVEL SERIALIZABLE", "C(BEGIN) Z(T)")
	a.Send(pgtest.Query("SET work_mem = '1MB'"))
	if e := refusal(t, a); code(e) != "0A000" {
		t.Errorf("got %v", e)
	}
	same(t, b, "SELECT 2", "T D(2) C(SELECT 1) Z(I)")
}

// TestDeferredBeginCanceled: a client that stops waiting for a server has a failed
// transaction, and ends it without one.
func TestDeferredBeginCanceled(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	a, holder := h.Client(t), h.Client(t)
	a.Skip = "S"
	query := func(sql string) []byte { return pgtest.Query(sql) }
	for name, v := range map[string]struct {
		send   func(string) []byte
		before string
	}{"simple": {query, ""}, "extended": {func(sql string) []byte { return pgtest.Extended(sql) }, "1 2 n "}} {
		t.Run(name, func(t *testing.T) {
			for _, first := range []string{"SELECT 'mine'", "SET LOCAL work_mem = '9MB'"} {
				for _, then := range []struct{ sql, want string }{
					{"COMMIT", v.before + "C(ROLLBACK) Z(I)"},
					{"ROLLBACK", v.before + "C(ROLLBACK) Z(I)"},
					{"SELECT 1", "E(25P02) Z(E)"},
					{"no sql", "E(42601) Z(E)"},
					{"SET work_mem = '9MB'", "E(25P02) Z(E)"},
					{"ROLLBACK TO s", v.before + "E(3B001) Z(E)"},
				} {
					begin(holder)
					a.Send(v.send("BEGIN"))
					a.Expect(v.before + "C(BEGIN) Z(T)")
					a.Send(v.send(first))
					h.waitState(t, a, "waiting")
					a.Cancel(h.Addr)
					a.Expect("E(57014) Z(E)")
					a.Send(pgtest.Sync())
					a.Expect("Z(E)")
					goesOn := strings.HasSuffix(then.want, "Z(E)")
					if goesOn {
						same(t, holder, "COMMIT", "C(COMMIT) Z(I)")
					}
					a.Send(v.send(then.sql))
					a.Expect(then.want)
					if goesOn {
						a.Send(v.send("COMMIT"))
						a.Expect(v.before + "C(ROLLBACK) Z(I)")
					} else {
						same(t, holder, "COMMIT", "C(COMMIT) Z(I)")
					}
					same(t, a, "SHOW work_mem", "T D(4MB) C(SHOW) Z(I)")
				}
			}
		})
	}
}

// TestDeferredBeginRunsAgain: the first statement of a transaction goes to another
// connection when its own ends, if the end has undone all of it.
func TestDeferredBeginRunsAgain(t *testing.T) {
	c := realCluster(t)
	setup(t, c, "DROP TABLE IF EXISTS firsts; CREATE TABLE firsts (i int); INSERT INTO firsts VALUES (1); GRANT ALL ON firsts TO public; "+
		"CREATE OR REPLACE FUNCTION not_known(int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN $1; END'")
	h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust + "default_pool_size = 1"})
	blocker := direct(t, c)
	for name, v := range map[string]struct {
		send  []byte
		want  string
		again bool
	}{
		"simple":           {pgtest.Query("UPDATE firsts SET i = i + 1"), "C(UPDATE 1) Z(T)", true},
		"extended":         {pgtest.Extended("UPDATE firsts SET i = i + $1", "1"), "1 2 n C(UPDATE 1) Z(T)", true},
		"lock":             {pgtest.Query("SELECT 1 FROM firsts FOR UPDATE"), "T D(1) C(SELECT 1) Z(T)", true},
		"of the client's":  {pgtest.Query("UPDATE firsts SET i = not_known(i)"), "", false},
		"its COMMIT comes": {pgtest.Join(pgtest.Query("UPDATE firsts SET i = i + 1"), pgtest.Query("COMMIT")), "", false},
	} {
		t.Run(name, func(t *testing.T) {
			blocker.Query("BEGIN")
			blocker.Query("SELECT * FROM firsts FOR UPDATE")
			a := h.Client(t)
			same(t, a, "BEGIN ISOLATION LEVEL REPEATABLE READ", "C(BEGIN) Z(T)")
			a.Send(v.send)
			waits := fmt.Sprintf("SELECT pid FROM pg_locks WHERE NOT granted AND pid <> %d", blocker.PID)
			if err := c.Primary.WaitFor(t.Context(), "postgres", "SELECT count(*) = 1 FROM ("+waits+") x"); err != nil {
				t.Fatal(err)
			}
			setup(t, c, "SELECT pg_terminate_backend(pid) FROM ("+waits+") x")
			if !v.again {
				if e := refusal(t, a); code(e) != "57P01" && code(e) != "08006" {
					t.Errorf("got %v", e)
				}
				blocker.Query("ROLLBACK")
				return
			}
			if err := c.Primary.WaitFor(t.Context(), "postgres", "SELECT count(*) = 1 FROM ("+waits+") x"); err != nil {
				t.Fatal(err)
			}
			blocker.Query("ROLLBACK")
			a.Expect(v.want)
			same(t, a, "SHOW transaction_isolation", "T D(repeatable read) C(SHOW) Z(T)")
			same(t, a, "COMMIT", "C(COMMIT) Z(I)")
			a.Terminate()
		})
	}
	same(t, blocker, "SELECT i FROM firsts", "T D(3) C(SELECT 1) Z(I)")
}

// TestDeferredBeginPortal: as far as the client can tell, BEGIN has left the portal
// that its protocol leaves.
func TestDeferredBeginPortal(t *testing.T) {
	c := oracleSetup(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	d, p := direct(t, c), h.Client(t)
	for begin, msg := range map[string][]byte{"Query": pgtest.Query("BEGIN"), "batch": pgtest.Extended("BEGIN")} {
		for name, behind := range map[string][]byte{
			"Execute": pgtest.Execute("", 0), "Describe portal": pgtest.Describe('P', ""), "Close portal": pgtest.Close('P', ""),
			"Bind": pgtest.Bind("", ""), "Describe statement": pgtest.Describe('S', ""), "empty": pgtest.Query(""),
		} {
			script := ext(msg, behind, pgtest.Execute("", 0), pgtest.Sync())
			if got, want := play(p, script, 0), play(d, script, 0); got != want {
				t.Errorf("%s, %s\n got %s\nwant %s", begin, name, got, want)
			}
		}
	}
}

// TestDeferredBeginTimeout: who says BEGIN and nothing more is idle in a
// transaction.
func TestDeferredBeginTimeout(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "idle_transaction_timeout = \"100ms\""})
	a := h.Client(t)
	same(t, a, "BEGIN", "C(BEGIN) Z(T)")
	within(t, 10*time.Second, "the timeout", func() {
		if e := refusal(t, a); !strings.Contains(e.Message, "idle transaction timeout") {
			t.Errorf("got %v", e)
		}
	})
}

// TestDeferredBeginIsSentAgain: a statement that goes to another connection, because
// its own has died before anything was sent, takes the BEGIN along.
func TestDeferredBeginIsSentAgain(t *testing.T) {
	c := realCluster(t)
	setup(t, c, "CREATE TABLE IF NOT EXISTS deferred (i int); TRUNCATE deferred; GRANT ALL ON deferred TO public")
	insert := pgtest.Query("INSERT INTO deferred VALUES (1)")
	for name, v := range map[string]struct {
		send []byte
		want string
	}{
		"simple":              {insert, "C(INSERT 0 1) Z(T)"},
		"extended":            {pgtest.Extended("INSERT INTO deferred VALUES (1)"), "1 2 n C(INSERT 0 1) Z(T)"},
		"BEGIN is sent alone": {pgtest.Query("SET LOCAL work_mem = '9MB'"), "C(SET) Z(T)"},
		"all at once":         {pgtest.Join(pgtest.Query("BEGIN"), insert), "C(BEGIN) Z(T) C(INSERT 0 1) Z(T)"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
			a := h.Client(t)
			if !strings.HasPrefix(v.want, "C(BEGIN)") {
				same(t, a, "BEGIN", "C(BEGIN) Z(T)")
			}
			release := sync.OnceFunc(h.Server.HoldRoutes())
			defer release()
			a.Send(v.send)
			eventually(t, 10*time.Second, "a lease", func() bool { list := h.Pools.Servers(); return len(list) == 1 && list[0].Active })
			if err := c.Exec(t.Context(), fmt.Sprintf("SELECT pg_terminate_backend(%d)", h.server(t).PID)); err != nil {
				t.Fatal(err)
			}
			eventually(t, 10*time.Second, "the end of its connection", func() bool { return len(h.Pools.Servers()) == 0 })
			release()
			a.Expect(v.want)
			same(t, a, "INSERT INTO deferred VALUES (2)", "C(INSERT 0 1) Z(T)")
			same(t, a, "ROLLBACK", "C(ROLLBACK) Z(I)")
			same(t, a, "SELECT count(*) FROM deferred", "T D(0) C(SELECT 1) Z(I)")
		})
	}
}
