package proxy_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgproxy/backend"
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
	a.Query("BEGIN")
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
