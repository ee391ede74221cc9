package monitor

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// truthCorpus is every statement that a standby is asked about: traps that were
// picked by hand, the router's own fixtures, what object-relational mappers write,
// PostgreSQL's own functions and operators one by one, and statements that are made
// up from a grammar.
func truthCorpus(t *testing.T, primary *truthSession) []string {
	t.Helper()
	text, err := os.ReadFile("testdata/truth/traps.sql")
	if err != nil {
		t.Fatal(err)
	}
	all := splitStatements(string(text))
	all = append(all, routerFixtures(t)...)
	all = append(all, mapperStatements()...)
	all = append(all, builtinCalls(t, primary)...)
	g := &grammar{rand.New(rand.NewPCG(7, 11))}
	for range 3500 {
		all = append(all, g.statement())
	}
	seen := make(map[string]bool, len(all))
	var out []string
	for _, sql := range all {
		if !seen[sql] && !skipped(sql) {
			seen[sql] = true
			out = append(out, sql)
		}
	}
	return out
}

// skipped are statements that a test cannot run: they wait, or copy in.
func skipped(sql string) bool {
	s := strings.ToLower(sql)
	for _, w := range []string{"pg_sleep", "from stdin", "pg_promote", "pg_stop_backup", "pg_backup_stop"} {
		if strings.Contains(s, w) {
			return true
		}
	}
	return false
}

func splitStatements(text string) []string {
	var out []string
	var b strings.Builder
	for _, line := range strings.Split(text, "\n") {
		if b.Len() == 0 && (strings.HasPrefix(line, "--") || line == "") {
			continue
		}
		b.WriteString(line)
		if strings.HasSuffix(line, ";") {
			out = append(out, strings.TrimSuffix(b.String(), ";"))
			b.Reset()
			continue
		}
		b.WriteByte('\n')
	}
	return out
}

// routerFixtures are the statements of the router's own tests.
func routerFixtures(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../router/testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	var out []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var sql []string
		for _, line := range strings.Split(string(text), "\n") {
			switch {
			case strings.HasPrefix(line, "=> "):
				out = append(out, strings.Join(sql, "\n"))
				sql = nil
			case len(sql) == 0 && (line == "" || line[0] == '#'):
			default:
				sql = append(sql, line)
			}
		}
	}
	return out
}

