package backend

import (
	"strings"
	"time"
)

// Pin is a set of reasons why a connection stays with its client when a
// transaction ends.
type Pin uint16

const (
	// PinBrief lasts for one statement whose end is being waited for.
	PinBrief Pin = 1 << iota
	// PinSession is pool_mode session.
	PinSession
	// PinCommit lasts until it is known what a transaction has committed.
	PinCommit
	// PinApart is a connection that the proxy has for itself.
	PinApart
	// PinStatement is a prepared statement that is too long to be kept.
	PinStatement
	// PinSetting is a setting that cannot be told, and so not be carried along.
	PinSetting
	// PinHidden is a setting whose name cannot be told.
	PinHidden
	// PinLock is an advisory lock that outlives the transaction.
	PinLock
	// PinTemp is a temporary table or another object in pg_temp.
	PinTemp
	// PinCursor is a cursor WITH HOLD.
	PinCursor
	// PinListen is LISTEN.
	PinListen
	// PinPrepare is a statement of SQL's PREPARE.
	PinPrepare
)

const (
	// askable are the reasons of which the server can tell whether they still hold.
	askable = PinLock | PinTemp | PinCursor | PinListen | PinPrepare
	// PinState are the reasons that come from what a client has left in its
	// session: those that max_pinned and on_session_state are for.
	PinState = askable | PinStatement | PinSetting | PinHidden
	// PinAll are all reasons.
	PinAll = PinState | PinBrief | PinSession | PinCommit | PinApart
)

var pinNames = [...]string{
	"setting being changed", "pool_mode session", "LISTEN in a transaction", "the proxy's own", "prepared statement longer than max_query_parse_size",
	"setting that cannot be followed", "setting whose name cannot be told", "session advisory lock", "temporary object", "cursor WITH HOLD", "LISTEN", "PREPARE",
}

// String lists the reasons, joined by commas; "" for none.
func (p Pin) String() string {
	var b strings.Builder
	for i, name := range pinNames {
		if p&(1<<i) == 0 {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		b.WriteString(name)
	}
	return b.String()
}

// pin is why a connection stays with its client, since when, and because of what.
type pin struct {
	why   Pin
	since time.Time // when PinState began
	by    string    // shape of the statement that began it
	owned bool      // the owner has counted it
}

// Pin ties the connection, which must be kept with Lend or Hold, to its client
// for a reason of PinState. by tells the shape of the statement that leaves it;
// it is called only if nothing of that kind pins the connection yet. It reports
// false, and changes nothing, if its owner has too many pinned connections.
func (c *Conn) Pin(why Pin, by func() string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.pin.owned {
		if !c.owner.Pin(false) {
			return false
		}
		c.pin.owned = true
		c.pin.since, c.pin.by = time.Now(), by()
		c.counts.Pins++
	}
	c.pin.why |= why
	if why&askable != 0 {
		c.ask |= AskObjects // the transaction may end without it
	}
	return true
}

// Unpin ends the reasons given, and releases the connection if nothing else holds
// it.
func (c *Conn) Unpin(why Pin) {
	c.mu.Lock()
	c.unpinLocked(why)
	to := c.detachLocked(0)
	c.mu.Unlock()
	c.handBack(to)
}

func (c *Conn) unpinLocked(why Pin) {
	c.pin.why &^= why
	if c.pin.owned && c.pin.why&PinState == 0 {
		c.owner.Unpin()
		c.pin = pin{why: c.pin.why}
	}
}

// Pinned returns the reasons why the connection stays with s; 0 if it is not lent
// to s.
func (c *Conn) Pinned(s Sink) Pin {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holder != s {
		return 0
	}
	return c.pin.why
}
