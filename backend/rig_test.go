package backend

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/config"
	"pgproxy/pgtest"
	"pgproxy/wire"
)

// rig is a connection whose server is the test, in memory and in a bubble.
type rig struct {
	t       *testing.T
	conn    *Conn
	srv     net.Conn      // the server's end
	cancels chan net.Conn // the server's ends of connections for cancel requests

	mu        sync.Mutex
	released  int
	room      int
	discarded []error
}

// inBubble runs a story over a connection that has logged in, and checks that the
// connection ends and leaves nothing (the bubble sees to goroutines).
func inBubble(t *testing.T, limits Limits, story func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, cancels: make(chan net.Conn, 10)}
		ours, theirs := net.Pipe()
		r.srv = theirs
		start := time.Now()
		d := &Dialer{Limits: limits, Now: func() int64 { return 1 + int64(time.Since(start)) }, Connect: r.connect}
		r.conn = d.adopt(&pgconn.HijackedConn{
			Conn: ours, PID: 7, SecretKey: []byte{1, 2, 3, 4}, TxStatus: 'I',
			ParameterStatuses: map[string]string{"TimeZone": "UTC", "server_version": "15.0"},
		}, Login{Server: config.Server{Host: "memory", Port: 1}}, r, nil)
		story(r)
		_ = theirs.Close()
		r.conn.Close()
		r.conn.Wait()
	})
}

func (r *rig) connect(context.Context, string, string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	r.cancels <- theirs
	return ours, nil
}

func (r *rig) Release(*Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.released++
}

func (r *rig) Room(*Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.room++
}

func (r *rig) Reset(c *Conn) { r.Release(c) }
func (r *rig) Dying()        {}
func (r *rig) Pin(bool) bool { return true }
func (r *rig) Unpin()        {}
func (r *rig) Served(int)    {}

func (r *rig) Discard(_ *Conn, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.discarded = append(r.discarded, err)
}

// owner fails unless the owner has been told of so many releases and discards.
func (r *rig) owner(released, discarded int) {
	r.t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.released != released || len(r.discarded) != discarded {
		r.t.Errorf("released %d times and discarded %v, want %d and %d", r.released, r.discarded, released, discarded)
	}
}

// say sends from the server, in one write, and waits until it has been dealt with.
func (r *rig) say(msgs ...[]byte) {
	r.t.Helper()
	_ = r.srv.SetWriteDeadline(time.Now().Add(time.Minute))
	if _, err := r.srv.Write(pgtest.Join(msgs...)); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		r.t.Errorf("server: %v", err)
	}
	synctest.Wait()
}

// hear reads as many messages as there are types, and fails if they are others.
func (r *rig) hear(types string) []pgtest.Msg {
	r.t.Helper()
	var msgs []pgtest.Msg
	for _, want := range []byte(types) {
		_ = r.srv.SetReadDeadline(time.Now().Add(time.Minute))
		m, err := readMsg(r.srv)
		if err != nil || m.Type != want {
			r.t.Fatalf("server: message %d is %q (%v), want types %s", len(msgs), m.Type, err, types)
		}
		msgs = append(msgs, m)
	}
	return msgs
}

func readMsg(nc net.Conn) (pgtest.Msg, error) {
	var head [wire.HeaderLen]byte
	if _, err := io.ReadFull(nc, head[:]); err != nil {
		return pgtest.Msg{}, err
	}
	h, err := wire.ReadHeader(head[:], 1<<20)
	if err != nil {
		return pgtest.Msg{}, err
	}
	m := pgtest.Msg{Type: h.Type, Body: make([]byte, h.Body)}
	_, err = io.ReadFull(nc, m.Body)
	return m, err
}

// client is a Sink that remembers what it is told.
type client struct {
	t  *testing.T
	mu sync.Mutex // Lock

	st       sync.Mutex
	got      []byte
	lost     []error
	fatal    bool
	reported []string
	undone   []uint64
	wrote    int
	failures []*Failure
	stall    chan struct{} // replies wait for it, if not nil
	gate     chan struct{} // Lock waits for it, if not nil
	Sink                   // what this package's tests do not need
}

func (c *client) Lock() {
	if c.gate != nil {
		<-c.gate
	}
	c.mu.Lock()
}

func (c *client) Unlock() { c.mu.Unlock() }

func (c *client) Reply(p []byte) error {
	if c.stall != nil {
		<-c.stall
	}
	c.st.Lock()
	defer c.st.Unlock()
	if len(c.lost) > 0 && c.stall == nil {
		c.t.Error("a reply began after Lost")
	}
	c.got = append(c.got, p...)
	return nil
}

// TryReply is Reply, unless the client does not read.
func (c *client) TryReply(p []byte) []byte {
	if c.stall != nil {
		return p
	}
	_ = c.Reply(p)
	return nil
}

func (c *client) Reported(name, value string, login bool) {
	c.st.Lock()
	defer c.st.Unlock()
	s := name + "=" + value
	if login {
		s += " (login)"
	}
	c.reported = append(c.reported, s)
}

