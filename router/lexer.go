package router

import "bytes"

// token is one lexical unit; its text is src[start:end] of the lexer.
type token struct {
	kind       tokenKind
	upper      bool // of a word: there are capital letters in it
	start, end int
}

type tokenKind uint8

const (
	tokEnd      tokenKind = iota
	tokWord               // key word or identifier without quotes
	tokQuoted             // "identifier", with U& in front of it or without
	tokString             // '...', E'...', U&'...', $tag$...$tag$ and their continuations
	tokNational           // N'...'
	tokBits               // B'...'
	tokHex                // X'...'
	tokInteger            // fits an int4
	tokFloat              // any other number
	tokParam              // $1
	tokOp                 // a run of operator characters, as it stands in the text
	tokPunct              // , ( ) [ ] . ; : and :: := ..
	tokBad                // what no PostgreSQL accepts, or a quote without an end
)

// oddity is what keeps a text from having a shape.
type oddity uint8

const (
	// oddBackslash: a backslash in a plain '...'. What such a string holds
	// depends on standard_conforming_strings, which is not known here.
	oddBackslash oddity = 1 << iota
	// oddQuote: that backslash stands before a quote, so that where the
	// string ends depends on the setting too.
	oddQuote
	// oddToken: U&"...", digits that run into letters, 0x1F, 1_000. Their
	// meaning depends on the server's version or on a literal.
	oddToken
)

// lexer cuts a text into tokens as PostgreSQL's own scanner does. White space
// and comments are skipped. It allocates nothing, and each byte is looked at a
// bounded number of times.
type lexer struct {
	src []byte
	pos int
	odd oddity
	old bool // standard_conforming_strings is off: '...' is read like E'...'
}

// The classes of bytes; PostgreSQL counts every byte above 127 as a letter.
const (
	classSpace = 1 << iota
	classLetter
	classDigit
	classWord // may continue an identifier
	classOp
	classGap   // may start what stands between tokens
	classUpper // A to Z
)

var class [256]uint8

// lower is 0 for what cannot be in an identifier, else the byte in lower case.
var lower [256]byte

func init() {
	for c := range 256 {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', c >= 0x80:
			class[c] = classLetter | classWord
		case c >= '0' && c <= '9':
			class[c] = classDigit | classWord
		case c == '$':
			class[c] = classWord
		}
		if class[c]&classWord != 0 {
			lower[c] = byte(c)
		}
		if c >= 'A' && c <= 'Z' {
			class[c] |= classUpper
			lower[c] = byte(c) + 'a' - 'A'
		}
	}
	for _, c := range []byte(" \t\n\r\f\v") {
		class[c] |= classSpace | classGap
	}
	class['-'] |= classGap
	class['/'] |= classGap
	for _, c := range []byte("~!@#^&|`?+-*/%<>=") {
		class[c] |= classOp
	}
}

func is(c byte, want uint8) bool { return class[c]&want != 0 }

// at returns the byte at i, or 0 behind the end. No text with a zero byte is lexed.
func (l *lexer) at(i int) byte {
	if i < len(l.src) {
		return l.src[i]
	}
	return 0
}

// next returns the next token. After tokEnd or tokBad there is nothing more.
func (l *lexer) next() token {
	src, start := l.src, l.pos
	if start < len(src) && src[start] == ' ' {
		start++ // most tokens stand behind one
		l.pos = start
	}
	if start < len(src) && is(src[start], classGap) {
		if !l.skipSpace() {
			return token{kind: tokBad, start: l.pos, end: len(src)}
		}
		start = l.pos
	}
	if start >= len(src) {
		return token{kind: tokEnd, start: start, end: start}
	}
	c := src[start]
	switch {
	case is(c, classLetter):
		if d := l.at(start + 1); d == '\'' || d == '&' {
			if kind, ok := l.prefixed(c); ok {
				return token{kind: kind, start: start, end: l.pos}
			}
		}
		all, i := class[c], start+1
		for ; i < len(src) && is(src[i], classWord); i++ {
			all |= class[src[i]]
		}
		l.pos = i
		return token{kind: tokWord, upper: all&classUpper != 0, start: start, end: i}
	case is(c, classDigit), c == '.' && is(l.at(start+1), classDigit):
		return token{kind: l.number(), start: start, end: l.pos}
	case is(c, classOp):
		i := start + 1
		for i < len(src) && is(src[i], classOp) && !l.commentAt(i) {
			i++
		}
		l.pos = i
		return token{kind: tokOp, start: start, end: i}
	}
	return token{kind: l.mark(c), start: start, end: l.pos}
}

