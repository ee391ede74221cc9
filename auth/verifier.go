package auth

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"pgproxy/config"
)

const (
	// scramPrefix begins a SCRAM secret of pg_authid and of the auth_file.
	scramPrefix = "SCRAM-SHA-256$"

	// Iterations and length of the salt of what is derived here; PostgreSQL's
	// defaults.
	defaultIterations = 4096
	defaultSaltLen    = 16

	// maxSaltLen bounds the salt of a secret: it goes out with each login.
	maxSaltLen = 1024
)

// errVerifier names no part of the secret.
var errVerifier = errors.New("a damaged SCRAM secret: want SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY, " +
	"salt and keys in base64, as in pg_authid")

// Verifier is what a server must know to check a password by SCRAM-SHA-256: a
// hash from which the password cannot be read. It is immutable and prints without
// its keys.
type Verifier struct {
	salt       []byte
	iterations int
	stored     [sha256.Size]byte // StoredKey of RFC 5802
	server     [sha256.Size]byte // ServerKey
}

// ParseVerifier reads SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY.
func ParseVerifier(s config.Secret) (Verifier, error) {
	var v Verifier
	text, ok := strings.CutPrefix(s.Reveal(), scramPrefix)
	if !ok {
		return Verifier{}, errVerifier
	}
	cost, keys, ok1 := strings.Cut(text, "$")
	iterations, salt, ok2 := strings.Cut(cost, ":")
	stored, server, ok3 := strings.Cut(keys, ":")
	n, err := strconv.ParseUint(iterations, 10, 31)
	if !ok1 || !ok2 || !ok3 || err != nil || n < 1 || n > math.MaxInt32 {
		return Verifier{}, errVerifier
	}
	v.iterations = int(n)
	if v.salt, ok = unbase64(salt); !ok || len(v.salt) == 0 || len(v.salt) > maxSaltLen {
		return Verifier{}, errVerifier
	}
	p, ok := unbase64(stored)
	if !ok || len(p) != sha256.Size {
		return Verifier{}, errVerifier
	}
	copy(v.stored[:], p)
	p, ok = unbase64(server)
	if !ok || len(p) != sha256.Size {
		return Verifier{}, errVerifier
	}
	copy(v.server[:], p)
	return v, nil
}

// Format prints a name, whatever the verb.
func (Verifier) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("SCRAM-SHA-256 verifier")) }

// derive makes a verifier from a password. It takes milliseconds.
func derive(password string, salt []byte, iterations int) (Verifier, error) {
	salted, err := pbkdf2.Key(sha256.New, saslprep(password), salt, iterations, sha256.Size)
	if err != nil {
		return Verifier{}, fmt.Errorf("deriving a SCRAM verifier: %w", err)
	}
	v := Verifier{salt: salt, iterations: iterations, server: mac(salted, "Server Key")}
	client := mac(salted, "Client Key")
	v.stored = sha256.Sum256(client[:])
	return v, nil
}

// equal compares the keys in constant time.
func (v Verifier) equal(w Verifier) bool {
	return subtle.ConstantTimeCompare(v.stored[:], w.stored[:]) == 1
}

// proves tells whether a ClientProof of the authMessage was made with the
// password.
func (v Verifier) proves(authMessage string, proof []byte) bool {
	if len(proof) != sha256.Size {
		return false
	}
	client := v.clientKey(authMessage, proof)
	stored := sha256.Sum256(client[:])
	return subtle.ConstantTimeCompare(stored[:], v.stored[:]) == 1
}

// clientKey is the ClientKey that is in a ClientProof, whether it is the right one
// or not. proof has the length of one.
func (v Verifier) clientKey(authMessage string, proof []byte) (key [sha256.Size]byte) {
	signature := mac(v.stored[:], authMessage)
	subtle.XORBytes(key[:], proof, signature[:])
	return key
}

// signature is the ServerSignature of the authMessage.
func (v Verifier) signature(authMessage string) []byte {
	s := mac(v.server[:], authMessage)
	return s[:]
}

func mac(key []byte, texts ...string) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, key)
	for _, t := range texts {
		h.Write([]byte(t))
	}
	h.Sum(sum[:0])
	return sum
}

// unbase64 accepts canonical base64 only; the decoder alone would skip line ends.
func unbase64(s string) ([]byte, bool) {
	p, err := base64.StdEncoding.DecodeString(s)
	return p, err == nil && base64.StdEncoding.EncodeToString(p) == s
}
