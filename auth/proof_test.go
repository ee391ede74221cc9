package auth

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgproxy/config"
)

// TestProofSCRAM: the keys that a client has shown by its login open a server that
// has the same secret, bound to the channel or not, and no other.
func TestProofSCRAM(t *testing.T) {
	v, err := derive("secret", []byte("0123456789abcdef"), 4096)
	if err != nil {
		t.Fatal(err)
	}
	shown := scramServer{salt: v.salt, iterations: v.iterations, serverPart: "one"}
	c := &client{password: "secret", bare: "n=,r=client"}
	reply, err := shown.first("n,," + c.bare)
	if err != nil {
		t.Fatal(err)
	}
	msg, proof, err := shown.final(c.final(reply))
	if err != nil || !v.proves(msg, proof) {
		t.Fatal("the login fails", err)
	}
	p, ok := ProofOf(scramProof(v.clientKey(msg, proof), v.server))
	if !ok {
		t.Fatal("no proof")
	}
	other, err := derive("secret", []byte("another salt"), 4096)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		v       Verifier
		binding []byte
		lie     bool
		wrong   string
	}{
		{"same secret", v, nil, false, ""},
		{"bound", v, []byte("channel"), false, ""},
		{"another salt", other, nil, false, "wrong proof"},
		{"a server that does not know the secret", v, nil, true, "does not prove"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := scramServer{salt: tt.v.salt, iterations: tt.v.iterations, serverPart: "two", binding: tt.binding, plus: tt.binding != nil}
			x, ok := p.SCRAM(tt.binding, "nonce")
			if !ok || x.Mechanism() != map[bool]string{true: scramPlus, false: scramMechanism}[tt.binding != nil] {
				t.Fatalf("mechanism %s, %t", x.Mechanism(), ok)
			}
			err := func() error {
				first, err := srv.first(x.First())
				if err != nil {
					return err
				}
				final, err := x.Final(first)
				if err != nil {
					return err
				}
				msg, proof, err := srv.final(final)
				if err != nil {
					return err
				}
				if !tt.v.proves(msg, proof) {
					return errors.New("wrong proof")
				}
				signature := b64(tt.v.signature(msg))
				if tt.lie {
					signature = b64(make([]byte, 32))
				}
				return x.Verify("v=" + signature)
			}()
			if tt.wrong == "" && err != nil || tt.wrong != "" && (err == nil || !strings.Contains(err.Error(), tt.wrong)) {
				t.Errorf("found %v, want %q", err, tt.wrong)
			}
		})
	}
}

// TestProofHostile is S-11: what a server may send in place of its part.
func TestProofHostile(t *testing.T) {
	p, _ := ProofOf(scramProof([32]byte{1}, [32]byte{2}))
	for _, first := range []string{
		"", "r=nonce,s=AAAA,i=4096", "r=other,s=AAAA,i=4096", "r=nonceX,s=!,i=4096", "r=nonceX,s=AAAA,i=0", "r=nonceX,s=AAAA,i=-1",
		"r=nonceX,s=AAAA,i=2147483648", "r=nonceX,s=AAAA", "s=AAAA,r=nonceX,i=1", "r=nonce\x00,s=AAAA,i=1", "r=nonce" + strings.Repeat("x", 100_000) + ",s=AAAA,i=1", "e=other-error",
	} {
		x, _ := p.SCRAM(nil, "nonce")
		if final, err := x.Final(first); err == nil {
			t.Errorf("%.40q is answered with %q", first, final)
		}
		for _, final := range []string{"", "v=", "v=AAAA", "e=x", "v=" + b64(make([]byte, 32))} {
			if x.Verify(final) == nil {
				t.Errorf("%q is believed", final)
			}
		}
	}
	if s := fmt.Sprintf("%v %+v %#v %s", p, p, p, p); strings.Contains(s, "01") || strings.Contains(s, "[1") {
		t.Errorf("a proof prints as %s", s)
	}
	for _, s := range []config.Secret{"", "password", "\x00scram\x00zz", "\x00scram\x00abcd", "\x00other\x00"} {
		if _, ok := ProofOf(s); ok {
			t.Errorf("%q is a proof", s.Reveal())
		}
	}
}

// TestAskedSecret: users that the userlist does not have log in by what is found
// elsewhere; those that it has do not.
func TestAskedSecret(t *testing.T) {
	a := New(config.AuthSCRAM, users(t, "known", "of the list"), nil, nil)
	for _, tt := range []struct {
		name, user, password string
		secret               config.Secret
		err                  error
		ok                   bool
	}{
		{"SCRAM", "asked", "x", config.Secret(scramSecret("x", "0123456789abcdef", 4096)), nil, true},
		{"plain", "asked", "x", "x", nil, true},
		{"wrong", "asked", "y", "x", nil, false},
		{"md5", "asked", "x", config.Secret(md5Secret("asked", "x")), nil, false},
		{"nobody", "asked", "x", "", nil, false},
		{"in the list", "known", "of the list", "other", nil, true},
		{"in the list, with the other one", "known", "other", "other", nil, false},
		{"cannot be asked", "asked", "x", "", errors.New("no server"), false},
		{"damaged", "asked", "x", "SCRAM-SHA-256$broken", nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &client{user: tt.user, password: tt.password, secret: tt.secret, secretErr: tt.err}
			id, err := a.Authenticate(context.Background(), c, tt.user, "app")
			if (err == nil) != tt.ok || tt.ok && id.User != tt.user {
				t.Errorf("%+v, %v", id, err)
			}
			if !tt.ok && tt.err == nil && !errors.Is(err, ErrFailed) || tt.err != nil && !errors.Is(err, tt.err) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// FuzzSCRAMClient: a server that does not know the secret is never believed, whatever
// it says, and what we say stays short.
func FuzzSCRAMClient(f *testing.F) {
	f.Add("r=nonceX,s=AAAA,i=4096", "v=AAAA", false)
	f.Add("r=nonceX,s=AAAA,i=4096,x=y", "v="+b64(make([]byte, 32)), true)
	f.Add("r=other,s=,i=0", "e=other-error", false)
	f.Add("m=1,r=nonce", "", true)
	p, _ := ProofOf(scramProof([32]byte{1}, [32]byte{2}))
	f.Fuzz(func(t *testing.T, first, final string, bound bool) {
		var binding []byte
		if bound {
			binding = []byte("channel")
		}
		x, ok := p.SCRAM(binding, "nonce")
		if !ok {
			t.Fatal("no exchange")
		}
		answer, err := x.Final(first)
		if err == nil && (!strings.HasPrefix(first, "r=nonce") || len(answer) > 2*maxSASL) {
			t.Fatalf("%q is answered with %d bytes", first, len(answer))
		}
		if x.Verify(final) == nil {
			t.Fatalf("%q, %q is believed", first, final)
		}
	})
}