// mapperStatements are written as Django, Rails, Hibernate, SQLAlchemy, Prisma and
// the drivers under them write, with their parameters filled in.
func mapperStatements() []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, tab := range []string{"users", "orders", "items", "measures", "animals", "docs", "guarded", "cache", "active_users", "order_sums", "view_volatile", "mat", "remote", "view_cache"} {
		add(`SELECT COUNT(*) AS "__count" FROM "app"."%s"`, tab)
		add(`SELECT (1) AS "a" FROM "app"."%s" LIMIT 1`, tab)
		add(`SELECT "%[1]s".* FROM "%[1]s" ORDER BY 1 ASC LIMIT 11 OFFSET 5`, tab)
		add(`SELECT %[1]s_1.* FROM app.%[1]s AS %[1]s_1 WHERE 1 = 1`, tab)
		add(`select %[1]s0_.* from app.%[1]s %[1]s0_ where (select count(*) from app.users) > 3`, tab)
		add(`SELECT 1 AS one FROM "%s" LIMIT 1`, tab)
		add(`INSERT INTO "%s" DEFAULT VALUES`, tab)
		add(`DELETE FROM "%s" WHERE 1 = 0`, tab)
		add(`SELECT * FROM "%s" FOR UPDATE`, tab)
		add(`SELECT "t1"."x" FROM (SELECT count(*) AS "x" FROM "app"."%s" AS "t0" OFFSET 0) AS "t1"`, tab)
	}
	for _, id := range []int{1, 7, 42} {
		add(`SELECT "users"."id", "users"."name", "users"."email" FROM "users" WHERE "users"."id" = %d LIMIT 21`, id)
		add(`SELECT "users".* FROM "users" WHERE "users"."id" IN (%d, %d, %d)`, id, id+1, id+2)
		add(`SELECT "users".* FROM "users" INNER JOIN "orders" ON "orders"."user_id" = "users"."id" WHERE "orders"."status" = 'paid' AND "users"."active" = TRUE ORDER BY "users"."id" DESC LIMIT %d`, id)
		add(`select u1_0.id,u1_0.active,u1_0.age,u1_0.name from app.users u1_0 where u1_0.id=%d`, id)
		add(`select o1_0.id,o1_0.total,u1_0.name from orders o1_0 left join users u1_0 on u1_0.id=o1_0.user_id where o1_0.total>%d order by o1_0.placed desc fetch first 5 rows only`, id)
		add(`SELECT users.id AS users_id, users.name AS users_name, anon_1.n FROM users LEFT OUTER JOIN (SELECT orders.user_id AS user_id, count('*') AS n FROM orders GROUP BY orders.user_id) AS anon_1 ON users.id = anon_1.user_id WHERE users.age > %d`, id)
		add(`SELECT "public"."User"."id" FROM (SELECT id FROM users) AS "public" LIMIT %d`, id)
		add(`SELECT "t0"."id", "t0"."name" FROM "app"."users" AS "t0" WHERE ("t0"."id" = %d AND 1=1) LIMIT 1 OFFSET 0`, id)
		add(`UPDATE "users" SET "name" = 'x' WHERE "users"."id" = -%d`, id)
		add(`INSERT INTO "items" ("id", "sku") VALUES (%d, 'x') RETURNING "items"."id"`, id)
		add(`SELECT DISTINCT "users"."id" FROM "users" WHERE UPPER("users"."name"::text) LIKE UPPER('%%USER %d%%')`, id)
		add(`SELECT EXISTS(SELECT 1 FROM users WHERE id = %d)`, id)
		add(`SELECT "users"."id", SUM("orders"."total") AS "s" FROM "users" LEFT OUTER JOIN "orders" ON ("users"."id" = "orders"."user_id") GROUP BY "users"."id" HAVING SUM("orders"."total") > %d ORDER BY "s" DESC NULLS LAST`, id)
		add(`SELECT DATE_TRUNC('month', "orders"."placed") AS "m", COUNT(*) FROM "orders" GROUP BY DATE_TRUNC('month', "orders"."placed") ORDER BY 1 LIMIT %d`, id)
		add(`SELECT data ->> 'n', data #>> '{deep,x}' FROM users WHERE data @> '{"n": %d}'`, id)
		add(`SELECT id, ts_rank(words, q) FROM docs, plainto_tsquery('english', 'document') q WHERE words @@ q ORDER BY 2 DESC, 1 LIMIT %d`, id)
		add(`SELECT id FROM users WHERE name %% 'user %d' ORDER BY similarity(name, 'user'), id`, id)
		add(`SELECT * FROM users WHERE email = 'U%d@EXAMPLE.ORG'`, id)
		add(`SELECT * FROM orders WHERE lines @> %d OR lines && int4range(1, 3)`, id)
		add(`SELECT id, sum(qty) OVER w FROM items WINDOW w AS (PARTITION BY order_id ORDER BY id) ORDER BY id LIMIT %d`, id)
		add(`WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t WHERE n < %d) SELECT sum(n) FROM t`, id)
		add(`SELECT nextval('"app"."orders_id_seq"'), %d`, id)
		add(`SELECT pg_advisory_xact_lock(%d)`, id)
		add(`SELECT pg_try_advisory_lock(%d)`, id)
	}
	return append(out, introspection...)
}

