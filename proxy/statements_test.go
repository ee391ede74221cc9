package proxy_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
)

// countPrepared asks how many statements a server connection has whose text is like
// a pattern. It must not name the view: a client sees its own statements there.
func countPrepared(pattern string) string {
	return "SELECT prepared_like('" + strings.ReplaceAll(pattern, "'", "''") + "')"
}

// makeCountPrepared makes the function that countPrepared calls.
func makeCountPrepared(t *testing.T, c *pgtest.Cluster) {
	setup(t, c, "CREATE OR REPLACE FUNCTION prepared_like(pattern text) RETURNS bigint LANGUAGE plpgsql AS $$ DECLARE n bigint; "+
		"BEGIN EXECUTE 'SELECT count(*) FROM pg_prepared' || '_statements WHERE statement LIKE $1' INTO n USING pattern; RETURN n; END $$")
}

func oneRow(v string) string { return "T D(" + v + ") C(SELECT 1) Z(I)" }

// run executes a named statement without parameters and returns the answer.
func run(c *pgtest.RawClient, name string) string {
	c.Send(pgtest.Bind("", name), pgtest.Execute("", 0), pgtest.Sync())
	return pgtest.Trace(c.ReadUntilReady())
}

// prepare sends a Parse with Sync and returns the answer.
func prepare(c *pgtest.RawClient, name, sql string) string {
	c.Send(pgtest.Parse(name, sql), pgtest.Sync())
	return pgtest.Trace(c.ReadUntilReady())
}

// TestPreparedLimit: a server connection never keeps more statements than
// max_prepared_statements, and no client notices.
func TestPreparedLimit(t *testing.T) {
	c := realCluster(t)
	makeCountPrepared(t, c)
	for limit := 1; limit <= 3; limit++ {
		h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + fmt.Sprintf("default_pool_size = 1\nmax_prepared_statements = %d", limit)})
		a, b := h.Client(t), h.Client(t)
		var p []byte
		want := ""
		for i := range 100 {
			name := fmt.Sprintf("s%d", i)
			p = append(p, pgtest.Join(pgtest.Parse(name, fmt.Sprintf("SELECT 'text %d'", i)), pgtest.Bind("", name), pgtest.Execute("", 0), pgtest.Sync())...)
			want += fmt.Sprintf("1 2 D(text %d) C(SELECT 1) Z(I) ", i)
		}
		a.Send(p)
		a.Expect(want)
		r := rand.New(rand.NewPCG(uint64(limit), 3))
		for range 100 {
			i := r.IntN(100)
			if got, want := run(a, fmt.Sprintf("s%d", i)), fmt.Sprintf("2 D(text %d) C(SELECT 1) Z(I)", i); got != want {
				t.Errorf("limit %d: got %s, want %s", limit, got, want)
			}
		}
		got := value(b, countPrepared("%"))
		if n := strings.Index("0123456789", got); got == "" || n < 1 || n > limit {
			t.Errorf("limit %d: %q statements on the server", limit, got)
		}
		// All in one batch: those that it uses stay to its end.
		p = nil
		want = ""
		for i := range 100 {
			p = append(p, pgtest.Join(pgtest.Bind("", fmt.Sprintf("s%d", i)), pgtest.Execute("", 0))...)
			want += fmt.Sprintf("2 D(text %d) C(SELECT 1) ", i)
		}
		a.Send(p, pgtest.Sync())
		a.Expect(want + "Z(I)")
		run(a, "s1")
		run(a, "s2")
		if info := h.session(a); info.Prepared != 100 {
			t.Errorf("the client has %d statements, want 100", info.Prepared)
		}
	}
}

// TestPreparedNames: names are the client's own, texts are shared.
func TestPreparedNames(t *testing.T) {
	c := realCluster(t)
	makeCountPrepared(t, c)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	a, b := h.Client(t), h.Client(t)
	check := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %s, want %s", what, got, want)
		}
	}
	check("a", prepare(a, "n", "SELECT 'a'"), "1 Z(I)")
	check("b", prepare(b, "n", "SELECT 'b'"), "1 Z(I)")
	check("a's", run(a, "n"), "2 D(a) C(SELECT 1) Z(I)")
	check("b's", run(b, "n"), "2 D(b) C(SELECT 1) Z(I)")
	check("taken", prepare(a, "n", "SELECT 'c'"), "E(42P05) Z(I)")
	check("still", run(a, "n"), "2 D(a) C(SELECT 1) Z(I)")
	a.Send(pgtest.Close('S', "n"), pgtest.Sync())
	a.Expect("3 Z(I)")
	check("closed", run(a, "n"), "E(26000) Z(I)")
	check("used again", prepare(a, "n", "SELECT 'd'"), "1 Z(I)")
	check("new text", run(a, "n"), "2 D(d) C(SELECT 1) Z(I)")
	check("not b's", run(b, "n"), "2 D(b) C(SELECT 1) Z(I)")

	// The same text is one statement on the server, whatever it is called.
	before := value(a, countPrepared("%"))
	check("shared", prepare(a, "m1", "SELECT 'shared'"), "1 Z(I)")
	check("shared", prepare(b, "m2", "SELECT 'shared'"), "1 Z(I)")
	check("shared", prepare(b, "m3", "SELECT 'shared'"), "1 Z(I)")
	same(t, a, countPrepared("SELECT 'shared'"), oneRow("1"))
	if after := value(a, countPrepared("%")); after <= before {
		t.Errorf("%s statements on the server, before %s", after, before)
	}
	a.Send(pgtest.Close('S', "m1"), pgtest.Sync())
	a.Expect("3 Z(I)")
	check("after the other's Close", run(b, "m2"), "2 D(shared) C(SELECT 1) Z(I)")
	// Not with other parameter types.
	for oid, want := range map[uint32]string{25: "text", 23: "integer"} {
		name := "typed " + want
		a.Send(pgtest.Parse(name, "SELECT pg_typeof($1)", oid), pgtest.Bind("", name, "1"), pgtest.Execute("", 0), pgtest.Sync())
		a.Expect("1 2 D(" + want + ") C(SELECT 1) Z(I)")
	}
}

