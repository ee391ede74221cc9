package backend

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// cancelling starts a Cancel and returns the server's end of its connection, with
// the request read.
func (r *rig) cancelling(c *client) (cancel chan error, end func()) {
	r.t.Helper()
	cancel = make(chan error, 1)
	go func() {
		_, err := r.conn.Cancel(context.Background(), c)
		cancel <- err
	}()
	nc := <-r.cancels
	want := wire.AppendCancel(nil, 7, []byte{1, 2, 3, 4})
	got := make([]byte, len(want))
	if _, err := nc.Read(got); err != nil || string(got) != string(want) {
		r.t.Errorf("cancel request %x (%v), want %x", got, err, want)
	}
	return cancel, func() { _ = nc.Close() }
}

// TestCancelHoldsTheConnection until the server has closed the cancel connection
// (B-21).
func TestCancelHoldsTheConnection(t *testing.T) {
	inBubble(t, Limits{CancelWait: time.Minute}, func(r *rig) {
		c := r.ask("Q")
		cancel, end := r.cancelling(c)
		r.say(complete, ready)
		c.heard("C(SELECT 1) Z(I)")
		r.owner(0, 0)
		if i := r.conn.Info(); !i.Cancelling || i.Active {
			t.Errorf("cancelling %v, active %v", i.Cancelling, i.Active)
		}
		end()
		if err := <-cancel; err != nil {
			t.Error(err)
		}
		r.owner(1, 0)
	})
}

func TestCancelEndsBeforeTheStatement(t *testing.T) {
	inBubble(t, Limits{CancelWait: time.Minute}, func(r *rig) {
		c := r.ask("Q")
		cancel, end := r.cancelling(c)
		end()
		if err := <-cancel; err != nil {
			t.Error(err)
		}
		r.owner(0, 0)
		r.say(wire.Errorf(wire.CodeQueryCanceled, "cancelled").Append(nil), ready)
		c.heard("E(57014) Z(I)")
		r.owner(1, 0)
	})
}

// TestTwoCancels: the connection waits for both.
func TestTwoCancels(t *testing.T) {
	inBubble(t, Limits{CancelWait: time.Minute}, func(r *rig) {
		c := r.ask("Q")
		cancel1, end1 := r.cancelling(c)
		cancel2, end2 := r.cancelling(c)
		r.say(complete, ready)
		end1()
		<-cancel1
		r.owner(0, 0)
		end2()
		<-cancel2
		r.owner(1, 0)
	})
}

// TestCancelWithoutEnd: where nobody knows whether the signal is still to come,
// the connection is not lent again, whenever it comes free.
func TestCancelWithoutEnd(t *testing.T) {
	for _, first := range []string{"statement", "cancel"} {
		t.Run(first, func(t *testing.T) {
			inBubble(t, Limits{CancelWait: time.Second}, func(r *rig) {
				c := r.ask("Q")
				cancel, end := r.cancelling(c)
				if first == "statement" {
					r.say(complete, ready)
				}
				if err := <-cancel; err == nil {
					t.Error("no error")
				}
				if first == "cancel" {
					r.owner(0, 0)
					r.say(complete, ready)
				}
				c.heard("C(SELECT 1) Z(I)")
				r.owner(0, 1)
				end()
			})
		})
	}
}

func TestCancelEndsWithContext(t *testing.T) {
	inBubble(t, Limits{CancelWait: time.Hour}, func(r *rig) {
		c := r.ask("Q")
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { _, err := r.conn.Cancel(ctx, c); done <- err }()
		nc := <-r.cancels
		_, _ = nc.Read(make([]byte, 100))
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		_ = nc.Close()
	})
}

// TestCancelOfNothing: with nothing under way, or without a key, nothing is sent.
func TestCancelOfNothing(t *testing.T) {
	inBubble(t, Limits{CancelWait: time.Minute}, func(r *rig) {
		try := func(c *client) {
			t.Helper()
			if sent, err := r.conn.Cancel(r.t.Context(), c); sent || err != nil || len(r.cancels) > 0 {
				t.Errorf("sent %v, error %v, %d connections", sent, err, len(r.cancels))
			}
		}
		c := r.ask("Q")
		r.say(complete, readyT)
		try(c)
		r.conn.secret = nil
		r.more(c, "Q")
		try(c)
		r.say(complete, ready)
		try(c)
		r.owner(1, 0)
	})
}

// TestCancelSparesTheProxysOwn: it waits until the server is at work for the
// client (B-25).
func TestCancelSparesTheProxysOwn(t *testing.T) {
	inBubble(t, Limits{CancelWait: time.Minute}, func(r *rig) {
		c := r.lend()
		var want *Settings
		owed, p, _ := r.conn.Adopt(want.With("a", "1"), nil, nil)
		done := r.send(&Parcel{Owed: append(owed, Owed{Kind: Query, Sink: c}), Bytes: append(p, pgtest.Query("x")...)})
		r.hear("PBESQ")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		cancel := make(chan error, 1)
		go func() { _, err := r.conn.Cancel(context.Background(), c); cancel <- err }()
		synctest.Wait()
		if len(r.cancels) > 0 {
			t.Error("sent while the server was at work for the proxy")
		}
		r.say(setDone)
		nc := <-r.cancels
		_, _ = nc.Read(make([]byte, 100))
		_ = nc.Close()
		if err := <-cancel; err != nil {
			t.Error(err)
		}
		r.say(complete, ready)
		r.owner(1, 0)
	})
}

func TestKillStopsTheStatement(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.ask("Q")
		done := make(chan struct{})
		go func() { r.conn.Kill(); close(done) }()
		nc := <-r.cancels
		<-done // the server never ends the cancel connection
		c.isLost(1, false)
		_ = nc.Close()
	})
	inBubble(t, Limits{}, func(r *rig) { // idle: nothing to stop
		go r.conn.Kill()
		r.hear("X")
		if len(r.cancels) > 0 {
			t.Error("a cancel request for an idle connection")
		}
	})
}
