package pgtest

import (
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"

	"pgproxy/wire"
)

// Msg is one message of the protocol behind startup, in either direction.
type Msg struct {
	Type byte
	Body []byte // without type and length
}

// Bytes returns the message as it goes over the wire.
func (m Msg) Bytes() []byte { return Message(m.Type, m.Body) }

// maxTestMessage bounds what the readers of this package take for one message.
const maxTestMessage = 256 << 20

// readMsg reads one message.
func readMsg(r io.Reader) (Msg, error) {
	var head [wire.HeaderLen]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Msg{}, err
	}
	h, err := wire.ReadHeader(head[:], maxTestMessage)
	if err != nil {
		return Msg{}, fmt.Errorf("message %q: %w", head[:], err)
	}
	m := Msg{Type: h.Type, Body: make([]byte, h.Body)}
	if _, err := io.ReadFull(r, m.Body); err != nil {
		return Msg{}, fmt.Errorf("message %q cut short: %w", head[:1], io.ErrUnexpectedEOF)
	}
	return m, nil
}

// Values returns the columns of a DataRow, nil for NULL. The slices point into
// the message.
func (m Msg) Values() [][]byte {
	p := m.Body
	if m.Type != wire.DataRow || len(p) < 2 {
		return nil
	}
	n := int(binary.BigEndian.Uint16(p))
	p = p[2:]
	out := make([][]byte, 0, n)
	for range n {
		if len(p) < 4 {
			return out
		}
		size := int(int32(binary.BigEndian.Uint32(p)))
		p = p[4:]
		if size < 0 {
			out = append(out, nil)
			continue
		}
		if size > len(p) {
			return out
		}
		out = append(out, p[:size:size])
		p = p[size:]
	}
	return out
}

// Err returns what an ErrorResponse or NoticeResponse says, nil for other
// messages.
func (m Msg) Err() *wire.Error {
	if m.Type != wire.ErrorResponse && m.Type != wire.NoticeResponse {
		return nil
	}
	return wire.ReadError(m.Body)
}

// String is the message's word in a trace: its type byte, and for some what it
// holds, in parentheses.
//
//	D(1,NULL) C(SELECT 1) Z(I) E(42P01) N(01000) S(TimeZone=UTC) R(0) A(channel,payload) d(text) V(text)
func (m Msg) String() string {
	detail, ok := m.detail()
	if !ok {
		return string(rune(m.Type))
	}
	return string(rune(m.Type)) + "(" + printable(detail) + ")"
}

func (m Msg) detail() (string, bool) {
	switch m.Type {
	case wire.DataRow:
		words := make([]string, 0, 4)
		for _, v := range m.Values() {
			if v == nil {
				words = append(words, "NULL")
				continue
			}
			words = append(words, string(v))
		}
		return strings.Join(words, ","), true
	case wire.CommandComplete:
		tag, _, _ := wire.String(m.Body)
		return string(tag), true
	case wire.ReadyForQuery, wire.CopyData:
		return string(m.Body), true
	case wire.ErrorResponse, wire.NoticeResponse:
		return m.Err().Code, true
	case wire.ParameterStatus:
		name, value, _ := wire.ReadParameterStatus(m.Body)
		return string(name) + "=" + string(value), true
	case wire.Authentication:
		if len(m.Body) >= 4 {
			return strconv.Itoa(int(binary.BigEndian.Uint32(m.Body))), true
		}
	case wire.NotificationResponse:
		if len(m.Body) > 4 {
			channel, rest, _ := wire.String(m.Body[4:])
			payload, _, _ := wire.String(rest)
			return string(channel) + "," + string(payload), true
		}
	case wire.FunctionCallResponse:
		if len(m.Body) > 4 {
			return string(m.Body[4:]), true
		}
	}
	return "", false
}

// printable escapes what would garble a trace and cuts what is long, with its
// length and so still telling.
func printable(s string) string {
	const longest = 80
	if len(s) > longest {
		s = s[:longest/2] + "..." + strconv.Itoa(len(s)) + " bytes"
	}
	q := strconv.Quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

// Trace writes messages as one line: see Msg.String.
func Trace(msgs []Msg) string {
	words := make([]string, len(msgs))
	for i, m := range msgs {
		words[i] = m.String()
	}
	return strings.Join(words, " ")
}

// splitTrace cuts a trace into its words; a word may hold spaces inside its
// parentheses.
func splitTrace(s string) []string {
	var words []string
	depth, start := 0, -1
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case c == ' ' && depth == 0:
			if start >= 0 {
				words = append(words, s[start:i])
			}
			start = -1
			continue
		}
		if start < 0 {
			start = i
		}
	}
	if start >= 0 {
		words = append(words, s[start:])
	}
	return words
}

// matches reports whether a message is what a word of an expected trace says: a
// bare type byte stands for every message of the type.
func (m Msg) matches(word string) bool {
	return word == string(rune(m.Type)) || word == m.String()
}

// The builders below return whole messages as a client sends them. They check
// nothing: a test may well want what is wrong.

