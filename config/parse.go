package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// Parse is Load for a text in memory; names of files in it are relative to the
// folder of path. It reads those files, and the permissions of path itself if
// that exists.
//
// A pgbouncer.ini is read as well: by its name, or its section [pgbouncer].
func Parse(path string, text []byte) (*Config, error) {
	src := &source{path: path}
	if isINI(path, text) {
		if err := src.readINI(text); err != nil {
			return nil, err
		}
		return src.config()
	}
	table, root, fault := decode(path, text)
	if fault != nil {
		return nil, errors.Join(fault)
	}
	src.top = place{node: root, value: table}
	return src.config()
}

// source is the text of a configuration, taken apart.
type source struct {
	path     string
	top      place
	ini      bool
	idle     map[string]string // of a pgbouncer.ini: what it says of keys that mean nothing here
	warnings []*Error          // of its translation
}

// config makes the value of it.
func (src *source) config() (*Config, error) {
	p := parser{
		path: src.path, ini: src.ini, bad: make(map[string]bool), warnings: slices.Clone(src.warnings),
		cfg: &Config{
			Path: src.path, Proxy: defaultProxy(), Databases: make(map[string]*Database), Users: make(map[string]*User),
			Peers: make(map[int]*Peer), source: src,
		},
	}
	p.file(src.top)
	if len(p.faults) > 0 {
		return nil, p.joined()
	}
	p.warnProxy(p.top.child("proxy"))
	for _, e := range p.entries {
		p.warnDatabase(e.at, e.db)
	}
	p.warnReadable()
	p.cfg.Warnings = texts(p.warnings)
	return p.cfg, nil
}

// parser reads one file. Faults do not stop it.
type parser struct {
	path     string
	ini      bool // it is a pgbouncer.ini
	top      place
	cfg      *Config
	entries  []entry
	secrets  []place         // where passwords are written
	bad      map[string]bool // the keys of faults
	faults   []*Error
	warnings []*Error
}

// entry is one [databases.NAME] and where it is written.
type entry struct {
	db *Database
	at place
}

// fault notes an error.
func (p *parser) fault(at place, format string, args ...any) {
	p.bad[at.key] = true
	p.faults = append(p.faults, &Error{Path: cmp.Or(at.file, p.path), Line: at.line, Key: at.key, Msg: fmt.Sprintf(format, args...)})
}

// warn notes a warning. Of a pgbouncer.ini's defaults there is none.
func (p *parser) warn(at place, format string, args ...any) {
	if p.ini && at.node != nil && !at.node.given {
		return
	}
	p.warnings = append(p.warnings, &Error{Path: cmp.Or(at.file, p.path), Line: at.line, Key: at.key, Msg: fmt.Sprintf(format, args...)})
}

// fine tells whether no error was found in any of these keys of a table, so that
// checks of values against each other add nothing to an error that is reported.
func (p *parser) fine(at place, names ...string) bool {
	return !slices.ContainsFunc(names, func(name string) bool { return p.bad[at.child(name).key] })
}

// joined are all errors in the order of their lines.
func (p *parser) joined() error {
	inOrder(p.faults)
	all := make([]error, 0, len(p.faults))
	for _, f := range p.faults {
		all = append(all, f)
	}
	return errors.Join(all...)
}

func inOrder(faults []*Error) {
	slices.SortStableFunc(faults, func(a, b *Error) int { return cmp.Compare(a.Line, b.Line) })
}

func texts(faults []*Error) []string {
	inOrder(faults)
	var lines []string
	for _, f := range faults {
		lines = append(lines, f.Error())
	}
	return lines
}

// sections are the tables of a file.
var sections = []string{"proxy", "databases", "users", "peers"}

// file reads everything.
func (p *parser) file(top place) {
	p.top = top
	for _, name := range top.names() {
		if slices.Contains(sections, name) {
			continue
		}
		at := top.child(name)
		switch near := nearest(name, sections); {
		case has(proxyKeys, name):
			p.fault(at, "the key stands outside its section: want it below [proxy]")
		case near != "":
			p.fault(at, "unknown section: did you mean [%s]?", near)
		default:
			p.fault(at, "unknown section: want [proxy], [databases.NAME], [users.NAME] or [peers.ID]")
		}
	}
	at := top.child("proxy")
	if p.table(at, "[proxy]") {
		section(p, at, proxyKeys, &p.cfg.Proxy)
	}
	p.checkProxy(at)
	for _, file := range []*string{&p.cfg.Proxy.AuthFile, &p.cfg.Proxy.AuthHBAFile, &p.cfg.Proxy.AuthIdentFile, &p.cfg.Proxy.PidFile, &p.cfg.Proxy.LogFile} {
		*file = p.relative(*file)
	}
	p.tlsFiles(at, "client_tls_", &p.cfg.Proxy.ClientTLS)
	p.tlsFiles(at, "server_tls_", &p.cfg.Proxy.ServerTLS)

	at = top.child("databases")
	if p.table(at, "[databases.NAME]") && len(at.names()) == 0 {
		p.fault(at, "no database: want at least one [databases.NAME]")
	}
	for _, name := range at.names() {
		p.database(at.child(name), name)
	}
	at = top.child("users")
	p.table(at, "[users.NAME]")
	for _, name := range at.names() {
		p.user(at.child(name), name)
	}
	at = top.child("peers")
	p.table(at, "[peers.ID]")
	for _, name := range at.names() {
		p.peer(at.child(name), name)
	}
}

// table tells whether there is a table or nothing. What else stands there is not
// repeated in the error: it may be a connection string with a password.
func (p *parser) table(at place, header string) bool {
	switch v := at.value.(type) {
	case nil, map[string]any:
		return true
	case string:
		p.fault(at, "want a table %s with its keys below it, found a string", header)
	case []map[string]any:
		p.fault(at, "want one table %s, found an array: write the header with single brackets", header)
	default:
		p.fault(at, "want a table %s with its keys below it, found %s", header, describe(v))
	}
	return false
}

