package proxy_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgproxy/pgtest"
)

// askFunction gives away secrets to who may call it.
const askFunction = `CREATE OR REPLACE FUNCTION public.secret_of(name text, OUT rolname text, OUT secret text) LANGUAGE sql STABLE SECURITY DEFINER
	SET search_path = pg_catalog
	AS 'SELECT rolname::text, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END FROM pg_authid WHERE rolname = $1 AND rolcanlogin'`

// asked are the lines of [proxy] that have bob ask.
func asked(authType string) string {
	return fmt.Sprintf("auth_type = %q\nauth_user = %q\nauth_query = \"SELECT * FROM public.secret_of($1)\"\n", authType, otherUser)
}

// askCluster has a function for auth_query and some roles that are in no userlist.
func askCluster(t *testing.T) *pgtest.Cluster {
	t.Helper()
	c := realCluster(t)
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	for _, sql := range []string{
		askFunction, "REVOKE ALL ON FUNCTION public.secret_of FROM PUBLIC", "GRANT EXECUTE ON FUNCTION public.secret_of TO " + otherUser,
		"SET password_encryption = 'scram-sha-256'; DROP ROLE IF EXISTS asked, hashed, expired, nologin; " +
			"CREATE ROLE asked LOGIN PASSWORD 'asked secret'; " +
			"CREATE ROLE expired LOGIN PASSWORD 'expired secret' VALID UNTIL '2001-01-01'; " +
			"CREATE ROLE nologin PASSWORD 'nologin secret'; " +
			"SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN PASSWORD 'hashed secret'",
	} {
		if err := c.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.WaitCaughtUp(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// logsIn tries a login with a driver and asks the server who it is.
func logsIn(t *testing.T, h *harness, user, password string) error {
	t.Helper()
	host, port, _ := strings.Cut(h.Addr, ":")
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%s user=u password=p dbname=app sslmode=disable", host, port))
	if err != nil {
		t.Fatal(err)
	}
	cfg.User, cfg.Password = user, password
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(t.Context()) }()
	var name string
	if err := conn.QueryRow(t.Context(), "SELECT session_user::text").Scan(&name); err != nil {
		return err
	}
	if name != user {
		t.Errorf("the server takes %s for %s", user, name)
	}
	return nil
}

// TestAuthQuery: users that are in no userlist log in by the secret that a server
// has of them, and what their login has shown opens the servers: nobody here
// knows a password.
func TestAuthQuery(t *testing.T) {
	c := askCluster(t)
	for _, tt := range []struct {
		authType, user, password string
		wrong                    string
	}{
		{"scram-sha-256", "asked", "asked secret", ""},
		{"scram-sha-256", "asked", "wrong", "28P01"},
		{"scram-sha-256", "expired", "expired secret", "28P01"},
		{"scram-sha-256", "nologin", "nologin secret", "28P01"},
		{"scram-sha-256", "nobody", "secret", "28P01"},
		{"scram-sha-256", "x' OR '1'='1", "secret", "28P01"},
		{"scram-sha-256", otherUser, otherSecret, ""},
		{"md5", "asked", "asked secret", ""},
		{"plain", "asked", "asked secret", ""},
		{"plain", "asked", "wrong", "28P01"},
		{"md5", "hashed", "hashed secret", "28P01"}, // its servers want SCRAM, and a hash is all there is
	} {
		t.Run(tt.authType+"/"+tt.user+"/"+tt.password, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(c), Proxy: asked(tt.authType)})
			err := logsIn(t, h, tt.user, tt.password)
			switch {
			case tt.wrong == "" && err != nil:
				t.Error(err)
			case tt.wrong != "" && err == nil:
				t.Errorf("logged in, want %s", tt.wrong)
			case tt.wrong == "28P01" && !strings.Contains(err.Error(), "28P01"):
				t.Errorf("%v, want 28P01", err)
			}
		})
	}
}

