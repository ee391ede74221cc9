package router

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what plans say behind the class into testdata/*.txt")

// A fixture file holds statements, each followed by a line
//
//	=> class | reason | effects | tag | vars
//
// of which only the class must be written by hand: -update fills in the rest.
// A line that starts with "#" between statements is a comment.
type fixture struct {
	at   string // file:line
	sql  string
	want string
	line int // of want
}

func fixtures(tb testing.TB) []fixture {
	tb.Helper()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		tb.Fatalf("no fixtures: %v", err)
	}
	var all []fixture
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		var sql []string
		for i, line := range strings.Split(string(text), "\n") {
			want, found := strings.CutPrefix(line, "=> ")
			switch {
			case found:
				all = append(all, fixture{
					at: fmt.Sprintf("%s:%d", file, i+1), sql: strings.Join(sql, "\n"), want: want, line: i,
				})
				sql = nil
			case len(sql) == 0 && (line == "" || line[0] == '#'):
			default:
				sql = append(sql, line)
			}
		}
		if len(sql) > 0 {
			tb.Fatalf("%s: a statement without expectation: %s", file, sql[0])
		}
	}
	return all
}

// summary is the right side of a fixture.
func summary(p *Plan) string {
	effects := p.Effects.String()
	if effects == "" {
		effects = "-"
	}
	var vars []string
	for _, v := range p.Vars {
		vars = append(vars, showVar(v.Name, v.Value, v.Reset, v.Local, v.All))
	}
	if c := p.Proxy; c != nil {
		word := "proxy set "
		if c.Show {
			word = "proxy show "
		}
		vars = append(vars, word+showVar(c.Name, c.Value, c.Reset || c.Show, c.Local, false))
	}
	parts := []string{p.Class.String(), string(p.Reason), effects, p.Tag, strings.Join(vars, "; ")}
	return strings.TrimRight(strings.Join(parts, " | "), " |")
}

func showVar(name, value string, reset, local, all bool) string {
	text := name
	if all {
		text = "*"
	}
	if local {
		text = "local " + text
	}
	if reset {
		return text
	}
	return fmt.Sprintf("%s=%q", text, value)
}

func TestFixtures(t *testing.T) {
	r := New(Options{})
	lines := make(map[string][]string)
	for _, f := range fixtures(t) {
		got := summary(r.Plan([]byte(f.sql)))
		class, _, _ := strings.Cut(got, " ")
		wantClass, _, _ := strings.Cut(f.want, " ")
		switch {
		case class != wantClass:
			t.Errorf("%s: %s\n got %s\nwant %s", f.at, f.sql, got, f.want)
		case !*update && got != f.want:
			t.Errorf("%s: %s\n got %s\nwant %s", f.at, f.sql, got, f.want)
		case *update:
			file, _, _ := strings.Cut(f.at, ":")
			if lines[file] == nil {
				text, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				lines[file] = strings.Split(string(text), "\n")
			}
			lines[file][f.line] = "=> " + got
		}
		if again := summary(r.Plan([]byte(f.sql))); again != got {
			t.Errorf("%s: %s\nfirst %s\n then %s", f.at, f.sql, got, again)
		}
	}
	for file, l := range lines {
		if err := os.WriteFile(file, []byte(strings.Join(l, "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.Stats().Panics; n != 0 {
		t.Errorf("%d analyses panicked", n)
	}
}
