package proxy_test

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgproxy/backend"
	"pgproxy/pgtest"
	"pgproxy/proxy"
	"pgproxy/router"
	"pgproxy/wire"
)

// heard reads up to the next ReadyForQuery. Of a notification it shows whether its
// process is the client itself.
func heard(c *pgtest.RawClient) string {
	var out []string
	for {
		m := c.Read()
		if m.Type == wire.ParameterStatus {
			continue
		}
		s := m.String()
		if m.Type == wire.NotificationResponse && binary.BigEndian.Uint32(m.Body) == c.PID {
			s += "own"
		}
		out = append(out, s)
		if m.Type == wire.ReadyForQuery {
			return strings.Join(out, " ")
		}
	}
}

// move is what one client of a script sends, or waits for.
type move struct {
	who  int
	send []byte // nil: only what is heard counts
	hear string // what comes while the client is idle
	late string // what may come after the answer, or be in it
}

func says(who int, sql string) move { return move{who: who, send: pgtest.Query(sql)} }

func sends(who int, parts ...[]byte) move {
	return move{who: who, send: pgtest.Join(append(parts, pgtest.Sync())...)}
}

func hears(who int, trace string) move { return move{who: who, hear: trace} }

// listenScripts are what PostgreSQL itself is asked about: each runs directly and
// through the proxy, over one server connection.
var listenScripts = map[string][]move{
	"self": {says(0, "LISTEN a"), says(0, "NOTIFY a, 'one'"), says(0, "SELECT pg_notify('a', 'two')"), says(0, "SELECT 1")},
	"other": {
		says(0, "LISTEN a"), says(1, "NOTIFY a, 'one'"), hears(0, "A(a,one)"), says(1, "NOTIFY b, 'no'"), says(1, "NOTIFY a, 'two'"),
		hears(0, "A(a,two)"), says(0, "SELECT 1"), says(1, "SELECT 1"),
	},
	"both": {
		says(0, "LISTEN a"), says(1, "LISTEN a"), says(1, "NOTIFY a, 'one'"), hears(0, "A(a,one)"), says(0, "NOTIFY a, 'two'"),
		hears(1, "A(a,two)"), says(1, "UNLISTEN a"), says(0, "NOTIFY a, 'three'"), says(1, "NOTIFY a, 'four'"), hears(0, "A(a,four)"),
		says(1, "SELECT 1"),
	},
	"several": {
		says(0, "LISTEN a; LISTEN b; LISTEN c"), says(0, "NOTIFY b, '1'; NOTIFY a, '2'; NOTIFY b, '3'; NOTIFY b, '3'"),
		says(0, "UNLISTEN b"), says(0, "NOTIFY b; NOTIFY c, 'c'"), says(0, "UNLISTEN *"), says(0, "NOTIFY a; NOTIFY c"),
	},
	"unlisten and listen in one": {
		says(0, "LISTEN a"), says(0, "UNLISTEN *; LISTEN b"), says(0, "NOTIFY a; NOTIFY b"), says(0, "LISTEN a; UNLISTEN a; LISTEN a"),
		says(0, "NOTIFY a; NOTIFY b"), says(0, "LISTEN c; UNLISTEN c"), says(0, "NOTIFY c"), says(0, "UNLISTEN b; NOTIFY b"), says(0, "NOTIFY b, 'x'"),
	},
	"names": {
		says(0, `LISTEN "Odd Name"; LISTEN Folded; LISTEN "q""uote"`), says(0, `NOTIFY "Odd Name"; NOTIFY "odd name"; NOTIFY folded; NOTIFY "q""uote"`),
		says(0, "SET client_min_messages = warning"), says(0, "LISTEN "+strings.Repeat("n", 80)), says(0, "SELECT pg_notify('"+strings.Repeat("n", 63)+"', 'long')"),
		says(0, `UNLISTEN FOLDED`), says(0, `NOTIFY FOLDED`), says(0, `LISTEN "été"`), says(0, `NOTIFY "été", 'à'`),
	},
	"in a transaction": {
		says(0, "BEGIN"), says(0, "LISTEN a"), says(0, "NOTIFY a, 'inside'"),
		{who: 0, send: pgtest.Query("COMMIT"), late: "A(a,inside)"},
		says(1, "NOTIFY a, 'later'"), hears(0, "A(a,later)"),
		says(0, "BEGIN"), says(0, "UNLISTEN a"), says(0, "NOTIFY a, 'not yet'"), says(0, "COMMIT"), says(0, "NOTIFY a, 'gone'"),
	},
	"rolled back": {
		says(0, "BEGIN"), says(0, "LISTEN a"), says(0, "ROLLBACK"), says(0, "NOTIFY a, 'no'"),
		says(0, "LISTEN a"), says(0, "BEGIN"), says(0, "UNLISTEN *"), says(0, "LISTEN b"), says(0, "ROLLBACK"), says(0, "NOTIFY a, 'yes'; NOTIFY b"),
		says(0, "BEGIN"), says(0, "LISTEN b"), says(0, "SELECT 1/0"), says(0, "LISTEN b"), says(0, "COMMIT"), says(0, "NOTIFY b"),
	},
	"savepoints": {
		says(0, "BEGIN"), says(0, "LISTEN a"), says(0, "SAVEPOINT s"), says(0, "LISTEN b"), says(0, "ROLLBACK TO s"), says(0, "LISTEN c"), says(0, "RELEASE s"),
		says(0, "SAVEPOINT t"), says(0, "UNLISTEN a"), says(0, "ROLLBACK TO t"), says(0, "COMMIT"), says(0, "NOTIFY a; NOTIFY b; NOTIFY c"),
		says(0, "BEGIN; SAVEPOINT s"), says(0, "LISTEN d"), says(0, "ROLLBACK TO s; LISTEN e"), says(0, "SELECT 1"),
	},
	"several strings": {
		says(0, "BEGIN"), says(0, "LISTEN a"), says(0, "COMMIT; BEGIN"), says(0, "LISTEN b"), says(0, "ROLLBACK; SELECT 1"), says(0, "NOTIFY a; NOTIFY b"),
		says(0, "BEGIN"), says(0, "LISTEN b"), says(0, "COMMIT AND CHAIN"), says(0, "LISTEN c"), says(0, "ROLLBACK"), says(0, "NOTIFY b; NOTIFY c"),
	},
	"before the isolation level": {
		says(0, "BEGIN"), says(0, "LISTEN a"), says(0, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"), says(0, "SELECT 1"), says(0, "COMMIT"), says(0, "NOTIFY a"),
	},
	"read only": {says(0, "BEGIN READ ONLY"), says(0, "LISTEN a"), says(0, "COMMIT"), says(0, "NOTIFY a")},
	"discard": {
		says(0, "LISTEN a"), says(0, "DISCARD ALL"), says(0, "NOTIFY a"), says(0, "LISTEN a"), sends(0, execute("DISCARD ALL")), says(0, "NOTIFY a"),
	},
	"extended": {
		sends(0, execute("LISTEN a")), sends(0, execute("NOTIFY a, 'x'")), sends(0, execute("SELECT pg_notify('a', 'y')")), sends(0, execute("UNLISTEN a")),
		sends(0, execute("NOTIFY a")),
	},
	"described": {
		sends(0, pgtest.Parse("s", "LISTEN a"), pgtest.Describe('S', "s"), pgtest.Bind("p", "s"), pgtest.Describe('P', "p"), pgtest.Execute("p", 0)),
		says(0, "NOTIFY a"), sends(0, execute("UNLISTEN *")), says(0, "NOTIFY a"), sends(0, pgtest.Bind("", "s"), pgtest.Execute("", 0)), says(0, "NOTIFY a"),
	},
	"pipeline": {
		{
			who: 0, late: "A(a,1)",
			send: pgtest.Join(execute("BEGIN"), execute("LISTEN a"), execute("NOTIFY a, '1'"), execute("COMMIT"), pgtest.Sync()),
		},
		sends(0, execute("LISTEN b"), execute("SELECT 1/0"), execute("LISTEN c")), says(0, "NOTIFY b; NOTIFY c"),
		sends(0, execute("BEGIN"), execute("LISTEN b")), sends(0, execute("SELECT 'x'")), sends(0, execute("ROLLBACK")), says(0, "NOTIFY b"),
		sends(0, execute("LISTEN b"), execute("SELECT 'x'"), execute("LISTEN c")), says(0, "NOTIFY b; NOTIFY c"),
	},
	"mixed strings": {
		says(0, "BEGIN; LISTEN a; SELECT 1; COMMIT"), says(0, "NOTIFY a, '1'; SELECT 'x'; UNLISTEN a; LISTEN b"), says(0, "NOTIFY a; NOTIFY b, '2'"),
		says(0, "SELECT 1; LISTEN c; SELECT 1/0; LISTEN d"), says(0, "NOTIFY c"), says(0, "LISTEN c; CREATE TEMP TABLE mine (i int)"), says(0, "SELECT * FROM mine"),
		says(0, "NOTIFY c, '3'"), says(0, "BEGIN; LISTEN d; ROLLBACK; LISTEN e"), says(0, "NOTIFY d; NOTIFY e"), says(0, "/* x */ LISTEN f /* y */ ; -- z\nSELECT 2"), says(0, "NOTIFY f"),
	},
	"flush": {
		{who: 0, send: pgtest.Join(execute("LISTEN a"), pgtest.Flush(), pgtest.Sync())}, says(0, "NOTIFY a"),
	},
	"copy in a transaction that listens": {
		says(0, "BEGIN"), says(0, "LISTEN a"), says(0, "CREATE TEMP TABLE t (x text) ON COMMIT DROP"),
		{who: 0, send: pgtest.Join(pgtest.Query("COPY t FROM STDIN"), pgtest.CopyData("x\n"), pgtest.CopyDone())},
		says(0, "COMMIT"), says(0, "NOTIFY a"),
	},
	"silent inside a transaction": {
		says(0, "LISTEN a"), says(0, "BEGIN"), says(0, "SELECT 1"), says(0, "SELECT 2"), says(0, "COMMIT"),
	},
	"errors": {says(0, "LISTEN"), says(0, "LISTEN a b"), says(0, "UNLISTEN"), says(0, "LISTEN a"), says(0, "NOTIFY a; SELECT 1/0"), says(0, "NOTIFY a, 'z'")},
}

// runListen runs a script with two clients and returns what each step hears.
func runListen(t *testing.T, addr string, login []string, script []move) []string {
	t.Helper()
	var clients [2]*pgtest.RawClient
	for i := range clients {
		clients[i] = pgtest.DialRaw(t, addr)
		clients[i].Login(testUser, testPassword, login...)
	}
	defer func() {
		for _, c := range clients {
			c.Terminate()
		}
	}()
	var out []string
	for _, s := range script {
		c := clients[s.who]
		if s.send == nil {
			c.Expect(s.hear)
			out = append(out, s.hear)
			continue
		}
		c.Send(s.send)
		got := heard(c)
		if s.late != "" {
			if short := strings.Replace(got, " "+s.late+"own", "", 1); short != got {
				got = short
			} else {
				c.Expect(s.late)
			}
		}
		out = append(out, got)
	}
	return out
}

// TestListenOracle: what a client that listens sees is what PostgreSQL shows it.
func TestListenOracle(t *testing.T) {
	c := realCluster(t)
	for name, script := range listenScripts {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
			want := runListen(t, c.Primary.Addr(), []string{"database", "postgres"}, script)
			got := runListen(t, h.Addr, []string{"database", "app"}, script)
			for i := range want {
				if got[i] != want[i] {
					t.Errorf("step %d, %q:\n got %s\nwant %s", i, script[i].send, got[i], want[i])
				}
			}
			if t.Failed() {
				t.Log(h.Log.Text())
			}
		})
	}
}

