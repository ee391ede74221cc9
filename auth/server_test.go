package auth

import (
	"strings"
	"testing"

	"pgproxy/config"
)

func TestServerPassword(t *testing.T) {
	u := users(t, "plain", "of-list", "hash", md5Secret("hash", "x"), "scram", goodSCRAM, "none", "")
	for _, tt := range []struct {
		name           string
		id             Identity
		db             config.Database
		user, password string
	}{
		{"database's login", Identity{User: "plain", Opens: "p"}, config.Database{User: "rw", Password: "forced"}, "rw", "forced"},
		{"database's login for auth_type any", Identity{User: "x", claimed: true}, config.Database{User: "rw", Password: "forced"}, "rw", "forced"},
		{"database's user, password in the list", Identity{User: "scram", Opens: "mine"}, config.Database{User: "plain"}, "plain", "of-list"},
		{"database's user, unknown", Identity{User: "plain", Opens: "mine"}, config.Database{User: "rw"}, "rw", ""},
		{"database's user, md5 only", Identity{User: "plain", Opens: "mine"}, config.Database{User: "hash"}, "hash", md5Proof(config.Secret(md5Secret("hash", "x"))).Reveal()},
		{"database's user, SCRAM only", Identity{User: "plain", Opens: "mine"}, config.Database{User: "scram"}, "scram", ""},
		{"client, list", Identity{User: "plain"}, config.Database{}, "plain", "of-list"},
		{"client, the list has changed since", Identity{User: "plain", Opens: "old"}, config.Database{}, "plain", "of-list"},
		{"client, learned", Identity{User: "scram", Opens: "mine"}, config.Database{}, "scram", "mine"},
		{"client, md5 only", Identity{User: "hash"}, config.Database{}, "hash", md5Proof(config.Secret(md5Secret("hash", "x"))).Reveal()},
		{"client, SCRAM only", Identity{User: "scram"}, config.Database{}, "scram", ""},
		{"client, no secret", Identity{User: "none"}, config.Database{}, "none", ""},
		{"client, unknown", Identity{User: "new"}, config.Database{}, "new", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			user, p, err := ServerPassword(tt.id, &tt.db, u)
			if err != nil || user != tt.user || p.Reveal() != tt.password {
				t.Errorf("%s, %q, %v; want %s, %q", user, p.Reveal(), err, tt.user, tt.password)
			}
		})
	}
	_, p, err := ServerPassword(Identity{User: "plain", claimed: true}, &config.Database{Name: "app"}, u)
	if err == nil || !p.Empty() || !strings.Contains(err.Error(), "set user and password in [databases.app]") {
		t.Errorf("auth_type any without a login of the database: %v", err)
	}
	if user, p, err := ServerPassword(Identity{User: "x", Opens: "p"}, &config.Database{}, nil); user != "x" || p.Reveal() != "p" || err != nil {
		t.Errorf("no userlist: %s, %v", user, err)
	}
}
