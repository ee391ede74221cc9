package backend

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"pgproxy/config"
	"pgproxy/wire"
)

// secure encrypts a socket that has just been opened to s, as the Dialer's TLS
// says, and returns what to go on with. On error the socket is closed.
//
// Nothing is read of the server in clear but the one byte that answers the
// SSLRequest: what it sends behind that comes to the handshake, which fails. If
// the server answers with an error, its words are not read: nobody knows yet
// whose they are.
func (d *Dialer) secure(ctx context.Context, nc net.Conn, s config.Server) (_ net.Conn, err error) {
	if d.TLS == nil || d.TLS.Mode <= config.TLSAllow || s.Network() == "unix" {
		return nc, nil
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		stop()
		if err != nil {
			_ = nc.Close()
			err = fmt.Errorf("TLS with %s: %w", s.Addr(), err)
		}
	}()
	cfg, err := d.tlsFor(s.Host)
	if err != nil {
		return nil, err
	}
	if d.TLS.Negotiation == config.TLSPostgres {
		offered, err := requestTLS(nc)
		if err != nil {
			return nil, err
		}
		if !offered {
			if d.TLS.Mode == config.TLSPrefer {
				return nc, nil
			}
			return nil, fmt.Errorf("the server does not support it, and server_tls_sslmode is %q", d.TLS.Mode)
		}
	}
	tc := tls.Client(nc, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if d.TLS.Negotiation == config.TLSDirect && tc.ConnectionState().NegotiatedProtocol != config.ALPN {
		return nil, errors.New("the server has not agreed to speak PostgreSQL's protocol (ALPN)")
	}
	return tc, nil
}

// requestTLS asks a server whether it speaks TLS.
func requestTLS(nc net.Conn) (offered bool, err error) {
	if _, err := nc.Write(wire.AppendSSLRequest(nil)); err != nil {
		return false, err
	}
	var answer [1]byte
	if _, err := nc.Read(answer[:]); err != nil {
		return false, err
	}
	switch answer[0] {
	case 'S':
		return true, nil
	case 'N':
		return false, nil
	}
	return false, fmt.Errorf("the server answers the SSLRequest with %q", answer[0])
}

// tlsFor returns the configuration for a host, which is made once.
func (d *Dialer) tlsFor(host string) (*tls.Config, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if cfg := d.tls[host]; cfg != nil {
		return cfg, nil
	}
	cfg, err := d.TLS.ForServer(host)
	if err != nil {
		return nil, err
	}
	if d.tls == nil {
		d.tls = make(map[string]*tls.Config)
	}
	d.tls[host] = cfg
	return cfg, nil
}

// DescribeTLS names version and cipher suite of an encrypted connection, for the
// console; "" if it is not encrypted.
func DescribeTLS(nc net.Conn) string {
	tc, ok := nc.(*tls.Conn)
	if !ok {
		return ""
	}
	s := tc.ConnectionState()
	version := map[uint16]string{
		tls.VersionTLS10: "TLSv1.0", tls.VersionTLS11: "TLSv1.1", tls.VersionTLS12: "TLSv1.2", tls.VersionTLS13: "TLSv1.3",
	}[s.Version]
	return version + "/" + tls.CipherSuiteName(s.CipherSuite)
}
