package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// iniPair is one key of a line of [databases], [users] or [peers].
type iniPair struct {
	name string
	form iniForm
	to   string // "" is the same name
}

// What a line of [databases] may have; host, port, user, password and
// load_balance_hosts are read apart.
var iniDatabaseKeys = []iniPair{
	{"dbname", iniText, ""},
	{"connect_query", iniText, ""},
	{"auth_user", iniText, ""},
	{"auth_query", iniText, ""},
	{"auth_dbname", iniText, ""},
	{"pool_mode", iniWord(poolModes...), ""},
	{"pool_size", iniCount, ""},
	{"min_pool_size", iniCount, ""},
	{"reserve_pool_size", iniCount, ""},
	{"reserve_pool", iniCount, "reserve_pool_size"},
	{"max_db_connections", iniCount, ""},
	{"max_db_client_connections", iniCount, ""},
	{"server_lifetime", iniWhole, ""},
	{"query_wait_timeout", iniWhole, ""},
	{"client_encoding", iniText, ""},
	{"datestyle", iniText, ""},
	{"timezone", iniText, ""},
	{"application_name", iniText, ""},
}

// What a line of [users] may have.
var iniUserKeys = []iniPair{
	{"pool_mode", iniWord(poolModes...), ""},
	{"pool_size", iniLimit, ""},
	{"reserve_pool_size", iniCount, ""},
	{"max_user_connections", iniLimit, ""},
	{"max_user_client_connections", iniLimit, ""},
	{"query_timeout", iniWhole, ""},
	{"idle_transaction_timeout", iniWhole, ""},
	{"transaction_timeout", iniWhole, ""},
	{"client_idle_timeout", iniWhole, ""},
	{"query_wait_timeout", iniWhole, ""},
}

var iniPeerKeys = []iniPair{{"host", iniText, ""}, {"port", iniCount, ""}, {"pool_size", iniCount, ""}}

// The forms of numbers in these lines are looser: what follows a number is not
// looked at.
var (
	iniCount = iniForm{func(s string) (any, error) { return leading(s) }}
	iniWhole = iniForm{func(s string) (any, error) {
		n, err := leading(s)
		if err != nil {
			return nil, err
		}
		return showTime(cSeconds(strconv.FormatInt(n, 10)))
	}}
	// 0 of a user is no limit, where here it is that of [proxy].
	iniLimit = iniForm{func(s string) (any, error) {
		n, err := leading(s)
		if err == nil && n == 0 {
			n = maxConns
		}
		return n, err
	}}
)

// leading reads the number at the start of a text.
func leading(s string) (int64, error) {
	end := 0
	for end < len(s) && (s[end] >= '0' && s[end] <= '9' || end == 0 && s[0] == '-') {
		end++
	}
	n, err := strconv.ParseInt(s[:end], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is no integer", quote(s))
	}
	return n, nil
}

// iniEntry is one line of [databases], [users] or [peers] on its way into a
// table.
type iniEntry struct {
	r     *iniReader
	line  iniLine
	table map[string]any
	node  *node
	pairs map[string]string
}

// entry reads the pairs of a line; nil if it has no such form. Of a key that
// stands twice the last counts.
func (r *iniReader) entry(l iniLine) *iniEntry {
	list, err := pairs(l.value)
	if err != nil {
		r.fault(l, "", "%s", err)
		return nil
	}
	e := &iniEntry{r: r, line: l, table: make(map[string]any), pairs: make(map[string]string)}
	for _, p := range list {
		e.pairs[p.key] = p.value
	}
	section := iniSections[l.section]
	e.node = r.node(r.root.keys[section], l.key, l)
	r.table[section].(map[string]any)[l.key] = e.table
	return e
}

// set writes a value that stands in the line.
func (e *iniEntry) set(name string, v any) {
	e.table[name] = v
	e.r.node(e.node, name, e.line)
}

// take moves the pairs of these keys into the table.
func (e *iniEntry) take(keys []iniPair) {
	for _, k := range keys {
		text, ok := e.pairs[k.name]
		if !ok {
			continue
		}
		delete(e.pairs, k.name)
		v, err := k.form.read(text)
		if err != nil {
			e.r.fault(e.line, k.name, "%s", err)
			continue
		}
		to := k.to
		if to == "" {
			to = k.name
		}
		e.set(to, v)
	}
}

// rest reports the pairs that nobody knows.
func (e *iniEntry) rest(known []string) {
	for name := range e.pairs {
		msg := "unknown key"
		if near := nearest(name, known); near != "" {
			msg = fmt.Sprintf("unknown key: did you mean %q?", near)
		}
		e.r.fault(e.line, name, "%s", msg)
	}
}

func pairNames(keys []iniPair, more ...string) []string {
	for _, k := range keys {
		more = append(more, k.name)
	}
	return more
}

