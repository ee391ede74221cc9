package admin

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// say runs one statement and returns "TAG" or "CODE TEXT" of its answer.
func say(c *pgtest.RawClient, sql string) string {
	c.Send(pgtest.Query(sql))
	out := ""
	for _, m := range c.ReadUntilReady() {
		switch m.Type {
		case 'E':
			out += m.Err().Code + " " + m.Err().Message
		case 'N':
			out += m.Err().Severity + " " + m.Err().Message + " "
		case 'C':
			out += strings.TrimRight(string(m.Body), "\x00")
		case 'I':
			out += "empty"
		}
	}
	return out
}

func TestAnswers(t *testing.T) {
	r := newRig(t)
	c := r.admin()
	for _, tt := range []struct{ sql, want string }{
		{"", "empty"},
		{";", "empty"},
		{"-- ping", "empty"},
		{" /* nothing */ ; ", "empty"},
		{"SHOW NONSENSE", "08P01 invalid command 'SHOW NONSENSE', use SHOW HELP;"},
		{"nonsense;", "08P01 invalid command 'nonsense;', use SHOW HELP;"},
		{"SHOW", "08P01 invalid command 'SHOW', use SHOW HELP;"},
		{"SELECT 1", "08P01 invalid command 'SELECT 1', use SHOW HELP;"},
		{"SHOW VERSION; SHOW STATE", "08P01 invalid command 'SHOW VERSION; SHOW STATE', use SHOW HELP;"},
		{"sElEcT \"version\" ;", "SHOW"},
		{"show/**/version", "SHOW"},
		{"SHOW TimeZone", "SHOW"},
		{"RELOAD", "RELOAD"},
		{"RELOAD app", "08P01 invalid command 'RELOAD app', use SHOW HELP;"},
		{"RESUME", "55000 pooler is not paused/suspended"},
		{"RESUME app", "55000 database app is not paused"},
		{"PAUSE nowhere", "3D000 no such database: nowhere"},
		{"PAUSE pgbouncer", "0A000 cannot pause admin db: pgbouncer"},
		{"KILL \"pgproxy\"", "0A000 cannot kill admin db: pgproxy"},
		{"KILL nowhere", "3D000 no such database: nowhere"},
		{"RECONNECT nowhere", "3D000 no such database: nowhere"},
		{"RECONNECT", "RECONNECT"},
		{"RECONNECT \"app\"", "RECONNECT"},
		{"WAIT_CLOSE", "WAIT_CLOSE"},
		{"WAIT_CLOSE app;", "WAIT_CLOSE"},
		{"DISABLE", "08P01 a database is required"},
		{"ENABLE", "08P01 a database is required"},
		{"DISABLE nowhere", "3D000 no such database: nowhere"},
		{"KILL_CLIENT", "08P01 invalid client pointer supplied"},
		{"KILL_CLIENT x", "22023 invalid client pointer supplied"},
		{"KILL_CLIENT 99999", "42704 client not found"},
		{"SUSPEND", "SUSPEND"},
		{"SUSPEND", "55000 already suspended/paused"},
		{"RESUME", "RESUME"},
		{"PAUSE two", "PAUSE"},
		{"SUSPEND", "55000 cannot suspend with paused databases"},
		{"RESUME two", "RESUME"},
		{"SUSPEND app", "08P01 invalid command 'SUSPEND app', use SHOW HELP;"},
		{"SHOW FDS", "SHOW"},
		{"SHUTDOWN soon", "08P01 invalid command 'SHUTDOWN soon', use SHOW HELP;"},
		{"SHUTDOWN wait_for_servers", "SHUTDOWN"},
		{"SHUTDOWN", "SHUTDOWN"},
		{"SET", "08P01 invalid command 'SET', use SHOW HELP;"},
		{"SET stats_period = '5'", "SET stats_period=5"},
		{"set query_timeout to 0.5;", "SET query_timeout=0.5"},
		{"SET server_reset_query = 'SELECT ''x '", "SET server_reset_query=SELECT 'x "},
		{"SET listen_port TO 5", "NOTICE listen_port stays as it is until a restart SET listen_port=5"},
		{"SET nonsense = 1", "22023 SET failed"},
		{"set client_encoding = 'UTF8'", "NOTICE SET ignored SET"},
		{"SET SESSION extra_float_digits TO -1", "NOTICE SET ignored SET"},
		{"SET DateStyle TO 'ISO', 'MDY'", "NOTICE SET ignored SET"},
		{"SET TIME ZONE 'UTC'", "NOTICE SET ignored SET"},
		{"BEGIN", "BEGIN"},
		{"COMMIT", "COMMIT"},
		{"start transaction read only", "START TRANSACTION"},
		{"SHOW NONSENSE", "08P01 invalid command 'SHOW NONSENSE', use SHOW HELP;"},
		{"SHOW VERSION", "25P02 current transaction is aborted, commands ignored until end of transaction block"},
		{"ROLLBACK", "ROLLBACK"},
		{"SHOW VERSION", "SHOW"},
		{strings.Repeat("x", 1000), "08P01 invalid command '" + strings.Repeat("x", 200) + "...', use SHOW HELP;"},
	} {
		if got := say(c, tt.sql); got != tt.want {
			t.Errorf("%s\n got %s\nwant %s", tt.sql, got, tt.want)
		}
	}
	if !slices.Equal(r.sets, []string{"stats_period=5", "query_timeout=0.5", "server_reset_query=SELECT 'x "}) {
		t.Errorf("set: %q", r.sets)
	}
	if !slices.Equal(r.shutdowns, []string{"WAIT_FOR_SERVERS", ""}) || r.reloads != 1 {
		t.Errorf("shutdowns %q, %d reloads", r.shutdowns, r.reloads)
	}
	r.mu.Lock()
	r.reloadErr = errors.New("pgproxy.toml:3: nonsense: unknown key")
	r.mu.Unlock()
	if got := say(c, "RELOAD"); got != "F0000 RELOAD failed, see logs for additional details" {
		t.Error(got)
	}
}

