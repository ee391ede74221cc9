package proxy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgproxy/pgtest"
	"pgproxy/wire"
)

// tryLogin logs in with the pairs given and returns the error.
func (h *harness) tryLogin(t *testing.T, user, password string, pairs ...string) (*pgtest.RawClient, *wire.Error) {
	t.Helper()
	a := pgtest.DialRaw(t, h.Addr)
	return a, a.TryLogin(user, password, pairs...)
}

func TestLoginRefusals(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1]})
	for _, v := range []struct {
		name, user, password string
		pairs                []string
		code, says           string
	}{
		{"unknown database", testUser, testPassword, []string{"database", "nowhere"}, "3D000", `database "nowhere" does not exist`},
		{"no database", testUser, testPassword, nil, "3D000", `database "alice" does not exist`},
		{"wrong password", testUser, "guess", []string{"database", "app"}, "28P01", `password authentication failed for user "alice"`},
		{"empty password", testUser, "", []string{"database", "app"}, "28P01", `password authentication failed for user "alice"`},
		{"unknown user", "mallory", "guess", []string{"database", "app"}, "28P01", `password authentication failed for user "mallory"`},
		{"unknown user and database", "mallory", "guess", []string{"database", "nowhere"}, "28P01", `password authentication failed for user "mallory"`},
		{"wrong password and unknown database", testUser, "guess", []string{"database", "nowhere"}, "28P01", `password authentication failed for user "alice"`},
		{"no user", "", "", []string{"database", "app"}, "28000", "no PostgreSQL user name"},
		{"replication", testUser, testPassword, []string{"database", "app", "replication", "true"}, "42501", "replication"},
		{"logical replication", testUser, testPassword, []string{"database", "app", "replication", "database"}, "42501", "replication"},
		{"bad value", testUser, testPassword, []string{"database", "app", "datestyle", "nonsense"}, "22023", `DateStyle`},
		{"unknown parameter", testUser, testPassword, []string{"database", "app", "no_such", "x"}, "42704", `unrecognized configuration parameter "no_such"`},
		{"unknown option", testUser, testPassword, []string{"database", "app", "options", "-c no_such=1"}, "42704", `unrecognized configuration parameter "no_such"`},
		{"bad option", testUser, testPassword, []string{"database", "app", "options", "-c work_mem=nonsense"}, "22023", "work_mem"},
	} {
		t.Run(v.name, func(t *testing.T) {
			a, e := h.tryLogin(t, v.user, v.password, v.pairs...)
			if e == nil {
				t.Fatal("let in")
			}
			if e.Severity != wire.SeverityFatal || e.Code != v.code || !strings.Contains(e.Message, v.says) {
				t.Errorf("got %v, want FATAL %s with %q", e, v.code, v.says)
			}
			if msgs := a.ExpectEOF(); len(msgs) > 0 {
				t.Errorf("behind the error came %s", pgtest.Trace(msgs))
			}
		})
	}
	// Whoever could be let in still is, on what those have left.
	if got, want := h.Client(t).Query("SHOW work_mem"), "T D(4MB) C(SHOW) Z(I)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestLoginFailuresLookAlike: nobody can tell by the messages whether a user
// exists.
func TestLoginFailuresLookAlike(t *testing.T) {
	c := realCluster(t)
	for _, way := range []string{"scram-sha-256", "plain", "md5"} {
		h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: fmt.Sprintf("auth_type = %q", way)})
		var traces []string
		for _, user := range []string{testUser, "nobody"} {
			a, e := h.tryLogin(t, user, "wrong", "database", "app")
			if e == nil {
				t.Fatalf("%s: %s was let in", way, user)
			}
			text := strings.ReplaceAll(fmt.Sprintf("%+v", *e), user, "USER")
			traces = append(traces, a.Trace()+" "+text)
		}
		if traces[0] != traces[1] {
			t.Errorf("%s:\nwrong password %s\nunknown user   %s", way, traces[0], traces[1])
		}
	}
}

