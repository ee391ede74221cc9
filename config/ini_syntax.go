package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// The form of a pgbouncer.ini is that of PgBouncer's own parser: sections, lines
// KEY = VALUE up to the end of the line, comments only where a line begins,
// %include FILE, and keys in single quotes where they have other characters than
// letters, digits and "_.-*".

// maxInclude is how deep files may include others.
const maxInclude = 10

// maxINIFile bounds what is read of one file, in bytes.
const maxINIFile = 16 << 20

// isINI tells a pgbouncer.ini by its name, and a file with another name by the
// section that each pgbouncer.ini has.
func isINI(path string, text []byte) bool {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".ini":
		return true
	case ".toml":
		return false
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(strings.TrimLeft(line, " \t"), "[pgbouncer]") {
			return true
		}
	}
	return false
}

// iniLine is one line that says something.
type iniLine struct {
	file, section string
	header        bool // the section begins; there is no key
	key, value    string
	line          int // of the key
}

var errSyntax = errors.New("syntax error")

// iniScanner goes over a text.
type iniScanner struct {
	src     *source
	section string // that the next key belongs to
	files   int    // how deep includes are nested
	emit    func(iniLine)
}

// scan calls emit for each line of a text that says something. It stops at the
// first error of syntax.
func (s *iniScanner) scan(file, text string) *Error {
	text, _, _ = strings.Cut(text, "\x00") // where PgBouncer stops reading
	fault := func(at int, msg string) *Error {
		return &Error{Path: file, Line: lineAt([]byte(text), at), Key: strings.ToValidUTF8(s.section, "?"), Msg: msg}
	}
	for i := 0; ; {
		for i < len(text) && space(text[i]) {
			i++
		}
		if i == len(text) {
			return nil
		}
		start := i
		line, _, _ := strings.Cut(text[i:], "\n")
		next := i + len(line)
		switch {
		case text[i] == '#' || text[i] == ';':
		case includes(line):
			if err := s.include(strings.TrimSpace(line[len("%include"):])); err != "" {
				return fault(start, err)
			}
		case text[i] == '[':
			name, _, ok := strings.Cut(line[1:], "]")
			if !ok {
				return fault(start, `a section without "]"`)
			}
			s.section = name
			s.emit(iniLine{file: file, section: name, header: true, line: lineAt([]byte(text), start)})
			next = i + 1 + len(name) + 1 // more may follow on the line, as in PgBouncer
		default:
			key, value, err := keyValue(line)
			if err != nil {
				return fault(start, `want KEY = VALUE, a [section], a comment or %include FILE: keys with other characters than letters, digits and "_.-*" stand in single quotes`)
			}
			s.emit(iniLine{file: file, section: s.section, key: key, value: value, line: lineAt([]byte(text), start)})
		}
		i = next
	}
}

// includes tells whether a line is an %include.
func includes(line string) bool {
	rest, ok := strings.CutPrefix(line, "%include")
	return ok && rest != "" && (rest[0] == ' ' || rest[0] == '\t')
}

// include reads another file, whose name is relative to the working directory as
// in PgBouncer. It returns what is wrong with the %include itself; an error in
// the file is noted there.
func (s *iniScanner) include(file string) string {
	if s.files++; s.files > maxInclude {
		return "%include is nested too deep"
	}
	defer func() { s.files-- }()
	info, err := os.Stat(file)
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxINIFile) {
		err = errors.New("not a regular file, or too large")
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(file)
	}
	if err != nil {
		return "%include of " + quote(file) + ": want a file that can be read: " + err.Error()
	}
	if fault := s.scan(file, string(text)); fault != nil {
		return "%include: " + fault.Error()
	}
	return ""
}

// keyValue splits a line.
func keyValue(line string) (key, value string, err error) {
	rest := ""
	if strings.HasPrefix(line, "'") {
		k, r, ok := strings.Cut(line[1:], "'")
		if !ok || k == "" {
			return "", "", errSyntax
		}
		key, rest = k, r
	} else {
		n := 0
		for n < len(line) && (bareByte(line[n]) || line[n] == '.' || line[n] == '*') {
			n++
		}
		key, rest = line[:n], line[n:]
	}
	rest, ok := strings.CutPrefix(strings.TrimLeft(rest, " \t"), "=")
	if !ok {
		return "", "", errSyntax
	}
	return key, strings.TrimRight(strings.TrimLeft(rest, " \t"), " \t\n\v\f\r"), nil
}

// space is C's isspace.
func space(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

// pair is one KEY=VALUE of a connection string.
type pair struct{ key, value string }

var (
	errConnection = errors.New(`no valid list of key=value: want values with blanks in single quotes, with '' for a quote in them`)
	errEmptyValue = errors.New("a key without a value: want key=value")
)

// pairs reads the value of a line of [databases], [users] or [peers]. Errors do
// not repeat it: there may be a password in it.
func pairs(s string) ([]pair, error) {
	var out []pair
	for {
		s = strings.TrimLeft(s, " \t\n\v\f\r")
		if s == "" {
			return out, nil
		}
		end := strings.IndexAny(s, "= ")
		if end <= 0 {
			return nil, errConnection
		}
		p := pair{key: s[:end]}
		rest, ok := strings.CutPrefix(strings.TrimLeft(s[end:], " \t\n\v\f\r"), "=")
		if !ok {
			return nil, errConnection
		}
		rest = strings.TrimLeft(rest, " \t\n\v\f\r")
		if strings.HasPrefix(rest, "'") {
			text, n := quotedValue(rest)
			if n == 0 {
				return nil, errConnection
			}
			p.value, s = text, rest[n:]
			if s != "" {
				s = s[1:] // whatever follows the quote, as in PgBouncer
			}
		} else if p.value, s, _ = strings.Cut(rest, " "); p.value == "" {
			return nil, errEmptyValue
		}
		if p.value == "" {
			return nil, errEmptyValue
		}
		out = append(out, p)
	}
}

// quotedValue reads a text in single quotes at the start of s, in which two
// stand for one, and returns how many bytes it takes; 0 if it has no end.
func quotedValue(s string) (text string, n int) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] == '\'' {
			if i+1 == len(s) || s[i+1] != '\'' {
				return b.String(), i + 1
			}
			i++
		}
		b.WriteByte(s[i])
	}
	return "", 0
}
