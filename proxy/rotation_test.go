package proxy_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"pgproxy/auth"
	"pgproxy/config"
	"pgproxy/pgtest"
	"pgproxy/proxy"
)

// reloadUsers puts another userlist in force, as RELOAD does.
func (h *harness) reloadUsers(t *testing.T, cfg *config.Config, lines ...string) {
	t.Helper()
	if err := os.WriteFile(cfg.Proxy.AuthFile, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	users, err := auth.LoadUserlist(cfg.Proxy.AuthFile)
	if err != nil {
		t.Fatal(err)
	}
	a := h.Server.Settings().Auth.Reload(cfg.Proxy.AuthType, users, nil, nil)
	h.Server.Apply(&proxy.Settings{Config: cfg, Users: users, Auth: a})
	h.Pools.Apply(cfg)
}

// TestPasswordRotation: the proxy is told the new password before the server has it,
// both are good for a while, and then the old one goes. Nobody is disconnected, and
// the server is asked with what works.
func TestPasswordRotation(t *testing.T) {
	c := realCluster(t)
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	exec := func(sql string) {
		t.Helper()
		if err := c.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	secretOf := func(password string) string { // as pg_authid has it
		exec("SET password_encryption = 'scram-sha-256'; DROP ROLE IF EXISTS rotating_twin; CREATE ROLE rotating_twin PASSWORD " + pgtest.QuoteLiteral(password))
		rows, err := c.Query(ctx, "SELECT rolpassword FROM pg_authid WHERE rolname = 'rotating_twin'")
		if err != nil {
			t.Fatal(err)
		}
		exec("DROP ROLE rotating_twin")
		return rows[0][0]
	}
	for _, authType := range []string{"plain", "md5", "scram-sha-256", "SCRAM secrets"} {
		t.Run(authType, func(t *testing.T) {
			exec("DROP ROLE IF EXISTS rotating; CREATE ROLE rotating LOGIN PASSWORD 'old pw'")
			t.Cleanup(func() { exec("DROP ROLE rotating") })
			old, fresh, method := "old pw", "new pw", authType
			hidden := authType == "SCRAM secrets"
			if hidden {
				// The server has the very secrets that the proxy has.
				method, old, fresh = "scram-sha-256", secretOf("old pw"), secretOf("new pw")
				exec("ALTER ROLE rotating PASSWORD " + pgtest.QuoteLiteral(old))
			}
			line := func(s string) string { return fmt.Sprintf("\"rotating\" \"%s\"", s) }
			opt := harnessOptions{Servers: addrs(c)[:1], Proxy: fmt.Sprintf("auth_type = %q\n", method), Database: "read_write_split = \"off\"\n"}
			h := newHarness(t, opt)
			cfg := h.Server.Settings().Config
			h.reloadUsers(t, cfg, line(old))
			try := func(password string) (*pgtest.RawClient, string) {
				x := pgtest.DialRaw(t, h.Addr)
				if e := x.TryLogin("rotating", password, "database", "app"); e != nil {
					return nil, e.Code
				}
				return x, ""
			}
			gets := func(what, password string, tries int) *pgtest.RawClient {
				t.Helper()
				for n := 1; ; n++ {
					x, code := try(password)
					if x != nil {
						if got := x.Query("SELECT session_user::text"); !strings.Contains(got, "D(rotating)") {
							t.Errorf("%s: %s", what, got)
						}
						return x
					}
					if code != "28P01" || n == tries {
						t.Fatalf("%s: %s at try %d", what, code, n)
					}
				}
			}
			stays := gets("before", "old pw", 1)
			if _, code := try("new pw"); code != "28P01" {
				t.Errorf("the new password, which nobody knows yet: %q", code)
			}
			tries := 1
			if hidden {
				tries = 2
			}

			h.reloadUsers(t, cfg, line(old), line(fresh)) // the last is the newest
			h.Pools.Reconnect("")
			gets("the old one, of two", "old pw", tries)
			if hidden {
				// Nobody has shown the new one that the server has not yet: the old one
				// is what opens it.
				x, _ := try("new pw")
				if x == nil {
					x, _ = try("new pw")
				}
				if x == nil {
					t.Fatal("the new one, of two: refused twice")
				}
				h.Pools.Reconnect("")
				if got := x.Query("SELECT 1"); !strings.Contains(got, "D(1)") {
					t.Errorf("the new one, of two: %s", got)
				}
			} else {
				gets("the new one, of two, which the server does not know", "new pw", tries)
			}

			exec("ALTER ROLE rotating PASSWORD " + pgtest.QuoteLiteral(fresh))
			h.Pools.Reconnect("")
			gets("the new one, which the server has by now", "new pw", tries)
			gets("the old one, which it has not any more", "old pw", tries)
			same(t, stays, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")

			h.reloadUsers(t, cfg, line(fresh))
			h.Pools.Reconnect("")
			gets("the new one, alone", "new pw", 1)
			for range 3 {
				if _, code := try("old pw"); code != "28P01" {
					t.Errorf("the old one, which is gone: %q", code)
				}
			}
			same(t, stays, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
		})
	}
}

// TestRotationOfForcedUser: a database's own user has the secrets of the userlist.
func TestRotationOfForcedUser(t *testing.T) {
	c := realCluster(t)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	exec := func(sql string) {
		t.Helper()
		if err := c.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	exec("DROP ROLE IF EXISTS forced; CREATE ROLE forced LOGIN PASSWORD 'first pw'")
	t.Cleanup(func() {
		if err := c.Exec(context.Background(), "DROP ROLE forced"); err != nil {
			t.Error(err)
		}
	})
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: trust, Database: "user = \"forced\"\nread_write_split = \"off\"\n"})
	cfg := h.Server.Settings().Config
	h.reloadUsers(t, cfg, `"forced" "first pw"`, `"forced" "second pw"`, fmt.Sprintf("%q %q", testUser, testPassword))
	a := h.Client(t)
	same(t, a, "SELECT session_user::text", "T D(forced) C(SELECT 1) Z(I)")
	exec("ALTER ROLE forced PASSWORD 'second pw'")
	h.Pools.Reconnect("")
	same(t, a, "SELECT session_user::text", "T D(forced) C(SELECT 1) Z(I)")
	h.Pools.Reconnect("") // by now it knows which
	same(t, a, "SELECT session_user::text", "T D(forced) C(SELECT 1) Z(I)")
	for _, st := range h.Pools.Stats() {
		if st.LoginFail != 0 {
			t.Errorf("%d failed logins are counted", st.LoginFail)
		}
	}
}
