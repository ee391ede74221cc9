package pgtest

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// md5Password is the answer to an MD5 request: the salt is the server's.
func md5Password(user, password string, salt []byte) string {
	sum := func(p []byte) string {
		h := md5.Sum(p)
		return hex.EncodeToString(h[:])
	}
	return "md5" + sum(append([]byte(sum([]byte(password+user))), salt...))
}

// scramClient is the client's end of one SCRAM-SHA-256 exchange (RFC 5802, RFC
// 7677), without channel binding, written apart from the product's so that one
// may test the other.
type scramClient struct {
	password  string
	nonce     string
	authText  string // what both sides sign
	serverKey []byte
}

func newSCRAMClient(password string) *scramClient {
	return &scramClient{password: password, nonce: rand.Text()}
}

// first is the client-first-message.
func (s *scramClient) first() string { return "n,,n=,r=" + s.nonce }

// final answers the server-first-message.
func (s *scramClient) final(serverFirst string) (string, error) {
	fields := strings.Split(serverFirst, ",")
	if len(fields) != 3 || !strings.HasPrefix(fields[0], "r="+s.nonce) ||
		!strings.HasPrefix(fields[1], "s=") || !strings.HasPrefix(fields[2], "i=") {
		return "", fmt.Errorf("server-first-message %q", serverFirst)
	}
	salt, err := base64.StdEncoding.DecodeString(fields[1][2:])
	if err != nil {
		return "", fmt.Errorf("salt: %w", err)
	}
	rounds, err := strconv.Atoi(fields[2][2:])
	if err != nil || rounds < 1 {
		return "", fmt.Errorf("iterations %q", fields[2])
	}
	salted, err := pbkdf2.Key(sha256.New, s.password, salt, rounds, sha256.Size)
	if err != nil {
		return "", err
	}
	withoutProof := "c=biws," + fields[0]
	s.authText = "n=,r=" + s.nonce + "," + serverFirst + "," + withoutProof
	s.serverKey = sign(salted, "Server Key")
	clientKey := sign(salted, "Client Key")
	stored := sha256.Sum256(clientKey)
	proof := make([]byte, len(clientKey))
	subtle.XORBytes(proof, clientKey, sign(stored[:], s.authText))
	return withoutProof + ",p=" + base64.StdEncoding.EncodeToString(proof), nil
}

// check verifies the server-final-message.
func (s *scramClient) check(serverFinal string) error {
	want := "v=" + base64.StdEncoding.EncodeToString(sign(s.serverKey, s.authText))
	if serverFinal != want {
		return errors.New("the server's signature is wrong: it does not know the password")
	}
	return nil
}

func sign(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}
