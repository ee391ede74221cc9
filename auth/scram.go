package auth

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
)

const (
	scramMechanism = "SCRAM-SHA-256"
	scramPlus      = "SCRAM-SHA-256-PLUS"
	scramBinding   = "tls-server-end-point" // the one channel binding of PostgreSQL

	// maxSASL is the longest SASL message, as in PostgreSQL
	// (PG_MAX_SASL_MESSAGE_LENGTH).
	maxSASL = 1024
)

// scramServer is the server's end of one exchange (RFC 5802, RFC 7677). It needs salt and iterations at first and the keys at the end
// only. Its errors are for the log and hold nothing but the reason.
type scramServer struct {
	// set at construction
	salt       []byte
	iterations int
	serverPart string // of the nonce
	binding    []byte // of the channel; nil: channel binding was not offered
	plus       bool   // the client has chosen the mechanism with channel binding

	// set by first
	nonce       string // both parts
	gs2         string // the header that the client's c= must repeat, before the binding
	clientFirst string // client-first-message-bare
	serverFirst string
}

// first reads the client-first-message and returns the server-first-message. The
// user name in it counts for nothing, as in PostgreSQL: who logs in is said by
// the startup packet.
func (s *scramServer) first(msg string) (string, error) {
	if err := plausible(msg); err != nil {
		return "", err
	}
	flag, rest, ok := strings.Cut(msg, ",")
	name, bound := strings.CutPrefix(flag, "p=")
	switch {
	case !ok || flag != "n" && flag != "y" && !bound:
		return "", errors.New("client-first-message: no GS2 header")
	case bound && !s.plus:
		return "", errors.New("client-first-message: the client asks for channel binding, but has not chosen it")
	case bound && name != scramBinding:
		return "", errors.New("client-first-message: a channel binding of another type")
	case !bound && s.plus:
		return "", errors.New("client-first-message: the client has chosen channel binding, but does not ask for it")
	case flag == "y" && s.binding != nil:
		// Somebody between us has taken the mechanism out of our offer.
		return "", errors.New("client-first-message: the client believes that channel binding was not offered")
	}
	if !strings.HasPrefix(rest, ",") {
		return "", errors.New("client-first-message: an authorization identity, or no end of the GS2 header")
	}
	s.gs2, s.clientFirst = msg[:len(flag)+2], rest[1:]
	if strings.HasPrefix(s.clientFirst, "m=") {
		return "", errors.New("client-first-message: a mandatory extension, of which none is known")
	}
	rest = "," + s.clientFirst
	if _, ok := attribute(&rest, 'n'); !ok {
		return "", errors.New("client-first-message: no user name (n=)")
	}
	nonce, ok := attribute(&rest, 'r')
	if !ok || nonce == "" || !printable(nonce) {
		return "", errors.New("client-first-message: no valid nonce (r=)")
	}
	for rest != "" {
		if _, ok := attribute(&rest, anyAttribute); !ok {
			return "", errors.New("client-first-message: an extension that is none")
		}
	}
	s.nonce = nonce + s.serverPart
	s.serverFirst = "r=" + s.nonce + ",s=" + base64.StdEncoding.EncodeToString(s.salt) + ",i=" + strconv.Itoa(s.iterations)
	return s.serverFirst, nil
}

// final reads the client-final-message and returns what is to be checked with
// the Verifier.
func (s *scramServer) final(msg string) (authMessage string, proof []byte, err error) {
	if err := plausible(msg); err != nil {
		return "", nil, err
	}
	rest := "," + msg
	binding, ok := attribute(&rest, 'c')
	want := []byte(s.gs2)
	if s.plus {
		want = append(want, s.binding...)
	}
	if !ok || binding != base64.StdEncoding.EncodeToString(want) {
		return "", nil, errors.New("client-final-message: c= does not repeat the GS2 header, or is bound to another channel")
	}
	nonce, ok := attribute(&rest, 'r')
	if !ok || nonce != s.nonce {
		return "", nil, errors.New("client-final-message: r= does not repeat the nonce")
	}
	for !strings.HasPrefix(rest, ",p=") {
		if _, ok := attribute(&rest, anyAttribute); !ok {
			return "", nil, errors.New("client-final-message: no proof (p=)")
		}
	}
	withoutProof := msg[:len(msg)-len(rest)]
	text, _ := attribute(&rest, 'p')
	proof, ok = unbase64(text)
	if !ok || len(proof) != sha256.Size || rest != "" {
		return "", nil, errors.New("client-final-message: the proof is not 32 bytes of base64 at the end")
	}
	return s.clientFirst + "," + s.serverFirst + "," + withoutProof, proof, nil
}

// plausible refuses what no part of an exchange can be.
func plausible(msg string) error {
	switch {
	case msg == "":
		return errors.New("the SCRAM message is empty")
	case len(msg) > maxSASL:
		return errors.New("the SCRAM message is too long")
	case strings.ContainsRune(msg, 0):
		return errors.New("the SCRAM message holds a NUL byte")
	}
	return nil
}

// anyAttribute stands for any name of an attribute.
const anyAttribute byte = 0

// attribute takes ",name=value" from the front of s.
func attribute(s *string, name byte) (value string, ok bool) {
	t, ok := strings.CutPrefix(*s, ",")
	if !ok || len(t) < 2 || t[1] != '=' || (name != t[0] && name != anyAttribute) {
		return "", false
	}
	if c := t[0] | 0x20; c < 'a' || c > 'z' {
		return "", false
	}
	end := strings.IndexByte(t, ',')
	if end < 0 {
		end = len(t)
	}
	*s = t[end:]
	return t[2:end], true
}

// printable tells whether s may be a nonce; it holds no comma.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