// database reads a line of [databases].
func (r *iniReader) database(l iniLine) {
	e := r.entry(l)
	if e == nil {
		return
	}
	e.take(iniDatabaseKeys)
	e.logins()
	split := e.own()
	e.servers(split)
	if size, ok := e.table["pool_size"]; ok || e.table["min_pool_size"] != nil {
		if size == nil {
			size = r.table["proxy"].(map[string]any)["default_pool_size"]
		} else if e.table["min_pool_size"] == nil {
			e.table["min_pool_size"] = r.table["proxy"].(map[string]any)["min_pool_size"]
			e.node.child("min_pool_size", l.line)
		}
		r.poolSizes(r.at(l, "", "").Key, e.node, e.table, "the pool's size", size)
	}
	e.rest(pairNames(iniDatabaseKeys, "host", "port", "user", "password", "load_balance_hosts"))
}

// logins reads user and password.
func (e *iniEntry) logins() {
	user, ok := e.pairs["user"]
	if ok {
		e.set("user", user)
	}
	if password, given := e.pairs["password"]; given && ok {
		e.set("password", password)
	} else if given {
		e.r.warn(e.line, "password", "no effect: there is no user")
	}
	delete(e.pairs, "user")
	delete(e.pairs, "password")
}

// own reads the keys that only pgproxy has, and returns read_write_split.
func (e *iniEntry) own() (split string) {
	for _, k := range databaseKeys {
		text, ok := e.pairs[k.name]
		if !ok || k.name == "host" || k.name == "port" {
			continue
		}
		delete(e.pairs, k.name)
		var scratch databaseEntry
		v, err := fromText(k, &scratch, text)
		if err != nil {
			e.r.fault(e.line, k.name, "%s", err)
			continue
		}
		e.set(k.name, v)
	}
	split, _ = e.table["read_write_split"].(string)
	return split
}

// servers makes the list of servers. One server is what clients want, whatever
// it is, and so is any of several, unless the line says that statements are to be
// split: then they are asked for their roles.
func (e *iniEntry) servers(split string) {
	hosts := []string{e.socketDir()}
	if h, ok := e.pairs["host"]; ok {
		hosts = strings.Split(h, ",")
	}
	port, err := int64(5432), error(nil)
	if p, ok := e.pairs["port"]; ok {
		if port, err = leading(p); err != nil {
			e.r.fault(e.line, "port", "%s", err)
			port = 5432
		}
	}
	balance, given := e.pairs["load_balance_hosts"]
	for _, name := range []string{"host", "port", "load_balance_hosts"} {
		delete(e.pairs, name)
	}
	if given {
		if err := oneOf("disable", "round-robin")(balance); err != nil {
			e.r.fault(e.line, "load_balance_hosts", "%s", err)
		}
	}
	at := e.r.node(e.node, "servers", e.line)
	var items []map[string]any
	for i, h := range hosts {
		if j := slices.Index(hosts, h); j < i { // it stands there twice, for twice the share
			items[j]["weight"] = items[j]["weight"].(int64) + 1
			items = append(items, nil)
			continue
		}
		items = append(items, map[string]any{"host": h, "port": port, "weight": int64(1)})
	}
	items = slices.DeleteFunc(items, func(m map[string]any) bool { return m == nil })
	auto := len(items) > 1 && split != "" && split != SplitAny.String() && split != SplitOff.String()
	for i, item := range items {
		switch {
		case auto:
		case i == 0:
			item["role"] = RolePrimary.String()
		default:
			item["role"] = RoleReplica.String()
		}
		if item["weight"] == int64(1) {
			delete(item, "weight")
		}
		n := at.item(e.line.line)
		n.given, n.file = true, e.r.file(e.line)
		for name := range item {
			e.r.node(n, name, e.line).name = e.r.at(e.line, name, "").Key
		}
	}
	e.table["servers"] = items
	if split == "" {
		split = SplitOff.String()
		if len(items) > 1 {
			split = SplitAny.String()
		}
		e.table["read_write_split"] = split
		e.node.child("read_write_split", e.line.line)
	}
	if len(items) > 1 && split == SplitAny.String() && e.table["load_balance"] == nil {
		e.table["load_balance"] = LoadBalanceRoundRobin.String()
		if balance == "disable" {
			e.table["load_balance"] = LoadBalanceFirst.String()
		}
		e.node.child("load_balance", e.line.line)
	}
}

// socketDir is where the server is of a line without a host.
func (e *iniEntry) socketDir() string {
	dir, _ := e.r.table["proxy"].(map[string]any)["unix_socket_dir"].(string)
	if dir == "" {
		dir = "/tmp"
	}
	return dir
}

// user reads a line of [users].
func (r *iniReader) user(l iniLine) {
	e := r.entry(l)
	if e == nil {
		return
	}
	e.take(iniUserKeys)
	e.rest(pairNames(iniUserKeys))
}

// peer reads a line of [peers].
func (r *iniReader) peer(l iniLine) {
	e := r.entry(l)
	if e == nil {
		return
	}
	e.take(iniPeerKeys)
	e.rest(pairNames(iniPeerKeys))
}
