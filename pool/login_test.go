package pool_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pgproxy/config"
	"pgproxy/pool"
	"pgproxy/wire"
)

var (
	errPassword = wire.Fatalf(wire.CodeInvalidPassword, "password authentication failed")
	errFull     = wire.Fatalf(wire.CodeTooManyConnections, "sorry, too many clients already")
	errStarting = wire.Fatalf(wire.CodeCannotConnectNow, "the database system is starting up")
	errRefused  = errors.New("connection refused")
)

func TestRefusedLoginFailsFast(t *testing.T) {
	inBubble(t, func(w *world) {
		w.refuse = func(int) error { return errPassword }
		p := w.pool("a", "u")
		line := []*client{acquire(p), acquire(p)}
		for _, c := range line {
			var e *wire.Error
			if err := c.failed(t); !errors.As(err, &e) || e.Code != wire.CodeInvalidPassword {
				t.Errorf("error %v", err)
			}
		}
		before := w.total()
		for range 10 { // within the pause nobody asks the server again
			_ = acquire(p).failed(t)
		}
		if n := w.total(); n != before {
			t.Errorf("%d more logins within server_login_retry", n-before)
		}
		w.with(func() { w.refuse = nil })
		pass(6 * time.Second)
		c := acquire(p)
		if !c.got(t) {
			t.Error("no connection from a server that accepts logins again")
		}
		c.release(t)
	})
}

func TestUnreachableServerIsSuspected(t *testing.T) {
	inBubble(t, func(w *world) {
		w.refuse = func(int) error { return errRefused }
		err := acquire(w.pool("a", "u")).failed(t)
		if !errors.Is(err, pool.ErrUnreachable) || !errors.Is(err, errRefused) || w.suspects != 1 {
			t.Errorf("error %v, %d suspicions", err, w.suspects)
		}
		if s := w.set.Stats()[0]; s.LoginFail != 1 || s.LastError == "" {
			t.Errorf("stats: %d failed logins, last error %q", s.LoginFail, s.LastError)
		}
	})
}

// TestOneOfTwoLoginsFails: there is another one to wait for.
func TestOneOfTwoLoginsFails(t *testing.T) {
	inBubble(t, func(w *world) {
		gate := make(chan struct{})
		w.gate = gate
		w.refuse = func(n int) error {
			if n == 1 {
				return errRefused
			}
			return nil
		}
		p := w.pool("a", "u")
		x := acquire(p)
		synctest.Wait()
		y := acquire(p)
		synctest.Wait()
		close(gate)
		if !x.got(t) {
			t.Error("the oldest waiter did not get the connection")
		}
		x.release(t)
		if !y.got(t) {
			t.Error("the second waiter was not served")
		}
		y.release(t)
	})
}

func TestLoginFailsWhileOthersAreLent(t *testing.T) {
	inBubble(t, func(w *world) {
		p := w.pool("a", "u")
		held := acquire(p)
		held.got(t)
		w.with(func() { w.refuse = func(int) error { return errPassword } })
		c := acquire(p)
		if c.got(t) {
			t.Error("got what is lent")
		}
		held.release(t)
		if !c.got(t) {
			t.Error("a waiter was not served by a connection that came back")
		}
		c.release(t)
	})
}

// TestTransientRefusalIsWaitedFor also checks the pace of the retries (I14).
func TestTransientRefusalIsWaitedFor(t *testing.T) {
	for _, refusal := range []*wire.Error{errFull, errStarting} {
		t.Run(refusal.Code, func(t *testing.T) {
			inBubble(t, func(w *world) {
				w.refuse = func(int) error { return refusal }
				p := w.pool("a", "u")
				line := []*client{acquire(p), acquire(p)}
				pass(time.Second)
				first := w.total()
				pass(59 * time.Second)
				if n := w.total() - first; n < 8 || n > 12 {
					t.Errorf("%d logins in a minute, want one each 5 s", n)
				}
				w.with(func() { w.refuse = nil })
				pass(6 * time.Second)
				for i, c := range line {
					if !c.got(t) {
						t.Fatalf("waiter %d was not served", i)
					}
				}
				for _, c := range line {
					c.release(t)
				}
			})
		})
	}
}

func TestTransientRefusalEndsInWaitTimeout(t *testing.T) {
	inBubble(t, func(w *world) {
		w.refuse = func(int) error { return errFull }
		c := acquire(w.pool("a", "u"))
		pass(121 * time.Second)
		if err := c.failed(t); !errors.Is(err, pool.ErrWaitTimeout) {
			t.Errorf("error %v", err)
		}
	})
}

func TestApplyHigherLimitServesWaiters(t *testing.T) {
	inBubble(t, func(w *world) {
		p := w.pool("a", "u")
		var all []*client
		for range 4 {
			c := acquire(p)
			synctest.Wait()
			all = append(all, c)
		}
		w.apply(func(c *config.Config) { c.Databases["a"].PoolSize = 4 })
		for i, c := range all {
			if !c.got(t) {
				t.Fatalf("client %d has no connection within the new size", i)
			}
		}
		w.apply(func(c *config.Config) { c.Databases["a"].PoolSize = 1 })
		for _, c := range all {
			c.release(t)
		}
		if n := w.now(); n != 1 {
			t.Errorf("%d connections are open, want the new size 1", n)
		}
	})
}

