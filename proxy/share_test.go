package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pgproxy/pgtest"
)

// sharedReads is how many reads TestShareEcho sends in all.
const sharedReads = 20_000

// TestShareEcho: single reads of many clients stand one behind the other on one and two
// server connections, while others write, copy, hold transactions, cancel, leave in the
// middle, do not read, and have statements that take long. Nobody may ever see an answer
// of somebody else, miss one, or hear of a cancel that it has not asked for.
func TestShareEcho(t *testing.T) {
	c := oracleSetup(t)
	for _, size := range []int{1, 2} {
		t.Run(fmt.Sprintf("pool of %d", size), func(t *testing.T) {
			h := newHarness(t, harnessOptions{
				Servers: addrs(c)[:1], Proves: true, Proxy: fmt.Sprintf("default_pool_size = %d", size),
				Database: "share_depth = 8\nshare_max_time = \"1s\"\n",
			})
			var sent atomic.Int64
			ctx, stop := context.WithTimeout(t.Context(), 4*time.Minute)
			defer stop()
			g, ctx := errgroup.WithContext(ctx)
			for i := range 16 {
				e := &shareClient{echoClient: echoClient{
					name: fmt.Sprintf("c%d", i), h: h, sent: &sent, c: h.Client(t), r: rand.New(rand.NewPCG(uint64(i), 17)),
				}, t: t}
				others := 0 // of a hundred rounds
				if i < 4 {
					others = 10
				}
				g.Go(func() error { return e.run(ctx, sharedReads/2, others) })
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			shared := h.Pools.Stats()[0].Counters.Shared
			t.Logf("%d queries, %d of them shared a connection", sent.Load(), shared)
			if shared < sharedReads/20 {
				t.Errorf("only %d statements shared a connection", shared)
			}
		})
	}
}

// shareClient is one client of TestShareEcho.
type shareClient struct {
	echoClient
	t        *testing.T
	prepared bool
	brief    bool // its answers are one row each
}

func (e *shareClient) run(ctx context.Context, most int64, others int) error {
	for e.sent.Load() < most {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("client %s after %d queries of all: %w", e.name, e.sent.Load(), err)
		}
		var err error
		if e.r.IntN(100) < others {
			err = e.other()
		} else {
			err = e.exchange(e.read())
		}
		if err != nil {
			return fmt.Errorf("client %s: %w", e.name, err)
		}
	}
	return nil
}

// read is one read that may stand behind those of others.
func (e *shareClient) read() exchange {
	a := e.tag()
	n := e.r.IntN(8)
	if e.brief && (n < 2 || n == 5) {
		n = 7
	}
	switch n {
	case 0:
		return exchange{pgtest.Query("SELECT '" + a + "'::int"), `E(ERROR 22P02: invalid input syntax for type integer: "` + a + `") Z(I)`, 1}
	case 1:
		return exchange{
			pgtest.Join(pgtest.Parse("", "SELECT $1::int"), pgtest.Bind("", "", a), pgtest.Describe('P', ""), pgtest.Execute("", 0), pgtest.Sync()),
			`1 E(ERROR 22P02: invalid input syntax for type integer: "` + a + `") Z(I)`, 1,
		}
	case 2, 3:
		return exchange{
			pgtest.Join(pgtest.Parse("", "SELECT $1::text"), pgtest.Bind("", "", a), pgtest.Execute("", 0), pgtest.Sync()),
			"1 2 D(" + a + ") C(SELECT 1) Z(I)", 1,
		}
	case 4:
		if !e.prepared {
			return e.prepare()
		}
		return exchange{
			pgtest.Join(pgtest.Bind("", "mine", a), pgtest.Describe('P', ""), pgtest.Execute("", 0), pgtest.Sync()),
			"2 T D(" + a + e.name + ") C(SELECT 1) Z(I)", 1,
		}
	case 5: // rows in several reads of the proxy's
		return exchange{
			pgtest.Query("SELECT '" + a + "' FROM generate_series(1, 1500)"),
			"T " + strings.Repeat("D("+a+") ", 1500) + "C(SELECT 1500) Z(I)", 1,
		}
	}
	return exchange{pgtest.Query("SELECT '" + a + "'"), "T D(" + a + ") C(SELECT 1) Z(I)", 1}
}

// prepare prepares a statement by a name that all clients use.
func (e *shareClient) prepare() exchange {
	a := e.tag()
	e.prepared = true
	return exchange{
		pgtest.Join(pgtest.Parse("mine", "SELECT $1::text || '"+e.name+"'"), pgtest.Bind("", "mine", a), pgtest.Execute("", 0), pgtest.Sync()),
		"1 2 D(" + a + e.name + ") C(SELECT 1) Z(I)", 1,
	}
}

