package backend

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgproxy/wire"
)

// mark is a Sink that only says which message an entry stands for.
type mark struct {
	Sink
	n int
}

// play runs a script over a queue, word by word: "+K" sends a message of kind K
// (the letters of kindOf, in lower case: swallowed, Own), "-t" is a reply of type
// t. It returns what the client gets, as types with the number of the message.
func play(q *queue, script string) (got string, err error) {
	var out []string
	sent := 0
	for _, w := range strings.Fields(script) {
		if k, ok := strings.CutPrefix(w, "+"); ok {
			sent++
			o := kindOf[strings.ToUpper(k)[0]]
			o.Sink = &mark{n: sent}
			if k != strings.ToUpper(k) {
				o.Do, o.Own = Swallow, len(k) == 1
			}
			q.push(o)
			continue
		}
		for o, ok := q.forged(); ok; o, ok = q.forged() {
			out = append(out, fmt.Sprintf("%c%d", o.Made, o.Sink.(*mark).n))
		}
		v, err := q.reply(w[1], []byte("I"))
		if err != nil {
			return strings.Join(out, " "), err
		}
		switch {
		case v.Error != nil:
			out = append(out, fmt.Sprintf("!%d", v.Sink.(*mark).n))
		case v.Forward && v.Sink != nil:
			out = append(out, fmt.Sprintf("%c%d", w[1], v.Sink.(*mark).n))
		case v.Forward:
			out = append(out, string(w[1])+"?")
		}
	}
	return strings.Join(out, " "), nil
}

// kindOf gives the entries of a script their letters: those of the messages, X
// for CopyEnd, Y for Probe, W for a Forge and R for a Parse that must fail.
var kindOf = map[byte]Owed{
	'Q': {Kind: Query}, 'F': {Kind: Function}, 'S': {Kind: Sync}, 'P': {Kind: Parse}, 'B': {Kind: Bind},
	'D': {Kind: Describe}, 'E': {Kind: Execute}, 'C': {Kind: Close}, 'X': {Kind: CopyEnd}, 'Y': {Kind: Probe, Do: Swallow, Own: true},
	'W': {Kind: Forge, Made: wire.ParseComplete}, 'R': {Kind: Parse, Do: Replace, Err: wire.Errorf(wire.CodeDuplicatePrepared, "twice")},
}

