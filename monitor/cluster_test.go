package monitor

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/config"
	"pgproxy/pgtest"
	"pgproxy/router"
)

// session is a connection of a test to a server.
type session struct {
	t  *testing.T
	pc *pgconn.PgConn
}

func connect(t *testing.T, n *pgtest.Node) *session {
	t.Helper()
	pc, err := pgconn.Connect(t.Context(), n.DSN("postgres", pgtest.Superuser))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = pc.Close(ctx)
	})
	return &session{t, pc}
}

// value runs statements and returns the first column of the last row, "" if
// there is none.
func (s *session) value(sql string) string {
	s.t.Helper()
	results, err := s.pc.Exec(s.t.Context(), sql).ReadAll()
	if err != nil {
		s.t.Fatalf("%s: %v", sql, err)
	}
	if rows := results[len(results)-1].Rows; len(rows) > 0 {
		return string(rows[len(rows)-1][0])
	}
	return ""
}

func shared(t *testing.T) *pgtest.Cluster {
	t.Helper()
	c := pgtest.Shared(t)
	withChecker(t, c)
	return c
}

func TestRolesAreFound(t *testing.T) {
	c := shared(t)
	w := start(t, configFor(serversOf(c)...))
	top := w.settled()
	if top.Servers[0].Role != router.RolePrimary || top.Servers[0].Addr != c.Primary.Addr() {
		t.Errorf("%+v", top.Servers)
	}
	for i, st := range w.Status() {
		if st.Addr != c.Nodes()[i].Addr() || st.Database != "app" || st.LSN == 0 || st.Checks == 0 || st.Failures != 0 ||
			st.LastError != "" || st.Fixed || st.Changed.IsZero() || st.Checked.IsZero() {
			t.Errorf("%+v", st)
		}
	}
}

func TestPausedReplayIsSeen(t *testing.T) {
	c := shared(t)
	w := start(t, configFor(serversOf(c)...))
	w.settled()
	slow := c.Replicas[0]
	if err := slow.PauseReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
	resumed := false
	t.Cleanup(func() {
		if !resumed {
			_ = slow.ResumeReplay(context.Background())
		}
	})
	primary := connect(t, c.Primary)
	primary.value("CREATE TABLE paused (a int); DROP TABLE paused")
	stamp := router.Nanotime()
	w.until("the other replica to cover the write", func(top *router.Topology) bool { return top.Servers[2].Covered >= stamp })
	top := w.until("a lag", func(top *router.Topology) bool { return top.Servers[1].Lag > 500*time.Millisecond })
	if top.Servers[1].Covered >= stamp || !top.Servers[1].Up {
		t.Errorf("%+v, the write was at %d", top.Servers[1], stamp)
	}
	if st := w.Status()[1]; st.LagBytes <= 0 {
		t.Errorf("%+v", st)
	}
	if err := slow.ResumeReplay(t.Context()); err != nil {
		t.Fatal(err)
	}
	resumed = true
	w.until("the slow replica to cover the write", func(top *router.Topology) bool {
		return top.Servers[1].Covered >= stamp && top.Servers[1].Lag == 0
	})
}

// An idle primary must not make its replicas look behind, wherever in a page or
// segment its WAL ends.
func TestIdlePrimaryKeepsReplicasCovered(t *testing.T) {
	c := shared(t)
	w := start(t, configFor(serversOf(c)...))
	w.settled()
	primary := connect(t, c.Primary)
	for range 3 {
		lsn := primary.value("SELECT pg_switch_wal(); SELECT pg_current_wal_insert_lsn()")
		stamp := router.Nanotime()
		// The server writes something by itself every 15 s, which must not be needed.
		w.untilWithin(5*time.Second, "the idle primary at "+lsn+" to be covered", func(top *router.Topology) bool {
			return top.Servers[1].Covered >= stamp && top.Servers[2].Covered >= stamp
		})
		primary.value("CREATE TABLE IF NOT EXISTS idle (a int); INSERT INTO idle VALUES (1)")
	}
	stamp := router.Nanotime()
	w.until("a second of idleness", func(top *router.Topology) bool {
		for _, s := range top.Servers {
			if s.Lag > 5*time.Second {
				t.Fatalf("lag of %s: %v", s.Addr, s.Lag)
			}
		}
		return top.Servers[1].Covered >= stamp+int64(time.Second) && top.Servers[2].Covered >= stamp+int64(time.Second) &&
			top.Servers[1].Lag == 0 && top.Servers[2].Lag == 0
	})
}

