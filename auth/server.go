package auth

import (
	"fmt"

	"pgproxy/config"
)

// ServerPassword returns what to log in to a database's servers with, by the
// userlist in force.
//
// Where the database has a user, that one is it, with the database's password or
// else the secret of that user in the userlist. Elsewhere it is the client, with
// the plain secret that the userlist holds by now, or what its login has shown: the
// password, or a Proof.
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
	if !id.Opens.Empty() && !u.isPlain(id.User) {
		return id.User, id.Opens, nil // what the login has shown
	}
	return id.User, u.opens(id.User), nil
}

// isPlain reports whether a user's secret is the password itself.
func (u *Userlist) isPlain(user string) bool {
	e := u.entry(user)
	return e != nil && e.kind == kindPlain
}

// opens returns what a user can be logged in to servers with by the userlist
// alone: the password, or an md5 hash as a Proof. A SCRAM secret opens nothing.
func (u *Userlist) opens(user string) config.Secret {
	e := u.entry(user)
	switch {
	case e == nil:
		return ""
	case e.kind == kindPlain:
		return e.secret
	case e.kind == kindMD5:
		return md5Proof(e.secret)
	}
	return ""
}
