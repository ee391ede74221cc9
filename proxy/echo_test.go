package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// echoQueries is how many tagged queries TestEcho sends in all.
const echoQueries = 100_000

// TestEcho: clients on one and two server connections send queries whose answers
// carry their own tags, in every shape that the protocol has. Nobody may ever see
// a tag of somebody else, nor miss one of its own.
func TestEcho(t *testing.T) {
	c := oracleSetup(t)
	census := pgtest.NewCensus(t, c.Nodes()...)
	for _, size := range []int{1, 2} {
		t.Run(fmt.Sprintf("pool of %d", size), func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: fmt.Sprintf("default_pool_size = %d", size)})
			var sent atomic.Int64
			ctx, stop := context.WithTimeout(t.Context(), 4*time.Minute)
			defer stop()
			g, ctx := errgroup.WithContext(ctx)
			for i := range 8 {
				e := &echoClient{name: fmt.Sprintf("c%d", i), h: h, sent: &sent, c: h.Client(t), r: rand.New(rand.NewPCG(uint64(i), 7))}
				g.Go(func() error { return e.run(ctx, echoQueries/2) })
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			census.AssertQuiet()
			t.Logf("%d queries", sent.Load())
		})
	}
	census.AssertBaseline()
}

// echoClient is one client of TestEcho.
type echoClient struct {
	name string
	h    *harness
	c    *pgtest.RawClient
	r    *rand.Rand
	sent *atomic.Int64 // of all clients
	next int
}

// tag is a text that nobody else has and that is sent once.
func (e *echoClient) tag() string {
	e.next++
	return fmt.Sprintf("<%s.%d>", e.name, e.next)
}

// run sends rounds until all clients together have sent most queries.
func (e *echoClient) run(ctx context.Context, most int64) error {
	for e.sent.Load() < most {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("client %s after %d queries of all: %w", e.name, e.sent.Load(), err)
		}
		if err := e.round(); err != nil {
			return fmt.Errorf("client %s: %w", e.name, err)
		}
	}
	return nil
}

func (e *echoClient) round() error {
	switch n := e.r.IntN(100); {
	case n < 12:
		return e.exchange(e.simple())
	case n < 75:
		return e.pipeline(1 + e.r.IntN(50))
	case n < 85:
		return e.exchange(e.copyOut())
	case n < 93:
		return e.exchange(e.copyIn())
	case n < 98:
		return e.exchange(e.transaction())
	default:
		return e.cancelled()
	}
}

// exchange is a message run and the trace that must come back.
type exchange struct {
	send []byte
	want string
	n    int // queries in it
}

func (e *echoClient) exchange(x exchange) error {
	e.sent.Add(int64(x.n))
	if err := e.c.TrySend(x.send); err != nil {
		return err
	}
	return e.expect(x.want)
}

// fullTrace is a trace with the texts of errors, which hold tags too.
func fullTrace(msgs []pgtest.Msg) string {
	words := make([]string, len(msgs))
	for i, m := range msgs {
		words[i] = m.String()
		if e := m.Err(); e != nil {
			words[i] = fmt.Sprintf("E(%s %s: %s)", e.Severity, e.Code, e.Message)
		}
	}
	return strings.Join(words, " ")
}

// expect reads the answer that must come.
func (e *echoClient) expect(want string) error {
	ready := strings.Count(want, " Z(")
	var msgs []pgtest.Msg
	for ready > 0 {
		m, err := e.c.TryRead()
		if err != nil {
			return fmt.Errorf("after %s: %w", pgtest.Trace(msgs), err)
		}
		msgs = append(msgs, m)
		if m.Type == wire.ReadyForQuery {
			ready--
		}
	}
	if got := fullTrace(msgs); got != want {
		return fmt.Errorf("\n got %s\nwant %s", got, want)
	}
	return nil
}

func (e *echoClient) simple() exchange {
	a := e.tag()
	switch e.r.IntN(3) {
	case 0:
		return exchange{pgtest.Query("SELECT '" + a + "'"), "T D(" + a + ") C(SELECT 1) Z(I)", 1}
	case 1:
		b := e.tag()
		return exchange{
			pgtest.Query("SELECT '" + a + "'; SELECT '" + b + "'"),
			"T D(" + a + ") C(SELECT 1) T D(" + b + ") C(SELECT 1) Z(I)", 2,
		}
	}
	return exchange{pgtest.Query("SELECT '" + a + "'::int"), `E(ERROR 22P02: invalid input syntax for type integer: "` + a + `") Z(I)`, 1}
}

// pipeline sends n batches at once; any of them may fail at any of its messages.
func (e *echoClient) pipeline(n int) error {
	var all exchange
	for range n {
		x := e.batch()
		all.send = append(all.send, x.send...)
		all.want += " " + x.want
		all.n += x.n
	}
	all.want = strings.TrimSpace(all.want)
	return e.exchange(all)
}

