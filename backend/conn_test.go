package backend

import (
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

func TestQueryIsRelayedAndFrees(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.ask("Q")
		r.owner(0, 0)
		r.say(row, complete, ready)
		c.heard("D(1) C(SELECT 1) Z(I)")
		r.owner(1, 0)
		if r.conn.Hold(c) {
			t.Error("still lent")
		}
	})
}

// TestCutAtEveryByte: any cut of the server's bytes gives the client the same.
func TestCutAtEveryByte(t *testing.T) {
	long := wire.AppendDataRow(nil, make([]byte, 100))
	stream := pgtest.Join(notice, long, errPlain, ready)
	for at := 1; at < len(stream); at++ {
		inBubble(t, Limits{}, func(r *rig) {
			c := r.ask("Q")
			r.say(stream[:at])
			r.say(stream[at:])
			synctest.Wait()
			if string(c.got) != string(stream) {
				t.Errorf("cut at %d: the client heard %q", at, c.got)
			}
			r.owner(1, 0)
		})
	}
}

func TestMessageLongerThanEveryBuffer(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.ask("Q")
		stream := pgtest.Join(wire.AppendDataRow(nil, make([]byte, 300_000)), complete, ready)
		r.say(stream)
		if string(c.got) != string(stream) {
			t.Errorf("the client heard %d bytes of %d", len(c.got), len(stream))
		}
		r.owner(1, 0)
	})
}

func TestWhatKeepsALease(t *testing.T) {
	for _, c := range []struct {
		name, send string
		reply      [][]byte
		pin        Pin
	}{
		{"nothing answered", "Q", nil, 0},
		{"in a transaction", "Q", [][]byte{complete, readyT}, 0},
		{"first of two answered", "QQ", [][]byte{complete, ready}, 0},
		{"batch open", "QP", [][]byte{complete, ready, wire.AppendEmpty(nil, wire.ParseComplete)}, 0},
		{"pinned", "Q", [][]byte{complete, ready}, PinSession},
		{"copy", "Q", [][]byte{wire.AppendEmpty(nil, wire.CopyInResponse)}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, Limits{}, func(r *rig) {
				s := r.lend()
				p := parcel(s, c.send)
				p.Pin = c.pin
				done := r.send(p)
				r.hear(c.send)
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				if c.reply != nil {
					r.say(c.reply...)
				}
				r.owner(0, 0)
				if c.pin != 0 {
					r.conn.Unpin(PinBrief)
					r.owner(0, 0)
					r.conn.Unpin(c.pin)
					r.owner(1, 0)
				}
			})
		})
	}
}

// TestSendIsWholeBeforeTheNextHolder: a reply that overtakes the end of a write
// does not free the connection.
func TestSendIsWholeBeforeTheNextHolder(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.lend()
		done := r.send(parcel(c, "Qd"))
		r.hear("Q")
		r.say(complete, ready)
		c.heard("C(SELECT 1) Z(I)")
		r.owner(0, 0)
		r.hear("d")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		r.owner(1, 0)
	})
}

// TestQuietWaitsForTheWrite: what the proxy says itself must not overtake a reply
// (B-07).
func TestQuietWaitsForTheWrite(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.ask("Q")
		c.stall = make(chan struct{})
		r.say(complete, readyT)
		if !r.conn.State().Owing {
			t.Error("State says that all has been said")
		}
		quiet := make(chan struct{})
		go func() { r.conn.Quiet(c); close(quiet) }()
		synctest.Wait()
		select {
		case <-quiet:
			t.Error("Quiet returned before the reply was written")
		default:
		}
		close(c.stall)
		<-quiet
		c.heard("C(SELECT 1) Z(T)")
	})
}

// TestHalfRelayedMessageKeepsTheLease: its rest must not meet another server's
// replies.
func TestHalfRelayedMessageKeepsTheLease(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.ask("Q")
		r.say(complete, ready, notice[:7])
		r.owner(0, 0)
		r.say(notice[7:])
		c.heard("C(SELECT 1) Z(I) N(00000)")
		r.owner(1, 0)
	})
}

