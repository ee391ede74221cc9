package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgproxy/pgtest"
)

// bouncerProgram is where Debian puts PgBouncer.
const bouncerProgram = "/usr/sbin/pgbouncer"

// bouncer is a pooler that runs with a pgbouncer.ini: PgBouncer, or pgproxy.
type bouncer struct {
	t       *testing.T
	cluster *pgtest.Cluster
	name    string
	dir     string
	port    int
	cmd     *exec.Cmd
	logs    *watched
	done    chan struct{}
	console *pgtest.RawClient
}

// behaviour is one line of the checklist: what clients see of a pooler with this
// file. It must be the same of both, and as it is written here.
type behaviour struct {
	name      string
	databases string // lines of [databases] besides app
	users     string // lines of [users]
	more      string // lines of [pgbouncer]
	run       func(b *bouncer) []string
	want      string // lines, joined by "; "
	newer     bool   // Debian's version does not have it, or not right
}

// ini writes the file. %HOST%, %PORT% and %DIR% stand for the server's address and
// the folder of the files.
func (b *bouncer) ini(x *behaviour) {
	b.t.Helper()
	app := "app = host=%HOST% port=%PORT%"
	if strings.HasPrefix(x.databases, "app ") {
		app = ""
	}
	text := "[databases]\n" + app + "\n" + x.databases + "\n[users]\n" + x.users + `
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ` + strconv.Itoa(b.port) + `
unix_socket_dir = %DIR%
auth_file = %DIR%/userlist.txt
auth_type = md5
admin_users = admin
stats_users = stats
pool_mode = transaction
logfile = %DIR%/log
pidfile = %DIR%/pid
` + x.more + "\n"
	b.put("pgbouncer.ini", strings.NewReplacer("%HOST%", b.cluster.Primary.Host, "%PORT%", strconv.Itoa(b.cluster.Primary.Port), "%DIR%", b.dir).Replace(text))
}

func (b *bouncer) put(name, text string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// startBouncer starts PgBouncer or pgproxy, as another user than root.
func startBouncer(t *testing.T, c *pgtest.Cluster, name, program string, x *behaviour) *bouncer {
	t.Helper()
	b := &bouncer{t: t, cluster: c, name: name, dir: t.TempDir(), port: freePort(t), logs: &watched{}, done: make(chan struct{})}
	for d := b.dir; len(d) > 1 && d != filepath.Clean(os.TempDir()); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	b.put("userlist.txt", `"app" "app secret"
"admin" "admin secret"
"stats" "stats secret"
"hashed" "md5`+md5Of("hashed secrethashed")+`"
`)
	b.ini(x)
	args := []string{filepath.Join(b.dir, "pgbouncer.ini")}
	if os.Getuid() == 0 {
		args = append([]string{"-u", "nobody"}, args...)
	}
	b.cmd = exec.Command(program, args...)
	b.cmd.Dir = b.dir
	b.cmd.Env = append(pgtest.ChildEnv(), runAsProgram+"=1")
	b.cmd.Stdout, b.cmd.Stderr = b.logs, b.logs
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = b.cmd.Wait(); close(b.done) }()
	t.Cleanup(func() {
		_ = b.cmd.Process.Kill()
		<-b.done
		if t.Failed() {
			t.Logf("%s: %s", name, b.logs)
		}
	})
	eventually(t, 20*time.Second, name+" listens", func() bool {
		nc, err := net.Dial("tcp", b.addr())
		if err == nil {
			_ = nc.Close()
		}
		return err == nil
	})
	return b
}

func (b *bouncer) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(b.port)) }

// try logs in, with the password of the user unless another is given.
func (b *bouncer) try(user, database string, more ...string) (*pgtest.RawClient, string) {
	b.t.Helper()
	password := user + " secret"
	if len(more)%2 == 1 {
		password, more = more[0], more[1:]
	}
	c := pgtest.DialRaw(b.t, b.addr())
	c.Skip = "SN"
	if e := c.TryLogin(user, password, append([]string{"database", database}, more...)...); e != nil {
		c.Close()
		return nil, e.Message
	}
	return c, ""
}

// login is try for a login that must succeed.
func (b *bouncer) login(user, database string, more ...string) *pgtest.RawClient {
	b.t.Helper()
	c, e := b.try(user, database, more...)
	if e != "" {
		b.t.Fatalf("%s refuses %s: %s", b.name, user, e)
	}
	return c
}

