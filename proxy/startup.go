package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"pgproxy/auth"
	"pgproxy/backend"
	"pgproxy/config"
	"pgproxy/netio"
	"pgproxy/router"
	"pgproxy/wire"
)

// maxLoginMessage is the longest password or SASL message in bytes.
const maxLoginMessage = 8 << 10

// login brings a client from its first byte to ReadyForQuery, within
// client_login_timeout. What it returns ends the session; nil means welcome.
func (s *Session) login() error {
	entered := sync.OnceFunc(func() { s.srv.entering.Add(-1) })
	defer entered()
	st := s.srv.current.Load()
	if d := st.Config.Proxy.ClientLoginTimeout; d > 0 {
		_ = s.nc.SetDeadline(time.Now().Add(d))
	}
	if err := s.endReason(); err != nil { // its deadline came before, and is gone now
		return err
	}
	su, err := s.firstPacket()
	if err != nil {
		return s.loginError(err)
	}
	if su.Kind == wire.StartCancel {
		s.srv.clients.Add(-1)      // it is no client and takes no client's place
		defer s.srv.clients.Add(1) // which forget takes away
		entered()
		s.srv.cancel(su.PID, su.Secret)
		return errTerminate
	}
	if err := s.wantTLS(); err != nil {
		return err
	}
	if n := s.srv.clients.Load() - s.srv.asking.Load(); n > int64(st.Config.Proxy.MaxClientConn) {
		s.srv.refused.Add(1)
		return wire.Fatalf(wire.CodeTooManyConnections, "no more connections allowed (max_client_conn)")
	}
	if err := s.authenticate(st, su); err != nil {
		return s.loginError(err)
	}
	entered()
	ok := func(b bool) {
		if s.srv.trace.Login != nil {
			s.srv.trace.Login(b)
		}
	}
	if slices.Contains(ConsoleNames, s.database) {
		ok(true)
		return s.serveConsole()
	}
	if r := s.replica.Load(); r != nil {
		err := s.replicate(su)
		if r.stream.Load() == nil {
			err = s.loginError(err)
		}
		return err
	}
	if err := s.welcome(su); err != nil {
		return s.loginError(err)
	}
	_ = s.nc.SetDeadline(time.Time{})
	s.srv.logins.Add(1)
	ok(true)
	if st.Config.Proxy.LogConnections {
		s.logLogin(su.Param("application_name"))
	}
	return nil
}

// firstPacket finds out what the client wants; up to then it takes no client's place.
func (s *Session) firstPacket() (*wire.Startup, error) {
	defer s.srv.asking.Add(-1)
	if err := s.takeOrigin(); err != nil {
		return nil, err
	}
	return s.startup()
}

