package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// key is one key of a section that is decoded into a T. Errors of set say what
// would be right and do not repeat a secret.
type key[T any] struct {
	name    string
	restart bool
	secret  bool
	kind    Kind
	set     func(dst *T, v any) error
	show    func(src *T) string
}

// restart marks a key whose change needs a restart.
func restart[T any](k key[T]) key[T] {
	k.restart = true
	return k
}

func boolean[T any](name string, field func(*T) *bool) key[T] {
	return key[T]{
		name: name, kind: KindBool,
		set: func(dst *T, v any) error {
			b, ok := v.(bool)
			if !ok {
				return fmt.Errorf("want true or false, found %s", describe(v))
			}
			*field(dst) = b
			return nil
		},
		show: func(src *T) string { return strconv.FormatBool(*field(src)) },
	}
}

func number[T any, N int | int64](name string, field func(*T) *N, least, most int64) key[T] {
	return key[T]{
		name: name,
		set: func(dst *T, v any) error {
			n, ok := v.(int64)
			if !ok {
				return fmt.Errorf("want an integer from %d to %d, found %s", least, most, describe(v))
			}
			if n < least || n > most {
				return fmt.Errorf("%d is out of range: want an integer from %d to %d", n, least, most)
			}
			*field(dst) = N(n)
			return nil
		},
		show: func(src *T) string { return strconv.FormatInt(int64(*field(src)), 10) },
	}
}

func ratio[T any](name string, field func(*T) *float64) key[T] {
	return key[T]{
		name: name,
		set: func(dst *T, v any) error {
			f, ok := v.(float64)
			if n, whole := v.(int64); whole {
				f, ok = float64(n), true
			}
			if !ok {
				return fmt.Errorf("want a number from 0 to 1, found %s", describe(v))
			}
			if !(f >= 0 && f <= 1) {
				return fmt.Errorf("%v is out of range: want a number from 0 to 1", f)
			}
			*field(dst) = f
			return nil
		},
		show: func(src *T) string { return strconv.FormatFloat(*field(src), 'f', -1, 64) },
	}
}

const rightNetwork = `want an address or a network, as "10.0.0.7" or "10.0.0.0/8"`

