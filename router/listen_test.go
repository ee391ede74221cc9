package router

import (
	"slices"
	"strings"
	"testing"
)

// TestListens: which channels a text names, as the server would have them.
func TestListens(t *testing.T) {
	long := strings.Repeat("c", 70)
	cut := long[:63]
	for _, tt := range []struct {
		sql  string
		want []Listen
	}{
		{"LISTEN a", []Listen{{"a", false}}},
		{"listen Folded", []Listen{{"folded", false}}},
		{`LISTEN "Not Folded"`, []Listen{{"Not Folded", false}}},
		{`LISTEN "with ""quotes"""; `, []Listen{{`with "quotes"`, false}}},
		{`LISTEN U&"d\0061t"`, []Listen{{"dat", false}}},
		{"LISTEN /* why */ a -- so", []Listen{{"a", false}}},
		{"LISTEN " + long, []Listen{{cut, false}}},
		{`LISTEN "` + long + `"`, []Listen{{cut, false}}},
		{`LISTEN "` + strings.Repeat("é", 40) + `"`, []Listen{{strings.Repeat("é", 31), false}}},
		{"UNLISTEN a", []Listen{{"a", true}}},
		{"UNLISTEN *", []Listen{{"", true}}},
		{`LISTEN a; LISTEN "B";UNLISTEN a;`, []Listen{{"a", false}, {"B", false}, {"a", true}}},
		{"LISTEN a; SELECT 1", nil},
		{"BEGIN; LISTEN a; COMMIT", nil},
		{"NOTIFY a", nil},
		{"LISTEN", nil},
	} {
		for range 2 { // made, then found
			if got := New(Options{}).Plan([]byte(tt.sql)).Listens; !slices.Equal(got, tt.want) {
				t.Errorf("%s: %v, want %v", tt.sql, got, tt.want)
			}
		}
	}
	r := New(Options{})
	for _, name := range []string{"one", "two", `"One"`, `"ONE"`} {
		want := strings.Trim(name, `"`)
		if got := r.Plan([]byte("LISTEN " + name)).Listens; len(got) != 1 || got[0].Channel != want {
			t.Errorf("one router, LISTEN %s: %v", name, got)
		}
	}
}

// TestListenParts: each statement stands where it says.
func TestListenParts(t *testing.T) {
	const sql = " BEGIN; /* a; b */ LISTEN \"a;b\" ;;SELECT ';';\nUNLISTEN * -- the end"
	var got []string
	for _, p := range ListenParts(sql) {
		s := strings.TrimSpace(sql[p.Start:p.End])
		if p.Listen != nil {
			s += " = " + p.Listen.Channel
		}
		got = append(got, s)
	}
	if len(got) != 4 || got[0] != "BEGIN" || !strings.HasSuffix(got[1], `LISTEN "a;b" = a;b`) || got[2] != "SELECT ';'" || got[3] != "UNLISTEN * -- the end = " {
		t.Errorf("%q", got)
	}
	if got := ListenParts("LISTEN"); got != nil {
		t.Errorf("%v", got)
	}
}

// TestWithChannels: the function is replaced wherever it stands, and its columns
// keep their names.
func TestWithChannels(t *testing.T) {
	const list = `pg_catalog.unnest(E'{"a","b \\"c\\""}'::pg_catalog.text[])`
	for sql, want := range map[string]string{
		"SELECT pg_listening_channels()":                          "SELECT " + list + " AS pg_listening_channels",
		"select * from pg_catalog.pg_listening_channels()":        "SELECT * FROM " + list + " pg_listening_channels",
		"SELECT x FROM pg_listening_channels() AS x WHERE true":   "SELECT x FROM " + list + " x WHERE true",
		"SELECT count(*) FROM (SELECT pg_listening_channels()) s": "SELECT count(*) FROM (SELECT " + list + " AS pg_listening_channels) s",
		"SELECT 1": "SELECT 1",
	} {
		if got, ok := WithChannels(sql, []string{"a", `b "c"`}); !ok || got != want {
			t.Errorf("%s: %s, want %s", sql, got, want)
		}
	}
	if !New(Options{}).Plan([]byte("SELECT pg_listening_channels()")).Effects.Any(EffectChannels) {
		t.Error("the plan does not say that it asks")
	}
}