func TestApplyClosesIdleAboveLowerLimit(t *testing.T) {
	inBubble(t, func(w *world) {
		p := w.pool("a", "u")
		x, y := acquire(p), acquire(p)
		if !x.got(t) || !y.got(t) {
			t.Fatal("no connection")
		}
		x.release(t)
		y.release(t)
		w.apply(func(c *config.Config) { c.Databases["a"].PoolSize = 1 })
		synctest.Wait()
		if n := w.now(); n != 1 {
			t.Errorf("%d connections are open, want 1", n)
		}
	})
}

func TestApplyWithoutTheDatabase(t *testing.T) {
	inBubble(t, func(w *world) {
		w.apply(func(c *config.Config) { c.Databases["a"].PoolSize = 1 })
		p := w.pool("a", "u")
		held := acquire(p)
		held.got(t)
		waiter := acquire(p)
		synctest.Wait()
		w.apply(func(c *config.Config) { delete(c.Databases, "a") })
		if err := waiter.failed(t); !errors.Is(err, pool.ErrClosed) {
			t.Errorf("the waiter got %v", err)
		}
		if err := acquire(p).failed(t); !errors.Is(err, pool.ErrClosed) {
			t.Errorf("a new client got %v", err)
		}
		w.check()
		held.release(t)
		if n := w.now(); n != 0 {
			t.Errorf("%d connections of the old database are open", n)
		}
	})
}

func TestApplyOtherDatabaseNameOnTheServer(t *testing.T) {
	inBubble(t, func(w *world) {
		p := w.pool("a", "u")
		c := acquire(p)
		c.got(t)
		w.apply(func(c *config.Config) { c.Databases["a"].DBName = "other" })
		c.release(t)
		next := acquire(p)
		next.got(t)
		if w.byDB["other"] != 1 || w.byDB["a"] != 0 {
			t.Errorf("connections: %v", w.byDB)
		}
		next.release(t)
	})
}

// TestCloseEndsLentConnections, those of databases that are no more too.
func TestCloseEndsLentConnections(t *testing.T) {
	inBubble(t, func(w *world) {
		x, y := acquire(w.pool("a", "u")), acquire(w.pool("b", "u"))
		if !x.got(t) || !y.got(t) {
			t.Fatal("no connection")
		}
		w.apply(func(c *config.Config) { delete(c.Databases, "a") })
		if err := w.set.Close(context.Background()); err != nil {
			t.Fatalf("close: %v", err)
		}
		for i, c := range []*client{x, y} {
			select {
			case <-c.lost:
			default:
				t.Errorf("client %d was not told", i)
			}
		}
		if n := w.now(); n != 0 {
			t.Errorf("%d connections are open", n)
		}
		if err := acquire(w.pool("b", "u")).failed(t); !errors.Is(err, pool.ErrClosed) {
			t.Errorf("a closed Set answers %v", err)
		}
	})
}

func TestCloseIsBoundedByContext(t *testing.T) {
	inBubble(t, func(w *world) {
		p := w.pool("a", "u")
		c := acquire(p)
		c.got(t)
		// The server's answer meets a client that does not read.
		c.stuck = make(chan struct{})
		send(t, c)
		synctest.Wait()
		ctx, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		if err := w.set.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("close: %v", err)
		}
		close(c.stuck)
		synctest.Wait()
	})
}

func TestDialsEndWithTheSet(t *testing.T) {
	inBubble(t, func(w *world) {
		w.gate = make(chan struct{}) // never opened
		c := acquire(w.pool("a", "u"))
		synctest.Wait()
		if err := w.set.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := c.failed(t); !errors.Is(err, pool.ErrClosed) {
			t.Errorf("the waiter got %v", err)
		}
	})
}

// TestPatientWaiters: a client that is logged in is kept while the server refuses
// logins, and served when it accepts them again; others hear of it, and so does
// everybody if the server cannot be reached.
func TestPatientWaiters(t *testing.T) {
	inBubble(t, func(w *world) {
		var refuse error = &wire.Error{Severity: wire.SeverityFatal, Code: wire.CodeInvalidPassword, Message: "no"}
		w.with(func() { w.refuse = func(int) error { return refuse } })
		p := w.pool("a", "u")
		patient := newClient()
		patient.w.Patient = true
		acquireFor(p, patient)
		synctest.Wait()
		other := acquire(p)
		if synctest.Wait(); other.err == nil {
			t.Fatal("a new client is kept")
		}
		<-time.After(12 * time.Second)
		if patient.got(t) {
			t.Fatal("a connection, though the server refuses logins")
		}
		late := newClient()
		late.w.Patient = true
		acquireFor(p, late)
		w.with(func() { w.refuse = nil })
		<-time.After(6 * time.Second)
		if !patient.got(t) || !late.got(t) {
			t.Fatal("no connection when the server accepts logins again")
		}
		patient.release(t)
		late.release(t)
	})
}
