package config

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocs: docs/configuration.md has a row for every key, with its default, in
// the section that it belongs to.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	p := defaultProxy()
	d, s := defaultDatabase(&p), defaultServer()
	const inherited = "of `[proxy]`"
	documents(t, string(text), "## [proxy]", &p, proxyKeys, nil)
	special := map[string]string{
		"dbname": "NAME", "host": "", "user": "the client's", "password": "from `auth_file`",
		"monitor_user": "of `[proxy]`, else `user`", "monitor_password": "of `[proxy]`, else `password`",
		"pool_mode": inherited, "pool_size": "`default_pool_size`", "min_pool_size": inherited,
		"max_db_connections": inherited, "query_wait_timeout": inherited, "reserve_pool_size": inherited,
		"max_db_client_connections": inherited, "server_lifetime": inherited,
	}
	for _, k := range databaseKeys {
		if strings.HasPrefix(k.name, "server_tls_") || strings.HasPrefix(k.name, "auth_") {
			special[k.name] = inherited
		}
	}
	documents(t, string(text), "## [databases.NAME]", &d, databaseKeys, special)
	documents(t, string(text), "### servers", &s, serverKeys, map[string]string{"host": ""})
	documents(t, string(text), "## [peers.ID]", &Peer{Port: 6432}, peerKeys, map[string]string{"host": ""})
	documents(t, string(text), "## [users.NAME]", &User{}, userKeys, map[string]string{"pool_mode": "of the database", "consistency": "of the database"})
	documents(t, string(text), "### rules", &Rule{}, ruleKeys, map[string]string{"target": ""})
}

// documents compares the tables of a section with keys and defaults. special has
// the cells of what is no plain value.
func documents[T any](t *testing.T, text, title string, def *T, keys []key[T], special map[string]string) {
	t.Helper()
	_, section, ok := strings.Cut(text, "\n"+title+"\n")
	if !ok {
		t.Fatalf("no section %q", title)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	if title != "## [proxy]" { // which has its tables in sections of its own
		section, _, _ = strings.Cut(section, "\n### ")
	}
	rows := make(map[string][]string)
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| *(.*?) *\\| (.*) ?\\|$").FindAllStringSubmatch(section, -1) {
		if rows[m[1]] != nil {
			t.Errorf("%s: %s has two rows", title, m[1])
		}
		rows[m[1]] = m[2:]
	}
	for _, k := range keys {
		row := rows[k.name]
		delete(rows, k.name)
		if row == nil {
			t.Errorf("%s: no row for %s", title, k.name)
			continue
		}
		want, given := special[k.name]
		if v := k.show(def); !given && v == "" {
			want = "none"
		} else if !given {
			want = "`" + v + "`"
		}
		if row[0] != want {
			t.Errorf("%s: the default of %s is %q, want %q", title, k.name, row[0], want)
		}
		if strings.HasSuffix(strings.TrimSpace(row[1]), "*Restart*") != k.restart {
			t.Errorf("%s: restart of %s: %s", title, k.name, row[1])
		}
	}
	delete(rows, "servers")
	for name := range rows {
		t.Errorf("%s: there is no key %s", title, name)
	}
}
