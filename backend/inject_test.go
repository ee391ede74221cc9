package backend

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

var (
	empty = func(t byte) []byte { return wire.AppendEmpty(nil, t) }
	// setDone answers one statement of Adopt's.
	setDone = pgtest.Join(empty(wire.ParseComplete), empty(wire.BindComplete), row, complete, ready)
	setFail = pgtest.Join(empty(wire.ParseComplete), empty(wire.BindComplete), errPlain, ready)
)

func settings(pairs ...string) (s *Settings) {
	for i := 0; i < len(pairs); i += 2 {
		s = s.With(pairs[i], pairs[i+1])
	}
	return s
}

// adopted is what Adopt sends, as text.
func adopted(c *Conn, want *Settings) (s string) {
	owed, p, _ := c.Adopt(want, nil, nil)
	for len(p) > 0 {
		h, _ := wire.ReadHeader(p, 1<<20)
		body := p[wire.HeaderLen:h.Size()]
		switch h.Type {
		case wire.Parse:
			m, _ := wire.ReadParse(body)
			s += string(m.Query)
		case wire.Bind:
			s += fmt.Sprintf(" %q", body[6:len(body)-2])
		case wire.Sync:
			s += "; "
		}
		p = p[h.Size():]
	}
	return fmt.Sprintf("%s(%d)", s, len(owed))
}

func TestAdoptSendsTheDifference(t *testing.T) {
	const set = "SELECT pg_catalog.set_config($1, $2, false) "
	pair := func(n, v string) string {
		b := wire.AppendBindText(nil, "", n, v)
		return fmt.Sprintf("%q; ", b[wire.HeaderLen+6:len(b)-2])
	}
	for _, c := range []struct {
		name       string
		have, want *Settings
		sent       string
	}{
		{"nothing", nil, nil, "(0)"},
		{"equal", settings("a", "1"), settings("a", "1"), "(0)"},
		{"first", nil, settings("a", "1"), set + pair("a", "1") + "(4)"},
		{"changed", settings("a", "1", "b", "2"), settings("a", "1", "b", "3"), set + pair("b", "3") + "(4)"},
		{"taken back", settings("a", "1", "x.y", "2"), settings("a", "1"), `RESET "x"."y" ""; (4)`},
		{"all", settings("a", "1", "c", "3"), settings("b", "2", "c", "4"), `RESET "a" ""; ` + set + pair("b", "2") + set + pair("c", "4") + "(12)"},
		{"quoted", settings(`a"b`, "1"), nil, `RESET "a""b" ""; (4)`},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := new(Conn)
			conn.applied.Store(c.have)
			if got := adopted(conn, c.want); got != c.sent {
				t.Errorf("got  %s\nwant %s", got, c.sent)
			}
			if conn.Applied() != c.want {
				t.Error("not noted")
			}
		})
	}
}

func TestAdoptIsSilent(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.lend()
		owed, p, _ := r.conn.Adopt(settings("TimeZone", "Asia/Tokyo"), nil, nil)
		done := r.send(&Parcel{Owed: append(owed, Owed{Kind: Query, Sink: c}), Bytes: append(p, pgtest.Query("x")...)})
		r.hear("PBESQ")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		r.say(empty(wire.ParseComplete), empty(wire.BindComplete), zone, notice, row, complete, ready, complete, ready)
		c.heard("C(SELECT 1) Z(I)")
		r.owner(1, 0)
		if len(c.reported) > 0 || r.conn.Params()["TimeZone"] != "Asia/Tokyo" {
			t.Errorf("reported %v, parameters %v", c.reported, r.conn.Params())
		}
	})
}

// TestRefusedSetting: the connection has not what it is thought to have, so it is
// not lent again, unless somebody sees to it.
func TestRefusedSetting(t *testing.T) {
	for _, seen := range []bool{false, true} {
		inBubble(t, Limits{}, func(r *rig) {
			c := r.lend()
			owed, p, _ := r.conn.Adopt(settings("a", "1"), nil, nil)
			done := r.send(&Parcel{Owed: owed, Bytes: p, Pin: PinBrief})
			r.hear("PBES")
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			r.say(setFail)
			c.heard("")
			if st := r.conn.State(); st.Failed == nil || st.Failed.Code != "42601" || st.Owing {
				t.Errorf("state %+v", st)
			}
			if seen {
				r.conn.SetApplied(nil)
			}
			r.conn.Unpin(PinBrief)
			if seen {
				r.owner(1, 0)
			} else {
				r.owner(0, 1)
			}
		})
	}
}

