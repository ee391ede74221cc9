package main

import (
	"context"
	"fmt"
	"log/syslog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgproxy/config"
	"pgproxy/pgtest"
)

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		args string
		want bouncerOptions
		err  string
	}{
		{"a.ini", bouncerOptions{file: "a.ini"}, ""},
		{"-dqvv a.ini", bouncerOptions{daemon: true, quiet: true, verbose: 2, file: "a.ini"}, ""},
		{"a.ini -R --quiet", bouncerOptions{quiet: true, reboot: true, file: "a.ini"}, ""},
		{"-u bob a.ini", bouncerOptions{user: "bob", file: "a.ini"}, ""},
		{"-dubob a.ini", bouncerOptions{daemon: true, user: "bob", file: "a.ini"}, ""},
		{"--user=bob --daem --verbose --reb a.ini", bouncerOptions{daemon: true, user: "bob", verbose: 1, reboot: true, file: "a.ini"}, ""},
		{"--user bob -- -a.ini", bouncerOptions{user: "bob", file: "-a.ini"}, ""},
		{"-V", bouncerOptions{version: true}, ""},
		{"--help", bouncerOptions{help: true}, ""},
		{"-d", bouncerOptions{}, "no configuration file specified"},
		{"a.ini b.ini", bouncerOptions{}, "more than one"},
		{"-x a.ini", bouncerOptions{}, "invalid option: -x"},
		{"--ver a.ini", bouncerOptions{}, "ambiguous"},
		{"--none a.ini", bouncerOptions{}, "unrecognized"},
		{"--quiet=1 a.ini", bouncerOptions{}, "does not take an argument"},
		{"a.ini -u", bouncerOptions{}, "requires an argument"},
	} {
		o, err := parseOptions(strings.Fields(tt.args))
		switch {
		case tt.err != "":
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: error %v, want %q", tt.args, err, tt.err)
			}
		case err != nil:
			t.Errorf("%s: %v", tt.args, err)
		case !reflect.DeepEqual(*o, tt.want):
			t.Errorf("%s: %+v, want %+v", tt.args, *o, tt.want)
		}
	}
	for _, args := range [][]string{{"-V"}, {"--version"}} {
		if code, out, _ := call(args...); code != exitOK || !strings.HasPrefix(out, "PgBouncer 1.25") || !strings.Contains(out, "pgproxy "+version) {
			t.Errorf("%v: %d %s", args, code, out)
		}
	}
	if code, _, says := call("-q"); code != exitFailed || !strings.Contains(says, "Try \"pgproxy --help\"") {
		t.Errorf("no file: %d %s", code, says)
	}
	if code, _, says := call("no/such.ini"); code != exitFailed || !strings.Contains(says, "no/such.ini") {
		t.Errorf("a file that is missing: %d %s", code, says)
	}
}

// me is the role of the operating system that the tests run as.
func me(t testing.TB) string {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return u.Username
}

// writeINI writes a pgbouncer.ini with database app of the cluster's primary, and
// returns its path. Names of files in it begin with the folder.
func writeINI(t testing.TB, c *pgtest.Cluster, more string) (path, dir string) {
	t.Helper()
	dir = t.TempDir()
	var list strings.Builder
	for _, role := range []string{appUser, adminUser, statsUser} {
		fmt.Fprintf(&list, "%q %q\n", role, role+" secret")
	}
	put(t, filepath.Join(dir, "userlist.txt"), list.String())
	path = filepath.Join(dir, "pgbouncer.ini")
	put(t, path, fmt.Sprintf(`[databases]
app = host=%s port=%d
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir = %s
unix_socket_mode = 0700
auth_file = %[4]s/userlist.txt
admin_users = admin
stats_users = stats
pool_mode = transaction
logfile = %[4]s/log
pidfile = %[4]s/pid
%[5]s
`, c.Primary.Host, c.Primary.Port, freePort(t), dir, more))
	return path, dir
}

// freePort is a port that nobody listens on.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

