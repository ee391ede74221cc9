package main

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

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

// checklist is everything.
var checklist = slices.Concat(ofClients, ofAdmins)

// ofClients is what clients see.
var ofClients = []behaviour{
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
		hold(x)
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
		hold(x)
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
}

// hold has a client keep a server: BEGIN alone takes none here.
func hold(c *pgtest.RawClient) string {
	ask(c, "BEGIN")
	return ask(c, "SELECT 1")
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
		if got := hold(c); got != "1" {
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
