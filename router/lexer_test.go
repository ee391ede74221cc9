package router

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	pg "github.com/pganalyze/pg_query_go/v6"
)

var kindNames = [...]string{
	tokEnd: "end", tokWord: "word", tokQuoted: "quoted", tokString: "string", tokNational: "national",
	tokBits: "bits", tokHex: "hex", tokInteger: "integer", tokFloat: "float", tokParam: "param",
	tokOp: "op", tokPunct: "punct", tokBad: "bad",
}

// tokens lists the tokens of a text as kind:text.
func tokens(text string) string {
	l := lexer{src: []byte(text)}
	var all []string
	for {
		t := l.next()
		if t.kind == tokEnd {
			return strings.Join(all, " ")
		}
		all = append(all, fmt.Sprintf("%s:%s", kindNames[t.kind], text[t.start:t.end]))
		if t.kind == tokBad {
			return strings.Join(all, " ")
		}
	}
}

func TestTokens(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", ""},
		{" \t\n\r\f\v", ""},
		{"-- only\n/* /* nested */ */", ""},
		{"/* open /* */", "bad:/* open /* */"},
		{"a$1b é_x", "word:a$1b word:é_x"},
		{`"a""b"U&"c"`, `quoted:"a""b" quoted:U&"c"`},
		{`"open`, `bad:"open`},
		{"'a''b'", "string:'a''b'"},
		{`'\'`, `string:'\'`},
		{`E'\'' e'\\'`, `string:E'\'' string:e'\\'`},
		{"'a'\n'b'", "string:'a'\n'b'"},
		{"'a' 'b'", "string:'a' string:'b'"},
		{"'a' -- c\n 'b'", "string:'a' -- c\n 'b'"},
		{"'a'\n-- c\n'b'", "string:'a'\n-- c\n'b'"},
		{"'a'\n-- c", "string:'a'"},
		{"'a'\n/* c */'b'", "string:'a' string:'b'"},
		{"E'a'\n'\\''", "string:E'a'\n'\\''"},
		{"u&'x' U&'\\'", "string:u&'x' string:U&'\\'"},
		{"N'x' b'1' X'f' e 'x'", "national:N'x' bits:b'1' hex:X'f' word:e string:'x'"},
		{"B'1''0' X''''", "bits:B'1' string:'0' hex:X'' string:''"},
		{"$$a'b$$ $t$ $$ $t$ $t$x$T$ $t$", "string:$$a'b$$ string:$t$ $$ $t$ string:$t$x$T$ $t$"},
		{"$a", "bad:"},
		{"$a$ open", "bad:$a$ open"},
		{"$1$2", "param:$1 param:$2"},
		{"1 1. .5 1.5 1e5 1.e-5 1e 1..2", "integer:1 float:1. float:.5 float:1.5 float:1e5 float:1.e-5 integer:1e integer:1 punct:.. integer:2"},
		{"2147483647 2147483648 0002147483647", "integer:2147483647 float:2147483648 integer:0002147483647"},
		{"a.b.1", "word:a punct:. word:b float:.1"},
		{"-1 =-1 a<>b@-c", "op:- integer:1 op:=- integer:1 word:a op:<> word:b op:@- word:c"},
		{"a+/*c*/b*--c\n/d", "word:a op:+ word:b op:* op:/ word:d"},
		{"a::b := c[1:2];=>", "word:a punct::: word:b punct::= word:c punct:[ integer:1 punct:: integer:2 punct:] punct:; op:=>"},
		{"a \\ b", "word:a bad:"},
		{"{", "bad:"},
	} {
		got := tokens(c.text)
		// A bad token's end says nothing.
		if before, _, bad := strings.Cut(got, "bad:"); bad && strings.HasPrefix(c.want, before+"bad:") {
			continue
		}
		if got != c.want {
			t.Errorf("%q\n got %s\nwant %s", c.text, got, c.want)
		}
	}
}

