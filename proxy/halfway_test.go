package proxy_test

import (
	"strings"
	"testing"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// halfRow is a server that answers with the first 100 of a row's 211 bytes, and
// then waits for next.
func halfRow(t *testing.T, next func(*pgtest.FakeConn) error) *pgtest.FakeServer {
	t.Helper()
	return pgtest.NewFakeServer(t, func(f *pgtest.FakeConn) error {
		if err := f.Accept(); err != nil {
			return err
		}
		for {
			m, err := f.Read()
			if err != nil {
				return err
			}
			if m.Type != wire.Query {
				continue
			}
			row := append([]byte{0, 1, 0, 0, 0, 200}, strings.Repeat("r", 200)...)
			if err := f.Send(pgtest.Message(wire.DataRow, row)[:100]); err != nil {
				return err
			}
			return next(f)
		}
	})
}

// TestNothingIntoHalfARow: what the proxy has to say about an end in the middle
// of a row must not be taken for the rest of the row.
func TestNothingIntoHalfARow(t *testing.T) {
	for _, tt := range []struct {
		name, proxy string
		next        func(*pgtest.FakeConn) error
	}{
		{"the server dies", "", func(*pgtest.FakeConn) error { return nil }},
		{"query_timeout", "query_timeout = 1", (*pgtest.FakeConn).Hold},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := halfRow(t, tt.next)
			h := newHarness(t, harnessOptions{Servers: []string{srv.Addr()}, Proxy: tt.proxy, Untidy: "the fake server holds its connection"})
			a := h.Client(t)
			a.Send(pgtest.Query("half"))
			if m, err := a.TryRead(); err == nil {
				t.Errorf("the client got a whole %s", m)
			}
		})
	}
}

// TestReloadedParseSize: a session's buffer is as large as the limit was when it
// logged in; a larger limit does not end it.
func TestReloadedParseSize(t *testing.T) {
	c := realCluster(t)
	opt := harnessOptions{Servers: addrs(c)[:1], Proxy: "max_query_parse_size = 65536"}
	h := newHarness(t, opt)
	a := h.Client(t)
	long := pgtest.Query("SELECT length('" + strings.Repeat("x", 500_000) + "')::text")
	want := "T D(500000) C(SELECT 1) Z(I)"
	a.Send(long)
	if got := answer(a); got != want {
		t.Fatal(got)
	}
	opt.Proxy = "max_query_parse_size = 1048576"
	h.apply(t, opt)
	a.Query("SELECT 1")
	a.Send(long)
	if got := answer(a); got != want {
		t.Errorf("after the reload: %s", got)
	}
}
