package auth

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"

	"pgproxy/config"
	"pgproxy/pgtest"
	"pgproxy/wire"
)

const people = `dn: ou=people,dc=example,dc=net
objectClass: organizationalUnit
ou: people

dn: ou=others,dc=example,dc=net
objectClass: organizationalUnit
ou: others

dn: uid=alice,ou=people,dc=example,dc=net
objectClass: inetOrgPerson
uid: alice
mail: alice@example.net
cn: Alice
sn: A
userPassword: secret

dn: uid=odd\, (x)*\\y,ou=people,dc=example,dc=net
objectClass: inetOrgPerson
uid: odd, (x)*\y
cn: Odd
sn: O
userPassword: secret

dn: uid=twice,ou=people,dc=example,dc=net
objectClass: inetOrgPerson
uid: twice
cn: Twice
sn: T
userPassword: secret

dn: uid=twice,ou=others,dc=example,dc=net
objectClass: inetOrgPerson
uid: twice
cn: Twice
sn: T
userPassword: secret

dn: uid=mute,ou=people,dc=example,dc=net
objectClass: inetOrgPerson
uid: mute
cn: Mute
sn: M
`

// TestLDAP asks a real directory, in all the ways that there are to describe it.
func TestLDAP(t *testing.T) {
	s := pgtest.StartSlapd(t, people)
	t.Setenv("LDAPTLS_CACERT", s.CAFile)
	at := fmt.Sprintf("ldapserver=127.0.0.1 ldapport=%d ", s.Port)
	base := `ldapbasedn="` + pgtest.SlapdBase + `" `
	admin := `ldapbinddn="` + pgtest.SlapdAdmin + `" ldapbindpasswd="` + pgtest.SlapdPassword + `" `
	simple := at + `ldapprefix="uid=" ldapsuffix=",ou=people,dc=example,dc=net"`
	short := at + `ldapprefix="uid=" ldapsuffix=",dc=example,dc=net"`
	url := fmt.Sprintf("ldap://127.0.0.1:%d/", s.Port)
	const in, no, broken = "in", "no", "broken"
	for _, tt := range []struct{ name, options, user, password, want string }{
		{"simple bind", simple, "alice", "secret", in},
		{"simple bind, wrong password", simple, "alice", "x", no},
		{"simple bind, unknown", simple, "nobody", "secret", no},
		{"simple bind, odd name", simple, `odd, (x)*\y`, "secret", in},
		{"a name that would be another", short, "alice,ou=people", "secret", no},
		{"simple bind without a password", simple, "alice", "", no},
		{"simple bind, an entry without a password", simple, "mute", "x", no},

		{"search as nobody", at + base, "alice", "secret", in},
		{"search as somebody", at + base + admin, "alice", "secret", in},
		{"search, wrong password", at + base + admin, "alice", "x", no},
		{"search, no password", at + base + admin, "alice", "", no},
		{"search, unknown", at + base, "nobody", "secret", no},
		{"search, odd name", at + base, `odd, (x)*\y`, "secret", in},
		{"search, several", at + base, "twice", "secret", no},
		{"search below another", at + `ldapbasedn="ou=people,dc=example,dc=net"`, "twice", "secret", in},
		{"a pattern for a name", at + base, "ali*", "secret", no},
		{"all for a name", at + `ldapbasedn="uid=alice,ou=people,dc=example,dc=net"`, "*", "secret", no},
		{"a filter for a name", at + base, "x)(uid=alice", "secret", no},
		{"another filter for a name", at + base + `ldapsearchfilter="(|(uid=$username)(mail=$username))"`, "x)(uid=alice", "secret", no},
		{"search by another attribute", at + base + "ldapsearchattribute=mail", "alice@example.net", "secret", in},
		{"search by a filter", at + base + `ldapsearchfilter="(|(uid=$username)(mail=$username))"`, "alice@example.net", "secret", in},
		{"search by a bare filter", at + base + `ldapsearchfilter="mail=$username"`, "alice@example.net", "secret", in},
		{"wrong password of ldapbinddn", at + base + `ldapbinddn="` + pgtest.SlapdAdmin + `" ldapbindpasswd=x`, "alice", "secret", broken},
		{"search below nothing", at + `ldapbasedn="dc=example,dc=org"`, "alice", "secret", broken},

		{"URL", `ldapurl="` + url + `dc=example,dc=net?uid?sub"`, "alice", "secret", in},
		{"URL, one level", `ldapurl="` + url + `ou=people,dc=example,dc=net?uid?one"`, "alice", "secret", in},
		{"URL, wrong level", `ldapurl="` + url + `dc=example,dc=net?uid?one"`, "alice", "secret", no},
		{"URL, no level is base", `ldapurl="` + url + `dc=example,dc=net?uid"`, "alice", "secret", no},
		{"URL, filter", `ldapurl="` + url + `dc=example,dc=net??sub?(mail=$username)"`, "alice@example.net", "secret", in},
		{"URL and more", `ldapurl="` + url + `dc=example,dc=net?mail?sub" ` + admin, "alice@example.net", "secret", in},
		{"URL, escaped", `ldapurl="` + url + `dc=example%2Cdc=net?%75id?sub"`, "alice", "secret", in},

		{"StartTLS", at + base + "ldaptls=1", "alice", "secret", in},
		{"StartTLS, wrong password", at + base + "ldaptls=1", "alice", "x", no},
		{"ldaps", fmt.Sprintf("ldapserver=localhost ldapscheme=ldaps ldapport=%d ", s.TLSPort) + base, "alice", "secret", in},
		{"ldaps of a URL", fmt.Sprintf("ldapurl=ldaps://127.0.0.1:%d/", s.TLSPort) + "?uid?sub " + base, "alice", "secret", in},
		{"ldaps, clear port", strings.Replace(at, "ldapserver", "ldapscheme=ldaps ldapserver", 1) + base, "alice", "secret", broken},
		{"the second server", `ldapserver="127.0.0.2 127.0.0.1" ` + fmt.Sprintf("ldapport=%d ", s.Port) + base, "alice", "secret", in},
		{"no server", `ldapserver="127.0.0.2 127.0.0.3" ` + fmt.Sprintf("ldapport=%d ", s.Port) + base, "alice", "secret", broken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, err := ParseLDAP(tt.options)
			if err != nil {
				t.Fatal(err)
			}
			c := &client{user: tt.user, password: tt.password}
			id, err := try(t, New(config.AuthLDAP, nil, []string{"alice"}, nil).WithLDAP(dir), c)
			switch got := outcome(err); {
			case got != tt.want:
				t.Errorf("%s (%v), want %s", got, err, tt.want)
			case got == in && (id.User != tt.user || id.Opens.Reveal() != tt.password || id.Admin != (tt.user == "alice")):
				t.Errorf("%+v", id)
			}
		})
	}
	t.Run("a certificate of somebody else's", func(t *testing.T) {
		t.Setenv("LDAPTLS_CACERT", pgtest.NewCA(t).File)
		for _, options := range []string{at + base + "ldaptls=1", fmt.Sprintf("ldapserver=127.0.0.1 ldapscheme=ldaps ldapport=%d ", s.TLSPort) + base} {
			dir, err := ParseLDAP(options)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := try(t, New(config.AuthLDAP, nil, nil, nil).WithLDAP(dir), &client{user: "alice", password: "secret"}); outcome(err) != broken {
				t.Errorf("%s: %v", options, err)
			}
		}
	})
	t.Run("lines of auth_hba_file", func(t *testing.T) {
		h := hba(t, "local one all ldap "+at+base+"\nlocal two all ldap\nlocal all all scram-sha-256")
		if n := h.LacksLDAP(); n != 2 {
			t.Errorf("line %d lacks options, want 2", n)
		}
		dir, err := ParseLDAP(at + base + `ldapsearchattribute=mail`)
		if err != nil {
			t.Fatal(err)
		}
		a := New(config.AuthHBA, users(t, "alice", "of the userlist"), nil, nil).WithHBA(h).WithLDAP(dir)
		for _, tt := range []struct{ database, user, password, opens, want string }{
			{"one", "alice", "secret", "of the userlist", in},
			{"one", "alice@example.net", "secret", "", no},
			{"two", "alice@example.net", "secret", "secret", in},
			{"two", "alice", "secret", "", no},
			{"three", "alice", "of the userlist", "of the userlist", in},
			{"three", "alice", "secret", "", no},
		} {
			c := &client{user: tt.user, password: tt.password, secretErr: errors.New("auth_query is asked")}
			if tt.database == "three" {
				c.secretErr = nil
			}
			id, err := a.Authenticate(t.Context(), c, tt.user, tt.database)
			if got := outcome(err); got != tt.want || id.Opens.Reveal() != tt.opens {
				t.Errorf("%s as %s: %s (%v), opens with %q", tt.database, tt.user, got, err, id.Opens.Reveal())
			}
		}
	})
}

