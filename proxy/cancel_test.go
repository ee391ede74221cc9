package proxy_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/pool"
	"pgproxy/proxy"
	"pgproxy/router"
	"pgproxy/wire"
)

// session returns what the proxy knows of a client.
func (h *harness) session(c *pgtest.RawClient) proxy.SessionInfo {
	for _, i := range h.Server.Sessions() {
		if i.PID == c.PID {
			return i
		}
	}
	return proxy.SessionInfo{}
}

// waitState waits until a client is active, idle or waiting.
func (h *harness) waitState(t testing.TB, c *pgtest.RawClient, state string) {
	t.Helper()
	eventually(t, 20*time.Second, "client "+state, func() bool { return h.session(c).State == state })
}

// server returns the one server connection of all pools.
func (h *harness) server(t testing.TB) pool.ServerInfo {
	t.Helper()
	list := h.Pools.Servers()
	if len(list) != 1 {
		t.Fatalf("%d server connections, want 1", len(list))
	}
	return list[0]
}

// waitSleeping waits until a statement with this text sleeps on the primary: a
// cancel that comes before a statement has begun is lost.
func waitSleeping(t testing.TB, c *pgtest.Cluster, text string) {
	t.Helper()
	sql := "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND pid <> pg_backend_pid() AND position(" +
		pgtest.QuoteLiteral(text) + " in query) > 0)"
	if err := c.Primary.WaitFor(t.Context(), "postgres", sql); err != nil {
		t.Fatal(err)
	}
}

func TestCancelHitsOneClient(t *testing.T) {
	c := realCluster(t)
	for name, batch := range map[string]func(sql string) []byte{
		"simple":   pgtest.Query,
		"extended": func(sql string) []byte { return pgtest.Extended(sql) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 3"})
			victim, other, block := h.Client(t), h.Client(t), h.Client(t)
			begin(block)
			victim.Send(batch("SELECT 'victim " + name + "' FROM pg_sleep(60)"))
			other.Send(batch("SELECT 'other " + name + "' FROM pg_sleep(0.5)"))
			waitSleeping(t, c, "victim "+name)
			victim.Cancel(h.Addr)
			got := pgtest.Trace(victim.ReadUntilReady())
			if !strings.HasSuffix(got, "E(57014) Z(I)") {
				t.Errorf("cancelled client got %s", got)
			}
			if got := pgtest.Trace(other.ReadUntilReady()); !strings.HasSuffix(got, "D(other "+name+") C(SELECT 1) Z(I)") {
				t.Errorf("the other client got %s", got)
			}
			if got, want := block.Query("COMMIT"), "C(COMMIT) Z(I)"; got != want {
				t.Errorf("client in a transaction got %s, want %s", got, want)
			}
			if got, want := victim.Query("SELECT 'alive'"), "T D(alive) C(SELECT 1) Z(I)"; got != want {
				t.Errorf("after the cancel got %s, want %s", got, want)
			}
		})
	}
}

