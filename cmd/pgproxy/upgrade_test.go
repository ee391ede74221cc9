package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/pgtest"
)

// startAncestor is startProcess for one whose heirs write to its log too: its end
// is seen although they go on.
func startAncestor(t testing.TB, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, logs: &watched{}, done: make(chan struct{}), cmd: exec.Command(self, args...)}
	p.cmd.Env = append(os.Environ(), runAsProgram+"=1")
	p.cmd.Stdout, p.cmd.Stderr = w, w
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	copied := make(chan struct{})
	go func() { defer close(copied); _, _ = io.Copy(p.logs, r) }()
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		for _, pid := range heirs(p) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		<-copied // nobody of them is left
		_ = r.Close()
	})
	return p
}

var takenOver = regexp.MustCompile(`msg="another process has taken over: draining" pid=(\d+)`)

// heirs are the processes that have taken over from p, the last one last.
func heirs(p *process) (pids []int) {
	for _, m := range takenOver.FindAllStringSubmatch(p.logs.String(), -1) {
		pid, _ := strconv.Atoi(m[1])
		pids = append(pids, pid)
	}
	return pids
}

// awaitHeir waits for heir number n, from 1, and returns its id.
func (p *process) awaitHeir(n int) int {
	p.t.Helper()
	eventually(p.t, 30*time.Second, fmt.Sprintf("heir %d", n), func() bool { return len(heirs(p)) >= n })
	return heirs(p)[n-1]
}

// gone tells whether a process has ended; nobody may have waited for it yet.
func gone(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

// restartLoad is what uses a proxy while it is restarted: pgbench with clients that
// connect anew for each transaction, and clients that stay and connect again only
// when they are sent away between two transactions.
type restartLoad struct {
	t       testing.TB
	c       *pgtest.Cluster
	host    string
	port    int
	stayers int
	script  string // of pgbench
	stop    chan struct{}
	goes    sync.WaitGroup
	benched atomic.Int64 // transactions of pgbench
	stayed  atomic.Int64 // of the clients that stay
	sent    atomic.Int64 // how often one was sent away
}

const restartTables = `DROP TABLE IF EXISTS restarts; CREATE TABLE restarts (who text); GRANT ALL ON restarts TO PUBLIC`

func startLoad(t testing.TB, c *pgtest.Cluster, host string, port, stayers int) *restartLoad {
	t.Helper()
	if err := c.Primary.Exec(t.Context(), "app", restartTables); err != nil {
		t.Fatal(err)
	}
	l := &restartLoad{t: t, c: c, host: host, port: port, stayers: stayers, stop: make(chan struct{}), script: filepath.Join(t.TempDir(), "restart.sql")}
	put(t, l.script, "BEGIN;\nINSERT INTO restarts VALUES ('bench');\nSELECT 1;\nEND;\n")
	l.goes.Go(func() {
		for l.going() {
			if !l.bench("-C", "-t", "2") {
				return
			}
		}
	})
	for range stayers {
		l.goes.Go(l.stay)
	}
	t.Cleanup(func() { l.halt() })
	return l
}

func (l *restartLoad) going() bool {
	select {
	case <-l.stop:
		return false
	default:
		return true
	}
}

func (l *restartLoad) dsn() string {
	return fmt.Sprintf("host=%s port=%d user=%s password='%s' dbname=app sslmode=disable", l.host, l.port, appUser, appPassword)
}

// bench runs pgbench once, with 200 clients; false says that something has failed.
func (l *restartLoad) bench(args ...string) bool {
	clients := "200"
	if raceEnabled {
		clients = "50"
	}
	args = append(args, "-n", "-c", clients, "-j", "4", "-f", l.script, l.dsn())
	cmd := exec.Command(filepath.Join(l.c.BinDir, "pgbench"), args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	m := processed.FindStringSubmatch(out.String())
	if err != nil || m == nil || !strings.Contains(out.String(), "number of failed transactions: 0 ") {
		l.t.Errorf("pgbench: %v\n%s", err, out.String())
		return false
	}
	n, _ := strconv.Atoi(m[1])
	l.benched.Add(int64(n))
	return true
}

// stay is one client that stays.
func (l *restartLoad) stay() {
	ctx, end := context.WithTimeout(context.Background(), 2*time.Minute)
	defer end()
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(ctx)
		}
	}()
	for l.going() {
		if conn == nil {
			var err error
			if conn, err = pgx.Connect(ctx, l.dsn()); err != nil {
				l.t.Errorf("refused: %v", err)
				return
			}
		}
		if _, err := conn.Exec(ctx, "BEGIN"); err != nil {
			var pe *pgconn.PgError
			if !errors.As(err, &pe) || pe.Code != "57P01" {
				l.t.Errorf("between two transactions: %v", err)
				return
			}
			_ = conn.Close(ctx)
			conn = nil
			l.sent.Add(1)
			continue
		}
		for _, sql := range []string{"INSERT INTO restarts VALUES ('stay')", "SELECT pg_sleep(0.01)", "COMMIT"} {
			if _, err := conn.Exec(ctx, sql); err != nil {
				l.t.Errorf("in a transaction: %s: %v", sql, err)
				return
			}
		}
		l.stayed.Add(1)
	}
}

