package proxy

import (
	"context"
	"fmt"
	"strings"

	"pgproxy/backend"
	"pgproxy/pool"
	"pgproxy/router"
	"pgproxy/wire"
)

// line is one server connection of a listener. The connection sees it as its
// client; these methods are called by the connection's goroutine and wait for no
// client.
type line struct {
	// Set at construction.
	l    *listener
	pool *pool.Pool
	conn *backend.Conn
	lost chan struct{} // closed by Lost

	mute

	// Owned by the connection's goroutine.
	in  messages
	err *wire.Error // of the request that is being answered

	// Guarded by listener.mu.
	asked []*request // sent, not answered yet
}

var _ backend.Sink = (*line)(nil)

// send writes a request. listener.sending is held.
func (n *line) send(r *request) error {
	r.sent = router.Nanotime()
	n.l.mu.Lock()
	select {
	case <-n.lost:
		n.l.again(r)
		n.l.mu.Unlock()
		return backend.ErrGone
	default:
	}
	n.asked = append(n.asked, r)
	n.l.mu.Unlock()
	return n.conn.Send(&backend.Parcel{
		Owed: []backend.Owed{{Kind: backend.Query, Sink: n}}, Bytes: wire.AppendQuery(nil, r.sql),
	})
}

// wait returns the outcome of a request.
func (n *line) wait(ctx context.Context, r *request) error {
	select {
	case err := <-r.done:
		return err
	case <-n.lost:
		return backend.ErrGone
	case <-ctx.Done():
		return ctx.Err()
	}
}

// end closes the line and returns when nothing of it is left. What it has been
// asked for waits for the next one.
func (n *line) end() {
	n.pool.Forgo(n.conn)
	n.conn.Wait()
	<-n.lost
}

// again puts a request that has had no answer in line for the next connection.
// listener.mu is held.
func (l *listener) again(r *request) {
	switch {
	case r.over:
	case r.once || l.ended:
		r.finish(errListenerEnded)
	default:
		l.waiting = append(l.waiting, r)
	}
}

// Reply takes what the server says.
func (n *line) Reply(p []byte) error { return n.in.each(p, n.message) }

func (n *line) message(typ byte, body []byte) {
	switch typ {
	case wire.NotificationResponse:
		if pid, name, payload, err := wire.ReadNotification(body); err == nil {
			n.l.deliver(n, pid, name, payload)
		}
	case wire.ErrorResponse:
		n.err = wire.ReadError(body)
	case wire.ReadyForQuery:
		n.l.mu.Lock()
		defer n.l.mu.Unlock()
		if len(n.asked) == 0 {
			return
		}
		r := n.asked[0]
		n.asked = n.asked[1:]
		n.l.fenced = max(n.l.fenced, r.sent)
		var err error
		if n.err != nil {
			err = fmt.Errorf("listener: %w", n.err)
		}
		n.err = nil
		r.finish(err)
	}
}

// Lost takes the line out of service.
func (n *line) Lost(err error, _ bool) {
	n.l.mu.Lock()
	defer n.l.mu.Unlock()
	if n.l.line == n {
		n.l.line = nil
		n.l.stats.LastError = err.Error()
	}
	for _, r := range n.asked {
		n.l.again(r)
	}
	n.asked = nil
	close(n.lost)
}

// quoteName quotes a name for SQL.
func quoteName(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }
