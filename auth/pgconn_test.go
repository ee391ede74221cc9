package auth

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"pgproxy/config"
	"pgproxy/pgtest"
	"pgproxy/wire"
)

// fakeLogin is a connection of pgtest as a Conn.
type fakeLogin struct{ *pgtest.FakeConn }

func (c fakeLogin) SendAuth(code uint32, payload []byte) error {
	return c.Send(wire.AppendAuth(nil, wire.AuthCode(code), payload))
}

func (c fakeLogin) ReadPassword() ([]byte, error) {
	m, err := c.Read()
	if err == nil && m.Type != wire.Password {
		err = wire.Fatalf(wire.CodeProtocolViolation, "message %q", m.Type)
	}
	return m.Body, err
}

// Secret knows nobody.
func (c fakeLogin) Secret(context.Context) (config.Secret, bool, error) { return "", false, nil }

// Channel is of a connection in clear.
func (c fakeLogin) Channel() Channel { return Channel{} }

// TestPgconn logs in with a driver that is in use, which checks our end of SCRAM,
// too.
func TestPgconn(t *testing.T) {
	census := pgtest.NewCensus(t)
	u := users(t, "plain", "pä ss'wörd", "hash", md5Secret("hash", "pä ss'wörd"), "scram", scramSecret("pä ss'wörd", "0123456789abcdef", 5000))
	for _, typ := range allTypes {
		t.Run(typ.String(), func(t *testing.T) {
			a := New(typ, u, nil, nil)
			srv := pgtest.NewFakeServer(t, func(c *pgtest.FakeConn) error {
				su, err := c.ReadStartup()
				if err != nil {
					return err
				}
				if _, err := a.Authenticate(t.Context(), fakeLogin{c}, su.Param("user"), su.Param("database")); err != nil {
					if !errors.Is(err, ErrFailed) {
						return err
					}
					return c.Send(wire.Fatalf(wire.CodeInvalidPassword, "%v", ErrFailed).Append(nil))
				}
				if err := c.Send(c.Welcome()); err != nil {
					return err
				}
				return c.Serve(pgtest.Echo)
			})
			for _, user := range []string{"plain", "hash", "scram", "nobody"} {
				for _, password := range []string{"pä ss'wörd", "wrong"} {
					cfg, err := pgconn.ParseConfig("host=127.0.0.1 user=u password=p dbname=app sslmode=disable passfile=/dev/null")
					if err != nil {
						t.Fatal(err)
					}
					cfg.Port, cfg.User, cfg.Password = uint16(srv.Port()), user, password
					ok := password != "wrong" && user != "nobody" && (user != "hash" || typ != config.AuthSCRAM)
					ok = ok || typ == config.AuthAny || typ == config.AuthTrust && user != "nobody"
					conn, err := pgconn.ConnectConfig(t.Context(), cfg)
					if !ok {
						var pe *pgconn.PgError
						if !errors.As(err, &pe) || pe.Code != wire.CodeInvalidPassword || pe.Message != ErrFailed.Error() {
							t.Errorf("%s with %q: %v", user, password, err)
						}
						continue
					}
					if err != nil {
						t.Errorf("%s with %q: %v", user, password, err)
						continue
					}
					if _, err := conn.Exec(t.Context(), "SELECT 1").ReadAll(); err != nil {
						t.Errorf("%s: %v", user, err)
					}
					if err := conn.Close(t.Context()); err != nil {
						t.Errorf("%s: %v", user, err)
					}
				}
			}
			srv.Close()
		})
	}
	census.AssertBaseline()
}
