package proxy_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/proxy"
	"pgproxy/wire"
)

// What clients can do who do not log in.

// TestStrangersLeaveNothing: names that never log in are not remembered, whatever
// database they are for (faults.md, S-01).
func TestStrangersLeaveNothing(t *testing.T) {
	s := untouched(t)
	h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: "auth_type = \"plain\"\n", More: fmt.Sprintf(
		"[databases.\"*\"]\nservers = [{ host = \"127.0.0.1\", port = %d, role = \"primary\" }]\n", s.Port())})
	try := func(n int) {
		var all sync.WaitGroup
		for w := range 8 {
			all.Go(func() {
				for i := range n / 8 {
					name := fmt.Sprintf("%d-%d-%s", w, i, strings.Repeat("x", 1000))
					nc, err := net.Dial("tcp", h.Addr) // no RawClient, which remembers much
					if err != nil {
						t.Error(err)
						return
					}
					_, _ = nc.Write(pgtest.Join(pgtest.StartupMessage(wire.Protocol30, "user", "u"+name, "database", "d"+name), pgtest.Password("x")))
					if answer, err := io.ReadAll(nc); err != nil || !bytes.Contains(answer, []byte("C"+wire.CodeInvalidPassword)) {
						t.Errorf("answer %q, %v", answer, err)
					}
					_ = nc.Close()
				}
			})
		}
		all.Wait()
		eventually(t, 10*time.Second, "the end of the sessions", func() bool { return h.Server.Stats().Clients == 0 })
	}
	size := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc) - int64(len(h.Log.Text()))
	}
	try(200)
	before := size()
	const n = 1600
	try(n)
	if grown := size() - before; grown > n*1000 { // either name alone is longer
		t.Errorf("%d logins have left %d bytes", n, grown)
	}
	if n := len(h.Pools.Stats()); n > 0 {
		t.Errorf("%d pools", n)
	}
}

// TestFailedLoginsAreBoundedInTheLog: one client cannot fill the disk (faults.md,
// S-33).
func TestFailedLoginsAreBoundedInTheLog(t *testing.T) {
	h := newHarness(t, harnessOptions{Servers: []string{untouched(t).Addr()}, Proxy: trust})
	begun := time.Now()
	const n = 1000
	for range n {
		c := pgtest.DialRaw(t, h.Addr)
		if e := c.TryLogin("mallory", "", "database", "app"); code(e) != wire.CodeInvalidPassword {
			t.Fatalf("got %v", e)
		}
		c.Close()
	}
	missing := 0
	eventually(t, 10*time.Second, "the number of the rest", func() bool {
		missing = 0
		for line := range strings.Lines(h.Log.Text()) {
			var more int
			if i := strings.Index(line, "not logged one by one\" count="); i >= 0 {
				if _, err := fmt.Sscanf(line[i:], "not logged one by one\" count=%d", &more); err != nil {
					t.Fatal(err)
				}
				missing += more
			}
		}
		return missing+strings.Count(h.Log.Text(), "client connection closed") == n
	})
	seconds := int(time.Since(begun)/time.Second) + 2
	if lines := n - missing; lines > 50*seconds || lines < 50 {
		t.Errorf("%d lines in %d s", lines, seconds)
	}
}

