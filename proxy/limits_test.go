package proxy_test

import (
	"testing"
	"time"

	"pgproxy/pgtest"
)

// TestTransactionTimeout: a transaction that is open for too long ends, busy or
// not, and its client; a user's own timeouts come before those of all.
func TestTransactionTimeout(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{
		Servers: addrs(c)[:1], Proxy: trust + "transaction_timeout = \"1s\"\nidle_transaction_timeout = \"1h\"\n",
		More: "[users.bob]\ntransaction_timeout = \"1h\"\nidle_transaction_timeout = \"1s\"\nclient_idle_timeout = \"1s\"\n",
	})
	bob := func() *pgtest.RawClient {
		x := pgtest.DialRaw(t, h.Addr)
		x.Login(otherUser, otherSecret, "database", "app")
		return x
	}
	idle, busy, none := h.Client(t), h.Client(t), h.Client(t)
	bobInside, bobIdle := bob(), bob()
	for _, x := range []*pgtest.RawClient{idle, busy, bobInside} {
		begin(x)
	}
	busy.Send(pgtest.Query("SELECT pg_sleep(60)"))
	for _, tt := range []struct {
		name string
		c    *pgtest.RawClient
		want string
	}{
		{"an idle transaction", idle, "transaction timeout"},
		{"a busy transaction", busy, "transaction timeout"},
		{"the transaction of a user with limits of its own", bobInside, "idle transaction timeout"},
		{"the idle user", bobIdle, "client_idle_timeout"},
	} {
		msgs := tt.c.ExpectEOF()
		if len(msgs) == 0 {
			t.Errorf("%s: no answer", tt.name)
			continue
		}
		if e := msgs[len(msgs)-1].Err(); e == nil || e.Code != "08P01" || e.Message != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, pgtest.Trace(msgs), tt.want)
		}
	}
	same(t, none, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
}

// TestClientIdleInSessionMode: a client that keeps its server connection is idle
// all the same.
func TestClientIdleInSessionMode(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "pool_mode = \"session\"\nclient_idle_timeout = \"1s\"\n"})
	a, inside := h.Client(t), h.Client(t)
	begin(inside)
	same(t, a, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
	if e := refusal(t, a); code(e) != "08P01" || e.Message != "client_idle_timeout" {
		t.Errorf("got %v", e)
	}
	same(t, inside, "SELECT 1", "T D(1) C(SELECT 1) Z(T)")
}

// TestQueryWaitNotify: a client that waits for long is told once, and is served
// when its turn comes; query_timeout and query_wait_timeout end the wait.
func TestQueryWaitNotify(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{
		Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1\nquery_wait_notify = \"1s\"\n",
	})
	holder, waiter := h.Client(t), h.Client(t)
	begin(holder)
	waiter.Send(pgtest.Query("SELECT 2"))
	m := waiter.Read()
	if m.Type != 'N' || m.Err().Message != "No server connection available in postgres backend, client being queued" {
		t.Fatalf("got %s", m)
	}
	holder.Query("COMMIT")
	waiter.Expect("T D(2) C(SELECT 1) Z(I)")
	// Another wait is another notice.
	begin(holder)
	waiter.Send(pgtest.Query("SELECT 3"))
	if m := waiter.Read(); m.Type != 'N' {
		t.Fatalf("got %s", m)
	}
	holder.Query("COMMIT")
	waiter.Expect("T D(3) C(SELECT 1) Z(I)")
}

func TestQueryWaitTimeouts(t *testing.T) {
	c := realCluster(t)
	for line, want := range map[string]string{"query_timeout": "query_timeout", "query_wait_timeout": "query_wait_timeout"} {
		t.Run(line, func(t *testing.T) {
			h := newHarness(t, harnessOptions{
				Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1\nquery_wait_notify = 0\n" + line + " = \"1s\"\n",
			})
			holder, waiter := h.Client(t), h.Client(t)
			begin(holder)
			waiter.Send(pgtest.Query("SELECT 2"))
			if e := refusal(t, waiter); code(e) != "08P01" || e.Message != want {
				t.Errorf("got %v", e)
			}
			same(t, holder, "SELECT 1", "T D(1) C(SELECT 1) Z(T)")
		})
	}
}

// TestLoginTimeoutIsTold: with PgBouncer's text.
func TestLoginTimeoutIsTold(t *testing.T) {
	h := newHarness(t, harnessOptions{Servers: []string{untouched(t).Addr()}, Proxy: "client_login_timeout = \"300ms\""})
	a := pgtest.DialRaw(t, h.Addr)
	a.Startup("user", testUser, "database", "app")
	msgs := a.ExpectEOF()
	if e := msgs[len(msgs)-1].Err(); e == nil || e.Code != "08P01" || e.Message != "client_login_timeout" {
		t.Errorf("got %s", pgtest.Trace(msgs))
	}
}

// TestClientCaps: a database and a user may have so many clients, whose places
// are free again when they leave.
func TestClientCaps(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{
		Servers: addrs(c)[:1], Proxy: trust + "max_user_client_connections = 2\n", Database: "max_db_client_connections = 3\n",
		More: "[users.bob]\nmax_user_client_connections = 9\n",
	})
	try := func(user string) (*pgtest.RawClient, string) {
		x := pgtest.DialRaw(t, h.Addr)
		if e := x.TryLogin(user, "", "database", "app"); e != nil {
			return nil, e.Code + " " + e.Message
		}
		return x, ""
	}
	a, _ := try(testUser)
	if _, e := try(testUser); e != "" {
		t.Fatal(e)
	}
	if _, e := try(testUser); e != "53300 client connections exceeded (max_user_client_connections)" {
		t.Errorf("a third client of a user: %s", e)
	}
	if _, e := try(otherUser); e != "" {
		t.Errorf("another user: %s", e)
	}
	if _, e := try(otherUser); e != "53300 client connections exceeded (max_db_client_connections)" {
		t.Errorf("a fourth client of the database: %s", e)
	}
	a.Close()
	eventually(t, 10*time.Second, "a place that is free again", func() bool {
		_, e := try(otherUser)
		return e == ""
	})
}

// TestLoginTimeoutWithoutServer: the login ends as well while it waits for a
// server that does not answer.
func TestLoginTimeoutWithoutServer(t *testing.T) {
	s := pgtest.NewFakeServer(t, (*pgtest.FakeConn).Drain)
	h := newHarness(t, harnessOptions{
		Servers: []string{s.Addr()}, Proxy: trust + "client_login_timeout = \"1s\"\nserver_connect_timeout = \"1m\"\n",
	})
	a := pgtest.DialRaw(t, h.Addr)
	a.Startup("user", testUser, "database", "app")
	msgs := a.ExpectEOF()
	if e := msgs[len(msgs)-1].Err(); e == nil || e.Code != "08P01" || e.Message != "client_login_timeout (server down)" {
		t.Errorf("got %s", pgtest.Trace(msgs))
	}
}
