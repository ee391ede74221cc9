package proxy_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// TestWarmPoolIsNoPassword: connections that are up, in whatever name, let nobody in
// (faults.md, S-14).
func TestWarmPoolIsNoPassword(t *testing.T) {
	c := realCluster(t)
	for _, way := range []string{"scram-sha-256", "md5", "plain"} {
		opt := harnessOptions{Servers: addrs(c)[:1], Proxy: fmt.Sprintf("auth_type = %q\n", way)}
		h := newHarness(t, opt)
		for _, state := range []string{"cold", "warm", "reloaded"} {
			for _, tt := range []struct {
				user, password string
				ok             bool
			}{
				{testUser, "wrong", false},
				{testUser, "", false},
				{testUser, otherSecret, false},
				{"nobody", testPassword, false},
				{otherUser, testPassword, false},
				{testUser, testPassword, true},
				{otherUser, otherSecret, true},
				{testUser, otherSecret, false},
			} {
				x, e := h.tryLogin(t, tt.user, tt.password, "database", "app")
				if (e == nil) != tt.ok || e != nil && e.Code != wire.CodeInvalidPassword {
					t.Errorf("%s, %s: %s with %q: %v", way, state, tt.user, tt.password, e)
				}
				if e == nil {
					same(t, x, "SELECT session_user", "T D("+tt.user+") C(SELECT 1) Z(I)")
				}
				x.Close()
			}
			if state == "warm" {
				h.apply(t, opt)
			}
		}
	}
}

// TestDescriptionsAreTheUsersOwn: what one user may read another is not told of, nor
// shown (faults.md, S-15).
func TestDescriptionsAreTheUsersOwn(t *testing.T) {
	c := realCluster(t)
	for _, sql := range []string{
		"DROP TABLE IF EXISTS private, tenants", "CREATE TABLE private (pin int)", "GRANT SELECT ON private TO " + testUser,
		"CREATE TABLE tenants (name text, fact text)", "INSERT INTO tenants SELECT 't' || i, 'of t' || i FROM generate_series(0, 9) i",
		"ALTER TABLE tenants ENABLE ROW LEVEL SECURITY", "CREATE POLICY own ON tenants USING (name = current_setting('app.tenant'))",
		"GRANT SELECT ON tenants TO public",
	} {
		if err := c.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "max_db_connections = 2\ndefault_pool_size = 1\n"})
	a, b := h.Client(t), pgtest.DialRaw(t, h.Addr)
	b.Login(otherUser, otherSecret, "database", "app")
	// PostgreSQL looks at the privileges when it executes.
	ask := pgtest.Join(pgtest.Parse("p", "SELECT * FROM private"), pgtest.Bind("", "p"), pgtest.Execute("", 0), pgtest.Sync(), pgtest.Close('S', "p"), pgtest.Sync())
	for range 3 {
		a.Send(ask)
		a.Expect("1 2 C(SELECT 0) Z(I) 3 Z(I)")
		b.Send(ask)
		if got := pgtest.Trace(b.ReadUntilReady()); !strings.HasSuffix(got, "E(42501) Z(I)") {
			t.Errorf("the other user got %s", got)
		}
		b.Expect("3 Z(I)")
	}
	for i := range 300 {
		who := fmt.Sprintf("t%d", i%10)
		one := a
		if i%2 == 1 {
			one = b
		}
		one.Send(pgtest.Query("BEGIN"), pgtest.Extended("SELECT set_config($1, $2, true)", "app.tenant", who), pgtest.Extended("SELECT fact FROM tenants"), pgtest.Query("COMMIT"))
		one.Expect("C(BEGIN) Z(T)")
		one.ReadUntilReady()
		if got := pgtest.Trace(one.ReadUntilReady()); !strings.Contains(got, "D(of "+who+")") || strings.Count(got, "D(") != 1 {
			t.Fatalf("tenant %s sees %s", who, got)
		}
		one.Expect("C(COMMIT) Z(I)")
	}
}

// TestSettingsOfAnyText: what a client has set is the same on every connection,
// whatever is in it, and no text becomes a statement (faults.md, S-09).
func TestSettingsOfAnyText(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "default_pool_size = 1\n"})
	other := h.Client(t, "application_name", "other", "search_path", "pg_catalog")
	pieces := []string{"'", "\"", "\\", ";", "--", "/*", "$1", "$$", "\n", " ", "", "ä", "€", "x", ",", "CREATE/**/TABLE/**/pwned()", "E'", "\x01"}
	random := rand.New(rand.NewPCG(1, 2))
	literal := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	for range 60 {
		values := make(map[string]string)
		for _, name := range []string{"my.own", "search_path", "application_name"} {
			var v strings.Builder
			for range random.IntN(6) {
				v.WriteString(pieces[random.IntN(len(pieces))])
			}
			values[name] = v.String()
		}
		// The one is set by the login, the others by statements.
		a := h.Client(t, "my.own", values["my.own"])
		for _, name := range []string{"search_path", "application_name"} {
			a.Query("SET " + name + " = " + literal(values[name]))
		}
		before := make(map[string]string)
		for round := range 3 {
			for name := range values {
				got := a.Query("SELECT encode(convert_to(current_setting(" + literal(name) + "), 'UTF8'), 'hex')")
				if round == 0 {
					before[name] = got
				} else if got != before[name] {
					t.Errorf("%s = %q was %s, is %s", name, values[name], before[name], got)
				}
			}
			same(t, other, "SELECT current_setting('application_name'), current_setting('search_path')", "T D(other,pg_catalog) C(SELECT 1) Z(I)")
		}
		want := fmt.Sprintf("T D(%x) C(SELECT 1) Z(I)", values["my.own"])
		if before["my.own"] != want {
			t.Errorf("my.own = %q: %s, want %s", values["my.own"], before["my.own"], want)
		}
		a.Terminate()
	}
	same(t, other, "SELECT to_regclass('public.pwned')", "T D(NULL) C(SELECT 1) Z(I)")
}
