package auth

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pgproxy/config"
	"pgproxy/wire"
)

const (
	// pamPatience is how long PAM may take for one login, the wait for others
	// included: its modules may ask for a second factor.
	pamPatience = 60 * time.Second

	// maxPAM bounds the threads that wait in modules of PAM.
	maxPAM = 8
)

// askPAM has PAM check a password, for as long as its modules take, which nothing
// can cut short. from is the client's address, or "". It is nil unless the program
// was built with the tag pam. The error wraps ErrFailed where the answer is no.
var askPAM func(user, password, from string) error

// pamSlots holds one token for each call of askPAM.
var pamSlots = make(chan struct{}, maxPAM)

// ErrNoPAM says that this program cannot serve auth_type pam.
var ErrNoPAM = errors.New("auth_type pam: this pgproxy was built without PAM, which needs the system's own library: " +
	"build it with -tags pam (the headers are in libpam0g-dev or pam-devel), or use ldap, or scram-sha-256 with auth_query")

// HasPAM reports whether auth_type pam can be served.
func HasPAM() bool { return askPAM != nil }

// pam asks for the password and has PAM check it.
func (l *login) pam(ctx context.Context) (config.Secret, error) {
	given, err := l.ask(wire.AuthCleartextPassword, nil)
	if err != nil {
		return "", err
	}
	from := ""
	if a := l.conn.Channel().Addr; a.IsValid() {
		from = a.String()
	}
	ctx, stop := context.WithTimeout(ctx, pamPatience)
	defer stop()
	if err := checkPAM(ctx, l.user, given, from); err != nil {
		if errors.Is(err, ErrFailed) {
			return "", err
		}
		return "", wire.Fatalf(wire.CodeCannotConnectNow, "the password of user %q cannot be checked at the moment", l.user).
			Because(fmt.Errorf("pam: %w", err))
	}
	return config.Secret(given), nil
}

// checkPAM is askPAM in a slot and within ctx. A call that outlasts ctx goes on, and
// keeps its slot.
func checkPAM(ctx context.Context, user, password, from string) error {
	if askPAM == nil {
		return ErrNoPAM
	}
	if err := take(ctx, pamSlots); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { // ends when PAM does
		defer func() { <-pamSlots }()
		done <- askPAM(user, password, from)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("waiting for PAM: %w", context.Cause(ctx))
	}
}