// TestAuthQueryChange: after a change of the password the old one is of no use
// for long, and the new one works at once, also for connections to servers.
func TestAuthQueryChange(t *testing.T) {
	c := askCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: asked("scram-sha-256") + "auth_query_ttl = \"1h\"\n"})
	if err := logsIn(t, h, "asked", "asked secret"); err != nil {
		t.Fatal(err)
	}
	if err := c.Exec(t.Context(), "ALTER ROLE asked PASSWORD 'changed'"); err != nil {
		t.Fatal(err)
	}
	h.Pools.Reconnect("app")
	// The first login is checked against what is remembered, and has it forgotten.
	if err := logsIn(t, h, "asked", "changed"); err == nil {
		t.Error("nothing was remembered")
	}
	if err := logsIn(t, h, "asked", "changed"); err != nil {
		t.Errorf("with the new password: %v", err)
	}
	if err := logsIn(t, h, "asked", "asked secret"); err == nil {
		t.Error("the old password still works")
	}
}

// TestAuthQueryCleanRoom is S-08: nothing of a client that has not logged in yet
// reaches the connection that asks.
func TestAuthQueryCleanRoom(t *testing.T) {
	c := askCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: asked("scram-sha-256") + "auth_query_ttl = 0\n"})
	raw := pgtest.DialRaw(t, h.Addr)
	if err := raw.TryLogin("asked", "asked secret", "database", "app", "search_path", "evil", "options", "-c work_mem=64kB -c statement_timeout=1"); err != nil {
		t.Fatal(err)
	}
	got, err := c.Primary.Query(t.Context(), "postgres", "SELECT usename, application_name FROM pg_stat_activity WHERE application_name = 'pgproxy auth_query'")
	if err != nil || len(got) != 1 || got[0][0] != otherUser {
		t.Errorf("connections that ask: %v, %v", got, err)
	}
	raw.Terminate()
}

// TestAuthQueryFails: a query that does not work refuses the login, with words of
// its own and none of the server's.
func TestAuthQueryFails(t *testing.T) {
	c := askCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: fmt.Sprintf("auth_user = %q\nauth_query = \"SELECT 'canary' || broken FROM nowhere WHERE $1 <> ''\"\n", otherUser)})
	raw := pgtest.DialRaw(t, h.Addr)
	err := raw.TryLogin("asked", "asked secret", "database", "app")
	if err == nil || err.Code != "57P03" || strings.Contains(err.Message+err.Detail, "nowhere") {
		t.Errorf("answer %v", err)
	}
	eventually(t, 10*time.Second, "the log says why", func() bool { return strings.Contains(h.Log.Text(), "nowhere") })
}

// TestAuthQueryUsers is S-29: what is remembered is each user's own.
func TestAuthQueryUsers(t *testing.T) {
	c := askCluster(t)
	const n = 12
	for i := range n {
		if err := c.Exec(t.Context(), fmt.Sprintf("DROP ROLE IF EXISTS many%d; CREATE ROLE many%d LOGIN PASSWORD 'secret %d'", i, i, i)); err != nil {
			t.Fatal(err)
		}
	}
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: asked("scram-sha-256") + "max_user_connections = 1\n"})
	errs := make(chan error, 2*n)
	for i := range n {
		go func() {
			if err := logsIn(t, h, fmt.Sprintf("many%d", i), fmt.Sprintf("secret %d", i)); err != nil {
				errs <- fmt.Errorf("user %d: %w", i, err)
				return
			}
			errs <- nil
		}()
		go func() {
			if err := logsIn(t, h, fmt.Sprintf("many%d", i), fmt.Sprintf("secret %d", (i+1)%n)); err == nil {
				errs <- fmt.Errorf("user %d has logged in with another's password", i)
				return
			}
			errs <- nil
		}()
	}
	for range 2 * n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// TestAuthQueryIdentity: what auth_query returns opens nothing unless it is one row
// with the user's own name and a secret that fits (faults.md, S-03).
func TestAuthQueryIdentity(t *testing.T) {
	c := askCluster(t)
	for _, tt := range []struct{ name, query, code string }{
		{"no row", "SELECT 'asked', 'asked secret' WHERE $1::text IS NULL", "28P01"},
		{"another user's row", "SELECT 'other'::text, 'asked secret'::text WHERE $1::text <> ''", "28P01"},
		{"no user", "SELECT NULL::text, 'asked secret'::text WHERE $1::text <> ''", "28P01"},
		{"no secret", "SELECT $1::text, NULL::text", "28P01"},
		{"an empty secret", "SELECT $1::text, ''", "28P01"},
		{"two rows", "SELECT $1::text, 'asked secret' UNION ALL SELECT $1::text, 'other'", "57P03"},
		{"three columns", "SELECT $1::text, 'asked secret', 1", "57P03"},
		{"one column", "SELECT $1::text", "57P03"},
		{"a damaged secret", "SELECT $1::text, 'SCRAM-SHA-256$1:x$y:z'", "28P01"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, authType := range []string{"scram-sha-256", "plain"} {
				h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: fmt.Sprintf("auth_type = %q\nauth_user = %q\nauth_query = %q\n", authType, otherUser, tt.query)})
				for _, password := range []string{"pw", "", otherSecret, "NULL", "asked secret"} {
					if _, e := h.tryLogin(t, "asked", password, "database", "app"); code(e) != tt.code {
						t.Errorf("%s, password %q: %v, want %s", authType, password, e, tt.code)
					}
				}
			}
		})
	}
}

