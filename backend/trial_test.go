package backend

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// Answers of a server. An error's routine is what tells a stale plan in every
// language.
var (
	bound     = wire.AppendEmpty(nil, wire.BindComplete)
	described = wire.AppendRowDescription(nil, []wire.Column{{Name: "c", OID: wire.OIDText}})
	stale     = serverError("0A000", "RevalidateCachedQuery")
	refusal   = serverError("25006", "PreventCommandIfReadOnly")
	conflict  = serverError("40001", "ProcessInterrupts")
	// What a server that is stopped at once says in the middle of anything.
	stopNotice = (&wire.Error{Severity: "WARNING", Code: wire.CodeAdminShutdown, Message: "terminating connection due to immediate shutdown command"}).AppendNotice(nil)
	gone       = serverError("26000", "FetchPreparedStatement")
)

func serverError(code, routine string) []byte {
	fields := "SERROR\x00VERROR\x00C" + code + "\x00Mmessage\x00R" + routine + "\x00\x00"
	return pgtest.Message(wire.ErrorResponse, []byte(fields))
}

// TestTrial: a statement is run again only if its client has been written nothing,
// and only where that can do no harm. Each string of writes is what the server says
// at a time.
func TestTrial(t *testing.T) {
	st := &Statement{Name: "s"}
	for _, v := range []struct {
		name   string
		types  string
		trial  Trial
		says   [][]byte
		heard  string
		failed Cause
	}{
		{"answered", "BES", Trial{}, [][]byte{bound, row, complete, ready}, "2 D(1) C(SELECT 1) Z(I)", 0},
		{"stale", "BES", Trial{}, [][]byte{stale, ready}, "", CauseStale},
		{"stale at once", "BES", Trial{}, [][]byte{pgtest.Join(stale, ready)}, "", CauseStale},
		{"gone", "BES", Trial{}, [][]byte{gone, ready}, "", CauseStale},
		{"another error", "BES", Trial{}, [][]byte{errPlain, ready}, "E(42601) Z(I)", 0},
		{"another 0A000", "BES", Trial{}, [][]byte{serverError("0A000", "transformLockingClause"), ready}, "E(0A000) Z(I)", 0},
		{"stale behind a write", "BEBES", Trial{}, [][]byte{pgtest.Join(bound, complete, stale, ready)}, "2 C(SELECT 1) E(0A000) Z(I)", 0},
		{"stale behind a read", "BEBES", Trial{Reads: true}, [][]byte{pgtest.Join(bound, row, complete, stale, ready)}, "", CauseStale},
		{"stale behind a read that was relayed", "BEBES", Trial{Reads: true}, [][]byte{pgtest.Join(bound, row), pgtest.Join(complete, stale, ready)}, "2 D(1) C(SELECT 1) E(0A000) Z(I)", 0},
		{"refused by a standby", "Q", Trial{Standby: true}, [][]byte{described, refusal, ready}, "", CauseRefused},
		{"read-only primary", "Q", Trial{Reads: true}, [][]byte{described, refusal, ready}, "T E(25006) Z(I)", 0},
		{"refused behind a row", "Q", Trial{Standby: true, Reads: true}, [][]byte{described, row, refusal, ready}, "T D(1) E(25006) Z(I)", 0},
		{"conflict", "Q", Trial{Standby: true, Reads: true}, [][]byte{conflict, ready}, "", CauseConflict},
		{"conflict of what may write", "Q", Trial{Standby: true}, [][]byte{conflict, ready}, "E(40001) Z(I)", 0},
		{"serialization failure", "Q", Trial{Reads: true}, [][]byte{conflict, ready}, "E(40001) Z(I)", 0},
		{"killed", "Q", Trial{Standby: true, Reads: true}, [][]byte{described, errAdmin}, "", CauseDied},
		{"killed behind a row", "Q", Trial{Standby: true, Reads: true}, [][]byte{pgtest.Join(described, row), errAdmin}, "T D(1) E(57P01)", 0},
		{"killed primary", "Q", Trial{Reads: true}, [][]byte{errAdmin}, "", CauseDied},
		{"killed behind a BEGIN", "BES", Trial{Reads: true}, [][]byte{pgtest.Join(bound, wire.AppendCommandComplete(nil, "BEGIN")), errAdmin}, "", CauseDied},
		{"killed at once behind a BEGIN", "Q", Trial{Reads: true}, [][]byte{pgtest.Join(wire.AppendCommandComplete(nil, "BEGIN"), errAdmin)}, "", CauseDied},
		{"killed behind a write", "BES", Trial{}, [][]byte{pgtest.Join(bound, complete), errAdmin}, "2 C(SELECT 1) E(57P01)", 0},
		{"stopped at once", "Q", Trial{Reads: true}, [][]byte{described, stopNotice, nil}, "", CauseDied},
		{"stopped at once behind a row", "Q", Trial{Reads: true}, [][]byte{pgtest.Join(described, row), stopNotice, nil}, "T D(1) N(57P01)", 0},
		{"not stopped at all", "Q", Trial{Reads: true}, [][]byte{stopNotice, pgtest.Join(described, row, complete, ready)}, "N(57P01) T D(1) C(SELECT 1) Z(I)", 0},
		{"killed in a write", "Q", Trial{}, [][]byte{errAdmin}, "E(57P01)", 0},
		{"notice", "Q", Trial{Standby: true}, [][]byte{notice, refusal, ready}, "N(00000) E(25006) Z(I)", 0},
		{"long prefix", "Q", Trial{Standby: true}, [][]byte{wire.AppendRowDescription(nil, []wire.Column{{Name: strings.Repeat("x", maxHeld), OID: 25}}), refusal, ready}, "T E(25006) Z(I)", 0},
	} {
		t.Run(v.name, func(t *testing.T) {
			inBubble(t, Limits{}, func(r *rig) {
				c := r.lend()
				p := parcel(c, v.types)
				for i := range p.Owed {
					if p.Owed[i].Kind == Bind {
						p.Owed[i].Stmt = st
					}
				}
				p.Trial = v.trial
				p.Trial.Bytes, p.Trial.First = []byte("what the client has sent"), true
				done := r.send(p)
				r.hear(v.types)
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				for _, p := range v.says {
					r.say(p)
				}
				if last := v.says[len(v.says)-1]; last == nil || bytes.Equal(last, errAdmin) {
					_ = r.srv.Close()
				}
				c.heard(v.heard)
				synctest.Wait()
				switch {
				case v.failed == 0 && len(c.failures) > 0:
					t.Errorf("failed: %+v", c.failures[0])
				case v.failed == 0:
				case len(c.failures) != 1:
					t.Errorf("%d failures, want one", len(c.failures))
				default:
					if f := c.failures[0]; f.Cause != v.failed || string(f.Sent) != "what the client has sent" {
						t.Errorf("failed: %d, %q", f.Cause, f.Sent)
					}
					if v.failed != CauseDied {
						r.owner(1, 0) // nothing is owed any more
					} else {
						r.owner(0, 1)
						c.isLost(0, false)
					}
				}
			})
		})
	}
}

