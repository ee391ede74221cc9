package proxy

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os/user"
	"strconv"
	"time"

	"pgproxy/auth"
	"pgproxy/config"
	"pgproxy/wire"
)

// recordHandshake is the first byte of a TLS connection (RFC 8446, 5.1). No
// startup packet begins so: its length would be over 350 MB.
const recordHandshake = 0x16

// replayed is a socket of which some bytes have been read already.
type replayed struct {
	net.Conn
	read *bytes.Reader
}

// Read gives the bytes that were read before, then those of the socket.
func (r *replayed) Read(p []byte) (int, error) {
	if r.read.Len() > 0 {
		return r.read.Read(p)
	}
	return r.Conn.Read(p)
}

// offersTLS reports whether the client may encrypt.
func (s *Session) offersTLS() bool {
	_, over := s.nc.(*net.TCPConn)
	return s.tlsConfig != nil && over
}

// startTLS makes s.link an encrypted one. What the client has sent in clear
// behind its request is taken for a part of the handshake, which fails.
func (s *Session) startTLS(nc net.Conn, direct bool) error {
	tc := tls.Server(nc, s.tlsConfig)
	if err := tc.HandshakeContext(s.srv.ctx); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	if direct && tc.ConnectionState().NegotiatedProtocol != config.ALPN {
		_ = tc.Close()
		return errors.New("direct TLS without the application protocol of PostgreSQL (ALPN)")
	}
	s.link = tc
	return nil
}

// directTLS is startTLS for a client that has not asked first.
func (s *Session) directTLS(head []byte) error {
	return s.startTLS(&replayed{Conn: s.nc, read: bytes.NewReader(head)}, true)
}

// wantTLS refuses a client that has to encrypt and does not.
func (s *Session) wantTLS() error {
	mode := s.srv.current.Load().Config.Proxy.ClientTLS.Mode
	_, encrypted := s.link.(*tls.Conn)
	if _, over := s.nc.(*net.TCPConn); over && mode >= config.TLSRequire && !encrypted {
		return wire.Fatalf(wire.CodeProtocolViolation, "SSL required")
	}
	return nil
}

// Channel tells package auth what is known of the client's connection.
func (c *loginConn) Channel() auth.Channel {
	var ch auth.Channel
	if tcp, ok := c.s.origin.Load().remote.(*net.TCPAddr); ok {
		ch.Addr = tcp.AddrPort().Addr().Unmap()
	} else if uid, ok := c.s.peer(); ok {
		if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
			ch.SystemUser = u.Username
		}
	}
	if r := c.s.replica.Load(); r != nil {
		ch.Replication = r.kind == "physical"
	}
	tc, ok := c.s.link.(*tls.Conn)
	if !ok {
		return ch
	}
	ch.Encrypted = true
	if own, err := x509.ParseCertificate(c.s.tlsConfig.Certificates[0].Certificate[0]); err == nil {
		ch.Binding = auth.EndPoint(own)
	}
	if chains := tc.ConnectionState().VerifiedChains; len(chains) > 0 {
		ch.Certified, ch.CommonName = true, chains[0][0].Subject.CommonName
	}
	return ch
}

// closeWrite tells the client that nothing more will come, and lets it send what
// is on its way: closing a socket that has unread bytes resets it, and the
// client may lose what was said last.
func (s *Session) closeWrite() {
	if tc, ok := s.link.(*tls.Conn); ok {
		_ = tc.CloseWrite()
	}
	if tc, ok := s.nc.(*net.TCPConn); ok {
		_ = tc.CloseWrite()
		_ = tc.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = io.CopyN(io.Discard, tc, 1<<20)
	}
}
