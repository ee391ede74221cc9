package pgtest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"pgproxy/wire"
)

// FakeServer listens on 127.0.0.1 and hands each connection to a handler: what a
// real server never does can be tested with it. It records what it is sent. Its
// methods may be called from any goroutine.
type FakeServer struct {
	t       testing.TB
	ln      net.Listener
	handler func(*FakeConn) error
	closed  chan struct{}
	wg      sync.WaitGroup // the accept loop and the handlers

	// guarded by mu
	mu    sync.Mutex
	conns []*FakeConn // in the order of their coming
	more  chan struct{}
}

// NewFakeServer starts a server that runs handler for each connection, in a
// goroutine of its own, and closes the connection when handler returns. An error
// from handler fails the test, unless it comes of the peer's going away or of the
// server's own end. The server is closed when the test ends.
func NewFakeServer(t testing.TB, handler func(*FakeConn) error) *FakeServer {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("fake server: %v", err)
	}
	s := &FakeServer{t: t, ln: ln, handler: handler, closed: make(chan struct{}), more: make(chan struct{})}
	s.wg.Go(s.accept) // ends when Close closes the listener
	t.Cleanup(s.Close)
	return s
}

// Addr is the server's host:port.
func (s *FakeServer) Addr() string { return s.ln.Addr().String() }

// Port is the server's TCP port.
func (s *FakeServer) Port() int { return s.ln.Addr().(*net.TCPAddr).Port }

// Close closes the listener and every connection and waits for the handlers.
func (s *FakeServer) Close() {
	s.mu.Lock()
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	for _, c := range s.conns {
		_ = c.Conn.Close()
	}
	s.mu.Unlock()
	_ = s.ln.Close()
	s.wg.Wait()
}

// Conns returns the connections that have come so far, ended ones too.
func (s *FakeServer) Conns() []*FakeConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*FakeConn(nil), s.conns...)
}

// WaitConns waits up to 20 s until n connections have come and returns them.
func (s *FakeServer) WaitConns(n int) []*FakeConn {
	s.t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		s.mu.Lock()
		conns, more := append([]*FakeConn(nil), s.conns...), s.more
		s.mu.Unlock()
		if len(conns) >= n {
			return conns
		}
		select {
		case <-more:
		case <-timeout:
			s.t.Fatalf("fake server: %d connections came, want %d", len(conns), n)
		}
	}
}

func (s *FakeServer) accept() {
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return
		}
		c := &FakeConn{Conn: conn, server: s, done: make(chan struct{})}
		c.r = bufio.NewReader(io.TeeReader(conn, &c.received))
		s.mu.Lock()
		select {
		case <-s.closed:
			s.mu.Unlock()
			_ = conn.Close()
			return
		default:
		}
		c.Index = len(s.conns)
		s.conns = append(s.conns, c)
		close(s.more)
		s.more = make(chan struct{})
		s.wg.Go(func() { s.serve(c) }) // ends with the connection or with Close
		s.mu.Unlock()
	}
}

func (s *FakeServer) serve(c *FakeConn) {
	defer close(c.done)
	defer func() { _ = c.Conn.Close() }()
	err := s.handler(c)
	if err == nil || isGone(err) {
		return
	}
	select {
	case <-s.closed:
	default:
		s.t.Errorf("fake server, connection %d: %v", c.Index, err)
	}
}

// isGone reports whether an error means that the connection has ended.
func isGone(err error) bool {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		return true
	}
	_, ok := errors.AsType[*net.OpError](err)
	return ok && !isTimeout(err)
}

// FakeConn is one connection to a FakeServer. Its handler's goroutine uses it;
// Received, Done and Startup's result may be asked for from anywhere.
type FakeConn struct {
	Conn  net.Conn
	Index int // 0 for the first connection that came

	server   *FakeServer
	r        *bufio.Reader
	received record
	done     chan struct{}

	// guarded by mu
	mu      sync.Mutex
	startup *wire.Startup
	msgs    []Msg
}

// record keeps all bytes that were read from a connection.
type record struct {
	mu  sync.Mutex
	all []byte
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, p...)
	return len(p), nil
}

// Upgrade puts another connection, such as a TLS one over Conn, in the place of
// the first. Nothing may have been read ahead.
func (c *FakeConn) Upgrade(conn net.Conn) {
	c.Conn = conn
	c.r = bufio.NewReader(io.TeeReader(conn, &c.received))
}

// Received returns a copy of all bytes that were read, startup included.
func (c *FakeConn) Received() []byte {
	c.received.mu.Lock()
	defer c.received.mu.Unlock()
	return append([]byte(nil), c.received.all...)
}

// Messages returns the messages that the handler has read behind the startup
// packet.
func (c *FakeConn) Messages() []Msg {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Msg(nil), c.msgs...)
}

// StartupPacket returns the startup packet, nil before it was read.
func (c *FakeConn) StartupPacket() *wire.Startup {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.startup
}

