package proxy_test

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// scripted is a server that answers the simple query "odd" with bytes of the
// test's own and all others with their texts.
func scripted(t *testing.T, odd []byte, more ...[]byte) *pgtest.FakeServer {
	t.Helper()
	return pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
		if err := c.Accept(); err != nil {
			return err
		}
		for {
			m, err := c.Read()
			if err != nil || m.Type != wire.Query {
				return err
			}
			sql, _, _ := wire.String(m.Body)
			if string(sql) != "odd" {
				if err := c.Send(echoed(string(sql))); err != nil {
					return err
				}
				continue
			}
			for _, p := range append([][]byte{odd}, more...) {
				if err := c.Send(p); err != nil {
					return err
				}
			}
		}
	})
}

// echoed is the whole answer to a query: its text.
func echoed(sql string) []byte {
	p := wire.AppendRowDescription(nil, []wire.Column{{Name: "answer", OID: wire.OIDText}})
	return append(wire.AppendDataRow(p, []byte(sql)), done...)
}

var (
	ready = wire.AppendReadyForQuery(nil, wire.TxIdle)
	done  = append(wire.AppendCommandComplete(nil, "SELECT 1"), ready...)
)

func message(typ byte, body string) []byte { return pgtest.Message(typ, []byte(body)) }

// TestMalformedServerMessages: a server that breaks the protocol is dropped, its
// client hears one FATAL error, and nobody else notices. What is merely odd is
// relayed (faults.md, S-12 and S-25).
func TestMalformedServerMessages(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for _, v := range []struct {
		name  string
		odd   []byte
		relay string // what the client gets, and goes on; "": it hears 08006
	}{
		{"error without C", pgtest.Join(message('E', "SERROR\x00Mno code\x00\x00"), ready), "E() Z(I)"},
		{"error without M", pgtest.Join(message('E', "SERROR\x00C42601\x00\x00"), ready), "E(42601) Z(I)"},
		{"error without S and V", pgtest.Join(message('E', "C42601\x00Mm\x00\x00"), ready), "E(42601) Z(I)"},
		{"error of one byte", pgtest.Join(message('E', "\x00"), ready), "E() Z(I)"},
		{"empty error", pgtest.Join(message('E', ""), ready), "E() Z(I)"},
		{"unterminated error", pgtest.Join(message('E', "SERROR\x00C42601\x00Mno end"), ready), "E(42601) Z(I)"},
		{"error with fields twice", pgtest.Join(message('E', "SERROR\x00C42601\x00C42P01\x00Mm\x00Mn\x00\x00"), ready), "E(42P01) Z(I)"},
		{"error with unknown fields", pgtest.Join(message('E', "SERROR\x00C42601\x00\x01odd\x00\xffodd\x00\x00"), ready), "E(42601) Z(I)"},
		{"long error", pgtest.Join(message('E', "SERROR\x00C42601\x00M"+long+"\x00\x00"), ready), "E(42601) Z(I)"},
		{"two errors", pgtest.Join(message('E', "SERROR\x00C42601\x00Mm\x00\x00"), message('E', "SERROR\x00C42601\x00Mm\x00\x00"), ready), ""},
		{"malformed notice", pgtest.Join(message('N', "no end"), message('N', ""), done), "N() N() C(SELECT 1) Z(I)"},
		{"long notice", pgtest.Join(message('N', "SNOTICE\x00C00000\x00M"+long+"\x00\x00"), done), "N(00000) C(SELECT 1) Z(I)"},
		{"notification that nobody listens to", pgtest.Join(message('A', "abc"), done), "C(SELECT 1) Z(I)"},
		{"parameter without NUL", pgtest.Join(message('S', "TimeZone"), done), ""},
		{"parameter without value", pgtest.Join(message('S', "TimeZone\x00UTC"), done), ""},
		{"empty parameter", pgtest.Join(message('S', ""), done), ""},
		{"unknown status", message('Z', "X"), ""},
		{"long status", message('Z', "II"), ""},
		{"no status", message('Z', ""), ""},
		{"row of other columns", pgtest.Join(wire.AppendRowDescription(nil, []wire.Column{{Name: "a", OID: wire.OIDText}}),
			wire.AppendDataRow(nil, []byte("x"), []byte("y")), done), "T D(x,y) C(SELECT 1) Z(I)"},
		{"row without description", pgtest.Join(wire.AppendDataRow(nil, []byte("x")), done), "D(x) C(SELECT 1) Z(I)"},
		{"malformed row", pgtest.Join(message('D', "\x00\x05\x7f\xff"), done), "D() C(SELECT 1) Z(I)"},
		{"negotiation", pgtest.Join(message('v', "\x00\x03\x00\x00\x00\x00\x00\x00"), done), ""},
		{"key", pgtest.Join(message('K', "\x00\x00\x00\x01\x00\x00\x00\x01"), done), ""},
		{"authentication", pgtest.Join(message('R', "\x00\x00\x00\x03"), done), ""},
		{"parse complete", pgtest.Join(message('1', ""), done), ""},
		{"bind complete", pgtest.Join(message('2', ""), done), ""},
		{"portal suspended", pgtest.Join(message('s', ""), done), ""},
		{"function result", pgtest.Join(message('V', "\xff\xff\xff\xff"), done), ""},
		{"unknown type", pgtest.Join(message('m', "body"), done), ""},
		{"type zero", pgtest.Join(message(0, ""), done), ""},
		{"length 0", pgtest.RawMessage('D', 0, nil), ""},
		{"length 3", pgtest.RawMessage('D', 3, nil), ""},
		{"length -1", pgtest.RawMessage('D', 0xffffffff, nil), ""},
		{"length -2^31", pgtest.RawMessage('D', 0x80000000, nil), ""},
		{"copy both", pgtest.Join(message('W', "\x00\x00\x00"), done), ""},
	} {
		t.Run(v.name, func(t *testing.T) {
			s := scripted(t, v.odd)
			h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: trust + "default_pool_size = 1"})
			a, other := h.Client(t), h.Client(t)
			a.Query("before")
			a.Send(pgtest.Query("odd"))
			conns := 1
			if v.relay != "" {
				a.Expect(v.relay)
				if got, want := a.Query("after"), answerOf("after"); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			} else {
				conns = 2
				msgs := a.ExpectEOF()
				if n := len(msgs); n == 0 || code(msgs[n-1].Err()) != wire.CodeConnectionFailure || !msgs[n-1].Err().Fatal() ||
					strings.Count(pgtest.Trace(msgs[:n-1]), "Z(") > 0 {
					t.Errorf("got %s", pgtest.Trace(msgs))
				}
			}
			if got, want := other.Query("other"), answerOf("other"); got != want {
				t.Errorf("the other client got %s, want %s", got, want)
			}
			if n := len(s.Conns()); n != conns {
				t.Errorf("%d server connections, want %d", n, conns)
			}
		})
	}
}

