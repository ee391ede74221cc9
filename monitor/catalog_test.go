package monitor

import (
	"context"
	"fmt"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/router"
)

// catalogSQL is a database that has one of each kind.
const catalogSQL = `
CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION file_fdw; CREATE EXTENSION pg_trgm;
CREATE SCHEMA app; CREATE SCHEMA other; CREATE SCHEMA carol;
CREATE TABLE plain (id int PRIMARY KEY, name text, email citext, h hstore);
CREATE TABLE app.orders (id int, total numeric);
CREATE TABLE other.events (id int);
CREATE UNLOGGED TABLE fast (id int);
CREATE UNLOGGED TABLE app.events (id int);
CREATE SEQUENCE counter;
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE remote (line text) SERVER files OPTIONS (filename '/dev/null');
CREATE TABLE parts (id int, at date) PARTITION BY RANGE (at);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE mixed (id int) PARTITION BY LIST (id);
CREATE UNLOGGED TABLE mixed_1 PARTITION OF mixed FOR VALUES IN (1);
CREATE FUNCTION f_volatile(int) RETURNS int LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION f_stable(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1';
CREATE FUNCTION f_writes() RETURNS int LANGUAGE plpgsql AS 'BEGIN INSERT INTO plain VALUES (1); RETURN 1; END';
CREATE FUNCTION f_lies() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT nextval(''counter'')';
CREATE FUNCTION f_sets() RETURNS void LANGUAGE plpgsql AS 'BEGIN PERFORM set_config(''work_mem'', ''1MB'', false); END';
CREATE FUNCTION f_reads_fast() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM fast';
CREATE FUNCTION f_atomic() RETURNS bigint LANGUAGE sql STABLE BEGIN ATOMIC SELECT nextval('counter'); END;
CREATE FUNCTION lower(plain) RETURNS text LANGUAGE sql AS 'SELECT ''x''';
CREATE FUNCTION title(plain) RETURNS text LANGUAGE sql AS 'SELECT ''x''';
CREATE FUNCTION app.twice(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION other.twice(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
CREATE FUNCTION carol.mine() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION mine() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
CREATE VIEW v_plain AS SELECT id, lower(name) AS name FROM plain;
CREATE VIEW v_volatile AS SELECT f_volatile(id) FROM plain;
CREATE VIEW v_over AS SELECT * FROM v_volatile;
CREATE VIEW v_next AS SELECT nextval('counter');
CREATE VIEW v_lock AS SELECT id FROM plain FOR UPDATE;
CREATE VIEW v_fast AS SELECT * FROM fast;
CREATE VIEW v_recovery AS SELECT pg_is_in_recovery();
CREATE FUNCTION f_reads_view() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM v_over';
CREATE FUNCTION f_reads_other() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM other.events e WHERE e.id > 0';
CREATE MATERIALIZED VIEW m_volatile AS SELECT f_volatile(id) FROM plain;
CREATE DOMAIN d_good AS int CHECK (VALUE > 0);
CREATE DOMAIN d_bad AS int CHECK (f_volatile(VALUE) > 0);
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TYPE pair AS (a int, b int); CREATE TYPE bad_pair AS (a int, b d_bad[]); CREATE TABLE bad_table (p bad_pair);
CREATE FUNCTION to_mood(int) RETURNS mood LANGUAGE sql AS 'SELECT ''ok''::mood';
CREATE CAST (int AS mood) WITH FUNCTION to_mood(int);
CREATE FUNCTION f_domain(d_bad) RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);
CREATE FUNCTION volatile_eq(int, int) RETURNS bool LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR ==== (LEFTARG = int, RIGHTARG = int, FUNCTION = volatile_eq);
CREATE AGGREGATE bad_sum(int) (SFUNC = volatile_add, STYPE = int);
CREATE TABLE guarded (id int); ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON guarded USING (f_volatile(id) > 0);
CREATE TABLE loose (id int);
CREATE POLICY p ON loose USING (f_volatile(id) > 0);
CREATE TABLE guarded_well (id int); ALTER TABLE guarded_well ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON guarded_well USING (id > 0);
ALTER ROLE carol IN DATABASE cat SET search_path = app, "$user", public;
`