// TestTrialEnds when the client sends something else, and is none inside a
// transaction, behind another statement, or of what is too long.
func TestTrialEnds(t *testing.T) {
	trial := Trial{Bytes: []byte("sent"), First: true, Reads: true, Standby: true}
	for name, story := range map[string]func(r *rig, c *client){
		"pipelined": func(r *rig, c *client) {
			p := parcel(c, "Q")
			p.Trial = trial
			done := r.send(p)
			r.hear("Q")
			<-done
			if !r.conn.Hold(c) {
				r.t.Error("not held")
			}
			r.more(c, "Q")
			r.say(described)
			r.say(refusal, ready, complete, ready)
			c.heard("T E(25006) Z(I) C(SELECT 1) Z(I)")
		},
		"in a transaction": func(r *rig, c *client) {
			r.more(c, "Q")
			r.say(complete, readyT)
			p := parcel(c, "Q")
			p.Trial = trial
			done := r.send(p)
			r.hear("Q")
			<-done
			r.say(refusal, readyT)
			c.heard("C(SELECT 1) Z(T) E(25006) Z(T)")
		},
		"too long": func(r *rig, c *client) {
			p := parcel(c, "Q")
			p.Trial = trial
			p.Trial.Bytes = make([]byte, MaxTrial+1)
			done := r.send(p)
			r.hear("Q")
			<-done
			r.say(refusal, ready)
			c.heard("E(25006) Z(I)")
		},
		"not complete": func(r *rig, c *client) {
			p := parcel(c, "BE")
			p.Trial = trial
			done := r.send(p)
			r.hear("BE")
			<-done
			r.say(refusal)
			c.heard("E(25006)")
		},
		"goes on meanwhile": func(r *rig, c *client) {
			p := parcel(c, "Q")
			p.Trial = trial
			done := r.send(p)
			r.hear("Q")
			<-done
			r.say(refusal)
			if r.conn.Hold(c) {
				r.t.Error("held, although the statement is to be run again")
			}
			r.say(ready)
			c.heard("")
			if len(c.failures) != 1 {
				r.t.Errorf("%d failures", len(c.failures))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Limits{}, func(r *rig) {
				c := r.lend()
				story(r, c)
				if name != "goes on meanwhile" && len(c.failures) > 0 {
					t.Errorf("failed: %+v", c.failures[0])
				}
			})
		})
	}
}

