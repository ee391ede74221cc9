package config

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// node is where one table, array or value of a file begins.
type node struct {
	name  string // of a pgbouncer.ini: how its section is called there
	file  string // of a pgbouncer.ini: where it is written, if that is another file
	given bool   // of a pgbouncer.ini: it is written and no default
	line  int
	keys  map[string]*node // of a table
	items []*node          // of an array
}

// child finds the node of a key and makes it if there is none.
func (n *node) child(key string, line int) *node {
	c := n.keys[key]
	if c == nil {
		c = &node{line: line}
		if n.keys == nil {
			n.keys = make(map[string]*node)
		}
		n.keys[key] = c
	}
	return c
}

// item adds an item to an array.
func (n *node) item(line int) *node {
	c := &node{line: line}
	n.items = append(n.items, c)
	return c
}

// place is one spot of a file: what errors name, and the value that stands there.
type place struct {
	key   string // dotted
	file  string // "" is that of the configuration
	line  int
	node  *node // nil where nothing is written
	value any   // nil where nothing is written
}

// child goes to a key of a table. One that is not written has the line of the
// table.
func (at place) child(name string) place {
	key := name
	if !bare(name) {
		key = quote(name)
	}
	if at.key != "" {
		key = at.key + "." + key
	}
	c := place{key: key, file: at.file, line: at.line}
	if table, ok := at.value.(map[string]any); ok {
		c.value = table[name]
	}
	if at.node != nil && at.node.keys[name] != nil {
		c.node = at.node.keys[name]
		c.line, c.file = c.node.line, c.node.file
		if c.node.name != "" {
			c.key = c.node.name
		}
	}
	return c
}

// item goes to an item of an array, counted from 0.
func (at place) item(i int) place {
	c := place{key: at.key + "[" + strconv.Itoa(i) + "]", file: at.file, line: at.line}
	switch v := at.value.(type) {
	case []any:
		c.value = v[i]
	case []map[string]any:
		c.value = v[i]
	}
	if at.node != nil && i < len(at.node.items) {
		c.node = at.node.items[i]
		c.line, c.file = c.node.line, c.node.file
	}
	return c
}

// length tells how many items an array has; ok is false for what is none.
func (at place) length() (n int, ok bool) {
	switch v := at.value.(type) {
	case []any:
		return len(v), true
	case []map[string]any:
		return len(v), true
	}
	return 0, false
}

// has tells whether a key of the table is written.
func (at place) has(name string) bool { return at.child(name).value != nil }

// names are the keys of the table in alphabetical order.
func (at place) names() []string {
	table, _ := at.value.(map[string]any)
	return slices.Sorted(maps.Keys(table))
}

// positions finds the lines of all keys and items of a text. The toml package
// must have accepted the text: it keeps the lines to itself, so this goes over
// the text a second time, past values that it does not look at. A text that is
// no TOML gives fewer nodes, or wrong ones, but no panic.
func positions(text string) *node {
	s := scanner{text: text, line: 1}
	root := &node{line: 1}
	table := root
	for {
		s.blank(true)
		switch {
		case s.pos == len(s.text):
			return root
		case s.peek("[["):
			table = s.header(root, 2)
		case s.peek("["):
			table = s.header(root, 1)
		default:
			before := s.pos
			s.pair(table)
			if s.pos == before {
				s.skip(1)
			}
		}
	}
}

// scanner goes over a text of valid TOML.
type scanner struct {
	text string
	pos  int
	line int
}

func (s *scanner) peek(prefix string) bool { return strings.HasPrefix(s.text[s.pos:], prefix) }

// skip goes on by n bytes, or to the end.
func (s *scanner) skip(n int) {
	n = min(n, len(s.text)-s.pos)
	s.line += strings.Count(s.text[s.pos:s.pos+n], "\n")
	s.pos += n
}

