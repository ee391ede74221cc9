package proxy_test

import (
	"strings"
	"sync"
	"testing"

	"pgproxy/pgtest"
)

// TestAuthFailureLimit: past the limit a client is refused before anything is asked,
// also with the right password; who comes from elsewhere, or is somebody else, is
// not; and what sends nothing, or leaves at the question, has not failed.
func TestAuthFailureLimit(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{
		Servers: addrs(c)[:1], Proxy: "auth_failure_limit = 3\nauth_failure_period = \"1h\"\nproxy_protocol = \"127.0.0.1\"\n",
	})
	from := func(addr string) *pgtest.RawClient {
		x := pgtest.DialRaw(t, h.Addr)
		x.Send([]byte("PROXY TCP4 " + addr + " 192.0.2.1 4711 6432\r\n"))
		return x
	}
	try := func(addr, user, password string) string {
		e := from(addr).TryLogin(user, password, "database", "app")
		if e == nil {
			return ""
		}
		return e.Code
	}
	const office, elsewhere = "198.51.100.7", "198.51.100.8"
	for range 10 {
		from(office).Close() // a health check
		x := from(office)
		x.Startup("user", testUser, "database", "app")
		x.Read() // what psql asks its user for
		x.Close()
	}
	for i := range 3 {
		if got := try(office, testUser, "wrong"); got != "28P01" {
			t.Errorf("wrong password %d: %q", i, got)
		}
	}
	for _, password := range []string{"wrong", testPassword} {
		x := from(office)
		x.Startup("user", testUser, "database", "app")
		if m := x.Read(); m.Err() == nil || m.Err().Code != "28000" || m.Err().Message != "too many failed logins" {
			t.Errorf("past the limit: %s", m)
		}
		if got := try(office, testUser, password); got != "28000" {
			t.Errorf("past the limit with %q: %q", password, got)
		}
	}
	if got := try(elsewhere, testUser, testPassword); got != "" {
		t.Errorf("the user from elsewhere: %q", got)
	}
	if got := try(office, otherUser, otherSecret); got != "" {
		t.Errorf("another user from there: %q", got)
	}
	if n := strings.Count(h.Log.Text(), "auth_failure_limit is reached"); n != 1 {
		t.Errorf("%d lines in the log, want one", n)
	}
	if n := h.Server.Stats().Limited; n != 4 {
		t.Errorf("%d logins counted as refused", n)
	}
}

// TestAuthFailureLimitAtOnce: logins that all begin before the first has failed are
// looked at again when their passwords come.
func TestAuthFailureLimitAtOnce(t *testing.T) {
	c := realCluster(t)
	h := newHarness(t, harnessOptions{
		Servers: addrs(c)[:1], Proxy: "auth_type = \"plain\"\nauth_failure_limit = 3\nauth_failure_period = \"1h\"\n",
	})
	var all []*pgtest.RawClient
	for range 40 {
		x := pgtest.DialRaw(t, h.Addr)
		x.Startup("user", testUser, "database", "app")
		x.Read()
		all = append(all, x)
	}
	var mu sync.Mutex
	codes := make(map[string]int)
	var wg sync.WaitGroup
	for _, x := range all {
		wg.Go(func() {
			if x.TrySend(pgtest.Message('p', []byte("wrong\x00"))) != nil {
				return
			}
			m, err := x.TryRead()
			if err != nil || m.Err() == nil {
				t.Errorf("%v %v", m, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			codes[m.Err().Code]++
		})
	}
	wg.Wait()
	// Those that were looked at in the same moment may be more than three.
	if codes["28000"] < 20 || codes["28P01"] < 3 {
		t.Errorf("answers: %v", codes)
	}
}

// TestAuthFailureLimitReload: the counts outlive a reload, and a limit that was
// taken away counts no more.
func TestAuthFailureLimitReload(t *testing.T) {
	c := realCluster(t)
	opt := harnessOptions{Servers: addrs(c)[:1], Proxy: "auth_failure_limit = 2\nauth_failure_period = \"1h\"\n"}
	h := newHarness(t, opt)
	try := func(password string) string {
		x := pgtest.DialRaw(t, h.Addr)
		if e := x.TryLogin(testUser, password, "database", "app"); e != nil {
			return e.Code
		}
		return ""
	}
	try("wrong")
	try("wrong")
	h.apply(t, opt)
	if got := try(testPassword); got != "28000" {
		t.Errorf("behind a reload: %q", got)
	}
	opt.Proxy = ""
	h.apply(t, opt)
	if got := try(testPassword); got != "" {
		t.Errorf("without a limit: %q", got)
	}
}