func TestReplyFlows(t *testing.T) {
	for _, c := range []struct{ name, script, want string }{
		{"query", "+Q -T -D -D -C -Z", "T1 D1 D1 C1 Z1"},
		{"several results", "+Q -T -D -C -C -I -Z", "T1 D1 C1 C1 I1 Z1"},
		{"empty query", "+Q -I -Z", "I1 Z1"},
		{"query fails", "+Q -T -D -E -Z", "T1 D1 E1 Z1"},
		{"two queries", "+Q +Q -E -Z -C -Z", "E1 Z1 C2 Z2"},
		{"function", "+F -V -Z", "V1 Z1"},
		{"function fails", "+F -E -Z +Q -C -Z", "E1 Z1 C2 Z2"},
		{"batch", "+P +B +D +E +S -1 -2 -T -D -C -Z", "11 22 T3 D4 C4 Z5"},
		{"describe statement", "+D +S -t -n -Z", "t1 n1 Z2"},
		{"close", "+C +S -3 -Z", "31 Z2"},
		{"portal suspended", "+B +E -2 -D -s +E -D -C +S -Z", "21 D2 s2 D3 C3 Z4"},
		{"sync alone", "+S +S -Z -Z", "Z1 Z2"},
		{"commit fails at sync", "+E +S -C -E -Z", "C1 E2 Z2"},
		{"error in parse", "+P +B +E +S -E -Z", "E1 Z4"},
		{"error in bind", "+P +B +E +S -1 -E -Z", "11 E2 Z4"},
		{"error in execute, next batch", "+B +E +S +P +S -2 -E -Z -1 -Z", "21 E2 Z3 14 Z5"},
		{"error before sync is sent", "+P -E +B +E +S -Z", "E1 Z4"},
		{"query behind an error is skipped", "+P +Q +S -E -Z", "E1 Z3"},
		{"query sent while skipping", "+P -E +Q +S -Z +Q -C -Z", "E1 Z3 C4 Z4"},
		{"query inside a batch", "+P +Q +S -1 -C -Z -Z", "11 C2 Z2 Z3"},
		{"swallowed group", "+p +b +e +s +Q -1 -2 -D -C -Z -C -Z", "C5 Z5"},
		{"swallowed group fails", "+p +b +e +s +Q -1 -E -Z -C -Z", "C5 Z5"},
		{"swallowed parse", "+pp +B +E +S -1 -2 -C -Z", "22 C3 Z4"},
		{"swallowed parse fails", "+pp +B +E +S -E -Z", "E1 Z4"},
		{"replaced error", "+R +B +S -E -Z", "!1 Z3"},
		{"forged parse", "+W +B +E +S -2 -C -Z", "11 22 C3 Z4"},
		{"forged behind an error", "+P +W +B +S -E -Z", "E1 Z4"},
		{"forged last", "+B +W +S -2 -Z", "21 12 Z3"},
		{"copy in, simple", "+Q -G +X -C -Z", "G1 C1 Z1"},
		{"two copies in one query", "+Q -G +X -C -G +X -C -Z", "G1 C1 G1 C1 Z1"},
		{"copy in, extended", "+B +E -2 -G +X +S -C -Z", "21 G2 C2 Z4"},
		{"copy in, sync and flush inside", "+E +S -G +S +X +S -C -Z", "G1 C1 Z5"},
		{"copy in, simple, sync inside", "+Q -G +S +X -C -Z", "G1 C1 Z1"},
		{"copy fails by client", "+Q -G +X -E -Z", "G1 E1 Z1"},
		{"copy fails by client, extended", "+E -G +X +S -E -Z", "G1 E1 Z3"},
		{"copy fails, late end, simple", "+Q -G -E +X -Z", "G1 E1 Z1"},
		{"copy fails, late end behind its ready", "+Q -G -E -Z +X", "G1 E1 Z1"},
		{"copy fails, late end, extended", "+E -G -E +X +S -Z", "G1 E1 Z3"},
		{"copy never began, late end", "+B +E +S -E +X +S -Z -Z", "E1 Z3 Z5"},
		{"copy never began, late end and no more", "+E +S -E +X -Z", "E1 Z2"},
		{"copy end without a copy", "+Q +X +Q -C -Z -C -Z", "C1 Z1 C3 Z3"},
		{"copy end behind a forged reply", "+W +X +S -Z", "11 Z3"},
		{"copy out", "+Q -H -d -d -c -C -Z", "H1 d1 d1 c1 C1 Z1"},
		{"copy out, extended", "+E +S -H -d -c -C -Z", "H1 d1 c1 C1 Z2"},
		{"doubt: one sync in all, not eaten", "+E +S -G -E -Z", "G1 E1 Z?"},
		{"doubt: the sync was eaten", "+E +S -G -E +X +S -Z +Y -I -Z", "G1 E1 Z4"},
		{"doubt: the sync was not eaten", "+E +S -G -E +X +S -Z -Z +Y -I -Z", "G1 E1 Z4 Z?"},
		{"doubt ends at the probe", "+E +S -G -E +X +S -Z +Y -Z -I -Z", "G1 E1 Z4 Z5"},
		{"doubt, probe fails", "+E +S -G -E +X +S -Z +Y -E -Z", "G1 E1 Z4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := new(queue)
			got, err := play(q, c.script)
			if err != nil {
				t.Fatalf("after %q: %v", got, err)
			}
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if !q.settled() {
				t.Errorf("not settled: %d owed, skipping %v, doubt %d, copy %v", q.n, q.skipping, q.doubt, q.copyIn)
			}
		})
	}
}

// TestNotSettled: scripts at whose end something may still come.
func TestNotSettled(t *testing.T) {
	for _, script := range []string{
		"+Q", "+Q -C", "+P -1 +S", "+P -E", "+E -G", "+Q -G", "+E +S -G -E", "+E +S -G -E +X +S -Z", "+W", "+B +E -2 -D",
	} {
		q := new(queue)
		if _, err := play(q, script); err != nil {
			t.Errorf("%s: %v", script, err)
		}
		if q.settled() {
			t.Errorf("%s: settled", script)
		}
	}
}