var portLine = regexp.MustCompile(`(?m)^listen_port = (\d+)`)

// iniConn connects to the proxy of a pgbouncer.ini: through its Unix socket as
// host "", without a password.
func iniConn(t testing.TB, path, host, user, database string) *pgx.Conn {
	t.Helper()
	conn, err := tryINI(t, path, host, user, database)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func tryINI(t testing.TB, path, host, user, database string) (*pgx.Conn, error) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if host == "" {
		host = filepath.Dir(path)
	}
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	return pgx.Connect(ctx, fmt.Sprintf("host=%s port=%s user=%s password='%s secret' dbname=%s sslmode=disable default_query_exec_mode=simple_protocol",
		host, portLine.FindStringSubmatch(string(text))[1], user, user, database))
}

func one(t testing.TB, conn *pgx.Conn, sql string) string {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	var s string
	if err := conn.QueryRow(ctx, sql).Scan(&s); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return s
}

var started = regexp.MustCompile(`msg=(started)`)

// TestBouncerProcess is the life of a process that was called as PgBouncer is.
func TestBouncerProcess(t *testing.T) {
	c := appCluster(t)
	path, dir := writeINI(t, c, "")
	p := startProcess(t, nil, "-v", "-u", me(t), path)
	p.await(started)
	pid, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil || strings.TrimSpace(string(pid)) != strconv.Itoa(p.cmd.Process.Pid) {
		t.Errorf("the pidfile has %q (%v), want %d", pid, err, p.cmd.Process.Pid)
	}
	sockets, _ := filepath.Glob(filepath.Join(dir, ".s.PGSQL.*"))
	if len(sockets) != 1 {
		t.Fatalf("sockets: %q", sockets)
	}
	if info, err := os.Stat(sockets[0]); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the socket is %v (%v)", info.Mode(), err)
	}
	console := iniConn(t, path, "", "pgbouncer", "pgbouncer")
	if v := one(t, console, "SHOW VERSION"); !strings.HasPrefix(v, "PgBouncer 1.25") {
		t.Errorf("version %s", v)
	}
	if _, err := tryINI(t, path, "127.0.0.1", "pgbouncer", "pgbouncer"); err == nil {
		t.Error("over TCP the console lets the user pgbouncer in")
	}
	client := iniConn(t, path, "127.0.0.1", appUser, "app")
	one(t, client, "SELECT '1'")

	paused := regexp.MustCompile(`msg="SIGUSR1, (pausing) all activity"`)
	p.signal(syscall.SIGUSR1)
	p.await(paused)
	answered := make(chan error, 1)
	go func() {
		_, err := client.Exec(context.Background(), "SELECT 1")
		answered <- err
	}()
	eventually(t, 20*time.Second, "a client waits", func() bool {
		return len(rows(t, console, "SHOW CLIENTS", "waiting")) == 1
	})
	p.signal(syscall.SIGUSR2)
	if err := <-answered; err != nil {
		t.Error(err)
	}

	text, _ := os.ReadFile(path)
	put(t, path, strings.Replace(string(text), "[pgbouncer]", "again = dbname=app host="+c.Primary.Host+" port="+strconv.Itoa(c.Primary.Port)+"\n[pgbouncer]", 1))
	p.signal(syscall.SIGHUP)
	p.await(regexp.MustCompile(`msg="configuration (reloaded)"`))
	again := iniConn(t, path, "127.0.0.1", appUser, "again")
	one(t, again, "SELECT '1'")
	_ = again.Close(t.Context())

	p.signal(syscall.SIGTERM)
	p.await(regexp.MustCompile(`msg=draining .*mode=(WAIT_FOR_CLIENTS)`))
	if _, err := tryINI(t, path, "127.0.0.1", appUser, "app"); err == nil {
		t.Error("a client is let in while the process ends")
	}
	one(t, client, "SELECT '1'")
	_ = client.Close(t.Context())
	_ = console.Close(t.Context())
	if code := p.exit(20 * time.Second); code != exitOK {
		t.Errorf("exit code %d\n%s", code, p.logs)
	}
	for _, name := range []string{"pid", filepath.Base(sockets[0])} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	if log, err := os.ReadFile(filepath.Join(dir, "log")); err != nil || !strings.Contains(string(log), "msg=stopped") {
		t.Errorf("the logfile (%v): %s", err, log)
	}
}

