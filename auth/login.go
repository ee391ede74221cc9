package auth

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"pgproxy/config"
	"pgproxy/wire"
)

// login is one client's way through Authenticate. A user without a usable secret
// goes the same way as the others to the same end.
type login struct {
	auth *Authenticator
	acc  *account // nil: unknown
	conn Conn
	user string

	method config.AuthType // by which it logs in

	turn, of int // which offer was chosen, of how many; see offer

	right *secret       // which a good login has shown to know
	proof config.Secret // what it has shown that opens servers as well
}

// has tells whether the user is known, with a secret of that kind.
func (l *login) has(k kind) bool { return l.acc.has(k) }

// failed is the refusal, with the reason as far as the account tells it.
func (l *login) failed() error {
	switch {
	case l.acc == nil:
		return fmt.Errorf("%w: user %q is not in the auth_file", ErrFailed, l.user)
	case l.has(kindNone):
		return fmt.Errorf("%w: user %q has an empty secret in the auth_file, which no password fits", ErrFailed, l.user)
	case l.method == config.AuthSCRAM && !l.has(kindPlain) && !l.has(kindSCRAM):
		return fmt.Errorf("%w: user %q has an md5 secret in the auth_file, which auth_type scram-sha-256 cannot use: "+
			"want a SCRAM-SHA-256 or a plain one", ErrFailed, l.user)
	}
	return fmt.Errorf("%w: wrong password for user %q", ErrFailed, l.user)
}

// plain asks for the password itself and returns it.
func (l *login) plain(ctx context.Context) (config.Secret, error) {
	given, err := l.ask(wire.AuthCleartextPassword, nil)
	if err != nil {
		return "", err
	}
	if l.right, err = l.fits(ctx, given); err != nil {
		return "", err
	}
	if l.right != nil {
		return config.Secret(given), nil
	}
	if s := l.auth.usual.slow; s.iterations > 0 && !l.has(kindSCRAM) {
		// Others take long to refuse; this one must not be quicker.
		if _, err := l.auth.derive(ctx, given, l.auth.salt(l.user, s.saltLen), s.iterations); err != nil {
			return "", err
		}
	}
	return "", l.failed()
}

// fits returns the secret of the user that a password is right for, or nil.
func (l *login) fits(ctx context.Context, given string) (*secret, error) {
	if l.acc == nil {
		return nil, nil
	}
	for _, s := range l.acc.secrets {
		right := false
		switch s.kind {
		case kindPlain:
			a, b := mac(l.auth.key, given), mac(l.auth.key, s.secret.Reveal())
			right = subtle.ConstantTimeCompare(a[:], b[:]) == 1
		case kindMD5:
			right = equal(md5Hex(given, l.user), s.secret.Reveal()[len("md5"):])
		case kindSCRAM:
			v, err := l.auth.derive(ctx, given, s.verifier.salt, s.verifier.iterations)
			if err != nil {
				return nil, err
			}
			right = v.equal(s.verifier)
		}
		if right {
			return s, nil
		}
	}
	return nil, nil
}

// md5 asks for a hash of the password, or goes over to SCRAM where the secret is
// a verifier.
func (l *login) md5(ctx context.Context) error {
	o := l.offer()
	if o != nil && o.scram || o == nil && l.auth.usual.kind == kindSCRAM {
		return l.scram(ctx, o)
	}
	var salt [4]byte
	_, _ = rand.Read(salt[:]) // never fails, see crypto/rand
	given, err := l.ask(wire.AuthMD5Password, salt[:])
	if err != nil {
		return err
	}
	if o == nil {
		_ = equal(given, "md5"+md5Hex(md5Hex(hex.EncodeToString(l.auth.key), l.user), string(salt[:])))
		return l.failed()
	}
	for _, s := range o.secrets {
		hash := ""
		if s.kind == kindMD5 {
			hash = s.secret.Reveal()[len("md5"):]
		} else {
			hash = md5Hex(s.secret.Reveal(), l.user)
		}
		if !equal(given, "md5"+md5Hex(hash, string(salt[:]))) {
			continue
		}
		l.right = s
		if s.kind == kindMD5 {
			l.proof = md5Proof(s.secret)
		}
		return l.settle(nil)
	}
	return l.settle(l.failed())
}

