package proxy_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// trust is a configuration in which every known user is let in.
const trust = "auth_type = \"trust\"\n"

// untouched is a server that must not be touched.
func untouched(t *testing.T) *pgtest.FakeServer {
	t.Helper()
	return pgtest.NewFakeServer(t, func(*pgtest.FakeConn) error { t.Error("the server was connected to"); return nil })
}

// echoServer is a server that answers statements with their texts.
func echoServer(t testing.TB) *pgtest.FakeServer {
	t.Helper()
	return pgtest.NewFakeServer(t, pgtest.Script{pgtest.AcceptLogin(), pgtest.ServeAll(pgtest.Echo)}.Run)
}

func TestEncryptionRequests(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1]})
	for name, requests := range map[string][][]byte{
		"SSL":     {pgtest.SSLRequest()},
		"GSS":     {pgtest.GSSENCRequest()},
		"GSS SSL": {pgtest.GSSENCRequest(), pgtest.SSLRequest()},
	} {
		a := pgtest.DialRaw(t, h.Addr)
		for _, r := range requests {
			a.Send(r)
			if b := a.ReadAnswer(); b != 'N' {
				t.Fatalf("%s: answered %q, want N", name, b)
			}
		}
		a.Login(testUser, testPassword, "database", "app")
		if got, want := a.Query("SELECT 1"), "T D(1) C(SELECT 1) Z(I)"; got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	t.Run("with a startup packet and a query behind it", func(t *testing.T) {
		// In one segment (faults.md, S-04): the query is no password.
		for _, request := range [][]byte{pgtest.SSLRequest(), pgtest.GSSENCRequest()} {
			a := pgtest.DialRaw(t, h.Addr)
			a.Send(request, pgtest.StartupMessage(wire.Protocol30, "user", testUser, "database", "app"), pgtest.Query("CREATE TABLE pwned()"))
			if b := a.ReadAnswer(); b != 'N' {
				t.Fatalf("answered %q, want N", b)
			}
			if e := refusal(t, a); code(e) != wire.CodeProtocolViolation {
				t.Errorf("got %v", e)
			}
		}
	})
	t.Run("endless", func(t *testing.T) {
		a := pgtest.DialRaw(t, h.Addr)
		a.Send(bytes.Repeat(pgtest.SSLRequest(), 100))
		for {
			b := a.ReadAnswer()
			if b == 'E' {
				break
			}
			if b != 'N' {
				t.Fatalf("answered %q", b)
			}
		}
	})
}

// refusal reads what a client is told at the end of its login, which must be one
// FATAL error or nothing, and the end of the connection.
func refusal(t *testing.T, c *pgtest.RawClient) *wire.Error {
	t.Helper()
	var last *wire.Error
	for _, m := range c.ExpectEOF() {
		switch {
		case last != nil:
			t.Errorf("%s behind the error", m)
		case m.Type == wire.ErrorResponse:
			last = m.Err()
			if last.Severity != wire.SeverityFatal || last.Code == "" || last.Message == "" {
				t.Errorf("error %+v is not fatal or not complete", last)
			}
		case m.Type != wire.Authentication && m.Type != wire.NegotiateProtocolVersion:
			t.Errorf("got %s", m)
		}
	}
	return last
}

func code(e *wire.Error) string {
	if e == nil {
		return ""
	}
	return e.Code
}