// TestUnsolicitedServerMessages: what a server says that nobody has asked for
// reaches no client, and a connection that has lost its place is not lent again
// (faults.md, B-06).
func TestUnsolicitedServerMessages(t *testing.T) {
	for _, v := range []struct {
		name  string
		extra []byte
		ok    bool // the protocol allows it at any time
	}{
		{"row", wire.AppendDataRow(nil, []byte("leak")), false},
		{"whole answer", echoed("leak"), false},
		{"ready", ready, false},
		{"error", wire.Errorf("42601", "leak").Append(nil), false},
		{"fatal", wire.Fatalf("57P01", "leak").Append(nil), false},
		{"copy data", message('d', "leak"), false},
		{"half a header", []byte("D\x00"), false},
		{"notice", wire.Errorf("00000", "leak").AppendNotice(nil), true},
		{"parameter", wire.AppendParameterStatus(nil, "in_hot_standby", "leak"), true},
		{"notification", message('A', "\x00\x00\x00\x01leak\x00leak\x00"), true},
	} {
		for _, one := range []string{"in one write", "in two"} {
			t.Run(v.name+"/"+one, func(t *testing.T) {
				s := scripted(t, echoed("answer"), v.extra)
				if one == "in one write" {
					s = scripted(t, pgtest.Join(echoed("answer"), v.extra))
				}
				h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: trust + "default_pool_size = 1"})
				a, b := h.Client(t), h.Client(t)
				a.Send(pgtest.Query("odd"))
				a.Expect("T D(answer) C(SELECT 1) Z(I)")
				if !v.ok {
					eventually(t, 10*time.Second, "the end of the server connection", func() bool { return h.Pools.Stats()[0].Servers() == 0 })
				}
				for range 2 {
					if got, want := b.Query("mine"), answerOf("mine"); got != want {
						t.Errorf("the next client got %s, want %s", got, want)
					}
				}
				conns := 2
				if v.ok {
					conns = 1
				}
				if n := len(s.Conns()); n != conns {
					t.Errorf("%d server connections, want %d", n, conns)
				}
			})
		}
	}
}

