package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"pgproxy/config"
	"pgproxy/wire"
)

// allTypes are the ways to log in.
var allTypes = []config.AuthType{config.AuthSCRAM, config.AuthMD5, config.AuthPlain, config.AuthTrust, config.AuthAny}

// TestMatrix is S-14: a login depends on the client, its credentials and the
// configuration. The same rows hold cold, warm and after Reload.
func TestMatrix(t *testing.T) {
	const right = "pässword" // other bytes for SCRAM than for the rest, if prepared badly
	u := users(t, "plain", right, "hash", md5Secret("hash", right), "scram", scramSecret(right, "0123456789abcdef", 4096), "none", "")
	reason := map[string]string{
		"plain": "wrong password", "hash": "wrong password", "scram": "wrong password",
		"none": "empty secret", "nobody": "is not in the auth_file",
	}
	for _, typ := range allTypes {
		t.Run(typ.String(), func(t *testing.T) {
			a := New(typ, u, nil, nil)
			for round, auth := range []*Authenticator{a, a, a.Reload(typ, u, nil, nil), a} {
				for user, why := range reason {
					for _, password := range []string{right, "wrong", right + "x", ""} {
						c := &client{user: user, password: password}
						id, err := try(t, auth, c)
						name := fmt.Sprintf("round %d, user %s, password %q", round, user, password)

						ok := password == right && user != "none" && user != "nobody"
						plain := ""
						switch typ {
						case config.AuthAny:
							ok = true
						case config.AuthTrust:
							ok = user != "nobody"
							why = "is not in the auth_file"
						case config.AuthSCRAM:
							ok = ok && user != "hash"
							if user == "hash" {
								why = "has an md5 secret"
							}
						case config.AuthPlain:
							plain = right
						}
						if user == "plain" && typ != config.AuthAny {
							plain = right
						}
						got := id.Opens.Reveal()
						if proof, ok := ProofOf(id.Opens); ok {
							// What was shown: hash or keys, of users whose secret is such a one.
							_, isHash := proof.MD5(nil)
							if plain != "" || user != "hash" && user != "scram" || isHash != (user == "hash") {
								t.Errorf("%s: an unexpected proof", name)
							}
							got = ""
						}
						if !ok {
							want := why
							if password == "" && (typ == config.AuthPlain) {
								want = "empty password"
							}
							if !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), want) || id != (Identity{}) {
								t.Errorf("%s: %+v, %v; want a refusal for %q", name, id, err, want)
							}
							continue
						}
						if err != nil || id.User != user || got != plain || id.claimed != (typ == config.AuthAny) {
							t.Errorf("%s: %+v with %q, %v; want %q", name, id, got, err, plain)
						}
					}
				}
			}
		})
	}
}

// trace tells types and lengths of what was sent.
func (c *client) trace() string {
	var b strings.Builder
	for _, m := range c.sent {
		fmt.Fprintf(&b, "%d/%d ", m.code, len(m.payload))
		if m.code == wire.AuthSASLContinue {
			_, salt, iterations, _ := splitServerFirst(m.payload)
			fmt.Fprintf(&b, "(salt %d, i=%d) ", len(salt), iterations)
		}
	}
	return b.String()
}