// TestReportedSetting of the client's own statement is the client's, under the
// name that settings have.
func TestReportedSetting(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.ask("Q")
		r.say(zone, complete, ready)
		c.heard("S(TimeZone=Asia/Tokyo) C(SELECT 1) Z(I)")
		if v, _ := r.conn.Applied().Get("timezone"); v != "Asia/Tokyo" || len(r.conn.Applied().List()) != 1 {
			t.Errorf("applied %v", r.conn.Applied().List())
		}
		if got := adopted(r.conn, settings("timezone", "Asia/Tokyo")); got != "(0)" {
			t.Errorf("sent again: %s", got)
		}
		c = r.ask("Q")
		r.say(wire.AppendParameterStatus(nil, "TimeZone", "UTC"), wire.AppendParameterStatus(nil, "in_hot_standby", "on"), complete, ready)
		c.heard("S(TimeZone=UTC) S(in_hot_standby=on) C(SELECT 1) Z(I)")
		if r.conn.Applied() != nil || fmt.Sprint(c.reported) != "[TimeZone=UTC (login)]" {
			t.Errorf("applied %v, reported %v", r.conn.Applied().List(), c.reported)
		}
	})
}

func TestEvictSparesTheBatch(t *testing.T) {
	c := &Conn{limits: Limits{MaxPrepared: 2}}
	names := []string{"s0", "s1", "s2", "s3", "s4", "s5"}
	all := make([]*Statement, len(names))
	for i, n := range names {
		all[i] = &Statement{Name: n, Query: []byte(n)}
	}
	prepare := func(i int) (closed string) {
		_, p := c.Prepare(all[i], nil, 0, false, nil, nil)
		for len(p) > 0 {
			h, _ := wire.ReadHeader(p, 1<<20)
			if h.Type == wire.Close {
				_, name, _ := wire.ReadTarget(p[wire.HeaderLen:h.Size()])
				closed += string(name) + " "
			}
			p = p[h.Size():]
		}
		return closed
	}
	c.Batch()
	for i := range 4 { // one batch with more than the limit: all must stay
		if got := prepare(i); got != "" {
			t.Errorf("evicted %sof the batch", got)
		}
	}
	for _, st := range all[:4] {
		c.prep.settle(st, true) // the server has accepted them
	}
	c.Batch()
	prepare(1)
	if got := prepare(4); got != "s0 s2 s3 " {
		t.Errorf("the next batch evicts %q, want all above the limit", got)
	}
	if len(c.prep.used) != 2 {
		t.Errorf("%d statements kept, want 2", len(c.prep.used))
	}
	if got := prepare(1); got != "" {
		t.Errorf("evicted %q for what is there", got)
	}
}

func TestExec(t *testing.T) {
	run := func(t *testing.T, timeout time.Duration, server func(r *rig)) (err error) {
		inBubble(t, Limits{}, func(r *rig) {
			done := make(chan error, 1)
			go func() { done <- r.conn.Exec("check", timeout) }()
			server(r)
			err = <-done
		})
		return err
	}
	if err := run(t, time.Second, func(r *rig) { r.hear("Q"); r.say(row, complete, ready) }); err != nil {
		t.Errorf("answered: %v", err)
	}
	var e *wire.Error
	if err := run(t, time.Second, func(r *rig) { r.hear("Q"); r.say(errPlain, ready) }); !errors.As(err, &e) || e.Code != "42601" {
		t.Errorf("refused: %v", err)
	}
	if err := run(t, time.Second, func(r *rig) { r.hear("Q") }); err == nil || errors.As(err, &e) {
		t.Errorf("not answered: %v", err)
	}
	if err := run(t, time.Second, func(r *rig) { r.hear("Q"); _ = r.srv.Close() }); !errors.Is(err, ErrGone) {
		t.Errorf("gone: %v", err)
	}
}