// TestTrialAllocatesNothing once a connection has had one.
func TestTrialAllocatesNothing(t *testing.T) {
	var tr trial
	b := make([]byte, 200)
	p := &Parcel{Trial: Trial{Bytes: b, First: true}}
	tr.send(p, true)
	if n := testing.AllocsPerRun(100, func() {
		tr.send(p, true)
		tr.take(wire.BindComplete)
		tr.over()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestRowType: names and types of the columns count, their places do not.
func TestRowType(t *testing.T) {
	of := func(c ...wire.Column) uint64 { return rowType(wire.AppendRowDescription(nil, c)[wire.HeaderLen:]) }
	a, b := wire.Column{Name: "a", OID: 23}, wire.Column{Name: "b", OID: 25}
	seen := map[uint64]string{}
	for name, n := range map[string]uint64{
		"a": of(a), "b": of(b), "ab": of(a, b), "ba": of(b, a), "a of another type": of(wire.Column{Name: "a", OID: 25}), "none": rowType(nil),
	} {
		if other := seen[n]; other != "" || n == 0 {
			t.Errorf("%s is %d, as %s", name, n, other)
		}
		seen[n] = name
	}
	if again := of(a, b); seen[again] != "ab" {
		t.Error("not the same twice")
	}
}

// TestTrialCarries: what a client has left in the session ends with the connection, so
// nothing is run again or looked up behind its back then.
func TestTrialCarries(t *testing.T) {
	var xid Note
	xid.Store(&Noted{Value: "7"})
	read, write, commit := Trial{Reads: true}, Trial{}, Trial{Commit: &xid}
	for _, v := range []struct {
		name   string
		trial  Trial
		carry  func(c *Conn, p *Parcel)
		fenced bool // the proxy ends the connection, not the server
		failed Cause
	}{
		{"nothing", read, nil, false, CauseDied},
		{"nothing, fenced", read, nil, true, CauseDied},
		{"nothing, COMMIT", commit, nil, false, CauseCommit},
		{"a setting being changed", read, func(_ *Conn, p *Parcel) { p.Pin = PinBrief }, false, CauseDied},
		{"a lock", read, func(c *Conn, _ *Parcel) { c.Pin(PinLock, func() string { return "" }) }, false, 0},
		{"a lock, fenced", read, func(c *Conn, _ *Parcel) { c.Pin(PinLock, func() string { return "" }) }, true, 0},
		{"a lock, COMMIT", commit, func(c *Conn, _ *Parcel) { c.Pin(PinLock, func() string { return "" }) }, false, 0},
		{"pool_mode session", read, func(_ *Conn, p *Parcel) { p.Pin = PinSession }, false, 0},
		{"pool_mode session, write", write, func(_ *Conn, p *Parcel) { p.Pin = PinSession }, false, 0},
		{"pool_mode session, COMMIT", commit, func(_ *Conn, p *Parcel) { p.Pin = PinSession }, false, 0},
		{"what is still to be asked", read, func(_ *Conn, p *Parcel) { p.Ask = AskObjects }, false, 0},
		{"what nobody knows", read, func(_ *Conn, p *Parcel) { p.Dirty = true }, false, 0},
	} {
		t.Run(v.name, func(t *testing.T) {
			inBubble(t, Limits{}, func(r *rig) {
				c := r.lend()
				p := parcel(c, "Q")
				p.Trial = v.trial
				p.Trial.Bytes, p.Trial.First = []byte("sent"), true
				if v.carry != nil {
					v.carry(r.conn, p)
				}
				done := r.send(p)
				r.hear("Q")
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				if v.fenced {
					r.conn.Sever(ErrFenced)
				} else {
					r.say(errAdmin)
					_ = r.srv.Close()
				}
				synctest.Wait()
				if v.failed != 0 {
					if len(c.failures) != 1 || c.failures[0].Cause != v.failed {
						t.Errorf("failed: %+v", c.failures)
					}
					c.isLost(0, false)
					return
				}
				if len(c.failures) > 0 {
					t.Errorf("failed: %+v", c.failures[0])
				}
				c.isLost(1, !v.fenced)
				if !v.fenced {
					c.heard("E(57P01)")
				}
			})
		})
	}
}

// TestTrialFailedAndDied: a statement that is to be run again whose server then ends
// the connection, before ReadyForQuery.
func TestTrialFailedAndDied(t *testing.T) {
	for _, pin := range []Pin{0, PinSession} {
		inBubble(t, Limits{}, func(r *rig) {
			c := r.lend()
			p := parcel(c, "Q")
			p.Pin, p.Trial = pin, Trial{Bytes: []byte("sent"), First: true, Standby: true}
			done := r.send(p)
			r.hear("Q")
			<-done
			r.say(refusal)
			r.say(errAdmin)
			_ = r.srv.Close()
			if pin == 0 {
				c.heard("")
				c.isLost(0, false)
			} else {
				c.heard("E(57P01)")
				c.isLost(1, true)
			}
			if again := len(c.failures) > 0; again != (pin == 0) {
				t.Errorf("pin %q: failures %+v", pin, c.failures)
			}
		})
	}
}
