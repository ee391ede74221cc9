package pgtest

import (
	"bytes"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgproxy/wire"
)

// recorder is a testing.TB that notes failures instead of having them.
type recorder struct {
	testing.TB
	said []string
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.said = append(r.said, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

// failure runs f with a recorder and returns what it failed with.
func failure(t *testing.T, f func(testing.TB)) string {
	t.Helper()
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return strings.Join(r.said, "\n")
}

func TestRawClientLogin(t *testing.T) {
	ctx := testContext(t)
	c := Start(t, Options{})
	hba, err := c.Query(ctx, "SHOW hba_file")
	must(t, err)
	for _, sql := range []string{
		"SET password_encryption = 'md5'; CREATE ROLE by_md5 LOGIN PASSWORD 'secret'",
		"CREATE ROLE by_scram LOGIN PASSWORD 'secret'",
		"CREATE ROLE by_plain LOGIN PASSWORD 'secret'",
		"CREATE ROLE by_trust LOGIN",
	} {
		must(t, c.Exec(ctx, sql))
	}
	rules := "host all by_md5 all md5\nhost all by_scram all scram-sha-256\nhost all by_plain all password\nhost all by_trust all trust\nhost all all all scram-sha-256\n"
	must(t, c.Exec(ctx, "COPY (SELECT unnest(string_to_array("+QuoteLiteral(rules)+", E'\\n'))) TO "+QuoteLiteral(hba[0][0])))
	must(t, c.Exec(ctx, "SELECT pg_reload_conf()"))
	must(t, c.Primary.WaitFor(ctx, "postgres", "SELECT count(*) = 5 FROM pg_hba_file_rules"))
	for _, role := range []string{"by_md5", "by_scram", "by_plain", "by_trust"} {
		t.Run(role, func(t *testing.T) {
			client := DialRaw(t, c.Primary.Addr())
			client.Login(role, "secret", "database", "postgres", "application_name", "raw")
			if got := client.Query("SELECT current_user"); got != "T D("+role+") C(SELECT 1) Z(I)" {
				t.Error(got)
			}
			if client.PID == 0 || len(client.Secret) != 4 || client.Params["application_name"] != "raw" {
				t.Errorf("pid %d, secret %x, parameters %v", client.PID, client.Secret, client.Params)
			}
			client.Terminate()
			if role == "by_trust" {
				return
			}
			e := DialRaw(t, c.Primary.Addr()).TryLogin(role, "wrong", "database", "postgres")
			if e == nil || e.Code != wire.CodeInvalidPassword {
				t.Errorf("a wrong password: %v", e)
			}
		})
	}
}

func TestRawClientAgainstPostgreSQL(t *testing.T) {
	c := Shared(t)
	client := DialRaw(t, c.Primary.Addr())
	client.Login(Superuser, SuperuserPassword, "database", "postgres")
	namedStatement := Join(Parse("s", "SELECT $1", 25), Describe('S', "s"), Bind("p", "s", "x"), Execute("p", 0), Close('S', "s"), Sync())
	for _, tt := range []struct {
		name string
		send []byte
		want string
	}{
		{"simple", Query("SELECT 1, NULL, 'a b'"), "T D(1,NULL,a b) C(SELECT 1) Z(I)"},
		{"two statements", Query("SELECT 1; SELECT 2"), "T D(1) C(SELECT 1) T D(2) C(SELECT 1) Z(I)"},
		{"empty", Query(""), "I Z(I)"},
		{"error", Query("SELECT * FROM nothing_of_this_name"), "E(42P01) Z(I)"},
		{"begin", Query("BEGIN"), "C(BEGIN) Z(T)"},
		{"failed transaction", Query("SELECT 1/0"), "E(22012) Z(E)"},
		{"rollback", Query("ROLLBACK"), "C(ROLLBACK) Z(I)"},
		{"warning", Query("ROLLBACK"), "N(25P01) C(ROLLBACK) Z(I)"},
		{"parameter", Query("SET TimeZone = 'Europe/Berlin'"), "C(SET) S(TimeZone=Europe/Berlin) Z(I)"},
		{"extended", Extended("SELECT $1::int + 1", "41"), "1 2 T D(42) C(SELECT 1) Z(I)"},
		{"named", namedStatement, "1 t T 2 D(x) C(SELECT 1) 3 Z(I)"},
		{
			"rows by rows", Join(Parse("", "SELECT generate_series(1, 3)"), Bind("", ""), Execute("", 2), Execute("", 2), Sync()),
			"1 2 D(1) D(2) s D(3) C(SELECT 1) Z(I)",
		},
		{"skip to sync", Join(Parse("", "SELEC"), Bind("", ""), Execute("", 0), Sync()), "E(42601) Z(I)"},
		{
			"binary and null", Join(Parse("", "SELECT $1::bytea, $2::int"), BindFormats("", "", []uint16{1}, [][]byte{{1, 2}, nil}, []uint16{1}), Execute("", 0), Sync()),
			`1 2 D(\x01\x02,NULL) C(SELECT 1) Z(I)`,
		},
		{"no data", Join(Parse("", "SET work_mem = '1MB'"), Bind("", ""), Describe('P', ""), Execute("", 0), Sync()), "1 2 n C(SET) Z(I)"},
		{"copy in", Join(Query("CREATE TEMP TABLE copied(t text); COPY copied FROM STDIN"), CopyData("a\nb\n"), CopyDone()), "C(CREATE TABLE) G C(COPY 2) Z(I)"},
		{"copy fails", Join(Query("COPY copied FROM STDIN"), CopyData("c\n"), CopyFail("no more")), "G E(57014) Z(I)"},
		{"copy out", Query("COPY copied TO STDOUT"), `H d(a\n) d(b\n) c C(COPY 2) Z(I)`},
		{"function call", FunctionCall(1317, "four"), "V(4) Z(I)"}, // length(text)
	} {
		t.Run(tt.name, func(t *testing.T) {
			client.Send(tt.send)
			client.ReadUntilReady()
			if got := client.Trace(); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}

	client.Send(Parse("", "SELECT 1"), Flush())
	client.Expect("1")
	client.ExpectSilence(20 * time.Millisecond)
	client.Send(Sync())
	client.Expect("Z(I)")

	client.Send(Query("LISTEN news; NOTIFY news, 'it rains'"))
	client.Expect("C C(NOTIFY) A(news,it rains) Z")
	client.Skip = "CA"
	if got := client.Query("NOTIFY news, 'again'"); got != "Z(I)" {
		t.Errorf("with notifications skipped: %s", got)
	}
	client.Skip = ""

	client.Send(Query("SELECT pg_sleep(60)"))
	must(t, c.Primary.WaitFor(testContext(t), "postgres", fmt.Sprintf("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = %d", client.PID)))
	client.Cancel(c.Primary.Addr())
	client.Expect("T E(57014) Z(I)")

	client.Terminate()

	closing := DialRaw(t, c.Primary.Addr())
	closing.Send(SSLRequest())
	if b := closing.ReadAnswer(); b != 'N' {
		t.Errorf("SSLRequest: %q", b)
	}
	closing.Login(Superuser, SuperuserPassword, "database", "postgres")
	closing.Send(RawMessage('?', 4, nil))
	if msgs := closing.ExpectEOF(); len(msgs) != 1 || msgs[0].Err().Code != wire.CodeProtocolViolation {
		t.Errorf("an unknown message: %s", Trace(msgs))
	}
}

func TestSendCut(t *testing.T) {
	c := Shared(t)
	client := DialRaw(t, c.Primary.Addr())
	client.Login(Superuser, SuperuserPassword, "database", "postgres")
	msg := Extended("SELECT $1", "x")
	for at := range msg {
		client.SendCut(msg, at)
		client.Expect("1 2 T D(x) C(SELECT 1) Z(I)")
	}
}

func TestExpectFails(t *testing.T) {
	server := NewFakeServer(t, func(c *FakeConn) error {
		if err := c.Accept(); err != nil {
			return err
		}
		return c.Serve(func(sql string) (string, error) {
			if sql == "fail" {
				return "", wire.Errorf("22012", "division by zero")
			}
			return sql, nil
		})
	})
	for _, tt := range []struct {
		name string
		do   func(*RawClient)
		want string
	}{
		{"another row", func(c *RawClient) { c.Send(Query("x")); c.Expect("T D(y) C Z") }, "expected T D(y) C Z, got T D(x)"},
		{"another type", func(c *RawClient) { c.Send(Query("x")); c.Expect("1") }, "expected 1, got T"},
		{"an error", func(c *RawClient) { c.Send(Query("fail")); c.Expect("T") }, "division by zero"},
		{"too few", func(c *RawClient) { c.Send(Query("x")); c.Timeout = 50 * time.Millisecond; c.Expect("T D C Z Z") }, "got T D(x) C(SELECT 1) Z(I), then"},
		{"no answer", func(c *RawClient) { c.Timeout = 50 * time.Millisecond; c.Read() }, "i/o timeout"},
		{"no silence", func(c *RawClient) { c.Send(Query("x")); c.ExpectSilence(20 * time.Second) }, "expected silence, got T"},
		{"no end", func(c *RawClient) { c.Timeout = 50 * time.Millisecond; c.ExpectEOF() }, "expected the end of the connection"},
		{"no login", func(c *RawClient) { _ = c.Authenticate("a", "b") }, "read so far:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			said := failure(t, func(tb testing.TB) {
				c := DialRaw(tb, server.Addr())
				if tt.name == "no login" {
					c.Timeout = 50 * time.Millisecond
				} else {
					c.Login("a", "")
				}
				tt.do(c)
			})
			if !strings.Contains(said, tt.want) {
				t.Errorf("failed with %q, want %q in it", said, tt.want)
			}
		})
	}
}

func TestSplitTrace(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want []string
	}{
		{"", nil},
		{"1 2  T ", []string{"1", "2", "T"}},
		{"C(SELECT 1) Z(I)", []string{"C(SELECT 1)", "Z(I)"}},
		{"D(f(x) y) Z", []string{"D(f(x) y)", "Z"}},
	} {
		if got := splitTrace(tt.in); !slices.Equal(got, tt.want) {
			t.Errorf("%q: %q, want %q", tt.in, got, tt.want)
		}
	}
}

