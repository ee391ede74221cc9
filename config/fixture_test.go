package config

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what is found into the fixtures of testdata")

// TestFixtures runs every testdata/*.txt: a configuration, then parts that start
// with a line "-- NAME --":
//
//	errors    all errors, a line each; without this part there are none
//	warnings  all warnings; without this part there are none
//	values    lines "KEY = VALUE", of which each must hold
//	file NAME another file beside the configuration
//	mode      lines "FILE MODE", as "pgproxy.toml 644"; files are 600 otherwise
func TestFixtures(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob(filepath.Join(here, "testdata", "*.txt"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no fixtures: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			fx := readFixture(t, path)
			cfg, errs, warnings := fx.parse(t)
			if *update {
				fx.set("errors", errs)
				fx.set("warnings", warnings)
				fx.write(t, path)
			}
			diff(t, "errors", errs, fx.parts["errors"])
			diff(t, "warnings", warnings, fx.parts["warnings"])
			values := fx.parts["values"]
			if values == "" {
				return
			}
			if cfg == nil {
				t.Fatal("there are values to check, but no configuration")
			}
			found := flatten(cfg)
			for line := range strings.Lines(values) {
				key, want, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " = ")
				if got, ok := found[key]; !ok || got != want {
					t.Errorf("%s is %q (there: %t), want %q", key, got, ok, want)
				}
			}
		})
	}
}

// fixture is one file of testdata.
type fixture struct {
	name  string // of the configuration
	input string
	order []string
	parts map[string]string
}

func readFixture(t *testing.T, path string) *fixture {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fx := &fixture{name: "pgproxy.toml", parts: make(map[string]string)}
	if strings.HasPrefix(filepath.Base(path), "ini_") {
		fx.name = "pgbouncer.ini"
	}
	part := ""
	for line := range strings.Lines(string(text)) {
		name, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "-- ")
		if name, end := strings.CutSuffix(name, " --"); ok && end {
			part = name
			fx.order = append(fx.order, part)
			fx.parts[part] = ""
			continue
		}
		if part == "" {
			fx.input += line
		} else {
			fx.parts[part] += line
		}
	}
	for _, name := range fx.order {
		if word, _, _ := strings.Cut(name, " "); !slices.Contains([]string{"errors", "warnings", "values", "file", "mode"}, word) {
			t.Fatalf("%s: unknown part %q", path, name)
		}
	}
	return fx
}

func (fx *fixture) set(name, text string) {
	fx.parts[name] = text
	if !slices.Contains(fx.order, name) {
		fx.order = append(fx.order, name)
	}
	if text == "" {
		fx.order = slices.DeleteFunc(fx.order, func(s string) bool { return s == name })
	}
}