// other is what must not share, or what goes wrong.
func (e *shareClient) other() error {
	switch e.r.IntN(7) {
	case 0: // of a quick shape, but slow
		a := e.tag()
		return e.exchange(exchange{
			pgtest.Query("SELECT '" + a + "', count(*) FROM generate_series(1, 100000)"), "T D(" + a + ",100000) C(SELECT 1) Z(I)", 1,
		})
	case 1:
		a := e.tag()
		return e.exchange(exchange{
			pgtest.Query("SELECT '" + a + "', count(*) FROM generate_series(1, 3)"), "T D(" + a + ",3) C(SELECT 1) Z(I)", 1,
		})
	case 2:
		return e.exchange(e.transaction())
	case 3:
		return e.exchange(e.copyIn())
	case 4:
		return e.pipeline(1 + e.r.IntN(10))
	case 5:
		return e.cancelledRead()
	}
	return e.leaves()
}

// leaves sends a read and goes, at once or after a part of the answer; somebody else
// comes in its place.
func (e *shareClient) leaves() error {
	if err := e.c.TrySend(e.read().send); err != nil {
		return err
	}
	if e.r.IntN(2) == 0 {
		if _, err := e.c.TryRead(); err != nil {
			return err
		}
	}
	e.c.Close()
	e.c, e.prepared = e.h.Client(e.t), false
	return nil
}

// cancelledRead asks for a cancel of a read that takes long: it may come too late.
func (e *shareClient) cancelledRead() error {
	a := e.tag()
	e.sent.Add(1)
	if err := e.c.TrySend(pgtest.Query("SELECT '" + a + "', count(*) FROM generate_series(1, 200000)")); err != nil {
		return err
	}
	if err := e.cancel(); err != nil {
		return err
	}
	msgs, err := answerTo(e.c)
	if err != nil {
		return err
	}
	switch got := fullTrace(msgs); got {
	case "T D(" + a + ",200000) C(SELECT 1) Z(I)", "T E(ERROR 57014: canceling statement due to user request) Z(I)",
		"E(ERROR 57014: canceling statement due to user request) Z(I)":
		return nil
	default:
		return fmt.Errorf("cancelled read: %s", got)
	}
}

// TestShareKilled: the server connections of a pool are ended again and again: no
// client hears of it, and each has its own answers.
func TestShareKilled(t *testing.T) {
	c := oracleSetup(t)
	h := newHarness(t, harnessOptions{
		Servers: addrs(c)[:1], Proves: true, Proxy: "default_pool_size = 2\n", Database: "share_depth = 8\nshare_max_time = \"1s\"\n",
	})
	var sent, kills atomic.Int64
	ctx, stop := context.WithTimeout(t.Context(), 4*time.Minute)
	defer stop()
	g, gctx := errgroup.WithContext(ctx)
	for i := range 8 {
		e := &shareClient{echoClient: echoClient{
			name: fmt.Sprintf("k%d", i), h: h, sent: &sent, c: h.Client(t), r: rand.New(rand.NewPCG(uint64(i), 23)),
		}, t: t, brief: true}
		if err := e.exchange(e.prepare()); err != nil { // such a batch may not be run again
			t.Fatal(err)
		}
		g.Go(func() error {
			for kills.Load() < 5 {
				if err := errors.Join(gctx.Err(), e.exchange(e.read())); err != nil {
					return fmt.Errorf("client %s: %w", e.name, err)
				}
			}
			return nil
		})
	}
	done := make(chan error, 1)
	go func() { done <- g.Wait() }()
	for over := false; !over; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			over = true
		case <-time.After(200 * time.Millisecond):
			if err := c.Primary.Exec(ctx, "postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'alice'"); err != nil {
				t.Fatal(err)
			}
			kills.Add(1)
		}
	}
	n := h.Pools.Stats()[0].Counters
	t.Logf("%d reads, %d shared, %d kills, %d run again", sent.Load(), n.Shared, kills.Load(), h.Server.Stats().Rerun.Died)
	if n.Shared == 0 {
		t.Error("nothing was shared")
	}
}

// TestShareNotPrepared: a statement that SQL has prepared is on the server under its
// client's own name, so nobody else is there then.
func TestShareNotPrepared(t *testing.T) {
	c := oracleSetup(t)
	h := newHarness(t, harnessOptions{
		Servers: addrs(c)[:1], Proves: true, Proxy: "default_pool_size = 1\n", Database: "share_depth = 8\nshare_max_time = \"1s\"\n",
	})
	var goes sync.WaitGroup
	for i := range 6 {
		cl := h.Client(t)
		name := fmt.Sprintf("n%d", i)
		goes.Go(func() {
			ask := func(sql, want string) bool {
				_ = cl.TrySend(pgtest.Query(sql))
				msgs, err := answerTo(cl)
				if got := pgtest.Trace(msgs); err != nil || got != want {
					t.Errorf("%s: %s, want %s (%v)", sql, got, want, err)
					return false
				}
				return true
			}
			if !ask("PREPARE p AS SELECT '"+name+"'", "C(PREPARE) Z(I)") {
				return
			}
			for range 200 {
				if !ask("EXECUTE p", "T D("+name+") C(SELECT 1) Z(I)") || !ask("SELECT 'x"+name+"'", "T D(x"+name+") C(SELECT 1) Z(I)") {
					return
				}
			}
		})
	}
	goes.Wait()
}
