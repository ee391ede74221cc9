package proxy_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"pgproxy/auth"
	"pgproxy/pgtest"
	"pgproxy/proxy"
	"pgproxy/wire"
)

// encrypted are the lines of [proxy] for a certificate.
func encrypted(mode string, c pgtest.Cert) string {
	return fmt.Sprintf("client_tls_sslmode = %q\nclient_tls_cert_file = %q\nclient_tls_key_file = %q\n", mode, c.CertFile, c.KeyFile)
}

// sslRequest is what a client sends first.
var sslRequest = wire.AppendSSLRequest(nil)

// dialTLS asks for TLS and shakes hands.
func dialTLS(t *testing.T, h *harness, cfg *tls.Config) *pgtest.RawClient {
	t.Helper()
	c := pgtest.DialRaw(t, h.Addr)
	c.Send(sslRequest)
	if b := c.ReadAnswer(); b != 'S' {
		t.Fatalf("SSLRequest is answered with %q", b)
	}
	c.Upgrade(tls.Client(c.Conn(), cfg))
	return c
}

// anyServer checks nothing.
func anyServer() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

// TestTLSDriver: a driver checks the certificate, binds SCRAM to the channel, and
// reads more than a record or two.
func TestTLSDriver(t *testing.T) {
	real := realCluster(t)
	ca := pgtest.NewCA(t)
	h := newHarness(t, harnessOptions{Servers: addrs(real), Proxy: encrypted("require", ca.Issue("localhost", nil))})
	for _, how := range []string{"sslnegotiation=postgres", "sslnegotiation=direct"} {
		conn, err := pgx.Connect(t.Context(), fmt.Sprintf("host=127.0.0.1 port=%s user=%s password='%s' dbname=app sslmode=verify-full sslrootcert=%s channel_binding=require %s",
			h.Addr[strings.LastIndex(h.Addr, ":")+1:], testUser, strings.ReplaceAll(testPassword, "'", `\'`), ca.File, how))
		if err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		var text string
		if err := conn.QueryRow(t.Context(), "SELECT string_agg(repeat(chr(65+i%26), 100000), '') FROM generate_series(0,99) i").Scan(&text); err != nil {
			t.Fatal(err)
		}
		if len(text) != 10_000_000 || strings.Trim(text[:100000], "A") != "" || strings.Trim(text[100000:200000], "B") != "" {
			t.Errorf("%d bytes, or other ones", len(text))
		}
		if got := h.Server.Sessions(); len(got) != 1 || !strings.HasPrefix(got[0].TLS, "TLSv1.3/TLS_") {
			t.Errorf("sessions %+v", got)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// TestTLSModes: who may come without it.
func TestTLSModes(t *testing.T) {
	real := realCluster(t)
	ca := pgtest.NewCA(t)
	own := ca.Issue("localhost", nil)
	for _, tt := range []struct {
		mode           string
		clear, offered bool
	}{{"disable", true, false}, {"allow", true, true}, {"prefer", true, true}, {"require", false, true}} {
		t.Run(tt.mode, func(t *testing.T) {
			h := newHarness(t, harnessOptions{Servers: addrs(real), Proxy: encrypted(tt.mode, own)})
			c := pgtest.DialRaw(t, h.Addr)
			err := c.TryLogin(testUser, testPassword, "database", "app")
			if tt.clear && err != nil {
				t.Errorf("in clear: %v", err)
			}
			if !tt.clear && (err == nil || err.Message != "SSL required" || err.Code != wire.CodeProtocolViolation) {
				t.Errorf("in clear: %v, want SSL required", err)
			}
			if !tt.offered {
				c := pgtest.DialRaw(t, h.Addr)
				c.Send(sslRequest)
				if b := c.ReadAnswer(); b != 'N' {
					t.Errorf("answer %q", b)
				}
				return
			}
			c = dialTLS(t, h, anyServer())
			c.Login(testUser, testPassword, "database", "app")
			if got := c.Query("SELECT 1"); got != "T D(1) C(SELECT 1) Z(I)" {
				t.Errorf("answer %s", got)
			}
		})
	}
}

// TestTLSInjection is S-04: what is sent in clear behind a request for TLS is
// never taken for a part of the session.
func TestTLSInjection(t *testing.T) {
	ca := pgtest.NewCA(t)
	srv := pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
		if err := c.Accept(); err != nil {
			return err
		}
		return c.Serve(pgtest.Echo)
	})
	h := newHarness(t, harnessOptions{
		Servers: []string{srv.Addr()}, Proxy: encrypted("prefer", ca.Issue("localhost", nil)) + "auth_type = \"trust\"\n", Untidy: "the fake server outlives the proxy",
	})
	session := append(pgtest.StartupMessage(wire.Protocol30, "user", testUser, "database", "app"), wire.AppendQuery(nil, "CREATE TABLE pwned()")...)
	for _, tt := range []struct {
		name          string
		first, behind []byte
	}{
		{"in one segment", append(bytes.Clone(sslRequest), session...), nil},
		{"one byte", append(bytes.Clone(sslRequest), 'Q'), nil},
		{"behind the answer", sslRequest, session},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := pgtest.DialRaw(t, h.Addr)
			c.Send(tt.first)
			if b := c.ReadAnswer(); b != 'S' {
				t.Fatalf("answer %q", b)
			}
			if tt.behind != nil {
				c.Send(tt.behind)
			}
			tc := tls.Client(c.Conn(), anyServer())
			_ = tc.SetDeadline(time.Now().Add(20 * time.Second))
			if err := tc.Handshake(); err == nil {
				t.Error("the handshake goes well")
			}
		})
	}
	for _, conn := range srv.Conns() {
		if bytes.Contains(conn.Received(), []byte("pwned")) {
			t.Error("the statement has reached the server")
		}
	}
}