// Message builds any message.
func Message(typ byte, body []byte) []byte {
	return append(wire.AppendHeader(make([]byte, 0, wire.HeaderLen+len(body)), typ, len(body)), body...)
}

// RawMessage builds a message whose length field says length, whatever the body
// holds.
func RawMessage(typ byte, length uint32, body []byte) []byte {
	out := binary.BigEndian.AppendUint32([]byte{typ}, length)
	return append(out, body...)
}

// StartupMessage builds a startup packet; pairs are parameter names and values.
func StartupMessage(protocol uint32, pairs ...string) []byte {
	body := binary.BigEndian.AppendUint32(nil, protocol)
	for _, s := range pairs {
		body = append(append(body, s...), 0)
	}
	return StartupPacket(append(body, 0))
}

// StartupPacket puts the length in front of any body.
func StartupPacket(body []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body)+4)), body...)
}

// SSLRequest builds the packet that asks for TLS.
func SSLRequest() []byte { return []byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f} }

// GSSENCRequest builds the packet that asks for GSSAPI encryption.
func GSSENCRequest() []byte { return []byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30} }

// CancelRequest builds a cancel packet.
func CancelRequest(pid uint32, secret []byte) []byte { return wire.AppendCancel(nil, pid, secret) }

// Query builds a simple Query.
func Query(sql string) []byte { return wire.AppendQuery(nil, sql) }

// Parse builds a Parse; oids are the parameters' types.
func Parse(name, sql string, oids ...uint32) []byte {
	p := binary.BigEndian.AppendUint16(nil, uint16(len(oids)))
	for _, o := range oids {
		p = binary.BigEndian.AppendUint32(p, o)
	}
	return wire.AppendParse(nil, name, []byte(sql), p)
}

// Bind builds a Bind with text parameters and text results.
func Bind(portal, statement string, params ...string) []byte {
	values := make([][]byte, len(params))
	for i, p := range params {
		values[i] = []byte(p)
	}
	return BindFormats(portal, statement, nil, values, nil)
}

// BindFormats builds any Bind: formats are 0 (text) or 1 (binary), nil values
// are NULL.
func BindFormats(portal, statement string, formats []uint16, values [][]byte, results []uint16) []byte {
	var b []byte
	b = append(append(b, portal...), 0)
	b = append(append(b, statement...), 0)
	b = appendUint16s(b, formats)
	b = binary.BigEndian.AppendUint16(b, uint16(len(values)))
	for _, v := range values {
		if v == nil {
			b = binary.BigEndian.AppendUint32(b, 0xffffffff)
			continue
		}
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	return Message(wire.Bind, appendUint16s(b, results))
}

// appendUint16s appends a count and the numbers.
func appendUint16s(b []byte, list []uint16) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(list)))
	for _, n := range list {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	return b
}

// Describe builds a Describe for a statement ('S') or portal ('P').
func Describe(kind byte, name string) []byte {
	return wire.AppendTarget(nil, wire.Describe, kind, name)
}

// Close builds a Close for a statement ('S') or portal ('P').
func Close(kind byte, name string) []byte { return wire.AppendTarget(nil, wire.Close, kind, name) }

// Execute builds an Execute; rows is the most rows to return, 0 for all.
func Execute(portal string, rows int) []byte {
	b := append([]byte(portal), 0)
	return Message(wire.Execute, binary.BigEndian.AppendUint32(b, uint32(rows)))
}

// Sync builds a Sync.
func Sync() []byte { return wire.AppendSync(nil) }

// Flush builds a Flush.
func Flush() []byte { return wire.AppendFlush(nil) }

// Terminate builds a Terminate.
func Terminate() []byte { return wire.AppendTerminate(nil) }

// CopyData builds a CopyData.
func CopyData(data string) []byte { return Message(wire.CopyData, []byte(data)) }

// CopyDone builds a CopyDone.
func CopyDone() []byte { return Message(wire.CopyDone, nil) }

// CopyFail builds a CopyFail with its reason.
func CopyFail(reason string) []byte { return Message(wire.CopyFail, append([]byte(reason), 0)) }

// FunctionCall builds a fast-path call with arguments and result as text.
func FunctionCall(oid uint32, args ...string) []byte {
	b := binary.BigEndian.AppendUint32(nil, oid)
	b = appendUint16s(b, nil)
	b = binary.BigEndian.AppendUint16(b, uint16(len(args)))
	for _, a := range args {
		b = binary.BigEndian.AppendUint32(b, uint32(len(a)))
		b = append(b, a...)
	}
	return Message(wire.FunctionCall, append(b, 0, 0))
}

// Password builds a PasswordMessage.
func Password(password string) []byte { return Message(wire.Password, append([]byte(password), 0)) }

// Extended builds the batch that most drivers send for one statement: Parse,
// Bind, Describe of the portal, Execute, Sync.
func Extended(sql string, params ...string) []byte {
	return Join(Parse("", sql), Bind("", "", params...), Describe('P', ""), Execute("", 0), Sync())
}

// Join puts messages one behind the other, for one write.
func Join(msgs ...[]byte) []byte {
	var out []byte
	for _, m := range msgs {
		out = append(out, m...)
	}
	return out
}