func (e *echoClient) batch() exchange {
	a := e.tag()
	switch e.r.IntN(8) {
	case 0: // Parse fails
		return exchange{
			pgtest.Join(pgtest.Parse("", "SELEC '"+a+"'"), pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.Sync()),
			`E(ERROR 42601: syntax error at or near "SELEC") Z(I)`, 1,
		}
	case 1: // Bind fails
		return exchange{
			pgtest.Join(pgtest.Parse("", "SELECT $1::int"), pgtest.Bind("", "", a), pgtest.Describe('P', ""), pgtest.Execute("", 0), pgtest.Sync()),
			`1 E(ERROR 22P02: invalid input syntax for type integer: "` + a + `") Z(I)`, 1,
		}
	case 2: // Execute fails
		return exchange{
			pgtest.Join(pgtest.Parse("", "SELECT ($1::text || left(random()::text, 0))::int"), pgtest.Bind("", "", a), pgtest.Execute("", 0), pgtest.Execute("", 0), pgtest.Sync()),
			`1 2 E(ERROR 22P02: invalid input syntax for type integer: "` + a + `") Z(I)`, 1,
		}
	case 3, 4: // a name that every client uses for a text of its own
		name := fmt.Sprintf("s%d", e.r.IntN(50))
		text := fmt.Sprintf("SELECT $1::text || '%s %s'", e.name, name)
		return exchange{
			pgtest.Join(pgtest.Parse(name, text), pgtest.Bind("", name, a), pgtest.Execute("", 0), pgtest.Close('S', name), pgtest.Sync()),
			"1 2 D(" + a + e.name + " " + name + ") C(SELECT 1) 3 Z(I)", 1,
		}
	case 5:
		return exchange{pgtest.Query("SELECT '" + a + "'"), "T D(" + a + ") C(SELECT 1) Z(I)", 1}
	}
	return exchange{
		pgtest.Join(pgtest.Parse("", "SELECT $1::text"), pgtest.Bind("", "", a), pgtest.Execute("", 0), pgtest.Sync()),
		"1 2 D(" + a + ") C(SELECT 1) Z(I)", 1,
	}
}

func (e *echoClient) copyOut() exchange {
	a := e.tag()
	return exchange{pgtest.Query("COPY (SELECT '" + a + "') TO STDOUT"), "H d(" + a + `\n) c C(COPY 1) Z(I)`, 1}
}

// copyIn is a COPY that fails with a row that holds the tag, so that nothing
// stays in the table.
func (e *echoClient) copyIn() exchange {
	a := e.tag()
	return exchange{
		pgtest.Join(pgtest.Query("COPY sink FROM STDIN"), pgtest.CopyData("1\tx\n"), pgtest.CopyData(a+"\ty\n"), pgtest.CopyDone()),
		`G E(ERROR 22P02: invalid input syntax for type integer: "` + a + `") Z(I)`, 1,
	}
}

func (e *echoClient) transaction() exchange {
	a, b := e.tag(), e.tag()
	return exchange{
		pgtest.Join(pgtest.Query("BEGIN"), pgtest.Query("SELECT '"+a+"'"), pgtest.Query("SELECT '"+b+"'::int"), pgtest.Query("ROLLBACK")),
		"C(BEGIN) Z(T) T D(" + a + ") C(SELECT 1) Z(T) " +
			`E(ERROR 22P02: invalid input syntax for type integer: "` + b + `") Z(E) C(ROLLBACK) Z(I)`, 4,
	}
}

// cancelled sends a slow query and cancels it. Only this one may end so: the
// others compare their answers to the letter.
func (e *echoClient) cancelled() error {
	a := e.tag()
	e.sent.Add(1)
	if err := e.c.TrySend(pgtest.Query("SELECT '" + a + "' FROM pg_sleep(0.05)")); err != nil {
		return err
	}
	if err := e.cancel(); err != nil {
		return err
	}
	msgs, err := answerTo(e.c)
	if err != nil {
		return err
	}
	got := fullTrace(msgs)
	for _, want := range []string{
		"T D(" + a + ") C(SELECT 1) Z(I)",
		"E(ERROR 57014: canceling statement due to user request) Z(I)",
		"T E(ERROR 57014: canceling statement due to user request) Z(I)",
	} {
		if got == want {
			return nil
		}
	}
	return errors.New("cancelled query: " + got)
}

// answerTo reads up to ReadyForQuery.
func answerTo(c *pgtest.RawClient) (msgs []pgtest.Msg, err error) {
	for len(msgs) == 0 || msgs[len(msgs)-1].Type != wire.ReadyForQuery {
		m, err := c.TryRead()
		if err != nil {
			return msgs, fmt.Errorf("after %s: %w", pgtest.Trace(msgs), err)
		}
		msgs = append(msgs, m)
	}
	return msgs, nil
}

// cancel sends the session's cancel request and waits until it has been acted
// on.
func (e *echoClient) cancel() error {
	nc, err := dialTCP(e.h.Addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	if _, err := nc.Write(pgtest.CancelRequest(e.c.PID, e.c.Secret)); err != nil {
		return err
	}
	var b [1]byte
	_ = nc.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := nc.Read(b[:]); n > 0 {
		return errors.New("a cancel request was answered")
	} else if ne, ok := err.(interface{ Timeout() bool }); ok && ne.Timeout() {
		return errors.New("a cancel request was not ended")
	}
	return nil
}