// TestUnknownLooksLikeWrongPassword is S-19.
func TestUnknownLooksLikeWrongPassword(t *testing.T) {
	lists := map[string]*Userlist{
		"plain":       users(t, "alice", "right", "none", ""),
		"md5":         users(t, "alice", md5Secret("alice", "right"), "none", ""),
		"SCRAM":       users(t, "alice", scramSecret("right", "0123456789abcdef", 4096), "none", ""),
		"dear SCRAM":  users(t, "alice", scramSecret("right", strings.Repeat("s", 70), 5000), "none", ""),
		"most SCRAM":  users(t, "alice", scramSecret("right", "0123456789", 4100), "b", scramSecret("x", "9876543210", 4100), "c", "x", "none", ""),
		"most plain":  users(t, "alice", "right", "b", "x", "c", goodSCRAM, "none", ""),
		"equal parts": users(t, "alice", goodSCRAM, "c", md5Secret("c", "x"), "none", ""),
	}
	for name, u := range lists {
		for _, typ := range []config.AuthType{config.AuthSCRAM, config.AuthMD5, config.AuthPlain} {
			a := New(typ, u, nil, nil)
			for _, password := range []string{"wrong", ""} {
				var traces, told []string
				for _, user := range []string{"alice", "nobody", "none", "alice", "nobody"} {
					c := &client{user: user, password: password}
					_, err := try(t, a, c)
					if !errors.Is(err, ErrFailed) {
						t.Fatalf("%s, %v: user %s: %v", name, typ, user, err)
					}
					var e *wire.Error
					traces, told = append(traces, c.trace()), append(told, fmt.Sprint(errors.As(err, &e)))
				}
				for i := range traces {
					if traces[i] != traces[0] || told[i] != told[0] {
						t.Errorf("%s, %v, password %q: exchanges %q, *wire.Error %q", name, typ, password, traces, told)
						break
					}
				}
			}
		}
	}
}

// TestSaltIsStable: an unknown user is shown one salt for as long as the process
// runs, as a known one is.
func TestSaltIsStable(t *testing.T) {
	salt := func(a *Authenticator, user string) string {
		c := &client{user: user, password: "x"}
		if _, err := try(t, a, c); !errors.Is(err, ErrFailed) {
			t.Fatal(err)
		}
		_, s, _, _ := splitServerFirst(c.sent[1].payload)
		return string(s)
	}
	u := users(t, "plain", "pw", "scram", goodSCRAM)
	a := New(config.AuthSCRAM, u, nil, nil)
	b := a.Reload(config.AuthSCRAM, users(t, "plain", "other", "scram", goodSCRAM, "more", "pw"), nil, nil)
	seen := make(map[string]string)
	for _, user := range []string{"nobody", "noone", "plain", "scram"} {
		s := salt(a, user)
		if other := seen[s]; other != "" {
			t.Errorf("%s and %s have the same salt", user, other)
		}
		seen[s] = user
		if salt(a, user) != s || salt(b, user) != s {
			t.Errorf("%s: the salt changes", user)
		}
	}
	// Who becomes known or unknown keeps the salt, too.
	if salt(a, "more") != salt(b, "more") {
		t.Error("the salt tells who has been added")
	}
	if salt(New(config.AuthSCRAM, u, nil, nil), "nobody") == salt(a, "nobody") {
		t.Error("the salt of an unknown user is the same in another process")
	}
}

// TestNoUserGetsInByMock: nobody knows a password for what is made up.
func TestNoUserGetsInByMock(t *testing.T) {
	a := New(config.AuthSCRAM, nil, nil, nil)
	v := a.mock("nobody", a.usual.scram)
	if v.iterations != defaultIterations || len(v.salt) != defaultSaltLen || v.stored == v.server {
		t.Errorf("%d iterations, %d bytes of salt", v.iterations, len(v.salt))
	}
	if w := a.mock("noone", a.usual.scram); w.equal(v) {
		t.Error("two users with one mock")
	}
	for _, typ := range allTypes {
		_, err := try(t, New(typ, nil, nil, nil), &client{user: "nobody"})
		if (err == nil) != (typ == config.AuthAny) {
			t.Errorf("%v without a userlist: %v", typ, err)
		}
	}
	if _, err := try(t, New(99, users(t, "a", "b"), nil, nil), &client{user: "a", password: "b"}); !errors.Is(err, ErrFailed) {
		t.Errorf("an auth_type that does not exist: %v", err)
	}
}

