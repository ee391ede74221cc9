package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A pgbouncer.ini is translated into the tables that the same configuration has
// in TOML, with the lines of the ini. All else, checks and defaults, is done by
// the one parser.

// iniReader translates a pgbouncer.ini.
type iniReader struct {
	src    *source
	table  map[string]any
	root   *node
	main   bool // there was a section [pgbouncer]
	faults []*Error
	lines  map[string][]iniLine // of databases, users and peers, by section
}

// iniSections are the sections of a pgbouncer.ini and the tables that become of
// them.
var iniSections = map[string]string{"pgbouncer": "proxy", "databases": "databases", "users": "users", "peers": "peers"}

// readINI reads the text of a pgbouncer.ini.
func (src *source) readINI(text []byte) error {
	r := &iniReader{src: src, table: make(map[string]any), root: &node{line: 1}, lines: make(map[string][]iniLine)}
	src.ini, src.idle = true, make(map[string]string)
	for _, name := range iniSections {
		r.table[name] = make(map[string]any)
		n := r.root.child(name, 1)
		n.given = true
	}
	r.root.keys["proxy"].name = "pgbouncer"
	s := iniScanner{src: src, emit: r.line}
	if fault := s.scan(src.path, string(text)); fault != nil {
		return errors.Join(fault)
	}
	if !r.main {
		r.faults = append(r.faults, &Error{Path: src.path, Msg: "no section [pgbouncer]: want one"})
	}
	r.implied()
	for _, l := range r.lines["databases"] {
		r.database(l)
	}
	for _, l := range r.lines["users"] {
		r.user(l)
	}
	for _, l := range r.lines["peers"] {
		r.peer(l)
	}
	if len(r.faults) > 0 {
		p := parser{faults: r.faults}
		return p.joined()
	}
	src.top = place{node: r.root, value: r.table}
	return nil
}

// fault notes an error in a line, or in one key of its value.
func (r *iniReader) fault(l iniLine, key, format string, args ...any) {
	r.faults = append(r.faults, r.at(l, key, format, args...))
}

func (r *iniReader) warn(l iniLine, key, format string, args ...any) {
	r.src.warnings = append(r.src.warnings, r.at(l, key, format, args...))
}

func (r *iniReader) at(l iniLine, key, format string, args ...any) *Error {
	var parts []string
	for i, k := range []string{l.section, l.key, key} {
		switch {
		case k == "":
		case i == 0 || bare(k):
			parts = append(parts, strings.ToValidUTF8(k, "?"))
		default:
			parts = append(parts, quote(k))
		}
	}
	at := strings.Join(parts, ".")
	return &Error{Path: l.file, Line: l.line, Key: at, Msg: fmt.Sprintf(format, args...)}
}

// file is the name for nodes: "" is the configuration itself.
func (r *iniReader) file(l iniLine) string {
	if l.file == r.src.path {
		return ""
	}
	return l.file
}

// node makes the node of a key below another, for a line.
func (r *iniReader) node(parent *node, key string, l iniLine) *node {
	n := &node{line: l.line, file: r.file(l), given: true}
	if parent.keys == nil {
		parent.keys = make(map[string]*node)
	}
	parent.keys[key] = n
	return n
}

// line takes one line in.
func (r *iniReader) line(l iniLine) {
	if l.header {
		if iniSections[l.section] == "" {
			msg := "unknown section: want [pgbouncer], [databases], [users] or [peers]"
			if near := nearest(l.section, slices.Collect(maps.Keys(iniSections))); near != "" {
				msg = fmt.Sprintf("unknown section: did you mean [%s]?", near)
			}
			r.faults = append(r.faults, &Error{Path: l.file, Line: l.line, Key: strings.ToValidUTF8(l.section, "?"), Msg: msg})
		}
		if l.section == "pgbouncer" {
			// In PgBouncer a second one sets all back to the defaults.
			r.main = true
			clear(r.src.idle)
			r.table["proxy"] = make(map[string]any)
			n := r.root.keys["proxy"]
			n.keys, n.line, n.file = nil, l.line, r.file(l)
		}
		return
	}
	switch l.section {
	case "":
		r.fault(l, "", "the key stands outside of a section: want it below [pgbouncer]")
	case "pgbouncer":
		r.parameter(l)
	case "databases", "users", "peers":
		r.lines[l.section] = slices.DeleteFunc(r.lines[l.section], func(o iniLine) bool { return o.key == l.key })
		r.lines[l.section] = append(r.lines[l.section], l)
	}
}