// in says whether a login succeeds.
func (b *bouncer) in(user, database string, more ...string) string {
	b.t.Helper()
	c, e := b.try(user, database, more...)
	if e != "" {
		return "refused"
	}
	c.Close()
	return "in"
}

// ask runs a statement and returns its first value, the tag of one without, or
// the error.
func ask(c *pgtest.RawClient, sql string) string {
	c.Send(pgtest.Query(sql))
	return answer(c)
}

// answer reads what ask returns. The end of the connection is "closed: TEXT".
func answer(c *pgtest.RawClient) string {
	out, fault := "", ""
	for {
		m, err := c.TryRead()
		if err != nil {
			return "closed: " + fault
		}
		switch m.Type {
		case 'D':
			if v := m.Values(); out == "" && len(v) > 0 {
				out = string(v[0])
			}
		case 'C':
			if out == "" {
				out = strings.TrimRight(string(m.Body), "\x00")
			}
		case 'E':
			fault = m.Err().Message
			if m.Err().Code == "57014" {
				fault = "57014"
			}
		case 'Z':
			if fault != "" {
				return "error: " + fault
			}
			return out
		}
	}
}

// say runs a command of the console.
func (b *bouncer) say(sql string) string {
	b.t.Helper()
	if b.console == nil {
		b.console = b.login("admin", "pgbouncer")
	}
	return ask(b.console, sql)
}

// show runs a SHOW of the console: its rows, by column.
func (b *bouncer) show(sql string) (names []string, out []map[string]string) {
	b.t.Helper()
	if b.console == nil {
		b.console = b.login("admin", "pgbouncer")
	}
	b.console.Send(pgtest.Query(sql))
	for _, m := range b.console.ReadUntilReady() {
		switch m.Type {
		case 'T':
			names = columnNames(m.Body)
		case 'D':
			x := make(map[string]string)
			for i, v := range m.Values() {
				x[names[i]] = string(v)
			}
			out = append(out, x)
		case 'E':
			b.t.Fatalf("%s: %s: %v", b.name, sql, m.Err())
		}
	}
	return names, out
}

// columnNames reads the names of a RowDescription.
func columnNames(body []byte) (names []string) {
	n := int(body[0])<<8 | int(body[1])
	body = body[2:]
	for range n {
		end := slices.Index(body, 0)
		names = append(names, string(body[:end]))
		body = body[end+1+18:]
	}
	return names
}

// count counts the rows of a SHOW with these values.
func (b *bouncer) count(sql string, pairs ...string) int {
	b.t.Helper()
	_, list := b.show(sql)
	n := 0
	for _, x := range list {
		ok := true
		for i := 0; i < len(pairs); i += 2 {
			ok = ok && x[pairs[i]] == pairs[i+1]
		}
		if ok {
			n++
		}
	}
	return n
}

// until waits for a condition.
func (b *bouncer) until(what string, ok func() bool) {
	b.t.Helper()
	eventually(b.t, 20*time.Second, b.name+": "+what, ok)
}

// waiting waits until so many clients are in the queue.
func (b *bouncer) waiting(n int) {
	b.t.Helper()
	b.until(fmt.Sprintf("%d clients wait", n), func() bool { return b.count("SHOW CLIENTS", "state", "waiting") == n })
}

func (b *bouncer) signal(sig syscall.Signal) {
	b.t.Helper()
	if err := b.cmd.Process.Signal(sig); err != nil {
		b.t.Fatal(err)
	}
}

// ended says whether the process ends.
func (b *bouncer) ended() string {
	select {
	case <-b.done:
		return "ended"
	case <-time.After(20 * time.Second):
		return "runs"
	}
}

func TestChecklist(t *testing.T) {
	c := appCluster(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	_, missing := os.Stat(bouncerProgram)
	for i := range checklist {
		x := &checklist[i]
		for name, program := range map[string]string{"pgproxy": self, "pgbouncer": bouncerProgram} {
			if name == "pgbouncer" && x.newer {
				continue
			}
			t.Run(x.name+"/"+name, func(t *testing.T) {
				if name == "pgbouncer" && missing != nil {
					t.Skipf("%s is not installed", bouncerProgram) // pgproxy is held to what is written in the list
				}
				t.Parallel()
				b := startBouncer(t, c, name, program, x)
				if got := strings.Join(x.run(b), "; "); got != x.want {
					t.Errorf("%s\n got %s\nwant %s", x.name, got, x.want)
				}
			})
		}
	}
}
