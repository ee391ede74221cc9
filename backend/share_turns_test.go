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

// unsent fails unless a Send has come back with nothing sent.
func (r *rig) unsent(done <-chan error) {
	r.t.Helper()
	synctest.Wait()
	select {
	case err := <-done:
		if !errors.Is(err, ErrUnsent) {
			r.t.Errorf("send: %v", err)
		}
	default:
		r.t.Fatal("it is still to be sent")
	}
}

// TestShareSettings: a statement with several settings in front of it, each with a Sync,
// is one turn.
func TestShareSettings(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(2)
		want := (*Settings)(nil).With("application_name", "a").With("search_path", "b")
		p := read(l[0])
		owed, dst, _ := r.conn.Adopt(want, nil, nil)
		p.Owed, p.Bytes = append(owed, p.Owed...), append(dst, p.Bytes...)
		done := r.send(p)
		r.hear("PBESPBESQ")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if !r.conn.Join(l[1], want) {
			t.Fatal("could not join")
		}
		done = r.send(read(l[1]))
		r.hear("Q")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		set := pgtest.Join(wire.AppendEmpty(nil, wire.ParseComplete), bound, complete, ready)
		for range 2 {
			r.say(set)
			if r.conn.Info().Holder != l[0] {
				t.Error("the turn is over before there is an answer")
			}
		}
		r.say(row, complete, ready, row, complete, ready)
		for _, c := range l {
			c.heard("D(1) C(SELECT 1) Z(I)")
		}
		r.owner(1, 0)
	})
}

// TestShareJoinerAndCancel: who has joined does not send behind a statement that a
// cancel request is under way for, or whose client has left.
func TestShareJoinerAndCancel(t *testing.T) {
	inBubble(t, Limits{CancelWait: time.Minute}, func(r *rig) {
		l := r.clients(2)
		r.sends(l[0])
		if !r.conn.Join(l[1], nil) {
			t.Fatal("could not join")
		}
		cancel, end := r.cancelling(l[0])
		synctest.Wait()
		r.unsent(r.send(read(l[1])))
		end()
		if err := <-cancel; err != nil {
			t.Error(err)
		}
		r.say(row, complete, ready)
		l[0].heard("D(1) C(SELECT 1) Z(I)")
		r.owner(0, 1) // what was noted of the other's is not so
	})
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(2)
		r.sends(l[0])
		if !r.conn.Join(l[1], nil) {
			t.Fatal("could not join")
		}
		r.conn.Abandon(l[0], "") // the owner is about to have it cancelled
		r.unsent(r.send(read(l[1])))
		r.say(row, complete, ready)
		if r.conn.HeldBy(l[1]) || len(l[1].lost)+len(l[1].failures) > 0 {
			t.Error("the other has a part in it")
		}
	})
}

// TestShareJoinerNotToShare: one that turns out to need the connection alone does not
// wait for long, and leaves nothing behind when it is to leave.
func TestShareJoinerNotToShare(t *testing.T) {
	for name, ends := range map[string]func(r *rig, c *client){
		"forsaken": func(r *rig, c *client) { r.conn.Forsake(c) },
		"held up":  func(*rig, *client) { <-time.After(2 * maxHeldUp) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Limits{}, func(r *rig) {
				l := r.clients(2)
				r.sends(l[0])
				if !r.conn.Join(l[1], nil) {
					t.Fatal("could not join")
				}
				done := r.send(parcel(l[1], "Q"))
				synctest.Wait()
				ends(r, l[1])
				r.unsent(done)
				r.say(row, complete, ready)
				l[0].heard("D(1) C(SELECT 1) Z(I)")
				if r.conn.HeldBy(l[0]) || r.conn.HeldBy(l[1]) {
					t.Error("it is still held")
				}
				r.owner(0, 1)
			})
		})
	}
}

// TestShareAnsweredAndDead: the connection ends when the answer is there, but has not
// been written, and another has taken the turn.
func TestShareAnsweredAndDead(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(2)
		gate := make(chan struct{})
		r.sends(l[0])
		if !r.conn.Join(l[1], nil) {
			t.Fatal("could not join")
		}
		l[0].gate = gate
		r.say(row, complete, ready)
		done := r.send(read(l[1]))
		r.hear("Q")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		r.conn.Sever(ErrFenced)
		close(gate)
		l[0].heard("D(1) C(SELECT 1) Z(I)")
		l[0].isLost(0, false)
		if len(l[1].failures) != 1 {
			t.Errorf("the other: %v", l[1].failures)
		}
	})
}

