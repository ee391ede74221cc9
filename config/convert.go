package config

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// TOML writes what the configuration was made of as a file in TOML, which gives
// the same configuration. Passwords are in it.
func (c *Config) TOML() string {
	if c.source == nil {
		return ""
	}
	var w tomlWriter
	w.table(nil, c.source.top.value.(map[string]any))
	return strings.TrimPrefix(w.String(), "\n")
}

// tomlWriter writes tables of the values that this package reads.
type tomlWriter struct{ strings.Builder }

// order of the sections and of the keys in them; what is not listed follows in
// alphabetical order.
func tomlOrder(path []string) []string {
	switch {
	case len(path) == 0:
		return sections
	case path[0] == "proxy":
		return names(proxyKeys)
	case path[0] == "databases":
		return names(databaseKeys)
	}
	return nil
}

func (w *tomlWriter) table(path []string, t map[string]any) {
	order := tomlOrder(path)
	rank := func(name string) int {
		if i := slices.Index(order, name); i >= 0 {
			return i
		}
		return len(order)
	}
	keys := slices.SortedFunc(maps.Keys(t), func(a, b string) int {
		if ra, rb := rank(a), rank(b); ra != rb {
			return ra - rb
		}
		return strings.Compare(a, b)
	})
	header := len(path) > 0
	var tables []string
	for _, name := range keys {
		if _, ok := t[name].(map[string]any); ok {
			tables = append(tables, name)
			continue
		}
		if header {
			w.header(path)
			header = false
		}
		w.WriteString(tomlKey(name) + " = ")
		w.value(t[name], true)
		w.WriteByte('\n')
	}
	if header && (len(path) > 1 || len(tables) == 0 && path[0] == "proxy") {
		w.header(path)
	}
	for _, name := range tables {
		w.table(append(path[:len(path):len(path)], name), t[name].(map[string]any))
	}
}

func (w *tomlWriter) header(path []string) {
	var quoted []string
	for _, name := range path {
		quoted = append(quoted, tomlKey(name))
	}
	w.WriteString("\n[" + strings.Join(quoted, ".") + "]\n")
}

// value writes one value; lists of tables have a line for each at the top.
func (w *tomlWriter) value(v any, top bool) {
	switch v := v.(type) {
	case string:
		w.WriteString(tomlString(v))
	case bool:
		w.WriteString(strconv.FormatBool(v))
	case int64:
		w.WriteString(strconv.FormatInt(v, 10))
	case float64:
		s := strconv.FormatFloat(v, 'f', -1, 64)
		if !strings.Contains(s, ".") {
			s += ".0"
		}
		w.WriteString(s)
	case []any:
		w.WriteByte('[')
		for i, x := range v {
			if i > 0 {
				w.WriteString(", ")
			}
			w.value(x, false)
		}
		w.WriteByte(']')
	case []map[string]any:
		w.WriteString("[\n")
		for _, x := range v {
			w.WriteString("  ")
			w.value(x, false)
			w.WriteString(",\n")
		}
		w.WriteByte(']')
	case map[string]any:
		w.WriteString("{ ")
		order := append(names(serverKeys), slices.Sorted(maps.Keys(v))...)
		written := 0
		for i, name := range order {
			x, ok := v[name]
			if !ok || slices.Index(order, name) < i {
				continue
			}
			if written++; written > 1 {
				w.WriteString(", ")
			}
			w.WriteString(tomlKey(name) + " = ")
			w.value(x, false)
		}
		w.WriteString(" }")
	}
}

func tomlKey(name string) string {
	if bare(name) {
		return name
	}
	return tomlString(name)
}

// tomlString is a basic string, with escapes where TOML wants them.
func tomlString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range strings.ToValidUTF8(s, string(utf8.RuneError)) {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
