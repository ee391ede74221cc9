package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgproxy/config"
	"pgproxy/pgtest"
)

// call runs a command in this process.
func call(args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = dispatch(args, &out, &err)
	return code, out.String(), err.String()
}

func TestUsage(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{nil, exitUsage, "pgproxy run"},
		{[]string{"help"}, exitOK, "pgproxy demo"},
		{[]string{"version"}, exitOK, "pgproxy " + version},
		{[]string{"--version"}, exitOK, "pgproxy " + version},
		{[]string{"rum"}, exitUsage, `no command "rum"`},
		{[]string{"run", "-h"}, exitOK, "-config"},
		{[]string{"run", "-nonsense"}, exitUsage, "nonsense"},
		{[]string{"run", "file.toml"}, exitUsage, "-config"},
		{[]string{"run", "-config", "no/such/file.toml"}, exitUsage, "no/such/file.toml"},
		{[]string{"route"}, exitUsage, "want one statement"},
		{[]string{"demo", "-clients", "0"}, exitUsage, "1 to 1000"},
	} {
		code, stdout, stderr := call(tt.args...)
		if code != tt.code || !strings.Contains(stdout+stderr, tt.says) {
			t.Errorf("pgproxy %s: exit code %d, want %d and %q in\n%s%s", strings.Join(tt.args, " "), code, tt.code, tt.says, stdout, stderr)
		}
	}
}

func TestRoute(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "pgproxy.toml")
	put(t, path, `[databases.split]
servers = [{ host = "10.0.0.1", role = "primary" }, { host = "10.0.0.2", role = "replica" }]
[databases.off]
read_write_split = "off"
servers = [{ host = "10.0.0.1", role = "primary" }, { host = "10.0.0.2", role = "replica" }]
`)
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{[]string{"SELECT 1"}, []string{"goes to    a replica", "class      read"}},
		{[]string{"INSERT INTO t VALUES (1)"}, []string{"goes to    the primary", "write: INSERT", "effects    write"}},
		{[]string{"SELECT unknown()"}, []string{"goes to    the primary", "function not known to be pure: unknown"}},
		{[]string{"/* pgproxy: target=primary */ SELECT 1"}, []string{"goes to    the primary", "hint       target=primary"}},
		{[]string{"SHOW pgproxy.route"}, []string{"the proxy answers it"}},
		{[]string{"SELEC"}, []string{"goes to    the primary", "does not parse"}},
		{[]string{"-config", path, "-database", "split", "SELECT 1"}, []string{"a replica"}},
		{[]string{"-config", path, "-database", "off", "SELECT 1"}, []string{"the primary", "read_write_split is off"}},
	} {
		code, stdout, stderr := call(append([]string{"route"}, tt.args...)...)
		for _, w := range tt.want {
			if code != exitOK || !strings.Contains(stdout, w) {
				t.Errorf("route %q: exit code %d, no %q in\n%s%s", tt.args, code, w, stdout, stderr)
			}
		}
	}
	if code, _, stderr := call("route", "-config", path, "SELECT 1"); code != exitUsage || !strings.Contains(stderr, "off, split") {
		t.Errorf("two databases and no -database: exit code %d, %s", code, stderr)
	}
}

func TestCheck(t *testing.T) {
	c := appCluster(t)
	path := writeConfig(t, c, "default_pool_size = 10", "")
	code, stdout, stderr := call("check", "-config", path)
	if code != exitOK || !strings.Contains(stdout, "pools may open up to 31 connections (app: 30 for 3 users)") {
		t.Errorf("three users with pools of 10, and the health check: exit code %d\n%s%s", code, stdout, stderr)
	}
	path = writeConfig(t, c, "default_pool_size = 100\nmax_user_connections = 8", "")
	if code, stdout, _ = call("check", "-offline", "-config", path); code != exitOK || !strings.Contains(stdout, "(app: 24 for 3 users)") {
		t.Errorf("max_user_connections: exit code %d\n%s", code, stdout)
	}
	path = writeConfig(t, c, "default_pool_size = 100", "")
	code, stdout, stderr = call("check", "-config", path)
	if code != exitFailed || !strings.Contains(stdout, "lower default_pool_size") {
		t.Errorf("more than max_connections: exit code %d\n%s%s", code, stdout, stderr)
	}
	if code, stdout, _ = call("check", "-offline", "-config", path); code != exitOK || strings.Contains(stdout, "takes") {
		t.Errorf("offline: exit code %d\n%s", code, stdout)
	}
	path = writeConfig(t, c, "default_pool_size = 100\nmax_host_connections = 40", "[users."+appUser+"]\npasswords = [\"another\"]\n")
	code, stdout, stderr = call("check", "-config", path)
	if code != exitOK || !strings.Contains(stdout, "pools may open up to 41 connections") || !strings.Contains(stdout, "max_host_connections: 40") ||
		!strings.Contains(stdout, `users with several secrets, each of which is accepted: ["`+appUser+`"]`) {
		t.Errorf("with max_host_connections, and the health check: exit code %d\n%s%s", code, stdout, stderr)
	}
}