// outcome is what a login came to: "in", "no" for a refusal, or "broken" if the
// directory could not say.
func outcome(err error) string {
	var e *wire.Error
	switch {
	case err == nil:
		return "in"
	case errors.Is(err, ErrFailed):
		return "no"
	case errors.As(err, &e) && e.Code == wire.CodeCannotConnectNow:
		return "broken"
	}
	return err.Error()
}

func TestLDAPFaults(t *testing.T) {
	t.Setenv("LDAPTLS_CACERT", "/nonexistent")
	const at, base = "ldapserver=d ", "ldapbasedn=x "
	for _, tt := range []struct{ options, wrong string }{
		{"", "want ldapserver or ldapurl"},
		{base, "want ldapserver or ldapurl"},
		{at, "want ldapbasedn"},
		{at + "ldapfoo=1", `"ldapfoo" means nothing here`},
		{at + "ldaptls", `"ldaptls" means nothing here`},
		{at + base + "ldapserver=e", "ldapserver is given twice"},
		{at + base + "ldapport=0", "ldapport"},
		{at + base + "ldapport=65536", "ldapport"},
		{at + base + "ldapport=x", "ldapport"},
		{at + base + "ldapscheme=ldapi", "ldapscheme"},
		{at + base + "ldaptls=yes", "ldaptls"},
		{at + base + "ldaptls=1 ldapscheme=ldaps", "encrypted from the start"},
		{at + base + "ldaptls=1", "LDAPTLS_CACERT"},
		{at + base + "ldapprefix=a", "do not go together"},
		{at + "ldapsuffix=a ldapbinddn=x", "do not go together"},
		{at + "ldapsuffix=a ldapbindpasswd=x", "do not go together"},
		{at + "ldapsuffix=a ldapsearchattribute=x", "do not go together"},
		{at + base + "ldapsearchattribute=a ldapsearchfilter=(a=$username)", "does not go together"},
		{at + base + `ldapsearchfilter="(a=$username"`, "cannot be read"},
		{at + base + `ldapsearchattribute="(&"`, "cannot be read"},
		{"ldapurl=http://d/", "no URL of a directory"},
		{"ldapurl=ldap://user@d/x?uid?sub", "no URL of a directory"},
		{`ldapurl="ldap://d/x?uid?sub?(a=b)?ext"`, "extensions"},
		{`ldapurl="ldap://d/x?uid?subtree"`, "scope"},
		{`ldapurl="ldap://d/x?%zz?sub"`, "hex digits"},
		{`ldapurl="ldap://d/x?uid?sub" ldapserver=e`, "ldapserver is given twice"},
		{`ldapserver=e ldapurl="ldap://d/x?uid?sub"`, "in ldapurl already"},
		{`ldapserver="e`, "not closed"},
	} {
		if l, err := ParseLDAP(tt.options); err == nil || !strings.Contains(err.Error(), tt.wrong) {
			t.Errorf("%s: %v, %v, want %q", tt.options, l, err, tt.wrong)
		}
	}
	if _, err := ParseLDAP(at + base + `ldapbindpasswd=canary ldapport=x`); err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("%v", err)
	}
	l, err := ParseLDAP(at + base + `ldapbindpasswd=canary`)
	if text := fmt.Sprintf("%v %+v %#v %s", l, l, l, l); err != nil || strings.Contains(text, "canary") {
		t.Errorf("%s, %v", text, err)
	}
}

