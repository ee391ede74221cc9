package config

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestKeysAndValues holds Keys, Values and what the tables accept together: each
// default can be written in a file as Values shows it.
func TestKeysAndValues(t *testing.T) {
	keys := Keys()
	if !slices.IsSortedFunc(keys, func(a, b Key) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("the keys are not in alphabetical order")
	}
	def := &Config{Proxy: defaultProxy()}
	values := def.Values()
	if len(values) != len(keys) {
		t.Errorf("%d values for %d keys: a name stands twice", len(values), len(keys))
	}
	for _, k := range keys {
		if v, ok := values[k.Name]; !ok || v != k.Default {
			t.Errorf("%s: value %q (there: %t), default %q", k.Name, v, ok, k.Default)
		}
	}
	var restart []string
	for _, k := range keys {
		if !k.Changeable {
			restart = append(restart, k.Name)
		}
	}
	if want := []string{
		"http_listen", "listen_addr", "listen_port", "peer_id", "pidfile", "so_reuseport", "unix_socket_dir", "unix_socket_group",
		"unix_socket_mode", "user",
	}; !slices.Equal(restart, want) {
		t.Errorf("a restart is needed for %v, want %v", restart, want)
	}
	for _, k := range proxyKeys {
		if (strings.Contains(k.name, "password") || k.name == "auth_ldap_options") != k.secret {
			t.Errorf("%s: secret is %t", k.name, k.secret)
		}
	}
	def.Proxy.MonitorPassword = "canary"
	if got := def.Values()["monitor_password"]; got != stars {
		t.Errorf("monitor_password shows as %q", got)
	}
}

// TestValuesAreFields: a key that writes into another key's field would change
// two values.
func TestValuesAreFields(t *testing.T) {
	for _, k := range proxyKeys {
		def := &Config{Proxy: defaultProxy()}
		before := def.Values()
		var other any
		for _, v := range []any{int64(4096), true, false, "debug", "session", "md5", "127.0.0.9:99", "127.0.0.9", int64(9), "0700", "local0", "require", "direct", "tlsv1.3", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"} {
			x := defaultProxy()
			if k.set(&x, v) == nil && k.show(&x) != before[k.name] {
				other = v
				break
			}
		}
		if other == nil {
			t.Errorf("%s: no other value found", k.name)
			continue
		}
		if err := k.set(&def.Proxy, other); err != nil {
			t.Fatal(err)
		}
		for name, v := range def.Values() {
			if (v != before[name]) != (name == k.name) {
				t.Errorf("setting %s makes %s %q, before %q", k.name, name, v, before[name])
			}
		}
	}
}

// TestExample loads pgproxy.toml.example: it shows every key, with its default.
func TestExample(t *testing.T) {
	text, err := os.ReadFile("../pgproxy.toml.example")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := Parse("pgproxy.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Warnings) > 0 {
		t.Errorf("warnings: %q", cfg.Warnings)
	}
	values := cfg.Values()
	for _, k := range Keys() {
		if values[k.Name] != k.Default {
			t.Errorf("%s is %q, the default %q", k.Name, values[k.Name], k.Default)
		}
	}
	_, rest, ok := strings.Cut(string(text), "\n[databases.app]")
	proxy := strings.TrimSuffix(string(text), rest)
	database, user, ok2 := strings.Cut(rest, "\n[users.")
	if !ok || !ok2 {
		t.Fatal("the sections are not proxy, databases.app, users")
	}
	shows(t, "[proxy]", proxy, `(?m)^%s = `, proxyKeys)
	shows(t, "[databases.app]", database, `(?m)^(# {1,3})?%s = `, databaseKeys)
	shows(t, "servers", database, `[{,] %s = `, serverKeys)
	shows(t, "[users.NAME]", user, `(?m)^%s = `, userKeys)
	for _, k := range Keys() {
		line := regexp.MustCompile(`(?m)^` + k.Name + ` = .*`).FindString(proxy)
		if strings.HasSuffix(line, "; restart") == k.Changeable {
			t.Errorf("restart of %s: %s", k.Name, line)
		}
	}

	// What the database shows is what one would have that says nothing.
	bare, err := Parse("pgproxy.toml", []byte("[databases.app]\nservers = [ { host = \"10.0.0.1\" }, { host = \"10.0.0.2\" } ]\nuser = \"app_rw\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	got, want := flatten(cfg), flatten(bare)
	for key, v := range want {
		own := []string{"password", "password.reveal", "monitor_user", "monitor_password", "monitor_password.reveal", "servers[1].groups"}
		if name, ok := strings.CutPrefix(key, "databases.app."); ok && !slices.Contains(own, name) && got[key] != v {
			t.Errorf("%s is %q, the default %q", key, got[key], v)
		}
	}
	if u := cfg.Users["reporting"]; u == nil || u.PoolSize != 0 || u.MaxUserConnections != 0 {
		t.Errorf("user reporting: %+v", u)
	}
}

func shows[T any](t *testing.T, where, text, pattern string, keys []key[T]) {
	t.Helper()
	for _, k := range keys {
		if !regexp.MustCompile(strings.ReplaceAll(pattern, "%s", k.name)).MatchString(text) {
			t.Errorf("%s does not show %s", where, k.name)
		}
	}
}
