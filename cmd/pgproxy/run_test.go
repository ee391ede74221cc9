package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgproxy/pgtest"
)

// process is pgproxy as a process of its own.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	logs *watched
	done chan struct{}
	err  error // of Wait, set before done is closed
}

// watched keeps what a process writes.
type watched struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(p)
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// startProcess runs pgproxy with these arguments. It is killed when the test
// ends, if it still runs.
func startProcess(t testing.TB, stdout io.Writer, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return startCommand(t, stdout, exec.Command(self, args...))
}

// startCommand is startProcess with a command that ends up in this binary.
func startCommand(t testing.TB, stdout io.Writer, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, logs: &watched{}, done: make(chan struct{}), cmd: cmd}
	p.cmd.Env = append(os.Environ(), runAsProgram+"=1")
	p.cmd.Stdout, p.cmd.Stderr = stdout, p.logs
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
	})
	return p
}

var (
	listening = regexp.MustCompile(`msg=listening address=(\S+)`)
	serving   = regexp.MustCompile(`msg="serving metrics and health" address=(\S+)`)
)

// await waits for a line of the log and returns its first group.
func (p *process) await(line *regexp.Regexp) string {
	p.t.Helper()
	var m []string
	eventually(p.t, 20*time.Second, "log line "+line.String()+" of\n"+p.logs.String(), func() bool {
		m = line.FindStringSubmatch(p.logs.String())
		return m != nil
	})
	return m[len(m)-1]
}

func (p *process) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// exit waits for the end of the process and returns its exit code.
func (p *process) exit(d time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(d):
		p.t.Fatalf("the process has not ended within %v:\n%s", d, p.logs)
		return -1
	}
}

func (p *process) dsn(addr string) string {
	return fmt.Sprintf("postgres://%s:%s%%20secret@%s/app?sslmode=disable", appUser, appUser, addr)
}

func connect(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	c, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func TestRunRefusesBadConfiguration(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "userlist.txt"), "")
	path := filepath.Join(dir, "bad.toml")
	put(t, path, "[proxy]\nlisten_port = 0\n\n[databases.app]\nservers = [{ host = \"127.0.0.1\", port = 70000, role = \"primary\" }]\npool_sise = 3\n")
	p := startProcess(t, nil, "run", "-config", path)
	if code := p.exit(10 * time.Second); code != exitUsage {
		t.Errorf("exit code %d, want %d", code, exitUsage)
	}
	for _, want := range []string{path + ":5: databases.app.servers[0].port: ", path + ":6: databases.app.pool_sise: ", "pool_size"} {
		if !strings.Contains(p.logs.String(), want) {
			t.Errorf("no %q in\n%s", want, p.logs)
		}
	}
	if strings.Contains(p.logs.String(), "listening") {
		t.Error("it has listened before it found the fault")
	}
}

// TestRunSignals: a reload takes over what it may and refuses what is wrong, a
// drain lets an open transaction finish, and the process leaves nothing.
func TestRunSignals(t *testing.T) {
	c := appCluster(t)
	census := pgtest.NewCensus(t, c.Nodes()...)
	path := writeConfig(t, c, "", "")
	p := startProcess(t, nil, "run", "-config", path)
	addr := p.await(listening)
	conn := connect(t, p.dsn(addr))
	idle := connect(t, p.dsn(addr))

	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	put(t, path, strings.Replace(string(good), "[databases.app]", "[databases.other]\nhost = \"127.0.0.1\"\nrole = 1\n[databases.app]", 1))
	p.signal(syscall.SIGHUP)
	p.await(regexp.MustCompile(`msg="reload refused: the configuration in force stays"`))
	if _, err := conn.Exec(t.Context(), "SELECT 1"); err != nil {
		t.Errorf("after a refused reload: %v", err)
	}
	put(t, path, strings.Replace(string(good), "[databases.app]", "[databases.second]\ndbname = \"app\"\nservers = [{ host = \"127.0.0.1\", port = "+fmt.Sprint(c.Primary.Port)+" }]\n[databases.app]", 1))
	p.signal(syscall.SIGHUP)
	p.await(regexp.MustCompile(`msg="configuration reloaded"`))
	second := connect(t, strings.Replace(p.dsn(addr), "/app?", "/second?", 1))
	if _, err := second.Exec(t.Context(), "SELECT 1"); err != nil {
		t.Errorf("a database that the reload has added: %v", err)
	}

	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGTERM)
	eventually(t, 10*time.Second, "the idle client is sent away", func() bool { return idle.Ping(t.Context()) != nil })
	if _, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
		t.Error("it still listens while it drains")
	}
	if _, err := tx.Exec(t.Context(), "SELECT 2"); err != nil {
		t.Errorf("in a transaction during the drain: %v", err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Errorf("commit during the drain: %v", err)
	}
	if code := p.exit(20 * time.Second); code != exitOK {
		t.Errorf("exit code %d:\n%s", code, p.logs)
	}
	_ = conn.Close(t.Context())
	_ = second.Close(t.Context())
	_ = idle.Close(t.Context())
	census.AssertBaseline()
}

// TestRunInterruptedTwice: a second SIGINT cuts what the first one lets finish.
func TestRunInterruptedTwice(t *testing.T) {
	c := appCluster(t)
	p := startProcess(t, nil, "run", "-config", writeConfig(t, c, "", ""))
	conn := connect(t, p.dsn(p.await(listening)))
	if _, err := conn.Exec(t.Context(), "BEGIN"); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGINT)
	p.await(regexp.MustCompile(`msg=draining`))
	p.signal(syscall.SIGINT)
	p.exit(20 * time.Second)
	if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil {
		t.Error("the transaction has outlived the process")
	}
}

func TestRunHealthEndpoints(t *testing.T) {
	c := pgtest.Start(t, pgtest.Options{Replicas: 0})
	if err := prepareCluster(c); err != nil {
		t.Fatal(err)
	}
	p := startProcess(t, nil, "run", "-config", writeConfig(t, c, "", ""))
	addr := p.await(serving)
	status := func(path string) int {
		res, err := http.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode
	}
	eventually(t, 10*time.Second, "ready", func() bool { return status("/readyz") == 200 })
	if got := status("/healthz"); got != 200 {
		t.Errorf("/healthz: %d", got)
	}
	if err := c.Primary.Stop("fast"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 15*time.Second, "not ready without a primary", func() bool { return status("/readyz") == 503 })
	if got := status("/healthz"); got != 200 {
		t.Errorf("/healthz without a primary: %d", got)
	}
}

// TestRunBareConnect: what load balancers do costs one debug line each.
func TestRunBareConnect(t *testing.T) {
	c := appCluster(t)
	p := startProcess(t, nil, "run", "-config", writeConfig(t, c, `log_level = "debug"`, ""))
	addr := p.await(listening)
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = nc.Close()
	p.await(regexp.MustCompile(`level=DEBUG msg="client left before it was logged in"`))
	// HAProxy's pgsql-check: a startup packet, an answer, and goodbye.
	nc, err = net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nc.Write(pgtest.StartupMessage(3<<16, "user", "haproxy")); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := nc.Read(b[:]); err != nil || b[0] != 'R' {
		t.Errorf("pgsql-check got %q, %v, want an authentication request", b, err)
	}
	_ = nc.Close()
	eventually(t, 10*time.Second, "a second debug line", func() bool {
		return strings.Count(p.logs.String(), "client left before it was logged in") == 2
	})
	if strings.Contains(p.logs.String(), "level=WARN") || strings.Contains(p.logs.String(), "level=ERROR") {
		t.Errorf("the log warns:\n%s", p.logs)
	}
}