// ask sends a request and returns the password in the answer, which is not empty.
func (l *login) ask(code wire.AuthCode, payload []byte) (string, error) {
	if err := l.conn.SendAuth(uint32(code), payload); err != nil {
		return "", err
	}
	body, err := l.conn.ReadPassword()
	if err != nil {
		return "", err
	}
	p, rest, ok := wire.String(body)
	if !ok || len(rest) != 0 {
		return "", wire.Fatalf(wire.CodeProtocolViolation, "invalid password packet size")
	}
	if len(p) == 0 {
		return "", fmt.Errorf("%w: empty password for user %q", ErrFailed, l.user)
	}
	return string(p), nil
}

// scram leads through SASL with SCRAM-SHA-256, bound to the channel if the client
// can and there is something to bind to. o is nil if no password is right.
func (l *login) scram(ctx context.Context, o *offer) error {
	v := l.auth.mock(l.user, l.auth.usual.scram)
	if o != nil {
		v.salt, v.iterations = o.salt, o.iterations
	}
	var part [18]byte // as in PostgreSQL, 24 characters of base64
	_, _ = rand.Read(part[:])
	s := scramServer{
		salt: v.salt, iterations: v.iterations, serverPart: base64.StdEncoding.EncodeToString(part[:]),
		binding: l.conn.Channel().Binding,
	}
	msg, err := l.clientFirst(&s)
	if err != nil {
		return err
	}
	reply, err := s.first(msg)
	if err != nil {
		return fmt.Errorf("%w: user %q: %w", ErrFailed, l.user, err)
	}
	if err := l.conn.SendAuth(uint32(wire.AuthSASLContinue), []byte(reply)); err != nil {
		return err
	}
	if msg, err = l.sasl(); err != nil {
		return err
	}
	authMessage, proof, err := s.final(msg)
	if err != nil {
		return fmt.Errorf("%w: user %q: %w", ErrFailed, l.user, err)
	}
	if o == nil {
		_ = v.proves(authMessage, proof)
		return l.failed()
	}
	for _, x := range o.secrets {
		v, err := l.auth.verifier(ctx, x, o.salt, o.iterations)
		if err != nil {
			return err
		}
		if !v.proves(authMessage, proof) {
			continue
		}
		l.right = x
		if x.kind == kindSCRAM {
			shown := scramProof(v.clientKey(authMessage, proof), v.server)
			l.proof = shown
			x.shown.Store(&shown)
		}
		_ = l.settle(nil)
		signature := "v=" + base64.StdEncoding.EncodeToString(v.signature(authMessage))
		return l.conn.SendAuth(uint32(wire.AuthSASLFinal), []byte(signature))
	}
	return l.settle(l.failed())
}

// clientFirst offers the mechanisms and returns the client-first-message, which a
// client may send with its choice or when asked again.
func (l *login) clientFirst(s *scramServer) (string, error) {
	offer := scramMechanism + "\x00\x00"
	if s.binding != nil {
		offer = scramPlus + "\x00" + offer
	}
	if err := l.conn.SendAuth(uint32(wire.AuthSASL), []byte(offer)); err != nil {
		return "", err
	}
	body, err := l.conn.ReadPassword()
	if err != nil {
		return "", err
	}
	mechanism, rest, ok := wire.String(body)
	if !ok || len(rest) < 4 {
		return "", wire.Fatalf(wire.CodeProtocolViolation, "invalid SASLInitialResponse message")
	}
	s.plus = s.binding != nil && string(mechanism) == scramPlus
	if !s.plus && string(mechanism) != scramMechanism {
		return "", wire.Fatalf(wire.CodeProtocolViolation, "client selected an invalid SASL authentication mechanism")
	}
	n, data := int32(binary.BigEndian.Uint32(rest)), rest[4:]
	if n == -1 && len(data) == 0 {
		if err := l.conn.SendAuth(uint32(wire.AuthSASLContinue), nil); err != nil {
			return "", err
		}
		return l.sasl()
	}
	if n < 0 || int(n) != len(data) {
		return "", wire.Fatalf(wire.CodeProtocolViolation, "invalid SASLInitialResponse message")
	}
	return string(data[:min(len(data), maxSASL+1)]), nil // too long is for first to say
}

// sasl returns the body of a SASLResponse.
func (l *login) sasl() (string, error) {
	body, err := l.conn.ReadPassword()
	if err != nil {
		return "", err
	}
	return string(body[:min(len(body), maxSASL+1)]), nil
}

// md5Hex is the MD5 hash of two texts in hex.
func md5Hex(a, b string) string {
	h := md5.Sum([]byte(a + b))
	return hex.EncodeToString(h[:])
}

// equal compares in constant time where the lengths are equal.
func equal(a, b string) bool {
	return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1
}
