package router

import "bytes"

// hint is what a leading comment asks for, as in
//
//	/* pgproxy: target=replica */ SELECT ...
//	/* pgproxy: explain, target=analytics */ SELECT ...
//
// Only a comment that is the very first thing in the text counts; white space
// may stand in front of it. A hint is a part of the shape.
type hint struct {
	found   bool
	bad     bool
	explain bool   // say with a notice where the statement goes
	target  []byte // in the text; nil for none
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
	for rest, more := body[len(name):], true; more; {
		var item []byte
		item, rest, more = bytes.Cut(rest, []byte(","))
		key, value, assigned := bytes.Cut(item, []byte("="))
		key, value = bytes.TrimSpace(key), bytes.TrimSpace(value)
		switch {
		case !assigned && equalFold(key, "explain") && !h.explain:
			h.explain = true
		case assigned && equalFold(key, "target") && targetName(value) && h.target == nil:
			h.target = value
		default:
			return hint{found: true, bad: true}
		}
	}
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
func targetName[T []byte | string](b T) bool {
	if len(b) == 0 || len(b) > maxTarget {
		return false
	}
	for _, c := range []byte(b) {
		if c >= 0x80 || c != '-' && c != '.' && (c == '$' || lower[c] == 0) {
			return false
		}
	}
	return true
}

// The parts of what a shape begins with when its text had a hint.
const (
	hintOpen    = "/* pgproxy: "
	hintTarget  = "target="
	hintExplain = "explain"
	hintClose   = " */"
	hintBad     = "/* pgproxy: ? */"
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
	if h.target != nil {
		out = append(append(out, hintTarget...), h.word()...)
		if h.explain {
			out = append(out, ", "...)
		}
	}
	if h.explain {
		out = append(out, hintExplain...)
	}
	return append(out, hintClose...)
}

// word is the target: "primary" and "replica" in lower case, a group's name
// as it was written.
func (h hint) word() []byte {
	switch {
	case equalFold(h.target, TargetPrimary):
		return wordPrimary
	case equalFold(h.target, TargetReplica):
		return wordReplica
	}
	return h.target
}

var (
	wordPrimary = []byte(TargetPrimary)
	wordReplica = []byte(TargetReplica)
)
