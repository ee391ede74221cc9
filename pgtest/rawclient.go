package pgtest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"pgproxy/wire"
)

// RawClient is a client that sends what it is told and shows what comes back:
//
//	c := pgtest.DialRaw(t, addr)
//	c.Login("app", "secret", "database", "shop")
//	c.Send(pgtest.Query("select 1"))
//	c.Expect("T D(1) C(SELECT 1) Z(I)")
//
// A method that cannot do what it says fails the test with what came so far and
// ends the goroutine that called it (testing.TB.Fatalf). One goroutine uses it at
// a time, but one may send while another reads.
type RawClient struct {
	// set at construction, may be changed before use
	Timeout time.Duration // for each read and write, 20 s at first
	Skip    string        // types of messages that reads pass over, e.g. "NSA"

	// as the server said at login
	PID    uint32            // 0 if it sent no key
	Secret []byte            // for CancelRequest
	Params map[string]string // ParameterStatus, kept up to date
	Status wire.TxStatus     // of the last ReadyForQuery

	t     testing.TB
	conn  net.Conn
	r     *bufio.Reader
	trace []Msg // since Trace was last called
}

// DialRaw connects to host:port, or to a Unix socket if addr starts with "/".
// The connection is closed when the test ends.
func DialRaw(t testing.TB, addr string) *RawClient {
	t.Helper()
	network := "tcp"
	if strings.HasPrefix(addr, "/") {
		network = "unix"
	}
	conn, err := net.DialTimeout(network, addr, 20*time.Second)
	if err != nil {
		t.Fatalf("raw client: %v", err)
	}
	return NewRaw(t, conn)
}

// NewRaw makes a client of any connection, which it owns from then on.
func NewRaw(t testing.TB, conn net.Conn) *RawClient {
	c := &RawClient{Timeout: 20 * time.Second, Params: make(map[string]string), t: t, conn: conn, r: bufio.NewReader(conn)}
	t.Cleanup(c.Close)
	return c
}

// Conn is the connection, for what has no method here. Bytes that were read
// ahead are not in it any more.
func (c *RawClient) Conn() net.Conn { return c.conn }

// Upgrade puts another connection, such as a TLS one over Conn, in the place of
// the first. Nothing may have been read ahead.
func (c *RawClient) Upgrade(conn net.Conn) {
	c.t.Helper()
	if n := c.r.Buffered(); n > 0 {
		c.fail("upgrade: %d bytes were read ahead", n)
	}
	c.conn = conn
	c.r.Reset(conn)
}

// Close closes the connection without a word.
func (c *RawClient) Close() { _ = c.conn.Close() }

// Terminate sends Terminate and closes.
func (c *RawClient) Terminate() {
	c.t.Helper()
	c.Send(Terminate())
	c.Close()
}

// Reset closes the connection by a TCP reset.
func (c *RawClient) Reset() {
	c.t.Helper()
	if err := reset(c.conn); err != nil {
		c.fail("reset: %v", err)
	}
}

// CloseWrite closes the sending direction only.
func (c *RawClient) CloseWrite() {
	c.t.Helper()
	if err := closeWrite(c.conn); err != nil {
		c.fail("closing the sending direction: %v", err)
	}
}

// Send writes messages, or any bytes, in one write.
func (c *RawClient) Send(msgs ...[]byte) {
	c.t.Helper()
	if err := c.TrySend(msgs...); err != nil {
		c.fail("send: %v", err)
	}
}

// TrySend is Send that returns the error, for peers that may have gone.
func (c *RawClient) TrySend(msgs ...[]byte) error {
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.Timeout)); err != nil {
		return err
	}
	_, err := c.conn.Write(Join(msgs...))
	return err
}

