package backend

import (
	"net"
	"time"

	"pgproxy/wire"
)

// What others may know of a connection. Anybody may call these.

// Info is a copy of what an observer may know of a connection.
type Info struct {
	Addr, LocalAddr string
	PID             uint32
	Since           time.Time
	Requested       time.Time // when last lent; zero if never
	Holder          Sink
	Status          wire.TxStatus
	Pinned          Pin
	PinnedSince     time.Time // when state began to pin it
	PinnedBy        string    // shape of the statement that has done that
	Active          bool
	Cancelling      bool
	Owed            int
	Prepared        int
	AppName         string
	TLS             string
	IdleFor         time.Duration // since the last release; 0 while lent
	QueryFor        time.Duration // of the statement under way
	XactFor         time.Duration // of the transaction under way
	XactIdle        bool          // inside a transaction with nothing under way
}

// Info returns a copy. Anybody may call it.
func (c *Conn) Info() Info {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	i := Info{
		Addr: c.Addr, PID: c.PID, Since: c.Since, Holder: c.holder, Status: c.status,
		Pinned: c.pin.why, PinnedSince: c.pin.since, PinnedBy: c.pin.by, Active: c.holder != nil, Cancelling: c.cancels > 0, Owed: c.q.n,
		Prepared: len(c.prep.used), AppName: c.params["application_name"], TLS: DescribeTLS(c.io.NetConn()),
	}
	if a := c.io.NetConn().LocalAddr(); a != nil {
		i.LocalAddr = a.String()
	}
	if c.requested != 0 {
		i.Requested = time.Now().Add(-time.Duration(now - c.requested))
	}
	if c.holder == nil {
		i.IdleFor = time.Duration(now - c.released.Load())
	}
	if c.q.n > 0 && c.started != 0 {
		i.QueryFor = time.Duration(now - c.started)
	}
	if c.xact != 0 {
		i.XactFor = time.Duration(now - c.xact)
		i.XactIdle = c.q.n == 0 && c.status != wire.TxIdle
	}
	return i
}

// PinnedFrom returns when what ties the connection to its client began: zero if
// nothing does, the lease where it is pool_mode session.
func (i *Info) PinnedFrom() time.Time {
	if i.Pinned != 0 && i.PinnedSince.IsZero() {
		return i.Requested
	}
	return i.PinnedSince
}

// Counters returns a copy of what the connection has done.
func (c *Conn) Counters() Counters {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts
}

// Params returns a copy of the parameters that the server has reported.
func (c *Conn) Params() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := make(map[string]string, len(c.params))
	for k, v := range c.params {
		m[k] = v
	}
	return m
}

// ReleasedAt returns when the connection was last released, or opened, on the
// Dialer's clock.
func (c *Conn) ReleasedAt() int64 { return c.released.Load() }

// LentAt returns when the connection was last lent, or else opened, on the same
// clock.
func (c *Conn) LentAt() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(c.requested, c.born)
}

// Age and Idle return how long ago the connection was opened and last released.
func (c *Conn) Age() time.Duration { return time.Duration(c.now() - c.born) }

// Idle returns how long the connection has not been lent.
func (c *Conn) Idle() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Duration(c.now() - c.released.Load())
}

// LocalAddr returns the proxy's end of the connection.
func (c *Conn) LocalAddr() net.Addr { return c.io.NetConn().LocalAddr() }

// OnlySince reports whether nobody but s has had the connection since a moment,
// in nanoseconds of the connection's clock.
func (c *Conn) OnlySince(s Sink, since int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.user == s && c.before <= since
}

// AtRest reports whether s, if it has the connection, stands in no transaction
// there, and the server has said all that it will say. The caller has the right to
// write to s: then that has been written.
func (c *Conn) AtRest(s Sink) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.holder != s || !c.batch && !c.owingLocked() && c.q.settled() && c.status == wire.TxIdle
}

// TxStatus returns the state of the transaction that the server has told last.
func (c *Conn) TxStatus() wire.TxStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}
