package main

import (
	"context"
	"encoding/csv"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgproxy/pgtest"
)

// TestHAProxy puts Debian's HAProxy in front: its checks find the proxy healthy and
// cost no line of log, and the addresses of clients come through.
func TestHAProxy(t *testing.T) {
	program, err := exec.LookPath("haproxy")
	if err != nil {
		if program = "/usr/sbin/haproxy"; !exists(program) {
			// CI installs it; elsewhere the tests of package proxy have to do.
			t.Skip("SKIPPED: haproxy is not installed")
		}
	}
	cluster := appCluster(t)
	var logs watched
	a := startAppLogged(t, cluster, "proxy_protocol = [\"127.0.0.1\"]\n", "", &logs)
	dir := t.TempDir()
	front, err1 := pgtest.FreePort()
	other, err2 := pgtest.FreePort()
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	socket := filepath.Join(dir, "stats")
	put(t, filepath.Join(dir, "haproxy.cfg"), fmt.Sprintf(`global
  stats socket %s
defaults
  mode tcp
  timeout connect 5s
  timeout client 30s
  timeout server 30s
  timeout check 5s
listen header
  bind 127.0.0.1:%d
  option pgsql-check user %s
  server tcp2 127.0.0.1:%d send-proxy-v2 check-send-proxy check inter 100ms
listen check
  bind 127.0.0.1:%d
  server plain 127.0.0.1:%d check inter 100ms source 127.0.0.2
`, socket, front, appUser, a.port(), other, a.port()))
	proc, err := pgtest.Program{Path: program, Args: []string{"-db", "-f", filepath.Join(dir, "haproxy.cfg")}, Dir: dir, Log: filepath.Join(dir, "log")}.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proc.Stop(); err != nil {
			t.Error(err)
		}
	})
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	eventually(t, 20*time.Second, "good checks of both", func() bool {
		checks := haproxyChecks(t, socket)
		return checks["header/tcp2"] == "UP L7OK" && checks["check/plain"] == "UP L4OK"
	})
	conn, err := pgx.Connect(ctx, fmt.Sprintf("postgres://%s:%s%%20secret@127.0.0.1:%d/app?sslmode=disable", appUser, appUser, front))
	if err != nil {
		t.Fatal(err)
	}
	local := conn.PgConn().Conn().LocalAddr().String()
	found := false
	for _, s := range a.server.Sessions() {
		found = found || s.Addr == local && s.User == appUser
	}
	if !found {
		t.Errorf("no session from %s: %+v", local, a.server.Sessions())
	}
	if err := conn.Close(ctx); err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(logs.String()) {
		if strings.Contains(line, "client") && (strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR")) {
			t.Errorf("a check has left a line: %s", line)
		}
	}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// haproxyChecks asks for the state of each server and what its last check has
// found.
func haproxyChecks(t *testing.T, socket string) map[string]string {
	t.Helper()
	checks := make(map[string]string)
	nc, err := net.Dial("unix", socket)
	if err != nil {
		return checks // it has not begun yet
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := nc.Write([]byte("show stat\n")); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(nc).ReadAll()
	if err != nil || len(rows) == 0 {
		t.Fatalf("show stat: %v", err)
	}
	at := make(map[string]int)
	for i, name := range rows[0] {
		at[name] = i
	}
	for _, r := range rows[1:] {
		checks[r[0]+"/"+r[at["svname"]]] = r[at["status"]] + " " + r[at["check_status"]]
	}
	return checks
}
