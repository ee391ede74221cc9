package router

import (
	"net/netip"
	"regexp"
	"sync"
	"testing"

	"pgproxy/config"
)

func TestRules(t *testing.T) {
	db := &config.Database{Rules: []config.Rule{
		{User: "batch", Target: "slow"},
		{Match: regexp.MustCompile(`\bfrom audit\b`), Target: "primary"},
		{ApplicationName: "meta*", Match: regexp.MustCompile(`\?`), Target: "replica"},
		{ClientAddr: netip.MustParsePrefix("10.0.0.0/8"), Target: "fast"},
	}}
	r := New(Options{})
	near, far := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("192.168.0.1")
	for _, c := range []struct {
		user, name string
		addr       netip.Addr
		sql, want  string
	}{
		{"batch", "", far, "SELECT 1", "slow"},
		{"batch", "", far, "SELECT * FROM audit", "slow"}, // the first one
		{"web", "", far, "SELECT 1", ""},
		{"web", "", far, "select * from AUDIT", "primary"},
		{"web", "", far, "SELECT * FROM audit_log", ""},
		{"web", "", far, "SELECT 'from audit'", ""}, // literals are no part of the shape
		{"web", "metabase", far, "SELECT 'from audit'", "replica"},
		{"web", "metabase", far, "SELECT x", ""},
		{"web", "", near, "SELECT 1", "fast"},
		{"web", "", netip.Addr{}, "SELECT 1", ""},
		{"web", "", far, "SET a = 1", "primary"}, // without a shape
		{"web", "metabase", near, "SELECT U&'a' UESCAPE '!'", "primary"},
	} {
		for range 2 {
			if got := RulesFor(db, c.user, c.name, c.addr).Target(r.Plan([]byte(c.sql))); got != c.want {
				t.Errorf("%+v: %q", c, got)
			}
		}
	}
	if RulesFor(&config.Database{}, "web", "", far) != nil {
		t.Error("rules of a database without rules")
	}
}

// TestRulesOfManyDatabases: what is remembered of a shape is that of its database,
// whoever asks at the same time.
func TestRulesOfManyDatabases(t *testing.T) {
	r := New(Options{})
	plan := r.Plan([]byte("SELECT a FROM b"))
	var wg sync.WaitGroup
	for n := range 3 * maxMemos {
		wg.Go(func() {
			db := &config.Database{}
			for i := range maxMemo + 2 {
				re := "nothing"
				if i == n*6 {
					re = "a from b"
				}
				db.Rules = append(db.Rules, config.Rule{Match: regexp.MustCompile(re), Target: re})
			}
			for range 3 {
				got := RulesFor(db, "", "", netip.Addr{}).Target(plan)
				if want := n*6 < len(db.Rules); (got == "a from b") != want {
					t.Errorf("database %d: %q", n, got)
				}
			}
		})
	}
	wg.Wait()
}

func TestRulesAllocateNothing(t *testing.T) {
	db := &config.Database{Rules: []config.Rule{{Match: regexp.MustCompile("x"), Target: "a"}, {Match: regexp.MustCompile("select"), Target: "b"}}}
	rules := RulesFor(db, "", "", netip.Addr{})
	plan := New(Options{}).Plan([]byte("SELECT 1"))
	rules.Target(plan)
	if n := testing.AllocsPerRun(100, func() { rules.Target(plan) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
