package main

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/pgtest"
	"pgproxy/router"
)

// Faults, one after the other, under the load of a ledger. Each is repeated: once or
// twice in the ordinary tests, for 20 s in "make faults". The numbers are those of
// the fault matrix that the tests were made after.

// fault is one kind of it.
type fault struct {
	name    string
	relayed bool
	proxy   string // further keys of [proxy]
	// inject does it and heals it.
	inject func(l *ledger)
	// allowed says which errors clients may see; nil is none.
	allowed func(c complaint) bool
	slow    bool // not among the ordinary tests
}

// inFlight allows what may befall a transaction whose server has died. A BEGIN is
// never lost.
func inFlight(c complaint) bool {
	text := c.err.Error()
	return !strings.HasPrefix(text, "BEGIN") && !strings.HasPrefix(text, "login") && hasCode(c.err, "08006", "57P01", "57P02")
}

func hasCode(err error, codes ...string) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && slices.Contains(codes, pe.Code)
}

const clientSessions = "usename = 'app' AND backend_type = 'client backend' AND datname = 'app'"

func (l *ledger) exec(n *pgtest.Node, sql string) {
	l.t.Helper()
	if err := n.Exec(l.t.Context(), "app", sql); err != nil {
		l.t.Error(err)
	}
}

// sees waits until the proxy's picture of a node is as wanted.
func (l *ledger) sees(n *pgtest.Node, what string, ok func(s router.Server) bool) {
	l.t.Helper()
	eventually(l.t, 30*time.Second, n.Name+": "+what, func() bool { return ok(l.server(n)) })
}

func up(s router.Server) bool   { return s.Up && (s.Role == router.RolePrimary || s.Covered > 0) }
func down(s router.Server) bool { return !s.Up }

func (l *ledger) replica() *pgtest.Node {
	p := l.primary()
	for _, n := range l.c.Nodes() {
		if n != p {
			return n
		}
	}
	return nil
}

// calm fails if the proxy has taken a server for down, or stopped writes.
func (l *ledger) calm() {
	l.t.Helper()
	for _, e := range l.app.monitor.Events() {
		if e.Kind == "down" || e.Kind == "odd" || e.Kind == "halted" {
			l.t.Errorf("%s %s: %s", e.Server, e.Kind, e.Text)
		}
	}
}

// flap is how long a flapping server is down, and up.
const flap = 2 * time.Second

