package proxy_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"pgproxy/auth"
	"pgproxy/pgtest"
	"pgproxy/proxy"
)

// apply puts another configuration in force, as a reload does.
func (h *harness) apply(t testing.TB, opt harnessOptions) {
	t.Helper()
	cfg := parseConfig(t, opt)
	users, err := auth.LoadUserlist(cfg.Proxy.AuthFile)
	if err != nil {
		t.Fatal(err)
	}
	h.Server.Apply(&proxy.Settings{
		Config: cfg, Users: users, Auth: auth.New(cfg.Proxy.AuthType, users, cfg.Proxy.AdminUsers, cfg.Proxy.StatsUsers),
	})
	h.Pools.Apply(cfg)
}

// told fails the test if the client is not sent away with one FATAL error of the
// code, and nothing behind it.
func told(t testing.TB, c *pgtest.RawClient, want string) {
	t.Helper()
	msgs := c.ExpectEOF()
	n := 0
	for _, m := range msgs {
		if e := m.Err(); e != nil {
			n++
			if e.Code != want || !e.Fatal() {
				t.Errorf("got %v, want %s", e, want)
			}
		}
	}
	if n != 1 || msgs[len(msgs)-1].Err() == nil {
		t.Errorf("got %s, want one error at the end", pgtest.Trace(msgs))
	}
}

func TestShutdown(t *testing.T) {
	c := realCluster(t)
	leaversTable(t, c)
	census := pgtest.NewCensus(t, c.Primary)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 3"})
	idle, inside, busy := h.Client(t), h.Client(t), h.Client(t)
	begin(inside)
	busy.Send(pgtest.Query("SELECT 'busy' FROM pg_sleep(0.7)"))
	waitSleeping(t, c, "busy")
	ended := make(chan error, 1)
	go func() {
		ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
		defer stop()
		ended <- h.Server.Shutdown(ctx)
	}()
	told(t, idle, "57P01")
	if _, err := dialTCP(h.Addr); err == nil {
		t.Error("a new client was taken")
	}
	busy.Expect("T D(busy) C(SELECT 1) Z(I)")
	told(t, busy, "57P01")
	same(t, inside, "INSERT INTO leavers VALUES ('kept')", "C(INSERT 0 1) Z(T)")
	if !h.Server.Draining() {
		t.Error("not draining")
	}
	select {
	case err := <-ended:
		t.Fatalf("the shutdown is over while a transaction is open: %v", err)
	default:
	}
	same(t, inside, "COMMIT", "C(COMMIT) Z(I)")
	told(t, inside, "57P01")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got, err := c.Primary.Value(t.Context(), "postgres", "SELECT count(*) FROM leavers"); got != "1" || err != nil {
		t.Errorf("%s rows, %v", got, err)
	}
	h.close()
	for _, x := range []*pgtest.RawClient{idle, inside, busy} {
		x.Close()
	}
	census.AssertBaseline()
}