func TestWrongPasswordIsDownAndLoggedOnce(t *testing.T) {
	c := shared(t)
	cfg := configFor(serverOf(c.Primary))
	cfg.Databases["app"].MonitorPassword = "wrong"
	w := start(t, cfg)
	st := w.untilStatus("five refusals", func(st Status) bool { return st.Failures >= 5 })
	if st.Up || st.Role != router.RoleUnknown || !strings.Contains(st.LastError, "password authentication failed") {
		t.Errorf("%+v", st)
	}
	if n := w.log.count("password authentication failed"); n != 1 {
		t.Errorf("logged %d times", n)
	}
	if strings.Contains(w.log.String(), "wrong") || strings.Contains(st.LastError, "wrong") {
		t.Error("the password was told")
	}

	// A reload with the right one mends it; a wrong one does not take it down.
	w.Apply(configFor(serverOf(c.Primary)))
	w.settled()
	w.Apply(cfg)
	st = w.untilStatus("five more refusals", func(st Status) bool { return st.Failures >= 10 })
	if !st.Up || st.Role != router.RolePrimary {
		t.Errorf("%+v", st)
	}
}

// checkers returns the process ids of the monitor's sessions.
func checkers(t *testing.T, n *pgtest.Node) string {
	t.Helper()
	rows, err := n.Query(t.Context(), "postgres",
		"SELECT pid FROM pg_stat_activity WHERE application_name = '"+appName+"' ORDER BY pid")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(rows)
}

func TestApplyAndClose(t *testing.T) {
	c := shared(t)
	census := pgtest.NewCensus(t, c.Nodes()...)
	log := new(record)
	w := &watched{New(configFor(serversOf(c)[:2]...), optionsFor(log)), t, log}
	t.Cleanup(w.Close)
	before := w.settled()
	pids := checkers(t, c.Primary) + checkers(t, c.Replicas[0])

	// One server leaves, one comes, one stays and changes what routes to it.
	stays := serverOf(c.Primary)
	stays.Weight, stays.Groups = 7, []string{"analytics"}
	w.Apply(configFor(serverOf(c.Replicas[1]), stays))
	top := w.settled()
	if len(top.Servers) != 2 || top.Servers[0].Role != router.RoleReplica || top.Servers[1].Weight != 7 ||
		top.Servers[1].Groups[0] != "analytics" || top.Generation <= before.Generation || top.Turn != before.Turn {
		t.Errorf("%+v after %+v", top, before)
	}
	if now := checkers(t, c.Primary); !strings.HasPrefix(pids, now) || now == "[]" {
		t.Errorf("sessions on the server that stayed: %s, before %s", now, pids)
	}
	if err := c.Replicas[0].WaitFor(t.Context(), "postgres",
		"SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = '"+appName+"'"); err != nil {
		t.Error(err)
	}
	if st := w.Status(); len(st) != 2 || st[0].Addr != c.Replicas[1].Addr() || st[1].Weight != 7 {
		t.Errorf("%+v", st)
	}

	// Another entry has its own connections.
	cfg := configFor(stays)
	cfg.Databases[config.Wildcard] = configFor(serversOf(c)...).Databases["app"]
	w.Apply(cfg)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := w.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if st := w.Status(); len(st) != 4 || st[0].Database != config.Wildcard || st[3].Database != "app" || !st[2].Up {
		t.Errorf("%+v", st)
	}

	w.Close()
	w.Apply(configFor(serversOf(c)...)) // does nothing now
	census.AssertBaseline()
}

// A terminated session is replaced, and the server never looks down.
func TestTerminatedSessionIsNotDown(t *testing.T) {
	c := shared(t)
	cfg := configFor(serverOf(c.Primary))
	cfg.Proxy.ServerCheckInterval = time.Hour // only what happens to the connection causes a check
	w := start(t, cfg)
	w.settled()
	primary := connect(t, c.Primary)
	for range 5 {
		primary.value("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = '" + appName + "'")
		if err := c.Primary.WaitFor(t.Context(), "postgres",
			"SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = '"+appName+"'"); err != nil {
			t.Fatal(err)
		}
	}
	if st := w.Status()[0]; !st.Up || st.Failures != 0 || w.log.count("is down") != 0 {
		t.Errorf("%+v", st)
	}
}

// TestXmaxOfAReplicaAlone: a server that was promoted since it was asked for its role
// tells no horizon, and the one that is known stays.
func TestXmaxOfAReplicaAlone(t *testing.T) {
	c := shared(t)
	if got := connect(t, c.Primary).value(askXmax); got != "" {
		t.Errorf("a primary tells %s", got)
	}
	if got := connect(t, c.Replicas[0]).value(askXmax); got == "" || got == "0" {
		t.Errorf("a replica tells %q", got)
	}
	var st state
	st.take(result{verdict: alive, answer: &answer{recovery: true, xmax: 7}}, time.Now())
	st.take(result{verdict: alive, answer: &answer{recovery: true}}, time.Now())
	if st.horizon != 7 {
		t.Errorf("the horizon is %d, want 7", st.horizon)
	}
}
