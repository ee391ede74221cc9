package proxy_test

import (
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// TestEvictedBehindError: the Close that makes room for a statement may stand behind an
// error, so the server still has what it is about. What comes next does not know yet.
func TestEvictedBehindError(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1\nmax_prepared_statements = 2"})
	a := h.Client(t)
	for range 50 {
		a.Send(pgtest.Parse("s1", "SELECT 1"), pgtest.Parse("s2", "SELECT 2"), pgtest.Sync())
		a.Expect("1 1 Z(I)")
		a.Send(
			pgtest.Execute("nobody", 0), pgtest.Parse("s3", "SELECT 3"), pgtest.Parse("s4", "SELECT 4"), pgtest.Sync(),
			pgtest.Bind("", "s1"), pgtest.Execute("", 0), pgtest.Bind("", "s2"), pgtest.Execute("", 0), pgtest.Sync(),
			pgtest.Close('S', "s1"), pgtest.Close('S', "s2"), pgtest.Sync())
		a.Expect("E(34000) Z(I) 2 D(1) C(SELECT 1) 2 D(2) C(SELECT 1) Z(I) 3 3 Z(I)")
	}
}

// TestFlushOfWhatIsHeldBack: a server that sends the beginning of an answer before
// anything asks for it does not keep a client waiting that does.
func TestFlushOfWhatIsHeldBack(t *testing.T) {
	s := pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
		if err := c.Accept(); err != nil {
			return err
		}
		m := newModelSession()
		for {
			msg, err := c.Read()
			if err != nil || msg.Type == wire.Terminate {
				return err
			}
			m.read(msg)
			if err := c.Send(m.out); err != nil {
				return err
			}
			m.out = m.out[:0]
		}
	})
	h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: trust + "default_pool_size = 1"})
	a := h.Client(t)
	a.Send(pgtest.Parse("s1", "SELECT 'a'"), pgtest.Sync())
	a.Expect("1 Z(I)")
	heard := func(n int) {
		t.Helper()
		eventually(t, 10*time.Second, "what was sent at the server", func() bool { return len(s.Conns()[0].Messages()) >= n })
	}
	n := len(s.Conns()[0].Messages())
	a.Send(pgtest.Bind("", "s1"), pgtest.Describe('P', ""))
	heard(n + 2)
	a.Send(pgtest.Flush())
	a.Expect("2 T")
	a.Send(pgtest.Execute("", 0), pgtest.Sync())
	a.Expect("D(a) C(SELECT 1) Z(I)")
}

// TestBatchOfClose: a batch that begins with the Close of a statement is a batch of its
// own: a Parse that an error in the one before has kept from the server is not believed.
func TestBatchOfClose(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 2"})
	a, b := h.Client(t), h.Client(t)
	a.Send(pgtest.Parse("s1", "SELECT 1"), pgtest.Parse("s2", "SELECT 2"), pgtest.Sync())
	a.Expect("1 1 Z(I)")
	begin(b) // has the connection with the two
	a.Send(
		pgtest.Execute("nobody", 0), pgtest.Bind("", "s1"), pgtest.Sync(),
		pgtest.Close('S', "s2"), pgtest.Bind("", "s1"), pgtest.Execute("", 0), pgtest.Sync())
	a.Expect("E(34000) Z(I) 3 2 D(1) C(SELECT 1) Z(I)")
}
