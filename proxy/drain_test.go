package proxy_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/proxy"
	"pgproxy/wire"
)

// shutdown begins a drain; its outcome is sent to the channel.
func (h *harness) shutdown(end func(context.Context) error) <-chan error {
	ended := make(chan error, 1)
	go func() {
		ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
		defer stop()
		ended <- end(ctx)
	}()
	return ended
}

// TestDrainOrder: who has been idle for longest goes first, the others go on.
func TestDrainOrder(t *testing.T) {
	s := newSlowServer(t)
	h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: trust + "drain_rate = 1"})
	var clients []*pgtest.RawClient
	for range 3 {
		clients = append(clients, h.Client(t))
	}
	for _, i := range []int{1, 2, 0} {
		same(t, clients[i], "seen", answerOf("seen"))
	}
	ended := h.shutdown(h.Server.Shutdown)
	told(t, clients[1], "57P01")
	same(t, clients[2], "goes on", answerOf("goes on"))
	told(t, clients[0], "57P01")
	told(t, clients[2], "57P01")
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestDrainPace: a second brings drain_rate, however often it is looked, and what
// was not used does not add up.
func TestDrainPace(t *testing.T) {
	for _, rate := range []int{1, 7, 50, 333, 5000} {
		at := time.Unix(1000, 0)
		p := proxy.NewPace(at)
		gone := 0
		for range 500 {
			at = at.Add(20 * time.Millisecond)
			gone += p.Allows(rate, 1<<20, at)
		}
		if want := 10 * rate; gone < want-1 || gone > want {
			t.Errorf("rate %d: %d in 10 s, want %d", rate, gone, want)
		}
		p.Allows(rate, 0, at.Add(time.Hour))
		if n := p.Allows(rate, 1<<20, at.Add(time.Hour)); n > 1+rate/10 {
			t.Errorf("rate %d: %d at once after an hour", rate, n)
		}
	}
	if n := proxy.NewPace(time.Now()).Allows(0, 12345, time.Now()); n != 12345 {
		t.Errorf("without a limit %d of 12345", n)
	}
}

// TestDrainDelay: a drain shows before the listeners close.
func TestDrainDelay(t *testing.T) {
	s := newSlowServer(t)
	h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: trust + "drain_delay = \"1500ms\""})
	before := h.Client(t)
	ended := h.shutdown(h.Server.Shutdown)
	eventually(t, 10*time.Second, "the drain shows", h.Server.Draining)
	if got, want := h.Client(t).Query("late"), answerOf("late"); got != want {
		t.Errorf("in the meantime got %s, want %s", got, want)
	}
	same(t, before, "before", answerOf("before"))
	eventually(t, 10*time.Second, "the end of the listeners", func() bool {
		nc, err := dialTCP(h.Addr)
		if err == nil {
			_ = nc.Close()
		}
		return err != nil
	})
	told(t, before, "57P01")
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestDrainLetsIn: who has come before the listeners close gets in, and an answer
// to the first statement.
func TestDrainLetsIn(t *testing.T) {
	s := newSlowServer(t)
	t.Run("WAIT_FOR_SERVERS", func(t *testing.T) {
		h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: trust})
		seen := h.Client(t)
		same(t, seen, "seen", answerOf("seen"))
		silent, early := pgtest.DialRaw(t, h.Addr), h.Client(t)
		eventually(t, 10*time.Second, "all are there", func() bool { return h.Server.Stats().Clients == 3 })
		ended := h.shutdown(h.Server.Shutdown)
		told(t, seen, "57P01")
		silent.Login(testUser, "", "database", "app")
		for _, c := range []*pgtest.RawClient{silent, early} {
			same(t, c, "first", answerOf("first"))
		}
		told(t, early, "57P01")
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Run("WAIT_FOR_CLIENTS", func(t *testing.T) {
		h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: trust})
		silent := pgtest.DialRaw(t, h.Addr)
		eventually(t, 10*time.Second, "it is there", func() bool { return h.Server.Stats().Clients == 1 })
		ended := h.shutdown(h.Server.ShutdownWhenEmpty)
		eventually(t, 10*time.Second, "the end of the listeners", func() bool { return len(h.Server.Addrs()) == 0 })
		silent.ExpectSilence(100 * time.Millisecond)
		silent.Login(testUser, "", "database", "app")
		for range 2 {
			same(t, silent, "first", answerOf("first"))
		}
		silent.Terminate()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestDrainKeepsPeers: as long as there is a client, its cancel requests reach the
// process through the Unix socket, where peers send them; nobody can log in.
func TestDrainKeepsPeers(t *testing.T) {
	s := newSlowServer(t)
	close(s.hold)
	dir := t.TempDir()
	h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: trust + fmt.Sprintf("peer_id = 2\nlisten_port = %d\nunix_socket_dir = %q\n", freePort(t), dir)})
	other := newHarness(t, harnessOptions{
		Servers: []string{s.Addr()}, Proxy: trust + "peer_id = 1\n", Untidy: "its peer goes on",
		More: fmt.Sprintf("[peers.2]\nhost = %q\nport = %d\n", dir, h.Server.Addrs()[0].(*net.TCPAddr).Port),
	})
	a := h.Client(t)
	a.Send(pgtest.Query("slow"))
	<-s.asked
	ended := h.shutdown(h.Server.Shutdown)
	eventually(t, 10*time.Second, "the end of the listener", func() bool { return len(h.Server.Addrs()) == 1 })
	if _, err := dialTCP(h.Addr); err == nil {
		t.Error("a new client was taken")
	}
	socket, err := filepath.Glob(filepath.Join(dir, ".s.PGSQL.*"))
	if err != nil || len(socket) != 1 {
		t.Fatalf("sockets %q, %v", socket, err)
	}
	nc, err := net.Dial("unix", socket[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	if _, err := nc.Write(pgtest.StartupMessage(3<<16, "user", testUser, "database", "app")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 200)
	if n, _ := nc.Read(answer); !strings.Contains(string(answer[:n]), "57P03") {
		t.Errorf("a login got %q", answer[:n])
	}
	conns := len(s.Conns())
	sendCancel(t, other, pgtest.CancelRequest(a.PID, a.Secret))
	s.WaitConns(conns + 1)
	s.answer <- struct{}{}
	a.Expect(answerOf("slow"))
	told(t, a, "57P01")
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestDrainBetweenTransactions: a client is sent away between two transactions, also
// where it begins one while the drain looks at it, and its BEGIN takes no server.
func TestDrainBetweenTransactions(t *testing.T) {
	c := oracleSetup(t)
	for range 5 {
		h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "drain_rate = 0"})
		var goes sync.WaitGroup
		var begun atomic.Int64
		for range 20 {
			cl := h.Client(t)
			goes.Go(func() {
				for {
					for i, sql := range []string{"BEGIN", "SELECT 1", "COMMIT"} {
						if err := cl.TrySend(pgtest.Query(sql)); err != nil && i > 0 {
							t.Errorf("%s: %v", sql, err)
							return
						}
						for {
							m, err := cl.TryRead()
							if e := m.Err(); err != nil || e != nil {
								if i > 0 {
									t.Errorf("%s: %v %v", sql, err, e)
								}
								return
							}
							if m.Type == wire.ReadyForQuery {
								break
							}
						}
					}
					begun.Add(1)
				}
			})
		}
		eventually(t, 20*time.Second, "transactions", func() bool { return begun.Load() > 100 })
		if err := <-h.shutdown(h.Server.Shutdown); err != nil {
			t.Error(err)
		}
		goes.Wait()
	}
}
