package pool_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/pool"
)

// flood keeps n clients of a pool busy with statements of 10 ms until stop is
// closed, and counts in served what each of them has had.
func flood(t *testing.T, wg *sync.WaitGroup, p *pool.Pool, n int, stop chan struct{}) (served []atomic.Int64) {
	served = make([]atomic.Int64, n)
	for i := range n {
		wg.Go(func() {
			c := newClient()
			for {
				select {
				case <-stop:
					return
				default:
				}
				conn, err := p.Acquire(&c.w, c, 0)
				if err != nil {
					t.Errorf("acquire: %v", err)
					return
				}
				<-time.After(10 * time.Millisecond)
				if err := conn.Send(&backend.Parcel{}); err != nil {
					t.Errorf("send: %v", err)
				}
				served[i].Add(1)
			}
		})
	}
	return served
}

func sum(list []atomic.Int64) (n int) {
	for i := range list {
		n += int(list[i].Load())
	}
	return n
}

// TestFairShares: pools that all want more than they can have get equal parts of
// max_host_connections, whoever came first and however many clients it has; those
// that want less get what they want. Counted are statements that were served, of
// which nobody has less than half of what an equal part of the connections serves.
func TestFairShares(t *testing.T) {
	for _, x := range []struct {
		limit   int
		clients []int // of each pool
		want    []int // connections' worth of each pool, in tenths
	}{
		{4, []int{50, 4}, []int{20, 20}},
		{5, []int{50, 50}, []int{25, 25}},
		{6, []int{50, 1, 9}, []int{25, 10, 25}},
		{10, []int{50, 2, 2, 2}, []int{40, 20, 20, 20}},
		{2, []int{50, 50, 50}, []int{7, 7, 7}}, // in turn
		{1, []int{50, 3}, []int{5, 5}},
		{3, []int{50, 20, 20, 20, 20}, []int{6, 6, 6, 6, 6}},
	} {
		t.Run(fmt.Sprint(x.limit, " for ", x.clients), func(t *testing.T) {
			inBubble(t, func(w *world) {
				w.apply(func(c *config.Config) {
					c.Proxy.MaxHostConnections = x.limit
					for _, db := range c.Databases {
						db.PoolSize = 20
					}
				})
				stop := make(chan struct{})
				var wg sync.WaitGroup
				var served [][]atomic.Int64
				for i, n := range x.clients { // the first has all for a while
					served = append(served, flood(t, &wg, w.pool([]string{"a", "b"}[i%2], fmt.Sprint("u", i)), n, stop))
					pass(300 * time.Millisecond)
				}
				pass(2 * time.Second)
				var before []int
				for _, s := range served {
					before = append(before, sum(s))
				}
				logins := w.total()
				const seconds = 20
				pass(seconds * time.Second)
				for i, s := range served {
					// A connection serves 100 statements a second.
					n, fair := sum(s)-before[i], x.want[i]*10*seconds
					if n*2 < fair {
						t.Errorf("pool %d: %d statements, an equal part is %d", i, n, fair)
					}
					// Within a pool as well.
					for j := range s {
						if m := int(s[j].Load()); m*4*len(s) < sum(s) {
							t.Errorf("pool %d: client %d was served %d times of %d", i, j, m, sum(s))
						}
					}
				}
				// Connections do not change hands for each statement.
				if n := w.total() - logins; n > seconds*10*x.limit {
					t.Errorf("%d logins in %d s", n, seconds)
				}
				w.with(func() {
					if w.most > x.limit {
						t.Errorf("%d connections, max_host_connections is %d", w.most, x.limit)
					}
				})
				close(stop)
				wg.Wait()
			})
		})
	}
}

// TestNewcomerGetsItsShareAtOnce: it waits for as many statements as come to an end,
// and not for those that stand in line.
func TestNewcomerGetsItsShareAtOnce(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) { c.Proxy.MaxHostConnections, c.Databases["a"].PoolSize = 4, 4 })
		greedy := w.pool("a", "greedy")
		var held []*client
		for range 40 {
			c := acquire(greedy)
			synctest.Wait()
			held = append(held, c)
		}
		other := w.pool("b", "other")
		x, y := acquire(other), acquire(other)
		synctest.Wait()
		if x.got(t) || y.got(t) {
			t.Fatal("more connections than max_host_connections")
		}
		held[0].release(t)
		held[1].release(t)
		if !x.got(t) || !y.got(t) {
			t.Error("a connection that came free went to the pool with four, not to that with none")
		}
		z := acquire(other)
		held[2].release(t)
		if z.got(t) || !held[4].got(t) {
			t.Error("a connection went to a pool that has as many as the other")
		}
		x.release(t)
		if !z.got(t) {
			t.Error("a pool within its part lost a connection that it needs")
		}
		y.release(t)
		z.release(t)
		stop := held[3:5]
		for ; len(stop) > 0; stop = stop[1:] {
			stop[0].release(t)
		}
		for _, c := range held[5:] { // in the order in which they came
			if pass(slice); !c.got(t) {
				t.Fatal("not served")
			}
			c.release(t)
		}
	})
}