func (fx *fixture) write(t *testing.T, path string) {
	t.Helper()
	var b strings.Builder
	b.WriteString(fx.input)
	for _, name := range fx.order {
		fmt.Fprintf(&b, "-- %s --\n%s", name, fx.parts[name])
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// parse loads the configuration from a folder of its own, of which nothing
// remains in what it returns.
func (fx *fixture) parse(t *testing.T) (cfg *Config, errs, warnings string) {
	t.Helper()
	dir := t.TempDir()
	t.Chdir(dir) // to which the names of files in a pgbouncer.ini are relative
	path := filepath.Join(dir, fx.name)
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(fx.name, fx.input)
	for part, text := range fx.parts {
		if name, ok := strings.CutPrefix(part, "file "); ok {
			write(name, text)
		}
	}
	for line := range strings.Lines(fx.parts["mode"]) {
		name, mode, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		bits, err := strconv.ParseUint(mode, 8, 32)
		if err == nil {
			err = os.Chmod(filepath.Join(dir, name), os.FileMode(bits))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := Load(path)
	if (cfg == nil) != (err != nil) {
		t.Fatalf("Load gave a configuration (%t) and the error %v", cfg != nil, err)
	}
	if err != nil {
		errs = strings.ReplaceAll(err.Error(), dir+"/", "") + "\n"
		if !strings.Contains(fx.input, "%include") {
			checkErrors(t, err, path, strings.Count(fx.input, "\n")+1)
		}
		return nil, errs, ""
	}
	for _, w := range cfg.Warnings {
		warnings += w + "\n"
	}
	if cfg.Path != path {
		t.Errorf("Path is %q, want %q", cfg.Path, path)
	}
	if fx.name == "pgbouncer.ini" {
		checkConvert(t, dir, cfg)
	}
	cfg.Proxy.AuthFile = strings.TrimPrefix(cfg.Proxy.AuthFile, dir+"/")
	return cfg, "", strings.ReplaceAll(warnings, dir+"/", "")
}

// checkErrors checks the form that all errors of Parse have.
func checkErrors(t testing.TB, err error, path string, lines int) {
	t.Helper()
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatalf("%T joins no errors: %v", err, err)
	}
	last := 0
	for _, err := range joined.Unwrap() {
		e, ok := errors.AsType[*Error](err)
		switch {
		case !ok:
			t.Fatalf("%T is no *Error: %v", err, err)
		case e.Path != path:
			t.Errorf("path %q, want %q", e.Path, path)
		case e.Line < last || e.Line > lines:
			t.Errorf("line %d comes after %d, of %d lines: %v", e.Line, last, lines, e)
		case e.Msg == "" || strings.Contains(e.Error(), "\n"):
			t.Errorf("not one line: %q", e.Error())
		}
		last = e.Line
	}
}

func diff(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s differ\n-- found --\n%s-- want --\n%s", what, got, want)
	}
}

// flatten shows all values by dotted key. A secret shows its text under its key
// and ".reveal".
func flatten(c *Config) map[string]string {
	all := make(map[string]string)
	for k, v := range c.Values() {
		all["proxy."+k] = v
	}
	all["proxy.monitor_password.reveal"] = c.Proxy.MonitorPassword.Reveal()
	for name, db := range c.Databases {
		at := "databases." + name
		show(all, at, databaseKeys, &databaseEntry{Database: *db})
		all[at+".name"] = db.Name
		all[at+".password.reveal"] = db.Password.Reveal()
		all[at+".monitor_password.reveal"] = db.MonitorPassword.Reveal()
		all[at+".servers"] = strconv.Itoa(len(db.Servers))
		for i, s := range db.Servers {
			at := fmt.Sprintf("%s.servers[%d]", at, i)
			show(all, at, serverKeys, &s)
			all[at+".addr"] = s.Network() + " " + s.Addr()
		}
	}
	for name, u := range c.Users {
		show(all, "users."+name, userKeys, u)
		all["users."+name+".name"] = u.Name
	}
	all["databases"] = strings.Join(slices.Sorted(maps.Keys(c.Databases)), ",")
	all["users"] = strings.Join(slices.Sorted(maps.Keys(c.Users)), ",")
	return all
}

func show[T any](all map[string]string, at string, keys []key[T], src *T) {
	for _, k := range keys {
		all[at+"."+k.name] = k.show(src)
	}
}

// checkConvert checks that the TOML of a pgbouncer.ini is the same configuration.
func checkConvert(t testing.TB, dir string, cfg *Config) {
	t.Helper()
	text := cfg.TOML()
	again, err := Parse(filepath.Join(dir, "pgproxy.toml"), []byte(text))
	if err != nil {
		t.Fatalf("the TOML is refused: %v\n%s", err, text)
	}
	want, got := *cfg, *again
	for _, c := range []*Config{&want, &got} {
		c.Path, c.Warnings, c.source = "", nil, nil
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the TOML is another configuration: %+v\nwant %+v\n%s", got, want, text)
	}
}

// TestConverted counts the files whose TOML is compared.
func TestConverted(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join("testdata", "ini_*.txt"))
	if err != nil {
		t.Fatal(err)
	}
	good := 0
	for _, path := range paths {
		if fx := readFixture(t, path); fx.parts["errors"] == "" {
			good++
		}
	}
	if good < 30 {
		t.Errorf("%d files of pgbouncer.ini are right, want at least 30", good)
	}
}