// loginError adds what a client is told when its login ends with an ordinary
// error.
func (s *Session) loginError(err error) error {
	if s.srv.trace.Login != nil && s.user != "" {
		s.srv.trace.Login(false)
	}
	var e *wire.Error
	switch {
	case errors.As(err, &e) || s.endReason() != nil:
		return err
	case errors.Is(err, wire.ErrLength), errors.Is(err, wire.ErrMessage):
		return wire.Fatalf(wire.CodeProtocolViolation, "invalid startup packet: %v", err).Because(err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return wire.Fatalf(wire.CodeProtocolViolation, "client_login_timeout").Because(err)
	case errors.Is(err, auth.ErrFailed):
		return wire.Fatalf(wire.CodeInvalidPassword, "password authentication failed for user %q", s.user).Because(err)
	}
	return err
}

// startup reads first packets until one is neither an SSLRequest nor a
// GSSENCRequest, which is answered with N. A client may also begin with TLS at
// once.
func (s *Session) startup() (*wire.Startup, error) {
	for tries := 0; ; tries++ {
		var head [4]byte
		if _, err := io.ReadFull(s.link, head[:]); err != nil {
			return nil, err
		}
		if head[0] == recordHandshake && tries == 0 && s.offersTLS() {
			if err := s.directTLS(head[:]); err != nil {
				return nil, err
			}
			continue
		}
		n, err := wire.StartupLen(head[:])
		if err != nil {
			return nil, err
		}
		p := make([]byte, n)
		copy(p, head[:])
		if _, err := io.ReadFull(s.link, p[4:]); err != nil {
			return nil, err
		}
		su, err := wire.ReadStartup(p)
		if err != nil {
			return nil, err
		}
		if su.Kind == wire.StartSession || su.Kind == wire.StartCancel {
			return su, nil
		}
		if su.Kind == wire.StartSSL && s.link == s.nc && s.offersTLS() {
			if _, err := s.link.Write([]byte{'S'}); err != nil {
				return nil, err
			}
			if err := s.startTLS(s.nc, false); err != nil {
				return nil, err
			}
			continue
		}
		if tries >= 2 {
			return nil, wire.Fatalf(wire.CodeProtocolViolation, "too many encryption requests")
		}
		if _, err := s.link.Write([]byte{'N'}); err != nil {
			return nil, err
		}
	}
}

// authenticate finds out who the client is and which database it wants.
func (s *Session) authenticate(st *Settings, su *wire.Startup) error {
	s.user = su.Param("user")
	s.database = su.Param("database")
	if s.user == "" {
		return wire.Fatalf(wire.CodeInvalidAuthorization, "no PostgreSQL user name specified in startup packet")
	}
	if s.database == "" {
		s.database = s.user
	}
	kind, err := replicationKind(su.Param("replication"))
	if err != nil {
		return err
	}
	if kind != "" {
		if kind == "physical" {
			if s.database, err = replicationDatabase(st.Config, s.database); err != nil {
				return err
			}
		}
		s.replica.Store(&replication{kind: kind})
	}
	if s.late {
		return wire.Fatalf(wire.CodeCannotConnectNow, "the proxy is shutting down")
	}
	if err := s.negotiate(su); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(s.srv.ctx)
	defer stop()
	id := s.ownerOfConsole()
	if !id.Admin {
		p := &st.Config.Proxy
		c := &loginConn{s: s, limit: auth.Limit{Failures: p.AuthFailureLimit, Period: p.AuthFailurePeriod}}
		if err := c.mayTry(); err != nil {
			return err
		}
		defer c.pause() // for a panic
		id, err = st.Auth.Authenticate(ctx, c, s.user, s.database)
		c.pause()
		if failed := errors.Is(err, auth.ErrFailed); err == nil || failed {
			c.tried(!failed)
		}
	}
	if errors.Is(err, auth.ErrFailed) {
		s.srv.asker.Forget(s.database, s.user)
	}
	if err != nil {
		return err
	}
	s.identity = id
	if slices.Contains(ConsoleNames, s.database) {
		if !id.Admin && !id.Stats {
			return wire.Fatalf(wire.CodeInsufficientPrivilege, "not allowed").WithHint("The console is for admin_users and stats_users.")
		}
	} else {
		if _, ok := st.Config.Database(s.database); !ok {
			return wire.Fatalf(wire.CodeUndefinedDatabase, "database %q does not exist", s.database)
		}
		if s.srv.Disabled(s.database) {
			return wire.Fatalf(wire.CodeCannotConnectNow, "database %q is disabled", s.database)
		}
	}
	if err := s.srv.admit(s, st.Config); err != nil {
		return err
	}
	_, err = s.link.Write(wire.AppendAuth(nil, wire.AuthOK, nil))
	return err
}

// ownerOfConsole lets the user of the system that runs the proxy into the console,
// without a password, as "pgbouncer" through the Unix socket: the kernel says who
// the peer is.
func (s *Session) ownerOfConsole() auth.Identity {
	if s.user != "pgbouncer" || !slices.Contains(ConsoleNames, s.database) {
		return auth.Identity{}
	}
	if uid, ok := s.peer(); !ok || uid != os.Getuid() {
		return auth.Identity{}
	}
	return auth.Identity{User: s.user, Admin: true, Stats: true}
}

// peer returns the user of the system that the kernel says the client is; ok is
// false unless it comes through a Unix socket.
func (s *Session) peer() (uid int, ok bool) {
	uc, ok := s.nc.(*net.UnixConn)
	if !ok {
		return 0, false
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return 0, false
	}
	ok = false
	_ = raw.Control(func(fd uintptr) {
		if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			uid, ok = int(cred.Uid), true
		}
	})
	return uid, ok
}

// negotiate answers a client that asks for more of the protocol than there is.
func (s *Session) negotiate(su *wire.Startup) error {
	var unknown []string
	for _, p := range su.Params {
		if strings.HasPrefix(p[0], "_pq_.") {
			unknown = append(unknown, p[0])
		}
	}
	n := 4
	if su.Protocol >= wire.Protocol32 {
		n = 32
	}
	s.secret = s.srv.newSecret(n)
	if su.Protocol <= wire.Protocol32 && len(unknown) == 0 {
		return nil
	}
	_, err := s.link.Write(wire.AppendNegotiate(nil, min(su.Protocol, wire.Protocol32), unknown))
	return err
}

// loginConn is the client as package auth sees it.
type loginConn struct {
	s     *Session
	limit auth.Limit
	code  wire.AuthCode // sent last
	buf   []byte

	computing bool // has a slot of the entrance
}

// Secret asks for what the userlist does not have.
func (c *loginConn) Secret(context.Context) (config.Secret, bool, error) {
	return c.s.srv.asker.Secret(c.s.database, c.s.user)
}

