package pgtest

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestProgram(t *testing.T) {
	start := func(script string) *Process {
		t.Helper()
		p, err := Program{Path: "/bin/sh", Args: []string{"-c", script}, Dir: t.TempDir(), Log: filepath.Join(t.TempDir(), "log")}.Start()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Stop() })
		return p
	}
	check := func(err error, want string) {
		t.Helper()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	lives := start("exec cat /dev/zero >/dev/null")
	check(lives.Alive(), "")
	check(lives.Stop(), "")
	check(lives.Alive(), "signal: terminated")

	gone := start("echo the reason; exit 3")
	<-gone.done
	check(gone.Alive(), "the reason")
	check(gone.Stop(), "")

	if _, err := (Program{Path: "/nowhere", Dir: "/", Log: filepath.Join(t.TempDir(), "log")}).Start(); err == nil {
		t.Error("a program that is not there has started")
	}
}

func TestChildEnv(t *testing.T) {
	t.Setenv("PGHOST", "elsewhere")
	t.Setenv("LANG", "de_DE.UTF-8")
	t.Setenv("KEPT", "yes")
	env := strings.Join(ChildEnv("PGPASSWORD=x"), "\n") + "\n"
	for text, want := range map[string]bool{
		"PGHOST=": false, "LANG=": false, "KEPT=yes\n": true, "LC_ALL=C\n": true, "PGPASSWORD=x\n": true,
	} {
		if strings.Contains(env, text) != want {
			t.Errorf("%q is there: %t", text, !want)
		}
	}
}