// network reads an address, which stands for itself, or a network.
func network(s string) (netip.Prefix, error) {
	net, err := netip.ParsePrefix(s)
	if a, aerr := netip.ParseAddr(s); aerr == nil {
		a = a.Unmap()
		net, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch {
	case err != nil || net.Addr().Zone() != "" || net.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%s is no network: %s", quote(s), rightNetwork)
	case net != net.Masked():
		return netip.Prefix{}, fmt.Errorf("%s has bits behind its mask: want %q", quote(s), net.Masked())
	}
	return net, nil
}

// prefix takes an address or a network in CIDR notation.
func prefix[T any](name string, field func(*T) *netip.Prefix) key[T] {
	return key[T]{
		name: name,
		set: func(dst *T, v any) error {
			s, ok := v.(string)
			if !ok {
				return fmt.Errorf("%s, found %s", rightNetwork, describe(v))
			}
			net, err := network(s)
			if err == nil {
				*field(dst) = net
			}
			return err
		},
		show: func(src *T) string {
			if p := *field(src); p.IsValid() {
				return p.String()
			}
			return ""
		},
	}
}

// maxPattern is the longest regular expression in bytes: it runs over statements.
const maxPattern = 10_000

// pattern takes a regular expression of Go's regexp package.
func pattern[T any](name string, field func(*T) **regexp.Regexp) key[T] {
	return key[T]{
		name: name,
		set: func(dst *T, v any) error {
			s, ok := v.(string)
			switch {
			case !ok:
				return fmt.Errorf("want a string, found %s", describe(v))
			case s == "":
				return errors.New("want a regular expression, found an empty string")
			case len(s) > maxPattern:
				return fmt.Errorf("want a regular expression of at most %d bytes, found %d", maxPattern, len(s))
			}
			re, err := regexp.Compile(s)
			if err != nil {
				return fmt.Errorf("%s does not compile: %s", quote(s), strings.TrimPrefix(err.Error(), "error parsing regexp: "))
			}
			*field(dst) = re
			return nil
		},
		show: func(src *T) string {
			if re := *field(src); re != nil {
				return re.String()
			}
			return ""
		},
	}
}

func duration[T any](name string, field func(*T) *time.Duration, least, most time.Duration) key[T] {
	return key[T]{
		name: name, kind: KindDuration,
		set: func(dst *T, v any) error {
			d, err := readDuration(v)
			if err != nil {
				return err
			}
			if d < least || d > most {
				return fmt.Errorf("%s is out of range: want %s to %s", showDuration(d), showDuration(least), showDuration(most))
			}
			*field(dst) = d
			return nil
		},
		show: func(src *T) string { return showDuration(*field(src)) },
	}
}

func text[T any](name string, field func(*T) *string, check func(string) error) key[T] {
	return key[T]{
		name: name,
		set: func(dst *T, v any) error {
			s, ok := v.(string)
			if !ok {
				return fmt.Errorf("want a string, found %s", describe(v))
			}
			if err := check(s); err != nil {
				return err
			}
			*field(dst) = s
			return nil
		},
		show: func(src *T) string { return *field(src) },
	}
}

func secret[T any](name string, field func(*T) *Secret) key[T] {
	return key[T]{
		name: name, secret: true,
		set: func(dst *T, v any) error {
			s, ok := v.(string)
			if !ok {
				return errors.New("want a string")
			}
			if strings.ContainsRune(s, 0) {
				return errors.New("want a string without a NUL character")
			}
			*field(dst) = Secret(s)
			return nil
		},
		show: func(src *T) string {
			if field(src).Empty() {
				return ""
			}
			return stars
		},
	}
}

// secrets takes an array of secrets.
func secrets[T any](name string, field func(*T) *[]Secret) key[T] {
	return key[T]{
		name: name, secret: true,
		set: func(dst *T, v any) error {
			list, ok := v.([]any)
			if !ok {
				return errors.New("want an array of strings")
			}
			var out []Secret
			for _, e := range list {
				s, ok := e.(string)
				switch {
				case !ok || strings.ContainsRune(s, 0):
					return errors.New("want strings without a NUL character in the array")
				case s == "":
					return errors.New("an empty string stands in the list: remove it")
				}
				out = append(out, Secret(s))
			}
			*field(dst) = out
			return nil
		},
		show: func(src *T) string {
			if len(*field(src)) == 0 {
				return ""
			}
			return stars
		},
	}
}

// list takes an array of strings, or one string with commas.
func list[T any](name string, field func(*T) *[]string, check func(string) error) key[T] {
	return key[T]{
		name: name,
		set: func(dst *T, v any) error {
			var items []string
			switch v := v.(type) {
			case string:
				for s := range strings.SplitSeq(v, ",") {
					if s = strings.TrimSpace(s); s != "" {
						items = append(items, s)
					}
				}
			case []any:
				for _, e := range v {
					s, ok := e.(string)
					if !ok {
						return fmt.Errorf("want strings in the array, found %s", describe(e))
					}
					items = append(items, s)
				}
			default:
				return fmt.Errorf("want an array of strings, or one string with commas, found %s", describe(v))
			}
			for i, s := range items {
				if s == "" {
					return errors.New("an empty string stands in the list: remove it")
				}
				if err := check(s); err != nil {
					return err
				}
				if slices.Contains(items[:i], s) {
					return fmt.Errorf("%s stands twice in the list: want it once", quote(s))
				}
			}
			*field(dst) = items
			return nil
		},
		show: func(src *T) string { return strings.Join(*field(src), ",") },
	}
}

// enum takes one of the words of a type of enum.go.
func enum[T any, E fmt.Stringer, P interface {
	*E
	encoding.TextUnmarshaler
}](name string, field func(*T) *E,
) key[T] {
	return key[T]{
		name: name,
		set: func(dst *T, v any) error {
			s, ok := v.(string)
			if !ok {
				return fmt.Errorf("want a string, found %s", describe(v))
			}
			return P(field(dst)).UnmarshalText([]byte(s))
		},
		show: func(src *T) string { return (*field(src)).String() },
	}
}

// emptyQuery is how the empty query is written: in PgBouncer's file an empty
// text means never, so it is refused here.
const emptyQuery = "<empty>"

// checkQuery makes k write the empty query as emptyQuery.
func checkQuery(k key[Proxy]) key[Proxy] {
	set, show := k.set, k.show
	k.set = func(dst *Proxy, v any) error {
		switch v {
		case "":
			return fmt.Errorf("want %q for the empty query, a statement, or %q to check never", emptyQuery, CheckQueryOff)
		case emptyQuery:
			v = ""
		}
		return set(dst, v)
	}
	k.show = func(src *Proxy) string {
		if s := show(src); s != "" {
			return s
		}
		return emptyQuery
	}
	return k
}

// readDuration takes a string with units, or a number of seconds.
func readDuration(v any) (time.Duration, error) {
	const right = `want a string with a unit, as "500ms", "10s" or "1h", or a number of seconds`
	seconds := 0.0
	switch v := v.(type) {
	case string:
		d, err := time.ParseDuration(v)
		if err != nil {
			return 0, fmt.Errorf("%s is no duration: %s", quote(v), right)
		}
		return d, nil
	case int64:
		seconds = float64(v)
	case float64:
		seconds = v
	default:
		return 0, fmt.Errorf("%s, found %s", right, describe(v))
	}
	if math.IsNaN(seconds) || math.Abs(seconds) > 1e9 {
		return 0, fmt.Errorf("%v seconds are out of range: %s", seconds, right)
	}
	return time.Duration(math.Round(seconds * 1e9)), nil
}

// showDuration writes a duration in the largest unit up to seconds that keeps it
// whole.
func showDuration(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{time.Second, "s"}, {time.Millisecond, "ms"}, {time.Microsecond, "us"}} {
		if d%u.unit == 0 {
			return strconv.FormatInt(int64(d/u.unit), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(d), 10) + "ns"
}

// describe names a value and its TOML type for an error.
func describe(v any) string {
	switch v := v.(type) {
	case string:
		return "the string " + quote(v)
	case bool:
		return fmt.Sprintf("the boolean %v", v)
	case int64:
		return fmt.Sprintf("the integer %d", v)
	case float64:
		return fmt.Sprintf("the float %v", v)
	case time.Time:
		return "a date or time"
	case []any, []map[string]any:
		return "an array"
	case map[string]any:
		return "a table"
	}
	return fmt.Sprintf("a %T", v)
}

// quote shortens long texts: to their first line too, as a quote that was not
// closed makes a text of what follows. A text that may hold a password is not
// shown.
func quote(s string) string {
	if mayHideSecret(s) {
		return `"..."`
	}
	if first, _, more := strings.Cut(s, "\n"); more {
		s = first + "..."
	}
	if len(s) > 80 {
		s = strings.ToValidUTF8(s[:77], "") + "..."
	}
	return strconv.Quote(s)
}

// mayHideSecret finds texts that look like a line of this file, a connection
// string or a URL with a login.
func mayHideSecret(s string) bool {
	return strings.Contains(strings.ToLower(s), "password") || strings.Contains(s, "://") && strings.Contains(s, "@")
}

// Checks of single strings.

func oneLine(s string) error {
	if strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("%s has a control character: want plain text", quote(s))
	}
	return nil
}

func statement(s string) error {
	if strings.ContainsRune(s, 0) {
		return errors.New("want a statement without a NUL character")
	}
	return nil
}

// maxName is the longest name of a role or database in PostgreSQL, in bytes.
const maxName = 63

func name(s string) error {
	if s == "" {
		return errors.New("want a name, found an empty string")
	}
	if len(s) > maxName || !utf8.ValidString(s) {
		return fmt.Errorf("%s is longer than PostgreSQL allows: want at most %d bytes", quote(s), maxName)
	}
	return oneLine(s)
}

func nameOrNone(s string) error {
	if s == "" {
		return nil
	}
	return name(s)
}

func group(s string) error {
	switch s {
	case "primary", "replica", "any", "auto":
		return fmt.Errorf("%q is no name for a group: hints use the word for something else", s)
	}
	if strings.ContainsFunc(s, func(r rune) bool {
		return r != '_' && r != '-' && r != '.' && (r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r))
	}) {
		return fmt.Errorf("%s is no name for a group: want letters, digits, '_', '-' and '.'", quote(s))
	}
	return name(s)
}