// mark reads what starts with neither a letter, a digit nor an operator.
func (l *lexer) mark(c byte) tokenKind {
	switch c {
	case '\'':
		return l.quoted(l.pos+1, l.old, tokString)
	case '"':
		return l.identifier(l.pos + 1)
	case '$':
		return l.dollar()
	case ',', '(', ')', '[', ']', ';':
		l.pos++
		return tokPunct
	case '.':
		l.pos++
		if l.at(l.pos) == '.' {
			l.pos++
		}
		return tokPunct
	case ':':
		l.pos++
		if d := l.at(l.pos); d == ':' || d == '=' {
			l.pos++
		}
		return tokPunct
	}
	return tokBad
}

func (l *lexer) commentAt(i int) bool {
	c, d := l.src[i], l.at(i+1)
	return c == '-' && d == '-' || c == '/' && d == '*'
}

// skipSpace moves to the next token; false when a comment has no end.
func (l *lexer) skipSpace() bool {
	for l.pos < len(l.src) {
		c := l.src[l.pos]
		switch {
		case is(c, classSpace):
			l.pos++
		case c == '-' && l.at(l.pos+1) == '-':
			l.pos = l.lineEnd(l.pos)
		case c == '/' && l.at(l.pos+1) == '*':
			end := commentEnd(l.src, l.pos)
			if end < 0 {
				return false
			}
			l.pos = end
		default:
			return true
		}
	}
	return true
}

func (l *lexer) lineEnd(i int) int {
	for i < len(l.src) && l.src[i] != '\n' && l.src[i] != '\r' {
		i++
	}
	return i
}

// commentEnd returns where the block comment that starts at i ends, or -1.
// Comments nest.
func commentEnd(src []byte, i int) int {
	depth := 1
	for i += 2; i+1 < len(src); {
		switch {
		case src[i] == '/' && src[i+1] == '*':
			depth++
			i += 2
		case src[i] == '*' && src[i+1] == '/':
			i += 2
			if depth--; depth == 0 {
				return i
			}
		default:
			i++
		}
	}
	return -1
}

// prefixed reads a quoted thing with a letter in front of it, c, and a quote or &
// behind that; false when what stands here is a plain word.
func (l *lexer) prefixed(c byte) (tokenKind, bool) {
	next := l.at(l.pos + 1)
	switch lower[c] {
	case 'e':
		if next == '\'' {
			return l.quoted(l.pos+2, true, tokString), true
		}
	case 'n':
		if next == '\'' {
			return l.quoted(l.pos+2, l.old, tokNational), true
		}
	case 'b':
		if next == '\'' {
			return l.quoted(l.pos+2, false, tokBits), true
		}
	case 'x':
		if next == '\'' {
			return l.quoted(l.pos+2, false, tokHex), true
		}
	case 'u':
		if next != '&' {
			break
		}
		switch l.at(l.pos + 2) {
		case '\'':
			odd := l.odd
			kind := l.quoted(l.pos+3, false, tokString)
			l.odd = odd // a backslash is at home in U&'...'
			return kind, true
		case '"':
			l.odd |= oddToken
			return l.identifier(l.pos + 3), true
		}
	}
	return 0, false
}