// introspection is what drivers and mappers ask the catalog.
var introspection = []string{
	`SELECT c.relname, CASE WHEN c.relispartition THEN 'p' WHEN c.relkind IN ('m', 'v') THEN 'v' ELSE 't' END, obj_description(c.oid, 'pg_class') FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('f', 'm', 'p', 'r', 'v') AND n.nspname NOT IN ('pg_catalog', 'pg_toast') AND pg_catalog.pg_table_is_visible(c.oid)`,
	`SELECT a.attname, format_type(a.atttypid, a.atttypmod), pg_get_expr(d.adbin, d.adrelid), a.attnotnull, a.atttypid, a.atttypmod, c.collname, col_description(a.attrelid, a.attnum) AS comment, attidentity AS identity FROM pg_attribute a LEFT JOIN pg_attrdef d ON a.attrelid = d.adrelid AND a.attnum = d.adnum LEFT JOIN pg_type t ON a.atttypid = t.oid LEFT JOIN pg_collation c ON a.attcollation = c.oid AND a.attcollation <> t.typcollation WHERE a.attrelid = '"users"'::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`,
	`SELECT t.oid, t.typname, t.typelem, t.typdelim, t.typinput, r.rngsubtype, t.typtype, t.typbasetype FROM pg_type as t LEFT JOIN pg_range as r ON oid = rngtypid WHERE t.typname IN ('int2', 'int4', 'text', 'json')`,
	`SELECT current_schema()`, `SELECT current_schemas(false)`, `SELECT current_database()`, `SELECT pg_catalog.current_schema()`,
	`select current_user, session_user`, `SELECT current_catalog, user`,
	`SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'app' ORDER BY ordinal_position`,
	`SELECT table_name FROM information_schema.tables WHERE table_schema = 'app'`,
	`SELECT kcu.column_name FROM information_schema.table_constraints tc JOIN information_schema.key_column_usage kcu ON kcu.constraint_name = tc.constraint_name WHERE tc.constraint_type = 'PRIMARY KEY' AND tc.table_name = 'users'`,
	`SELECT sequence_name FROM information_schema.sequences`, `SELECT routine_name FROM information_schema.routines WHERE specific_schema = 'app'`,
	`SELECT * FROM information_schema.views WHERE table_schema = 'app'`, `SELECT schema_name FROM information_schema.schemata`,
	`SELECT i.relname, ix.indisunique, pg_get_indexdef(ix.indexrelid) FROM pg_index ix JOIN pg_class i ON i.oid = ix.indexrelid JOIN pg_class t ON t.oid = ix.indrelid WHERE t.relname = 'users'`,
	`SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'app.orders'::regclass`,
	`SELECT t.typname, e.enumlabel FROM pg_type t JOIN pg_enum e ON t.oid = e.enumtypid ORDER BY t.typname, e.enumsortorder`,
	`SELECT extname, extversion FROM pg_extension`, `SELECT rolname FROM pg_roles`, `SELECT datname FROM pg_database WHERE NOT datistemplate`,
	`SELECT pg_catalog.version()`, `select pg_catalog.version()`, `SHOW server_version`, `show standard_conforming_strings`, `SHOW TIME ZONE`, `SHOW transaction isolation level`,
	`SELECT CAST('test plain returns' AS VARCHAR(60)) AS anon_1`, `SELECT 'x' AS some_label`,
	`SELECT n.nspname = ANY(current_schemas(true)), n.nspname, t.typname FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON t.typnamespace = n.oid WHERE t.oid = 23`,
	`SELECT NULL AS TABLE_CAT, n.nspname AS TABLE_SCHEM, c.relname AS TABLE_NAME FROM pg_catalog.pg_namespace n, pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relname LIKE 'user%' ORDER BY 2, 3`,
	`SELECT oid, typname FROM pg_type WHERE typname = 'hstore'`,
	`SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()`,
	`SELECT has_schema_privilege('app', 'USAGE')`, `SELECT pg_get_serial_sequence('app.orders', 'id')`,
	`SELECT seq.relname, dep.refobjsubid FROM pg_class seq JOIN pg_depend dep ON dep.objid = seq.oid WHERE seq.relkind = 'S'`,
	`SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'app.measures'::regclass ORDER BY 1`,
	`SELECT reltuples::bigint FROM pg_class WHERE oid = 'app.users'::regclass`,
	`SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal`,
	`SELECT proname, pg_get_function_arguments(oid), pg_get_function_result(oid) FROM pg_proc WHERE pronamespace = 'app'::regnamespace ORDER BY 1, 2`,
	`SELECT polname, pg_get_expr(polqual, polrelid) FROM pg_policy`, `SELECT * FROM pg_policies`, `SELECT * FROM pg_matviews WHERE schemaname = 'app'`,
	`SELECT name, setting FROM pg_settings WHERE name = 'block_size'`, `SELECT * FROM pg_timezone_names WHERE name = 'UTC'`, `SELECT * FROM pg_timezone_abbrevs WHERE abbrev = 'CET'`,
	`SELECT name, default_version FROM pg_available_extensions WHERE name = 'hstore'`,
	`SELECT collname FROM pg_collation WHERE collname = 'C'`, `SELECT word FROM pg_get_keywords() WHERE word = 'select'`,
}

