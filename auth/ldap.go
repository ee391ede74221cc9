package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"pgproxy/config"
)

// LDAP is a directory that checks passwords, by the options of pg_hba.conf's method
// ldap (section "LDAP Authentication" of PostgreSQL's manual). Any number of
// goroutines may use it.
//
// With a search, it is bound as ldapbinddn, looks for the one entry that fits the
// user's name, and is bound again as that entry with the user's password. Without
// one it is bound as the name between ldapprefix and ldapsuffix.
type LDAP struct {
	// set at construction
	hosts    []string // tried in order
	port     int
	ldaps    bool
	startTLS bool
	roots    *x509.CertPool // nil: the system's

	prefix, suffix string

	search     bool
	base       string
	scope      int
	filter     string // $username is the user
	bindDN     string // "" is nobody
	bindPasswd config.Secret

	slots chan struct{} // one token for each login under way
}

// maxLDAP bounds the logins that one directory is asked about at once; more wait.
const maxLDAP = 16

// Format prints a name, whatever the verb.
func (*LDAP) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("ldap options")) }

// ParseLDAP reads options, written as in a line of pg_hba.conf: the text of
// auth_ldap_options. No error shows a password.
func ParseLDAP(text string) (*LDAP, error) {
	fields, err := hbaFields(text)
	if err != nil {
		return nil, fmt.Errorf("auth_ldap_options: %w", err)
	}
	var o ldapOptions
	for _, f := range fields {
		for _, t := range f {
			if err := o.set(t.text); err != nil {
				return nil, fmt.Errorf("auth_ldap_options: %w", err)
			}
		}
	}
	l, err := o.directory()
	if err != nil {
		return nil, fmt.Errorf("auth_ldap_options: %w", err)
	}
	return l, nil
}

// ldapOptions are the options as they are written, by name.
type ldapOptions map[string]string

var ldapNames = []string{
	"ldapserver", "ldapport", "ldapscheme", "ldaptls", "ldapprefix", "ldapsuffix", "ldapbasedn", "ldapbinddn", "ldapbindpasswd",
	"ldapsearchattribute", "ldapsearchfilter", "ldapurl",
}

// set takes one NAME=VALUE. A URL stands for several options.
func (o *ldapOptions) set(text string) error {
	name, value, ok := strings.Cut(text, "=")
	switch {
	case !ok || !slices.Contains(ldapNames, name):
		return fmt.Errorf("option %q means nothing here: there are %s; a value with blanks or commas wants quotes", name, strings.Join(ldapNames, ", "))
	case (*o)[name] != "":
		return fmt.Errorf("%s is given twice", name)
	}
	if *o == nil {
		*o = make(ldapOptions)
	}
	(*o)[name] = value
	if name == "ldapurl" {
		return o.url(value)
	}
	return nil
}

// url takes apart ldap://host:port/basedn?attribute?scope?filter (RFC 4516).
func (o ldapOptions) url(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "ldap" && u.Scheme != "ldaps" || u.User != nil || u.Fragment != "" {
		return errors.New("ldapurl is no URL of a directory: want ldap://host:port/basedn?attribute?scope?filter, or ldaps")
	}
	parts := strings.Split(u.RawQuery, "?")
	if len(parts) > 3 {
		return errors.New("ldapurl has extensions, which mean nothing here")
	}
	values := [][2]string{
		{"ldapscheme", u.Scheme},
		{"ldapserver", u.Hostname()},
		{"ldapport", u.Port()},
		{"ldapbasedn", strings.TrimPrefix(u.Path, "/")},
		{"ldapsearchattribute"},
		{"scope", "base"},
		{"ldapsearchfilter"},
	}
	for i, p := range parts {
		if p, err = url.PathUnescape(p); err != nil {
			return errors.New("ldapurl has a % with no two hex digits behind it")
		}
		if p != "" {
			values[4+i][1] = p
		}
	}
	for _, v := range values {
		if v[1] == "" {
			continue
		}
		if o[v[0]] != "" {
			return fmt.Errorf("%s is in ldapurl already", v[0])
		}
		o[v[0]] = v[1]
	}
	return nil
}

