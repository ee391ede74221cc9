package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// sent is what pgproto3 makes of a client's message.
func sent(t *testing.T, p []byte) string {
	t.Helper()
	return received(t, p, func(r *bytes.Reader) (any, error) { return pgproto3.NewBackend(r, nil).Receive() })
}

// said is what pgproto3 makes of a server's message.
func said(t *testing.T, p []byte) string {
	t.Helper()
	return received(t, p, func(r *bytes.Reader) (any, error) { return pgproto3.NewFrontend(r, nil).Receive() })
}

func received(t *testing.T, p []byte, read func(*bytes.Reader) (any, error)) string {
	t.Helper()
	h, err := wire.ReadHeader(p, 1<<30)
	if err != nil || h.Size() != len(p) {
		t.Fatalf("header %+v (%v) of %d bytes %q", h, err, len(p), p)
	}
	m, err := read(bytes.NewReader(p))
	if err != nil {
		t.Fatalf("%q: %v", p, err)
	}
	return strings.TrimPrefix(fmt.Sprintf("%+v", m), "&")
}

func TestClientMessages(t *testing.T) {
	oids := []byte{0, 2, 0, 0, 0, 23, 0, 0, 0, 25}
	for _, c := range []struct {
		p    []byte
		want any
	}{
		{wire.AppendQuery(nil, "select 1"), &pgproto3.Query{String: "select 1"}},
		{wire.AppendParse(nil, "s", []byte("select $1, $2"), oids), &pgproto3.Parse{Name: "s", Query: "select $1, $2", ParameterOIDs: []uint32{23, 25}}},
		{wire.AppendParse(nil, "", nil, nil), &pgproto3.Parse{}},
		{wire.AppendBindText(nil, "s", "a", ""), &pgproto3.Bind{PreparedStatement: "s", Parameters: [][]byte{[]byte("a"), {}}}},
		{append(wire.AppendBindHead(nil, []byte("p"), "s", 6), 0, 0, 0, 0, 0, 0), &pgproto3.Bind{DestinationPortal: "p", PreparedStatement: "s"}},
		{wire.AppendTarget(nil, wire.Describe, 'P', "x"), &pgproto3.Describe{ObjectType: 'P', Name: "x"}},
		{wire.AppendTarget(nil, wire.Close, 'S', ""), &pgproto3.Close{ObjectType: 'S'}},
		{wire.AppendExecute(nil), &pgproto3.Execute{}},
		{wire.AppendSync(nil), &pgproto3.Sync{}},
		{wire.AppendFlush(nil), &pgproto3.Flush{}},
		{wire.AppendTerminate(nil), &pgproto3.Terminate{}},
	} {
		if got, want := sent(t, c.p), strings.TrimPrefix(fmt.Sprintf("%+v", c.want), "&"); got != want {
			t.Errorf("%T\ngot  %s\nwant %s", c.want, got, want)
		}
	}
}

