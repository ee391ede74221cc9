package pgtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// victimEnv makes this test binary start a cluster, say where, and wait to be
// killed: see TestKilledProcessLeavesNothing.
const victimEnv = "PGTEST_VICTIM"

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		victim()
		return
	}
	Main(m)
}

func victim() {
	c, err := StartCluster(context.Background(), Options{Replicas: 1})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	for _, n := range c.Replicas {
		if err := n.Freeze(); err != nil {
			fmt.Println("error", err)
			return
		}
	}
	fmt.Println(c.Dir)
	select {}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// must ends the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits up to 20 s for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	timeout := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestSharedClusterReplicates(t *testing.T) {
	ctx := testContext(t)
	c := Shared(t)
	must(t, c.Exec(ctx, "CREATE TABLE replicated AS SELECT 42 AS n"))
	must(t, c.Exec(ctx, "CREATE DATABASE other"))
	must(t, c.CreateRole(ctx, `o"dd`, `p'a\ss@/:`, ""))
	must(t, c.WaitCaughtUp(ctx))
	for _, n := range c.Replicas {
		got, err := n.Value(ctx, "postgres", "SELECT n FROM replicated")
		must(t, err)
		if got != "42" {
			t.Errorf("%s: %q, want 42", n.Name, got)
		}
		err = n.Exec(ctx, "postgres", "DELETE FROM replicated")
		if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != "25006" {
			t.Errorf("write on %s: %v, want SQLSTATE 25006", n.Name, err)
		}
		conn, err := pgconn.Connect(ctx, n.DSN("other", `o"dd`))
		must(t, err)
		closeConn(conn)
	}
	conn, err := pgconn.Connect(ctx, strings.Replace(c.Primary.DSN("other", Superuser), SuperuserPassword, "wrong", 1))
	if err == nil {
		closeConn(conn)
		t.Error("a wrong password was accepted")
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	ctx := testContext(t)
	c, err := StartCluster(ctx, Options{Replicas: 1})
	must(t, err)
	dog := c.watchdog.cmd.Process.Pid
	must(t, c.Replicas[0].Kill())
	segment := strings.Fields(pidFile(c.Replicas[0].Dir)[6])[1]
	if !hasSegment(t, segment) {
		t.Errorf("a killed server left no shared memory segment %s: this test tests nothing", segment)
	}
	must(t, c.Close(ctx))
	must(t, c.Close(ctx))
	if left := processesWith(c.Dir); len(left) > 0 {
		t.Errorf("processes left: %v", left)
	}
	if anyAlive([]int{dog}) {
		t.Error("the watchdog is left")
	}
	if _, err := os.Stat(c.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder left: %v", err)
	}
	if hasSegment(t, segment) {
		t.Errorf("shared memory segment %s is left", segment)
	}
}

// hasSegment looks for a System V shared memory segment by its id.
func hasSegment(t *testing.T, id string) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/sysvipc/shm")
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == id {
			return true
		}
	}
	return false
}

func TestKilledProcessLeavesNothing(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"=1")
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	dir := strings.TrimSpace(line)
	if strings.HasPrefix(dir, "error") || !filepath.IsAbs(dir) {
		t.Fatal(dir)
	}
	servers := processesWith(dir)
	if len(servers) != 2 {
		t.Errorf("%d server processes, want 2", len(servers))
	}
	var children []int // of the frozen replica, too
	for _, pid := range servers {
		children = append(children, childrenOf(pid)...)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	eventually(t, "the end of processes of "+dir, func() bool { return len(processesWith(dir)) == 0 })
	eventually(t, "the end of the servers' children", func() bool { return !anyAlive(children) })
	eventually(t, "the end of folder "+dir, func() bool {
		_, err := os.Stat(dir)
		return errors.Is(err, os.ErrNotExist)
	})
}

func TestStartThatIsInterruptedLeavesNothing(t *testing.T) {
	parent, err := os.MkdirTemp("", "pgtest-parent-*")
	must(t, err)
	defer os.RemoveAll(parent)
	must(t, os.Chmod(parent, 0o755))
	must(t, firstError(template(testContext(t), mustFindBin(t), mustAccount(t)))) // the delay below is for the servers
	for _, delay := range []time.Duration{0, 20 * time.Millisecond, 150 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), delay)
		c, err := StartCluster(ctx, Options{Replicas: 2, Dir: parent})
		cancel()
		if err == nil { // a fast machine
			must(t, c.Close(testContext(t)))
		}
		if left := processesWith(parent); len(left) > 0 {
			t.Errorf("interrupted after %s: processes left: %v", delay, left)
		}
		if names, err := os.ReadDir(parent); err != nil || len(names) > 0 {
			t.Errorf("interrupted after %s: left %v, %v", delay, names, err)
		}
	}
}

func firstError(_ string, err error) error { return err }

func mustFindBin(t *testing.T) string {
	dir, err := FindBin("")
	must(t, err)
	return dir
}

func mustAccount(t *testing.T) account {
	acc, err := serverAccount()
	must(t, err)
	return acc
}

func TestStartReportsWhyAServerDoesNotStart(t *testing.T) {
	c, err := StartCluster(testContext(t), Options{Settings: map[string]string{"no_such_setting": "1"}})
	if err == nil {
		_ = c.Close(testContext(t))
		t.Fatal("it started")
	}
	if !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("the error does not tell the reason: %v", err)
	}
}

