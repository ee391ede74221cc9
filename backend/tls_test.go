package backend

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"pgproxy/config"
	"pgproxy/pgtest"
	"pgproxy/wire"
)

// tlsConfig reads keys of [databases.NAME].
func tlsConfig(t *testing.T, lines string) *config.TLS {
	t.Helper()
	cfg, err := config.Parse("/pgproxy.toml", []byte("[databases.a]\nhost = \"h\"\nuser = \"u\"\n"+lines))
	if err != nil {
		t.Fatal(err)
	}
	return &cfg.Databases["a"].TLS
}

// TestTLSServer logs in to a real server that demands TLS.
func TestTLSServer(t *testing.T) {
	ctx := t.Context()
	ca, stranger := pgtest.NewCA(t), pgtest.NewCA(t)
	c, err := pgtest.StartCluster(ctx, pgtest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	node := c.Primary
	if err := c.CreateRole(ctx, "tls", "tls's secret", ""); err != nil {
		t.Fatal(err)
	}
	if err := node.UseTLS(ctx, ca.Issue("localhost", nil)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, mode, host string
		roots            *pgtest.CA
		wrong            string // what the error says; "" is none
		clear            bool
	}{
		{"disable", "disable", "127.0.0.1", nil, "", true},
		{"allow", "allow", "127.0.0.1", nil, "", true},
		{"prefer", "prefer", "127.0.0.1", nil, "", false},
		{"require", "require", "127.0.0.1", nil, "", false},
		{"require does not ask who", "require", "127.0.0.1", stranger, "", false},
		{"verify-ca", "verify-ca", "127.0.0.1", ca, "", false},
		{"verify-ca, another CA", "verify-ca", "127.0.0.1", stranger, "unknown authority", false},
		{"verify-full by address", "verify-full", "127.0.0.1", ca, "", false},
		{"verify-full by name", "verify-full", "localhost", ca, "", false},
		{"verify-full, another name", "verify-full", "127.0.0.2", ca, "valid for", false},
		{"verify-full, another CA", "verify-full", "127.0.0.1", stranger, "unknown authority", false},
		{"verify-full, the system's CAs", "verify-full", "127.0.0.1", nil, "unknown authority", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			census := pgtest.NewCensus(t)
			d := newDialer()
			lines := fmt.Sprintf("server_tls_sslmode = %q\n", tt.mode)
			if tt.roots != nil {
				lines += fmt.Sprintf("server_tls_ca_file = %q\n", tt.roots.File)
			}
			d.TLS = tlsConfig(t, lines)
			d.Connect = func(ctx context.Context, network, _ string) (net.Conn, error) { // whatever the host is called
				return new(net.Dialer).DialContext(ctx, network, node.Addr())
			}
			l := Login{Server: config.Server{Host: tt.host, Port: node.Port}, Database: "postgres", User: "tls", Password: "tls's secret"}
			conn, err := d.Dial(ctx, l, newOwner())
			if tt.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wrong) {
					t.Errorf("login: %v, want an error with %q", err, tt.wrong)
				}
				if conn != nil {
					conn.Close()
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := conn.Info().TLS; (got == "") != tt.clear {
				t.Errorf("TLS is %q", got)
			}
			got, err := node.Value(ctx, "postgres", fmt.Sprintf("SELECT ssl FROM pg_stat_ssl WHERE pid = %d", conn.PID))
			if want := map[bool]string{true: "f", false: "t"}[tt.clear]; err != nil || got != want {
				t.Errorf("pg_stat_ssl.ssl is %q, %v, want %q", got, err, want)
			}
			if !tt.clear {
				cancelsOverTLS(t, conn)
			}
			conn.Close()
			conn.Wait()
			census.AssertBaseline()
		})
	}
}

// cancelsOverTLS: S-23, a cancel request goes the way of its session.
func cancelsOverTLS(t *testing.T, conn *Conn) {
	t.Helper()
	connect, encrypted := conn.connect, false
	conn.connect = func(ctx context.Context, network, addr string) (net.Conn, error) {
		nc, err := connect(ctx, network, addr)
		_, encrypted = nc.(*tls.Conn)
		return nc, err
	}
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	if sent, err := conn.signal(ctx); !sent || err != nil || !encrypted {
		t.Errorf("cancel request: sent %t, encrypted %t, %v", sent, encrypted, err)
	}
}