// TestPreparedDropped: DEALLOCATE ALL and DISCARD ALL take the names of the
// client that says so, and nobody else's.
func TestPreparedDropped(t *testing.T) {
	c := realCluster(t)
	for _, sql := range []string{"DEALLOCATE ALL", "DISCARD ALL", "DEALLOCATE PREPARE ALL"} {
		for how, batch := range map[string]func(string) []byte{"simple": pgtest.Query, "extended": func(sql string) []byte { return pgtest.Extended(sql) }} {
			t.Run(sql+"/"+how, func(t *testing.T) {
				h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
				a, b := h.Client(t), h.Client(t)
				prepare(a, "n", "SELECT 'a'")
				prepare(b, "n", "SELECT 'a'")
				prepare(b, "own", "SELECT 'own'")
				a.Send(batch(sql))
				if got := pgtest.Trace(a.ReadUntilReady()); strings.Contains(got, "E(") {
					t.Fatal(got)
				}
				for _, v := range []struct {
					c          *pgtest.RawClient
					name, want string
				}{
					{a, "n", "E(26000) Z(I)"}, {b, "n", "2 D(a) C(SELECT 1) Z(I)"}, {b, "own", "2 D(own) C(SELECT 1) Z(I)"}, {a, "own", "E(26000) Z(I)"},
				} {
					if got := run(v.c, v.name); got != v.want {
						t.Errorf("%s: got %s, want %s", v.name, got, v.want)
					}
				}
				if got, want := prepare(a, "n", "SELECT 'again'"), "1 Z(I)"; got != want {
					t.Errorf("got %s, want %s", got, want)
				}
				if got, want := run(a, "n"), "2 D(again) C(SELECT 1) Z(I)"; got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			})
		}
	}
}

// TestPreparedFailure: a Parse that has failed leaves nothing behind.
func TestPreparedFailure(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	a, b := h.Client(t), h.Client(t)
	const text = "SELECT count(*) FROM appears_later"
	a.Query("DROP TABLE IF EXISTS appears_later")
	for range 2 {
		if got, want := prepare(a, "n", text), "E(42P01) Z(I)"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if got, want := run(a, "n"), "E(26000) Z(I)"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	// In a pipeline: the name is free behind the failure, and used in the same write.
	a.Send(pgtest.Parse("n", text), pgtest.Sync(), pgtest.Parse("n", "SELECT 'good'"), pgtest.Bind("", "n"), pgtest.Execute("", 0), pgtest.Sync())
	a.Expect("E(42P01) Z(I) 1 2 D(good) C(SELECT 1) Z(I)")
	b.Query("CREATE TABLE appears_later (i int)")
	if got, want := prepare(a, "m", text), "1 Z(I)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := run(a, "m"), "2 D(0) C(SELECT 1) Z(I)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	b.Query("DROP TABLE appears_later")
	if n := h.session(a).Prepared; n != 2 {
		t.Errorf("the client has %d statements, want 2", n)
	}
}

// TestLoneParseReachesTheServer: where a client sends a Parse and nothing behind
// it, the server's transaction begins with that Parse, and so does the time of
// statement_timeout, though the statement is prepared already.
func TestLoneParseReachesTheServer(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1"})
	a := h.Client(t, "application_name", "lone parse")
	const text = "SELECT 'lone parse'::text"
	a.Send(pgtest.Parse("n1", text), pgtest.Bind("", "n1"), pgtest.Execute("", 0), pgtest.Sync())
	a.Expect("1 2 D(lone parse) C(SELECT 1) Z(I)")
	a.Send(pgtest.Parse("n2", text))
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	err := c.Primary.WaitFor(ctx, "postgres",
		"SELECT count(xact_start) > 0 FROM pg_stat_activity WHERE application_name = 'lone parse'")
	if err != nil {
		t.Error(err)
	}
	a.Send(pgtest.Bind("", "n2"), pgtest.Execute("", 0), pgtest.Sync())
	a.Expect("1 2 D(lone parse) C(SELECT 1) Z(I)")
}
