package main

import (
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

// TestPasswordsOfUsers: [users] gives a user a further password with a reload, which
// the log tells, and takes one away with the next; a client that is there stays.
func TestPasswordsOfUsers(t *testing.T) {
	c := appCluster(t)
	path := writeConfig(t, c, "", "")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p := startProcess(t, nil, "run", "-config", path)
	dsn := p.dsn(p.await(listening))
	login := func(password string) error {
		cfg, err := pgx.ParseConfig(dsn)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Password = password
		conn, err := pgx.ConnectConfig(t.Context(), cfg)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(t.Context()) }()
		_, err = conn.Exec(t.Context(), "SELECT 1")
		return err
	}
	stays := connect(t, dsn)
	if err := login("another"); err == nil {
		t.Error("logged in with a password that nobody has")
	}
	put(t, path, string(text)+"[users."+appUser+"]\npasswords = [\"another\"]\n")
	p.signal(syscall.SIGHUP)
	p.await(regexp.MustCompile(`users with several secrets, each of which is accepted: \[\\"` + appUser + `\\"\]`))
	p.await(regexp.MustCompile(`msg="configuration reloaded"`))
	for _, password := range []string{"another", appUser + " secret", "another"} {
		if err := login(password); err != nil {
			t.Errorf("with one of two passwords: %v", err)
		}
	}
	put(t, path, string(text))
	p.signal(syscall.SIGHUP)
	p.await(regexp.MustCompile(`(?s)msg="configuration reloaded".*msg="configuration reloaded"`))
	if err := login("another"); err == nil || !strings.Contains(err.Error(), "28P01") {
		t.Errorf("with a password that was taken away: %v", err)
	}
	if _, err := stays.Exec(t.Context(), "SELECT 1"); err != nil {
		t.Errorf("the client that was there: %v", err)
	}
}
