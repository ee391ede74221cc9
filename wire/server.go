package wire

import "encoding/binary"

// Messages from server to client that the proxy makes itself.

// AuthCode is the first field of an Authentication message.
type AuthCode uint32

// The Authentication messages that are used.
const (
	AuthOK                AuthCode = 0
	AuthCleartextPassword AuthCode = 3
	AuthMD5Password       AuthCode = 5
	AuthSASL              AuthCode = 10
	AuthSASLContinue      AuthCode = 11
	AuthSASLFinal         AuthCode = 12
)

// AppendAuth appends an Authentication message.
func AppendAuth(dst []byte, code AuthCode, payload []byte) []byte {
	dst, at := begin(dst, Authentication)
	dst = binary.BigEndian.AppendUint32(dst, uint32(code))
	return finish(append(dst, payload...), at)
}

// AppendParameterStatus appends a ParameterStatus message.
func AppendParameterStatus(dst []byte, name, value string) []byte {
	dst, at := begin(dst, ParameterStatus)
	return finish(appendString(appendString(dst, name), value), at)
}

// ReadParameterStatus reads the body of a ParameterStatus message.
func ReadParameterStatus(body []byte) (name, value []byte, err error) {
	name, rest, ok := String(body)
	if !ok {
		return nil, nil, ErrMessage
	}
	value, rest, ok = String(rest)
	if !ok || len(rest) != 0 {
		return nil, nil, ErrMessage
	}
	return name, value, nil
}

// AppendBackendKeyData appends a BackendKeyData message. A secret longer than
// four bytes needs protocol 3.2.
func AppendBackendKeyData(dst []byte, pid uint32, secret []byte) []byte {
	dst, at := begin(dst, BackendKeyData)
	dst = binary.BigEndian.AppendUint32(dst, pid)
	return finish(append(dst, secret...), at)
}

// AppendNegotiate appends a NegotiateProtocolVersion message: the newest minor
// version that is served and the protocol options that are not.
func AppendNegotiate(dst []byte, newest uint32, unknown []string) []byte {
	dst, at := begin(dst, NegotiateProtocolVersion)
	dst = binary.BigEndian.AppendUint32(dst, newest)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(unknown)))
	for _, o := range unknown {
		dst = appendString(dst, o)
	}
	return finish(dst, at)
}

// AppendReadyForQuery appends a ReadyForQuery message.
func AppendReadyForQuery(dst []byte, s TxStatus) []byte {
	return append(dst, ReadyForQuery, 0, 0, 0, 5, byte(s))
}

// AppendCommandComplete appends a CommandComplete message.
func AppendCommandComplete(dst []byte, tag string) []byte {
	dst, at := begin(dst, CommandComplete)
	return finish(appendString(dst, tag), at)
}

// AppendEmpty appends a message without body: ParseComplete, BindComplete,
// CloseComplete, NoData, EmptyQueryResponse.
func AppendEmpty(dst []byte, typ byte) []byte { return append(dst, typ, 0, 0, 0, 4) }

// Type OIDs of the columns that the proxy makes itself, from PostgreSQL's
// pg_type.dat.
const (
	OIDBytea   uint32 = 17
	OIDInt8    uint32 = 20
	OIDInt4    uint32 = 23
	OIDText    uint32 = 25
	OIDNumeric uint32 = 1700
)

// Column is a column of a result that the proxy makes itself.
type Column struct {
	Name string
	OID  uint32
}

// AppendRowDescription appends a RowDescription message with text formats.
func AppendRowDescription(dst []byte, cols []Column) []byte {
	dst, at := begin(dst, RowDescription)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(cols)))
	for _, c := range cols {
		dst = appendString(dst, c.Name)
		dst = append(dst, 0, 0, 0, 0, 0, 0) // table, column number
		dst = binary.BigEndian.AppendUint32(dst, c.OID)
		dst = binary.BigEndian.AppendUint16(dst, uint16(typeLen(c.OID)))
		dst = append(dst, 0xff, 0xff, 0xff, 0xff, 0, 0) // type modifier -1, text
	}
	return finish(dst, at)
}

func typeLen(oid uint32) int16 {
	switch oid {
	case OIDInt8:
		return 8
	case OIDInt4:
		return 4
	}
	return -1
}

// AppendDataRow appends a DataRow message of text values; nil is NULL.
func AppendDataRow(dst []byte, values ...[]byte) []byte {
	dst, at := begin(dst, DataRow)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(values)))
	for _, v := range values {
		if v == nil {
			dst = append(dst, 0xff, 0xff, 0xff, 0xff)
			continue
		}
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(v)))
		dst = append(dst, v...)
	}
	return finish(dst, at)
}

// AppendParameterDescription appends a ParameterDescription for no parameters.
func AppendParameterDescription(dst []byte) []byte {
	return append(dst, ParameterDescription, 0, 0, 0, 6, 0, 0)
}

// ReadNotification reads the body of a NotificationResponse message.
func ReadNotification(body []byte) (pid uint32, channel, payload []byte, err error) {
	if len(body) < 4 {
		return 0, nil, nil, ErrMessage
	}
	pid = binary.BigEndian.Uint32(body)
	channel, rest, ok := String(body[4:])
	if !ok {
		return 0, nil, nil, ErrMessage
	}
	payload, rest, ok = String(rest)
	if !ok || len(rest) != 0 {
		return 0, nil, nil, ErrMessage
	}
	return pid, channel, payload, nil
}

// AppendNotification appends a NotificationResponse message.
func AppendNotification(dst []byte, pid uint32, channel, payload []byte) []byte {
	dst, at := begin(dst, NotificationResponse)
	dst = binary.BigEndian.AppendUint32(dst, pid)
	dst = append(append(dst, channel...), 0)
	return finish(append(append(dst, payload...), 0), at)
}

// ReadDataRow reads the body of a DataRow message. A NULL is nil; the values are
// valid as long as body is.
func ReadDataRow(body []byte) (values [][]byte, err error) {
	if len(body) < 2 {
		return nil, ErrMessage
	}
	n, rest := int(binary.BigEndian.Uint16(body)), body[2:]
	for range n {
		if len(rest) < 4 {
			return nil, ErrMessage
		}
		size := int32(binary.BigEndian.Uint32(rest))
		rest = rest[4:]
		if size < 0 {
			values = append(values, nil)
			continue
		}
		if int(size) > len(rest) {
			return nil, ErrMessage
		}
		values = append(values, rest[:size:size])
		rest = rest[size:]
	}
	if len(rest) != 0 {
		return nil, ErrMessage
	}
	return values, nil
}
