package router

import (
	"bytes"
	"hash/maphash"
	"strings"
)

// A shape is the statement written anew as SQL: key words and identifiers in
// lower case, one space between tokens, no comments, every literal replaced by
// one of its kind ('?', 1, 1.5, B'1', X'1'), every parameter by $1, trailing
// semicolons dropped, and equal neighbours in IN lists, ARRAY[...] and VALUES
// rows folded into one. The analysis sees nothing but the shape, so two texts
// of one shape cannot have two plans, and no literal is ever kept.

// How shaping a text ended.
type shaping uint8

const (
	shaped shaping = iota
	// shapeless: the plan may depend on a literal, or on what the shape
	// would lose. The text itself is analysed and not remembered.
	shapeless
	// ambiguous: standard_conforming_strings decides where its strings end.
	ambiguous
	// unreadable: no lexer can tell what this is.
	unreadable
)

// shaper writes the shape of one text. It is reused.
type shaper struct {
	lexer
	out   []byte
	hint  hint
	exact bool // fold no lists (tests)

	lists [maxLists]list
	open  int // lists in use
	depth int // of brackets
	last  tokenKind
	mark  byte // the last token when that was one byte of punctuation
	word  word // the last token when that was a word of interest
	head  bool // the next token starts a statement

	room [1024]byte
}

// maxLists is how many folded lists may stand within each other.
const maxLists = 8

// list is an open IN list, ARRAY[...] or row of VALUES rows.
type list struct {
	depth     int // bracket depth of its elements
	rows      bool
	start     int // of the current element in out
	prevStart int
	prevEnd   int // 0: no element before this one
}

// word names the few words that the shaper itself must know.
type word uint8

const (
	wordOther word = iota
	wordIn
	wordArray
	wordValues
	wordOwn  // SET, PREPARE: depends on literals when it is the statement
	wordBare // UESCAPE, set_config: depends on literals anywhere
)

func wordOf(w []byte) word {
	switch len(w) {
	case 2:
		if string(w) == "in" {
			return wordIn
		}
	case 3:
		if string(w) == "set" {
			return wordOwn
		}
	case 5:
		if string(w) == "array" {
			return wordArray
		}
	case 6:
		if string(w) == "values" {
			return wordValues
		}
	case 7:
		switch string(w) {
		case "prepare":
			return wordOwn
		case "uescape":
			return wordBare
		}
	case 10:
		if string(w) == "set_config" {
			return wordBare
		}
	}
	return wordOther
}

// shape writes the shape of sql to s.out; valid until the next call. sql must
// be UTF-8 without a zero byte.
func (s *shaper) shape(sql []byte) shaping {
	s.lexer = lexer{src: sql}
	if s.out == nil {
		s.out = s.room[:0]
	}
	s.out = s.out[:0]
	s.open, s.depth = 0, 0
	s.last, s.mark, s.word, s.head = tokEnd, 0, wordOther, true
	s.hint = leadingHint(sql)
	s.out = s.hint.appendTo(s.out)
	result := shaped
	for {
		t := s.next()
		if t.kind == tokEnd {
			break
		}
		if t.kind == tokBad {
			return unreadable
		}
		// A text without a shape is read to its end all the same: what is
		// odd about it may come later.
		if result == shaped && (s.odd&oddToken != 0 || !s.put(t)) {
			result = shapeless
		}
	}
	if s.odd&oddQuote != 0 && bothWays(sql) {
		return ambiguous
	}
	if result == shaped {
		s.closeLists()
		s.out = trimEnd(s.out)
	}
	return result
}

// put appends one token; false when the text can have no shape.
func (s *shaper) put(t token) bool {
	text := s.src[t.start:t.end]
	var mark byte
	if t.kind == tokPunct && len(text) == 1 {
		mark = text[0]
	}
	if s.open > 0 {
		s.inList(t.kind, mark)
	}
	if len(s.out) > 0 {
		s.out = append(s.out, ' ')
	}
	known := wordOther
	switch t.kind {
	case tokWord:
		from := len(s.out)
		s.out = append(s.out, text...)
		word := s.out[from:]
		if t.upper {
			for i, c := range word {
				word[i] = lower[c]
			}
		}
		known = wordOf(word)
		if known == wordBare || known == wordOwn && s.head {
			return false
		}
	case tokQuoted:
		if string(text) == `"set_config"` {
			return false
		}
		s.out = append(s.out, text...)
	case tokString:
		s.out = append(s.out, "'?'"...)
	case tokNational:
		s.out = append(s.out, "N'?'"...)
	case tokBits:
		s.out = append(s.out, "B'1'"...)
	case tokHex:
		s.out = append(s.out, "X'1'"...)
	case tokInteger:
		s.out = append(s.out, '1')
	case tokFloat:
		s.out = append(s.out, "1.5"...)
	case tokParam:
		s.out = append(s.out, "$1"...)
	default:
		if mark != 0 {
			s.out = append(s.out, mark)
			s.bracket(mark)
		} else {
			s.out = append(s.out, text...)
		}
	}
	s.last, s.mark, s.word, s.head = t.kind, mark, known, mark == ';'
	return true
}

