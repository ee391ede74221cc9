package config

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// canaryLine is a line whose password must not come out of a file that is no TOML.
var canaryLine = regexp.MustCompile(`(?m)^[ \t]*(monitor_)?password[ \t]*=.*canary`)

// FuzzParse: no text makes Parse panic, every error is one line within the file,
// and no password is in an error or a warning.
func FuzzParse(f *testing.F) {
	f.Add([]byte("[proxy]\nmonitor_user = \"w\"\nmonitor_password = \"canary\"\n[databases.a]\nhost = \"a\"\npool_sizes = 1\n"))
	f.Add([]byte("[databases.a]\nhost = 1\npassword = \"canary\"\nmonitor_password = 5\n"))
	f.Add([]byte("[databases.a]\nuser = \"u\"\npassword = canary\n"))
	f.Add([]byte("log_level = \"\"\"\n[databases.a]\npassword = \"canary\"\n\"\"\"\n"))
	f.Add([]byte("[proxy]\nlisten_addr = [\"a\", \"\"\"\n\"\"\"]\nauth_type = \"any\"\n"))
	f.Add([]byte("\ufeff[databases.\"*\"]\r\nservers = [\r\n{ host = \"a\", role = \"primary\" } ]\r\n"))
	if text, err := os.ReadFile("../pgproxy.toml.example"); err == nil {
		f.Add(text)
	}
	paths, _ := filepath.Glob(filepath.Join("testdata", "*.txt"))
	for _, path := range paths {
		if text, err := os.ReadFile(path); err == nil {
			input, _, _ := bytes.Cut(text, []byte("\n-- "))
			f.Add(bytes.ReplaceAll(input, []byte("-secret"), []byte("-canary")))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join("testdata", "none.toml")
		given := bytes.Clone(text)
		cfg, err := Parse(path, text)
		if !bytes.Equal(text, given) {
			t.Fatal("Parse changed the text")
		}
		if (cfg == nil) != (err != nil) {
			t.Fatalf("%v and %v", cfg, err)
		}
		said := ""
		if err != nil {
			checkErrors(t, err, path, bytes.Count(text, []byte("\n"))+1)
			said = err.Error()
		} else {
			said = strings.Join(cfg.Warnings, "\n")
		}
		if !utf8.ValidString(said) {
			t.Errorf("no UTF-8: %q", said)
		}
		if secretIn(text) && strings.Contains(said, "canary") {
			t.Errorf("the password is in %s", said)
		}
		if cfg == nil {
			return
		}
		for name, db := range cfg.Databases {
			if db.Name != name || db.DBName == "" || len(db.Servers) == 0 || db.PoolMode == PoolInherit || db.MinPoolSize > db.PoolSize {
				t.Errorf("database %q is accepted as %+v", name, db)
			}
		}
	})
}

// secretIn tells whether the word canary is in the text once, as a password.
func secretIn(text []byte) bool {
	if bytes.Count(text, []byte("canary")) != 1 {
		return false
	}
	var table map[string]any
	if toml.Unmarshal(text, &table) != nil {
		return canaryLine.Match(text)
	}
	is := func(v any) bool {
		s, ok := v.(string)
		return ok && strings.Contains(s, "canary")
	}
	top := place{value: table}
	if is(top.child("proxy").child("monitor_password").value) {
		return true
	}
	databases := top.child("databases")
	for _, name := range databases.names() {
		db := databases.child(name)
		if is(db.child("password").value) || is(db.child("monitor_password").value) {
			return true
		}
	}
	return false
}

// FuzzPositions: of every text that the toml package takes, the second reading
// finds the same keys and items, on lines of the file.
func FuzzPositions(f *testing.F) {
	f.Add("a.b = [{c = 1}, [2, \"]\"]] # x\n[[d.e]]\n'f' = \"\"\"\"\"\\\"\"\"\"\"\n")
	f.Add("[a]\n\"b\\u0041\" = { c.d = '''\n''', e = {} }\n[a.f]\n[[g]]\n[g.h]\n")
	f.Add("a = 1979-05-27 07:32:00\r\nb = [\r\n1, # x\r\n]\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		var table map[string]any
		valid := toml.Unmarshal([]byte(text), &table) == nil
		root := positions(text) // also of what is no TOML: it must end
		if at, _ := badByte([]byte(text)); !valid || at >= 0 || strings.HasPrefix(text, "\ufeff") {
			return
		}
		if bad := samePlaces(root, table); bad != "" {
			t.Fatal(bad)
		}
		lines := strings.Count(text, "\n") + 1
		every(place{node: root, value: table, line: 1}, func(at place) {
			if at.line < 1 || at.line > lines {
				t.Errorf("%s is in line %d of %d", at.key, at.line, lines)
			}
		})
	})
}

// FuzzINI: no text makes the reader of a pgbouncer.ini panic, every error is one
// line, no password is in an error or a warning, and what is accepted is the same
// configuration in TOML.
func FuzzINI(f *testing.F) {
	f.Add("[pgbouncer]\nauth_file = u\n[databases]\na = host=h user=u password='ca''nary\n")
	f.Add("[databases]\n* = host=a,b,a port=1 user=u password=canary x\n'b c' = dbname='x y'\n[pgbouncer]\nauth_type=any\n")
	paths, _ := filepath.Glob(filepath.Join("testdata", "ini_*.txt"))
	for _, path := range paths {
		if text, err := os.ReadFile(path); err == nil {
			input, _, _ := strings.Cut(string(text), "\n-- ")
			f.Add(strings.ReplaceAll(input, "secret-", "canary-") + "\n")
		}
	}
	password := regexp.MustCompile(`(?m)^[ \t]*[\w]+[ \t]*=[^\n]*password[ ]*=[ ]*'?[\w-]*canary`)
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "%include") {
			t.Skip("reads other files") // whatever they are
		}
		path := filepath.Join("testdata", "none.ini")
		cfg, err := Parse(path, []byte(text))
		if (cfg == nil) != (err != nil) {
			t.Fatalf("%v and %v", cfg, err)
		}
		said := ""
		if err != nil {
			checkErrors(t, err, path, strings.Count(text, "\n")+1)
			said = err.Error()
		} else {
			said = strings.Join(cfg.Warnings, "\n")
		}
		if !utf8.ValidString(said) {
			t.Errorf("no UTF-8: %q", said)
		}
		if strings.Count(text, "canary") == 1 && password.MatchString(text) && strings.Contains(said, "canary") {
			t.Errorf("the password is in %s", said)
		}
		if cfg != nil && utf8.ValidString(text) {
			checkConvert(t, "testdata", cfg)
		}
	})
}
