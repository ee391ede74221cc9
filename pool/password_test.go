package pool_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pgproxy/config"
	"pgproxy/pool"
	"pgproxy/wire"
)

// reconnect replaces all connections.
func (w *world) reconnect() {
	w.set.Reconnect("")
	synctest.Wait()
}

// lends takes a connection out of p and gives it back.
func lends(t *testing.T, what string, p *pool.Pool) {
	t.Helper()
	c := acquire(p)
	synctest.Wait()
	select {
	case <-c.done:
	default:
		t.Fatalf("%s: nothing was lent", what)
	}
	if c.err != nil {
		t.Errorf("%s: %v", what, c.err)
		return
	}
	c.release(t)
}

// refuses wants the server's word that the password is wrong.
func refuses(t *testing.T, what string, p *pool.Pool) {
	t.Helper()
	var e *wire.Error
	if err := acquire(p).failed(t); !errors.As(err, &e) || e.Code != wire.CodeInvalidPassword {
		t.Errorf("%s: %v", what, err)
	}
}

// TestReloadKeepsPasswordOfUserlist: a forced user's password may stand in the
// userlist, of which the configuration knows nothing.
func TestReloadKeepsPasswordOfUserlist(t *testing.T) {
	inBubble(t, func(w *world) {
		force := func(password config.Secret) func(*config.Config) {
			return func(c *config.Config) { c.Databases["a"].User, c.Databases["a"].Password = "u", password }
		}
		w.secret = "old"
		w.apply(force(""))
		p := w.login("a", "u", "old")
		lends(t, "at first", p)
		w.apply(force(""))
		w.reconnect()
		lends(t, "after a reload", p)

		w.with(func() { w.secret = "new" })
		w.apply(force("new"))
		w.reconnect()
		lends(t, "after a reload with a password", p)
		w.login("a", "u", "old") // of the configuration before
		w.reconnect()
		lends(t, "after somebody came late", p)
	})
}

// TestChangedPassword: the pool that is there takes over a password, at once.
func TestChangedPassword(t *testing.T) {
	inBubble(t, func(w *world) {
		w.secret = "old"
		p := w.login("a", "u", "old")
		lends(t, "at first", p)
		w.with(func() { w.secret = "new" })
		w.reconnect()
		refuses(t, "the old password", p)
		if w.login("a", "u", "new") != p {
			t.Fatal("another pool")
		}
		lends(t, "the new password, within server_login_retry", p)
		w.login("a", "u", "") // not known
		w.login("a", "u", "old")
		w.reconnect()
		lends(t, "after the old one came again", p)

		// It was taken back.
		w.with(func() { w.secret = "old" })
		w.reconnect()
		refuses(t, "the new password, which is no more", p)
		w.login("a", "u", "old")
		lends(t, "the old password", p)
		w.apply(func(*config.Config) {})
		w.with(func() { w.secret = "new" })
		w.login("a", "u", "new")
		w.reconnect()
		lends(t, "the new password, after a reload", p)
	})
}

// TestPasswordChangesDuringLogin: the failure of a login with the old password
// is not held against the new one.
func TestPasswordChangesDuringLogin(t *testing.T) {
	inBubble(t, func(w *world) {
		w.secret = "new"
		gate := make(chan struct{})
		w.gate = gate
		p := w.login("a", "u", "old")
		c := acquire(p)
		synctest.Wait()
		w.login("a", "u", "new")
		close(gate)
		pass(time.Second)
		if !c.got(t) {
			t.Fatal("nothing was lent")
		}
		c.release(t)
		if n := w.set.Stats()[0].LoginFail; n != 0 {
			t.Errorf("%d failed logins are counted", n)
		}
	})
}