// rows returns the lines of a SHOW that have a word in one of their columns.
func rows(t testing.TB, conn *pgx.Conn, sql, word string) [][]any {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	r, err := conn.Query(ctx, sql)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var out [][]any
	for r.Next() {
		v, err := r.Values()
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range v {
			if x == word {
				out = append(out, v)
				break
			}
		}
	}
	return out
}

// TestBouncerDaemon: -d returns when the process serves, or says why it does not.
func TestBouncerDaemon(t *testing.T) {
	c := appCluster(t)
	path, dir := writeINI(t, c, "")
	run := func(args ...string) (int, string) {
		t.Helper()
		p := startProcess(t, nil, args...)
		return p.exit(30 * time.Second), p.logs.String()
	}
	if code, says := run("-d", "-u", me(t), path); code != exitOK {
		t.Fatalf("exit code %d: %s", code, says)
	}
	text, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	one(t, iniConn(t, path, "127.0.0.1", appUser, "app"), "SELECT '1'")
	if sid, err := getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d of process %d: %v", sid, pid, err)
	}

	if code, says := run("-d", "-u", me(t), path); code != exitFailed || !strings.Contains(says, "another instance running?") {
		t.Errorf("a second one: %d %s", code, says)
	}
	if code, says := run("-R", "-u", me(t), path); code != exitFailed || !strings.Contains(says, "so_reuseport") {
		t.Errorf("-R: %d %s", code, says)
	}
	other, otherDir := writeINI(t, c, "")
	busy, _ := os.ReadFile(path)
	put(t, other, strings.Replace(strings.ReplaceAll(string(busy), dir+"/", otherDir+"/"), "unix_socket_dir = "+dir, "unix_socket_dir =", 1))
	if code, says := run("-d", "-u", me(t), other); code != exitFailed || !strings.Contains(says, "address already in use") {
		t.Errorf("a port that is taken: %d %s", code, says)
	}
	put(t, other, strings.Replace(string(busy), "pidfile", ";pidfile", 1))
	if code, says := run("-d", other); code != exitFailed || !strings.Contains(says, "daemon needs pidfile") {
		t.Errorf("without a pidfile: %d %s", code, says)
	}
	if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the pidfile is gone", func() bool {
		_, err := os.Stat(filepath.Join(dir, "pid"))
		return err != nil
	})
	// The file of a process that is no more is no hindrance.
	put(t, filepath.Join(dir, "pid"), "999999999\n")
	p := startProcess(t, nil, "-u", me(t), path)
	p.await(started)
	p.signal(syscall.SIGINT)
	if code := p.exit(20 * time.Second); code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// getsid reads the session of a process: field 6 of /proc/PID/stat, counted
// behind the name.
func getsid(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	return strconv.Atoi(f[3])
}

// TestNotAsRoot: with a pgbouncer.ini the process runs as root only if it is told
// to.
func TestNotAsRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the tests do not run as root") // who else is refused nothing
	}
	c := appCluster(t)
	path, dir := writeINI(t, c, "")
	for _, args := range [][]string{{path}, {"run", "-config", path}} {
		p := startProcess(t, nil, args...)
		if code := p.exit(20 * time.Second); code != exitFailed || !strings.Contains(p.logs.String(), "should not run as root") {
			t.Errorf("%v: %d %s", args, code, p.logs)
		}
	}
	for d := dir; len(d) > 1 && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "userlist.txt"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := startProcess(t, nil, "-u", "nobody", path)
	p.await(started)
	info, err := os.Stat(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid == 0 {
		t.Error("the process is still root")
	}
	if _, err := tryINI(t, path, "", "pgbouncer", "pgbouncer"); err == nil {
		t.Error("the console lets another user of the system in without a password")
	}
	p.signal(syscall.SIGQUIT)
	p.exit(20 * time.Second)
}