func TestServerMessages(t *testing.T) {
	e := wire.Fatalf("57P01", "bye %d", 1).WithHint("h")
	e.Detail = "d"
	field := func(name string, oid uint32, size int16) pgproto3.FieldDescription {
		return pgproto3.FieldDescription{Name: []byte(name), DataTypeOID: oid, DataTypeSize: size, TypeModifier: -1}
	}
	for _, c := range []struct {
		p    []byte
		want any
	}{
		{wire.AppendAuth(nil, wire.AuthOK, nil), &pgproto3.AuthenticationOk{}},
		{wire.AppendAuth(nil, wire.AuthMD5Password, []byte{1, 2, 3, 4}), &pgproto3.AuthenticationMD5Password{Salt: [4]byte{1, 2, 3, 4}}},
		{wire.AppendParameterStatus(nil, "a", "b"), &pgproto3.ParameterStatus{Name: "a", Value: "b"}},
		{wire.AppendBackendKeyData(nil, 7, []byte{1, 2, 3, 4}), &pgproto3.BackendKeyData{ProcessID: 7, SecretKey: []byte{1, 2, 3, 4}}},
		{wire.AppendReadyForQuery(nil, wire.TxFailed), &pgproto3.ReadyForQuery{TxStatus: 'E'}},
		{wire.AppendCommandComplete(nil, "SELECT 1"), &pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")}},
		{wire.AppendEmpty(nil, wire.NoData), &pgproto3.NoData{}},
		{wire.AppendParameterDescription(nil), &pgproto3.ParameterDescription{ParameterOIDs: []uint32{}}},
		{wire.AppendDataRow(nil, []byte("x"), nil, []byte{}), &pgproto3.DataRow{Values: [][]byte{[]byte("x"), nil, {}}}},
		{
			wire.AppendRowDescription(nil, []wire.Column{{"t", wire.OIDText}, {"i", wire.OIDInt4}, {"b", wire.OIDInt8}}),
			&pgproto3.RowDescription{Fields: []pgproto3.FieldDescription{field("t", 25, -1), field("i", 23, 4), field("b", 20, 8)}},
		},
		{e.Append(nil), &pgproto3.ErrorResponse{
			Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "57P01", Message: "bye 1", Detail: "d", Hint: "h",
		}},
		{wire.Errorf("01000", "w").AppendNotice(nil), &pgproto3.NoticeResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: "01000", Message: "w"}},
	} {
		if got, want := said(t, c.p), strings.TrimPrefix(fmt.Sprintf("%+v", c.want), "&"); got != want {
			t.Errorf("%T\ngot  %s\nwant %s", c.want, got, want)
		}
	}
	if p := wire.AppendNegotiate(nil, wire.Protocol30, []string{"_pq_.x"}); string(p) != "v\x00\x00\x00\x13\x00\x03\x00\x00\x00\x00\x00\x01_pq_.x\x00" {
		t.Errorf("NegotiateProtocolVersion %q", p)
	}
}

// TestNoSmuggling: a NUL in a string ends it, and nothing behind it becomes a
// field or a message (S-27).
func TestNoSmuggling(t *testing.T) {
	const bad = "good\x00Q\x00\x00\x00\x05x"
	e := &wire.Error{Severity: "ERROR", Code: bad, Message: bad, Detail: bad, Hint: bad}
	for name, p := range map[string][]byte{
		"Query":           wire.AppendQuery(nil, bad),
		"Parse":           wire.AppendParse(nil, bad, []byte(bad), nil),
		"Bind":            wire.AppendBindText(nil, bad, "x"),
		"BindHead":        append(wire.AppendBindHead(nil, []byte(bad), bad, 6), 0, 0, 0, 0, 0, 0),
		"Describe":        wire.AppendTarget(nil, wire.Describe, 'S', bad),
		"ParameterStatus": wire.AppendParameterStatus(nil, bad, bad),
		"CommandComplete": wire.AppendCommandComplete(nil, bad),
		"RowDescription":  wire.AppendRowDescription(nil, []wire.Column{{Name: bad}}),
		"Negotiate":       wire.AppendNegotiate(nil, 0, []string{bad}),
		"Error":           e.Append(nil),
	} {
		h, err := wire.ReadHeader(p, 1<<20)
		if err != nil || h.Size() != len(p) || bytes.Contains(p, []byte("\x05x")) || !bytes.Contains(p, []byte("good\x00")) {
			t.Errorf("%s: %q (%v)", name, p, err)
		}
	}
}

// TestHeaderLengths are those of S-25.
func TestHeaderLengths(t *testing.T) {
	for _, n := range []uint32{0x80000000, 0xffffffff, 0xfffffffe, 0, 1, 3, 4, 5, 9999, 10000, 10001, 0x3fffffff, 0x40000000, 0x7fffffff} {
		h, err := wire.ReadHeader(binary.BigEndian.AppendUint32([]byte{'Q'}, n), 10000)
		ok := n >= 4 && n <= 10000
		if ok != (err == nil) || h.Type != 'Q' || ok && (h.Body != int(n)-4 || h.Size() != int(n)+1) {
			t.Errorf("length %#x: %+v, %v", n, h, err)
		}
		size, err := wire.StartupLen(binary.BigEndian.AppendUint32(nil, n))
		if ok := n >= 8 && n <= wire.MaxStartup; ok != (err == nil) || ok && size != int(n) {
			t.Errorf("startup length %#x: %d, %v", n, size, err)
		}
	}
}

