package admin

import (
	"strings"

	"pgproxy/wire"
)

// kind is what a statement is.
type kind uint8

const (
	kindEmpty   kind = iota // nothing, or comments
	kindCommand             // a word, and perhaps one more
	kindSet                 // SET key = value
	kindTx                  // BEGIN, COMMIT and their like, which drivers send unasked
	kindInvalid
)

// statement is one statement of a console client.
type statement struct {
	kind   kind
	text   string
	verb   string // of a command: lower case
	arg    string // of a command: as written, or what the quotes hold
	hasArg bool
	to     string // of SWITCHOVER db TO server
	key    string // of a SET: lower case
	value  string // of a SET: as written, or what the quotes hold
	begin  bool   // of kindTx: a transaction begins; else it ends
	tag    string // of kindTx
}

// longestEcho is how much of a statement an error repeats.
const longestEcho = 200

// invalid is PgBouncer's answer to what it does not know.
func (s *statement) invalid() *wire.Error {
	text := strings.ToValidUTF8(s.text, "?")
	if len(text) > longestEcho {
		text = strings.ToValidUTF8(text[:longestEcho], "") + "..."
	}
	return wire.Errorf(wire.CodeProtocolViolation, "invalid command '%s', use SHOW HELP;", text)
}

// token is a word, a string, or one byte of anything else.
type token struct {
	kind byte // 'w' word, 's' string, else the byte itself
	text string
}

// parse reads one statement. It never fails: what it does not know is
// kindInvalid.
func parse(sql string) statement {
	st := statement{kind: kindInvalid, text: sql}
	toks, ok := tokens(sql)
	if !ok {
		return st
	}
	for len(toks) > 0 && toks[len(toks)-1].kind == ';' {
		toks = toks[:len(toks)-1]
	}
	if len(toks) == 0 {
		st.kind = kindEmpty
		return st
	}
	if toks[0].kind != 'w' {
		return st
	}
	st.verb = strings.ToLower(toks[0].text)
	switch {
	case st.verb == "set":
		st.set(toks[1:])
	case st.verb == "switchover" && len(toks) > 3 && toks[1].kind == 'w' && strings.EqualFold(toks[2].text, "to"):
		st.kind, st.arg, st.hasArg = kindCommand, toks[1].text, true
		for _, t := range toks[3:] {
			st.to += t.text
		}
	case len(toks) == 1 && !transactionWord(st.verb):
		st.kind = kindCommand
	case len(toks) == 2 && toks[1].kind == 'w' && !transactionWord(st.verb):
		st.kind, st.arg, st.hasArg = kindCommand, toks[1].text, true
	default:
		st.transaction(toks)
	}
	return st
}

// set reads what follows SET: [SESSION | LOCAL] key (= | TO) value, TIME ZONE
// value, or SESSION CHARACTERISTICS and TRANSACTION with whatever they have.
func (s *statement) set(toks []token) {
	word := func(i int, w string) bool {
		return i < len(toks) && toks[i].kind == 'w' && strings.EqualFold(toks[i].text, w)
	}
	is := func(i int) bool { return i < len(toks) && (toks[i].kind == '=' || word(i, "to")) }
	for _, t := range toks {
		if t.kind == ';' {
			return
		}
	}
	if (word(0, "session") || word(0, "local")) && !is(1) {
		toks = toks[1:]
	}
	switch {
	case len(toks) >= 3 && toks[0].kind == 'w' && is(1):
		s.kind, s.key = kindSet, strings.ToLower(toks[0].text)
		for _, t := range toks[2:] {
			s.value += t.text
		}
	case len(toks) >= 3 && word(0, "time") && word(1, "zone"):
		s.kind, s.key = kindSet, "timezone"
	case len(toks) >= 2 && (word(0, "characteristics") || word(0, "transaction")):
		s.kind, s.key = kindSet, "transaction"
	}
}

func transactionWord(verb string) bool {
	switch verb {
	case "begin", "start", "commit", "end", "rollback", "abort":
		return true
	}
	return false
}

// transaction reads BEGIN, COMMIT and their like with any modes behind them.
func (s *statement) transaction(toks []token) {
	for _, t := range toks {
		if t.kind != 'w' && t.kind != ',' {
			return
		}
	}
	if s.verb == "rollback" && len(toks) > 2 { // TO SAVEPOINT, PREPARED
		return
	}
	switch s.verb {
	case "begin":
		s.kind, s.begin, s.tag = kindTx, true, "BEGIN"
	case "start":
		if len(toks) > 1 && strings.EqualFold(toks[1].text, "transaction") {
			s.kind, s.begin, s.tag = kindTx, true, "START TRANSACTION"
		}
	case "commit", "end":
		s.kind, s.tag = kindTx, "COMMIT"
	case "rollback", "abort":
		s.kind, s.tag = kindTx, "ROLLBACK"
	}
}

// tokens splits a text. Comments are blanks. It reports false if a quote or a
// comment has no end.
func tokens(s string) ([]token, bool) {
	var out []token
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v':
			i++
		case strings.HasPrefix(s[i:], "--"):
			n := strings.IndexByte(s[i:], '\n')
			if n < 0 {
				return out, true
			}
			i += n + 1
		case strings.HasPrefix(s[i:], "/*"):
			n := strings.Index(s[i+2:], "*/")
			if n < 0 {
				return out, false
			}
			i += 2 + n + 2
		case c == '"' || c == '\'':
			text, n := quoted(s[i:])
			if n == 0 {
				return out, false
			}
			k := byte('w')
			if c == '\'' {
				k = 's'
			}
			out = append(out, token{k, text})
			i += n
		case wordByte(c):
			n := 1
			for i+n < len(s) && wordByte(s[i+n]) {
				n++
			}
			out = append(out, token{'w', s[i : i+n]})
			i += n
		default:
			out = append(out, token{c, s[i : i+1]})
			i++
		}
	}
	return out, true
}

// wordByte reports whether c may stand in a word without quotes.
func wordByte(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// quoted reads a quoted text at the start of s, in which a doubled quote stands
// for one, and returns how many bytes it takes; 0 if it has no end.
func quoted(s string) (text string, n int) {
	q := s[0]
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != q {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == q {
			b.WriteByte(q)
			i++
			continue
		}
		return b.String(), i + 1
	}
	return "", 0
}