// literals have a value for each type that a builtin may want.
var literals = map[string]string{
	"bool": "true", "int2": "1::int2", "int4": "1", "int8": "1::int8", "float4": "1.5::float4", "float8": "1.5::float8", "numeric": "1.5", "oid": "1259::oid",
	"text": "'a'::text", "varchar": "'a'::varchar", "bpchar": "'a'::bpchar", "name": "'pg_class'::name", "char": `'a'::"char"`, "bytea": `'\x01'::bytea`,
	"date": "'2020-01-02'::date", "time": "'10:00'::time", "timetz": "'10:00+00'::timetz", "timestamp": "'2020-01-02'::timestamp", "timestamptz": "'2020-01-02 00:00+00'::timestamptz", "interval": "'1 day'::interval",
	"json": `'{"a": 1}'::json`, "jsonb": `'{"a": 1}'::jsonb`, "jsonpath": "'$.a'::jsonpath", "uuid": "'00000000-0000-0000-0000-000000000001'::uuid", "inet": "'10.0.0.1'::inet", "cidr": "'10.0.0.0/8'::cidr", "macaddr": "'08:00:2b:01:02:03'::macaddr",
	"point": "'(1,2)'::point", "box": "'(1,1),(2,2)'::box", "circle": "'<(1,1),2>'::circle", "line": "'{1,2,3}'::line", "lseg": "'[(1,1),(2,2)]'::lseg", "path": "'((1,1),(2,2))'::path", "polygon": "'((1,1),(2,2),(3,1))'::polygon",
	"bit": "B'1'", "varbit": "B'1'::varbit", "money": "1::money", "xid": "'3'::xid", "xid8": "'3'::xid8", "pg_lsn": "'0/1'::pg_lsn", "tsvector": "'a'::tsvector", "tsquery": "'a'::tsquery", "regclass": "'pg_class'::regclass", "regtype": "'int4'::regtype", "regconfig": "'english'::regconfig", "regdictionary": "'simple'::regdictionary", "regproc": "'now'::regproc", "regprocedure": "'now()'::regprocedure", "regnamespace": "'app'::regnamespace", "regrole": "'truth'::regrole",
	"int4range": "int4range(1, 5)", "int8range": "int8range(1, 5)", "numrange": "numrange(1, 5)", "daterange": "daterange('2020-01-01', '2021-01-01')", "tsrange": "tsrange('2020-01-01', '2021-01-01')", "tstzrange": "tstzrange('2020-01-01', '2021-01-01')", "int4multirange": "int4multirange(int4range(1, 5))", "nummultirange": "nummultirange(numrange(1, 5))",
	"xml": "'<a/>'::xml", "refcursor": "'c'::refcursor", "pg_snapshot": "'1:1:'::pg_snapshot", "txid_snapshot": "'1:1:'::txid_snapshot", "record": "ROW(1, 2)", "aclitem": "'truth=r/truth'::aclitem", "oidvector": "'1 2'::oidvector", "tid": "'(0,1)'::tid",
	"any": "1", "anyelement": "1", "anycompatible": "1", "anynonarray": "1", "anyarray": "ARRAY[1, 2]", "anycompatiblearray": "ARRAY[1, 2]", "anyenum": "'new'::app.status", "anyrange": "int4range(1, 5)", "anymultirange": "int4multirange(int4range(1, 5))", "anycompatiblenonarray": "1", "anycompatiblerange": "int4range(1, 5)", "anycompatiblemultirange": "int4multirange(int4range(1, 5))",
	"_text": "ARRAY['a', 'b']", "_int4": "ARRAY[1, 2]", "_int8": "ARRAY[1, 2]::int8[]", "_int2": "ARRAY[1, 2]::int2[]", "_float8": "ARRAY[0.5, 1]::float8[]", "_char": `ARRAY['a']::"char"[]`, "_oid": "ARRAY[1259]::oid[]", "_regtype": "ARRAY['int4']::regtype[]", "_name": "ARRAY['a']::name[]", "_xml": "ARRAY['<a/>']::xml[]", "_interval": "ARRAY['1 day']::interval[]", "_aclitem": "ARRAY['truth=r/truth']::aclitem[]", "_bool": "ARRAY[true]", "_varchar": "ARRAY['a']::varchar[]",
}

