package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const database = "[databases.app]\nhost = \"db1\"\nuser = \"app\"\n"

func TestParseRefusesBytes(t *testing.T) {
	for _, tt := range []struct {
		name, text, want string
	}{
		{"utf8", "# a\n# b\xff\n" + database, "f.toml:2: a byte that is no UTF-8: want a text in UTF-8"},
		{"utf16", "\xff\xfe[\x00", "f.toml:1: a byte that is no UTF-8: want a text in UTF-8"},
		{"nul", "# a\n\n\x00" + database, "f.toml:3: a control character: want plain text"},
		{"control first in its line", database + "\n\x1b", "f.toml:5: a control character: want plain text"},
		{"delete", "\x7f", "f.toml:1: a control character: want plain text"},
		{"lone carriage return", "# a\n# b\rc\n", "f.toml:2: a control character: want plain text"},
		{"carriage return at the end", "# a\n# b\r", "f.toml:2: a control character: want plain text"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f.toml", []byte(tt.text))
			if err == nil || err.Error() != tt.want {
				t.Errorf("found %v, want %s", err, tt.want)
			}
		})
	}
}

// TestParseSyntaxLines has the places where the toml package gives another line.
func TestParseSyntaxLines(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		line       int
	}{
		{"string open at the end", "a = 1\nb = \"x", 2},
		{"escape at the end", "a = \"\\", 1},
		{"escaped end of line", "a = 1\nb = \"x\\\n\"\n", 2},
		{"string open, CRLF", "a = 1\r\nb = \"x\r\nc = 1\r\n", 2},
		{"raw string open, CRLF", "a = 1\r\nb = 'x\r\nc = 1\r\n", 2},
		{"no value, CRLF", "a = 1\r\nb =\r\nc = 1\r\n", 2},
		{"no value", "a = 1\nb =\nc = 1\n", 2},
		{"sign alone", "a = -\nb = 1\n", 1},
		{"header open", "\n[a\nb = 1\n", 2},
		{"array header open", "\n[[a]\nb = 1\n", 2},
		{"array open", "a = [1,\n2\n", 2},
		{"byte order mark", "\ufeffa = 1\nb = x\n", 2},
		{"long string", "a = \"\"\"\n\n\\q\"\"\"\n", 1},
		{"key twice in a table", "a = { b = 1,\n  c = 2,\n  b = 3 }\n", 3},
		{"header twice", "[a]\n[b]\n\n[a]\n", 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f.toml", []byte(tt.text))
			e, ok := errors.AsType[*Error](err)
			if !ok || e.Line != tt.line || e.Key != "" {
				t.Errorf("found %v, want line %d", err, tt.line)
			}
		})
	}
}

func TestParseByteOrderMarkAndCRLF(t *testing.T) {
	text := "\ufeff" + strings.ReplaceAll(database, "\n", "\r\n")
	cfg, err := Parse("f.toml", []byte(text))
	if err != nil || cfg.Databases["app"] == nil {
		t.Errorf("found %v, %v", cfg, err)
	}
}

func TestPasswordFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "secret.txt")
	for _, tt := range []struct {
		name, text string
		want       string // the password, or the end of the error
		ok         bool
	}{
		{"plain", "canary", "canary", true},
		{"one end of line", "canary\n", "canary", true},
		{"CRLF", "canary\r\n", "canary", true},
		{"spaces stay", " canary \n", " canary ", true},
		{"two ends of line", "canary\n\n", "want the password alone", false},
		{"carriage return alone", "canary\r", "want the password alone", false},
		{"nul", "can\x00ary", "want the password alone", false},
		{"nothing", "", "want the password in it", false},
		{"longest", strings.Repeat("c", maxPasswordFile), strings.Repeat("c", maxPasswordFile), true},
		{"too long", strings.Repeat("canary", maxPasswordFile/6+1), "the file is longer than 65536 bytes", false},
	} {
		for _, name := range []string{"secret.txt", file} {
			t.Run(tt.name, func(t *testing.T) {
				if err := os.WriteFile(file, []byte(tt.text), 0o600); err != nil {
					t.Fatal(err)
				}
				cfg, err := Parse(filepath.Join(dir, "f.toml"), []byte(database+fmt.Sprintf("password_file = %q\n", name)))
				switch {
				case tt.ok && err != nil:
					t.Error(err)
				case tt.ok && cfg.Databases["app"].Password.Reveal() != tt.want:
					t.Errorf("the password is %q", cfg.Databases["app"].Password.Reveal())
				case !tt.ok && (err == nil || !strings.HasSuffix(err.Error(), tt.want) || strings.Contains(err.Error(), "canary")):
					t.Errorf("found %v, want %s", err, tt.want)
				}
			})
		}
	}
}

func TestAuthFileIsRelativeToTheFile(t *testing.T) {
	for _, tt := range []struct{ path, file, want string }{
		{"/etc/pgproxy/pgproxy.toml", "userlist.txt", "/etc/pgproxy/userlist.txt"},
		{"etc/pgproxy.toml", "users/list.txt", "etc/users/list.txt"},
		{"pgproxy.toml", "userlist.txt", "userlist.txt"},
		{"etc/pgproxy.toml", "/var/list.txt", "/var/list.txt"},
	} {
		cfg, err := Parse(tt.path, fmt.Appendf(nil, "[proxy]\nauth_file = %q\n%s", tt.file, database))
		if err != nil {
			t.Error(err)
		} else if cfg.Proxy.AuthFile != tt.want {
			t.Errorf("%s from %s is %s, want %s", tt.file, tt.path, cfg.Proxy.AuthFile, tt.want)
		}
	}
	cfg, err := Parse("etc/pgproxy.toml", []byte("[proxy]\nauth_type = \"any\"\nauth_file = \"\"\n"+database))
	if err != nil || cfg.Proxy.AuthFile != "" {
		t.Errorf("no auth_file is %v, %v", cfg, err)
	}
}

// TestWildcard: what "*" gives depends on whether it has a dbname of its own.
func TestWildcard(t *testing.T) {
	const wild = "[databases.\"*\"]\nhost = \"db1\"\nuser = \"app\"\n"
	for _, tt := range []struct{ text, ask, want string }{
		{wild, "shop", "shop"},
		{wild + "dbname = \"postgres\"\n", "shop", "postgres"},
		{wild + "dbname = \"fixed\"\n", "shop", "fixed"},
		{wild + database, "app", "app"},
		{database, "shop", ""},
		{wild, "*", ""},
	} {
		cfg, err := Parse("f.toml", []byte(tt.text))
		if err != nil {
			t.Fatal(err)
		}
		db, ok := cfg.Database(tt.ask)
		if ok != (tt.want != "") || ok && db.DBName != tt.want {
			t.Errorf("%q in\n%s gives %+v, want %q", tt.ask, tt.text, db, tt.want)
		}
	}
}

// TestLoad: a file that is not there is no *Error, as no line is to blame.
func TestLoad(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none.toml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("found %v", err)
	}
}
