package router

import (
	"strings"
	"testing"
)

func TestHints(t *testing.T) {
	const bad = "hint not understood"
	for _, c := range []struct {
		sql, target string
		class       Class
		bad         bool
	}{
		{"/* pgproxy: target=replica */ SELECT 1", "replica", ClassRead, false},
		{"/*pgproxy:target=primary*/SELECT 1", "primary", ClassRead, false},
		{" \n/* PgProxy:  TARGET = Replica  */ SELECT 1", "replica", ClassRead, false},
		{"/* pgproxy: target=Analytics-2.x */ SELECT 1", "Analytics-2.x", ClassRead, false},
		{"/* pgproxy: target=replica */ DELETE FROM t", "replica", ClassPrimary, false},
		{"/* pgproxy: target=replica */", "replica", ClassAny, false},
		{"/* pgproxy: target=replica */ SET a = 1", "replica", ClassPrimary, false},
		{"/* pgproxy: target=replica */ SELECT 'open", "replica", ClassPrimary, false},
		{"/* pgproxy: target=replica */ SHOW pgproxy.a", "replica", ClassAny, false},
		{"/* pgproxy: target= */ SELECT 1", "", ClassPrimary, true},
		{"/* pgproxy: replica */ SELECT 1", "", ClassPrimary, true},
		{"/* pgproxy: target=a b */ SELECT 1", "", ClassPrimary, true},
		{"/* pgproxy: target='a' */ SELECT 1", "", ClassPrimary, true},
		{"/* pgproxy: target=é */ SELECT 1", "", ClassPrimary, true},
		{"/* pgproxy: target=a$ */ SELECT 1", "", ClassPrimary, true},
		{"/* pgproxy: node=a */ SELECT 1", "", ClassPrimary, true},
		{"/* pgproxy: target=" + strings.Repeat("x", 64) + " */ SELECT 1", "", ClassPrimary, true},
		{"/* pgproxy: target=x */ SHOW pgproxy.a", "x", ClassAny, false},
		{"/* pgproxy: x */ SHOW pgproxy.a", "", ClassPrimary, true},
		{"/* pgproxy: explain */ SELECT 1", "", ClassRead, false},
		{"/* pgproxy: explain, target=replica */ SELECT 1", "replica", ClassRead, false},
		{"/* pgproxy: target=a ,EXPLAIN */ SELECT 1", "a", ClassRead, false},
		{"/* pgproxy: target=a, target=b */ SELECT 1", "", ClassPrimary, true},
		{"/* pgproxy: explain explain */ SELECT 1", "", ClassPrimary, true},
		{"/* pgproxy: explain=1 */ SELECT 1", "", ClassPrimary, true},
		{"/* pgproxy: explain, */ SELECT 1", "", ClassPrimary, true},
		{"/* pgproxy: */ SELECT 1", "", ClassPrimary, true},
		{"/* pgproxy */ SELECT 1", "", ClassRead, false},
		{"/* x pgproxy: target=replica */ SELECT 1", "", ClassRead, false},
		{"/* a */ /* pgproxy: target=replica */ SELECT 1", "", ClassRead, false},
		{"-- pgproxy: target=replica\nSELECT 1", "", ClassRead, false},
		{"SELECT /* pgproxy: target=replica */ 1", "", ClassRead, false},
		{"SELECT '/* pgproxy: target=replica */'", "", ClassRead, false},
		{"/* /* pgproxy: target=replica */ */ SELECT 1", "", ClassRead, false},
		{"/* pgproxy: target=replica", "", ClassPrimary, false},
	} {
		r := New(Options{})
		for range 2 { // made, then found
			p := r.Plan([]byte(c.sql))
			if p.Target != c.target || p.Class != c.class || (p.Reason == bad) != c.bad {
				t.Errorf("%s: target %q, %s", c.sql, p.Target, summary(p))
			}
			if c.bad != (p.Bad != nil) || c.bad && p.Proxy != nil {
				t.Errorf("%s: refused: %v, answered by the proxy: %v", c.sql, p.Bad, p.Proxy)
			}
			if p.Explain != (!c.bad && strings.Contains(strings.ToLower(c.sql), "explain")) {
				t.Errorf("%s: explain is %v", c.sql, p.Explain)
			}
		}
	}
}

// TestHintsArePartOfTheShape: no statement gets the target of another.
func TestHintsArePartOfTheShape(t *testing.T) {
	r := New(Options{})
	for range 2 {
		for sql, want := range map[string]string{
			"SELECT 1":                               "",
			"/* pgproxy: target=primary */ SELECT 1": "primary",
			"/* pgproxy: target=replica */ SELECT 1": "replica",
			"/* pgproxy: target=a */ SELECT 1":       "a",
			"/* pgproxy: target=A */ SELECT 1":       "A",
			"/* other */ SELECT 1":                   "",
		} {
			if p := r.Plan([]byte(sql)); p.Target != want {
				t.Errorf("%s: target %q", sql, p.Target)
			}
		}
	}
	if n := r.Stats().Entries; n != 5 {
		t.Errorf("%d shapes, want 5", n)
	}
}
