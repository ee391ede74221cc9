package main

import (
	"os"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/router"
)

// full reports whether the whole set of faults is wanted, see "make faults".
func full() bool { return os.Getenv("PGPROXY_FAULTS") != "" }

// rounds is how often a fault is repeated.
func rounds(short, long int) int {
	if full() {
		return long
	}
	return short
}

// load is how many clients are at work.
func load() (writers, readers int) {
	if full() {
		return 50, 50
	}
	return 12, 8
}

// A planned switchover costs a pause and not one error.
func TestLedgerPlanned(t *testing.T) {
	w, r := load()
	l := newLedger(t, ledgerOptions{Writers: w, Readers: r})
	l.flows()
	for range rounds(1, 20) {
		old := l.primary()
		next, other := l.successor(old)
		ended := make(chan error, 1)
		go func() { ended <- l.console("SWITCHOVER app TO " + next.Addr()) }()
		eventually(t, 20*time.Second, "transactions to be held and drained", func() bool {
			return l.app.monitor.Topology("app").Halted == router.HaltedSwitchover && l.app.pools.Busy(old.Addr()) == 0
		})
		if err := old.Stop("fast"); err != nil { // which sends all to the replicas first
			t.Fatal(err)
		}
		l.succeed(next, other)
		if err := <-ended; err != nil {
			t.Errorf("SWITCHOVER: %v", err)
		}
		l.flows()
		complaints, longest := l.take()
		for _, c := range complaints {
			t.Errorf("a client was told: %v", c.err)
		}
		t.Logf("longest pause %v", longest.Round(time.Millisecond))
		l.rejoin(old, next)
	}
	l.audit()
}

// crash is a way for a primary to die.
type crash struct {
	name string
	kill func(l *ledger, n *pgtest.Node) error
	back func(l *ledger, n *pgtest.Node) // makes it fit for a Clone
}

var crashes = []crash{
	{"SIGKILL", func(_ *ledger, n *pgtest.Node) error { return n.Kill() }, nil},
	{"black hole", func(l *ledger, n *pgtest.Node) error {
		l.relays[n].SetBoth(pgtest.Fault{Blackhole: true})
		return nil
	}, func(l *ledger, n *pgtest.Node) { l.relays[n].Heal() }},
	{"immediate stop", func(_ *ledger, n *pgtest.Node) error { return n.Stop("immediate") }, nil},
	{"SIGSTOP", func(_ *ledger, n *pgtest.Node) error { return n.Freeze() }, func(_ *ledger, n *pgtest.Node) { _ = n.Thaw() }},
}

// A crash with promotion costs only what was in flight, and nothing acknowledged is
// lost.
func TestLedgerCrash(t *testing.T) {
	w, r := load()
	l := newLedger(t, ledgerOptions{Writers: w, Readers: r, Relayed: true, Database: "track_commits = true\n"})
	l.flows()
	for i := range rounds(2, 20) {
		c := crashes[i%len(crashes)]
		old := l.primary()
		if err := c.kill(l, old); err != nil {
			t.Fatal(err)
		}
		dead := time.Now()
		next, other := l.successor(old)
		l.succeed(next, other)
		promoted := time.Now()
		l.flows()
		flowing := time.Now()
		complaints, longest := l.take()
		codes := make(map[string]int)
		for _, x := range complaints {
			codes[x.err.Error()]++
			if x.began.After(dead) {
				t.Errorf("%s: what began %v after it was told: %v (%v later)", c.name, x.began.Sub(dead), x.err, x.at.Sub(x.began))
			}
		}
		t.Logf("%s: %d errors, flows %v after the promotion, longest wait %v", c.name, len(complaints),
			flowing.Sub(promoted).Round(time.Millisecond), longest.Round(time.Millisecond))
		for text, n := range codes {
			t.Logf("  %d times: %s", n, text)
		}
		if c.back != nil {
			c.back(l, old)
			l.untouched(old)
		}
		l.rejoin(old, next)
	}
	l.audit()
}

// untouched checks that an old primary which is back, and writable, gets nothing.
func (l *ledger) untouched(old *pgtest.Node) {
	l.t.Helper()
	eventually(l.t, 30*time.Second, "the old primary to be seen", func() bool { return l.server(old).Up })
	if s := l.server(old); s.Role != router.RoleUnknown {
		l.t.Errorf("the old primary is back as %v", s.Role)
	}
	const sessions = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND backend_type = 'client backend' AND wait_event IS DISTINCT FROM 'SyncRep'"
	if err := old.WaitFor(l.t.Context(), "postgres", "SELECT ("+sessions+") = 0"); err != nil {
		l.t.Errorf("sessions of clients on the old primary: %v", err)
	}
	const highest = "SELECT coalesce(max(id), 0) FROM transfers"
	before, err := old.Value(l.t.Context(), "app", highest)
	if err != nil {
		l.t.Fatal(err)
	}
	l.flows()
	after, err := old.Value(l.t.Context(), "app", highest)
	if err != nil {
		l.t.Fatal(err)
	}
	if before != after {
		l.t.Errorf("the old primary was written to: transfer %s, before %s", after, before)
	}
}
