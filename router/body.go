package router

import (
	"slices"
	"strings"
)

// Body is what stands in the text of a function in SQL or PL/pgSQL. The text is
// cut into words and not understood: Body helps to catch a declaration that
// cannot be true, and to tell what a function leaves in its session. What a
// string of EXECUTE does is not seen.
type Body struct {
	Effects Effect // what it does to the session or the catalog
	Writes  bool   // it writes or locks, so no declaration would free it
	Differs string // a function that it calls and that a standby answers differently; "" if none
	Calls   []Name // functions that it calls, but for the pure ones
	Reads   []Name // what may be relations
	Full    bool   // there is more than maxCalls of either
}

// Name is a name as it is written; Schema may be "".
type Name struct{ Schema, Name string }

const maxCalls = 128

// ScanBody reads the text of a function.
func ScanBody(text string) Body {
	s := bodyScan{lexer: lexer{src: []byte(text)}, start: true}
	for {
		t := s.next()
		if t.kind == tokEnd || t.kind == tokBad {
			break
		}
		s.take(t)
	}
	return s.body
}

// bodyScan follows a body from token to token.
type bodyScan struct {
	lexer
	body   Body
	start  bool   // the next word starts a statement
	verb   string // of the statement, while its second word is looked for
	word   string // the token before, when it was a word
	before byte   // the token before, when it was one byte of punctuation
	schema string // what stood in front of "." in front of word; "" if nothing did
	from   bool   // FROM, JOIN or a comma of theirs stood before
	depth  int

	config int // depth of the arguments of set_config; 0: none
	local  bool
}

func (s *bodyScan) take(t token) {
	text := string(s.src[t.start:t.end])
	switch t.kind {
	case tokWord, tokQuoted:
		if t.kind == tokWord {
			text = strings.ToLower(text)
		} else {
			text = strings.ReplaceAll(strings.Trim(text, `"`), `""`, `"`)
		}
		if s.before != '.' {
			s.schema = ""
		}
		s.name(text)
		s.word, s.before = text, 0
	case tokPunct:
		s.mark(text[0])
		if text == "." {
			s.schema = s.word
		}
		s.word, s.before = "", text[0]
	default:
		s.start = false
		s.word, s.before = "", 0
	}
}

// name takes in a word.
func (s *bodyScan) name(w string) {
	switch w {
	case "begin", "then", "else", "loop", "as", "atomic":
		s.second(w)
		s.start = true
		return
	case "insert", "update", "delete", "merge", "truncate", "notify", "lock", "copy", "refresh", "call", "share":
		s.body.Writes = true
	case "true", "t":
		s.local = true
	case "local":
	default:
		if s.config > 0 {
			s.local = false
		}
	}
	if s.start {
		s.start, s.verb = false, w
		s.statement(w)
	} else {
		s.second(w)
	}
	switch w {
	case "from", "join":
		s.from = true
	case "where", "select", "group", "order", "limit", "union", "on", "using", "into", "set", "values", "returning":
		s.from = false
	default:
		if s.from || s.before == '.' {
			s.note(&s.body.Reads, w)
		}
	}
}

// statement takes in the first word of a statement.
func (s *bodyScan) statement(w string) {
	switch w {
	case "create", "alter", "drop", "comment", "grant", "revoke", "reindex", "security", "import":
		s.body.Writes = true
		s.body.Effects |= EffectDDL
	case "reset":
		s.body.Effects |= EffectSet
	case "listen", "unlisten":
		s.body.Effects |= EffectListen
	case "prepare":
		s.body.Effects |= EffectPrepare
	case "discard", "load", "do":
		s.body.Effects |= EffectOther
	}
}

// second takes in a word that is not the first: that of SET tells how long it
// lasts, and one of CREATE that the object is temporary.
func (s *bodyScan) second(w string) {
	switch {
	case s.verb == "set" && s.word == "set" && w != "local" && w != "constraints" && w != "transaction":
		s.body.Effects |= EffectSet
	case s.verb == "create" && (w == "temp" || w == "temporary"):
		s.body.Effects |= EffectTemp
	}
}

// mark takes in punctuation.
func (s *bodyScan) mark(c byte) {
	switch c {
	case ';':
		s.start, s.from, s.depth, s.config = true, false, 0, 0
		return
	case '(':
		s.depth++
		if s.word != "" {
			s.call(s.word)
		}
	case ')':
		if s.config == s.depth && s.config > 0 {
			if !s.local {
				s.body.Effects |= EffectSet
			}
			s.config = 0
		}
		s.depth--
	}
	s.start = false
}

// call takes in the name of a function that is called, or a key word in front of
// a bracket.
func (s *bodyScan) call(w string) {
	switch functionKinds[w] {
	case functionServer, functionSession:
		s.body.Effects |= sequenceEffect(w)
		if s.body.Differs == "" {
			s.body.Differs = w
		}
	case functionSequence, functionXactLock, functionUnlock:
		s.body.Writes = true
		if s.body.Differs == "" {
			s.body.Differs = w
		}
	case functionSetConfig:
		s.config, s.local = s.depth, false
	case functionSessionLock:
		s.body.Writes = true
		s.body.Effects |= EffectAdvisoryLock
	case functionSessionState:
		s.body.Effects |= EffectOther
	default:
		if !pureFunctions[w] {
			s.note(&s.body.Calls, w)
		}
	}
}

func (s *bodyScan) note(list *[]Name, w string) {
	n := Name{s.schema, w}
	if slices.Contains(*list, n) {
		return
	}
	if len(*list) >= maxCalls {
		s.body.Full = true
		return
	}
	*list = append(*list, n)
}