// Done is closed when the handler has returned and the connection is closed.
func (c *FakeConn) Done() <-chan struct{} { return c.done }

// Read reads one message.
func (c *FakeConn) Read() (Msg, error) {
	m, err := readMsg(c.r)
	if err == nil {
		c.mu.Lock()
		c.msgs = append(c.msgs, m)
		c.mu.Unlock()
	}
	return m, err
}

// ReadStartup reads the first packet that is no request for encryption; those
// are answered N. A cancel request is returned like a startup packet.
func (c *FakeConn) ReadStartup() (*wire.Startup, error) {
	for {
		head, err := c.r.Peek(4)
		if err != nil {
			return nil, err
		}
		n, err := wire.StartupLen(head)
		if err != nil {
			return nil, err
		}
		packet := make([]byte, n)
		if _, err := io.ReadFull(c.r, packet); err != nil {
			return nil, err
		}
		st, err := wire.ReadStartup(packet)
		if err != nil {
			return nil, err
		}
		if st.Kind == wire.StartSSL || st.Kind == wire.StartGSSENC {
			if err := c.Send([]byte{'N'}); err != nil {
				return nil, err
			}
			continue
		}
		c.mu.Lock()
		c.startup = st
		c.mu.Unlock()
		return st, nil
	}
}

// Send writes messages, or any bytes, in one write.
func (c *FakeConn) Send(msgs ...[]byte) error {
	_, err := c.Conn.Write(Join(msgs...))
	return err
}

// Reset closes the connection by a TCP reset.
func (c *FakeConn) Reset() error { return reset(c.Conn) }

// CloseWrite closes the sending direction only.
func (c *FakeConn) CloseWrite() error { return closeWrite(c.Conn) }

// Hold does nothing, not even read, until the server is closed.
func (c *FakeConn) Hold() error {
	<-c.server.closed
	return nil
}

// Drain reads and forgets until the peer goes.
func (c *FakeConn) Drain() error {
	for {
		if _, err := c.Read(); err != nil {
			return err
		}
	}
}

// Accept reads the startup packet and logs the client in without a password. A
// cancel request ends the connection with io.EOF.
func (c *FakeConn) Accept() error {
	st, err := c.ReadStartup()
	if err != nil {
		return err
	}
	if st.Kind == wire.StartCancel {
		return io.EOF
	}
	return c.Send(c.Welcome())
}

// Key is the cancel key that Welcome gives out: process id and secret.
func (c *FakeConn) Key() (pid uint32, secret []byte) {
	return uint32(1000 + c.Index), []byte{0xca, 0xfe, byte(c.Index >> 8), byte(c.Index)}
}

// Welcome is what a server says after a good login: AuthenticationOk, a few
// parameters, the cancel key, ReadyForQuery.
func (c *FakeConn) Welcome() []byte {
	b := wire.AppendAuth(nil, wire.AuthOK, nil)
	for _, p := range [][2]string{
		{"server_version", "15.0"},
		{"server_encoding", "UTF8"},
		{"client_encoding", "UTF8"},
		{"DateStyle", "ISO, MDY"},
		{"IntervalStyle", "postgres"},
		{"TimeZone", "UTC"},
		{"integer_datetimes", "on"},
		{"standard_conforming_strings", "on"},
		{"is_superuser", "off"},
		{"in_hot_standby", "off"},
		{"default_transaction_read_only", "off"},
	} {
		b = wire.AppendParameterStatus(b, p[0], p[1])
	}
	pid, secret := c.Key()
	b = wire.AppendBackendKeyData(b, pid, secret)
	return wire.AppendReadyForQuery(b, wire.TxIdle)
}

// Serve answers simple and extended queries until the client goes. The one
// column and row of each answer is what answer makes of the statement's text; an
// error of type *wire.Error becomes an ErrorResponse (and ends the batch), any
// other ends the connection.
func (c *FakeConn) Serve(answer func(sql string) (string, error)) error {
	s := fakeSession{answer: answer, statements: make(map[string]string), portals: make(map[string]string)}
	for {
		m, err := c.Read()
		if err != nil {
			return err
		}
		if m.Type == wire.Terminate {
			return nil
		}
		reply, err := s.reply(m)
		if err != nil {
			return err
		}
		// Replies wait for Sync, Flush or the end of a simple query, as in
		// PostgreSQL.
		s.out = append(s.out, reply...)
		if m.Type == wire.Sync || m.Type == wire.Flush || m.Type == wire.Query {
			if err := c.Send(s.out); err != nil {
				return err
			}
			s.out = s.out[:0]
		}
	}
}

// Echo answers a statement with its own text: for Serve.
func Echo(sql string) (string, error) { return sql, nil }

// fakeSession is what Serve remembers of a client.
type fakeSession struct {
	answer     func(sql string) (string, error)
	statements map[string]string // SQL by name
	portals    map[string]string // SQL by name
	failed     bool              // skips to Sync
	out        []byte
}

