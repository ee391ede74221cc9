package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"

	"pgproxy/config"
	"pgproxy/wire"
)

// ErrFailed is wrapped by every refusal of a login. Clients must be told this and
// nothing else; the text around it is the reason, for the log.
var ErrFailed = errors.New("password authentication failed")

// Conn is one client's login exchange.
type Conn interface {
	// SendAuth writes one AuthenticationXXX message and flushes.
	SendAuth(code uint32, payload []byte) error
	// ReadPassword returns the body of the next 'p' message, valid until the
	// next call. The implementation bounds its length and the time that it takes.
	ReadPassword() ([]byte, error)
	// Channel tells what is known of the connection.
	Channel() Channel
	// Secret finds the secret of the user that logs in where the userlist has none,
	// as it would stand there; known is false if there is no such user. Its error is
	// the login's.
	Secret(ctx context.Context) (secret config.Secret, known bool, err error)
}

// Identity is who a client has proved to be.
type Identity struct {
	User  string
	Admin bool          // may use the whole console
	Stats bool          // may use SHOW on the console; every Admin may
	Opens config.Secret // what the user can be logged in to servers with: the password, or a Proof; "" if nothing is known

	claimed bool // User is no more than what the client says (auth_type any)
}

// Authenticator checks logins by one configuration.
type Authenticator struct {
	// set at construction
	method   config.AuthType
	accounts map[string]*account
	admins   []string
	stats    []string
	usual    usual
	hba      *HBA  // of method AuthHBA
	ldap     *LDAP // of method AuthLDAP, and of lines of hba without options
	*process
}

// process is what all authenticators that were made by Reload share.
type process struct {
	key   []byte        // of everything that is made up for unknown users
	slots chan struct{} // holds one token for each PBKDF2 that runs
}

// account is one user.
type account struct {
	secrets []*secret // the newest first; at least one
	turns   turns
}

// secret is one of an account.
type secret struct {
	*entry

	mu      sync.Mutex
	derived map[string]*Verifier // from a plain secret, by the salt; guarded by mu
}

// newAccount makes an account of what is known of a user; nil if that is nothing.
func newAccount(list []*entry) *account {
	if len(list) == 0 {
		return nil
	}
	a := &account{}
	for _, e := range list {
		a.secrets = append(a.secrets, &secret{entry: e})
	}
	return a
}

// has tells whether a secret is of that kind.
func (a *account) has(k kind) bool {
	return a != nil && slices.ContainsFunc(a.secrets, func(s *secret) bool { return s.kind == k })
}

// like tells whether two accounts have the same secrets in the same order.
func (a *account) like(b *account) bool {
	return slices.EqualFunc(a.secrets, b.secrets, func(x, y *secret) bool { return sameSecret(x.secret, y.secret) })
}

// usual is what most users of the userlist have, so that unknown ones seem to
// have it too.
type usual struct {
	kind  kind
	scram shape // in SCRAM exchanges
	slow  shape // of the secrets that are SCRAM verifiers; zero: there is none
}

// shape is what a client sees of a verifier.
type shape struct{ iterations, saltLen int }

// New makes an Authenticator; it does not change later. u may be nil.
func New(t config.AuthType, u *Userlist, admins, stats []string) *Authenticator {
	p := &process{key: make([]byte, sha256.Size), slots: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
	_, _ = rand.Read(p.key) // never fails, see crypto/rand
	return p.authenticator(t, u, admins, stats)
}

// Reload is New for a changed configuration: it keeps what was derived from
// secrets that are still the same, and what unknown users are shown. a remains
// usable.
func (a *Authenticator) Reload(t config.AuthType, u *Userlist, admins, stats []string) *Authenticator {
	b := a.authenticator(t, u, admins, stats)
	for user, now := range b.accounts {
		before := a.accounts[user]
		if before == nil {
			continue
		}
		if before.like(now) {
			now.turns.take(&before.turns)
		}
		for _, s := range now.secrets {
			if i := slices.IndexFunc(before.secrets, func(x *secret) bool { return sameSecret(x.secret, s.secret) }); i >= 0 {
				s.keep(before.secrets[i])
			}
		}
	}
	return b
}

func (p *process) authenticator(t config.AuthType, u *Userlist, admins, stats []string) *Authenticator {
	a := &Authenticator{
		method: t, admins: slices.Clone(admins), stats: slices.Clone(stats), process: p,
		accounts: make(map[string]*account), usual: usualOf(u),
	}
	if u != nil {
		for user, list := range u.users {
			a.accounts[user] = newAccount(list)
		}
	}
	return a
}

// Format prints a name, whatever the verb.
func (a *Authenticator) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("authenticator")) }

