package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"pgproxy/config"
)

// Proof logs in to a server in place of a password that nobody here knows: with
// an md5 hash, or with the keys of SCRAM-SHA-256 that a client has shown by its
// own login. Both work only where the server has the same secret of the user.
type Proof struct {
	hash           string // hexadecimal, of password and name; "" is none
	client, server [sha256.Size]byte
}

// A Proof travels as a secret that no password can be: passwords hold no NUL.
const (
	proofMD5   = "\x00md5\x00"
	proofSCRAM = "\x00scram\x00"
)

// md5Proof is the secret that stands for a hash, as "md5" and 32 digits.
func md5Proof(s config.Secret) config.Secret {
	return config.Secret(proofMD5 + strings.TrimPrefix(s.Reveal(), "md5"))
}

// scramProof is the secret that stands for the ClientKey and the ServerKey.
func scramProof(client, server [sha256.Size]byte) config.Secret {
	return config.Secret(proofSCRAM + hex.EncodeToString(client[:]) + hex.EncodeToString(server[:]))
}

// ProofOf returns the Proof that a secret stands for; ok is false for a password.
func ProofOf(s config.Secret) (p Proof, ok bool) {
	if hash, ok := strings.CutPrefix(s.Reveal(), proofMD5); ok {
		return Proof{hash: hash}, true
	}
	keys, ok := strings.CutPrefix(s.Reveal(), proofSCRAM)
	if !ok {
		return Proof{}, false
	}
	raw, err := hex.DecodeString(keys)
	if err != nil || len(raw) != 2*sha256.Size {
		return Proof{}, false
	}
	copy(p.client[:], raw)
	copy(p.server[:], raw[sha256.Size:])
	return p, true
}

// Format prints no secret, whatever the verb.
func (Proof) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("proof")) }

// MD5 answers an AuthenticationMD5Password; ok is false if there is no hash.
func (p Proof) MD5(salt []byte) (answer string, ok bool) {
	return "md5" + md5Hex(p.hash, string(salt)), p.hash != ""
}

// ClientExchange is the client's end of one SCRAM exchange. It is used by one
// goroutine: First, then Final, then Verify.
type ClientExchange struct {
	proof  Proof
	gs2    string
	bound  []byte // the channel binding behind gs2
	nonce  string
	bare   string
	signed string // the AuthMessage
}

// SCRAM begins an exchange; ok is false if there are no keys. binding is what the
// exchange is bound to (see EndPoint); nil: nothing. nonce is printable, without a
// comma, and new for each exchange.
func (p Proof) SCRAM(binding []byte, nonce string) (x *ClientExchange, ok bool) {
	x = &ClientExchange{proof: p, gs2: "n,,", bound: binding, nonce: nonce, bare: "n=,r=" + nonce}
	if binding != nil {
		x.gs2 = "p=" + scramBinding + ",,"
	}
	return x, p.hash == ""
}

// Mechanism is the one to choose.
func (x *ClientExchange) Mechanism() string {
	if x.bound != nil {
		return scramPlus
	}
	return scramMechanism
}

// First is the client-first-message.
func (x *ClientExchange) First() string { return x.gs2 + x.bare }

// Final answers the server-first-message. Salt and iterations count for nothing:
// the keys have them in.
func (x *ClientExchange) Final(first string) (string, error) {
	if err := plausible(first); err != nil {
		return "", err
	}
	rest := "," + first
	nonce, ok1 := attribute(&rest, 'r')
	salt, ok2 := attribute(&rest, 's')
	count, ok3 := attribute(&rest, 'i')
	_, ok4 := unbase64(salt)
	n, err := strconv.ParseUint(count, 10, 31)
	if !ok1 || !ok2 || !ok3 || !ok4 || err != nil || n < 1 {
		return "", errors.New("the server's first SCRAM message is malformed")
	}
	if !strings.HasPrefix(nonce, x.nonce) || len(nonce) == len(x.nonce) || !printable(nonce) {
		return "", errors.New("the server's first SCRAM message does not extend our nonce")
	}
	without := "c=" + base64.StdEncoding.EncodeToString(append([]byte(x.gs2), x.bound...)) + ",r=" + nonce
	x.signed = x.bare + "," + first + "," + without
	stored := sha256.Sum256(x.proof.client[:])
	signature := mac(stored[:], x.signed)
	var proof [sha256.Size]byte
	subtle.XORBytes(proof[:], x.proof.client[:], signature[:])
	return without + ",p=" + base64.StdEncoding.EncodeToString(proof[:]), nil
}

// Verify checks the server-final-message: that the server knows the secret, too.
func (x *ClientExchange) Verify(final string) error {
	text, ok := strings.CutPrefix(final, "v=")
	given, ok2 := unbase64(text)
	want := mac(x.proof.server[:], x.signed)
	if !ok || !ok2 || x.signed == "" || !hmac.Equal(given, want[:]) {
		return errors.New("the server does not prove that it has the user's secret")
	}
	return nil
}
