package proxy_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// leaves are the ways in which a client goes.
var leaves = map[string]func(c *pgtest.RawClient){
	"Terminate": func(c *pgtest.RawClient) { _ = c.TrySend(pgtest.Terminate()); c.Close() },
	"FIN":       (*pgtest.RawClient).Close,
	"RST":       (*pgtest.RawClient).Reset,
	"half-close": func(c *pgtest.RawClient) {
		c.CloseWrite()
		_ = c.Conn().SetReadDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.Copy(io.Discard, c.Conn())
	},
}

const insertMark = "INSERT INTO leavers VALUES ('mark')"

// states are what a client may be in the middle of when it leaves. Each leaves a
// row behind that must not become visible.
var states = map[string]func(c *pgtest.RawClient){
	"in transaction": func(c *pgtest.RawClient) {
		begin(c)
		c.Query(insertMark)
	},
	"failed transaction": func(c *pgtest.RawClient) {
		begin(c)
		c.Query(insertMark)
		c.Query("SELECT 1/0")
	},
	"inside savepoint": func(c *pgtest.RawClient) {
		begin(c)
		c.Query("SAVEPOINT a")
		c.Query(insertMark)
		c.Query("SELECT 1/0")
		c.Query("ROLLBACK TO a")
		c.Query(insertMark)
	},
	"COPY IN": func(c *pgtest.RawClient) {
		c.Send(pgtest.Query("COPY leavers FROM STDIN"))
		c.Expect("G")
		c.Send(pgtest.CopyData("mark\n"), pgtest.CopyData("mark\n"))
	},
	"COPY OUT": func(c *pgtest.RawClient) {
		begin(c)
		c.Query(insertMark)
		c.Send(pgtest.Query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000)) TO STDOUT"))
		c.Expect("H d d d")
	},
	"mid-result": func(c *pgtest.RawClient) {
		begin(c)
		c.Query(insertMark)
		c.Send(pgtest.Query("SELECT repeat('x', 1000) FROM generate_series(1, 100000)"))
		c.Expect("T D D D")
	},
	"running": func(c *pgtest.RawClient) {
		begin(c)
		c.Query(insertMark)
		c.Send(pgtest.Query("SELECT pg_sleep(3600)"))
	},
	"half a Bind": func(c *pgtest.RawClient) {
		begin(c)
		bind := pgtest.Bind("", "", string(bytes.Repeat([]byte("x"), 100)))
		c.Send(pgtest.Parse("", "INSERT INTO leavers VALUES ($1)"), pgtest.Bind("", "", "mark"), pgtest.Execute("", 0), pgtest.Flush(), bind[:len(bind)/2])
		c.Expect("1 2 C(INSERT 0 1)")
	},
	"half a Query": func(c *pgtest.RawClient) {
		begin(c)
		c.Query(insertMark)
		q := pgtest.Query("SELECT 1")
		c.Send(q[:len(q)-2])
	},
	"batch without Sync": func(c *pgtest.RawClient) {
		c.Send(pgtest.Parse("", insertMark), pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.Flush())
		c.Expect("1 2 C(INSERT 0 1)")
	},
	"Parse without Sync": func(c *pgtest.RawClient) { c.Send(pgtest.Parse("", insertMark)) },
	"portal suspended": func(c *pgtest.RawClient) {
		begin(c)
		c.Query(insertMark)
		c.Send(pgtest.Parse("", "SELECT i FROM generate_series(1, 9) i"), pgtest.Bind("p", ""), pgtest.Execute("p", 2), pgtest.Flush())
		c.Expect("1 2 D(1) D(2) s")
	},
}

// leaversTable makes the table of the tests anew.
func leaversTable(t *testing.T, c *pgtest.Cluster) {
	t.Helper()
	sql := "SET client_min_messages = error; CREATE TABLE IF NOT EXISTS leavers (s text); TRUNCATE leavers; GRANT ALL ON leavers TO public"
	if err := c.Primary.Exec(t.Context(), "postgres", sql); err != nil {
		t.Fatal(err)
	}
}

// assertGone checks that whoever has left holds no lock and left no row, and that
// the next client is served, on a pool of one.
func assertGone(t *testing.T, c *pgtest.Cluster, next *pgtest.RawClient) {
	t.Helper()
	if got, want := next.Query("SELECT count(*) FROM leavers"), "T D(0) C(SELECT 1) Z(I)"; got != want {
		t.Errorf("the next client got %s, want %s", got, want)
	}
	if got, want := next.Query("SELECT 'next'"), "T D(next) C(SELECT 1) Z(I)"; got != want {
		t.Errorf("the next client got %s, want %s", got, want)
	}
	free := "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE relation = 'leavers'::regclass)"
	if err := c.Primary.WaitFor(t.Context(), "postgres", free); err != nil {
		t.Error(err)
	}
}

