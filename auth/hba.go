package auth

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"

	"pgproxy/config"
)

// HBA is an auth_hba_file: who may log in from where, and how, in the format of
// PostgreSQL's pg_hba.conf (section "The pg_hba.conf File" of its manual). The first
// line that fits decides. It does not change later.
type HBA struct {
	rules []hbaRule
	maps  map[string][]identLine
}

// hbaRule is one line.
type hbaRule struct {
	line      int
	kind      string // local, host, hostssl or hostnossl
	databases []hbaName
	users     []hbaName
	addr      netip.Prefix // not valid: any, or a line for local
	method    hbaMethod
	identMap  string
	cert      bool  // clientcert: there must be a certificate
	named     bool  // clientcert=verify-full: and it must have the user's name
	ldap      *LDAP // of a line with options of ldap
}

// hbaMethod is how a line lets clients in.
type hbaMethod struct {
	refuse bool // reject
	peer   bool // by the user of the operating system
	as     config.AuthType
}

// hbaMethods are the methods of PgBouncer, by their words.
var hbaMethods = map[string]hbaMethod{
	"trust": {as: config.AuthTrust}, "reject": {refuse: true}, "password": {as: config.AuthPlain}, "md5": {as: config.AuthMD5},
	"scram-sha-256": {as: config.AuthSCRAM}, "cert": {as: config.AuthCert}, "peer": {peer: true}, "ldap": {as: config.AuthLDAP},
}

// hbaName is one item of the columns for databases and users.
type hbaName struct {
	text   string
	quoted bool // key words have no meaning
	re     *regexp.Regexp
}

// LoadHBA reads an auth_hba_file and, unless its name is "", an auth_ident_file.
// Errors name the file and the line, or wrap that of opening the file.
func LoadHBA(path, ident string) (*HBA, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("auth_hba_file: %w", err)
	}
	h, err := ParseHBA(path, text)
	if err != nil {
		return nil, err
	}
	if ident != "" {
		if text, err = os.ReadFile(ident); err != nil {
			return nil, fmt.Errorf("auth_ident_file: %w", err)
		}
		if h.maps, err = parseIdent(ident, text); err != nil {
			return nil, err
		}
	}
	for _, r := range h.rules {
		if r.identMap != "" && h.maps[r.identMap] == nil {
			return nil, &config.Error{Path: path, Line: r.line, Msg: fmt.Sprintf("there is no map %q: want it in auth_ident_file", r.identMap)}
		}
	}
	return h, nil
}

// ParseHBA reads the text of an auth_hba_file. name is for errors.
func ParseHBA(name string, text []byte) (*HBA, error) {
	h := new(HBA)
	var faults []error
	for _, l := range hbaLines(string(text)) {
		r, err := parseRule(l)
		if err != nil {
			faults = append(faults, &config.Error{Path: name, Line: l.number, Msg: err.Error()})
			if len(faults) == maxFaults {
				break
			}
			continue
		}
		h.rules = append(h.rules, r)
	}
	return h, errors.Join(faults...)
}

// parseRule reads one line.
func parseRule(l hbaLine) (hbaRule, error) {
	r := hbaRule{line: l.number}
	if l.err != nil {
		return r, l.err
	}
	f := l.fields
	r.kind = f[0][0].text
	switch {
	case len(f[0]) != 1 || !slices.Contains([]string{"local", "host", "hostssl", "hostnossl"}, r.kind):
		return r, fmt.Errorf("%q is no type of connection: want local, host, hostssl or hostnossl", r.kind)
	case len(f) < 4 || r.kind != "local" && len(f) < 5:
		return r, errors.New("want a type, databases, users, an address (but for local), and a method")
	}
	var err error
	if r.databases, err = hbaNames(f[1], "databases", "all", "sameuser", "replication"); err != nil {
		return r, err
	}
	if r.users, err = hbaNames(f[2], "users", "all"); err != nil {
		return r, err
	}
	f = f[3:]
	if r.kind != "local" {
		used := 0
		if r.addr, used, err = hbaAddress(f); err != nil {
			return r, err
		}
		if f = f[used:]; len(f) == 0 {
			return r, errors.New("want a method behind the address")
		}
	}
	word := f[0][0].text
	m, ok := hbaMethods[word]
	switch {
	case !ok:
		return r, fmt.Errorf("method %q is not supported: want trust, reject, password, md5, scram-sha-256, cert, peer or ldap", word)
	case m.peer && r.kind != "local":
		return r, errors.New("peer is for local connections only")
	case m.as == config.AuthCert && r.kind != "hostssl":
		return r, errors.New("cert is for hostssl only")
	}
	r.method = m
	return r, r.options(f[1:])
}

