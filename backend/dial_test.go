package backend

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"pgproxy/config"
	"pgproxy/pgtest"
	"pgproxy/wire"
)

// owner passes on what it is told.
type owner struct {
	released  chan *Conn
	discarded chan error
}

func newOwner() *owner {
	return &owner{released: make(chan *Conn, 100), discarded: make(chan error, 100)}
}

func (o *owner) Release(c *Conn) { o.released <- c }
func (o *owner) Room(*Conn)      {}
func (o *owner) Reset(c *Conn)   { o.Release(c) }
func (o *owner) Pin(bool) bool   { return true }
func (o *owner) Unpin()          {}
func (o *owner) Dying()          {}
func (o *owner) Served(int)      {}

func (o *owner) Discard(_ *Conn, err error) { o.discarded <- err }

var clock = time.Now()

func newDialer() *Dialer {
	return &Dialer{
		Limits: Limits{MaxPrepared: 2, CancelWait: 10 * time.Second}, ConnectTimeout: 20 * time.Second,
		UserTimeout: 30 * time.Second, Now: func() int64 { return 1 + int64(time.Since(clock)) },
	}
}

func loginTo(port int) Login {
	return Login{Server: config.Server{Host: "127.0.0.1", Port: port}, Database: "postgres", User: "postgres", AppName: "pgproxy-test"}
}

func TestDialLogsIn(t *testing.T) {
	census := pgtest.NewCensus(t)
	srv := pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
		if err := c.Accept(); err != nil {
			return err
		}
		return c.Serve(pgtest.Echo)
	})
	o := newOwner()
	d := newDialer()
	d.ConnectQuery = "select 'connect'"
	c, err := d.Dial(t.Context(), loginTo(srv.Port()), o)
	if err != nil {
		t.Fatal(err)
	}
	if pid, secret := srv.Conns()[0].Key(); c.PID != pid || string(c.secret) != string(secret) || c.Params()["TimeZone"] != "UTC" {
		t.Errorf("pid %d, secret %x, parameters %v", c.PID, c.secret, c.Params())
	}
	st := srv.Conns()[0].StartupPacket()
	if st.Param("application_name") != "pgproxy-test" || st.Param("user") != "postgres" || len(st.Params) != 3 {
		t.Errorf("startup parameters %v", st.Params)
	}
	s := &client{t: t}
	if err := c.Lend(s, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Send(parcel(s, "Q")); err != nil {
		t.Fatal(err)
	}
	<-o.released
	if s.Lock(); trace(s.got) != "T D(select 1) C(SELECT 1) Z(I)" {
		t.Errorf("the client heard %s", trace(s.got))
	}
	s.Unlock()
	c.Close()
	c.Wait()
	<-srv.Conns()[0].Done()
	srv.Close()
	census.AssertBaseline()
}