func TestCancelInTransaction(t *testing.T) {
	c := realCluster(t)
	relay := pgtest.NewRelay(t, c.Primary.Addr())
	h := newHarness(t, harnessOptions{Servers: []string{relay.Addr()}, Proxy: "default_pool_size = 1"})
	a := h.Client(t)
	begin(a)
	// Nothing is under way: nothing is sent to the server, and the next statement
	// is not hit.
	before := relay.Accepted()
	a.Cancel(h.Addr)
	if n := relay.Accepted() - before; n != 0 {
		t.Errorf("a cancel between two statements opened %d connections to the server", n)
	}
	a.Send(pgtest.Query("SELECT 'in transaction' FROM pg_sleep(60)"))
	waitSleeping(t, c, "in transaction")
	a.Cancel(h.Addr)
	if got := pgtest.Trace(a.ReadUntilReady()); !strings.HasSuffix(got, "E(57014) Z(E)") {
		t.Errorf("got %s", got)
	}
	if got, want := a.Query("ROLLBACK"), "C(ROLLBACK) Z(I)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestCancelWaiting: a client in the queue hears 57014 at once, and no server of
// it (faults.md, B-24).
func TestCancelWaiting(t *testing.T) {
	c := realCluster(t)
	for name, batch := range map[string][]byte{"simple": pgtest.Query("SELECT 'mine'"), "extended": pgtest.Extended("SELECT 'mine'")} {
		t.Run(name, func(t *testing.T) {
			relay := pgtest.NewRelay(t, c.Primary.Addr())
			h := newHarness(t, harnessOptions{Servers: []string{relay.Addr()}, Proxy: "default_pool_size = 1"})
			holder, waiter, behind := h.Client(t), h.Client(t), h.Client(t)
			begin(holder)
			waiter.Send(batch)
			h.waitState(t, waiter, "waiting")
			behind.Send(pgtest.Query("SELECT 'behind'"))
			h.waitState(t, behind, "waiting")
			accepted := relay.Accepted()
			waiter.Cancel(h.Addr)
			waiter.Expect("E(57014) Z(I)")
			if n := relay.Accepted() - accepted; n != 0 {
				t.Errorf("%d cancel requests reached the server", n)
			}
			h.waitState(t, waiter, "idle")
			if got, want := holder.Query("SELECT 'still here'"), "T D(still here) C(SELECT 1) Z(T)"; got != want {
				t.Errorf("the holder got %s, want %s", got, want)
			}
			holder.Query("COMMIT")
			behind.Expect("T D(behind) C(SELECT 1) Z(I)")
			if got, want := waiter.Query("SELECT 'again'"), "T D(again) C(SELECT 1) Z(I)"; got != want {
				t.Errorf("after the cancel got %s, want %s", got, want)
			}
		})
	}
	t.Run("no server", func(t *testing.T) {
		h := newHarness(t, harnessOptions{Servers: addrs(c)[:1]})
		a := h.Client(t)
		h.Topo.Change(func(s []router.Server) { s[0].Up = false })
		a.Send(pgtest.Query("SELECT 1"))
		h.waitState(t, a, "waiting")
		a.Cancel(h.Addr)
		a.Expect("E(57014) Z(I)")
		h.Topo.Change(func(s []router.Server) { s[0].Up = true })
		if got, want := a.Query("SELECT 'up'"), "T D(up) C(SELECT 1) Z(I)"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// TestCancelStale: on a pool of one, cancels that come late hit nobody else
// (faults.md, B-20).
func TestCancelStale(t *testing.T) {
	c := realCluster(t)
	relay := pgtest.NewRelay(t, c.Primary.Addr())
	relay.Set(pgtest.ToServer, pgtest.Fault{Latency: 2 * time.Millisecond})
	h := newHarness(t, harnessOptions{Servers: []string{relay.Addr()}, Proxy: "default_pool_size = 1"})
	a, b := h.Client(t), h.Client(t)
	server := a.Query("SELECT pg_backend_pid()")
	r := rand.New(rand.NewPCG(1, 2))
	hits := 0
	for i := range 300 {
		var both sync.WaitGroup
		a.Send(pgtest.Query(fmt.Sprintf("SELECT 'a' FROM pg_sleep(%.4f)", 0.004*r.Float64())))
		delay := time.After(time.Duration(r.IntN(8)) * time.Millisecond)
		both.Go(func() {
			<-delay
			a.Cancel(h.Addr)
		})
		got := b.Query("SELECT 'b' FROM pg_sleep(0.002)")
		if want := "T D(b) C(SELECT 1) Z(I)"; got != want {
			t.Fatalf("round %d: the other client got %s, want %s", i, got, want)
		}
		if got := pgtest.Trace(a.ReadUntilReady()); strings.Contains(got, "57014") {
			hits++
		} else if want := "T D(a) C(SELECT 1) Z(I)"; got != want {
			t.Fatalf("round %d: the client got %s", i, got)
		}
		both.Wait()
	}
	if hits == 0 || hits == 300 {
		t.Errorf("%d of 300 cancels found their statement: the race was not run", hits)
	}
	if got := b.Query("SELECT pg_backend_pid()"); got != server {
		t.Errorf("the server connection was replaced: %s, before %s", got, server)
	}
	// A is idle now, B at work on what was A's server connection.
	for range 20 {
		b.Send(pgtest.Query("SELECT 'b' FROM pg_sleep(0.02)"))
		a.Cancel(h.Addr)
		b.Expect("T D(b) C(SELECT 1) Z(I)")
	}
}

// slowServer is a server whose answers and cancel connections wait for the test.
type slowServer struct {
	*pgtest.FakeServer
	answer chan struct{} // a value lets one statement with "slow" in it be answered
	hold   chan struct{} // closed: cancel connections are closed
	asked  chan string   // statements with "slow" in them, as they come
}

func newSlowServer(t testing.TB) *slowServer {
	s := &slowServer{answer: make(chan struct{}), hold: make(chan struct{}), asked: make(chan string, 100)}
	s.FakeServer = pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
		su, err := c.ReadStartup()
		if err != nil {
			return err
		}
		if su.Kind == wire.StartCancel {
			gone := make(chan struct{})
			go func() { defer close(gone); _ = c.Drain() }()
			select {
			case <-s.hold:
			case <-gone:
			}
			return nil
		}
		if err := c.Send(c.Welcome()); err != nil {
			return err
		}
		return c.Serve(func(sql string) (string, error) {
			if strings.Contains(sql, "slow") {
				s.asked <- sql
				<-s.answer
			}
			return sql, nil
		})
	})
	t.Cleanup(func() { close(s.answer) }) // before the server is closed
	return s
}

// answerOf is what a fake server says to a simple query.
func answerOf(sql string) string { return "T D(" + sql + ") C(SELECT 1) Z(I)" }

// TestCancelHoldsServer: a server connection is not lent before the server has
// closed the cancel connection (faults.md, B-21).
func TestCancelHoldsServer(t *testing.T) {
	s := newSlowServer(t)
	h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: "default_pool_size = 1"})
	a, b := h.Client(t), h.Client(t)
	a.Send(pgtest.Query("slow"))
	<-s.asked
	canceled := make(chan struct{})
	go func() { defer close(canceled); a.Cancel(h.Addr) }()
	cancel := s.WaitConns(2)[1]
	s.answer <- struct{}{} // it was too late for the cancel
	a.Expect(answerOf("slow"))
	b.Send(pgtest.Query("other"))
	b.ExpectSilence(200 * time.Millisecond)
	if got := h.server(t).State; got != "being_canceled" {
		t.Errorf("the server connection is %s", got)
	}
	if n := len(s.Conns()[0].Messages()); n != 1 {
		t.Errorf("%d messages reached the server, want 1", n)
	}
	close(s.hold)
	b.Expect(answerOf("other"))
	<-canceled
	want := append(wire.AppendSSLRequest(nil), pgtest.CancelRequest(s.Conns()[0].Key())...) // server_tls_sslmode is prefer
	if got := cancel.Received(); string(got) != string(want) {
		t.Errorf("the server got % x, want % x", got, want)
	}
	if n := len(s.Conns()); n != 2 {
		t.Errorf("%d connections, want 2: the server connection was to be used again", n)
	}
}

