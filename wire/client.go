package wire

import "encoding/binary"

// Messages from client to server: what must be understood of them, and those
// that the proxy sends itself.

// ParseMessage is the body of a Parse message.
type ParseMessage struct {
	Name  []byte
	Query []byte
	OIDs  []byte // count (two bytes) and parameter type OIDs, as sent
}

// ReadParse reads the body of a Parse message.
func ReadParse(body []byte) (m ParseMessage, err error) {
	var ok bool
	if m.Name, body, ok = String(body); !ok {
		return m, ErrMessage
	}
	if m.Query, body, ok = String(body); !ok || len(body) < 2 {
		return m, ErrMessage
	}
	if n := int(binary.BigEndian.Uint16(body)); len(body) != 2+4*n {
		return m, ErrMessage
	}
	m.OIDs = body
	return m, nil
}

// ReadBindNames reads the portal and statement name in front of a Bind body and
// returns how many bytes they take, terminators included. ok is false while p
// does not hold both.
func ReadBindNames(p []byte) (portal, statement []byte, n int, ok bool) {
	portal, rest, ok := String(p)
	if !ok {
		return nil, nil, 0, false
	}
	statement, rest, ok = String(rest)
	if !ok {
		return nil, nil, 0, false
	}
	return portal, statement, len(p) - len(rest), true
}

// ReadBindParam returns the parameter of this number, the first being 1, from what
// stands behind the names in a Bind body. ok is false if it is not there, or NULL.
func ReadBindParam(p []byte, number int) (value []byte, ok bool) {
	short := func() int {
		if len(p) < 2 {
			ok = false
			return 0
		}
		n := int(binary.BigEndian.Uint16(p))
		p = p[2:]
		return n
	}
	ok = true
	formats := short()
	if !ok || len(p) < 2*formats {
		return nil, false
	}
	p = p[2*formats:]
	if n := short(); !ok || number < 1 || number > n {
		return nil, false
	}
	for i := 1; ; i++ {
		if len(p) < 4 {
			return nil, false
		}
		n := int32(binary.BigEndian.Uint32(p))
		p = p[4:]
		if int64(n) > int64(len(p)) {
			return nil, false
		}
		if i == number {
			return p[:max(n, 0)], n >= 0
		}
		p = p[max(n, 0):]
	}
}

// ReadTarget reads the body of a Describe or Close message: kind is 'S' for a
// statement, 'P' for a portal.
func ReadTarget(body []byte) (kind byte, name []byte, err error) {
	if len(body) < 2 || (body[0] != 'S' && body[0] != 'P') {
		return 0, nil, ErrMessage
	}
	name, rest, ok := String(body[1:])
	if !ok || len(rest) != 0 {
		return 0, nil, ErrMessage
	}
	return body[0], name, nil
}

// AppendQuery appends a simple Query message.
func AppendQuery(dst []byte, sql string) []byte {
	dst, at := begin(dst, Query)
	return finish(appendString(dst, sql), at)
}

// AppendParse appends a Parse message; oids is a count and OIDs as in
// ParseMessage, or nil for none.
func AppendParse(dst []byte, name string, query, oids []byte) []byte {
	dst, at := begin(dst, Parse)
	dst = appendString(dst, name)
	dst = appendString(dst, query)
	if oids == nil {
		oids = []byte{0, 0}
	}
	return finish(append(dst, oids...), at)
}

// AppendBindText appends a Bind message for the unnamed portal with text
// parameters and text results.
func AppendBindText(dst []byte, statement string, params ...string) []byte {
	dst, at := begin(dst, Bind)
	dst = append(dst, 0) // portal
	dst = appendString(dst, statement)
	dst = append(dst, 0, 0) // parameter formats: all text
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(params)))
	for _, p := range params {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(p)))
		dst = append(dst, p...)
	}
	return finish(append(dst, 0, 0), at) // result formats: all text
}

// AppendBindHead appends the header of a Bind message with these names whose
// other rest bytes of body follow.
func AppendBindHead(dst, portal []byte, statement string, rest int) []byte {
	p, s := cutNUL(portal), cutNUL(statement)
	dst = AppendHeader(dst, Bind, len(p)+1+len(s)+1+rest)
	dst = append(append(dst, p...), 0)
	return append(append(dst, s...), 0)
}

// AppendTarget appends a Describe or Close message (typ) for a statement ('S')
// or portal ('P').
func AppendTarget(dst []byte, typ, kind byte, name string) []byte {
	dst, at := begin(dst, typ)
	return finish(appendString(append(dst, kind), name), at)
}

// AppendExecute appends an Execute message for the unnamed portal, all rows.
func AppendExecute(dst []byte) []byte {
	return append(dst, Execute, 0, 0, 0, 9, 0, 0, 0, 0, 0)
}

// AppendExecutePortal appends an Execute message for a portal, all rows.
func AppendExecutePortal(dst []byte, portal string) []byte {
	dst, at := begin(dst, Execute)
	return finish(append(appendString(dst, portal), 0, 0, 0, 0), at)
}

// AppendSync appends a Sync message.
func AppendSync(dst []byte) []byte { return append(dst, Sync, 0, 0, 0, 4) }

// AppendFlush appends a Flush message.
func AppendFlush(dst []byte) []byte { return append(dst, Flush, 0, 0, 0, 4) }

// AppendTerminate appends a Terminate message.
func AppendTerminate(dst []byte) []byte { return append(dst, Terminate, 0, 0, 0, 4) }