// TestListenIsShared: any number of clients listen over one server connection, and
// the pool stays free for others.
func TestListenIsShared(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	const n = 50
	var clients []*pgtest.RawClient
	for i := range n {
		a := h.Client(t)
		same(t, a, fmt.Sprintf("LISTEN mine_%d; LISTEN everybody", i), "C(LISTEN) C(LISTEN) Z(I)")
		clients = append(clients, a)
	}
	b := h.Client(t)
	for round := range 20 {
		for i := range n {
			same(t, b, fmt.Sprintf("NOTIFY mine_%d, '%d'", i, round), "C(NOTIFY) Z(I)")
		}
		same(t, b, fmt.Sprintf("NOTIFY everybody, '%d'", round), "C(NOTIFY) Z(I)")
	}
	for i, a := range clients {
		for round := range 20 {
			a.Expect(fmt.Sprintf("A(mine_%d,%d) A(everybody,%d)", i, round, round))
		}
		same(t, a, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
	}
	st := h.listener(t)
	if st.Clients != n || st.Channels != n+1 || st.Notifications != 20*(n+1) || st.Delivered != 40*n {
		t.Errorf("listener: %+v", st)
	}
	if n := len(h.Pools.Servers()); n != 2 {
		t.Errorf("%d server connections, want one that is lent and one that listens", n)
	}
	for _, a := range clients {
		a.Terminate()
	}
	eventually(t, 10*time.Second, "the end of all channels", func() bool { return h.listener(t).Channels == 0 })
}

// listener returns what the only listener does.
func (h *harness) listener(t testing.TB) proxy.ListenerStats {
	t.Helper()
	list := h.Server.Listeners()
	if len(list) != 1 {
		t.Fatalf("%d listeners: %+v", len(list), list)
	}
	return list[0]
}

// TestListenKeepsApart: the same channel in two databases, and for two roles.
func TestListenKeepsApart(t *testing.T) {
	c := realCluster(t)
	if err := c.Exec(t.Context(), "CREATE DATABASE elsewhere"); err != nil {
		t.Fatal(err)
	}
	more := fmt.Sprintf("[databases.other]\ndbname = \"elsewhere\"\nservers = [{ host = %q, port = %d, role = \"primary\" }]\n", c.Primary.Host, c.Primary.Port)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust, More: more})
	login := func(user, password, database string) *pgtest.RawClient {
		a := pgtest.DialRaw(t, h.Addr)
		a.Login(user, password, "database", database)
		return a
	}
	app, bob, other := login(testUser, testPassword, "app"), login(otherUser, otherSecret, "app"), login(testUser, testPassword, "other")
	for _, a := range []*pgtest.RawClient{app, bob, other} {
		same(t, a, "LISTEN a", "C(LISTEN) Z(I)")
	}
	if n := len(h.Server.Listeners()); n != 3 {
		t.Errorf("%d listeners, want 3", n)
	}
	same(t, bob, "NOTIFY a, 'from bob'", "C(NOTIFY) A(a,from bob) Z(I)")
	app.Expect("A(a,from bob)")
	same(t, other, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
	same(t, other, "NOTIFY a, 'elsewhere'", "C(NOTIFY) A(a,elsewhere) Z(I)")
	same(t, app, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
}

// TestListenOwnPID: a client's own notifications have its process id, those of
// others never, however often they change places on one server connection.
func TestListenOwnPID(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	a, b := h.Client(t), h.Client(t)
	same(t, a, "LISTEN a", "C(LISTEN) Z(I)")
	done := make(chan struct{})
	const n = 300
	go func() {
		defer close(done)
		for range n {
			b.Query("NOTIFY a, 'b'")
		}
	}()
	own, foreign := 0, 0
	count := func(m pgtest.Msg) {
		if m.Type != wire.NotificationResponse {
			return
		}
		mine := binary.BigEndian.Uint32(m.Body) == a.PID
		switch payload := string(m.Body[6 : len(m.Body)-1]); {
		case payload == "a" && mine:
			own++
		case payload == "b" && !mine:
			foreign++
		default:
			t.Errorf("payload %q with own process id: %v", payload, mine)
		}
	}
	for range n {
		a.Send(pgtest.Query("NOTIFY a, 'a'"))
		before := own
		for _, m := range a.ReadUntilReady() {
			count(m)
		}
		if own != before+1 {
			t.Fatal("its own notification had not come with the answer")
		}
	}
	<-done
	for foreign < n {
		count(a.Read())
	}
}

// TestListenNotInsideAnswers: notifications stand between messages, and outside of
// transactions, whatever is relayed at the moment.
func TestListenNotInsideAnswers(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 2"})
	a, b := h.Client(t), h.Client(t)
	same(t, a, "LISTEN a", "C(LISTEN) Z(I)")
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				done <- n
				return
			default:
				b.Query(fmt.Sprintf("NOTIFY a, '%d'", n))
			}
		}
	}()
	next, inside := 0, false
	take := func(m pgtest.Msg) {
		switch m.Type {
		case wire.NotificationResponse:
			if want := fmt.Sprintf("A(a,%d)", next); m.String() != want || inside {
				t.Errorf("%s, want %s; inside of a transaction: %v", m, want, inside)
			}
			next++
		case wire.ReadyForQuery:
			inside = m.Body[0] != 'I'
		}
	}
	for i := range 60 {
		if i%3 == 0 {
			a.Send(pgtest.Query("BEGIN"))
		} else {
			a.Send(pgtest.Query("SELECT repeat('x', 100000) FROM generate_series(1, 30)"))
		}
		for {
			m := a.Read()
			take(m)
			if m.Type == wire.DataRow && len(m.Body) != 100006 {
				t.Fatalf("a row of %d bytes", len(m.Body))
			}
			if m.Type == wire.ReadyForQuery {
				break
			}
		}
		if i%3 == 1 {
			a.Send(pgtest.Query("COMMIT"))
			for _, m := range a.ReadUntilReady() {
				if m.Type == wire.ReadyForQuery {
					break
				}
				inside = false
				take(m)
			}
		}
	}
	close(stop)
	n := <-done
	for next < n {
		inside = false
		take(a.Read())
	}
}

