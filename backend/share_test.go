package backend

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"pgproxy/pgtest"
)

// read is a Parcel of one read that may be shared.
func read(c *client) *Parcel {
	p := parcel(c, "Q")
	p.Trial = Trial{Bytes: p.Bytes, First: true, Reads: true}
	p.Share, p.At = 4, 1
	return p
}

// sends sends a read of each client, the first of whom has the connection.
func (r *rig) sends(clients ...*client) {
	r.t.Helper()
	for i, c := range clients {
		if i > 0 && !r.conn.Join(c, nil) {
			r.t.Fatalf("client %d could not join", i)
		}
		done := r.send(read(c))
		r.hear("Q")
		if err := <-done; err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) clients(n int) []*client {
	l := []*client{r.lend()}
	for len(l) < n {
		l = append(l, &client{t: r.t})
	}
	return l
}

// TestShare: each hears its own answer, however the server's bytes come, and the
// connection comes free once.
func TestShare(t *testing.T) {
	answers := [][]byte{
		pgtest.Join(described, row, complete, ready), pgtest.Join(described, row, row, complete, ready),
		pgtest.Join(errPlain, ready), pgtest.Join(described, complete, ready),
	}
	want := []string{"T D(1) C(SELECT 1) Z(I)", "T D(1) D(1) C(SELECT 1) Z(I)", "E(42601) Z(I)", "T C(SELECT 1) Z(I)"}
	all := pgtest.Join(answers...)
	for _, size := range []int{1, 2, 7, 30, 64, len(all)} {
		inBubble(t, Limits{}, func(r *rig) {
			l := r.clients(4)
			r.sends(l...)
			if n := r.conn.Seats(); n != 0 {
				t.Errorf("%d seats left of four", n)
			}
			if r.conn.Join(&client{t: t}, nil) {
				t.Error("a fifth has joined")
			}
			for p := all; len(p) > 0; p = p[min(size, len(p)):] {
				r.say(p[:min(size, len(p))])
			}
			for i, c := range l {
				c.heard(want[i])
				if r.conn.HeldBy(c) || len(c.failures) > 0 {
					t.Errorf("client %d has not left: %v", i, c.failures)
				}
			}
			r.owner(1, 0)
			if n := r.conn.Counters(); n.Shared != 3 || n.Queries != 4 || n.Xacts != 4 || n.ShareWait.Count() != 3 {
				t.Errorf("counted %d, %d, %d, %d", n.Shared, n.Queries, n.Xacts, n.ShareWait.Count())
			}
		})
	}
}

// TestShareSeats: as soon as one is done there is room for another.
func TestShareSeats(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(5)
		r.sends(l[:4]...)
		r.say(row, complete, ready)
		if r.conn.Seats() != 1 || r.room == 0 {
			t.Fatalf("%d seats, %d calls of Room", r.conn.Seats(), r.room)
		}
		if r.conn.Join(l[1], nil) {
			t.Error("one who is in the line has joined again")
		}
		if r.conn.Join(l[0], (*Settings)(nil).With("work_mem", "1")) {
			t.Error("one with other settings has joined")
		}
		if !r.conn.Join(l[4], nil) {
			t.Fatal("could not join")
		}
		done := r.send(read(l[4]))
		r.hear("Q")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		for range 4 {
			r.say(row, complete, ready)
		}
		for _, c := range l {
			c.heard("D(1) C(SELECT 1) Z(I)")
		}
		r.owner(1, 0)
	})
}

// TestShareNotWith: nobody joins a lease that is more than one read.
func TestShareNotWith(t *testing.T) {
	for name, change := range map[string]func(p *Parcel){
		"not offered":    func(p *Parcel) { p.Share = 0 },
		"no trial":       func(p *Parcel) { p.Trial = Trial{} },
		"not a read":     func(p *Parcel) { p.Trial.Reads = false },
		"pinned":         func(p *Parcel) { p.Pin = PinLock },
		"asked":          func(p *Parcel) { p.Ask = AskObjects },
		"dirty":          func(p *Parcel) { p.Dirty = true },
		"not whole":      func(p *Parcel) { p.More = true },
		"batch is open":  func(p *Parcel) { p.Open = true },
		"trial too long": func(p *Parcel) { p.Trial.Bytes = make([]byte, MaxTrial+1) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Limits{}, func(r *rig) {
				c := r.lend()
				p := read(c)
				change(p)
				done := r.send(p)
				r.hear("Q")
				<-done
				if r.conn.Join(&client{t: t}, nil) {
					t.Error("somebody has joined")
				}
				_ = r.srv.Close()
				synctest.Wait()
			})
		})
	}
	inBubble(t, Limits{}, func(r *rig) {
		c := r.lend()
		r.sends(c)
		if !r.conn.Hold(c) {
			t.Fatal("not held")
		}
		if r.conn.Join(&client{t: t}, nil) {
			t.Error("somebody has joined a client that goes on")
		}
	})
}