func TestRepliesOfTwoClientsInOneRead(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		a := r.lend()
		b := &client{t: t}
		p := parcel(a, "QQ")
		p.Owed[1].Sink = b
		done := r.send(p)
		r.hear("QQ")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		r.say(row, complete, ready, complete, ready)
		a.heard("D(1) C(SELECT 1) Z(I)")
		b.heard("C(SELECT 1) Z(I)")
		r.owner(1, 0)
	})
}

func TestLendPanicsUnlessClean(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		r.ask("Q")
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		_ = r.conn.Lend(&client{t: t}, 0, 0)
	})
}

func TestLastWords(t *testing.T) {
	end := func(r *rig) { _ = r.srv.Close() }
	t.Run("idle", func(t *testing.T) {
		inBubble(t, Limits{}, func(r *rig) {
			r.say(errAdmin)
			r.owner(0, 1)
			if err := r.conn.Lend(&client{t: t}, 0, 0); !errors.Is(err, ErrGone) {
				t.Errorf("lend: %v", err)
			}
		})
	})
	t.Run("idle in transaction", func(t *testing.T) {
		inBubble(t, Limits{}, func(r *rig) {
			c := r.ask("Q")
			r.say(complete, readyT)
			r.say(errAdmin)
			end(r)
			c.heard("C(SELECT 1) Z(T) E(57P01)")
			c.isLost(1, true)
			r.owner(0, 1)
		})
	})
	t.Run("behind an error", func(t *testing.T) {
		inBubble(t, Limits{}, func(r *rig) {
			c := r.ask("Q")
			r.say(errPlain, errAdmin)
			c.heard("E(42601) E(57P01)")
			c.isLost(1, true)
			r.owner(0, 1)
		})
	})
	t.Run("in answer to the proxy", func(t *testing.T) {
		inBubble(t, Limits{}, func(r *rig) {
			c := r.lend()
			var want *Settings
			owed, p, _ := r.conn.Adopt(want.With("a", "1"), nil, nil)
			done := r.send(&Parcel{Owed: append(owed, Owed{Kind: Query, Sink: c}), Bytes: append(p, pgtest.Query("x")...)})
			r.hear("PBESQ")
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			r.say(errAdmin)
			c.heard("E(57P01)")
			c.isLost(1, true)
		})
	})
	// The goroutine of Send may not have been given the processor since its write.
	stopped := func(r *rig) (*client, <-chan error) {
		c := r.lend()
		p := parcel(c, "Q")
		done := r.send(p)
		_, _ = io.ReadFull(r.srv, make([]byte, len(p.Bytes)-1))
		return c, done
	}
	t.Run("before Send has returned", func(t *testing.T) {
		inBubble(t, Limits{}, func(r *rig) {
			c, done := stopped(r)
			r.say(complete, ready)
			r.say(errAdmin)
			<-done
			end(r)
			c.heard("C(SELECT 1) Z(I)")
			c.isLost(0, false)
			if r.conn.Hold(c) {
				t.Error("held")
			}
		})
	})
	t.Run("between Hold and Send", func(t *testing.T) {
		inBubble(t, Limits{}, func(r *rig) {
			c, done := stopped(r)
			c.stall = make(chan struct{})
			r.say(complete, ready)
			_, _ = r.srv.Read(make([]byte, 1))
			if err := <-done; err != nil {
				t.Errorf("send: %v", err)
			}
			if !r.conn.Hold(c) {
				t.Fatal("not held while its answer is written")
			}
			close(c.stall)
			r.say(errAdmin)
			c.heard("C(SELECT 1) Z(I)")
			if err := r.conn.Send(parcel(c, "Q")); !errors.Is(err, ErrUnsent) {
				t.Errorf("send: %v", err)
			}
			end(r)
			c.isLost(0, false)
		})
	})
	t.Run("in an audit", func(t *testing.T) {
		inBubble(t, Limits{AuditRatio: 1}, func(r *rig) {
			c := r.ask("Q")
			r.say(complete, ready)
			r.hear("PBES")
			r.say(errAdmin)
			c.heard("C(SELECT 1) Z(I)")
			end(r)
			c.isLost(0, false)
			if r.conn.Hold(c) {
				t.Error("held")
			}
		})
	})
	t.Run("without words", func(t *testing.T) {
		inBubble(t, Limits{}, func(r *rig) {
			c := r.ask("Q")
			r.say(row)
			end(r)
			c.heard("D(1)")
			c.isLost(1, false)
			r.owner(0, 1)
		})
	})
	// A client that has its answer loses nothing with a connection that is only being
	// audited, however that ends: its next statement goes over another one.
	for name, ends := range map[string]func(r *rig){
		"during an audit":                func(r *rig) { r.say(errAdmin) },
		"during an audit, without words": end,
		"cut off during an audit":        func(r *rig) { r.conn.Sever(errors.New("fenced")) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Limits{AuditRatio: 1}, func(r *rig) {
				c := r.ask("Q")
				r.say(complete, ready)
				c.heard("C(SELECT 1) Z(I)")
				r.hear("PBES")
				held := make(chan bool)
				go func() { held <- r.conn.Hold(c) }()
				synctest.Wait()
				ends(r)
				if <-held {
					t.Error("still held")
				}
				c.heard("")
				c.isLost(0, false)
			})
		})
	}
	t.Run("long", func(t *testing.T) {
		inBubble(t, Limits{}, func(r *rig) {
			c := r.ask("Q")
			long := wire.Fatalf("57P01", "%s", make([]byte, 0)).WithHint(string(make([]rune, 0)))
			long.Detail = string(bytesOf('x', 9000))
			p := long.Append(nil)
			r.say(p[:5000])
			c.isLost(0, false)
			r.say(p[5000:])
			c.heard("E(57P01)")
			c.isLost(1, true)
		})
	})
}

