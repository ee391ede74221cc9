package pool_test

import (
	"testing"
	"testing/synctest"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/pgtest"
	"pgproxy/pool"
)

// TryReply is Reply.
func (c *client) TryReply(p []byte) []byte { _ = c.Reply(p); return nil }

// Failing and Failed count nothing.
func (c *client) Failing()                {}
func (c *client) Failed(*backend.Failure) {}

// Wants returns the settings of a login.
func (c *client) Wants() *backend.Settings { return nil }

// sharing starts an acquire of one that may share a connection.
func sharing(p *pool.Pool) *client {
	c := newClient()
	c.w.Share = true
	acquireFor(p, c)
	return c
}

// asks sends one read that may be shared, which is not answered before the world
// speaks again.
func (c *client) asks(t *testing.T) {
	t.Helper()
	q := pgtest.Query("select 1")
	if err := c.conn.Send(&backend.Parcel{
		Owed: []backend.Owed{{Kind: backend.Query, Sink: c}}, Bytes: q, Trial: backend.Trial{Bytes: q, First: true, Reads: true}, Share: 3,
	}); err != nil {
		t.Errorf("send: %v", err)
	}
	synctest.Wait()
}

// TestSharedConnection: where none is idle, those who may share one stand on it, as many
// as there are seats; who needs one alone waits until all are done, and nobody overtakes
// it.
func TestSharedConnection(t *testing.T) {
	inBubble(t, func(w *world) {
		w.with(func() { w.turns = make(chan struct{}) })
		w.apply(func(c *config.Config) { c.Databases["a"].PoolSize = 1 })
		p := w.pool("a", "u")
		answer := func() {
			w.turns <- struct{}{}
			synctest.Wait()
		}
		a := sharing(p)
		if !a.got(t) {
			t.Fatal("no connection")
		}
		a.asks(t)
		b := sharing(p)
		if !b.got(t) || b.conn != a.conn {
			t.Fatal("the second has not joined the first")
		}
		b.asks(t)
		c := sharing(p)
		if !c.got(t) {
			t.Fatal("the third has not joined")
		}
		c.asks(t)
		full := sharing(p)
		if full.got(t) {
			t.Fatal("a fourth has joined where three may")
		}
		alone := acquire(p)
		if alone.got(t) {
			t.Fatal("somebody has got a connection alone that is at work")
		}
		late := sharing(p)
		if late.got(t) {
			t.Fatal("somebody has joined in front of others")
		}
		answer() // a: its seat is for who came first
		if !full.got(t) {
			t.Fatal("the seat that came free was not given to the first in line")
		}
		full.asks(t)
		for range 2 {
			answer()
		}
		if alone.got(t) || late.got(t) {
			t.Fatal("somebody has overtaken, or did not wait for the end")
		}
		answer()
		if !alone.got(t) || late.got(t) {
			t.Fatal("the connection was not given to who needs it alone")
		}
		alone.release(t)
		if !late.got(t) {
			t.Fatal("the last has no connection")
		}
		late.release(t)
		st := w.set.Stats()[0]
		if st.Counters.Shared != 3 || st.Assigned != 6 {
			t.Errorf("%d shared, %d assigned", st.Counters.Shared, st.Assigned)
		}
	})
}