// TestDemo runs the demo for a few seconds: it must do its work on every server
// and leave neither a process nor a file.
func TestDemo(t *testing.T) {
	census := pgtest.NewCensus(t)
	dir := t.TempDir()
	// The postgres system user must be able to reach the folder.
	for d := dir; d != filepath.Dir(os.TempDir()) && strings.HasPrefix(d, os.TempDir()); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o777); err != nil {
			break
		}
	}
	t.Setenv("TMPDIR", dir)
	var stdout watched
	p := startProcess(t, &stdout, "demo", "-for", "4s", "-clients", "20")
	if code := p.exit(90 * time.Second); code != exitOK {
		t.Fatalf("exit code %d\n%s%s", code, stdout.String(), p.logs)
	}
	for _, want := range []string{"psql \"host=127.0.0.1", "dbname=pgproxy", "/metrics", " tps", "replica"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("no %q in\n%s", want, stdout.String())
		}
	}
	if strings.Contains(stdout.String(), "errors") {
		t.Errorf("the workload has errors:\n%s", stdout.String())
	}
	assertEmpty(t, dir)
	census.AssertBaseline()
}

// TestDemoInterrupted: Ctrl-C ends it as well, at any time.
func TestDemoInterrupted(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	_ = os.Chmod(filepath.Dir(dir), 0o777)
	_ = os.Chmod(dir, 0o777)
	var stdout watched
	p := startProcess(t, &stdout, "demo", "-load=false", "-replicas", "1")
	eventually(t, 60*time.Second, "the demo prints its figures", func() bool { return strings.Contains(stdout.String(), " tps") })
	p.signal(syscall.SIGINT)
	if code := p.exit(30 * time.Second); code != exitOK {
		t.Errorf("exit code %d\n%s%s", code, stdout.String(), p.logs)
	}
	assertEmpty(t, dir)
}

func assertEmpty(t testing.TB, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range left {
		t.Errorf("the demo has left %s", f.Name())
	}
}

func TestConvert(t *testing.T) {
	dir := t.TempDir()
	ini := filepath.Join(dir, "pgbouncer.ini")
	put(t, ini, "[databases]\napp = host=10.0.0.1 user=u password='a''b'\n[pgbouncer]\nauth_file = /etc/users\npkt_buf = 8192\n")
	code, stdout, stderr := call("convert", ini)
	if code != exitOK {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	if want := ini + ":5: pgbouncer.pkt_buf: no effect"; !strings.Contains(stderr, want) {
		t.Errorf("stderr is %q, want %q in it", stderr, want)
	}
	cfg, err := config.Parse(filepath.Join(dir, "pgproxy.toml"), []byte(stdout))
	if err != nil {
		t.Fatalf("%v\n%s", err, stdout)
	}
	if db := cfg.Databases["app"]; db == nil || db.Password.Reveal() != "a'b" || db.PoolMode != config.PoolSession {
		t.Errorf("the TOML is another configuration:\n%s", stdout)
	}
	for _, args := range [][]string{{"convert"}, {"convert", filepath.Join(dir, "none.ini")}, {"convert", ini, ini}} {
		if code, _, _ := call(args...); code != exitUsage {
			t.Errorf("%q: exit code %d", args, code)
		}
	}
}