// directory checks the options against each other.
func (o ldapOptions) directory() (*LDAP, error) {
	l := &LDAP{
		hosts: strings.Fields(o["ldapserver"]), prefix: o["ldapprefix"], suffix: o["ldapsuffix"], base: o["ldapbasedn"],
		scope: ldap.ScopeWholeSubtree, bindDN: o["ldapbinddn"], bindPasswd: config.Secret(o["ldapbindpasswd"]),
		slots: make(chan struct{}, maxLDAP),
	}
	if len(l.hosts) == 0 {
		return nil, errors.New("want ldapserver or ldapurl: who the directory is")
	}
	scheme, tls := o["ldapscheme"], o["ldaptls"]
	l.ldaps, l.startTLS = scheme == "ldaps", tls == "1"
	switch {
	case scheme != "" && scheme != "ldap" && !l.ldaps:
		return nil, fmt.Errorf("ldapscheme %q is not known: want ldap or ldaps", scheme)
	case tls != "" && tls != "0" && !l.startTLS:
		return nil, fmt.Errorf("ldaptls %q is not known: want 0 or 1", tls)
	case l.ldaps && l.startTLS:
		return nil, errors.New("ldaptls is for ldapscheme=ldap: with ldaps all is encrypted from the start")
	}
	if l.port = 389; l.ldaps {
		l.port = 636
	}
	if p := o["ldapport"]; p != "" {
		n, err := strconv.Atoi(p)
		if err != nil || n < 1 || n > 65535 {
			return nil, fmt.Errorf("ldapport %q is no port: want 1 to 65535", p)
		}
		l.port = n
	}
	switch o["scope"] {
	case "base":
		l.scope = ldap.ScopeBaseObject
	case "one":
		l.scope = ldap.ScopeSingleLevel
	case "", "sub":
	default:
		return nil, errors.New("ldapurl has an unknown scope: want base, one or sub")
	}
	if err := l.how(o); err != nil {
		return nil, err
	}
	return l, l.trust()
}

// how tells the search from the simple bind.
func (d *LDAP) how(o ldapOptions) error {
	simple := d.prefix != "" || d.suffix != ""
	d.search = d.base != ""
	attribute, filter := o["ldapsearchattribute"], o["ldapsearchfilter"]
	switch {
	case !simple && !d.search:
		return errors.New("want ldapbasedn, to search for users, or ldapprefix or ldapsuffix")
	case simple && (d.search || d.bindDN != "" || !d.bindPasswd.Empty() || attribute != "" || filter != ""):
		return errors.New("ldapprefix and ldapsuffix do not go together with the options of a search")
	case simple:
		return nil
	case attribute != "" && filter != "":
		return errors.New("ldapsearchattribute does not go together with ldapsearchfilter")
	case filter != "":
		if !strings.HasPrefix(filter, "(") {
			filter = "(" + filter + ")"
		}
	case attribute == "":
		filter = "(uid=$username)"
	default:
		filter = "(" + attribute + "=$username)"
	}
	d.filter = filter
	if _, err := ldap.CompileFilter(d.filterFor("x")); err != nil {
		return fmt.Errorf("the filter %s cannot be read: %w", filter, err)
	}
	return nil
}

// trust reads whose certificates are good for a directory: the file that the
// environment names as it does for OpenLDAP's clients, else the system's.
func (d *LDAP) trust() error {
	file := os.Getenv("LDAPTLS_CACERT")
	if file == "" || !d.ldaps && !d.startTLS {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("LDAPTLS_CACERT: %w", err)
	}
	d.roots = x509.NewCertPool()
	if !d.roots.AppendCertsFromPEM(text) {
		return fmt.Errorf("LDAPTLS_CACERT: no certificate in %s", file)
	}
	return nil
}

// filterFor is the filter for a user, in which nothing of the name has a meaning.
func (d *LDAP) filterFor(user string) string {
	return strings.ReplaceAll(d.filter, "$username", ldap.EscapeFilter(user))
}

// nameFor is what a user is bound as without a search. Where it is a distinguished
// name, nothing of the user's has a meaning in it.
func (d *LDAP) nameFor(user string) string {
	if strings.HasSuffix(d.prefix, "=") {
		user = ldap.EscapeDN(user)
	}
	return d.prefix + user + d.suffix
}

// address is where a host listens.
func (d *LDAP) address(host string) string { return net.JoinHostPort(host, strconv.Itoa(d.port)) }

// tlsFor is how to speak TLS to a host.
func (d *LDAP) tlsFor(host string) *tls.Config {
	return &tls.Config{ServerName: host, RootCAs: d.roots, MinVersion: tls.VersionTLS12}
}
