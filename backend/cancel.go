package backend

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"pgproxy/wire"
)

// Cancel asks the server to cancel what it is doing for s. It reports false if
// the connection is not lent to s or owes it nothing: then nothing is sent. The
// connection is not lent to anybody else before the server has closed the
// cancel connection, since only then has the signal been delivered; where that
// cannot be known, it is never lent again. What the proxy itself has sent in
// front of the client's statement is not cancelled but waited for.
func (c *Conn) Cancel(ctx context.Context, s Sink) (sent bool, err error) {
	if c.called(s) {
		return true, nil
	}
	ctx, stop := context.WithTimeout(ctx, c.limits.CancelWait)
	defer stop()
	if !c.reached(ctx, s) {
		return false, nil
	}
	sent, err = c.signal(ctx)
	c.mu.Lock()
	c.cancels--
	c.late = c.late || sent && err != nil
	to := toNobody
	switch {
	case c.cancels > 0 || c.lost != nil:
	case c.parked:
		c.parked = false
		to = c.freeLocked()
	case c.ask != 0:
		to = c.detachLocked(0) // the question has waited for this
	}
	c.mu.Unlock()
	c.handBack(to)
	return sent, err
}

// called ends what s waits for behind others, if it does: the server has not begun
// with that, as far as anybody knows, so no cancel request is needed.
func (c *Conn) called(s Sink) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost != nil || !c.withdrawLocked(s) {
		return false
	}
	s.Failing()
	s.Failed(&Failure{Cause: CauseCanceled})
	return true
}

// reached waits until the server is at work for s, not for the proxy, and counts
// a cancel request as under way. It reports false if there is nothing to cancel.
func (c *Conn) reached(ctx context.Context, s Sink) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.holder == s {
			// Nothing of another's may be hit.
			c.share.depth = 0
			c.dismissLocked(CauseHeldUp)
		}
		if c.holder != s || c.lost != nil || c.q.empty() || len(c.secret) == 0 {
			return false
		}
		if !c.q.at(0).Own {
			c.cancels++
			return true
		}
		if c.moved == nil {
			c.moved = make(chan struct{})
		}
		moved := c.moved
		c.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
		}
		c.mu.Lock()
		if ctx.Err() != nil {
			return false
		}
	}
}

// signal sends a CancelRequest and waits for the server to close the connection.
// An error with sent true leaves it open whether the server has acted on it.
func (c *Conn) signal(ctx context.Context) (sent bool, err error) {
	return cancelRequest(ctx, func(ctx context.Context) (net.Conn, error) { return c.connect(ctx, c.network, c.dialed) },
		c.Addr, c.PID, c.secret)
}

func cancelRequest(ctx context.Context, connect func(context.Context) (net.Conn, error), addr string, pid uint32, secret []byte) (sent bool, err error) {
	nc, err := connect(ctx)
	if err != nil {
		return false, fmt.Errorf("cancel request to %s: %w", addr, err)
	}
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := nc.Write(wire.AppendCancel(nil, pid, secret)); err != nil {
		return true, fmt.Errorf("cancel request to %s: %w", addr, err)
	}
	var b [1]byte
	_, err = nc.Read(b[:])
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		return true, fmt.Errorf("cancel request to %s: the server has not closed the connection: %w", addr, context.Cause(ctx))
	}
	return true, nil
}

// killPauses are how long Kill waits for the end of a statement before it asks
// again: a cancel request that comes before the statement has begun does nothing.
var killPauses = [...]time.Duration{50 * time.Millisecond, 150 * time.Millisecond, 300 * time.Millisecond}

// Kill closes the connection. If the server is still at work for somebody, it is
// asked to stop first, since it would notice the end of the connection only when
// it has an answer.
func (c *Conn) Kill() {
	if c.strayed() {
		ctx, stop := context.WithTimeout(context.Background(), time.Second)
		_, _ = c.signal(ctx)
		stop()
	}
	for _, pause := range killPauses {
		if !c.working() {
			break
		}
		ctx, stop := context.WithTimeout(context.Background(), time.Second)
		_, _ = c.signal(ctx)
		stop()
		c.settle(pause)
	}
	c.Close()
}

// working reports whether the server may be running a statement. One that reads
// a COPY ends with the connection.
func (c *Conn) working() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.workingLocked()
}

// strayed reports, once, whether Sever has left the server at work.
func (c *Conn) strayed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.stray
	c.stray = false
	return was
}

func (c *Conn) workingLocked() bool {
	if c.lost != nil || len(c.secret) == 0 || c.q.copyIn {
		return false
	}
	for i := range c.q.n {
		if k := c.q.at(i).Kind; k == Query || k == Execute || k == Function {
			return true
		}
	}
	return false
}

// settle waits until nothing is owed, for at most d.
func (c *Conn) settle(d time.Duration) {
	c.mu.Lock()
	if c.lost != nil || !c.owingLocked() {
		c.mu.Unlock()
		return
	}
	ch := c.quietLocked()
	c.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ch:
	case <-t.C:
	}
}
