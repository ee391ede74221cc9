package proxy_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// step is what one of two clients sends.
type step struct {
	who  int
	send []byte
}

func q(who int, sql string) step { return step{who, pgtest.Query(sql)} }
func e(who int, msgs ...[]byte) step {
	return step{who, pgtest.Join(append(msgs, pgtest.Sync())...)}
}

func runNamed(name string, params ...string) []byte {
	return pgtest.Join(pgtest.Bind("", name, params...), pgtest.Describe('P', ""), pgtest.Execute("", 0))
}

// unnamed parses, binds and executes a statement without a Sync.
func unnamed(sql string) []byte {
	return pgtest.Join(pgtest.Parse("", sql), pgtest.Bind("", ""), pgtest.Execute("", 0))
}

var dropAll = unnamed("DEALLOCATE ALL")

// conversations are what two clients say by turns. Each gets the same answers
// through one server connection as on a direct one.
var conversations = map[string][]step{
	"two clients, one name": {
		q(0, "PREPARE n AS SELECT 'a'"), q(1, "PREPARE n AS SELECT 'b'"), q(0, "EXECUTE n"), q(1, "EXECUTE n"), q(0, "EXECUTE n"),
		q(1, "DEALLOCATE n"), q(1, "EXECUTE n"), q(0, "EXECUTE n"), q(0, "DEALLOCATE n"), q(0, "EXECUTE n"),
	},
	"errors": {
		q(0, "PREPARE n AS SELECT nothing"), q(0, "EXECUTE n"), q(0, "DEALLOCATE n"), q(0, "PREPARE n AS SELECT 1"), q(1, "PREPARE n AS SELEC"),
		q(1, "EXECUTE n"), q(0, "PREPARE n AS SELECT 2"), q(0, "EXECUTE n"), q(0, "EXECUTE n(1)"), q(1, "DEALLOCATE PREPARE n"),
		q(1, "PREPARE n (int) AS SELECT $1"), q(1, "EXECUTE n('x')"), q(1, "EXECUTE n(5)"), q(1, "EXECUTE n"),
	},
	"names": {
		q(0, `PREPARE "Mixed Case" AS SELECT 1`), q(0, `EXECUTE "Mixed Case"`), q(0, `PREPARE Folded AS SELECT 2`), q(0, `EXECUTE FOLDED`),
		e(0, runNamed("folded")), e(0, runNamed("Folded")), q(1, `EXECUTE "Mixed Case"`), q(0, `DEALLOCATE "Mixed Case"`), q(0, `EXECUTE "Mixed Case"`),
		q(0, "PREPARE pgproxy_1 AS SELECT 3"), q(1, "EXECUTE pgproxy_1"), q(0, "EXECUTE pgproxy_1"), q(1, "DEALLOCATE pgproxy_1"),
	},
	"protocol and SQL": {
		e(0, pgtest.Parse("p", "SELECT $1::int + 1")), q(0, "EXECUTE p(1)"), q(1, "EXECUTE p(1)"), q(1, "PREPARE p AS SELECT 'other'"),
		q(0, "EXECUTE p(2)"), e(0, runNamed("p", "3")), e(1, runNamed("p")), q(1, "EXECUTE p"), q(0, "PREPARE p AS SELECT 1"), q(0, "DEALLOCATE p"),
		e(0, runNamed("p", "3")), q(0, "EXECUTE p(1)"), e(0, pgtest.Parse("p", "SELECT 'new'")), q(0, "EXECUTE p"), e(1, pgtest.Parse("p", "SELECT 1")),
		e(1, pgtest.Close('S', "p")), q(1, "EXECUTE p"), q(0, "EXECUTE p"), e(1, pgtest.Describe('S', "p")), e(0, pgtest.Describe('S', "p")),
	},
	"in transactions": {
		q(0, "BEGIN"), q(0, "PREPARE n AS SELECT 1"), q(0, "EXECUTE n"), q(0, "ROLLBACK"), q(1, "EXECUTE n"), q(0, "EXECUTE n"),
		q(0, "BEGIN"), q(0, "DEALLOCATE n"), q(0, "ROLLBACK"), q(0, "EXECUTE n"), q(0, "PREPARE n AS SELECT 2"), q(1, "PREPARE n AS SELECT 3"),
		q(0, "BEGIN"), q(0, "SELECT 1/0"), q(0, "EXECUTE n"), q(0, "DEALLOCATE n"), q(0, "PREPARE m AS SELECT 1"), q(0, "ROLLBACK"), q(0, "EXECUTE n"),
		q(0, "EXECUTE m"), q(1, "EXECUTE n"),
	},
	"all": {
		q(0, "PREPARE n AS SELECT 1"), q(1, "PREPARE n AS SELECT 2"), q(0, "DEALLOCATE ALL"), q(0, "EXECUTE n"), q(1, "EXECUTE n"),
		q(0, "PREPARE n AS SELECT 3"), q(0, "EXECUTE n"), q(1, "DISCARD ALL"), q(1, "EXECUTE n"), q(0, "EXECUTE n"), q(1, "PREPARE n AS SELECT 4"), q(1, "EXECUTE n"),
	},
	"all in a batch": {
		e(0, pgtest.Parse("n", "SELECT 1")), e(1, pgtest.Parse("n", "SELECT 'b'")), e(1, pgtest.Parse("same", "SELECT 2")),
		e(0, dropAll, pgtest.Parse("n", "SELECT 2"), runNamed("n")), e(0, runNamed("n")), e(1, runNamed("n")), e(1, runNamed("same")),
		e(0, unnamed("SELECT 1/0"), dropAll, pgtest.Parse("n", "SELECT 3")), e(0, runNamed("n")),
		e(0, dropAll, runNamed("n")), e(0, runNamed("n")), e(0, pgtest.Parse("n", "SELECT 4")),
		e(0, dropAll, unnamed("SELECT 1/0"), pgtest.Parse("n", "SELECT 5")), e(0, runNamed("n")), e(1, runNamed("n")),
		e(0, pgtest.Parse("d", "DEALLOCATE ALL"), pgtest.Parse("n", "SELECT 6")), e(0, pgtest.Bind("", "d"), pgtest.Execute("", 0), pgtest.Parse("d", "SELECT 7"), runNamed("d")),
		e(0, runNamed("d")), e(0, runNamed("n")), q(0, "PREPARE m AS SELECT 8"), e(0, dropAll, pgtest.Parse("m", "SELECT 9"), runNamed("m")), q(0, "EXECUTE m"), q(1, "EXECUTE m"),
	},
	"explain and create": {
		q(0, "PREPARE n (int) AS SELECT $1 AS i"), q(1, "PREPARE n (int) AS SELECT $1 + 1 AS i"), q(0, "EXPLAIN (COSTS off) EXECUTE n(1)"),
		q(1, "EXPLAIN (COSTS off) EXECUTE n(1)"), q(0, "DROP TABLE IF EXISTS made_by_execute"), q(0, "CREATE TABLE made_by_execute AS EXECUTE n(7)"),
		q(1, "/* pgproxy: target=primary */ SELECT i + 0 AS i FROM made_by_execute"), q(1, "DROP TABLE made_by_execute"), q(1, "EXPLAIN EXECUTE missing"), q(0, "EXPLAIN EXECUTE n"),
	},
	"extended": {
		e(0, pgtest.Parse("", "PREPARE n AS SELECT 1"), pgtest.Bind("", ""), pgtest.Execute("", 0)), q(0, "EXECUTE n"),
		q(1, "PREPARE n AS SELECT 2"), e(0, pgtest.Parse("", "EXECUTE n"), runNamed("")), e(1, pgtest.Parse("", "EXECUTE n"), runNamed("")),
		e(0, pgtest.Parse("x", "EXECUTE n")), e(0, runNamed("x")), e(1, pgtest.Parse("x", "EXECUTE n")), e(1, runNamed("x")), e(0, runNamed("x")), e(0, pgtest.Describe('S', "x")),
		e(0, pgtest.Parse("", "DEALLOCATE n"), pgtest.Bind("", ""), pgtest.Execute("", 0)), q(0, "EXECUTE n"), q(1, "EXECUTE n"),
		e(0, pgtest.Parse("", "DEALLOCATE n"), pgtest.Bind("", ""), pgtest.Execute("", 0)),
		e(0, pgtest.Parse("", "PREPARE n AS SELECT bad"), pgtest.Bind("", ""), pgtest.Execute("", 0)), q(0, "EXECUTE n"),
		e(1, pgtest.Parse("", "PREPARE n AS SELECT 5"), pgtest.Bind("", ""), pgtest.Execute("", 0)), q(1, "EXECUTE n"),
		e(1, runNamed("n"), runNamed("n")), e(0, runNamed("n")), e(0, pgtest.Close('S', "n")), e(1, runNamed("n")),
	},
	"pipelined": {
		{0, pgtest.Join(pgtest.Query("PREPARE n AS SELECT 1"), pgtest.Query("EXECUTE n"), pgtest.Query("DEALLOCATE n"), pgtest.Query("EXECUTE n"),
			pgtest.Query("PREPARE n AS SELECT bad"), pgtest.Query("EXECUTE n"), pgtest.Query("PREPARE n AS SELECT 2"), pgtest.Query("EXECUTE n"))},
	},
	"several in a string": {
		q(0, "PREPARE n AS SELECT 1"), q(1, "PREPARE n AS SELECT 2"), q(0, "EXECUTE n; EXECUTE n"), q(1, "EXECUTE n; EXECUTE n"), q(0, "EXECUTE n"),
	},
	"catalog": {
		q(0, "PREPARE n (int) AS SELECT $1"), e(0, pgtest.Parse("p", "SELECT $1::text")), q(1, "PREPARE other AS SELECT 2"), e(1, pgtest.Parse("p2", "SELECT 3")),
		q(0, "SELECT name, statement, parameter_types, from_sql FROM pg_prepared_statements ORDER BY name"),
		q(1, "SELECT name, statement, parameter_types, from_sql FROM pg_prepared_statements ORDER BY name"),
		e(0, runNamed("p", "v")), q(0, "EXECUTE n(1)"), e(1, runNamed("p2")),
		e(0, pgtest.Parse("s", "SELECT name, statement, from_sql FROM pg_prepared_statements ORDER BY name")), e(0, runNamed("s")), e(1, runNamed("other")),
		e(0, pgtest.Parse("", "SELECT count(*) FROM pg_prepared_statements"), runNamed("")), q(1, "SELECT count(*) FROM pg_prepared_statements"), e(0, runNamed("s")),
	},
}