// builtinCalls calls every function and operator of PostgreSQL's own whose
// arguments have a literal, but for the counters of a server, which are only by
// chance the same on two.
func builtinCalls(t *testing.T, primary *truthSession) []string {
	t.Helper()
	var out []string
	ask := func(sql string, make func(name string, types []string) string) {
		rows := primary.exec(sql)
		if rows.code != "" {
			t.Fatal(rows.detail)
		}
		for line := range strings.SplitSeq(rows.answer, "\n") {
			name, list, ok := strings.Cut(line, "|")
			if !ok {
				continue
			}
			var args []string
			for typ := range strings.FieldsSeq(list) {
				l, known := literals[typ]
				if !known {
					args = nil
					name = ""
					break
				}
				args = append(args, l)
			}
			if name != "" {
				out = append(out, make(name, args))
			}
		}
	}
	ask(`SELECT p.oid::regproc::text, (SELECT string_agg(t.typname, ' ' ORDER BY i) FROM unnest(p.proargtypes) WITH ORDINALITY a(o, i) JOIN pg_type t ON t.oid = a.o)
		FROM pg_proc p WHERE p.oid < 16384 AND p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND p.proname !~ '^pg_stat_get_' AND p.prorettype NOT IN ('internal'::regtype, 'trigger'::regtype, 'event_trigger'::regtype)`,
		func(name string, args []string) string {
			return "SELECT " + strings.TrimPrefix(name, "pg_catalog.") + "(" + strings.Join(args, ", ") + ")"
		})
	ask(`SELECT p.oid::regproc::text, (SELECT string_agg(t.typname, ' ' ORDER BY i) FROM unnest(p.proargtypes) WITH ORDINALITY a(o, i) JOIN pg_type t ON t.oid = a.o)
		FROM pg_proc p JOIN pg_aggregate a ON a.aggfnoid = p.oid AND a.aggkind = 'n' WHERE p.oid < 16384 AND p.pronargs > 0`,
		func(name string, args []string) string {
			return "SELECT " + strings.TrimPrefix(name, "pg_catalog.") + "(" + strings.Join(args, ", ") + ") FROM generate_series(1, 3)"
		})
	ask(`SELECT o.oprname, l.typname || ' ' || r.typname FROM pg_operator o JOIN pg_type l ON l.oid = o.oprleft JOIN pg_type r ON r.oid = o.oprright WHERE o.oid < 16384`,
		func(name string, args []string) string { return "SELECT " + args[0] + " " + name + " " + args[1] })
	return out
}

