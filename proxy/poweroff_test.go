package proxy_test

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"pgproxy/pgtest"
)

// TestPowerOff: a client whose machine is gone, which neither answers nor ends its
// connection, holds nothing on the server for longer than keepalive and
// tcp_user_timeout allow, whatever it was in the middle of (faults.md, F15). One that
// is there and does not read is no such client.
func TestPowerOff(t *testing.T) {
	c := realCluster(t)
	leaversTable(t, c)
	census := pgtest.NewCensus(t, c.Nodes()...)
	in := maps.Clone(states)
	in["waiting for a connection"] = func(c *pgtest.RawClient) { c.Send(pgtest.Query("SELECT 'waits'")) }
	in["idle"] = func(*pgtest.RawClient) {}
	in["idle with a lock"] = func(c *pgtest.RawClient) { c.Query("SELECT pg_advisory_lock(15)") }
	h := newHarness(t, harnessOptions{
		Servers: addrs(c)[:1],
		Proxy: trust + fmt.Sprintf("default_pool_size = %d\ntcp_keepidle = \"1s\"\ntcp_keepintvl = \"1s\"\n"+
			"tcp_keepcnt = 2\ntcp_user_timeout = \"3s\"", len(states)+2),
	})
	slow := h.Client(t)
	slow.Send(pgtest.Query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 30000)) TO STDOUT"))
	slow.Expect("H d d d")
	var gone []*pgtest.RawClient
	for where, enter := range in {
		if where != "waiting for a connection" {
			a := h.Client(t)
			enter(a)
			gone = append(gone, a)
		}
	}
	last := h.Client(t)
	in["waiting for a connection"](last)
	gone = append(gone, last)
	h.Client(t).Terminate() // by then the proxy has read what they have sent
	for _, a := range gone {
		a.PowerOff()
	}
	eventually(t, 30*time.Second, "the end of their sessions", func() bool { return h.Server.Stats().Clients == 1 })
	free := "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')"
	if err := c.Primary.WaitFor(t.Context(), "postgres", free); err != nil {
		t.Error(err)
	}
	assertGone(t, c, h.Client(t))
	if got := slow.ReadUntilReady(); len(got) != 30000-3+3 {
		t.Errorf("the slow client got %d messages", len(got))
	}
	slow.Terminate()
	census.AssertQuiet()
}