// TestAuthQueryExpiry: a password that expires, a role that may not log in any more
// and one that is gone are of no use after auth_query_ttl; those who are in stay
// (faults.md, S-07).
func TestAuthQueryExpiry(t *testing.T) {
	c := askCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: asked("scram-sha-256") + "auth_query_ttl = \"200ms\"\n"})
	for _, tt := range []struct{ role, end string }{
		{"ends_soon", "ALTER ROLE ends_soon VALID UNTIL '2001-01-01'"},
		{"ends_login", "ALTER ROLE ends_login NOLOGIN"},
		{"ends_all", "DROP ROLE ends_all"},
		{"ends_password", "ALTER ROLE ends_password PASSWORD NULL"},
	} {
		for _, sql := range []string{
			"SET password_encryption = 'scram-sha-256'", "DROP ROLE IF EXISTS " + tt.role,
			fmt.Sprintf("CREATE ROLE %s LOGIN PASSWORD 'pw' VALID UNTIL 'infinity'", tt.role),
		} {
			if err := c.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		in := pgtest.DialRaw(t, h.Addr)
		in.Login(tt.role, "pw", "database", "app")
		if err := c.Exec(t.Context(), tt.end); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, tt.end, func() bool {
			_, e := h.tryLogin(t, tt.role, "pw", "database", "app")
			return code(e) == "28P01"
		})
		if tt.role != "ends_all" { // whose server connection the server may end
			same(t, in, "SELECT 1", "T D(1) C(SELECT 1) Z(I)")
		}
		in.Terminate()
	}
}

// TestAuthQueryIsAllThatIsSent: a server sees of the connection that asks a login of
// its own and the query, with the name as a parameter (faults.md, S-08 and S-09).
func TestAuthQueryIsAllThatIsSent(t *testing.T) {
	s := pgtest.NewFakeServer(t, pgtest.Script{pgtest.AcceptLogin(), pgtest.ServeAll(func(string) (string, error) { return "", nil })}.Run)
	const query = "SELECT a, b FROM users WHERE name = $1"
	h := newHarness(t, harnessOptions{Servers: []string{s.Addr()}, Proxy: fmt.Sprintf("auth_user = %q\nauth_query = %q\n", otherUser, query)})
	const odd = "x'; DROP TABLE t; --\\"
	_, e := h.tryLogin(t, odd, "secret", "database", "app", "search_path", "evil", "role", "evil", "default_transaction_read_only", "evil",
		"session_preload_libraries", "evil", "application_name", "evil", "options", "-c search_path=evil -c role=evil")
	if code(e) != "57P03" { // the answer has one column
		t.Errorf("got %v", e)
	}
	conns := s.Conns()
	if len(conns) != 1 {
		t.Fatalf("%d connections", len(conns))
	}
	for _, p := range conns[0].StartupPacket().Params {
		if want := map[string]string{"user": otherUser, "database": "postgres", "application_name": "pgproxy auth_query"}; want[p[0]] != p[1] {
			t.Errorf("parameter %q", p)
		}
	}
	texts := 0
	for _, m := range conns[0].Messages() {
		body := string(m.Body)
		if strings.Contains(body, "evil") || m.Type != 'B' && strings.Contains(body, odd) {
			t.Errorf("message %s", m)
		}
		if m.Type == 'P' || m.Type == 'Q' {
			texts++
			if !strings.Contains(body, query) {
				t.Errorf("message %s", m)
			}
		}
	}
	if texts != 1 {
		t.Errorf("%d statements", texts)
	}
}