// Authenticate leads a client through its login, without the closing
// AuthenticationOk. The database has a part in it only with auth_type hba.
//
// A login that is refused gives an error that wraps ErrFailed, a message that is
// no password message a *wire.Error, and errors of c come back as they are. The
// end of ctx ends the wait for a processor, not one for the client: that is up to
// c.
func (a *Authenticator) Authenticate(ctx context.Context, c Conn, user, database string) (Identity, error) {
	id := Identity{
		User:  user,
		Admin: slices.Contains(a.admins, user),
	}
	id.Stats = id.Admin || slices.Contains(a.stats, user)

	if a.method == config.AuthAny {
		id.claimed = true // and the secret of whom it names is not for it
		id.Stats = true   // as in PgBouncer anybody may look
		return id, nil
	}
	method, dir := a.method, a.ldap
	if method == config.AuthHBA {
		rule, err := a.rule(c.Channel(), user, database)
		if err != nil {
			return Identity{}, err
		}
		method = rule.method.as
		if rule.ldap != nil {
			dir = rule.ldap
		}
	}
	acc, err := a.account(ctx, c, user, method)
	if err != nil {
		return Identity{}, err
	}
	l := &login{auth: a, acc: acc, conn: c, user: user, method: method}
	switch method {
	case config.AuthTrust:
		if acc == nil {
			err = l.failed()
		}
	case config.AuthCert:
		// With auth_type hba the rule, or its map, has allowed the name.
		if cn := c.Channel().CommonName; acc == nil || a.method != config.AuthHBA && (cn == "" || cn != user) {
			err = fmt.Errorf("%w: the client's certificate does not have the name of user %q", ErrFailed, user)
		}
	case config.AuthPlain:
		id.Opens, err = l.plain(ctx)
	case config.AuthMD5:
		err = l.md5(ctx)
	case config.AuthSCRAM:
		err = l.scram(ctx, l.offer())
	case config.AuthLDAP:
		if dir == nil {
			return Identity{}, fmt.Errorf("%w: there is no directory", ErrFailed)
		}
		id.Opens, err = l.ldap(ctx, dir)
	case config.AuthPAM:
		id.Opens, err = l.pam(ctx)
	default:
		err = fmt.Errorf("%w: auth_type %v is not served", ErrFailed, method)
	}
	if err != nil {
		return Identity{}, err
	}
	switch {
	case l.right != nil && l.right.kind == kindPlain:
		id.Opens = l.right.secret
	case l.right == nil && acc.has(kindPlain): // which is not what was asked for
		id.Opens = acc.secrets[slices.IndexFunc(acc.secrets, func(s *secret) bool { return s.kind == kindPlain })].secret
	case id.Opens.Empty():
		id.Opens = l.proof
	}
	return id, nil
}

// WithHBA returns an Authenticator that does what the lines of h say, for auth_type
// hba. a remains as it is.
func (a *Authenticator) WithHBA(h *HBA) *Authenticator {
	b := *a
	b.hba = h
	return &b
}

// WithLDAP returns an Authenticator that asks a directory, for auth_type ldap and
// lines of the auth_hba_file that name none. a remains as it is.
func (a *Authenticator) WithLDAP(l *LDAP) *Authenticator {
	b := *a
	b.ldap = l
	return &b
}

// rule finds the line of the auth_hba_file for a login and checks what it wants of
// the connection.
func (a *Authenticator) rule(c Channel, user, database string) (*hbaRule, error) {
	from := "a Unix socket"
	if c.Addr.IsValid() {
		from = fmt.Sprintf("host %q", c.Addr)
	}
	var r *hbaRule
	if a.hba != nil {
		r = a.hba.match(c, database, user)
	}
	switch {
	case r == nil:
		return nil, wire.Fatalf(wire.CodeInvalidAuthorization, "no auth_hba_file entry for %s, user %q, database %q, %s", from, user, database, c.encryption())
	case r.method.refuse:
		return nil, wire.Fatalf(wire.CodeInvalidAuthorization, "auth_hba_file rejects connection for %s, user %q, database %q, %s", from, user, database, c.encryption())
	case r.method.peer:
		if !a.hba.allows(r.identMap, c.SystemUser, user) {
			return nil, fmt.Errorf("%w: line %d of auth_hba_file: %q of the system is not user %q", ErrFailed, r.line, c.SystemUser, user)
		}
		r = &hbaRule{line: r.line, method: hbaMethod{as: config.AuthTrust}}
	case r.method.as == config.AuthCert:
		if !a.hba.allows(r.identMap, c.CommonName, user) {
			return nil, fmt.Errorf("%w: line %d of auth_hba_file: the certificate of %q is not for user %q", ErrFailed, r.line, c.CommonName, user)
		}
	case r.cert && !c.Certified:
		return nil, wire.Fatalf(wire.CodeInvalidAuthorization, "connection requires a valid client certificate")
	case r.named && c.CommonName != user:
		return nil, fmt.Errorf("%w: line %d of auth_hba_file: the certificate of %q is not for user %q", ErrFailed, r.line, c.CommonName, user)
	}
	return r, nil
}

