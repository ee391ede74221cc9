package bench

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgproxy/pgtest"
)

func exampleSite() site {
	return site{dir: "/run/peer", port: 20001, http: 20002, pool: 20, maxClients: 10000, auth: "trust", servers: []int{21001, 21002, 21003}}
}

func TestPgproxyConfig(t *testing.T) {
	const want = `[proxy]
listen_addr = "127.0.0.1"
listen_port = 20001
http_listen = "127.0.0.1:20002"
auth_type = "trust"
auth_file = "/run/peer/userlist.txt"
default_pool_size = 20
max_client_conn = 10000

[databases.bench]
dbname = "bench"
servers = [{ host = "127.0.0.1", port = 21001 }, { host = "127.0.0.1", port = 21002 }, { host = "127.0.0.1", port = 21003 }]
user = "bench"
password = "bench"
`
	if got := pgproxyConfig(exampleSite()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestPgbouncerConfig(t *testing.T) {
	const want = `[databases]
bench = host=127.0.0.1 port=21001 dbname=bench user=bench password=bench

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = 20001
unix_socket_dir =
auth_type = scram-sha-256
auth_file = /run/peer/userlist.txt
pool_mode = transaction
default_pool_size = 8
max_client_conn = 10000
`
	s := exampleSite()
	s.auth, s.pool = "scram-sha-256", 8
	if got := pgbouncerConfig(s); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	s.prepared = true
	if got := pgbouncerConfig(s); got != want+"max_prepared_statements = 200\n" {
		t.Errorf("with prepared statements:\n%s", got)
	}
}

func TestPgpoolConfig(t *testing.T) {
	s := exampleSite()
	s.children = 68
	got := pgpoolConfig(s)
	for _, want := range []string{
		"port = 20001\n", "num_init_children = 68\n", "pool_passwd = '/run/peer/pool_passwd'\n",
		"backend_port0 = 21001\nbackend_weight0 = 0\n", "backend_port2 = 21003\nbackend_weight2 = 1\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// TestFamilyTime: the time of a process's children counts, while they run and
// when they have ended.
func TestFamilyTime(t *testing.T) {
	const burn = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
	p, err := pgtest.Program{
		Path: "/bin/sh", Args: []string{"-c", "(" + burn + "); (" + burn + "; exec sleep 60) & wait"}, Dir: t.TempDir(),
		Log: filepath.Join(t.TempDir(), "log"),
	}.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Stop() }()
	deadline := time.Now().Add(time.Minute)
	for {
		family, err := familyTime(p.PID())
		if err != nil {
			t.Fatal(err)
		}
		own, err := cpuTime(p.PID())
		if err != nil {
			t.Fatal(err)
		}
		if family-own >= 5*tick {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the family has used %s, its leader %s", family, own)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func TestUserlist(t *testing.T) {
	if got, want := userlist(), "\"bench\" \"bench\"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAtLeast(t *testing.T) {
	for _, tt := range []struct {
		text  string
		want  bool
		wrong string
	}{
		{"PgBouncer 1.18.0", false, ""},
		{"PgBouncer 1.21.0", true, ""},
		{"PgBouncer 1.25.2", true, ""},
		{"PgBouncer 2.0", true, ""},
		{"PgBouncer 0.99", false, ""},
		{"PgBouncer", false, "no version"},
	} {
		got, err := atLeast(tt.text, 1, 21)
		checkError(t, err, tt.wrong)
		if got != tt.want {
			t.Errorf("%s: %t", tt.text, got)
		}
	}
}

// shell writes a program for the shell and returns its path.
func shell(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFindPgbouncer(t *testing.T) {
	ctx := context.Background()
	p, err := pgbouncerPeer(ctx, shell(t, `echo "PgBouncer 1.21.0"; echo "libevent 2"`))
	checkError(t, err, "")
	if p.version != "PgBouncer 1.21.0" || !p.prepared {
		t.Errorf("version %q, prepared %t", p.version, p.prepared)
	}
	if got, want := p.command(), "program pgbouncer.ini"; got != want {
		t.Errorf("command %q, want %q", got, want)
	}
	_, err = pgbouncerPeer(ctx, filepath.Join(t.TempDir(), "none"))
	checkError(t, err, "no such file")
	_, err = pgbouncerPeer(ctx, shell(t, "echo broken >&2; exit 3"))
	checkError(t, err, "exit status 3: broken")
}

func TestFindPgproxy(t *testing.T) {
	p, err := pgproxyPeer(context.Background(), PgProxy, shell(t, `[ "$1" = version ] && echo "pgproxy 1"`))
	checkError(t, err, "")
	if got, want := p.command(), "program run -config pgproxy.toml"; got != want {
		t.Errorf("command %q, want %q", got, want)
	}
	if p.version != "pgproxy 1" {
		t.Errorf("version %q", p.version)
	}
}

func TestParseStat(t *testing.T) {
	const stat = "7 (a) b) S 1 7 7 0 -1 4194560 150 0 0 0 120 30 5 6 20 0 1 0 1000 4096 200 1\n"
	got, err := parseStat([]byte(stat))
	checkError(t, err, "")
	if want := 1500 * time.Millisecond; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	_, err = parseStat([]byte("7 (a) S 1"))
	checkError(t, err, "unexpected text")
	_, err = parseStat([]byte(strings.Replace(stat, "120", "x", 1)))
	checkError(t, err, "invalid syntax")
	if _, err := cpuTime(os.Getpid()); err != nil {
		t.Error(err)
	}
	_, err = cpuTime(-1)
	checkError(t, err, "CPU time")
}

func TestChildrenMayOpenManyFiles(t *testing.T) {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	checkError(t, raiseOpenFiles(64), "")
	out, err := exec.Command("/bin/sh", "-c", "ulimit -n").Output()
	checkError(t, err, "")
	if got := strings.TrimSpace(string(out)); got != "unlimited" && got != strconv.FormatUint(lim.Max, 10) {
		t.Errorf("a child may open %s files, want %d", got, lim.Max)
	}
	if lim.Max < 1<<62 {
		checkError(t, raiseOpenFiles(int(lim.Max)+1), "ulimit")
	}
}

func TestMissingPeerIsNoErrorUnlessAskedFor(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := pgbouncerPeer(context.Background(), ""); err != nil && !errors.Is(err, errNotFound) {
		t.Errorf("error %v, want %v", err, errNotFound)
	}
}