var faults = []fault{
	{name: "F2 terminated backends", inject: func(l *ledger) {
		for _, n := range l.c.Nodes() {
			l.exec(n, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "+clientSessions)
		}
		l.flows()
		l.calm()
	}, allowed: inFlight},
	{name: "F3 primary killed and restarted", inject: func(l *ledger) {
		p := l.primary()
		if err := p.Kill(); err != nil {
			l.t.Fatal(err)
		}
		l.sees(p, "down", down)
		if err := p.Start(); err != nil {
			l.t.Fatal(err)
		}
	}, allowed: inFlight},
	{name: "F4 primary stopped fast and restarted", inject: func(l *ledger) {
		if err := l.primary().Restart("fast"); err != nil {
			l.t.Fatal(err)
		}
	}, allowed: inFlight},
	{name: "F4 primary stopped immediately and restarted", slow: true, inject: func(l *ledger) {
		if err := l.primary().Restart("immediate"); err != nil {
			l.t.Fatal(err)
		}
	}, allowed: inFlight},
	{name: "F5 primary frozen for a moment", slow: true, inject: func(l *ledger) {
		p := l.primary()
		if err := p.Freeze(); err != nil {
			l.t.Fatal(err)
		}
		<-time.After(1500 * time.Millisecond)
		if err := p.Thaw(); err != nil {
			l.t.Fatal(err)
		}
	}},
	{name: "F5 primary frozen until it is down", slow: true, inject: func(l *ledger) {
		p := l.primary()
		if err := p.Freeze(); err != nil {
			l.t.Fatal(err)
		}
		l.sees(p, "down", down)
		if err := p.Thaw(); err != nil {
			l.t.Fatal(err)
		}
		l.sees(p, "up", up)
	}},
	{name: "F10 replay paused", inject: func(l *ledger) {
		r := l.replica()
		if err := r.PauseReplay(l.t.Context()); err != nil {
			l.t.Fatal(err)
		}
		l.sees(r, "late", func(s router.Server) bool { return s.Late })
		if err := r.ResumeReplay(l.t.Context()); err != nil {
			l.t.Fatal(err)
		}
		l.sees(r, "in time", func(s router.Server) bool { return !s.Late })
	}},
	{name: "F11 replica killed", inject: func(l *ledger) {
		r := l.replica()
		if err := r.Kill(); err != nil {
			l.t.Fatal(err)
		}
		l.sees(r, "down", down)
		if err := r.Start(); err != nil {
			l.t.Fatal(err)
		}
	}, allowed: func(c complaint) bool { return c.read && inFlight(c) }},
	{name: "F11 replica flapping", slow: true, relayed: true, inject: func(l *ledger) {
		r := l.replica()
		attempts := func() (n int) {
			for _, p := range l.app.pools.Stats() {
				if p.Key.Server == l.relays[r].Addr() {
					n += int(p.LoginFail)
				}
			}
			return n
		}
		before := attempts()
		if err := r.Kill(); err != nil {
			l.t.Fatal(err)
		}
		died := time.Now()
		l.sees(r, "down", down)
		checks := l.relays[r].Accepted()
		<-time.After(flap)
		// Pools ask once each server_login_retry (1 s), the monitor each
		// server_check_interval (200 ms, less a tenth, and once at once).
		passed := time.Since(died)
		if n, most := attempts()-before, 1+int(passed/time.Second); n > most {
			l.t.Errorf("the pools have failed to log in %d times in %v, want %d at most", n, passed, most)
		}
		if n, most := l.relays[r].Accepted()-checks, 3+int(passed/(180*time.Millisecond)); n > most {
			l.t.Errorf("a server that is down was connected to %d times in %v, want %d at most", n, passed, most)
		}
		if err := r.Start(); err != nil {
			l.t.Fatal(err)
		}
		<-time.After(flap)
	}, allowed: func(c complaint) bool { return c.read && inFlight(c) }},
	{name: "F12 all replicas down", slow: true, proxy: "server_ramp = \"0s\"\n", inject: func(l *ledger) {
		p := l.primary()
		for _, n := range l.c.Nodes() {
			if n != p {
				l.exec(p, "ALTER SYSTEM SET synchronous_standby_names = ''")
				l.exec(p, "SELECT pg_reload_conf()")
				if err := n.Kill(); err != nil {
					l.t.Fatal(err)
				}
			}
		}
		l.flows()
		for _, n := range l.c.Nodes() {
			if n != p {
				if err := n.Start(); err != nil {
					l.t.Fatal(err)
				}
			}
		}
	}, allowed: func(c complaint) bool { return c.read && inFlight(c) }},
	{name: "F13 recovery conflict", inject: func(l *ledger) {
		r := l.replica()
		l.exec(r, "ALTER SYSTEM SET max_standby_streaming_delay = 0")
		l.exec(r, "SELECT pg_reload_conf()")
		ctx, stop := context.WithCancel(l.t.Context())
		var reader sync.WaitGroup
		reader.Go(func() { // a read that is in the way of the vacuum
			_ = r.Exec(ctx, "app", "SELECT pg_sleep(20), count(*) FROM accounts")
		})
		l.exec(l.primary(), "VACUUM accounts")
		l.flows()
		l.calm()
		stop()
		reader.Wait()
	}, allowed: func(c complaint) bool { return c.read && hasCode(c.err, "40001") }},
	{name: "F14 primary behind a black hole", relayed: true, inject: func(l *ledger) {
		p := l.primary()
		l.relays[p].SetBoth(pgtest.Fault{Blackhole: true})
		l.sees(p, "down", down)
		<-time.After(time.Duration(rounds(0, 5)) * time.Second) // let the kernel give up what is in flight
		l.relays[p].Heal()
		// What was swallowed is lost: those connections are of no more use.
		l.relays[p].ResetAll()
		l.sees(p, "up", up)
	}, allowed: inFlight},
}

func TestFaults(t *testing.T) {
	for _, f := range faults {
		if f.slow && !full() {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			w, r := load()
			l := newLedger(t, ledgerOptions{
				Writers: w, Readers: r, Relayed: f.relayed, Proxy: f.proxy,
				Database: "max_replica_lag = \"2s\"\n",
			})
			l.flows()
			until := time.Now()
			if full() {
				until = until.Add(20 * time.Second)
			}
			for n := 0; n == 0 || time.Now().Before(until); n++ {
				f.inject(l)
				l.flows()
			}
			complaints, longest := l.take()
			t.Logf("%d errors, longest wait %v", len(complaints), longest.Round(time.Millisecond))
			for _, c := range complaints {
				if f.allowed == nil || !f.allowed(c) {
					t.Errorf("a client was told: %v", c.err)
				}
			}
			l.audit()
		})
	}
}

// F1: idle connections of the pool end; nobody notices, whatever comes next.
func TestFaultIdleBackendsTerminated(t *testing.T) {
	l := newLedger(t, ledgerOptions{})
	l.exec(l.c.Primary, "SET ROLE app; CREATE TABLE ones (a int)")
	const clients = 8
	conns := make([]*pgconn.PgConn, clients)
	for i := range conns {
		if conns[i] = l.connect(false); conns[i] == nil {
			t.Fatal("no connection")
		}
		defer closeClient(conns[i])
	}
	want := 0
	for range rounds(4, 50) {
		var goes sync.WaitGroup
		for _, c := range conns {
			goes.Go(func() {
				if _, _, err := statement(t.Context(), c, false, "INSERT INTO ones SELECT 1 FROM pg_sleep(0.01)"); err != nil {
					t.Errorf("a client was told: %v", err)
				}
			})
		}
		goes.Wait()
		want += clients
		l.exec(l.c.Primary, "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE "+clientSessions)
	}
	if got, err := l.c.Primary.Value(t.Context(), "app", "SELECT count(*) FROM ones"); err != nil || got != strconv.Itoa(want) {
		t.Errorf("%s rows, %v, want %d", got, err, want)
	}
	l.calm()
}
