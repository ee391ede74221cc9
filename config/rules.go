package config

import (
	"net/netip"
	"slices"
	"strings"
)

// rules reads [[databases.NAME.rules]].
func (p *parser) rules(at place, db *Database) {
	list := at.child("rules")
	if list.value == nil {
		return
	}
	items, ok := list.length()
	if !ok {
		p.fault(list, "want tables [[%s]], one for each rule", list.key)
	}
	for i := range items {
		here := list.item(i)
		var r Rule
		if _, ok := here.value.(map[string]any); !ok {
			p.fault(here, "want a table [[%s]] with the keys of the rule below it", list.key)
		} else if section(p, here, ruleKeys, &r); !here.has("target") {
			p.fault(here, `no target: want "primary", "replica" or a group of servers`)
		}
		db.Rules = append(db.Rules, r)
		p.checkTarget(at, here, db, r.Target)
		p.checkReached(list, db.Rules)
	}
	if items > 0 && db.ReadWriteSplit == SplitOff {
		p.warn(list, `read_write_split is "off": no rule has an effect`)
	}
}

// checkTarget finds targets that no server can be.
func (p *parser) checkTarget(at, rule place, db *Database, target string) {
	here := rule.child("target")
	if target == "" || p.bad[here.key] || p.bad[at.child("servers").key] || !p.rolesFine(at, db) {
		return // reported
	}
	switch {
	case target == "primary":
		if !slices.ContainsFunc(db.Servers, func(s Server) bool { return s.Role != RoleReplica }) {
			p.fault(here, "all servers are replicas: want a server that may be the primary, or another target")
		}
	case target == "replica":
		if replicas(db) == 0 {
			p.fault(here, "no server can be a replica: want one more server, or another target")
		}
	case !db.HasGroup(target):
		p.fault(here, "no server is in the group %q: want it in the groups of a server, or another target", target)
	}
}

// checkReached finds out whether the last of some rules is never reached, because
// an earlier one takes all that it could.
func (p *parser) checkReached(list place, rules []Rule) {
	last := len(rules) - 1
	for i := range last {
		if p.whole(list.item(i)) && p.whole(list.item(last)) && rules[i].covers(&rules[last]) {
			p.fault(list.item(last), "the rule can never match: rules[%d] takes all that it could", i)
			return
		}
	}
}

// whole tells whether all keys of a rule could be read.
func (p *parser) whole(rule place) bool { return p.fine(rule, names(ruleKeys)...) && !p.bad[rule.key] }

// covers reports whether r fits whatever o fits. A false answer may be wrong: of
// two regular expressions only equal ones are seen to be alike.
func (r *Rule) covers(o *Rule) bool {
	return (r.User == "" || r.User == o.User) &&
		(r.ApplicationName == "" || o.ApplicationName != "" && globCovers(r.ApplicationName, o.ApplicationName)) &&
		(!r.ClientAddr.IsValid() || o.ClientAddr.IsValid() && r.ClientAddr.Bits() <= o.ClientAddr.Bits() && r.ClientAddr.Contains(o.ClientAddr.Addr())) &&
		(r.Match == nil || o.Match != nil && r.Match.String() == o.Match.String())
}

// globCovers reports whether one pattern fits all that another fits.
func globCovers(wide, narrow string) bool {
	if wide == narrow {
		return true
	}
	// A star of narrow is taken for a character that no name has: only a star of
	// wide fits it. The same goes for its question marks.
	return !strings.Contains(wide, "?") && FitsGlob(wide, strings.NewReplacer("*", "\x00", "?", "\x01").Replace(narrow))
}

// FitsGlob reports whether a text fits a pattern in which * stands for any text
// and ? for one character. It takes time in proportion to the product of their
// lengths at most.
func FitsGlob(pattern, text string) bool {
	p, t, star, from := 0, 0, -1, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, t
			p++
		case p < len(pattern) && pattern[p] == '?':
			p, t = p+1, nextRune(text, t)
		case p < len(pattern) && pattern[p] == text[t]:
			p, t = p+1, t+1
		case star >= 0:
			from++
			p, t = star+1, from
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// nextRune is where the character behind that at i begins.
func nextRune(s string, i int) int {
	for i++; i < len(s) && s[i]&0xc0 == 0x80; i++ {
	}
	return i
}

// Fits reports whether the conditions of a rule fit that say who asks. addr may be
// the zero value (a Unix socket), which fits no ClientAddr.
func (r *Rule) Fits(user, applicationName string, addr netip.Addr) bool {
	return (r.User == "" || r.User == user) &&
		(r.ApplicationName == "" || FitsGlob(r.ApplicationName, applicationName)) &&
		(!r.ClientAddr.IsValid() || r.ClientAddr.Contains(addr.Unmap().WithZone("")))
}
