package monitor

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/config"
	"pgproxy/pgtest"
	"pgproxy/router"
	"pgproxy/wire"
)

// actor is a fake primary whose behaviour a test changes.
type actor struct {
	*pgtest.FakeServer
	refuse atomic.Pointer[wire.Error] // logins are refused with it
	unable atomic.Pointer[wire.Error] // the question for positions is
	asked  atomic.Int64               // for positions
}

func newActor(t *testing.T) *actor {
	a := new(actor)
	a.FakeServer = pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
		if refusal := a.refuse.Load(); refusal != nil {
			if _, err := c.ReadStartup(); err != nil {
				return err
			}
			return c.Send(refusal.Append(nil))
		}
		if err := c.Accept(); err != nil {
			return err
		}
		for {
			m, err := c.Read()
			if err != nil || m.Type == wire.Terminate {
				return err
			}
			sql, _, _ := wire.String(m.Body)
			if err := c.Send(a.reply(string(sql))); err != nil {
				return err
			}
		}
	})
	return a
}

func (a *actor) reply(sql string) []byte {
	var row [][]byte
	for _, v := range strings.Fields(map[string]string{
		askRole: "f", askPositions: "f 0/5000100 0/5000100 00000007 - - - - -", askLayout: "16777216 8192", askIdentity: "42 7", askNames: "1 - -",
	}[sql]) {
		if v == "-" {
			row = append(row, nil)
			continue
		}
		row = append(row, []byte(v))
	}
	var b []byte
	unable := a.unable.Load()
	if sql == askPositions {
		a.asked.Add(1)
	}
	if sql == askPositions && unable != nil {
		b = unable.Append(nil)
	} else {
		b = wire.AppendCommandComplete(wire.AppendDataRow(nil, row...), "SELECT 1")
	}
	return wire.AppendReadyForQuery(b, wire.TxIdle)
}

func (a *actor) server() config.Server { return config.Server{Host: "127.0.0.1", Port: a.Port()} }

// dropConns ends the open connections but not the listener.
func (a *actor) dropConns() {
	for _, c := range a.Conns() {
		_ = c.Conn.Close()
	}
}

// untilStatus waits until the one server's state is as wanted. It is asked at
// each check, which the test causes.
func (w *watched) untilStatus(what string, is func(Status) bool) Status {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		st := w.Status()[0]
		if is(st) {
			return st
		}
		w.Suspect("app", st.Addr)
		w.nextCheck(st.Checks)
	}
	w.t.Fatalf("waited in vain for %s: %+v", what, w.Status())
	return Status{}
}

// nextCheck waits until more checks of the first server have ended.
func (w *watched) nextCheck(than uint64) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); w.Status()[0].Checks <= than; <-tick.C {
		if time.Now().After(deadline) {
			w.t.Fatalf("no check after %d", than)
		}
	}
}

func TestTooManyConnectionsIsNotDown(t *testing.T) {
	a := newActor(t)
	w := start(t, configFor(a.server()))
	w.settled()
	full := wire.Fatalf("53300", "sorry, too many clients already")
	a.refuse.Store(full)
	a.dropConns()
	st := w.untilStatus("five refusals", func(st Status) bool { return st.Failures >= 5 })
	if !st.Up || st.Role != router.RolePrimary || !strings.Contains(st.LastError, "too many clients") {
		t.Errorf("%+v", st)
	}
	if n := w.log.count("too many clients"); n != 1 {
		t.Errorf("logged %d times", n)
	}
	if w.log.count("is down") != 0 {
		t.Error("logged that it is down")
	}
	a.refuse.Store(nil)
	w.untilStatus("an answer", func(st Status) bool { return st.Up && st.LastError == "" })
}

func TestStartingUpIsDownAtOnce(t *testing.T) {
	a := newActor(t)
	cfg := configFor(a.server())
	cfg.Proxy.ServerCheckInterval = time.Hour // the broken connection is noticed all the same
	w := start(t, cfg)
	w.settled()
	a.refuse.Store(wire.Fatalf("57P03", "the database system is starting up"))
	a.dropConns()
	top := w.until("down", func(top *router.Topology) bool { return !top.Servers[0].Up })
	if st := w.Status()[0]; st.Failures != 1 || top.Servers[0].Role != router.RolePrimary {
		t.Errorf("%+v", st)
	}
	a.refuse.Store(nil)
	w.untilStatus("an answer", func(st Status) bool { return st.Up })
}

// A connection that is broken proves nothing about the server.
func TestBrokenConnectionIsNotDown(t *testing.T) {
	a := newActor(t)
	w := start(t, configFor(a.server()))
	w.settled()
	for i := range 5 {
		checks := w.Status()[0].Checks
		a.dropConns()
		a.WaitConns(i + 2)
		w.nextCheck(checks)
	}
	if st := w.Status()[0]; !st.Up || st.Failures != 0 {
		t.Errorf("%+v", st)
	}
}

func TestConnectionRefusedIsDownAtOnce(t *testing.T) {
	a := newActor(t)
	cfg := configFor(a.server())
	cfg.Proxy.ServerCheckInterval = time.Hour
	w := start(t, cfg)
	w.settled()
	a.Close()
	w.until("down", func(top *router.Topology) bool { return !top.Servers[0].Up })
}

