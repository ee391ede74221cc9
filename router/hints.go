package router

import "bytes"

// hint is what a leading comment asks for, as in
//
//	/* pgproxy: target=replica */ SELECT ...
//
// Only a comment that is the very first thing in the text counts; white space
// may stand in front of it. A hint is a part of the shape.
type hint struct {
	found  bool
	bad    bool
	target []byte // in the text; nil when bad
}

// maxTarget is the longest name of a target, in bytes.
const maxTarget = 63

// leadingHint reads the hint of a text. It allocates nothing.
func leadingHint(sql []byte) hint {
	i := 0
	for i < len(sql) && is(sql[i], classSpace) {
		i++
	}
	if len(sql) < i+4 || sql[i] != '/' || sql[i+1] != '*' {
		return hint{}
	}
	end := commentEnd(sql, i)
	if end < 0 {
		return hint{}
	}
	body := bytes.TrimSpace(sql[i+2 : end-2])
	const name = "pgproxy:"
	if len(body) < len(name) || !equalFold(body[:len(name)], name) {
		return hint{}
	}
	h := hint{found: true}
	key, value, ok := bytes.Cut(body[len(name):], []byte("="))
	value = bytes.TrimSpace(value)
	if !ok || !equalFold(bytes.TrimSpace(key), "target") || !targetName(value) {
		h.bad = true
		return h
	}
	h.target = value
	return h
}

func equalFold(b []byte, word string) bool {
	if len(b) != len(word) {
		return false
	}
	for i, c := range b {
		if c != word[i] && lower[c] != word[i] {
			return false
		}
	}
	return true
}

// targetName tells whether b can name a target: letters, digits, "_", "-", ".".
func targetName(b []byte) bool {
	if len(b) == 0 || len(b) > maxTarget {
		return false
	}
	for _, c := range b {
		if c >= 0x80 || c != '-' && c != '.' && (c == '$' || lower[c] == 0) {
			return false
		}
	}
	return true
}

// The two halves of what a shape begins with when its text had a hint.
const (
	hintOpen  = "/* pgproxy: target="
	hintClose = " */"
	hintBad   = "/* pgproxy: ? */"
)

// appendTo writes the hint as a shape begins with it.
func (h hint) appendTo(out []byte) []byte {
	if !h.found {
		return out
	}
	if h.bad {
		return append(out, hintBad...)
	}
	out = append(out, hintOpen...)
	out = append(out, h.word()...)
	return append(out, hintClose...)
}

// word is the target: "primary" and "replica" in lower case, a group's name
// as it was written.
func (h hint) word() []byte {
	switch {
	case equalFold(h.target, "primary"):
		return wordPrimary
	case equalFold(h.target, "replica"):
		return wordReplica
	}
	return h.target
}

var (
	wordPrimary = []byte("primary")
	wordReplica = []byte("replica")
)
