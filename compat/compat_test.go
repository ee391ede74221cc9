package compat

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParseExceptions(t *testing.T) {
	got, err := parseExceptions("file", "# a comment\n\npgx * pgx.TestA/b # why\npq split pq.TestC\n")
	if err != nil {
		t.Fatal(err)
	}
	want := []exception{{"pgx", Proxy, "pgx.TestA/b"}, {"pgx", Split, "pgx.TestA/b"}, {"pq", Split, "pq.TestC"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for text, want := range map[string]string{
		"pgx *\n":         "file:1",
		"\npgx direct x":  "file:2",
		"pgx * two words": "file:1",
		"s * a\ns * b\ns * c\ns * d\ns * e\ns * f": "at most 5",
	} {
		if _, err := parseExceptions("file", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", text, err, want)
		}
	}
	if _, err := readExceptions(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestExceptionCoversSubtests(t *testing.T) {
	e := exception{test: "pgx.TestA"}
	for name, want := range map[string]bool{"pgx.TestA": true, "pgx.TestA/b": true, "pgx.TestAB": false, "pgx.TestB": false} {
		if e.covers(name) != want {
			t.Errorf("%s: %t", name, !want)
		}
	}
}

// TestEveryExceptionHasItsReason: docs/compat.md says why for each line of the
// file, and for none that is not there.
func TestEveryExceptionHasItsReason(t *testing.T) {
	list, err := readExceptions("exceptions.txt")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join("..", "docs", "compat.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(doc), "\n## Exceptions\n")
	if !ok {
		t.Fatal("docs/compat.md has no section Exceptions")
	}
	headings := make(map[string]bool)
	for line := range strings.Lines(section) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "### "); ok {
			headings[name] = true
		}
	}
	for _, e := range list {
		if !headings[e.test] {
			t.Errorf("docs/compat.md does not explain %s", e.test)
		}
	}
	for name := range headings {
		found := false
		for _, e := range list {
			found = found || e.test == name
		}
		if !found {
			t.Errorf("docs/compat.md explains %s, which is not excepted", name)
		}
	}
}

func TestParseFlags(t *testing.T) {
	o, err := ParseFlags([]string{"-suites", "pgx, pq", "-ways", "split", "-run", "TestA", "-count", "3"}, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(o.Suites, []string{"pgx", "pq"}) || !reflect.DeepEqual(o.Ways, []string{Split}) || o.Run != "TestA" || o.Count != 3 {
		t.Errorf("%+v", o)
	}
	for _, args := range [][]string{{"-suites", "jdbc"}, {"-ways", "direct"}, {"-count", "0"}, {"more"}, {"-timeout", "0s"}} {
		var out bytes.Buffer
		if _, err := ParseFlags(args, &out); err == nil || out.Len() == 0 {
			t.Errorf("%q: no error", args)
		}
	}
	if _, err := ParseFlags([]string{"-h"}, &bytes.Buffer{}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
}

func TestBaseName(t *testing.T) {
	for module, want := range map[string]string{"github.com/jackc/pgx/v5": "pgx", "github.com/lib/pq": "pq", "a/vx": "vx"} {
		if got := baseName(module); got != want {
			t.Errorf("%s: %q", module, got)
		}
	}
}

func TestForgive(t *testing.T) {
	o := newOutcome("/tmp/x")
	o.status = map[string]string{"p.A": "fail", "p.A/b": "fail", "p.A/b/c": "fail", "p.A/d": "fail"}
	o.forgive("p.A/b/c")
	if want := map[string]string{"p.A": "fail", "p.A/b": "pass", "p.A/b/c": unsteady, "p.A/d": "fail"}; !reflect.DeepEqual(o.status, want) {
		t.Errorf("got %v", o.status)
	}
	o.forgive("p.A/d")
	if o.status["p.A"] != "pass" || len(o.failed()) != 0 {
		t.Errorf("got %v", o.status)
	}
}

// TestRead: of a test that runs twice the worst counts, and a panic's test fails.
func TestRead(t *testing.T) {
	o := newOutcome("/tmp/x")
	err := o.read("p", strings.NewReader(`{"Action":"start"}
{"Action":"output","Test":"TestA","Output":"first\n"}
{"Action":"fail","Test":"TestA"}
{"Action":"pass","Test":"TestA"}
{"Action":"skip","Test":"TestB"}
{"Action":"pass","Test":"TestC/in_/tmp/x/TestC123/001/f"}
{"Action":"output","Output":"FAIL\n"}
{"Action":"fail"}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"p.TestA": "fail", "p.TestB": "skip", "p.TestC/in_TMP/001/f": "pass"}
	if !reflect.DeepEqual(o.status, want) {
		t.Errorf("got %v, want %v", o.status, want)
	}
	if got := strings.Join(o.output["p.TestA"], "") + strings.Join(o.output["p"], ""); got != "first\nFAIL\n" {
		t.Errorf("output %q", got)
	}
	if err := o.read("p", strings.NewReader("nonsense\n")); err == nil {
		t.Error("nonsense is no error")
	}
}