func TestDialErrors(t *testing.T) {
	census := pgtest.NewCensus(t)
	refusal := wire.Fatalf(wire.CodeTooManyConnections, "sorry, too many clients already")
	for _, c := range []struct {
		name   string
		answer func(*pgtest.FakeConn) error
		code   string // of the server's refusal; "" is another error
	}{
		{"refused", func(c *pgtest.FakeConn) error { return c.Send(refusal.Append(nil)) }, wire.CodeTooManyConnections},
		{"closed", func(*pgtest.FakeConn) error { return nil }, ""},
		{"ends behind ready", func(c *pgtest.FakeConn) error { return c.Send(c.Welcome(), notice) }, ""},
		{"no error code", func(c *pgtest.FakeConn) error {
			return c.Send(pgtest.Message('E', []byte("SFATAL\x00Mno\x00\x00")))
		}, "-"},
		{"garbage", func(c *pgtest.FakeConn) error { return c.Send([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, ""},
		{"huge length", func(c *pgtest.FakeConn) error { return c.Send(pgtest.RawMessage('R', 0x7fffffff, nil)) }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := pgtest.NewFakeServer(t, func(fc *pgtest.FakeConn) error {
				if _, err := fc.ReadStartup(); err != nil {
					return err
				}
				return c.answer(fc)
			})
			conn, err := newDialer().Dial(t.Context(), loginTo(srv.Port()), newOwner())
			if err == nil {
				conn.Close()
				t.Fatal("logged in")
			}
			var e *wire.Error
			if errors.As(err, &e) != (c.code != "") || e != nil && c.code != "-" && e.Code != c.code {
				t.Errorf("error %v", err)
			}
			if !strings.Contains(err.Error(), "127.0.0.1") {
				t.Errorf("error %q does not name the server", err)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		srv := pgtest.NewFakeServer(t, func(*pgtest.FakeConn) error { return nil })
		srv.Close()
		if _, err := newDialer().Dial(t.Context(), loginTo(srv.Port()), newOwner()); err == nil {
			t.Error("no error")
		}
	})
	t.Run("context ends", func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		srv := pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error { stop(); return c.Hold() })
		if _, err := newDialer().Dial(ctx, loginTo(srv.Port()), newOwner()); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
	census.AssertBaseline()
}

// session is a connection to a real server and the one client that has it.
type session struct {
	t    *testing.T
	conn *Conn
	own  *owner
}

// run sends messages for a new client and returns what it hears until the
// connection comes back.
func (s *session) run(owed func(c *client) ([]Owed, []byte)) string {
	s.t.Helper()
	c := &client{t: s.t}
	if err := s.conn.Lend(c, 0, 0); err != nil {
		s.t.Fatal(err)
	}
	o, p := owed(c)
	if err := s.conn.Send(&Parcel{Owed: o, Bytes: p}); err != nil {
		s.t.Fatal(err)
	}
	select {
	case <-s.own.released:
	case err := <-s.own.discarded:
		s.t.Fatalf("discarded: %v", err)
	}
	c.Lock()
	defer c.Unlock()
	return trace(c.got)
}

func (s *session) query(sql string) string {
	s.t.Helper()
	return s.run(func(c *client) ([]Owed, []byte) { return []Owed{{Kind: Query, Sink: c}}, pgtest.Query(sql) })
}

func TestRealServer(t *testing.T) {
	node := pgtest.Shared(t).Nodes()[0]
	census := pgtest.NewCensus(t, node)
	o := newOwner()
	login := loginTo(node.Port)
	login.Server.Host, login.Password = node.Host, pgtest.SuperuserPassword
	conn, err := newDialer().Dial(t.Context(), login, o)
	if err != nil {
		t.Fatal(err)
	}
	s := &session{t: t, conn: conn, own: o}
	expect := func(got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	expect(s.query("select 1; selec"), "E(42601) Z(I)")

	// Settings come and go without the client's hearing of it.
	with := func(want *Settings, sql string) string {
		return s.run(func(c *client) ([]Owed, []byte) {
			owed, p, _ := conn.Adopt(want, nil, nil)
			return append(owed, Owed{Kind: Query, Sink: c}), append(p, pgtest.Query(sql)...)
		})
	}
	show := "select current_setting('work_mem'), current_setting('app.user', true)"
	expect(with(settings("work_mem", "7MB", "app.user", "it's"), show), "T D(7MB,it's) C(SELECT 1) Z(I)")
	expect(with(settings("app.user", "b"), show), "T D(4MB,b) C(SELECT 1) Z(I)")
	expect(with(nil, show), "T D(4MB,) C(SELECT 1) Z(I)")

	// The server keeps what max_prepared_statements allows.
	for _, name := range []string{"pgproxy_1", "pgproxy_2", "pgproxy_3"} {
		st := &Statement{Name: name, Query: []byte("select '" + name + "'")}
		expect(s.run(func(c *client) ([]Owed, []byte) {
			conn.Batch()
			owed, p := conn.Prepare(st, c, 0, false, nil, nil)
			p = append(p, pgtest.Join(pgtest.Bind("", name), pgtest.Execute("", 0), pgtest.Sync())...)
			return append(owed, Owed{Kind: Bind, Sink: c}, Owed{Kind: Execute, Sink: c}, Owed{Kind: Sync, Sink: c}), p
		}), "2 D("+name+") C(SELECT 1) Z(I)")
	}
	expect(s.query("select string_agg(name, ' ' order by name) from pg_prepared_statements"), "T D(pgproxy_2 pgproxy_3) C(SELECT 1) Z(I)")

	// A cancel request hits the statement and nothing behind it.
	expect(s.run(func(c *client) ([]Owed, []byte) {
		go func() {
			_ = node.WaitFor(context.Background(), "postgres", "select true from pg_stat_activity where query = 'select pg_sleep(1000)' and wait_event = 'PgSleep'")
			if sent, err := conn.Cancel(context.Background(), c); err != nil || !sent {
				t.Errorf("cancel: sent %v, %v", sent, err)
			}
		}()
		return []Owed{{Kind: Query, Sink: c}}, pgtest.Query("select pg_sleep(1000)")
	}), "T E(57014) Z(I)")
	expect(s.query("select 2"), "T D(2) C(SELECT 1) Z(I)")

	// COPY fails in the middle; the client's late CopyDone does no harm (B-08).
	expect(s.query("create table backend_copy (n int)"), "C(CREATE TABLE) Z(I)")
	expect(s.run(func(c *client) ([]Owed, []byte) {
		return []Owed{{Kind: Query, Sink: c}, {Kind: CopyEnd, Sink: c}},
			pgtest.Join(pgtest.Query("copy backend_copy from stdin"), pgtest.CopyData("x\n"), pgtest.CopyData("1\n"), pgtest.CopyDone())
	}), "G E(22P02) Z(I)")
	expect(s.query("drop table backend_copy"), "C(DROP TABLE) Z(I)")

	// A client that leaves a transaction open leaves nothing behind (B-30).
	c := &client{t: t}
	if err := conn.Lend(c, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := conn.Send(&Parcel{Owed: []Owed{{Kind: Query, Sink: c}}, Bytes: pgtest.Query("begin; create table backend_left (n int)")}); err != nil {
		t.Fatal(err)
	}
	conn.Quiet(c)
	conn.Abandon(c, "")
	<-o.released
	expect(s.query("select to_regclass('backend_left')"), "T D(NULL) C(SELECT 1) Z(I)")

	// Its own server's last words reach the client, once.
	c = &client{t: t}
	if err := conn.Lend(c, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := conn.Send(&Parcel{
		Owed: []Owed{{Kind: Query, Sink: c}}, Bytes: pgtest.Query("select pg_terminate_backend(pg_backend_pid())"),
	}); err != nil {
		t.Fatal(err)
	}
	<-o.discarded
	conn.Wait()
	if got := trace(c.got); !strings.HasSuffix(got, "E(57P01)") || strings.Count(got, "E(") != 1 || len(c.lost) != 1 || !c.fatal {
		t.Errorf("the client heard %s, lost %v, fatal %v", got, c.lost, c.fatal)
	}
	census.AssertBaseline()
}

// stuck is a client that does not read.
type stuck struct {
	*client
	began, lost, free chan struct{}
}

func (s *stuck) Reply([]byte) error { close(s.began); <-s.free; return nil }
func (s *stuck) Lost(error, bool)   { close(s.lost) }

// TestCloseOfASocketWhoseClientDoesNotRead: closing a socket waits for its
// readers, so the client must hear of it before.
func TestCloseOfASocketWhoseClientDoesNotRead(t *testing.T) {
	census := pgtest.NewCensus(t)
	srv := pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
		if err := c.Accept(); err != nil {
			return err
		}
		return c.Serve(pgtest.Echo)
	})
	c, err := newDialer().Dial(t.Context(), loginTo(srv.Port()), newOwner())
	if err != nil {
		t.Fatal(err)
	}
	s := &stuck{&client{t: t}, make(chan struct{}), make(chan struct{}), make(chan struct{})}
	if err := c.Lend(s, 0, 0); err != nil {
		t.Fatal(err)
	}
	p := parcel(s, "Q")
	p.Pin = PinSession
	if err := c.Send(p); err != nil {
		t.Fatal(err)
	}
	<-s.began
	done := make(chan struct{})
	go func() { c.Close(); close(done) }()
	<-s.lost
	close(s.free)
	<-done
	c.Wait()
	srv.Close()
	census.AssertBaseline()
}

// TestHostileSCRAM: a server that does not know the password is found out, whatever
// it says, and costs little (faults.md, S-11).
func TestHostileSCRAM(t *testing.T) {
	census := pgtest.NewCensus(t)
	for _, tt := range []struct {
		name  string
		first func(nonce string) string // to the client's first message
		then  []byte                    // to its last one
	}{
		{"long nonce", func(n string) string { return "r=" + n + strings.Repeat("x", 100<<10) + ",s=AAAA,i=4096" }, nil},
		{"another nonce", func(string) string { return "r=other,s=AAAA,i=4096" }, nil},
		{"no nonce of its own", func(n string) string { return "r=" + n + ",s=AAAA,i=4096" }, nil},
		{"no iterations", func(n string) string { return "r=" + n + "x,s=AAAA,i=0" }, nil},
		{"2^31-1 iterations", func(n string) string { return "r=" + n + "x,s=AAAA,i=2147483647" }, nil},
		{"bad salt", func(n string) string { return "r=" + n + "x,s=!!!,i=4096" }, nil},
		{"long salt", func(n string) string { return "r=" + n + "x,s=" + strings.Repeat("AAAA", 300<<10) + ",i=4096" }, nil},
		{"wrong signature", func(n string) string { return "r=" + n + "x,s=AAAA,i=1" }, wire.AppendAuth(nil, wire.AuthSASLFinal, []byte("v=AAAA"))},
		{"error at the end", func(n string) string { return "r=" + n + "x,s=AAAA,i=1" }, wire.AppendAuth(nil, wire.AuthSASLFinal, []byte("e=other-error"))},
		{"no signature", func(n string) string { return "r=" + n + "x,s=AAAA,i=1" }, wire.AppendAuth(nil, wire.AuthOK, nil)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for kind, secret := range map[string]config.Secret{
				"password": "secret", "proof": config.Secret("\x00scram\x00" + strings.Repeat("00", 64)),
			} {
				srv := pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
					if _, err := c.ReadStartup(); err != nil {
						return err
					}
					if err := c.Send(wire.AppendAuth(nil, wire.AuthSASL, []byte("SCRAM-SHA-256\x00\x00"))); err != nil {
						return err
					}
					m, err := c.Read()
					if err != nil {
						return err
					}
					_, nonce, _ := strings.Cut(string(m.Body), ",r=")
					if err := c.Send(wire.AppendAuth(nil, wire.AuthSASLContinue, []byte(tt.first(nonce)))); err != nil {
						return err
					}
					if _, err := c.Read(); err != nil {
						return err
					}
					if tt.then == nil {
						tt.then = wire.AppendAuth(nil, wire.AuthSASLFinal, []byte("v="+strings.Repeat("A", 43)+"="))
					}
					return c.Send(append(tt.then[:len(tt.then):len(tt.then)], append(wire.AppendAuth(nil, wire.AuthOK, nil), wire.AppendReadyForQuery(nil, wire.TxIdle)...)...))
				})
				l := loginTo(srv.Port())
				l.Password = secret
				ctx, stop := context.WithTimeout(t.Context(), 15*time.Second)
				conn, err := newDialer().Dial(ctx, l, newOwner())
				if err == nil {
					conn.Close()
					t.Errorf("%s: logged in", kind)
				}
				if ctx.Err() != nil {
					t.Errorf("%s: it takes long: %v", kind, err)
				}
				stop()
				srv.Close()
			}
		})
	}
	census.AssertBaseline()
}
