package proxy_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/pgtest"
)

// TestClientTimeouts: each timeout ends the session that it is for, and none that
// is busy otherwise (faults.md, B-34).
func TestClientTimeouts(t *testing.T) {
	c := realCluster(t)
	start := func(line string) (h *harness, idle, inside, busy *pgtest.RawClient) {
		h = newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + line + "default_pool_size = 5\n", Untidy: "several proxies at a time"})
		idle, inside, busy = h.Client(t), h.Client(t), h.Client(t)
		begin(inside)
		busy.Send(pgtest.Query("SELECT 'busy' FROM pg_sleep(3)"))
		return h, idle, inside, busy
	}
	ended := func(c *pgtest.RawClient, want, says string) {
		t.Helper()
		if e := refusal(t, c); code(e) != want || e.Message != says {
			t.Errorf("got %v, want %s %s", e, want, says)
		}
	}
	const busyAnswer = "T D(busy) C(SELECT 1) Z(I)"
	h1, idle1, inside1, busy1 := start("idle_transaction_timeout = \"1s\"\n")
	h2, idle2, inside2, busy2 := start("query_timeout = \"2s\"\n")
	_, idle3, inside3, busy3 := start("client_idle_timeout = \"1s\"\n")
	working := h1.Client(t) // in a transaction, with a statement that takes longer
	begin(working)
	working.Send(pgtest.Query("SELECT 'busy' FROM pg_sleep(3)"))

	ended(inside1, "08P01", "idle transaction timeout")
	ended(idle3, "08P01", "client_idle_timeout")
	msgs := busy2.ExpectEOF()
	if n := len(msgs); n == 0 || code(msgs[n-1].Err()) != "08P01" || msgs[n-1].Err().Message != "query timeout" {
		t.Errorf("got %s", pgtest.Trace(msgs))
	}
	busy1.Expect(busyAnswer)
	working.Expect("T D(busy) C(SELECT 1) Z(T)")
	busy3.Expect(busyAnswer)
	same(t, idle1, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
	same(t, idle2, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
	same(t, inside2, "SELECT 1", "T D(1) C(SELECT 1) Z(T)")
	same(t, inside3, "SELECT 1", "T D(1) C(SELECT 1) Z(T)")
	// What they have left can be used.
	for _, h := range []*harness{h1, h2} {
		same(t, h.Client(t), "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
	}
	left := "SELECT count(*) = 0 FROM pg_stat_activity WHERE query LIKE '%''busy''%' AND pid <> pg_backend_pid() AND state = 'active'"
	if err := c.Primary.WaitFor(t.Context(), "postgres", left); err != nil {
		t.Error(err)
	}
}

// TestServerCheckQuery: a connection that was idle for long is checked before it
// is lent, and replaced if it fails.
func TestServerCheckQuery(t *testing.T) {
	var checks atomic.Int64
	var broken atomic.Bool
	s := pgtest.NewFakeServer(t, pgtest.Script{pgtest.AcceptLogin(), pgtest.ServeAll(func(sql string) (string, error) {
		if sql == "SELECT check" {
			checks.Add(1)
			if broken.Swap(false) {
				return "", errors.New("EOF: the check fails")
			}
		}
		return sql, nil
	})}.Run)
	h := newHarness(t, harnessOptions{
		Servers: []string{s.Addr()}, Proxy: trust + "default_pool_size = 1\nserver_check_query = \"SELECT check\"\nserver_check_delay = \"400ms\"",
	})
	a := h.Client(t)
	for range 5 {
		same(t, a, "quick", answerOf("quick"))
	}
	if n := checks.Load(); n != 0 {
		t.Errorf("%d checks of a connection that was in use", n)
	}
	for i := range 2 {
		eventually(t, 10*time.Second, "a long rest", func() bool { return h.server(t).State == "used" })
		same(t, a, "late", answerOf("late"))
		if n := checks.Load(); n != int64(i+1) {
			t.Errorf("%d checks, want %d", n, i+1)
		}
	}
	if n := len(s.Conns()); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// TestServerCheckFails: nobody hears of it.
func TestServerCheckFails(t *testing.T) {
	s := pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
		if err := c.Accept(); err != nil {
			return err
		}
		return c.Serve(func(sql string) (string, error) {
			if sql == "SELECT check" {
				_ = c.Reset()
			}
			return sql, nil
		})
	})
	h := newHarness(t, harnessOptions{
		Servers: []string{s.Addr()}, Proxy: trust + "default_pool_size = 1\nserver_check_query = \"SELECT check\"\nserver_check_delay = \"200ms\"",
	})
	a := h.Client(t)
	same(t, a, "first", answerOf("first"))
	eventually(t, 10*time.Second, "a long rest", func() bool { return h.server(t).State == "used" })
	same(t, a, "second", answerOf("second"))
	if n := len(s.Conns()); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// TestServerLifetime: connections that are old or idle for long are closed, but
// never while they are lent.
func TestServerLifetime(t *testing.T) {
	c := realCluster(t)
	for name, line := range map[string]string{"lifetime": "server_lifetime = \"1s\"", "idle": "server_idle_timeout = \"1s\""} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 2\n" + line})
			a := h.Client(t)
			begin(a)
			pid := value(a, "SELECT pg_backend_pid()")
			same(t, h.Client(t), "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
			eventually(t, 10*time.Second, "the end of the idle connection", func() bool { return len(h.Pools.Servers()) == 1 })
			same(t, a, "SELECT 'still' FROM pg_sleep(1.2)", "T D(still) C(SELECT 1) Z(T)")
			if got := value(a, "SELECT pg_backend_pid()"); got != pid {
				t.Errorf("server connection %s, before %s", got, pid)
			}
			same(t, a, "COMMIT", "C(COMMIT) Z(I)")
			eventually(t, 10*time.Second, "the end of the other", func() bool { return len(h.Pools.Servers()) == 0 })
			if got := value(a, "SELECT pg_backend_pid()"); got == pid || strings.Trim(got, "0123456789") != "" {
				t.Errorf("server connection %s, before %s", got, pid)
			}
		})
	}
}