func (l *restartLoad) halt() {
	if l.going() {
		close(l.stop)
	}
	l.goes.Wait()
}

// more waits until both kinds of clients have done something after now.
func (l *restartLoad) more() {
	l.t.Helper()
	benched, stayed := l.benched.Load(), l.stayed.Load()
	eventually(l.t, 60*time.Second, "transactions go on", func() bool {
		return l.t.Failed() || l.benched.Load() > benched && (l.stayers == 0 || l.stayed.Load() > stayed)
	})
	if l.t.Failed() {
		l.t.FailNow()
	}
}

// check ends the load and compares what is there with what was acknowledged.
func (l *restartLoad) check() {
	l.t.Helper()
	l.halt()
	for who, want := range map[string]int64{"bench": l.benched.Load(), "stay": l.stayed.Load()} {
		got, err := l.c.Primary.Value(context.Background(), "app", "SELECT count(*) FROM restarts WHERE who = "+pgtest.QuoteLiteral(who))
		if err != nil || got != strconv.FormatInt(want, 10) {
			l.t.Errorf("%s: %s rows (%v), and %d transactions were acknowledged", who, got, err, want)
		}
	}
	l.t.Logf("%d transactions of clients that reconnect, %d of others, which were sent away %d times",
		l.benched.Load(), l.stayed.Load(), l.sent.Load())
}

