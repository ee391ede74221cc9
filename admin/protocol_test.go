package admin

import (
	"context"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

func TestLogin(t *testing.T) {
	r := newRig(t)
	c := r.login(adminUser, "pgproxy", "extra_float_digits", "2", "application_name", "x")
	for k, v := range map[string]string{
		"server_version": "1.25.2/bouncer", "client_encoding": "UTF8", "standard_conforming_strings": "on", "DateStyle": "ISO",
		"TimeZone": "GMT", "is_superuser": "off",
	} {
		if c.Params[k] != v {
			t.Errorf("%s is %q", k, c.Params[k])
		}
	}
	if c.PID == 0 || len(c.Secret) != 4 || c.Status != wire.TxIdle {
		t.Errorf("key %d %x, status %c", c.PID, c.Secret, c.Status)
	}
	c.Terminate()
}

func TestExtendedProtocol(t *testing.T) {
	r := newRig(t)
	c := r.admin()
	for _, tt := range []struct {
		name, want string
		send       []byte
	}{
		{"a row", "1 2 T D(PgBouncer 1.25.2 (pgproxy 0.test)) C(SHOW) Z(I)", pgtest.Join(
			pgtest.Parse("", "SHOW VERSION"), pgtest.Bind("", ""), pgtest.Describe('P', ""), pgtest.Execute("", 0), pgtest.Sync())},
		{"a statement", "1 t T Z(I)", pgtest.Join(pgtest.Parse("s", "show state"), pgtest.Describe('S', "s"), pgtest.Sync())},
		{
			"again and again", "2 D(active,yes) D(paused,no) D(suspended,no) C(SHOW) 2 D(active,yes) D(paused,no) D(suspended,no) C(SHOW) Z(I)",
			pgtest.Join(pgtest.Bind("", "s"), pgtest.Execute("", 0), pgtest.Bind("", "s"), pgtest.Execute("", 0), pgtest.Sync()),
		},
		{"in parts", "2 D(active,yes) D(paused,no) s D(suspended,no) C(SHOW) Z(I)", pgtest.Join(
			pgtest.Bind("p", "s"), pgtest.Execute("p", 2), pgtest.Execute("p", 2), pgtest.Sync())},
		{"the name is taken", "E(42P05) Z(I)", pgtest.Join(pgtest.Parse("s", "show state"), pgtest.Sync())},
		{"closed", "3 3 Z(I)", pgtest.Join(pgtest.Close('S', "s"), pgtest.Close('P', "nothing"), pgtest.Sync())},
		{"gone", "E(26000) Z(I)", pgtest.Join(pgtest.Bind("", "s"), pgtest.Execute("", 0), pgtest.Sync())},
		{"the portal ends with Sync", "E(34000) Z(I)", pgtest.Join(pgtest.Execute("p", 0), pgtest.Sync())},
		{"without rows", "1 t n 2 n C(RELOAD) Z(I)", pgtest.Join(
			pgtest.Parse("", "RELOAD"), pgtest.Describe('S', ""), pgtest.Bind("", ""), pgtest.Describe('P', ""), pgtest.Execute("", 0), pgtest.Sync())},
		{"not twice", "1 2 C(RELOAD) E(55000) Z(I)", pgtest.Join(
			pgtest.Parse("", "RELOAD"), pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.Execute("", 0), pgtest.Sync())},
		{"empty", "1 t n 2 I Z(I)", pgtest.Join(
			pgtest.Parse("", " ; "), pgtest.Describe('S', ""), pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.Sync())},
		{"help", "1 2 n N C(SHOW) Z(I)", pgtest.Join(
			pgtest.Parse("", "SHOW HELP"), pgtest.Bind("", ""), pgtest.Describe('P', ""), pgtest.Execute("", 0), pgtest.Sync())},
		{"parameters", "E(0A000) Z(I)", pgtest.Join(pgtest.Parse("", "SHOW VERSION", 23), pgtest.Sync())},
		{"parameters in Bind", "1 E(0A000) Z(I)", pgtest.Join(pgtest.Parse("", "SHOW VERSION"), pgtest.Bind("", "", "1"), pgtest.Sync())},
		{"a placeholder", "E(08P01) Z(I)", pgtest.Join(pgtest.Parse("", "KILL $1"), pgtest.Bind("", "", "app"), pgtest.Sync())},
		{"too many formats", "1 E(08P01) Z(I)", pgtest.Join(pgtest.Parse("", "SHOW STATE"),
			pgtest.BindFormats("", "", nil, nil, []uint16{0, 0, 0}), pgtest.Sync())},
		{"an unknown format", "1 E(22023) Z(I)", pgtest.Join(pgtest.Parse("", "SHOW STATE"),
			pgtest.BindFormats("", "", nil, nil, []uint16{7}), pgtest.Sync())},
		{"skipped up to Sync", "E(08P01) Z(I)", pgtest.Join(
			pgtest.Parse("", "nonsense"), pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.Query("RELOAD"), pgtest.Sync())},
		{"transactions", "1 2 C(BEGIN) Z(T)", pgtest.Join(
			pgtest.Parse("", "BEGIN"), pgtest.Bind("", ""), pgtest.Execute("", 0), pgtest.Sync())},
		{"an error in it", "E(26000) Z(E)", pgtest.Join(pgtest.Bind("", "none"), pgtest.Sync())},
		{"its end", "C(ROLLBACK) Z(I)", pgtest.Query("ROLLBACK")},
		{"a function", "E(0A000) Z(I)", pgtest.FunctionCall(1)},
		{"COPY data out of place", "Z(I)", pgtest.Join(pgtest.CopyData("x"), pgtest.CopyDone(), pgtest.CopyFail("x"), pgtest.Sync())},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c.Send(tt.send)
			c.Expect(tt.want)
		})
	}
	c.Send(pgtest.Parse("", "SHOW VERSION"), pgtest.Flush())
	c.Expect("1")
	c.Send(pgtest.Sync())
	c.Expect("Z(I)")
}