// TestCancelWaitTimeout: where the server does not close the cancel connection,
// its connection is never lent again.
func TestCancelWaitTimeout(t *testing.T) {
	for _, when := range []string{"answer first", "timeout first"} {
		t.Run(when, func(t *testing.T) {
			s := newSlowServer(t)
			h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: "default_pool_size = 1\ncancel_wait_timeout = \"300ms\""})
			a, b := h.Client(t), h.Client(t)
			a.Send(pgtest.Query("slow"))
			<-s.asked
			canceled := make(chan struct{})
			go func() { defer close(canceled); a.Cancel(h.Addr) }()
			s.WaitConns(2)
			if when == "timeout first" {
				<-canceled
			}
			s.answer <- struct{}{}
			a.Expect(answerOf("slow"))
			if got, want := b.Query("other"), answerOf("other"); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			<-canceled
			<-s.Conns()[0].Done()
			if n := len(s.WaitConns(3)); n != 3 {
				t.Errorf("%d connections, want 3", n)
			}
		})
	}
}

// TestCancelLeaksNothing: servers that never take a cancel cost nothing for long
// and nobody else's place (faults.md, B-22 and S-22).
func TestCancelLeaksNothing(t *testing.T) {
	s := newSlowServer(t)
	h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: "max_client_conn = 6\ncancel_wait_timeout = \"400ms\""})
	var clients []*pgtest.RawClient
	for range 4 {
		clients = append(clients, h.Client(t))
	}
	clients[0].Query("warm")
	h.Pools.Reconnect("") // no server connection, here and at the end
	eventually(t, 10*time.Second, "the end of the server connection", func() bool { return h.Pools.Stats()[0].Servers() == 0 })
	<-s.Conns()[0].Done()
	census := pgtest.NewCensus(t)
	for range 3 {
		for _, c := range clients {
			c.Send(pgtest.Query("slow"))
			<-s.asked
		}
		var all sync.WaitGroup
		before := len(s.Conns())
		for _, c := range clients {
			for range 8 {
				all.Go(func() { c.Cancel(h.Addr) })
			}
		}
		s.WaitConns(before + len(clients)) // of several for one client only one is under way
		// Cancel requests are no clients, once they are known to be such.
		eventually(t, 10*time.Second, "the cancel requests", func() bool { return h.Server.Stats().Clients == len(clients) })
		late := h.Client(t)
		if got, want := late.Query("late"), answerOf("late"); got != want {
			t.Errorf("meanwhile got %s, want %s", got, want)
		}
		late.Terminate()
		all.Wait()
		for range clients {
			s.answer <- struct{}{}
		}
		for _, c := range clients {
			c.Expect(answerOf("slow"))
			if got, want := c.Query("after"), answerOf("after"); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
	}
	h.Pools.Reconnect("")
	census.AssertBaseline()
}

