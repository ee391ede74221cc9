package config

import (
	"net/netip"
	"strings"
	"testing"
)

func TestFitsGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"metabase*", "metabase", true},
		{"metabase*", "metabase 0.5", true},
		{"metabase*", "Metabase", false},
		{"*", "", true},
		{"?", "", false},
		{"?", "é", true},
		{"a?c", "abc", true},
		{"a?c", "ac", false},
		{"*x*y", "axbxcy", true},
		{"*x*y", "axbxc", false},
		{"", "", true},
		{"", "a", false},
		{"a**b", "ab", true},
		{strings.Repeat("*a", 50) + "b", strings.Repeat("a", 5000), false}, // in time
	} {
		if got := FitsGlob(c.pattern, c.text); got != c.want {
			t.Errorf("FitsGlob(%.20q, %.20q) = %v", c.pattern, c.text, got)
		}
	}
}

// TestGlobCovers: a pattern that covers another fits all that the other fits.
func TestGlobCovers(t *testing.T) {
	patterns := []string{"*", "a*", "*a", "a", "ab", "a?", "?", "??", "*a*", "a*b", "ab*", "*?", "b"}
	texts := []string{"", "a", "b", "ab", "ba", "aa", "aab", "abab", "é", "aé"}
	for _, wide := range patterns {
		for _, narrow := range patterns {
			if !globCovers(wide, narrow) {
				continue
			}
			for _, text := range texts {
				if FitsGlob(narrow, text) && !FitsGlob(wide, text) {
					t.Errorf("%q is said to cover %q, which fits %q", wide, narrow, text)
				}
			}
		}
	}
	if !globCovers("meta*", "metabase-?") || !globCovers("*", "x") {
		t.Error("not seen to cover")
	}
}

func TestRuleFits(t *testing.T) {
	r := Rule{User: "bob", ApplicationName: "a*", ClientAddr: netip.MustParsePrefix("10.0.0.0/8")}
	addr := netip.MustParseAddr
	for _, c := range []struct {
		user, name string
		addr       netip.Addr
		want       bool
	}{
		{"bob", "abc", addr("10.1.2.3"), true},
		{"bob", "abc", addr("::ffff:10.1.2.3"), true},
		{"alice", "abc", addr("10.1.2.3"), false},
		{"bob", "b", addr("10.1.2.3"), false},
		{"bob", "abc", addr("11.1.2.3"), false},
		{"bob", "abc", netip.Addr{}, false},
	} {
		if got := r.Fits(c.user, c.name, c.addr); got != c.want {
			t.Errorf("%s %s %v: %v", c.user, c.name, c.addr, got)
		}
	}
	if !(&Rule{}).Fits("x", "", netip.Addr{}) {
		t.Error("a rule without conditions does not fit")
	}
}
