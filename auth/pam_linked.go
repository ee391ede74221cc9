//go:build pam

package auth

import (
	"errors"
	"fmt"

	"github.com/msteinert/pam/v2"
)

// pamService is what PAM knows the proxy as: /etc/pam.d/pgbouncer is its file, as
// PgBouncer's.
const pamService = "pgbouncer"

// pamDir is where the files of services are; "" is where the system has them.
var pamDir = ""

func init() { askPAM = linkedPAM }

// linkedPAM asks libpam.
func linkedPAM(user, password, from string) error {
	asked := false
	answer := func(s pam.Style, prompt string) (string, error) {
		switch {
		case s == pam.ErrorMsg || s == pam.TextInfo:
			return "", nil
		case s == pam.PromptEchoOff && !asked:
			asked = true
			return password, nil
		}
		return "", fmt.Errorf("the question %q cannot be passed on to a client", prompt)
	}
	var t *pam.Transaction
	var err error
	if pamDir == "" {
		t, err = pam.StartFunc(pamService, user, answer)
	} else {
		t, err = pam.StartConfDir(pamService, user, pam.ConversationFunc(answer), pamDir)
	}
	if err != nil {
		return fmt.Errorf("starting: %w", err)
	}
	defer func() { _ = t.End() }()
	if from != "" {
		if err := t.SetItem(pam.Rhost, from); err != nil {
			return fmt.Errorf("telling the client's address: %w", err)
		}
	}
	if err := t.Authenticate(pam.DisallowNullAuthtok); err != nil {
		return pamRefusal(user, err)
	}
	if err := t.AcctMgmt(pam.DisallowNullAuthtok); err != nil {
		return pamRefusal(user, err)
	}
	return nil
}

// pamRefusal tells PAM's no from an answer that it could not give. A system error is a
// no: so pam_exec says it.
func pamRefusal(user string, err error) error {
	for _, broken := range []pam.Error{
		pam.ErrOpen, pam.ErrSymbol, pam.ErrService, pam.ErrBuf, pam.ErrAuthinfoUnavail, pam.ErrAbort, pam.ErrModuleUnknown,
	} {
		if errors.Is(err, broken) {
			return err
		}
	}
	return fmt.Errorf("%w: PAM refuses user %q: %w", ErrFailed, user, err)
}
