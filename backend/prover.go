package backend

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"

	"pgproxy/auth"
	"pgproxy/wire"
)

// prover is a socket whose login is answered here, with a proof in place of a
// password. pgconn, which knows passwords only, sees a server that asks for none.
// One goroutine reads it, as pgconn does.
type prover struct {
	net.Conn
	proof auth.Proof
	over  bool   // the login has been answered
	given []byte // read for pgconn, and not taken yet
}

// maxLogin is the longest message of a login in bytes.
const maxLogin = 64 << 10

// Read answers what the server asks of the login, and gives pgconn all else.
func (p *prover) Read(b []byte) (int, error) {
	for !p.over && len(p.given) == 0 {
		if err := p.step(); err != nil {
			return 0, err
		}
	}
	if len(p.given) > 0 {
		n := copy(b, p.given)
		p.given = p.given[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// step reads one message.
func (p *prover) step() error {
	head, body, err := p.message()
	if err != nil {
		return err
	}
	if head[0] != wire.Authentication {
		p.over = head[0] != wire.NegotiateProtocolVersion
		p.given = append(head, body...)
		return nil
	}
	if len(body) < 4 {
		return errOutOfSync
	}
	code, rest := wire.AuthCode(binary.BigEndian.Uint32(body)), body[4:]
	switch code {
	case wire.AuthOK:
		p.over = true
		p.given = append(head, body...)
		return nil
	case wire.AuthMD5Password:
		if answer, ok := p.proof.MD5(rest); ok && len(rest) == 4 {
			return p.answer(append([]byte(answer), 0))
		}
		return unproved("the server asks for an md5 hash, and only the keys of SCRAM are known here")
	case wire.AuthSASL:
		return p.scram(strings.Split(strings.TrimRight(string(rest), "\x00"), "\x00"))
	}
	return unproved("the server asks for a password that is not known here (authentication request %d)", code)
}

// unproved is a login that cannot go well: as if the server had refused it.
func unproved(format string, args ...any) error {
	return wire.Fatalf(wire.CodeInvalidPassword, format, args...)
}

// scram leads through SASL.
func (p *prover) scram(offered []string) error {
	var binding []byte
	if tc, ok := p.Conn.(*tls.Conn); ok {
		for _, m := range offered {
			if certs := tc.ConnectionState().PeerCertificates; m == "SCRAM-SHA-256-PLUS" && len(certs) > 0 {
				binding = auth.EndPoint(certs[0])
			}
		}
	}
	var nonce [18]byte
	_, _ = rand.Read(nonce[:]) // never fails, see crypto/rand
	x, ok := p.proof.SCRAM(binding, base64.StdEncoding.EncodeToString(nonce[:]))
	if !ok {
		return unproved("the server asks for SCRAM, and only an md5 hash of the password is known here")
	}
	first := x.First()
	initial := append([]byte(x.Mechanism()), 0)
	initial = binary.BigEndian.AppendUint32(initial, uint32(len(first)))
	if err := p.answer(append(initial, first...)); err != nil {
		return err
	}
	more, err := p.sasl(wire.AuthSASLContinue)
	if err != nil || p.over {
		return err
	}
	final, err := x.Final(more)
	if err != nil {
		return err
	}
	if err := p.answer([]byte(final)); err != nil {
		return err
	}
	if more, err = p.sasl(wire.AuthSASLFinal); err != nil || p.over {
		return err
	}
	return x.Verify(more)
}

// sasl reads the next part of the exchange. An error of the server's is pgconn's
// to see, and the end of the login.
func (p *prover) sasl(want wire.AuthCode) (string, error) {
	head, body, err := p.message()
	switch {
	case err != nil:
		return "", err
	case head[0] == wire.ErrorResponse:
		p.over = true
		p.given = append(head, body...)
		return "", nil
	case head[0] != wire.Authentication || len(body) < 4 || wire.AuthCode(binary.BigEndian.Uint32(body)) != want:
		return "", errOutOfSync
	}
	return string(body[4:]), nil
}

// message reads one message, and not a byte more.
func (p *prover) message() (head, body []byte, err error) {
	head = make([]byte, wire.HeaderLen)
	if _, err := io.ReadFull(p.Conn, head); err != nil {
		return nil, nil, err
	}
	h, err := wire.ReadHeader(head, maxLogin)
	if err != nil {
		return nil, nil, fmt.Errorf("message %q of the login: %w", head[0], err)
	}
	body = make([]byte, h.Body)
	_, err = io.ReadFull(p.Conn, body)
	return head, body, err
}

func (p *prover) answer(body []byte) error {
	_, err := p.Write(append(wire.AppendHeader(nil, wire.Password, len(body)), body...))
	return err
}
