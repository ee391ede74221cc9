package backend

import (
	"slices"
	"strings"
	"time"
)

// The audit. A function or a trigger can change a session unseen: no text that the
// proxy has read says so. One in so many leases (Limits.AuditRatio) therefore ends
// with the question what the session really has. What we do not know of is cleared
// away before the connection is lent again, and reported to its owner.

// Finding is what an audit has found.
type Finding struct {
	At        time.Time
	What      []string // "setting NAME", "temporary object" and so on
	Statement string   // shape of the last statement of the client that had the connection
	// Who that client is. It need not have been the one: its predecessors may not
	// have been audited.
	User, Application, Addr string
}

// auditPause is how often at most a connection is audited, unless each lease is: an
// audit costs the server about as much as a dozen small reads.
const auditPause = time.Second

// auditDueLocked reports whether this lease is to be audited. One that ends with
// DISCARD ALL needs none. now is the time if it is known, else 0.
func (c *Conn) auditDueLocked(now int64) bool {
	ratio := c.limits.AuditRatio
	if ratio <= 0 || c.leases < ratio || c.dirty || c.unsure || c.pin.why != 0 {
		return false
	}
	if ratio == 1 {
		return true
	}
	if now == 0 {
		now = c.now()
	}
	return now-c.audited >= int64(auditPause)
}

// auditingLocked reports whether nothing is under way but an audit, which the client
// of the lease has no part in.
func (c *Conn) auditingLocked() bool {
	return c.answer != nil && c.answer.ask&askAudit != 0 && c.onlyAnswersLocked()
}

// auditedLocked compares an answer with what we believe.
func (c *Conn) auditedLocked(a *response) {
	c.leases = 0
	if a.failed {
		return
	}
	c.counts.Audits++
	var what []string
	have, want := c.normalLocked(c.rawLocked(a)), c.normalLocked(c.applied.Load())
	diff(want, have, func(s Setting) { what = append(what, "setting "+s.Name) }, func(name string) {
		v, _ := want.Get(name)
		if v != "" && (name != roleSetting || v != "none") {
			what = append(what, "setting "+name)
		}
	})
	if a.pins != 0 {
		what = append(what, strings.Split(a.pins.String(), ", ")...)
	}
	for _, name := range c.foreignLocked(a.statements) {
		what = append(what, "prepared statement "+name)
	}
	if len(what) == 0 {
		return
	}
	slices.Sort(what)
	c.counts.AuditFindings++
	c.dirty = true
	c.finding = &Finding{At: time.Now(), What: what, Statement: c.cause()}
	if f, ok := c.holder.(Follower); ok {
		c.finding.User, c.finding.Application, c.finding.Addr = f.Who()
	}
}

// TakeFinding returns what the last audit has found, once; nil if nothing.
func (c *Conn) TakeFinding() *Finding {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.finding
	c.finding = nil
	return f
}