func (c *client) Signalled(Signal, uint32, bool) {}

func (c *client) Undone(change uint64) {
	c.st.Lock()
	defer c.st.Unlock()
	c.undone = append(c.undone, change)
}

func (c *client) Answered(_ int64, wrote bool) {
	c.st.Lock()
	defer c.st.Unlock()
	if wrote {
		c.wrote++
	}
}

func (c *client) Failing() {}

func (c *client) Failed(f *Failure) {
	c.st.Lock()
	defer c.st.Unlock()
	c.failures = append(c.failures, f)
}

func (c *client) Lost(err error, fatal bool) {
	c.st.Lock()
	defer c.st.Unlock()
	c.lost, c.fatal = append(c.lost, err), fatal
}

// heard fails unless the client has been told these messages, since it was asked
// last.
func (c *client) heard(want string) {
	c.t.Helper()
	synctest.Wait()
	c.st.Lock()
	defer c.st.Unlock()
	if got := trace(c.got); got != want {
		c.t.Errorf("the client heard %q, want %q", got, want)
	}
	c.got = nil
}

// isLost fails unless the client has been told so often that its connection is
// lost.
func (c *client) isLost(times int, fatal bool) {
	c.t.Helper()
	synctest.Wait()
	c.st.Lock()
	defer c.st.Unlock()
	if len(c.lost) != times || c.fatal != fatal {
		c.t.Errorf("lost %v, fatal %v; want %d times, %v", c.lost, c.fatal, times, fatal)
	}
}

// trace writes a stream of messages as pgtest.Trace does.
func trace(p []byte) string {
	var msgs []pgtest.Msg
	for len(p) > 0 {
		if len(p) < wire.HeaderLen {
			return pgtest.Trace(msgs) + " torn"
		}
		h, err := wire.ReadHeader(p, 1<<30)
		if err != nil || len(p) < h.Size() {
			return pgtest.Trace(msgs) + " torn"
		}
		msgs = append(msgs, pgtest.Msg{Type: h.Type, Body: bytes.Clone(p[wire.HeaderLen:h.Size()])})
		p = p[h.Size():]
	}
	return pgtest.Trace(msgs)
}

// lend lends the connection to a new client.
func (r *rig) lend() *client {
	r.t.Helper()
	c := &client{t: r.t}
	if err := r.conn.Lend(c, 0, 0); err != nil {
		r.t.Fatalf("lend: %v", err)
	}
	return c
}

var messages = map[byte]struct {
	bytes  []byte
	kind   Kind
	silent bool
}{
	'Q': {bytes: pgtest.Query("select 1"), kind: Query},
	'P': {bytes: pgtest.Parse("", "select 1"), kind: Parse},
	'B': {bytes: pgtest.Bind("", ""), kind: Bind},
	'E': {bytes: pgtest.Execute("", 0), kind: Execute},
	'S': {bytes: pgtest.Sync(), kind: Sync},
	'H': {bytes: pgtest.Flush(), silent: true},
	'd': {bytes: pgtest.CopyData("row"), silent: true},
	'c': {bytes: pgtest.CopyDone(), kind: CopyEnd},
}

// parcel makes one of messages, by their types.
func parcel(s Sink, types string) *Parcel {
	p := new(Parcel)
	for _, b := range []byte(types) {
		m := messages[b]
		p.Bytes = append(p.Bytes, m.bytes...)
		if !m.silent {
			p.Owed = append(p.Owed, Owed{Kind: m.kind, Sink: s})
		}
	}
	p.Open = strings.LastIndexAny(types, "PBE") > strings.LastIndexByte(types, 'S')
	return p
}

// send sends in a goroutine of its own, since the server's end reads only when
// it is told to. The result is in the channel.
func (r *rig) send(p *Parcel) <-chan error {
	done := make(chan error, 1)
	go func() { done <- r.conn.Send(p) }()
	return done
}

// ask lends, sends, and lets the server read it.
func (r *rig) ask(types string) *client {
	r.t.Helper()
	c := r.lend()
	r.more(c, types)
	return c
}

// more sends from a client that has the connection.
func (r *rig) more(c *client, types string) {
	r.t.Helper()
	done := r.send(parcel(c, types))
	r.hear(types)
	if err := <-done; err != nil {
		r.t.Fatalf("send: %v", err)
	}
}

var (
	ready    = wire.AppendReadyForQuery(nil, wire.TxIdle)
	readyT   = wire.AppendReadyForQuery(nil, wire.TxInside)
	complete = wire.AppendCommandComplete(nil, "SELECT 1")
	row      = wire.AppendDataRow(nil, []byte("1"))
	errPlain = wire.Errorf("42601", "syntax error").Append(nil)
	errAdmin = wire.Fatalf(wire.CodeAdminShutdown, "terminating connection").Append(nil)
	notice   = (&wire.Error{Severity: wire.SeverityNotice, Code: "00000", Message: "hello"}).AppendNotice(nil)
	zone     = wire.AppendParameterStatus(nil, "TimeZone", "Asia/Tokyo")
)
