package auth

import (
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// saslprep is RFC 4013 as PostgreSQL applies it to passwords: one that is all
// ASCII, is not UTF-8 or may not be prepared is taken as it is. PRECIS, the
// successor of SASLprep, gives other results and would refuse right passwords.
func saslprep(password string) string {
	if isASCII(password) || !utf8.ValidString(password) {
		return password
	}
	mapped := strings.Map(func(r rune) rune {
		switch {
		case nonASCIISpaces.has(r):
			return ' '
		case mappedToNothing.has(r):
			return -1
		}
		return r
	}, password)
	p := norm.NFKC.String(mapped)
	var right, left bool
	for _, r := range p {
		if prohibited.has(r) || unassigned.has(r) {
			return password
		}
		right = right || rightToLeft.has(r)
		left = left || leftToRight.has(r)
	}
	if p == "" {
		return password
	}
	if right {
		first, _ := utf8.DecodeRuneInString(p)
		last, _ := utf8.DecodeLastRuneInString(p)
		if left || !rightToLeft.has(first) || !rightToLeft.has(last) {
			return password
		}
	}
	return p
}

func (t runes) has(r rune) bool {
	_, found := slices.BinarySearchFunc(t, r, func(x [2]rune, r rune) int {
		switch {
		case x[1] < r:
			return -1
		case x[0] > r:
			return 1
		}
		return 0
	})
	return found
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