// account finds a user: in the userlist, else by asking, where the method needs the
// secret.
func (a *Authenticator) account(ctx context.Context, c Conn, user string, method config.AuthType) (*account, error) {
	if acc := a.accounts[user]; acc != nil || !method.UsesSecrets() {
		return acc, nil
	}
	secret, known, err := c.Secret(ctx)
	if err != nil || !known {
		return nil, err
	}
	e, err := newEntry(secret)
	if err != nil {
		return nil, fmt.Errorf("%w: user %q: %w", ErrFailed, user, err)
	}
	return newAccount([]*entry{e}), nil
}

// usualOf counts what the users of a userlist have. Equal counts go to the
// greater, so that the result depends on the userlist alone.
func usualOf(u *Userlist) usual {
	kinds, shapes, slow := make(map[kind]int), make(map[shape]int), make(map[shape]int)
	if u != nil {
		for _, list := range u.users {
			e := list[0]
			kinds[e.kind]++
			s := shape{defaultIterations, defaultSaltLen}
			switch e.kind {
			case kindSCRAM:
				s = shape{e.verifier.iterations, len(e.verifier.salt)}
				slow[s]++
				shapes[s]++
			case kindPlain:
				shapes[s]++
			}
		}
	}
	delete(kinds, kindNone)
	if len(shapes) == 0 {
		shapes[shape{defaultIterations, defaultSaltLen}] = 1
	}
	return usual{
		kind:  mostOf(kinds, func(x, y kind) bool { return x > y }),
		scram: mostOf(shapes, shape.greater),
		slow:  mostOf(slow, shape.greater),
	}
}

func (s shape) greater(t shape) bool {
	return s.iterations > t.iterations || s.iterations == t.iterations && s.saltLen > t.saltLen
}

// mostOf returns the key with the greatest count, or zero.
func mostOf[K comparable](counts map[K]int, greater func(x, y K) bool) (best K) {
	for k, n := range counts {
		if m := counts[best]; n > m || n == m && greater(k, best) {
			best = k
		}
	}
	return best
}

// slot waits until the process may run one more PBKDF2; what follows gives it
// back by receiving from p.slots.
func (p *process) slot(ctx context.Context) error {
	if err := take(ctx, p.slots); err != nil {
		return fmt.Errorf("checking a password: %w", err)
	}
	return nil
}

// take waits for a slot; receiving from slots gives it back.
func take(ctx context.Context, slots chan struct{}) error {
	if ctx.Err() == nil {
		select {
		case slots <- struct{}{}:
			return nil
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("waiting for %d others: %w", cap(slots), context.Cause(ctx))
}

// derive is the function derive, in a slot.
func (p *process) derive(ctx context.Context, password string, salt []byte, iterations int) (Verifier, error) {
	if err := p.slot(ctx); err != nil {
		return Verifier{}, err
	}
	defer func() { <-p.slots }()
	return derive(password, salt, iterations)
}

// verifier returns what a proof is checked with that was made with a salt: that of
// a SCRAM secret has it, that of a plain one is derived. Only the first proof of a
// user costs the derivation, which is to be seen in the time of the answer.
func (p *process) verifier(ctx context.Context, s *secret, salt []byte, iterations int) (Verifier, error) {
	if s.kind == kindSCRAM {
		return s.verifier, nil
	}
	key := fmt.Sprintf("%d %s", iterations, salt)
	if v := s.known(key); v != nil {
		return *v, nil
	}
	if err := p.slot(ctx); err != nil {
		return Verifier{}, err
	}
	defer func() { <-p.slots }()
	if v := s.known(key); v != nil {
		return *v, nil // of a login that had the slot before
	}
	v, err := derive(s.secret.Reveal(), salt, iterations)
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.derived == nil || len(s.derived) >= maxSecrets {
			s.derived = make(map[string]*Verifier)
		}
		s.derived[key] = &v
	}
	return v, err
}

// known returns what was derived before, or nil.
func (s *secret) known(key string) *Verifier {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.derived[key]
}

// keep takes over what is known of the same secret from before a reload.
func (s *secret) keep(before *secret) {
	before.mu.Lock()
	derived := maps.Clone(before.derived)
	before.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.derived = derived
	s.shown.Store(before.shown.Load())
}

// salt makes up a salt that is always the same for a name.
func (p *process) salt(user string, n int) []byte {
	out := make([]byte, 0, n+sha256.Size)
	for i := byte(0); len(out) < n; i++ {
		block := mac(p.key, "salt", string(i), user)
		out = append(out, block[:]...)
	}
	return out[:n:n]
}

// mock makes up a verifier that no password fits.
func (p *process) mock(user string, s shape) Verifier {
	return Verifier{
		salt: p.salt(user, s.saltLen), iterations: s.iterations,
		stored: mac(p.key, "stored", user), server: mac(p.key, "server", user),
	}
}

func sameSecret(a, b config.Secret) bool {
	return subtle.ConstantTimeCompare([]byte(a.Reveal()), []byte(b.Reveal())) == 1
}
