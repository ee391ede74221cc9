package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"pgproxy/wire"
)

// Cancel asks the server to cancel what it is doing for s. It reports false if
// the connection is not lent to s or owes it nothing: then nothing is sent. The
// connection is not lent to anybody else before the server has closed the
// cancel connection, since only then has the signal been delivered.
func (c *Conn) Cancel(ctx context.Context, s Sink) (sent bool, err error) {
	c.mu.Lock()
	if c.holder != s || c.lost != nil || c.q.empty() {
		c.mu.Unlock()
		return false, nil
	}
	c.cancels++
	c.mu.Unlock()
	err = c.signal(ctx)
	c.mu.Lock()
	c.cancels--
	free := c.cancels == 0 && c.parked
	if free {
		c.parked = false
	}
	lost := c.lost != nil
	c.mu.Unlock()
	if !free || lost {
		return true, err
	}
	if err != nil {
		// Whether the signal is still on its way is not known.
		c.owner.Discard(c, fmt.Errorf("cancel request: %w", err))
		return true, err
	}
	c.owner.Release(c)
	return true, nil
}

// signal sends a CancelRequest and waits for the server to close the connection.
func (c *Conn) signal(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, c.limits.CancelWait)
	defer stop()
	var d net.Dialer
	nc, err := d.DialContext(ctx, c.network, c.dialed)
	if err != nil {
		return fmt.Errorf("cancel request to %s: %w", c.Addr, err)
	}
	defer nc.Close()
	if t, ok := ctx.Deadline(); ok {
		_ = nc.SetDeadline(t)
	}
	if _, err := nc.Write(wire.AppendCancel(nil, c.PID, c.secret)); err != nil {
		return fmt.Errorf("cancel request to %s: %w", c.Addr, err)
	}
	var b [1]byte
	if _, err := nc.Read(b[:]); err != nil && err != io.EOF {
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() {
			return fmt.Errorf("cancel request to %s: no end within %v", c.Addr, c.limits.CancelWait)
		}
	}
	return nil
}

// Kill closes the connection. If the server is still at work for somebody, it
// is asked to stop first, for at most a second.
func (c *Conn) Kill() {
	c.mu.Lock()
	busy := !c.q.empty() && c.lost == nil
	c.mu.Unlock()
	if busy {
		ctx, stop := context.WithTimeout(context.Background(), time.Second)
		_ = c.signal(ctx)
		stop()
	}
	c.Close()
}