// TestListenMissesNothing: what is committed after the answer to LISTEN, or to the
// COMMIT behind it, arrives.
func TestListenMissesNothing(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 2"})
	a, b := h.Client(t), h.Client(t)
	for i := range 50 {
		name := fmt.Sprintf("c%d", i)
		if i%2 == 0 {
			same(t, a, "LISTEN "+name, "C(LISTEN) Z(I)")
		} else {
			begin(a)
			same(t, a, "LISTEN "+name, "C(LISTEN) Z(T)")
			b.Query("NOTIFY " + name + ", 'before'")
			same(t, a, "COMMIT", "C(COMMIT) Z(I)")
		}
		b.Query("NOTIFY " + name + ", 'x'")
		a.Expect("A(" + name + ",x)")
		same(t, a, "UNLISTEN "+name, "C(UNLISTEN) Z(I)")
	}
}

// TestListenerIsLost: a new connection listens to everything, and the clients are
// told.
func TestListenerIsLost(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	a, b, other := h.Client(t), h.Client(t), h.Client(t)
	same(t, a, `LISTEN one; LISTEN "Two"`, "C(LISTEN) C(LISTEN) Z(I)")
	same(t, b, "LISTEN one", "C(LISTEN) Z(I)")
	for range 2 {
		if _, err := c.Primary.Value(t.Context(), "postgres", fmt.Sprintf("SELECT pg_terminate_backend(%d)", h.listener(t).PID)); err != nil {
			t.Fatal(err)
		}
		for _, x := range []*pgtest.RawClient{a, b} {
			if m := x.Read(); m.Type != wire.NoticeResponse || wire.ReadError(m.Body).Message != "notifications may have been lost" {
				t.Fatalf("got %s", m)
			}
		}
		same(t, other, `NOTIFY one, 'x'; NOTIFY "Two", 'y'`, "C(NOTIFY) C(NOTIFY) Z(I)")
		a.Expect("A(one,x) A(Two,y)")
		b.Expect("A(one,x)")
	}
	if st := h.listener(t); st.Reconnects != 2 {
		t.Errorf("%d reconnects", st.Reconnects)
	}
}

