package proxy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
)

// same fails the test if a client's answer to a query is not the one wanted.
func same(t testing.TB, c *pgtest.RawClient, sql, want string) {
	t.Helper()
	if got := c.Query(sql); got != want {
		t.Errorf("%s\n got %s\nwant %s", sql, got, want)
	}
}

// value is the one value that a query gives, "" where it fails.
func value(c *pgtest.RawClient, sql string) string {
	got := c.Query(sql)
	_, rest, ok := strings.Cut(got, " D(")
	if !ok {
		return ""
	}
	v, _, _ := strings.Cut(rest, ") C(")
	return v
}

// TestSessionMode: a client keeps its server connection and what is on it; the
// next one finds nothing of it.
func TestSessionMode(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust + "pool_mode = \"session\"\ndefault_pool_size = 1"})
	a, b := h.Client(t), h.Client(t)
	a.Skip = "S"
	pid := value(a, "SELECT pg_backend_pid()")
	for _, sql := range []string{
		"SET work_mem = '9MB'", "CREATE TEMP TABLE mine (i int)", "LISTEN mine", "PREPARE mine AS SELECT 'prepared'",
		"SELECT pg_advisory_lock(77)", "SET session_replication_role = DEFAULT; SET search_path = pg_catalog",
	} {
		if got := a.Query(sql); strings.Contains(got, "E(") && !strings.Contains(sql, "replication") {
			t.Errorf("%s: %s", sql, got)
		}
	}
	b.Send(pgtest.Query("SELECT pg_backend_pid()"))
	h.waitState(t, b, "waiting")
	if got := value(a, "SELECT pg_backend_pid()"); got != pid {
		t.Errorf("server connection %s, before %s", got, pid)
	}
	same(t, a, "SHOW work_mem", "T D(9MB) C(SHOW) Z(I)")
	same(t, a, "SELECT count(*) FROM mine", "T D(0) C(SELECT 1) Z(I)")
	same(t, a, "EXECUTE mine", "T D(prepared) C(SELECT 1) Z(I)")
	if got := h.server(t).Pinned.String(); got != "pool_mode session" {
		t.Errorf("pinned: %q", got)
	}
	a.Terminate()
	if got := pgtest.Trace(b.ReadUntilReady()); !strings.Contains(got, "D("+pid+")") {
		t.Errorf("the next client is on %s, want %s: the connection was to be reset and used again", got, pid)
	}
	same(t, b, "SHOW work_mem", "T D(4MB) C(SHOW) Z(I)")
	same(t, b, "SELECT count(*) FROM mine", "E(42P01) Z(I)")
	same(t, b, "EXECUTE mine", "E(26000) Z(I)")
	same(t, b, "SELECT count(*) FROM pg_listening_channels()", "T D(0) C(SELECT 1) Z(I)")
	same(t, b, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "T D(0) C(SELECT 1) Z(I)")
}

// TestPins: what cannot be carried along keeps the connection, and says so.
func TestPins(t *testing.T) {
	c := realCluster(t)
	for _, v := range []struct{ sql, reason string }{
		{"CREATE TEMP TABLE pinned (i int)", "temporary object"},
		{"SELECT 1 AS i INTO TEMP pinned", "temporary object"},
		{"SELECT pg_advisory_lock(78)", "session advisory lock"},
		{"PREPARE pinned AS SELECT 1; SELECT 2", "PREPARE"},
		{"BEGIN; DECLARE pinned CURSOR WITH HOLD FOR SELECT 1; COMMIT", "cursor WITH HOLD"},
	} {
		for how, batch := range map[string]func(string) []byte{"simple": pgtest.Query, "extended": func(sql string) []byte { return pgtest.Extended(sql) }} {
			if how == "extended" && strings.Contains(v.sql, ";") {
				continue
			}
			t.Run(v.sql+"/"+how, func(t *testing.T) {
				h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
				a, b := h.Client(t), h.Client(t)
				pid := value(a, "SELECT pg_backend_pid()")
				a.Send(batch(v.sql))
				if got := pgtest.Trace(a.ReadUntilReady()); strings.Contains(got, "E(") {
					t.Fatal(got)
				}
				if got := h.server(t).Pinned.String(); got != v.reason {
					t.Errorf("pinned because of %q, want %q", got, v.reason)
				}
				b.Send(pgtest.Query("SELECT pg_backend_pid()"))
				h.waitState(t, b, "waiting")
				if got := value(a, "SELECT pg_backend_pid()"); got != pid {
					t.Errorf("server connection %s, before %s", got, pid)
				}
				same(t, a, "DISCARD ALL", "C(DISCARD ALL) Z(I)")
				if got := pgtest.Trace(b.ReadUntilReady()); !strings.Contains(got, "D("+pid+")") {
					t.Errorf("the other client got %s", got)
				}
				eventually(t, 10*time.Second, "the end of the pin", func() bool { return h.server(t).Pinned == 0 })
			})
		}
	}
}

