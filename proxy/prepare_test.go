package proxy_test

import (
	"testing"
	"time"

	"pgproxy/pgtest"
)

// TestParseNeedsNoServer: a driver that prepares on many connections from one
// thread must not wait for a server connection that only this thread could free.
func TestParseNeedsNoServer(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1"})
	prepare := func(r *pgtest.RawClient, name, sql string) string {
		r.Send(pgtest.Parse(name, sql), pgtest.Sync())
		return pgtest.Trace(r.ReadUntilReady())
	}
	first, second := h.Client(t), h.Client(t)
	const sql = "SELECT $1::text || 'x'"
	if got := prepare(first, "s", sql); got != "1 Z(I)" {
		t.Fatalf("the first Parse: %s", got)
	}
	if got := first.Query("BEGIN"); got != "C(BEGIN) Z(T)" {
		t.Fatal(got)
	}
	// The only server connection is taken.
	within(t, 10*time.Second, "a Parse that a server has accepted before", func() {
		if got := prepare(second, "mine", sql); got != "1 Z(I)" {
			t.Errorf("got %s", got)
		}
	})
	first.Query("COMMIT")
	second.Send(pgtest.Bind("", "mine", "v"), pgtest.Execute("", 0), pgtest.Sync())
	if got := pgtest.Trace(second.ReadUntilReady()); got != "2 D(vx) C(SELECT 1) Z(I)" {
		t.Errorf("its use: %s", got)
	}
	if got := prepare(second, "mine", sql); got != "E(42P05) Z(I)" {
		t.Errorf("the same name again: %s", got)
	}
}

// TestParseIsProvedForOneOnly: what one user's or search_path's server has
// accepted says nothing of others.
func TestParseIsProvedForOneOnly(t *testing.T) {
	c := realCluster(t)
	if err := c.Exec(t.Context(), "CREATE SCHEMA IF NOT EXISTS private AUTHORIZATION alice; CREATE TABLE IF NOT EXISTS private.p (i int)"); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 2"})
	prepare := func(r *pgtest.RawClient, sql string) string {
		r.Send(pgtest.Parse("s", sql), pgtest.Sync())
		return pgtest.Trace(r.ReadUntilReady())
	}
	alice := h.Client(t, "search_path", "private")
	if got := prepare(alice, "SELECT * FROM p"); got != "1 Z(I)" {
		t.Fatal(got)
	}
	alice.Query("SELECT 1")
	if got := prepare(h.Client(t, "search_path", "private"), "SELECT * FROM p"); got != "1 Z(I)" {
		t.Errorf("the same user and search_path: %s", got)
	}
	if got := prepare(h.Client(t), "SELECT * FROM p"); got != "E(42P01) Z(I)" {
		t.Errorf("another search_path: %s", got)
	}
	bob := pgtest.DialRaw(t, h.Addr)
	bob.Login(otherUser, otherSecret, "database", "app", "search_path", "private")
	if got := prepare(bob, "SELECT * FROM p"); got != "E(42P01) Z(I)" {
		t.Errorf("another user, who may not look into the schema: %s", got)
	}
}
