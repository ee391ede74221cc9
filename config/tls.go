package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// TLSMode says whether a connection is encrypted, and who must prove what. The
// words are libpq's sslmode.
type TLSMode uint8

// The modes. What they mean for servers is libpq's, for clients PgBouncer's.
const (
	TLSDisable    TLSMode = iota
	TLSAllow              // clients: as TLSPrefer; servers: as TLSDisable
	TLSPrefer             // encrypted if the other side can
	TLSRequire            // encrypted, whoever the other side is
	TLSVerifyCA           // and its certificate comes from the CA
	TLSVerifyFull         // and, of a server, it is the host's
)

var tlsModes = []string{"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}

// String is the word of the file.
func (v TLSMode) String() string { return word(tlsModes, v) }

// UnmarshalText accepts the words of the file.
func (v *TLSMode) UnmarshalText(p []byte) error { return setWord(v, tlsModes, p) }

// TLSNegotiation says how TLS begins on a connection to a server; the words are
// libpq's sslnegotiation.
type TLSNegotiation uint8

// The ways to begin.
const (
	TLSPostgres TLSNegotiation = iota // the server is asked first
	TLSDirect                         // at once, for servers from PostgreSQL 17 on
)

var tlsNegotiations = []string{"postgres", "direct"}

// String is the word of the file.
func (v TLSNegotiation) String() string { return word(tlsNegotiations, v) }

// UnmarshalText accepts the words of the file.
func (v *TLSNegotiation) UnmarshalText(p []byte) error { return setWord(v, tlsNegotiations, p) }

// TLS is how connections of one side are encrypted. The files are read when the
// configuration is.
type TLS struct {
	Mode        TLSMode
	Negotiation TLSNegotiation // to servers
	CertFile    string         // PEM, the chain behind it; "" is none
	KeyFile     string         // PEM
	CAFile      string         // PEM; "" is the system's
	Protocols   []string       // versions, or one of the words of tlsProtocols
	Ciphers     []string       // of TLS 1.2 and older, by their names in Go; or one of the words of tlsDefaultCiphers

	cert, key, ca Secret // what is in the files
}

// ALPN is the application protocol of PostgreSQL 17 and newer, which a direct TLS
// connection must ask for.
const ALPN = "postgresql"

// tlsVersions are the names of PgBouncer.
var tlsVersions = map[string]uint16{
	"tlsv1.0": tls.VersionTLS10, "tlsv1.1": tls.VersionTLS11, "tlsv1.2": tls.VersionTLS12, "tlsv1.3": tls.VersionTLS13,
}

// tlsProtocols are words for several versions.
var tlsProtocols = map[string][]string{
	"secure": {"tlsv1.2", "tlsv1.3"},
	"all":    {"tlsv1.0", "tlsv1.1", "tlsv1.2", "tlsv1.3"},
	"legacy": {"tlsv1.0", "tlsv1.1", "tlsv1.2", "tlsv1.3"},
}

// tlsDefaultCiphers are the words of PgBouncer that leave the choice to Go.
var tlsDefaultCiphers = []string{"default", "secure", "normal", "fast"}

func tlsProtocol(s string) error {
	if _, ok := tlsVersions[s]; !ok && tlsProtocols[s] == nil {
		return fmt.Errorf(`%s is no version of TLS: want "secure", "all", or some of tlsv1.0, tlsv1.1, tlsv1.2 and tlsv1.3`, quote(s))
	}
	return nil
}

func tlsCipher(s string) error {
	if cipherID(s) == 0 && !slices.Contains(tlsDefaultCiphers, s) {
		return fmt.Errorf(`%s is no cipher suite: want "default", or names as TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256`, quote(s))
	}
	return nil
}

func cipherID(name string) uint16 {
	for _, c := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		if c.Name == name {
			return c.ID
		}
	}
	return 0
}

