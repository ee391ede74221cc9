package auth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"

	"pgproxy/config"
)

// fakeDirectory is a directory that answers as slapd cannot be made to. answer gets
// the number of the request and its tag, and returns what to send; nil is no
// answer.
func fakeDirectory(t *testing.T, answer func(id int64, tag ber.Tag) []byte) (options string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				for {
					p, err := ber.ReadPacket(conn)
					if err != nil || len(p.Children) < 2 {
						return
					}
					id, _ := p.Children[0].Value.(int64)
					out := answer(id, p.Children[1].Tag)
					if _, err := conn.Write(out); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		conns.Wait()
	})
	return fmt.Sprintf("ldapserver=127.0.0.1 ldapport=%d ldapbasedn=x", ln.Addr().(*net.TCPAddr).Port)
}

// result is an LDAPResult with a code.
func result(id int64, tag ber.Tag, code int) []byte {
	p := ber.NewSequence("")
	p.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, id, ""))
	r := ber.Encode(ber.ClassApplication, ber.TypeConstructed, tag, nil, "")
	r.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagEnumerated, code, ""))
	r.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, "", ""))
	r.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, "said so", ""))
	p.AppendChild(r)
	return p.Bytes()
}

// found is a SearchResultEntry and the end of the search.
func found(id int64, dn string) []byte {
	p := ber.NewSequence("")
	p.AppendChild(ber.NewInteger(ber.ClassUniversal, ber.TypePrimitive, ber.TagInteger, id, ""))
	e := ber.Encode(ber.ClassApplication, ber.TypeConstructed, ldap.ApplicationSearchResultEntry, nil, "")
	e.AppendChild(ber.NewString(ber.ClassUniversal, ber.TypePrimitive, ber.TagOctetString, dn, ""))
	e.AppendChild(ber.NewSequence(""))
	p.AppendChild(e)
	return append(p.Bytes(), result(id, ldap.ApplicationSearchResultDone, 0)...)
}

// TestLDAPAnswers: what a directory says to the user's bind, and says wrong.
func TestLDAPAnswers(t *testing.T) {
	for _, tt := range []struct {
		name, dn string
		code     int
		garbage  string
		want     string
		says     string
	}{
		{"right", "cn=a", ldap.LDAPResultSuccess, "", "in", ""},
		{"wrong", "cn=a", ldap.LDAPResultInvalidCredentials, "", "no", ""},
		{"entry without a name", "", ldap.LDAPResultSuccess, "", "no", ""}, // which would be a bind as nobody
		{"no such entry", "cn=a", ldap.LDAPResultNoSuchObject, "", "no", ""},
		{"locked", "cn=a", ldap.LDAPResultUnwillingToPerform, "", "no", ""},
		{"somewhere else", "cn=a", ldap.LDAPResultReferral, "", "no", ""},
		{"an unknown code", "cn=a", 4711, "", "broken", ""},
		{"busy", "cn=a", ldap.LDAPResultBusy, "", "broken", ""},
		{"wants encryption", "cn=a", ldap.LDAPResultConfidentialityRequired, "", "broken", ""},
		{"garbage", "cn=a", 0, "\x30\x03\x02\x01\x02", "broken", ""},
		{"nothing but a header", "cn=a", 0, "\x30\x84\x7f\xff\xff\xff", "broken", "greater than maximum"},
		{"a long one", "cn=a", 0, "\x30\x84\x00\x20\x00\x00", "broken", "greater than maximum"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var binds atomic.Int32
			options := fakeDirectory(t, func(id int64, tag ber.Tag) []byte {
				switch {
				case tag == ldap.ApplicationSearchRequest:
					return found(id, tt.dn)
				case tag != ldap.ApplicationBindRequest:
					return nil
				case binds.Add(1) == 1:
					return result(id, ldap.ApplicationBindResponse, 0)
				case tt.garbage != "":
					return []byte(tt.garbage)
				}
				return result(id, ldap.ApplicationBindResponse, tt.code)
			})
			dir, err := ParseLDAP(options)
			if err != nil {
				t.Fatal(err)
			}
			a := New(config.AuthLDAP, nil, nil, nil).WithLDAP(dir)
			_, err = a.Authenticate(patience(t, 5*time.Second), &client{user: "alice", password: "secret"}, "alice", "app")
			if got := outcome(err); got != tt.want {
				t.Errorf("%s (%v), want %s", got, err, tt.want)
			}
			if tt.says != "" && !strings.Contains(fmt.Sprint(errors.Unwrap(err)), tt.says) {
				t.Errorf("%v, want %q", errors.Unwrap(err), tt.says)
			}
		})
	}
}

// TestLDAPSilent: a directory that does not answer holds up its own logins only, a
// bounded number at once, and no longer than they wait.
func TestLDAPSilent(t *testing.T) {
	const logins = 3 * maxLDAP
	var asked atomic.Int32
	full := make(chan struct{})
	began := time.Now()
	options := fakeDirectory(t, func(int64, ber.Tag) []byte {
		if asked.Add(1) == maxLDAP {
			close(full)
		}
		return nil
	})
	dir, err := ParseLDAP(options)
	if err != nil {
		t.Fatal(err)
	}
	a := New(config.AuthLDAP, nil, nil, nil).WithLDAP(dir)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var all sync.WaitGroup
	for range logins {
		all.Go(func() {
			if _, err := a.Authenticate(ctx, &client{user: "alice", password: "secret"}, "alice", "app"); outcome(err) != "broken" {
				t.Errorf("%v", err)
			}
		})
	}
	<-full
	if n := len(dir.slots); n != maxLDAP {
		t.Errorf("%d slots are taken, want %d", n, maxLDAP)
	}
	other := New(config.AuthSCRAM, users(t, "bob", "secret"), nil, nil)
	if _, err := try(t, other, &client{user: "bob", password: "secret"}); err != nil {
		t.Errorf("another's login meanwhile: %v", err)
	}
	if n := asked.Load(); n != maxLDAP && time.Since(began) < ldapPatience { // then others' turn comes
		t.Errorf("the directory was asked %d times at once, want %d", n, maxLDAP)
	}
	stop()
	all.Wait()
}

// TestLDAPGoesAway: a connection that ends is no answer.
func TestLDAPGoesAway(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() { // ends with the listener
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadAtLeast(conn, make([]byte, 100), 1)
			_ = conn.Close()
		}
	}()
	dir, err := ParseLDAP(fmt.Sprintf("ldapserver=127.0.0.1 ldapport=%d ldapsuffix=x", ln.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := try(t, New(config.AuthLDAP, nil, nil, nil).WithLDAP(dir), &client{user: "alice", password: "secret"}); outcome(err) != "broken" {
		t.Errorf("%v", err)
	}
}
