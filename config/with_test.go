package config

import (
	"strings"
	"testing"
	"time"
)

// TestWith: a value that the console sets, in the words of either file.
func TestWith(t *testing.T) {
	toml, err := Parse("pgproxy.toml", []byte("[proxy]\npool_mode = \"session\"\n[databases.a]\nhost = \"h\"\nuser = \"u\"\npassword = \"canary\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	ini, err := Parse("pgbouncer.ini", []byte("[databases]\na = host=h\n[pgbouncer]\nauth_file = u\npool_mode = session\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		cfg        *Config
		key, value string
		look       string // a key of flatten
		want       string // what it is then, or what the error has
	}{
		{toml, "query_timeout", "7", "proxy.query_timeout", "7s"},
		{toml, "query_timeout", "0.5", "proxy.query_timeout", "500ms"},
		{toml, "query_timeout", "2m", "proxy.query_timeout", "120s"},
		{toml, "default_pool_size", "3", "databases.a.pool_size", "3"},
		{toml, "pool_mode", "transaction", "databases.a.pool_mode", "transaction"},
		{toml, "log_connections", "0", "proxy.log_connections", "false"},
		{toml, "log_connections", "on", "proxy.log_connections", "true"},
		{toml, "admin_users", "a, b", "proxy.admin_users", "a,b"},
		{toml, "dns_max_ttl", "15", "proxy.pool_mode", "session"}, // PgBouncer's, which means nothing here
		{toml, "pool_mode", "canary", "", "unknown word"},
		{toml, "default_pool_size", "many", "", "want an integer"},
		{toml, "min_pool_size", "500", "", "more than default_pool_size"},
		{toml, "monitor_password", "canary", "", "a password is not set here"},
		{toml, "nonsense", "1", "", "unknown key"},
		{ini, "tcp_user_timeout", "1500", "proxy.tcp_user_timeout", "1500ms"},
		{ini, "server_check_query", "", "proxy.server_check_query", "off"},
		{ini, "verbose", "2", "proxy.log_level", "debug"},
		{ini, "default_pool_size", "0", "databases.a.pool_size", "0"},
		{ini, "http_listen", "127.0.0.1:1", "proxy.http_listen", "127.0.0.1:1"},
		{ini, "log_connections", "yes", "", "no integer"},
		{ini, "auth_type", "ldap", "", "needs auth_ldap_options"},
		{ini, "auth_type", "pam", "proxy.auth_type", "pam"},
		{toml, "auth_ldap_options", "canary", "", "a password is not set here"},
	} {
		before := flatten(tt.cfg)
		got, err := tt.cfg.With(tt.key, tt.value)
		switch {
		case tt.look == "":
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s = %s: error %v, want %q", tt.key, tt.value, err, tt.want)
			}
		case err != nil:
			t.Errorf("%s = %s: %v", tt.key, tt.value, err)
		case flatten(got)[tt.look] != tt.want:
			t.Errorf("%s = %s: %s is %q, want %q", tt.key, tt.value, tt.look, flatten(got)[tt.look], tt.want)
		}
		for k, v := range flatten(tt.cfg) {
			if before[k] != v {
				t.Errorf("%s = %s has changed %s of the configuration that it began with", tt.key, tt.value, k)
			}
		}
	}
	// One after another.
	one, err := toml.With("query_timeout", "7")
	if err != nil {
		t.Fatal(err)
	}
	two, err := one.With("client_idle_timeout", "8")
	if err != nil {
		t.Fatal(err)
	}
	if two.Proxy.QueryTimeout != 7*time.Second || two.Proxy.ClientIdleTimeout != 8*time.Second || two.Databases["a"].Password != "canary" {
		t.Errorf("%+v", two.Proxy)
	}
}
