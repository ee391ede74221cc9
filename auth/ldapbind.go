package auth

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"

	"pgproxy/config"
	"pgproxy/wire"
)

const (
	// ldapPatience is how long the directory may take for one login, the wait for
	// others included.
	ldapPatience = 10 * time.Second

	// maxLDAPAnswer bounds what one answer of a directory may be long, in bytes: that
	// much is allocated before it has come.
	maxLDAPAnswer = 1 << 20
)

func init() { ber.MaxPacketLengthBytes = maxLDAPAnswer }

// ldap asks for the password and has a directory check it.
func (l *login) ldap(ctx context.Context, dir *LDAP) (config.Secret, error) {
	given, err := l.ask(wire.AuthCleartextPassword, nil) // which is not empty: that would be a bind as nobody
	if err != nil {
		return "", err
	}
	ctx, stop := context.WithTimeout(ctx, ldapPatience)
	defer stop()
	if err := dir.check(ctx, l.user, given); err != nil {
		if errors.Is(err, ErrFailed) {
			return "", err
		}
		return "", wire.Fatalf(wire.CodeCannotConnectNow, "the password of user %q cannot be checked at the moment", l.user).
			Because(fmt.Errorf("ldap: %w", err))
	}
	return config.Secret(given), nil
}

// check finds out whether a password, which is not empty, is the user's. The error
// wraps ErrFailed where the directory says that it is not.
func (d *LDAP) check(ctx context.Context, user, password string) error {
	if err := take(ctx, d.slots); err != nil {
		return err
	}
	defer func() { <-d.slots }()
	conn, err := d.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	name := d.nameFor(user)
	if d.search {
		if name, err = d.find(conn, user); err != nil {
			return fmt.Errorf("searching for user %q: %w", user, err)
		}
	}
	if err := conn.Bind(name, password); err != nil {
		if answered(err) {
			return fmt.Errorf("%w: the directory refuses %q: %w", ErrFailed, name, err)
		}
		return fmt.Errorf("binding as %q: %w", name, err)
	}
	return nil
}

// dial connects to the first of the hosts that can be connected to. The connection
// ends with ctx.
func (d *LDAP) dial(ctx context.Context) (*ldap.Conn, error) {
	var failed []error
	for _, host := range d.hosts {
		conn, err := d.dialHost(ctx, host)
		if err == nil {
			return conn, nil
		}
		failed = append(failed, fmt.Errorf("connecting to %s: %w", d.address(host), err))
	}
	return nil, errors.Join(failed...)
}

// dialHost connects to one host.
func (d *LDAP) dialHost(ctx context.Context, host string) (*ldap.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", d.address(host))
	if err != nil {
		return nil, err
	}
	// All reads and writes fail from then on.
	context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	if d.ldaps {
		c := tls.Client(conn, d.tlsFor(host))
		if err := c.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, err
		}
		conn = c
	}
	c := ldap.NewConn(conn, d.ldaps)
	c.Start()
	if d.startTLS {
		if err := c.StartTLS(d.tlsFor(host)); err != nil {
			_ = c.Close()
			return nil, fmt.Errorf("ldaptls: %w", err)
		}
	}
	return c, nil
}

// find returns the name of the one entry of a user.
func (d *LDAP) find(conn *ldap.Conn, user string) (string, error) {
	bind := func() error { return conn.UnauthenticatedBind(d.bindDN) }
	if !d.bindPasswd.Empty() {
		bind = func() error { return conn.Bind(d.bindDN, d.bindPasswd.Reveal()) }
	}
	if err := bind(); err != nil {
		return "", fmt.Errorf("binding as ldapbinddn %q: %w", d.bindDN, err)
	}
	found, err := conn.Search(&ldap.SearchRequest{
		BaseDN: d.base, Scope: d.scope, DerefAliases: ldap.NeverDerefAliases, Filter: d.filterFor(user),
		SizeLimit: 2, TimeLimit: int(ldapPatience / time.Second), Attributes: []string{"1.1"}, // none, RFC 4511 section 4.5.1.8
	})
	switch {
	case ldap.IsErrorWithCode(err, ldap.LDAPResultSizeLimitExceeded) || err == nil && len(found.Entries) > 1:
		return "", fmt.Errorf("%w: there are several entries", ErrFailed)
	case err != nil:
		return "", err
	case len(found.Entries) == 0 || found.Entries[0].DN == "": // "" would be nobody
		return "", fmt.Errorf("%w: there is no entry", ErrFailed)
	}
	return found.Entries[0].DN, nil
}

// answered reports whether the error is the directory's word on the name or the
// password; otherwise it could not say.
func answered(err error) bool {
	var e *ldap.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.ResultCode {
	case ldap.LDAPResultBusy, ldap.LDAPResultUnavailable, ldap.LDAPResultOperationsError, ldap.LDAPResultProtocolError,
		ldap.LDAPResultTimeLimitExceeded, ldap.LDAPResultConfidentialityRequired, ldap.LDAPResultStrongAuthRequired, ldap.LDAPResultOther:
		return false
	}
	return e.ResultCode < ldap.ErrorNetwork // from there on they are the client's own
}