func TestLoginParameters(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{
		Servers: addrs(c)[:1], Proxy: trust + "default_pool_size = 1\nignore_startup_parameters = [\"extra_float_digits\"]",
		More: fmt.Sprintf("[databases.alice]\ndbname = \"postgres\"\nservers = [{ host = \"127.0.0.1\", port = %d, role = \"primary\" }]\n", c.Primary.Port),
	})
	for _, v := range []struct {
		name  string
		pairs []string
		show  string
		want  string
	}{
		{"parameter", []string{"database", "app", "work_mem", "5MB"}, "work_mem", "5MB"},
		{"option", []string{"database", "app", "options", "-c work_mem=6MB"}, "work_mem", "6MB"},
		{"long option", []string{"database", "app", "options", "--work-mem=7MB"}, "work_mem", "7MB"},
		{"several options", []string{"database", "app", "options", `-c work_mem=8MB -c search_path=a,\ c -c geqo=off`}, "search_path", "a, c"},
		{"ignored option", []string{"database", "app", "options", "-c extra_float_digits=-5 -c work_mem=10MB"}, "work_mem", "10MB"},
		{"custom parameter", []string{"database", "app", "my.own", "it's"}, "my.own", "it's"},
		{"ignored", []string{"database", "app", "extra_float_digits", "-5"}, "extra_float_digits", "1"},
		{"application_name", []string{"database", "app", "application_name", "x'y\"z"}, "application_name", "x'y\"z"},
		{"no replication", []string{"database", "app", "replication", "false"}, "work_mem", "4MB"},
		{"encoding", []string{"database", "app", "client_encoding", "LATIN1"}, "client_encoding", "LATIN1"},
		{"database of the user's name", nil, "work_mem", "4MB"},
	} {
		t.Run(v.name, func(t *testing.T) {
			a, e := h.tryLogin(t, testUser, "", v.pairs...)
			if e != nil {
				t.Fatal(e)
			}
			for range 2 {
				if got, want := a.Query("SHOW "+v.show), "T D("+v.want+") C(SHOW) Z(I)"; got != want {
					t.Errorf("got %s, want %s", got, want)
				}
				// Nobody else has it.
				if got := h.Client(t).Query("SHOW work_mem"); got != "T D(4MB) C(SHOW) Z(I)" {
					t.Errorf("another client got %s", got)
				}
			}
			if got, there := a.Params[v.show]; there && got != v.want {
				t.Errorf("the login has reported %s = %s, want %s", v.show, got, v.want)
			}
		})
	}
}

// TestLoginReports: a login reports what one on the server reports.
func TestLoginReports(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1]})
	for _, pairs := range [][]string{nil, {"application_name", "x"}, {"datestyle", "German"}, {"timezone", "Asia/Tokyo", "client_encoding", "latin1"}} {
		d := pgtest.DialRaw(t, c.Primary.Addr())
		d.Login(testUser, testPassword, append([]string{"database", "postgres"}, pairs...)...)
		for range 2 { // the second time from memory
			p := h.Client(t, pairs...)
			for name, want := range d.Params {
				if got := p.Params[name]; got != want {
					t.Errorf("%q: %s is %q, want %q", pairs, name, got, want)
				}
			}
			if len(p.Params) != len(d.Params) {
				t.Errorf("%q: %d parameters, want %d", pairs, len(p.Params), len(d.Params))
			}
		}
	}
}

func TestMaxClientConn(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{Servers: addrs(c)[:1], Proxy: "max_client_conn = 2"})
	a, b := h.Client(t), h.Client(t)
	x, e := h.tryLogin(t, testUser, testPassword, "database", "app")
	if code(e) != wire.CodeTooManyConnections || !e.Fatal() {
		t.Fatalf("the third client got %v", e)
	}
	x.ExpectEOF()
	for _, c := range []*pgtest.RawClient{a, b} {
		if got, want := c.Query("SELECT 1"), "T D(1) C(SELECT 1) Z(I)"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if n := h.Server.Stats().Refused; n != 1 {
		t.Errorf("%d refused, want 1", n)
	}
	a.Terminate()
	eventually(t, 10*time.Second, "a free place", func() bool { return h.Server.Stats().Clients == 1 })
	h.Client(t).Query("SELECT 1")
}