func bytesOf(b byte, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = b
	}
	return p
}

// TestUnaskedMessages arrive while nobody has the connection (B-06).
func TestUnaskedMessages(t *testing.T) {
	note := pgtest.Message(wire.NotificationResponse, []byte("\x00\x00\x00\x01a\x00b\x00"))
	for _, c := range []struct {
		name  string
		p     []byte
		legal bool
	}{
		{"notice", notice, true},
		{"parameter", zone, true},
		{"notification", note, true},
		{"row", row, false},
		{"ready", ready, false},
		{"complete", complete, false},
		{"error", errPlain, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, Limits{}, func(r *rig) {
				r.say(c.p)
				if !c.legal {
					r.owner(0, 1)
					return
				}
				r.owner(0, 0)
				s := r.ask("Q")
				r.say(complete, ready)
				s.heard("C(SELECT 1) Z(I)")
				r.owner(1, 0)
			})
		})
	}
}

// TestMalformedMessages: the client loses the connection once, the owner too (S-12,
// S-25).
func TestMalformedMessages(t *testing.T) {
	raw := pgtest.RawMessage
	cases := map[string][]byte{
		"status X":           pgtest.Message('Z', []byte("X")),
		"ready of two":       pgtest.Message('Z', []byte("II")),
		"ready of none":      pgtest.Message('Z', nil),
		"parameter no NUL":   pgtest.Message('S', []byte("TimeZone")),
		"parameter one NUL":  pgtest.Message('S', []byte("TimeZone\x00UTC")),
		"parameter empty":    pgtest.Message('S', nil),
		"parameter too long": raw('S', 1<<20, make([]byte, 100_000)),
		"ready of 1 GiB":     raw('Z', 0x3fffffff, make([]byte, 100_000)),
		"unknown type":       pgtest.Message('?', nil),
		"copy both":          pgtest.Message('W', []byte{0, 0, 0}),
		"authentication":     wire.AppendAuth(nil, wire.AuthOK, nil),
		"key":                wire.AppendBackendKeyData(nil, 1, []byte{1, 2, 3, 4}),
		"parse complete":     wire.AppendEmpty(nil, wire.ParseComplete),
		"two errors":         pgtest.Join(errPlain, errPlain),
	}
	for _, n := range []uint32{0, 1, 3, 0x80000000, 0xffffffff, 0xfffffffe} {
		cases["length "+string(rune('a'+n%26))] = raw('D', n, nil)
	}
	for name, p := range cases {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Limits{}, func(r *rig) {
				c := r.ask("Q")
				r.say(p)
				c.isLost(1, false)
				r.owner(0, 1)
			})
		})
	}
}

