package proxy_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgproxy/pgtest"
)

// The wire oracle: scripts of raw messages, made by rule, that are sent to
// PostgreSQL directly and through a proxy whose one server connection another
// client contends for. The answers are the same, in one piece, byte by byte, and
// cut at every offset.

// piece is a message, or several, with its name in the name of a script.
type piece struct {
	name string
	msg  []byte
}

// followers are all kinds of messages that a client may send at any time.
var followers = []piece{
	{"Parse", pgtest.Parse("w", "SELECT 'w'")},
	{"Parse unnamed", pgtest.Parse("", "SELECT 'u'")},
	{"Bind", pgtest.Bind("", "s", "b")},
	{"Describe statement", pgtest.Describe('S', "s")},
	{"Describe portal", pgtest.Describe('P', "p")},
	{"Execute", pgtest.Execute("p", 0)},
	{"Close statement", pgtest.Close('S', "s")},
	{"Close portal", pgtest.Close('P', "p")},
	{"Flush", pgtest.Flush()},
	{"Sync", pgtest.Sync()},
	{"Query", pgtest.Query("SELECT 'q'")},
	{"Query with error", pgtest.Query("SELECT 1/0")},
	{"FunctionCall", pgtest.FunctionCall(177, "1", "2")}, // int4pl
	{"CopyData", pgtest.CopyData("1\ta\n")},
	{"CopyDone", pgtest.CopyDone()},
	{"CopyFail", pgtest.CopyFail("no")},
}

// failures are messages that the server refuses.
var failures = []piece{
	{"Parse error", pgtest.Parse("", "SELEC")},
	{"Parse of no table", pgtest.Parse("x", "SELECT * FROM nowhere")},
	{"Bind of no statement", pgtest.Bind("", "nobody")},
	{"Bind of a bad value", ext(pgtest.Parse("", "SELECT $1::int"), pgtest.Bind("", "", "x"))},
	{"Describe of no portal", pgtest.Describe('P', "nobody")},
	{"Describe of no statement", pgtest.Describe('S', "nobody")},
	{"Execute of no portal", pgtest.Execute("nobody", 0)},
	{"Execute error", ext(pgtest.Parse("", "SELECT 1/i FROM generate_series(1, 0, -1) i"), pgtest.Bind("", ""), pgtest.Execute("", 0))},
	{"FunctionCall error", pgtest.FunctionCall(154, "1", "0")}, // int4div
	{"Query error", pgtest.Query("SELECT 1/0")},
}

// tidy takes away what a script may have left, and asks whether it is gone.
var tidy = ext(pgtest.Sync(), pgtest.Query("ROLLBACK"), pgtest.Close('S', "s"), pgtest.Close('S', "w"), pgtest.Close('S', "x"), pgtest.Sync())

// wireScripts makes the scripts. Each begins with a statement s and a portal p.
func wireScripts() []piece {
	var out []piece
	add := func(name string, messages ...[]byte) {
		out = append(out, piece{name, ext(ext(messages...), tidy)})
	}
	begin := ext(pgtest.Parse("s", "SELECT $1::text"), pgtest.Bind("p", "s", "v"))
	for _, f := range failures {
		for _, m := range followers {
			add(f.name+", then "+m.name, begin, f.msg, m.msg, pgtest.Query("SELECT 'behind'"), pgtest.Sync(), m.msg)
		}
	}
	for _, m := range followers {
		add("failed transaction, then "+m.name, pgtest.Query("BEGIN"), begin, pgtest.Sync(), pgtest.Query("SELECT 1/0"), m.msg, pgtest.Sync(), m.msg)
		add("open transaction, then "+m.name, pgtest.Query("BEGIN"), begin, pgtest.Flush(), m.msg, pgtest.Sync(), m.msg, pgtest.Execute("p", 0), pgtest.Sync())
		add("suspended portal, then "+m.name, pgtest.Parse("s", "SELECT i::text || $1 FROM generate_series(1, 5) i"), pgtest.Bind("p", "s", "v"),
			pgtest.Execute("p", 2), m.msg, pgtest.Execute("p", 2), pgtest.Execute("p", 0), pgtest.Sync())
		add("Flush, then "+m.name, begin, pgtest.Flush(), m.msg, pgtest.Flush(), pgtest.Execute("p", 0), pgtest.Flush(), pgtest.Sync())
		add("COPY, then "+m.name, pgtest.Query("COPY sink FROM STDIN"), pgtest.CopyData("1\ta\n"), m.msg, pgtest.CopyData("2\tb\n"), pgtest.CopyDone(), pgtest.Query("SELECT 'behind'"))
		add("COPY in a batch, then "+m.name, begin, pgtest.Parse("", "COPY sink FROM STDIN"), pgtest.Bind("", ""), pgtest.Execute("", 0), m.msg, pgtest.CopyDone(), pgtest.Sync())
		add("COPY of a bad row, then "+m.name, pgtest.Query("COPY sink FROM STDIN"), pgtest.CopyData("x\ta\n"), m.msg, pgtest.CopyDone(), m.msg)
		add("COPY out, then "+m.name, begin, pgtest.Parse("", "COPY (SELECT 7) TO STDOUT"), pgtest.Bind("", ""), pgtest.Execute("", 0), m.msg, pgtest.Sync())
	}
	// An error at each position of a batch.
	batch := [][]byte{
		pgtest.Parse("s", "SELECT $1::text"), pgtest.Bind("p", "s", "v"), pgtest.Describe('P', "p"), pgtest.Execute("p", 0), pgtest.Close('P', "p"), pgtest.Sync(),
	}
	for _, f := range failures {
		for at := range batch {
			add(fmt.Sprintf("%s at %d", f.name, at), slices.Insert(slices.Clone(batch), at, f.msg)...)
		}
	}
	return out
}