func TestCancelRefusedByServer(t *testing.T) {
	s := newSlowServer(t)
	relay := pgtest.NewRelay(t, s.Addr())
	h := newHarness(t, harnessOptions{Servers: []string{relay.Addr()}, Proxy: "default_pool_size = 1"})
	a := h.Client(t)
	a.Send(pgtest.Query("slow"))
	<-s.asked
	relay.Refuse()
	a.Cancel(h.Addr)
	s.answer <- struct{}{}
	a.Expect(answerOf("slow"))
	if got, want := a.Query("next"), answerOf("next"); got != want { // on the same connection: no other can be had
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestCancelSparesInjected: what the proxy sends in front of a client's statement
// is not cancelled, the statement is (faults.md, B-25).
func TestCancelSparesInjected(t *testing.T) {
	release := make(chan struct{})
	asked := make(chan string, 10)
	s := pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
		su, err := c.ReadStartup()
		if err != nil || su.Kind == wire.StartCancel {
			return err
		}
		if err := c.Send(c.Welcome()); err != nil {
			return err
		}
		return c.Serve(func(sql string) (string, error) {
			if strings.Contains(sql, "set_config") || sql == "statement" {
				asked <- sql
				<-release
			}
			return sql, nil
		})
	})
	t.Cleanup(func() { close(release) }) // before the server is closed
	h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: "default_pool_size = 1"})
	a := h.Client(t, "application_name", "a")
	a.Send(pgtest.Query("statement"))
	if got := <-asked; !strings.Contains(got, "set_config") {
		t.Fatalf("the server got %q first", got)
	}
	canceled := make(chan struct{})
	go func() { defer close(canceled); a.Cancel(h.Addr) }()
	a.ExpectSilence(150 * time.Millisecond)
	if n := len(s.Conns()); n != 1 {
		t.Error("the setting was cancelled")
	}
	release <- struct{}{}
	if got := <-asked; got != "statement" {
		t.Fatalf("the server got %q", got)
	}
	s.WaitConns(2)
	<-canceled
	release <- struct{}{}
	a.Expect(answerOf("statement"))
}

