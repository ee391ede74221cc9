package pool_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/pool"
)

// errLeft is why a waiter leaves the queue in these tests.
var errLeft = errors.New("left the queue")

func TestWaitersAreServedInOrder(t *testing.T) {
	inBubble(t, func(w *world) {
		p := w.pool("a", "u")
		held := []*client{acquire(p), acquire(p)}
		for _, c := range held {
			if !c.got(t) {
				t.Fatal("no connection within the pool's size")
			}
		}
		var line []*client
		for range 5 {
			c := acquire(p)
			synctest.Wait()
			line = append(line, c)
		}
		held[0].release(t)
		for i, c := range line {
			if !c.got(t) {
				t.Fatalf("waiter %d is not served in its turn", i)
			}
			for j, later := range line[i+1:] {
				if later.got(t) {
					t.Fatalf("waiter %d was served before its turn", i+1+j)
				}
			}
			c.release(t)
		}
		held[1].release(t)
		if w.total() != 2 {
			t.Errorf("%d connections were opened, want 2", w.total())
		}
	})
}

func TestWarmestIsLentFirst(t *testing.T) {
	inBubble(t, func(w *world) {
		p := w.pool("a", "u")
		x, y := acquire(p), acquire(p)
		if !x.got(t) || !y.got(t) {
			t.Fatal("no connection")
		}
		x.release(t)
		y.release(t)
		z := acquire(p)
		if z.got(t); z.conn != y.conn {
			t.Error("the connection that came back last was not lent")
		}
		z.release(t)
	})
}

// TestRoundRobin: with server_round_robin the coldest connection is lent.
func TestRoundRobin(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) { c.Proxy.ServerRoundRobin = true })
		p := w.pool("a", "u")
		x, y := acquire(p), acquire(p)
		if !x.got(t) || !y.got(t) {
			t.Fatal("no connection")
		}
		x.release(t)
		y.release(t)
		for _, want := range []*client{x, y, x} {
			z := acquire(p)
			if z.got(t); z.conn != want.conn {
				t.Error("the connection that came back last was lent")
			}
			z.release(t)
		}
	})
}

// TestReserve: a client that has waited for reserve_pool_timeout gets a connection
// beyond the pool's size, which goes again when nobody waits.
func TestReserve(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) {
			c.Databases["a"].ReservePoolSize, c.Proxy.ReservePoolTimeout = 1, 3*time.Second
		})
		p := w.pool("a", "u")
		held := []*client{acquire(p), acquire(p)}
		for _, c := range held {
			if !c.got(t) {
				t.Fatal("no connection within the pool's size")
			}
		}
		x := acquire(p)
		synctest.Wait()
		y := acquire(p)
		<-time.After(2900 * time.Millisecond) // of the bubble
		if x.got(t) {
			t.Fatal("the reserve was used before reserve_pool_timeout")
		}
		<-time.After(300 * time.Millisecond)
		if !x.got(t) || y.got(t) || w.now() != 3 {
			t.Fatalf("want one connection of the reserve, %d are open", w.now())
		}
		x.release(t)
		if !y.got(t) || w.now() != 3 {
			t.Fatalf("the reserve does not serve the next waiter, %d are open", w.now())
		}
		y.release(t)
		synctest.Wait()
		if w.now() != 2 {
			t.Errorf("%d connections are open when nobody waits, want 2", w.now())
		}
		for _, c := range held {
			c.release(t)
		}
	})
}

// TestSuspend: a suspended pool keeps its connections, and serves those who have
// come meanwhile with them.
func TestSuspend(t *testing.T) {
	inBubble(t, func(w *world) {
		p := w.pool("a", "u")
		x, y := acquire(p), acquire(p)
		if !x.got(t) || !y.got(t) {
			t.Fatal("no connection")
		}
		y.release(t)
		done := make(chan error, 1)
		go func() { done <- w.set.Suspend(context.Background()) }()
		synctest.Wait()
		z := acquire(p)
		if z.got(t) || !w.set.Suspended() {
			t.Fatal("a suspended pool lends")
		}
		x.release(t)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if w.set.Resume("") != true || w.set.Suspended() || !z.got(t) {
			t.Fatal("who has waited is not served")
		}
		z.release(t)
		if w.total() != 2 {
			t.Errorf("%d connections were opened, want 2", w.total())
		}
	})
}