// options reads NAME=VALUE.
func (r *hbaRule) options(fields [][]hbaToken) error {
	var of ldapOptions
	for _, t := range slices.Concat(fields...) {
		name, value, _ := strings.Cut(t.text, "=")
		switch {
		case name == "map" && value != "" && (r.method.peer || r.method.as == config.AuthCert):
			r.identMap = value
		case name == "clientcert" && (value == "verify-ca" || value == "verify-full") && r.kind == "hostssl":
			r.cert, r.named = true, value == "verify-full"
		case r.method.as == config.AuthLDAP:
			if err := of.set(t.text); err != nil {
				return err
			}
		default:
			return fmt.Errorf("option %q means nothing here: there are map (of peer and cert) and clientcert (of hostssl)", t.text)
		}
	}
	if of == nil {
		return nil
	}
	dir, err := of.directory()
	r.ldap = dir
	return err
}

// hbaNames reads a column. words are the key words that it may have.
func hbaNames(tokens []hbaToken, what string, words ...string) ([]hbaName, error) {
	var out []hbaName
	for _, t := range tokens {
		n := hbaName{text: t.text, quoted: t.quoted}
		switch {
		case t.quoted || slices.Contains(words, t.text):
		case t.text == "samerole" || t.text == "samegroup" || strings.HasPrefix(t.text, "+"):
			return nil, fmt.Errorf("%s in the column of %s: memberships of roles are not known here", t.text, what)
		case strings.HasPrefix(t.text, "@"):
			return nil, fmt.Errorf("%s in the column of %s: want the names in this file", t.text, what)
		case strings.HasPrefix(t.text, "/"):
			re, err := regexp.Compile(t.text[1:])
			if err != nil {
				return nil, fmt.Errorf("%s in the column of %s: %w", t.text, what, err)
			}
			n.re = re
		}
		out = append(out, n)
	}
	return out, nil
}

// hbaAddress reads an address with the mask behind it, and says how many fields
// that were.
func hbaAddress(f [][]hbaToken) (p netip.Prefix, used int, err error) {
	text := f[0][0].text
	if text == "all" && !f[0][0].quoted {
		return netip.Prefix{}, 1, nil
	}
	if p, err := netip.ParsePrefix(text); err == nil {
		if p != p.Masked() {
			return p, 1, fmt.Errorf("%q has bits behind its mask: want %q", text, p.Masked())
		}
		return p, 1, nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return p, 1, fmt.Errorf("%q is no address: want one as 10.0.0.0/8 or 10.0.0.7 255.255.255.255, or all; names of hosts are not looked up", text)
	}
	if len(f) > 1 {
		if mask, merr := netip.ParseAddr(f[1][0].text); merr == nil && mask.BitLen() == addr.BitLen() {
			bits, ok := maskBits(mask.AsSlice())
			p = netip.PrefixFrom(addr, bits)
			if !ok || p != p.Masked() {
				return p, 2, fmt.Errorf("%q with the mask %q is no network", text, mask)
			}
			return p, 2, nil
		}
	}
	return p, 1, fmt.Errorf("%q has no mask: want %s/%d", text, text, addr.BitLen())
}

// maskBits counts the ones of a mask; ok is false if it has others behind.
func maskBits(mask []byte) (n int, ok bool) {
	bits := ""
	for _, b := range mask {
		bits += fmt.Sprintf("%08b", b)
	}
	n = strings.IndexByte(bits+"0", '0')
	return n, !strings.Contains(bits[n:], "1")
}

// AsksForCertificates reports whether a line wants certificates of clients.
func (h *HBA) AsksForCertificates() bool {
	return slices.ContainsFunc(h.rules, func(r hbaRule) bool { return r.cert || r.method.as == config.AuthCert })
}

// LacksLDAP returns the number of a line that has ldap without options; 0 if there
// is none.
func (h *HBA) LacksLDAP() int {
	for _, r := range h.rules {
		if r.method.as == config.AuthLDAP && r.ldap == nil {
			return r.line
		}
	}
	return 0
}

// match finds the rule for a login; nil if there is none.
func (h *HBA) match(c Channel, database, user string) *hbaRule {
	for i := range h.rules {
		if r := &h.rules[i]; r.fits(c, database, user) {
			return r
		}
	}
	return nil
}

func (r *hbaRule) fits(c Channel, database, user string) bool {
	switch r.kind {
	case "local":
		if c.Addr.IsValid() {
			return false
		}
	case "hostssl":
		if !c.Addr.IsValid() || !c.Encrypted {
			return false
		}
	case "hostnossl":
		if !c.Addr.IsValid() || c.Encrypted {
			return false
		}
	default:
		if !c.Addr.IsValid() {
			return false
		}
	}
	if r.addr.IsValid() && !r.addr.Contains(c.Addr.Unmap().WithZone("")) {
		return false
	}
	return slices.ContainsFunc(r.databases, func(n hbaName) bool {
		switch {
		case c.Replication: // only the key word fits, as in PostgreSQL
			return n.is("replication")
		case n.is("all"):
			return true
		case n.is("sameuser"):
			return database == user
		case n.is("replication"):
			return false
		}
		return n.names(database)
	}) && slices.ContainsFunc(r.users, func(n hbaName) bool { return n.is("all") || n.names(user) })
}

// is reports whether the item is a key word.
func (n *hbaName) is(word string) bool { return !n.quoted && n.text == word }

func (n *hbaName) names(s string) bool {
	if n.re != nil {
		return n.re.MatchString(s)
	}
	return n.text == s
}