// TestBadLoginsHurtNobodyElse: a thousand wrong passwords for one user are no reason
// to keep another out, or to wait (faults.md, S-34).
func TestBadLoginsHurtNobodyElse(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1]})
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			for range 50 {
				x := pgtest.DialRaw(t, h.Addr)
				if e := x.TryLogin(testUser, "wrong", "database", "app"); code(e) != wire.CodeInvalidPassword {
					t.Errorf("got %v", e)
				}
				x.Close()
			}
		})
	}
	for range 10 {
		x := pgtest.DialRaw(t, h.Addr)
		x.Login(otherUser, otherSecret, "database", "app")
		same(t, x, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
		x.Terminate()
	}
	all.Wait()
	same(t, h.Client(t), "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
}

// TestCrowdAtTheDoor: clients that stop in the middle of their login are bounded in
// number and in time, and those who are in notice nothing (faults.md, S-28).
func TestCrowdAtTheDoor(t *testing.T) {
	real := realCluster(t)
	ca := pgtest.NewCA(t)
	h := newHarness(t, harnessOptions{
		Servers: addrs(real)[:1], Proxy: encrypted("prefer", ca.Issue("localhost", nil)) + "max_client_conn = 50\nclient_login_timeout = \"2s\"\n",
	})
	in := h.Client(t)
	options := []string{"user", testUser, "database", "app"}
	for i := range 1000 {
		options = append(options, fmt.Sprintf("_pq_.%d", i), "")
	}
	const most, tries = 50 + 50/10 + 100, 400
	var crowd []*pgtest.RawClient
	for i := range tries {
		c := pgtest.DialRaw(t, h.Addr)
		switch i % 3 {
		case 0: // half a handshake
			_ = c.TrySend(sslRequest)
		case 1:
			_ = c.TrySend(pgtest.StartupMessage(wire.Protocol30, options...)[:9000])
		}
		crowd = append(crowd, c)
		if n := h.Server.Stats().Clients; n > most {
			t.Fatalf("%d connections are held open", n)
		}
	}
	same(t, in, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
	eventually(t, 20*time.Second, "the end of those who wait", func() bool { return h.Server.Stats().Clients == 1 })
	same(t, in, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
	same(t, h.Client(t), "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
	if h.Server.Stats().Refused == 0 {
		t.Error("nobody was refused")
	}
	for _, c := range crowd {
		c.Close()
	}
	// Nobody can have the handshake made again and again: Go's TLS has no renegotiation.
	c := dialTLS(t, h, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, Renegotiation: tls.RenegotiateFreelyAsClient})
	c.Login(testUser, testPassword, "database", "app")
	same(t, c, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
}

// TestWrongCancelKeys: guesses cancel nothing, take nobody's place and cost no line
// of the log (faults.md, S-22).
func TestWrongCancelKeys(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "max_client_conn = 2\n"})
	a := h.Client(t)
	a.Send(pgtest.Query("SELECT 'guessed at' FROM pg_sleep(60)"))
	waitSleeping(t, c, "guessed at")
	for i := range 2000 {
		nc, err := net.Dial("tcp", h.Addr)
		if err != nil {
			t.Fatal(err)
		}
		secret := []byte{byte(i), byte(i >> 8), 1, 2}
		if string(secret) != string(a.Secret) {
			_, _ = nc.Write(pgtest.CancelRequest(a.PID, secret))
		}
		_ = nc.Close()
	}
	var second *pgtest.RawClient
	eventually(t, 20*time.Second, "room for a second client, once the requests are read", func() bool {
		var e *wire.Error
		second, e = h.tryLogin(t, testUser, "", "database", "app")
		if e != nil {
			second.Close()
		}
		return e == nil
	})
	same(t, second, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
	a.ExpectSilence(50 * time.Millisecond)
	for line := range strings.Lines(h.Log.Text()) {
		if strings.Contains(line, "unknown key") && !strings.Contains(line, "level=DEBUG") {
			t.Fatalf("logged: %s", line)
		}
	}
	a.Cancel(h.Addr)
	if got := pgtest.Trace(a.ReadUntilReady()); !strings.HasSuffix(got, "E(57014) Z(I)") {
		t.Errorf("got %s", got)
	}
}

// TestPanicEndsOneClient: a fault of the proxy's own costs one client its connection
// (faults.md, S-26).
func TestPanicEndsOneClient(t *testing.T) {
	c := realCluster(t)
	var once sync.Once
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Panics: 1, Trace: &proxy.Trace{Login: func(ok bool) {
		if !ok {
			once.Do(func() { panic("on purpose") })
		}
	}}})
	in := h.Client(t)
	if _, e := h.tryLogin(t, testUser, "wrong", "database", "app"); code(e) != wire.CodeInternal || !e.Fatal() {
		t.Errorf("got %v", e)
	}
	if _, e := h.tryLogin(t, testUser, "wrong", "database", "app"); code(e) != wire.CodeInvalidPassword {
		t.Errorf("the next one got %v", e)
	}
	same(t, in, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
}

// TestEveryMessageInEveryState: whatever a client that has logged in sends, and
// wherever it is, costs it its connection at most (faults.md, S-02).
func TestEveryMessageInEveryState(t *testing.T) {
	real := realCluster(t)
	same(t, newHarness(t, harnessOptions{Servers: addrs(real)[:1]}).Client(t), "CREATE TABLE IF NOT EXISTS states (a text)", "C(CREATE TABLE) Z(I)")
	h := newHarness(t, harnessOptions{Servers: addrs(real)[:1], Proxy: trust + "default_pool_size = 45\n"})
	witness := h.Client(t)
	for name, reach := range map[string]func(c *pgtest.RawClient){
		"idle":       func(*pgtest.RawClient) {},
		"in a query": func(c *pgtest.RawClient) { c.Send(pgtest.Query("SELECT pg_sleep(0.02)")) },
		"in a batch": func(c *pgtest.RawClient) {
			c.Send(pgtest.Parse("", "SELECT 1"), pgtest.Bind("", ""), pgtest.Flush())
			c.Expect("1 2")
		},
		"in COPY IN":     func(c *pgtest.RawClient) { c.Send(pgtest.Query("COPY states FROM STDIN")); c.Expect("G") },
		"error to Sync":  func(c *pgtest.RawClient) { c.Send(pgtest.Parse("", "nonsense"), pgtest.Flush()); c.Expect("E(42601)") },
		"transaction":    func(c *pgtest.RawClient) { c.Query("BEGIN") },
		"failed":         func(c *pgtest.RawClient) { c.Query("BEGIN"); c.Query("nonsense") },
		"not ready yet":  nil, // right behind the startup packet
		"before the end": func(c *pgtest.RawClient) { c.Send(pgtest.Terminate()) },
	} {
		t.Run(name, func(t *testing.T) {
			slots := make(chan struct{}, 40) // the end of a busy client may be seen a second late
			var all sync.WaitGroup
			for _, typ := range []byte("QPBDECHSFdcfXpR!\x00\xff") {
				for _, body := range []string{"", "\x00\x00\x00\x00\x00\x00\x00\x00", "\x00SELECT 1\x00\x00\x00"} {
					slots <- struct{}{}
					all.Go(func() {
						defer func() { <-slots }()
						oddMessage(t, h, reach, typ, body)
					})
				}
			}
			all.Wait()
			same(t, witness, "SELECT 'here'", "T D(here) C(SELECT 1) Z(I)")
		})
	}
}

// oddMessage sends a message in a state and waits for the end.
func oddMessage(t *testing.T, h *harness, reach func(*pgtest.RawClient), typ byte, body string) {
	c := pgtest.DialRaw(t, h.Addr)
	odd := pgtest.Message(typ, []byte(body))
	if reach == nil {
		c.Send(pgtest.StartupMessage(wire.Protocol30, "user", testUser, "database", "app"), odd)
	} else {
		c.Login(testUser, "", "database", "app")
		reach(c)
		_ = c.TrySend(odd)
	}
	_ = c.Conn().(*net.TCPConn).CloseWrite() // it may be closed already
	fatal := 0
	for _, m := range c.ExpectEOF() {
		if e := m.Err(); m.Type == wire.ErrorResponse && e.Fatal() {
			fatal++
			if e.Code != wire.CodeProtocolViolation && e.Code != wire.CodeConnectionFailure { // our word, or the server's, which we do not wait for
				t.Errorf("%q %q: %v", rune(typ), body, e)
			}
		}
	}
	if fatal > 1 {
		t.Errorf("%q %q: %d errors that are fatal", rune(typ), body, fatal)
	}
	c.Close()
}