func FuzzMsgString(f *testing.F) {
	for _, seed := range [][]byte{
		Query("select 1"),
		wire.AppendDataRow(nil, []byte("a"), nil),
		wire.AppendReadyForQuery(nil, wire.TxIdle),
		wire.Errorf("42P01", "gone").Append(nil),
		wire.AppendParameterStatus(nil, "a", "b"),
		wire.AppendAuth(nil, wire.AuthOK, nil),
		Message('A', []byte("\x00\x00\x00\x01ch\x00pay\x00")),
		Message('V', []byte{0, 0, 0, 1, 'x'}),
		Message('D', []byte{0, 3, 0, 0, 0, 9, 1}),
		RawMessage('Z', 0xffffffff, nil),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		m, err := readMsg(bytes.NewReader(p))
		if err != nil {
			return
		}
		if s := m.String(); s == "" || strings.ContainsAny(s, "\n\x00") {
			t.Errorf("%q", s)
		}
		if !bytes.HasPrefix(p, m.Bytes()) {
			t.Errorf("%q read as %q", p, m.Bytes())
		}
	})
}

func TestCutWriter(t *testing.T) {
	for _, tt := range []struct {
		name string
		w    CutWriter
		want []string
	}{
		{"whole", CutWriter{}, []string{"abcdef"}},
		{"cut twice", CutWriter{Cuts: []int{1, 4}}, []string{"a", "bcd", "ef"}},
		{"cuts outside", CutWriter{Cuts: []int{0, 6, 9}}, []string{"abcdef"}},
		{"by size", CutWriter{Size: 4}, []string{"abcd", "ef"}},
		{"both", CutWriter{Size: 2, Cuts: []int{3}, Pause: time.Microsecond}, []string{"ab", "c", "de", "f"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			tt.w.W = writerFunc(func(p []byte) (int, error) { got = append(got, string(p)); return len(p), nil })
			n, err := tt.w.Write([]byte("abcdef"))
			if n != 6 || err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("%q, %d, %v, want %q", got, n, err, tt.want)
			}
		})
	}
}

func TestRawClientEnds(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	for _, tt := range []struct {
		name string
		end  func(*RawClient)
		want string // how reading ends at the other side
	}{
		{"close", (*RawClient).Close, "EOF"},
		{"half", (*RawClient).CloseWrite, "EOF"},
		{"reset", (*RawClient).Reset, "connection reset by peer"},
		{"terminate", (*RawClient).Terminate, "X"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client := DialRaw(t, ln.Addr().String())
			conn, err := ln.Accept()
			must(t, err)
			defer conn.Close()
			tt.end(client)
			m, err := readMsg(conn)
			got := fmt.Sprint(err)
			if err == nil {
				got = m.String()
			}
			if !strings.Contains(got, tt.want) {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}