// holdClient makes a client of app whose statement runs until r.hold is closed.
func (r *rig) holdClient(c *pgtest.RawClient) *pgtest.RawClient {
	r.t.Helper()
	busy := r.login(clientUser, "app")
	busy.Send(pgtest.Query("select hold"))
	await(r.t, c, "SHOW SERVERS", func(rows []map[string]string) bool { return where(rows, "state", "active") != nil })
	return busy
}

func paused(want string) func([]map[string]string) bool {
	return func(rows []map[string]string) bool { return where(rows, "name", "app")["paused"] == want }
}

// TestPause: PAUSE answers when the last transaction has ended, clients wait
// meanwhile, RESUME lets them on.
func TestPause(t *testing.T) {
	r := newRig(t)
	c, other := r.admin(), r.admin()
	busy := r.holdClient(c)
	c.Send(pgtest.Query("PAUSE app"))
	await(t, other, "SHOW DATABASES", paused("1"))
	waiting := r.login(clientUser, "app")
	waiting.Send(pgtest.Query("select 2"))
	await(t, other, "SHOW POOLS", func(rows []map[string]string) bool { return where(rows, "database", "app")["cl_waiting"] == "1" })
	await(t, other, "SHOW CLIENTS", func(rows []map[string]string) bool { return where(rows, "state", "waiting") != nil })
	if got := say(other, "PAUSE two"); got != "PAUSE" {
		t.Error(got)
	}
	close(r.hold)
	c.Expect("C(PAUSE) Z(I)")
	busy.ReadUntilReady()
	if got := say(other, "RESUME app"); got != "RESUME" {
		t.Error(got)
	}
	waiting.Expect("T D(select 2) C(SELECT 1) Z(I)")
	if got := say(other, "RESUME"); got != "RESUME" { // two
		t.Error(got)
	}
	if got := say(c, "PAUSE"); got != "PAUSE" {
		t.Error(got)
	}
	for sql, want := range map[string]string{
		"PAUSE": "55000 already suspended/paused", "KILL": "55000 already suspended/paused", "RESUME app": "55000 database app is not paused",
	} {
		if got := say(c, sql); got != want {
			t.Errorf("%s: %s", sql, got)
		}
	}
	if _, rows := table(t, c, "SHOW STATE"); where(rows, "key", "paused")["value"] != "yes" {
		t.Errorf("state: %v", rows)
	}
	if got := say(c, "RESUME"); got != "RESUME" {
		t.Error(got)
	}
}

