package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgproxy/pgtest"
)

// An old primary that comes back writable gets no write: what is on its disk after
// another crash tells, so also what waits for a standby that will never answer. Made
// a replica by pg_rewind it gets reads when it streams, and not before. All that
// costs no client an error.
func TestLedgerRewind(t *testing.T) {
	w, r := load()
	if bin, err := pgtest.FindBin(""); err == nil {
		if _, err := os.Stat(filepath.Join(bin, "pg_rewind")); err != nil {
			// The server programs that "make test PG=17" fetches come without it.
			t.Skipf("NOT TESTED with pg_rewind: %v", err)
		}
	}
	l := newLedger(t, ledgerOptions{Writers: w, Readers: r, Cluster: ledgerCluster(t, 2, "wal_log_hints", "on", "full_page_writes", "on")})
	l.flows()
	old := l.primary()
	if err := old.Kill(); err != nil {
		t.Fatal(err)
	}
	next, other := l.successor(old)
	l.succeed(next, other)
	l.flows()
	list, _ := l.take()
	for _, c := range list {
		if !inFlight(c) {
			t.Errorf("a client was told: %v", c.err)
		}
	}

	const contents = "SELECT (SELECT count(*) || ' ' || coalesce(max(id), 0) FROM transfers), (SELECT sum(balance) || ' ' || sum(balance * id) FROM accounts)"
	holds := func() string {
		t.Helper()
		rows, err := old.Query(t.Context(), "app", contents)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(rows[0], " ")
	}
	if err := old.Start(); err != nil {
		t.Fatal(err)
	}
	before := holds()
	l.untouched(old)
	if err := old.Restart("immediate"); err != nil {
		t.Fatal(err)
	}
	if after := holds(); after != before {
		t.Errorf("the old primary was written to: it holds %s, before %s", after, before)
	}

	if err := old.Stop("fast"); err != nil {
		t.Fatal(err)
	}
	if err := old.Rewind(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	// As long as it finds no primary it is not consistent: nobody can log in.
	auto := filepath.Join(old.Dir, "postgresql.auto.conf")
	if err := os.WriteFile(auto, []byte("primary_conninfo = 'host=127.0.0.1 port=1'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() { started <- old.Start() }()
	eventually(t, 30*time.Second, "the rewound server to refuse a check", func() bool {
		for _, s := range l.app.monitor.Status() {
			if s.Addr == old.Addr() && strings.Contains(s.LastError, "57P03") {
				return true
			}
		}
		return false
	})
	l.flows()
	if s := l.server(old); s.Up {
		t.Errorf("a server that does not stream is taken for %v", s.Role)
	}
	if err := os.Truncate(auto, 0); err != nil {
		t.Fatal(err)
	}
	if err := old.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	l.sees(old, "a replica that streams", up)
	if err := old.WaitFor(t.Context(), "postgres", "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE "+clientSessions+")"); err != nil {
		t.Errorf("reads on the server that is back: %v", err)
	}
	l.flows()
	list, _ = l.take()
	for _, c := range list {
		t.Errorf("the return of the old primary: a client was told: %v", c.err)
	}
	l.audit()
}