// TestTLSHostile: nothing that a server says before it is known is believed, and
// none of its words are passed on.
func TestTLSHostile(t *testing.T) {
	ca := pgtest.NewCA(t)
	own := ca.Issue("localhost", nil)
	pair, err := tls.X509KeyPair(own.Cert, own.Key)
	if err != nil {
		t.Fatal(err)
	}
	const canary = "canary"
	for _, tt := range []struct {
		name, mode, extra string
		answer            []byte
		serve             bool // TLS behind it
		wrong             string
	}{
		{"refused", "require", "", []byte("N"), false, "does not support it"},
		{"refused, verify-full", "verify-full", "", []byte("N"), false, "does not support it"},
		{"error text", "prefer", "", append([]byte("E"), strings.Repeat(canary, 10000)...), false, `answers the SSLRequest with 'E'`},
		{"nothing", "require", "", nil, false, "EOF"},
		{"S-05: rows in clear behind the answer", "require", "", append([]byte("S"), wire.AppendDataRow(nil, []byte(canary))...), true, "TLS"},
		{"direct, no ALPN", "require", "server_tls_sslnegotiation = \"direct\"\n", nil, true, "ALPN"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			census := pgtest.NewCensus(t)
			srv := pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
				if tt.extra == "" {
					var request [8]byte
					if _, err := c.Conn.Read(request[:]); err != nil {
						return err
					}
				}
				if _, err := c.Conn.Write(tt.answer); err != nil || !tt.serve {
					return err
				}
				tc := tls.Server(c.Conn, &tls.Config{Certificates: []tls.Certificate{pair}})
				if err := tc.Handshake(); err != nil {
					return nil
				}
				_, err := tc.Write(append(wire.AppendAuth(nil, wire.AuthOK, nil), wire.AppendReadyForQuery(nil, wire.TxIdle)...))
				return errors.Join(err, tc.Close())
			})
			d := newDialer()
			d.TLS = tlsConfig(t, fmt.Sprintf("server_tls_sslmode = %q\nserver_tls_ca_file = %q\n%s", tt.mode, ca.File, tt.extra))
			conn, err := d.Dial(t.Context(), loginTo(srv.Port()), newOwner())
			if err == nil {
				conn.Close()
				t.Fatal("logged in")
			}
			if !strings.Contains(err.Error(), tt.wrong) || strings.Contains(err.Error(), canary) {
				t.Errorf("%v, want an error with %q", err, tt.wrong)
			}
			<-srv.Conns()[0].Done()
			srv.Close()
			census.AssertBaseline()
		})
	}
}

// TestTLSDirect speaks with a server that takes TLS at once, and shows it a
// client certificate.
func TestTLSDirect(t *testing.T) {
	census := pgtest.NewCensus(t)
	ca := pgtest.NewCA(t)
	own, mine := ca.Issue("localhost", nil), ca.Issue("pgproxy", nil)
	pair, err := tls.X509KeyPair(own.Cert, own.Key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.PEM)
	names := make(chan string, 1)
	srv := pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
		tc := tls.Server(c.Conn, &tls.Config{
			Certificates: []tls.Certificate{pair}, NextProtos: []string{config.ALPN},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
		})
		if err := tc.Handshake(); err != nil {
			return err
		}
		names <- tc.ConnectionState().PeerCertificates[0].Subject.CommonName
		c.Upgrade(tc)
		if err := c.Accept(); err != nil {
			return err
		}
		return c.Serve(pgtest.Echo)
	})
	d := newDialer()
	d.TLS = tlsConfig(t, fmt.Sprintf("server_tls_sslmode = \"verify-full\"\nserver_tls_ca_file = %q\nserver_tls_sslnegotiation = \"direct\"\n"+
		"server_tls_cert_file = %q\nserver_tls_key_file = %q\n", ca.File, mine.CertFile, mine.KeyFile))
	conn, err := d.Dial(t.Context(), loginTo(srv.Port()), newOwner())
	if err != nil {
		t.Fatal(err)
	}
	if got := <-names; got != "pgproxy" {
		t.Errorf("the client's certificate is %q's", got)
	}
	conn.Close()
	conn.Wait()
	<-srv.Conns()[0].Done()
	srv.Close()
	census.AssertBaseline()
}
