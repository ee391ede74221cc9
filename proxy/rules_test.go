package proxy_test

import (
	"strings"
	"testing"

	"pgproxy/pgtest"
)

// TestRulesRoute: the first rule that fits decides, unless a hint is stronger; a
// rule by application_name follows its SET.
func TestRulesRoute(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust, Groups: map[int]string{2: "slow"}, More: `
[[databases.app.rules]]
user = "bob"
target = "primary"

[[databases.app.rules]]
application_name = "meta*"
client_addr = "127.0.0.0/8"
target = "slow"

[[databases.app.rules]]
client_addr = "192.0.2.0/24"
target = "primary"

[[databases.app.rules]]
match = "\\bpg_class\\b"
target = "primary"
`})
	slow := addrs(c)[2]
	a := h.Client(t, "application_name", "metabase")
	bob := pgtest.DialRaw(t, h.Addr)
	bob.Login(otherUser, otherSecret, "database", "app")
	for _, v := range []struct {
		c                 *pgtest.RawClient
		set, sql, to, why string
	}{
		{bob, "", "SELECT 7", "primary", "primary: rule"},
		{bob, "", "/* pgproxy: target=slow */ SELECT 7", slow, "group: hint"},
		{a, "", "SELECT 7", slow, "group: rule"},
		{a, "", "/* pgproxy: target=primary */ SELECT 7", "primary", "primary: hint"},
		{a, "", "INSERT INTO nowhere VALUES (1)", "primary", "primary: not proved a read"},
		{a, "SET application_name = 'other'", "SELECT 7", "", "replica: read"},
		{a, "", "SELECT relname FROM pg_class LIMIT 1", "primary", "primary: rule"},
		{a, "SET pgproxy.target = 'replica'", "SELECT relname FROM pg_class LIMIT 1", "", "replica: SET pgproxy.target"},
		{a, "RESET pgproxy.target", "SELECT 'pg_class'", "", "replica: read"},
		{a, "RESET application_name", "SELECT 7", slow, "group: rule"},
	} {
		if v.set != "" {
			v.c.Query(v.set)
		}
		for how, do := range both {
			do(v.c, v.sql)
			if got := route(v.c); !strings.Contains(got, ": "+v.why+" (") || v.to != "" && where(v.c) != v.to {
				t.Errorf("%s; %s, %s: %s", v.set, v.sql, how, got)
			}
		}
	}
	// Of a batch, one read that must stay on the primary is enough.
	a.Query("SET application_name = 'other'")
	a.Send(pgtest.Parse("", "SELECT 7"), pgtest.Bind("", ""), pgtest.Execute("", 0),
		pgtest.Parse("", "SELECT 1 FROM pg_class LIMIT 1"), pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.Sync())
	a.ReadUntilReady()
	if got := route(a); !strings.Contains(got, "primary: rule") {
		t.Errorf("a batch of two went to %s", got)
	}
}

// TestHintedMode: everything stays on the primary unless a hint or rule says
// otherwise.
func TestHintedMode(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: trust, Database: "read_write_split = \"hinted\"", More: `
[[databases.app.rules]]
match = "^select 8$|^select \\?, \\?$"
target = "replica"
`})
	a := h.Client(t)
	for _, v := range [][2]string{
		{"SELECT 7", "primary: read_write_split is hinted, and there is no hint"},
		{"/* pgproxy: target=replica */ SELECT 7", "replica: hint"},
		{"SELECT 7, 8", "replica: rule"},
		{"/* pgproxy: target=primary */ SELECT 7, 8", "primary: hint"},
		{"BEGIN READ ONLY; COMMIT", "primary: not proved a read"},
	} {
		sql, why := v[0], v[1]
		a.Query(sql)
		if got := route(a); !strings.Contains(got, ": "+why+" (") {
			t.Errorf("%s: %s", sql, got)
		}
	}
	a.Query("SET pgproxy.target = 'replica'")
	a.Query("SELECT 7")
	if got := route(a); !strings.Contains(got, "replica: SET pgproxy.target") {
		t.Error(got)
	}
}
