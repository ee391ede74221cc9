package backend

import (
	"slices"
	"strings"
)

// Setting is one configuration parameter of a session and its value.
type Setting struct{ Name, Value string }

// Settings are the configuration parameters that a client wants to differ from
// what its login to the server gives. The value is immutable and shared; nil
// means none.
type Settings struct {
	list []Setting // sorted by name
}

// List returns the settings in order of name. The caller must not change it.
func (s *Settings) List() []Setting {
	if s == nil {
		return nil
	}
	return s.list
}

// Get returns the value of a setting.
func (s *Settings) Get(name string) (string, bool) {
	if s == nil {
		return "", false
	}
	i, ok := slices.BinarySearchFunc(s.list, name, func(a Setting, n string) int { return strings.Compare(a.Name, n) })
	if !ok {
		return "", false
	}
	return s.list[i].Value, true
}

// With returns settings in which name has this value.
func (s *Settings) With(name, value string) *Settings {
	if v, ok := s.Get(name); ok && v == value {
		return s
	}
	n := &Settings{list: make([]Setting, 0, len(s.List())+1)}
	done := false
	for _, x := range s.List() {
		if !done && x.Name >= name {
			n.list = append(n.list, Setting{name, value})
			done = true
		}
		if x.Name != name {
			n.list = append(n.list, x)
		}
	}
	if !done {
		n.list = append(n.list, Setting{name, value})
	}
	return n
}

// Without returns settings that leave name at what the login gives.
func (s *Settings) Without(name string) *Settings {
	if _, ok := s.Get(name); !ok {
		return s
	}
	n := &Settings{}
	for _, x := range s.list {
		if x.Name != name {
			n.list = append(n.list, x)
		}
	}
	if len(n.list) == 0 {
		return nil
	}
	return n
}

// Equal reports whether two clients want the same.
func (s *Settings) Equal(t *Settings) bool { return s == t || slices.Equal(s.List(), t.List()) }

// Key returns a text that is equal for equal settings.
func (s *Settings) Key() string {
	var b strings.Builder
	for _, x := range s.List() {
		b.WriteString(x.Name)
		b.WriteByte(0)
		b.WriteString(x.Value)
		b.WriteByte(0)
	}
	return b.String()
}

// diff calls set for what must be set and reset for what must go back to the
// login's value, in order to get from the settings in have to those in want.
func diff(have, want *Settings, set func(Setting), reset func(name string)) {
	a, b := have.List(), want.List()
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].Name < b[0].Name:
			reset(a[0].Name)
			a = a[1:]
		case len(a) == 0 || b[0].Name < a[0].Name:
			set(b[0])
			b = b[1:]
		default:
			if a[0].Value != b[0].Value {
				set(b[0])
			}
			a, b = a[1:], b[1:]
		}
	}
}
