package pool

import (
	"crypto/subtle"

	"pgproxy/backend"
	"pgproxy/config"
)

// SetPassword notes the password for the next logins. An empty one is not known
// and changes nothing. One that has been replaced since the last reload comes
// from a client that logged in before: it counts only if its successor was
// refused.
func (p *Pool) SetPassword(s config.Secret) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.passwordLocked(s)
}

// passwordLocked is SetPassword. What a login with the old password was told
// says nothing of the new one, so the server is asked again at once.
func (p *Pool) passwordLocked(s config.Secret) {
	if s.Empty() || same(s, p.login.Password) {
		return
	}
	if refused, busy := backend.Refused(p.lastErr); same(s, p.replaced) && (!refused || busy) {
		return
	}
	p.replaced, p.login.Password = p.login.Password, s
	p.failures, p.retryAt, p.lastErr = 0, 0, nil
	if p.waiting > 0 {
		p.growLocked()
	}
}

func same(a, b config.Secret) bool {
	return subtle.ConstantTimeCompare([]byte(a.Reveal()), []byte(b.Reveal())) == 1
}

// Login returns what the pool's next connection logs in with, and what opens it.
func (p *Pool) Login() (backend.Login, *backend.Dialer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.login, p.dialer
}