// TestManyStatements: what a client can make the console keep is bounded.
func TestManyStatements(t *testing.T) {
	r := newRig(t)
	c := r.admin()
	for i := range maxObjects {
		c.Send(pgtest.Parse("s"+strconv.Itoa(i), "SHOW VERSION"), pgtest.Sync())
		c.Expect("1 Z(I)")
	}
	c.Send(pgtest.Parse("more", "SHOW VERSION"), pgtest.Sync())
	c.Expect("E(53200) Z(I)")
}

// TestGarbage: who breaks the protocol hears 08P01, at most, and is cut.
func TestGarbage(t *testing.T) {
	r := newRig(t)
	for name, send := range map[string][]byte{
		"an unknown type":            pgtest.Message('!', []byte("x")),
		"a server's message":         pgtest.Message('T', nil),
		"a message that is too long": pgtest.RawMessage('Q', 64<<10+1, nil),
		"a length of 2 GiB":          pgtest.RawMessage('P', math.MaxInt32, nil),
		"a length below 4":           pgtest.RawMessage('Q', 3, nil),
		"no end of the string":       pgtest.Message('Q', []byte("SHOW VERSION")),
		"bytes behind the string":    pgtest.Message('Q', []byte("SHOW VERSION\x00RELOAD\x00")),
		"a cut Parse":                pgtest.Message('P', []byte("x\x00")),
		"a cut Bind":                 pgtest.Message('B', []byte("\x00\x00\x00\x01")),
		"a Bind of bad lengths":      pgtest.Message('B', []byte("\x00\x00\x00\x00\x00\x01\xff\x00\x00\x00\x00\x00")),
		"a cut Execute":              pgtest.Message('E', []byte("x\x00\x00")),
		"a Describe of nothing":      pgtest.Message('D', []byte("X\x00")),
		"a Close of nothing":         pgtest.Message('C', nil),
		"random bytes":               []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			c := r.admin()
			c.Send(send)
			msgs := c.ExpectEOF()
			if len(msgs) != 1 || msgs[0].Type != 'E' || msgs[0].Err().Code != wire.CodeProtocolViolation || msgs[0].Err().Severity != "FATAL" {
				t.Errorf("it heard %s", pgtest.Trace(msgs))
			}
		})
	}
	c := r.admin()
	if got := say(c, "SHOW VERSION "+strings.Repeat(" ", 64<<10-100)); got != "SHOW" {
		t.Errorf("a long statement: %s", got)
	}
	cut := r.admin()
	cut.Send(pgtest.RawMessage('Q', 100, []byte("SHOW"))) // and no more
	cut.CloseWrite()
	cut.ExpectEOF()
}

