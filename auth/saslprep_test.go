package auth

import (
	"strings"
	"testing"

	"pgproxy/config"
	"pgproxy/pgtest"
)

// passwords are prepared in every way that there is.
var passwords = []struct{ name, in, out string }{
	{"ASCII", "user", "user"},
	{"ASCII with a control character", "a\x07b", "a\x07b"},
	{"soft hyphen", "I\u00adX", "IX"},
	{"compatibility", "\u00aa", "a"},
	{"roman number", "\u2168", "IX"},
	{"ligature", "\ufb01ne", "fine"},
	{"composed", "cafe\u0301", "caf\u00e9"},
	{"no-break space", "a\u00a0b", "a b"},
	{"ideographic space", "a\u3000b", "a b"},
	{"zero-width space is a space", "a\u200bb", "a b"},
	{"zero-width joiner is nothing", "a\u200db", "ab"},
	{"nothing is left", "\u00ad", "\u00ad"},
	{"right to left", "\u0627\u0628", "\u0627\u0628"},
	{"right to left with a digit at the end", "\u0627\u00ad1", "\u0627\u00ad1"},
	{"right to left with a digit inside", "\u0627\u00ad1\u0628", "\u06271\u0628"},
	{"both directions", "\u0627a\u00ad\u0628", "\u0627a\u00ad\u0628"},
	{"private use", "\u00ad\ue000", "\u00ad\ue000"},
	{"control behind ASCII", "\u00ad\u0085", "\u00ad\u0085"},
	{"newer than Unicode 3.2", "\u00ad\U0001f600", "\u00ad\U0001f600"},
	{"not assigned", "\u00ad\u0221", "\u00ad\u0221"},
	{"Latin-1", "caf\xe9", "caf\xe9"},
	{"Greek and Cyrillic", "\u03a9\u0416", "\u03a9\u0416"},
	{"Hangul", "\u1112\u1161\u11ab", "\ud55c"},
}

func TestSASLprep(t *testing.T) {
	for _, tt := range passwords {
		if got := saslprep(tt.in); got != tt.out {
			t.Errorf("%s: %q becomes %q, want %q", tt.name, tt.in, got, tt.out)
		}
	}
	if saslprep("") != "" {
		t.Error("the empty password has changed")
	}
}

func TestTablesAreSorted(t *testing.T) {
	for _, table := range []runes{nonASCIISpaces, mappedToNothing, prohibited, rightToLeft, leftToRight, unassigned} {
		last := rune(-1)
		for _, r := range table {
			if r[0] <= last || r[1] < r[0] {
				t.Errorf("range %x behind %x", r, last)
			}
			last = r[1]
		}
	}
}

// TestSecretsOfPostgreSQL compares what is derived here with what a server makes
// of the same passwords.
func TestSecretsOfPostgreSQL(t *testing.T) {
	node := pgtest.Start(t, pgtest.Options{}).Primary
	for _, tt := range passwords {
		if strings.Contains(tt.in, "\xe9") {
			continue // no text in a database of encoding UTF8
		}
		sql := "SET password_encryption = 'scram-sha-256'; DROP ROLE IF EXISTS prep; CREATE ROLE prep PASSWORD '" + tt.in + "'"
		if err := node.Exec(t.Context(), "postgres", sql); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		text, err := node.Value(t.Context(), "postgres", "SELECT rolpassword FROM pg_authid WHERE rolname = 'prep'")
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		v, err := ParseVerifier(config.Secret(text))
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if w, err := derive(tt.in, v.salt, v.iterations); err != nil || !w.equal(v) || w.server != v.server {
			t.Errorf("%s: the server's verifier of %q is another one (%v)", tt.name, tt.in, err)
		}
	}
}