// TestOutOfSync: replies that fit nothing end the connection.
func TestOutOfSync(t *testing.T) {
	for _, script := range []string{
		"-Z", "-D", "-C", "-E", "-1", "+Q -C -Z -D", "+Q -C -Z -Z", "+Q -1", "+P -2", "+B -1", "+S -C", "+E -T", "+D -D", "+F -C",
		"+Q -W", "+E -W", "+C -n", "+P +S -Z", "+Q -E -E", "+Y -Z", "+R -1", "+Q -V", "+E -Z", "+Q -?", "+P -E -E", "+P -E -Z",
	} {
		q := new(queue)
		if got, err := play(q, script); !errors.Is(err, errOutOfSync) {
			t.Errorf("%s: got %q, error %v", script, got, err)
		}
	}
}

// TestErrorAtEveryPosition: a pipeline of three batches, one message of which
// fails; every reply still finds its message.
func TestErrorAtEveryPosition(t *testing.T) {
	const batch, good = "PBDES", "12TCZ"
	for at := range 3 * len(batch) {
		var script, want []string
		for i := range 3 * len(batch) {
			script = append(script, "+"+string(batch[i%5]))
		}
		for i := range 3 * len(batch) {
			k := i % 5
			failed := i/5 == at/5 && i > at && k != 4
			switch {
			case failed:
			case i == at && k == 4: // the commit fails
				script = append(script, "-E", "-Z")
				want = append(want, fmt.Sprintf("E%d Z%d", i+1, i+1))
			case i == at:
				script = append(script, "-E")
				want = append(want, fmt.Sprintf("E%d", i+1))
			default:
				script = append(script, "-"+string(good[k]))
				want = append(want, fmt.Sprintf("%c%d", good[k], i+1))
			}
		}
		q := new(queue)
		got, err := play(q, strings.Join(script, " "))
		if err != nil || got != strings.Join(want, " ") || !q.settled() {
			t.Errorf("error at %d: got  %s\nwant %s\n%v", at, got, strings.Join(want, " "), err)
		}
	}
}

// TestDropped: what the server ignores or refuses is reported, nothing else.
func TestDropped(t *testing.T) {
	for _, c := range []struct{ script, want string }{
		{"+P +B +S -1 -2 -Z", ""},
		{"+P +B +C +S +P -E -Z -1", "Parse1 Bind2 Close3"},
		{"+P -E +P +W +Q +S -Z", "Parse1 Parse2 Forge3 Query4"},
		{"+Q -E -Z", ""},
		{"+E +S -G +X -C", "Sync2 CopyEnd3"},
	} {
		var got []string
		q := &queue{dropped: func(o Owed, _ bool) { got = append(got, fmt.Sprintf("%v%d", o.Kind, o.Sink.(*mark).n)) }}
		if _, err := play(q, c.script); err != nil {
			t.Errorf("%s: %v", c.script, err)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: dropped %q, want %q", c.script, s, c.want)
		}
	}
}

// TestManySyncsInCopy: a client must not make us busy with them.
func TestManySyncsInCopy(t *testing.T) {
	q := new(queue)
	q.push(Owed{Kind: Query})
	for range 200_000 {
		q.push(Owed{Kind: Sync})
	}
	q.push(Owed{Kind: CopyEnd})
	for _, r := range "GCZ" {
		if _, err := q.reply(byte(r), []byte("I")); err != nil {
			t.Fatal(err)
		}
	}
	if q.compact(); !q.settled() || q.ring != nil {
		t.Errorf("settled %v, ring of %d", q.settled(), len(q.ring))
	}
}

func FuzzQueue(f *testing.F) {
	f.Add([]byte("\x00\x01ZCDEZ"))
	f.Add([]byte("\x06\x02\x08\x02GEZZ"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		q := &queue{dropped: func(Owed, bool) {}}
		for _, op := range ops {
			if op < 33 {
				q.push(Owed{Kind: Kind(op % 11), Do: Do(op / 11), Err: wire.Errorf("00000", "")})
				continue
			}
			for _, ok := q.forged(); ok; _, ok = q.forged() {
			}
			if _, err := q.reply(op, []byte("I")); err != nil {
				return
			}
			if q.n < 0 || q.doubt < 0 || q.n > 0 && q.at(0).Kind == CopyEnd {
				t.Fatalf("%d owed, doubt %d", q.n, q.doubt)
			}
		}
	})
}