// TestPauseEnds: a PAUSE that waits is ended by RESUME, and by its client's
// leaving, however that happens; then nothing stays paused.
func TestPauseEnds(t *testing.T) {
	r := newRig(t)
	other := r.admin()
	busy := r.holdClient(other)
	c := r.admin()
	c.Send(pgtest.Query("PAUSE app"))
	await(t, other, "SHOW DATABASES", paused("1"))
	if got := say(other, "RESUME app"); got != "RESUME" {
		t.Error(got)
	}
	c.Expect("E(57014) Z(I)")
	if got := say(c, "SHOW VERSION"); got != "SHOW" {
		t.Error(got)
	}
	for name, leave := range map[string]func(*pgtest.RawClient){
		"reset": (*pgtest.RawClient).Reset, "terminate": (*pgtest.RawClient).Terminate, "close": (*pgtest.RawClient).Close,
		"killed": func(c *pgtest.RawClient) {
			_, rows := table(t, other, "SHOW CLIENTS")
			id := ""
			for _, x := range rows {
				if x["database"] == "pgproxy" {
					id = x["id"]
				}
			}
			if got := say(other, "KILL_CLIENT "+id); got != "KILL_CLIENT" {
				t.Error(got)
			}
			c.ExpectEOF()
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.login(adminUser, "pgproxy")
			c.Send(pgtest.Query("PAUSE app"))
			await(t, other, "SHOW DATABASES", paused("1"))
			leave(c)
			await(t, other, "SHOW DATABASES", paused("0"))
		})
	}
	// Two at once: the one that leaves does not undo the other's.
	a, b := r.login(adminUser, "pgproxy"), r.admin()
	a.Send(pgtest.Query("PAUSE app"))
	await(t, other, "SHOW DATABASES", paused("1"))
	b.Send(pgtest.Query("PAUSE app"))
	await(t, other, "SHOW CLIENTS", func(rows []map[string]string) bool {
		n := 0
		for _, x := range rows {
			if x["user"] == adminUser && x["state"] == "active" {
				n++
			}
		}
		return n == 3
	})
	b.Close()
	await(t, other, "SHOW LISTS", func(rows []map[string]string) bool { return where(rows, "list", "used_clients")["items"] == "4" })
	if _, rows := table(t, other, "SHOW DATABASES"); !paused("1")(rows) {
		t.Error("a PAUSE was undone by another client's leaving")
	}
	close(r.hold)
	a.Expect("C(PAUSE) Z(I)")
	busy.ReadUntilReady()
	if got := say(other, "RESUME app"); got != "RESUME" {
		t.Error(got)
	}
}

// TestKill: KILL cuts clients and servers of one database and leaves it paused,
// as PgBouncer does; the console lives on.
func TestKill(t *testing.T) {
	r := newRig(t)
	c := r.admin()
	busy, idle := r.holdClient(c), r.login(clientUser, "app")
	if got := say(c, "KILL app"); got != "KILL" {
		t.Error(got)
	}
	for _, x := range []*pgtest.RawClient{busy, idle} {
		msgs := x.ExpectEOF()
		if e := last(msgs); e == nil || e.Code != "57P01" || e.Message != "database removed" {
			t.Errorf("a killed client heard %s", pgtest.Trace(msgs))
		}
	}
	await(t, c, "SHOW DATABASES", paused("1"))
	close(r.hold)
	await(t, c, "SHOW SERVERS", func(rows []map[string]string) bool { return len(rows) == 0 })
	if got := say(c, "RESUME app"); got != "RESUME" {
		t.Error(got)
	}
	if got := r.login(clientUser, "app").Query("select 3"); got != "T D(select 3) C(SELECT 1) Z(I)" {
		t.Error(got)
	}
}

func TestKillClient(t *testing.T) {
	r := newRig(t)
	c := r.admin()
	app := r.login(clientUser, "app")
	rows := await(t, c, "SHOW CLIENTS", func(rows []map[string]string) bool { return where(rows, "user", clientUser) != nil })
	if got := say(c, "KILL_CLIENT "+where(rows, "user", clientUser)["id"]); got != "KILL_CLIENT" {
		t.Error(got)
	}
	if msgs := app.ExpectEOF(); len(msgs) != 1 || msgs[0].Err().Code != "57P01" || msgs[0].Err().Message != "admin forced disconnect" {
		t.Errorf("the killed client heard %s", pgtest.Trace(msgs))
	}
}

// last is the error that ends a client.
func last(msgs []pgtest.Msg) *wire.Error {
	if len(msgs) == 0 {
		return nil
	}
	return msgs[len(msgs)-1].Err()
}

