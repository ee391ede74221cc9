package router

import (
	"slices"
	"testing"
)

func TestScanTree(t *testing.T) {
	for _, v := range []struct {
		text string
		want Tree
	}{
		{"", Tree{}},
		{"({QUERY :commandType 1 :rtable ({RTE :alias {ALIAS :aliasname \"a:funcid\\ 7\" :colnames <>} :rtekind 0 :relid 16400 :relkind r}) :rowMarks <>})", Tree{Relations: []uint32{16400}}},
		{"{FUNCEXPR :funcid 1574 :funcresulttype 20 :args ({OPEXPR :opno 96 :opfuncid 65 :args ({CONST :constvalue 4 [ 58 102 117 110 99 105 100 ]})})}", Tree{Functions: []uint32{1574}, Operators: []uint32{96}}},
		{"{ROWCOMPAREEXPR :opnos (o 97 97 98) :opfamilies (o 1 2)}", Tree{Operators: []uint32{97, 98}}},
		{"{COERCETODOMAIN :arg {RELABELTYPE :arg {VAR :varno 1} :resulttype 23} :resulttype 16500 :resulttypmod -1}", Tree{Domains: []uint32{16500}}},
		{"{QUERY :commandType 3}", Tree{Harm: "write: the query does not only read"}},
		{"{QUERY :commandType 1 :rowMarks ({ROWMARKCLAUSE :rti 1})}", Tree{Harm: "lock: FOR UPDATE or SHARE"}},
		{"{NEXTVALUEEXPR :seqid 1}", Tree{Harm: "write: nextval"}},
		{"{SOMETHINGNEW}", Tree{Harm: "not known to be harmless: SOMETHINGNEW"}},
		{
			"{AGGREF :aggfnoid 2108} {WINDOWFUNC :winfnoid 3101} {TABLESAMPLECLAUSE :tsmhandler 3313} {SORTGROUPCLAUSE :eqop 96 :sortop 97}",
			Tree{Functions: []uint32{2108, 3101, 3313}, Operators: []uint32{96, 97}},
		},
	} {
		got := ScanTree(v.text)
		if !slices.Equal(got.Functions, v.want.Functions) || !slices.Equal(got.Operators, v.want.Operators) ||
			!slices.Equal(got.Relations, v.want.Relations) || !slices.Equal(got.Domains, v.want.Domains) || got.Harm != v.want.Harm {
			t.Errorf("%s\n got %+v\nwant %+v", v.text, got, v.want)
		}
	}
}

func TestScanBody(t *testing.T) {
	for _, v := range []struct {
		text    string
		effects Effect
		writes  bool
		differs string
	}{
		{"SELECT $1 + length('x')", 0, false, ""},
		{"BEGIN RETURN (SELECT count(*) FROM t); END", 0, false, ""},
		{"BEGIN UPDATE t SET a = 1; END", 0, true, ""},
		{"BEGIN IF x THEN SET work_mem = '1MB'; END IF; END", EffectSet, false, ""},
		{"BEGIN SET LOCAL work_mem = '1MB'; END", 0, false, ""},
		{"BEGIN PERFORM set_config('a', 'b', false); END", EffectSet, false, ""},
		{"SELECT set_config('a', f(1), true)", 0, false, ""},
		{"SELECT set_config('a', 'b', $1)", EffectSet, false, ""},
		{"BEGIN CREATE TEMP TABLE x (i int); END", EffectDDL | EffectTemp, true, ""},
		{"BEGIN DROP TABLE x; END", EffectDDL, true, ""},
		{"SELECT nextval('s')", 0, true, "nextval"},
		{"SELECT pg_is_in_recovery()", 0, false, "pg_is_in_recovery"},
		{"BEGIN -- INSERT INTO t\n RETURN 'INSERT'; /* nextval( */ END", 0, false, ""},
		{"SELECT pg_advisory_lock(1)", EffectAdvisoryLock, true, ""},
		{"SELECT 1 FROM t FOR UPDATE", 0, true, ""},
		{"BEGIN LISTEN x; RESET ALL; END", EffectListen | EffectSet, false, ""},
	} {
		b := ScanBody(v.text)
		if b.Effects != v.effects || b.Writes != v.writes || b.Differs != v.differs {
			t.Errorf("%s: %s, writes %t, %q", v.text, b.Effects, b.Writes, b.Differs)
		}
	}
	b := ScanBody(`SELECT app.f(x.y), "G"(1), lower('a') FROM app.t x JOIN u ON true WHERE v = 1`)
	if !slices.Contains(b.Calls, Name{"app", "f"}) || !slices.Contains(b.Calls, Name{"", "G"}) || slices.Contains(b.Calls, Name{"", "lower"}) ||
		!slices.Contains(b.Reads, Name{"app", "t"}) || !slices.Contains(b.Reads, Name{"", "u"}) || slices.Contains(b.Reads, Name{"", "v"}) {
		t.Errorf("%+v", b)
	}
}

func TestSchemasOf(t *testing.T) {
	for value, want := range map[string][]string{
		"": {}, "  ": {}, "a": {"a"}, "A, b": {"a", "b"}, `"A",b`: {"A", "b"}, `"$user", public`: {"me", "public"}, `"a""b"`: {`a"b`}, `""`: {""},
		"$user": {"me"}, "a , b": {"a", "b"},
		"a,": nil, `"a`: nil, "a b": nil, ",": nil,
	} {
		got, ok := schemasOf(value, "me")
		if ok != (want != nil) {
			t.Errorf("%q: understood is %t", value, ok)
			continue
		}
		for _, s := range want {
			if !got[s] {
				t.Errorf("%q has no %q: %v", value, s, got)
			}
		}
		if ok && len(got) != len(want) {
			t.Errorf("%q: %v", value, got)
		}
	}
}