func TestReadStartup(t *testing.T) {
	packet := func(body ...string) []byte { return pgtest.StartupPacket([]byte(strings.Join(body, ""))) }
	const v3 = "\x00\x03\x00\x00"
	for _, c := range []struct {
		name string
		p    []byte
		want string // of the value; "!" and a code, or "!" for another error
	}{
		{"session", pgtest.StartupMessage(wire.Protocol30, "user", "u", "database", "d"), "0 30000 [[user u] [database d]] 0 "},
		{"session 3.2", pgtest.StartupMessage(wire.Protocol32, "user", "u"), "0 30002 [[user u]] 0 "},
		{"no parameters", packet(v3, "\x00"), "0 30000 [] 0 "},
		{"ssl", pgtest.SSLRequest(), "2 0 [] 0 "},
		{"gss", pgtest.GSSENCRequest(), "3 0 [] 0 "},
		{"cancel", pgtest.CancelRequest(7, []byte("abcd")), "1 0 [] 7 abcd"},
		{"cancel, long key", pgtest.CancelRequest(7, make([]byte, 256)), "1 0 [] 7 " + string(make([]byte, 256))},
		{"cancel, key too long", pgtest.CancelRequest(7, make([]byte, 257)), "!"},
		{"cancel, key too short", pgtest.CancelRequest(7, []byte("abc")), "!"},
		{"ssl with a body", append(pgtest.SSLRequest(), 'x'), "!"},
		{"protocol 2", packet("\x00\x02\x00\x00\x00"), "!0A000"},
		{"protocol 4", packet("\x00\x04\x00\x00\x00"), "!0A000"},
		{"no terminator", packet(v3, "user\x00u\x00"), "!08P01"},
		{"name alone", packet(v3, "user\x00"), "!08P01"},
		{"name without end", packet(v3, "user"), "!08P01"},
		{"bytes behind", packet(v3, "user\x00u\x00\x00x"), "!08P01"},
		{"empty", packet(v3), "!08P01"},
		{"seven bytes", []byte("\x00\x00\x00\x07\x00\x03\x00"), "!"},
	} {
		s, err := wire.ReadStartup(c.p)
		var got string
		if e, ok := errors.AsType[*wire.Error](err); ok {
			got = "!" + e.Code
		} else if err != nil {
			got = "!"
		} else {
			got = fmt.Sprintf("%d %x %v %d %s", s.Kind, s.Protocol, s.Params, s.PID, s.Secret)
		}
		if got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	s := &wire.Startup{Params: [][2]string{{"a", "1"}, {"a", "2"}}}
	if s.Param("a") != "2" || s.Param("b") != "" {
		t.Error("the last value counts")
	}
}

func TestReadParse(t *testing.T) {
	m, err := wire.ReadParse([]byte("s\x00select\x00\x00\x01\x00\x00\x00\x17"))
	if err != nil || string(m.Name) != "s" || string(m.Query) != "select" || string(m.OIDs) != "\x00\x01\x00\x00\x00\x17" {
		t.Errorf("%q, %v", m, err)
	}
	for _, body := range []string{"", "s", "s\x00", "s\x00q", "s\x00q\x00", "s\x00q\x00\x00", "s\x00q\x00\x00\x01", "s\x00q\x00\x00\x00x", "s\x00q\x00\xff\xff"} {
		if _, err := wire.ReadParse([]byte(body)); !errors.Is(err, wire.ErrMessage) {
			t.Errorf("%q: %v", body, err)
		}
	}
}

func TestReadNames(t *testing.T) {
	if p, s, n, ok := wire.ReadBindNames([]byte("p\x00s\x00rest")); string(p) != "p" || string(s) != "s" || n != 4 || !ok {
		t.Errorf("%q %q %d %v", p, s, n, ok)
	}
	for _, body := range []string{"", "p", "p\x00", "p\x00s"} {
		if _, _, _, ok := wire.ReadBindNames([]byte(body)); ok {
			t.Errorf("%q is enough", body)
		}
	}
	if k, name, err := wire.ReadTarget([]byte("Sx\x00")); k != 'S' || string(name) != "x" || err != nil {
		t.Errorf("%c %q %v", k, name, err)
	}
	for _, body := range []string{"", "S", "Sx", "Xx\x00", "Px\x00y"} {
		if _, _, err := wire.ReadTarget([]byte(body)); !errors.Is(err, wire.ErrMessage) {
			t.Errorf("%q: %v", body, err)
		}
	}
	if n, v, err := wire.ReadParameterStatus([]byte("a\x00b\x00")); string(n) != "a" || string(v) != "b" || err != nil {
		t.Errorf("%q %q %v", n, v, err)
	}
	for _, body := range []string{"", "a", "a\x00", "a\x00b", "a\x00b\x00c"} {
		if _, _, err := wire.ReadParameterStatus([]byte(body)); !errors.Is(err, wire.ErrMessage) {
			t.Errorf("%q: %v", body, err)
		}
	}
}

func TestReadError(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{"SFEHLER\x00VERROR\x00C42601\x00Mm\x00Dd\x00Hh\x00Fx.c\x00\x00", "ERROR 42601 m d h"},
		{"VFATAL\x00STOD\x00\x00", "FATAL    "},
		{"", "    "},
		{"\x00", "    "},
		{"S", "    "},
		{"SERR", "    "},
		{"SERROR\x00C42601\x00Mcut he", "ERROR 42601   "},
		{"Ca\x00Cb\x00\x00Cc\x00", " b   "},
	} {
		e := wire.ReadError([]byte(c.body))
		if got := strings.Join([]string{e.Severity, e.Code, e.Message, e.Detail, e.Hint}, " "); got != c.want {
			t.Errorf("%q: got %q, want %q", c.body, got, c.want)
		}
	}
}

