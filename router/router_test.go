package router

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	pg "github.com/pganalyze/pg_query_go/v6"
)

// hot are texts whose plans are remembered, one of them long.
var hot = []string{
	"SELECT abalance FROM pgbench_accounts WHERE aid = 4711;",
	`SELECT "users".* FROM "users" WHERE "users"."id" IN (1, 2, 3) AND "users"."name" = 'x' LIMIT 10`,
	"/* pgproxy: target=replica */ SELECT 1",
	"UPDATE t SET a = $1 WHERE b = $2",
	"BEGIN",
	"SELECT * FROM t WHERE id IN (" + strings.TrimSuffix(strings.Repeat("1234,", 500), ",") + ")",
}

func TestHitAllocatesNothing(t *testing.T) {
	r := New(Options{})
	for _, sql := range hot {
		text := []byte(sql)
		r.Plan(text)
		if n := testing.AllocsPerRun(200, func() { r.Plan(text) }); n >= 1 && !raceEnabled {
			t.Errorf("%.60s: %v allocations", sql, n)
		}
	}
	if s := r.Stats(); s.Misses != uint64(len(hot)) {
		t.Errorf("not remembered: %+v", s)
	}
}

func BenchmarkPlanHit(b *testing.B) {
	for i, name := range []string{"pgbench", "orm", "hint", "update", "begin", "list500"} {
		b.Run(name, func(b *testing.B) {
			r := New(Options{})
			text := []byte(hot[i])
			r.Plan(text)
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				r.Plan(text)
			}
		})
	}
}

func BenchmarkPlanHitParallel(b *testing.B) {
	r := New(Options{})
	text := []byte(hot[0])
	r.Plan(text)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r.Plan(text)
		}
	})
}

func BenchmarkPlanMiss(b *testing.B) {
	text := []byte(hot[1])
	b.ReportAllocs()
	for b.Loop() {
		analyse(text)
	}
}

func TestPlanDoesNotKeepTheText(t *testing.T) {
	r := New(Options{})
	sql := []byte("/* pgproxy: target=abc */ SELECT secret()")
	p := r.Plan(sql)
	clear(sql)
	if want := "abc"; p.Target != want || p.Reason != "function not known to be pure: secret" {
		t.Errorf("the plan changed with the text: %q, %s", p.Target, summary(p))
	}
	set := []byte("SET a.b = 'value'")
	q := r.Plan(set)
	clear(set)
	if q.Vars[0].Value != "value" || q.Vars[0].Name != "a.b" {
		t.Errorf("the plan changed with the text: %+v", q.Vars)
	}
}

// TestNoLiteralInReasons: what the console and the log show holds no value.
func TestNoLiteralInReasons(t *testing.T) {
	r := New(Options{})
	for _, sql := range []string{
		"SELECT f('hunter2')", "SET a.b = 'hunter2'", "SELECT 'x' !!! 'hunter2'", "CREATE ROLE r PASSWORD 'hunter2'",
		"SELECT set_config('a.b', 'hunter2', true)", "SELECT $hunter$hunter2$hunter$::mytype", "SELEC 'hunter2'",
		"COPY t FROM '/hunter2'", "PREPARE TRANSACTION 'hunter2'", "SELECT 'hunter2",
	} {
		if p := r.Plan([]byte(sql)); strings.Contains(string(p.Reason), "hunter") {
			t.Errorf("%s: %s", sql, p.Reason)
		}
	}
	for _, s := range r.Shapes() {
		if strings.Contains(s.Shape, "hunter") {
			t.Errorf("remembered: %s", s.Shape)
		}
	}
}

func TestReasonsAreOneLine(t *testing.T) {
	p := New(Options{}).Plan([]byte("SELECT \"a\nb\x1b[31m" + strings.Repeat("é", 100) + "\"()"))
	if s := string(p.Reason); strings.ContainsAny(s, "\n\x1b") || len(s) > 200 {
		t.Errorf("%q", s)
	}
}

func TestShapesAreListed(t *testing.T) {
	r := New(Options{})
	for range 3 {
		r.Plan([]byte("SELECT 'a'"))
	}
	r.Plan([]byte("DELETE FROM t"))
	list := r.Shapes()
	if len(list) != 2 || list[0].Shape != "select ?" || list[0].Hits != 2 || list[0].Class != ClassRead ||
		len(list[0].Hash) != 16 || list[0].Stamped.IsZero() || list[1].Shape != "delete from t" ||
		list[1].Reason != "write: DELETE" || list[1].Hash == list[0].Hash {
		t.Errorf("%+v", list)
	}
}