// TestListenerFollowsThePrimary: where another server is the primary, that one is
// listened to.
func TestListenerFollowsThePrimary(t *testing.T) {
	first, second := realCluster(t), pgtest.Start(t, pgtest.Options{})
	if err := second.CreateRole(t.Context(), testUser, testPassword, ""); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, harnessOptions{Servers: []string{first.Primary.Addr(), second.Primary.Addr()}, Proxy: trust})
	a := h.Client(t)
	same(t, a, "LISTEN one", "C(LISTEN) Z(I)")
	h.Topo.Change(func(servers []router.Server) { servers[0].Up = false; servers[1].Role = router.RolePrimary })
	if m := a.Read(); m.Type != wire.NoticeResponse {
		t.Fatalf("got %s", m)
	}
	if got := h.listener(t).Server; got != second.Primary.Addr() {
		t.Errorf("listens on %s", got)
	}
	same(t, a, "NOTIFY one", "C(NOTIFY) A(one,) Z(I)")
}

// TestListenWaits: LISTEN answers when it has been registered, not before; a
// cancel request ends the wait.
func TestListenWaits(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "query_wait_timeout = 1"})
	a := h.Client(t)
	if err := h.Pools.Pause(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	a.Send(pgtest.Query("LISTEN one"))
	h.waitState(t, a, "waiting")
	a.Cancel(h.Addr)
	if got := pgtest.Trace(a.ReadUntilReady()); got != "E(57014) Z(I)" {
		t.Errorf("cancelled: %s", got)
	}
	same(t, a, "LISTEN one", "E(08001) Z(I)")
	a.Send(pgtest.Query("LISTEN one"))
	h.Pools.Resume("app")
	a.Expect("C(LISTEN) Z(I)")
	same(t, a, "NOTIFY one", "C(NOTIFY) A(one,) Z(I)")
}

