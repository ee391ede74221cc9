package auth

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"pgproxy/config"
)

// ServerPassword returns what to log in to a database's servers with, by the
// userlist in force.
//
// Where the database has a user, that one is it, with the database's password or
// else the secrets of that user in the userlist. Elsewhere it is the client, with
// the plain secrets that the userlist holds by now, or what its login has shown: the
// password, or a Proof. Where there are several the secret stands for all of them,
// the newest first: see Passwords.
//
// A password that is not known is returned empty and is no error: the server may
// ask for none (trust, cert, peer), and if it does ask, its own words say best
// what is wrong. The one error is a client that has proved nothing
// (auth_type any) and a database without a user of its own: it would be let in as
// whoever it says it is.
func ServerPassword(id Identity, db *config.Database, u *Userlist) (user string, password config.Secret, err error) {
	if db.User != "" {
		if !db.Password.Empty() {
			return db.User, db.Password, nil
		}
		return db.User, u.opens(db.User), nil
	}
	if id.claimed {
		return "", "", fmt.Errorf("user %q has proved nothing (auth_type any): set user and password in [databases.%s]", id.User, db.Name)
	}
	list := u.opening(id.User, !id.Opens.Empty())
	switch {
	case id.Opens.Empty() || u.hasPlain(id.User) || slices.ContainsFunc(list, func(s config.Secret) bool { return sameSecret(s, id.Opens) }):
	default:
		list = append([]config.Secret{id.Opens}, list...) // what the login has shown
	}
	return id.User, several(list), nil
}

// hasPlain reports whether a secret of the user is the password itself.
func (u *Userlist) hasPlain(user string) bool {
	return slices.ContainsFunc(u.entries(user), func(e *entry) bool { return e.kind == kindPlain })
}

// opens returns what a user can be logged in to servers with by the userlist
// alone.
func (u *Userlist) opens(user string) config.Secret { return several(u.opening(user, false)) }

// opening is a list of that, the newest first: passwords, md5 hashes as Proofs, and
// for a client that has proved who it is the Proofs that logins with SCRAM secrets
// have shown.
func (u *Userlist) opening(user string, proved bool) (list []config.Secret) {
	for _, e := range u.entries(user) {
		switch e.kind {
		case kindPlain:
			list = append(list, e.secret)
		case kindMD5:
			list = append(list, md5Proof(e.secret))
		case kindSCRAM:
			if p := e.shown.Load(); p != nil && proved {
				list = append(list, *p)
			}
		}
	}
	return list
}

// anyOf begins a secret that stands for several. No password holds a NUL.
const anyOf = "\x00any\x00"

// several makes one secret of a list, of which the first that works counts.
func several(list []config.Secret) config.Secret {
	switch len(list) {
	case 0:
		return ""
	case 1:
		return list[0]
	}
	var b strings.Builder
	b.WriteString(anyOf)
	for _, s := range list {
		b.WriteString(hex.EncodeToString([]byte(s.Reveal())) + "\x00")
	}
	return config.Secret(b.String())
}

// Passwords returns what a secret of ServerPassword stands for: what to log in with,
// one after the other, until the server accepts one. There is at least one, which
// may be empty.
func Passwords(s config.Secret) []config.Secret {
	text, ok := strings.CutPrefix(s.Reveal(), anyOf)
	if !ok {
		return []config.Secret{s}
	}
	var list []config.Secret
	for one := range strings.SplitSeq(strings.TrimSuffix(text, "\x00"), "\x00") {
		b, _ := hex.DecodeString(one) // several has written it
		list = append(list, config.Secret(b))
	}
	return list
}
