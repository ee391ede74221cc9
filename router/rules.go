package router

import (
	"net/netip"
	"sync/atomic"

	"pgproxy/config"
)

// Rules are those of one database that may fit one client, whatever it sends: the
// conditions on the client hold. The value is frozen.
type Rules struct {
	list     []config.Rule
	database *config.Rule // the first of the database's rules: whose memos these are
	offset   []int        // of each of list in the database's rules
}

// RulesFor returns the rules of a database for a client; nil if none fits it.
// addr may be the zero value.
func RulesFor(db *config.Database, user, applicationName string, addr netip.Addr) *Rules {
	var r *Rules
	for i := range db.Rules {
		rule := &db.Rules[i]
		if !rule.Fits(user, applicationName, addr) {
			continue
		}
		if r == nil {
			r = &Rules{database: &db.Rules[0]}
		}
		r.list, r.offset = append(r.list, *rule), append(r.offset, i)
		if rule.Match == nil {
			break // nothing behind it is reached
		}
	}
	return r
}

// Target returns the target of the first rule that fits a statement; "" if none
// does. What the patterns say of a shape is remembered with its plan. A statement
// that has no shape is taken to fit where that keeps it on the primary, and only
// there.
func (r *Rules) Target(p *Plan) string {
	if r == nil {
		return ""
	}
	for i := range r.list {
		if r.list[i].Match == nil || r.matches(p.Draft(), i) {
			return r.list[i].Target
		}
	}
	return ""
}

// ruleMemo is what the patterns of the rules of one database say of a shape.
type ruleMemo struct {
	database     *config.Rule
	asked, found [maxMemo / 64]atomic.Uint64 // a bit for each rule
	next         *ruleMemo
}

// maxMemo is how many rules of a database are remembered, and maxMemos for how many
// databases.
const (
	maxMemo  = 128
	maxMemos = 8
)

func (r *Rules) matches(p *Plan, i int) bool {
	re := r.list[i].Match
	switch {
	case p.shape == "":
		return r.list[i].Target == TargetPrimary
	case r.offset[i] >= maxMemo:
		return re.MatchString(p.display())
	}
	m := p.memo(r.database)
	word, bit := r.offset[i]/64, uint64(1)<<(r.offset[i]%64)
	if m.asked[word].Load()&bit == 0 {
		if re.MatchString(p.display()) {
			m.found[word].Or(bit)
		}
		m.asked[word].Or(bit) // after the answer
	}
	return m.found[word].Load()&bit != 0
}

// display is the shape as people see it.
func (p *Plan) display() string { return display(p.shape) }

// memo returns the memo for the rules of a database.
func (p *Plan) memo(database *config.Rule) *ruleMemo {
	for {
		first := p.memos.Load()
		n := 0
		for m := first; m != nil; m = m.next {
			if m.database == database {
				return m
			}
			n++
		}
		m := &ruleMemo{database: database, next: first}
		if n >= maxMemos {
			m.next = nil // those of configurations that are gone
		}
		if p.memos.CompareAndSwap(first, m) {
			return m
		}
	}
}
