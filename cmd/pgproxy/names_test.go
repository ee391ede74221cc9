package main

import (
	"context"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// forward passes connections from an address on to another until the test ends.
func forward(t *testing.T, from, to string) (port int) {
	t.Helper()
	ln, err := net.Listen("tcp4", from)
	if err != nil {
		t.Fatal(err)
	}
	var goes sync.WaitGroup
	goes.Go(func() { // until the listener is closed
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			goes.Go(func() { // until one side ends
				defer in.Close()
				out, err := net.DialTimeout("tcp4", to, 10*time.Second)
				if err != nil {
					return
				}
				defer out.Close()
				goes.Go(func() { _, _ = io.Copy(out, in); _ = out.Close() })
				_, _ = io.Copy(in, out)
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); goes.Wait() })
	return ln.Addr().(*net.TCPAddr).Port
}

// A name that leads to a new primary is followed, and what goes to the old one is cut,
// though it still takes writes.
func TestNameLeadsToTheNewPrimary(t *testing.T) {
	c := ledgerCluster(t, 1)
	old, next := c.Primary, c.Replicas[0]
	port := forward(t, "127.0.0.2:0", old.Addr())
	if forward(t, "127.0.0.3:"+strconv.Itoa(port), next.Addr()) != port {
		t.Fatal("another port")
	}
	var addr atomic.Value
	addr.Store("127.0.0.2")
	lookup := func(context.Context, string) ([]string, error) { return []string{addr.Load().(string)}, nil }
	a := startProxyWith(t, []string{"db.test:" + strconv.Itoa(port)}, fastChecks+"dns_max_ttl = \"100ms\"\n", "", appOptions{lookup: lookup})
	connect := func() *pgconn.PgConn {
		conn, err := pgconn.Connect(t.Context(), a.dsn(appUser, "app"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeClient(conn) })
		return conn
	}
	idle, open := connect(), connect()
	insert := func(conn *pgconn.PgConn, id string) error {
		_, _, err := statement(t.Context(), conn, false, "INSERT INTO transfers VALUES ("+id+")")
		return err
	}
	if err := insert(idle, "1"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := statement(t.Context(), open, false, "BEGIN"); err != nil {
		t.Fatal(err)
	}
	if err := insert(open, "2"); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitCaughtUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := next.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	addr.Store("127.0.0.3")
	eventually(t, 20*time.Second, "the new primary", func() bool { return a.monitor.Topology("app").Servers[0].Timeline == 2 })
	if err := insert(idle, "3"); err != nil {
		t.Errorf("an idle client: %v", err)
	}
	if _, _, err := statement(t.Context(), open, false, "COMMIT"); !hasCode(err, "08006") {
		t.Errorf("an open transaction: %v", err)
	}
	for node, want := range map[string]string{old.Addr(): "1", next.Addr(): "1,3"} {
		n := old
		if node == next.Addr() {
			n = next
		}
		if got, err := n.Value(t.Context(), "app", "SELECT string_agg(id::text, ',' ORDER BY id) FROM transfers"); err != nil || got != want {
			t.Errorf("%s has %s, %v, want %s", n.Name, got, err, want)
		}
	}
}
