package auth

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgproxy/config"
)

var goodSCRAM = scramSecret("pw", "0123456789abcdef", 4096)

func TestUserlist(t *testing.T) {
	text := "\ufeff" + `; a comment
# another
  ; and one behind white space

"alice" "secret"
"bob"	"md5` + strings.Repeat("0a", 16) + `" "old" fields
   "carol"   "` + goodSCRAM + `"   ; the rest is nobody's
"quo""te" "a""b"
"nobody" ""
"tail" """"
"back\slash" "\"` + "\r\n" + `"md5er" "md5isbroken"
"last" "no line end"`
	u, err := ParseUserlist("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []struct {
		user, secret string
		kind         kind
	}{
		{"alice", "secret", kindPlain},
		{"back\\slash", `\`, kindPlain},
		{"bob", "md5" + strings.Repeat("0a", 16), kindMD5},
		{"carol", goodSCRAM, kindSCRAM},
		{"last", "no line end", kindPlain},
		{"md5er", "md5isbroken", kindPlain},
		{"nobody", "", kindNone},
		{`quo"te`, `a"b`, kindPlain},
		{"tail", `"`, kindPlain},
	}
	var names []string
	for _, w := range want {
		names = append(names, w.user)
		s, ok := u.Lookup(w.user)
		if !ok || s.Reveal() != w.secret {
			t.Errorf("%s: secret %q, known %t, want %q", w.user, s.Reveal(), ok, w.secret)
		}
		if e := u.entries(w.user); e != nil && e[0].kind != w.kind {
			t.Errorf("%s: kind %d, want %d", w.user, e[0].kind, w.kind)
		}
	}
	if got := u.Names(); !slices.Equal(got, names) {
		t.Errorf("names %q, want %q", got, names)
	}
	if _, ok := u.Lookup("ALICE"); ok {
		t.Error("names are not case-sensitive")
	}
}

func TestUserlistFaults(t *testing.T) {
	const canary = "c4n4ry"
	for _, tt := range []struct{ name, text, want string }{
		{"bare", `alice ` + canary, `f:1: want "user" "secret", both in double quotes`},
		{"second line", "\n" + `alice "` + canary + `"`, `f:2: want "user" "secret", both in double quotes`},
		{"user not closed", `"alice ` + canary, `f:1: the user name has no closing quote`},
		{"no secret", `"` + canary + `"`, `f:1: no secret behind the user name`},
		{"secret without quotes", `"alice" ` + canary, `f:1: no secret behind the user name`},
		{"secret not closed", `"alice" "` + canary, `f:1: the secret has no closing quote`},
		{"secret over two lines", `"alice" "` + canary + "\n" + `"`, `f:1: the secret has no closing quote`},
		{"quote not doubled at the end", `"alice" "` + canary + `""`, `f:1: the secret has no closing quote`},
		{"no user", `"" "` + canary + `"`, `f:1: the user name is empty`},
		{"NUL in the secret", `"alice" "` + canary + "\x00" + `"`, `f:1: a NUL byte`},
		{"NUL in the name", `"a` + "\x00" + `" "` + canary + `"`, `f:1: a NUL byte`},
		{"twice", `"alice" "` + canary + `"` + "\n\n" + `"alice" "` + canary + `"`, `f:3: user "alice" has this secret already in line 1`},
		{"one of two empty", `"alice" "` + canary + `"` + "\n" + `"alice" ""`, `f:2: user "alice" has several secrets, of which one is empty`},
		{"too many", `"alice" "` + strings.Join(strings.Split("123456789", ""), "\"\n\"alice\" \"") + `"`, `f:9: user "alice" has more than 8 secrets`},
		{"damaged SCRAM", `"alice" "SCRAM-SHA-256$4096:` + canary + `"`, `f:1: a damaged SCRAM secret: want SCRAM-SHA-256$ITERATIONS:`},
		{"MD5 in capitals", `"alice" "md5` + strings.Repeat("0A", 16) + `"`, `f:1: an md5 secret with capital letters`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, err := ParseUserlist("f", []byte(tt.text))
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
			if u != nil {
				t.Error("a userlist with the error")
			}
			if strings.Contains(err.Error(), canary) {
				t.Errorf("the error holds the secret: %v", err)
			}
			var ce *config.Error
			if !errors.As(err, &ce) || ce.Path != "f" || ce.Line == 0 {
				t.Errorf("no *config.Error with file and line: %#v", ce)
			}
		})
	}
}

func TestUserlistReportsSeveralFaults(t *testing.T) {
	_, err := ParseUserlist("f", []byte(strings.Repeat("wrong\n", 3)))
	if err == nil || strings.Count(err.Error(), "want") != 3 {
		t.Errorf("three faults: %v", err)
	}
	_, err = ParseUserlist("f", []byte(strings.Repeat("wrong\n", 1000)))
	if err == nil || strings.Count(err.Error(), "\n")+1 != maxFaults {
		t.Errorf("a thousand faults: %v", err)
	}
}

