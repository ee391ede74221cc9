package router

import (
	"strings"
	"testing"

	pg "github.com/pganalyze/pg_query_go/v6"
)

func TestShapes(t *testing.T) {
	for _, c := range []struct{ sql, want string }{
		{"", ""},
		{" ;; ", ""},
		{"SELECT  *\nFROM T -- c\n;", "select * from t"},
		{`SELECT "A""b", É FROM "select"`, `select "A""b" , É from "select"`},
		{
			"SELECT 1, -2, 2147483648, .5, 'x', E'y', U&'z', $$w$$, N'v', B'0', X'f', $3",
			"select 1 , - 1 , 1.5 , 1.5 , '?' , '?' , '?' , '?' , N'?' , B'1' , X'1' , $1",
		},
		{"SELECT a WHERE b IN (1, 2, 3)", "select a where b in ( 1 )"},
		{"SELECT a WHERE b IN ($1,$2)", "select a where b in ( $1 )"},
		{"SELECT a WHERE b IN (1, 'x', 'y', 2)", "select a where b in ( 1 , '?' , 1 )"},
		{"SELECT a WHERE b IN (1, -1, -2)", "select a where b in ( 1 , - 1 )"},
		{"SELECT a WHERE b IN ((1, 2), (3, 4))", "select a where b in ( ( 1 , 1 ) )"},
		{"SELECT a WHERE b IN (c, c)", "select a where b in ( c , c )"},
		{"SELECT a WHERE b IN (SELECT 1, 1)", "select a where b in ( select 1 , 1 )"},
		{"SELECT a WHERE b IN (1, f(2), f(3))", "select a where b in ( 1 , f ( 1 ) )"},
		{"SELECT a WHERE b IN (1, (SELECT c WHERE d IN (2, 3)))", "select a where b in ( 1 , ( select c where d in ( 1 ) ) )"},
		{"SELECT ARRAY[1,2], ARRAY[[1,2],[3,4]]", "select array [ 1 ] , array [ [ 1 , 1 ] ]"},
		{
			"INSERT INTO t VALUES (1, 'a'), (2, 'b'), (DEFAULT, 'c') RETURNING id",
			"insert into t values ( 1 , '?' ) , ( default , '?' ) returning id",
		},
		{"VALUES (1), (2)", "values ( 1 )"},
		{"SELECT * FROM (VALUES (1), (2)) v, (VALUES (3), (4)) w", "select * from ( values ( 1 ) ) v , ( values ( 1 ) ) w"},
		{"SELECT a IN (VALUES (1), (2)), b IN (3, 4)", "select a in ( values ( 1 ) ) , b in ( 1 )"},
		{"SELECT f(1, 1), (1, 1)", "select f ( 1 , 1 ) , ( 1 , 1 )"},
		{"INSERT INTO t VALUES (1) , (2); INSERT INTO t VALUES (3), (4)", "insert into t values ( 1 ) ; insert into t values ( 1 )"},
		{"/* PGproxy: Target = Replica */ SELECT 1", "/* pgproxy: target=replica */ select 1"},
		{`SELECT 'a\d', 'b' LIKE '\'`, "select '?' , '?' like '?'"},
	} {
		s := new(shaper)
		if got := s.shape([]byte(c.sql)); got != shaped || string(s.out) != c.want {
			t.Errorf("%s\n got %s (%d)\nwant %s", c.sql, s.out, got, c.want)
		}
	}
}

func TestNoShape(t *testing.T) {
	for sql, want := range map[string]shaping{
		"SET a = 1":                            shapeless,
		"set a to 'b'":                         shapeless,
		"SELECT 1; SET a = 2":                  shapeless,
		"/* c */ SET LOCAL a = 1":              shapeless,
		"PREPARE q AS SELECT 1":                shapeless,
		"SELECT set_config('a', 'b', true)":    shapeless,
		`SELECT "set_config"('a', 'b', false)`: shapeless,
		"SELECT U&'!0061' UESCAPE '!'":         shapeless,
		`SELECT U&"a"`:                         shapeless,
		"SELECT 0x1F":                          shapeless,
		"SELECT 1_000":                         shapeless,
		"SELECT 1e":                            shapeless,
		"SELECT $1a":                           shapeless,
		"SELECT $123456":                       shapeless,
		"UPDATE t SET a = 1":                   shaped,
		"SHOW a":                               shaped,
		"RESET a":                              shaped,
		"SELECT 'open":                         unreadable,
		`SET a = "open`:                        unreadable,
		"SELECT set_config('a', 'open":         unreadable,
		`SELECT 'a\', $$ ', f() -- $$`:         ambiguous,
		`SET a = 'a\', $$ ', b -- $$`:          ambiguous,
		`SELECT U&"x", 'a\', $$ ', f() -- $$`:  ambiguous,
	} {
		if got := new(shaper).shape([]byte(sql)); got != want {
			t.Errorf("%s: %d, want %d", sql, got, want)
		}
	}
}