func TestServerThatTellsNoPositions(t *testing.T) {
	a := newActor(t)
	a.unable.Store(wire.Errorf("42501", "permission denied for function pg_current_wal_insert_lsn"))
	w := start(t, configFor(a.server()))
	w.settled()
	w.untilStatus("checks", func(st Status) bool { return st.Checks > 3 })
	if st := w.Status()[0]; !st.Up || st.LSN != 0 || st.LastError != "" {
		t.Errorf("%+v", st)
	}
	if n := a.asked.Load(); n != 1 {
		t.Errorf("asked %d times for what it refuses", n)
	}
}

func TestFailedQueryIsNotDown(t *testing.T) {
	a := newActor(t)
	w := start(t, configFor(a.server()))
	w.settled()
	a.unable.Store(wire.Errorf("57014", "canceling statement due to statement timeout"))
	st := w.untilStatus("failures", func(st Status) bool { return st.Failures > 3 })
	if !st.Up || st.LSN != 0x5000100 {
		t.Errorf("%+v", st)
	}
	if len(a.Conns()) != 1 {
		t.Errorf("%d connections", len(a.Conns()))
	}
}

func TestSuspectsAreCoalesced(t *testing.T) {
	a := newActor(t)
	cfg := configFor(a.server())
	cfg.Proxy.ServerCheckInterval = time.Hour
	cfg.Databases[config.Wildcard] = &config.Database{Name: config.Wildcard, DBName: "postgres", MonitorUser: checker}
	w := start(t, cfg)
	w.settled()
	began := time.Now()
	for time.Since(began) < 400*time.Millisecond {
		w.Suspect("app", a.Addr())
		w.Suspect("elsewhere", a.Addr())
		w.Suspect("app", "elsewhere")
	}
	took := time.Since(began)
	checks := int64(w.Status()[0].Checks)
	if most := int64(took/suspectPause) + 3; checks > most || checks < 3 {
		t.Errorf("%d checks in %v, want 3 to %d", checks, took, most)
	}
}

func TestServerWithoutALoginIsOnlyConnectedTo(t *testing.T) {
	silent := pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error { return c.Drain() })
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	_ = ln.Close()
	cfg := configFor(
		config.Server{Host: "127.0.0.1", Port: silent.Port(), Role: config.RolePrimary},
		config.Server{Host: "127.0.0.1", Port: port, Role: config.RoleReplica})
	cfg.Databases["app"].MonitorUser = ""
	w := start(t, cfg)
	st := w.Status()
	if !st[0].Up || st[0].Role != router.RolePrimary || !st[0].Fixed || st[0].LastError != "" {
		t.Errorf("%+v", st[0])
	}
	if st[1].Up || st[1].Role != router.RoleReplica || !strings.Contains(st[1].LastError, "refused") {
		t.Errorf("%+v", st[1])
	}
	for _, c := range silent.Conns() {
		<-c.Done()
		if n := len(c.Received()); n != 0 {
			t.Errorf("%d bytes were sent", n)
		}
	}
}

// A server that takes connections and never answers must not hold up Close.
func TestSilentServer(t *testing.T) {
	census := pgtest.NewCensus(t)
	silent := pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error { return c.Hold() })
	log := new(record)
	m := New(configFor(config.Server{Host: "127.0.0.1", Port: silent.Port()}), optionsFor(log))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := m.Ready(ctx); err != nil { // the first check has timed out
		t.Fatal(err)
	}
	if st := m.Status()[0]; st.Up || st.Role != router.RoleUnknown || st.LastError == "" {
		t.Errorf("%+v", st)
	}
	silent.WaitConns(2)
	began := time.Now()
	m.Close()
	if took := time.Since(began); took > minTimeout/2 {
		t.Errorf("Close took %v", took)
	}
	silent.Close()
	census.AssertBaseline()
}

func TestWait(t *testing.T) {
	a := newActor(t)
	w := start(t, configFor(a.server()))
	top := w.settled()
	if err := w.Wait(t.Context(), "app", top.Generation-1); err != nil {
		t.Errorf("Wait for an older picture: %v", err)
	}
	if err := w.Wait(t.Context(), "nothing", 0); !errors.Is(err, ErrNoDatabase) {
		t.Errorf("Wait for no entry: %v", err)
	}
	if w.Topology("nothing") != nil {
		t.Error("a picture of no entry")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Wait(ctx, "app", 1<<60); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait after ctx: %v", err)
	}
	ended := make(chan error)
	go func() { ended <- w.Wait(t.Context(), "app", 1<<60) }()
	w.Apply(&config.Config{})
	if err := <-ended; !errors.Is(err, ErrNoDatabase) {
		t.Errorf("Wait for an entry that left: %v", err)
	}
	w.Apply(configFor(a.server()))
	if got := w.Topology("app").Generation; got <= top.Generation {
		t.Errorf("generation %d after the entry has come back, it was %d", got, top.Generation)
	}
}
