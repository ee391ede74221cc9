package pool_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/pool"
	"pgproxy/wire"
)

// send sends a query whose reply frees the connection.
func send(t *testing.T, c *client) {
	t.Helper()
	if err := c.conn.Send(&backend.Parcel{
		Owed: []backend.Owed{{Kind: backend.Query, Sink: c}}, Bytes: wire.AppendQuery(nil, "select 1"),
	}); err != nil {
		t.Errorf("send: %v", err)
	}
}

// TestSharedLimitsHoldUnderLoad: neither limit is ever exceeded, everybody is
// served, and nobody starves.
func TestSharedLimitsHoldUnderLoad(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) {
			c.Proxy.MaxUserConnections = 4
			for _, db := range c.Databases {
				db.PoolSize, db.MaxDBConnections = 3, 3
			}
		})
		var wg sync.WaitGroup
		var worst atomic.Int64
		for _, db := range []string{"a", "b"} {
			for _, user := range []string{"u", "v"} {
				p := w.pool(db, user)
				for range 8 {
					wg.Go(func() {
						c := newClient()
						for range 20 {
							start := time.Now()
							conn, err := p.Acquire(&c.w, c, 0)
							if err != nil {
								t.Errorf("acquire: %v", err)
								return
							}
							for took := int64(time.Since(start)); ; {
								if old := worst.Load(); took <= old || worst.CompareAndSwap(old, took) {
									break
								}
							}
							<-time.After(10 * time.Millisecond)
							if err := conn.Send(&backend.Parcel{}); err != nil {
								t.Errorf("send: %v", err)
							}
						}
					})
				}
			}
		}
		wg.Wait()
		synctest.Wait()
		w.with(func() {
			for db, n := range w.mostByDB {
				if n > 3 {
					t.Errorf("database %s had %d connections, max_db_connections is 3", db, n)
				}
			}
			if w.most > 6 {
				t.Errorf("%d connections in all", w.most)
			}
		})
		if d := time.Duration(worst.Load()); d > 5*time.Second {
			t.Errorf("somebody waited %v", d)
		}
	})
}

// TestBusyPoolDoesNotStarveAnother: each pool is asked for without a pause.
func TestBusyPoolDoesNotStarveAnother(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) { c.Databases["a"].MaxDBConnections = 1 })
		busy, other := w.pool("a", "busy"), w.pool("a", "other")
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				c := newClient()
				for {
					select {
					case <-stop:
						return
					default:
					}
					conn, err := busy.Acquire(&c.w, c, 0)
					if err != nil {
						t.Errorf("acquire: %v", err)
						return
					}
					<-time.After(20 * time.Millisecond)
					if err := conn.Send(&backend.Parcel{}); err != nil {
						t.Errorf("send: %v", err)
					}
				}
			})
		}
		pass(100 * time.Millisecond)
		for i := range 3 {
			c := acquire(other)
			pass(time.Second)
			if !c.got(t) {
				t.Fatalf("round %d: not served within a second", i)
			}
			c.release(t)
			pass(50 * time.Millisecond)
		}
		close(stop)
		wg.Wait()
	})
}

func TestIdleConnectionMakesRoom(t *testing.T) {
	for _, limit := range []string{"database", "user"} {
		t.Run(limit, func(t *testing.T) {
			inBubble(t, func(w *world) {
				var keeps, asks *pool.Pool
				if limit == "database" {
					w.apply(func(c *config.Config) { c.Databases["a"].MaxDBConnections = 1 })
					keeps, asks = w.pool("a", "u"), w.pool("a", "v")
				} else {
					w.apply(func(c *config.Config) { c.Proxy.MaxUserConnections = 1 })
					keeps, asks = w.pool("a", "u"), w.pool("b", "u")
				}
				// Not in the way of anybody: it must keep its connection.
				bystander := w.pool("b", "x")
				for _, p := range []*pool.Pool{keeps, bystander} {
					c := acquire(p)
					c.got(t)
					c.release(t)
				}
				c := acquire(asks)
				if !c.got(t) {
					t.Fatal("an idle connection of another pool was in the way")
				}
				if idle, _, _ := bystander.Counts(); idle != 1 {
					t.Error("a pool that shares no limit lost its connection")
				}
				c.release(t)
			})
		})
	}
}

// TestWaiterThatLeavesHoldsNoPlace: others go on.
func TestWaiterThatLeavesHoldsNoPlace(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) { c.Databases["a"].MaxDBConnections = 1 })
		x, y := w.pool("a", "x"), w.pool("a", "y")
		held := acquire(x)
		held.got(t)
		gone := acquire(y)
		synctest.Wait()
		if !gone.w.Cancel(errLeft) {
			t.Error("not cancelled")
		}
		_ = gone.failed(t)
		held.release(t)
		if idle, _, _ := x.Counts(); idle != 1 {
			t.Error("a connection was closed in favour of nobody")
		}
	})
}

// TestMinSizeDoesNotTakeFromOthers: spare connections are nobody's need.
func TestMinSizeDoesNotTakeFromOthers(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) {
			c.Databases["a"].MaxDBConnections, c.Databases["a"].MinPoolSize = 2, 2
		})
		for _, user := range []string{"x", "y"} {
			c := acquire(w.pool("a", user))
			c.got(t)
			c.release(t)
		}
		pass(3 * time.Second)
		before := w.total()
		pass(time.Minute)
		if n := w.total() - before; n > 0 {
			t.Errorf("%d connections were opened with nobody waiting", n)
		}
	})
}

func TestWaitersOfManyPoolsAreServedInTurn(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) { c.Databases["a"].MaxDBConnections = 1 })
		held := acquire(w.pool("a", "first"))
		held.got(t)
		var line []*client
		for i := range 5 {
			c := acquire(w.pool("a", fmt.Sprint("u", i)))
			pass(10 * time.Millisecond)
			line = append(line, c)
		}
		held.release(t)
		for i, c := range line {
			if !c.got(t) {
				t.Fatalf("pool %d was not served in its turn", i)
			}
			c.release(t)
		}
	})
}
