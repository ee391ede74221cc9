package backend

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"pgproxy/auth"
	"pgproxy/config"
	"pgproxy/pgtest"
	"pgproxy/wire"
)

// TestSeveralPasswords: they are tried one after the other while the server says
// that they are wrong, and what has worked comes first from then on.
func TestSeveralPasswords(t *testing.T) {
	var right, code atomic.Pointer[string]
	set := func(p *atomic.Pointer[string], s string) { p.Store(&s) }
	srv := pgtest.NewFakeServer(t, func(f *pgtest.FakeConn) error {
		if _, err := f.ReadStartup(); err != nil {
			return err
		}
		if c := *code.Load(); c != "" {
			return f.Send(wire.Fatalf(c, "not now").Append(nil))
		}
		if err := f.RequirePassword("plain", *right.Load()); err != nil {
			return err
		}
		if err := f.Send(f.Welcome()); err != nil {
			return err
		}
		return f.Drain()
	})
	users, err := auth.ParseUserlist("userlist", []byte("\"u\" \"oldest\"\n\"u\" \"older\"\n\"u\" \"newest\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	_, several, err := auth.ServerPassword(auth.Identity{User: "u"}, &config.Database{}, users)
	if err != nil {
		t.Fatal(err)
	}
	l, d := loginTo(srv.Port()), newDialer()
	l.User, l.Password = "u", several
	for _, tt := range []struct {
		what, right, code string
		logins            int
		wants             string
	}{
		{"the newest", "newest", "", 1, ""},
		{"the oldest", "oldest", "", 3, ""},
		{"again", "oldest", "", 1, ""},
		{"the next of the circle", "newest", "", 2, ""},
		{"none", "other", "", 3, wire.CodeInvalidPassword},
		{"a refusal for another reason", "newest", wire.CodeTooManyConnections, 1, wire.CodeTooManyConnections},
		{"what has worked before that", "newest", "", 1, ""},
	} {
		set(&right, tt.right)
		set(&code, tt.code)
		before := len(srv.Conns())
		pc, err := d.Open(context.Background(), l)
		var e *wire.Error
		switch {
		case err == nil && tt.wants == "":
			_ = pc.Close(context.Background())
		case !errors.As(err, &e) || e.Code != tt.wants:
			t.Errorf("%s: error %v, want %q", tt.what, err, tt.wants)
		}
		if n := len(srv.Conns()) - before; n != tt.logins {
			t.Errorf("%s: %d logins, want %d", tt.what, n, tt.logins)
		}
	}
}
