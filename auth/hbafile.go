package auth

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"pgproxy/config"
)

// The syntax that pg_hba.conf and pg_ident.conf share: fields separated by blanks,
// items of a field by commas, quotes, comments, and a backslash at the end of a line
// that goes on in the next.

// hbaToken is one item of a field.
type hbaToken struct {
	text   string
	quoted bool
}

// hbaLine is one line that is not empty.
type hbaLine struct {
	number int
	fields [][]hbaToken
	err    error
}

// hbaLines cuts a file into lines.
func hbaLines(text string) []hbaLine {
	var out []hbaLine
	rest := strings.Split(strings.TrimPrefix(text, "\ufeff"), "\n")
	for n := 0; n < len(rest); n++ {
		l := hbaLine{number: n + 1}
		line := strings.TrimSuffix(rest[n], "\r")
		for strings.HasSuffix(line, "\\") && n+1 < len(rest) {
			n++
			line = line[:len(line)-1] + strings.TrimSuffix(rest[n], "\r")
		}
		l.fields, l.err = hbaFields(line)
		if len(l.fields) > 0 || l.err != nil {
			out = append(out, l)
		}
	}
	return out
}

// hbaFields cuts one line.
func hbaFields(s string) ([][]hbaToken, error) {
	var out [][]hbaToken
	more := false // a comma stood behind the last item
	for {
		s = strings.TrimLeft(s, " \t\f\v\r")
		if s == "" || s[0] == '#' {
			if more {
				return nil, errors.New("a comma with nothing behind it")
			}
			return out, nil
		}
		if s[0] == ',' {
			return nil, errors.New("a comma with nothing in front of it")
		}
		var t hbaToken
		var err error
		if t, s, err = hbaItem(s); err != nil {
			return nil, err
		}
		if more {
			out[len(out)-1] = append(out[len(out)-1], t)
		} else {
			out = append(out, []hbaToken{t})
		}
		if more = strings.HasPrefix(s, ","); more {
			s = s[1:]
		}
	}
}

// hbaItem cuts one item off. Quotes may stand inside it, and a doubled one is a
// quote.
func hbaItem(s string) (t hbaToken, rest string, err error) {
	var b strings.Builder
	inside := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' && inside && i+1 < len(s) && s[i+1] == '"':
			b.WriteByte('"')
			i++
		case c == '"':
			inside = !inside
			t.quoted = t.quoted || b.Len() == 0
		case !inside && strings.IndexByte(" \t\f\v\r,#", c) >= 0:
			t.text = b.String()
			return t, s[i:], nil
		default:
			b.WriteByte(c)
		}
	}
	if inside {
		return t, "", errors.New("a quote that is not closed")
	}
	t.text = b.String()
	return t, "", nil
}

// identLine is one line of a map of an auth_ident_file: who of the system may log
// in as whom.
type identLine struct {
	system *regexp.Regexp // of a name that begins with "/"
	name   string         // else
	user   string         // may hold \1; "all" is anybody
}

// parseIdent reads the text of an auth_ident_file.
func parseIdent(name string, text []byte) (map[string][]identLine, error) {
	maps := make(map[string][]identLine)
	var faults []error
	for _, l := range hbaLines(string(text)) {
		i, err := identLine{}, l.err
		switch {
		case err != nil:
		case len(l.fields) != 3:
			err = errors.New("want the name of a map, a name of the system and a user")
		default:
			system, user := l.fields[1][0], l.fields[2][0]
			i.name, i.user = system.text, user.text
			if strings.HasPrefix(system.text, "/") && !system.quoted {
				if i.system, err = regexp.Compile(system.text[1:]); err != nil {
					err = fmt.Errorf("%s: %w", system.text, err)
				}
			}
			if user.quoted && user.text == "all" {
				err = errors.New(`a user named "all" cannot be told from all users: leave it out`)
			}
		}
		if err != nil {
			faults = append(faults, &config.Error{Path: name, Line: l.number, Msg: err.Error()})
			if len(faults) == maxFaults {
				break
			}
			continue
		}
		of := l.fields[0][0].text
		maps[of] = append(maps[of], i)
	}
	return maps, errors.Join(faults...)
}

// allows reports whether somebody whom the system, or a certificate, calls by a
// name may log in as a user. Without a map the names must be the same.
func (h *HBA) allows(identMap, system, user string) bool {
	if system == "" {
		return false
	}
	if identMap == "" {
		return system == user
	}
	for _, i := range h.maps[identMap] {
		want := i.user
		if i.system != nil {
			m := i.system.FindStringSubmatch(system)
			if m == nil {
				continue
			}
			if len(m) > 1 {
				want = strings.Replace(want, `\1`, m[1], 1)
			}
		} else if i.name != system {
			continue
		}
		if i.user == "all" || want == user {
			return true
		}
	}
	return false
}
