package backend

import "errors"

// ErrFenced is why a connection ends whose server must not be used any more:
// another one is the primary, or it belongs to another cluster.
var ErrFenced = errors.New("the server is not the primary any more")

// Sever ends the connection at once, for the reason given: whoever it is lent to
// loses it, and no byte of a Send goes out any more when Sever returns. Kill must
// follow; it asks the server to stop what it is still doing.
func (c *Conn) Sever(err error) {
	c.mu.Lock()
	if c.lost != nil {
		c.mu.Unlock()
		return
	}
	c.stray = c.workingLocked()
	c.lost = err
	holder, fatal, lost := c.holder, c.fatal, c.lostLocked(err)
	if f := c.diedLocked(); f != nil {
		holder.Failed(f)
		holder = nil
	}
	if c.spare = !c.relaying && c.spareLocked(); c.fresh || c.spare {
		holder = nil // it hears of it from Send
	}
	c.holder = nil
	c.loseLocked()
	c.mu.Unlock()
	// A Send may stand between its look at lost and its write.
	if w, ok := c.io.NetConn().(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
	if holder != nil {
		holder.Lost(lost, fatal)
	}
}

// Standby reports whether the server has said that it is in recovery: it takes no
// writes. Servers before PostgreSQL 14 say nothing.
func (c *Conn) Standby() bool { return c.standby.Load() }

// Unread reports whether the kernel has something from the server that our
// goroutine has not read: the end of the stream, or last words. It costs a system
// call.
func (c *Conn) Unread() bool { return c.io.Unread() }