// TestTLSTwice: there is no TLS in TLS, and no direct TLS without its protocol.
func TestTLSTwice(t *testing.T) {
	real := realCluster(t)
	ca := pgtest.NewCA(t)
	h := newHarness(t, harnessOptions{Servers: addrs(real), Proxy: encrypted("prefer", ca.Issue("localhost", nil))})
	c := dialTLS(t, h, anyServer())
	c.Send(sslRequest)
	if b := c.ReadAnswer(); b != 'N' {
		t.Errorf("a second SSLRequest is answered with %q", b)
	}
	c.Login(testUser, testPassword, "database", "app")

	nc, err := net.Dial("tcp", h.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	tc := tls.Client(nc, anyServer())
	_ = tc.SetDeadline(time.Now().Add(20 * time.Second))
	err = tc.Handshake()
	if err == nil {
		_, err = tc.Read(make([]byte, 1))
	}
	if err == nil {
		t.Error("direct TLS without ALPN is served")
	}
}

// TestTLSClientCertificates is S-17.
func TestTLSClientCertificates(t *testing.T) {
	real := realCluster(t)
	ca, stranger := pgtest.NewCA(t), pgtest.NewCA(t)
	own := ca.Issue("localhost", nil)
	ago := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	later := func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }
	forServers := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	nameless := func(c *x509.Certificate) { c.Subject.CommonName, c.DNSNames = "", []string{testUser} }
	h := newHarness(t, harnessOptions{Servers: addrs(real), Proxy: encrypted("verify-full", own) +
		fmt.Sprintf("client_tls_ca_file = %q\nauth_type = \"cert\"\n", ca.File)})
	none := pgtest.Cert{}
	for _, tt := range []struct {
		name string
		cert pgtest.Cert
		ok   bool
	}{
		{"the user's", ca.Issue(testUser, nil), true},
		{"none", none, false},
		{"another user's", ca.Issue(otherUser, nil), false},
		{"of another CA", stranger.Issue(testUser, nil), false},
		{"expired", ca.Issue(testUser, ago), false},
		{"not yet valid", ca.Issue(testUser, later), false},
		{"for servers only", ca.Issue(testUser, forServers), false},
		{"name with a space behind", ca.Issue(testUser+" ", nil), false},
		{"name with NUL behind", ca.Issue(testUser+"\x00", nil), false},
		{"name in a SAN only", ca.Issue("", nameless), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := anyServer()
			if tt.cert.Cert != nil {
				pair, err := tls.X509KeyPair(tt.cert.Cert, tt.cert.Key)
				if err != nil {
					t.Fatal(err)
				}
				cfg.Certificates = []tls.Certificate{pair}
			}
			c := dialTLS(t, h, cfg)
			sent := c.TrySend(pgtest.StartupMessage(wire.Protocol30, "user", testUser, "database", "app"))
			m, err := c.TryRead()
			ok := sent == nil && err == nil && m.Type == wire.Authentication
			if ok != tt.ok {
				t.Errorf("logged in: %t (%v, %v), want %t", ok, m, err, tt.ok)
			}
		})
	}
}