// slice is longer than an unused connection is left to a pool that has no more than
// its part.
const slice = 400 * time.Millisecond

// TestShareIsKeptForASlice: who comes back within 200 ms finds its connection,
// although others wait; whoever stays away longer gives it up.
func TestShareIsKeptForASlice(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) { c.Proxy.MaxHostConnections = 2 })
		rare, busy := w.pool("a", "rare"), w.pool("b", "busy")
		stop := make(chan struct{})
		var wg sync.WaitGroup
		flood(t, &wg, busy, 10, stop)
		pass(50 * time.Millisecond)
		for i := range 10 {
			c := acquire(rare)
			if pass(50 * time.Millisecond); !c.got(t) {
				t.Fatal("not served")
			}
			c.release(t)
			if i == 0 {
				w.with(func() { w.opened = 0 })
			}
		}
		if n := w.total(); n != 0 {
			t.Errorf("%d logins for a client that comes back each 50 ms", n)
		}
		pass(time.Second)
		if idle, _, _ := rare.Counts(); idle != 0 {
			t.Error("an unused connection stays while others wait")
		}
		close(stop)
		wg.Wait()
	})
}

// TestManyWaitersHideNobody: an unused connection is found for who waits for it, also
// where many others wait for what does not come free.
func TestManyWaitersHideNobody(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) {
			c.Databases["a"].MaxDBConnections, c.Databases["b"].MaxDBConnections = 1, 2
		})
		held := acquire(w.pool("a", "u"))
		held.got(t)
		var line []*client
		for i := range 40 {
			line = append(line, acquire(w.pool("a", fmt.Sprint("waits", i))))
			synctest.Wait()
		}
		rare, busy := acquire(w.pool("b", "rare")), acquire(w.pool("b", "busy"))
		rare.got(t)
		busy.got(t)
		rare.release(t)
		c := acquire(w.pool("b", "busy"))
		if c.got(t) {
			t.Error("a pool within its part lost what it has just used")
		}
		if pass(slice); !c.got(t) {
			t.Error("an unused connection was not found")
		}
		for _, x := range line {
			x.w.Cancel(errLeft)
		}
		for _, x := range []*client{held, busy, c} {
			x.release(t)
		}
	})
}

// TestHostLimitCountsEverything: connections of Dial, of guests and dials under way.
func TestHostLimitCountsEverything(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) { c.Proxy.MaxHostConnections = 3 })
		ears := newClient()
		conn, err := w.pool("a", "u").Dial(context.Background(), ears)
		if err != nil {
			t.Fatal(err)
		}
		var yields atomic.Int64
		var guests *pool.Guests
		key := pool.Key{Database: "b", User: "asks", Server: server.Addr()}
		guests = w.set.Guests(func(k pool.Key, _ bool) bool {
			if yields.Add(1) > 1 {
				return false
			}
			guests.Leave(k)
			return true
		})
		never := func() bool { return false }
		if ok, err := guests.Enter(context.Background(), key, never); !ok || err != nil {
			t.Fatal(err)
		}
		if !guests.TryEnter(key) || guests.TryEnter(key) {
			t.Error("a guest has no place, or one too many")
		}
		ctx, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		other := pool.Key{Database: "b", User: "late", Server: server.Addr()}
		yields.Store(1)
		if ok, err := guests.Enter(ctx, other, never); ok || !errors.Is(err, pool.ErrNoRoom) {
			t.Errorf("error %v", err)
		}
		var kept atomic.Bool
		time.AfterFunc(time.Second, func() { kept.Store(true); guests.Nudge(other) })
		if ok, err := guests.Enter(context.Background(), other, kept.Load); ok || err != nil {
			t.Errorf("entered %t, error %v, although another connection would do", ok, err)
		}
		yields.Store(0)
		c := acquire(w.pool("b", "v"))
		if !c.got(t) || yields.Load() == 0 {
			t.Error("a guest that has two places kept both while somebody waits")
		}
		if u := w.set.Hosts(); len(u) != 1 || u[0] != (pool.Host{Server: server.Addr(), Most: 3, Used: 3, Waiting: 0}) {
			t.Errorf("hosts: %+v", u)
		}
		guests.Leave(key)
		c.release(t)
		w.pool("a", "u").Forgo(conn)
	})
}

