package admin

import (
	"context"
	"encoding/binary"
	"log/slog"

	"pgproxy/wire"
)

// portal is a statement that is bound, and once executed, its rows.
type portal struct {
	ready   *ready
	formats formats
	rows    []row
	at      int  // the next row
	started bool // it has been executed
}

// errFormat ends a client that does not speak the protocol.
var errFormat = wire.Fatalf(wire.CodeProtocolViolation, "invalid message format")

// extended serves one message of the extended protocol, up to Sync. A
// *wire.Error that is not fatal is the answer, everything else ends the client.
func (c *client) extended(ctx context.Context, log *slog.Logger, m message) error {
	switch m.typ {
	case wire.Parse:
		return c.parse(m.body)
	case wire.Bind:
		return c.bind(m.body)
	case wire.Describe:
		return c.describe(m.body)
	case wire.Execute:
		return c.execute(ctx, log, m.body)
	case wire.Close:
		kind, name, err := wire.ReadTarget(m.body)
		if err != nil {
			return errFormat
		}
		if kind == 'S' {
			delete(c.statements, string(name))
			c.countNamed()
		} else {
			delete(c.portals, string(name))
		}
		c.out = wire.AppendEmpty(c.out, wire.CloseComplete)
		return nil
	}
	return errFormat
}

func (c *client) parse(body []byte) error {
	m, err := wire.ReadParse(body)
	if err != nil {
		return errFormat
	}
	name := string(m.Name)
	if _, there := c.statements[name]; there && name != "" {
		return wire.Errorf(wire.CodeDuplicatePrepared, "prepared statement %q already exists", name)
	}
	if len(c.statements) >= maxObjects {
		return wire.Errorf(wire.CodeOutOfMemory, "too many prepared statements on the console: at most %d", maxObjects)
	}
	if binary.BigEndian.Uint16(m.OIDs) != 0 {
		return errParameters()
	}
	r, e := prepare(string(m.Query), c.pc.Identity.Admin)
	if e != nil {
		return e
	}
	c.statements[name] = r
	c.countNamed()
	c.out = wire.AppendEmpty(c.out, wire.ParseComplete)
	return nil
}

func errParameters() *wire.Error {
	return wire.Errorf(wire.CodeFeatureNotSupported, "parameters are not supported by the admin console")
}

func (c *client) countNamed() {
	n := len(c.statements)
	if _, ok := c.statements[""]; ok {
		n--
	}
	c.named.Store(int64(n))
}

func (c *client) bind(body []byte) error {
	pname, sname, n, ok := wire.ReadBindNames(body)
	if !ok {
		return errFormat
	}
	params, results, ok := readBindRest(body[n:])
	if !ok {
		return errFormat
	}
	r := c.statements[string(sname)]
	switch {
	case r == nil:
		return wire.Errorf("26000", "prepared statement %q does not exist", sname)
	case params > 0:
		return errParameters()
	case len(results) > 1 && len(results) != len(r.cols):
		return wire.Errorf(wire.CodeProtocolViolation, "bind message has %d result formats but query has %d columns", len(results), len(r.cols))
	}
	for _, f := range results {
		if f != formatText && f != formatBinary {
			return wire.Errorf(wire.CodeInvalidParameterValue, "unsupported format code: %d", f)
		}
	}
	name := string(pname)
	if _, there := c.portals[name]; there && name != "" {
		return wire.Errorf("42P03", "portal %q already exists", name)
	}
	if len(c.portals) >= maxObjects {
		return wire.Errorf(wire.CodeOutOfMemory, "too many portals on the console: at most %d", maxObjects)
	}
	c.portals[name] = &portal{ready: r, formats: results}
	c.out = wire.AppendEmpty(c.out, wire.BindComplete)
	return nil
}

// readBindRest reads what follows the names in a Bind: how many parameters
// there are, and the result formats.
func readBindRest(p []byte) (params int, results formats, ok bool) {
	list := func() (n int, ok bool) {
		if len(p) < 2 {
			return 0, false
		}
		n = int(binary.BigEndian.Uint16(p))
		p = p[2:]
		return n, true
	}
	n, ok := list() // parameter formats
	if !ok || len(p) < 2*n {
		return 0, nil, false
	}
	p = p[2*n:]
	if params, ok = list(); !ok {
		return 0, nil, false
	}
	for range params {
		if len(p) < 4 {
			return 0, nil, false
		}
		size := int32(binary.BigEndian.Uint32(p))
		p = p[4:]
		if size < -1 || int(size) > len(p) {
			return 0, nil, false
		}
		p = p[max(size, 0):]
	}
	n, ok = list()
	if !ok || len(p) != 2*n {
		return 0, nil, false
	}
	for i := range n {
		results = append(results, format(binary.BigEndian.Uint16(p[2*i:])))
	}
	return params, results, true
}

func (c *client) describe(body []byte) error {
	kind, name, err := wire.ReadTarget(body)
	if err != nil {
		return errFormat
	}
	var r *ready
	var f formats
	if kind == 'S' {
		if r = c.statements[string(name)]; r == nil {
			return wire.Errorf("26000", "prepared statement %q does not exist", name)
		}
		c.out = wire.AppendParameterDescription(c.out)
	} else {
		p := c.portals[string(name)]
		if p == nil {
			return wire.Errorf("34000", "portal %q does not exist", name)
		}
		r, f = p.ready, p.formats
	}
	if r.cols == nil {
		c.out = wire.AppendEmpty(c.out, wire.NoData)
		return nil
	}
	c.out = appendRowDescription(c.out, r.cols, f)
	return nil
}

func (c *client) execute(ctx context.Context, log *slog.Logger, body []byte) error {
	name, rest, ok := wire.String(body)
	if !ok || len(rest) != 4 {
		return errFormat
	}
	limit := int(int32(binary.BigEndian.Uint32(rest)))
	p := c.portals[string(name)]
	if p == nil {
		return wire.Errorf("34000", "portal %q does not exist", name)
	}
	if p.ready.kind == kindEmpty {
		c.out = wire.AppendEmpty(c.out, wire.EmptyQueryResponse)
		return nil
	}
	if p.started && p.ready.cols == nil {
		return wire.Errorf(wire.CodeObjectNotInState, "portal %q cannot be run", name)
	}
	if !p.started {
		rows, e := c.run(ctx, log, p.ready)
		if e != nil {
			return e
		}
		p.rows, p.started = rows, true
	}
	end := len(p.rows)
	if limit > 0 {
		end = min(end, p.at+limit)
	}
	for ; p.at < end; p.at++ {
		c.out = appendDataRow(c.out, p.ready.cols, p.rows[p.at], p.formats)
	}
	if limit > 0 && p.at < len(p.rows) {
		c.out = wire.AppendEmpty(c.out, wire.PortalSuspended)
		return nil
	}
	c.out = wire.AppendCommandComplete(c.out, p.ready.tag)
	return nil
}