// TestLeave: however a client goes and whatever it was doing, nothing of it is
// left (faults.md, B-30 and B-15).
func TestLeave(t *testing.T) {
	c := realCluster(t)
	leaversTable(t, c)
	census := pgtest.NewCensus(t, c.Nodes()...)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	next := h.Client(t)
	for how, leave := range leaves {
		for where, enter := range states {
			t.Run(where+"/"+how, func(t *testing.T) {
				a := h.Client(t)
				enter(a)
				h.Client(t).Terminate() // by then the proxy has read what a has sent: its end is seen at once
				leave(a)
				assertGone(t, c, next)
			})
		}
	}
	census.AssertQuiet()
	if n := len(h.Pools.Servers()); n != 1 {
		t.Errorf("%d server connections, want 1", n)
	}
	eventually(t, 10*time.Second, "the end of the sessions", func() bool { return h.Server.Stats().Clients == 1 })
}

func TestLeaveQueue(t *testing.T) {
	c := realCluster(t)
	leaversTable(t, c)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	holder, next := h.Client(t), h.Client(t)
	for how, leave := range leaves {
		t.Run(how, func(t *testing.T) {
			begin(holder)
			a := h.Client(t)
			a.Send(pgtest.Query("BEGIN"), pgtest.Query(insertMark))
			h.waitState(t, a, "waiting")
			if how == "half-close" { // in another goroutine: the end comes when it comes
				a.CloseWrite()
			} else {
				leave(a)
			}
			if how != "Terminate" { // which is not seen before its turn
				eventually(t, 10*time.Second, "the end of the session", func() bool { return h.session(a).PID == 0 })
			}
			holder.Query("COMMIT")
			assertGone(t, c, next)
		})
	}
	if n := h.Pools.Stats()[0].Waiting; n != 0 {
		t.Errorf("%d still wait", n)
	}
}

func TestLeaveLogin(t *testing.T) {
	c := realCluster(t)
	census := pgtest.NewCensus(t, c.Primary)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1"})
	for name, stage := range stages {
		if stage.proxy != "" {
			continue
		}
		for how, leave := range leaves {
			a := pgtest.DialRaw(t, h.Addr)
			stage.reach(a)
			leave(a)
			a.Close()
			eventually(t, 10*time.Second, name+", "+how+": the end of the session", func() bool { return h.Server.Stats().Clients == 0 })
		}
	}
	// Waiting for a server at the end of the login.
	h = newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	holder := h.Client(t)
	begin(holder)
	a := pgtest.DialRaw(t, h.Addr)
	a.Startup("user", testUser, "database", "app", "work_mem", "5MB")
	a.Expect("R(0)")
	eventually(t, 10*time.Second, "a waiting login", func() bool { return h.Pools.Stats()[0].Waiting == 1 })
	a.Reset()
	holder.Query("COMMIT")
	eventually(t, 10*time.Second, "the end of the session", func() bool { return h.Server.Stats().Clients == 1 })
	if got, want := h.Client(t).Query("SHOW work_mem"), "T D(4MB) C(SHOW) Z(I)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	census.AssertQuiet()
}

// TestLeaveFreesServer: a client that vanishes during a long statement does not
// keep its server (faults.md, B-27).
func TestLeaveFreesServer(t *testing.T) {
	c := realCluster(t)
	census := pgtest.NewCensus(t, c.Primary)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	next := h.Client(t)
	for _, leave := range leaves {
		a := h.Client(t)
		a.Send(pgtest.Query("SELECT 'long' FROM pg_sleep(3600)"))
		waitSleeping(t, c, "long")
		next.Send(pgtest.Query("SELECT 'next'"))
		leave(a)
		next.Expect("T D(next) C(SELECT 1) Z(I)")
		census.AssertQuiet()
	}
}

// TestLeaveMany: clients that leave in the middle of a message cost nobody else
// anything (faults.md, B-15).
func TestLeaveMany(t *testing.T) {
	c := realCluster(t)
	census := pgtest.NewCensus(t, c.Primary)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 2"})
	next := h.Client(t)
	bind := pgtest.Bind("", "", string(bytes.Repeat([]byte("x"), 50)))
	var clients []*pgtest.RawClient
	for i := range 50 {
		a := h.Client(t)
		if i%2 == 0 {
			a.Send(pgtest.Parse("", "SELECT $1::text"), bind[:i+1])
		} else {
			a.Send(pgtest.Parse("s", "SELECT 1"))
		}
		clients = append(clients, a)
	}
	for _, a := range clients {
		a.Reset()
	}
	if got, want := next.Query("SELECT 'next'"), "T D(next) C(SELECT 1) Z(I)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	eventually(t, 20*time.Second, "the end of the sessions", func() bool { return h.Server.Stats().Clients == 1 })
	census.AssertQuiet()
}