// glob takes a text with * and ?.
func glob(s string) error {
	if s == "" {
		return errors.New("want a text in which * stands for any, found an empty string")
	}
	return oneLine(s)
}

// target takes what a rule may name.
func target(s string) error {
	if s == "primary" || s == "replica" {
		return nil
	}
	return group(s)
}

func host(s string) error {
	if _, err := netip.ParseAddr(s); err == nil {
		return nil
	}
	switch {
	case s == "":
		return errors.New("want a host name, an address, or the folder of a Unix socket (from \"/\"), found an empty string")
	case strings.HasPrefix(s, "/"), strings.HasPrefix(s, "@"):
		return oneLine(s)
	case strings.Contains(s, "://"):
		return fmt.Errorf("%s is a URL: want the host alone; port, user and password have keys of their own", quote(s))
	case strings.Contains(s, ","):
		return fmt.Errorf("%s names several hosts: want one here, and one entry of servers for each", quote(s))
	case strings.ContainsAny(s, ":[]"):
		return fmt.Errorf("%s: want the host alone (IPv6 without brackets); the port has a key of its own", quote(s))
	case len(s) > 253 || strings.ContainsFunc(s, func(r rune) bool {
		return r > unicode.MaxASCII || r != '-' && r != '_' && r != '.' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}):
		return fmt.Errorf("%s is no host name: want letters, digits, '-' and '.', an address, or a folder from \"/\"", quote(s))
	}
	return nil
}