// TestServiceManager: sockets come from the service manager, and it is told of
// the process's state.
func TestServiceManager(t *testing.T) {
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
		if err != nil || !strings.HasPrefix(string(buf[:n]), want) {
			t.Fatalf("told %q (%v), want %s", buf[:n], err, want)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_ = l.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// LISTEN_PID is only known when the process is there: a shell sets it.
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, self, "-u", me(t), path)
	cmd.ExtraFiles = []*os.File{f}
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	p := startCommand(t, nil, cmd)
	notice("READY=1")
	if got := p.await(listening); got != l.Addr().String() {
		t.Errorf("it listens on %s, want %s", got, l.Addr())
	}
	conn, err := pgx.Connect(t.Context(), p.dsn(l.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	one(t, conn, "SELECT '1'")
	_ = conn.Close(t.Context())
	p.signal(syscall.SIGHUP)
	notice("RELOADING=1\nMONOTONIC_USEC=")
	notice("READY=1")
	p.signal(syscall.SIGINT)
	notice("STOPPING=1")
	if code := p.exit(20 * time.Second); code != exitOK {
		t.Errorf("exit code %d\n%s", code, p.logs)
	}
}

// TestLogs: the log goes to the file and to stderr, the file is opened again, and
// a level of the command line stays.
func TestLogs(t *testing.T) {
	var shown strings.Builder
	path := filepath.Join(t.TempDir(), "log")
	l := newLogs(&shown, true)
	defer l.close()
	l.Info("one")
	p := &config.Proxy{LogLevel: "error", LogFile: path}
	if err := l.apply(p); err != nil {
		t.Fatal(err)
	}
	with := l.With("session", 7)
	with.Debug("two")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.apply(p); err != nil {
		t.Fatal(err)
	}
	with.Warn("three")
	if err := l.apply(&config.Proxy{LogFile: filepath.Join(path, "no")}); err == nil {
		t.Error("a file that cannot be opened is no error")
	}
	with.Warn("four")
	first, _ := os.ReadFile(path + ".1")
	second, _ := os.ReadFile(path)
	for _, x := range []struct{ what, text, want string }{
		{"stderr", shown.String(), "one two three four"}, {"the first file", string(first), "two"}, {"the second file", string(second), "three four"},
	} {
		var found []string
		for _, m := range regexp.MustCompile(`msg=(\w+)`).FindAllStringSubmatch(x.text, -1) {
			found = append(found, m[1])
		}
		if got := strings.Join(found, " "); got != x.want {
			t.Errorf("%s has %q, want %q", x.what, got, x.want)
		}
	}
	if !strings.Contains(string(first), "level=DEBUG msg=two session=7") {
		t.Errorf("the line is %s", first)
	}
}

// TestSyslog: lines go to syslog with their level, without a time of their own.
func TestSyslog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	sys, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sys.Close() })
	l := newLogs(nil, false)
	defer l.close()
	if l.sys.w, err = syslog.Dial("unixgram", path, syslog.LOG_LOCAL3|syslog.LOG_INFO, "pool"); err != nil {
		t.Fatal(err)
	}
	l.sys.on.Store(true)
	l.Debug("none")
	l.With("a", 1).WithGroup("g").Info("one", "b", 2)
	l.Error("two")
	// The number is facility and severity: local3 is 19, info 6, err 3.
	for _, want := range []string{`^<158>.* pool\[\d+\]: msg=one a=1 g.b=2\n$`, `^<155>.* pool\[\d+\]: msg=two\n$`} {
		_ = sys.SetReadDeadline(time.Now().Add(20 * time.Second))
		buf := make([]byte, 1024)
		n, err := sys.Read(buf)
		if err != nil || !regexp.MustCompile(want).Match(buf[:n]) {
			t.Errorf("syslog got %q (%v), want %s", buf[:n], err, want)
		}
	}
}