// blank skips white space, and with lines also comments and ends of lines.
func (s *scanner) blank(lines bool) {
	for s.pos < len(s.text) {
		switch c := s.text[s.pos]; {
		case c == ' ' || c == '\t':
			s.skip(1)
		case lines && (c == '\n' || c == '\r'):
			s.skip(1)
		case lines && c == '#':
			n := strings.IndexByte(s.text[s.pos:], '\n')
			if n < 0 {
				n = len(s.text)
			}
			s.skip(n)
		default:
			return
		}
	}
}

// header reads [a.b] or [[a.b]], as brackets says, and returns its table. A
// table that existed because of its keys or its children has the header's line
// from now on.
func (s *scanner) header(root *node, brackets int) *node {
	line := s.line
	s.skip(brackets)
	path := s.path()
	s.blank(false)
	s.skip(brackets)
	if len(path) == 0 {
		return root
	}
	last := len(path) - 1
	t := walk(root, path[:last], line)
	t = t.child(path[last], line)
	if brackets == 2 {
		return t.item(line)
	}
	t.line = line
	return t
}

// walk goes down from a table, in arrays of tables to the last.
func walk(t *node, path []string, line int) *node {
	for _, key := range path {
		t = t.child(key, line)
		if n := len(t.items); n > 0 {
			t = t.items[n-1]
		}
	}
	return t
}

// path reads a dotted key.
func (s *scanner) path() []string {
	var path []string
	for {
		s.blank(false)
		start := s.pos
		switch {
		case s.peek(`"`), s.peek("'"):
			s.str(s.text[s.pos : s.pos+1])
			path = append(path, unquoteKey(s.text[start:s.pos]))
		default:
			for s.pos < len(s.text) && bareByte(s.text[s.pos]) {
				s.pos++
			}
			path = append(path, s.text[start:s.pos])
		}
		s.blank(false)
		if !s.peek(".") {
			return path
		}
		s.skip(1)
	}
}

// pair reads key = value into a table.
func (s *scanner) pair(table *node) {
	line := s.line
	path := s.path()
	s.blank(false)
	if !s.peek("=") {
		return
	}
	s.skip(1)
	s.value(walk(table, path[:len(path)-1], line).child(path[len(path)-1], line))
}

// value reads the value of a key or the item of an array.
func (s *scanner) value(n *node) {
	s.blank(false)
	for _, q := range []string{`"""`, `'''`, `"`, `'`} {
		if s.peek(q) {
			s.str(q)
			return
		}
	}
	switch {
	case s.peek("["):
		s.list("]", func() { s.value(n.item(s.line)) })
	case s.peek("{"):
		s.list("}", func() { s.pair(n) })
	default: // a number, a word or a date
		if end := strings.IndexAny(s.text[s.pos:], ",]}#\r\n"); end >= 0 {
			s.skip(end)
		} else {
			s.skip(len(s.text))
		}
	}
}

// list reads what stands between an opening bracket and end, with commas.
func (s *scanner) list(end string, one func()) {
	s.skip(1)
	for {
		s.blank(true)
		switch {
		case s.pos == len(s.text):
			return
		case s.peek(end):
			s.skip(1)
			return
		case s.peek(","):
			s.skip(1)
		default:
			before := s.pos
			one()
			if s.pos == before {
				s.skip(1)
			}
		}
	}
}

// str reads a string between quotes of the kind q. The three closing quotes of
// a long string may have one or two before them that belong to it.
func (s *scanner) str(q string) {
	s.skip(len(q))
	for s.pos < len(s.text) {
		switch {
		case q[0] == '"' && s.peek(`\`):
			s.skip(2)
		case s.peek(q):
			s.skip(len(q))
			for more := 0; len(q) == 3 && more < 2 && s.peek(q[:1]); more++ {
				s.skip(1)
			}
			return
		default:
			s.skip(1)
		}
	}
}

// unquoteKey reads one quoted part of a key.
func unquoteKey(quoted string) string {
	var v struct{ K string }
	if err := toml.Unmarshal([]byte("K = "+quoted), &v); err != nil {
		return quoted
	}
	return v.K
}

func bareByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}

// bare tells whether a key can stand without quotes.
func bare(key string) bool {
	for i := range len(key) {
		if !bareByte(key[i]) {
			return false
		}
	}
	return key != "" && len(key) <= 80
}