// TestShareThenAlone: what joins and turns out to be something else waits until all
// others are done, and then has the connection to itself.
func TestShareThenAlone(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(3)
		r.sends(l[:2]...)
		if !r.conn.Join(l[2], nil) {
			t.Fatal("could not join")
		}
		p := parcel(l[2], "Q")
		p.Wrote = true
		done := r.send(p)
		synctest.Wait()
		if r.conn.Join(&client{t: t}, nil) {
			t.Error("somebody has joined meanwhile")
		}
		r.say(complete, ready)
		l[0].heard("C(SELECT 1) Z(I)")
		r.say(complete, ready)
		l[1].heard("C(SELECT 1) Z(I)")
		r.hear("Q")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if !r.conn.Settled(l[2]) && r.conn.Info().Holder != Sink(l[2]) {
			t.Error("it is not the holder")
		}
		r.say(complete, ready)
		l[2].heard("C(SELECT 1) Z(I)")
		if l[2].wrote != 1 || l[0].wrote+l[1].wrote != 0 {
			t.Errorf("writes: %d of it, %d of others", l[2].wrote, l[0].wrote+l[1].wrote)
		}
		r.owner(1, 0)
	})
}

// TestShareGoesOn: a client that goes on before its answer has come waits for it, if
// others stand behind it, and then has no connection; the last one keeps it.
func TestShareGoesOn(t *testing.T) {
	for who := range 3 {
		inBubble(t, Limits{}, func(r *rig) {
			l := r.clients(3)
			r.sends(l...)
			held := make(chan bool, 1)
			go func() { held <- r.conn.Hold(l[who]) }()
			for range min(who+1, 2) {
				synctest.Wait()
				if len(held) > 0 {
					t.Fatalf("%d: Hold has returned too early", who)
				}
				r.say(complete, ready)
			}
			synctest.Wait()
			if h := <-held; h != (who == 2) {
				t.Errorf("%d: held %v", who, h)
			} else if h {
				if r.conn.Join(&client{t: t}, nil) {
					t.Error("somebody has joined")
				}
				_ = r.conn.Send(&Parcel{})
			}
			for range 3 - min(who+1, 2) {
				r.say(complete, ready)
			}
			for _, c := range l {
				c.heard("C(SELECT 1) Z(I)")
			}
			r.owner(1, 0)
		})
	}
}

// TestShareDies: all whose answer has not begun run elsewhere.
func TestShareDies(t *testing.T) {
	for _, v := range []struct {
		name  string
		says  [][]byte
		lost  int // of the first
		fails int // of the first
	}{
		{"before the first answer", nil, 0, 1},
		{"held back", [][]byte{described}, 0, 1},
		{"in the first answer", [][]byte{pgtest.Join(described, row)}, 1, 0},
		{"with last words", [][]byte{errAdmin}, 0, 1},
	} {
		t.Run(v.name, func(t *testing.T) {
			inBubble(t, Limits{}, func(r *rig) {
				l := r.clients(3)
				r.sends(l...)
				for _, p := range v.says {
					r.say(p)
				}
				_ = r.srv.Close()
				synctest.Wait()
				l[0].isLost(v.lost, false)
				if len(l[0].failures) != v.fails {
					t.Errorf("the first: %v", l[0].failures)
				}
				for _, c := range l[1:] {
					c.isLost(0, false)
					c.heard("")
					if len(c.failures) != 1 || c.failures[0].Cause != CauseDied || len(c.failures[0].Sent) == 0 {
						t.Errorf("behind it: %+v", c.failures)
					}
				}
				r.owner(0, 1)
			})
		})
	}
}