// SendCut writes data in two pieces with a pause between them that lets the peer
// see the first alone.
func (c *RawClient) SendCut(data []byte, at int) {
	c.t.Helper()
	w := &CutWriter{W: writerFunc(func(p []byte) (int, error) { return len(p), c.TrySend(p) }), Cuts: []int{at}, Pause: time.Millisecond}
	if _, err := w.Write(data); err != nil {
		c.fail("send: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Startup sends a startup packet of protocol 3.0 with these parameter names and
// values.
func (c *RawClient) Startup(pairs ...string) {
	c.t.Helper()
	c.Send(StartupMessage(wire.Protocol30, pairs...))
}

// Login starts a session as user, with further startup parameters in pairs, and
// reads until the server is ready. It knows trust, plain, md5 and SCRAM-SHA-256.
// The trace is empty afterwards.
func (c *RawClient) Login(user, password string, pairs ...string) {
	c.t.Helper()
	if e := c.TryLogin(user, password, pairs...); e != nil {
		c.fail("login as %s: %v", user, e)
	}
	c.trace = nil
}

// TryLogin is Login that returns the server's ErrorResponse instead of failing
// on it, and leaves the trace.
func (c *RawClient) TryLogin(user, password string, pairs ...string) *wire.Error {
	c.t.Helper()
	c.Startup(append([]string{"user", user}, pairs...)...)
	return c.Authenticate(user, password)
}

// Authenticate goes on behind a startup packet that was sent: it answers what
// the server asks and reads until ReadyForQuery (nil) or ErrorResponse.
func (c *RawClient) Authenticate(user, password string) *wire.Error {
	c.t.Helper()
	scram := newSCRAMClient(password)
	for {
		m := c.Read()
		switch m.Type {
		case wire.ErrorResponse:
			return m.Err()
		case wire.ReadyForQuery:
			return nil
		case wire.BackendKeyData:
			if len(m.Body) < 8 {
				c.fail("key data of %d bytes", len(m.Body))
			}
			c.PID, c.Secret = binary.BigEndian.Uint32(m.Body), bytes.Clone(m.Body[4:])
		case wire.Authentication:
			answer, err := answerAuth(m.Body, user, password, scram)
			if err != nil {
				c.fail("login as %s: %v", user, err)
			}
			if answer != nil {
				c.Send(answer)
			}
		}
	}
}

// answerAuth returns the message that answers an authentication request, nil if
// it wants none.
func answerAuth(body []byte, user, password string, scram *scramClient) ([]byte, error) {
	if len(body) < 4 {
		return nil, wire.ErrMessage
	}
	code, rest := wire.AuthCode(binary.BigEndian.Uint32(body)), body[4:]
	switch code {
	case wire.AuthOK:
		return nil, nil
	case wire.AuthCleartextPassword:
		return Password(password), nil
	case wire.AuthMD5Password:
		return Password(md5Password(user, password, rest)), nil
	case wire.AuthSASL:
		if !bytes.Contains(rest, []byte("SCRAM-SHA-256\x00")) {
			return nil, fmt.Errorf("no SCRAM-SHA-256 among the mechanisms %q", rest)
		}
		first := scram.first()
		b := append([]byte("SCRAM-SHA-256"), 0)
		b = binary.BigEndian.AppendUint32(b, uint32(len(first)))
		return Message(wire.Password, append(b, first...)), nil
	case wire.AuthSASLContinue:
		final, err := scram.final(string(rest))
		return Message(wire.Password, []byte(final)), err
	case wire.AuthSASLFinal:
		return nil, scram.check(string(rest))
	}
	return nil, fmt.Errorf("authentication request %d", code)
}

// Read reads one message.
func (c *RawClient) Read() Msg {
	c.t.Helper()
	m, err := c.TryRead()
	if err != nil {
		c.fail("read: %v", err)
	}
	return m
}

// TryRead is Read that returns the error: io.EOF when the peer has closed.
func (c *RawClient) TryRead() (Msg, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(c.Timeout)); err != nil {
		return Msg{}, err
	}
	for {
		m, err := readMsg(c.r)
		if err != nil {
			return m, err
		}
		switch m.Type {
		case wire.ParameterStatus:
			if name, value, err := wire.ReadParameterStatus(m.Body); err == nil {
				c.Params[string(name)] = string(value)
			}
		case wire.ReadyForQuery:
			if len(m.Body) == 1 {
				c.Status = wire.TxStatus(m.Body[0])
			}
		}
		if strings.IndexByte(c.Skip, m.Type) >= 0 {
			continue
		}
		c.trace = append(c.trace, m)
		return m, nil
	}
}

// ReadAnswer reads one byte that is no message: the answer to SSLRequest.
func (c *RawClient) ReadAnswer() byte {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(c.Timeout))
	b, err := c.r.ReadByte()
	if err != nil {
		c.fail("read: %v", err)
	}
	return b
}

// ReadUntil reads up to and with the first message of the type.
func (c *RawClient) ReadUntil(typ byte) []Msg {
	c.t.Helper()
	var msgs []Msg
	for {
		m := c.Read()
		msgs = append(msgs, m)
		if m.Type == typ {
			return msgs
		}
	}
}

// ReadUntilReady reads up to and with ReadyForQuery.
func (c *RawClient) ReadUntilReady() []Msg {
	c.t.Helper()
	return c.ReadUntil(wire.ReadyForQuery)
}

// Expect reads as many messages as trace has words and fails if they are not
// these. "D" stands for any message of type D, "D(1)" for this one.
func (c *RawClient) Expect(trace string) []Msg {
	c.t.Helper()
	words := splitTrace(trace)
	msgs := make([]Msg, 0, len(words))
	for _, w := range words {
		m, err := c.TryRead()
		if err != nil {
			c.fail("expected %s, got %s, then %v", trace, Trace(msgs), err)
		}
		msgs = append(msgs, m)
		if !m.matches(w) {
			c.fail("expected %s, got %s%s", trace, Trace(msgs), explain(m))
		}
	}
	return msgs
}

// Query sends a simple Query and returns the reply as a trace.
func (c *RawClient) Query(sql string) string {
	c.t.Helper()
	c.Send(Query(sql))
	return Trace(c.ReadUntilReady())
}

// ExpectEOF reads until the peer closes the connection, by FIN or reset, and
// fails if it does not. The messages in front of the end are returned.
func (c *RawClient) ExpectEOF() []Msg {
	c.t.Helper()
	var msgs []Msg
	for {
		m, err := c.TryRead()
		if err == nil {
			msgs = append(msgs, m)
			continue
		}
		if isTimeout(err) || errors.Is(err, wire.ErrLength) {
			c.fail("expected the end of the connection, got %s, then %v", Trace(msgs), err)
		}
		return msgs
	}
}

// ExpectSilence fails if a byte arrives within d.
func (c *RawClient) ExpectSilence(d time.Duration) {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(d))
	_, err := c.r.Peek(1)
	switch {
	case err == nil:
		c.fail("expected silence, got %s", c.Read())
	case !isTimeout(err):
		c.fail("expected silence, got %v", err)
	}
}