// TestOneShape: texts that differ in nothing but literals, comments, case and
// space have one remembered plan.
func TestOneShape(t *testing.T) {
	for _, group := range [][]string{
		{"SELECT 1", "select 2", "SELECT\t-- c\n3;", "/* x */ SELECT 0004", "SELECT 2147483647"},
		{"SELECT 1.5", "SELECT .5", "SELECT 1e9", "SELECT 99999999999999999999", "SELECT 2147483648"},
		{
			"SELECT 'a'", "SELECT E'\\n'", "SELECT U&'\\0061'", "SELECT $$a$$", "SELECT $x$ $$ '; DROP TABLE t; -- $x$",
			"SELECT 'a''b'", "SELECT 'a'\n'b'", `SELECT '\'`, `SELECT 'c:\x'`, "SELECT '/*'", "SELECT '--'",
		},
		{"SELECT B'1'", "SELECT b'0101'"},
		{"SELECT X'1'", "SELECT x'ff'"},
		{"SELECT -1", "SELECT - 2", "SELECT -/* c */3"},
		{"SELECT $1", "SELECT $2"},
		{"SELECT 'x'::int", "SELECT '12'::int"},
		{"SELECT interval '1 day'", "SELECT INTERVAL $$2 hours$$"},
		{"SELECT a FROM t LIMIT 1 OFFSET 2", "SELECT a FROM t LIMIT 10 OFFSET 20"},
		{"SELECT a FROM t WHERE b IN (1)", "SELECT a FROM t WHERE b IN (1,2,3,4,5)"},
		{"INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (1), (2), (3)"},
		{"SELECT numeric(10,2) '1'", "SELECT numeric(5,0) '2'"},
		{"SHOW pgproxy.route", "show PGPROXY.Route;"},
		{"RESET search_path", "reset SEARCH_PATH"},
		{"SELECT nextval('a')", "SELECT nextval('b')"},
		{"CREATE ROLE r PASSWORD 'a'", "CREATE ROLE r PASSWORD 'b'"},
	} {
		r := New(Options{})
		first := r.Plan([]byte(group[0]))
		for _, sql := range group[1:] {
			if p := r.Plan([]byte(sql)); p != first {
				t.Errorf("%q and %q have two plans: %s; %s", group[0], sql, summary(first), summary(p))
			}
		}
	}
}

