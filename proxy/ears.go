package proxy

import (
	"slices"
	"sync"

	"pgproxy/backend"
	"pgproxy/router"
	"pgproxy/wire"
)

// maxHeard bounds the notifications in bytes that wait for a client to read.
const maxHeard = 1 << 20

var errDeaf = wire.Fatalf(wire.CodeOutOfMemory, "terminating connection because its notifications are not being read").
	WithHint("More than 1 MB of them are waiting: read them, or end transactions sooner.")

// ears are what a client has that listens: its notifications on their way. They
// are written between two of its transactions, never into another message.
type ears struct {
	// Set at construction.
	s *Session

	// Owned by the session's goroutine; l is read by others.
	acts    []router.Listen          // LISTEN and UNLISTEN of the open transaction
	portals map[string]router.Listen // statements that are bound to portals
	passed  bool                     // acts may have been committed, and another transaction begun

	// Guarded by mu.
	mu        sync.Mutex
	l         *listener
	queue     []heard // to be written, in this order
	size      int     // bytes of it
	undecided bool    // acts are not known to be committed: nothing is written
	draining  bool    // drain is running
	deaf      bool    // the client is to leave

	// Guarded by the session's wmu.
	rest int // bytes left of the message that is being relayed; -1: not known
}

// heard is a message for the client; channel is "" where it is no notification.
type heard struct {
	channel string
	msg     []byte
	doubt   bool // for a LISTEN that may still be rolled back
}

// listener returns where the client listens.
func (e *ears) listener() *listener {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.l
}

// hear takes a message for the client. It does not wait. told is false for a
// channel whose LISTEN is not committed yet.
func (e *ears) hear(name string, p []byte, told bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.roomLocked(len(p)) {
		e.queue = append(e.queue, heard{name, p, !told})
		e.prodLocked()
	}
}

// roomLocked counts n bytes more. A client that does not read so many has to
// leave.
func (e *ears) roomLocked(n int) bool {
	if e.size += n; e.size > maxHeard && !e.deaf {
		e.deaf, e.queue = true, nil
		e.s.srv.goes.Add(1)
		go func() {
			defer e.s.srv.goes.Done()
			e.s.end(errDeaf)
		}()
	}
	return !e.deaf
}

// begin notes that a transaction has LISTENs or UNLISTENs.
func (e *ears) begin() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.undecided = true
}

// forget drops what was heard for LISTENs that take effect later.
func (e *ears) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dropLocked(func(h *heard) bool { return h.doubt })
}

// decide takes over what the transaction has committed: of the channels that are
// true in keep all that was heard counts, of those that are false, and of all
// others if all is set, nothing.
func (e *ears) decide(all bool, keep map[string]bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dropLocked(func(h *heard) bool {
		wanted, named := keep[h.channel]
		return h.channel != "" && !wanted && (named || all || h.doubt)
	})
	for i := range e.queue {
		e.queue[i].doubt = false
	}
	e.undecided = false
	e.prodLocked()
}

// dropLocked takes messages out of the queue.
func (e *ears) dropLocked(which func(h *heard) bool) {
	e.queue = slices.DeleteFunc(e.queue, func(h heard) bool {
		if !which(&h) {
			return false
		}
		e.size -= len(h.msg)
		return true
	})
}

// prod makes sure that what waits will be written.
func (e *ears) prod() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.prodLocked()
}

func (e *ears) prodLocked() {
	if len(e.queue) > 0 && !e.draining && !e.undecided {
		e.draining = true
		e.s.srv.goes.Add(1)
		go e.drain()
	}
}

// drain writes notifications to a client that is at rest, for as long as there
// are any. What comes while it is not at rest is written when it is again, by
// reply. Server.Close waits for its goroutine.
func (e *ears) drain() {
	defer e.s.srv.goes.Done()
	s := e.s
	for {
		s.wmu.Lock()
		if e.atRest() {
			if p := e.take(); len(p) > 0 {
				_ = s.write(p) // the session sees the error itself
				s.wmu.Unlock()
				continue
			}
		}
		e.mu.Lock()
		e.draining = false
		e.mu.Unlock()
		s.wmu.Unlock()
		return
	}
}

// tell writes what waits, if the client is at rest.
func (e *ears) tell() {
	e.s.wmu.Lock()
	defer e.s.wmu.Unlock()
	if e.atRest() {
		if p := e.take(); len(p) > 0 {
			_ = e.s.write(p) // the session sees the error itself
		}
	}
}

// atRest reports whether the client is between two messages and outside of a
// transaction. Session.wmu is held.
func (e *ears) atRest() bool {
	c := e.s.current.Load()
	if c != nil && !c.AtRest(e.s) {
		return false
	}
	e.rest = 0
	return true
}

// take returns what waits and forgets it.
func (e *ears) take() []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.undecided {
		return nil
	}
	var p []byte
	for _, h := range e.queue {
		p = append(p, h.msg...)
	}
	e.queue = nil
	e.size -= len(p)
	return p
}

// reply is Session.Reply for a client that listens: what it is to hear goes in
// front of each ReadyForQuery outside of a transaction, as PostgreSQL does it.
func (e *ears) reply(p []byte) error {
	if e.rest < 0 {
		return e.s.write(p)
	}
	at := min(e.rest, len(p))
	e.rest -= at
	for at < len(p) {
		h, err := wire.ReadHeader(p[at:], 1<<31-1)
		if err != nil { // which the server connection does not let through
			e.rest = -1
			break
		}
		if h.Type == wire.ReadyForQuery && len(p)-at >= h.Size() && wire.TxStatus(p[at+wire.HeaderLen]) == wire.TxIdle {
			if q := e.take(); len(q) > 0 {
				if err := e.s.write(append(p[:at:at], q...)); err != nil {
					return err
				}
				p, at = p[at:], 0
			}
		}
		n := min(h.Size(), len(p)-at)
		at += n
		e.rest = h.Size() - n
	}
	return e.s.write(p)
}

// owns reports whether a notification over n, from the server process pid, is
// certain to be this client's own: it has that server connection, and since the
// moment up to which all notifications are here nobody else has had it.
func (e *ears) owns(n *line, pid uint32, fenced int64) bool {
	c := e.s.current.Load()
	return c != nil && c.PID == pid && c.Addr == n.conn.Addr && c.OnlySince(e.s, fenced)
}

// lend makes sure, when a connection has been lent that may write, that owns will
// know this client's notifications from those of who had it before.
func (e *ears) lend(c *backend.Conn) {
	l := e.listener()
	l.mu.Lock()
	fenced := l.fenced
	l.mu.Unlock()
	if !c.OnlySince(e.s, fenced) {
		l.fence()
	}
}

// behind reports whether somebody's write has been acknowledged whose notifications
// may not be here.
func (e *ears) behind() bool {
	var last int64
	for _, w := range *e.s.writes.Load() {
		last = max(last, w.Load())
	}
	l := e.listener()
	l.mu.Lock()
	defer l.mu.Unlock()
	return last > l.fenced
}

// earlierFirst waits, before the client is told of the end of its transaction, for
// the notifications of it and of all that were acknowledged before. Session.wmu is
// held.
func (e *ears) earlierFirst() {
	if c := e.s.current.Load(); c != nil && c.TxStatus() == wire.TxIdle {
		e.s.wrote.Store(false)
		e.listener().fence()
	}
}

// close ends the client's listening.
func (e *ears) close() { e.listener().settle(e, true, nil) }
