package proxy_test

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/backend"
	"pgproxy/pgtest"
	"pgproxy/pool"
)

// TestSettingsAndTimeouts: a client's short timeout does not keep the next one from its
// own settings.
func TestSettingsAndTimeouts(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	a, b := h.Client(t), h.Client(t)
	a.Query("SET search_path = short_a")
	a.Query("SET statement_timeout = 1")
	b.Query("SET search_path = short_b")
	for range 300 {
		a.Query("SELECT 1") // may run into it
		same(t, b, "SELECT current_setting('search_path') || current_setting('statement_timeout')", "T D(short_b0) C(SELECT 1) Z(I)")
	}
}

// TestSettingsSetUnderTimeout: a SET that has succeeded is the client's, even if the
// question behind it runs into the client's timeout.
func TestSettingsSetUnderTimeout(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
	a, b := h.Client(t), h.Client(t)
	a.Query("SET statement_timeout = 1")
	for i := range 300 {
		v := "under_" + strings.Repeat("q", 1+i%7)
		if got := a.Query("SET search_path = " + v); !strings.Contains(got, "C(SET)") {
			continue
		}
		same(t, b, "SHOW search_path", `T D("$user", public) C(SHOW) Z(I)`)
		if got := a.Query("SHOW search_path"); !strings.Contains(got, "E(57014)") && !strings.Contains(got, "D("+v+")") {
			t.Fatalf("SHOW search_path: %s, want %s", got, v)
		}
	}
}

// TestSettingsTooLong: a setting that is too long to be carried along keeps its
// connection until it is gone.
func TestSettingsTooLong(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 2"})
	a, b := h.Client(t), h.Client(t)
	begin(a)
	a.Query("SET my.big = '" + strings.Repeat("x", 40000) + "'")
	a.Query("COMMIT")
	pinned := func() bool {
		return slices.ContainsFunc(h.Pools.Servers(), func(x pool.ServerInfo) bool { return x.Pinned == backend.PinHidden })
	}
	eventually(t, 10*time.Second, "the pin", pinned)
	for range 2 {
		same(t, a, "SELECT length(current_setting('my.big', true))", "T D(40000) C(SELECT 1) Z(I)")
		same(t, b, "SELECT coalesce(current_setting('my.big', true), '')", "T D() C(SELECT 1) Z(I)")
	}
	same(t, a, "DISCARD ALL", "C(DISCARD ALL) Z(I)")
	eventually(t, 10*time.Second, "the end of the pin", func() bool { return !pinned() })
}

// TestSettingsAdoptedElsewhere: a cancel or an end that comes while the server is sent
// nothing but settings is not the client's: another connection takes them over.
func TestSettingsAdoptedElsewhere(t *testing.T) {
	c := realCluster(t)
	if err := c.Exec(t.Context(), "CREATE ROLE adopter; GRANT adopter TO "+testUser); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Exec(context.Background(), "DROP ROLE adopter"); err != nil {
			t.Error(err)
		}
	})
	for _, how := range []string{"pg_cancel_backend", "pg_terminate_backend"} {
		t.Run(how, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1"})
			a, b := h.Client(t), h.Client(t)
			same(t, b, "SET ROLE adopter", "C(SET) Z(I)")
			same(t, a, "SELECT current_user", "T D("+testUser+") C(SELECT 1) Z(I)")
			// The server must look the role up anew, and waits for that.
			if err := c.Exec(t.Context(), "ALTER ROLE adopter CONNECTION LIMIT 9"); err != nil {
				t.Fatal(err)
			}
			conn, err := pgconn.Connect(t.Context(), c.Primary.DSN("postgres", c.Superuser))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close(context.Background()) }()
			exec := func(sql string) string {
				r, err := conn.Exec(t.Context(), sql).ReadAll()
				if err != nil {
					t.Fatal(err)
				}
				if rows := r[len(r)-1].Rows; len(rows) > 0 {
					return string(rows[0][0])
				}
				return ""
			}
			exec("BEGIN; LOCK pg_authid")
			b.Send(pgtest.Query("SELECT current_user"))
			waits := " FROM pg_locks WHERE NOT granted AND relation = 'pg_authid'::regclass AND pid = " + strconv.Itoa(int(h.server(t).PID))
			eventually(t, 10*time.Second, "the server to wait", func() bool { return exec("SELECT count(*)"+waits) == "1" })
			exec("SELECT count(" + how + "(pid))" + waits)
			exec("COMMIT")
			if got := pgtest.Trace(b.ReadUntilReady()); got != "T D(adopter) C(SELECT 1) Z(I)" {
				t.Errorf("got %s", got)
			}
		})
	}
}