// TestListenLimits: the connection counts towards max_db_connections, and takes
// an idle one's place.
func TestListenLimits(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "max_db_connections = 1\nquery_wait_timeout = 20"})
	a, b := h.Client(t), h.Client(t)
	same(t, a, "LISTEN one", "C(LISTEN) Z(I)")
	b.Send(pgtest.Query("SELECT 1"))
	h.waitState(t, b, "waiting")
	a.Terminate()
	b.Expect("T D(1) C(SELECT 1) Z(I)") // when the listener has been idle for a while
	begin(b)
	a = h.Client(t)
	same(t, a, "LISTEN one", "E(53300) Z(I)")
}

// TestListenDeafClient: a client that does not read is sent away, and nobody
// waits for it.
func TestListenDeafClient(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust})
	deaf, a, b := h.Client(t), h.Client(t), h.Client(t)
	for _, x := range []*pgtest.RawClient{deaf, a} {
		same(t, x, "LISTEN one", "C(LISTEN) Z(I)")
	}
	within(t, 60*time.Second, "the end of the deaf client", func() {
		for n := 0; len(h.Server.Sessions()) > 2; n++ {
			b.Query("SELECT pg_notify('one', repeat('x', 7000) || i) FROM generate_series(1, 50) i")
			for range 50 {
				if m := a.Read(); m.Type != wire.NotificationResponse {
					t.Errorf("the client that reads got %s", m)
				}
			}
		}
	})
	if !strings.Contains(h.Log.Text(), "its notifications are not being read") {
		t.Error("the log does not say why")
	}
	same(t, a, "NOTIFY one", "C(NOTIFY) A(one,) Z(I)")
}