// TestTLSReload: a new certificate is shown to who comes after the reload, and
// costs nobody the connection.
func TestTLSReload(t *testing.T) {
	real := realCluster(t)
	ca := pgtest.NewCA(t)
	h := newHarness(t, harnessOptions{Servers: addrs(real), Proxy: encrypted("prefer", ca.Issue("before", nil))})
	shown := func() (string, *pgtest.RawClient) {
		c := dialTLS(t, h, anyServer())
		c.Login(testUser, testPassword, "database", "app")
		return c.Conn().(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName, c
	}
	name, early := shown()
	if name != "before" {
		t.Fatalf("certificate of %q", name)
	}
	after := ca.Issue("after", nil)
	cfg := h.Server.Settings().Config.Proxy.ClientTLS
	st := *h.Server.Settings()
	next := parseConfig(t, harnessOptions{Servers: addrs(real), Proxy: encrypted(cfg.Mode.String(), after)})
	encrypt, err := next.Proxy.ClientTLS.ForClients()
	if err != nil {
		t.Fatal(err)
	}
	h.Server.Apply(&proxy.Settings{Config: next, Users: st.Users, Auth: auth.New(next.Proxy.AuthType, st.Users, nil, nil), TLS: encrypt})
	h.Pools.Apply(next)
	if name, _ := shown(); name != "after" {
		t.Errorf("certificate of %q", name)
	}
	if got := early.Query("SELECT 1"); got != "T D(1) C(SELECT 1) Z(I)" {
		t.Errorf("the early client: %s", got)
	}
}

// TestTLSCancel: a cancel request may come over TLS.
func TestTLSCancel(t *testing.T) {
	real := realCluster(t)
	ca := pgtest.NewCA(t)
	h := newHarness(t, harnessOptions{Servers: addrs(real), Proxy: encrypted("require", ca.Issue("localhost", nil))})
	c := dialTLS(t, h, anyServer())
	c.Login(testUser, testPassword, "database", "app")
	c.Send(wire.AppendQuery(nil, "SELECT pg_sleep(60)"))
	eventually(t, 10*time.Second, "the statement runs", func() bool {
		infos := h.Server.Sessions()
		return len(infos) == 1 && infos[0].Server != nil && infos[0].Server.Owed > 0
	})
	again := dialTLS(t, h, anyServer())
	again.Send(wire.AppendCancel(nil, c.PID, c.Secret))
	again.ExpectEOF()
	if got := pgtest.Trace(c.ReadUntilReady()); !strings.Contains(got, "57014") {
		t.Errorf("answer %s", got)
	}
}

// TestTLSCertificateBesidesThePassword: with verify-ca and verify-full a certificate
// is asked for whatever the auth_type, and none is believed that was shown in an
// earlier session alone (faults.md, S-17).
func TestTLSCertificateBesidesThePassword(t *testing.T) {
	real := realCluster(t)
	ca, other := pgtest.NewCA(t), pgtest.NewCA(t)
	for _, mode := range []string{"verify-ca", "verify-full"} {
		h := newHarness(t, harnessOptions{Servers: addrs(real), Proxy: encrypted(mode, ca.Issue("localhost", nil)) +
			fmt.Sprintf("client_tls_ca_file = %q\n", ca.File)})
		// One cache of sessions for all handshakes: a ticket would stand for the certificate.
		cache := tls.NewLRUClientSessionCache(10)
		for _, tt := range []struct {
			name string
			by   *pgtest.CA
			ok   bool
		}{{"none", nil, false}, {"good", ca, true}, {"none, after a good one", nil, false}, {"of another CA", other, false}} {
			cfg := &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", ClientSessionCache: cache}
			if tt.by != nil {
				c := tt.by.Issue(testUser, nil)
				pair, err := tls.X509KeyPair(c.Cert, c.Key)
				if err != nil {
					t.Fatal(err)
				}
				cfg.Certificates = []tls.Certificate{pair}
			}
			c := dialTLS(t, h, cfg)
			sent := c.TrySend(pgtest.StartupMessage(wire.Protocol30, "user", testUser, "database", "app"))
			m, err := c.TryRead()
			if ok := sent == nil && err == nil && m.Type == wire.Authentication; ok != tt.ok {
				t.Errorf("%s, %s: %t (%v), want %t", mode, tt.name, ok, err, tt.ok)
			}
			if tt.ok {
				if e := c.Conn().(*tls.Conn).ConnectionState(); e.DidResume {
					t.Error("a session was resumed")
				}
			}
			c.Close()
		}
	}
}
