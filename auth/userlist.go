package auth

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"pgproxy/config"
)

// maxFaults is how many faults of one auth_file are reported.
const maxFaults = 10

// Userlist is what an auth_file says: users and their secrets. The zero value and
// nil have no users. It is frozen and prints without its secrets.
type Userlist struct {
	users map[string][]*entry // each user's secrets, the newest first
}

// maxSecrets is how many secrets one user may have at a time.
const maxSecrets = 8

// entry is one secret of a user, understood.
type entry struct {
	secret   config.Secret
	kind     kind
	verifier Verifier // of a SCRAM secret
	line     int      // in the auth_file; 0: it stands elsewhere

	shown atomic.Pointer[config.Secret] // of a SCRAM secret: the Proof that a client's login has shown
}

// Format prints stars, whatever the verb: unexported fields would print as they
// are.
func (*entry) Format(f fmt.State, verb rune) { config.Secret("").Format(f, verb) }

// kind is what a secret is.
type kind uint8

const (
	kindNone  kind = iota // empty: known, but no password is right
	kindPlain             // the password
	kindMD5               // md5 and 32 hex digits
	kindSCRAM             // a SCRAM-SHA-256 verifier
)

// LoadUserlist reads an auth_file. The error joins one *config.Error for each
// fault, with the line and without the secret.
func LoadUserlist(path string) (*Userlist, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("auth_file: %w", err)
	}
	return ParseUserlist(path, text)
}

// ParseUserlist is LoadUserlist for a text in memory; name stands for the file in
// errors.
//
// The format is PgBouncer's: "user" "secret" on each line, a quote inside doubled,
// the rest of the line ignored. Blank lines are skipped and so are lines that
// begin with ; or #. A user that stands in several lines has several secrets, of
// which the last is the newest, as it is the one that PgBouncer takes.
func ParseUserlist(name string, text []byte) (*Userlist, error) {
	u := &Userlist{users: make(map[string][]*entry)}
	var faults []error
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	n := 0
	for line := range bytes.Lines(text) {
		n++
		user, e, err := parseUser(string(line))
		if err == nil && e == nil {
			continue
		}
		if err == nil {
			e.line = n
			if err = u.add(user, e); err == nil {
				continue
			}
		}
		faults = append(faults, &config.Error{Path: name, Line: n, Msg: err.Error()})
		if len(faults) == maxFaults {
			break
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return u, nil
}

// add gives a user a secret that is newer than those it has.
func (u *Userlist) add(user string, e *entry) error {
	list := u.users[user]
	if at := slices.IndexFunc(list, func(x *entry) bool { return sameSecret(x.secret, e.secret) }); at >= 0 {
		return fmt.Errorf("user %q has this secret already in line %d: take one of the two out", user, list[at].line)
	}
	if len(list) == maxSecrets {
		return fmt.Errorf("user %q has more than %d secrets: take out those that are no more in use", user, maxSecrets)
	}
	if len(list) > 0 && (e.kind == kindNone || list[0].kind == kindNone) {
		return fmt.Errorf("user %q has several secrets, of which one is empty: take that out", user)
	}
	u.users[user] = append([]*entry{e}, list...)
	return nil
}

// With returns a Userlist that has the passwords of [users] as well, which are newer
// than those of u. u remains as it is.
func (u *Userlist) With(users map[string]*config.User) (*Userlist, error) {
	out := &Userlist{users: maps.Clone(u.users)}
	for name, user := range users {
		for _, s := range slices.Backward(user.Passwords) {
			e, err := newEntry(s)
			if err == nil {
				err = out.add(name, e)
			}
			if err != nil {
				return nil, fmt.Errorf("passwords of [users.%s]: %w", name, err)
			}
		}
	}
	return out, nil
}

// Several returns the users that have more than one secret, in alphabetical order.
func (u *Userlist) Several() (names []string) {
	for _, n := range u.Names() {
		if len(u.users[n]) > 1 {
			names = append(names, n)
		}
	}
	return names
}

// Lookup returns a user's newest secret; it is empty for a user who is known but has
// none.
func (u *Userlist) Lookup(user string) (config.Secret, bool) {
	if list := u.entries(user); len(list) > 0 {
		return list[0].secret, true
	}
	return "", false
}

// Names returns the users in alphabetical order.
func (u *Userlist) Names() []string {
	if u == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(u.users))
}

// Format prints how many users there are, whatever the verb.
func (u *Userlist) Format(f fmt.State, _ rune) {
	n := 0
	if u != nil {
		n = len(u.users)
	}
	_, _ = fmt.Fprintf(f, "userlist of %d users", n)
}

// entries returns nil for unknown users.
func (u *Userlist) entries(user string) []*entry {
	if u == nil {
		return nil
	}
	return u.users[user]
}

// parseUser reads one line; a line without a user gives a nil entry. Errors
// repeat nothing of the line: where quotes are wrong, any part may be the secret.
func parseUser(line string) (string, *entry, error) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == ';' || line[0] == '#' {
		return "", nil, nil
	}
	if line[0] != '"' {
		return "", nil, errors.New(`want "user" "secret", both in double quotes`)
	}
	user, rest, ok := quoted(line)
	if !ok {
		return "", nil, errors.New(`the user name has no closing quote: want "user" "secret" on one line`)
	}
	rest = strings.TrimLeft(rest, " \t")
	if rest == "" || rest[0] != '"' {
		return "", nil, errors.New(`no secret behind the user name: want "user" "secret"; a quote inside is written ""`)
	}
	secret, _, ok := quoted(rest)
	if !ok {
		return "", nil, errors.New(`the secret has no closing quote: want "user" "secret" on one line; a quote inside is written ""`)
	}
	switch {
	case user == "":
		return "", nil, errors.New("the user name is empty: want the name of a role")
	case strings.ContainsRune(user, 0) || strings.ContainsRune(secret, 0):
		return "", nil, errors.New("a NUL byte: want a text file, no client can send one")
	}
	e, err := newEntry(config.Secret(secret))
	return user, e, err
}

// quoted splits s behind the string in double quotes with which it begins.
func quoted(s string) (value, rest string, ok bool) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != '"' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 == len(s) || s[i+1] != '"' {
			return b.String(), s[i+1:], true
		}
		i++
		b.WriteByte('"')
	}
	return "", "", false
}

// newEntry finds out what a secret is. What looks like a damaged hash is an
// error: as a password it could be used by whoever reads the damaged file.
func newEntry(s config.Secret) (*entry, error) {
	e := &entry{secret: s, kind: kindPlain}
	text := s.Reveal()
	switch {
	case text == "":
		e.kind = kindNone
	case strings.HasPrefix(text, scramPrefix):
		e.kind = kindSCRAM
		var err error
		if e.verifier, err = ParseVerifier(s); err != nil {
			return nil, err
		}
	case len(text) == md5Len && strings.HasPrefix(text, "md5") && isHex(text[3:]):
		if strings.ToLower(text) != text {
			return nil, errors.New("an md5 secret with capital letters: want md5 and 32 hex digits in small letters, as in pg_authid")
		}
		e.kind = kindMD5
	}
	return e, nil
}

// md5Len is the length of an md5 secret: md5 and 32 hex digits.
const md5Len = 35

func isHex(s string) bool {
	return strings.Trim(s, "0123456789abcdefABCDEF") == ""
}