// grammar makes statements up.
type grammar struct{ *rand.Rand }

func (g *grammar) one(list ...string) string { return list[g.IntN(len(list))] }

// source is something to read from, with a column of integers and one of text.
type source struct{ name, number, text string }

// The first ones are harmless, the rest each in its own way not.
var sources = []source{
	{"users", "id", "name"},
	{"app.users", "age", "email"},
	{"orders", "id", "note"},
	{"items", "qty", "sku"},
	{"measures", "id", "at::text"},
	{"docs", "id", "body"},
	{"active_users", "id", "name"},
	{"order_sums", "id", "name"},
	{"over", "id", "total::text"},
	{"windowed", "r", "user_id::text"},
	{"recursive", "i", "i::text"},
	{"stable_view", "id", "total::text"},
	{"twice_view", "t", "t::text"},
	{"mat", "u", "u::text"},
	{"guarded", "id", "owner"},
	{"guarded_sub", "id", "id::text"},
	{"guarded_off", "id", "id::text"},
	{"animals", "id", "name"},
	{"dogs", "id", "breed"},
	{"tenant_a.invoices", "total", "id::text"},
	{"pg_class", "relnatts", "relname::text"},
	{"mixed_a", "id", "kind"},
	{"users_of('user%')", "id", "name"},
	{"generate_series(1, 9) AS s(v)", "v", "v::text"},
	{"(VALUES (1, 'a'), (2, 'b')) AS v(n, s)", "n", "s"},
	{"(SELECT id AS n, name AS s FROM users WHERE active) AS sub", "n", "s"},
	{"unnest(ARRAY[1, 2], ARRAY['x', 'y']) AS u(n, s)", "n", "s"},
	{"json_to_recordset('[{\"n\": 1, \"s\": \"a\"}]') AS j(n int, s text)", "n", "s"},
}

var badSources = []source{
	{"view_volatile", "u", "id::text"},
	{"view_over_volatile", "u", "id::text"},
	{"view_writes", "id", "id::text"},
	{"view_next", "n", "n::text"},
	{"view_locks", "id", "id::text"},
	{"view_cache", "length(key)", "value"},
	{"view_recovery", "r::int", "r::text"},
	{"view_checked", "c", "c::text"},
	{"view_activity", "n", "n::text"},
	{"view_remote", "length(line)", "line"},
	{"cache", "length(key)", "key"},
	{"mixed", "id", "kind"},
	{"mixed_b", "id", "kind"},
	{"remote", "length(line)", "line"},
	{"tickets", "last_value", "is_called::text"},
	{"guarded_audit", "id", "id::text"},
	{"tenant_b.invoices", "total", "id::text"},
	{"undeclared_set() AS us(v)", "v", "v::text"},
	{"pg_locks", "pid", "mode"},
	{"pg_stat_user_tables", "seq_scan", "relname::text"},
}