func TestConsoleRights(t *testing.T) {
	u := users(t, "admin", "pw", "stats", "pw", "both", "pw", "alice", "pw")
	admins, stats := []string{"admin", "both"}, []string{"stats", "both"}
	for _, typ := range allTypes {
		a := New(typ, u, admins, stats)
		for user, want := range map[string][2]bool{
			"admin": {true, true}, "stats": {false, true}, "both": {true, true}, "alice": {false, false},
		} {
			id, err := a.Authenticate(t.Context(), &client{user: user, password: "pw"}, user, "pgproxy")
			if err != nil || id.Admin != want[0] || id.Stats != (want[1] || typ == config.AuthAny) {
				t.Errorf("%v: %s is %+v, %v", typ, user, id, err)
			}
			if typ == config.AuthTrust || typ == config.AuthAny {
				continue
			}
			// S-18: no rights by a wrong password or none.
			for _, password := range []string{"x", ""} {
				if id, err := a.Authenticate(t.Context(), &client{user: user, password: password}, user, "pgproxy"); err == nil || id.Admin || id.Stats {
					t.Errorf("%v: %s with password %q is %+v", typ, user, password, id)
				}
			}
		}
	}
	admins[0], stats[0] = "alice", "alice"
	a := New(config.AuthTrust, u, admins, stats)
	admins[0] = "nobody"
	if id, err := try(t, a, &client{user: "alice"}); err != nil || !id.Admin {
		t.Errorf("the lists are not copied: %+v, %v", id, err)
	}
}

func TestReloadKeepsWhatWasDerived(t *testing.T) {
	a := New(config.AuthSCRAM, users(t, "same", "pw", "changed", "old", "gone", "pw", "hash", "x"), nil, nil)
	for _, c := range []client{{user: "same", password: "pw"}, {user: "changed", password: "old"}, {user: "gone", password: "pw"}} {
		if _, err := try(t, a, &c); err != nil {
			t.Fatal(err)
		}
	}
	of := func(a *Authenticator, user string) (v *Verifier) {
		for _, v = range a.accounts[user].secrets[0].derived {
		}
		return v
	}
	derived := of(a, "same")
	if derived == nil {
		t.Fatal("nothing was derived")
	}
	b := a.Reload(config.AuthSCRAM, users(t, "same", "pw", "changed", "new", "hash", md5Secret("hash", "x"), "added", "pw"), []string{"same"}, nil)
	if of(b, "same") != derived {
		t.Error("an unchanged secret is derived again")
	}
	if of(b, "changed") != nil || of(b, "added") != nil {
		t.Error("a changed secret is not derived again")
	}
	for _, tt := range []struct {
		a              *Authenticator
		user, password string
		ok             bool
	}{
		{b, "same", "pw", true},
		{b, "changed", "old", false},
		{b, "changed", "new", true},
		{b, "gone", "pw", false},
		{b, "added", "pw", true},
		{b, "hash", "x", false},
		{a, "changed", "old", true},
		{a, "changed", "new", false},
		{a, "gone", "pw", true},
		{a, "added", "pw", false},
	} {
		id, err := try(t, tt.a, &client{user: tt.user, password: tt.password})
		if (err == nil) != tt.ok || id.Admin != (tt.ok && tt.a == b && tt.user == "same") {
			t.Errorf("%s with %q: %+v, %v", tt.user, tt.password, id, err)
		}
	}
}

// TestWaitForAProcessor: what is dear waits for its turn and no longer than ctx.
func TestWaitForAProcessor(t *testing.T) {
	u := users(t, "plain", "pw", "scram", goodSCRAM)
	for _, typ := range []config.AuthType{config.AuthSCRAM, config.AuthPlain} {
		a := New(typ, u, nil, nil)
		user := map[config.AuthType]string{config.AuthSCRAM: "plain", config.AuthPlain: "scram"}[typ]
		for range cap(a.slots) {
			a.slots <- struct{}{}
		}
		cause := errors.New("the proxy ends")
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error)
		go func() { // ends with ctx; done waits for it
			_, err := a.Authenticate(ctx, &client{user: user, password: "pw"}, user, "app")
			done <- err
		}()
		cancel(cause)
		if err := <-done; !errors.Is(err, cause) || errors.Is(err, ErrFailed) {
			t.Errorf("%v: %v", typ, err)
		}
		go func() { // ends when a slot is free; done waits for it
			_, err := a.Authenticate(t.Context(), &client{user: user, password: "pw"}, user, "app")
			done <- err
		}()
		<-a.slots
		if err := <-done; err != nil {
			t.Errorf("%v: %v", typ, err)
		}
		if len(a.slots) != cap(a.slots)-1 {
			t.Errorf("%v: %d slots are taken, want %d", typ, len(a.slots), cap(a.slots)-1)
		}
	}
}