// TestPinEndsWithClient: the connection of a pinned client that leaves is reset.
func TestPinEndsWithClient(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	for _, leave := range leaves {
		a := h.Client(t)
		a.Query("CREATE TEMP TABLE left_behind (i int)")
		a.Query("LISTEN left_behind")
		leave(a)
		b := h.Client(t)
		same(t, b, "SELECT to_regclass('left_behind') IS NULL, (SELECT count(*) FROM pg_listening_channels())", "T D(t,0) C(SELECT 1) Z(I)")
		b.Terminate()
	}
}

func TestStatementMode(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "pool_mode = \"statement\"\ndefault_pool_size = 1"})
	other := h.Client(t)
	for _, send := range [][]byte{
		pgtest.Query("BEGIN"), pgtest.Query("START TRANSACTION"), pgtest.Query("SELECT 1; BEGIN"),
		pgtest.Extended("BEGIN"), pgtest.Parse("b", "BEGIN READ ONLY"),
	} {
		a := h.Client(t)
		same(t, a, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
		a.Send(send)
		if e := refusal(t, a); code(e) != "08P01" || !strings.Contains(e.Message, "transaction blocks not allowed") {
			t.Errorf("%q: got %v", send, e)
		}
		same(t, other, "SELECT now() = statement_timestamp()", "T D(t) C(SELECT 1) Z(I)")
	}
}