// TestShareDiesBehindTheFirst: who has had its answer hears nothing.
func TestShareDiesBehindTheFirst(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(2)
		r.sends(l...)
		r.say(row, complete, ready)
		_ = r.srv.Close()
		l[0].heard("D(1) C(SELECT 1) Z(I)")
		l[0].isLost(0, false)
		if len(l[0].failures) != 0 || len(l[1].failures) != 1 {
			t.Errorf("failures: %v, %v", l[0].failures, l[1].failures)
		}
	})
}

// TestShareHeldUp: nobody waits for long behind a statement, or a client, that is slow.
func TestShareHeldUp(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(3)
		r.sends(l...)
		<-time.After(2*maxHeldUp + time.Millisecond)
		synctest.Wait()
		for _, c := range l[1:] {
			if len(c.failures) != 1 || c.failures[0].Cause != CauseHeldUp {
				t.Fatalf("failures: %v", c.failures)
			}
			if r.conn.HeldBy(c) {
				t.Error("it is still there")
			}
		}
		if r.conn.Join(&client{t: t}, nil) {
			t.Error("somebody has joined a slow one")
		}
		r.say(row, complete, ready, errPlain, ready, row, complete, ready)
		l[0].heard("D(1) C(SELECT 1) Z(I)")
		l[1].heard("")
		l[2].heard("")
		r.owner(1, 0) // fit for use: the error was not one of a setting
	})
	inBubble(t, Limits{}, func(r *rig) { // as long as it goes on, nobody is sent away
		l := r.clients(2)
		r.sends(l...)
		for range 10 {
			<-time.After(maxHeldUp / 2)
			r.say(row, complete, ready)
			l[0].heard("D(1) C(SELECT 1) Z(I)")
			if !r.conn.Join(l[0], nil) {
				t.Fatal("could not join")
			}
			done := r.send(read(l[0]))
			r.hear("Q")
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			l[0], l[1] = l[1], l[0]
		}
		r.say(row, complete, ready, row, complete, ready)
		if len(l[0].failures)+len(l[1].failures) > 0 {
			t.Errorf("failures: %v, %v", l[0].failures, l[1].failures)
		}
		r.owner(1, 0)
	})
}

// TestShareSlowReader: a client that does not read keeps nobody else waiting, and gets
// its whole answer in the end.
func TestShareSlowReader(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(3)
		stall := make(chan struct{})
		l[0].stall = stall
		r.sends(l...)
		r.say(row, complete, ready, row, complete, ready, row, complete, ready)
		l[1].heard("D(1) C(SELECT 1) Z(I)")
		l[2].heard("D(1) C(SELECT 1) Z(I)")
		l[0].heard("")
		r.owner(1, 0)
		if !r.conn.HeldBy(l[0]) {
			t.Error("nobody would wait for its answer")
		}
		held := make(chan bool, 1)
		go func() { held <- r.conn.Hold(l[0]) }()
		synctest.Wait()
		select {
		case <-held:
			t.Error("it goes on before it has its answer")
		default:
		}
		close(stall)
		l[0].heard("D(1) C(SELECT 1) Z(I)")
		if <-held {
			t.Error("it has the connection")
		}
	})
}

// TestShareCancel: a cancel hits nobody else.
func TestShareCancel(t *testing.T) {
	inBubble(t, Limits{CancelWait: time.Minute}, func(r *rig) {
		l := r.clients(3)
		r.sends(l...)
		if sent, err := r.conn.Cancel(context.Background(), l[1]); !sent || err != nil {
			t.Errorf("cancel of one in the line: %v, %v", sent, err)
		}
		if len(r.cancels) != 0 || len(l[1].failures) != 1 || l[1].failures[0].Cause != CauseCanceled {
			t.Errorf("%d cancel requests; %v", len(r.cancels), l[1].failures)
		}
		cancel, end := r.cancelling(l[0])
		synctest.Wait()
		if len(l[2].failures) != 1 || l[2].failures[0].Cause != CauseHeldUp {
			t.Errorf("behind a cancel: %v", l[2].failures)
		}
		end()
		if err := <-cancel; err != nil {
			t.Error(err)
		}
		r.say(serverError("57014", "ProcessInterrupts"), ready, row, complete, ready, row, complete, ready)
		l[0].heard("E(57014) Z(I)")
		l[1].heard("")
		l[2].heard("")
		r.owner(1, 0)
	})
}

