package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgproxy/auth"
	"pgproxy/config"
)

// offline is a configuration whose server does not exist.
func offline(clients int) string {
	return fmt.Sprintf(`[proxy]
listen_port = 0
http_listen = ""
max_client_conn = %d
default_pool_size = 10
[databases.app]
user = "app"
servers = [{ host = "127.0.0.1", port = 1, role = "primary" }, { host = "127.0.0.1", port = 2, role = "replica" }]
`, clients)
}

func TestFileWarning(t *testing.T) {
	cfg, err := config.Parse("pgproxy.toml", []byte(offline(1000)))
	if err != nil {
		t.Fatal(err)
	}
	users, err := auth.ParseUserlist("userlist.txt", nil)
	if err != nil {
		t.Fatal(err)
	}
	const need = 1000 + 2*(10+1) + spareFiles // with the health checks
	if got := fileWarning(cfg, users, need); got != "" {
		t.Errorf("as many files as are needed: %s", got)
	}
	got := fileWarning(cfg, users, need-1)
	for _, want := range []string{"max_client_conn 1000", fmt.Sprintf("need %d", need), fmt.Sprintf("limit is %d", need-1), "LimitNOFILE"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
}

// TestFileWarningIsShown by check and, once, by run.
func TestFileWarningIsShown(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for clients, warned := range map[int]int{600: 1, 10: 0} {
		path := filepath.Join(t.TempDir(), "pgproxy.toml")
		put(t, path, offline(clients))
		put(t, filepath.Join(filepath.Dir(path), "userlist.txt"), "\"app\" \"secret\"\n")
		start := func(stdout io.Writer, args ...string) *process {
			args = append([]string{"-c", `ulimit -n 500 && exec "$0" "$@"`, self}, args...)
			return startCommand(t, stdout, exec.Command("sh", args...))
		}
		var out watched
		p := start(&out, "check", "-offline", "-config", path)
		if code := p.exit(30 * time.Second); code != exitOK || strings.Count(out.String(), "the limit is 500") != warned {
			t.Errorf("check, %d clients: exit code %d\n%s%s", clients, code, out.String(), p.logs)
		}
		p = start(nil, "run", "-config", path)
		eventually(t, 20*time.Second, "the start", func() bool { return strings.Contains(p.logs.String(), "msg=started") })
		p.signal(syscall.SIGHUP)
		eventually(t, 20*time.Second, "the reload", func() bool { return strings.Contains(p.logs.String(), "configuration reloaded") })
		p.signal(syscall.SIGTERM)
		if code := p.exit(30 * time.Second); code != exitOK || strings.Count(p.logs.String(), "the limit is 500") != warned {
			t.Errorf("run, %d clients: exit code %d\n%s", clients, code, p.logs)
		}
	}
}
