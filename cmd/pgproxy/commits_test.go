package main

import (
	"testing"
	"time"

	"pgproxy/pgtest"
)

// commitIn begins a transaction with one insert, for the tests below.
func (l *ledger) commitIn(extended bool, id string) (commit func() (string, error)) {
	l.t.Helper()
	conn := l.connect(false)
	if conn == nil {
		l.t.Fatal("no connection")
	}
	l.t.Cleanup(func() { closeClient(conn) })
	// Without the server's warning that it waits no more: a client that has been told
	// anything is not told an outcome.
	for _, sql := range []string{"SET client_min_messages = error", "BEGIN", "INSERT INTO transfers VALUES (" + id + ")"} {
		if _, _, err := statement(l.t.Context(), conn, extended, sql); err != nil {
			l.t.Fatal(err)
		}
	}
	return func() (string, error) {
		_, tag, err := statement(l.t.Context(), conn, extended, "COMMIT")
		if err != nil {
			return "", err
		}
		// The session goes on.
		if _, _, err := statement(l.t.Context(), conn, extended, "SELECT 1"); err != nil {
			l.t.Errorf("after the COMMIT: %v", err)
		}
		return tag, nil
	}
}

// With track_commits a client hears the truth of a COMMIT whose server was lost.
func TestCommitsAreLookedUp(t *testing.T) {
	l := newLedger(t, ledgerOptions{Database: "track_commits = true\n"})
	old := l.primary()
	var next, other *pgtest.Node
	for _, n := range l.c.Nodes() {
		l.sees(n, "up", up)
		if n != old {
			next, other = n, next
		}
	}
	for i, extended := range []bool{false, true} {
		// The connection breaks between the server's commit and its answer.
		commit := l.commitIn(extended, []string{"1", "2"}[i])
		ended := make(chan error, 1)
		var tag string
		l.exec(old, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
		l.exec(old, "SELECT pg_reload_conf()")
		if err := old.WaitFor(t.Context(), "app", "SELECT current_setting('synchronous_standby_names') = 'nobody'"); err != nil {
			t.Fatal(err)
		}
		go func() { var err error; tag, err = commit(); ended <- err }()
		if err := old.WaitFor(t.Context(), "app", "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')"); err != nil {
			t.Fatal(err)
		}
		// The monitor's connection stays, so the server is known not to have restarted.
		l.exec(old, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
		if err := <-ended; err != nil || tag != "COMMIT" {
			t.Errorf("extended %t: %q, %v: it was committed", extended, tag, err)
		}
	}
	l.exec(old, "ALTER SYSTEM RESET synchronous_standby_names")
	l.exec(old, "SELECT pg_reload_conf()")

	// The primary dies with the commit on its way; whether the replica that becomes the
	// primary has got it, the client hears the truth.
	if err := l.c.WaitCaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	lost := l.commitIn(false, "3")
	for _, n := range []*pgtest.Node{next, other} {
		if err := n.Freeze(); err != nil { // nothing is received any more
			t.Fatal(err)
		}
	}
	ended := make(chan error, 1)
	go func() { _, err := lost(); ended <- err }()
	if err := old.WaitFor(t.Context(), "app", "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')"); err != nil {
		t.Fatal(err)
	}
	if err := old.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*pgtest.Node{next, other} {
		if err := n.Thaw(); err != nil {
			t.Fatal(err)
		}
	}
	<-time.After(time.Second) // the replicas are asked again, and know what they have
	l.succeed(next, other)
	err := <-ended
	there, verr := next.Value(t.Context(), "app", "SELECT count(*) FROM transfers WHERE id = 3")
	if verr != nil {
		t.Fatal(verr)
	}
	switch {
	case there == "0" && !hasCode(err, "40000", "08006"), there == "1" && err != nil && !hasCode(err, "08006"):
		t.Errorf("the row is there %s times, the client was told: %v", there, err)
	}
	t.Logf("the row is there %s times, the client was told: %v", there, err)
	if n, err := next.Value(t.Context(), "app", "SELECT string_agg(id::text, ',' ORDER BY id) FROM transfers WHERE id < 3"); err != nil || n != "1,2" {
		t.Errorf("%s, %v", n, err)
	}
}

// TestCommitsThatWait: only the way to the server has broken, and the transaction is
// still committing. It is not rolled back, and nobody says that it is.
func TestCommitsThatWait(t *testing.T) {
	l := newLedger(t, ledgerOptions{Relayed: true, Database: "track_commits = true\nfailover_timeout = \"3s\"\n"})
	old := l.primary()
	l.sees(old, "up", up)
	commit := l.commitIn(false, "1")
	l.exec(old, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
	l.exec(old, "SELECT pg_reload_conf()")
	if err := old.WaitFor(t.Context(), "app", "SELECT current_setting('synchronous_standby_names') = 'nobody'"); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, err := commit(); ended <- err }()
	if err := old.WaitFor(t.Context(), "app", "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')"); err != nil {
		t.Fatal(err)
	}
	l.relays[old].ResetAll()
	if err := <-ended; !hasCode(err, "08006") {
		t.Errorf("the client was told: %v", err)
	}
	l.exec(old, "ALTER SYSTEM RESET synchronous_standby_names")
	l.exec(old, "SELECT pg_reload_conf()")
	if err := old.WaitFor(t.Context(), "app", "SELECT EXISTS (SELECT FROM transfers WHERE id = 1)"); err != nil {
		t.Error("it was not committed:", err)
	}
}