// TestUpgrade replaces the process twice, with no transaction that fails and no
// connection that is refused. A cancel request for a client of the first process
// reaches it.
func TestUpgrade(t *testing.T) {
	c := appCluster(t)
	dir := t.TempDir()
	port := freePort(t)
	path := writeConfig(t, c, fmt.Sprintf("unix_socket_dir = %q\npidfile = %q\nauth_type = \"trust\"\n", dir, filepath.Join(dir, "pid")), "")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	put(t, path, strings.Replace(string(text), "listen_port = 0", fmt.Sprintf("listen_port = %d", port), 1))
	p := startAncestor(t, "run", "-config", path)
	p.await(started)
	metrics := p.await(serving)
	load := startLoad(t, c, "127.0.0.1", port, 10)
	load.more()
	ready := func() error {
		res, err := http.Get("http://" + metrics + "/readyz")
		if err != nil {
			return err
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return errors.New(res.Status)
		}
		return nil
	}
	eventually(t, 20*time.Second, "ready", func() bool { return ready() == nil })

	slow := connect(t, load.dsn())
	asleep := make(chan error, 1)
	go func() {
		_, err := slow.Exec(context.Background(), "SELECT 'slow one' FROM pg_sleep(600)")
		asleep <- err
	}()
	if err := c.Primary.WaitFor(t.Context(), "postgres", "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%slow one%' AND pid <> pg_backend_pid())"); err != nil {
		t.Fatal(err)
	}

	p.signal(syscall.SIGUSR2)
	first := p.awaitHeir(1)
	if err := ready(); err != nil {
		t.Errorf("after the upgrade: %v", err)
	}
	load.more()
	select {
	case <-p.done:
		t.Fatal("the old process has ended before its client")
	default:
	}
	if pid, err := readPIDFile(filepath.Join(dir, "pid")); err != nil || pid != first {
		t.Errorf("the pidfile has %d (%v), want %d", pid, err, first)
	}

	// The second time by the command, while the first process is still there.
	var out, says bytes.Buffer
	if code := dispatch([]string{"upgrade", "-config", path}, &out, &says); code != exitOK {
		t.Fatalf("pgproxy upgrade: %d %s", code, says.String())
	}
	second := p.awaitHeir(2)
	if want := fmt.Sprintf("process %d has taken over from process %d\n", second, first); out.String() != want {
		t.Errorf("it says %q, want %q", out.String(), want)
	}
	load.more()
	if err := ready(); err != nil {
		t.Errorf("after the second upgrade: %v", err)
	}
	if err := slow.PgConn().CancelRequest(t.Context()); err != nil {
		t.Error(err)
	}
	var pe *pgconn.PgError
	select {
	case err := <-asleep:
		if !errors.As(err, &pe) || pe.Code != "57014" {
			t.Errorf("the client of the first process got %v, want 57014", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the client of the first process was not cancelled:\n%s", p.logs)
	}
	if code := p.exit(60 * time.Second); code != exitOK {
		t.Errorf("exit code %d of the first process", code)
	}
	eventually(t, 60*time.Second, "the end of the second process", func() bool { return gone(first) })
	load.check()

	sockets, _ := filepath.Glob(filepath.Join(dir, ".s.PGSQL.*"))
	if len(sockets) != 1 {
		t.Fatalf("sockets: %q", sockets)
	}
	nc, err := net.Dial("unix", sockets[0])
	if err != nil {
		t.Fatalf("the Unix socket is nobody's: %v", err)
	}
	_ = nc.Close()
	if err := syscall.Kill(second, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "the end of the last process", func() bool { return gone(second) })
	for _, name := range []string{sockets[0], filepath.Join(dir, "pid")} {
		if exists(name) {
			t.Errorf("%s is still there", name)
		}
	}
}

// TestUpgradeFails: whatever keeps the new process from serving is said, and the old
// one goes on.
func TestUpgradeFails(t *testing.T) {
	c := appCluster(t)
	dir := t.TempDir()
	path := writeConfig(t, c, fmt.Sprintf("unix_socket_dir = %q\npidfile = %q\n", dir, filepath.Join(dir, "pid")), "")
	p := startAncestor(t, "run", "-config", path)
	p.await(started)
	addr := p.await(listening)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Close() }()
	upgrade := func() (int, string) {
		var out, says bytes.Buffer
		code := dispatch([]string{"upgrade", "-pid", strconv.Itoa(p.cmd.Process.Pid)}, &out, &says)
		return code, out.String() + says.String()
	}
	for _, v := range []struct{ text, want string }{
		{"[proxy]\npool_sise = 3\n", path + ":2: proxy.pool_sise: unknown key"},
		{strings.Replace(string(good), "userlist.txt", "nobody.txt", 1), "nobody.txt: no such file"},
		{strings.Replace(string(good), `http_listen = "127.0.0.1:0"`, fmt.Sprintf("http_listen = %q", busy.Addr()), 1), "address already in use"},
		{strings.Replace(string(good), "/pid\"", "/no/pid\"", 1), "pidfile: "},
	} {
		put(t, path, v.text)
		if code, says := upgrade(); code != exitFailed || !strings.Contains(says, v.want) {
			t.Errorf("code %d, and %q is not in %s", code, v.want, says)
		}
	}
	p.signal(syscall.SIGUSR2)
	eventually(t, 20*time.Second, "the log tells", func() bool {
		return strings.Count(p.logs.String(), `msg="upgrade failed: this process goes on" error=`) == 5
	})
	one(t, connect(t, p.dsn(addr)), "SELECT '1'")
	if sockets, _ := filepath.Glob(filepath.Join(dir, ".s.PGSQL.*")); len(sockets) != 1 {
		t.Errorf("sockets: %q", sockets)
	}
	if pid, err := readPIDFile(filepath.Join(dir, "pid")); err != nil || pid != p.cmd.Process.Pid {
		t.Errorf("the pidfile has %d (%v), want %d", pid, err, p.cmd.Process.Pid)
	}
	put(t, path, string(good))
	if code, says := upgrade(); code != exitOK {
		t.Errorf("code %d: %s", code, says)
	}
	p.awaitHeir(1)
	if code := p.exit(20 * time.Second); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if code, says := upgrade(); code != exitFailed || !strings.Contains(says, errNoControl.Error()) {
		t.Errorf("of a process that has ended: %d %s", code, says)
	}
	one(t, connect(t, p.dsn(addr)), "SELECT '1'")
}

// TestUpgradeTellsServiceManager: the service manager hears which process is the
// main one, and its sockets go along. With a pgbouncer.ini SIGUSR2 is RESUME.
func TestUpgradeTellsServiceManager(t *testing.T) {
	c := appCluster(t)
	path, dir := writeINI(t, c, "")
	notices, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = notices.Close() }()
	notice := func(want string) {
		t.Helper()
		_ = notices.SetReadDeadline(time.Now().Add(20 * time.Second))
		buf := make([]byte, 512)
		n, err := notices.Read(buf)
		if err != nil || string(buf[:n]) != want {
			t.Fatalf("told %q (%v), want %q", buf[:n], err, want)
		}
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	p := startAncestor(t, "-u", me(t), path)
	log := filepath.Join(dir, "log")
	notice("READY=1")
	p.signal(syscall.SIGUSR2)
	p.await(regexp.MustCompile(`msg="SIGUSR2, but (not paused)"`))
	var out, says bytes.Buffer
	if code := dispatch([]string{"upgrade", "-config", path}, &out, &says); code != exitOK {
		t.Fatalf("pgproxy upgrade: %d %s", code, says.String())
	}
	heir := p.awaitHeir(1)
	notice(fmt.Sprintf("MAINPID=%d\nREADY=1", heir))
	if code := p.exit(20 * time.Second); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	one(t, iniConn(t, path, "127.0.0.1", appUser, "app"), "SELECT '1'")
	one(t, iniConn(t, path, "", "pgbouncer", "pgbouncer"), "SHOW VERSION")
	if err := syscall.Kill(heir, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	notice("STOPPING=1")
	eventually(t, 20*time.Second, "the end of the heir", func() bool { return gone(heir) })
	if text, err := os.ReadFile(log); err != nil || strings.Count(string(text), "msg=stopped") != 2 {
		t.Errorf("the logfile (%v): %s", err, text)
	}
}

// TestRestartBeside starts a second process on the same port and ends the first when
// its clients have gone: pgbench's that stay, and those that connect anew for each
// transaction, notice nothing.
func TestRestartBeside(t *testing.T) {
	c := appCluster(t)
	path, dir := writeINI(t, c, "so_reuseport = 1\npeer_id = 1\nmax_client_conn = 1000\n")
	other, otherDir := writeINI(t, c, "so_reuseport = 1\npeer_id = 2\nmax_client_conn = 1000\n")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	line := portLine.FindSubmatch(text)
	port, err := strconv.Atoi(string(line[1]))
	if err != nil {
		t.Fatal(err)
	}
	peers := fmt.Sprintf("[peers]\n1 = host=%s port=%d\n2 = host=%s port=%d\n", dir, port, otherDir, port)
	put(t, path, string(text)+peers)
	text, err = os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	put(t, other, portLine.ReplaceAllString(string(text), string(line[0]))+peers)

	first := startProcess(t, nil, "-u", me(t), path)
	first.await(started)
	slow := iniConn(t, path, "127.0.0.1", appUser, "app")
	load := startLoad(t, c, "127.0.0.1", port, 0)
	stayed := make(chan bool, 1)
	load.goes.Go(func() { stayed <- load.bench("-t", "10") })
	load.more()
	second := startProcess(t, nil, "-u", me(t), other)
	second.await(started)
	load.more()
	first.signal(syscall.SIGTERM)
	first.await(regexp.MustCompile(`msg=draining .*mode=(WAIT_FOR_CLIENTS)`))
	load.more()
	if !<-stayed {
		t.Error("clients that stay have noticed")
	}
	asleep := make(chan error, 1)
	go func() {
		_, err := slow.Exec(context.Background(), "SELECT 'slow one' FROM pg_sleep(600)")
		asleep <- err
	}()
	if err := c.Primary.WaitFor(t.Context(), "postgres", "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%slow one%' AND pid <> pg_backend_pid())"); err != nil {
		t.Fatal(err)
	}
	if err := slow.PgConn().CancelRequest(t.Context()); err != nil { // to the second process, which alone is on the port
		t.Error(err)
	}
	select {
	case err := <-asleep:
		var pe *pgconn.PgError
		if !errors.As(err, &pe) || pe.Code != "57014" {
			t.Errorf("the client of the first process got %v, want 57014", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the client of the first process was not cancelled:\n%s\n%s", first.logs, second.logs)
	}
	_ = slow.Close(t.Context())
	if code := first.exit(60 * time.Second); code != exitOK {
		t.Errorf("exit code %d\n%s", code, first.logs)
	}
	load.more()
	load.check()
	second.signal(syscall.SIGINT)
	if code := second.exit(60 * time.Second); code != exitOK {
		t.Errorf("exit code %d\n%s", code, second.logs)
	}
}

// TestDrainDelay: /readyz says 503 while clients are still let in.
func TestDrainDelay(t *testing.T) {
	c := appCluster(t)
	p := startProcess(t, nil, "run", "-config", writeConfig(t, c, `drain_delay = "1h"`, ""))
	addr, web := p.await(listening), p.await(serving)
	status := func() int {
		res, err := http.Get("http://" + web + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	eventually(t, 20*time.Second, "ready", func() bool { return status() == http.StatusOK })
	p.signal(syscall.SIGTERM)
	eventually(t, 20*time.Second, "not ready", func() bool { return status() == http.StatusServiceUnavailable })
	one(t, connect(t, p.dsn(addr)), "SELECT '1'")
	p.signal(syscall.SIGINT)
	if code := p.exit(20 * time.Second); code != exitOK {
		t.Errorf("exit code %d\n%s", code, p.logs)
	}
}
