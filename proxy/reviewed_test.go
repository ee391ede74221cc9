package proxy_test

import (
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
)

// TestResetQueryLeavesNothing: in transaction pooling what has pinned a connection
// ends with its client, whatever server_reset_query says.
func TestResetQueryLeavesNothing(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "server_reset_query = \"RESET ALL\"\ndefault_pool_size = 1\n"})
	a := h.Client(t)
	a.Query("CREATE TEMP TABLE mine (s text)")
	a.Query("INSERT INTO mine VALUES ('secret')")
	a.Query("SELECT pg_advisory_lock(4711)")
	a.Terminate()
	b := h.Client(t)
	if got := b.Query("SELECT s FROM mine"); !strings.Contains(got, "42P01") {
		t.Errorf("the temporary table of another: %s", got)
	}
	if got := b.Query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND pid = pg_backend_pid()"); !strings.Contains(got, "D(0)") {
		t.Errorf("the lock of another: %s", got)
	}
}

// TestListenMovesItsBlock: a block that has begun on a replica moves to the primary
// before it listens.
func TestListenMovesItsBlock(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust + "default_pool_size = 2\n", Database: untilWrite})
	a := h.Client(t)
	for i := range 3 {
		begin(a)
		a.Query("SELECT 1")
		if got := a.Query("LISTEN moved"); got != "C(LISTEN) Z(T)" {
			t.Fatalf("%d: LISTEN: %s", i, got)
		}
		a.Query("CREATE TEMP TABLE moving (i int) ON COMMIT DROP")
		if got := a.Query("COMMIT"); got != "C(COMMIT) Z(I)" {
			t.Fatalf("%d: COMMIT: %s", i, got)
		}
	}
	if got := a.Query("NOTIFY moved"); !strings.Contains(got, "A(") {
		t.Errorf("nothing is heard: %s", got)
	}
	eventually(t, 20*time.Second, "nothing stays behind on a replica", func() bool {
		for _, s := range h.Pools.Servers() {
			if s.Active && s.Addr != addrs(c)[0] {
				return false
			}
		}
		return true
	})
}

// TestDeferredBeginFailsWithIts: an error that the proxy makes fails a transaction
// whose BEGIN was put off.
func TestDeferredBeginFailsWithIts(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust})
	a := h.Client(t)
	begin(a)
	a.Send(pgtest.Extended("SHOW pgproxy.nonsense"))
	if got := pgtest.Trace(a.ReadUntilReady()); got != "E(42704) Z(E)" {
		t.Errorf("the error: %s", got)
	}
	if got := a.Query("COMMIT"); got != "C(ROLLBACK) Z(I)" {
		t.Errorf("COMMIT: %s", got)
	}
}

// TestDeferredBeginOneReady: a Query in a batch that has failed is skipped with it,
// and gets no ReadyForQuery of its own.
func TestDeferredBeginOneReady(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust})
	a := h.Client(t)
	begin(a)
	a.Send(pgtest.Parse("", "no sql"), pgtest.Query("SELECT 1"), pgtest.Sync())
	if got := pgtest.Trace(a.ReadUntilReady()); got != "E(42601) Z(E)" {
		t.Errorf("answer %s", got)
	}
	if got := a.Query("ROLLBACK"); got != "C(ROLLBACK) Z(I)" {
		t.Errorf("ROLLBACK: %s", got)
	}
}