// TestListenUnseen: a server connection that a function has made to listen tells
// the next client nothing.
func TestListenUnseen(t *testing.T) {
	c := realCluster(t)
	if err := c.Exec(t.Context(), "CREATE OR REPLACE FUNCTION sly() RETURNS int LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'LISTEN sly'; RETURN 1; END $$"); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	a, b := h.Client(t), h.Client(t)
	same(t, a, "SELECT sly()", "T D(1) C(SELECT 1) Z(I)")
	same(t, b, "NOTIFY sly", "C(NOTIFY) Z(I)")
	eventually(t, 10*time.Second, "the end of it", func() bool {
		return value(b, "SELECT count(*) FROM pg_listening_channels()") == "0"
	})
}

// TestListenOtherEncoding: the server connection itself listens where the client
// does not speak UTF-8.
func TestListenOtherEncoding(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust})
	a, b := h.Client(t, "client_encoding", "LATIN1"), h.Client(t)
	same(t, a, "LISTEN one", "C(LISTEN) Z(I)")
	if got := h.server(t).Pinned; got != backend.PinListen {
		t.Errorf("pinned: %q", got)
	}
	same(t, b, "NOTIFY one, 'é'", "C(NOTIFY) Z(I)")
	if m := a.Read(); !strings.Contains(string(m.Body[4:]), "one\x00\xe9\x00") {
		t.Errorf("got %q", m.Body)
	}
	if n := len(h.Server.Listeners()); n != 0 {
		t.Errorf("%d listeners", n)
	}
}

