package main

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/pgtest"
	"pgproxy/router"
)

// Real members of Patroni with an etcd, for "make patroni". Elsewhere only patroni_test.go's
// fake is tested.

var patroniRounds = flag.Int("patroni", 0, "`rounds` of switchovers and killed leaders under a real Patroni")

// patroniLedger starts them with a ledger, and clients whose every statement stands
// alone.
func patroniLedger(t *testing.T) (*ledger, *pgtest.Patroni) {
	t.Helper()
	if *patroniRounds == 0 {
		// It takes a minute, and programs that only this test needs.
		t.Skip("NOT TESTED against a real Patroni: \"make patroni\" does")
	}
	if err := pgtest.FindPatroni(); err != nil {
		// The programs are Debian's; who has others goes without.
		t.Skipf("NOT TESTED against a real Patroni: %v", err)
	}
	p := pgtest.StartPatroni(t, 2)
	ledgerTables(t, p.Cluster)
	w, r := load()
	l := newLedger(t, ledgerOptions{
		Writers: w, Readers: r, Cluster: p.Cluster,
		Database: "track_commits = true\nfailover_timeout = \"60s\"\n",
		Patroni:  func(*ledger) string { return p.URLs[0] },
	})
	for i := range w / 2 {
		l.goes.Go(func() { l.single(i) })
	}
	l.proves()
	if err := p.WaitStreaming(t.Context()); err != nil {
		t.Fatal(err)
	}
	return l, p
}

// single is a client whose statements stand alone: inserts, and reads that want the
// primary.
func (l *ledger) single(number int) {
	var conn *pgconn.PgConn
	defer func() { closeClient(conn) }()
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for n := 0; l.ctx.Err() == nil; n++ {
		if conn == nil || conn.IsClosed() {
			if conn = l.connect(false); conn == nil {
				continue
			}
		}
		id, began, sql := l.nextID.Add(1), time.Now(), "/* pgproxy: target=primary */ SELECT sum(balance) FROM accounts"
		if n%2 == 0 {
			sql = fmt.Sprintf("INSERT INTO transfers VALUES (%d, 1, 1, 0)", id)
		}
		_, _, err := statement(context.Background(), conn, number%2 == 1, sql)
		l.took(time.Since(began))
		if n%2 == 0 {
			o := committed
			switch {
			case hasCode(err, "57P01"):
				o = failed // said in place of an answer: nothing was committed
			case err != nil:
				o = unknown
			}
			l.mu.Lock()
			l.outcomes[id] = o
			l.mu.Unlock()
		}
		if err != nil {
			l.complain(complaint{fmt.Errorf("alone: %.30s: %w", sql, err), began, time.Now(), false})
			closeClient(conn)
			conn = nil
		}
		<-tick.C
	}
}

// Patroni makes switchovers and a failover.
func TestPatroni(t *testing.T) {
	l, p := patroniLedger(t)
	// moved waits for the proxy to get on with another primary, and reports what
	// clients were told.
	moved := func(how string, old *pgtest.Node, allowed func(c complaint) bool) {
		t.Helper()
		eventually(t, 60*time.Second, "another primary", func() bool { return l.primary() != old })
		l.flows()
		list, longest := l.take()
		told := make(map[string]int)
		for _, c := range list {
			told[c.err.Error()]++
			if allowed == nil || !allowed(c) {
				t.Errorf("%s: a client was told: %v", how, c.err)
			}
		}
		t.Logf("%s: %s to %s, %d errors, longest pause %v", how, old.Name, l.primary().Name, len(list), longest.Round(time.Millisecond))
		for text, n := range told {
			t.Logf("  %d times: %s", n, text)
		}
		if err := p.WaitStreaming(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	l.flows()
	for range *patroniRounds {
		old := l.primary()
		next := l.synchronous(old)
		if err := l.console("SWITCHOVER app TO " + next.Addr()); err != nil {
			t.Fatal(err)
		}
		moved("by the console", old, nil)

		old = l.primary()
		at := time.Now().Add(10 * time.Second).Format(time.RFC3339) // patronictl may take a while
		if _, err := p.Ctl(t.Context(), "switchover", "--force", "--scheduled", at, pgtest.PatroniScope); err != nil {
			t.Fatal(err)
		}
		moved("planned", old, nil)
	}
	for range 2 * *patroniRounds {
		old := l.primary()
		if _, err := p.Ctl(t.Context(), "switchover", "--force", pgtest.PatroniScope); err != nil {
			t.Fatal(err)
		}
		moved("at once", old, inFlight)
	}
	for range *patroniRounds {
		old := l.primary()
		p.KillMember(old)
		dead := time.Now()
		eventually(t, 60*time.Second, "another primary", func() bool { return l.primary() != old })
		l.flows()
		if err := p.StartMember(old); err != nil {
			t.Fatal(err)
		}
		moved("killed", old, func(c complaint) bool { return inFlight(c) && c.began.Before(dead) })
		eventually(t, 30*time.Second, "the old primary to be a replica", func() bool {
			s := l.server(old)
			return s.Up && s.Role == router.RoleReplica && s.Covered > 0
		})
	}
	l.audit()
}

// synchronous is the replica that the primary's commits wait for.
func (l *ledger) synchronous(primary *pgtest.Node) *pgtest.Node {
	l.t.Helper()
	name, err := primary.Value(l.t.Context(), "postgres", "SELECT application_name FROM pg_stat_replication WHERE sync_state = 'sync'")
	if err != nil {
		l.t.Fatal(err)
	}
	for _, n := range l.c.Nodes() {
		if strings.EqualFold(n.Name, name) {
			return n
		}
	}
	l.t.Fatalf("no node is called %q", name)
	return nil
}