// SendAuth writes an Authentication message.
func (c *loginConn) SendAuth(code uint32, payload []byte) error {
	c.code = wire.AuthCode(code)
	_, err := c.s.link.Write(wire.AppendAuth(nil, c.code, payload))
	return err
}

// ReadPassword reads the body of a password or SASL message.
func (c *loginConn) ReadPassword() ([]byte, error) {
	c.pause()
	var head [wire.HeaderLen]byte
	if _, err := io.ReadFull(c.s.link, head[:]); err != nil {
		return nil, err
	}
	h, err := wire.ReadHeader(head[:], maxLoginMessage)
	if h.Type != wire.Password {
		return nil, wire.Fatalf(wire.CodeProtocolViolation, "expected password response, got message type %d", h.Type)
	}
	if err != nil {
		return nil, wire.Fatalf(wire.CodeProtocolViolation, "invalid length of password message").Because(err)
	}
	c.buf = make([]byte, h.Body)
	if _, err = io.ReadFull(c.s.link, c.buf); err != nil {
		return nil, err
	}
	if c.code == wire.AuthSASL || c.code == wire.AuthSASLContinue {
		c.compute() // all that follows is hashing; with other methods a directory may be asked
	}
	return c.buf, c.stillMayTry()
}

// serveConsole hands the client to the console.
func (s *Session) serveConsole() error {
	c := s.srv.console.Load()
	if c == nil {
		return wire.Fatalf(wire.CodeUndefinedDatabase, "database %q does not exist", s.database)
	}
	_ = s.nc.SetDeadline(time.Time{})
	if err := s.endReason(); err != nil { // its end came before, with a deadline that is gone now
		return err
	}
	err := (*c).Serve(s.srv.ctx, ConsoleClient{
		Conn: s.link, Identity: s.identity, Database: s.database, PID: s.pid, Secret: s.secret, Session: s.id,
	})
	if err == nil || errors.Is(err, io.EOF) {
		return errConsole
	}
	return err
}

// startupSettings returns what the startup packet asks of the session's
// settings.
func (s *Session) startupSettings(p config.Proxy, su *wire.Startup) (*backend.Settings, error) {
	var out *backend.Settings
	set := func(name, value string) { out = out.With(strings.ToLower(name), value) }
	for _, kv := range su.Params {
		name, value := kv[0], kv[1]
		switch {
		case name == "user", name == "database", name == "replication", strings.HasPrefix(name, "_pq_."):
		case slices.Contains(p.IgnoreStartupParameters, name):
		case name == "options":
			opts, err := wire.OptionSettings(value)
			if err != nil {
				return nil, err
			}
			for _, o := range opts {
				if !slices.Contains(p.IgnoreStartupParameters, o[0]) && !slices.Contains(p.IgnoreStartupParameters, "options") {
					set(o[0], o[1])
				}
			}
		case name == "application_name" && p.ApplicationNameAddHost:
			set(name, fmt.Sprintf("%s - %s", value, s.origin.Load().remote))
		default:
			set(name, value)
		}
	}
	return out, nil
}

// welcome makes the session ready: it borrows a server connection where what the
// login reports is not known yet, and tells the client.
func (s *Session) welcome(su *wire.Startup) error {
	cfg := s.srv.current.Load().Config
	wanted, err := s.startupSettings(cfg.Proxy, su)
	if err != nil {
		return err
	}
	if err := s.refresh(); err != nil {
		return err
	}
	for _, x := range wanted.List() {
		if strings.HasPrefix(x.Name, "pgproxy.") {
			if err := s.startOwn(x.Name, x.Value); err != nil {
				return err
			}
			wanted = wanted.Without(x.Name)
		}
	}
	s.heldMax = cfg.Proxy.MaxQueryParseSize
	s.io = netio.New(s.link, s.heldMax+64<<10)
	params, wanted, err := s.srv.welcomes.get(s, wanted)
	if err != nil {
		return err
	}
	wanted = s.srv.interned.get(wanted)
	s.base = wanted
	s.settings.Store(wanted)
	out := make([]byte, 0, 512)
	for _, p := range params {
		value := p.Value
		if p.Name == "client_encoding" {
			s.loginEncoding = value
		}
		if v, ok := wanted.Get("application_name"); ok && p.Name == "application_name" {
			value = v
		}
		out = wire.AppendParameterStatus(out, p.Name, value)
	}
	out = wire.AppendBackendKeyData(out, s.pid, s.secret)
	out = wire.AppendReadyForQuery(out, wire.TxIdle)
	// Whoever looks for this client from the moment on that it knows finds it.
	s.lastSeen.Store(router.Nanotime())
	s.welcomed.Store(true)
	if _, err := s.link.Write(out); err != nil {
		return err
	}
	return s.endReason()
}
