package admin

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"pgproxy/proxy"
	"pgproxy/wire"
)

const (
	maxMessage   = 64 << 10         // longest message from a client, counted as the protocol does
	maxObjects   = 256              // prepared statements, and portals, of one client
	writeTimeout = 30 * time.Second // a client that does not read its answer is cut
	readAhead    = 4                // messages that are read while a command runs
)

// message is one message from the client.
type message struct {
	typ  byte
	body []byte
}

// client is one console client.
type client struct {
	// Set at construction.
	console *Console
	pc      proxy.ConsoleClient
	since   time.Time
	msgs    chan message  // closed by the reader, behind readErr
	done    chan struct{} // closed when nobody takes messages any more

	// Owned by the reader until it closes msgs.
	readErr error

	// Owned by Serve.
	out        []byte
	tx         wire.TxStatus
	skipping   bool // after an error in the extended protocol: ignore all up to Sync
	statements map[string]*ready
	portals    map[string]*portal

	// Atomic, for SHOW CLIENTS.
	seen   atomic.Int64 // when the last message came, Unix nanoseconds
	active atomic.Bool
	named  atomic.Int64 // prepared statements with a name
}

func newClient(c *Console, pc proxy.ConsoleClient) *client {
	cl := &client{
		console: c, pc: pc, since: time.Now(), msgs: make(chan message, readAhead), done: make(chan struct{}), tx: wire.TxIdle,
		statements: make(map[string]*ready), portals: make(map[string]*portal),
	}
	cl.seen.Store(cl.since.UnixNano())
	return cl
}

// serve runs the client's messages, one after another, until there are no more.
func (c *client) serve(ctx context.Context, log *slog.Logger) error {
	gone, leave := context.WithCancel(ctx)
	defer leave()
	go c.read(leave)
	defer func() {
		close(c.done)
		_ = c.pc.Conn.SetReadDeadline(time.Unix(1, 0))
		for range c.msgs { // until the reader has ended
		}
	}()
	for m := range c.msgs {
		c.seen.Store(time.Now().UnixNano())
		c.active.Store(true)
		err := c.handle(gone, log, m)
		c.active.Store(false)
		if err != nil {
			return err
		}
	}
	return c.readErr
}

// read brings messages to serve. It ends with the connection, which it reports
// by leave, or when serve ends.
func (c *client) read(leave func()) {
	defer close(c.msgs)
	defer leave()
	r := bufio.NewReader(c.pc.Conn)
	for {
		m, err := readMessage(r)
		if err != nil {
			c.readErr = err
			return
		}
		c.console.received.Add(uint64(wire.HeaderLen + len(m.body)))
		if m.typ == wire.Terminate {
			c.readErr = io.EOF
			return
		}
		select {
		case c.msgs <- m:
		case <-c.done:
			return
		}
	}
}

// readMessage reads one message whose type and length are of the protocol.
func readMessage(r *bufio.Reader) (message, error) {
	var head [wire.HeaderLen]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = io.EOF
		}
		return message{}, err
	}
	h, err := wire.ReadHeader(head[:], maxMessage)
	if !fromClient(h.Type) {
		return message{}, wire.Fatalf(wire.CodeProtocolViolation, "invalid frontend message type %d", h.Type)
	}
	if err != nil {
		return message{}, wire.Fatalf(wire.CodeProtocolViolation, "invalid message length on the console: at most %d bytes", maxMessage).Because(err)
	}
	m := message{typ: h.Type, body: make([]byte, h.Body)}
	if _, err := io.ReadFull(r, m.body); err != nil {
		return message{}, io.EOF
	}
	return m, nil
}

func fromClient(typ byte) bool {
	return strings.IndexByte("QPBDECSHFXdcf", typ) >= 0
}