// terminate kills the session that serves c on the primary and waits for its
// end. pid is what pg_backend_pid gave.
func terminate(t *testing.T, c *pgtest.Cluster, pid uint32) {
	t.Helper()
	got, err := c.Primary.Value(t.Context(), "postgres", fmt.Sprintf("SELECT pg_terminate_backend(%d, 10000)", pid))
	if err != nil || got != "t" {
		t.Fatalf("pg_terminate_backend: %q, %v", got, err)
	}
}

// TestServerDies: the client hears of it once, and then its connection ends
// (faults.md, B-14).
func TestServerDies(t *testing.T) {
	c := realCluster(t)
	leaversTable(t, c)
	for name, v := range map[string]struct {
		enter func(a *pgtest.RawClient)
		sleep bool
	}{
		"simple":   {func(a *pgtest.RawClient) { a.Send(pgtest.Query("SELECT 'dies' FROM pg_sleep(3600)")) }, true},
		"extended": {func(a *pgtest.RawClient) { a.Send(pgtest.Extended("SELECT 'dies' FROM pg_sleep(3600)")) }, true},
		"pipeline": {func(a *pgtest.RawClient) {
			a.Send(pgtest.Extended("SELECT 'dies' FROM pg_sleep(3600)"), pgtest.Extended("SELECT 2"), pgtest.Extended("SELECT 3"))
		}, true},
		"in transaction":     {func(a *pgtest.RawClient) { a.Query("BEGIN"); a.Query(insertMark) }, false},
		"batch without Sync": {func(a *pgtest.RawClient) { a.Send(pgtest.Parse("", "SELECT 1"), pgtest.Flush()); a.Expect("1") }, false},
		"COPY IN":            {func(a *pgtest.RawClient) { a.Send(pgtest.Query("COPY leavers FROM STDIN")); a.Expect("G") }, false},
	} {
		for _, way := range []string{"FATAL", "FIN", "RST"} {
			if way == "FIN" && v.sleep && name != "simple" {
				continue // the relay takes two seconds for each of them
			}
			t.Run(name+"/"+way, func(t *testing.T) {
				relay := pgtest.NewRelay(t, c.Primary.Addr())
				h := newHarness(t, harnessOptions{Servers: []string{relay.Addr()}, Proxy: trust + "default_pool_size = 1", Untidy: "a server behind a cut relay goes on with its query"})
				a, other := h.Client(t), h.Client(t)
				v.enter(a)
				if v.sleep {
					waitSleeping(t, c, "dies")
				}
				want := wire.CodeConnectionFailure
				switch way {
				case "FATAL":
					want = wire.CodeAdminShutdown
					terminate(t, c, h.server(t).PID)
				case "FIN":
					relay.CloseAll()
				case "RST":
					relay.ResetAll()
				}
				errors := 0
				for _, m := range a.ExpectEOF() {
					if e := m.Err(); e != nil {
						errors++
						if e.Code != want || !e.Fatal() {
							t.Errorf("got %v, want %s", e, want)
						}
					} else if m.Type == wire.ReadyForQuery {
						t.Errorf("the client was told to go on")
					}
				}
				if errors != 1 {
					t.Errorf("%d errors, want 1", errors)
				}
				if got, want := other.Query("SELECT 'other'"), "T D(other) C(SELECT 1) Z(I)"; got != want {
					t.Errorf("the other client got %s, want %s", got, want)
				}
			})
		}
	}
}

// TestIdleServerDies: nobody notices (faults.md, B-35).
func TestIdleServerDies(t *testing.T) {
	c := realCluster(t)
	relay := pgtest.NewRelay(t, c.Primary.Addr())
	h := newHarness(t, harnessOptions{Servers: []string{relay.Addr()}, Proxy: trust + "default_pool_size = 1"})
	a, b := h.Client(t), h.Client(t)
	for i := range 30 {
		if got, want := a.Query("SELECT 'a'"), "T D(a) C(SELECT 1) Z(I)"; got != want {
			t.Fatalf("round %d: got %s, want %s", i, got, want)
		}
		h.waitState(t, a, "idle")
		switch i % 3 {
		case 0:
			terminate(t, c, h.server(t).PID)
		case 1:
			relay.CloseAll()
		case 2:
			relay.ResetAll()
		}
		eventually(t, 10*time.Second, "the end of the server connection", func() bool { return h.Pools.Stats()[0].Servers() == 0 })
		if got, want := b.Query("SELECT 'b'"), "T D(b) C(SELECT 1) Z(I)"; got != want {
			t.Fatalf("round %d: got %s, want %s", i, got, want)
		}
	}
}