func TestCancelKeys(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 2"})
	for _, v := range []struct {
		protocol uint32
		secret   int
	}{{wire.Protocol30, 4}, {wire.Protocol32, 32}} {
		a := pgtest.DialRaw(t, h.Addr)
		a.Send(pgtest.StartupMessage(v.protocol, "user", testUser, "database", "app"))
		if e := a.Authenticate(testUser, testPassword); e != nil {
			t.Fatal(e)
		}
		if len(a.Secret) != v.secret {
			t.Errorf("protocol %#x: a secret of %d bytes, want %d", v.protocol, len(a.Secret), v.secret)
		}
		tag := fmt.Sprintf("protocol %x", v.protocol)
		a.Send(pgtest.Query("SELECT '" + tag + "' FROM pg_sleep(60)"))
		waitSleeping(t, c, tag)
		badCancels(t, h, a)
		a.ExpectSilence(50 * time.Millisecond)
		a.Cancel(h.Addr)
		if got := pgtest.Trace(a.ReadUntilReady()); !strings.HasSuffix(got, "E(57014) Z(I)") {
			t.Errorf("%s: got %s", tag, got)
		}
		// The key dies with the session.
		pid, secret := a.PID, a.Secret
		a.Terminate()
		eventually(t, 10*time.Second, "the end of the session", func() bool { return h.session(a).PID == 0 })
		unknown := strings.Count(h.Log.Text(), "unknown key")
		sendCancel(t, h, pgtest.CancelRequest(pid, secret))
		if n := strings.Count(h.Log.Text(), "unknown key"); n != unknown+1 {
			t.Error("the key of a session that has ended was taken")
		}
	}
}

// sendCancel sends a first packet and waits for the end of the connection, which
// must come without an answer.
func sendCancel(t *testing.T, h *harness, packet []byte) {
	t.Helper()
	x := pgtest.DialRaw(t, h.Addr)
	defer x.Close()
	x.Send(packet)
	if msgs := x.ExpectEOF(); len(msgs) > 0 {
		t.Errorf("cancel request % x was answered: %s", packet, pgtest.Trace(msgs))
	}
}

// badCancels sends cancel requests that are not a's.
func badCancels(t *testing.T, h *harness, a *pgtest.RawClient) {
	t.Helper()
	wrong := append([]byte(nil), a.Secret...)
	wrong[0] ^= 1
	for _, secret := range [][]byte{
		wrong, a.Secret[:4:4], append(a.Secret[:len(a.Secret):len(a.Secret)], 0), make([]byte, 4), make([]byte, 32), make([]byte, 256),
	} {
		if string(secret) != string(a.Secret) {
			sendCancel(t, h, pgtest.CancelRequest(a.PID, secret))
		}
	}
	sendCancel(t, h, pgtest.CancelRequest(a.PID+1, a.Secret))
	sendCancel(t, h, pgtest.CancelRequest(0, a.Secret))
	for _, size := range []int{8, 9, 12, 13, 15, 16 + 253, 300} { // malformed: secrets have 4 to 256 bytes
		p := append(pgtest.CancelRequest(a.PID, a.Secret), make([]byte, 300)...)[:size]
		binary.BigEndian.PutUint32(p, uint32(size))
		x := pgtest.DialRaw(t, h.Addr)
		x.Send(p)
		x.ExpectEOF()
		x.Close()
	}
}
