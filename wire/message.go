package wire

import (
	"encoding/binary"
	"errors"
)

// HeaderLen is the length of a message header: type byte and length.
const HeaderLen = 5

// Messages from client to server.
const (
	Query        byte = 'Q'
	Parse        byte = 'P'
	Bind         byte = 'B'
	Describe     byte = 'D'
	Execute      byte = 'E'
	Close        byte = 'C'
	Sync         byte = 'S'
	Flush        byte = 'H'
	FunctionCall byte = 'F'
	Terminate    byte = 'X'
	Password     byte = 'p' // also SASL and GSS responses
)

// Messages in both directions, while COPY is under way.
const (
	CopyData byte = 'd'
	CopyDone byte = 'c'
	CopyFail byte = 'f' // client only
)

// Messages from server to client.
const (
	Authentication           byte = 'R'
	BackendKeyData           byte = 'K'
	BindComplete             byte = '2'
	CloseComplete            byte = '3'
	CommandComplete          byte = 'C'
	CopyInResponse           byte = 'G'
	CopyOutResponse          byte = 'H'
	CopyBothResponse         byte = 'W'
	DataRow                  byte = 'D'
	EmptyQueryResponse       byte = 'I'
	ErrorResponse            byte = 'E'
	FunctionCallResponse     byte = 'V'
	NegotiateProtocolVersion byte = 'v'
	NoData                   byte = 'n'
	NoticeResponse           byte = 'N'
	NotificationResponse     byte = 'A'
	ParameterDescription     byte = 't'
	ParameterStatus          byte = 'S'
	ParseComplete            byte = '1'
	PortalSuspended          byte = 's'
	ReadyForQuery            byte = 'Z'
	RowDescription           byte = 'T'
)

// TxStatus is the transaction status that ReadyForQuery reports.
type TxStatus byte

// The three transaction states.
const (
	TxIdle   TxStatus = 'I' // not in a transaction block
	TxInside TxStatus = 'T' // in a transaction block
	TxFailed TxStatus = 'E' // in a failed transaction block
)

// Valid reports whether s is one of the three states.
func (s TxStatus) Valid() bool { return s == TxIdle || s == TxInside || s == TxFailed }

// Errors of header and body readers. They mean that the peer does not speak the
// protocol: the connection cannot go on.
var (
	ErrLength  = errors.New("invalid message length")
	ErrMessage = errors.New("invalid message format")
)

// Header is the first five bytes of a message.
type Header struct {
	Type byte
	Body int // length of the body in bytes, without the header
}

// Size returns the length of the whole message in bytes.
func (h Header) Size() int { return HeaderLen + h.Body }

// ReadHeader reads the header in front of p, which must hold at least HeaderLen
// bytes. A length below 4 or above limit (counted as the protocol does, body
// plus 4) gives ErrLength.
func ReadHeader(p []byte, limit int) (Header, error) {
	n := binary.BigEndian.Uint32(p[1:5])
	if n < 4 || uint64(n) > uint64(limit) {
		return Header{Type: p[0]}, ErrLength
	}
	return Header{Type: p[0], Body: int(n) - 4}, nil
}

// AppendHeader appends the header of a message with body bytes of body.
func AppendHeader(dst []byte, typ byte, body int) []byte {
	dst = append(dst, typ)
	return binary.BigEndian.AppendUint32(dst, uint32(body+4))
}

// String splits p behind its first NUL: the string in front of it and the rest.
func String(p []byte) (s, rest []byte, ok bool) {
	for i, b := range p {
		if b == 0 {
			return p[:i], p[i+1:], true
		}
	}
	return nil, nil, false
}

// appendString appends s as a NUL-terminated string. A NUL inside s would end
// it early and smuggle the rest into the next field, so s is cut there.
func appendString[T string | []byte](dst []byte, s T) []byte {
	return append(append(dst, cutNUL(s)...), 0)
}

func cutNUL[T string | []byte](s T) T {
	for i := 0; i < len(s); i++ {
		if s[i] == 0 {
			return s[:i]
		}
	}
	return s
}

// finish writes the length of the message that starts at dst[start].
func finish(dst []byte, start int) []byte {
	binary.BigEndian.PutUint32(dst[start+1:], uint32(len(dst)-start-1))
	return dst
}

// begin starts a message whose length finish will write.
func begin(dst []byte, typ byte) ([]byte, int) {
	return append(dst, typ, 0, 0, 0, 0), len(dst)
}