func TestLoadUserlist(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users.txt")
	_, err := LoadUserlist(path)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte(`"a" "b"`), 0o600); err != nil {
		t.Fatal(err)
	}
	u, err := LoadUserlist(path)
	if err != nil || !slices.Equal(u.Names(), []string{"a"}) {
		t.Errorf("%v, %v", u, err)
	}
}

func TestNoUserlist(t *testing.T) {
	for _, u := range []*Userlist{nil, {}} {
		if _, ok := u.Lookup("a"); ok || len(u.Names()) != 0 || !u.opens("a").Empty() {
			t.Errorf("%v has users", u)
		}
	}
}

func TestParseVerifier(t *testing.T) {
	v, err := ParseVerifier(config.Secret(goodSCRAM))
	if err != nil || v.iterations != 4096 || string(v.salt) != "0123456789abcdef" {
		t.Fatalf("%d, %q, %v", v.iterations, v.salt, err)
	}
	same, err := derive("pw", v.salt, v.iterations)
	if err != nil || !same.equal(v) || same.server != v.server {
		t.Errorf("derived another verifier: %v", err)
	}
	k := strings.Repeat("A", 43) + "="
	for _, s := range []string{
		"", "pw", "SCRAM-SHA-256", "SCRAM-SHA-256$", "scram-sha-256$4096:AAAA$" + k + ":" + k,
		"SCRAM-SHA-256$4096$" + k + ":" + k, "SCRAM-SHA-256$4096:AAAA$" + k, "SCRAM-SHA-256$4096:AAAA:" + k + ":" + k,
		"SCRAM-SHA-256$0:AAAA$" + k + ":" + k, "SCRAM-SHA-256$-1:AAAA$" + k + ":" + k, "SCRAM-SHA-256$+1:AAAA$" + k + ":" + k,
		"SCRAM-SHA-256$2147483648:AAAA$" + k + ":" + k, "SCRAM-SHA-256$x:AAAA$" + k + ":" + k,
		"SCRAM-SHA-256$1:$" + k + ":" + k, "SCRAM-SHA-256$1:A$" + k + ":" + k, "SCRAM-SHA-256$1:AA\nAA$" + k + ":" + k,
		"SCRAM-SHA-256$1:" + strings.Repeat("AAAA", maxSaltLen/3+1) + "$" + k + ":" + k,
		"SCRAM-SHA-256$1:AAAA$AAAA:" + k, "SCRAM-SHA-256$1:AAAA$" + k + ":AAAA", "SCRAM-SHA-256$1:AAAA$" + k + ":" + k + "x",
		"SCRAM-SHA-256$1:AAAA$" + k + ":" + k + ":" + k, "SCRAM-SHA-256$1:AAAA$" + strings.Repeat("A", 42) + "B=:" + k,
	} {
		if _, err := ParseVerifier(config.Secret(s)); err == nil {
			t.Errorf("accepted %q", s)
		} else if len(s) > 20 && strings.Contains(err.Error(), s[15:]) {
			t.Errorf("the error holds the secret: %v", err)
		}
	}
	if _, err := ParseVerifier(config.Secret("SCRAM-SHA-256$2147483647:AAAA$" + k + ":" + k)); err != nil {
		t.Errorf("the greatest count of iterations: %v", err)
	}
}

func FuzzUserlist(f *testing.F) {
	f.Add([]byte("\"alice\" \"secret\"\n; comment\n\n\"b\"\"ob\" \"" + goodSCRAM + "\" rest"))
	f.Add([]byte("\"a\" \"md5" + strings.Repeat("0a", 16) + "\"\r\n\"a\" \"\""))
	f.Add([]byte("\ufeff#\n\"\" \"x\"\n\"x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		u, err := ParseUserlist("f", text)
		if (u == nil) == (err == nil) {
			t.Fatalf("userlist %v with error %v", u, err)
		}
		if err != nil {
			return
		}
		// What was read can be written and read again.
		var pairs []string
		for _, name := range u.Names() {
			for _, e := range slices.Backward(u.entries(name)) {
				pairs = append(pairs, name, e.secret.Reveal())
			}
		}
		again := users(t, pairs...)
		if !slices.Equal(again.Names(), u.Names()) {
			t.Fatalf("users %q, again %q", u.Names(), again.Names())
		}
		for _, name := range u.Names() {
			if !slices.EqualFunc(u.entries(name), again.entries(name), func(a, b *entry) bool {
				return sameSecret(a.secret, b.secret) && a.kind == b.kind
			}) {
				t.Fatalf("user %q changed", name)
			}
		}
	})
}

func FuzzParseVerifier(f *testing.F) {
	f.Add(goodSCRAM)
	f.Add("SCRAM-SHA-256$1:AAAA$")
	f.Add("md5")
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseVerifier(config.Secret(s))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "a damaged SCRAM secret") {
				t.Fatalf("error %v", err)
			}
			return
		}
		if v.iterations < 1 || len(v.salt) == 0 || len(v.salt) > maxSaltLen || !v.equal(v) {
			t.Fatalf("%d iterations, %d bytes of salt", v.iterations, len(v.salt))
		}
	})
}
