package proxy_test

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"pgproxy/auth"
	"pgproxy/pgtest"
	"pgproxy/proxy"
)

// passwordServer lets in who knows the secret.
func passwordServer(t *testing.T, secret *atomic.Pointer[string]) *pgtest.FakeServer {
	return pgtest.NewFakeServer(t, func(f *pgtest.FakeConn) error {
		if _, err := f.ReadStartup(); err != nil {
			return err
		}
		if err := f.RequirePassword("plain", *secret.Load()); err != nil {
			return err
		}
		if err := f.Send(f.Welcome()); err != nil {
			return err
		}
		return f.Serve(pgtest.Echo)
	})
}

// TestReloadKeepsPassword: the password of a database's user may stand in the
// userlist alone.
func TestReloadKeepsPassword(t *testing.T) {
	var secret atomic.Pointer[string]
	now := otherSecret
	secret.Store(&now)
	srv := passwordServer(t, &secret)
	opt := harnessOptions{Servers: []string{srv.Addr()}, Database: fmt.Sprintf("user = %q", otherUser)}
	h := newHarness(t, opt)
	a := h.Client(t)
	a.Query("one")
	h.apply(t, opt)
	h.Pools.Reconnect("")
	if got := a.Query("two"); !strings.Contains(got, "D(two)") {
		t.Errorf("after an unchanged RELOAD and RECONNECT: %s", got)
	}
}

// TestChangedPasswordReachesServers: of new clients and of those that have been
// there before.
func TestChangedPasswordReachesServers(t *testing.T) {
	var secret atomic.Pointer[string]
	was, is := testPassword, "new secret"
	secret.Store(&was)
	srv := passwordServer(t, &secret)
	opt := harnessOptions{Servers: []string{srv.Addr()}}
	h := newHarness(t, opt)
	a, b := h.Client(t), h.Client(t)
	a.Query("one")
	secret.Store(&is)
	cfg := parseConfig(t, opt)
	list := fmt.Sprintf("%q %q\n", testUser, is)
	if err := os.WriteFile(cfg.Proxy.AuthFile, []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	users, err := auth.LoadUserlist(cfg.Proxy.AuthFile)
	if err != nil {
		t.Fatal(err)
	}
	h.Server.Apply(&proxy.Settings{Config: cfg, Users: users, Auth: auth.New(cfg.Proxy.AuthType, users, nil, nil)})
	h.Pools.Apply(cfg)
	for name, client := range map[string]func() *pgtest.RawClient{
		"one that was there": func() *pgtest.RawClient { return b },
		"a new one": func() *pgtest.RawClient {
			c := pgtest.DialRaw(t, h.Addr)
			c.Login(testUser, is, "database", "app")
			return c
		},
	} {
		h.Pools.Reconnect("")
		if got := client().Query("two"); !strings.Contains(got, "D(two)") {
			t.Errorf("%s: %s", name, got)
		}
	}
}