// contend has another client use the proxy until stop is called.
func contend(t *testing.T, h *harness) (stop func()) {
	t.Helper()
	c := h.Client(t)
	done := make(chan struct{})
	var w sync.WaitGroup
	w.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			word := fmt.Sprintf("contender %d", i)
			c.Send(pgtest.Parse("s", "SELECT $1::text || ''"), pgtest.Bind("p", "s", word), pgtest.Execute("p", 0), pgtest.Close('S', "s"), pgtest.Sync())
			if got, want := pgtest.Trace(c.ReadUntilReady()), "1 2 D("+word+") C(SELECT 1) 3 Z(I)"; got != want {
				t.Errorf("the contending client got %s, want %s", got, want)
				return
			}
			c.Trace() // is not kept
		}
	})
	return func() {
		close(done)
		w.Wait()
	}
}

// ended reports whether a trace says that the connection was closed.
func ended(trace string) bool { return strings.Contains(trace, " and then ") }

// upToEnd leaves out how a connection was closed: with a reset, where the rest of a
// script comes after that.
func upToEnd(trace string) string {
	before, _, closed := strings.Cut(trace, " and then ")
	if closed && !strings.Contains(trace, "timeout") {
		return before + " and then the end"
	}
	return trace
}

// compareWire plays every script directly and in the given ways through the proxy.
func compareWire(t *testing.T, ways func(script []byte, do func(name string, play func(p *pgtest.RawClient) string))) {
	t.Helper()
	c := oracleSetup(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1"})
	scripts := wireScripts()
	if len(scripts) < 150 {
		t.Errorf("%d scripts", len(scripts))
	}
	stop := contend(t, h)
	defer stop()
	d, p := direct(t, c), h.Client(t)
	wrong := 0
	for _, s := range scripts {
		want := play(d, s.msg, 0)
		if ended(want) {
			d = direct(t, c)
		}
		ways(s.msg, func(name string, play func(p *pgtest.RawClient) string) {
			got := play(p)
			if ended(got) {
				p = h.Client(t)
			}
			if upToEnd(got) != upToEnd(want) {
				if wrong++; wrong <= 40 {
					t.Errorf("%s, %s\n got %s\nwant %s", s.name, name, got, want)
				}
			}
		})
	}
	t.Logf("%d scripts, %d answers differ", len(scripts), wrong)
}

func TestWireOracle(t *testing.T) {
	compareWire(t, func(script []byte, do func(string, func(*pgtest.RawClient) string)) {
		do("in one piece", func(p *pgtest.RawClient) string { return play(p, script, 0) })
	})
}

// TestWireOracleByteByByte sends each byte in a write of its own.
func TestWireOracleByteByByte(t *testing.T) {
	compareWire(t, func(script []byte, do func(string, func(*pgtest.RawClient) string)) {
		do("byte by byte", func(p *pgtest.RawClient) string {
			all := withEnd(script)
			for i := range all {
				if p.TrySend(all[i:i+1]) != nil {
					break // the connection has been closed
				}
			}
			return answers(p)
		})
	})
}

// everyCut is the environment variable that has TestWireOracleEveryCut cut at all
// offsets, which takes minutes.
const everyCut = "PGPROXY_TEST_EVERY_CUT"

// TestWireOracleEveryCut sends each script in two pieces, cut at every eighth
// offset, beginning at another one for each script.
func TestWireOracleEveryCut(t *testing.T) {
	step := 8
	if os.Getenv(everyCut) != "" {
		step = 1
	}
	n := 0
	compareWire(t, func(script []byte, do func(string, func(*pgtest.RawClient) string)) {
		n++
		for at := 1 + n%step; at < len(script)-len(tidy); at += step {
			do(fmt.Sprintf("cut at %d", at), func(p *pgtest.RawClient) string { return play(p, script, at) })
		}
	})
}