// TestCancelVersusDeliver: whatever races, no connection is lost (B-32).
func TestCancelVersusDeliver(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) { c.Databases["a"].PoolSize = 5 })
		p := w.pool("a", "u")
		errCancelled := errors.New("cancelled by the test")
		var served, cancelled atomic.Int64
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(i), 7))
				c := newClient()
				stop := time.AfterFunc(time.Duration(rnd.IntN(40))*time.Millisecond, func() { c.w.Cancel(errCancelled) })
				defer stop.Stop()
				conn, err := p.Acquire(&c.w, c, 0)
				if err != nil {
					if !errors.Is(err, errCancelled) {
						t.Errorf("acquire: %v", err)
					}
					cancelled.Add(1)
					return
				}
				if _, lent, _ := p.Counts(); lent < 1 || lent > 5 {
					t.Errorf("%d are lent", lent)
				}
				<-time.After(time.Duration(rnd.IntN(300)) * time.Microsecond)
				served.Add(1)
				if err := conn.Send(&backend.Parcel{}); err != nil {
					t.Errorf("send: %v", err)
				}
				if i%50 == 0 {
					w.check()
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		if n := served.Load() + cancelled.Load(); n != 1000 || served.Load() == 0 || cancelled.Load() == 0 {
			t.Errorf("served %d, cancelled %d", served.Load(), cancelled.Load())
		}
		if idle, lent, dialing := p.Counts(); idle != 5 || lent != 0 || dialing != 0 || w.total() != 5 {
			t.Errorf("idle %d, lent %d, dialing %d, opened %d; want 5 0 0 5", idle, lent, dialing, w.total())
		}
	})
}

func TestCancelOfOneWhoDoesNotWait(t *testing.T) {
	inBubble(t, func(w *world) {
		p := w.pool("a", "u")
		c := acquire(p)
		c.got(t)
		if c.w.Cancel(errLeft) || c.w.Waiting() {
			t.Error("a client that has its connection was cancelled")
		}
		c.release(t)
		var never pool.Waiter
		if never.Cancel(errLeft) {
			t.Error("a client that never waited was cancelled")
		}
	})
}

func TestWaitTimeout(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) {
			c.Databases["a"].PoolSize, c.Databases["a"].QueryWaitTimeout = 1, 3*time.Second
		})
		p := w.pool("a", "u")
		held := acquire(p)
		held.got(t)
		early := acquire(p)
		pass(2 * time.Second)
		late := acquire(p)
		pass(1200 * time.Millisecond)
		if err := early.failed(t); !errors.Is(err, pool.ErrWaitTimeout) {
			t.Errorf("error %v", err)
		}
		if late.got(t) {
			t.Error("the second waiter got what was not free")
		}
		held.release(t)
		if !late.got(t) {
			t.Error("the second waiter was not served")
		}
		late.release(t)
	})
}

func TestPauseAndResume(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) { c.Databases["a"].QueryWaitTimeout = time.Second })
		p, other := w.pool("a", "u"), w.pool("b", "u")
		held := acquire(p)
		held.got(t)
		paused := make(chan error, 1)
		go func() { paused <- w.set.Pause(context.Background(), "a") }()
		synctest.Wait()
		waiter := acquire(p)
		pass(10 * time.Second)
		if waiter.got(t) {
			t.Error("a connection was lent in spite of the pause")
		}
		select {
		case err := <-paused:
			t.Fatalf("Pause returned (%v) while a connection was lent", err)
		default:
		}
		if c := acquire(other); !c.got(t) {
			t.Error("another database is paused")
		} else {
			c.release(t)
		}
		held.release(t)
		if err := <-paused; err != nil {
			t.Errorf("pause: %v", err)
		}
		if !w.set.Resume("a") || w.set.Resume("a") {
			t.Error("Resume does not know what was paused")
		}
		if !waiter.got(t) {
			t.Error("the waiter was not served after the pause")
		}
		waiter.release(t)
	})
}

func TestPauseEndsWithContext(t *testing.T) {
	inBubble(t, func(w *world) {
		p := w.pool("a", "u")
		held := acquire(p)
		held.got(t)
		ctx, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		if err := w.set.Pause(ctx, ""); !errors.Is(err, context.DeadlineExceeded) || !w.set.Paused("a") {
			t.Errorf("pause: %v, paused %v", err, w.set.Paused("a"))
		}
		held.release(t)
		// One database goes on only when all may.
		w.set.Resume("a")
		c := acquire(p)
		if c.got(t) {
			t.Error("a connection was lent while everything is paused")
		}
		w.set.Resume("")
		if !c.got(t) {
			t.Error("nothing was lent after the pause")
		}
		c.release(t)
	})
}