// TestShareAbandon: what others have sent is theirs.
func TestShareAbandon(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(4)
		r.sends(l[:3]...)
		r.conn.Abandon(l[1], "")
		if !r.conn.Join(l[3], nil) {
			t.Fatal("could not join")
		}
		r.conn.Abandon(l[3], "") // before it has sent anything
		r.say(row, complete, ready, errPlain, ready, row, complete, ready)
		l[0].heard("D(1) C(SELECT 1) Z(I)")
		l[1].heard("")
		l[2].heard("D(1) C(SELECT 1) Z(I)")
		r.owner(0, 1) // what it would have sent may have been noted
	})
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(2)
		r.sends(l...)
		r.conn.Abandon(l[0], "")
		synctest.Wait()
		if len(l[1].failures) != 1 {
			t.Errorf("behind one that has left: %v", l[1].failures)
		}
		r.owner(0, 1)
	})
}

// TestShareStale: a stale plan of one in the line is its own affair.
func TestShareStale(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(3)
		r.sends(l...)
		r.say(row, complete, ready, stale, ready, row, complete, ready)
		l[0].heard("D(1) C(SELECT 1) Z(I)")
		l[1].heard("")
		l[2].heard("D(1) C(SELECT 1) Z(I)")
		if len(l[1].failures) != 1 || l[1].failures[0].Cause != CauseStale || trace(l[1].failures[0].Answer) != "E(0A000) Z(I)" && trace(l[1].failures[0].Answer) != "E(0A000)" {
			t.Errorf("failures: %+v", l[1].failures)
		}
		if len(l[0].failures)+len(l[2].failures) > 0 {
			t.Errorf("others: %v, %v", l[0].failures, l[2].failures)
		}
		r.owner(1, 0)
	})
}

// TestShareJoinerMeetsTheEnd: the connection dies, or comes to its end, between Join
// and Send.
func TestShareJoinerMeetsTheEnd(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(2)
		r.sends(l[0])
		if !r.conn.Join(l[1], nil) {
			t.Fatal("could not join")
		}
		r.say(row, complete, ready)
		l[0].heard("D(1) C(SELECT 1) Z(I)")
		r.owner(0, 0)
		if r.conn.Hold(l[0]) {
			t.Error("the first still has it")
		}
		done := r.send(read(l[1]))
		r.hear("Q")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		r.say(row, complete, ready)
		l[1].heard("D(1) C(SELECT 1) Z(I)")
		r.owner(1, 0)
	})
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(2)
		r.sends(l[0])
		r.conn.Join(l[1], nil)
		r.say(row, complete, ready)
		_ = r.srv.Close()
		synctest.Wait()
		if err := r.conn.Send(read(l[1])); err == nil {
			t.Error("sent to a dead server")
		}
		l[0].heard("D(1) C(SELECT 1) Z(I)")
		l[0].isLost(0, false)
		l[1].isLost(0, false)
	})
}

// TestShareAllocatesNothing where everything is in its place already.
func TestShareAllocatesNothing(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		l := r.clients(2)
		for _, c := range l {
			c.got = make([]byte, 0, 1<<20)
		}
		c := r.conn
		answer := pgtest.Join(row, complete, ready, row, complete, ready)
		parcels := []*Parcel{read(l[0]), read(l[1])}
		go func() { _, _ = c.io.NetConn().Write(nil) }()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			for b := make([]byte, 1<<16); ; {
				if _, err := r.srv.Read(b); err != nil {
					return
				}
			}
		}()
		_ = c.Send(&Parcel{})
		c.mu.Lock()
		c.holder = nil
		c.mu.Unlock()
		if n := testing.AllocsPerRun(200, func() {
			_ = c.Lend(l[0], 1, 0)
			_ = c.Send(parcels[0])
			c.Join(l[1], nil)
			_ = c.Send(parcels[1])
			_, _ = c.onReply(answer)
			l[0].got, l[1].got = l[0].got[:0], l[1].got[:0]
		}); n > 0 {
			t.Errorf("%v allocations", n)
		}
		_ = r.srv.Close()
		<-drained
	})
}
