package compat

import (
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// exampleSuite is a module of the test data in place of a driver's.
func exampleSuite(t *testing.T) suite {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("testdata", "suite"))
	if err != nil {
		t.Fatal(err)
	}
	direct := 0
	return suite{
		name: "example", module: "example.org/suite/v2", dir: dir, database: "example", owner: "example",
		logins: []login{{"example", "secret", "", true}},
		setup:  []string{"CREATE TABLE t ()"},
		env: func(to target) []string {
			if direct == 0 {
				direct = to.port
			}
			return []string{"PGPORT=" + strconv.Itoa(to.port), "DIRECT=" + strconv.Itoa(direct)}
		},
	}
}

// TestRun runs everything on real servers and a real proxy, with a module that
// stands for a driver's.
func TestRun(t *testing.T) {
	exceptions := filepath.Join(t.TempDir(), "exceptions.txt")
	put(t, exceptions, `# why
example  *      suite.TestPlace/excepted
example  split  suite.TestConnect
`)
	opt := Default()
	opt.Exceptions, opt.Out, opt.Timeout = exceptions, filepath.Join(t.TempDir(), "out"), 5*time.Minute
	census := pgtest.NewCensus(t)
	res, err := run(t.Context(), opt, []suite{exampleSuite(t)}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, census)
	if !res.Failed() {
		t.Error("all is well")
	}
	var got []Row
	for _, row := range res.Rows {
		row.output = nil
		got = append(got, row)
	}
	only := []string{"suite.TestPlace/beyond", "suite.TestPlace/direct_only"}
	want := []Row{
		{Suite: "example", Way: Direct, Passed: 7, Skipped: 1, Failed: []string{"suite.TestPlace/never", "suite.TestPlace/proxy_only"}},
		{
			Suite: "example", Way: Proxy, Passed: 4, Skipped: 1, Failed: []string{"suite.TestPlace/never"}, FailedOnly: only,
			PassedOnly: []string{"suite.TestPlace/proxy_only"}, Accepted: []string{"suite.TestPlace/excepted"}, Unsteady: []string{"suite.TestUnsteady"},
		},
		{
			Suite: "example", Way: Split, Passed: 4, Skipped: 1, Failed: []string{"suite.TestPlace/never"}, FailedOnly: only,
			PassedOnly: []string{"suite.TestPlace/proxy_only"}, Accepted: []string{"suite.TestPlace/excepted"}, Unsteady: []string{"suite.TestUnsteady"}, Unneeded: []string{"suite.TestConnect"},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	report := res.Markdown()
	for _, text := range []string{"example.org/suite/v2, on PostgreSQL ", "| example | split | 4 | 1 | 1 | 2 | 1 |", "not this way"} {
		if !strings.Contains(report, text) {
			t.Errorf("the report lacks %q:\n%s", text, report)
		}
	}
	for _, name := range []string{"example-direct.txt", "example-split.txt", "pgproxy-proxy.log", "pgproxy-split.log"} {
		if _, err := os.Stat(filepath.Join(opt.Out, name)); err != nil {
			t.Error(err)
		}
	}
}

// TestBrokenProxy: a proxy that does not start ends the run with its last words.
func TestBrokenProxy(t *testing.T) {
	opt := Default()
	opt.Exceptions, opt.Timeout = "", 5*time.Minute
	opt.PgProxy = filepath.Join(t.TempDir(), "program")
	put(t, opt.PgProxy, "#!/bin/sh\necho no such key; exit 4\n")
	census := pgtest.NewCensus(t)
	_, err := run(t.Context(), opt, []suite{exampleSuite(t)}, t.Output())
	if err == nil || !strings.Contains(err.Error(), "no such key") {
		t.Errorf("error %v", err)
	}
	nothingLeft(t, census)
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// nothingLeft looks for what a run has left, but for what pgtest keeps.
func nothingLeft(t *testing.T, census *pgtest.Census) {
	t.Helper()
	if err := pgtest.RemoveTemplates(); err != nil {
		t.Error(err)
	}
	census.AssertBaseline()
}
