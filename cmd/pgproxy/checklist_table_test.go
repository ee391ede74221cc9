package main

import (
	"crypto/md5"
	"encoding/hex"
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

func md5Of(s string) string {
	sum := md5.Sum([]byte(s))
	return hex.EncodeToString(sum[:])
}

// forced is a database whose logins to the server need nobody's password.
const forced = "forced = host=%HOST% port=%PORT% dbname=app user=app password='app secret'"

// pid is the number of the server's process.
const pid = "SELECT pg_backend_pid()"

var checklist = []behaviour{
	// Logins.
	{name: "md5", run: func(b *bouncer) []string {
		return []string{b.in("app", "app"), b.in("app", "app", "wrong"), b.in("app", "app", ""), b.in("nobody", "app"), b.in("app", "app", "app secre")}
	}, want: "in; refused; refused; refused; refused"},
	{name: "scram", more: "auth_type = scram-sha-256", run: func(b *bouncer) []string {
		return []string{b.in("app", "app"), b.in("app", "app", "wrong"), b.in("app", "app", ""), b.in("nobody", "app"), b.in("hashed", "app")}
	}, want: "in; refused; refused; refused; refused"},
	{name: "plain", more: "auth_type = plain", run: func(b *bouncer) []string {
		return []string{b.in("app", "app"), b.in("app", "app", "wrong"), b.in("app", "app", ""), b.in("nobody", "app")}
	}, want: "in; refused; refused; refused"},
	{name: "trust", more: "auth_type = trust", run: func(b *bouncer) []string {
		return []string{b.in("app", "app", ""), b.in("app", "app", "whatever"), b.in("nobody", "app", "")}
	}, want: "in; in; refused"},
	{name: "any", databases: "app = host=%HOST% port=%PORT% user=app password='app secret'", more: "auth_type = any", run: func(b *bouncer) []string {
		return []string{b.in("anybody", "app", ""), ask(b.login("anybody", "app", ""), "SELECT current_user")}
	}, want: "in; app"},
	{name: "md5 secret", databases: forced, run: func(b *bouncer) []string {
		return []string{b.in("hashed", "forced"), b.in("hashed", "forced", "wrong"), ask(b.login("hashed", "forced"), "SELECT current_user")}
	}, want: "in; refused; app"},
	{name: "a user that the server does not know", more: "server_login_retry = 1", run: func(b *bouncer) []string {
		b.put("userlist.txt", "\"admin\" \"admin secret\"\n\"ghost\" \"ghost secret\"\n")
		return []string{b.say("RELOAD"), b.in("ghost", "app")}
	}, want: "RELOAD; refused"},

	// Databases.
	{name: "unknown database", run: func(b *bouncer) []string { return []string{b.in("app", "nowhere")} }, want: "refused"},
	{name: "dbname", databases: "other = host=%HOST% port=%PORT% dbname=app", run: func(b *bouncer) []string {
		return []string{ask(b.login("app", "other"), "SELECT current_database()")}
	}, want: "app"},
	{name: "any database", databases: "* = host=%HOST% port=%PORT%", run: func(b *bouncer) []string {
		return []string{ask(b.login("app", "postgres"), "SELECT current_database()"), b.in("app", "not_on_the_server")}
	}, want: "postgres; refused"},
	{name: "any database with dbname", databases: "* = host=%HOST% port=%PORT% dbname=app", run: func(b *bouncer) []string {
		return []string{ask(b.login("app", "whatever"), "SELECT current_database()")}
	}, want: "app"},
	{name: "connect_query", databases: "cq = host=%HOST% port=%PORT% dbname=app connect_query='SET work_mem = ''7MB'''", run: func(b *bouncer) []string {
		return []string{ask(b.login("app", "cq"), "SHOW work_mem")}
	}, want: "7MB"},
	{name: "timezone", databases: "tz = host=%HOST% port=%PORT% dbname=app timezone='Asia/Tokyo'", run: func(b *bouncer) []string {
		return []string{ask(b.login("app", "tz"), "SHOW timezone"), ask(b.login("app", "tz", "timezone", "UTC"), "SHOW timezone")}
	}, want: "Asia/Tokyo; UTC"},
	{name: "startup parameters", more: "ignore_startup_parameters = extra_float_digits", run: func(b *bouncer) []string {
		c := b.login("app", "app", "extra_float_digits", "2", "application_name", "shop", "client_encoding", "LATIN1")
		return []string{ask(c, "SHOW application_name"), ask(c, "SHOW client_encoding"), b.in("app", "app", "no_such_parameter", "1")}
	}, want: "shop; LATIN1; refused"},

	// Pools.
	{name: "transaction mode", more: "default_pool_size = 1", run: func(b *bouncer) []string {
		x, y := b.login("app", "app"), b.login("app", "app")
		return []string{strconv.FormatBool(ask(x, pid) == ask(y, pid))}
	}, want: "true"},
	{name: "session mode", more: "pool_mode = session\ndefault_pool_size = 1", run: func(b *bouncer) []string {
		x, y := b.login("app", "app"), b.login("app", "app")
		one := ask(x, pid)
		y.Send(pgtest.Query(pid))
		b.waiting(1)
		x.Terminate()
		return []string{strconv.FormatBool(answer(y) == one)}
	}, want: "true"},
	{name: "statement mode", more: "pool_mode = statement", run: func(b *bouncer) []string {
		c := b.login("app", "app")
		return []string{ask(c, "SELECT 1"), before(ask(c, "BEGIN"), ":")}
	}, want: "1; closed"},
	{name: "pool_mode of a database", databases: "app = host=%HOST% port=%PORT% pool_mode=session", more: "default_pool_size = 1", run: func(b *bouncer) []string {
		x, y := b.login("app", "app"), b.login("app", "app")
		ask(x, "SELECT 1")
		y.Send(pgtest.Query("SELECT 2"))
		b.waiting(1)
		x.Terminate()
		return []string{answer(y)}
	}, want: "2"},
	{name: "pool_mode of a user", users: "app = pool_mode=session", more: "default_pool_size = 1", run: func(b *bouncer) []string {
		x, y := b.login("app", "app"), b.login("app", "app")
		ask(x, "SELECT 1")
		y.Send(pgtest.Query("SELECT 2"))
		b.waiting(1)
		x.Terminate()
		return []string{answer(y)}
	}, want: "2"},
	{name: "pool_size of a database", databases: "app = host=%HOST% port=%PORT% pool_size=2", run: func(b *bouncer) []string { return b.fill(2) }, want: "2 served, 1 waits; 3"},
	{name: "default_pool_size", more: "default_pool_size = 3", run: func(b *bouncer) []string { return b.fill(3) }, want: "3 served, 1 waits; 3"},
	{name: "max_db_connections", more: "max_db_connections = 2", run: func(b *bouncer) []string { return b.fill(2) }, want: "2 served, 1 waits; 3"},
	{name: "max_db_connections of a database", databases: "app = host=%HOST% port=%PORT% max_db_connections=1", run: func(b *bouncer) []string { return b.fill(1) }, want: "1 served, 1 waits; 3"},
	{name: "max_user_connections", more: "max_user_connections = 2", run: func(b *bouncer) []string { return b.fill(2) }, want: "2 served, 1 waits; 3"},
	{name: "max_user_connections of a user", users: "app = max_user_connections=1", run: func(b *bouncer) []string { return b.fill(1) }, want: "1 served, 1 waits; 3"},
	{name: "reserve_pool_size", more: "default_pool_size = 1\nreserve_pool_size = 1\nreserve_pool_timeout = 1", run: func(b *bouncer) []string {
		x, y := b.login("app", "app"), b.login("app", "app")
		ask(x, "BEGIN")
		return []string{ask(y, "SELECT 'reserve'")}
	}, want: "reserve"},
	{name: "max_client_conn", more: "max_client_conn = 2", run: func(b *bouncer) []string {
		x, _ := b.login("app", "app"), b.login("app", "app")
		_, e := b.try("app", "app")
		x.Terminate()
		b.until("a place is free", func() bool { return b.in("app", "app") == "in" })
		return []string{e}
	}, want: "no more connections allowed (max_client_conn)"},
	{name: "max_user_client_connections", users: "app = max_user_client_connections=1", newer: true, run: func(b *bouncer) []string {
		b.login("app", "app")
		_, e := b.try("app", "app")
		return []string{e}
	}, want: "client connections exceeded (max_user_client_connections)"},
	{name: "max_db_client_connections", more: "max_db_client_connections = 1", newer: true, run: func(b *bouncer) []string {
		b.login("app", "app")
		_, e := b.try("app", "app")
		return []string{e, b.say("SHOW VERSION")[:9]}
	}, want: "client connections exceeded (max_db_client_connections); PgBouncer"},
	{name: "server_reset_query", more: "pool_mode = session\ndefault_pool_size = 1", run: func(b *bouncer) []string {
		x := b.login("app", "app")
		one := ask(x, pid)
		ask(x, "SET work_mem = '9MB'")
		ask(x, "CREATE TEMPORARY TABLE left_behind (i int)")
		x.Terminate()
		y := b.login("app", "app")
		return []string{strconv.FormatBool(ask(y, pid) == one), ask(y, "SHOW work_mem"), ask(y, "SELECT to_regclass('left_behind') IS NULL")}
	}, want: "true; 4MB; t"},
	{name: "an open transaction is rolled back", more: "default_pool_size = 1", run: func(b *bouncer) []string {
		x := b.login("app", "app")
		ask(x, "BEGIN")
		ask(x, "CREATE TABLE never_committed_"+b.name+" (i int)")
		x.Close()
		return []string{ask(b.login("app", "app"), "SELECT to_regclass('never_committed_"+b.name+"') IS NULL")}
	}, want: "t"},
	{name: "an error keeps the transaction", run: func(b *bouncer) []string {
		c := b.login("app", "app")
		return []string{ask(c, "BEGIN"), before(ask(c, "SELECT 1/0"), ":"), before(ask(c, "SELECT 1"), ":"), ask(c, "COMMIT"), ask(c, "SELECT 2")}
	}, want: "BEGIN; error; error; ROLLBACK; 2"},
	{name: "cancel", run: func(b *bouncer) []string {
		c := b.login("app", "app")
		c.Send(pgtest.Query("SELECT pg_sleep(60) /* " + b.name + " */"))
		running := "SELECT count(*) = 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep(60) /* " + b.name + "%'"
		if err := b.cluster.Primary.WaitFor(b.t.Context(), "app", running); err != nil {
			return []string{err.Error()}
		}
		c.Cancel(b.addr())
		return []string{answer(c), ask(c, "SELECT 3")}
	}, want: "error: 57014; 3"},
	{name: "prepared statements in session mode", more: "pool_mode = session", run: func(b *bouncer) []string {
		c := b.login("app", "app")
		c.Send(pgtest.Parse("s", "SELECT $1::int + 1"), pgtest.Bind("", "s", "41"), pgtest.Execute("", 0), pgtest.Sync())
		one := answer(c)
		c.Send(pgtest.Bind("", "s", "1"), pgtest.Execute("", 0), pgtest.Sync())
		return []string{one, answer(c)}
	}, want: "42; 2"},
	{name: "disable_pqexec", more: "disable_pqexec = 1", run: func(b *bouncer) []string {
		c := b.login("app", "app")
		c.Send(pgtest.Extended("SELECT 5"))
		return []string{answer(c), ask(c, "SELECT 1")}
	}, want: "5; closed: PQexec disallowed"},
	{name: "copy", run: func(b *bouncer) []string {
		c := b.login("app", "app")
		ask(c, "BEGIN")
		ask(c, "CREATE TEMPORARY TABLE copied (i int) ON COMMIT DROP")
		c.Send(pgtest.Query("COPY copied FROM STDIN"))
		c.ReadUntil('G')
		c.Send(pgtest.CopyData("1\n2\n"), pgtest.CopyDone())
		return []string{answer(c), ask(c, "SELECT sum(i) FROM copied"), ask(c, "COMMIT")}
	}, want: "COPY 2; 3; COMMIT"},
	{name: "SSLRequest", run: func(b *bouncer) []string {
		c := pgtest.DialRaw(b.t, b.addr())
		c.Send(pgtest.SSLRequest())
		return []string{string(c.ReadAnswer())}
	}, want: "N"},

	// Timeouts.
	{name: "query_wait_timeout", more: "default_pool_size = 1\nquery_wait_timeout = 1", run: func(b *bouncer) []string {
		x, y := b.login("app", "app"), b.login("app", "app")
		ask(x, "BEGIN")
		return []string{ask(y, "SELECT 1"), ask(x, "SELECT 2")}
	}, want: "closed: query_wait_timeout; 2"},
	{name: "query_timeout", more: "query_timeout = 1", run: func(b *bouncer) []string {
		return []string{ask(b.login("app", "app"), "SELECT pg_sleep(60)")}
	}, want: "closed: query timeout"},
	{name: "idle_transaction_timeout", more: "idle_transaction_timeout = 1", run: func(b *bouncer) []string {
		x, y := b.login("app", "app"), b.login("app", "app")
		ask(x, "BEGIN")
		return []string{answer(x), ask(y, "SELECT 1")}
	}, want: "closed: idle transaction timeout; 1"},
	{name: "transaction_timeout", more: "transaction_timeout = 1", newer: true, run: func(b *bouncer) []string {
		x := b.login("app", "app")
		ask(x, "BEGIN")
		return []string{ask(x, "SELECT pg_sleep(60)")}
	}, want: "closed: transaction timeout"},
	{name: "client_idle_timeout", more: "client_idle_timeout = 1", run: func(b *bouncer) []string {
		return []string{answer(b.login("app", "app"))}
	}, want: "closed: client_idle_timeout"},
	{name: "client_login_timeout", more: "client_login_timeout = 1", run: func(b *bouncer) []string {
		c := pgtest.DialRaw(b.t, b.addr())
		c.Startup("user", "app", "database", "app")
		msgs := c.ExpectEOF()
		return []string{msgs[len(msgs)-1].Err().Message}
	}, want: "client_login_timeout"},
	{name: "server_idle_timeout", more: "server_idle_timeout = 1", run: func(b *bouncer) []string {
		ask(b.login("app", "app"), "SELECT 1")
		b.until("no server is left", func() bool { return b.count("SHOW SERVERS") == 0 })
		return []string{"gone"}
	}, want: "gone"},
	{name: "server_lifetime", more: "server_lifetime = 1", run: func(b *bouncer) []string {
		c := b.login("app", "app")
		one := ask(c, pid)
		b.until("another server", func() bool { return ask(c, pid) != one })
		return []string{"replaced"}
	}, want: "replaced"},

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
	{name: "SET pool size", more: "default_pool_size = 1", run: func(b *bouncer) []string {
		x, y := b.login("app", "app"), b.login("app", "app")
		ask(x, "BEGIN")
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
		ask(c, "BEGIN")
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
		ask(x, "BEGIN")
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
		ask(c, "BEGIN")
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
		ask(x, "BEGIN")
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

func before(s, sep string) string {
	head, _, _ := strings.Cut(s, sep)
	return head
}

// fill opens n transactions, and one more that has to wait for a server.
func (b *bouncer) fill(n int) []string {
	b.t.Helper()
	var open []*pgtest.RawClient
	for range n {
		c := b.login("app", "app")
		if got := ask(c, "BEGIN"); got != "BEGIN" {
			return []string{got}
		}
		open = append(open, c)
	}
	c := b.login("app", "app")
	c.Send(pgtest.Query("SELECT 3"))
	b.waiting(1)
	ask(open[0], "COMMIT")
	return []string{fmt.Sprintf("%d served, 1 waits", n), answer(c)}
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
