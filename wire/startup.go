package wire

import (
	"encoding/binary"
	"strings"
)

// MaxStartup is the longest startup packet in bytes that is accepted, as in
// PostgreSQL (MAX_STARTUP_PACKET_LENGTH).
const MaxStartup = 10000

// Codes in place of a protocol version.
const (
	codeCancel = 80877102
	codeSSL    = 80877103
	codeGSSENC = 80877104
)

// Protocol versions: major in the high 16 bits, minor in the low ones.
const (
	Protocol30 uint32 = 3 << 16
	Protocol32 uint32 = 3<<16 | 2
)

// StartupKind says what a first packet asks for.
type StartupKind uint8

// The kinds of first packet.
const (
	StartSession StartupKind = iota
	StartCancel
	StartSSL
	StartGSSENC
)

// Startup is a first packet.
type Startup struct {
	Kind     StartupKind
	Protocol uint32      // as asked, for StartSession
	Params   [][2]string // name and value in the order sent, for StartSession
	PID      uint32      // for StartCancel
	Secret   []byte      // for StartCancel; points into the packet
}

// Param returns the last value of a parameter.
func (s *Startup) Param(name string) string {
	for i := len(s.Params) - 1; i >= 0; i-- {
		if s.Params[i][0] == name {
			return s.Params[i][1]
		}
	}
	return ""
}

// StartupLen reads the length of a startup packet, header included, from its
// first four bytes. A length below 8 or above MaxStartup gives ErrLength.
func StartupLen(p []byte) (int, error) {
	n := binary.BigEndian.Uint32(p)
	if n < 8 || n > MaxStartup {
		return 0, ErrLength
	}
	return int(n), nil
}

// ReadStartup reads a whole startup packet. Protocol versions other than 3 give
// an *Error in the words that PostgreSQL uses.
func ReadStartup(p []byte) (*Startup, error) {
	if len(p) < 8 {
		return nil, ErrLength
	}
	code := binary.BigEndian.Uint32(p[4:])
	body := p[8:]
	switch code {
	case codeSSL:
		return &Startup{Kind: StartSSL}, exactly(body, 0)
	case codeGSSENC:
		return &Startup{Kind: StartGSSENC}, exactly(body, 0)
	case codeCancel:
		// Protocol 3.2 allows secrets of 4 to 256 bytes.
		if len(body) < 8 || len(body) > 4+256 {
			return nil, ErrMessage
		}
		return &Startup{Kind: StartCancel, PID: binary.BigEndian.Uint32(body), Secret: body[4:]}, nil
	}
	if code>>16 != 3 {
		return nil, Fatalf(CodeFeatureNotSupported, "unsupported frontend protocol %d.%d: server supports 3.0 to 3.2",
			code>>16, code&0xffff)
	}
	s := &Startup{Protocol: code}
	for {
		name, rest, ok := String(body)
		if !ok {
			return nil, Fatalf(CodeProtocolViolation, "invalid startup packet layout: expected terminator as last byte")
		}
		if len(name) == 0 {
			if len(rest) != 0 {
				return nil, Fatalf(CodeProtocolViolation, "invalid startup packet layout: expected terminator as last byte")
			}
			return s, nil
		}
		value, rest, ok := String(rest)
		if !ok {
			return nil, Fatalf(CodeProtocolViolation, "invalid startup packet layout: expected terminator as last byte")
		}
		s.Params = append(s.Params, [2]string{string(name), string(value)})
		body = rest
	}
}

func exactly(body []byte, n int) error {
	if len(body) != n {
		return ErrMessage
	}
	return nil
}

// AppendSSLRequest appends an SSLRequest packet.
func AppendSSLRequest(dst []byte) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(dst, 8), codeSSL)
}

// AppendCancel appends a CancelRequest packet.
func AppendCancel(dst []byte, pid uint32, secret []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(12+len(secret)))
	dst = binary.BigEndian.AppendUint32(dst, codeCancel)
	dst = binary.BigEndian.AppendUint32(dst, pid)
	return append(dst, secret...)
}

// SplitOptions splits the value of the startup parameter "options" into words
// as PostgreSQL does: white space separates, a backslash keeps the character
// behind it.
func SplitOptions(s string) []string {
	var words []string
	var w strings.Builder
	inWord := false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch c {
		case '\\':
			if i++; i < len(s) {
				w.WriteByte(s[i])
			}
			inWord = true
		case ' ', '\t', '\n', '\r', '\f', '\v':
			if inWord {
				words = append(words, w.String())
				w.Reset()
				inWord = false
			}
		default:
			w.WriteByte(c)
			inWord = true
		}
	}
	if inWord {
		words = append(words, w.String())
	}
	return words
}

// OptionSettings reads "-c name=value" and "--name=value" out of the startup
// parameter "options". Dashes in names of the second form stand for underscores.
// Anything else gives an *Error.
func OptionSettings(options string) ([][2]string, error) {
	var out [][2]string
	words := SplitOptions(options)
	for i := 0; i < len(words); i++ {
		w := words[i]
		var pair string
		switch {
		case w == "-c" && i+1 < len(words):
			i++
			pair = words[i]
		case strings.HasPrefix(w, "-c") && len(w) > 2:
			pair = w[2:]
		case strings.HasPrefix(w, "--") && len(w) > 2:
			pair = w[2:]
		default:
			return nil, Fatalf(CodeSyntaxError, "invalid command-line argument for server process: %s", w)
		}
		name, value, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, Fatalf(CodeSyntaxError, "-c %s requires a value", pair)
		}
		out = append(out, [2]string{strings.ToLower(strings.ReplaceAll(name, "-", "_")), value})
	}
	return out, nil
}