// handle serves one message. An error ends the client.
func (c *client) handle(ctx context.Context, log *slog.Logger, m message) error {
	if c.skipping && m.typ != wire.Sync {
		return nil
	}
	switch m.typ {
	case wire.Query:
		sql, rest, ok := wire.String(m.body)
		if !ok || len(rest) != 0 {
			return wire.Fatalf(wire.CodeProtocolViolation, "invalid message format")
		}
		delete(c.statements, "")
		delete(c.portals, "")
		c.query(ctx, log, string(sql))
		c.out = wire.AppendReadyForQuery(c.out, c.tx)
		return c.flush(ctx)
	case wire.Sync:
		c.skipping = false
		if c.tx == wire.TxIdle {
			clear(c.portals)
		}
		c.out = wire.AppendReadyForQuery(c.out, c.tx)
		return c.flush(ctx)
	case wire.Flush:
		return c.flush(ctx)
	case wire.CopyData, wire.CopyDone, wire.CopyFail:
		return nil // of a COPY that has failed; PostgreSQL ignores them as well
	case wire.FunctionCall:
		c.fail(wire.Errorf(wire.CodeFeatureNotSupported, "function calls are not supported by the admin console"))
		c.out = wire.AppendReadyForQuery(c.out, c.tx)
		return c.flush(ctx)
	}
	err := c.extended(ctx, log, m)
	var e *wire.Error
	if errors.As(err, &e) && !e.Fatal() {
		c.fail(e)
		c.skipping = true
		return nil
	}
	return err
}

// query serves a simple query, up to ReadyForQuery.
func (c *client) query(ctx context.Context, log *slog.Logger, sql string) {
	r, e := prepare(sql, c.pc.Identity.Admin)
	if e != nil {
		c.fail(e)
		return
	}
	if r.kind == kindEmpty {
		c.out = wire.AppendEmpty(c.out, wire.EmptyQueryResponse)
		return
	}
	rows, err := c.run(ctx, log, r)
	if err != nil {
		c.fail(err)
		return
	}
	if r.cols != nil {
		c.out = appendRowDescription(c.out, r.cols, nil)
		for _, x := range rows {
			c.out = appendDataRow(c.out, r.cols, x, nil)
		}
	}
	c.out = wire.AppendCommandComplete(c.out, r.tag)
}

// errFailedTx is PostgreSQL's refusal of everything but the end of a transaction
// in which there was an error.
var errFailedTx = wire.Errorf("25P02", "current transaction is aborted, commands ignored until end of transaction block")

// run executes what was prepared and writes its notices. Transactions mean
// nothing here, but drivers open them unasked, so their state is kept.
func (c *client) run(ctx context.Context, log *slog.Logger, r *ready) ([]row, *wire.Error) {
	c.console.queries.Add(1)
	if r.kind == kindTx {
		switch {
		case r.begin && c.tx == wire.TxFailed:
			return nil, errFailedTx
		case r.begin:
			c.tx = wire.TxInside
		default:
			c.tx = wire.TxIdle
		}
		return nil, nil
	}
	if c.tx == wire.TxFailed {
		return nil, errFailedTx
	}
	if !r.entry.readOnly {
		log.Info("console command", "command", r.entry.name, "argument", r.arg)
	}
	k := &call{ctx: ctx, console: c.console, client: c, arg: r.arg, value: r.value, to: r.to}
	rows, err := r.execute(k)
	for _, n := range k.notices {
		c.out = n.AppendNotice(c.out)
	}
	var e *wire.Error
	switch {
	case err == nil:
		return rows, nil
	case errors.As(err, &e):
		return nil, e
	}
	return nil, wire.Errorf(wire.CodeInternal, "%s", err.Error()).Because(err)
}

// fail writes an error that does not end the client.
func (c *client) fail(e *wire.Error) {
	c.out = e.Append(c.out)
	if c.tx == wire.TxInside {
		c.tx = wire.TxFailed
	}
}

// flush writes what was gathered.
func (c *client) flush(ctx context.Context) error {
	_ = c.pc.Conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if ctx.Err() != nil {
		// The deadline above may have undone that of the context's end. Where
		// only the client has gone, the write fails by itself.
		_ = c.pc.Conn.SetWriteDeadline(time.Now().Add(time.Second))
	}
	n, err := c.pc.Conn.Write(c.out)
	c.console.sent.Add(uint64(n))
	c.out = c.out[:0]
	if cap(c.out) > maxMessage {
		c.out = nil // a long answer is no reason to keep so much
	}
	return err
}