// TestLDAPWithoutADirectory: auth_type ldap alone lets nobody in.
func TestLDAPWithoutADirectory(t *testing.T) {
	if _, err := try(t, New(config.AuthLDAP, users(t, "alice", "secret"), nil, nil), &client{user: "alice", password: "secret"}); !errors.Is(err, ErrFailed) {
		t.Errorf("%v", err)
	}
}

// patience bounds a login in tests of directories that do not answer.
func patience(t *testing.T, d time.Duration) context.Context {
	ctx, stop := context.WithTimeout(t.Context(), d)
	t.Cleanup(stop)
	return ctx
}

func FuzzLDAPOptions(f *testing.F) {
	f.Add(`ldapurl="ldaps://d:636/dc=x,dc=y?uid?sub?(|(uid=$username)(mail=$username))"`)
	f.Add(`ldapserver="a b" ldapport=389 ldaptls=1 ldapprefix="uid=" ldapsuffix=",dc=x"`)
	f.Add(`ldapserver=a ldapbasedn=x ldapbinddn="cn=a" ldapbindpasswd="p""q" ldapsearchfilter=uid=$username`)
	f.Fuzz(func(t *testing.T, options string) {
		d, err := ParseLDAP(options)
		if err == nil && (len(d.hosts) == 0 || d.port < 1 || d.port > 65535 || d.search == (d.prefix != "" || d.suffix != "")) {
			t.Fatalf("hosts %q, port %d, search %t", d.hosts, d.port, d.search)
		}
	})
}