// TestShutdownCut: when the time is over, and on Close, everybody is cut.
func TestShutdownCut(t *testing.T) {
	c := realCluster(t)
	leaversTable(t, c)
	census := pgtest.NewCensus(t, c.Primary)
	for name, end := range map[string]func(h *harness) error{
		"deadline": func(h *harness) error {
			ctx, stop := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer stop()
			return h.Server.Shutdown(ctx)
		},
		"Close": func(h *harness) error { return h.Server.Close() },
	} {
		h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 3"})
		inside, busy, copying, waiting := h.Client(t), h.Client(t), h.Client(t), h.Client(t)
		begin(inside)
		inside.Query(insertMark)
		busy.Send(pgtest.Query("SELECT 'cut' FROM pg_sleep(3600)"))
		waitSleeping(t, c, "cut")
		copying.Send(pgtest.Query("COPY leavers FROM STDIN"))
		copying.Expect("G")
		waiting.Send(pgtest.Query("SELECT 1"))
		h.waitState(t, waiting, "waiting")
		silent := pgtest.DialRaw(t, h.Addr)
		within(t, 20*time.Second, name, func() {
			if err := end(h); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
		for _, c := range []*pgtest.RawClient{inside, busy, copying, waiting} {
			told(t, c, "57P01")
			c.Close()
		}
		silent.ExpectEOF()
		silent.Close()
		h.close()
		if got, err := c.Primary.Value(t.Context(), "postgres", "SELECT count(*) FROM leavers"); got != "0" || err != nil {
			t.Errorf("%s: %s rows, %v", name, got, err)
		}
	}
	census.AssertBaseline()
}

// TestPause: a pause waits for transactions and keeps clients waiting, and costs
// none of them its query.
func TestPause(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 2\nquery_wait_timeout = \"3s\""})
	inside, waiting, late := h.Client(t), h.Client(t), h.Client(t)
	begin(inside)
	paused := make(chan error, 1)
	go func() {
		ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
		defer stop()
		paused <- h.Pools.Pause(ctx, "app")
	}()
	eventually(t, 10*time.Second, "the pause", func() bool { return h.Pools.Stats()[0].Paused })
	waiting.Send(pgtest.Query("SELECT 'waited'"))
	same(t, inside, "SELECT 'inside'", "T D(inside) C(SELECT 1) Z(T)")
	select {
	case err := <-paused:
		t.Fatalf("paused while a transaction is open: %v", err)
	default:
	}
	same(t, inside, "COMMIT", "C(COMMIT) Z(I)")
	if err := <-paused; err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the end of the server connections", func() bool { return len(h.Pools.Servers()) == 0 })
	late.Send(pgtest.Extended("SELECT 'late'"))
	waiting.ExpectSilence(4 * time.Second) // longer than query_wait_timeout
	if !h.Pools.Resume("app") {
		t.Error("nothing was paused")
	}
	waiting.Expect("T D(waited) C(SELECT 1) Z(I)")
	late.Expect("1 2 T D(late) C(SELECT 1) Z(I)")

	// Who waits when the time of the pause is over is let go on by RESUME only.
	ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	begin(inside)
	if err := h.Pools.Pause(ctx, "app"); err == nil {
		t.Error("paused while a transaction is open")
	}
	inside.Query("COMMIT")
	h.Pools.Resume("app")
	same(t, inside, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
}

func TestKill(t *testing.T) {
	c := realCluster(t)
	other := fmt.Sprintf("[databases.other]\ndbname = \"postgres\"\nservers = [{ host = \"127.0.0.1\", port = %d, role = \"primary\" }]\n", c.Primary.Port)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 2", More: other})
	idle, inside, busy := h.Client(t), h.Client(t), h.Client(t)
	begin(inside)
	busy.Send(pgtest.Query("SELECT 'killed' FROM pg_sleep(3600)"))
	waitSleeping(t, c, "killed")
	x := pgtest.DialRaw(t, h.Addr)
	x.Login(testUser, "", "database", "other")
	if h.Server.KillClient(1 << 60) {
		t.Error("a client that does not exist was killed")
	}
	if !h.Server.KillClient(h.session(idle).ID) {
		t.Error("a client was not found")
	}
	told(t, idle, "57P01")
	same(t, inside, "SELECT 1", "T D(1) C(SELECT 1) Z(T)")
	h.Server.Kill("app")
	told(t, inside, "57P01")
	told(t, busy, "57P01")
	same(t, x, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
	same(t, h.Client(t), "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
	h.Pools.Kill("app")
	same(t, h.Client(t), "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
}

// TestApply: a reload changes what is to come and cuts nothing.
func TestApply(t *testing.T) {
	c := realCluster(t)
	other := fmt.Sprintf("[databases.other]\ndbname = \"postgres\"\nservers = [{ host = \"127.0.0.1\", port = %d, role = \"primary\" }]\n", c.Primary.Port)
	opt := harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1", More: other}
	h := newHarness(t, opt)
	login := func() *pgtest.RawClient {
		x := pgtest.DialRaw(t, h.Addr)
		x.Login(testUser, "", "database", "other")
		return x
	}
	a, b, idle, inside := h.Client(t), h.Client(t), login(), login()
	begin(a)
	begin(inside)
	b.Send(pgtest.Query("SELECT 'b'"))
	h.waitState(t, b, "waiting")

	opt.More, opt.Proxy = "", trust+"default_pool_size = 2"
	h.apply(t, opt)
	b.Expect("T D(b) C(SELECT 1) Z(I)") // a larger pool is used at once
	same(t, inside, "SELECT 'goes on'", "T D(goes on) C(SELECT 1) Z(T)")
	same(t, inside, "COMMIT", "C(COMMIT) Z(I)")
	for _, x := range []*pgtest.RawClient{inside, idle} {
		x.Send(pgtest.Query("SELECT 1"))
		told(t, x, "3D000")
	}
	if _, e := h.tryLogin(t, testUser, "", "database", "other"); code(e) != "3D000" {
		t.Errorf("login to a removed database: %v", e)
	}
	begin(b)
	opt.Proxy = trust + "default_pool_size = 1"
	h.apply(t, opt)
	same(t, a, "COMMIT", "C(COMMIT) Z(I)")
	same(t, b, "COMMIT", "C(COMMIT) Z(I)")
	eventually(t, 10*time.Second, "a smaller pool", func() bool { return len(h.Pools.Servers()) == 1 })
	for _, c := range []*pgtest.RawClient{a, b} {
		same(t, c, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
	}
}

// TestCloseMeetsLogin: a client that has just come does not keep the proxy waiting
// for its login.
func TestCloseMeetsLogin(t *testing.T) {
	c := realCluster(t)
	for range 10 {
		t.Run("", func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c)[:1]})
			near, far := net.Pipe()
			t.Cleanup(func() { _ = far.Close() })
			served := make(chan struct{})
			go func() { // as accept does it
				defer close(served)
				h.Server.Serve(near)
			}()
			within(t, 10*time.Second, "Close", func() { _ = h.Server.Close() })
			<-served
		})
	}
}