// patroniURL takes the root of Patroni's REST API.
func patroniURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return fmt.Errorf("%s is no URL of Patroni's REST API: want http://HOST:PORT", quote(s))
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return fmt.Errorf("%s has more than scheme, host and port: want http://HOST:PORT", quote(s))
	}
	return nil
}

func systemIdentifier(s string) error {
	if _, err := strconv.ParseUint(s, 10, 64); err != nil && s != "" {
		return fmt.Errorf("%s is no system identifier: want its digits, as pg_controldata shows them", quote(s))
	}
	return nil
}

// listenAddr takes what a TCP listener can have.
func listenAddr(s string) error {
	switch {
	case s == "*":
		return nil
	case strings.HasPrefix(s, "/"), strings.HasPrefix(s, "@"):
		return fmt.Errorf("%s is a folder: want an address or \"*\"; the socket's folder is unix_socket_dir", quote(s))
	}
	return host(s)
}

func hostPort(s string) error {
	if s == "" {
		return nil
	}
	h, port, err := net.SplitHostPort(s)
	if err == nil {
		if _, perr := strconv.ParseUint(port, 10, 16); perr != nil {
			err = perr
		} else if h != "" {
			err = host(h)
		}
	}
	if err != nil || strings.HasPrefix(h, "/") {
		return fmt.Errorf("%s is no address: want HOST:PORT, as \"127.0.0.1:9632\", or \"\" for none", quote(s))
	}
	return nil
}

func oneOf(words ...string) func(string) error {
	return func(s string) error {
		if slices.Contains(words, s) {
			return nil
		}
		msg := fmt.Sprintf("unknown word %s: want %s", quote(s), quoteAll(words))
		if near := nearest(s, words); near != "" {
			msg += fmt.Sprintf(" (did you mean %q?)", near)
		}
		return errors.New(msg)
	}
}

func quoteAll(words []string) string {
	var q []string
	for _, w := range words {
		if w != "" {
			q = append(q, strconv.Quote(w))
		}
	}
	return strings.Join(q, ", ")
}

// FunctionPattern compiles a pattern of read_functions or write_functions: a
// regular expression in Go's syntax that the whole name of a function must match,
// with its schema in front or without.
func FunctionPattern(s string) (*regexp.Regexp, error) { return regexp.Compile("^(?:" + s + ")$") }

func functionPattern(s string) error {
	if err := oneLine(s); err != nil {
		return err
	}
	_, err := FunctionPattern(s)
	if wrong, ok := errors.AsType[*syntax.Error](err); ok {
		return fmt.Errorf("%s is no regular expression: %s", quote(s), wrong.Code)
	}
	return err
}