func TestEffectsAreNamed(t *testing.T) {
	for i := range effectNames {
		if got := Effect(1 << i).String(); got != effectNames[i] {
			t.Errorf("bit %d is %q", i, got)
		}
	}
	if EffectSequences != 1<<(len(effectNames)-1) {
		t.Error("bits and names do not match")
	}
	if e := EffectSet | EffectTemp; e.Has(EffectSet|EffectWrite) || !e.Any(EffectSet|EffectWrite) || e.String() != "set|temp" {
		t.Error(e.String())
	}
}

// TestLists: what is on two lists would be judged by chance.
func TestLists(t *testing.T) {
	for name := range functionKinds {
		if pureFunctions[name] {
			t.Errorf("%s is on two lists", name)
		}
	}
	for _, list := range []map[string]bool{pureFunctions, pureTypes, pureCatalogs} {
		for name := range list {
			if name != strings.ToLower(name) || len(name) > 63 {
				t.Errorf("%q can never be found", name)
			}
		}
	}
	for name := range functionKinds {
		if len(name) > 63 {
			t.Errorf("%q can never be found", name)
		}
	}
}

// TestPlansAreAlike: the plan of a shape says what the analysis of the text
// itself says.
func TestPlansAreAlike(t *testing.T) {
	for _, f := range fixtures(t) {
		checkPlan(t, f.sql)
	}
}

// checkPlan holds for every text: nothing panics, a plan found is the plan
// made, in any Router, and nothing is a read that the text itself is not.
func checkPlan(t *testing.T, sql string) {
	t.Helper()
	text := []byte(sql)
	a, b := New(Options{MaxShapes: 8}), New(Options{MaxShapes: 8})
	first := a.Plan(text)
	for i, p := range []*Plan{a.Plan(text), b.Plan(text)} {
		if !reflect.DeepEqual(p, first) {
			t.Fatalf("%q\nfirst %s\n%5d %s", sql, summary(first), i, summary(p))
		}
	}
	if a.Stats().Panics+b.Stats().Panics != 0 {
		t.Fatalf("%q: the analysis panicked", sql)
	}
	if string(text) != sql {
		t.Fatalf("%q: the text was changed", sql)
	}
	if !lexable(sql) {
		if first.Class != ClassPrimary {
			t.Fatalf("%q: %s", sql, summary(first))
		}
		return
	}
	direct := analyse(text)
	if direct.Reason == reasonNoParse || direct.Reason == reasonUnreadable {
		return // refused for what its literals hold, or not at all
	}
	if first.Class != ClassPrimary && first.Class != direct.Class || direct.Effects&^first.Effects != 0 {
		t.Fatalf("%q\n  text %s\n shape %s", sql, summary(direct), summary(first))
	}
	if len(first.Vars) > 0 && !reflect.DeepEqual(first.Vars, direct.Vars) ||
		first.Proxy != nil && !reflect.DeepEqual(first.Proxy, direct.Proxy) {
		t.Fatalf("%q\n  text %s\n plan %s", sql, summary(direct), summary(first))
	}
	if first.Class == ClassRead {
		checkRead(t, sql)
	}
}

// checkRead looks for writes and locks in another way than the analysis does.
func checkRead(t *testing.T, sql string) {
	t.Helper()
	tree, err := pg.ParseToJSON(sql)
	if err != nil {
		return
	}
	for _, node := range []string{
		"InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt", "LockingClause", "intoClause", "CopyStmt", "CallStmt",
		"DoStmt", "CreateStmt", "CreateTableAsStmt", "VariableSetStmt", "PrepareStmt", "ExecuteStmt",
	} {
		if strings.Contains(tree, fmt.Sprintf("%q:{", node)) {
			t.Fatalf("%q is a read, but has %s", sql, node)
		}
	}
	for name, kind := range functionKinds {
		call := fmt.Sprintf(`{"String":{"sval":%q}}]`, name)
		if kind != functionUnknown && strings.Contains(tree, `"funcname":[`+call) {
			t.Fatalf("%q is a read, but calls %s", sql, name)
		}
	}
}
