package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgproxy/config"
	"pgproxy/pgtest"
)

// TestLDAPLogins: a user whom only a directory knows logs in, and its password opens
// the server. A directory that has stopped answering holds up nobody else.
func TestLDAPLogins(t *testing.T) {
	cluster := appCluster(t)
	s := pgtest.StartSlapd(t, fmt.Sprintf(`dn: uid=%s,dc=example,dc=net
objectClass: account
objectClass: simpleSecurityObject
uid: %[1]s
userPassword: %[1]s secret
`, statsUser))
	relay := pgtest.NewRelay(t, fmt.Sprintf("127.0.0.1:%d", s.Port))
	hba := filepath.Join(t.TempDir(), "hba")
	put(t, hba, fmt.Sprintf(`host all %s all ldap
host app "%s" all ldap ldapserver=127.0.0.1 ldapport=%d ldapprefix="uid=" ldapsuffix=",dc=example,dc=net"
host all all all scram-sha-256
`, adminUser, statsUser, relay.Port()))
	more := func(options string) string {
		return fmt.Sprintf("auth_type = \"hba\"\nauth_hba_file = %q\nauth_ldap_options = '%s'\n", hba, options)
	}
	if _, err := loadSettings(mustLoad(t, writeConfig(t, cluster, more(""), "")), nil); err == nil || !strings.Contains(err.Error(), "line 1 has ldap without options") {
		t.Errorf("no options: %v", err)
	}
	if _, err := loadSettings(mustLoad(t, writeConfig(t, cluster, more("ldapserver=x"), "")), nil); err == nil || !strings.Contains(err.Error(), "want ldapbasedn") {
		t.Errorf("half the options: %v", err)
	}
	a := startApp(t, cluster, more(fmt.Sprintf("ldapurl=\"ldap://127.0.0.1:%d/dc=example,dc=net?uid?sub\"", relay.Port())), "")
	ctx, stop := context.WithTimeout(t.Context(), 40*time.Second)
	defer stop()
	login := func(ctx context.Context, user, password string) (string, error) {
		conn, err := pgx.Connect(ctx, fmt.Sprintf("host=127.0.0.1 port=%d dbname=app user=%s password='%s' sslmode=disable", a.port(), user, password))
		if err != nil {
			return "", err
		}
		defer func() { _ = conn.Close(context.Background()) }()
		var who string
		err = conn.QueryRow(ctx, "SELECT session_user").Scan(&who)
		return who, err
	}
	if who, err := login(ctx, statsUser, statsUser+" secret"); err != nil || who != statsUser {
		t.Errorf("%q, %v", who, err)
	}
	if _, err := login(ctx, statsUser, "x"); err == nil || !strings.Contains(err.Error(), "28P01") {
		t.Errorf("wrong password: %v", err)
	}
	eventually(t, 10*time.Second, "the ends of those", func() bool { return relay.Active() == 0 })
	relay.SetBoth(pgtest.Fault{Blackhole: true})
	var waiting []<-chan error
	for range 40 {
		done := make(chan error, 1)
		waiting = append(waiting, done)
		go func() {
			_, err := login(ctx, statsUser, statsUser+" secret")
			done <- err
		}()
	}
	eventually(t, 10*time.Second, "logins at the directory", func() bool { return relay.Active() >= 16 })
	if who, err := login(ctx, appUser, appUser+" secret"); err != nil || who != appUser {
		t.Errorf("another user meanwhile: %q, %v", who, err)
	}
	if n := relay.Active(); n > 16 {
		t.Errorf("%d connections to the directory", n)
	}
	for _, done := range waiting {
		if err := <-done; err == nil || !strings.Contains(err.Error(), "57P03") {
			t.Errorf("while the directory is silent: %v", err)
		}
	}
	relay.Heal()
	if who, err := login(ctx, statsUser, statsUser+" secret"); err != nil || who != statsUser {
		t.Errorf("after all that: %q, %v", who, err)
	}
}

func mustLoad(t *testing.T, path string) *config.Config {
	t.Helper()
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestPAMIsBuiltIn: a program without PAM says so before it serves anybody.
func TestPAMIsBuiltIn(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "c.toml"), "[proxy]\nauth_type = \"pam\"\n[databases.app]\nservers = [{ host = \"h\", role = \"primary\" }]\n")
	if _, err := loadSettings(mustLoad(t, filepath.Join(dir, "c.toml")), nil); err == nil || !strings.Contains(err.Error(), "-tags pam") {
		t.Errorf("%v", err)
	}
}
