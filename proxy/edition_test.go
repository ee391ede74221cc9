package proxy_test

import (
	"fmt"
	"strings"
	"testing"

	"pgproxy/pgtest"
)

// parseAndRun prepares a text under a name, executes it, and returns the trace.
func parseAndRun(c *pgtest.RawClient, name, text string, params ...string) string {
	c.Send(pgtest.Parse(name, text), pgtest.Bind("", name, params...), pgtest.Execute("", 0), pgtest.Sync())
	return pgtest.Trace(c.ReadUntilReady())
}

// TestSettingsOfAParse: literals are read, and names looked up, with the settings
// of the client that has sent the Parse, whoever else has sent the same text.
func TestSettingsOfAParse(t *testing.T) {
	c := realCluster(t)
	setup(t, c, `DROP SCHEMA IF EXISTS edition1, edition2 CASCADE; CREATE SCHEMA edition1; CREATE SCHEMA edition2;
		CREATE TABLE edition1.tt AS SELECT 1 AS a; CREATE TABLE edition2.tt AS SELECT 'x'::text AS a, 2 AS b;
		GRANT ALL ON SCHEMA edition1, edition2 TO public; GRANT ALL ON edition1.tt, edition2.tt TO public`)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1"})
	const zone, table = "SELECT extract(epoch FROM '2020-01-01 00:00'::timestamptz)::bigint", "SELECT * FROM tt"
	for _, v := range []struct {
		name       string
		first      []string
		set        []string
		text, want string
	}{
		{"TimeZone", nil, []string{"SET TimeZone = 'Asia/Tokyo'"}, zone, "D(1577804400)"},
		{"TimeZone of a transaction", nil, []string{"BEGIN", "SET LOCAL TimeZone = 'Asia/Tokyo'"}, zone, "D(1577804400)"},
		{"TimeZone set in a transaction", nil, []string{"BEGIN", "SET TimeZone = 'Asia/Tokyo'"}, zone, "D(1577804400)"},
		{"after those", nil, nil, zone, "D(1577836800)"},
		{"search_path", []string{"SET search_path = edition1"}, []string{"SET search_path = edition2", "BEGIN"}, table, "D(x,2)"},
		{"search_path of a transaction", []string{"SET search_path = edition1"}, []string{"BEGIN", "SET LOCAL search_path = edition2"}, table, "D(x,2)"},
	} {
		t.Run(v.name, func(t *testing.T) {
			a, b := h.Client(t), h.Client(t)
			defer a.Terminate()
			defer b.Terminate()
			for _, sql := range v.first {
				a.Query(sql)
			}
			before := parseAndRun(a, "n", v.text)
			for _, sql := range v.set {
				b.Query(sql)
			}
			if got := parseAndRun(b, "m", v.text); !strings.Contains(got, v.want) {
				t.Errorf("got %s, want %s", got, v.want)
			}
			b.Query("ROLLBACK")
			if got, want := run(a, "n"), strings.TrimPrefix(before, "1 "); got != want {
				t.Errorf("the first client got %s, before that %s", got, want)
			}
			third := h.Client(t)
			for _, sql := range v.first {
				third.Query(sql)
			}
			if got := parseAndRun(third, "n", v.text); got != before {
				t.Errorf("a third client got %s, the first %s", got, before)
			}
			third.Terminate()
		})
	}
}

// TestParseSaysNow: 'now' is the time of the client's own Parse.
func TestParseSaysNow(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1"})
	const text = "SELECT extract(epoch FROM 'now'::timestamptz)"
	seen := make(map[string]bool)
	for range 3 {
		a := h.Client(t)
		seen[parseAndRun(a, "n", text)] = true
		a.Terminate()
	}
	if len(seen) != 3 {
		t.Errorf("three clients got %v", seen)
	}
}