// FuzzLDAPName: a user's name is one value in the filter and in the name that is
// bound, whatever it is.
func FuzzLDAPName(f *testing.F) {
	for _, s := range []string{"alice", "*", "a)(uid=*", `\2a`, "a,ou=x", "a+b=c", "#a", " a ", "ä\xff", `a\`, `a"b`, "a;b<c>"} {
		f.Add(s)
	}
	simple, err := ParseLDAP(`ldapserver=a ldapprefix="uid=" ldapsuffix=",dc=x"`)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, user string) {
		if user == "" || strings.Contains(user, "\x00") {
			return // which no startup packet can say
		}
		for _, filter := range []string{"uid=$username", "(|(uid=$username)(mail=$username))", "(&(objectClass=person)(uid=*$username))"} {
			d, err := ParseLDAP(`ldapserver=a ldapbasedn=x ldapsearchfilter="` + filter + `"`)
			if err != nil {
				t.Fatal(err)
			}
			before, err := ldap.CompileFilter(d.filterFor("x"))
			if err != nil {
				t.Fatal(err)
			}
			after, err := ldap.CompileFilter(d.filterFor(user))
			if err != nil {
				t.Fatalf("user %q: %v", user, err)
			}
			if a, b := shapeOf(before), shapeOf(after); a != b {
				t.Fatalf("user %q makes %s of %s", user, b, a)
			}
		}
		if !utf8.ValidString(user) {
			return // no directory has such a name
		}
		dn, err := ldap.ParseDN(simple.nameFor(user))
		if err != nil || len(dn.RDNs) != 2 || len(dn.RDNs[0].Attributes) != 1 || dn.RDNs[0].Attributes[0].Value != user {
			t.Fatalf("user %q is bound as %s: %v", user, simple.nameFor(user), err)
		}
	})
}

// shapeOf is the tree of a filter without its values.
func shapeOf(p *ber.Packet) string {
	s := fmt.Sprint(p.Tag)
	for _, c := range p.Children {
		s += "(" + shapeOf(c) + ")"
	}
	return s
}
