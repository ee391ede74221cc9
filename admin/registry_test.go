package admin

import (
	"slices"
	"strings"
	"testing"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// readOnlyWords is every word that a stats user may use. It stands here a second
// time so that a new entry cannot become readable by a slip of the pen.
var readOnlyWords = []string{
	"SHOW HELP", "SHOW VERSION", "SHOW CONFIG", "SHOW DATABASES", "SHOW POOLS", "SHOW POOLS_SERVERS", "SHOW STATS",
	"SHOW STATS_TOTALS", "SHOW STATS_AVERAGES", "SHOW TOTALS", "SHOW CLIENTS", "SHOW SERVERS", "SHOW SOCKETS",
	"SHOW ACTIVE_SOCKETS", "SHOW LISTS", "SHOW USERS", "SHOW STATE", "SHOW MEM", "SHOW DNS_HOSTS", "SHOW DNS_ZONES",
	"SHOW PEERS", "SHOW PEER_POOLS", "SHOW SERVERS_HEALTH", "SHOW HOSTS", "SHOW PINS", "SHOW AUDIT", "SHOW STATEMENTS", "SHOW LISTENERS", "SHOW ROUTES", "SHOW SHADOW", "SHOW SHAPES", "SHOW CATALOGS", "SHOW TOPOLOGY", "SHOW EVENTS",
	"SHOW CLIENT_ENCODING", "SHOW DEFAULT_TRANSACTION_ISOLATION", "SHOW STANDARD_CONFORMING_STRINGS", "SHOW DATESTYLE", "SHOW TIMEZONE",
}

// everyStatement has a statement for each entry of the registry, and the entry.
func everyStatement() map[string]*entry {
	all := make(map[string]*entry)
	for _, e := range shows {
		all["SHOW "+e.name] = e
	}
	for _, e := range commands {
		sql := e.name
		switch {
		case e.name == "SET":
			sql = "SET max_client_conn = 5"
		case e.name == "KILL_CLIENT":
			sql += " 123456"
		case e.name == "SWITCHOVER":
			sql += " app TO 10.0.0.9:5432"
		case e.arg == argRequired:
			sql += " app"
		}
		all[sql] = e
	}
	return all
}

// TestPrivileges is S-13: every entry of the registry against every kind of
// client, by both protocols.
func TestPrivileges(t *testing.T) {
	r := newRig(t)
	for _, user := range []string{adminUser, statsUser} {
		for _, database := range []string{"pgbouncer", "pgproxy"} {
			c := r.login(user, database)
			for sql, e := range everyStatement() {
				allowed := user == adminUser || slices.Contains(readOnlyWords, sql)
				if user == statsUser && e.readOnly != allowed {
					t.Errorf("%s: readOnly is %t", sql, e.readOnly)
				}
				variants := []string{sql, strings.ToLower(sql) + ";"}
				if rest, ok := strings.CutPrefix(sql, "SHOW "); ok {
					variants = append(variants, "select "+rest)
				}
				if e.arg == argOptional && e.name != "SET" && e.name != "SHUTDOWN" {
					variants = append(variants, sql+` "app"`)
				}
				for _, v := range variants {
					checkPrivilege(t, c, v, pgtest.Query(v), allowed)
					checkPrivilege(t, c, v, pgtest.Extended(v), allowed)
				}
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// Two databases, two variants, two protocols, by the admin alone.
	if r.reloads != 8 || len(r.shutdowns) != 8 {
		t.Errorf("%d reloads and shutdowns %q", r.reloads, r.shutdowns)
	}
}

func checkPrivilege(t *testing.T, c *pgtest.RawClient, name string, send []byte, allowed bool) {
	t.Helper()
	c.Send(send)
	var e *wire.Error
	for _, m := range c.ReadUntilReady() {
		if m.Type == wire.ErrorResponse {
			e = m.Err()
		}
		if e != nil && !allowed && strings.ContainsRune("TDCN", rune(m.Type)) {
			t.Errorf("%s: message %s", name, m)
		}
	}
	denied := e != nil && e.Code == wire.CodeInsufficientPrivilege && e.Message == "admin access needed"
	if denied == allowed {
		t.Errorf("%s: allowed is %t, the answer %v", name, allowed, e)
	}
}

// TestNobodyElse: who is not on the lists, or cannot prove it, does not reach the
// console.
func TestNobodyElse(t *testing.T) {
	r := newRig(t)
	for _, tt := range []struct{ name, user, password, code string }{
		{"a plain user", clientUser, password, wire.CodeInsufficientPrivilege},
		{"an admin with a wrong password", adminUser, "wrong", wire.CodeInvalidPassword},
		{"an admin with an empty password", adminUser, "", wire.CodeInvalidPassword},
		{"nobody", "nobody", password, wire.CodeInvalidPassword},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, db := range []string{"pgbouncer", "pgproxy"} {
				c := pgtest.DialRaw(t, r.Addr)
				if e := c.TryLogin(tt.user, tt.password, "database", db); e == nil || e.Code != tt.code {
					t.Errorf("%s: %v", db, e)
				}
			}
		})
	}
}

// TestUnauthenticated: a command in place of the password does nothing.
func TestUnauthenticated(t *testing.T) {
	r := newRig(t)
	c := pgtest.DialRaw(t, r.Addr)
	c.Startup("user", adminUser, "database", "pgbouncer")
	c.Read()
	_ = c.TrySend(pgtest.Query("SHUTDOWN"))
	c.ExpectEOF()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.shutdowns) != 0 {
		t.Error("SHUTDOWN was run")
	}
}

// TestHelp: SHOW HELP names every entry but those that are no use.
func TestHelp(t *testing.T) {
	r := newRig(t)
	c := r.admin()
	c.Send(pgtest.Query("show help"))
	msgs := c.Expect("N C(SHOW) Z(I)")
	help := msgs[0].Err()
	if help.Severity != "NOTICE" || help.Message != "Console usage" {
		t.Errorf("help: %+v", help)
	}
	for _, m := range []map[string]*entry{shows, commands} {
		for _, e := range m {
			if !strings.Contains(help.Detail, e.name) && !ignored(strings.ToLower(e.name)) {
				t.Errorf("SHOW HELP does not name %s", e.name)
			}
		}
	}
}