// TestServerClose: the end of the server ends console clients, idle or busy,
// with 57P01.
func TestServerClose(t *testing.T) {
	r := newRig(t)
	idle, busy := r.admin(), r.admin()
	r.holdClient(idle)
	busy.Send(pgtest.Query("PAUSE app"))
	await(t, idle, "SHOW DATABASES", paused("1"))
	done := make(chan error, 1)
	go func() { done <- r.Server.Close() }()
	close(r.hold)
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, c := range []*pgtest.RawClient{idle, busy} {
		msgs := c.ExpectEOF()
		if len(msgs) == 0 || msgs[len(msgs)-1].Err().Code != wire.CodeAdminShutdown {
			t.Errorf("it heard %s", pgtest.Trace(msgs))
		}
	}
}

func TestPipelinedCommands(t *testing.T) {
	r := newRig(t)
	c := r.admin()
	var send []byte
	for range 20 {
		send = append(send, pgtest.Query("SHOW STATE")...)
	}
	c.Send(send)
	for range 20 {
		c.Expect("T D D D C(SHOW) Z(I)")
	}
}

// TestPgx: pgx, with all its ways to query, reads every table.
func TestPgx(t *testing.T) {
	r := newRig(t)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	cfg, err := pgx.ParseConfig("postgres://" + r.Addr + "/pgbouncer?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	cfg.User, cfg.Password = adminUser, password
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if err := conn.Ping(ctx); err != nil {
		t.Error(err)
	}
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec,
		pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			for name, e := range shows {
				if e.cols == nil {
					continue
				}
				rows, err := conn.Query(ctx, "SHOW "+name, mode)
				if err != nil {
					t.Fatalf("SHOW %s: %v", name, err)
				}
				for rows.Next() {
					if _, err := rows.Values(); err != nil {
						t.Errorf("SHOW %s: %v", name, err)
					}
				}
				if rows.Err() != nil {
					t.Errorf("SHOW %s: %v", name, rows.Err())
				}
			}
			var port int32
			var big int64
			if err := conn.QueryRow(ctx, "SHOW LISTS", mode).Scan(new(string), &port); err != nil || port != 3 {
				t.Errorf("lists: %d, %v", port, err)
			}
			var total pgtype.Numeric
			if err := conn.QueryRow(ctx, "SHOW TOTALS", mode).Scan(new(string), &total); err != nil {
				t.Errorf("totals: %v", err)
			}
			if err := conn.QueryRow(ctx, "SHOW TOTALS", mode).Scan(new(string), &big); err != nil {
				t.Errorf("totals: %v", err)
			}
			if tag, err := conn.Exec(ctx, "RELOAD", mode); err != nil || tag.String() != "RELOAD" {
				t.Errorf("%s, %v", tag, err)
			}
		})
	}
}

// TestBinary: what is asked for in binary comes so, and decodes to the same.
func TestBinary(t *testing.T) {
	m := pgtype.NewMap()
	for _, n := range []int64{0, 1, -1, 42, 9999, 10000, 10001, 123456789, -1234567890123, math.MaxInt32, math.MaxInt64, math.MinInt64} {
		var num pgtype.Numeric
		if err := m.Scan(wire.OIDNumeric, pgx.BinaryFormatCode, encode(wire.OIDNumeric, n, formatBinary), &num); err != nil {
			t.Fatal(err)
		}
		if got, err := num.Int64Value(); err != nil || got.Int64 != n {
			t.Errorf("numeric %d: %v, %v", n, got, err)
		}
		var big int64
		if err := m.Scan(wire.OIDInt8, pgx.BinaryFormatCode, encode(wire.OIDInt8, n, formatBinary), &big); err != nil || big != n {
			t.Errorf("int8 %d: %d, %v", n, big, err)
		}
		var small int32
		want := int32(max(math.MinInt32, min(n, math.MaxInt32)))
		if err := m.Scan(wire.OIDInt4, pgx.BinaryFormatCode, encode(wire.OIDInt4, n, formatBinary), &small); err != nil || small != want {
			t.Errorf("int4 %d: %d, %v", n, small, err)
		}
	}
}
