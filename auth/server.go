package auth

import (
	"fmt"

	"pgproxy/config"
)

// ServerPassword returns what to log in to a database's servers with, by the
// userlist in force.
//
// Where the database has a user, that one is it, with the database's password or
// else the plain secret of that user in the userlist. Elsewhere it is the client,
// with the plain secret that the userlist holds by now or else the password that
// was learned at the login.
//
// A password that is not known is returned empty and is no error, even where the
// userlist has an md5 or SCRAM secret, from which no password can be had: the
// server may ask for none (trust, cert, peer), and if it does ask, its own words
// say best what is wrong. The one error is a client that has proved nothing
// (auth_type any) and a database without a user of its own: it would be let in as
// whoever it says it is.
func ServerPassword(id Identity, db *config.Database, u *Userlist) (user string, password config.Secret, err error) {
	if db.User != "" {
		if !db.Password.Empty() {
			return db.User, db.Password, nil
		}
		return db.User, u.plain(db.User), nil
	}
	if id.claimed {
		return "", "", fmt.Errorf("user %q has proved nothing (auth_type any): set user and password in [databases.%s]", id.User, db.Name)
	}
	if p := u.plain(id.User); !p.Empty() {
		return id.User, p, nil
	}
	return id.User, id.Plain, nil
}

// plain returns a user's secret if it is the password itself.
func (u *Userlist) plain(user string) config.Secret {
	if e := u.entry(user); e != nil && e.kind == kindPlain {
		return e.secret
	}
	return ""
}
