package proxy_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// randomListens makes up what two clients do with three channels.
func randomListens(r *rand.Rand, n int) []move {
	var script []move
	one := func() string {
		c := string(rune('a' + r.IntN(3)))
		switch r.IntN(14) {
		case 0, 1, 2:
			return "LISTEN " + c
		case 3:
			return "UNLISTEN " + c
		case 4:
			return "UNLISTEN *"
		case 5, 6, 7:
			return fmt.Sprintf("NOTIFY %s, '%d'", c, len(script))
		case 8, 9:
			return "BEGIN"
		case 10:
			return "COMMIT"
		case 11:
			return "ROLLBACK"
		case 12:
			return "SAVEPOINT " + c
		}
		return "ROLLBACK TO " + c
	}
	for len(script) < n {
		who := r.IntN(2)
		switch r.IntN(8) {
		case 0:
			script = append(script, says(who, one()+"; "+one()+"; "+one()))
		case 1, 2:
			script = append(script, sends(who, execute(one())))
		case 3:
			script = append(script, sends(who, execute(one()), execute(one())))
		case 4:
			script = append(script, says(who, []string{"SELECT 1/0", "DISCARD ALL", fmt.Sprintf("SELECT pg_notify('a', '%d')", len(script))}[r.IntN(3)]))
		default:
			script = append(script, says(who, one()))
		}
	}
	return script
}

// runRandom runs a script and returns the answers to each step and, by client,
// all notifications in their order.
func runRandom(t *testing.T, addr, database string, script []move) (answers []string, notes [2][]string) {
	t.Helper()
	var clients [2]*pgtest.RawClient
	for i := range clients {
		clients[i] = pgtest.DialRaw(t, addr)
		clients[i].Login(testUser, testPassword, "database", database)
		defer clients[i].Terminate()
	}
	read := func(who int, end func(pgtest.Msg) bool) string {
		var out []string
		for {
			m := clients[who].Read()
			switch m.Type {
			case wire.ParameterStatus, wire.NoticeResponse:
			case wire.NotificationResponse:
				own := binary.BigEndian.Uint32(m.Body) == clients[who].PID
				notes[who] = append(notes[who], fmt.Sprint(m, own))
			default:
				out = append(out, m.String())
			}
			if end(m) {
				return strings.Join(out, " ")
			}
		}
	}
	ready := func(m pgtest.Msg) bool { return m.Type == wire.ReadyForQuery }
	for _, s := range script {
		clients[s.who].Send(s.send)
		answers = append(answers, read(s.who, ready))
	}
	for i, c := range clients {
		for _, sql := range []string{"ROLLBACK", "LISTEN the_end"} {
			c.Send(pgtest.Query(sql))
			read(i, ready)
		}
	}
	clients[0].Send(pgtest.Query("NOTIFY the_end"))
	last := func(m pgtest.Msg) bool { return m.String() == "A(the_end,)" }
	read(0, last)
	read(1, last)
	return answers, notes
}

// TestListenRandom: whatever two clients do, their channels and notifications are
// as PostgreSQL has them.
func TestListenRandom(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 2"})
	for seed := range uint64(60) {
		script := randomListens(rand.New(rand.NewPCG(seed, 1)), 40)
		want, wantNotes := runRandom(t, c.Primary.Addr(), "postgres", script)
		got, gotNotes := runRandom(t, h.Addr, "app", script)
		for i := range script {
			if got[i] != want[i] {
				t.Errorf("seed %d, step %d of client %d, %q:\n got %s\nwant %s", seed, i, script[i].who, script[i].send, got[i], want[i])
			}
		}
		for who := range wantNotes {
			if !heardAll(gotNotes[who], wantNotes[who], func(step int) bool { return inside(script, want, who, step) }) {
				t.Errorf("seed %d, client %d is told\n%s\nwant\n%s", seed, who, gotNotes[who], wantNotes[who])
			}
		}
		if t.Failed() {
			for i, s := range script {
				t.Logf("%d %q %s", s.who, s.send, want[i])
			}
			return
		}
	}
}

// heardAll reports whether got is want. What others have said in a client's
// transaction may be missing, or be there besides: PostgreSQL tells it of that by
// the channels that it listens to when the transaction is over, some of which are
// new, and begins where it has read last.
func heardAll(got, want []string, open func(step int) bool) bool {
	spare := func(note string) bool {
		_, payload, _ := strings.Cut(note, ",")
		number, _, _ := strings.Cut(payload, ")")
		step, err := strconv.Atoi(number)
		return err == nil && strings.HasSuffix(note, "false") && open(step)
	}
	for len(got)+len(want) > 0 {
		switch {
		case len(got) > 0 && len(want) > 0 && got[0] == want[0]:
			got, want = got[1:], want[1:]
		case len(got) > 0 && spare(got[0]):
			got = got[1:]
		case len(want) > 0 && spare(want[0]):
			want = want[1:]
		default:
			return false
		}
	}
	return true
}

// inside reports whether a client stands in a transaction at a step of a script.
func inside(script []move, answers []string, who, step int) bool {
	in := false
	for i := range step {
		if script[i].who == who {
			in = !strings.HasSuffix(answers[i], "Z(I)")
		}
	}
	return in
}
