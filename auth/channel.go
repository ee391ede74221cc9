package auth

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"net/netip"
)

// Channel is what is known of the connection that a client logs in over.
type Channel struct {
	Encrypted  bool
	Binding    []byte // what SCRAM-SHA-256-PLUS binds to, see EndPoint; nil: nothing
	Certified  bool   // the client has shown a certificate, which has been verified
	CommonName string // of that certificate

	Addr        netip.Addr // of the client; not valid: it comes through a Unix socket
	SystemUser  string     // that the kernel says it is, through a Unix socket; "" if that is not known
	Replication bool       // it wants to stream the whole WAL
}

// EndPoint is the channel binding "tls-server-end-point" of RFC 5929 of a server
// that shows this certificate: its hash, by the function of its signature but
// SHA-256 at least. nil where the signature has no such function.
func EndPoint(cert *x509.Certificate) []byte {
	switch cert.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.SHA256WithRSA, x509.ECDSAWithSHA256, x509.SHA256WithRSAPSS:
		h := sha256.Sum256(cert.Raw)
		return h[:]
	case x509.SHA384WithRSA, x509.ECDSAWithSHA384, x509.SHA384WithRSAPSS:
		h := sha512.Sum384(cert.Raw)
		return h[:]
	case x509.SHA512WithRSA, x509.ECDSAWithSHA512, x509.SHA512WithRSAPSS:
		h := sha512.Sum512(cert.Raw)
		return h[:]
	}
	return nil
}

// encryption is what PostgreSQL says of a connection in its errors.
func (c *Channel) encryption() string {
	if c.Encrypted {
		return "SSL encryption"
	}
	return "no encryption"
}