// Cancel sends the cancel request of this session to addr over a connection of
// its own and waits until the peer closes that.
func (c *RawClient) Cancel(addr string) {
	c.t.Helper()
	other := DialRaw(c.t, addr)
	defer other.Close()
	other.Send(CancelRequest(c.PID, c.Secret))
	if msgs := other.ExpectEOF(); len(msgs) > 0 {
		c.fail("the cancel request was answered: %s", Trace(msgs))
	}
}

// Trace returns what was read since it was last called.
func (c *RawClient) Trace() string {
	s := Trace(c.trace)
	c.trace = nil
	return s
}

func (c *RawClient) fail(format string, args ...any) {
	c.t.Helper()
	soFar := c.trace
	if len(soFar) > 50 {
		soFar = soFar[len(soFar)-50:]
	}
	c.t.Fatalf("raw client: "+format+"\nread so far: "+"%s", append(args, Trace(soFar))...)
}

// explain is the text of an error that came in place of something else.
func explain(m Msg) string {
	if e := m.Err(); e != nil {
		return ": " + e.Error()
	}
	return ""
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// reset makes the close of a TCP connection a reset.
func reset(conn net.Conn) error {
	if tcp, ok := conn.(*net.TCPConn); ok {
		if err := tcp.SetLinger(0); err != nil {
			return err
		}
	}
	return conn.Close()
}

func closeWrite(conn net.Conn) error {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return fmt.Errorf("a %T has no directions", conn)
	}
	return half.CloseWrite()
}

// CutWriter splits what is written, for peers that must cope with any cut.
type CutWriter struct {
	W     io.Writer
	Cuts  []int         // offsets at which to cut each Write, ascending
	Size  int           // the longest piece in bytes; 0 = no limit
	Pause time.Duration // between two pieces, so that they arrive apart
}

// Write writes p in pieces.
func (w *CutWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		end := len(p)
		for _, cut := range w.Cuts {
			if cut > done && cut < end {
				end = cut
				break
			}
		}
		if w.Size > 0 {
			end = min(end, done+w.Size)
		}
		n, err := w.W.Write(p[done:end])
		done += n
		if err != nil {
			return done, err
		}
		if done < len(p) && w.Pause > 0 {
			<-time.After(w.Pause)
		}
	}
	return done, nil
}

// PowerOff makes the client's machine vanish: from now on its kernel answers nothing
// of what comes, not even a keepalive probe, and says nothing either as long as the
// client does not. What the client has sent has arrived before.
func (c *RawClient) PowerOff() {
	c.t.Helper()
	tcp := c.conn.(*net.TCPConn)
	if err := tcp.SetKeepAlive(false); err != nil {
		c.t.Fatalf("power off: %v", err)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		c.t.Fatalf("power off: %v", err)
	}
	for deadline := time.Now().Add(c.Timeout); ; time.Sleep(time.Millisecond) {
		done, failed := false, error(nil)
		err := raw.Control(func(fd uintptr) {
			var unacked int32
			if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&unacked))); errno != 0 {
				failed = errno
			} else if unacked == 0 {
				done = true
				nothing := syscall.SockFprog{Len: 1, Filter: &syscall.SockFilter{Code: syscall.BPF_RET | syscall.BPF_K}} // of each packet
				if _, _, errno := syscall.Syscall6(syscall.SYS_SETSOCKOPT, fd, syscall.SOL_SOCKET, syscall.SO_ATTACH_FILTER,
					uintptr(unsafe.Pointer(&nothing)), unsafe.Sizeof(nothing), 0); errno != 0 {
					failed = errno
				}
			}
		})
		switch {
		case err != nil || failed != nil || time.Now().After(deadline):
			c.t.Fatalf("power off: %v", errors.Join(err, failed))
		case done:
			return
		}
	}
}