func TestBackslashOddities(t *testing.T) {
	for _, c := range []struct {
		text string
		odd  oddity
		both bool
	}{
		{`'plain'`, 0, true},
		{`'a\b'`, oddBackslash, true},
		{`'a\\'`, oddBackslash, true},
		{`'a\'`, oddBackslash | oddQuote, false},
		{`'a\\\' , '`, oddBackslash | oddQuote, false}, // of no use in either reading
		{`'a\' '`, oddBackslash | oddQuote, false},
		{`like '\' or x = '\'`, oddBackslash | oddQuote, false},
		{`'a\', $$ ', f() -- $$`, oddBackslash | oddQuote, true},
		{`U&'a\'`, 0, false},
		{`E'a\''`, 0, true},
		{`N'a\' || $$'$$`, oddBackslash | oddQuote, false},
	} {
		l := lexer{src: []byte(c.text)}
		bad := false
		for k := l.next().kind; k != tokEnd && !bad; k = l.next().kind {
			bad = k == tokBad
		}
		if l.odd != c.odd {
			t.Errorf("%s: odd = %b, want %b", c.text, l.odd, c.odd)
		}
		if !bad && l.odd != 0 && bothWays([]byte(c.text)) != c.both {
			t.Errorf("%s: bothWays is not %t", c.text, c.both)
		}
	}
}

// lexable tells whether Plan would hand a text to the lexer.
func lexable(text string) bool {
	return utf8.ValidString(text) && strings.IndexByte(text, 0) < 0 && len(text) < 1<<16
}

// checkTokens compares the lexer with PostgreSQL's scanner: each token must be
// one of its tokens, or a run of them for operators and N'...'. A token that
// is bad here must be one that PostgreSQL refuses.
func checkTokens(t *testing.T, text string) {
	t.Helper()
	scanned, scanErr := pg.Scan(text)
	l := lexer{src: []byte(text)}
	var theirs []*pg.ScanToken
	for _, s := range scanned.GetTokens() {
		if s.GetToken() != pg.Token_SQL_COMMENT && s.GetToken() != pg.Token_C_COMMENT {
			theirs = append(theirs, s)
		}
	}
	for {
		tok := l.next()
		if tok.kind == tokBad {
			if deep, _ := tooDeep([]byte(text)); deep {
				return
			}
			if _, err := pg.Parse(text); err == nil {
				t.Fatalf("%q: bad token at %d, but it parses", text, tok.start)
			}
			return
		}
		if l.odd&oddToken != 0 || scanErr != nil {
			return // where such a token ends differs by version
		}
		if tok.kind == tokEnd {
			if len(theirs) > 0 {
				t.Fatalf("%q: the lexer ends, PostgreSQL goes on at %d", text, theirs[0].GetStart())
			}
			return
		}
		at, count := tok.start, 0
		for at < tok.end {
			if count > 0 && tok.kind >= tokString && tok.kind <= tokHex && strings.Contains(text[tok.start:tok.end], "--") {
				return // the parser's scanner, unlike the server's, takes no comment between parts of a string
			}
			if len(theirs) == 0 || int(theirs[0].GetStart()) != at {
				t.Fatalf("%q: no token of PostgreSQL at %d, in %q", text, at, text[tok.start:tok.end])
			}
			at = int(theirs[0].GetEnd())
			theirs = theirs[1:]
			count++
		}
		if at != tok.end || count > 1 && tok.kind != tokOp && tok.kind != tokNational {
			t.Fatalf("%q: %q is %d tokens up to %d for PostgreSQL", text, text[tok.start:tok.end], count, at)
		}
	}
}

func TestTokensAreThoseOfPostgreSQL(t *testing.T) {
	for _, f := range fixtures(t) {
		checkTokens(t, f.sql)
	}
}

func FuzzLexer(f *testing.F) {
	for _, c := range fixtures(f) {
		f.Add(c.sql)
	}
	f.Add("'a'\n-- c\n'b' \"x\" $t$ $$ $t$ 1..2 .5e-3 =-1 a@-b N'x' /* /* */ */ $1")
	f.Fuzz(func(t *testing.T, text string) {
		if lexable(text) {
			checkTokens(t, text)
		}
	})
}