// TestShareNextDoesNotRead: who has its answer goes on, also where the next one does not read.
func TestShareNextDoesNotRead(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(2)
		stall, gate := make(chan struct{}), make(chan struct{})
		l[1].stall = stall
		r.sends(l...)
		l[0].gate = gate
		r.say(row, complete, ready, row, complete, ready)
		held := make(chan bool, 1)
		go func() { held <- r.conn.Hold(l[0]) }()
		synctest.Wait()
		close(gate)
		synctest.Wait()
		select {
		case <-held:
		default:
			t.Error("it waits for the other")
		}
		close(stall)
		l[1].heard("D(1) C(SELECT 1) Z(I)")
		r.owner(1, 0)
	})
}

// TestShareForsaken: each that is to leave stops waiting.
func TestShareForsaken(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(2)
		stall := make(chan struct{})
		l[0].stall = stall
		r.sends(l...)
		r.say(row, complete, ready)
		r.conn.Forsake(l[0])
		r.conn.Forsake(l[1])
		held := make(chan bool, 1)
		go func() { held <- r.conn.Hold(l[0]) }()
		synctest.Wait()
		select {
		case <-held:
		default:
			t.Error("it still waits")
		}
		close(stall)
		r.say(row, complete, ready)
	})
}

// TestShareAudit: nobody joins an audit.
func TestShareAudit(t *testing.T) {
	inBubble(t, Limits{AuditRatio: 1}, func(r *rig) {
		l := r.clients(2)
		r.sends(l[0])
		said := make(chan struct{})
		go func() {
			defer close(said)
			_, _ = r.srv.Write(pgtest.Join(row, complete, ready))
		}()
		r.hear("PBES")
		<-said
		synctest.Wait()
		if r.conn.Seats() != 0 || r.conn.Join(l[1], nil) {
			t.Error("there is a seat")
		}
		r.say(wire.AppendEmpty(nil, wire.ParseComplete), bound, complete, ready)
		r.owner(1, 0)
	})
}

// TestShareGivenUp: what is given up in the line holds up nobody, and is nobody's
// business when the connection ends.
func TestShareGivenUp(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(4)
		r.sends(l[:2]...)
		if sent, err := r.conn.Cancel(context.Background(), l[1]); !sent || err != nil {
			t.Fatal(sent, err)
		}
		r.say(row, complete, ready)
		l[0].heard("D(1) C(SELECT 1) Z(I)")
		if r.conn.HeldBy(l[0]) || r.conn.Hold(l[0]) {
			t.Error("the first has to wait for it")
		}
		if !r.conn.Join(l[2], nil) {
			t.Fatal("could not join")
		}
		done := r.send(read(l[2]))
		r.hear("Q")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		r.say(row) // of the one that was given up, which takes long
		<-time.After(3 * maxHeldUp)
		synctest.Wait()
		if len(l[2].failures) != 1 || l[2].failures[0].Cause != CauseHeldUp {
			t.Errorf("behind it: %v", l[2].failures)
		}
		r.say(errAdmin)
		_ = r.srv.Close()
		for _, c := range l {
			c.heard("")
			c.isLost(0, false)
		}
	})
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(3)
		r.sends(l...)
		_, _ = r.conn.Cancel(context.Background(), l[1])
		// One that goes on behind its own, which is not answered, does not stand behind it.
		held := make(chan bool, 1)
		go func() { held <- r.conn.Hold(l[0]) }()
		synctest.Wait()
		r.say(row, complete, ready)
		if <-held {
			t.Error("the first has the connection")
		}
		r.say(row, complete)
		if r.conn.Info().Holder == l[2] {
			t.Error("the last has its turn already")
		}
		r.say(ready, row, complete, ready)
		l[1].heard("")
		l[2].heard("D(1) C(SELECT 1) Z(I)")
		r.owner(1, 0)
	})
}

// TestShareBehindSlowReader: who has joined when the one before it was as good as done
// does not wait for that to read.
func TestShareBehindSlowReader(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(2)
		stall := make(chan struct{})
		l[0].stall = stall
		r.sends(l[0])
		if !r.conn.Join(l[1], nil) {
			t.Fatal("could not join")
		}
		r.say(row, complete, ready)
		done := r.send(read(l[1]))
		r.hear("Q")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		<-time.After(2 * maxHeldUp)
		synctest.Wait()
		if len(l[1].failures) != 1 || l[1].failures[0].Cause != CauseHeldUp || len(l[1].failures[0].Sent) == 0 {
			t.Errorf("behind it: %v", l[1].failures)
		}
		if r.conn.HeldBy(l[1]) {
			t.Error("it still has a part in it")
		}
		close(stall)
		r.say(row, complete, ready)
		l[0].heard("D(1) C(SELECT 1) Z(I)")
		l[1].heard("")
		r.owner(1, 0)
	})
}