// section reads the keys of a table; besides are keys that are read apart.
func section[T any](p *parser, at place, keys []key[T], dst *T, besides ...string) {
	for _, name := range at.names() {
		i := slices.IndexFunc(keys, func(k key[T]) bool { return k.name == name })
		switch here := at.child(name); {
		case i >= 0:
			if keys[i].secret && here.value != "" {
				p.secrets = append(p.secrets, here)
			}
			if err := keys[i].set(dst, here.value); err != nil {
				p.fault(here, "%s", err)
			}
		case !slices.Contains(besides, name):
			p.fault(here, "%s", unknownKey(name, append(names(keys), besides...)))
		}
	}
}

// unknownKey says what else could be meant.
func unknownKey(name string, known []string) string {
	if near := nearest(name, known); near != "" {
		return fmt.Sprintf("unknown key: did you mean %q?", near)
	}
	for _, s := range []struct {
		header string
		has    bool
	}{
		{"[proxy]", has(proxyKeys, name)},
		{"[databases.NAME]", has(databaseKeys, name)},
		{"an entry of servers", has(serverKeys, name)},
		{"an entry of rules", has(ruleKeys, name)},
		{"[users.NAME]", has(userKeys, name)},
		{"[peers.ID]", has(peerKeys, name)},
	} {
		if s.has {
			return "unknown key here: it belongs to " + s.header
		}
	}
	return "unknown key: pgproxy.toml.example has all there are"
}

func names[T any](keys []key[T]) []string {
	var all []string
	for _, k := range keys {
		all = append(all, k.name)
	}
	return all
}

func has[T any](keys []key[T], name string) bool { return slices.Contains(names(keys), name) }

// database reads [databases.NAME].
func (p *parser) database(at place, name string) {
	p.databaseName(at, name)
	if !p.table(at, "[databases.NAME]") {
		return
	}
	e := defaultDatabase(&p.cfg.Proxy)
	section(p, at, databaseKeys, &e, "servers", "rules")
	p.login(at, &e)
	p.tlsFiles(at, "server_tls_", &e.TLS)
	p.servers(at, &e)
	p.rules(at, &e.Database)

	db := &e.Database
	db.Name = name
	switch {
	case db.DBName != "":
	case name == Wildcard:
		db.DBName, db.anyDBName = "postgres", true
	default:
		db.DBName = name
	}
	p.checkDatabase(at, db)
	p.cfg.Databases[name] = db
	p.entries = append(p.entries, entry{db, at})
}

// servers reads the array, or the one server of host and port.
func (p *parser) servers(at place, e *databaseEntry) {
	list := at.child("servers")
	if list.value == nil {
		p.singleServer(at, e)
		return
	}
	items, ok := list.length()
	if !ok {
		p.fault(list, `want an array of tables, as [{ host = "10.0.0.1", port = 5432 }]`)
	}
	for _, name := range []string{"host", "port"} {
		if at.has(name) {
			p.fault(at.child(name), "servers are listed in line %d: want %s in the entries of servers, or no servers", list.line, name)
		}
	}
	if items == 0 && !p.bad[list.key] {
		p.fault(list, "no server: want at least one")
	}
	for i := range items {
		here := list.item(i)
		s := defaultServer()
		if _, ok := here.value.(map[string]any); !ok {
			p.fault(here, `want a table, as { host = "10.0.0.1", port = 5432 }`)
		} else if section(p, here, serverKeys, &s); !here.has("host") {
			p.fault(here, "no host: want one in each entry")
		}
		e.Servers = append(e.Servers, s)
	}
	p.checkServers(list, e.Servers)
}

// singleServer makes the server of host and port.
func (p *parser) singleServer(at place, e *databaseEntry) {
	switch {
	case e.Host != "":
		s := defaultServer()
		s.Host, s.Port = e.Host, e.Port
		e.Servers = []Server{s}
	case at.has("host"): // reported
	case at.has("patroni"):
	case at.has("port"):
		p.fault(at.child("port"), "a port without a host: want both, or servers")
	default:
		p.fault(at, `no server: want servers = [{ host = "..." }], or host and port for a single one`)
	}
}

// user reads [users.NAME].
func (p *parser) user(at place, given string) {
	if err := name(given); err != nil {
		p.fault(at, "%s", err)
	}
	if given == Wildcard {
		p.fault(at, "no entry stands for all users: want a name; what is for all stands in [proxy] or [databases.NAME]")
	}
	if !p.table(at, "[users.NAME]") {
		return
	}
	u := &User{Name: given}
	section(p, at, userKeys, u)
	p.cfg.Users[given] = u
	for _, e := range p.entries {
		if u.PoolSize > 0 && u.PoolSize < e.db.MinPoolSize {
			p.warn(at.child("pool_size"), "%d is less than min_pool_size %d of %s: the pool of this user is kept at %d",
				u.PoolSize, e.db.MinPoolSize, e.at.key, u.PoolSize)
		}
	}
}

// peer reads [peers.ID].
func (p *parser) peer(at place, given string) {
	id, err := strconv.Atoi(given)
	if err != nil || id < 1 || id > 16383 {
		p.fault(at, "want the number of a peer, from 1 to 16383")
	}
	if !p.table(at, "[peers.ID]") {
		return
	}
	x := &Peer{ID: id, Port: 6432}
	section(p, at, peerKeys, x)
	if !at.has("host") {
		p.fault(at, "no host: want the peer's own address or the folder of its Unix socket")
	}
	p.cfg.Peers[id] = x
}
