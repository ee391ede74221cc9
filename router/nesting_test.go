package router

import (
	"strings"
	"testing"
)

func TestTooDeep(t *testing.T) {
	rep := strings.Repeat
	for _, c := range []struct {
		name, sql string
		deep      bool
	}{
		{"brackets", "SELECT " + rep("(", 400) + "1" + rep(")", 400), false},
		{"deep brackets", "SELECT " + rep("(", 600) + "1" + rep(")", 600), true},
		{"subqueries", rep("SELECT (", 600) + "1" + rep(")", 600), true},
		{"sum", "SELECT 1" + rep("+1", 600), true},
		{"minus", "SELECT " + rep("- ", 600) + "1", true},
		{"not", "SELECT " + rep("NOT ", 600) + "true", true},
		{"casts", "SELECT 1" + rep("::int", 600), true},
		{"tests", "SELECT 1" + rep(" IS NULL", 600), true},
		{"union", "SELECT 1" + rep(" UNION ALL SELECT 1", 600), true},
		{"joins", "SELECT * FROM a" + rep(" NATURAL JOIN a", 600), true},
		{"arrays", "SELECT " + rep("ARRAY[", 600) + "1" + rep("]", 600), true},
		{"cases", "SELECT " + rep("CASE WHEN true THEN ", 600) + "1" + rep(" END", 600), true},
		{"and", "SELECT * FROM t WHERE a = 1" + rep(" AND a = 1", 5000), false},
		{"or", "SELECT * FROM t WHERE a = 1" + rep(" OR a IS NOT NULL", 5000), false},
		{"list", "SELECT a = 1" + rep(", a = 1", 5000), false},
		{"rows", "INSERT INTO t VALUES (1 + 1)" + rep(", (1 + 1)", 5000), false},
		{"statements", rep("SELECT 1 + 1;", 5000), false},
		{"siblings", "SELECT f(1)" + rep(", f((1))", 5000), false},
		{"calls", "SELECT " + rep("abs(", 600) + "1" + rep(")", 600), true},
		{"brackets that close too often", rep(")", 5000), false},
		{"indirection", "SELECT (a)" + rep(".b", 5000), false},
		{"subscripts", "SELECT a" + rep("[1]", 5000), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			deep, ok := tooDeep([]byte(c.sql))
			if deep != c.deep || !ok {
				t.Errorf("deep %t, ok %t", deep, ok)
			}
			// Must not end the process, whatever it is.
			r := New(Options{})
			if p := r.Plan([]byte(c.sql)); c.deep && p.Reason != reasonTooDeep || r.Stats().Panics != 0 {
				t.Errorf("%s", summary(p))
			}
		})
	}
}

func TestTooDeepSeesBadTokens(t *testing.T) {
	if _, ok := tooDeep([]byte("SELECT 'open")); ok {
		t.Error("an open string is not seen")
	}
}
