package auth

import (
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"pgproxy/config"
	"pgproxy/pgtest"
	"pgproxy/wire"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// sent is one Authentication message.
type sent struct {
	code    wire.AuthCode
	payload string
}

// client is a Conn whose other end answers as a driver would, or as a script
// says. It is written apart from the package, so that one may test the other.
type client struct {
	user, password string
	script         [][]byte // answers to use in place of its own, in order
	late           bool     // client-first-message not with the choice of mechanism
	gs2            string   // "" is n,,
	scramUser      string   // n= of the client-first-message

	channel   Channel
	secret    config.Secret
	secretErr error
	sent      []sent
	answer    []byte
	bare      string
	auth      string // authMessage
	salted    []byte
	mutual    bool // the server's signature was right
}

func (c *client) SendAuth(code uint32, payload []byte) error {
	m := sent{wire.AuthCode(code), string(payload)}
	c.sent = append(c.sent, m)
	switch m.code {
	case wire.AuthCleartextPassword:
		c.answer = []byte(c.password + "\x00")
	case wire.AuthMD5Password:
		c.answer = []byte("md5" + sumMD5(sumMD5(c.password+c.user)+m.payload) + "\x00")
	case wire.AuthSASL:
		c.bare = "n=" + c.scramUser + ",r=fyko+d2lbbFgONRv9qkxdawL"
		if c.late {
			c.answer = saslInitial("SCRAM-SHA-256", -1, "")
			return nil
		}
		first := c.header() + c.bare
		c.answer = saslInitial("SCRAM-SHA-256", len(first), first)
	case wire.AuthSASLContinue:
		c.answer = []byte(c.final(m.payload))
		if m.payload == "" {
			c.answer = []byte(c.header() + c.bare)
		}
	case wire.AuthSASLFinal:
		key := sumHMAC(c.salted, "Server Key")
		c.mutual = m.payload == "v="+base64.StdEncoding.EncodeToString(sumHMAC(key, c.auth))
	}
	return nil
}

func (c *client) ReadPassword() ([]byte, error) {
	if len(c.script) > 0 {
		c.answer, c.script = c.script[0], c.script[1:]
	}
	return c.answer, nil
}

// Secret is what the test has set.
func (c *client) Secret(context.Context) (config.Secret, bool, error) {
	return c.secret, c.secret != "", c.secretErr
}

// Channel is of a connection in clear, or what the test has set.
func (c *client) Channel() Channel { return c.channel }

func (c *client) header() string {
	if c.gs2 == "" {
		return "n,,"
	}
	return c.gs2
}

// final makes the client-final-message, or nothing if the answer is malformed.
func (c *client) final(serverFirst string) string {
	nonce, salt, iterations, err := splitServerFirst(serverFirst)
	if err != nil {
		return ""
	}
	c.salted, _ = pbkdf2.Key(sha256.New, c.password, salt, iterations, 32)
	without := "c=" + base64.StdEncoding.EncodeToString([]byte(c.header())) + ",r=" + nonce
	c.auth = c.bare + "," + serverFirst + "," + without
	key := sumHMAC(c.salted, "Client Key")
	stored := sha256.Sum256(key)
	for i, b := range sumHMAC(stored[:], c.auth) {
		key[i] ^= b
	}
	return without + ",p=" + base64.StdEncoding.EncodeToString(key)
}

func splitServerFirst(m string) (nonce string, salt []byte, iterations int, err error) {
	f := strings.Split(m, ",")
	if len(f) != 3 || f[0][:2] != "r=" || f[1][:2] != "s=" || f[2][:2] != "i=" {
		return "", nil, 0, fmt.Errorf("server-first-message %q", m)
	}
	if salt, err = base64.StdEncoding.DecodeString(f[1][2:]); err != nil {
		return "", nil, 0, err
	}
	iterations, err = strconv.Atoi(f[2][2:])
	return f[0][2:], salt, iterations, err
}

// saslInitial is the body of a SASLInitialResponse whose inner length is n.
func saslInitial(mechanism string, n int, data string) []byte {
	b := append([]byte(mechanism), 0)
	return append(binary.BigEndian.AppendUint32(b, uint32(int32(n))), data...)
}

// first is a SASLInitialResponse with this client-first-message.
func first(data string) []byte { return saslInitial("SCRAM-SHA-256", len(data), data) }

func sumMD5(s string) string { return fmt.Sprintf("%x", md5.Sum([]byte(s))) }

func sumHMAC(key []byte, s string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(s))
	return h.Sum(nil)
}

// scramSecret makes a secret as PostgreSQL would.
func scramSecret(password string, salt string, iterations int) string {
	salted, _ := pbkdf2.Key(sha256.New, password, []byte(salt), iterations, 32)
	stored := sha256.Sum256(sumHMAC(salted, "Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64([]byte(salt)), b64(stored[:]), b64(sumHMAC(salted, "Server Key")))
}

func md5Secret(user, password string) string { return "md5" + sumMD5(password+user) }

// users makes a userlist of pairs of name and secret.
func users(t testing.TB, pairs ...string) *Userlist {
	t.Helper()
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, "\"%s\" \"%s\"\n", strings.ReplaceAll(pairs[i], `"`, `""`), strings.ReplaceAll(pairs[i+1], `"`, `""`))
	}
	u, err := ParseUserlist("userlist.txt", []byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// try logs a client in.
func try(t testing.TB, a *Authenticator, c *client) (Identity, error) {
	t.Helper()
	return a.Authenticate(t.Context(), c, c.user, "app")
}

var (
	_ Conn          = (*client)(nil)
	_ fmt.Formatter = (*Userlist)(nil)
	_ fmt.Formatter = (*Authenticator)(nil)
	_ fmt.Formatter = Verifier{}
)

func b64(p []byte) string { return base64.StdEncoding.EncodeToString(p) }
