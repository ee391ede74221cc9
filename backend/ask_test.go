package backend

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// tells answers a question with one row.
func tells(cols ...string) []byte {
	values := make([][]byte, len(cols))
	for i, c := range cols {
		values[i] = []byte(c)
	}
	return pgtest.Join(empty(wire.ParseComplete), empty(wire.BindComplete), wire.AppendDataRow(nil, values...), complete, ready)
}

// asking sends a statement behind which the server is to be asked for x.y.
func (r *rig) asking() *client {
	r.t.Helper()
	c := r.lend()
	p := parcel(c, "Q")
	p.Ask, p.Names = AskSettings|AskObjects, []string{"x.y"}
	done := r.send(p)
	r.hear("Q")
	if err := <-done; err != nil {
		r.t.Fatal(err)
	}
	return c
}

// question reads a question, and checks that it asks for x.y.
func (r *rig) question() {
	r.t.Helper()
	if p := r.hear("PBES"); !slices.ContainsFunc(p, func(m pgtest.Msg) bool { return strings.Contains(string(m.Body), `{"x.y"}`) }) {
		r.t.Error("x.y is not asked for")
	}
}

// TestFailedQuestion is asked again, for the same settings.
func TestFailedQuestion(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.asking()
		r.say(complete, ready)
		c.heard("C(SELECT 1) Z(I)")
		r.question()
		r.say(setFail)
		r.owner(0, 0)
		if why := r.conn.Pinned(c); why != PinSetting {
			t.Errorf("pinned by %v", why)
		}
		r.conn.mu.Lock()
		r.conn.asked -= int64(askInterval) + 1
		r.conn.mu.Unlock()
		if !r.conn.Hold(c) {
			t.Fatal("not held")
		}
		r.more(c, "Q")
		r.say(complete, ready)
		c.heard("C(SELECT 1) Z(I)")
		r.question()
		r.say(tells("set", "x.y", "1"))
		r.owner(1, 0)
		if v, _ := r.conn.Applied().Get("x.y"); v != "1" {
			t.Errorf("x.y is %q", v)
		}
	})
}

// TestLongAnswer: a setting too long to be carried along stays, and with it the
// connection.
func TestLongAnswer(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.asking()
		r.say(complete, ready)
		c.heard("C(SELECT 1) Z(I)")
		r.question()
		r.say(tells("set", "x.y", strings.Repeat("v", maxAnswer)))
		r.owner(0, 0)
		if why := r.conn.Pinned(c); why != PinHidden {
			t.Errorf("pinned by %v", why)
		}
	})
}

// TestQuestionWaitsForCancel: a cancel that is under way must not hit it.
func TestQuestionWaitsForCancel(t *testing.T) {
	inBubble(t, Limits{CancelWait: time.Minute}, func(r *rig) {
		c := r.asking()
		cancel, end := r.cancelling(c)
		r.say(complete, ready)
		c.heard("C(SELECT 1) Z(I)")
		r.owner(0, 0)
		if !r.conn.Settled(c) {
			t.Error("a question was asked")
		}
		end()
		r.question()
		if err := <-cancel; err != nil {
			t.Error(err)
		}
		r.say(tells("set", "x.y", "1"))
		r.owner(1, 0)
	})
}

// TestFailedRead is no error of the statement's in front of it.
func TestFailedRead(t *testing.T) {
	inBubble(t, Limits{}, func(r *rig) {
		c := r.lend()
		p := parcel(c, "Q")
		p.Owed, p.Bytes = r.conn.AppendRead([]string{"x.y"}, p.Owed, p.Bytes)
		p.Pin = PinBrief
		done := r.send(p)
		r.hear("QPBES")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		r.say(complete, ready, setFail)
		c.heard("C(SELECT 1) Z(I)")
		if st := r.conn.State(); st.Errors != 0 || st.Failed != nil || st.Read != nil || st.Owing {
			t.Errorf("state %+v", st)
		}
		r.conn.Unpin(PinBrief)
		r.owner(1, 0)
	})
}