func makeCatalog(t *testing.T, c *pgtest.Cluster, name, sql string) {
	t.Helper()
	ctx := t.Context()
	if err := c.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)") })
	if err := c.Primary.Exec(ctx, name, "CREATE FUNCTION volatile_add(int, int) RETURNS int LANGUAGE sql AS 'SELECT $1 + $2'; "+sql); err != nil {
		t.Fatal(err)
	}
}

// proverOf starts a monitor on a database and waits until its catalog is read.
func proverOf(t *testing.T, c *pgtest.Cluster, dbname string, change func(*watched)) *router.Prover {
	t.Helper()
	cfg := configFor(serversOf(c)[:2]...)
	cfg.Databases["app"].DBName = dbname
	cfg.Proxy.CatalogInterval = time.Hour
	w := start(t, cfg)
	w.settled()
	if change != nil {
		change(w)
	}
	pr := w.Topology("app").Provers.Prover(dbname)
	eventually(t, "the catalog to be read", func() bool { return pr.Since() != 0 })
	return pr
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		<-tick.C
	}
}

func TestCatalogProves(t *testing.T) {
	c := shared(t)
	if err := c.CreateRole(t.Context(), "carol", "x", ""); err != nil {
		t.Fatal(err)
	}
	makeCatalog(t, c, "cat", catalogSQL)
	pr := proverOf(t, c, "cat", nil)
	rt := router.New(router.Options{})
	public := pr.Path("alice", "alice", "", false)
	appFirst := pr.Path("carol", "carol", "", false)
	for _, v := range []struct {
		path *router.Path
		sql  string
		read bool
	}{
		{public, "SELECT 1", true},
		{public, "SELECT * FROM plain WHERE id = 1", true},
		{public, "SELECT * FROM public.plain p JOIN app.orders USING (id) ORDER BY p.name", true},
		{public, "SELECT * FROM orders", false},
		{appFirst, "SELECT * FROM orders", true},
		{public, "SELECT * FROM nowhere", false},
		{public, "WITH x AS (SELECT 1) SELECT * FROM x", true},
		{public, "WITH fast AS (SELECT 1) SELECT * FROM fast", false}, // may mean the table elsewhere in it
		{public, "SELECT * FROM fast", false},
		{public, "SELECT * FROM other.events", true},
		{public, "SELECT * FROM app.events", false},
		{public, "SELECT last_value FROM counter", false},
		{public, "SELECT * FROM counter", false},
		{public, "SELECT * FROM remote", false},
		{public, "SELECT * FROM parts", true},
		{public, "SELECT * FROM mixed", false},
		{public, "SELECT f_volatile(1)", false},
		{public, "SELECT f_stable(1)", true},
		{public, "SELECT f_stable(1, 2)", false},
		{public, "SELECT f_writes()", false},
		{public, "SELECT f_lies()", false},
		{public, "SELECT f_sets()", false},
		{public, "SELECT f_reads_fast()", false},
		{public, "SELECT f_atomic()", false},
		{public, "SELECT f_reads_view()", false},
		{public, "SELECT f_reads_other()", true},
		{public, "SELECT lower(name) FROM plain", false}, // lower(plain) is VOLATILE
		{public, "SELECT upper(name) FROM plain", true},
		{public, "SELECT p.title FROM plain p", false},
		{public, "SELECT p.name FROM plain p", true},
		{public, "SELECT app.twice(1)", false},
		{public, "SELECT other.twice(1)", true},
		{public, "SELECT twice(1)", false},
		{appFirst, "SELECT twice(1)", false},
		{public, "SELECT mine()", true},
		{appFirst, "SELECT mine()", false}, // "$user" has one too
		{pr.Path("alice", "alice", "other", true), "SELECT twice(1)", true},
		{pr.Path("alice", "alice", "other, app", true), "SELECT twice(1)", false},
		{pr.Path("alice", "alice", `"other", pg_catalog`, true), "SELECT twice(1)", true},
		{pr.Path("alice", "carol", `"$user", public`, true), "SELECT mine()", false},
		{pr.Path("alice", "alice", `"unterminated`, true), "SELECT mine()", false},
		{public, "SELECT * FROM v_plain", true},
		{public, "SELECT * FROM v_volatile", false},
		{public, "SELECT * FROM v_over", false},
		{public, "SELECT * FROM v_next", false},
		{public, "SELECT * FROM v_lock", false},
		{public, "SELECT * FROM v_fast", false},
		{public, "SELECT * FROM v_recovery", false},
		{public, "SELECT * FROM m_volatile", true},
		{public, "SELECT 1::d_good", true},
		{public, "SELECT 1::d_bad", false},
		{public, "SELECT d_bad(1)", false},
		{public, "SELECT ARRAY[1]::d_bad[]", false},
		{public, "SELECT f_domain(1)", false},
		{public, "SELECT 'ok'::mood", false}, // there is a VOLATILE cast to it
		{public, "SELECT '(1,2)'::pair", true},
		{public, "SELECT '(1,2)'::bad_pair", false},
		{public, "SELECT NULL::bad_table", false},
		{public, "SELECT NULL::plain", true},
		{public, "SELECT jsonb_populate_record(NULL::pair, '{}')", false}, // it might be given another type
		{public, "SELECT 1 === 1", true},
		{public, "SELECT 1 ==== 1", false},
		{public, "SELECT 1 OPERATOR(public.===) 1", true},
		{public, "SELECT bad_sum(id) FROM plain", false},
		{public, "SELECT * FROM guarded", false},
		{public, "SELECT * FROM loose", true},
		{public, "SELECT * FROM guarded_well", true},
		{public, "SELECT email = 'x', h -> 'a' FROM plain", true},
		{public, "SELECT similarity(name, 'x'), name % 'x' FROM plain", true},
		{public, "SELECT * FROM information_schema.columns", true},
		{public, "SELECT relname FROM pg_class JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace", true},
		{public, "SELECT * FROM pg_stat_activity", false},
		{public, "SELECT * FROM pg_settings", false},
		{public, "SELECT * FROM pg_tables", true},
		{public, "EXPLAIN SELECT * FROM v_plain", true},
		{public, "EXPLAIN SELECT * FROM v_next", false},
	} {
		p := pr.Prove(rt.Plan([]byte(v.sql)), v.path)
		if read := p.Class != router.ClassPrimary; read != v.read {
			t.Errorf("%s: %v, %s (%s)", v.sql, p.Class, p.Reason, p.Effects)
		}
	}
	if p := pr.Prove(rt.Plan([]byte("SELECT f_sets()")), public); !p.Effects.Any(router.EffectSet) {
		t.Errorf("f_sets: %s", p.Effects)
	}
	if p := pr.Prove(rt.Plan([]byte("INSERT INTO plain SELECT f_sets()")), public); !p.Effects.Has(router.EffectSet | router.EffectWrite) {
		t.Errorf("INSERT of f_sets: %s", p.Effects)
	}
	for sql, want := range map[string]string{
		"SELECT f_volatile(1)":                       "ALTER FUNCTION public.f_volatile(integer) STABLE",
		"SELECT * FROM v_over":                       "ALTER FUNCTION public.f_volatile(integer) STABLE",
		"SELECT f_writes()":                          "",
		"SELECT f_volatile(1) FROM fast":             "",
		"SELECT p.title, f_volatile(1) FROM plain p": "ALTER FUNCTION public.f_volatile(integer) STABLE; ALTER FUNCTION public.title(public.plain) STABLE",
	} {
		pr.Prove(rt.Plan([]byte(sql)), public)
		found := false
		for _, s := range rt.Shapes() {
			for _, pf := range s.Proofs {
				found = found || s.Shape == display(rt, sql) && pf.Frees == want
			}
		}
		if !found {
			t.Errorf("%s: is not freed by %q", sql, want)
		}
	}
}