// TestListeningChannels: a client sees the channels that it listens to itself.
func TestListeningChannels(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	a, b := h.Client(t), h.Client(t)
	same(t, a, `LISTEN one; LISTEN "T'w\o"`, "C(LISTEN) C(LISTEN) Z(I)")
	same(t, b, "LISTEN three", "C(LISTEN) Z(I)")
	const ask = "SELECT pg_listening_channels()"
	same(t, a, ask, `T D(T'w\\o) D(one) C(SELECT 2) Z(I)`)
	same(t, b, "SELECT * FROM pg_listening_channels() AS x", "T D(three) C(SELECT 1) Z(I)")
	a.Send(pgtest.Extended(ask))
	a.Expect(`1 2 T D(T'w\\o) D(one) C(SELECT 2) Z(I)`)
	a.Send(pgtest.Parse("s", ask), pgtest.Sync(), pgtest.Bind("", "s"), pgtest.Execute("", 0), pgtest.Sync())
	a.Expect(`1 Z(I) 2 D(T'w\\o) D(one) C(SELECT 2) Z(I)`)
	begin(a)
	a.Query("UNLISTEN one")
	same(t, a, ask, `T D(T'w\\o) D(one) C(SELECT 2) Z(T)`)
	a.Query("COMMIT")
	same(t, a, ask, `T D(T'w\\o) C(SELECT 1) Z(I)`)
	same(t, a, "UNLISTEN *", "C(UNLISTEN) Z(I)")
	same(t, a, ask, "T C(SELECT 0) Z(I)")
}

// TestNotificationInFrontOfTheNextAnswer: what was committed before a listening
// client asks something is heard with the answer at the latest, as PostgreSQL does
// it.
func TestNotificationInFrontOfTheNextAnswer(t *testing.T) {
	h := newHarness(t, harnessOptions{Servers: addrs(realCluster(t))[:1], Proxy: "default_pool_size = 2"})
	a, b := h.Client(t), h.Client(t)
	a.Query("LISTEN answers")
	for i := range 300 {
		b.Query(fmt.Sprintf("NOTIFY answers, 'n%d'", i))
		a.Send(pgtest.Query("SELECT 1"))
		if got, want := pgtest.Trace(a.ReadUntilReady()), fmt.Sprintf("A(answers,n%d)", i); strings.Count(got, want) != 1 {
			t.Fatalf("got %s without %s", got, want)
		}
	}
}