// bracket follows the depth of brackets and opens a list where one starts.
func (s *shaper) bracket(mark byte) {
	switch mark {
	case '(':
		switch s.word {
		case wordIn:
			s.depth++
			s.push(false)
			return
		case wordValues:
			// The rows stand beside VALUES; the first one has just begun.
			s.push(true)
		}
		s.depth++
	case '[':
		s.depth++
		if s.word == wordArray {
			s.push(false)
		}
	case ')', ']':
		s.depth--
	}
}

func (s *shaper) push(rows bool) {
	if s.open == maxLists || s.exact {
		return
	}
	l := &s.lists[s.open]
	*l = list{depth: s.depth, rows: rows, start: len(s.out)}
	if rows {
		l.start -= len(" (")
	}
	s.open++
}

// inList is told of each token before it is written, while a list is open.
func (s *shaper) inList(kind tokenKind, mark byte) {
	l := &s.lists[s.open-1]
	if s.depth != l.depth {
		return
	}
	switch {
	case l.rows && mark == '(' && s.mark == ',':
		return // the next row
	case mark == ',' && (!l.rows || s.mark == ')'):
		s.fold(l)
		l.start = len(s.out) + len(" ,")
	case l.rows:
		s.fold(l)
		s.open--
		if s.open > 0 {
			s.inList(kind, mark) // the token may end the list around the rows too
		}
	case mark == ')' || mark == ']':
		s.fold(l)
		s.open--
	case kind == tokWord && l.prevEnd == 0 && l.start == len(s.out):
		s.open-- // a subquery, or columns: left as it is
	}
}

// fold drops the element that ends here when its neighbour is the same.
func (s *shaper) fold(l *list) {
	if l.start > len(s.out) {
		return // a comma with nothing behind it: no SQL
	}
	if l.prevEnd > 0 && bytes.Equal(s.out[l.prevStart:l.prevEnd], s.out[l.start:]) {
		s.out = s.out[:l.prevEnd]
		return
	}
	l.prevStart, l.prevEnd = l.start, len(s.out)
}

// closeLists ends what the text has left open.
func (s *shaper) closeLists() {
	for s.open > 0 {
		s.open--
		if l := &s.lists[s.open]; l.rows && l.depth == s.depth {
			s.fold(l)
		}
	}
}

// trimEnd drops semicolons at the end. No other token ends in one.
func trimEnd(out []byte) []byte {
	for {
		out = bytes.TrimSuffix(out, []byte(" "))
		if len(out) == 0 || out[len(out)-1] != ';' {
			return out
		}
		out = out[:len(out)-1]
	}
}

// release gives back what a very long text has taken.
func (s *shaper) release() {
	s.src = nil
	s.hint = hint{}
	if cap(s.out) > 64<<10 {
		s.out = nil
	}
}

// sum is the hash of a shape, by a seed that differs in each process, so that
// nobody can prepare texts of one hash. A hit is compared byte by byte all the
// same.
type sum uint64

var seed = maphash.MakeSeed()

func sumOf(shape []byte) sum { return sum(maphash.Bytes(seed, shape)) }

// display writes a shape for people: "?" for each literal, and spaces where
// a person would set them.
func display(shape string) string {
	var b strings.Builder
	l := lexer{src: []byte(shape)}
	before := "("
	if strings.HasPrefix(shape, "/*") {
		end := commentEnd(l.src, 0)
		b.WriteString(shape[:end])
		l.pos = end
		before = ""
	}
	word := false
	for {
		t := l.next()
		if t.kind == tokEnd || t.kind == tokBad {
			return b.String()
		}
		text := shape[t.start:t.end]
		switch t.kind {
		case tokString, tokNational, tokBits, tokHex, tokInteger, tokFloat:
			text = "?"
		case tokParam:
			text = "$n"
		}
		glued := before == "(" || before == "[" || before == "." || before == "::" ||
			text == ")" || text == "]" || text == "," || text == "." || text == ";" || text == "::" ||
			(text == "(" || text == "[") && word
		if !glued {
			b.WriteByte(' ')
		}
		b.WriteString(text)
		before = text
		word = t.kind == tokQuoted || t.kind == tokWord && !spaced[text]
	}
}

// spaced are key words that keep a space in front of a bracket.
var spaced = wordSet(`and any as by case distinct else except exists filter from having in intersect
	into is join like limit not offset on or over select then union using values when where with`)
