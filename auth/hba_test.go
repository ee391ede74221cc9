package auth

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgproxy/config"
	"pgproxy/pgtest"
	"pgproxy/wire"
)

func hba(t *testing.T, text string) *HBA {
	t.Helper()
	h, err := ParseHBA("pg_hba.conf", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestHBAMatch: which of some lines decides about a login.
func TestHBAMatch(t *testing.T) {
	h := hba(t, `# TYPE DATABASE USER ADDRESS METHOD
local   all             postgres                            peer
local   sameuser        all                                 md5
local   "all"           quoted                              trust
host    replication     repl        10.0.0.0/8              scram-sha-256
hostssl all             tls         0.0.0.0/0               scram-sha-256
hostnossl all           tls         all                     reject
host    app,shop        web, api    10.1.0.0 255.255.0.0    md5
host    "weird db"      "weird ""u""" 127.0.0.1/32          password
host    /^tenant_\d+$   /^t         192.168.0.0/16          trust
host    all             all         ::1/128                 trust
host    sameuser        all         172.16.0.0/12           md5   # a comment
host    all             admin \
                                    172.16.0.1/32           scram-sha-256
host    ALL             all         203.0.113.0/24          trust
hostssl all             certified   203.0.113.9/32          cert
`)
	for _, tt := range []struct {
		from, database, user string
		tls, replication     bool
		line                 int // 0: none
	}{
		{"", "app", "postgres", false, false, 2},
		{"", "app", "app", false, false, 3},
		{"", "app", "web", false, false, 0},
		{"", "all", "quoted", false, false, 4},
		{"", "other", "quoted", false, false, 0},
		{"10.2.3.4", "app", "repl", false, true, 5},
		{"10.2.3.4", "replication", "repl", false, false, 0},
		{"10.2.3.4", "app", "repl", false, false, 0},
		{"10.1.3.4", "app", "web", false, true, 0},
		{"8.8.8.8", "x", "tls", true, false, 6},
		{"8.8.8.8", "x", "tls", false, false, 7},
		{"", "x", "tls", false, false, 0},
		{"10.1.255.255", "app", "web", false, false, 8},
		{"10.1.0.0", "shop", "api", true, false, 8},
		{"10.2.0.0", "shop", "api", true, false, 0},
		{"10.1.0.1", "shop", "web2", false, false, 0},
		{"10.1.0.1", "Shop", "web", false, false, 0},
		{"127.0.0.1", "weird db", `weird "u"`, false, false, 9},
		{"127.0.0.2", "weird db", `weird "u"`, false, false, 0},
		{"192.168.7.7", "tenant_12", "tom", false, false, 10},
		{"192.168.7.7", "tenant_12", "not", false, false, 0},
		{"192.168.7.7", "tenant_x", "tom", false, false, 0},
		{"::1", "x", "y", false, false, 11},
		{"::2", "x", "y", false, false, 0},
		{"::ffff:10.1.0.1", "app", "web", false, false, 8},
		{"172.16.0.1", "bob", "bob", false, false, 12},
		{"172.16.0.1", "x", "admin", false, false, 13},
		{"172.16.0.2", "x", "admin", false, false, 0},
		{"203.0.113.1", "ALL", "u", false, false, 15},
		{"203.0.113.1", "all", "u", false, false, 0},
		{"203.0.113.9", "x", "certified", true, false, 16},
		{"203.0.113.9", "x", "certified", false, false, 0},
	} {
		c := Channel{Encrypted: tt.tls, Replication: tt.replication}
		if tt.from != "" {
			c.Addr = netip.MustParseAddr(tt.from)
		}
		got := 0
		if r := h.match(c, tt.database, tt.user); r != nil {
			got = r.line
		}
		if got != tt.line {
			t.Errorf("%+v: line %d", tt, got)
		}
	}
}

// TestHBAFaults: what a file may not say.
func TestHBAFaults(t *testing.T) {
	for _, tt := range []struct{ line, wrong string }{
		{"hosts all all all trust", "no type of connection"},
		{"host all all trust", "want a type, databases, users"},
		{"local all all", "want a type, databases, users"},
		{"host all all 10.0.0.0/8", "want a type, databases, users"},
		{"host all all 10.0.0.0 255.0.0.0", "want a method"},
		{"host all all 10.0.0.7/8 trust", `want "10.0.0.0/8"`},
		{"host all all 10.0.0.7 trust", "want 10.0.0.7/32"},
		{"host all all 10.0.0.0 255.0.255.0 trust", "no network"},
		{"host all all 10.0.0.1 255.0.0.0 trust", "no network"},
		{"host all all localhost trust", "no address"},
		{"host all all samenet trust", "no address"},
		{"host all all .example.com trust", "no address"},
		{"host all +admins all trust", "memberships"},
		{"host samerole all all trust", "memberships"},
		{"host @file all all trust", "names in this file"},
		{"host /( all all trust", "missing closing"},
		{"host all all all ident", `method "ident" is not supported`},
		{"host all all all ldap foo=1", `option "foo"`},
		{"host all all all ldap ldapserver=x", "want ldapbasedn"},
		{"host all all all ldap ldapbasedn=dc=x,dc=y", `option "dc"`},
		{"local all all md5 ldapserver=x", "option"},
		{"local all all peer map=m,clientcert=x", "option"},
		{"host all all all peer", "local connections only"},
		{"host all all all cert", "hostssl only"},
		{"local all all md5 map=m", "option"},
		{"host all all all md5 clientcert=verify-full", "option"},
		{"hostssl all all all md5 clientcert=yes", "option"},
		{`host "all all all trust`, "quote that is not closed"},
		{"host a, all all trust", ""},
		{"host a,", "comma with nothing behind"},
		{"host ,a all all trust", "comma with nothing in front"},
		{"include other.conf", "no type of connection"},
	} {
		_, err := ParseHBA("hba", []byte("\n"+tt.line+"\n"))
		if tt.wrong == "" {
			if err == nil {
				continue // "a, all" are two databases and the rest is short
			}
			tt.wrong = "want a"
		}
		if err == nil || !strings.Contains(err.Error(), tt.wrong) || !strings.Contains(err.Error(), "hba:2:") {
			t.Errorf("%s: %v, want line 2 and %q", tt.line, err, tt.wrong)
		}
	}
}

// TestHBALogins: the way that a line says is the one that a client goes.
func TestHBALogins(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	h, err := LoadHBA(put("hba", `
local all all peer map=m
hostssl certs all all cert
hostssl mapped all all cert map=c
hostssl both all all scram-sha-256 clientcert=verify-full
hostssl some all all scram-sha-256 clientcert=verify-ca
host trusted all 10.0.0.0/8 trust
host hashed all 10.0.0.0/8 md5
host rejected all all reject
host all all 10.0.0.0/8 scram-sha-256
`), put("ident", `
m root     plain
m /^(.*)@x$ \1
m /^.*@corp$ all
m boss all
c "some one" plain
`))
	if err != nil {
		t.Fatal(err)
	}
	a := New(config.AuthHBA, users(t, "plain", "secret"), nil, nil).WithHBA(h)
	in := netip.MustParseAddr("10.0.0.1")
	for _, tt := range []struct {
		name, database, user, password string
		channel                        Channel
		wrong                          string
	}{
		{"SCRAM", "app", "plain", "secret", Channel{Addr: in}, ""},
		{"wrong password", "app", "plain", "x", Channel{Addr: in}, "28P01"},
		{"trust", "trusted", "plain", "", Channel{Addr: in}, ""},
		{"trust, unknown", "trusted", "nobody", "", Channel{Addr: in}, "28P01"},
		{"md5", "hashed", "plain", "secret", Channel{Addr: in}, ""},
		{"from elsewhere", "app", "plain", "secret", Channel{Addr: netip.MustParseAddr("11.0.0.1")}, `no auth_hba_file entry for host "11.0.0.1", user "plain", database "app", no encryption`},
		{"rejected", "rejected", "plain", "secret", Channel{Addr: in, Encrypted: true}, `auth_hba_file rejects connection for host "10.0.0.1", user "plain", database "rejected", SSL encryption`},
		{"peer", "app", "plain", "", Channel{SystemUser: "root"}, ""},
		{"peer by a pattern", "app", "plain", "", Channel{SystemUser: "plain@x"}, ""},
		{"peer, another", "app", "plain", "", Channel{SystemUser: "other@x"}, "28P01"},
		{"peer by a pattern for all", "app", "plain", "", Channel{SystemUser: "any@corp"}, ""},
		{"peer by name for all", "app", "plain", "", Channel{SystemUser: "boss"}, ""},
		{"peer that no pattern fits", "app", "plain", "", Channel{SystemUser: "mallory@elsewhere"}, "28P01"},
		{"certificate wanted", "some", "plain", "secret", Channel{Addr: in, Encrypted: true}, "connection requires a valid client certificate"},
		{"certificate of anybody", "some", "plain", "secret", Channel{Addr: in, Encrypted: true, Certified: true}, ""},
		{"peer, not known", "app", "plain", "", Channel{}, "28P01"},
		{"certificate", "certs", "plain", "", Channel{Addr: in, Encrypted: true, Certified: true, CommonName: "plain"}, ""},
		{"certificate of another", "certs", "plain", "", Channel{Addr: in, Encrypted: true, Certified: true, CommonName: "other"}, "28P01"},
		{"no certificate", "certs", "plain", "", Channel{Addr: in, Encrypted: true}, "28P01"},
		{"certificate by a map", "mapped", "plain", "", Channel{Addr: in, Encrypted: true, Certified: true, CommonName: "some one"}, ""},
		{"certificate, not in the map", "mapped", "plain", "", Channel{Addr: in, Encrypted: true, Certified: true, CommonName: "plain"}, "28P01"},
		{"certificate and password", "both", "plain", "secret", Channel{Addr: in, Encrypted: true, Certified: true, CommonName: "plain"}, ""},
		{"password without the certificate", "both", "plain", "secret", Channel{Addr: in, Encrypted: true}, "connection requires a valid client certificate"},
		{"password with another's certificate", "both", "plain", "secret", Channel{Addr: in, Encrypted: true, Certified: true, CommonName: "other"}, "28P01"},
		{"certificate without the password", "both", "plain", "x", Channel{Addr: in, Encrypted: true, Certified: true, CommonName: "plain"}, "28P01"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &client{user: tt.user, password: tt.password, channel: tt.channel}
			id, err := a.Authenticate(context.Background(), c, tt.user, tt.database)
			var e *wire.Error
			switch {
			case tt.wrong == "":
				if err != nil || id.User != tt.user {
					t.Errorf("%+v, %v", id, err)
				}
			case tt.wrong == "28P01":
				if !errors.Is(err, ErrFailed) {
					t.Errorf("%v", err)
				}
			case !errors.As(err, &e) || e.Code != wire.CodeInvalidAuthorization || e.Message != tt.wrong:
				t.Errorf("%v, want %s", err, tt.wrong)
			}
		})
	}
	if _, err := New(config.AuthHBA, users(t, "plain", "secret"), nil, nil).Authenticate(context.Background(), &client{channel: Channel{Addr: in}}, "plain", "app"); err == nil {
		t.Error("without a file everybody is let in")
	}
	if _, err := LoadHBA(put("bad", "local all all peer map=none\n"), ""); err == nil || !strings.Contains(err.Error(), `no map "none"`) {
		t.Errorf("a map that is not there: %v", err)
	}
}

// TestHBAAsPostgreSQL asks a real server about the same lines: who is let in, who
// is not, and which lines it refuses to read.
func TestHBAAsPostgreSQL(t *testing.T) {
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	c, err := pgtest.StartCluster(ctx, pgtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := c.Primary.UseTLS(ctx, pgtest.NewCA(t).Issue("localhost", nil)); err != nil { // hostssl is an error without
		t.Fatal(err)
	}
	names := []string{"app", "web", "weird u", "ALL", "tenant_1"}
	for _, n := range names {
		if err := c.Exec(ctx, fmt.Sprintf("CREATE ROLE %q LOGIN", n)); err != nil {
			t.Fatal(err)
		}
		if err := c.Exec(ctx, fmt.Sprintf("CREATE DATABASE %q", n)); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(c.Primary.Dir, "pg_hba.conf")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{
		"host app app all trust\nhost all web all trust\n",
		"host sameuser all 127.0.0.0/8 trust\n",
		"host \"all\" all all trust\nhost ALL all all trust\n",
		"host all \"weird u\",web 127.0.0.1 255.255.255.255 trust\nhost all all all reject\n",
		"host app,web all 128.0.0.0/1 trust\nhost app app 0.0.0.0/1 trust\n",
		"hostssl all all all trust\nhostnossl app all 127.0.0.1/32 trust\n",
		"host all web all reject\nhost all all all trust\n",
		"host all app \\\n  all trust\nlocal all all trust\n",
		"host replication all all trust\nhost web all ::1/128 trust\n",
		"# nothing\n",
	} {
		// Our own connections come first, so that the server can be asked.
		full := "local all all trust\nhost all " + "postgres" + " all trust\n" + text
		if err := os.WriteFile(path, []byte(full), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := c.Primary.Exec(ctx, "postgres", "SELECT pg_reload_conf()"); err != nil {
			t.Fatal(err)
		}
		want := strings.Count(full, "trust") + strings.Count(full, "reject")
		if err := c.Primary.WaitFor(ctx, "postgres", fmt.Sprintf("SELECT count(*) = %d AND count(error) = 0 FROM pg_hba_file_rules", want)); err != nil {
			t.Fatal(err)
		}
		ours := hba(t, text)
		for _, user := range names {
			for _, db := range names {
				raw := pgtest.DialRaw(t, c.Primary.Addr())
				raw.Startup("user", user, "database", db)
				theirs := raw.Read().Type == wire.Authentication
				raw.Close()
				r := ours.match(Channel{Addr: netip.MustParseAddr("127.0.0.1")}, db, user)
				if mine := r != nil && !r.method.refuse; mine != theirs {
					t.Errorf("file %d, user %q, database %q: %t, PostgreSQL says %t", i, user, db, mine, theirs)
				}
			}
		}
	}
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
}

func FuzzHBA(f *testing.F) {
	f.Add("host all all 10.0.0.0/8 md5\nlocal \"a b\",c /^x peer map=m # c\n", "m /^(.*)$ \\1\n")
	f.Add("hostssl sameuser all 10.0.0.0 255.0.0.0 cert \\\n map=x", "")
	f.Fuzz(func(t *testing.T, text, ident string) {
		h, err := ParseHBA("hba", []byte(text))
		if err != nil {
			return
		}
		if h.maps, err = parseIdent("ident", []byte(ident)); err != nil {
			return
		}
		c := Channel{Addr: netip.MustParseAddr("10.0.0.1")}
		if r := h.match(c, "app", "app"); r != nil && r.line == 0 {
			t.Error("a rule without a line")
		}
		h.allows("m", "root", "app")
	})
}
