package auth

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"pgproxy/config"
	"pgproxy/wire"
)

// TestRFC7677 is the example of RFC 7677, section 3.
func TestRFC7677(t *testing.T) {
	salt, _ := base64.StdEncoding.DecodeString("W22ZaJ0SNY7soEsUEjb6gQ==")
	v, err := derive("pencil", salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	s := scramServer{salt: v.salt, iterations: v.iterations, serverPart: "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"}
	got, err := s.first("n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
	if want := "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"; err != nil || got != want {
		t.Fatalf("server-first-message %q, %v\nwant %q", got, err, want)
	}
	msg, proof, err := s.final("c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
	if err != nil {
		t.Fatal(err)
	}
	if !v.proves(msg, proof) {
		t.Error("the proof is refused")
	}
	if got := base64.StdEncoding.EncodeToString(v.signature(msg)); got != "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=" {
		t.Errorf("server signature %s", got)
	}
	proof[31] ^= 1
	if v.proves(msg, proof) || v.proves(msg, proof[:31]) || v.proves(msg, nil) {
		t.Error("a wrong proof is accepted")
	}
}

// TestMalformed is S-10: whatever is wrong with the message, the login fails, for
// unknown users as for known ones and in the same words.
func TestMalformed(t *testing.T) {
	const nonce = "fyko+d2lbbFgONRv9qkxdawL"
	bare := "n=,r=" + nonce
	for _, tt := range []struct {
		name   string
		answer []byte
		code   string // of a *wire.Error; "" is ErrFailed
		reason string
	}{
		{"empty body", nil, "08P01", "invalid SASLInitialResponse"},
		{"password message", []byte("secret\x00"), "08P01", "invalid SASLInitialResponse"},
		{"mechanism unterminated", []byte("SCRAM-SHA-256"), "08P01", "invalid SASLInitialResponse"},
		{"no length", []byte("SCRAM-SHA-256\x00"), "08P01", "invalid SASLInitialResponse"},
		{"half a length", []byte("SCRAM-SHA-256\x00\x00\x00"), "08P01", "invalid SASLInitialResponse"},
		{"length -1 with data", saslInitial("SCRAM-SHA-256", -1, "n,,"), "08P01", "invalid SASLInitialResponse"},
		{"length -2", saslInitial("SCRAM-SHA-256", -2, "n,,"+bare), "08P01", "invalid SASLInitialResponse"},
		{"length 0x7fffffff", saslInitial("SCRAM-SHA-256", 0x7fffffff, "n,,"+bare), "08P01", "invalid SASLInitialResponse"},
		{"length too great", saslInitial("SCRAM-SHA-256", len(bare)+4, "n,,"+bare), "08P01", "invalid SASLInitialResponse"},
		{"length too small", saslInitial("SCRAM-SHA-256", len(bare)+2, "n,,"+bare), "08P01", "invalid SASLInitialResponse"},
		{"mechanism PLUS", saslInitial("SCRAM-SHA-256-PLUS", 3+len(bare), "n,,"+bare), "08P01", "invalid SASL authentication mechanism"},
		{"mechanism none", saslInitial("", 3+len(bare), "n,,"+bare), "08P01", "invalid SASL authentication mechanism"},
		{"empty", first(""), "", "message is empty"},
		{"1 MiB nonce", first("n,,n=,r=" + strings.Repeat("x", 1<<20)), "", "too long"},
		{"NUL", first("n,,n=\x00,r=" + nonce), "", "NUL byte"},
		{"NUL at the end", first("n,,n=,r=" + nonce + "\x00"), "", "NUL byte"},
		{"p=tls-unique", first("p=tls-unique,," + bare), "", "channel binding, but has not chosen it"},
		{"p=tls-server-end-point", first("p=tls-server-end-point,," + bare), "", "channel binding, but has not chosen it"},
		{"mechanism not offered", saslInitial("SCRAM-SHA-256-PLUS", len("p=tls-server-end-point,,"+bare), "p=tls-server-end-point,,"+bare), "08P01", "invalid SASL authentication mechanism"},
		{"no GS2 header", first(bare), "", "GS2 header"},
		{"GS2 flag alone", first("n"), "", "GS2 header"},
		{"GS2 half", first("n,"), "", "GS2 header"},
		{"GS2 unknown flag", first("x,," + bare), "", "GS2 header"},
		{"authorization identity", first("n,a=bob," + bare), "", "authorization identity"},
		{"nothing behind GS2", first("n,,"), "", "no user name"},
		{"comma behind GS2", first("n,,," + bare), "", "no user name"},
		{"mandatory extension", first("n,,m=x," + bare), "", "mandatory extension"},
		{"no user", first("n,,r=" + nonce), "", "no user name"},
		{"no nonce", first("n,,n=alice"), "", "no valid nonce"},
		{"empty nonce", first("n,,n=,r="), "", "no valid nonce"},
		{"blank in nonce", first("n,,n=,r=a b"), "", "no valid nonce"},
		{"8 bits in nonce", first("n,,n=,r=a\xff"), "", "no valid nonce"},
		{"extension without name", first("n,,n=,r=abc,"), "", "an extension"},
		{"extension with a digit", first("n,,n=,r=abc,1=x"), "", "an extension"},
	} {
		t.Run(tt.name, func(t *testing.T) { refuse(t, tt.answer, nil, tt.code, tt.reason) })
	}
}

// TestMalformedFinal is S-10 for the client-final-message.
func TestMalformedFinal(t *testing.T) {
	edit := func(old, new string) func(string) string {
		return func(s string) string {
			if !strings.Contains(s, old) {
				t.Errorf("no %q in %q", old, s)
			}
			return strings.Replace(s, old, new, 1)
		}
	}
	for _, tt := range []struct {
		name   string
		edit   func(string) string
		reason string
	}{
		{"empty", func(string) string { return "" }, "message is empty"},
		{"long", func(s string) string { return s + strings.Repeat("x", 1<<20) }, "too long"},
		{"NUL", func(s string) string { return s + "\x00" }, "NUL byte"},
		{"comma in front", func(s string) string { return "," + s }, "c= does not"},
		{"binding of y", edit("c=biws", "c=eSws"), "c= does not"},
		{"binding of a certificate", edit("c=biws", "c=cD10bHMtc2VydmVyLWVuZC1wb2ludCws"), "c= does not"},
		{"binding empty", edit("c=biws", "c="), "c= does not"},
		{"binding with a line end", edit("c=biws", "c=bi\nws"), "c= does not"},
		{"no binding", edit("c=biws,", ""), "c= does not"},
		{"wrong nonce", edit("r=fyko", "r=fyk0"), "r= does not"},
		{"longer nonce", edit(",p=", "x,p="), "r= does not"},
		{"no nonce", edit(",r=", ",x="), "r= does not"},
		{"no proof", func(s string) string { return s[:strings.Index(s, ",p=")] }, "no proof"},
		{"proof by another name", edit(",p=", ",P="), "no proof"},
		{"empty proof", func(s string) string { return s[:strings.Index(s, ",p=")+3] }, "the proof is not"},
		{"short proof", func(s string) string { return s[:strings.Index(s, ",p=")+3] + "AAAA" }, "the proof is not"},
		{"long proof", edit(",p=", ",p=AAAA"), "the proof is not"},
		{"proof not base64", edit(",p=", ",p=*"), "the proof is not"},
		{"proof with a line end", func(s string) string { return s + "\n" }, "the proof is not"},
		{"something behind the proof", func(s string) string { return s + ",x=y" }, "the proof is not"},
		{"comma behind the proof", func(s string) string { return s + "," }, "the proof is not"},
		{"signed without an extension", edit(",p=", ",x=y,p="), ""},
		{"other proof", func(s string) string {
			return s[:strings.Index(s, ",p=")+3] + base64.StdEncoding.EncodeToString(make([]byte, 32))
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) { refuse(t, nil, tt.edit, "", tt.reason) })
	}
}

// editor is a client whose client-final-message is edited.
type editor struct {
	*client
	edit func(string) string
}

func (e *editor) SendAuth(code uint32, payload []byte) error {
	err := e.client.SendAuth(code, payload)
	if e.edit != nil && wire.AuthCode(code) == wire.AuthSASLContinue {
		e.answer = []byte(e.edit(string(e.answer)))
	}
	return err
}

// refuse logs in with a right password and a malformed message, as a user of each
// kind of secret and an unknown one.
func refuse(t *testing.T, answer []byte, edit func(string) string, code, reason string) {
	t.Helper()
	u := users(t, "alice", goodSCRAM, "plain", "pw")
	a := New(config.AuthSCRAM, u, nil, nil)
	var told []string
	for _, user := range []string{"alice", "plain", "nobody"} {
		c := &client{user: user, password: "pw"}
		if answer != nil || edit == nil {
			c.script = [][]byte{answer}
		}
		id, err := a.Authenticate(t.Context(), &editor{c, edit}, user, "app")
		if err == nil || id != (Identity{}) || c.mutual {
			t.Fatalf("%s: let in as %v", user, id)
		}
		if !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: error %q, want %q", user, err, reason)
		}
		var e *wire.Error
		switch {
		case code == "" && (!errors.Is(err, ErrFailed) || errors.As(err, &e)):
			t.Errorf("%s: error %v, want ErrFailed", user, err)
		case code != "" && (!errors.As(err, &e) || e.Code != code || !e.Fatal() || errors.Is(err, ErrFailed)):
			t.Errorf("%s: error %v, want a *wire.Error %s", user, err, code)
		}
		if e != nil {
			told = append(told, string(e.Append(nil)))
		}
	}
	for _, s := range told {
		if s != told[0] {
			t.Errorf("users are told different things: %q", told)
		}
	}
}

// TestVariants are exchanges that are right though no common driver makes them.
func TestVariants(t *testing.T) {
	a := New(config.AuthSCRAM, users(t, "alice", goodSCRAM, "bob", "pw"), nil, nil)
	for _, tt := range []struct {
		name string
		c    client
	}{
		{"client-first-message when asked again", client{late: true}},
		{"y: the client could bind channels", client{gs2: "y,,"}},
		{"another user in the message (S-21)", client{scramUser: "bob"}},
		{"user with escapes", client{scramUser: "a=2Cb=3D"}},
	} {
		for _, user := range []string{"alice", "bob"} {
			c := tt.c
			c.user, c.password = user, "pw"
			id, err := try(t, a, &c)
			if err != nil || id.User != user || !c.mutual {
				t.Errorf("%s: %+v, %v, server proved itself: %t", tt.name, id, err, c.mutual)
			}
		}
	}
	// An extension that both sides sign.
	s := scramServer{salt: []byte("salt"), iterations: 1, serverPart: "S"}
	if _, err := s.first("n,,n=,r=C,x=y"); err != nil {
		t.Error(err)
	}
	msg, _, err := s.final("c=biws,r=CS,e=z,p=" + base64.StdEncoding.EncodeToString(make([]byte, 32)))
	if want := "n=,r=C,x=y,r=CS,s=c2FsdA==,i=1,c=biws,r=CS,e=z"; err != nil || msg != want {
		t.Errorf("authMessage %q, %v; want %q", msg, err, want)
	}
}

func TestNoncesDiffer(t *testing.T) {
	a := New(config.AuthSCRAM, users(t, "alice", goodSCRAM), nil, nil)
	seen := make(map[string]bool)
	for range 100 {
		c := &client{user: "alice", password: "pw"}
		if _, err := try(t, a, c); err != nil {
			t.Fatal(err)
		}
		nonce, _, _, _ := splitServerFirst(c.sent[1].payload)
		if seen[nonce] || len(nonce) != 24+24 {
			t.Fatalf("nonce %q", nonce)
		}
		seen[nonce] = true
	}
}

func FuzzSCRAMServer(f *testing.F) {
	f.Add([]byte("SCRAM-SHA-256\x00\x00\x00\x00\x0bn,,n=,r=abc"), []byte("c=biws,r=abc,p=AAAA"), true)
	f.Add([]byte("SCRAM-SHA-256\x00\xff\xff\xff\xff"), []byte("y,,n=x,r=abc"), false)
	f.Add([]byte("SCRAM-SHA-256-PLUS\x00\x7f\xff\xff\xffp=tls-unique,,"), []byte(""), false)
	f.Add(first("n,,m=1,n=,r=abc"), []byte("c=eSws,,,=,p="), true)
	u := users(f, "alice", goodSCRAM)
	a := New(config.AuthSCRAM, u, nil, nil)
	f.Fuzz(func(t *testing.T, initial, final []byte, nonce bool) {
		// An exchange through the package's door: nobody gets in by chance.
		c := &client{user: "alice", script: [][]byte{initial, final, final}}
		_, err := a.Authenticate(t.Context(), c, "alice", "app")
		var e *wire.Error
		if err == nil || (!errors.Is(err, ErrFailed) && !errors.As(err, &e)) {
			t.Fatalf("error %v", err)
		}
		for _, m := range c.sent {
			if len(m.payload) > 2*maxSASL {
				t.Fatalf("an answer of %d bytes", len(m.payload))
			}
		}
		// And the messages by themselves, with the nonce known.
		s := scramServer{salt: []byte("salt"), iterations: 1, serverPart: "S"}
		if _, err := s.first(string(initial)); err != nil {
			return
		}
		text := string(final)
		if nonce {
			text = "c=" + base64.StdEncoding.EncodeToString([]byte(s.gs2)) + ",r=" + s.nonce + text
		}
		msg, proof, err := s.final(text)
		if err == nil && (len(proof) != 32 || !strings.HasPrefix(msg, s.clientFirst+","+s.serverFirst+",c=")) {
			t.Fatalf("authMessage %q, %d bytes of proof", msg, len(proof))
		}
	})
}

// TestChannelBinding: with TLS the exchange is bound to the channel if the client
// chooses so, and nobody can talk it out of that.
func TestChannelBinding(t *testing.T) {
	salt := []byte("0123456789abcdef")
	v, err := derive("secret", salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	own, other := []byte("hash of our certificate"), []byte("hash of another's")
	for _, tt := range []struct {
		name    string
		offered bool // we have a certificate
		plus    bool // the mechanism that the client has chosen
		gs2     string
		bound   []byte
		wrong   string // of first or final; "": fine
	}{
		{"bound", true, true, "p=tls-server-end-point,,", own, ""},
		{"not bound", true, false, "n,,", nil, ""},
		{"no TLS, the client could", false, false, "y,,", nil, ""},
		{"to another channel", true, true, "p=tls-server-end-point,,", other, "another channel"},
		{"to none", true, true, "p=tls-server-end-point,,", nil, "another channel"},
		{"another type", true, true, "p=tls-unique,,", own, "another type"},
		{"chosen, not asked for", true, true, "n,,", nil, "does not ask for it"},
		{"asked for, not chosen", true, false, "p=tls-server-end-point,,", own, "has not chosen it"},
		{"offer taken away", true, false, "y,,", nil, "believes that channel binding was not offered"},
		{"bound without being asked", true, false, "n,,", own, "another channel"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := scramServer{salt: salt, iterations: 4096, serverPart: "server", plus: tt.plus}
			if tt.offered {
				s.binding = own
			}
			reply, err := s.first(tt.gs2 + "n=,r=client")
			if err == nil {
				c := &client{password: "secret", bare: "n=,r=client", gs2: tt.gs2 + string(tt.bound)}
				msg, proof, ferr := s.final(c.final(reply))
				if err = ferr; err == nil && !v.proves(msg, proof) {
					err = errors.New("wrong proof")
				}
			}
			if tt.wrong == "" && err != nil || tt.wrong != "" && (err == nil || !strings.Contains(err.Error(), tt.wrong)) {
				t.Errorf("found %v, want %q", err, tt.wrong)
			}
		})
	}
}