func TestAbandon(t *testing.T) {
	for _, c := range []struct {
		name                string
		send                string
		reply               []byte
		pin                 Pin
		cleans              string // what the server hears then
		answers             [][]byte
		released, discarded int
	}{
		{"transaction", "Q", pgtest.Join(complete, readyT), 0, "Q", [][]byte{ready}, 1, 0},
		{"failed transaction", "Q", pgtest.Join(errPlain, wire.AppendReadyForQuery(nil, wire.TxFailed)), 0, "Q", [][]byte{ready}, 1, 0},
		{"pinned", "Q", pgtest.Join(complete, ready), PinSession, "Q", [][]byte{ready}, 1, 0},
		{"pinned in a transaction", "Q", pgtest.Join(complete, readyT), PinSession, "QQ", [][]byte{ready, ready}, 1, 0},
		{"rollback fails", "Q", pgtest.Join(complete, readyT), 0, "Q", [][]byte{pgtest.Join(errPlain, ready)}, 0, 1},
		{"rollback leaves a transaction", "Q", pgtest.Join(complete, readyT), 0, "Q", [][]byte{readyT}, 0, 1},
		{"query under way", "Q", row, 0, "", nil, 0, 1},
		{"batch open", "P", empty(wire.ParseComplete), 0, "", nil, 0, 1},
		{"skipping", "P", errPlain, 0, "", nil, 0, 1},
		{"copy in", "Q", empty(wire.CopyInResponse), 0, "", nil, 0, 1},
		{"half a message", "Q", pgtest.Join(complete, readyT, notice[:8]), 0, "", nil, 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, Limits{CancelWait: time.Second}, func(r *rig) {
				s := r.lend()
				p := parcel(s, c.send)
				p.Pin = c.pin
				sent := r.send(p)
				r.hear(c.send)
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
				r.say(c.reply)
				done := make(chan struct{})
				go func() { r.conn.Abandon(s, "DISCARD ALL"); close(done) }()
				for i := range c.cleans {
					r.hear("Q")
					r.say(complete, c.answers[i])
				}
				<-done
				r.owner(c.released, c.discarded)
				s.isLost(0, false)
			})
		})
	}
	t.Run("in the middle of sending", func(t *testing.T) {
		inBubble(t, Limits{}, func(r *rig) {
			s := r.lend()
			r.conn.Abandon(s, "")
			r.owner(0, 1)
		})
	})
}

func TestDiscardAllEmptiesTheConnection(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		r.conn.SetApplied(settings("a", "1"))
		st := &Statement{Name: "s", Query: []byte("select 1")}
		r.conn.Prepare(st, nil, 0, false, nil, nil)
		c := r.ask("Q")
		r.say(wire.AppendCommandComplete(nil, "DISCARD ALL"), readyT)
		if s := r.conn.State(); !s.Dropped || r.conn.Applied() != nil || r.conn.Info().Prepared != 0 {
			t.Errorf("state %+v, %d prepared", s, r.conn.Info().Prepared)
		}
		if s := r.conn.State(); s.Dropped {
			t.Error("told twice")
		}
		c.heard("C(DISCARD ALL) Z(T)")
	})
}

// TestFailedParseIsForgotten: the next client must not be told that it is there.
func TestFailedParseIsForgotten(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		st := &Statement{Name: "s", Query: []byte("selec")}
		c := r.lend()
		owed, p := r.conn.Prepare(st, c, 5, false, nil, nil)
		done := r.send(&Parcel{Owed: append(owed, Owed{Kind: Sync, Sink: c}), Bytes: append(p, pgtest.Sync()...)})
		r.hear("PS")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		r.say(errPlain, ready)
		c.heard("E(42601) Z(I)")
		if r.conn.Info().Prepared != 0 || fmt.Sprint(c.undone) != "[5]" {
			t.Errorf("%d prepared, undone %v", r.conn.Info().Prepared, c.undone)
		}
	})
}

func TestProbeAfterDoubt(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.ask("ES")
		r.say(empty(wire.CopyInResponse))
		r.more(c, "dcS")
		r.say(errPlain, ready)
		c.heard("G E(42601) Z(I)")
		r.owner(0, 0)
		if !r.conn.Doubt() || !r.conn.Hold(c) {
			t.Fatal("no doubt")
		}
		owed, p := AppendProbe(c, nil, nil)
		done := r.send(&Parcel{Owed: append(owed, Owed{Kind: Query, Sink: c}), Bytes: append(p, pgtest.Query("x")...)})
		r.hear("QQ")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		r.say(empty(wire.EmptyQueryResponse), ready, complete, ready)
		c.heard("C(SELECT 1) Z(I)")
		r.owner(1, 0)
	})
}