// number and text make expressions over a source.
func (g *grammar) number(s source, depth int) string {
	if depth <= 0 {
		return g.one(s.number, s.number, "1", "42", "-3", "(2 + 2)")
	}
	n, x := func() string { return g.number(s, depth-1) }, func() string { return g.words(s, depth-1) }
	switch g.IntN(16) {
	case 0:
		return n() + g.one(" + ", " - ", " * ") + n()
	case 1:
		return "coalesce(" + n() + ", " + n() + ")"
	case 2:
		return "length(" + x() + ")"
	case 3:
		return "CASE WHEN " + g.truth(s, depth-1) + " THEN " + n() + " ELSE " + n() + " END"
	case 4:
		return "abs(" + n() + ")"
	case 5:
		return "greatest(" + n() + ", " + n() + ")"
	case 6:
		return "(SELECT count(*) FROM users WHERE id < " + n() + ")::int"
	case 7:
		return "twice((" + n() + ")::int)"
	case 8:
		return "nullif(" + n() + ", 0)"
	case 9:
		return "position('a' IN " + x() + ")"
	case 10:
		return "(" + n() + ")::int |+| 1"
	case 11:
		return "(SELECT max(o.id) FROM orders o WHERE o.user_id = " + s.number + ")"
	case 12:
		return "extract(year FROM date '2020-01-01' + (" + n() + ")::int % 100)::int"
	case 13:
		return "cardinality(ARRAY[" + n() + ", " + n() + "])"
	case 14:
		return "width_bucket(" + n() + ", 0, 100, 5)"
	}
	return s.number
}

func (g *grammar) words(s source, depth int) string {
	if depth <= 0 {
		return g.one(s.text, s.text, "'lit'", "'it''s'", "$$dollar$$")
	}
	x := func() string { return g.words(s, depth-1) }
	switch g.IntN(11) {
	case 0:
		return x() + " || " + x()
	case 1:
		return g.one("lower", "upper", "trim", "md5", "initcap", "quote_literal") + "(" + x() + "::text)"
	case 2:
		return "substr(" + x() + ", 1, 3)"
	case 3:
		return "(" + g.number(s, depth-1) + ")::text"
	case 4:
		return "to_char(" + g.number(s, depth-1) + ", '999')"
	case 5:
		return "cat(" + x() + "::text, 'z')"
	case 6:
		return "jsonb_build_object('k', " + x() + ")::text"
	case 7:
		return "CAST(" + x() + " AS varchar(20))"
	case 8:
		return "regexp_replace(" + x() + ", '[aeiou]', '_', 'g')"
	case 9:
		return "concat_ws('-', " + x() + ", " + g.number(s, depth-1) + ")"
	}
	return s.text
}

func (g *grammar) truth(s source, depth int) string {
	n, x := func() string { return g.number(s, depth-1) }, func() string { return g.words(s, depth-1) }
	switch g.IntN(12) {
	case 0:
		return n() + g.one(" = ", " < ", " >= ", " <> ") + n()
	case 1:
		return x() + g.one(" LIKE ", " ILIKE ", " NOT LIKE ") + "'%a%'"
	case 2:
		return n() + " BETWEEN 1 AND " + n()
	case 3:
		return n() + " IN (1, 2, " + n() + ")"
	case 4:
		return x() + " IS NOT NULL"
	case 5:
		return "EXISTS (SELECT 1 FROM users ex WHERE ex.id = " + n() + ")"
	case 6:
		return n() + " = ANY (ARRAY[1, 2, 3])"
	case 7:
		return x() + " ~ '^[a-z]'"
	case 8:
		if depth > 0 {
			return "(" + g.truth(s, depth-1) + g.one(" AND ", " OR ") + g.truth(s, depth-1) + ")"
		}
	case 9:
		return n() + " IS DISTINCT FROM " + n()
	case 10:
		return n() + " IN (SELECT user_id FROM orders)"
	}
	return "true"
}

// trap is an expression that a standby cannot have, or must not be asked for.
func (g *grammar) trap(s source) string {
	return g.one("undeclared("+s.number+"::int)", "note('g')", "touch(1) IS NULL", "ticket()", "nextval('tickets')", "lie_ticket()", "lie_write()", "lie_cache()",
		"lie_recovery()", "lie_txid()", "pg_is_in_recovery()", "txid_current()", "pg_current_wal_lsn()", "audit.seen(1)", "5::app.checked",
		"pg_advisory_xact_lock(3)", "sets()", "lock_me()", "lo_creat(-1)", "inet_server_port()", "lie_atomic()", "pg_notify('a', 'b')",
		"(SELECT total_volatile(id) FROM users)", "pg_relation_filepath('app.users') || pg_backend_pid()")
}

