package config

import (
	"bytes"
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// decode reads the TOML of a file. It stops at the first error of syntax.
func decode(path string, text []byte) (table map[string]any, root *node, fault *Error) {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	if at, msg := badByte(text); at >= 0 {
		return nil, nil, &Error{Path: path, Line: lineAt(text, at), Msg: msg}
	}
	err := toml.Unmarshal(text, &table)
	if err == nil {
		return table, positions(string(text)), nil
	}
	var pe toml.ParseError
	if !errors.As(err, &pe) {
		return nil, nil, &Error{Path: path, Msg: "want a file in TOML"}
	}
	// The offset is that of the token at fault. The line that the package gives
	// with it is one too low or too high around ends of lines.
	return nil, nil, &Error{Path: path, Line: lineAt(text, pe.Position.Start), Msg: syntaxMessage(text, pe)}
}

// badByte finds the first byte that TOML allows nowhere, or -1.
func badByte(text []byte) (at int, msg string) {
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRune(text[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			return i, "a byte that is no UTF-8: want a text in UTF-8"
		case r == '\r' && i+1 < len(text) && text[i+1] == '\n', r == '\t', r == '\n':
		case r < ' ' || r == 0x7f:
			return i, "a control character: want plain text"
		}
		i += n
	}
	return -1, ""
}

// lineAt is the line of a byte.
func lineAt(text []byte, at int) int {
	at = max(0, min(at, len(text)))
	return 1 + bytes.Count(text[:at], []byte("\n"))
}

// lineOf is the text of the line of a byte.
func lineOf(text []byte, at int) []byte {
	at = max(0, min(at, len(text)))
	start := bytes.LastIndexByte(text[:at], '\n') + 1
	line, _, _ := bytes.Cut(text[start:], []byte("\n"))
	return line
}

// syntaxMessage is what the toml package says, without what may be a secret.
func syntaxMessage(text []byte, pe toml.ParseError) string {
	line := lineOf(text, pe.Position.Start)
	twice := strings.HasPrefix(pe.Message, "Key '") // and it has the key alone
	if !twice && (mayHideSecret(pe.LastKey) || mayHideSecret(string(line))) {
		return `no valid TOML, and not shown as it may be a secret: want key = "value", with \" and \\ for a quote or backslash in it`
	}
	msg := pe.Message
	if strings.HasPrefix(msg, "expected value but found") {
		return `no value: want a text in quotes, a number, true, false, an [array] or a {table} after "="`
	}
	if strings.HasPrefix(msg, "expected a top-level item to end") {
		return "more stands on the line after its end: want one key on a line, and a text in quotes"
	}
	if head, _, ok := strings.Cut(msg, ", but got"); ok && strings.Contains(head, "hexadecimal digits") {
		msg = head // what it got is the string so far
	}
	if first, n := utf8.DecodeRuneInString(msg); len(msg) > n && unicode.IsLower(rune(msg[n])) {
		msg = string(unicode.ToLower(first)) + msg[n:]
	}
	msg = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, msg)
	if len(msg) > 200 {
		msg = strings.ToValidUTF8(msg[:200], "") + "..."
	}
	return strings.TrimSuffix(msg, ".")
}