// display is the shape of a text as Shapes writes it.
func display(rt *router.Router, sql string) string { return rt.Shape([]byte(sql)) }

// TestCatalogFollows: what changes is seen after Changed, and on the timer.
func TestCatalogFollows(t *testing.T) {
	c := shared(t)
	makeCatalog(t, c, "cat2", "CREATE TABLE a (i int); CREATE FUNCTION f() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'")
	var w *watched
	pr := proverOf(t, c, "cat2", func(is *watched) { w = is })
	state := func() CatalogStatus {
		list := w.Catalogs()
		if len(list) != 1 || list[0].Database != "app" || list[0].DBName != "cat2" {
			t.Fatalf("%+v", list)
		}
		return list[0]
	}
	eventually(t, "the reading is noted", func() bool {
		st := state()
		return st.State == CatalogRead && st.Functions == 2 && st.Readings > 0 && !st.Read.IsZero() && st.LastError == ""
	})
	rt := router.New(router.Options{})
	path := pr.Path("alice", "alice", "", false)
	prove := func(sql string) *router.Plan {
		if pr.Stale(path) {
			path = pr.Path("alice", "alice", "", false)
		}
		return pr.Prove(rt.Plan([]byte(sql)), path)
	}
	if p := prove("SELECT f() FROM a"); p.Class != router.ClassRead {
		t.Fatalf("%s", p.Reason)
	}
	pr.Changed(router.Nanotime(), false)
	if p := prove("SELECT f() FROM a"); p.Class != router.ClassPrimary {
		t.Fatalf("while the catalog changes: %s", p.Reason)
	}
	if st := state(); st.State != CatalogChanging {
		t.Errorf("%+v", st)
	}
	if p := prove("SELECT 1"); p.Class != router.ClassRead {
		t.Fatalf("what needs no catalog: %s", p.Reason)
	}
	for i, change := range []string{"ALTER TABLE a SET UNLOGGED", "ALTER TABLE a SET LOGGED", "ALTER FUNCTION f() VOLATILE", "ALTER FUNCTION f() STABLE"} {
		if err := c.Primary.Exec(t.Context(), "cat2", change); err != nil {
			t.Fatal(err)
		}
		pr.Changed(router.Nanotime(), true)
		want := router.ClassPrimary
		if i%2 == 1 {
			want = router.ClassRead
		}
		eventually(t, change, func() bool {
			p := prove("SELECT f() FROM a")
			return p.Class == want && (want == router.ClassRead || p.Reason != "catalog not read yet, or not since the last change")
		})
	}
	// A reading that finds nothing new keeps all proofs.
	before := prove("SELECT f() FROM a")
	since := pr.Since()
	pr.Changed(router.Nanotime(), true)
	eventually(t, "the old proof", func() bool { return prove("SELECT f() FROM a") == before })
	if pr.Since() != since {
		t.Error("nothing has changed, but a new catalog is in force")
	}
}

// TestCatalogOverrides: read_functions and write_functions.
func TestCatalogOverrides(t *testing.T) {
	c := shared(t)
	makeCatalog(t, c, "cat3", `CREATE FUNCTION get_it() RETURNS int LANGUAGE sql AS 'SELECT 1';
		CREATE SCHEMA s; CREATE FUNCTION s.pure() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'; CREATE FUNCTION pure() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1'`)
	pr := proverOf(t, c, "cat3", func(w *watched) {
		cfg := configFor(serversOf(c)[:2]...)
		cfg.Databases["app"].DBName = "cat3"
		cfg.Databases["app"].ReadFunctions = []string{"get_.*"}
		cfg.Databases["app"].WriteFunctions = []string{`s\..*`, "length"}
		w.Apply(cfg)
	})
	rt := router.New(router.Options{})
	for sql, read := range map[string]bool{
		"SELECT get_it()": true, "SELECT s.pure()": false, "SELECT pure()": true, "SELECT length('x')": false, "SELECT upper('x')": true,
	} {
		eventually(t, fmt.Sprintf("%s: %t", sql, read), func() bool {
			return pr.Prove(rt.Plan([]byte(sql)), pr.Path("alice", "alice", "", false)).Class == router.ClassRead == read
		})
	}
}
