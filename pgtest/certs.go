package pgtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA signs certificates for tests.
type CA struct {
	File string // its own certificate, PEM
	PEM  []byte

	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Cert is a certificate with its key, both PEM, in files and in memory.
type Cert struct {
	CertFile, KeyFile string
	Cert, Key         []byte
}

// NewCA makes a CA whose files last as long as the test.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca := &CA{t: t, dir: t.TempDir()}
	ca.key = newKey(t)
	ca.cert = &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, ca.cert, ca.cert, ca.key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	ca.PEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	ca.File = writeFile(t, ca.dir, "ca-*.crt", ca.PEM)
	return ca
}

// Issue signs a certificate for a common name, valid for 127.0.0.1 and localhost,
// for servers and clients. edit may change what it says; nil leaves it.
func (ca *CA) Issue(name string, edit func(*x509.Certificate)) Cert {
	ca.t.Helper()
	key := newKey(ca.t)
	c := &x509.Certificate{
		SerialNumber: serial(ca.t), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	if edit != nil {
		edit(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.cert, key.Public(), ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		ca.t.Fatal(err)
	}
	out := Cert{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	}
	out.CertFile = writeFile(ca.t, ca.dir, "*.crt", out.Cert)
	out.KeyFile = writeFile(ca.t, ca.dir, "*.key", out.Key)
	return out
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// writeFile writes a file that only its owner may read, and returns its path.
func writeFile(t testing.TB, dir, pattern string, text []byte) string {
	t.Helper()
	f, err := os.CreateTemp(dir, pattern)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// UseTLS gives the server a certificate and makes it offer TLS.
func (n *Node) UseTLS(ctx context.Context, c Cert) error {
	for name, text := range map[string][]byte{"server.crt": c.Cert, "server.key": c.Key} {
		path := filepath.Join(n.Dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return err
		}
		if err := n.cluster.account.own(path); err != nil {
			return err
		}
	}
	if err := n.Exec(ctx, "postgres", "ALTER SYSTEM SET ssl = on"); err != nil {
		return err
	}
	if err := n.Exec(ctx, "postgres", "SELECT pg_reload_conf()"); err != nil {
		return err
	}
	return n.WaitFor(ctx, "postgres", "SELECT setting = 'on' FROM pg_settings WHERE name = 'ssl'")
}