// quoted reads a string whose first byte behind the quote is at i. Strings
// with only white space that holds a line end between them are one.
func (l *lexer) quoted(i int, escapes bool, kind tokenKind) tokenKind {
	for i < len(l.src) {
		switch l.src[i] {
		case '\'':
			i++
			if l.at(i) == '\'' && kind != tokBits && kind != tokHex {
				i++ // two quotes are one, but not in B'...' and X'...'
				continue
			}
			again, ok := l.continued(i)
			if !ok {
				l.pos = i
				return kind
			}
			i = again
		case '\\':
			if escapes {
				i++
			} else {
				l.odd |= oddBackslash
				i += l.escaped(i)
			}
			i++
		default:
			i++
		}
	}
	l.pos = len(l.src)
	return tokBad
}

// escaped is told of a backslash at i in a string without escapes. It returns
// how many of the bytes behind it both readings of the string skip.
func (l *lexer) escaped(i int) int {
	switch l.at(i + 1) {
	case '\\':
		return 1
	case '\'':
		l.odd |= oddQuote
	}
	return 0
}

// bothWays tells whether a text that is lexed well as it is can also be lexed
// with standard_conforming_strings off. If it cannot, a server with that
// setting refuses it, and there is only one thing that it can mean.
func bothWays(sql []byte) bool {
	l := lexer{src: sql, old: true}
	for {
		switch l.next().kind {
		case tokEnd:
			return true
		case tokBad:
			return false
		}
	}
}

// continued looks behind a closing quote at i for the opening quote of a
// continuation, and returns the place behind that.
func (l *lexer) continued(i int) (int, bool) {
	newline := false
	for i < len(l.src) {
		c := l.src[i]
		switch {
		case c == '\n' || c == '\r':
			newline = true
			i++
		case is(c, classSpace):
			i++
		case c == '-' && l.at(i+1) == '-':
			// Behind the first line end a comment must have an end of line
			// of its own; in front of it, it ends at that line end.
			i = l.lineEnd(i)
			if i == len(l.src) {
				return 0, false
			}
		case c == '\'' && newline:
			return i + 1, true
		default:
			return 0, false
		}
	}
	return 0, false
}

func (l *lexer) identifier(i int) tokenKind {
	for i < len(l.src) {
		if l.src[i] != '"' {
			i++
			continue
		}
		i++
		if l.at(i) != '"' {
			l.pos = i
			return tokQuoted
		}
		i++
	}
	l.pos = len(l.src)
	return tokBad
}

// dollar reads $1 or a dollar-quoted string.
func (l *lexer) dollar() tokenKind {
	i := l.pos + 1
	if is(l.at(i), classDigit) {
		for is(l.at(i), classDigit) {
			i++
		}
		if is(l.at(i), classLetter) || i-l.pos > 6 {
			l.odd |= oddToken
		}
		l.pos = i
		return tokParam
	}
	if is(l.at(i), classLetter) {
		for is(l.at(i), classLetter|classDigit) {
			i++
		}
	}
	if l.at(i) != '$' {
		return tokBad
	}
	i++
	tag := l.src[l.pos:i]
	length := bytes.Index(l.src[i:], tag)
	if length < 0 {
		l.pos = len(l.src)
		return tokBad
	}
	l.pos = i + length + len(tag)
	return tokString
}

func (l *lexer) digits(i int) int {
	for is(l.at(i), classDigit) {
		i++
	}
	return i
}

func (l *lexer) number() tokenKind {
	start := l.pos
	i := l.digits(start)
	kind := tokInteger
	if !fitsInt4(l.src[start:i]) {
		kind = tokFloat
	}
	if l.at(i) == '.' && l.at(i+1) != '.' {
		kind = tokFloat
		i = l.digits(i + 1)
	}
	if c := l.at(i); c == 'e' || c == 'E' {
		j := i + 1
		if c := l.at(j); c == '+' || c == '-' {
			j++
		}
		if end := l.digits(j); end > j {
			kind = tokFloat
			i = end
		}
	}
	if is(l.at(i), classLetter) {
		l.odd |= oddToken
		for is(l.at(i), classLetter|classDigit) {
			i++
		}
	}
	l.pos = i
	return kind
}

// fitsInt4 tells whether the digits are at most 2147483647.
func fitsInt4(digits []byte) bool {
	digits = bytes.TrimLeft(digits, "0")
	return len(digits) < 10 || len(digits) == 10 && string(digits) <= "2147483647"
}