// TestPlaceIsFreeWhenTheServerSaysSo: a server counts a connection for as long as the
// process behind it lives, which is longer than the proxy needs to close it. One that
// does not go is not waited for without end.
func TestPlaceIsFreeWhenTheServerSaysSo(t *testing.T) {
	for _, x := range []struct {
		linger, wait time.Duration
		most         int
	}{{300 * time.Millisecond, 400 * time.Millisecond, 1}, {time.Minute, 1100 * time.Millisecond, 2}} {
		t.Run(x.linger.String(), func(t *testing.T) {
			inBubble(t, func(w *world) {
				w.with(func() { w.linger = x.linger })
				w.apply(func(c *config.Config) { c.Proxy.MaxHostConnections = 1 })
				c := acquire(w.pool("a", "u"))
				c.got(t)
				c.release(t)
				d := acquire(w.pool("b", "v"))
				if d.got(t) {
					t.Error("the server has another connection before it let go of the first")
				}
				if pass(x.wait); !d.got(t) {
					t.Errorf("no connection after %v", x.wait)
				}
				d.release(t)
				w.with(func() {
					if w.crowd != x.most {
						t.Errorf("%d connections at once, want %d", w.crowd, x.most)
					}
					w.linger = 0
				})
				pass(time.Minute)
			})
		})
	}
}

// TestLowerHostLimit: what is unused goes at once, the rest when it comes free.
func TestLowerHostLimit(t *testing.T) {
	inBubble(t, func(w *world) {
		var all []*client
		for _, db := range []string{"a", "b"} {
			for range 2 {
				c := acquire(w.pool(db, "u"))
				c.got(t)
				all = append(all, c)
			}
		}
		all[0].release(t)
		w.apply(func(c *config.Config) { c.Proxy.MaxHostConnections = 1 })
		synctest.Wait()
		if n := w.now(); n != 3 {
			t.Errorf("%d connections, want the 3 that are lent", n)
		}
		for _, c := range all[1:] {
			c.release(t)
		}
		if n := w.now(); n != 1 {
			t.Errorf("%d connections, want the new limit 1", n)
		}
	})
}

// TestHostLimitOfUnreachableServer: dials that fail give their places back.
func TestHostLimitOfUnreachableServer(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) { c.Proxy.MaxHostConnections = 1 })
		w.refuse = func(int) error { return errRefused }
		x, y := acquire(w.pool("a", "u")), acquire(w.pool("b", "v"))
		_ = x.failed(t)
		_ = y.failed(t)
		w.with(func() { w.refuse = nil })
		pass(time.Minute)
		z := acquire(w.pool("b", "w"))
		if !z.got(t) {
			t.Error("a place was lost")
		}
		z.release(t)
	})
}

// TestTwoLimitsAtOnce: who needs a place of its user and one of its database, which
// come free at different times, gets both in the end.
func TestTwoLimitsAtOnce(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) {
			c.Proxy.MaxUserConnections, c.Databases["a"].MaxDBConnections = 1, 1
		})
		stop := make(chan struct{})
		var wg sync.WaitGroup
		flood(t, &wg, w.pool("a", "v"), 10, stop) // has the place of the database
		flood(t, &wg, w.pool("b", "u"), 10, stop) // and this the place of the user
		pass(time.Second)
		served := flood(t, &wg, w.pool("a", "u"), 1, stop)
		pass(10 * time.Second)
		if sum(served) < 10 {
			t.Errorf("%d statements were served in ten seconds", sum(served))
		}
		close(stop)
		wg.Wait()
	})
}

// TestMinSizeDoesNotFightTheHostLimit: what min_pool_size wants is not opened for as
// long as others wait, and nobody loses a connection for it.
func TestMinSizeDoesNotFightTheHostLimit(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) {
			c.Proxy.MaxHostConnections, c.Databases["a"].MinPoolSize = 2, 2
		})
		c := acquire(w.pool("a", "u"))
		c.got(t)
		c.release(t)
		pass(2 * time.Second)
		if idle, _, _ := w.pool("a", "u").Counts(); idle != 2 {
			t.Fatalf("%d idle", idle)
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		served := flood(t, &wg, w.pool("b", "v"), 4, stop)
		pass(2 * time.Second)
		before, logins := sum(served), w.total()
		pass(10 * time.Second)
		if n := sum(served) - before; n < 1900 {
			t.Errorf("%d statements, two connections serve 2000", n)
		}
		if n := w.total() - logins; n != 0 {
			t.Errorf("%d logins: min_pool_size and the waiters take connections from each other", n)
		}
		close(stop)
		wg.Wait()
	})
}
