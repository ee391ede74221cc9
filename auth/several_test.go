package auth

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgproxy/config"
)

// TestSeveralSecrets: any of a user's secrets is accepted, by every method that can
// use it. Where the exchange is about one of them only, the next attempt from the
// same address is about the next, and what was right stays.
func TestSeveralSecrets(t *testing.T) {
	oldSCRAM, newSCRAM := scramSecret("old", "old salt", 4096), scramSecret("new", "new salt", 4096)
	twin := scramSecret("twin", "new salt", 4096)
	for _, tt := range []struct {
		name    string
		method  config.AuthType
		secrets []string // the last is the newest
		tries   string   // passwords, with ! behind those that fail
	}{
		{"plain", config.AuthPlain, []string{"old", "new"}, "new old new old wrong!"},
		{"plain, hashes", config.AuthPlain, []string{md5Secret("u", "old"), newSCRAM, "clear"}, "new old clear wrong!"},
		{"md5", config.AuthMD5, []string{"old", md5Secret("u", "new")}, "new old new old wrong! old"},
		{"md5, SCRAM is newer", config.AuthMD5, []string{md5Secret("u", "old"), newSCRAM}, "new old! old old new! new"},
		{"md5, SCRAM is older", config.AuthMD5, []string{oldSCRAM, md5Secret("u", "new")}, "new old! old old new! new"},
		{"md5, SCRAM and a password", config.AuthMD5, []string{"old", newSCRAM}, "new old new old"},
		{"scram, passwords", config.AuthSCRAM, []string{"old", "new"}, "new old new old wrong! old"},
		{"scram, one is known", config.AuthSCRAM, []string{"old", newSCRAM}, "new old new wrong! old"},
		{"scram, the older is not known", config.AuthSCRAM, []string{oldSCRAM, "new"}, "new old new wrong! old"},
		{"scram, none is known", config.AuthSCRAM, []string{oldSCRAM, newSCRAM}, "new old! old old new! new new"},
		{"scram, of one salt", config.AuthSCRAM, []string{twin, newSCRAM}, "new twin new twin wrong! twin"},
		{"scram, four", config.AuthSCRAM, []string{twin, oldSCRAM, "clear", newSCRAM}, "clear twin old! clear old new! twin"},
		{"scram, md5 is of no use", config.AuthSCRAM, []string{md5Secret("u", "old"), newSCRAM}, "new old! old! new"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var pairs []string
			for _, s := range tt.secrets {
				pairs = append(pairs, "u", s)
			}
			list := users(t, pairs...)
			a := New(tt.method, list, nil, nil)
			for i, password := range strings.Fields(tt.tries) {
				password, wrong := strings.CutSuffix(password, "!")
				c := client{user: "u", password: password}
				id, err := try(t, a, &c)
				if (err != nil) != wrong {
					t.Fatalf("try %d with %q: %v", i, password, err)
				}
				if err == nil && id.Opens.Empty() {
					t.Errorf("try %d with %q opens nothing", i, password)
				}
				a = a.Reload(tt.method, list, nil, nil) // which forgets nothing
			}
		})
	}
}

// TestTurnsAreOfAddresses: a client that has the old password changes nothing for
// those of other addresses.
func TestTurnsAreOfAddresses(t *testing.T) {
	a := New(config.AuthSCRAM, users(t, "u", scramSecret("old", "old salt", 4096), "u", scramSecret("new", "new salt", 4096)), nil, nil)
	at := func(addr, password string) bool {
		c := client{user: "u", password: password, channel: Channel{Addr: netip.MustParseAddr(addr)}}
		_, err := try(t, a, &c)
		return err == nil
	}
	if at("10.0.0.1", "old") || !at("10.0.0.1", "old") {
		t.Error("the second try is not about the second secret")
	}
	for range 3 {
		if !at("10.0.0.2", "new") || !at("10.0.0.1", "old") {
			t.Error("clients of two addresses are in each other's way")
		}
	}
	for i := range 2 * maxTurns {
		a.accounts["u"].turns.put(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 1)
	}
	if n := len(a.accounts["u"].turns.next); n > maxTurns {
		t.Errorf("%d addresses are remembered", n)
	}
}

// TestServersOfSeveralSecrets: which passwords are tried on servers, and in which
// order.
func TestServersOfSeveralSecrets(t *testing.T) {
	stored := scramSecret("hidden", "a salt", 4096)
	u := users(t, "plain", "old", "plain", "new", "mixed", stored, "mixed", "known", "hidden", stored, "hidden", scramSecret("other", "b salt", 4096))
	a := New(config.AuthSCRAM, u, nil, nil)
	login := func(user, password string) Identity {
		c := client{user: user, password: password}
		id, err := try(t, a, &c)
		if err != nil {
			id, err = try(t, a, &c)
		}
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	show := func(id Identity, db config.Database) (out []string) {
		_, s, err := ServerPassword(id, &db, u)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range Passwords(s) {
			if _, ok := ProofOf(p); ok {
				p = "proof"
			}
			out = append(out, p.Reveal())
		}
		return out
	}
	for _, tt := range []struct {
		what string
		got  []string
		want []string
	}{
		{"a client with the old password", show(login("plain", "old"), config.Database{}), []string{"new", "old"}},
		{"a user of the database's", show(Identity{User: "x"}, config.Database{User: "plain"}), []string{"new", "old"}},
		{"one that nobody has shown", show(login("mixed", "known"), config.Database{}), []string{"known"}},
		{"one that was shown", show(login("mixed", "hidden"), config.Database{}), []string{"known", "proof"}},
		{"the first of two", show(login("hidden", "hidden"), config.Database{}), []string{"proof"}},
		{"both of two", show(login("hidden", "other"), config.Database{}), []string{"proof", "proof"}},
		{"who has shown nothing", show(Identity{User: "hidden"}, config.Database{}), []string{""}},
		{"a user of the database's with hashes alone", show(Identity{User: "x"}, config.Database{User: "hidden"}), []string{""}},
	} {
		if !slices.Equal(tt.got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.what, tt.got, tt.want)
		}
	}
}

// TestUsersWithPasswords: those of [users] are newer than those of auth_file.
func TestUsersWithPasswords(t *testing.T) {
	u, err := users(t, "alice", "of the file").With(map[string]*config.User{
		"alice": {Passwords: []config.Secret{"newest", "newer"}}, "bob": {Passwords: []config.Secret{"bob's"}}, "carol": {},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range u.entries("alice") {
		got = append(got, e.secret.Reveal())
	}
	if !slices.Equal(got, []string{"newest", "newer", "of the file"}) || !slices.Equal(u.Names(), []string{"alice", "bob"}) || !slices.Equal(u.Several(), []string{"alice"}) {
		t.Errorf("secrets %q, users %q", got, u.Names())
	}
	for _, bad := range []config.Secret{"of the file", "SCRAM-SHA-256$4096:c4n4ry"} {
		_, err := users(t, "alice", "of the file").With(map[string]*config.User{"alice": {Passwords: []config.Secret{bad}}})
		if err == nil || !strings.HasPrefix(err.Error(), "passwords of [users.alice]: ") || strings.Contains(err.Error(), "c4n4ry") {
			t.Errorf("error %v", err)
		}
	}
}
