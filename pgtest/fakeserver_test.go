package pgtest

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/wire"
)

func TestFakeServerServesDrivers(t *testing.T) {
	ctx := testContext(t)
	for _, way := range []string{"trust", "plain", "md5"} {
		t.Run(way, func(t *testing.T) {
			server := NewFakeServer(t, func(c *FakeConn) error {
				st, err := c.ReadStartup()
				if err != nil {
					return err
				}
				if st.Param("user") != "u" {
					t.Errorf("user %q", st.Param("user"))
				}
				if way != "trust" {
					if err := c.RequirePassword(way, "secret"); err != nil {
						return err
					}
				}
				if err := c.Send(c.Welcome()); err != nil {
					return err
				}
				return c.Serve(Echo)
			})
			conn, err := pgx.Connect(ctx, "postgres://u:secret@"+server.Addr()+"/db?sslmode=prefer")
			must(t, err)
			for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeExec, pgx.QueryExecModeCacheStatement} {
				var got string
				must(t, conn.QueryRow(ctx, "SELECT 'tag'", mode).Scan(&got))
				if got != "SELECT 'tag'" {
					t.Errorf("%s: %q", mode, got)
				}
			}
			must(t, conn.Close(ctx))
			if way == "trust" {
				return
			}
			_, err = pgx.Connect(ctx, "postgres://u:wrong@"+server.Addr()+"/db?sslmode=disable")
			if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != wire.CodeInvalidPassword {
				t.Errorf("a wrong password: %v", err)
			}
		})
	}
}

func TestFakeServerProtocol(t *testing.T) {
	server := NewFakeServer(t, Script{AcceptLogin(), ServeAll(func(sql string) (string, error) {
		if strings.HasPrefix(sql, "bad") {
			return "", wire.Errorf("22012", "bad")
		}
		return sql, nil
	})}.Run)
	client := DialRaw(t, server.Addr())
	client.Login("u", "")
	for _, tt := range []struct {
		name, want string
		send       []byte
	}{
		{"simple", "T D(a) C(SELECT 1) Z(I)", Query("a")},
		{"error", "E(22012) Z(I)", Query("bad")},
		{"extended", "1 2 T D(b) C(SELECT 1) Z(I)", Extended("b")},
		{"error skips to sync", "1 2 T E(22012) Z(I) 1 2 T D(c) C(SELECT 1) Z(I)", Join(Extended("bad"), Extended("c"))},
		{"named", "1 t T Z(I)", Join(Parse("s", "d"), Describe('S', "s"), Sync())},
		{"twice", "E(42P05) Z(I)", Join(Parse("s", "d"), Sync())},
		{"close", "3 Z(I)", Join(Close('S', "s"), Sync())},
		{"closed", "E(26000) Z(I)", Join(Bind("", "s"), Sync())},
		{"no portal", "E(34000) Z(I)", Join(Execute("p", 0), Sync())},
		{"unknown message", "E(08P01) Z(I)", Join(CopyDone(), Sync())},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client.Send(tt.send)
			for range splitTrace(tt.want) {
				client.Read()
			}
			if got := client.Trace(); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
	client.Send(Parse("", "x"))
	client.ExpectSilence(20 * time.Millisecond) // until Flush or Sync
	client.Send(Flush())
	client.Expect("1")

	conn := server.WaitConns(1)[0]
	if st := conn.StartupPacket(); st == nil || st.Param("user") != "u" {
		t.Errorf("startup packet %v", st)
	}
	all := string(conn.Received())
	if !strings.HasSuffix(all, string(Join(Parse("", "x"), Flush()))) || !strings.Contains(all, "user\x00u\x00") {
		t.Errorf("received %q", all)
	}
	if msgs := conn.Messages(); msgs[0].Type != wire.Query || msgs[len(msgs)-1].Type != wire.Flush {
		t.Errorf("messages %s", types(msgs))
	}
	client.Terminate()
	<-conn.Done()
}

func TestScript(t *testing.T) {
	t.Run("to its end", func(t *testing.T) {
		reached, goOn := make(chan struct{}), make(chan struct{})
		server := NewFakeServer(t, Script{
			AcceptLogin(),
			ExpectMessages("P B E S"),
			SendBytes(wire.AppendEmpty(nil, wire.ParseComplete)),
			Tell(reached),
			Await(goOn),
			SendPieces(Join(wire.AppendEmpty(nil, wire.BindComplete), wire.AppendCommandComplete(nil, "SELECT 0")), 1, time.Microsecond),
			SendError(wire.Fatalf(wire.CodeAdminShutdown, "that was all")),
			HalfClose(),
			DrainAll(),
		}.Run)
		client := DialRaw(t, server.Addr())
		client.Login("u", "")
		client.Send(Parse("", "x"), Bind("", ""), Execute("", 0), Sync())
		client.Expect("1")
		<-reached
		client.ExpectSilence(20 * time.Millisecond)
		close(goOn)
		if got := Trace(client.ExpectEOF()); got != "2 C(SELECT 0) E(57P01)" {
			t.Error(got)
		}
	})
	t.Run("reset", func(t *testing.T) {
		server := NewFakeServer(t, Script{AcceptLogin(), ExpectMessages("Q"), ResetNow()}.Run)
		client := DialRaw(t, server.Addr())
		client.Login("u", "")
		client.Send(Query("x"))
		if _, err := client.TryRead(); err == nil || !strings.Contains(err.Error(), "reset") {
			t.Errorf("read: %v, want a reset", err)
		}
	})
	t.Run("never reads", func(t *testing.T) {
		server := NewFakeServer(t, Script{AcceptLogin(), HoldOpen()}.Run)
		client := DialRaw(t, server.Addr())
		client.Login("u", "")
		client.Timeout = 50 * time.Millisecond
		if err := client.TrySend(make([]byte, 64<<20)); !isTimeout(err) {
			t.Errorf("64 MiB were sent to one who does not read: %v", err)
		}
		server.Close() // ends the hold
	})
	t.Run("other messages than expected", func(t *testing.T) {
		said := failure(t, func(tb testing.TB) {
			server := NewFakeServer(tb, Script{AcceptLogin(), ExpectMessages("Q X")}.Run)
			client := DialRaw(t, server.Addr())
			client.Login("u", "")
			client.Send(Query("x"), Sync())
			<-server.WaitConns(1)[0].Done()
		})
		if !strings.Contains(said, "step 2: expected Q X, got Q S") {
			t.Errorf("failed with %q", said)
		}
	})
	t.Run("the peer goes", func(t *testing.T) {
		server := NewFakeServer(t, Script{AcceptLogin(), ExpectMessages("Q")}.Run)
		client := DialRaw(t, server.Addr())
		client.Login("u", "")
		client.Reset()
		<-server.WaitConns(1)[0].Done() // and that is no failure
	})
}

func TestFakeServerCancelRequest(t *testing.T) {
	server := NewFakeServer(t, Script{AcceptLogin(), DrainAll()}.Run)
	client := DialRaw(t, server.Addr())
	client.Login("u", "")
	client.Cancel(server.Addr())
	conns := server.WaitConns(2)
	st := conns[1].StartupPacket()
	pid, secret := conns[0].Key()
	if st.Kind != wire.StartCancel || st.PID != pid || !slices.Equal(st.Secret, secret) {
		t.Errorf("cancel packet %+v", st)
	}
}
