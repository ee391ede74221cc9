package router

import (
	"strings"
	"testing"
)

func TestGuessEffects(t *testing.T) {
	const all = EffectWrite | EffectOther
	for sql, want := range map[string]Effect{
		"":                               0,
		"-- c":                           0,
		"SELECT 1":                       EffectWrite,
		"(SELECT 1)":                     EffectWrite,
		"INSERT INTO t VALUES ('x')":     EffectWrite,
		"WITH x AS (SELECT 1) TABLE x":   EffectWrite,
		"COPY t FROM STDIN":              EffectWrite | EffectCopy,
		"CREATE TABLE t (a int)":         EffectWrite | EffectDDL,
		"CREATE TEMP TABLE t (a int)":    all | EffectDDL,
		"CREATE TABLE pg_temp.t ()":      all | EffectDDL,
		`CREATE TABLE "pg_temp".t ()`:    all | EffectDDL,
		"SELECT 1 INTO TEMPORARY t":      all,
		"SELECT pg_advisory_lock(1)":     all,
		`SELECT "pg_advisory_lock"(1)`:   all,
		"SELECT PG_Try_Advisory_Lock(1)": all,
		`SELECT U&"\0061"`:               all,
		"UPDATE t SET a = set_config()":  all,
		"DELETE FROM t; SELECT 1":        EffectWrite | EffectMulti,
		"; SELECT 1":                     EffectWrite | EffectMulti,
		"SELECT 1; SET a = 1":            all | EffectMulti,
		"BEGIN":                          all,
		"LISTEN x":                       all,
		"PREPARE q AS SELECT 1":          all,
		"DO $$ x $$":                     all,
		"SELECT 'open":                   all,
		"1":                              all,
		"'x'":                            all,
	} {
		if got := guessEffects([]byte(sql)); got != want {
			t.Errorf("%s: %s, want %s", sql, got, want)
		}
	}
}

// TestGuessCoversTheAnalysis: whatever state the analysis finds, the guess has
// it too or says that nobody can tell.
func TestGuessCoversTheAnalysis(t *testing.T) {
	const state = EffectSet | EffectPrepare | EffectDeallocate | EffectDeallocateAll | EffectDiscardAll |
		EffectListen | EffectTemp | EffectAdvisoryLock | EffectHoldCursor | EffectOther
	for _, f := range fixtures(t) {
		plan, guess := analyse([]byte(f.sql)), guessEffects([]byte(f.sql))
		if plan.Tag == "" && plan.Reason != reasonMulti {
			continue // no statement, or one that no server takes
		}
		if plan.Effects.Any(state) && !guess.Any(EffectOther) {
			t.Errorf("%s: %s\nanalysis %s\n   guess %s", f.at, f.sql, plan.Effects, guess)
		}
		if missing := plan.Effects &^ guess & (EffectWrite | EffectCopy | EffectDDL | EffectMulti); missing != 0 &&
			!guess.Any(EffectOther) && plan.Tag != "SELECT" {
			t.Errorf("%s: %s\nthe guess misses %s", f.at, f.sql, missing)
		}
	}
}

func TestTextsThatAreNotParsed(t *testing.T) {
	r := New(Options{MaxParse: 1000})
	long := strings.Repeat(" ", 1001)
	for _, c := range []struct {
		sql     string
		reason  Reason
		effects Effect
		target  string
	}{
		{"SELECT 1" + long, reasonTooLarge, EffectWrite, ""},
		{"/* pgproxy: target=x */ SELECT 1" + long, reasonTooLarge, EffectWrite, "x"},
		{"SET a = 1" + long, reasonTooLarge, EffectWrite | EffectOther, ""},
		{"SELECT '\xff'", reasonEncoding, EffectWrite, ""},
		{"/* pgproxy: target=x */ SELECT '\xff'", reasonEncoding, EffectWrite, "x"},
		{"SELECT 1\x00", reasonUnreadable, EffectWrite | EffectOther, ""},
		{"SELECT " + strings.Repeat("-", 1) + strings.Repeat("(", 600) + "1", reasonTooDeep, EffectWrite, ""},
		{"SELECT 'x", reasonUnreadable, EffectWrite | EffectOther, ""},
		{"SELEC 1", reasonNoParse, EffectWrite | EffectOther, ""},
	} {
		for range 2 {
			p := r.Plan([]byte(c.sql))
			if p.Class != ClassPrimary || p.Reason != c.reason || p.Effects != c.effects || p.Target != c.target {
				t.Errorf("%.40q: target %q, %s", c.sql, p.Target, summary(p))
			}
		}
	}
	if p := TooLarge(); p.Class != ClassPrimary || !p.Effects.Has(EffectWrite|EffectOther|EffectMulti) {
		t.Errorf("TooLarge: %s", summary(p))
	}
}
