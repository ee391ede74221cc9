package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"pgproxy/pgtest"
)

// ofAdmins is what those see who look after a pooler: console, reloads, signals.
var ofAdmins = []behaviour{
	// Console.
	{name: "who may use the console", run: func(b *bouncer) []string {
		s := b.login("stats", "pgbouncer")
		return []string{
			b.in("app", "pgbouncer"), b.in("admin", "pgbouncer", "wrong"), ask(s, "SHOW VERSION")[:9], ask(s, "PAUSE"), ask(s, "RELOAD"), ask(s, "SHOW FDS"),
		}
	}, want: "refused; refused; PgBouncer; error: admin access needed; error: admin access needed; error: admin access needed"},
	{name: "commands that are wrong", run: func(b *bouncer) []string {
		return []string{
			b.say("NONSENSE"), b.say("SHOW NONSENSE"), b.say("RESUME"), b.say("RESUME app"), b.say("PAUSE nowhere"), b.say("KILL nowhere"),
			b.say("DISABLE"), b.say("ENABLE nowhere"), b.say("PAUSE pgbouncer"), b.say("DISABLE pgbouncer"), b.say("KILL pgbouncer"),
			b.say("RECONNECT nowhere"), b.say("WAIT_CLOSE nowhere"), b.say("SHUTDOWN app"), b.say("SET nonsense = 1"), b.say("SET pool_mode = nonsense"),
		}
	}, want: "error: invalid command 'NONSENSE', use SHOW HELP;; error: invalid command 'SHOW NONSENSE', use SHOW HELP;; " +
		"error: pooler is not paused/suspended; error: database app is not paused; error: no such database: nowhere; error: no such database: nowhere; " +
		"error: a database is required; error: no such database: nowhere; error: cannot pause admin db: pgbouncer; error: cannot disable admin db: pgbouncer; " +
		"error: cannot kill admin db: pgbouncer; error: no such database: nowhere; error: no such database: nowhere; " +
		"error: invalid command 'SHUTDOWN app', use SHOW HELP;; error: SET failed; error: SET failed"},
	{name: "tags", run: func(b *bouncer) []string {
		return []string{
			b.say("PAUSE"), b.say("PAUSE"), b.say("RESUME"), b.say("SUSPEND"), b.say("SUSPEND"), b.say("RESUME;"), b.say("PAUSE app"), b.say("RESUME app"),
			b.say("DISABLE app"), b.say("enable app"), b.say("RECONNECT"), b.say("WAIT_CLOSE"), b.say("RELOAD"), b.say("KILL app"), b.say("RESUME app"),
			b.say("SET query_timeout = 7"), b.say("SET client_encoding = 'UTF8'"), b.say("SELECT version")[:9],
		}
	}, want: "PAUSE; error: already suspended/paused; RESUME; SUSPEND; error: already suspended/paused; RESUME; PAUSE; RESUME; DISABLE; ENABLE; RECONNECT; " +
		"WAIT_CLOSE; RELOAD; KILL; RESUME; SET query_timeout=7; SET; PgBouncer"},
	{name: "SET", run: func(b *bouncer) []string {
		value := func(key string) string {
			_, list := b.show("SHOW CONFIG")
			for _, x := range list {
				if x["key"] == key {
					return key + "=" + x["value"]
				}
			}
			return key + " is missing"
		}
		b.say("SET query_timeout = 7")
		b.say("SET pool_mode = 'session'")
		b.say("SET log_connections = 0")
		one := []string{value("query_timeout"), value("pool_mode"), value("log_connections"), value("server_lifetime"), value("listen_port")[:12]}
		b.say("RELOAD")
		return append(one, value("query_timeout"), value("pool_mode"))
	}, want: "query_timeout=7; pool_mode=session; log_connections=0; server_lifetime=3600; listen_port=; query_timeout=0; pool_mode=transaction"},
	{name: "SHOW CONFIG", more: "pkt_buf = 8192\nserver_lifetime = 1800", run: func(b *bouncer) []string {
		var out []string
		_, list := b.show("SHOW CONFIG")
		for _, x := range list {
			switch x["key"] {
			case "pkt_buf", "listen_port", "server_lifetime", "pool_mode", "sbuf_loopcnt", "tcp_keepalive", "query_wait_timeout":
				out = append(out, x["key"]+"="+strings.Replace(x["value"], strconv.Itoa(b.port), "PORT", 1))
			}
		}
		return out
	}, want: "listen_port=PORT; pkt_buf=8192; pool_mode=transaction; query_wait_timeout=120; sbuf_loopcnt=5; server_lifetime=1800; tcp_keepalive=1"},
	{name: "SET pool size", more: "default_pool_size = 1", run: func(b *bouncer) []string {
		x, y := b.login("app", "app"), b.login("app", "app")
		hold(x)
		y.Send(pgtest.Query("SELECT 'grown'"))
		b.waiting(1)
		b.say("SET default_pool_size = 2")
		return []string{answer(y)}
	}, want: "grown"},
	{name: "PAUSE and RESUME", run: func(b *bouncer) []string {
		c := b.login("app", "app")
		ask(c, "SELECT 1")
		b.say("PAUSE app")
		servers := b.count("SHOW SERVERS")
		c.Send(pgtest.Query("SELECT 2"))
		b.waiting(1)
		b.say("RESUME app")
		return []string{strconv.Itoa(servers), answer(c)}
	}, want: "0; 2"},
	{name: "PAUSE waits for transactions", run: func(b *bouncer) []string {
		c := b.login("app", "app")
		hold(c)
		other := b.login("admin", "pgbouncer")
		other.Send(pgtest.Query("PAUSE app"))
		b.until("the database is paused", func() bool { return b.count("SHOW DATABASES", "name", "app", "paused", "1") == 1 })
		return []string{ask(c, "SELECT 1"), ask(c, "COMMIT"), answer(other), b.say("RESUME app"), ask(c, "SELECT 2")}
	}, want: "1; COMMIT; PAUSE; RESUME; 2"},
	{name: "PAUSE under load", more: "default_pool_size = 3\nserver_login_retry = 1", run: func(b *bouncer) []string {
		return b.underLoad(func() string { return b.say("PAUSE") + " " + b.say("RESUME") })
	}, want: "PAUSE RESUME; 0 errors", newer: true}, // 1.18 has clients fail for server_login_retry when a PAUSE meets a login
	{name: "RECONNECT under load", more: "default_pool_size = 3\nserver_login_retry = 1", run: func(b *bouncer) []string {
		return b.underLoad(func() string { return b.say("RECONNECT app") + " " + b.say("WAIT_CLOSE app") })
	}, want: "RECONNECT WAIT_CLOSE; 0 errors", newer: true}, // the same
	{name: "SUSPEND under load", more: "default_pool_size = 3\nserver_login_retry = 1", run: func(b *bouncer) []string {
		return b.underLoad(func() string { return b.say("SUSPEND") + " " + b.say("RESUME") })
	}, want: "SUSPEND RESUME; 0 errors"},
	{name: "RECONNECT", run: func(b *bouncer) []string {
		c := b.login("app", "app")
		one := ask(c, pid)
		b.say("RECONNECT app")
		return []string{strconv.FormatBool(ask(c, pid) == one)}
	}, want: "false"},
	{name: "KILL", run: func(b *bouncer) []string {
		x, y := b.login("app", "app"), b.login("app", "app")
		hold(x)
		b.say("KILL app")
		return []string{before(answer(x), ":"), before(answer(y), ":"), b.say("RESUME app"), ask(b.login("app", "app"), "SELECT 1")}
	}, want: "closed; closed; RESUME; 1"},
	{name: "DISABLE", run: func(b *bouncer) []string {
		c := b.login("app", "app")
		b.say("DISABLE app")
		out := []string{b.in("app", "app"), ask(c, "SELECT 1")}
		b.say("ENABLE app")
		return append(out, b.in("app", "app"))
	}, want: "refused; 1; in"},
	{name: "KILL_CLIENT", newer: true, run: func(b *bouncer) []string {
		c := b.login("app", "app")
		_, list := b.show("SHOW CLIENTS")
		for _, x := range list {
			if x["user"] == "app" {
				b.say("KILL_CLIENT " + x["id"])
			}
		}
		return []string{answer(c), b.say("KILL_CLIENT 999999"), b.say("KILL_CLIENT x")}
	}, want: "closed: admin forced disconnect; error: client not found; error: invalid client pointer supplied"},
	{name: "SHOW POOLS", run: func(b *bouncer) []string {
		c := b.login("app", "app")
		hold(c)
		n := b.count("SHOW POOLS", "database", "app", "user", "app", "cl_active", "1", "sv_active", "1", "pool_mode", "transaction")
		return []string{strconv.Itoa(n), strconv.Itoa(b.count("SHOW POOLS", "database", "pgbouncer", "user", "pgbouncer", "pool_mode", "statement"))}
	}, want: "1; 1"},
	{name: "SHOW columns", run: func(b *bouncer) []string {
		var out []string
		for _, s := range []string{"POOLS", "CLIENTS", "SERVERS", "SOCKETS", "STATS_TOTALS", "DATABASES", "USERS", "LISTS", "CONFIG", "MEM", "STATE", "FDS", "VERSION"} {
			names, _ := b.show("SHOW " + s)
			out = append(out, s+" "+names[0]+" "+names[1%len(names)])
		}
		return out
	}, want: "POOLS database user; CLIENTS type user; SERVERS type user; SOCKETS type user; STATS_TOTALS database " +
		"server_assignment_count; DATABASES name host; USERS name pool_size; LISTS list items; CONFIG key value; MEM name size; STATE key value; FDS fd task; " +
		"VERSION version version", newer: true},
	{name: "SHOW LISTS", run: func(b *bouncer) []string {
		_, list := b.show("SHOW LISTS")
		var names []string
		for _, x := range list {
			if !strings.Contains(x["list"], "peer") {
				names = append(names, x["list"])
			}
		}
		return names
	}, want: "databases; users; pools; free_clients; used_clients; login_clients; free_servers; used_servers; dns_names; dns_zones; dns_queries; dns_pending"},

	// Reload.
	{name: "RELOAD adds and removes a database", run: func(b *bouncer) []string {
		out := []string{b.in("app", "more")}
		b.ini(&behaviour{databases: "more = host=%HOST% port=%PORT% dbname=app"})
		b.say("RELOAD")
		out = append(out, b.in("app", "more"))
		b.ini(&behaviour{})
		b.say("RELOAD")
		return append(out, b.in("app", "more"))
	}, want: "refused; in; refused"},
	{name: "RELOAD removes a database that has clients", databases: "more = host=%HOST% port=%PORT% dbname=app", run: func(b *bouncer) []string {
		c, other := b.login("app", "more"), b.login("app", "app")
		ask(c, "SELECT 1")
		b.ini(&behaviour{})
		b.say("RELOAD")
		return []string{before(answer(c), ":"), ask(other, "SELECT 2")}
	}, want: "closed; 2"},
	{name: "RELOAD adds and removes a user", databases: forced, run: func(b *bouncer) []string {
		list := "\"admin\" \"admin secret\"\n\"app\" \"app secret\"\n"
		out := []string{b.in("more", "forced")}
		b.put("userlist.txt", list+"\"more\" \"more secret\"\n")
		b.until("the user is known", func() bool { b.say("RELOAD"); return b.in("more", "forced") == "in" })
		b.put("userlist.txt", list)
		b.until("the user is gone", func() bool { b.say("RELOAD"); return b.in("more", "forced") == "refused" })
		return append(out, b.in("app", "forced"))
	}, want: "refused; in"},
	{name: "RELOAD changes a password", databases: forced, run: func(b *bouncer) []string {
		b.put("userlist.txt", "\"admin\" \"admin secret\"\n\"app\" \"another\"\n")
		b.until("the password is another", func() bool { b.say("RELOAD"); return b.in("app", "forced", "another") == "in" })
		return []string{b.in("app", "forced")}
	}, want: "refused"},
	{name: "RELOAD changes the pool's size", more: "default_pool_size = 1", run: func(b *bouncer) []string {
		x, y := b.login("app", "app"), b.login("app", "app")
		hold(x)
		y.Send(pgtest.Query("SELECT 'grown'"))
		b.waiting(1)
		b.ini(&behaviour{more: "default_pool_size = 2"})
		b.say("RELOAD")
		return []string{answer(y)}
	}, want: "grown"},
	{name: "RELOAD moves a database", databases: "moved = host=%HOST% port=%PORT% dbname=app", run: func(b *bouncer) []string {
		c := b.login("app", "moved")
		out := []string{ask(c, "SELECT current_database()")}
		b.ini(&behaviour{databases: "moved = host=%HOST% port=%PORT% dbname=postgres"})
		b.say("RELOAD")
		return append(out, ask(c, "SELECT current_database()"))
	}, want: "app; postgres"},
	{name: "RELOAD of a broken file", run: func(b *bouncer) []string {
		b.ini(&behaviour{more: "pool_mode = nonsense"})
		b.say("RELOAD")
		c := b.login("app", "app")
		return []string{ask(c, "SELECT 1")}
	}, want: "1"},
	{name: "SIGHUP", run: func(b *bouncer) []string {
		b.ini(&behaviour{databases: "more = host=%HOST% port=%PORT% dbname=app"})
		b.signal(syscall.SIGHUP)
		b.until("the database is there", func() bool { return b.in("app", "more") == "in" })
		return []string{"reloaded"}
	}, want: "reloaded"},

	// The process.
	{name: "pidfile", run: func(b *bouncer) []string {
		b.until("the pidfile is written", func() bool { _, err := os.Stat(filepath.Join(b.dir, "pid")); return err == nil })
		text, err := os.ReadFile(filepath.Join(b.dir, "pid"))
		if err != nil {
			return []string{err.Error()}
		}
		out := []string{strconv.FormatBool(strings.TrimSpace(string(text)) == strconv.Itoa(b.cmd.Process.Pid))}
		b.signal(syscall.SIGINT)
		out = append(out, b.ended())
		_, err = os.Stat(filepath.Join(b.dir, "pid"))
		return append(out, strconv.FormatBool(os.IsNotExist(err)))
	}, want: "true; ended; true"},
	{name: "unix socket", more: "unix_socket_mode = 0770", run: func(b *bouncer) []string {
		path := filepath.Join(b.dir, fmt.Sprintf(".s.PGSQL.%d", b.port))
		info, err := os.Stat(path)
		if err != nil {
			return []string{err.Error()}
		}
		c := pgtest.DialRaw(b.t, path)
		if e := c.TryLogin("app", "app secret", "database", "app"); e != nil {
			return []string{e.Message}
		}
		return []string{fmt.Sprintf("%o", info.Mode().Perm()), ask(c, "SELECT 1")}
	}, want: "770; 1"},
	{name: "SIGUSR1 and SIGUSR2", run: func(b *bouncer) []string {
		c := b.login("app", "app")
		ask(c, "SELECT 1")
		b.signal(syscall.SIGUSR1)
		b.until("it is paused", func() bool { return b.count("SHOW SERVERS") == 0 })
		c.Send(pgtest.Query("SELECT 2"))
		b.waiting(1)
		b.signal(syscall.SIGUSR2)
		return []string{answer(c)}
	}, want: "2"},
	{name: "SIGINT waits for servers", run: func(b *bouncer) []string {
		c := b.login("app", "app")
		ask(c, "BEGIN")
		b.signal(syscall.SIGINT)
		return []string{ask(c, "SELECT 1"), ask(c, "COMMIT"), b.ended()}
	}, want: "1; COMMIT; ended"},
	{name: "SIGTERM waits for clients", newer: true, run: func(b *bouncer) []string {
		c := b.login("app", "app")
		b.signal(syscall.SIGTERM)
		out := []string{ask(c, "SELECT 1"), ask(c, "SELECT 2")}
		c.Terminate()
		return append(out, b.ended())
	}, want: "1; 2; ended"},
	{name: "SHUTDOWN", run: func(b *bouncer) []string {
		c := b.login("app", "app")
		b.say("SHUTDOWN")
		return []string{before(answer(c), ":"), b.ended()}
	}, want: "closed; ended"},
	{name: "the log", run: func(b *bouncer) []string {
		b.until("the log is written", func() bool {
			text, err := os.ReadFile(filepath.Join(b.dir, "log"))
			return err == nil && len(text) > 0
		})
		if err := os.Rename(filepath.Join(b.dir, "log"), filepath.Join(b.dir, "log.1")); err != nil {
			return []string{err.Error()}
		}
		b.say("RELOAD")
		b.until("the log is opened again", func() bool {
			b.in("app", "app") // which is logged
			_, err := os.Stat(filepath.Join(b.dir, "log"))
			return err == nil
		})
		return []string{"opened again"}
	}, want: "opened again"},
}

// underLoad runs commands while clients work, and counts the statements that
// fail.
func (b *bouncer) underLoad(command func() string) []string {
	b.t.Helper()
	var stop atomic.Bool
	var done, faults atomic.Int64
	var clients sync.WaitGroup
	for range 8 {
		c := b.login("app", "app")
		clients.Add(1)
		go func() {
			defer clients.Done()
			for !stop.Load() {
				if answerOrError(c, "SELECT 1") != "1" {
					faults.Add(1)
					return
				}
				done.Add(1)
			}
		}()
	}
	var said string
	for range 5 {
		now := done.Load()
		b.until("the clients work", func() bool { return done.Load() > now+50 || faults.Load() > 0 })
		said = command()
	}
	now := done.Load()
	b.until("the clients work again", func() bool { return done.Load() > now+50 || faults.Load() > 0 })
	stop.Store(true)
	clients.Wait()
	return []string{said, fmt.Sprintf("%d errors", faults.Load())}
}

// answerOrError is ask that ends no goroutine.
func answerOrError(c *pgtest.RawClient, sql string) string {
	if err := c.TrySend(pgtest.Query(sql)); err != nil {
		return err.Error()
	}
	return answer(c)
}