// TestServerKeys: cancel keys of any length, and none at all, are no reason not
// to work with a server.
func TestServerKeys(t *testing.T) {
	for _, size := range []int{-1, 8, 12, 36, 260} {
		s := pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
			if _, err := c.ReadStartup(); err != nil {
				return err
			}
			p := wire.AppendAuth(nil, wire.AuthOK, nil)
			if size >= 0 {
				p = append(p, pgtest.Message(wire.BackendKeyData, make([]byte, size))...)
			}
			if err := c.Send(p, ready); err != nil {
				return err
			}
			return c.Serve(pgtest.Echo)
		})
		h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: trust})
		a := h.Client(t)
		if got, want := a.Query("x"), answerOf("x"); got != want {
			t.Errorf("key of %d bytes: got %s, want %s", size, got, want)
		}
		a.Cancel(h.Addr)
	}
}

// TestServerLoginErrors: what goes wrong in a server's login is told once.
func TestServerLoginErrors(t *testing.T) {
	for name, p := range map[string][]byte{
		"refusal":            wire.Fatalf("28P01", "no").Append(nil),
		"refusal without C":  message('E', "SFATAL\x00Mno\x00\x00"),
		"empty error":        message('E', "\x00"),
		"unknown message":    message('m', "x"),
		"unknown auth":       message('R', "\x00\x00\x00\x63"),
		"short auth":         message('R', "\x00"),
		"bad length":         pgtest.RawMessage('R', 1, nil),
		"open transaction":   pgtest.Join(wire.AppendAuth(nil, wire.AuthOK, nil), wire.AppendReadyForQuery(nil, wire.TxInside)),
		"huge":               binary.BigEndian.AppendUint32([]byte{'R'}, 0x7fffffff),
		"nothing":            nil,
		"key of three bytes": pgtest.Join(wire.AppendAuth(nil, wire.AuthOK, nil), message('K', "abc"), ready),
	} {
		t.Run(name, func(t *testing.T) {
			s := pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
				if _, err := c.ReadStartup(); err != nil {
					return err
				}
				if err := c.Send(p); err != nil {
					return err
				}
				return c.CloseWrite()
			})
			h := newHarness(t, harnessOptions{
				Servers: []string{s.Addr()}, Proxy: trust + "query_wait_timeout = \"300ms\"\nserver_login_retry = \"50ms\"", Database: "failover_timeout = \"0s\"",
			})
			_, e := h.tryLogin(t, testUser, "", "database", "app")
			if e == nil || !e.Fatal() || e.Code == "" && !strings.HasSuffix(name, "without C") && name != "empty error" {
				t.Errorf("got %v", e)
			}
		})
	}
}