// TestSuspend: SUSPEND answers when nothing is lent, keeps the idle connections,
// cuts what is not at rest after suspend_timeout, and holds back the others until
// RESUME.
func TestSuspend(t *testing.T) {
	r := newRig(t)
	r.Config.Proxy.SuspendTimeout = 200 * time.Millisecond
	c := r.admin()
	idle := r.login(clientUser, "app")
	idle.Query("select 1")
	// A client may see its answer a moment before its connection has come back.
	await(t, c, "SHOW SERVERS", func(rows []map[string]string) bool { return where(rows, "state", "idle") != nil })
	busy := r.holdClient(c)
	if got := say(c, "SUSPEND"); got != "SUSPEND" {
		t.Error(got)
	}
	if e := last(busy.ExpectEOF()); e == nil || e.Message != "suspend_timeout" {
		t.Errorf("the busy client heard %v", e)
	}
	if _, rows := table(t, c, "SHOW STATE"); where(rows, "key", "suspended")["value"] != "yes" || where(rows, "key", "active")["value"] != "no" {
		t.Errorf("state: %v", rows)
	}
	idle.Send(pgtest.Query("select 2"))
	await(t, c, "SHOW CLIENTS", func(rows []map[string]string) bool { return where(rows, "state", "waiting") != nil })
	if got := say(c, "RESUME"); got != "RESUME" {
		t.Error(got)
	}
	idle.Expect("T D(select 2) C(SELECT 1) Z(I)")
	if _, rows := table(t, c, "SHOW STATE"); where(rows, "key", "active")["value"] != "yes" {
		t.Errorf("state: %v", rows)
	}
	close(r.hold)
}

func TestDisable(t *testing.T) {
	r := newRig(t)
	c := r.admin()
	here := r.login(clientUser, "app")
	if got := say(c, "DISABLE app"); got != "DISABLE" {
		t.Error(got)
	}
	if _, rows := table(t, c, "SHOW DATABASES"); where(rows, "name", "app")["disabled"] != "1" {
		t.Errorf("databases: %v", rows)
	}
	if e := pgtest.DialRaw(t, r.Addr).TryLogin(clientUser, password, "database", "app"); e == nil {
		t.Error("a disabled database takes clients")
	}
	if got := here.Query("select 4"); got != "T D(select 4) C(SELECT 1) Z(I)" {
		t.Errorf("a client that was there: %s", got)
	}
	if got := say(c, "ENABLE app"); got != "ENABLE" {
		t.Error(got)
	}
	r.login(clientUser, "app")
}

// TestReconnect: idle connections go at once, a busy one when it comes back, and
// WAIT_CLOSE waits for that.
func TestReconnect(t *testing.T) {
	r := newRig(t)
	c, other := r.admin(), r.admin()
	busy := r.holdClient(c)
	_, before := table(t, c, "SHOW SERVERS")
	if got := say(c, "RECONNECT app"); got != "RECONNECT" {
		t.Error(got)
	}
	if _, rows := table(t, c, "SHOW SERVERS"); where(rows, "close_needed", "1")["ptr"] != where(before, "state", "active")["ptr"] {
		t.Errorf("servers: %v", rows)
	}
	c.Send(pgtest.Query("WAIT_CLOSE app"))
	await(t, other, "SHOW CLIENTS", func(rows []map[string]string) bool {
		n := 0
		for _, x := range rows {
			if x["user"] == adminUser && x["state"] == "active" {
				n++
			}
		}
		return n == 2
	})
	close(r.hold)
	c.Expect("C(WAIT_CLOSE) Z(I)")
	busy.ReadUntilReady()
	if _, rows := table(t, c, "SHOW SERVERS"); where(rows, "close_needed", "1") != nil {
		t.Errorf("servers: %v", rows)
	}
}

// TestWildcard: names that clients of "*" ask for have rows of their own.
func TestWildcard(t *testing.T) {
	r := newRig(t)
	star := *r.Config.Databases["app"]
	star.Name, star.DBName = "*", ""
	r.Config.Databases["*"] = &star
	c := r.admin()
	r.login(clientUser, "dynamic")
	rows := await(t, c, "SHOW DATABASES", func(rows []map[string]string) bool {
		return where(rows, "name", "dynamic")["current_client_connections"] == "1"
	})
	var names []string
	for _, x := range rows {
		names = append(names, x["name"])
	}
	if !slices.Equal(names, []string{"*", "app", "dynamic", "pgbouncer", "two"}) {
		t.Errorf("databases: %v", names)
	}
	if x := where(rows, "name", "dynamic"); x["port"] != fmt.Sprint(r.Fake.Port()) {
		t.Errorf("dynamic: %v", x)
	}
}