// TestStartupIdentifiers: names of any length and kind (faults.md, S-01).
func TestStartupIdentifiers(t *testing.T) {
	s := echoServer(t)
	h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: trust, More: fmt.Sprintf(
		"[databases.\"*\"]\nservers = [{ host = \"127.0.0.1\", port = %d, role = \"primary\" }]\n", s.Port())})
	long := func(n int) string { return strings.Repeat("x", n) }
	for _, n := range []int{0, 1, 62, 63, 64, 127, 128, 255, 996, 1023, 1024, 4095, 9900, 10000, 10001, 1 << 20} {
		for _, where := range []string{"user", "database", "application_name", "no_such_parameter"} {
			params := map[string]string{"user": testUser, "database": "app", where: long(n)}
			a := pgtest.DialRaw(t, h.Addr)
			var pairs []string
			for k, v := range params {
				pairs = append(pairs, k, v)
			}
			_ = a.TrySend(pgtest.StartupMessage(wire.Protocol30, pairs...)) // the end of it may not be taken
			msgs, err := readLogin(a)
			switch {
			case err == nil: // welcome
				if where == "user" || n >= 10000 {
					t.Errorf("%s of %d bytes was accepted", where, n)
				}
			case n > 9900 && len(msgs) > 0 && msgs[len(msgs)-1].Err().Code != wire.CodeProtocolViolation:
				t.Errorf("%s of %d bytes: %s", where, n, pgtest.Trace(msgs))
			case n <= 9900 && (len(msgs) == 0 || msgs[len(msgs)-1].Type != wire.ErrorResponse):
				t.Errorf("%s of %d bytes: got %s, then %v", where, n, pgtest.Trace(msgs), err)
			case n <= 9900 && where != "user":
				t.Errorf("%s of %d bytes: %v", where, n, msgs[len(msgs)-1].Err())
			}
			a.Close()
		}
	}
	for _, odd := range []string{"\xff\xfe", `"`, `'`, `\`, "a\nb", "\x1b[31mred\x1b[0m\r\nlevel=ERROR msg=forged", " "} {
		for _, where := range []string{"user", "database"} {
			a := pgtest.DialRaw(t, h.Addr)
			params := map[string]string{"user": testUser, "database": "app", where: odd}
			a.Startup("user", params["user"], "database", params["database"])
			_, err := readLogin(a)
			if err == nil && where == "user" {
				t.Errorf("user %q was let in", odd)
			}
			a.Close()
		}
	}
	for line := range strings.Lines(h.Log.Text()) {
		if strings.HasPrefix(line, "level=ERROR") || strings.ContainsAny(line, "\x1b\r") {
			t.Errorf("a client has written into the log: %q", line)
		}
	}
}

// readLogin reads up to ReadyForQuery, or to an error or the end.
func readLogin(c *pgtest.RawClient) ([]pgtest.Msg, error) {
	var msgs []pgtest.Msg
	for {
		m, err := c.TryRead()
		if err != nil {
			return msgs, err
		}
		msgs = append(msgs, m)
		switch m.Type {
		case wire.ReadyForQuery:
			return msgs, nil
		case wire.ErrorResponse:
			return msgs, m.Err()
		}
	}
}

// stages bring a client to the places where it is not logged in yet. The second
// one is the configuration that asks so.
var stages = map[string]struct {
	proxy string
	reach func(c *pgtest.RawClient)
}{
	"connected":    {"", func(*pgtest.RawClient) {}},
	"SSL answered": {"", func(c *pgtest.RawClient) { c.Send(pgtest.SSLRequest()); c.ReadAnswer() }},
	"GSS answered": {"", func(c *pgtest.RawClient) { c.Send(pgtest.GSSENCRequest()); c.ReadAnswer() }},
	"SASL initial": {"", func(c *pgtest.RawClient) { c.Startup("user", testUser, "database", "app"); c.Expect("R(10)") }},
	"SASL final": {"", func(c *pgtest.RawClient) {
		c.Startup("user", testUser, "database", "app")
		c.Expect("R(10)")
		c.Send(saslInitial("n,,n=,r=abcdefghijklmnop"))
		c.Expect("R(11)")
	}},
	"password": {"auth_type = \"plain\"", func(c *pgtest.RawClient) { c.Startup("user", testUser, "database", "app"); c.Expect("R(3)") }},
	"md5":      {"auth_type = \"md5\"", func(c *pgtest.RawClient) { c.Startup("user", testUser, "database", "app"); c.Expect("R(5)") }},
}

func saslInitial(first string) []byte {
	b := append([]byte("SCRAM-SHA-256"), 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(first)))
	return pgtest.Message(wire.Password, append(b, first...))
}

// TestNoMessageBeforeLogin: whatever comes before the login is over ends the
// connection and reaches no server (faults.md, S-02 and S-25).
func TestNoMessageBeforeLogin(t *testing.T) {
	for name, stage := range stages {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: []string{untouched(t).Addr()}, Proxy: stage.proxy})
			try := func(what string, packet []byte) {
				c := pgtest.DialRaw(t, h.Addr)
				defer c.Close()
				stage.reach(c)
				_ = c.TrySend(packet)
				_ = c.Conn().(*net.TCPConn).CloseWrite()
				e := refusal(t, c)
				if got := code(e); got != "" && got != wire.CodeProtocolViolation && got != wire.CodeInvalidPassword && got != wire.CodeFeatureNotSupported {
					t.Errorf("%s: got %v", what, e)
				}
			}
			for typ := range 256 {
				try(fmt.Sprintf("type %q", rune(typ)), pgtest.Message(byte(typ), []byte("CREATE TABLE pwned()\x00")))
			}
			for _, length := range lengths {
				try(fmt.Sprintf("length %#x", length), pgtest.RawMessage(wire.Password, length, []byte("password\x00")))
				try(fmt.Sprintf("startup length %#x", length), append(binary.BigEndian.AppendUint32(nil, length), "\x00\x03\x00\x00user\x00alice\x00\x00"...))
			}
			// A good packet with more behind it: nothing of it is run.
			try("startup and query", pgtest.Join(pgtest.StartupMessage(wire.Protocol30, "user", testUser, "database", "app"), pgtest.Query("CREATE TABLE pwned()")))
		})
	}
}

// lengths are what a length field can say (faults.md, S-25).
var lengths = []uint32{
	0x80000000, 0xffffffff, 0xfffffffe, 0, 1, 3, 4, 5, 7, 8, 12, 13, 14, 20, 10000, 10001, 65535, 65536, 0x3fffffff, 0x40000000, 0x7fffffff,
}

// TestLengthsAfterLogin: wrong lengths end the session, and nothing else.
func TestLengthsAfterLogin(t *testing.T) {
	c := realCluster(t)
	census := pgtest.NewCensus(t, c.Primary)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 30"})
	witness := h.Client(t)
	for _, typ := range []byte("QPBDECHSFdcfpX\x00m\xff") {
		var clients []*pgtest.RawClient
		for _, length := range lengths {
			a := h.Client(t)
			_ = a.TrySend(pgtest.RawMessage(typ, length, []byte("\x00SELECT 1\x00\x00\x00")))
			clients = append(clients, a)
		}
		if got, want := witness.Query("SELECT 'witness'"), "T D(witness) C(SELECT 1) Z(I)"; got != want {
			t.Fatalf("with %q the other client got %s, want %s", rune(typ), got, want)
		}
		for i, a := range clients {
			_ = a.Conn().(*net.TCPConn).CloseWrite() // the proxy may have closed it already
			msgs := a.ExpectEOF()
			if lengths[i] < 4 || lengths[i] >= 0x80000000 {
				if len(msgs) != 1 || code(msgs[0].Err()) != wire.CodeProtocolViolation {
					t.Errorf("%q of length %#x: got %s", rune(typ), lengths[i], pgtest.Trace(msgs))
				}
			}
			a.Close()
		}
	}
	census.AssertQuiet()
}

// TestUnknownMessages: types that no client sends end the session; no byte of
// them reaches the server.
func TestUnknownMessages(t *testing.T) {
	s := echoServer(t)
	h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: trust + "default_pool_size = 1"})
	h.Client(t)
	for typ := range 256 {
		if bytes.IndexByte([]byte("QPBDECHSFdcfX"), byte(typ)) >= 0 {
			continue
		}
		a := h.Client(t)
		a.Send(pgtest.Message(byte(typ), []byte("body")))
		if e := refusal(t, a); code(e) != wire.CodeProtocolViolation {
			t.Errorf("type %q: got %v", rune(typ), e)
		}
		a.Close()
	}
	if n := len(s.Conns()); n != 1 {
		t.Errorf("%d server connections, want 1", n)
	}
	if msgs := s.Conns()[0].Messages(); len(msgs) > 0 {
		t.Errorf("the server got %d messages", len(msgs))
	}
}

func TestProtocolVersions(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust})
	base := []string{"user", testUser, "database", "app"}
	for _, v := range []struct {
		protocol uint32
		more     []string
		minor    uint32   // that is offered; 99: nothing is said
		options  []string // that are not known
	}{
		{wire.Protocol30, nil, 99, nil},
		{wire.Protocol32, nil, 99, nil},
		{3<<16 | 3, nil, 2, nil},
		{3<<16 | 9999, nil, 2, nil},
		{wire.Protocol30, []string{"_pq_.one", "1", "_pq_.two", ""}, 0, []string{"_pq_.one", "_pq_.two"}},
		{3<<16 | 9999, []string{"_pq_.test_protocol_negotiation", "x"}, 2, []string{"_pq_.test_protocol_negotiation"}},
	} {
		a := pgtest.DialRaw(t, h.Addr)
		a.Send(pgtest.StartupMessage(v.protocol, append(slices.Clone(base), v.more...)...))
		if e := a.Authenticate(testUser, ""); e != nil {
			t.Errorf("protocol %#x: %v", v.protocol, e)
			continue
		}
		var want []byte
		if v.minor != 99 {
			want = binary.BigEndian.AppendUint32(nil, 3<<16|v.minor)
			want = binary.BigEndian.AppendUint32(want, uint32(len(v.options)))
			for _, o := range v.options {
				want = append(append(want, o...), 0)
			}
		}
		_ = a.Query("SELECT 1")
		if got := negotiation(t, h, v.protocol, append(slices.Clone(base), v.more...)); !bytes.Equal(got, want) {
			t.Errorf("protocol %#x: offered % x, want % x", v.protocol, got, want)
		}
	}
	for _, protocol := range []uint32{2 << 16, 1 << 16, 4 << 16, 0, 0xffffffff} {
		a := pgtest.DialRaw(t, h.Addr)
		a.Send(pgtest.StartupMessage(protocol, base...))
		if e := refusal(t, a); code(e) != wire.CodeFeatureNotSupported || !strings.Contains(e.Message, "unsupported frontend protocol") {
			t.Errorf("protocol %#x: got %v", protocol, e)
		}
	}
}

// negotiation returns the body of NegotiateProtocolVersion, nil if none came.
// It must be the first message.
func negotiation(t *testing.T, h *harness, protocol uint32, pairs []string) []byte {
	t.Helper()
	a := pgtest.DialRaw(t, h.Addr)
	a.Send(pgtest.StartupMessage(protocol, pairs...))
	for i, m := range a.ReadUntilReady() {
		if m.Type == wire.NegotiateProtocolVersion {
			if i != 0 {
				t.Errorf("NegotiateProtocolVersion is message %d", i+1)
			}
			return m.Body
		}
	}
	return nil
}

func TestLoginTimeout(t *testing.T) {
	h := newHarness(t, harnessOptions{Servers: []string{untouched(t).Addr()}, Proxy: "client_login_timeout = \"300ms\""})
	for name, send := range map[string][]byte{
		"silent":       nil,
		"half startup": pgtest.StartupMessage(wire.Protocol30, "user", testUser)[:6],
		"no password":  pgtest.StartupMessage(wire.Protocol30, "user", testUser, "database", "app"),
		"half request": pgtest.SSLRequest()[:7],
	} {
		a := pgtest.DialRaw(t, h.Addr)
		a.Send(send)
		within(t, 10*time.Second, name, func() { _, _ = io.Copy(io.Discard, a.Conn()) })
	}
	if n := h.Server.Stats().Clients; n > 4 {
		t.Errorf("%d clients", n)
	}
	eventually(t, 10*time.Second, "the end of the sessions", func() bool { return h.Server.Stats().Clients == 0 })
}

// TestUnauthenticatedMemory: what a client says is coming is not memory before
// it comes (faults.md, S-25).
func TestUnauthenticatedMemory(t *testing.T) {
	h := newHarness(t, harnessOptions{Servers: []string{untouched(t).Addr()}})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const each = 500
	var clients []*pgtest.RawClient
	for range each {
		a := pgtest.DialRaw(t, h.Addr)
		a.Send(binary.BigEndian.AppendUint32(nil, 9999)) // the most that is waited for
		clients = append(clients, a)
		b := pgtest.DialRaw(t, h.Addr)
		b.Startup("user", testUser, "database", "app")
		b.Expect("R(10)")
		b.Send(pgtest.RawMessage(wire.Password, 8000, nil))
		clients = append(clients, b)
	}
	eventually(t, 20*time.Second, "the sessions", func() bool { return h.Server.Stats().Clients == 2*each })
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("%d clients cost %d bytes", 2*each, grown)
	}
	for _, c := range clients {
		c.Close()
	}
	var total runtime.MemStats
	runtime.ReadMemStats(&before)
	for range each {
		for _, p := range [][]byte{binary.BigEndian.AppendUint32(nil, 1<<30), pgtest.Join(
			pgtest.StartupMessage(wire.Protocol30, "user", testUser, "database", "app"), pgtest.RawMessage(wire.Password, 1<<30, nil))} {
			a := pgtest.DialRaw(t, h.Addr)
			a.Send(p)
			a.ExpectEOF()
			a.Close()
		}
	}
	runtime.ReadMemStats(&total)
	if made := total.TotalAlloc - before.TotalAlloc; made > 512<<20 {
		t.Errorf("%d clients that announced 1 GiB made %d bytes be allocated", 2*each, made)
	}
}