// common is what both sides have.
func (t *TLS) common() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	var versions []uint16
	for _, p := range t.Protocols {
		if names := tlsProtocols[p]; names != nil {
			for _, n := range names {
				versions = append(versions, tlsVersions[n])
			}
		} else {
			versions = append(versions, tlsVersions[p])
		}
	}
	if len(versions) > 0 {
		c.MinVersion, c.MaxVersion = slices.Min(versions), slices.Max(versions) // #nosec G402 -- as it is configured
	}
	for _, name := range t.Ciphers {
		if id := cipherID(name); id != 0 {
			c.CipherSuites = append(c.CipherSuites, id)
		}
	}
	if !t.cert.Empty() || !t.key.Empty() {
		pair, err := tls.X509KeyPair([]byte(t.cert.Reveal()), []byte(t.key.Reveal()))
		if err != nil {
			return nil, fmt.Errorf("certificate %s with key %s: %s", quote(t.CertFile), quote(t.KeyFile), strings.TrimPrefix(err.Error(), "tls: "))
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// roots are the CAs to trust; nil is the system's.
func (t *TLS) roots() (*x509.CertPool, error) {
	if t.CAFile == "" {
		return nil, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(t.ca.Reveal())) {
		return nil, fmt.Errorf("no certificate in %s", quote(t.CAFile))
	}
	return pool, nil
}

// ForClients is how to speak with clients that connect; nil if not encrypted. It
// is to be made once for each configuration: the tickets for returning clients
// belong to it.
func (t *TLS) ForClients() (*tls.Config, error) {
	if t.Mode == TLSDisable {
		return nil, nil
	}
	c, err := t.common()
	if err != nil {
		return nil, err
	}
	if len(c.Certificates) == 0 {
		return nil, errors.New("no certificate")
	}
	if c.ClientCAs, err = t.roots(); err != nil {
		return nil, err
	}
	switch {
	case t.Mode >= TLSVerifyCA:
		c.ClientAuth = tls.RequireAndVerifyClientCert
	case t.CAFile != "":
		c.ClientAuth = tls.VerifyClientCertIfGiven
	}
	// A ticket would carry a certificate that has been revoked since.
	c.SessionTicketsDisabled = c.ClientAuth != tls.NoClientCert
	c.NextProtos = []string{ALPN}
	return c, nil
}

// ForServer is how to speak with a server of this host name or address; nil if
// not encrypted.
func (t *TLS) ForServer(host string) (*tls.Config, error) {
	if t.Mode <= TLSAllow {
		return nil, nil
	}
	c, err := t.common()
	if err != nil {
		return nil, err
	}
	if c.RootCAs, err = t.roots(); err != nil {
		return nil, err
	}
	c.ServerName = host
	c.NextProtos = []string{ALPN}
	if t.Mode == TLSVerifyFull {
		return c, nil
	}
	c.InsecureSkipVerify = true // #nosec G402 -- what these modes mean; verify-ca checks below
	if t.Mode == TLSVerifyCA {
		roots := c.RootCAs
		c.VerifyConnection = func(s tls.ConnectionState) error {
			opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
			for _, cert := range s.PeerCertificates[1:] {
				opts.Intermediates.AddCert(cert)
			}
			_, err := s.PeerCertificates[0].Verify(opts)
			return err
		}
	}
	return c, nil
}

// tlsFiles reads the files that a section names for one side and checks that they
// fit together with what it has inherited. prefix is that of the keys.
func (p *parser) tlsFiles(at place, prefix string, t *TLS) {
	ok := true
	given := at.has(prefix + "sslmode")
	for _, f := range []struct {
		key  string
		file *string
		to   *Secret
	}{
		{"cert_file", &t.CertFile, &t.cert}, {"key_file", &t.KeyFile, &t.key}, {"ca_file", &t.CAFile, &t.ca},
	} {
		if !at.has(prefix + f.key) {
			continue
		}
		given = true
		if *f.to = ""; *f.file == "" {
			continue
		}
		*f.file = p.relative(*f.file)
		text, mode, err := readSmall(*f.file, maxPEMFile)
		here := at.child(prefix + f.key)
		switch {
		case err != nil:
			p.fault(here, "%s", err)
			ok = false
		case f.to == &t.key && mode.Perm()&0o007 != 0:
			p.warn(here, "every user of this machine may read the key: want chmod o-rwx for the file")
		}
		*f.to = Secret(text)
	}
	if !ok || !given {
		return
	}
	mode := at.child(prefix + "sslmode")
	switch {
	case (t.CertFile == "") != (t.KeyFile == ""):
		p.fault(at.child(prefix+"cert_file"), "a certificate and its key go together: want %scert_file and %skey_file", prefix, prefix)
		return
	case t.Mode >= TLSVerifyCA && t.CAFile == "" && prefix == "client_tls_":
		p.fault(mode, "%q asks clients for a certificate: want the CA that they come from in client_tls_ca_file", t.Mode)
		return
	case t.Mode != TLSDisable && t.CertFile == "" && prefix == "client_tls_":
		p.fault(mode, "%q needs a certificate: want client_tls_cert_file and client_tls_key_file", t.Mode)
		return
	}
	_, err := t.ForClients()
	if prefix != "client_tls_" {
		_, err = t.ForServer("")
	}
	if err != nil {
		p.fault(mode, "%s", err)
	}
}

// maxPEMFile bounds what is read of a file with certificates, in bytes: a bundle
// of all public CAs has about 250 kB.
const maxPEMFile = 4 << 20
