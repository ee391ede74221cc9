package config

import (
	"fmt"
	"strings"
)

// Error is one thing that is wrong with a file.
type Error struct {
	Path string // the file
	Line int    // from 1; 0 where no line is to blame
	Key  string // dotted, as "databases.app.servers[0].port"; "" where no key is to blame
	Msg  string // what is wrong and what would be right; never a secret
}

// Error is "FILE:LINE: KEY: MSG", without the parts that are not known.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Path)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	b.WriteString(": ")
	if e.Key != "" {
		b.WriteString(e.Key + ": ")
	}
	b.WriteString(e.Msg)
	return b.String()
}

// nearest finds the word that a typing error has most probably made given from,
// or "".
func nearest(given string, words []string) string {
	best, at := "", max(1, len(given)/3)+1
	for _, w := range words {
		if w == "" || len(given) > 64 {
			continue
		}
		if d := distance(strings.ToLower(given), w); d < at {
			best, at = w, d
		}
	}
	return best
}

// distance counts the letters to insert, delete, replace or swap with their
// neighbour to make b of a.
func distance(a, b string) int {
	rows := [3][]int{make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)}
	before, last, row := rows[0], rows[1], rows[2]
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
