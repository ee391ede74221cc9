package backend

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/pgtest"
)

// laggard is a socket whose first write comes back late, as on a machine that
// is short of processors: the answer is there before.
type laggard struct {
	net.Conn
	late atomic.Bool
}

func (l *laggard) Write(p []byte) (int, error) {
	n, err := l.Conn.Write(p)
	if !l.late.Swap(true) {
		t := time.NewTimer(100 * time.Millisecond)
		<-t.C
	}
	return n, err
}

// TestDialSlowWrite: a write of the login that takes long makes pgconn start a
// reader of its own. It must not take the first reply away.
func TestDialSlowWrite(t *testing.T) {
	census := pgtest.NewCensus(t)
	srv := pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
		if err := c.Accept(); err != nil {
			return err
		}
		return c.Serve(pgtest.Echo)
	})
	o := newOwner()
	d := newDialer()
	d.Connect = func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, network, addr)
		return &laggard{Conn: nc}, err
	}
	c, err := d.Dial(t.Context(), loginTo(srv.Port()), o)
	if err != nil {
		t.Fatal(err)
	}
	s := &client{t: t}
	if err := c.Lend(s, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Send(parcel(s, "Q")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-o.released:
	case <-time.After(10 * time.Second):
		t.Error("the first reply has not come")
	}
	c.Close()
	c.Wait()
	<-srv.Conns()[0].Done()
	srv.Close()
	census.AssertBaseline()
}