// TestParseAfterDDL: what is parsed after a change of the catalog is analysed anew,
// though others have the same text prepared since before.
func TestParseAfterDDL(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1"})
	describe := func(c *pgtest.RawClient, name, text string) string {
		c.Send(pgtest.Parse(name, text), pgtest.Describe('S', name), pgtest.Sync())
		var oids string
		for _, m := range c.ReadUntilReady() {
			if m.Type == 't' {
				oids = fmt.Sprintf("%x", m.Body)
			}
			if m.Type == 'E' {
				oids = m.String()
			}
		}
		return oids
	}
	a, b := h.Client(t), h.Client(t)
	a.Query("SET client_min_messages = error; DROP TABLE IF EXISTS edition_t; DROP TYPE IF EXISTS edition_e; CREATE TYPE edition_e AS ENUM ('a'); CREATE TABLE edition_t (i int)")
	defer a.Query("DROP TABLE IF EXISTS edition_t; DROP TYPE IF EXISTS edition_e")
	const insert, enum = "INSERT INTO edition_t VALUES ($1)", "SELECT $1::edition_e"
	before, beforeEnum := describe(a, "n", insert), describe(a, "e", enum)
	for _, sql := range []string{
		"ALTER TABLE edition_t ALTER i TYPE text", "BEGIN; DROP TYPE edition_e; CREATE TYPE edition_e AS ENUM ('b'); COMMIT",
	} {
		if got := b.Query(sql); strings.Contains(got, "E(") {
			t.Fatal(got)
		}
	}
	for name, client := range map[string]*pgtest.RawClient{"who has prepared it before": a, "another": h.Client(t)} {
		if got := describe(client, "n2", insert); got == before || strings.HasPrefix(got, "E") {
			t.Errorf("%s: after ALTER TABLE the parameters are %s, before they were %s", name, got, before)
		}
		if got := describe(client, "e2", enum); got == beforeEnum || strings.HasPrefix(got, "E") {
			t.Errorf("%s: of the new type the parameters are %s, before they were %s", name, got, beforeEnum)
		}
	}
}

// TestTemporaryTablesOfOneName: what one client has prepared on its temporary table
// is not what another one's Parse of the same text gets.
func TestTemporaryTablesOfOneName(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1"})
	for i, columns := range []string{"a int", "a text, b int", "a date"} {
		a := h.Client(t)
		begin(a)
		a.Query("CREATE TEMP TABLE edition_temp (" + columns + ") ON COMMIT DROP")
		if got, want := parseAndRun(a, "n", "SELECT * FROM edition_temp"), "1 2 C(SELECT 0) Z(T)"; got != want {
			t.Errorf("client %d got %s, want %s", i, got, want)
		}
		a.Query("COMMIT")
		a.Terminate()
	}
}

// TestStalePlanOfOtherColumns: a statement that cannot be run again, since the
// client asks for columns that are no more, ends in the error by which drivers
// know that they must prepare anew.
func TestStalePlanOfOtherColumns(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1"})
	a := h.Client(t)
	a.Query("SET client_min_messages = error; DROP TABLE IF EXISTS edition_c; CREATE TABLE edition_c AS SELECT 1 AS a, 2 AS b, 3 AS c")
	defer a.Query("DROP TABLE edition_c")
	bind := pgtest.BindFormats("", "n", nil, nil, []uint16{1, 1, 1})
	a.Send(pgtest.Parse("n", "SELECT * FROM edition_c"), bind, pgtest.Execute("", 0), pgtest.Sync())
	a.ReadUntilReady()
	a.Query("ALTER TABLE edition_c DROP COLUMN b")
	a.Send(bind, pgtest.Execute("", 0), pgtest.Sync())
	msgs := a.ReadUntilReady()
	if e := msgs[0].Err(); e == nil || e.Code != "0A000" || e.Message != "cached plan must not change result type" {
		t.Errorf("got %s %v", pgtest.Trace(msgs), e)
	}
	if got, want := run(a, "n"), "2 D(1,3) C(SELECT 1) Z(I)"; got != want {
		t.Errorf("asked for without formats: got %s, want %s", got, want)
	}
}
