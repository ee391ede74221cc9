package admin

import (
	"encoding/binary"
	"math"
	"strconv"
	"time"

	"pgproxy/wire"
)

// Short names of the column types, as in PgBouncer's tables.
const (
	typeText    = wire.OIDText
	typeInt     = wire.OIDInt4
	typeBigint  = wire.OIDInt8
	typeNumeric = wire.OIDNumeric
	typeBytea   = 17 // pg_type.dat
)

// row is one line of a result: string, int, int64, uint64, or nil for NULL.
type row []any

// columns makes a list of columns: types has a letter for each name, s for text,
// i for int4, q for int8, N for numeric, b for bytea.
func columns(types string, names ...string) []wire.Column {
	if len(types) != len(names) {
		panic("admin: columns " + types + " have other names")
	}
	cols := make([]wire.Column, len(names))
	for i, n := range names {
		oid := uint32(0)
		switch types[i] {
		case 's':
			oid = typeText
		case 'i':
			oid = typeInt
		case 'q':
			oid = typeBigint
		case 'N':
			oid = typeNumeric
		case 'b':
			oid = typeBytea
		default:
			panic("admin: unknown column type in " + types)
		}
		cols[i] = wire.Column{Name: n, OID: oid}
	}
	return cols
}

// format is how a column is written: text or binary.
type format uint16

const (
	formatText   format = 0
	formatBinary format = 1
)

// formats are the result formats of a Bind: none is text for all, one is for
// all columns.
type formats []format

func (f formats) of(i int) format {
	switch {
	case len(f) == 0:
		return formatText
	case len(f) == 1:
		return f[0]
	case i < len(f):
		return f[i]
	}
	return formatText
}

// appendRowDescription appends a RowDescription with these formats.
func appendRowDescription(dst []byte, cols []wire.Column, f formats) []byte {
	at := len(dst)
	dst = wire.AppendRowDescription(dst, cols)
	at += wire.HeaderLen + 2
	for i, c := range cols {
		// Name and NUL, then 16 bytes up to the format code.
		at += len(c.Name) + 1 + 16
		binary.BigEndian.PutUint16(dst[at:], uint16(f.of(i)))
		at += 2
	}
	return dst
}

// appendDataRow appends one row in these formats.
func appendDataRow(dst []byte, cols []wire.Column, r row, f formats) []byte {
	values := make([][]byte, len(cols))
	for i, c := range cols {
		if i < len(r) && r[i] != nil {
			values[i] = encode(c.OID, r[i], f.of(i))
		}
	}
	return wire.AppendDataRow(dst, values...)
}

// encode writes one value, never nil.
func encode(oid uint32, v any, f format) []byte {
	if s, ok := v.(string); ok {
		return []byte(s) // text is the same in both formats
	}
	n := integer(v)
	if oid == typeInt {
		n = max(math.MinInt32, min(n, math.MaxInt32))
	}
	if f == formatText {
		return strconv.AppendInt(nil, n, 10)
	}
	switch oid {
	case typeInt:
		return binary.BigEndian.AppendUint32(nil, uint32(int32(n)))
	case typeBigint:
		return binary.BigEndian.AppendUint64(nil, uint64(n))
	case typeNumeric:
		return binaryNumeric(n)
	}
	return strconv.AppendInt(nil, n, 10)
}

// integer converts what a row may hold besides text.
func integer(v any) int64 {
	switch v := v.(type) {
	case int:
		return int64(v)
	case int64:
		return v
	case uint64:
		return int64(min(v, math.MaxInt64))
	case bool:
		if v {
			return 1
		}
		return 0
	}
	panic("admin: a row holds a value of an unknown type")
}

// binaryNumeric is the binary format of a numeric without fraction: the number
// of digits to base 10000, the weight of the first, sign, scale, digits; see
// numeric_send in PostgreSQL's numeric.c.
func binaryNumeric(n int64) []byte {
	sign, u := uint16(0), uint64(n)
	if n < 0 {
		sign, u = 0x4000, -u
	}
	var digits []uint16 // the lowest first
	for ; u > 0; u /= 10000 {
		digits = append(digits, uint16(u%10000))
	}
	weight := uint16(max(len(digits)-1, 0))
	b := binary.BigEndian.AppendUint16(nil, uint16(len(digits)))
	b = binary.BigEndian.AppendUint16(b, weight)
	b = binary.BigEndian.AppendUint16(b, sign)
	b = binary.BigEndian.AppendUint16(b, 0)
	for i := len(digits) - 1; i >= 0; i-- {
		b = binary.BigEndian.AppendUint16(b, digits[i])
	}
	return b
}

// optional is s, or NULL for "".
func optional(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// stamp writes a time as PgBouncer does.
func stamp(t time.Time) any {
	if t.IsZero() {
		return ""
	}
	return t.Format("2006-01-02 15:04:05 MST")
}

// parts splits a duration into seconds and microseconds.
func parts(d time.Duration) (s, us int64) {
	n := int64(max(d, 0) / time.Microsecond)
	return n / 1e6, n % 1e6
}

// yesNo is the word of SHOW STATE and SHOW CONFIG.
func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
