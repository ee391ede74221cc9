package proxy_test

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

	"pgproxy/pgtest"
)

// hooked is a connection that tells of the first deadline for writing that is set.
type hooked struct {
	net.Conn
	set func()
	was atomic.Bool
}

func (c *hooked) SetWriteDeadline(t time.Time) error {
	err := c.Conn.SetWriteDeadline(t)
	if !c.was.Swap(true) {
		c.set()
	}
	return err
}

// TestEndMeetsFarewell: a client that is being told why it is not logged in hears that
// also where its session is ended at the same moment.
func TestEndMeetsFarewell(t *testing.T) {
	h := newHarness(t, harnessOptions{Servers: []string{"127.0.0.1:1"}, Proxy: trust})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	a := pgtest.DialRaw(t, l.Addr().String())
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	h.Server.Serve(&hooked{Conn: nc, set: func() { h.Server.KillClient(1) }})
	a.Startup("user", testUser, "database", "nowhere")
	msgs := a.ExpectEOF()
	if len(msgs) == 0 || code(msgs[len(msgs)-1].Err()) != "3D000" {
		t.Errorf("got %s", pgtest.Trace(msgs))
	}
}