func TestSQLPrepare(t *testing.T) {
	c := realCluster(t)
	for _, v := range []struct {
		servers int
		mode    string
	}{{1, "transaction"}, {3, "transaction"}, {1, "session"}} {
		h := newHarness(t, harnessOptions{
			Servers: addrs(c)[:v.servers], Proxy: trust + "default_pool_size = 2\npool_mode = \"" + v.mode + "\"",
			Database: "consistency = \"eventual\"",
		})
		for name, conversation := range conversations {
			t.Run(fmt.Sprintf("%s/%d servers, %s", name, v.servers, v.mode), func(t *testing.T) {
				want := converse(t, conversation, direct(t, c), direct(t, c))
				a, b := h.Client(t), h.Client(t)
				got := converse(t, conversation, a, b)
				for i, s := range conversation {
					if got[i] != want[i] {
						t.Errorf("step %d, client %d, %q\n got %s\nwant %s", i, s.who, s.send, got[i], want[i])
					}
				}
				for _, r := range []*pgtest.RawClient{a, b} {
					if name != "several in a string" && v.mode == "transaction" {
						eventually(t, 10*time.Second, "the server connection is given back", func() bool { return h.session(r).Server == nil })
					}
					r.Terminate()
				}
			})
		}
	}
}

// converse plays a conversation and returns the answer to each step, without what
// tells where in its source the server has found an error.
func converse(t *testing.T, steps []step, clients ...*pgtest.RawClient) (answers []string) {
	t.Helper()
	for _, r := range clients {
		r.Query("SET client_min_messages = error")
	}
	for _, s := range steps {
		r := clients[s.who]
		r.Send(s.send)
		var answer strings.Builder
		for p := s.send; len(p) > 0; {
			h, err := wire.ReadHeader(p, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			p = p[h.Size():]
			if h.Type != wire.Query && h.Type != wire.Sync {
				continue
			}
			for _, m := range r.ReadUntilReady() {
				fmt.Fprintf(&answer, "%c %q\n", m.Type, place.ReplaceAll(m.Body, []byte("$1\x00")))
			}
		}
		answers = append(answers, answer.String())
	}
	return answers
}

// place are the fields of an ErrorResponse that name a line of the server's source.
var place = regexp.MustCompile(`(\x00M[^\x00]*(?:\x00[A-EG-Z][^\x00]*)*)\x00F[^\x00]*\x00L\d+\x00R\w+\x00`)

// TestExecuteIsRouted by what it runs.
func TestExecuteIsRouted(t *testing.T) {
	c := realCluster(t)
	setup(t, c, "CREATE TABLE IF NOT EXISTS routed (i int); GRANT ALL ON routed TO public")
	h := twoServers(t, c, "")
	r := h.Client(t)
	for _, v := range []struct{ prepare, execute, want string }{
		{"PREPARE a AS SELECT count(*) FROM routed", "EXECUTE a", "replica"},
		{"PREPARE b (int) AS SELECT $1", "EXECUTE b(1 + 2)", "replica"},
		{"PREPARE c (int) AS SELECT $1", "EXECUTE c(pg_backend_pid())", "primary"},
		{"PREPARE d AS INSERT INTO routed VALUES (1)", "EXECUTE d", "primary"},
		{"PREPARE e AS SELECT * FROM routed FOR UPDATE", "EXECUTE e", "primary"},
		{"PREPARE f AS SELECT 1", "/* pgproxy: target=primary */ EXECUTE f", "primary"},
	} {
		for _, send := range [][]byte{pgtest.Query(v.execute), pgtest.Extended(v.execute)} {
			if got := r.Query("DEALLOCATE ALL"); got != "C(DEALLOCATE ALL) Z(I)" {
				t.Fatal(got)
			}
			if got := r.Query(v.prepare); got != "C(PREPARE) Z(I)" {
				t.Fatal(got)
			}
			r.Send(send)
			if got := pgtest.Trace(r.ReadUntilReady()); strings.Contains(got, "E(") {
				t.Errorf("%s: %s", v.execute, got)
			}
			if got := value(r, "SHOW pgproxy.route"); !strings.HasPrefix(got, v.want) {
				t.Errorf("%s went to %s", v.execute, got)
			}
		}
	}
}

// TestExecuteIsHealed: SQL's EXECUTE survives DDL, eviction, and a server
// connection that has lost its statements.
func TestExecuteIsHealed(t *testing.T) {
	c := realCluster(t)
	setup(t, c, "DROP TABLE IF EXISTS healed; CREATE TABLE healed (i int); INSERT INTO healed VALUES (1); GRANT ALL ON healed TO public")
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1\nmax_prepared_statements = 2"})
	r, other := h.Client(t), h.Client(t)
	same(t, r, "PREPARE n AS SELECT * FROM healed", "C(PREPARE) Z(I)")
	same(t, r, "EXECUTE n", "T D(1) C(SELECT 1) Z(I)")
	setup(t, c, "ALTER TABLE healed ADD COLUMN j int DEFAULT 2")
	same(t, r, "EXECUTE n", "T D(1,2) C(SELECT 1) Z(I)")
	for i := range 5 {
		same(t, r, fmt.Sprintf("PREPARE n%d AS SELECT %d", i, i), "C(PREPARE) Z(I)")
		same(t, other, fmt.Sprintf("PREPARE n%d AS SELECT %d", i, i+10), "C(PREPARE) Z(I)")
	}
	for i := range 5 {
		same(t, r, fmt.Sprintf("EXECUTE n%d", i), oneRow(fmt.Sprint(i)))
		same(t, other, fmt.Sprintf("EXECUTE n%d", i), oneRow(fmt.Sprint(i+10)))
	}
	same(t, other, "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$", "C(DO) Z(I)")
	same(t, r, "EXECUTE n3", oneRow("3"))
	same(t, r, "DEALLOCATE n3", "C(DEALLOCATE) Z(I)")
	same(t, r, "EXECUTE n3", "E(26000) Z(I)")
	same(t, other, "EXECUTE n3", oneRow("13"))
	if n := h.session(r).Prepared; n != 5 {
		t.Errorf("the client has %d statements, want 5", n)
	}
}

// TestPreparedBounds: past max_client_prepared_statements and
// prepared_statement_memory a client hears 53200, and all goes on.
func TestPreparedBounds(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1\nmax_client_prepared_statements = 3\nprepared_statement_memory = 4000"})
	a, b := h.Client(t), h.Client(t)
	long := "SELECT '" + strings.Repeat("x", 3000) + "'"
	fill := func(r *pgtest.RawClient) {
		t.Helper()
		same(t, r, "PREPARE a AS SELECT 1", "C(PREPARE) Z(I)")
		for _, name := range []string{"b", "c"} {
			if got := prepare(r, name, "SELECT "+name+" FROM (SELECT 1 AS b, 2 AS c) x"); got != "1 Z(I)" {
				t.Fatal(got)
			}
		}
	}
	full := func(r *pgtest.RawClient, text string) {
		t.Helper()
		same(t, r, "PREPARE d AS "+text, "E(53200) Z(I)")
		if got := prepare(r, "d", text); got != "E(53200) Z(I)" {
			t.Errorf("Parse: %s", got)
		}
		r.Send(pgtest.Extended("PREPARE d AS " + text))
		r.Expect("1 E(53200) Z(I)")
		begin(r)
		same(t, r, "PREPARE d AS "+text, "E(53200) Z(E)")
		if got := prepare(r, "d", text); got != "E(25P02) Z(E)" {
			t.Errorf("Parse in a failed transaction: %s", got)
		}
		same(t, r, "PREPARE d AS "+text, "E(25P02) Z(E)")
		r.Query("ROLLBACK")
		if got := run(r, "d"); got != "E(26000) Z(I)" {
			t.Errorf("what was refused: %s", got)
		}
	}
	fill(a)
	full(a, "SELECT 4")
	same(t, a, "PREPARE a AS SELECT 1", "E(42P05) Z(I)")
	same(t, a, "EXECUTE a", oneRow("1"))
	same(t, a, "EXECUTE b", oneRow("1"))
	same(t, a, "DEALLOCATE a", "C(DEALLOCATE) Z(I)")
	same(t, a, "PREPARE d AS SELECT 4", "C(PREPARE) Z(I)")
	full(b, long) // it has room for three, but not for one that long
	if st := h.Server.Stats(); st.StatementBytes > 4000 {
		t.Errorf("%d bytes are kept", st.StatementBytes)
	}
	same(t, a, "DEALLOCATE ALL", "C(DEALLOCATE ALL) Z(I)")
	fill(b)
	fill(a)
}

// TestSequences: currval and lastval tell a client of its own nextval, or of none.
func TestSequences(t *testing.T) {
	c := realCluster(t)
	setup(t, c, `DROP SEQUENCE IF EXISTS told_a, told_b; CREATE SEQUENCE told_a; CREATE SEQUENCE told_b START 100;
		GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO public`)
	for how, ask := range map[string]func(r *pgtest.RawClient, sql string) string{
		"simple": func(r *pgtest.RawClient, sql string) string { return strings.TrimPrefix(r.Query(sql), "T ") },
		"extended": func(r *pgtest.RawClient, sql string) string {
			r.Send(pgtest.Extended(sql))
			return strings.TrimPrefix(strings.TrimPrefix(pgtest.Trace(r.ReadUntilReady()), "1 2 "), "T ")
		},
	} {
		t.Run(how, func(t *testing.T) {
			setup(t, c, "ALTER SEQUENCE told_a RESTART; ALTER SEQUENCE told_b RESTART")
			h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
			a, b := h.Client(t), h.Client(t)
			check := func(r *pgtest.RawClient, sql, want string) {
				t.Helper()
				if got := ask(r, sql); got != want && got != "T "+want {
					t.Errorf("%s: got %s, want %s", sql, got, want)
				}
			}
			one := func(v string) string { return "D(" + v + ") C(SELECT 1) Z(I)" }
			check(a, "SELECT nextval('told_a')", one("1"))
			check(a, "SELECT lastval()", one("1"))
			if got := ask(b, "SELECT lastval()"); !strings.HasSuffix(got, "E(55000) Z(I)") {
				t.Errorf("another client: %s", got)
			}
			if got := ask(b, "SELECT currval('told_a')"); !strings.HasSuffix(got, "E(55000) Z(I)") {
				t.Errorf("another client: %s", got)
			}
			check(b, "SELECT nextval('told_b')", one("100"))
			check(b, "SELECT lastval()", one("100"))
			if got := ask(a, "SELECT currval('told_b')"); !strings.HasSuffix(got, "E(55000) Z(I)") {
				t.Errorf("the first one asks for the other's: %s", got)
			}
			begin(a)
			ask(a, "SELECT nextval('told_a')")
			if got := ask(a, "SELECT lastval()"); got != "D(2) C(SELECT 1) Z(T)" {
				t.Errorf("in a transaction: %s", got)
			}
			a.Query("COMMIT")
			check(a, "SELECT currval('told_a')", one("2"))
		})
	}
	// With several server connections a client goes back to its own.
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 2"})
	a, b := h.Client(t), h.Client(t)
	begin(b)
	same(t, a, "SELECT nextval('told_a') > 0", oneRow("t"))
	b.Query("SELECT nextval('told_b')")
	b.Query("COMMIT") // on top of the idle ones
	same(t, a, "SELECT lastval() < 50", oneRow("t"))
	same(t, b, "SELECT lastval() > 50", oneRow("t"))
}