// statement makes one statement up; a sixth of them have a trap somewhere.
func (g *grammar) statement() string {
	s := sources[g.IntN(len(sources))]
	trapped := g.IntN(6) == 0
	where := -1
	if trapped {
		if where = g.IntN(9); where == 0 {
			s = badSources[g.IntN(len(badSources))]
		}
	}
	put := func(place int, sql string) string {
		if where == place {
			return g.trap(s)
		}
		return sql
	}
	var b strings.Builder
	if g.IntN(25) == 0 {
		b.WriteString(g.one("EXPLAIN ", "EXPLAIN (COSTS OFF) "))
	}
	with := ""
	if g.IntN(6) == 0 || where == 8 {
		inner := "SELECT " + put(8, "id") + " AS c FROM orders"
		if where == 8 && g.IntN(2) == 0 {
			inner = g.one("INSERT INTO audit.log (what) VALUES ('cte') RETURNING id", "UPDATE users SET active = active WHERE false RETURNING id",
				"DELETE FROM items WHERE false RETURNING id", "SELECT id FROM users FOR UPDATE")
		}
		fmt.Fprintf(&b, "WITH w(c) AS (%s) ", inner)
		with = " CROSS JOIN (SELECT count(c) AS wc FROM w) AS wj"
	}
	b.WriteString("SELECT ")
	grouped := g.IntN(4) == 0
	if grouped {
		fmt.Fprintf(&b, "%s, %s", put(1, g.one("count(*)", "sum("+g.number(s, 1)+")", "min("+s.text+")", "array_agg("+g.number(s, 0)+" ORDER BY 1)", "string_agg("+g.words(s, 1)+"::text, ',' ORDER BY 1)", "total("+s.number+"::int)")),
			g.one("avg("+s.number+")", "bool_or("+g.truth(s, 1)+")", "count(DISTINCT "+s.text+")", "jsonb_agg("+s.number+" ORDER BY 1)"))
	} else {
		b.WriteString(g.one("", "", "DISTINCT "))
		fmt.Fprintf(&b, "%s AS a, %s AS b", put(1, g.number(s, 2)), put(2, g.words(s, 2)))
		if g.IntN(5) == 0 {
			fmt.Fprintf(&b, ", row_number() OVER (ORDER BY %s, %s)", s.number, s.text)
		}
	}
	fmt.Fprintf(&b, " FROM %s%s", s.name, with)
	switch {
	case g.IntN(5) == 0:
		fmt.Fprintf(&b, " %s (SELECT %s AS jid FROM orders LIMIT 1) AS jo ON %s", g.one("JOIN", "LEFT JOIN"), put(3, "1"), g.truth(s, 1))
	case where == 3:
		fmt.Fprintf(&b, " CROSS JOIN LATERAL (SELECT %s AS l) AS lat", g.trap(s))
	}
	if g.IntN(2) == 0 || where == 4 {
		if where == 4 {
			fmt.Fprintf(&b, " WHERE concat(%s) > 'g'", g.trap(s))
		} else {
			fmt.Fprintf(&b, " WHERE %s", g.truth(s, 2))
		}
	}
	if !grouped {
		if g.IntN(3) == 0 || where == 5 {
			fmt.Fprintf(&b, " ORDER BY %s", put(5, "1, 2"))
		}
		if g.IntN(8) == 0 {
			fmt.Fprintf(&b, " LIMIT %s", put(6, "100"))
		}
		if where == 7 {
			b.WriteString(g.one(" FOR UPDATE", " FOR SHARE", " FOR NO KEY UPDATE NOWAIT"))
		} else if g.IntN(10) == 0 {
			fmt.Fprintf(&b, " %s SELECT 1, 'u'", g.one("UNION ALL", "UNION", "EXCEPT"))
		}
	}
	return b.String()
}