func TestPasswordPackets(t *testing.T) {
	u := users(t, "alice", "pw")
	for _, tt := range []struct {
		name, body string
		code       string // of a *wire.Error; "" is ErrFailed
	}{
		{"no body", "", "08P01"},
		{"no terminator", "pw", "08P01"},
		{"two strings", "pw\x00pw\x00", "08P01"},
		{"NUL and more", "pw\x00\x00", "08P01"},
		{"a SASL message", string(first("n,,n=,r=abc")), "08P01"},
		{"empty password", "\x00", ""},
		{"wrong password", "x\x00", ""},
		{"64 KiB", strings.Repeat("x", 64<<10) + "\x00", ""},
		{"MD5 of nothing", "md5\x00", ""},
	} {
		for _, typ := range []config.AuthType{config.AuthPlain, config.AuthMD5} {
			for _, user := range []string{"alice", "nobody"} {
				_, err := try(t, New(typ, u, nil, nil), &client{user: user, script: [][]byte{[]byte(tt.body)}})
				var e *wire.Error
				if isWire := errors.As(err, &e); isWire != (tt.code != "") || isWire && e.Code != tt.code || !isWire && !errors.Is(err, ErrFailed) {
					t.Errorf("%v, %s, user %s: %v", typ, tt.name, user, err)
				}
			}
		}
	}
}

// broken is a Conn that fails after some calls.
type broken struct {
	*client
	calls int
}

func (b *broken) SendAuth(code uint32, payload []byte) error {
	if b.calls--; b.calls < 0 {
		return io.ErrClosedPipe
	}
	return b.client.SendAuth(code, payload)
}

func (b *broken) ReadPassword() ([]byte, error) {
	if b.calls--; b.calls < 0 {
		return nil, io.EOF
	}
	return b.client.ReadPassword()
}

// TestConnErrors: errors of the connection come back as they are, and nobody is
// in when the last message could not be sent.
func TestConnErrors(t *testing.T) {
	u := users(t, "alice", "pw", "scram", goodSCRAM)
	for _, typ := range []config.AuthType{config.AuthPlain, config.AuthMD5, config.AuthSCRAM} {
		for _, user := range []string{"alice", "scram"} {
			for _, late := range []bool{false, true} {
				a := New(typ, u, nil, nil)
				for calls := 0; ; calls++ {
					c := &client{user: user, password: "pw", late: late}
					id, err := a.Authenticate(t.Context(), &broken{c, calls}, user, "app")
					if err == nil {
						break
					}
					if s := err.Error(); s != io.EOF.Error() && s != io.ErrClosedPipe.Error() || id != (Identity{}) {
						t.Errorf("%v, user %s, %d calls: %v", typ, user, calls, err)
						break
					}
				}
			}
		}
	}
}

// TestSecretsNeverAppear is S-16.
func TestSecretsNeverAppear(t *testing.T) {
	const canary, tried = "c4n4ry-secret", "tr13d-secret"
	scram, hash := scramSecret(canary, "0123456789abcdef", 4096), md5Secret("hash", canary)
	u := users(t, "plain", canary, "hash", hash, "scram", scram, "none", "")
	v, err := ParseVerifier(config.Secret(scram))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	show := func(things ...any) {
		for _, x := range things {
			fmt.Fprintf(&out, "%v %+v %#v %s %q %x %d\n", x, x, x, x, x, x, x)
			for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
				slog.New(h).Info("test", "thing", x, "error", x)
			}
		}
	}
	for _, typ := range allTypes {
		a := New(typ, u, []string{"plain"}, nil)
		for _, user := range []string{"plain", "hash", "scram", "none", "nobody"} {
			for _, c := range []*client{
				{user: user, password: canary},
				{user: user, password: tried},
				{user: user, password: ""},
				{user: user, script: [][]byte{[]byte(tried)}},
				{user: user, password: canary, script: [][]byte{first("n,,n=" + tried + ",r=" + tried + ",")}},
			} {
				id, err := try(t, a, c)
				show(id, &id, err)
				user, p, err := ServerPassword(id, &config.Database{Name: "app"}, u)
				show(user, p, err)
			}
		}
		show(a, a.Reload(typ, u, nil, nil).accounts["scram"].secrets[0], u.entries("plain")[0])
	}
	show(u, v, &v)
	salted := fmt.Sprintf("%d", v.stored[:])
	for _, s := range []string{canary, tried, scram, hash, hash[3:], strings.Split(scram, "$")[2], fmt.Sprintf("%x", canary), fmt.Sprintf("%x", tried), salted[1 : len(salted)-1]} {
		if i := strings.Index(out.String(), s); i >= 0 {
			t.Errorf("%q appears: %.200q", s, out.String()[max(0, i-50):])
		}
	}
}