// parameter reads one line of [pgbouncer].
func (r *iniReader) parameter(l iniLine) {
	proxy := r.table["proxy"].(map[string]any)
	i := slices.IndexFunc(iniKeys, func(k iniKey) bool { return k.name == l.key })
	if i < 0 {
		// What PgBouncer does not have may stand here too.
		if i := slices.IndexFunc(proxyKeys, func(k key[Proxy]) bool { return k.name == l.key }); i >= 0 {
			var scratch Proxy
			v, err := fromText(proxyKeys[i], &scratch, l.value)
			if err != nil {
				r.fault(l, "", "%s", err)
				return
			}
			proxy[l.key] = v
			r.node(r.root.keys["proxy"], l.key, l)
			return
		}
		var known []string
		for _, k := range iniKeys {
			known = append(known, k.name)
		}
		if near := nearest(l.key, known); near != "" {
			r.fault(l, "", "unknown key: did you mean %q?", near)
		} else {
			r.fault(l, "", "unknown key: it is none of PgBouncer 1.25 and none of pgproxy")
		}
		return
	}
	k := &iniKeys[i]
	v, err := k.form.read(l.value)
	switch {
	case err != nil:
		r.fault(l, "", "%s", err)
	case k.to != "":
		if k.name == "server_lifetime" && v == "1s" && l.value != "1" {
			r.warn(l, "", "0 would use each connection once: here it is closed when it is a second old")
		}
		proxy[k.to] = v
		r.node(r.root.keys["proxy"], k.to, l)
	default:
		r.src.idle[k.name] = l.value
		if l.value != k.def && !slices.Contains(k.harmless, l.value) {
			r.warn(l, "", "%s", k.why)
		}
	}
}

// implied adds what the file does not say and what is another default here.
func (r *iniReader) implied() {
	proxy := r.table["proxy"].(map[string]any)
	at := r.root.keys["proxy"]
	add := func(name string, v any) {
		if _, ok := proxy[name]; ok {
			return
		}
		proxy[name] = v
		at.child(name, at.line).file = at.file
	}
	for name, v := range iniImplied {
		add(name, v)
	}
	for i := range iniKeys {
		k := &iniKeys[i]
		if k.to == "" {
			continue
		}
		v, err := k.form.read(k.def)
		if err != nil {
			panic("config: default of " + k.name + ": " + err.Error())
		}
		add(k.to, v)
	}
	r.poolSizes("pgbouncer", at, proxy, "default_pool_size", proxy["default_pool_size"])
}

// poolSizes lowers a min_pool_size that is above the size, which PgBouncer takes
// as it comes.
func (r *iniReader) poolSizes(section string, at *node, table map[string]any, key string, size any) {
	n, _ := size.(int64)
	least, ok := table["min_pool_size"].(int64)
	if !ok || n <= 0 || least <= n {
		return
	}
	table["min_pool_size"] = n
	where := at.keys["min_pool_size"]
	if where == nil || !where.given {
		return
	}
	r.src.warnings = append(r.src.warnings, &Error{
		Path: cmp.Or(where.file, r.src.path), Line: where.line, Key: section + ".min_pool_size",
		Msg: fmt.Sprintf("%d is more than %s: %d connections are kept", least, key, n),
	})
}

// absolute makes the name of a file one from "/": PgBouncer's are relative to the
// working directory, not to the file that they stand in.
func absolute(file string) (any, error) {
	if file == "" {
		return "", nil
	}
	return filepath.Abs(file)
}

// fromText finds the value of a key that a text stands for: a number, a boolean,
// or the text itself.
func fromText[T any](k key[T], scratch *T, text string) (any, error) {
	var tries []any
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		tries = append(tries, n)
	} else if f, err := strconv.ParseFloat(text, 64); err == nil {
		tries = append(tries, f)
	}
	switch strings.ToLower(text) {
	case "1", "on", "yes", "true":
		tries = append(tries, true)
	case "0", "off", "no", "false":
		tries = append(tries, false)
	}
	tries = append(tries, text)
	var first error
	for _, v := range tries {
		err := k.set(scratch, v)
		if err == nil {
			return v, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// With is the configuration with another value of a key of [proxy], or of
// PgBouncer's if it was read from a pgbouncer.ini: what the console's SET gives. It
// reads no file but those of passwords.
func (c *Config) With(name, text string) (*Config, error) {
	if c.source == nil {
		return nil, errors.New("the configuration was not read from a file")
	}
	to, v, err := c.source.setting(name, text)
	if err != nil {
		return nil, err
	}
	src := *c.source
	top := make(map[string]any)
	proxy := make(map[string]any)
	if was, ok := src.top.value.(map[string]any); ok {
		maps.Copy(top, was)
		if was, ok := was["proxy"].(map[string]any); ok {
			maps.Copy(proxy, was)
		}
	}
	if to != "" {
		proxy[to] = v
	}
	top["proxy"] = proxy
	src.top.value = top
	return src.config()
}

// setting reads the value of a key. Of a key that means nothing here it returns
// the name "".
func (src *source) setting(name, text string) (to string, v any, err error) {
	own := slices.IndexFunc(proxyKeys, func(k key[Proxy]) bool { return k.name == name })
	theirs := slices.IndexFunc(iniKeys, func(k iniKey) bool { return k.name == name })
	switch {
	case theirs >= 0 && (src.ini || own < 0):
		k := &iniKeys[theirs]
		v, err = k.form.read(text)
		return k.to, v, err
	case own >= 0 && proxyKeys[own].secret:
		return "", nil, errors.New("a password is not set here")
	case own >= 0:
		var scratch Proxy
		v, err = fromText(proxyKeys[own], &scratch, text)
		return name, v, err
	}
	return "", nil, fmt.Errorf("unknown key %s", quote(name))
}
