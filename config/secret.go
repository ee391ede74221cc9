package config

import (
	"fmt"
	"log/slog"
)

// Secret is a password or another text that nobody may read. However it is
// printed, logged or encoded, stars come out; Reveal alone gives the text. The
// exception is a Secret in an unexported field: package fmt calls no methods
// there and prints the text, so a struct with such a field needs a Format of its
// own, or must not be printed. Compare secrets with crypto/subtle, never with ==.
type Secret string

const stars = "*****"

// Reveal returns the text itself.
func (s Secret) Reveal() string { return string(s) }

// Empty tells whether there is no secret at all.
func (s Secret) Empty() bool { return len(s) == 0 }

// String hides the text.
func (Secret) String() string { return stars }

// GoString hides the text from %#v.
func (Secret) GoString() string { return stars }

// LogValue hides the text from slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(stars) }

// MarshalText hides the text from encoders: JSON, XML, TOML.
func (Secret) MarshalText() ([]byte, error) { return []byte(stars), nil }

// Format hides the text from every verb and flag of package fmt.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(stars)) }

// The values that hold secrets print as usual, but by a method: where a pointer
// to one is printed with a verb that fits no pointer, as %s, package fmt would
// otherwise print its fields without calling their methods.

// Format prints the fields.
func (c Config) Format(f fmt.State, verb rune) {
	type fields Config
	_, _ = fmt.Fprintf(f, fmt.FormatString(f, verb), fields(c))
}

// Format prints the fields.
func (p Proxy) Format(f fmt.State, verb rune) {
	type fields Proxy
	_, _ = fmt.Fprintf(f, fmt.FormatString(f, verb), fields(p))
}

// Format prints the fields.
func (d Database) Format(f fmt.State, verb rune) {
	type fields Database
	_, _ = fmt.Fprintf(f, fmt.FormatString(f, verb), fields(d))
}
