package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/pgtest"
	"pgproxy/router"
)

// fakePatroni answers as Patroni's REST API does, and makes switchovers.
type fakePatroni struct {
	l   *ledger
	srv *httptest.Server

	mu        sync.Mutex
	leader    *pgtest.Node
	members   []*pgtest.Node
	paused    bool
	scheduled time.Time
	down      bool
}

func newFakePatroni(l *ledger) *fakePatroni {
	p := &fakePatroni{l: l, leader: l.c.Primary, members: l.c.Nodes()}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /cluster", p.cluster)
	mux.HandleFunc("POST /switchover", p.switchover)
	p.srv = httptest.NewServer(mux)
	l.t.Cleanup(p.srv.Close)
	return p
}

func (p *fakePatroni) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

func (p *fakePatroni) cluster(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		http.Error(w, "no", http.StatusServiceUnavailable)
		return
	}
	type member map[string]any
	var members []member
	for _, n := range p.members {
		role := "replica"
		if n == p.leader {
			role = "leader"
		}
		members = append(members, member{
			"name": n.Name, "role": role, "state": "running", "host": n.Host, "port": n.Port, "timeline": 1,
			"api_url": p.srv.URL + "/patroni", "lag": 0,
		})
	}
	answer := map[string]any{"members": members, "scope": "test"}
	if p.paused {
		answer["pause"] = true
	}
	if !p.scheduled.IsZero() {
		answer["scheduled_switchover"] = map[string]any{"at": p.scheduled.Format(time.RFC3339Nano), "from": p.leader.Name, "to": "any"}
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (p *fakePatroni) switchover(w http.ResponseWriter, r *http.Request) {
	var ask struct{ Leader, Candidate string }
	if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if ask.Leader != p.leader.Name {
		http.Error(w, "leader name does not match", http.StatusPreconditionFailed)
		return
	}
	i := slices.IndexFunc(p.members, func(n *pgtest.Node) bool { return n.Name == ask.Candidate })
	p.move(p.members[i])
	_, _ = w.Write([]byte("Successfully switched over"))
}

// move makes another member the leader.
func (p *fakePatroni) move(next *pgtest.Node) {
	old := p.leader
	if err := old.Stop("fast"); err != nil {
		p.l.t.Error(err)
	}
	p.l.succeed(next, p.other(old, next))
	p.set(func() { p.leader, p.scheduled = next, time.Time{} })
}

func (p *fakePatroni) other(a, b *pgtest.Node) *pgtest.Node {
	for _, n := range p.l.c.Nodes() {
		if n != a && n != b {
			return n
		}
	}
	return nil
}

// Members come from Patroni, which also makes the switchover, at a word from the
// console or at a time that was planned: without one error.
func TestLedgerPatroni(t *testing.T) {
	var p *fakePatroni
	w, r := load()
	l := newLedger(t, ledgerOptions{Writers: w, Readers: r, Patroni: func(l *ledger) string {
		p = newFakePatroni(l)
		return p.srv.URL
	}})
	l.proves()
	l.flows()
	quiet := func(what string) {
		t.Helper()
		l.flows()
		complaints, longest := l.take()
		for _, c := range complaints {
			t.Errorf("%s: a client was told: %v", what, c.err)
		}
		t.Logf("%s: longest pause %v", what, longest.Round(time.Millisecond))
	}

	old := l.primary()
	next, _ := l.successor(old)
	if err := l.console("SWITCHOVER app TO " + next.Addr()); err != nil {
		t.Fatal(err)
	}
	quiet("by the console")
	l.rejoin(old, next)

	old = l.primary()
	next, _ = l.successor(old)
	at := time.Now().Add(1500 * time.Millisecond)
	p.set(func() { p.scheduled = at })
	eventually(t, 20*time.Second, "transactions to be held before the time", func() bool {
		return l.app.monitor.Topology("app").Halted == router.HaltedSwitchover && l.app.pools.Busy(old.Addr()) == 0
	})
	<-time.After(time.Until(at))
	p.move(next)
	quiet("planned")
	l.rejoin(old, next)

	// A plan that is called off lets transactions go on.
	p.set(func() { p.scheduled = time.Now().Add(500 * time.Millisecond) })
	eventually(t, 20*time.Second, "transactions to be held", func() bool { return l.app.monitor.Topology("app").Halted != "" })
	p.set(func() { p.scheduled = time.Time{} })
	quiet("called off")

	// Members leave and join.
	other := p.other(p.leader, l.c.Primary)
	if other == nil {
		other = l.c.Nodes()[2]
	}
	all := p.members
	p.set(func() {
		p.members = slices.DeleteFunc(slices.Clone(all), func(n *pgtest.Node) bool { return n == other })
	})
	servers := func() int { return len(l.app.monitor.Topology("app").Servers) }
	eventually(t, 20*time.Second, "the member to leave", func() bool { return servers() == 2 })
	p.set(func() { p.members = all })
	eventually(t, 20*time.Second, "the member to join", func() bool { return servers() == 3 })
	quiet("joined")

	// While Patroni is silent the servers' own words count.
	p.set(func() { p.down = true })
	eventually(t, 20*time.Second, "Patroni to be silent", func() bool { return l.app.monitor.States()[0].Patroni != "ok" })
	quiet("silent")
	p.set(func() { p.down, p.paused = false, true })
	eventually(t, 20*time.Second, "the maintenance mode", func() bool { return l.app.monitor.States()[0].Paused })
	quiet("paused")
	l.audit()
}

// Where only Patroni knows the servers, whatever asks for the primary finds it:
// auth_query, and LISTEN over a switchover.
func TestPatroniListsAllServers(t *testing.T) {
	var p *fakePatroni
	l := newLedger(t, ledgerOptions{
		Patroni: func(l *ledger) string {
			p = newFakePatroni(l)
			return p.srv.URL
		},
		Database: "auth_user = \"app\"\nauth_query = \"SELECT $1::text, 'asked secret'\"\n",
	})
	if err := l.c.CreateRole(t.Context(), "asked", "asked secret", ""); err != nil {
		t.Fatal(err)
	}
	l.primary()
	told := make(chan string, 10)
	cfg, err := pgconn.ParseConfig(l.app.dsn("asked", "app"))
	if err != nil {
		t.Fatal(err)
	}
	cfg.OnNotification = func(_ *pgconn.PgConn, n *pgconn.Notification) { told <- n.Payload }
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { told <- n.Severity }
	conn, err := pgconn.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer closeClient(conn)
	run := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	// hears waits for something to be told, and sends the statement meanwhile.
	hears := func(want, sql string) {
		t.Helper()
		eventually(t, 20*time.Second, "to be told "+want, func() bool {
			run(sql)
			for len(told) > 0 {
				if <-told == want {
					return true
				}
			}
			return false
		})
	}
	run("LISTEN news")
	hears("before", "NOTIFY news, 'before'")
	old := l.primary()
	next, _ := l.successor(old)
	l.sees(next, "is up", up) // the proxy has only begun to look
	if err := l.console("SWITCHOVER app TO " + next.Addr()); err != nil {
		t.Fatal(err)
	}
	hears("NOTICE", "SELECT 1") // what was sent meanwhile may be lost
	hears("after", "NOTIFY news, 'after'")
}
