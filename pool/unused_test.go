package pool_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgproxy/config"
	"pgproxy/pool"
)

// TestUnusedPoolsAreRemoved: with "*" clients choose how many pools there are.
func TestUnusedPoolsAreRemoved(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) {
			c.Proxy.ServerIdleTimeout = 10 * time.Second
			wild := *c.Databases["a"]
			wild.Name, wild.DBName = config.Wildcard, "any"
			c.Databases[config.Wildcard] = &wild
		})
		w.with(func() { w.refuse = func(int) error { return errPassword } })
		for i := range 30 {
			_ = acquire(w.pool(fmt.Sprintf("nosuch%d", i), "u")).failed(t)
		}
		w.with(func() { w.refuse = nil })
		p, held := w.pool("a", "u"), acquire(w.pool("b", "u"))
		lends(t, "at first", p)
		held.got(t)
		pass(50 * time.Second)
		if n := len(w.set.Stats()); n != 32 {
			t.Errorf("%d pools after less than a minute, want 32", n)
		}
		lends(t, "after its connection was closed", p)
		pass(20 * time.Second)
		w.check()
		if l := w.set.Stats(); len(l) != 2 || l[0].Key.Database != "a" || l[1].Key.Database != "b" {
			t.Errorf("%d pools, want those of a and b", len(l))
		}
		pass(2 * time.Minute)
		if l := w.set.Stats(); len(l) != 1 || l[0].Key.Database != "b" {
			t.Errorf("%d pools, want the one whose connection is lent", len(l))
		}

		// Who has kept it asks again.
		if err := acquire(p).failed(t); !errors.Is(err, pool.ErrClosed) || !p.Closed() {
			t.Errorf("a pool that was removed: %v", err)
		}
		next := w.pool("a", "u")
		if next == p || next.Closed() {
			t.Error("the pool that was removed came back")
		}
		lends(t, "after its pool was removed", next)
		held.release(t)
	})
}

// TestWantedPoolsStay: a queue and min_pool_size keep a pool.
func TestWantedPoolsStay(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) {
			c.Proxy.ServerIdleTimeout = 10 * time.Second
			c.Databases["a"].MinPoolSize = 1
			c.Databases["b"].QueryWaitTimeout = time.Hour
		})
		kept := w.pool("a", "u")
		lends(t, "at first", kept)
		w.with(func() { w.refuse = func(int) error { return errFull } })
		w.reconnect()
		line := acquire(w.pool("b", "u"))
		pass(10 * time.Minute)
		if n := len(w.set.Stats()); n != 2 {
			t.Fatalf("%d pools, want 2", n)
		}
		w.with(func() { w.refuse = nil })
		pass(10 * time.Second)
		if !line.got(t) {
			t.Fatal("the waiter was not served")
		}
		line.release(t)
		if idle, _, _ := kept.Counts(); idle != 1 {
			t.Errorf("%d connections, want min_pool_size 1", idle)
		}
	})
}

// TestRemovalMeetsClients: whoever comes in the moment of the removal is served
// by the old pool or told to ask again, and counts stay right.
func TestRemovalMeetsClients(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) { c.Proxy.ServerIdleTimeout = time.Second })
		p := w.pool("a", "u")
		for i := range 20 {
			lends(t, "the pool", p)
			pass(2 * time.Second)
			// tidy comes once a second: one of these lies on its edge.
			<-time.After(time.Minute + time.Duration(i)*100*time.Millisecond)
			c := acquire(p)
			synctest.Wait()
			<-c.done
			switch {
			case c.err == nil:
				c.release(t)
			case errors.Is(c.err, pool.ErrClosed):
				p = w.pool("a", "u")
			default:
				t.Fatal(c.err)
			}
			w.check()
		}
	})
}

// TestGetOfAnotherConfiguration: a client that has not heard of the reload yet
// makes no pool that nobody would ever close.
func TestGetOfAnotherConfiguration(t *testing.T) {
	inBubble(t, func(w *world) {
		old := *w.cfg.Databases["a"]
		other := config.Server{Host: "other", Port: 5432}
		for what, change := range map[string]func(*config.Config){
			"database": func(c *config.Config) { delete(c.Databases, "a") },
			"server":   func(c *config.Config) { c.Databases["a"].Servers = []config.Server{other} },
			"user":     func(c *config.Config) { c.Databases["a"].User = "forced" },
		} {
			w.apply(change)
			p := w.set.Get("a", &old, server, "u", "")
			if err := acquire(p).failed(t); !errors.Is(err, pool.ErrClosed) || !p.Closed() {
				t.Errorf("another %s: %v", what, err)
			}
			if n := len(w.set.Stats()); n != 0 {
				t.Errorf("another %s: %d pools", what, n)
			}
		}
		// What is the same in both has the values in force.
		w.apply(func(c *config.Config) { c.Databases["a"].DBName, c.Databases["a"].PoolSize = "moved", 7 })
		lends(t, "a database that has moved", w.set.Get("a", &old, server, "u", ""))
		if n := w.set.Stats()[0].Limits.Size; w.byDB["moved"] != 1 || n != 7 {
			t.Errorf("connections %v, pool_size %d", w.byDB, n)
		}
	})
}
