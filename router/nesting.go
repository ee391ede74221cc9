package router

// The parser's C code walks its tree by recursion and does not guard its
// stack: 1+1+1+... of some 200 KB ends the whole process. So a text is
// measured first, and one that nests deeper than maxNesting is not parsed.
// A level costs it about half a KiB of stack; 500 levels fit a stack of 512 KiB.
const maxNesting = 500

// level counts, for one bracket depth, what can make the tree deeper.
type level struct {
	// hard are set operations and joins: chains of them go on across commas.
	hard int32
	// soft are operators and the key words that work like one: such a chain
	// ends at a comma, and at AND or OR unless held.
	soft int32
	// held: a BETWEEN or CASE was seen, whose own AND must not be taken for
	// the end of the chain around it.
	held bool
}

// measure is the running estimate over one text.
type measure struct {
	levels [maxNesting + 1]level
	depth  int
	sum    int  // of hard and soft over all open levels
	atomic bool // BEGIN ATOMIC was seen: a semicolon ends nothing
}

// tooDeep tells whether the tree of a text may be deeper than maxNesting. It
// reads the text once; ok is false when a token in it is bad.
func tooDeep(text []byte) (deep, ok bool) {
	l := lexer{src: text}
	var m measure
	for {
		t := l.next()
		switch t.kind {
		case tokEnd:
			return false, true
		case tokBad:
			return false, false
		case tokOp:
			// A run such as "- - -" has spaces, but "@-" is two operators.
			m.soft(int32(t.end - t.start))
		case tokWord:
			m.word(text[t.start:t.end])
		case tokPunct:
			m.mark(text[t.start:t.end])
		}
		if m.depth+m.sum > maxNesting {
			return true, true
		}
	}
}

func (m *measure) top() *level { return &m.levels[m.depth] }

func (m *measure) soft(n int32) {
	m.top().soft += n
	m.sum += int(n)
}

func (m *measure) hard() {
	m.top().hard++
	m.sum++
}

// ends is the end of every chain of operators at this depth.
func (m *measure) ends() {
	t := m.top()
	m.sum -= int(t.soft)
	t.soft, t.held = 0, false
}

func (m *measure) mark(text []byte) {
	switch text[0] {
	case '(', '[':
		m.depth++
		if m.depth <= maxNesting {
			m.levels[m.depth] = level{}
		}
	case ')', ']':
		t := m.top()
		m.sum -= int(t.soft + t.hard)
		if m.depth > 0 {
			m.depth--
		} else {
			*t = level{}
		}
	case ',':
		m.ends()
	case ';':
		if m.depth == 0 && !m.atomic {
			m.sum = 0
			m.levels[0] = level{}
		}
	case ':':
		if len(text) == 2 {
			m.soft(1)
		}
	}
}

// word counts the key words that work like an operator or chain tables.
func (m *measure) word(w []byte) {
	if len(w) < 2 || len(w) > 9 {
		return
	}
	var room [9]byte
	for i, c := range w {
		room[i] = lower[c]
	}
	switch string(room[:len(w)]) {
	case "and", "or":
		if !m.top().held {
			m.ends()
		}
	case "union", "intersect", "except", "join":
		m.ends()
		m.hard()
	case "case", "between":
		m.soft(1)
		m.top().held = true
	case "not", "is", "isnull", "notnull", "in", "like", "ilike", "similar", "collate",
		"at", "overlaps", "operator":
		m.soft(1)
	case "atomic":
		m.atomic = true
		m.hard()
	}
}