// TestValuesAreNotShared: a plan that holds a value is never that of another.
func TestValuesAreNotShared(t *testing.T) {
	r := New(Options{})
	for range 3 {
		for sql, want := range map[string]string{
			"SET a.b = 1":                         `a.b="1"`,
			"SET a.b = 2":                         `a.b="2"`,
			"SET a.b = '1'":                       `a.b="1"`,
			"/* c */ SET a.b = 3":                 `a.b="3"`,
			"set A.B to e'4'":                     `a.b="4"`,
			"SET a.b = $$5$$;":                    `a.b="5"`,
			"/* pgproxy: target=x */ SET a.b = 6": `a.b="6"`,
			"; SET a.b = 7":                       `a.b="7"`,
			"SET LOCAL a.b = 8":                   `local a.b="8"`,
			"SET TIME ZONE 9":                     `timezone="9"`,
			"SET TIME ZONE 10":                    `timezone="10"`,
			"SET SCHEMA 'a'":                      `search_path="a"`,
			"SET SCHEMA 'b'":                      `search_path="b"`,
			"SET NAMES 'a'":                       `client_encoding="a"`,
			"SET NAMES 'b'":                       `client_encoding="b"`,
			"SET SESSION AUTHORIZATION 'a'":       `session_authorization="a"`,
			"SET SESSION AUTHORIZATION 'b'":       `session_authorization="b"`,
			"SET ROLE 'a'":                        `role="a"`,
			"SET ROLE 'b'":                        `role="b"`,
			"SET pgproxy.target = 'a'":            `proxy set target="a"`,
			"SET pgproxy.target = 'b'":            `proxy set target="b"`,
			"SET SESSION pgproxy.lsn = '0/1'":     `proxy set lsn="0/1"`,
			"SET SESSION pgproxy.lsn = '0/2'":     `proxy set lsn="0/2"`,
			"SHOW pgproxy.a":                      "proxy show a",
			"SHOW pgproxy.b":                      "proxy show b",
			"RESET a":                             "a",
			"RESET b":                             "b",
			"SET TIME ZONE INTERVAL '1:00' HOUR TO MINUTE": `timezone="INTERVAL '1:00'"`,
			"SET TIME ZONE INTERVAL '2:00' HOUR TO MINUTE": `timezone="INTERVAL '2:00'"`,
		} {
			got := summary(r.Plan([]byte(sql)))
			if !strings.HasSuffix(got, " | "+want) {
				t.Errorf("%s: %s, want ... %s", sql, got, want)
			}
		}
	}
	for _, s := range r.Shapes() {
		if strings.HasPrefix(strings.ToLower(s.Shape), "set") {
			t.Errorf("remembered: %s", s.Shape)
		}
	}
}

// queries are the tags of statements whose literals no fingerprint holds; those
// of LOAD 'x' and the like are a part of it.
var queries = wordSet("SELECT INSERT UPDATE DELETE MERGE EXPLAIN")

// fingerprint is PostgreSQL's structure of a query without its literals; false
// when it does not parse, or is something else.
func fingerprint(text string) (string, bool) {
	if p := analyse([]byte(text)); !queries[p.Tag] || p.Effects.Any(EffectDDL) {
		return "", false
	}
	// The fingerprint of current_time(3) and its like holds the 3.
	if tree, err := pg.ParseToJSON(text); err != nil || strings.Contains(tree, `_N"`) {
		return "", false
	}
	print, err := pg.Fingerprint(text)
	return print, err == nil
}

// checkShape: a shape without folded lists has the structure of its text, and
// folding changes neither the class nor the effects.
func checkShape(t *testing.T, sql string) {
	t.Helper()
	s := &shaper{exact: true}
	if s.shape([]byte(sql)) != shaped {
		return
	}
	want, ok := fingerprint(sql)
	if !ok {
		return
	}
	exact := string(s.out)
	if got, ok := fingerprint(exact); !ok || got != want {
		t.Fatalf("%q\nshape %q has another structure", sql, exact)
	}
	s = new(shaper)
	s.shape([]byte(sql))
	unfolded, folded := analyse([]byte(exact)), analyse(s.out)
	if summary(unfolded) != summary(folded) {
		t.Fatalf("%q\nunfolded %s\n  folded %s", sql, summary(unfolded), summary(folded))
	}
	// A shape is its own shape.
	again := new(shaper)
	if again.shape(s.out) != shaped || string(again.out) != string(s.out) {
		t.Fatalf("%q\nshape %q\nagain %q", sql, s.out, again.out)
	}
}

func TestShapeKeepsTheStructure(t *testing.T) {
	for _, f := range fixtures(t) {
		checkShape(t, f.sql)
	}
}

func TestDisplay(t *testing.T) {
	for sql, want := range map[string]string{
		"SELECT a.b, f(1), 'x'::int FROM t WHERE c IN (1,2) AND d[1] = $1": "select a.b, f(?), ?::int from t where c in (?) and d[?] = $n",
		"/* pgproxy: target=replica */ SELECT 1":                           "/* pgproxy: target=replica */ select ?",
		"INSERT INTO t (a) VALUES (1), (2)":                                "insert into t(a) values (?)",
	} {
		s := new(shaper)
		s.shape([]byte(sql))
		if got := display(string(s.out)); got != want {
			t.Errorf("%s\n got %s\nwant %s", sql, got, want)
		}
	}
}