// TestPrepareAfterIgnoredParse: a statement whose Parse of an earlier batch may
// have been ignored is prepared again so that the server has it once, whatever
// came of the first.
func TestPrepareAfterIgnoredParse(t *testing.T) {
	st := &Statement{Name: "s", Query: []byte("SELECT 1")}
	kinds := func(owed []Owed) string {
		out := ""
		for _, o := range owed {
			out += o.Kind.String() + " "
		}
		return out
	}
	c := &Conn{}
	for _, step := range []struct {
		does string
		do   func()
		want string
	}{
		{"a new statement", func() { c.Batch() }, "Parse "},
		{"the same batch", func() {}, ""},
		{"the next batch, before the answer", func() { c.Batch() }, "Close Parse "},
		{"the same batch", func() {}, ""},
		{"the server has accepted it", func() { c.Batch(); c.prep.settle(st, true) }, ""},
		{"its Parse stood behind an error", func() { c.Batch(); c.droppedEntry(Owed{Kind: Parse, Stmt: st}, false) }, "Close Parse "},
		{"the server has refused it", func() { c.Batch(); c.droppedEntry(Owed{Kind: Parse, Stmt: st}, true) }, "Parse "},
	} {
		step.do()
		owed, _ := c.Prepare(st, nil, 0, false, nil, nil)
		if got := kinds(owed); got != step.want {
			t.Errorf("%s: %q, want %q", step.does, got, step.want)
		}
	}
}

// TestRefusedSettingInFront of a client's statement: the client has no answer that
// came of other settings than its own.
func TestRefusedSettingInFront(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.lend()
		owed, p, risky := r.conn.Adopt(settings("search_path", "a"), nil, nil)
		if risky {
			t.Error("search_path is waited for")
		}
		done := r.send(&Parcel{Owed: append(owed, Owed{Kind: Query, Sink: c}), Bytes: append(p, pgtest.Query("x")...)})
		r.hear("PBESQ")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		r.say(setFail, complete, ready)
		c.heard("")
		c.isLost(1, false)
		r.owner(0, 1)
	})
}

// TestAdoptionEnds: a server that ends the connection while it is sent nothing but
// settings has done nothing of the client's, who hears nothing of it.
func TestAdoptionEnds(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.lend()
		owed, p, _ := r.conn.Adopt(settings("a", "1"), nil, nil)
		done := r.send(&Parcel{Owed: owed, Bytes: p, Pin: PinBrief})
		r.hear("PBES")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		r.say(errAdmin)
		_ = r.srv.Close()
		r.conn.Wait()
		c.heard("")
		c.isLost(0, false)
		r.owner(0, 1)
	})
}

// TestShortTimeouts are off while settings are changed, and waited for.
func TestShortTimeouts(t *testing.T) {
	for _, c := range []struct {
		have, want *Settings
		order      string
		risky      bool
	}{
		{settings("search_path", "a", "statement_timeout", "1ms"), settings("search_path", "b"), "statement_timeout search_path", true},
		{settings("search_path", "a"), settings("search_path", "b", "statement_timeout", "1"), "search_path statement_timeout", true},
		{settings("search_path", "a", "transaction_timeout", "999ms"), settings("search_path", "b", "transaction_timeout", "30s"), "transaction_timeout search_path transaction_timeout", true},
		{settings("search_path", "a", "statement_timeout", "0"), settings("search_path", "b", "statement_timeout", "1s"), "search_path statement_timeout", false},
		{settings("statement_timeout", "1ms"), settings("statement_timeout", "1ms"), "", false},
	} {
		conn := new(Conn)
		conn.applied.Store(c.have)
		_, p, risky := conn.Adopt(c.want, nil, nil)
		var order []string
		for len(p) > 0 {
			h, _ := wire.ReadHeader(p, 1<<20)
			for _, name := range []string{"search_path", "statement_timeout", "transaction_timeout"} {
				if bytes.Contains(p[:h.Size()], []byte(name)) {
					order = append(order, name)
				}
			}
			p = p[h.Size():]
		}
		if got := strings.Join(order, " "); got != c.order || risky != c.risky {
			t.Errorf("%v to %v: %s (risky %v), want %s", c.have.List(), c.want.List(), got, risky, c.order)
		}
	}
	for v, want := range map[string]bool{"0": false, "0ms": false, "1": true, "999ms": true, " 20 ms": true, "1000": false, "1s": false, "5min": false, "500us": true, "x": true, "0.5s": true} {
		if shortTime(v) != want {
			t.Errorf("%q: short is %v", v, !want)
		}
	}
}