var fakeColumns = []wire.Column{{Name: "answer", OID: wire.OIDText}}

func (s *fakeSession) reply(m Msg) ([]byte, error) {
	if m.Type == wire.Sync {
		s.failed = false
		return wire.AppendReadyForQuery(nil, wire.TxIdle), nil
	}
	if s.failed {
		return nil, nil
	}
	b, err := s.serve(m)
	if e, ok := errors.AsType[*wire.Error](err); ok {
		b = e.Append(b)
		if m.Type == wire.Query {
			return wire.AppendReadyForQuery(b, wire.TxIdle), nil
		}
		s.failed = true
		return b, nil
	}
	return b, err
}

func (s *fakeSession) serve(m Msg) ([]byte, error) {
	switch m.Type {
	case wire.Query:
		sql, _, ok := wire.String(m.Body)
		if !ok {
			return nil, wire.ErrMessage
		}
		b, err := s.rows(string(sql))
		if err != nil {
			return nil, err
		}
		return wire.AppendReadyForQuery(append(wire.AppendRowDescription(nil, fakeColumns), b...), wire.TxIdle), nil
	case wire.Parse:
		p, err := wire.ReadParse(m.Body)
		if err != nil {
			return nil, err
		}
		if _, there := s.statements[string(p.Name)]; there && len(p.Name) > 0 {
			return nil, wire.Errorf(wire.CodeDuplicatePrepared, "prepared statement %q already exists", p.Name)
		}
		s.statements[string(p.Name)] = string(p.Query)
		return wire.AppendEmpty(nil, wire.ParseComplete), nil
	case wire.Bind:
		portal, statement, _, ok := wire.ReadBindNames(m.Body)
		if !ok {
			return nil, wire.ErrMessage
		}
		sql, there := s.statements[string(statement)]
		if !there {
			return nil, wire.Errorf("26000", "prepared statement %q does not exist", statement)
		}
		s.portals[string(portal)] = sql
		return wire.AppendEmpty(nil, wire.BindComplete), nil
	case wire.Describe, wire.Close:
		kind, name, err := wire.ReadTarget(m.Body)
		if err != nil {
			return nil, err
		}
		return s.target(m.Type, kind, string(name))
	case wire.Execute:
		portal, _, ok := wire.String(m.Body)
		if !ok {
			return nil, wire.ErrMessage
		}
		sql, there := s.portals[string(portal)]
		if !there {
			return nil, wire.Errorf("34000", "portal %q does not exist", portal)
		}
		return s.rows(sql)
	case wire.Flush:
		return nil, nil
	}
	return nil, wire.Errorf(wire.CodeProtocolViolation, "the fake server does not know message %q", m.Type)
}

// target answers Describe and Close.
func (s *fakeSession) target(typ, kind byte, name string) ([]byte, error) {
	list, what, code := s.statements, "prepared statement", "26000"
	if kind == 'P' {
		list, what, code = s.portals, "portal", "34000"
	}
	if typ == wire.Close {
		delete(list, name)
		return wire.AppendEmpty(nil, wire.CloseComplete), nil
	}
	if _, there := list[name]; !there {
		return nil, wire.Errorf(code, "%s %q does not exist", what, name)
	}
	var b []byte
	if kind == 'S' {
		b = wire.AppendParameterDescription(b)
	}
	return wire.AppendRowDescription(b, fakeColumns), nil
}

// rows is the answer to a statement: one DataRow and CommandComplete.
func (s *fakeSession) rows(sql string) ([]byte, error) {
	text, err := s.answer(sql)
	if err != nil {
		return nil, err
	}
	return wire.AppendCommandComplete(wire.AppendDataRow(nil, []byte(text)), "SELECT 1"), nil
}

// RequirePassword asks for the password in one of the ways "plain" and "md5" and
// checks the answer; a wrong one is told to the client and ends the connection.
// It goes between ReadStartup and Welcome.
func (c *FakeConn) RequirePassword(way, password string) error {
	user := ""
	if st := c.StartupPacket(); st != nil {
		user = st.Param("user")
	}
	ask, want := wire.AppendAuth(nil, wire.AuthCleartextPassword, nil), password
	if way == "md5" {
		salt := binary.BigEndian.AppendUint32(nil, 0x5a17c0de)
		ask, want = wire.AppendAuth(nil, wire.AuthMD5Password, salt), md5Password(user, password, salt)
	}
	if err := c.Send(ask); err != nil {
		return err
	}
	m, err := c.Read()
	if err != nil {
		return err
	}
	if got, _, _ := wire.String(m.Body); m.Type != wire.Password || string(got) != want {
		refusal := wire.Fatalf(wire.CodeInvalidPassword, "password authentication failed for user %q", user)
		return errors.Join(c.Send(refusal.Append(nil)), io.EOF)
	}
	return nil
}