// TestSettingsFollow: on a pool of one each of two clients has its own settings,
// whichever way they were made.
func TestSettingsFollow(t *testing.T) {
	c := realCluster(t)
	for _, v := range []struct {
		name string
		sql  []string
		show string
		want string // of a
	}{
		{"SET", []string{"SET work_mem = '5MB'"}, "work_mem", "5MB"},
		{"SET TO", []string{"SET SESSION work_mem TO '5MB'"}, "work_mem", "5MB"},
		{"SET twice", []string{"SET work_mem = '5MB'", "SET work_mem = '6MB'"}, "work_mem", "6MB"},
		{"SET and RESET", []string{"SET work_mem = '5MB'", "RESET work_mem"}, "work_mem", "4MB"},
		{"SET DEFAULT", []string{"SET work_mem = '5MB'", "SET work_mem = DEFAULT"}, "work_mem", "4MB"},
		{"RESET ALL", []string{"SET work_mem = '5MB'", "RESET ALL"}, "work_mem", "4MB"},
		{"DISCARD ALL", []string{"SET work_mem = '5MB'", "DISCARD ALL"}, "work_mem", "4MB"},
		{"SET LOCAL", []string{"BEGIN", "SET LOCAL work_mem = '5MB'", "COMMIT"}, "work_mem", "4MB"},
		{"SET LOCAL outside", []string{"SET LOCAL work_mem = '5MB'"}, "work_mem", "4MB"},
		{"committed SET", []string{"BEGIN", "SET work_mem = '5MB'", "COMMIT"}, "work_mem", "5MB"},
		{"rolled back SET", []string{"BEGIN", "SET work_mem = '5MB'", "ROLLBACK"}, "work_mem", "4MB"},
		{"SET in a failed transaction", []string{"BEGIN", "SET work_mem = '5MB'", "SELECT 1/0", "COMMIT"}, "work_mem", "4MB"},
		{"rolled back to savepoint", []string{"BEGIN", "SAVEPOINT a", "SET work_mem = '5MB'", "ROLLBACK TO a", "COMMIT"}, "work_mem", "4MB"},
		{"set_config", []string{"SELECT set_config('work_mem', '5MB', false)"}, "work_mem", "5MB"},
		{"set_config local", []string{"SELECT set_config('work_mem', '5MB', true)"}, "work_mem", "4MB"},
		{"invalid", []string{"SET work_mem = 'nonsense'"}, "work_mem", "4MB"},
		{"invalid after valid", []string{"SET work_mem = '5MB'", "SET work_mem = 'nonsense'"}, "work_mem", "5MB"},
		{"several in one query", []string{"SET work_mem = '5MB'; SET enable_seqscan = off"}, "work_mem", "5MB"},
		{"reported", []string{"SET TIME ZONE 'Asia/Tokyo'"}, "timezone", "Asia/Tokyo"},
		{"quotes", []string{"SET application_name = 'it''s \"x\"'"}, "application_name", `it's "x"`},
		{"backslash", []string{"SET application_name = 'a \\ b'"}, "application_name", `a \ b`}, // what it means depends on a setting
		{"list", []string{"SET search_path = \"A b\", public"}, "search_path", `"A b", public`},
		{"custom", []string{"SET my.own = 'x'"}, "my.own", "x"},
	} {
		t.Run(v.name, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
			a, b := h.Client(t), h.Client(t)
			a.Skip, b.Skip = "SN", "SN"
			before := value(b, "SELECT current_setting('"+v.show+"', true)")
			for _, sql := range v.sql {
				got := a.Query(sql)
				if strings.Contains(sql, "nonsense") && got != "E(22023) Z(I)" {
					t.Errorf("%s: got %s", sql, got)
				}
			}
			eventually(t, 10*time.Second, "the end of the pin", func() bool { return h.server(t).Pinned == 0 })
			for range 2 {
				if got := value(b, "SELECT current_setting('"+v.show+"', true)"); got != before && (got != "" || before != "NULL") {
					t.Errorf("the other client has %q, want %q", got, before)
				}
				if got := value(a, "SHOW "+v.show); strings.ReplaceAll(got, `\\`, `\`) != v.want {
					t.Errorf("got %q, want %q", got, v.want)
				}
			}
			b.Query("SET work_mem = '11MB'")
			if v.show == "work_mem" {
				same(t, a, "SHOW work_mem", "T D("+v.want+") C(SHOW) Z(I)")
			}
			same(t, b, "SHOW work_mem", "T D(11MB) C(SHOW) Z(I)")
			eventually(t, 10*time.Second, "the end of the pin", func() bool { return h.server(t).Pinned == 0 })
		})
	}
}

func TestQueryWaitTimeout(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1\nquery_wait_timeout = \"400ms\""})
	holder, waiter := h.Client(t), h.Client(t)
	begin(holder)
	waiter.Send(pgtest.Query("SELECT 1"))
	if e := refusal(t, waiter); code(e) != "08P01" || e.Message != "query_wait_timeout" {
		t.Errorf("got %v", e)
	}
	// Who has a server does not wait, however long.
	same(t, holder, "SELECT 'busy' FROM pg_sleep(0.8)", "T D(busy) C(SELECT 1) Z(T)")
	same(t, holder, "COMMIT", "C(COMMIT) Z(I)")
	same(t, h.Client(t), "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
}

// TestWaitersInOrder: who came first is served first.
func TestWaitersInOrder(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	holder := h.Client(t)
	holder.Query("CREATE TEMP SEQUENCE dummy") // a pin, to be discarded below
	var waiters []*pgtest.RawClient
	for i := range 12 {
		w := h.Client(t)
		w.Send(pgtest.Query("SELECT clock_timestamp()::text"))
		eventually(t, 10*time.Second, "a place in the queue", func() bool { return h.Pools.Stats()[0].Waiting == i+1 })
		waiters = append(waiters, w)
	}
	holder.Query("DISCARD ALL")
	last := ""
	for i, w := range waiters {
		got := fmt.Sprint(w.Expect("T D C Z(I)")[1])
		if got <= last {
			t.Errorf("waiter %d was served at %s, the one before at %s", i, got, last)
		}
		last = got
	}
}

// TestAlike: with read_write_split any every transaction goes to any server and
// stays there, whatever the servers are, as with PgBouncer's list of hosts.
func TestAlike(t *testing.T) {
	c := realCluster(t)
	for _, mode := range []string{"transaction", "session"} {
		t.Run(mode, func(t *testing.T) {
			h := newHarness(t, harnessOptions{
				Servers: addrs(c), Proxy: trust + "pool_mode = \"" + mode + "\"\n",
				Database: "read_write_split = \"any\"\nload_balance = \"round_robin\"\n",
			})
			seen := make(map[string]bool)
			for range 3 * len(addrs(c)) {
				a := h.Client(t)
				begin(a)
				where := value(a, "SELECT pg_is_in_recovery() || inet_server_port()::text")
				for range 3 {
					if got := value(a, "SELECT pg_is_in_recovery() || inet_server_port()::text"); got != where {
						t.Fatalf("a transaction goes from %s to %s", where, got)
					}
				}
				a.Query("COMMIT")
				seen[where] = true
				a.Terminate()
			}
			if len(seen) != len(addrs(c)) {
				t.Errorf("transactions went to %v, want all of %d servers", seen, len(addrs(c)))
			}
		})
	}
}