func TestErrorAndItsCause(t *testing.T) {
	cause := errors.New("secret path")
	e := wire.Fatalf("08006", "gone").Because(cause)
	if !errors.Is(e, cause) || !e.Fatal() || e.Error() != "FATAL: gone (SQLSTATE 08006): secret path" {
		t.Errorf("%v", e)
	}
	if bytes.Contains(e.Append(nil), []byte("secret")) {
		t.Error("the client is told the cause")
	}
	if wire.Errorf("1", "x").Fatal() || !(&wire.Error{Severity: wire.SeverityPanic}).Fatal() {
		t.Error("Fatal")
	}
	for _, s := range []wire.TxStatus{'I', 'T', 'E', 'X', 0} {
		if s.Valid() != (s == 'I' || s == 'T' || s == 'E') {
			t.Errorf("status %c", s)
		}
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct{ options, want string }{
		{"", "[]"},
		{"-c a=1 -cB.c=2  --work-mem=3MB", "[[a 1] [b.c 2] [work_mem 3MB]]"},
		{`-c search_path=a,\ b`, "[[search_path a, b]]"},
		{`-c a=\\\-x\`, `[[a \-x]]`},
		{"-c a=b=c", "[[a b=c]]"},
		{"-c", "!"},
		{"-c a", "!"},
		{"--", "!"},
		{"-d 5", "!"},
		{"x", "!"},
		{`\`, "!"},
	} {
		out, err := wire.OptionSettings(c.options)
		got := fmt.Sprint(out)
		if e, ok := errors.AsType[*wire.Error](err); ok && e.Code == wire.CodeSyntaxError {
			got = "!"
		}
		if got != c.want {
			t.Errorf("%q: got %s, want %s", c.options, got, c.want)
		}
	}
}

// splitLikePostgres is pg_split_opts of PostgreSQL's postinit.c.
func splitLikePostgres(s string) (words []string) {
	space := func(c byte) bool { return strings.IndexByte(" \t\n\r\f\v", c) >= 0 }
	for i := 0; i < len(s); {
		for i < len(s) && space(s[i]) {
			i++
		}
		if i == len(s) {
			break
		}
		var w []byte
		escaped := false
		for ; i < len(s) && (escaped || !space(s[i])); i++ {
			if !escaped && s[i] == '\\' {
				escaped = true
				continue
			}
			escaped = false
			w = append(w, s[i])
		}
		words = append(words, string(w))
	}
	return words
}

func TestSplitOptions(t *testing.T) {
	for _, s := range []string{"", " ", "a", " a\t b\n", `a\ b`, `a\\b`, `\`, `a\`, `a \`, `\ `, "\v\f\r"} {
		if got, want := wire.SplitOptions(s), splitLikePostgres(s); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", s, got, want)
		}
	}
}
