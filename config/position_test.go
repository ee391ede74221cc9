package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
)

// TestPositions has texts in which each key and each item holds its own line as
// value, in digits or in a string, alone or at the end of a longer string.
func TestPositions(t *testing.T) {
	for _, tt := range []struct{ name, text string }{
		{"plain", "a = 1\n\n# b = 1\nb = 4"},
		{"dotted", "a.b = 1\na . \"c.d\" = 2\n'a'.e.f = 3\n"},
		{"tables", "[a]\nb = 2\n[ a . c ] # ]\nd = 4\n[a.'x]y']\ne = 6\n"},
		{"escaped keys", "\"a\\u0062\" = 1\n\"c\\\"d\" = 2\n'e\\f' = 3\n\"\" = 4\n"},
		{"arrays", "a = [1, 1,\n 2, # ]\n [3, 3],\n\n 5,]\nb = 6\n"},
		{"inline", "a = { b = 1, c = { d = 1 },\n e = 2, # }\n}\nf = 4\n"},
		{"inline in arrays", "s = [\n { a = 2 }, { a = 2,\n b = 3 },\n\n { a = 5 } ]\nt = 6\n"},
		{"array of tables", "[[s]]\na = 2\n[[s]]\na = 4\n[s.b]\nc = 6\n[[s.d]]\ne = 8\n[[s.d]]\ne = 10\n"},
		{"strings", "a = \"# \\\" [ 1\"\nb = '\\ { 2'\nc = \"\"\nd = 4\n"},
		{"long strings", "a = \"\"\"\nx = 9\n\\\"\"\" 1\"\"\"\nb = 4\nc = '''\n\\\n''' # '\nd = 8\ne = \"\"\"\"\"\"\nf = 10\n"},
		{"quotes at the end", "a = \"\"\"x\"\"\"\"\"\nb = 2\nc = '''x''''\nd = 4\ne = \"\"\"x\\\\\"\"\"\nf = 6\n"},
		{"line ends escaped", "a = \"\"\"x \\\n  y\"\"\"\nb = 3\n"},
		{"carriage returns", "a = 1\r\n[b]\r\nc = 3\r\nd = [\r\n 5,\r\n 6]\r\ne = \"\"\"\r\nx\"\"\"\r\nf = 9\r\n"},
		{"words", "a = true\nb = 1979-05-27 07:32:00Z\nc = -inf\nd = 0x4\ne = 5"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var table map[string]any
			if err := toml.Unmarshal([]byte(tt.text), &table); err != nil {
				t.Fatal(err)
			}
			found := 0
			every(place{node: positions(tt.text), value: table}, func(at place) {
				want := ""
				switch v := at.value.(type) {
				case int64:
					want = fmt.Sprint(v)
				case string:
					want = v[strings.LastIndexByte(v, ' ')+1:]
				}
				if want == "" || strings.Trim(want, "0123456789") != "" {
					return
				}
				found++
				if fmt.Sprint(at.line) != want || at.node == nil {
					t.Errorf("%s: line %d, want %s", at.key, at.line, want)
				}
			})
			if found == 0 {
				t.Error("no line checked")
			}
		})
	}
}

// TestPositionsOfTables: a header is where a table begins, whatever named it
// before; a table without a header begins at its first key.
func TestPositionsOfTables(t *testing.T) {
	const text = "[a.b]\nc = 1\n\n[a]\nd.e = 1\n\n[[s]]\n[[s]]\n"
	var table map[string]any
	if err := toml.Unmarshal([]byte(text), &table); err != nil {
		t.Fatal(err)
	}
	lines := make(map[string]int)
	root := place{node: positions(text), value: table}
	every(root, func(at place) { lines[at.key] = at.line })
	want := map[string]int{"a": 4, "a.b": 1, "a.b.c": 2, "a.d": 5, "a.d.e": 5, "s": 7, "s[0]": 7, "s[1]": 8}
	if !maps.Equal(lines, want) {
		t.Errorf("found %v, want %v", lines, want)
	}
	if at := root.child("a").child("none").child("none"); at.line != 4 || at.key != "a.none.none" {
		t.Errorf("a key that is not written: %+v", at)
	}
	if at := root.child("none"); at.line != 0 {
		t.Errorf("a section that is not written: %+v", at)
	}
}

// every calls f for all places below one.
func every(at place, f func(place)) {
	var below []place
	switch v := at.value.(type) {
	case map[string]any:
		for _, name := range at.names() {
			below = append(below, at.child(name))
		}
	case []any:
		for i := range v {
			below = append(below, at.item(i))
		}
	case []map[string]any:
		for i := range v {
			below = append(below, at.item(i))
		}
	}
	for _, b := range below {
		f(b)
		every(b, f)
	}
}

// samePlaces reports where a text's nodes are not those of its values.
func samePlaces(n *node, v any) string {
	if n == nil {
		return "a value without a node"
	}
	switch v := v.(type) {
	case map[string]any:
		if len(n.items) > 0 || !slices.Equal(slices.Sorted(maps.Keys(n.keys)), slices.Sorted(maps.Keys(v))) {
			return fmt.Sprintf("keys %q, want %q", slices.Sorted(maps.Keys(n.keys)), slices.Sorted(maps.Keys(v)))
		}
		for name := range v {
			if bad := samePlaces(n.keys[name], v[name]); bad != "" {
				return fmt.Sprintf("%q: %s", name, bad)
			}
		}
		return ""
	case []any:
		if len(n.keys) > 0 || len(n.items) != len(v) {
			return fmt.Sprintf("%d items and %d keys, want %d items", len(n.items), len(n.keys), len(v))
		}
		for i := range v {
			if bad := samePlaces(n.items[i], v[i]); bad != "" {
				return fmt.Sprintf("[%d]: %s", i, bad)
			}
		}
		return ""
	case []map[string]any:
		items := make([]any, len(v))
		for i := range v {
			items[i] = v[i]
		}
		return samePlaces(n, items)
	}
	if len(n.keys)+len(n.items) > 0 {
		return "a single value has keys or items"
	}
	return ""
}