func TestReconnectReplacesConnections(t *testing.T) {
	inBubble(t, func(w *world) {
		p := w.pool("a", "u")
		x, y := acquire(p), acquire(p)
		if !x.got(t) || !y.got(t) {
			t.Fatal("no connection")
		}
		y.release(t)
		w.set.Reconnect("a")
		synctest.Wait()
		if idle, lent, _ := p.Counts(); idle != 0 || lent != 1 {
			t.Errorf("idle %d, lent %d; want 0 1", idle, lent)
		}
		x.release(t)
		if w.now() != 0 {
			t.Errorf("%d old connections are open", w.now())
		}
		z := acquire(p)
		if z.got(t); z.conn == x.conn || z.conn == y.conn {
			t.Error("an old connection was lent")
		}
		z.release(t)
	})
}

// TestKillTellsTheHolder: whoever has a killed connection must hear of it.
func TestKillTellsTheHolder(t *testing.T) {
	inBubble(t, func(w *world) {
		p := w.pool("a", "u")
		c := acquire(p)
		c.got(t)
		w.set.Kill("a")
		synctest.Wait()
		select {
		case <-c.lost:
		default:
			t.Error("the client was not told")
		}
		if err := c.conn.Send(&backend.Parcel{}); !errors.Is(err, backend.ErrGone) {
			t.Errorf("send: %v", err)
		}
		if w.now() != 0 {
			t.Errorf("%d connections are open", w.now())
		}
		next := acquire(p)
		if !next.got(t) {
			t.Error("the pool is of no more use")
		}
		next.release(t)
	})
}

func TestIdleTimeoutLifetimeAndMinSize(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) {
			c.Proxy.ServerIdleTimeout, c.Databases["a"].ServerLifetime = 10*time.Second, time.Hour
			c.Databases["a"].PoolSize, c.Databases["a"].MinPoolSize = 4, 2
		})
		p := w.pool("a", "u")
		var held []*client
		for range 4 {
			c := acquire(p)
			c.got(t)
			held = append(held, c)
		}
		for _, c := range held {
			c.release(t)
		}
		pass(8 * time.Second)
		if w.now() != 4 {
			t.Errorf("%d connections before the idle timeout, want 4", w.now())
		}
		pass(4 * time.Second)
		if w.now() != 2 {
			t.Errorf("%d connections behind the idle timeout, want min_pool_size 2", w.now())
		}
		before := w.total()
		pass(time.Hour + time.Minute)
		if w.now() != 2 || w.total() < before+2 {
			t.Errorf("%d open, %d opened; want 2 fresh ones for those that were too old", w.now(), w.total()-before)
		}
	})
}

func TestLifetimeOfALentConnection(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) { c.Databases["a"].ServerLifetime = time.Minute })
		p := w.pool("a", "u")
		c := acquire(p)
		c.got(t)
		pass(2 * time.Minute)
		if w.now() != 1 {
			t.Error("a lent connection was closed for its age")
		}
		c.release(t)
		if w.now() != 0 {
			t.Error("an old connection went back into the pool")
		}
	})
}

func TestReleaseTwicePanics(t *testing.T) {
	inBubble(t, func(w *world) {
		p := w.pool("a", "u")
		c := acquire(p)
		c.got(t)
		c.release(t)
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		p.Release(c.conn)
	})
}

func TestCheckBeforeLending(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) {
			c.Proxy.ServerCheckQuery, c.Proxy.ServerCheckDelay, c.Proxy.ServerConnectTimeout = "", 30*time.Second, 3*time.Second
		})
		p := w.pool("a", "u")
		c := acquire(p)
		c.got(t)
		c.release(t)
		pass(time.Minute)
		next := acquire(p)
		if !next.got(t) || next.conn != c.conn {
			t.Fatal("a connection that works was not lent")
		}
		next.release(t)
		pass(time.Minute)
		w.with(func() { w.silent = true })
		last := acquire(p)
		pass(5 * time.Second)
		if !last.got(t) || last.conn == c.conn {
			t.Error("a connection that does not answer was lent")
		}
		last.release(t)
	})
}

func TestModeAndLimitsOfAUser(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) {
			c.Users["few"] = &config.User{Name: "few", PoolSize: 1}
			c.Users["own"] = &config.User{Name: "own", PoolMode: config.PoolSession}
		})
		for _, user := range []string{"few", "own", "u"} {
			w.pool("a", user)
		}
		got := ""
		for _, s := range w.set.Stats() {
			got += fmt.Sprintf("%s %s %d\n", s.Key.User, s.Mode, s.Limits.Size)
		}
		if want := "few transaction 1\nown session 2\nu transaction 2\n"; got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	})
}