// TestOddErrors: fields may be left out, or the message cut; it is relayed as it
// is.
func TestOddErrors(t *testing.T) {
	for _, body := range []string{"", "\x00", "SERROR\x00\x00", "C42601\x00\x00", "Mx\x00Mx\x00\x00", "SERROR", "SERROR\x00C42601\x00Mx\x00"} {
		inBubble(t, Limits{}, func(r *rig) {
			c := r.ask("Q")
			p := pgtest.Message('E', []byte(body))
			r.say(p, ready)
			synctest.Wait()
			if string(c.got) != string(p)+string(ready) {
				t.Errorf("%q: the client heard %q", body, c.got)
			}
			r.owner(1, 0)
		})
	}
}

func TestCloseTellsTheHolder(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.ask("Q")
		go func() { _, _ = readMsg(r.srv) }()
		r.conn.Close()
		r.conn.Wait()
		c.isLost(1, false)
		r.owner(0, 0)
		if err := r.conn.Send(&Parcel{}); !errors.Is(err, ErrGone) {
			t.Errorf("send: %v", err)
		}
		r.conn.Close()
	})
}

// TestCloseWhileTheClientDoesNotRead: it hears of it all the same.
func TestCloseWhileTheClientDoesNotRead(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.ask("Q")
		c.stall = make(chan struct{})
		r.say(row)
		r.conn.Close()
		c.isLost(1, false)
		close(c.stall)
	})
}

func TestCloseSaysGoodbye(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		go r.conn.Close()
		r.hear("X")
		r.owner(0, 0)
	})
}

func TestAnotherThanTheHolderChangesNothing(t *testing.T) {
	inBubble(t, Limits{CancelWait: time.Second}, func(r *rig) {
		c, other := r.ask("Q"), &client{t: t}
		r.conn.Abandon(other, "DISCARD ALL")
		r.conn.Quiet(other)
		if sent, err := r.conn.Cancel(r.t.Context(), other); sent || err != nil || r.conn.Hold(other) {
			t.Errorf("cancel: %v, %v", sent, err)
		}
		r.say(complete, ready)
		c.heard("C(SELECT 1) Z(I)")
		r.owner(1, 0)
	})
}

func TestObservers(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.ask("Q")
		<-time.After(time.Second)
		if i := r.conn.Info(); i.Holder != c || i.QueryFor != time.Second || i.XactIdle || i.Owed != 1 || i.PID != 7 {
			t.Errorf("info: %+v", i)
		}
		r.say(complete, readyT)
		<-time.After(time.Second)
		if i := r.conn.Info(); !i.XactIdle || i.XactFor != 2*time.Second || i.Status != wire.TxInside {
			t.Errorf("info: %+v", i)
		}
		r.more(c, "Q")
		r.say(complete, ready)
		<-time.After(time.Second)
		n := r.conn.Counters()
		if n.Queries != 2 || n.Xacts != 1 || n.XactTime.Sum != 2*time.Second || r.conn.Idle() != time.Second || r.conn.Age() != 3*time.Second {
			t.Errorf("counters: %+v, idle %v, age %v", n, r.conn.Idle(), r.conn.Age())
		}
		if r.conn.Params()["TimeZone"] != "UTC" || !r.conn.Alive() || r.conn.LocalAddr() == net.Addr(nil) {
			t.Error("parameters, life or address")
		}
	})
}