// TestConcurrentLogins is for the race detector: many logins and reloads at once.
func TestConcurrentLogins(t *testing.T) {
	u := users(t, "plain", "pw", "scram", goodSCRAM)
	a := New(config.AuthSCRAM, u, nil, nil)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			b := a
			if i%4 == 0 {
				b = a.Reload(config.AuthSCRAM, u, nil, nil)
			}
			for _, user := range []string{"plain", "scram", "nobody"} {
				_, err := b.Authenticate(t.Context(), &client{user: user, password: "pw"}, user, "app")
				if (err == nil) != (user != "nobody") {
					t.Errorf("%s: %v", user, err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(a.accounts["plain"].secrets[0].derived); n != 1 || len(a.slots) != 0 {
		t.Errorf("derived: %d, slots taken: %d", n, len(a.slots))
	}
}

// TestRefusalsWorkAlike: with plain, a SCRAM secret makes a refusal dear, so all
// refusals are; it shows when no processor is to be had.
func TestRefusalsWorkAlike(t *testing.T) {
	cause := errors.New("no processor")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	dear := New(config.AuthPlain, users(t, "scram", goodSCRAM, "plain", "x", "hash", md5Secret("hash", "x"), "none", ""), nil, nil)
	cheap := New(config.AuthPlain, users(t, "plain", "x", "hash", md5Secret("hash", "x"), "none", ""), nil, nil)
	for _, user := range []string{"scram", "plain", "hash", "none", "nobody"} {
		if _, err := dear.Authenticate(ctx, &client{user: user, password: "wrong"}, user, "app"); !errors.Is(err, cause) {
			t.Errorf("%s beside a SCRAM secret: %v", user, err)
		}
		if _, err := cheap.Authenticate(ctx, &client{user: user, password: "wrong"}, user, "app"); !errors.Is(err, ErrFailed) {
			t.Errorf("%s: %v", user, err)
		}
	}
	if _, err := dear.Authenticate(ctx, &client{user: "plain", password: "x"}, "plain", "app"); err != nil {
		t.Errorf("a right password: %v", err)
	}
}

// TestStormDerivesNothing: with SCRAM a login costs no PBKDF2, whether the password
// is right or wrong: that of a plain secret is done once for each user. It shows when
// no processor is to be had.
func TestStormDerivesNothing(t *testing.T) {
	a := New(config.AuthSCRAM, users(t, "plain", "pw", "scram", scramSecret("pw", "0123456789abcdef", 4096)), nil, nil)
	if _, err := try(t, a, &client{user: "plain", password: "pw"}); err != nil {
		t.Fatal(err)
	}
	for range cap(a.slots) {
		a.slots <- struct{}{}
	}
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			user, password := []string{"plain", "scram", "nobody"}[i%3], []string{"pw", "wrong"}[i%2]
			_, err := try(t, a, &client{user: user, password: password})
			if want := password == "pw" && user != "nobody"; (err == nil) != want || err != nil && !errors.Is(err, ErrFailed) {
				t.Errorf("%s with %s: %v", user, password, err)
			}
		})
	}
	all.Wait()
}