func TestStopAndStart(t *testing.T) {
	ctx := testContext(t)
	c := Start(t, Options{Replicas: 1})
	must(t, c.Exec(ctx, "CREATE TABLE kept AS SELECT 1 AS n"))
	for _, mode := range []string{"smart", "fast", "immediate", "kill"} {
		t.Run(mode, func(t *testing.T) {
			if mode == "kill" {
				must(t, c.Primary.Kill())
			} else {
				must(t, c.Primary.Stop(mode))
			}
			if c.Primary.Running() || c.Primary.PID() != 0 {
				t.Error("it still runs")
			}
			if err := c.Primary.Stop("fast"); err == nil {
				t.Error("a stopped server was stopped again")
			}
			must(t, c.Primary.Start())
			if err := c.Primary.Start(); err == nil {
				t.Error("a running server was started again")
			}
			got, err := c.Primary.Value(ctx, "postgres", "SELECT n FROM kept")
			must(t, err)
			if got != "1" {
				t.Errorf("%q, want 1", got)
			}
			must(t, c.WaitCaughtUp(ctx))
		})
	}
	if err := c.Primary.Stop("hard"); err == nil || !strings.Contains(err.Error(), "want smart, fast or immediate") {
		t.Errorf("mode hard: %v", err)
	}
}

func TestFreeze(t *testing.T) {
	ctx := testContext(t)
	c := Start(t, Options{})
	conn, err := c.Primary.connect(ctx, "postgres")
	must(t, err)
	defer closeConn(conn)
	must(t, c.Primary.Freeze())
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if c2, err := c.Primary.connect(short, "postgres"); err == nil {
		closeConn(c2)
		t.Error("a frozen server answered")
	}
	must(t, c.Primary.Thaw())
	if _, err := query(ctx, "primary", conn, "SELECT 1"); err != nil {
		t.Errorf("after thaw: %v", err)
	}
}

func TestPauseReplay(t *testing.T) {
	ctx := testContext(t)
	c := Start(t, Options{Replicas: 1})
	replica := c.Replicas[0]
	must(t, replica.PauseReplay(ctx))
	must(t, c.Exec(ctx, "CREATE TABLE late()"))
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if err := replica.WaitCaughtUp(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("catching up while paused: %v", err)
	}
	if got, err := replica.Value(ctx, "postgres", "SELECT to_regclass('late') IS NULL"); err != nil || got != "t" {
		t.Errorf("the table shows while paused: %q, %v", got, err)
	}
	must(t, replica.ResumeReplay(ctx))
	must(t, replica.WaitCaughtUp(ctx))
	must(t, replica.Exec(ctx, "postgres", "SELECT FROM late"))
}

func TestPromoteFollowClone(t *testing.T) {
	ctx := testContext(t)
	c := Start(t, Options{Replicas: 2})
	first, second, third := c.Primary, c.Replicas[0], c.Replicas[1]
	must(t, first.Kill())
	must(t, second.Promote(ctx))
	must(t, third.Follow(second))
	must(t, second.Exec(ctx, "postgres", "CREATE TABLE after_promotion()"))
	must(t, third.WaitCaughtUp(ctx))
	must(t, third.Exec(ctx, "postgres", "SELECT FROM after_promotion"))
	must(t, first.Clone(ctx, second))
	must(t, first.Exec(ctx, "postgres", "SELECT FROM after_promotion"))
	if got, err := first.Value(ctx, "postgres", "SELECT pg_is_in_recovery()"); err != nil || got != "t" {
		t.Errorf("the clone is in recovery: %q, %v", got, err)
	}
	if err := second.Follow(first); err == nil {
		t.Error("a primary was told to follow")
	}
}

func TestFindBin(t *testing.T) {
	programs := func(t *testing.T, dir string) string {
		must(t, os.MkdirAll(dir, 0o755))
		for _, name := range []string{"initdb", "postgres"} {
			must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o755))
		}
		return dir
	}
	root := t.TempDir()
	nine := programs(t, filepath.Join(root, "9", "bin"))
	seventeen := programs(t, filepath.Join(root, "17", "bin"))
	must(t, os.MkdirAll(filepath.Join(root, "18", "bin"), 0o755)) // a client only
	pattern := []string{filepath.Join(root, "*", "bin")}
	t.Setenv("PATH", "/nonexistent")

	for _, tt := range []struct{ name, version, want string }{
		{"newest by number", "", seventeen},
		{"by version", "9", nine},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := findBin(tt.version, pattern)
			must(t, err)
			if got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
	t.Run("absent", func(t *testing.T) {
		_, err := findBin("18", pattern)
		if !errors.Is(err, ErrNoServer) || !strings.Contains(err.Error(), "apt-get install postgresql-18 postgresql-client-18") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("on the path", func(t *testing.T) {
		t.Setenv("PATH", nine)
		got, err := findBin("", nil)
		must(t, err)
		if got != nine {
			t.Errorf("%s, want %s", got, nine)
		}
	})
	t.Run("by environment", func(t *testing.T) {
		t.Setenv(BinEnv, nine)
		got, err := FindBin("")
		must(t, err)
		if got != nine {
			t.Errorf("%s, want %s", got, nine)
		}
		t.Setenv(BinEnv, root)
		if _, err := FindBin(""); !errors.Is(err, ErrNoServer) {
			t.Errorf("a folder without programs: %v", err)
		}
	})
}

func TestQuote(t *testing.T) {
	for _, tt := range []struct{ in, ident, literal string }{
		{"a", `"a"`, "'a'"},
		{`a"b`, `"a""b"`, `'a"b'`},
		{"it's", `"it's"`, "'it''s'"},
		{`back\slash`, `"back\slash"`, ` E'back\\slash'`},
		{"", `""`, "''"},
	} {
		if got := QuoteIdent(tt.in); got != tt.ident {
			t.Errorf("QuoteIdent(%q) = %s, want %s", tt.in, got, tt.ident)
		}
		if got := QuoteLiteral(tt.in); got != tt.literal {
			t.Errorf("QuoteLiteral(%q) = %s, want %s", tt.in, got, tt.literal)
		}
	}
}
